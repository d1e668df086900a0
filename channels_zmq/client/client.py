"""One client process, as a machine: a frame comes in; frames to send and readers to wake come out.

In the data-flow diagram this is what stands between the layer and the sockets. Pure: `Client.out` collects what a step
wants done, and the connection that owns the client does it.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from channels_zmq.client.counters import Counters
from channels_zmq.client.credit import Credit
from channels_zmq.client.mailboxes import Mailbox, Mailboxes
from channels_zmq.client.memberships import Join, Memberships
from channels_zmq.client.normal_members import NormalMembers
from channels_zmq.client.requests import Request, Requests, next_number
from channels_zmq.client.sequences import REPEATED, Numbers, Runs
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Status, Topic

SessionFrame = wire.Welcome | wire.Confirm


class LinkLost(NamedTuple):
    """The exchange cannot be reached any more; consumers are notified if they want to be."""


class LinkRestored(NamedTuple):
    """The exchange can be reached again; `missed` messages were lost, None if none is known to be."""

    missed: int | None


LinkChange = LinkLost | LinkRestored


@dataclass(slots=True)
class Output:
    """What the steps of a client since the last `take` want done.

    Attributes:
        upstream: Frames for the subscribers' way, in order.
        replies: Frames for the producers' way that nobody waits for.
        session: Frames about the session with an exchange, for the transport.
        emptied: Whether the transport must drop the messages that it holds, before anything else.
        changes: Of the link to the exchange, to announce to consumers once the lock is released.
        wake: Readers and callers to wake once the lock is released.
        busy: Whether anything is set that is to be done under the lock.
    """

    upstream: list[bytes] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)
    session: list[SessionFrame] = field(default_factory=list)
    emptied: bool = False
    changes: list[LinkChange] = field(default_factory=list)
    wake: list[Any] = field(default_factory=list)
    busy: bool = False

    def send_upstream(self, frames: Iterable[bytes]) -> None:
        """Add frames for the subscribers' way."""
        self.upstream += frames
        if self.upstream:
            self.busy = True

    def reply(self, frame: bytes) -> None:
        """Add a frame for the producers' way."""
        self.replies.append(frame)
        self.busy = True

    def change(self, change: LinkChange) -> None:
        """Add a change of the link."""
        self.changes.append(change)
        self.busy = True

    def take(self) -> "Output":
        """Return what is to be done under the lock, and begin anew with that."""
        taken = Output(self.upstream, self.replies, self.session, self.emptied)
        self.upstream, self.replies, self.session, self.emptied = [], [], [], False
        self.busy = False
        return taken


@dataclass(slots=True)
class Defaults:
    """What a client needs from a layer where no call brings it along; the layer made last decides."""

    capacity: Callable[[str], int] = lambda channel: 100
    group_expiry: float | None = None


class Client:
    """The state of one process at one address.

    Args:
        inbox: 16 hexadecimal digits that name this process.
        sender: 8 bytes that name it in sequence numbers.
        prefetch: Jobs that may come ahead of their readers, for each normal channel.
        idle: Seconds after which an unused mailbox is forgotten.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        inbox: bytes,
        sender: bytes,
        *,
        prefetch: int = 4,
        idle: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox, self.sender = inbox, sender
        self.out = Output()
        self.defaults = Defaults()
        self.counters = Counters(clock)
        self.numbers = Numbers()
        self.requests: Requests[Any] = Requests()
        self.mailboxes: Mailboxes[Any] = Mailboxes(self.counters.drop, idle=idle, clock=clock)
        self.memberships = Memberships(self.mailboxes, sender, clock)
        self.normal_members = NormalMembers(clock)
        self.credit = Credit(inbox, prefetch, clock)
        self.is_exchange = False
        """Whether the exchange is in this process, so that a subscription is in force at once."""
        self.now = clock()
        """When the last message was taken."""
        self._clock = clock
        self._direct_runs = Runs()
        self._own_order = 0
        self._foreign_joins: dict[int, Join] = {}
        self._on_inbox: dict[int, Callable[[bytes], None]] = {
            wire.DIRECT: self._direct,
            wire.ASK.kind: self._asked,
            wire.CONFIRM.kind: self._confirmed,
            wire.WELCOME.kind: self._welcomed,
            wire.SYNCED.kind: self._synced,
            wire.JOB.kind: self._job,
            wire.HANDED.kind: self._handed,
            wire.HANDED_TOTAL.kind: self._handed_total,
            wire.QUERY.kind: self._queried,
            wire.REMOVED.kind: self._member_removed,
            wire.EMPTY.kind: self._emptied,
        }

    # Frames

    def feed(self, frame: bytes) -> None:
        """Take one frame that arrived. Malformed frames are counted and ignored."""
        try:
            if frame[:1] == wire.GROUP_BYTE:
                topic, sender, number, flags, ttl, payload = wire.read_group(frame)
                group = self.memberships.groups.get(topic)
                if group is not None:
                    missing = group.runs.see(sender, number, flags)
                    if missing == 0 or self._is_new(sender, missing):
                        self.deliver_group(topic, ttl, payload)
            elif (take := self._on_inbox.get(wire.sub_kind(frame))) is not None:
                take(frame)
            else:
                self.counters.drop("malformed")
        except wire.FrameError:
            self.counters.drop("malformed")

    def deliver_group(self, topic: Topic, ttl: int, payload: bytes) -> None:
        """Put a group message into the mailboxes of its members; `ttl` is in milliseconds."""
        now = self.now = self._clock()
        if now >= self.memberships.ends.next:
            self.out.send_upstream(self.memberships.end_due(now))
        group = self.memberships.groups.get(topic)
        if group is not None:
            self.mailboxes.deliver_group(group.members, now + ttl / 1000, payload, self.out.wake)
            self.counters.received += 1

    def deliver_own(self, channel: str, ttl: int, payload: bytes, capacity: int) -> bool:
        """Put a direct message of this process into a mailbox; return False if it is full."""
        box = self.mailboxes.boxes.get(channel)
        if box is None:
            self._deliver(channel, ttl, payload, capacity)
            return True
        box.capacity = capacity
        if len(box.mail) >= capacity and self.mailboxes.is_full(box):
            return False
        waiter = self.mailboxes.put(box, (self._clock() + ttl / 1000, payload, 0))
        if waiter is not None:
            self.out.wake.append(waiter)
        self.counters.received += 1
        return True

    def sent_to_own(self, box: Mailbox[Any]) -> None:
        """Note that a direct message to a channel of this process is in flight."""
        self._own_order += 1
        self.mailboxes.sent(box, self._own_order)

    @property
    def own_order(self) -> int:
        """The order number of the last message that this process has sent to itself."""
        return self._own_order

    def _direct(self, frame: bytes) -> None:
        sender, number, flags, ttl, channel, payload = wire.read_direct(frame)
        missing = self._direct_runs.see(sender, number, flags)
        if missing and not self._is_new(sender, missing):
            return
        box = self.mailboxes.boxes.get(channel)
        if box is not None and box.in_flight and sender == self.sender:
            box.in_flight.popleft()
        self._deliver(channel, ttl, payload, box.capacity if box is not None else self.defaults.capacity(channel))

    def _deliver(self, channel: str, ttl: int, payload: bytes, capacity: int) -> None:
        now = self.now = self._clock()
        waiter = self.mailboxes.deliver(channel, (now + ttl / 1000, payload, 0), capacity)
        if waiter is not None:
            self.out.wake.append(waiter)
        self.counters.received += 1

    def _is_new(self, sender: bytes, missing: int) -> bool:
        """Count what a sequence number shows: a repeated frame, or how many are missing before it."""
        if missing != REPEATED:
            self.counters.drop("missed", missing)
            return True
        if sender != self.sender:  # else this process sent it before it joined
            self.counters.repeated += 1
        return False

    # Groups

    def join(self, topic: Topic, channel: str, capacity: int, life: float | None) -> Join:
        """Add a channel of this process to a group; the join is to be completed or failed."""
        join, frames = self.memberships.join(topic, channel, capacity, life, self.numbers.last(topic))
        if self.is_exchange:
            join.group.in_force_after = 0
        self.out.send_upstream(frames)
        return join

    def join_synced(self, join: Join, sync: int) -> None:
        """Complete a join whose subscription is in force, which the answer to `sync` has shown."""
        self.memberships.in_force(join.group, sync)
        self.memberships.completed(join)

    def join_failed(self, join: Join) -> None:
        """Take a join back."""
        self.out.send_upstream(self.memberships.failed(join))

    def leave(self, topic: Topic, channel: str) -> None:
        """Remove a channel of this process from a group."""
        self.out.send_upstream(self.memberships.leave(topic, channel))

    def older_than_subscription(self, topic: Topic, number: int) -> None:
        """Ignore an own message that was sent before this process subscribed and is published only now."""
        group = self.memberships.groups.get(topic)
        if group is not None:
            group.floor = number
            group.runs.start_after(self.sender, number)

    def _asked(self, frame: bytes) -> None:
        """Add a channel of this process to a group, or remove it, for another process."""
        ask = wire.ASK.decode(frame)
        channel, topic = wire.name(ask.channel), wire.group_topic(wire.name(ask.group))
        confirm = wire.CONFIRM.encode(wire.Confirm(ask.reply, ask.n, Status.OK, wire.NO_INSTANCE))
        if not ask.add:
            self.leave(topic, channel)
            self.out.reply(confirm)
            return
        join = self.join(topic, channel, self.defaults.capacity(channel), self.defaults.group_expiry)
        if not join.group.in_force_after:
            self.memberships.completed(join)
            self.out.reply(confirm)
            return
        number = next_number()
        sync = wire.SYNC.encode(wire.Sync(self.inbox, number))
        self._foreign_joins[number] = join
        self.requests.begin(number, Request(sync, upstream=True, reply=confirm), self._clock())
        self.out.send_upstream([sync])

    def _member_removed(self, frame: bytes) -> None:
        removed = wire.REMOVED.decode(frame)
        self.normal_members.removed(removed.group, removed.channel)

    # Requests

    def answered(self, number: int, answer: int | Exception) -> bool:
        """Hand an answer to its request; return whether there is one."""
        request = self.requests.answered(number, answer)
        if request is None:
            return False
        join = self._foreign_joins.pop(number, None)
        if join is not None:
            self.requests.end(number)
            self.join_synced(join, number)
            self.out.reply(request.reply)
        elif request.waiter is not None:
            self.out.wake.append(request.waiter)
        return True

    def fail_requests(self, error: Exception) -> None:
        """Answer every request of this process with an error."""
        self.out.wake += [request.waiter for request in self.requests.fail(error)]

    def _confirmed(self, frame: bytes) -> None:
        confirm = wire.CONFIRM.decode(frame)
        if not self.answered(confirm.n, confirm.status):
            self.out.session.append(confirm)
            self.out.busy = True

    def _synced(self, frame: bytes) -> None:
        self.answered(wire.SYNCED.decode(frame).n, Status.OK)

    # Normal channels

    def _job(self, frame: bytes) -> None:
        job = wire.JOB.decode(frame)
        waiter, lost, frames = self.credit.arrived(job)
        self.counters.drop("lost_delivery", lost)
        self.now = self._clock()
        self.counters.received += job.session == self.credit.session  # any other is handed over again
        self.out.send_upstream(frames)
        if waiter is not None:
            self.out.wake.append(waiter)

    def _handed(self, frame: bytes) -> None:
        lost, frames = self.credit.counted(wire.HANDED.decode(frame))
        self.counters.drop("lost_delivery", lost)
        self.out.send_upstream(frames)

    def _handed_total(self, frame: bytes) -> None:
        self.out.send_upstream(self.credit.counted_in_total(wire.HANDED_TOTAL.decode(frame)))

    def _queried(self, frame: bytes) -> None:
        self.out.send_upstream(self.credit.queried(wire.QUERY.decode(frame)))

    # Reading

    def read_normal(self, box: Mailbox[Any]) -> None:
        """Note that a reader of a normal channel waits, or has taken a job."""
        self.out.send_upstream(self.credit.touched(box))

    def stop_waiting(self, box: Mailbox[Any], waiter: Any) -> None:
        """Let a reader give up."""
        successor = self.mailboxes.stop_waiting(box, waiter)
        self.credit.gave_up(box)
        if successor is not None:
            self.out.wake.append(successor)

    # Sessions

    def _welcomed(self, frame: bytes) -> None:
        self.out.session.append(wire.WELCOME.decode(frame))
        self.out.busy = True

    def before_hello(self) -> list[bytes]:
        """Return what an exchange must know before the hello of a new session, and cannot."""
        return [*self.normal_members.repeat(), *self.credit.resume()]

    def begin_session(self, session: int) -> None:
        """Repeat to an exchange that has just welcomed us what it cannot know: requests, and readers that wait."""
        self.out.send_upstream([*self.requests.upstream(), *self.credit.begin_session(session)])

    # Emptying

    def empty(self) -> None:
        """Drop all messages and memberships; who waits for a message stays."""
        self.out.send_upstream(self.memberships.clear())
        self.mailboxes.clear()
        self.normal_members.clear()
        self._direct_runs.clear()  # the exchange drops messages until all have answered: their gaps are no loss
        self.out.emptied = self.out.busy = True

    def _emptied(self, frame: bytes) -> None:
        empty = wire.EMPTY.decode(frame)
        self.empty()
        self.out.reply(wire.FLUSHED.encode(wire.Flushed(self.inbox, empty.n)))

    # Housekeeping

    def keep(self, now: float, at_most: int) -> float:
        """Do what is due; return when to call again, not later than `now` if there is more to do.

        Args:
            now: Monotonic seconds.
            at_most: Mailboxes, windows and ends of memberships to look at, each.
        """
        self.out.send_upstream(self.credit.keep(now, at_most))
        if now >= self.memberships.ends.next:
            self.out.send_upstream(self.memberships.end_due(now, at_most))
        look_at = self.mailboxes.look(now, at_most)
        return min(look_at, self.credit.due, self.memberships.ends.next)
