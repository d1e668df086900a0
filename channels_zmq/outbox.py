"""What waits while the forwarder is away: bounded, in order, each with its deadline.

Pure. A message is kept as the parts it will be built from, since its sequence number and the time it has left to live
are only known when it goes.
"""

from collections import deque
from collections.abc import Callable
from math import inf
from typing import NamedTuple


class Waiting(NamedTuple):
    """A held message. With a `prefix` it is numbered when it goes; without one `body` is the whole frame.

    `number` is the request's, by which `withdraw` finds it; 0 for a message that nobody waits for.
    """

    deadline: float
    prefix: bytes
    body: bytes
    number: int = 0


class Outbox:
    """The held messages of one connection.

    Args:
        capacity: How many messages it holds.
        max_bytes: How many bytes they may have together.
    """

    def __init__(self, capacity: int, max_bytes: int) -> None:
        self.capacity, self.max_bytes = capacity, max_bytes
        self.size = 0
        self._held: deque[Waiting] = deque()
        self._expired = 0
        self._earliest = inf  # no message expires before this; spares a scan for each one that is refused

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, waiting: Waiting, now: float) -> bool:
        """Append a message; return False if there is no room for it."""
        if self._is_full(waiting):
            self._expired += self._drop_expired(now)
            if self._is_full(waiting):
                return False
        self._held.append(waiting)
        self.size += len(waiting.body)
        self._earliest = min(self._earliest, waiting.deadline)
        return True

    def _is_full(self, waiting: Waiting) -> bool:
        return len(self._held) >= self.capacity or self.size + len(waiting.body) > self.max_bytes

    def first(self) -> Waiting | None:
        """Return the message that goes next, without removing it."""
        return self._held[0] if self._held else None

    def remove_first(self) -> None:
        """Remove the message that `first` returned."""
        self.size -= len(self._held.popleft().body)

    def withdraw(self, number: int) -> bool:
        """Remove the message of a request that nobody waits for any more; return whether it was still here."""
        if not any(waiting.number == number for waiting in self._held):
            return False
        return self._keep(lambda waiting: waiting.number != number) > 0

    def expire(self, now: float) -> int:
        """Drop what has expired and return how many messages that were since the last call."""
        expired, self._expired = self._expired + self._drop_expired(now), 0
        return expired

    def _drop_expired(self, now: float) -> int:
        return 0 if now < self._earliest else self._keep(lambda waiting: waiting.deadline > now)

    def clear(self) -> int:
        """Drop everything and return how many messages that were."""
        return self._keep(lambda waiting: False)

    def _keep(self, wanted: Callable[[Waiting], bool]) -> int:
        before = len(self._held)
        self._held = deque(waiting for waiting in self._held if wanted(waiting))
        self.size = sum(len(waiting.body) for waiting in self._held)
        self._earliest = min((waiting.deadline for waiting in self._held), default=inf)
        return before - len(self._held)
