"""The client side of one process and address: what arrives is sorted into mailboxes, what is asked is waited for.

In the data-flow diagram this is everything between the layer and the sockets. How frames leave and arrive differs
between the two topologies; `dedicated` and `embedded` fill that in. One lock orders everything, and nothing under it
waits, so that any thread may call, with an event loop or without.
"""

import asyncio
import logging
import os
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache

from channels.exceptions import StopConsumer

from channels_zmq.asking import Options
from channels_zmq.counters import Stats
from channels_zmq.errors import ChannelsZmqError, RequestRefused
from channels_zmq.joining import Joining
from channels_zmq.keeper import Watched, keeper
from channels_zmq.loops import Waiter, wake
from channels_zmq.mailboxes import Mailbox, Payload
from channels_zmq.readers import GRACE, Readers
from channels_zmq.requests import next_number
from channels_zmq.sequences import REPEATED, Numbers
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Status, Topic

logger = logging.getLogger("channels_zmq")

DRAIN_AT_ONCE = 256
"""Frames read in one go, before other callbacks of the event loop get their turn."""
SWEEP_EVERY = 1.0
UNUSED_FOR = 10.0
"""Seconds after its last layer is gone that a connection is closed."""


_group_name = lru_cache(maxsize=16_384)(wire.name)  # of groups that this process has subscribed to: none is long


class Connection(Joining):
    """One process at one address.

    Args:
        address: For messages to people.
        options: Bounds and times.
    """

    def __init__(self, address: str, options: Options) -> None:
        super().__init__(address, options)
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        """The layers that use this connection."""
        self.on_unused: Callable[[], None] = lambda: None
        """Called by the keeper once no layer has used the connection for a while."""
        self._readers = Readers(self.inbox, options.prefetch)
        self._draining = False
        self._sender = os.urandom(wire.SENDER_SIZE)
        self._own_prefix = wire.direct_prefix(self.inbox)
        self._numbers = Numbers()
        self._swept = self._used = time.monotonic()
        self._on_inbox: dict[int, Callable[[bytes], None]] = {
            wire.DIRECT: self._direct_arrived,
            wire.ASK.kind: self._asked,
            wire.CONFIRM.kind: self._confirmed,
            wire.WELCOME.kind: self._welcomed,
            wire.SYNCED.kind: self._synced,
            wire.HANDED.kind: self._handed,
            wire.JOB.kind: self._job_arrived,
            wire.REMOVED.kind: self._member_removed,
            wire.QUERY.kind: self._queried,
            wire.EMPTY.kind: self._emptied,
        }

    # The seam between the topologies; what begins with an underscore is called under the lock

    @abstractmethod
    def start(self) -> None:
        """Open what the topology needs."""

    @abstractmethod
    def finish(self) -> None:
        """Close the sockets; blocks for `linger` at most."""

    @abstractmethod
    def watched(self) -> Watched:
        """Return what the keeper is to watch."""

    @abstractmethod
    def _ordered(self, prefix: bytes, body: bytes, ttl: int) -> None:
        """Number a group or direct message and send it, or hold it; raises OutboxFull."""

    @abstractmethod
    def _read(self) -> bool:
        """Read up to `DRAIN_AT_ONCE` frames that have arrived; return whether more may be there."""

    def deliver_held(self) -> None:
        """Wait until what is held has gone, for `linger` at most. Only a dedicated connection holds anything."""

    def may_send(self) -> None:
        """Raise if this process cannot be a producer at its address. Most can."""

    def _welcomed(self, frame: bytes) -> None:
        """Take a welcome. The producer of an embedded layer welcomes itself and has no use for it."""

    # Sending; `ttl` is in milliseconds

    def group_send(self, topic: Topic, payload: bytes, ttl: int) -> None:
        """Send a message to a group. Never raises for want of room: what cannot go is counted."""
        with self._lock:
            try:
                self._ordered(topic, payload, ttl)
            except ChannelsZmqError:
                self.counters.drop("outbox")
            else:
                self.counters.sent += 1

    def send_direct(self, owner: bytes, channel: str, payload: bytes, ttl: int, capacity: int) -> bool:
        """Send a message to a process channel; return False if it is known to be full."""
        with self._lock:
            if owner == self.inbox:
                return self._send_to_own(channel, payload, ttl, capacity)
            self._ordered(wire.direct_prefix(owner), wire.direct_body(channel, payload), ttl)
            self.counters.sent += 1
            return True

    def _send_to_own(self, channel: str, payload: bytes, ttl: int, capacity: int) -> bool:
        """Send to a channel of this process: also by the forwarder, so that it keeps its place among other messages."""
        now = time.monotonic()
        box = self._mailboxes.boxes.get(channel)
        if box is not None and box.will_be_full(now):
            return False
        self._ordered(self._own_prefix, wire.direct_body(channel, payload), ttl)
        self.counters.sent += 1
        box = self._mailboxes.open(channel, capacity)
        box.under_way += 1
        box.under_way_until = now + ttl / 1000
        return True

    async def send_plain(self, channel: str, payload: bytes, ttl: int, capacity: int) -> bool:
        """Send a message to a plain channel and wait for the confirmation; return False if the queue is full.

        Raises:
            ForwarderUnavailable: No answer in time; whether the message went is unknown.
            RequestRefused: The forwarder has no room for another queue.
        """
        number = next_number()
        frame = wire.PLAIN.encode(wire.Plain(self.inbox, number, ttl, capacity, channel.encode(), payload))
        status = await self._ask(number, frame, f"send({channel!r})", repeat=False)
        if status == Status.REFUSED:
            raise RequestRefused(f"send({channel!r}): the forwarder at {self.address} has no room for another queue")
        self.counters.sent += status == Status.OK
        return status != Status.FULL

    # Receiving

    def take(self, channel: str) -> Payload | None:
        """Return the payload of the next message of a process channel if one is there, without waiting."""
        box = self._mailboxes.boxes.get(channel)
        if box is None or not box.mail or box.pinned:
            return None  # as far as can be seen without the lock; `receive` will look again
        with self._lock:
            return None if self.closed else box.take(time.monotonic())

    async def receive(self, channel: str, capacity: int, *, plain: bool) -> Payload:
        """Wait for the next message of a channel of this process, or of a plain channel.

        Raises:
            StopConsumer: The layer has been closed.
        """
        loop = asyncio.get_running_loop()
        waiter: Waiter | None = None
        while True:
            with self._lock:
                if waiter is not None:
                    self._loops.leave(loop)
                if self.closed:
                    raise StopConsumer
                box = self._mailboxes.open(channel, capacity)
                payload = box.take(time.monotonic()) if box.mail else None
                if payload is None:
                    waiter = Waiter(loop)
                    box.waiters.append(waiter)
                    self._loops.enter(loop, attach=True)
                if plain:
                    self._send_upstream(self._readers.touched(box))
                    self.call_soon(time.monotonic() + GRACE)
            if payload is not None:
                return payload
            assert waiter is not None, "there is one wherever there is no payload"
            try:
                await waiter.future
            except BaseException:
                self._stop_waiting(loop, box, waiter)
                raise

    def _stop_waiting(self, loop: asyncio.AbstractEventLoop, box: Mailbox[Waiter], waiter: Waiter) -> None:
        with self._lock:
            self._loops.leave(loop)
            successor = self._mailboxes.stop_waiting(box, waiter)
            if self._readers.gave_up(box.name):
                self.call_soon(time.monotonic() + GRACE)
            if successor is not None:
                wake([successor])

    def drain(self) -> None:  # noqa: D102
        with self._lock:
            if self.closed or self._draining:  # whoever reads already goes on until nothing is left
                return
            self._draining = True
            try:
                more = self._read()
            finally:
                self._draining = False
            if more and not self._loops.drain_soon():
                self.call_soon(0.0)

    def _queried(self, frame: bytes) -> None:
        self._send_upstream(self._readers.queried(wire.QUERY.decode(frame)))

    def feed(self, frame: bytes) -> None:
        """Take one frame that arrived, under the lock; a stranger's nonsense is counted and ignored."""
        try:
            if frame[0] == wire.GROUP:
                self._group_arrived(frame)
            else:
                self._on_inbox[frame[wire.SUB_KIND] if frame[0] == wire.INBOX else -1](frame)
        except (wire.FrameError, KeyError, IndexError):
            self.counters.drop("malformed")

    def _group_arrived(self, frame: bytes) -> None:
        name, key, number, flags, ttl, payload = wire.read_group(frame)
        missing = self._runs.see(key, number, flags)
        if missing == 0 or self._is_new(missing):
            self._deliver_group(_group_name(name), ttl, payload)

    def _deliver_group(self, group: str, ttl: int, payload: bytes) -> None:
        now = time.monotonic()
        if now >= self._mailboxes.next_end:
            self._end_memberships()
        waiters = self._mailboxes.deliver_group(group, now + ttl / 1000, payload)
        if waiters:
            wake(waiters)
        self.counters.received += 1
        if self._mailboxes.refused:
            self._count_refused()

    def _direct_arrived(self, frame: bytes) -> None:
        key, number, flags, ttl, start = wire.read_order(frame, wire.SUB_KIND + 1)
        channel, payload = wire.channel_and_payload(frame, start)
        missing = self._runs.see(key, number, flags)
        if missing and not self._is_new(missing):
            return
        box = self._mailboxes.boxes.get(channel)
        if box is not None and box.under_way and key.endswith(self._sender):
            box.under_way -= 1
        mail = time.monotonic() + ttl / 1000, payload, 0
        capacity = box.capacity if box is not None else self.defaults.capacity(channel)
        waiter = self._mailboxes.deliver(channel, mail, capacity)
        if waiter is not None:
            wake((waiter,))
        self.counters.received += 1
        if self._mailboxes.refused:
            self._count_refused()

    def _is_new(self, missing: int) -> bool:
        """Count what a number told: a frame that came before, or how many are missing before it."""
        if missing == REPEATED:
            self.counters.repeated += 1
            return False
        self.counters.drop("missed", missing)
        self._mailboxes.nothing_under_way()
        return True

    def _count_refused(self) -> None:
        self.counters.drop("full", self._mailboxes.refused)
        self._mailboxes.refused = 0

    # Plain channels

    def _job_arrived(self, frame: bytes) -> None:
        waiter, frames = self._readers.arrived(wire.JOB.decode(frame))
        self.counters.received += 1
        self._send_upstream(frames)
        if waiter is not None:
            wake([waiter])
        else:
            self.call_soon(time.monotonic() + GRACE)

    def _handed(self, frame: bytes) -> None:
        lost, frames = self._readers.told(wire.HANDED.decode(frame))
        self.counters.drop("jobs lost", lost)
        self._send_upstream(frames)

    def _begin_session(self) -> None:
        """Repeat to an exchange that has just welcomed us what it cannot know: questions, and readers that wait."""
        for request in self._requests.upstream():
            self._upstream(request.frame)
        self._send_upstream(self._readers.begin_session(self.session))

    # Emptying

    async def flush(self) -> None:
        """Empty everything for every client of the address.

        Raises:
            ForwarderUnavailable: Some client did not answer in time.
        """
        number = next_number()
        flush = wire.Flush(self.inbox, number, wire.milliseconds(self.options.connect_timeout))
        await self._ask(number, wire.FLUSH.encode(flush), "flush()", repeat=False)

    def _emptied(self, frame: bytes) -> None:
        empty = wire.EMPTY.decode(frame)
        for group in self._mailboxes.clear():
            self._abandon(group)
        self._outbox.clear()
        self._plain_members.clear()
        self._runs.clear()  # the exchange drops messages until all have answered: their gaps are no loss
        self._reply(wire.FLUSHED.encode(wire.Flushed(self.inbox, empty.n)))

    # The forwarder goes and comes

    def _tell(self, payload: bytes) -> None:
        """Put a message of our own into every mailbox of a consumer."""
        wake(self._mailboxes.deliver_all((time.monotonic() + self.options.expiry, payload, 0)))

    def _tell_disconnected(self) -> None:
        if self.defaults.disconnected is not None:
            self._tell(self.defaults.disconnected())

    def _tell_reconnected(self, missed: int | None) -> None:
        self.counters.reconnects += 1
        if self.defaults.reconnected is not None:
            self._tell(self.defaults.reconnected(missed))

    # The keeper's side, and the end

    def call_soon(self, when: float) -> None:  # noqa: D102
        keeper().call(self, when)

    def tick(self, now: float) -> float:
        """Do what is due, on the keeper's thread; return when to be called again at the latest."""
        with self._lock:
            if self.closed:
                return now + SWEEP_EVERY
            due, frames = self._readers.keep(now)
            self._send_upstream(frames)
            self._repeat_requests(now)
            if now - self._swept >= SWEEP_EVERY:
                self._swept = now
                self.counters.drop("expired", self._mailboxes.sweep())
                self._end_memberships()
            self._notice_disuse(now)
            return min(due, self._requests.due(now))

    def _notice_disuse(self, now: float) -> None:
        if len(self.users):
            self._used = now
        elif now - self._used > UNUSED_FOR:
            self._used = now
            self.on_unused()

    def stop(self) -> list[threading.Event]:
        """Begin to close: jobs go back, readers end. Return what to wait for before `finish`."""
        with self._lock:
            if self.closed:
                return []
            self._send_upstream(self._readers.hand_everything_back())
            self.closed = True
            for box in self._mailboxes.boxes.values():
                wake(box.waiters)
            return self._loops.release()

    def stats(self) -> Stats:
        """Return the counts so far and what is there now."""
        with self._lock:
            counters = self.counters
            return Stats(
                connected=self.connected,
                sent=counters.sent,
                received=counters.received,
                dropped=dict(counters.dropped),
                repeated=counters.repeated,
                reconnects=counters.reconnects,
                waiting=self._mailboxes.waiting(),
                held=len(self._outbox),
                channels=len(self._mailboxes.boxes),
                groups=len(self._mailboxes.groups),
            )
