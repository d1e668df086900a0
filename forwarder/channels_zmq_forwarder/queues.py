"""The queue of one plain channel: what waits for a reader, and how far each reader may go.

In the data-flow diagram this is the box inside the exchange that a message for a channel without `!` passes. Pure: time
comes in as an argument, hand-overs go out as a list.

- A queue holds at most the capacity that its sender names; what has expired does not count.
- Messages leave in the order of their numbers; one that is handed back returns to its old place.
- Each message is handed to exactly one reader, and only within the window that the reader has opened (credit).
- Readers take turns.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

ENTRY_SIZE = 256
"""Bytes of memory that an entry takes beside its payload, by estimate, so that empty messages count too."""


class Entry(NamedTuple):
    """A waiting message. `number` is its place, `deadline` and `since` are seconds on the exchange's clock."""

    number: int
    deadline: float
    since: float
    payload: bytes


class Handover(NamedTuple):
    """A message that is to go to a reader now, in that reader's session."""

    inbox: bytes
    session: int
    entry: Entry


@dataclass(slots=True)
class Credit:
    """How far one client may go on one channel: `handed` counts up to the absolute `limit` of its session."""

    session: int
    limit: int = 0
    handed: int = 0

    @property
    def is_open(self) -> bool:
        """Whether one more message may be handed over."""
        return self.handed < self.limit


@dataclass(slots=True)
class PlainQueue:
    """What waits on one plain channel, and who may take it."""

    entries: deque[Entry] = field(default_factory=deque)
    credits: dict[bytes, Credit] = field(default_factory=dict)
    size: int = 0
    """Bytes of memory that the waiting messages take, by estimate."""
    counted: int = 0
    """What of `size` the owner of the queue has added to its total."""
    expired: int = 0
    """Messages dropped since the owner last looked and set this to 0."""
    earliest: float = inf
    """No message expires before this; spares a scan for each message refused by a full queue."""
    _turns: deque[bytes] = field(default_factory=deque)
    """The readers whose window is open, each once; the first is next."""

    @property
    def readers(self) -> int:
        """How many readers have their window open: if there are any, a message that comes now need not wait."""
        return len(self._turns)

    @property
    def idle(self) -> bool:
        """Whether nothing waits here and no reader is known, so that the queue can be forgotten."""
        return not self.entries and not self.credits

    def put(self, entry: Entry, capacity: int, now: float) -> bool:
        """Append a message with the highest number so far; return False if the queue is full."""
        if len(self.entries) >= capacity:
            self.expire(now)
            if len(self.entries) >= capacity:
                return False
        self.entries.append(entry)
        self._count(entry)
        return True

    def put_back(self, entry: Entry) -> None:
        """Return a message to its old place, over the capacity if need be."""
        if not self.entries or entry.number < self.entries[0].number:
            self.entries.appendleft(entry)
        else:
            insort(self.entries, entry, key=lambda other: other.number)
        self._count(entry)

    def open_window(self, inbox: bytes, session: int, limit: int) -> Credit:
        """Say how far a client may go in its session; a new session begins at nothing handed.

        A window that is closed before anything passed is not remembered: it would begin the same way again.
        """
        credit = self.credits.get(inbox) or Credit(session)
        was_open = credit.is_open
        if credit.session != session:
            credit = Credit(session)
        self.credits[inbox] = credit
        credit.limit = limit
        if credit.is_open and not was_open:
            self._turns.append(inbox)
        elif was_open and not credit.is_open:
            self._turns.remove(inbox)
        if not limit and not credit.handed:
            del self.credits[inbox]
        return credit

    def forget(self, inbox: bytes) -> None:
        """Take back all credit of a client that is gone."""
        credit = self.credits.pop(inbox, None)
        if credit is not None and credit.is_open:
            self._turns.remove(inbox)

    def hand_over(self, now: float) -> Iterator[Handover]:
        """Yield each message that a reader may have now, in order, the readers taking turns."""
        while self._turns and self.entries:
            if self.entries[0].deadline <= now:
                self.size -= ENTRY_SIZE + len(self.entries.popleft().payload)
                self.expired += 1
                continue
            inbox = self._turns.popleft()
            credit = self.credits[inbox]
            credit.handed += 1
            if credit.is_open:
                self._turns.append(inbox)
            entry = self.entries.popleft()
            self.size -= ENTRY_SIZE + len(entry.payload)
            yield Handover(inbox, credit.session, entry)

    def expire(self, now: float) -> None:
        """Drop what has expired."""
        if now < self.earliest:
            return
        before = len(self.entries)
        self.entries = deque(entry for entry in self.entries if entry.deadline > now)
        self.size = sum(ENTRY_SIZE + len(entry.payload) for entry in self.entries)
        self.expired += before - len(self.entries)
        self.earliest = min((entry.deadline for entry in self.entries), default=inf)

    def clear(self) -> None:
        """Drop everything that waits; credit stays."""
        self.entries.clear()
        self.size = 0

    def _count(self, entry: Entry) -> None:
        self.size += ENTRY_SIZE + len(entry.payload)
        self.earliest = min(self.earliest, entry.deadline)
