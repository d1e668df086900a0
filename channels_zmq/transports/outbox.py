"""Messages that wait while the forwarder is unreachable: bounded, in order, each with its deadline.

Pure. A message is kept as the parts that it will be built from, since its sequence number and the time it has left to
live are only known when it is sent.
"""

from collections import OrderedDict
from math import inf
from typing import NamedTuple


class Held(NamedTuple):
    """A held message.

    Attributes:
        deadline: When it expires.
        prefix: Of a numbered message; empty if `body` is a whole frame.
        body: The rest of the message, or the whole frame.
        number: Of the request, by which `withdraw` finds it; 0 for a message that nobody waits for.
        order: Grows with each message.
    """

    deadline: float
    prefix: bytes
    body: bytes
    number: int = 0
    order: int = 0


class Outbox:
    """The held messages of one connection.

    Args:
        capacity: How many messages it holds.
        max_bytes: How many bytes they may have together.
    """

    def __init__(self, capacity: int, max_bytes: int) -> None:
        self.capacity, self.max_bytes = capacity, max_bytes
        self.size = 0
        self.order = 0
        """The order of the last message that was held."""
        self._held: OrderedDict[int, Held] = OrderedDict()  # by order
        self._requests: dict[int, int] = {}  # number of a held request -> its order
        self._expired = 0
        self._earliest = inf  # no message expires before this; spares a scan for each one that is refused

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, deadline: float, prefix: bytes, body: bytes, number: int, now: float) -> bool:
        """Append a message; return False if there is no room for it."""
        if self._is_full(body):
            self._expired += self._drop_expired(now)
            if self._is_full(body):
                return False
        self.order += 1
        self._held[self.order] = Held(deadline, prefix, body, number, self.order)
        if number:
            self._requests[number] = self.order
        self.size += len(body)
        self._earliest = min(self._earliest, deadline)
        return True

    def _is_full(self, body: bytes) -> bool:
        return len(self._held) >= self.capacity or self.size + len(body) > self.max_bytes

    def first(self) -> Held | None:
        """Return the message that is sent next, without removing it."""
        return next(iter(self._held.values()), None)

    def remove_first(self) -> None:
        """Remove the message that `first` returned."""
        self._remove(next(iter(self._held)))

    def withdraw(self, number: int) -> bool:
        """Remove the message of a request that nobody waits for any more; return whether it was still here."""
        order = self._requests.get(number)
        if order is None:
            return False
        self._remove(order)
        return True

    def expire(self, now: float) -> int:
        """Drop expired messages and return how many they were since the last call."""
        expired, self._expired = self._expired + self._drop_expired(now), 0
        return expired

    def clear(self) -> int:
        """Drop everything and return how many messages that were."""
        dropped = len(self._held)
        self._held.clear()
        self._requests.clear()
        self.size, self._earliest = 0, inf
        return dropped

    def _drop_expired(self, now: float) -> int:
        if now < self._earliest:
            return 0
        expired = [order for order, held in self._held.items() if held.deadline <= now]
        for order in expired:
            self._remove(order)
        self._earliest = min((held.deadline for held in self._held.values()), default=inf)
        return len(expired)

    def _remove(self, order: int) -> None:
        held = self._held.pop(order)
        self._requests.pop(held.number, None)
        self.size -= len(held.body)
