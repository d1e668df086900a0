"""The queue of one normal channel: waiting messages, the credit of each reader, and unsettled jobs.

In the data-flow diagram this is one row of the box inside the exchange that a message for a channel without `!` passes.
Pure: no clock, no frames; `queues` decides and counts.

- Messages leave in the order of their numbers; one that is handed back returns to its old place.
- Each message is handed to exactly one reader, and only within the credit of that reader.
- Readers take turns.
- A job that was handed over is kept until its client has settled it: it counts towards the capacity, and it can be
  put back if it is known that it has not arrived.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from channels_zmq_forwarder import wire

ENTRY_SIZE = 512
"""Bytes of memory that an entry takes beside its payload; 480 to 510 were measured with Python 3.11."""


class ForeignJob(Exception):
    """A job was handed back by a client that does not know its content."""


class Entry(NamedTuple):
    """A waiting message. `number` is its place, `deadline` and `since` are seconds on the exchange's clock."""

    number: int
    deadline: float
    since: float
    payload: bytes

    @property
    def size(self) -> int:
        """Bytes of memory that the entry takes, by estimate."""
        return ENTRY_SIZE + len(self.payload)


class Unsettled(NamedTuple):
    """A job at a client. `ordinal` counts the jobs of a credit from 1; `entry` is None if it could not be kept."""

    ordinal: int
    entry: Entry | None

    @property
    def size(self) -> int:
        """Bytes of memory that the job takes here, by estimate."""
        return self.entry.size if self.entry is not None else ENTRY_SIZE


Jobs = OrderedDict[int, Unsettled]
"""Unsettled jobs by their numbers, in the order in which they were handed over. (A dict finds its first key in linear
time once many before it were deleted.)"""


@dataclass(slots=True)
class Credit:
    """The credit of one client on one channel: `handed` counts up to the absolute `limit` of its session."""

    session: int
    limit: int = 0
    handed: int = 0
    settled: int = 0
    unsettled: Jobs = field(default_factory=OrderedDict)

    @property
    def is_open(self) -> bool:
        """Whether one more message may be handed over."""
        return self.handed < self.limit


class Pending(NamedTuple):
    """A message that fits only if clients have settled more than they reported; decided at `until` at the latest."""

    until: float
    since: float
    send: wire.Enqueue

    @property
    def size(self) -> int:
        """Bytes of memory that the message takes, by estimate."""
        return ENTRY_SIZE + len(self.send.payload)


@dataclass(slots=True)
class Round:
    """Messages that are pending on a channel, in order, and the queries that decide about them.

    A round is over when `asked` is empty. It decides about the first `judged` messages: those that were there when it
    began, since an answer does not cover jobs that were settled after it.
    """

    pending: deque[Pending] = field(default_factory=deque)
    number: int = 0
    asked: set[bytes] = field(default_factory=set)
    judged: int = 0

    def take(self) -> Pending:
        """Remove the first pending message, because it is decided."""
        self.judged = max(0, self.judged - 1)
        return self.pending.popleft()


@dataclass(slots=True, eq=False)
class ChannelQueue:
    """The messages that wait on one normal channel, the credit of its readers, and their unsettled jobs."""

    begun_by: bytes = b""
    """The inbox of the client that was the first to use the channel; none for copies of group messages."""
    waiting: dict[int, Entry] = field(default_factory=dict)
    credits: dict[bytes, Credit] = field(default_factory=dict)
    holders: set[bytes] = field(default_factory=set)
    """The clients that have unsettled jobs of this channel."""
    orphans: dict[tuple[bytes, int], Jobs] = field(default_factory=dict)
    """Unsettled jobs of sessions that have ended, by inbox and session: it is not known yet which have arrived."""
    round: Round | None = None
    """Not None while messages are pending."""
    unsettled: int = 0
    """How many jobs are unsettled, those of ended sessions included."""
    size: int = 0
    """Bytes of memory that everything here takes, by estimate."""
    counted: tuple[int, int] = 0, 0
    """The `size` and `unsettled` that the owner of the queue has added to its totals."""
    _order: list[int] = field(default_factory=list)
    """A heap of the numbers of `waiting`, and of some that have left it."""
    _turns: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    """The readers whose window is open, each once; the first is next."""

    @property
    def open_windows(self) -> int:
        """How many readers have their window open: if there are any, nothing waits."""
        return len(self._turns)

    @property
    def used(self) -> int:
        """How much of the capacity is used: the waiting messages and the unsettled jobs."""
        return len(self.waiting) + self.unsettled

    @property
    def idle(self) -> bool:
        """Whether the queue can be forgotten: it holds nothing and no reader is known."""
        return not (self.waiting or self.credits or self.unsettled or self.round)

    def put(self, entry: Entry) -> None:
        """Add a message at the place of its number."""
        heappush(self._order, entry.number)
        self.waiting[entry.number] = entry
        self.size += entry.size

    def take(self) -> Entry:
        """Remove the first waiting message and return it; there must be one."""
        while True:
            entry = self.remove(heappop(self._order))
            if entry is not None:
                return entry

    def remove(self, number: int) -> Entry | None:
        """Remove a waiting message and return it; None if it does not wait any more."""
        entry = self.waiting.pop(number, None)
        if entry is not None:
            self.size -= entry.size
            if len(self._order) > 2 * len(self.waiting) + 16:
                self._order = sorted(self.waiting)  # a sorted list is a heap
        return entry

    def open_window(self, inbox: bytes, session: int, limit: int) -> Credit:
        """Set the limit of a client in its session, which begins without jobs.

        A window that is closed before a job was handed over is not remembered: it would begin the same way again.
        """
        credit = self.credits.get(inbox)
        if credit is None:
            credit = self.credits[inbox] = Credit(session)
        credit.limit = limit
        if credit.is_open:
            self._turns.setdefault(inbox)
        else:
            self._turns.pop(inbox, None)
        if not limit and not credit.handed:
            del self.credits[inbox]
        return credit

    def hand(self, entry: Entry, *, keep: bool) -> tuple[bytes, int, int]:
        """Hand a message to the reader whose turn it is; return its inbox, its session, and the ordinal of the job.

        Args:
            entry: The message.
            keep: Whether memory allows to keep the message until it is settled, so that it could be put back.
        """
        # Clients report numbers of jobs, so each job has an ordinal: by it a report after a lost connection identifies
        # the jobs that never arrived, even if jobs before them were handed back.
        inbox = next(iter(self._turns))
        credit = self.credits[inbox]
        credit.handed += 1
        if credit.is_open:
            self._turns.move_to_end(inbox)
        else:
            del self._turns[inbox]
        job = Unsettled(credit.handed, entry if keep else None)
        credit.unsettled[entry.number] = job
        self.holders.add(inbox)
        self.unsettled += 1
        self.size += job.size
        return inbox, credit.session, job.ordinal

    def settle(self, inbox: bytes, credit: Credit, settled: int) -> None:
        """Note how many jobs of its session a client has settled in all; a lower count than before is late."""
        settled = min(settled, credit.handed)
        while credit.settled < settled:
            credit.settled += 1
            self.release(credit.unsettled.popitem(last=False)[1])
        if not credit.unsettled:
            self.holders.discard(inbox)

    def reclaim(self, inbox: bytes, number: int, payload: bytes) -> Unsettled | None:
        """Take an unsettled job out because its client hands it back; return it, or None if the client has no such job.

        Raises:
            ForeignJob: If its payload is another one: only a client that received the job knows that.
        """
        credit = self.credits.get(inbox)
        held: list[Jobs] = [credit.unsettled] if credit is not None else []
        held += [jobs for (owner, _), jobs in self.orphans.items() if owner == inbox]
        for jobs in held:
            job = jobs.get(number)
            if job is None:
                continue
            if job.entry is not None and job.entry.payload != payload:
                raise ForeignJob
            del jobs[number]
            if credit is not None and jobs is credit.unsettled:
                credit.settled += 1
                if not jobs:
                    self.holders.discard(inbox)
            self.release(job)
            return job
        return None

    def is_unsettled(self, number: int) -> bool:
        """Return whether a client has a job with this number, or its report on it is awaited."""
        held = (*(credit.unsettled for credit in self.credits.values()), *self.orphans.values())
        return any(number in jobs for jobs in held)

    def release(self, job: Unsettled) -> None:
        """Count a job as unsettled no longer."""
        self.unsettled -= 1
        self.size -= job.size

    def forget(self, inbox: bytes) -> Credit | None:
        """Take back all credit of a client; its unsettled jobs still count until the caller releases them."""
        credit = self.credits.pop(inbox, None)
        self._turns.pop(inbox, None)
        self.holders.discard(inbox)
        if self.round is not None:
            self.round.asked.discard(inbox)
        return credit

    def clear(self) -> None:
        """Drop all messages and settle all jobs, for a flush empties the clients too; credit stays."""
        self.waiting.clear()
        self._order.clear()
        self.holders.clear()
        self.orphans.clear()
        self.round = None
        self.unsettled = self.size = 0
        for credit in self.credits.values():
            credit.unsettled.clear()
            credit.settled = credit.handed
