"""One client process, as a state machine: it takes a frame, and returns frames to send and readers to wake.

In the data-flow diagram this is the part between the layer and the sockets. Pure: `Client.out` collects the actions of
a step, and the connection that owns the client executes them.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import Any

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.counters import Counters
from channels_zmq.client.defaults import Defaults
from channels_zmq.client.gaps import Gaps, IsBehind, nothing_is_behind
from channels_zmq.client.mailboxes import Mailbox, Mailboxes
from channels_zmq.client.memberships import Join, Memberships
from channels_zmq.client.normal_members import NormalMembers
from channels_zmq.client.output import LinkRestored, Output, Reply
from channels_zmq.client.receiver import Opener, Receiver
from channels_zmq.client.requests import Request, Requests, next_number
from channels_zmq.client.sequences import Numbers
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import FLAG_BATCH, Status, Topic

REMEMBERED_ASKS = 4096
"""Memberships that other processes have changed, whose request numbers are remembered."""
MANY = 64


class Client:
    """The state of one process at one address.

    Args:
        secret: 16 bytes that prove to exchanges that the inbox is its own; the inbox is made of them.
        sender: 8 bytes that name it in sequence numbers.
        prefetch: Jobs that an exchange may hand over ahead of readers, for each normal channel and exchange.
        idle: Seconds after which an unused mailbox is forgotten.
        window: Frames that each exchange may leave unacknowledged.
        window_bytes: Bytes that they may have together.
        longest: Seconds that the largest frame takes on the slowest link.
        session: The number before that of the first session. Other processes cannot guess a random one.
        opener: Opens the payloads of a layer with encryption keys.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        secret: bytes,
        sender: bytes,
        *,
        prefetch: int = 4,
        idle: float = 60.0,
        window: int = 4096,
        window_bytes: int = 64 * 2**20,
        longest: float = 0.0,
        session: int = 0,
        opener: Opener | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox = inbox = wire.claimable(secret)
        """16 hexadecimal digits that name this process."""
        self.sender = sender
        self.claim = wire.CLAIM.encode(wire.Claim(inbox, secret))
        """The frame by which a connection may use the inbox."""
        self.out = Output()
        self.defaults = Defaults()
        self.counters = Counters(clock)
        self.numbers = Numbers()
        self.requests: Requests[Any] = Requests()
        self.mailboxes: Mailboxes[Any] = Mailboxes(self.counters.drop, idle=idle, clock=clock)
        self.memberships = Memberships(self.mailboxes, sender, clock)
        self.normal_members = NormalMembers(clock)
        self.attachments: list[Attachment] = []
        self.gaps = Gaps(lambda count: self.counters.drop("missed", count), clock)
        self.receiver = Receiver(
            inbox,
            sender,
            mailboxes=self.mailboxes,
            memberships=self.memberships,
            gaps=self.gaps,
            attachments=self.attachments,
            counters=self.counters,
            out=self.out,
            clock=clock,
            opener=opener,
        )
        self.is_exchange = False
        """Whether the exchange is in this process, so that a subscription is in force at once."""
        self._clock = clock
        drop = self.counters.drop
        self._make_attachment = partial(Attachment, inbox, prefetch, drop, window, window_bytes, longest, clock)
        self._began_at = clock()
        self._session = session
        self._read_normally: dict[str, Mailbox[Any]] = {}  # normal channels that were read, most of them still
        self._most_read = 0
        self._foreign_joins: dict[int, tuple[Join, Reply]] = {}
        self._last_asks: dict[tuple[bytes, bytes, bytes], int] = {}  # the numbers, the one asked last at the end
        self._on_inbox: dict[int, Callable[[bytes, Attachment], Iterator[None] | None]] = {
            wire.ASK.kind: self._asked,
            wire.CONFIRM.kind: self._confirmed,
            wire.WELCOME.kind: self._welcomed,
            wire.BATCHING_ACCEPTED.kind: self._batching_accepted,
            wire.REPLAYED.kind: self._replayed,
            wire.SYNCED.kind: self._synced,
            wire.JOB.kind: self._job,
            wire.HANDED.kind: self._handed,
            wire.HANDED_TOTAL.kind: self._handed_total,
            wire.QUERY.kind: self._queried,
            wire.REMOVED.kind: self._member_removed,
            wire.EMPTY.kind: self._emptied,
            wire.RETURNED.kind: self._returned,
        }

    def use(self, defaults: Defaults) -> None:
        """Take the defaults of a layer."""
        self.defaults = defaults
        self.receiver.use(defaults)

    # Exchanges

    def attach(self) -> Attachment:
        """Add an exchange."""
        attachment = self._make_attachment()
        self.attachments.append(attachment)
        self.requests.reached(attachment)
        for box in self._read_normally.values():
            if box.waiters:
                attachment.credit.touched(box)  # its window opens with the first session
        if len(self.attachments) > 1:  # one may bring what is behind messages that another one has
            for one in self.attachments:
                if one.is_new and one.resumption.is_unused:
                    self._await_earlier(one)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Remove an exchange."""
        self.became_unreachable(attachment)
        self.fail_unanswered(attachment)
        attachment.credit.detach()
        self.attachments.remove(attachment)
        self._await_replays()

    def peers(self, attachment: Attachment) -> int:
        """Return how many clients there are as far as this exchange, or one that can be reached, has reported."""
        return max(one.clients for one in self.attachments if one is attachment or one.is_reachable)

    def new_session(self) -> int:
        """Return a session number that is unique within this process."""
        self._session += 1
        return self._session

    def became_unreachable(self, attachment: Attachment) -> None:
        """Stop waiting for an exchange; `fail_unanswered` follows once everything that has arrived is read."""
        attachment.is_reachable = False
        attachment.credit.end_session()
        for number, request in self.requests.stop_waiting_for(attachment):
            self._complete(number, request)

    def outage_ended(self, missed: int | None = None) -> None:
        """Count and announce that messages can be sent again; `missed` is how many are known to be lost."""
        self.counters.reconnects += 1
        self.out.change(LinkRestored(missed))

    def fail_unanswered(self, attachment: Attachment) -> None:
        """Fail the requests that were sent to an exchange which may never answer them."""
        for number, request in self.requests.fail_sent_to(attachment):
            self._complete(number, request)

    # Frames

    def feed(self, frame: bytes, attachment: Attachment) -> Iterator[None] | None:
        """Take one frame that an exchange has sent. Malformed frames are counted and ignored.

        Returns:
            For a frame with several messages, an iterator that takes one of them at each step; else None.
        """
        try:
            if frame[:1] == wire.GROUP_BYTE:
                topic, sender, number, flags, ttl, payload = wire.read_group(frame)
                if flags & FLAG_BATCH:
                    payloads = wire.batch_bodies(payload)
                    return self.receiver.take_group_batch(frame, topic, sender, number, flags, ttl, payloads)
                self.receiver.take_group(frame, topic, sender, number, flags, ttl, payload)
            elif (kind := wire.sub_kind(frame)) == wire.DIRECT:
                return self.receiver.take_direct(frame)
            elif (take := self._on_inbox.get(kind)) is not None:
                return take(frame, attachment)
            else:
                self.counters.drop("malformed")
        except wire.FrameError:
            self.counters.drop("malformed")
        return None

    # Messages that were published while this process was not connected

    def resume(self, attachment: Attachment, session: int) -> bytes | None:
        """Return the request to an exchange to replay missing messages; None if none can be missing."""
        request = attachment.resumption.request(session, self.memberships.joined)
        self._await_replays()
        return request

    def connected(self, attachment: Attachment) -> None:
        """Note that there is a connection to an exchange."""
        if attachment.is_new:
            self._await_earlier(attachment)

    def _await_earlier(self, attachment: Attachment) -> None:
        """Wait for messages that others may have sent by this exchange since they could know of this process.

        They may precede those that arrive by other exchanges, as if the connection had been lost when it began.
        """
        self.connection_lost(attachment, self._began_at)

    def connection_lost(self, attachment: Attachment, since: float) -> None:
        """Note that the connection to an exchange was lost; it had delivered everything published before a time."""
        attachment.resumption.lacks(since)
        self._await_replays()

    def _await_replays(self) -> None:
        self.gaps.replays_until = max((one.resumption.until for one in self.attachments), default=0.0)

    def _replayed(self, frame: bytes, attachment: Attachment) -> Iterator[None] | None:
        replayed = wire.REPLAYED.decode(frame)
        if not attachment.resumption.is_answered_by(replayed):
            return None
        self._await_replays()
        messages = wire.decode_messages(replayed.messages)
        return self._take_replayed(messages, attachment, is_last=bool(replayed.last))

    def _take_replayed(self, messages: list[bytes], attachment: Attachment, *, is_last: bool) -> Iterator[None]:
        for message in messages:
            if wire.is_group(message) or wire.sub_kind(message) == wire.DIRECT:
                yield from self.feed(message, attachment) or ()
            else:
                self.counters.drop("malformed")
            yield
        if is_last:
            attachment.resumption.ended()
            self._await_replays()

    # Groups

    def join(self, topic: Topic, channel: str, capacity: int, life: float | None) -> Join:
        """Add a channel of this process to a group; the join is to be completed or failed."""
        join, frames = self.memberships.join(topic, channel, capacity, life, self.numbers.last(topic))
        if self.is_exchange:
            join.group.in_force_after = 0
        self.out.send_upstream(frames)
        return join

    def join_synced(self, join: Join, sync: int) -> None:
        """Complete a join whose subscription is in force, as the answer to `sync` proves."""
        self.memberships.in_force(join.group, sync)
        self.memberships.completed(join)

    def join_failed(self, join: Join) -> None:
        """Undo a join."""
        self.out.send_upstream(self.memberships.failed(join))

    def leave(self, topic: Topic, channel: str) -> None:
        """Remove a channel of this process from a group."""
        self.out.send_upstream(self.memberships.leave(topic, channel))

    def _asked(self, frame: bytes, attachment: Attachment) -> None:
        """Add a channel of this process to a group, or remove it, for another process.

        The answer is sent by the exchange that delivered the request: the process that asks may be connected there
        alone.
        """
        ask = wire.ASK.decode(frame)
        channel, topic = wire.name(ask.channel), wire.group_topic(wire.name(ask.group))

        def reply(status: Status) -> Reply:
            confirm = wire.Confirm(ask.reply, ask.n, status, wire.NO_INSTANCE)
            return Reply(wire.CONFIRM.encode(confirm), to=attachment)

        confirm = reply(Status.OK)
        if self._is_overtaken(ask):
            self.out.reply(confirm)
            return
        if not ask.add:
            self.leave(topic, channel)
            self.out.reply(confirm)
            return
        if channel not in self.mailboxes.boxes and channel not in self.receiver.own_names:
            self.out.reply(reply(Status.GONE))
            return
        join = self.join(topic, channel, self.defaults.capacity(channel), self.defaults.group_expiry)
        if not join.group.in_force_after:
            self.memberships.completed(join)
            self.out.reply(confirm)
            return
        number = next_number()
        sync = wire.SYNC.encode(wire.Sync(self.inbox, number))
        self._foreign_joins[number] = join, confirm
        self.begin_request(number, Request(sync, to_all=True))
        self.out.send_upstream([sync])

    def _is_overtaken(self, ask: wire.Ask) -> bool:
        """Return whether a newer request for this membership has arrived: a stalled connection delivers some late."""
        key = ask.reply, ask.group, ask.channel
        last = self._last_asks.pop(key, 0)
        self._last_asks[key] = max(ask.n, last)
        if len(self._last_asks) > REMEMBERED_ASKS:
            del self._last_asks[next(iter(self._last_asks))]
        return ask.n < last

    def _member_removed(self, frame: bytes, attachment: Attachment) -> None:
        removed = wire.REMOVED.decode(frame)
        self.normal_members.removed(removed.group, removed.channel)

    # Requests

    def begin_request(self, number: int, request: Request[Any]) -> None:
        """Add a request that is sent now; one to all waits for every exchange that can be reached."""
        if request.to_all:
            request.asked = {one for one in self.attachments if one.is_reachable}
        self.requests.begin(number, request, self._clock())

    def _answered(self, number: int, answer: int, attachment: Attachment) -> None:
        request = self.requests.answered(number, answer, attachment)
        if request is not None:
            self._complete(number, request)

    def _complete(self, number: int, request: Request[Any]) -> None:
        foreign = self._foreign_joins.pop(number, None)
        if foreign is not None:
            join, confirm = foreign
            self.requests.end(number)
            self.join_synced(join, number)
            self.out.reply(confirm)
            return
        if request.member is not None and request.answer == Status.OK:
            self.normal_members.changed(request.member)
        if request.waiter is not None:
            self.out.wake.append(request.waiter)

    def answer_for_nobody(self) -> None:
        """Answer the requests to all exchanges with OK, because no exchange exists."""
        for number, request in self.requests.answer_for_nobody(Status.OK):
            self._complete(number, request)

    def fail_requests(self, error: Exception) -> None:
        """Answer every request of this process with an error."""
        self.out.wake += [request.waiter for request in self.requests.fail(error)]

    def _confirmed(self, frame: bytes, attachment: Attachment) -> None:
        confirm = wire.CONFIRM.decode(frame)
        if self.requests.is_open(confirm.n):
            self._answered(confirm.n, confirm.status, attachment)
            return
        attachment.window.acknowledge(confirm.n)
        self.out.session.append((attachment, confirm))
        self.out.busy = True

    def _batching_accepted(self, frame: bytes, attachment: Attachment) -> None:
        attachment.batching_session = wire.BATCHING_ACCEPTED.decode(frame).session

    def _synced(self, frame: bytes, attachment: Attachment) -> None:
        number = wire.SYNCED.decode(frame).n
        attachment.synced = max(number, attachment.synced)
        self._answered(number, Status.OK, attachment)

    # Normal channels

    def _job(self, frame: bytes, attachment: Attachment) -> None:
        """Take a job. Its payload stays sealed until a reader takes it: it may have to be handed back."""
        job = wire.JOB.decode(frame)
        waiter, frames = attachment.credit.arrived(job)
        self.receiver.now = self._clock()
        self.counters.received += job.session == attachment.credit.session  # any other is handed over again
        self.out.send_upstream(frames, attachment)
        if waiter is not None:
            self.out.wake.append(waiter)

    def _handed(self, frame: bytes, attachment: Attachment) -> None:
        self.out.send_upstream(attachment.credit.counted(wire.HANDED.decode(frame)), attachment)

    def _handed_total(self, frame: bytes, attachment: Attachment) -> None:
        self.out.send_upstream(attachment.credit.counted_in_total(wire.HANDED_TOTAL.decode(frame)), attachment)

    def _queried(self, frame: bytes, attachment: Attachment) -> None:
        self.out.send_upstream(attachment.credit.queried(wire.QUERY.decode(frame)), attachment)

    def _returned(self, frame: bytes, attachment: Attachment) -> None:
        """Take over a message that an exchange returns because it is about to end, and send it to another one."""
        job = wire.RETURNED.decode(frame)
        if job.session != attachment.credit.session:
            return  # it has counted this one as lost already
        lost = attachment.take_over(job.ordinal)
        if lost >= 0:
            self.counters.drop("lost_delivery", lost)
            back = wire.Back(self.inbox, job.number, job.ttl, job.channel, job.payload)
            self.out.reply(Reply(wire.BACK.encode(back), job.channel, ttl=job.ttl / 1000))
        taken = wire.Taken(self.inbox, attachment.credit.session, attachment.taken_over)
        self.out.send_upstream([wire.TAKEN.encode(taken)], attachment)

    # Reading

    def read_normal(self, box: Mailbox[Any]) -> None:
        """Note that a reader of a normal channel waits, or has taken a job."""
        if self._read_normally.get(box.name) is not box:
            self._remember_reading(box)
        for attachment in self.attachments:
            if frames := attachment.credit.touched(box):
                self.out.send_upstream(frames, attachment)

    def _remember_reading(self, box: Mailbox[Any]) -> None:
        """Remember a normal channel, for exchanges that this process learns of later."""
        if len(self._read_normally) >= 2 * self._most_read + MANY:
            self._read_normally = {name: one for name, one in self._read_normally.items() if one.waiters}
            self._most_read = len(self._read_normally)
        self._read_normally[box.name] = box

    def stop_waiting(self, box: Mailbox[Any], waiter: Any) -> None:
        """Let a reader give up."""
        successor = self.mailboxes.stop_waiting(box, waiter)
        for attachment in self.attachments:
            attachment.credit.gave_up(box)
        if successor is not None:
            self.out.wake.append(successor)

    # Sessions

    def _welcomed(self, frame: bytes, attachment: Attachment) -> None:
        self.out.session.append((attachment, wire.WELCOME.decode(frame)))
        self.out.busy = True

    def before_hello(self, attachment: Attachment, *, loses_frames: bool = True) -> list[bytes]:
        """Return the frames that an exchange needs before the hello of a new session.

        Args:
            attachment: The exchange.
            loses_frames: Whether frames that were sent to it in the former session may be lost.
        """
        attachment.notes_sent = self.normal_members.last_number
        received = attachment.credit.leave_session(loses_frames=loses_frames)
        return [*self.normal_members.repeat(), *received]

    def begin_session(self, attachment: Attachment, session: int, instance: bytes) -> None:
        """Repeat to an exchange that has just welcomed us what it cannot know: requests, and readers that wait.

        Until then, only other exchanges may have answered requests about normal members.
        """
        attachment.is_reachable = True
        members = self.normal_members.repeat(attachment.notes_sent)
        requests = [one.frame for one in self.requests.reached(attachment)]
        self.out.send_upstream([*members, *requests, *attachment.begin_session(session, instance)], attachment)
        for box in attachment.credit.readable():
            waiters = (box.next_waiter() for _ in range(len(box.mail)))
            self.out.wake += [waiter for waiter in waiters if waiter is not None]

    def stop_reading(self, attachment: Attachment) -> None:
        """Hand all unread jobs of an exchange back."""
        self.out.send_upstream(attachment.credit.hand_everything_back(), attachment)

    # Emptying

    def empty(self) -> None:
        """Drop all messages and memberships; readers keep waiting."""
        self.out.send_upstream(self.memberships.clear())
        self.mailboxes.clear()
        self.normal_members.clear()
        self.receiver.clear()
        for attachment in self.attachments:
            attachment.credit.empty()
        self.out.emptied = self.out.busy = True

    def _emptied(self, frame: bytes, attachment: Attachment) -> None:
        empty = wire.EMPTY.decode(frame)
        if empty.n != attachment.emptied_by:
            attachment.emptied_by = empty.n
            self.empty()
        self.out.reply(Reply(wire.FLUSHED.encode(wire.Flushed(self.inbox, empty.n)), to=attachment))

    # Housekeeping

    def keep(self, now: float, at_most: int, is_behind: IsBehind = nothing_is_behind) -> float:
        """Do what is due; return when to call again, not later than `now` if there is more to do.

        Args:
            now: Monotonic seconds.
            at_most: The maximum number of mailboxes, of windows, of ends of memberships and of held messages to handle.
            is_behind: Whether missing messages may still arrive.
        """
        for attachment in self.attachments:
            self.out.send_upstream(attachment.credit.keep(now, at_most), attachment)
        self.gaps.expire(now, is_behind, at_most)
        if now >= self.memberships.ends.next:
            self.out.send_upstream(self.memberships.end_due(now, at_most))
        look_at = self.mailboxes.look(now, at_most)
        return min(look_at, self.due, self.memberships.ends.next)

    @property
    def may_be_due(self) -> bool:
        """Whether `due` can be finite; it spares computing `due` for each message."""
        return bool(self._read_normally) or self.gaps.frames > 0

    @property
    def due(self) -> float:
        """When `keep` has something to do for messages that have arrived, or for readers of normal channels."""
        due = self.gaps.due if self.gaps.frames else inf
        for attachment in self.attachments:
            credit_due = attachment.credit.due
            if credit_due < due:
                due = credit_due
        return due
