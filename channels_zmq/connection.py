"""The client side of one process and address: what arrives is sorted into mailboxes, what is asked is waited for.

In the data-flow diagram this is everything between the layer and the sockets. How frames leave and arrive differs
between the two topologies; `dedicated` and `embedded` fill that in. One lock orders everything, and nothing under it
waits, so that any thread may call, with an event loop or without.
"""

import asyncio
import itertools
import logging
import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from channels.exceptions import StopConsumer

from channels_zmq.config import LayerConfig
from channels_zmq.counters import Counters, Stats
from channels_zmq.errors import ChannelsZmqError, ForwarderUnavailable, RequestRefused
from channels_zmq.keeper import Watched, keeper
from channels_zmq.loops import Loops, Waiter, running_here, wake
from channels_zmq.mailboxes import Delivery, Mail, Mailbox, Mailboxes
from channels_zmq.outbox import Outbox
from channels_zmq.readers import Readers
from channels_zmq.sequences import Numbers, Runs
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Status, Topic

logger = logging.getLogger("channels_zmq")

REPEAT_EVERY = 1.0
"""Seconds after which a request that may be repeated without harm is repeated."""
DRAIN_AT_ONCE = 256
"""Frames read in one go, before other callbacks of the event loop get their turn."""
_request_numbers = itertools.count(1)


def next_request() -> int:
    """Return a number that no other request of this process has, ever."""
    return next(_request_numbers)


@dataclass(frozen=True, slots=True)
class Options:
    """What a connection needs to know from CONFIG; seconds and bytes."""

    connect_timeout: float
    expiry: float
    linger: float
    max_message_size: int
    outbox_capacity: int
    outbox_bytes: int
    prefetch: int


@dataclass(slots=True)
class Request:
    """A request that waits for its answer.

    `answer` is called under the lock; `again` is the frame to repeat until then, empty if it must not be repeated, and
    `upstream` the way it goes.
    """

    answer: Callable[[int], None]
    again: bytes
    upstream: bool
    repeat_at: float
    fail: Callable[[Exception], None] | None = None


class Defaults:
    """What a connection needs from a layer where no call brings it along; the layer made last has the say."""

    def __init__(self) -> None:
        self.capacity: Callable[[str], int] = lambda channel: 100
        self.group_expiry: float | None = None
        self.on_disconnect: Callable[[], bytes] | None = None
        self.on_reconnect: Callable[[int | None], bytes] | None = None

    def take(
        self, config: LayerConfig, capacity: Callable[[str], int], pack: Callable[[dict[str, object]], bytes]
    ) -> None:
        """Take over a layer's CONFIG."""
        self.capacity, self.group_expiry = capacity, config.group_expiry
        gone, back = config.on_disconnect, config.on_reconnect
        self.on_disconnect = (lambda: pack({"type": gone})) if gone else None
        self.on_reconnect = (lambda missed: pack({"type": back, "missed": missed})) if back else None


class Connection(ABC):
    """One process at one address.

    Args:
        address: For messages to people.
        options: Bounds and times.
    """

    def __init__(self, address: str, options: Options) -> None:
        self.address = address
        self.options = options
        self.inbox = secrets.token_hex(wire.INBOX_SIZE // 2).encode()
        self.sender = os.urandom(wire.SENDER_SIZE)
        self.lock = threading.RLock()
        self.mailboxes = Mailboxes(idle=options.expiry)
        self.counters = Counters()
        self.defaults = Defaults()
        self.outbox = Outbox(options.outbox_capacity, options.outbox_bytes)
        self.numbers = Numbers()
        self.runs = Runs()
        self.loops = Loops(self.drain, self.lock)
        self.session = 0
        self.closed = False
        self.prefetch = options.prefetch
        self.users = 0
        """Layers that use this connection; the keeper closes it some time after the last one is gone."""
        self._readers: dict[str, Readers] = {}
        self._requests: dict[int, Request] = {}
        self._unconfirmed: set[str] = set()
        self._plain_members: dict[tuple[str, str], wire.Member] = {}
        self._plain_added: dict[tuple[str, str], float] = {}
        self._swept = time.monotonic()
        self._on_inbox: dict[int, Callable[[bytes], None]] = {
            wire.DIRECT: self._direct_arrived,
            wire.ASK.kind: self._asked,
            wire.CONFIRM.kind: self._confirmed,
            wire.WELCOME.kind: self._welcomed,
            wire.SYNCED.kind: self._synced,
            wire.HANDED.kind: self._handed,
            wire.JOB.kind: self._job_arrived,
            wire.REMOVED.kind: self._member_removed,
            wire.EMPTY.kind: self._emptied,
        }

    # The seam between the topologies: called under the lock

    @abstractmethod
    def _upstream(self, frame: bytes) -> None:
        """Send a frame the subscribers' way; it may get lost."""

    @abstractmethod
    def _request_downstream(self, frame: bytes, deadline: float, number: int) -> None:
        """Send a frame the producers' way, or hold it until its deadline; raises OutboxFull."""

    @abstractmethod
    def _subscribe(self, topic: Topic) -> None:
        """Ask for the frames of a topic."""

    @abstractmethod
    def _unsubscribe(self, topic: Topic) -> None:
        """Ask for no more frames of a topic."""

    @abstractmethod
    def _ordered(self, prefix: bytes, body: bytes, ttl: float) -> None:
        """Number a group or direct message and send it, or hold it; raises OutboxFull."""

    @abstractmethod
    def _read(self) -> bool:
        """Read up to `DRAIN_AT_ONCE` frames that have arrived; return whether more may be there."""

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether messages go out now."""

    @abstractmethod
    def watched(self) -> Watched:
        """Return what the keeper is to watch."""

    @abstractmethod
    def start(self) -> None:
        """Open what the topology needs."""

    @abstractmethod
    def finish(self) -> None:
        """Close the sockets; blocks for `linger` at most."""

    def may_send(self) -> None:  # noqa: B027 - most topologies may
        """Raise if this process cannot be a producer at its address."""

    def must_confirm(self) -> bool:
        """Return whether a subscription is only in force once the exchange has said so."""
        return True

    def tick(self, now: float) -> float:
        """Do what is due, called by the keeper; return when to call again at the latest."""
        with self.lock:
            due = self._keep_requests(now)
            due = min(due, self._keep_readers(now))
            if now - self._swept >= 1.0:
                self._swept = now
                self.counters.drop("expired", self.mailboxes.sweep())
            self._end_memberships()
            self.loops.unattended()
            return due

    # Sending

    def group_send(self, group: str, payload: bytes, ttl: float) -> None:
        """Send a message to a group. Never raises for want of room: what cannot go is counted."""
        with self.lock:
            self.counters.sent += 1
            try:
                self._ordered(wire.group_topic(group), payload, ttl)
            except ChannelsZmqError:
                self.counters.drop("outbox")

    def send_direct(self, owner: bytes, channel: str, payload: bytes, ttl: float, capacity: int) -> bool:
        """Send a message to a process channel; return False if it is known to be full."""
        with self.lock:
            if owner == self.inbox and self._own_is_full(channel, capacity):
                return False
            self._ordered(wire.direct_prefix(owner), wire.direct_body(channel, payload), ttl)
            self.counters.sent += 1
            if owner == self.inbox:
                self._own_is_under_way(channel, capacity)
            return True

    def _own_is_full(self, channel: str, capacity: int) -> bool:
        box = self.mailboxes.find(channel)
        if box is None or len(box.mail) + box.under_way < capacity:
            return False
        box.is_full(time.monotonic())
        return len(box.mail) + box.under_way >= capacity

    def _own_is_under_way(self, channel: str, capacity: int) -> None:
        self.mailboxes.open(channel, capacity).under_way += 1

    async def send_plain(self, channel: str, payload: bytes, ttl: float, capacity: int) -> bool:
        """Send a message to a plain channel and wait for the confirmation; return False if the queue is full.

        Raises:
            ForwarderUnavailable: No answer in time; whether the message went is unknown.
            RequestRefused: The forwarder has no room for another queue.
        """
        number = next_request()
        frame = wire.PLAIN.encode(
            wire.Plain(self.inbox, number, wire.milliseconds(ttl), capacity, channel.encode(), payload)
        )
        status = await self._ask(number, frame, f"send to {channel!r}", repeat=False)
        if status == Status.REFUSED:
            raise RequestRefused(f"send to {channel!r}: the forwarder at {self.address} has no room for another queue")
        self.counters.sent += status == Status.OK
        return status != Status.FULL

    # Groups

    async def join(self, group: str, channel: str, capacity: int, life: float | None) -> None:
        """Add a channel of this process to a group; return once nothing published from now on is missed."""
        number = next_request()
        frame = wire.SYNC.encode(wire.Sync(self.inbox, number))
        with self.lock:
            self._begin_membership(group, channel, capacity, life)
            if group not in self._unconfirmed or not self.must_confirm():
                return
        try:
            await self._ask(number, frame, f"group_add({group!r})", upstream=True)
        except BaseException:
            with self.lock:
                self._end_membership(group, channel)
            raise
        with self.lock:
            self._unconfirmed.discard(group)

    def leave(self, group: str, channel: str) -> None:
        """Take a channel of this process out of a group."""
        with self.lock:
            self._end_membership(group, channel)

    async def change_foreign(self, owner: bytes, group: str, channel: str, *, add: bool) -> None:
        """Ask another process to add its channel to a group or to take it out. A process that is gone is no error."""
        number = next_request()
        frame = wire.ASK.encode(wire.Ask(owner, number, add, self.inbox, group.encode(), channel.encode()))
        await self._ask(number, frame, f"group_{'add' if add else 'discard'}({group!r}, {channel!r})")

    async def change_plain(self, group: str, channel: str, capacity: int, life: float | None, *, add: bool) -> None:
        """Add a plain channel to a group, at the exchange, or take it out."""
        number = next_request()
        lifetime = 0 if life is None else max(1, round(life * 1000))
        member = wire.Member(self.inbox, number, add, 0, lifetime, capacity, group.encode(), channel.encode())
        status = await self._ask(
            number, wire.MEMBER.encode(member), f"group_{'add' if add else 'discard'}({group!r}, {channel!r})"
        )
        if status != Status.OK:
            raise RequestRefused(f"group_add({group!r}): the forwarder at {self.address} has no room for more members")
        with self.lock:
            self._plain_members.pop((group, channel), None)
            if add:
                self._plain_members[group, channel] = member
                self._plain_added[group, channel] = time.monotonic()

    def _begin_membership(self, group: str, channel: str, capacity: int, life: float | None) -> None:
        if self.mailboxes.join(group, channel, capacity, life):
            self._unconfirmed.add(group)
            self._subscribe(wire.group_topic(group))

    def _end_membership(self, group: str, channel: str) -> None:
        if self.mailboxes.leave(group, channel):
            self._abandon(group)

    def _end_memberships(self) -> None:
        if self.mailboxes.memberships_may_end:
            for group in self.mailboxes.end_memberships():
                self._abandon(group)

    def _abandon(self, group: str) -> None:
        topic = wire.group_topic(group)
        self._unconfirmed.discard(group)
        self._unsubscribe(topic)
        self.runs.forget(topic)

    # Receiving

    async def receive(self, channel: str, capacity: int, *, plain: bool) -> bytes:
        """Wait for the next message of a channel of this process, or of a plain channel.

        Raises:
            StopConsumer: The layer has been closed.
        """
        loop = asyncio.get_running_loop()
        waiter: Waiter | None = None
        while True:
            with self.lock:
                if waiter is not None:
                    self.loops.leave(loop)
                if self.closed:
                    raise StopConsumer
                box = self.mailboxes.open(channel, capacity)
                mail = self.mailboxes.take(box)
                if mail is None:
                    waiter = Waiter(loop)
                    self.mailboxes.wait(box, waiter)
                    self.loops.enter(loop, attach=True)
                if plain:
                    self._reader_touched(channel, box)
            if mail is not None:
                return mail.payload
            assert waiter is not None
            try:
                await waiter.future
            except BaseException:
                self._stop_waiting(loop, box, waiter)
                raise

    def _stop_waiting(self, loop: asyncio.AbstractEventLoop, box: Mailbox, waiter: Waiter) -> None:
        with self.lock:
            self.loops.leave(loop)
            successor = self.mailboxes.stop_waiting(box, waiter)
            readers = self._readers.get(box.name)
            if readers is not None:
                readers.left(time.monotonic())
                self.call_soon(time.monotonic() + 0.1)
            if isinstance(successor, Waiter):
                wake([successor])

    def drain(self) -> None:
        """Read what has arrived; called by a watching loop, the keeper, or after an operation that left input."""
        with self.lock:
            if not self.closed and self._read() and not self.loops.drain_soon():
                self.call_soon(0.0)

    def feed(self, frame: bytes) -> None:
        """Take one frame that arrived; a stranger's nonsense is counted and ignored."""
        try:
            if frame[:1] == b"G":
                self._group_arrived(frame)
            elif frame[:1] == b"P" and len(frame) > wire.SUB_KIND:
                self._on_inbox.get(frame[wire.SUB_KIND], self._unknown)(frame)
            else:
                self._unknown(frame)
        except wire.FrameError:
            self.counters.drop("malformed")

    def _unknown(self, frame: bytes) -> None:
        self.counters.drop("malformed")

    def _group_arrived(self, frame: bytes) -> None:
        end = wire.topic_end(frame)
        order = wire.read_order(frame, end + 1)
        if self._is_new(order):
            mail = Mail(time.monotonic() + order.ttl / 1000, frame[order.start :])
            self._delivered(self._deliver_group(wire.name(frame[1:end]), mail))

    def _deliver_group(self, group: str, mail: Mail) -> Delivery:
        self._end_memberships()
        return self.mailboxes.deliver_group(group, mail)

    def _direct_arrived(self, frame: bytes) -> None:
        order = wire.read_order(frame, wire.SUB_KIND + 1)
        channel, payload = wire.channel_and_payload(frame, order.start)
        if self._is_new(order):
            if order.key[-wire.SENDER_SIZE :] == self.sender:
                box = self.mailboxes.find(channel)
                if box is not None and box.under_way:
                    box.under_way -= 1
            self._deliver_direct(channel, Mail(time.monotonic() + order.ttl / 1000, payload))

    def _deliver_direct(self, channel: str, mail: Mail) -> None:
        self._delivered(self.mailboxes.deliver(channel, mail, self.defaults.capacity(channel)))

    def _is_new(self, order: wire.Order) -> bool:
        seen = self.runs.see(order)
        if seen.missing:
            self.counters.drop("missed", seen.missing)
            self.mailboxes.nothing_under_way()
        self.counters.repeated += not seen.new
        return seen.new

    def _delivered(self, delivery: Delivery) -> None:
        self.counters.received += 1
        if delivery.refused:
            self.counters.drop("full", delivery.refused)
        if delivery.wake:
            wake(waiter for waiter in delivery.wake if isinstance(waiter, Waiter))

    # Plain channels

    def _reader_touched(self, channel: str, box: Mailbox) -> None:
        readers = self._readers.get(channel)
        if readers is None or readers.box is not box:
            readers = self._readers[channel] = Readers(box, self.prefetch)
            box.pinned = True
        now = time.monotonic()
        limit = readers.touched(now)
        if limit:
            self._say_ready(channel, limit, ask=False)
        self.call_soon(now + 0.1)

    def _say_ready(self, channel: str, limit: int, *, ask: bool) -> None:
        self._upstream(wire.READY.encode(wire.Ready(self.inbox, self.session, limit, ask, channel.encode())))

    def _job_arrived(self, frame: bytes) -> None:
        job = wire.JOB.decode(frame)
        channel = wire.name(job.channel)
        readers = self._readers.get(channel)
        if readers is None:
            self._hand_back(channel, [Mail(time.monotonic() + job.ttl / 1000, job.payload, job.number)])
            return
        if job.session == self.session:
            readers.arrived()
        self.counters.received += 1
        readers.box.mail.append(Mail(time.monotonic() + job.ttl / 1000, job.payload, job.number))
        waiter = readers.box.next_waiter()
        if isinstance(waiter, Waiter):
            wake([waiter])
        else:
            self.call_soon(time.monotonic() + 0.1)

    def _handed(self, frame: bytes) -> None:
        handed = wire.HANDED.decode(frame)
        channel = wire.name(handed.channel)
        readers = self._readers.get(channel)
        if readers is not None and handed.session == self.session:
            lost, limit = readers.told(handed.handed)
            self.counters.drop("jobs lost", lost)
            if limit:
                self._say_ready(channel, limit, ask=False)

    def _hand_back(self, channel: str, jobs: Iterable[Mail]) -> None:
        now = time.monotonic()
        for job in jobs:
            if job.deadline > now:
                left = wire.milliseconds(job.deadline - now)
                self._upstream(wire.BACK.encode(wire.Back(self.inbox, job.number, left, channel.encode(), job.payload)))

    def _keep_readers(self, now: float) -> float:
        due = now + 60.0
        for channel, readers in self._readers.items():
            if readers.is_abandoned(now):
                limit, jobs = readers.close_window()
                self._say_ready(channel, limit, ask=False)
                self._hand_back(channel, jobs)
            elif readers.wants_to_ask(now):
                self._say_ready(channel, readers.said, ask=True)
            if readers.box.waiters:
                due = min(due, now + 1.0)
            elif readers.box.mail or readers.said > readers.received:
                due = min(due, max(now + 0.01, readers.left_at + 0.1))
        return due

    def _announce_session(self) -> None:
        """Repeat to an exchange that has just welcomed us what it cannot know: questions, and readers that wait."""
        now = time.monotonic()
        for number, request in list(self._requests.items()):
            if request.again and request.upstream:
                self._repeat(number, request, now)
        for channel, readers in self._readers.items():
            limit = readers.new_session(now)
            if limit:
                self._say_ready(channel, limit, ask=True)

    def hand_everything_back(self) -> None:
        """Return all jobs that nobody has read, because this process stops reading."""
        with self.lock:
            for channel, readers in self._readers.items():
                limit, jobs = readers.close_window()
                self._say_ready(channel, limit, ask=False)
                self._hand_back(channel, jobs)

    # Requests

    async def _ask(self, number: int, frame: bytes, what: str, *, upstream: bool = False, repeat: bool = True) -> int:
        """Send a request and wait for the status that answers it."""
        loop = asyncio.get_running_loop()
        timeout = self.options.connect_timeout
        now = time.monotonic()
        waiter = Waiter(loop)
        with self.lock:
            self._requests[number] = Request(
                answer=lambda status: waiter.wake(status, here=running_here()),
                again=frame if repeat else b"",
                upstream=upstream,
                repeat_at=now + REPEAT_EVERY,
                fail=lambda error: waiter.wake(error, here=running_here()),
            )
            self.loops.enter(loop, attach=False)
        try:
            with self.lock:
                if upstream:
                    self._upstream(frame)
                else:
                    self._request_downstream(frame, now + timeout, number)
            if waiter.future.done():
                return int(waiter.future.result())
            async with asyncio.timeout(timeout):
                return int(await waiter.future)
        except TimeoutError:
            raise self._silence(timeout, what) from None
        finally:
            with self.lock:
                del self._requests[number]
                self.outbox.withdraw(number)
                self.loops.leave(loop)

    def _silence(self, timeout: float, what: str) -> ForwarderUnavailable:
        return ForwarderUnavailable(self.address, timeout, what)

    def _keep_requests(self, now: float) -> float:
        due = now + 1.0 if self._requests else now + 60.0
        for number, request in list(self._requests.items()):
            if request.again and request.repeat_at <= now and self.connected:
                request.repeat_at = now + REPEAT_EVERY
                self._repeat(number, request, now)
        return due

    def _repeat(self, number: int, request: Request, now: float) -> None:
        if request.upstream:
            self._upstream(request.again)
        else:
            self._request_downstream(request.again, now + REPEAT_EVERY, number)

    def _fail_requests(self, error: Exception) -> None:
        for request in list(self._requests.values()):
            if request.fail is not None:
                request.fail(error)

    def _answer(self, number: int, status: int) -> None:
        request = self._requests.get(number)
        if request is not None:
            request.answer(status)

    def _confirmed(self, frame: bytes) -> None:
        confirm = wire.CONFIRM.decode(frame)
        self._answer(confirm.n, confirm.status)

    def _synced(self, frame: bytes) -> None:
        self._answer(wire.SYNCED.decode(frame).n, Status.OK)

    def _welcomed(self, frame: bytes) -> None:
        """Take a welcome; only a connection with sockets has use for it."""

    def _member_removed(self, frame: bytes) -> None:
        removed = wire.REMOVED.decode(frame)
        self._plain_members.pop((wire.name(removed.group), wire.name(removed.channel)), None)

    def _add_plain_members_again(self) -> None:
        """Tell a new instance of the exchange which plain channels this process has added to groups."""
        now = time.monotonic()
        for key, member in self._plain_members.items():
            again = member._replace(age=wire.milliseconds(now - self._plain_added[key]))
            self._request_downstream(wire.MEMBER.encode(again), now + self.options.expiry, 0)

    def _asked(self, frame: bytes) -> None:
        """Another process wants a channel of ours in a group or out of it."""
        ask = wire.ASK.decode(frame)
        group, channel = wire.name(ask.group), wire.name(ask.channel)
        confirm = partial(self._confirm_to, ask.reply, ask.n)
        if not ask.add:
            self._end_membership(group, channel)
            confirm(Status.OK)
            return
        self._begin_membership(group, channel, self.defaults.capacity(channel), self.defaults.group_expiry)
        if group not in self._unconfirmed or not self.must_confirm():
            confirm(Status.OK)
            return
        number = next_request()
        sync = wire.SYNC.encode(wire.Sync(self.inbox, number))

        def synced(status: int) -> None:
            self._requests.pop(number, None)
            self._unconfirmed.discard(group)
            confirm(status)

        self._requests[number] = Request(synced, sync, True, time.monotonic() + REPEAT_EVERY)
        self._upstream(sync)

    def _confirm_to(self, inbox: bytes, number: int, status: int) -> None:
        answer = wire.CONFIRM.encode(wire.Confirm(inbox, number, status, wire.NO_INSTANCE))
        self._request_downstream(answer, time.monotonic() + self.options.connect_timeout, 0)

    # Emptying

    async def flush(self) -> None:
        """Empty everything for every client of the address.

        Raises:
            ForwarderUnavailable: Some client did not answer in time.
        """
        number = next_request()
        ttl = wire.milliseconds(self.options.connect_timeout)
        await self._ask(number, wire.FLUSH.encode(wire.Flush(self.inbox, number, ttl)), "flush()", repeat=False)

    def _emptied(self, frame: bytes) -> None:
        empty = wire.EMPTY.decode(frame)
        self.empty()
        self._flushed(wire.FLUSHED.encode(wire.Flushed(self.inbox, empty.n)))

    def _flushed(self, frame: bytes) -> None:
        self._request_downstream(frame, time.monotonic() + self.options.connect_timeout, 0)

    def empty(self) -> None:
        """Drop all messages and memberships of this process."""
        for group in self.mailboxes.clear():
            self._abandon(group)
        self.outbox.clear()
        self._plain_members.clear()

    # The forwarder goes and comes

    def _tell_disconnected(self) -> None:
        if self.defaults.on_disconnect is not None:
            self._tell(self.defaults.on_disconnect())

    def _tell_reconnected(self, missed: int | None) -> None:
        self.counters.reconnects += 1
        if self.defaults.on_reconnect is not None:
            self._tell(self.defaults.on_reconnect(missed))

    def _tell(self, payload: bytes) -> None:
        delivery = self.mailboxes.deliver_all(Mail(time.monotonic() + self.options.expiry, payload))
        wake(waiter for waiter in delivery.wake if isinstance(waiter, Waiter))

    # The keeper's side, and the end

    def call_soon(self, when: float) -> None:
        """Let the keeper call `tick` at a time at the latest."""
        keeper().call(self, when)

    def stop(self) -> list[threading.Event]:
        """Begin to close: jobs go back, readers end. Return what to wait for before `finish`."""
        with self.lock:
            if self.closed:
                return []
            self.hand_everything_back()
            self.closed = True
            for box in self.mailboxes.boxes():
                wake(waiter for waiter in box.waiters if isinstance(waiter, Waiter))
            return self.loops.release()

    def stats(self) -> Stats:
        """Return the counts so far and what is there now."""
        with self.lock:
            counters = self.counters
            return Stats(
                connected=self.connected,
                sent=counters.sent,
                received=counters.received,
                dropped=dict(counters.dropped),
                repeated=counters.repeated,
                reconnects=counters.reconnects,
                waiting=self.mailboxes.waiting(),
                held=len(self.outbox),
                channels=len(self.mailboxes),
                groups=len(self.mailboxes.groups),
            )
