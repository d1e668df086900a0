"""All queues of an exchange: their common bounds, hand-overs, and the jobs of clients that are lost.

In the data-flow diagram this is the box inside the exchange that a message for a channel without `!` passes. Pure: the
clock is an argument, frames are returned in lists.

- The messages that wait on a channel and the jobs that its clients have not settled never exceed its capacity.
- A message that would exceed it only because of unsettled jobs is pending: the exchange queries how many the clients
  have settled, and accepts or refuses it once they have answered, or after `ANSWER_WITHIN`.
- Jobs of a session that has ended are orphans for `ORPHANS_WAIT`: the client reports which jobs it had received, and
  the others return to their queues. Jobs without a report are counted as lost.
- No operation iterates over all queues: due work is found by deadlines.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.channel_queue import ENTRY_SIZE, ChannelQueue, Entry, ForeignJob, Pending, Round

ANSWER_WITHIN = 1.0
"""Seconds that a message is pending at most."""
ORPHANS_WAIT = 10.0
"""Seconds that unsettled jobs of an ended session are kept for the client to report what it had received."""
MAX_UNDELIVERED = 10_000
"""Jobs that were put back for a client that may yet hand them back itself."""
_OURS = 2**39
"""Numbers of messages: 24 bits of the instance, 1 bit for messages that were sent here, 39 bits that count."""


class Limits(NamedTuple):
    """Bounds of all queues of an exchange together."""

    queue_bytes: int = 256 * 2**20
    queue_names: int = 100_000
    """The number of queues, and of normal members of groups."""
    names_per_client: int = 100_000
    """The number of queues that one client has begun, and of normal members that it has added."""
    max_ttl: int = wire.MAX_MILLISECONDS
    """Milliseconds that a message waits at most, even if its sender permits more."""


@dataclass(slots=True)
class ClientSession:
    """A client's session: the normal channels for which it has credit, and how many jobs it was handed in all."""

    session: int
    channels: set[bytes] = field(default_factory=set)
    handed: int = 0
    ended: bool = False
    """Whether the client has already reported on this session as an earlier one: its credit is over."""


class ChannelQueues:
    """All queues of an exchange.

    Args:
        instance: 8 bytes that no other exchange has.
        limits: Bounds of the queues.
        clock: Monotonic seconds.
        drops: Counts dropped messages, by cause.
    """

    def __init__(self, instance: bytes, limits: Limits, clock: Callable[[], float], drops: Counter[str]) -> None:
        self.limits = limits
        self.by_channel: dict[bytes, ChannelQueue] = {}
        self.size = 0
        """Bytes of memory that all messages here take, by estimate."""
        self.unsettled = 0
        """How many jobs clients have not settled."""
        self.waiting: dict[bytes, None] = {}
        """The channels on which messages wait."""
        self.observe_wait: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that each message has waited when it is handed over."""
        self._instance = instance
        self._clock = clock
        self._drops = drops
        self._sessions: dict[bytes, ClientSession] = {}
        self._begun: Counter[bytes] = Counter()  # how many of the queues each client has begun
        # A number names a message for ever: clients hand jobs back by it, also to another instance.
        self._base = self._foreign = int.from_bytes(instance[:3]) << 40
        self._first = self._number = self._base + _OURS
        self._flushed = self._first, self._base  # the last numbers of either kind that a flush has dropped
        self._rounds = 0
        # These find due work, and the oldest message, without checking every queue. Items of messages that have left
        # are skipped when they are due; `_compact` bounds how many there are.
        self._expiry: list[tuple[float, int, bytes]] = []
        self._since: OrderedDict[int, float] = OrderedDict()
        self._pending: deque[tuple[float, bytes]] = deque()
        self._orphans: deque[tuple[float, bytes, bytes, int]] = deque()
        # Which jobs were put back because a client had not received them. The frames by which it handed some of them
        # back may arrive after its report, by the connection that it has given up.
        self._undelivered: OrderedDict[tuple[bytes, int], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.by_channel)

    def depth(self) -> int:
        """Return how many messages wait."""
        return len(self._since)

    def orphaned(self) -> int:
        """Return how many jobs of ended sessions on which no client has reported yet; walks over all queues."""
        return sum(len(jobs) for queue in self.by_channel.values() for jobs in queue.orphans.values())

    def oldest_wait(self) -> float:
        """Return the seconds that the oldest waiting message has waited, 0 if none waits."""
        return self._clock() - next(iter(self._since.values())) if self._since else 0.0

    # Clients

    def begin(self, inbox: bytes, session: int) -> list[bytes]:
        """Begin a client's session, with no credit; return the frames that follow from the end of its last one."""
        out = self.end(inbox)
        self._sessions[inbox] = ClientSession(session)
        return out

    def end(self, inbox: bytes) -> list[bytes]:
        """End a client's session, if it has one; its unsettled jobs become orphans."""
        client = self._sessions.pop(inbox, None)
        return self._end_credit(inbox, client) if client is not None else []

    def _end_credit(self, inbox: bytes, client: ClientSession) -> list[bytes]:
        now = self._clock()
        out = []
        for channel in client.channels:
            queue = self.by_channel[channel]
            credit = queue.forget(inbox)
            if credit is not None and credit.unsettled:
                queue.orphans[inbox, credit.session] = credit.unsettled
                self._orphans.append((now + ORPHANS_WAIT, channel, inbox, credit.session))
            out += self._go_on(channel, queue, now)
        client.channels.clear()
        while len(self._orphans) > self.limits.queue_names:
            out += self._lose(*self._orphans.popleft()[1:])
        return out

    def received(self, report: wire.Received) -> list[bytes]:
        """Put back the jobs of an earlier session that never reached their client, and settle the others."""
        out = []
        client = self._sessions.get(report.inbox)
        if client is not None and client.session == report.session:
            # The death of that session has not been noticed yet. A late Ready of it must not open a window again.
            client.ended = True
            out = self._end_credit(report.inbox, client)
        queue = self.by_channel.get(report.channel)
        jobs = queue.orphans.pop((report.inbox, report.session), None) if queue is not None else None
        if queue is None or jobs is None:
            return out
        for job in jobs.values():
            queue.release(job)
            if job.ordinal > report.received:
                if job.entry is None:
                    self._drops["lost_delivery"] += 1
                else:
                    self._put_back(report.channel, queue, job.entry)
                    self._undelivered[report.inbox, job.entry.number] = None
        while len(self._undelivered) > MAX_UNDELIVERED:
            self._undelivered.popitem(last=False)
        return out + self._go_on(report.channel, queue, self._clock())

    def total(self, inbox: bytes, session: int) -> int | None:
        """Return how many jobs a client was handed in its session, None if the session is over or unknown."""
        client = self._sessions.get(inbox)
        return client.handed if client is not None and client.session == session else None

    # Messages

    def put(self, send: wire.Enqueue) -> list[bytes]:
        """Enqueue a message; return its confirmation, unless it is pending, and the jobs that follow.

        Args:
            send: The message; one with `n` 0 is a copy of a group's message, which is not confirmed.
        """
        channel, capacity = send.channel, send.capacity
        if send.ttl > self.limits.max_ttl:
            send = send._replace(ttl=self.limits.max_ttl)
        queue = self.by_channel.get(channel)
        has_room = self.size + len(send.payload) + ENTRY_SIZE <= self.limits.queue_bytes
        if not has_room and (queue is None or not queue.open_windows):
            return self._refuse(send, "queue_bytes")
        if queue is None and (queue := self._new_queue(channel, send.inbox)) is None:
            return self._confirm(send, wire.Status.REFUSED)
        now, out = self._clock(), []
        if queue.round is not None or queue.used >= capacity:
            out = self._expire(now)
            if channel not in self.by_channel:  # it has been forgotten, since all of its messages have expired
                self._remember(channel, queue)
        if queue.round is None and queue.used < capacity:
            out += self._accept(queue, send, now, now, keep=has_room)
        elif len(queue.waiting) + _pending(queue) >= capacity or not queue.holders:
            out += self._refuse(send, "queue_full")
        elif not has_room:
            out += self._refuse(send, "queue_bytes")
        else:
            out += self._hold(queue, Pending(now + ANSWER_WITHIN, now, send))
        self._update(channel, queue)
        return out

    def withdraw(self, channel: bytes, count: int) -> tuple[list[Entry], list[bytes]]:
        """Take messages out for good, in order, from a channel on which some wait.

        Returns:
            Up to `count` messages that have not expired, and the frames that follow from the room that they leave.
        """
        queue, now, entries = self.by_channel[channel], self._clock(), list[Entry]()
        del self.waiting[channel]  # if more wait, it is added again behind the other channels
        while queue.waiting and len(entries) < count:
            entry = self._take_first(queue, now)
            if entry is not None:
                entries.append(entry)
        return entries, self._go_on(channel, queue, now)

    def put_back(self, back: wire.Back) -> list[bytes]:
        """Return a message to its old place, because no reader took it; return the jobs that follow.

        A client that hands back a job of another client does not know its content, and is ignored. A job that a flush
        has dropped may be handed back after it: jobs and the answers to a flush arrive on different connections.
        """
        own, foreign = self._flushed
        if self._first < back.number <= own or self._base < back.number <= foreign:
            self._drops["flushed"] += 1
            return []
        queue = self.by_channel.get(back.channel)
        try:
            job = queue.reclaim(back.inbox, back.number, back.payload) if queue is not None else None
        except ForeignJob:
            self._drops["foreign_inbox"] += 1
            return []
        known, number = job.entry if job is not None else None, back.number
        is_here = number in self._since or (queue is not None and queue.is_unsettled(number))
        if job is None and (is_here or (back.inbox, number) in self._undelivered):
            self._drops["stray"] += 1  # it is in its place already, was read since, or is another message
            return []
        if known is None:
            if self.size + len(back.payload) + ENTRY_SIZE > self.limits.queue_bytes:
                self._drops["queue_bytes"] += 1
                return self._go_on(back.channel, queue, self._clock()) if queue is not None else []
            queue = queue or self._new_queue(back.channel, back.inbox)
        if queue is None:
            return []
        now = self._clock()
        if not (self._first < number <= self._number or self._base < number <= self._foreign):
            number = self._new_foreign()  # it comes from another instance: older than all that was sent here
        since, ttl = known.since if known is not None else now, min(back.ttl, self.limits.max_ttl)
        self._put_back(back.channel, queue, Entry(number, now + ttl / 1000, since, back.payload))
        return self._go_on(back.channel, queue, now)

    def ready(self, ready: wire.Ready) -> list[bytes]:
        """Take a client's report: hand it jobs up to its limit, and note how many it has settled.

        A report of a session that has ended is ignored; the client repeats it after its next welcome.
        """
        client = self._sessions.get(ready.inbox)
        if client is None or client.session != ready.session or client.ended:
            return []
        queue = self.by_channel.get(ready.channel) or self._new_queue(ready.channel, ready.inbox)
        if queue is None:
            return []
        credit = queue.open_window(ready.inbox, ready.session, ready.limit)
        queue.settle(ready.inbox, credit, ready.settled)
        if ready.ask == wire.Question.FORGET and queue.forget(ready.inbox) is not None:
            self._drops["lost_delivery"] += len(credit.unsettled)
            for job in credit.unsettled.values():
                queue.release(job)
        if ready.inbox in queue.credits:
            client.channels.add(ready.channel)
        else:
            client.channels.discard(ready.channel)
        if queue.round is not None and ready.answers == queue.round.number:
            queue.round.asked.discard(ready.inbox)
        out = self._go_on(ready.channel, queue, self._clock())
        if ready.ask == wire.Question.HANDED:
            out.append(wire.HANDED.encode(wire.Handed(ready.inbox, ready.session, credit.handed, ready.channel)))
        return out

    def close_windows(self, inbox: bytes) -> list[bytes]:
        """Hand no more jobs to a client, unless it reports new limits; return the frames that follow."""
        client = self._sessions.get(inbox)
        if client is None:
            return []
        closed = [wire.Ready(inbox, client.session, 0, 0, 0, wire.Question.NOTHING, each) for each in client.channels]
        return [frame for ready in closed for frame in self.ready(ready)]

    def clear(self) -> list[bytes]:
        """Drop all messages, for a flush; return the confirmations of those that were pending. Credit stays."""
        out = []
        for channel, queue in list(self.by_channel.items()):
            for pending in queue.round.pending if queue.round is not None else ():
                out += self._confirm(pending.send, wire.Status.FLUSHING)
            queue.clear()
            self._update(channel, queue)
        for due in (self._expiry, self._since, self._pending, self._orphans):
            due.clear()
        self._undelivered.clear()
        self._flushed = self._number, self._foreign
        return out

    # What is due

    def due(self) -> float:
        """Return when `sweep` may have something to do."""
        return min(
            self._expiry[0][0] if self._expiry else inf,
            self._pending[0][0] if self._pending else inf,
            self._orphans[0][0] if self._orphans else inf,
        )

    def sweep(self) -> list[bytes]:
        """Do what is due: drop expired messages, decide about pending ones, count orphans as lost."""
        now = self._clock()
        out = self._expire(now)
        while self._pending and self._pending[0][0] <= now:
            _, channel = self._pending.popleft()
            queue = self.by_channel.get(channel)
            if queue is not None and queue.round is not None and queue.round.pending[0].until <= now:
                queue.round.asked.clear()
                queue.round.judged = sum(pending.until <= now for pending in queue.round.pending)
                out += self._go_on(channel, queue, now)
        while self._orphans and self._orphans[0][0] <= now:
            out += self._lose(*self._orphans.popleft()[1:])
        return out

    def _expire(self, now: float) -> list[bytes]:
        out = []
        while self._expiry and self._expiry[0][0] <= now:
            _, number, channel = heappop(self._expiry)
            queue = self.by_channel.get(channel)
            entry = queue.waiting.get(number) if queue is not None else None
            if queue is not None and entry is not None and entry.deadline <= now:
                queue.remove(number)
                del self._since[number]
                self._drops["expired"] += 1
                out += self._go_on(channel, queue, now)
        return out

    def _lose(self, channel: bytes, inbox: bytes, session: int) -> list[bytes]:
        queue = self.by_channel.get(channel)
        jobs = queue.orphans.pop((inbox, session), None) if queue is not None else None
        if queue is None or jobs is None:
            return []  # the client has reported in time
        for job in jobs.values():
            queue.release(job)
        self._drops["lost_delivery"] += len(jobs)
        return self._go_on(channel, queue, self._clock())

    # Steps

    def _go_on(self, channel: bytes, queue: ChannelQueue, now: float) -> list[bytes]:
        """Hand messages over to readers, decide about pending ones where that is possible, and update the totals."""
        out = []
        while queue.open_windows and queue.waiting:
            entry = self._take_first(queue, now)
            if entry is not None:
                out.append(self._hand(channel, queue, entry, now, keep=True))
        if queue.round is not None:
            out += self._decide(queue, queue.round, now)
        self._update(channel, queue)
        self._compact()  # deadlines of a backlog that has been read would keep most of its memory
        return out

    def _take_first(self, queue: ChannelQueue, now: float) -> Entry | None:
        """Remove the first waiting message; return it unless it has expired."""
        entry = queue.take()
        del self._since[entry.number]
        if entry.deadline <= now:
            self._drops["expired"] += 1
            return None
        return entry

    def _accept(self, queue: ChannelQueue, send: wire.Enqueue, since: float, now: float, *, keep: bool) -> list[bytes]:
        out = self._confirm(send, wire.Status.OK)
        self._number += 1
        entry = Entry(self._number, since + send.ttl / 1000, since, send.payload)
        if queue.open_windows:
            # A reader with an open window means that nothing waits, so the message passes through.
            out.append(self._hand(send.channel, queue, entry, now, keep=keep))
        else:
            queue.put(entry)
            self._since[entry.number] = entry.since
            self._expires(entry, send.channel)
        return out

    def _new_foreign(self) -> int:
        self._foreign += 1
        return self._foreign

    def _put_back(self, channel: bytes, queue: ChannelQueue, entry: Entry) -> None:
        if entry.number in self._since:  # a client has handed back something else under it, on another channel
            entry = entry._replace(number=self._new_foreign())
        queue.put(entry)
        self._since[entry.number] = entry.since
        self._since.move_to_end(entry.number, last=False)  # it is older than most that waits
        self._expires(entry, channel)

    def _expires(self, entry: Entry, channel: bytes) -> None:
        heappush(self._expiry, (entry.deadline, entry.number, channel))
        self._compact()

    def _compact(self) -> None:
        """Drop the deadlines of messages that have left, and all but one of messages that have returned."""
        if len(self._expiry) <= 2 * len(self._since) + 1000:
            return
        living = set()
        for _, number, channel in self._expiry:
            queue = self.by_channel.get(channel)
            if queue is not None and number in queue.waiting:
                living.add((queue.waiting[number].deadline, number, channel))
        self._expiry = list(living)
        heapify(self._expiry)

    def _hand(self, channel: bytes, queue: ChannelQueue, entry: Entry, now: float, *, keep: bool) -> bytes:
        inbox, session, ordinal = queue.hand(entry, keep=keep)
        self._sessions[inbox].handed += 1
        if self._undelivered:
            self._undelivered.pop((inbox, entry.number), None)
        self.observe_wait(now - entry.since)
        left = wire.milliseconds(entry.deadline - now)
        return wire.JOB.encode(wire.Job(inbox, session, ordinal, entry.number, left, channel, entry.payload))

    def _hold(self, queue: ChannelQueue, pending: Pending) -> list[bytes]:
        if queue.round is None:
            queue.round = Round()
        queue.round.pending.append(pending)
        queue.size += pending.size
        self._pending.append((pending.until, pending.send.channel))
        return self._decide(queue, queue.round, pending.since)

    def _decide(self, queue: ChannelQueue, round_: Round, now: float) -> list[bytes]:
        # The first pending message is accepted as soon as it fits, even during a round. It is refused only once a round
        # that began after its arrival is over. Messages that arrived later belong to the next round, unless no client
        # has to be queried.
        out = []
        while round_.pending:
            if queue.used < round_.pending[0].send.capacity:
                pending = round_.take()
                queue.size -= pending.size
                out += self._accept(queue, pending.send, pending.since, now, keep=True)
            elif round_.asked:
                return out
            elif round_.judged:
                pending = round_.take()
                queue.size -= pending.size
                out += self._refuse(pending.send, "queue_full")
            elif queue.holders:
                out += self._query(queue, round_)
            else:
                round_.judged = len(round_.pending)
        queue.round = None
        return out

    def _query(self, queue: ChannelQueue, round_: Round) -> list[bytes]:
        self._rounds += 1
        round_.number, round_.asked, round_.judged = self._rounds, set(queue.holders), len(round_.pending)
        channel = round_.pending[0].send.channel
        sessions = ((inbox, queue.credits[inbox].session) for inbox in sorted(queue.holders))
        return [wire.QUERY.encode(wire.Query(inbox, self._rounds, session, channel)) for inbox, session in sessions]

    def _new_queue(self, channel: bytes, by: bytes) -> ChannelQueue | None:
        """Begin a queue for a client, or for copies of group messages if `by` is empty."""
        if len(self.by_channel) >= self.limits.queue_names or self._begun[by] >= self.limits.names_per_client:
            self._drops["queue_names"] += 1
            return None
        queue = ChannelQueue(by)
        self._remember(channel, queue)
        return queue

    def _remember(self, channel: bytes, queue: ChannelQueue) -> None:
        self.by_channel[channel] = queue
        if queue.begun_by:
            self._begun[queue.begun_by] += 1

    def _refuse(self, send: wire.Enqueue, cause: str) -> list[bytes]:
        self._drops[cause] += 1
        return self._confirm(send, wire.Status.FULL)

    def _confirm(self, send: wire.Enqueue, status: wire.Status) -> list[bytes]:
        if not send.n:
            return []
        return [wire.CONFIRM.encode(wire.Confirm(send.inbox, send.n, status, self._instance))]

    def _update(self, channel: bytes, queue: ChannelQueue) -> None:
        """Update the totals and the index after a queue has changed, and forget an idle one."""
        size, unsettled = queue.counted
        self.size += queue.size - size
        self.unsettled += queue.unsettled - unsettled
        queue.counted = queue.size, queue.unsettled
        if queue.waiting:
            self.waiting.setdefault(channel)
        else:
            self.waiting.pop(channel, None)
        if queue.idle:
            self._forget(channel, queue)

    def _forget(self, channel: bytes, queue: ChannelQueue) -> None:
        if self.by_channel.pop(channel, None) is not None and queue.begun_by:
            self._begun[queue.begun_by] -= 1
            if not self._begun[queue.begun_by]:
                del self._begun[queue.begun_by]


def _pending(queue: ChannelQueue) -> int:
    return len(queue.round.pending) if queue.round is not None else 0
