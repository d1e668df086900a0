"""Messages that wait until a forwarder accepts them: bounded, in order, each with its deadline.

Pure. A new message is kept as the parts from which it is built, since its sequence number and its remaining time to
live are only known when it is sent. A message that was sent before, and has to be sent again, has both.
"""

from collections import OrderedDict
from enum import Enum
from math import inf
from typing import NamedTuple

SCAN_SECONDS = 3e-6
"""Seconds between two searches for expired messages, for each that is held: a search takes 5 % of that."""


class Kind(Enum):
    """The kinds of held messages."""

    MESSAGE = "message"
    """A group or direct message without a number: `body` is the part behind its head."""
    REPEAT = "repeat"
    """A group or direct message that was sent before: `body` is the frame."""
    REQUEST = "request"
    """A request, or a frame that needs no answer: `body` is the frame."""


class Held(NamedTuple):
    """A held message.

    Attributes:
        deadline: When it expires.
        key: Chooses its home; the prefix of a group or direct message.
        body: See `Kind`.
        kind: Its kind.
        number: Of the request, by which `withdraw` finds it; 0 if no caller waits for it.
        order: Grows with each message.
        counts: How many messages are lost if it expires.
        published: Of a message that is sent again: the latest time at which it may have been sent first. Of a request:
            when it was held first.
        instance: The instance to which it was sent last.
    """

    deadline: float
    key: bytes
    body: bytes
    kind: Kind = Kind.MESSAGE
    number: int = 0
    order: int = 0
    counts: int = 1
    published: float = 0.0
    instance: bytes = b""


class Ledger:
    """The bounds shared by all outboxes of a process.

    Messages that are sent again do not count for the bounds: they were subject to those of the window.

    Args:
        capacity: How many messages.
        max_bytes: How many bytes they may have together.
    """

    def __init__(self, capacity: int, max_bytes: int) -> None:
        self.capacity, self.max_bytes = capacity, max_bytes
        self.count = self.size = 0
        self._new_count = self._new_size = 0
        self.order = 0
        """The order of the last message that was held."""
        self._joined: dict[bytes, int] = {}  # topics subscribed to while messages were held: the last of these

    def subscribed(self, topic: bytes) -> None:
        """Note that messages held now are older than the subscription of this process to their topic."""
        if self.count:
            self._joined[topic] = self.order
        else:
            self._joined.clear()

    def is_older(self, held: Held) -> bool:
        """Return whether a message was held before this process subscribed to its topic."""
        return held.order <= self._joined.get(held.key, 0)

    def add(self, held: Held) -> int:
        """Count a message; return its order."""
        self.order += 1
        self._count(held, 1)
        return self.order

    def remove(self, held: Held) -> None:
        """Count a message no longer."""
        self._count(held, -1)

    def _count(self, held: Held, by: int) -> None:
        self.count += by
        self.size += by * len(held.body)
        if held.kind is not Kind.REPEAT:
            self._new_count += by
            self._new_size += by * len(held.body)

    def full_by(self, body: bytes) -> str:
        """Return the option by which a new message with this body does not fit; empty if it fits."""
        if self._new_count >= self.capacity:
            return "outbox_capacity"
        return "outbox_bytes" if self._new_size + len(body) > self.max_bytes else ""


class Outbox:
    """Messages held for one forwarder, or while no forwarder is available.

    Args:
        ledger: Is shared with other outboxes.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._held: OrderedDict[int, Held] = OrderedDict()  # by order
        self._requests: dict[int, int] = {}  # number of a held request -> its order
        self._expired = 0
        self._earliest = inf  # no search for expired messages is due before this

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, held: Held, now: float, *, must: bool = False) -> bool:
        """Append a message, and give it its order unless it has one; return False if it does not fit.

        Args:
            held: The message.
            now: Monotonic seconds.
            must: Whether it is held even beyond the bounds: it was accepted before, or carries no message.
        """
        ledger = self._ledger
        if not must and ledger.full_by(held.body):
            self._expired += self._drop_expired(now)
            if ledger.full_by(held.body):
                return False
        order = ledger.add(held)
        self._held[order] = held if held.order else held._replace(order=order)
        if held.number:
            self._requests[held.number] = order
        self._earliest = min(self._earliest, held.deadline)
        return True

    def first(self) -> Held | None:
        """Return the message that is sent next, without removing it."""
        return next(iter(self._held.values()), None)

    def remove_first(self) -> None:
        """Remove the message that `first` returned."""
        self._remove(next(iter(self._held)))

    def take(self) -> list[Held]:
        """Remove and return everything, in order."""
        held = list(self._held.values())
        self.clear()
        return held

    def withdraw(self, number: int) -> bool:
        """Remove the message of a request whose caller has given up; return whether it was still held."""
        order = self._requests.get(number)
        if order is None:
            return False
        self._remove(order)
        return True

    def expire(self, now: float) -> int:
        """Drop expired messages and return how many of them count as lost since the last call."""
        expired, self._expired = self._expired + self._drop_expired(now), 0
        return expired

    def clear(self) -> None:
        """Drop everything."""
        for held in self._held.values():
            self._ledger.remove(held)
        self._held.clear()
        self._requests.clear()
        self._earliest = inf

    def _drop_expired(self, now: float) -> int:
        if now < self._earliest:
            return 0
        expired = [(key, held) for key, held in self._held.items() if held.deadline <= now]
        for key, _ in expired:
            self._remove(key)
        earliest = min((held.deadline for held in self._held.values()), default=inf)
        self._earliest = max(earliest, now + len(self._held) * SCAN_SECONDS)
        return sum(held.counts for _, held in expired)

    def _remove(self, key: int) -> None:
        held = self._held.pop(key)
        self._requests.pop(held.number, None)
        self._ledger.remove(held)
