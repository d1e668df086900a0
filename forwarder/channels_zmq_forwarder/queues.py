"""The queues of plain channels: what waits for a reader, and how far each reader may go.

In the data-flow diagram this is the box inside the exchange that a message for a channel without `!` passes. Pure: time
comes in as an argument or from a clock, hand-overs go out as frames. `PlainQueues` owns all of the queues and their
bounds in common; `PlainQueue` is one of them.

- A queue holds at most the capacity that its sender names; what has expired does not count.
- Messages leave in the order of their numbers; one that is handed back returns to its old place.
- Each message is handed to exactly one reader, and only within the window that the reader has opened (credit).
- Readers take turns.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from channels_zmq_forwarder import wire

ENTRY_SIZE = 256
"""Bytes of memory that an entry takes beside its payload, by estimate, so that empty messages count too."""


class Limits(NamedTuple):
    """What the plain queues of an exchange may hold together."""

    queue_bytes: int = 256 * 2**20
    queue_names: int = 100_000


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


class PlainQueues:
    """All plain queues of an exchange.

    Args:
        limits: How many queues there may be, and how many bytes they may hold together.
        clock: Monotonic seconds.
        drops: Counts what the queues drop, by cause.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], drops: Counter[str]) -> None:
        self.limits = limits
        self.by_channel: dict[bytes, PlainQueue] = {}
        self.size = 0
        """Bytes of memory that all waiting messages take, by estimate."""
        self.observe_wait: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that each message has waited when it is handed over."""
        self._clock = clock
        self._drops = drops
        self._number = 0

    def __len__(self) -> int:
        return len(self.by_channel)

    def depth(self) -> int:
        """Return how many messages wait."""
        return sum(len(queue.entries) for queue in self.by_channel.values())

    def oldest_wait(self) -> float:
        """Return the seconds that the oldest waiting message has waited, 0 if none waits."""
        since = min((queue.entries[0].since for queue in self.by_channel.values() if queue.entries), default=None)
        return 0.0 if since is None else self._clock() - since

    def put(self, channel: bytes, payload: bytes, ttl: int, capacity: int) -> tuple[wire.Status, list[bytes]]:
        """Enqueue a message; return whether it was accepted, and the jobs that are to be published."""
        queue = self.by_channel.get(channel)
        if not (queue and queue.readers) and self._out_of_space(payload):
            return wire.Status.FULL, []
        queue = queue or self._new_queue(channel)
        if queue is None:
            return wire.Status.REFUSED, []
        now = self._clock()
        self._number += 1
        accepted = queue.put(Entry(self._number, now + ttl / 1000, now, payload), capacity, now)
        if not accepted:
            self._drops["queue full"] += 1
        return (wire.Status.OK if accepted else wire.Status.FULL), self._hand_over(channel, queue)

    def put_back(self, back: wire.Back) -> list[bytes]:
        """Return a message to its old place, because no reader took it; return the jobs that are to be published."""
        queue = None if self._out_of_space(back.payload) else self._queue(back.channel)
        if queue is None:
            return []
        now = self._clock()
        # A number that was not given here yet comes from another instance: older than all that waits here.
        number = back.number if back.number <= self._number else 0
        queue.put_back(Entry(number, now + back.ttl / 1000, now, back.payload))
        return self._hand_over(back.channel, queue)

    def open_window(self, ready: wire.Ready) -> tuple[list[bytes], bool]:
        """Let a client have jobs up to its limit; return what to publish, and whether the client holds credit now."""
        queue = self._queue(ready.channel)
        if queue is None:
            return [], False
        credit = queue.open_window(ready.inbox, ready.session, ready.limit)
        if ready.ask == wire.Question.FORGET:
            queue.forget(ready.inbox)
        holds_credit = ready.inbox in queue.credits
        out = self._hand_over(ready.channel, queue)
        if ready.ask == wire.Question.HANDED:
            out.append(wire.HANDED.encode(wire.Handed(ready.inbox, ready.session, credit.handed, ready.channel)))
        return out, holds_credit

    def forget(self, channel: bytes, inbox: bytes) -> None:
        """Take back the credit of a client on a channel on which it holds some."""
        queue = self.by_channel[channel]
        queue.forget(inbox)
        self._settle(channel, queue)

    def expire(self) -> None:
        """Drop what has expired."""
        now = self._clock()
        for channel, queue in [item for item in self.by_channel.items() if item[1].earliest <= now]:
            queue.expire(now)
            self._settle(channel, queue)

    def clear(self) -> None:
        """Drop everything that waits; credit stays."""
        for channel, queue in list(self.by_channel.items()):
            queue.clear()
            self._settle(channel, queue)

    def _out_of_space(self, payload: bytes) -> bool:
        full = self.size + len(payload) + ENTRY_SIZE > self.limits.queue_bytes
        if full:
            self._drops["queue bytes"] += 1
        return full

    def _queue(self, channel: bytes) -> PlainQueue | None:
        return self.by_channel.get(channel) or self._new_queue(channel)

    def _new_queue(self, channel: bytes) -> PlainQueue | None:
        if len(self.by_channel) >= self.limits.queue_names:
            self._drops["queue names"] += 1
            return None
        queue = self.by_channel[channel] = PlainQueue()
        return queue

    def _hand_over(self, channel: bytes, queue: PlainQueue) -> list[bytes]:
        now = self._clock()
        out = []
        for inbox, session, entry in queue.hand_over(now):
            self.observe_wait(now - entry.since)
            left = wire.milliseconds(entry.deadline - now)
            out.append(wire.JOB.encode(wire.Job(inbox, session, entry.number, left, channel, entry.payload)))
        self._settle(channel, queue)
        return out

    def _settle(self, channel: bytes, queue: PlainQueue) -> None:
        self.size += queue.size - queue.counted
        queue.counted = queue.size
        if queue.expired:
            self._drops["expired"] += queue.expired
            queue.expired = 0
        if queue.idle:
            self.by_channel.pop(channel, None)
