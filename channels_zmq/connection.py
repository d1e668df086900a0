"""One process at one address: one lock, the event loops, one client and one transport.

In the data-flow diagram this is everything between the layer and the sockets. It is the only place that locks and
waits.

Theory of operation. A *step* (`with self._step:`) holds the lock while the client decides and the transport sends.
Under the lock nothing waits, and no foreign code runs: no log handler, no serializer, no callback of the application.
The end of a step carries out its actions: it sends frames before it releases the lock; it wakes coroutines and writes
log lines afterwards. A step never begins inside another one. An operation on a socket may take in input that the
descriptor does not signal, so a step that has found input reads it before it returns.
"""

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from functools import partial
from itertools import islice
from math import inf
from types import TracebackType

from channels.exceptions import StopConsumer

from channels_zmq import reports
from channels_zmq.client.client import Client
from channels_zmq.client.counters import Stats
from channels_zmq.client.defaults import Defaults
from channels_zmq.client.mailboxes import Mailbox, Payload, Shared
from channels_zmq.client.memberships import Join
from channels_zmq.client.output import LinkChange, Reply
from channels_zmq.client.requests import LOST, Request, next_number
from channels_zmq.errors import (
    ConnectionClosed,
    ConnectionLost,
    FlushIncomplete,
    ForwarderUnavailable,
    OutboxFull,
    OwnerUnavailable,
    RequestRefused,
)
from channels_zmq.housekeeper import LOOK_EVERY, Watched, housekeeper
from channels_zmq.loops import Loops, Waiter, running_here, wake
from channels_zmq.options import Options
from channels_zmq.transports.transport import Producer, Transport
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.flushes import MAX_FLUSH
from channels_zmq_forwarder.wire import Status, Topic

NOTICE_EVERY = 1.0
"""Seconds after which the housekeeper notices that an event loop is blocked, or that no layer is left."""
UNUSED_FOR = 10.0
"""Seconds without a layer after which a connection is closed."""
BATCH_WITHIN = 0.01
"""Seconds that messages of a busy sender wait at most, if its event loop does not finish its turn."""
HELD_EVERY = 0.002
"""Seconds between two checks for unsent messages when the connection is closed."""
SLICE = 500
"""Mailboxes that one step of the housekeeper handles."""
TURNS_IN_A_ROW = 50
"""Turns of reading after which the housekeeper serves other connections."""
ASK_AGAIN_AFTER = 0.05
"""Seconds until a request that could not be carried out yet is sent again."""

Announcer = Callable[[LinkChange], bytes | None]
"""Makes the payload by which a layer informs its consumers of a change of the link; None for no announcement."""


class _Step:
    """The lock of a connection; its exit carries out the actions of the step."""

    __slots__ = ("_acquire", "_connection", "_counters", "_out", "_release")

    def __init__(self, connection: "Connection", lock: threading.Lock) -> None:
        self._connection = connection
        self._out, self._counters = connection.client.out, connection.client.counters
        self._acquire, self._release = lock.acquire, lock.release

    def __enter__(self) -> None:
        self._acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        out, counters = self._out, self._counters
        try:
            reads = out.busy and self._connection.perform()
            if not (out.wake or counters.reports or reads):
                return
            waiters, out.wake = out.wake, []
            lines, counters.reports = counters.reports, []
        finally:
            self._release()
        wake(waiters)
        if lines:
            reports.write(lines)
        if reads:
            self._connection.drain()


class Connection:
    """One process at one address.

    Args:
        options: Bounds and times.
        client: Interprets frames.
        open_transport: Makes the transport, from a function that arranges for `tick` at a time at the latest.
    """

    def __init__(
        self,
        options: Options,
        client: Client,
        open_transport: Callable[[Callable[[float], None]], Transport],
    ) -> None:
        self.client = client
        self.inbox = client.inbox
        self.closed = False
        self.ended = threading.Event()
        """Set once the sockets are closed."""
        self.announcer: Announcer = lambda change: None
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        """The layers that use this connection."""
        self.on_unused: Callable[[], None] = lambda: None
        """Called by the housekeeper once no layer has used the connection for a while."""
        self.has_input = False
        """Whether a step has found input that it has not read yet."""
        self.keyring = options.keyring
        """Seals and opens payloads; None if CONFIG has no encryption keys."""
        self._options = options
        self._lock = threading.Lock()
        self._step = _Step(self, self._lock)
        self._transport = open_transport(self.call_soon)
        self._loops = Loops(self._drain_on_loop, self._drain_by_housekeeper, self._lock)
        self._producer: Producer | None = None
        """The transport, once it can send messages; None again when it is closed."""
        self._batching_loop: asyncio.AbstractEventLoop | None = None  # that will call `_turn_is_over`
        self._changes: deque[LinkChange] = deque()
        self._left_over: deque[Callable[[], None]] = deque()  # by coroutines that the garbage collector has ended
        self._loop_turns = self._loop_turns_noticed = 0
        self._loop_is_blocked = False
        self._noticed_at, self._used_at = -NOTICE_EVERY, time.monotonic()

    @property
    def address(self) -> str:
        """The address of the other side, for messages to people."""
        return self._transport.address

    @property
    def is_bound(self) -> bool:
        """Whether this connection has an address that no successor can bind before it is closed."""
        return self._transport.is_bound

    def start(self) -> None:
        """Open the sockets and let the housekeeper serve them.

        Raises:
            ConfigurationError: If an address or a key is invalid.
        """
        with self._step:
            self._transport.start()
            self._producer = self._transport.producer()
            self._loops.watch(self._transport.descriptor)
        housekeeper().watch(self)

    def use(self, layer: object, defaults: Defaults, announcer: Announcer) -> None:
        """Note a layer that uses this connection. Its defaults replace the former, but the longest expiry applies."""
        with self._step:
            if self.users:  # no layer's messages may expire early because another one has a shorter expiry
                defaults = replace(defaults, max_ttl=max(defaults.max_ttl, self.client.defaults.max_ttl))
            self.users.add(layer)
            self.client.use(defaults)
            self.announcer = announcer

    # Steps

    def perform(self, *, after_turn: bool = False) -> bool:
        """Send the frames of the client, under the lock; return whether input is to be read once it is released.

        Args:
            after_turn: Whether a turn of reading is over, so that other work takes precedence; then return False.
        """
        out, transport = self.client.out, self._transport
        while out.busy:
            self.has_input |= out.has_input
            todo = out.take()
            if self.closed:
                continue
            if todo.emptied and self._producer is not None:
                self._producer.drop_held()
            for frame, to in todo.upstream:
                self.has_input |= transport.send_upstream(frame, to)
            if todo.session:
                transport.take_session(todo.session)
            for reply in todo.replies:
                self._send_reply(reply)
        if out.changes:
            self._changes.extend(out.changes)
            out.changes = []
            self.call_soon(0.0)
        if not self.has_input or self.closed:
            return False
        self.has_input = False
        if not after_turn:
            return True
        if not self._loops.drain_soon():
            self.call_soon(0.0)
        return False

    def _send_reply(self, reply: Reply) -> None:
        frame, key, to, ttl = reply
        try:
            if to is not None:
                self.has_input |= self._transport.send_to(to, frame)
            else:
                deadline = time.monotonic() + (self._options.connect_timeout if ttl is None else ttl)
                self.has_input |= self._transport.send_downstream(frame, deadline, 0, key, must=ttl is not None)
        except OutboxFull:
            pass  # of a request that is repeated: the first copy is still held, or the next one finds room

    def _check_open(self) -> None:
        if self.closed:
            raise ConnectionClosed(self._transport.address)

    def _promote(self) -> Producer:
        """Promote the transport to one that can send, under the lock.

        Raises:
            AddressInUse: If another process is the producer at an embedded address.
            ConnectionClosed: If the connection was closed meanwhile.
        """
        self._check_open()
        self._transport = self._producer = producer = self._transport.promote()
        self._loops.watch(producer.descriptor)
        self.call_soon(0.0)
        return producer

    # Sending; `ttl` is in milliseconds

    def group_send(self, topic: Topic, payload: bytes, ttl: int) -> None:
        """Send a message to a group. A message that does not fit into the outbox is dropped and counted.

        Raises:
            AddressInUse: If another process is the producer at an embedded address.
            ConnectionClosed: If the connection was closed meanwhile.
        """
        with self._step:
            producer = self._producer or self._promote()
            try:
                begins = producer.publish_group(topic, payload, ttl)
            except OutboxFull:
                self.client.counters.drop("outbox_full")
                return
            self.client.counters.sent += 1
        if begins:
            self._send_batch_soon()

    def send_direct(self, owner: bytes, channel: str, payload: bytes, ttl: int, capacity: int) -> bool | None:
        """Send a message to a process-specific channel.

        Returns:
            False if the channel is full as far as can be known here; None if `send_after_echo` has to find out.

        Raises:
            OutboxFull: If the forwarder is unreachable and no more messages are held.
            AddressInUse: If another process is the producer at an embedded address.
            ConnectionClosed: If the connection was closed meanwhile.
        """
        with self._step:
            producer = self._producer or self._promote()
            accepted: bool | None = True
            begins = False
            if owner == self.inbox:
                accepted = producer.publish_own(channel, payload, ttl, capacity)
            else:
                begins = producer.publish_direct(owner, channel, payload, ttl)
            if accepted:
                self.client.counters.sent += 1
        if begins:
            self._send_batch_soon()
        return accepted

    def _send_batch_soon(self) -> None:
        """Let a batch leave when this turn of the event loop is over, or after `BATCH_WITHIN` if it takes longer."""
        loop = running_here()
        if loop is None:
            self._turn_is_over()
            return
        if loop is not self._batching_loop:
            self._batching_loop = loop
            loop.call_soon(self._turn_is_over)
        self.call_soon(time.monotonic() + BATCH_WITHIN)

    def _turn_is_over(self) -> None:
        with self._step:
            self._batching_loop = None
            if self._producer is not None:
                self._producer.send_batch()

    async def send_after_echo(self, channel: str, payload: bytes, ttl: int, capacity: int) -> bool:
        """Send a message to a channel of this process that seems full because of messages in flight.

        Some of these may have been lost. The answer to an echo by the same way arrives behind all others.

        Returns:
            False if the channel is full.
        """
        order, number = self.client.receiver.own_order, next_number()
        echo = wire.ECHO.encode(wire.Echo(self.inbox, number))
        try:
            await self._ask(number, echo, f"send({channel!r})", repeats=False, key=wire.direct_prefix(self.inbox))
        except ForwarderUnavailable:
            return False
        with self._step:
            producer = self._producer or self._promote()
            box = self.client.mailboxes.boxes.get(channel)
            if box is not None:
                self.client.mailboxes.passed(box, order)
            accepted = bool(producer.publish_own(channel, payload, ttl, capacity))
            self.client.counters.sent += accepted
            return accepted

    async def send_normal(self, channel: str, payload: bytes, ttl: int, capacity: int) -> bool:
        """Send a message to a normal channel and wait for the confirmation; return False if the queue is full.

        Raises:
            ForwarderUnavailable: If no answer arrives in time, or the forwarder was lost before it answered; whether
                the message was delivered is unknown.
            RequestRefused: If the forwarder has no room for another queue, is short of memory, or is being
                flushed repeatedly.
        """
        what, name, expires = f"send({channel!r})", channel.encode(), time.monotonic() + ttl / 1000

        def ask() -> Awaitable[int]:
            number, left = next_number(), wire.milliseconds(expires - time.monotonic())
            frame = wire.ENQUEUE.encode(wire.Enqueue(self.inbox, number, left, capacity, name, payload))
            return self._ask(number, frame, what, repeats=False, produces=True, key=name, expires=expires)

        status = await self._ask_while(Status.FLUSHING, ask)
        if status == Status.FLUSHING:
            raise RequestRefused(f"{what}: the layer at {self.address} is being flushed repeatedly")
        if status == Status.REFUSED:
            raise RequestRefused(
                f"{what}: the forwarder at {self.address} has no room for another queue (--queue-names of a forwarder)"
            )
        if status == Status.MEMORY:
            raise RequestRefused(
                f"{what}: the forwarder at {self.address} is short of memory (--memory-limit of a forwarder)"
            )
        self.client.counters.sent += status == Status.OK
        return status != Status.FULL

    def drop_unroutable(self) -> None:
        """Count a message to a channel that no process reads."""
        with self._step:
            self.client.counters.drop("unroutable")

    # Receiving

    def take(self, channel: str) -> Payload | None:
        """Return the payload of the next message of a process-specific channel if one is there, without waiting."""
        box = self.client.mailboxes.boxes.get(channel)
        if box is None or not box.mail or box.windows:
            return None  # as far as can be seen without the lock; `receive` checks again
        with self._lock:
            return None if self.closed else self.client.mailboxes.take(box)

    async def receive(self, channel: str, capacity: int, *, normal: bool) -> Payload:
        """Wait for the next message of a channel of this process, or of a normal channel.

        Raises:
            StopConsumer: If the layer has been closed.
        """
        loop = asyncio.get_running_loop()
        waiter: Waiter | None = None
        step = self._step if normal else self._lock  # nothing is left to be done for a process-specific channel
        mailboxes = self.client.mailboxes
        while True:
            with step:
                if waiter is not None:
                    self._loops.leave(loop)
                if self.closed:
                    raise StopConsumer
                self._loop_is_blocked = False  # it runs this coroutine
                box = mailboxes.open(channel, capacity)
                payload = mailboxes.take(box)
                if payload is None:
                    waiter = Waiter(loop)
                    box.waiters.append(waiter)
                    if self._loops.enter(loop, takes_over=True):
                        self._look_at_loop()
                if normal:
                    self.client.read_normal(box)
                    self.call_soon(self.client.due)
            if payload is not None:
                return payload
            assert waiter is not None, "there is one unless there is a payload"
            try:
                await waiter.future
            except BaseException as error:
                self._clean_up(partial(self._stop_waiting, loop, box, waiter), error)
                raise

    def _look_at_loop(self) -> None:
        """Let the housekeeper check whether the loop that has just become the attached one still runs."""
        self.call_soon(time.monotonic() + LOOK_EVERY)

    def _stop_waiting(self, loop: asyncio.AbstractEventLoop, box: Mailbox[Waiter], waiter: Waiter) -> None:
        self._loops.leave(loop)
        self.client.stop_waiting(box, waiter)
        self.call_soon(self.client.due)

    def _clean_up(self, action: Callable[[], None], error: BaseException | None = None) -> None:
        """Clean up after a coroutine that ends, as a step.

        The garbage collector ends a coroutine whose loop was closed. It runs in any thread, even one that holds the
        lock, and so must not wait for the lock: `tick` cleans up then.
        """
        if isinstance(error, GeneratorExit):
            self._left_over.append(action)
        else:
            with self._step:
                action()

    def drain(self) -> bool:
        """Read what has arrived, for one turn; return whether more may be there."""
        with self._step:
            if self.closed:
                return False
            self.has_input = more = self._transport.read()
            if more or self.client.out.busy:
                self.perform(after_turn=True)
            if self.client.may_be_due:  # a job that no reader waits for, or a message behind a gap, may have arrived
                self.call_soon(self.client.due)
            return more

    def _drain_on_loop(self) -> None:
        self._loop_turns += 1
        self._loop_is_blocked = False
        self.drain()

    def _drain_by_housekeeper(self) -> None:
        if self._transport.inputs:
            self.call_soon(0.0)

    def _unattended_inputs(self) -> Collection[int]:
        """Return the descriptors of input that no event loop reads, under the lock."""
        is_unattended = self._loops.unattended() or self._loop_is_blocked
        return self._transport.inputs if is_unattended and not self.closed else ()

    # Groups

    async def join(self, topic: Topic, group: str, channel: str, capacity: int, life: float | None) -> None:
        """Add a channel of this process to a group. Once this returns, it receives every message published afterwards.

        Raises:
            ForwarderUnavailable: If no answer arrives in time; a membership that was there before stays.
        """
        client = self.client
        with self._step:
            self._check_open()
            if self._producer is not None:
                self._producer.send_batch()  # what was sent before is not for this member
            is_first = topic not in client.memberships.groups
            join = client.join(topic, channel, capacity, life)
            if is_first and self._producer is not None:
                self._producer.subscribed(topic)
            must_wait = join.group.in_force_after or not self._transport.is_connected
            if not (must_wait and self._transport.must_confirm):
                client.memberships.completed(join)
                return
        await self._wait_for_join(join, group)

    async def _wait_for_join(self, join: Join, group: str) -> None:
        number = next_number()
        sync = wire.SYNC.encode(wire.Sync(self.inbox, number))
        try:
            await self._ask(number, sync, f"group_add({group!r})", to_all=True)
        except BaseException as error:
            self._clean_up(partial(self.client.join_failed, join), error)
            raise
        with self._step:
            if self._transport.is_alone:
                self.client.memberships.completed(join)
            else:
                self.client.join_synced(join, number)

    def leave(self, topic: Topic, channel: str) -> None:
        """Remove a channel of this process from a group."""
        with self._step:
            self.client.leave(topic, channel)

    async def add_normal(self, group: str, channel: str, capacity: int, life: float | None) -> None:
        """Add a normal channel to a group, at the exchange.

        Raises:
            ForwarderUnavailable: If no answer arrives in time.
            RequestRefused: If the forwarder has no room for more members.
        """
        lifetime = 0 if life is None else max(1, round(life * 1000))
        member = wire.Member(self.inbox, next_number(), 1, 0, lifetime, capacity, group.encode(), channel.encode())
        if self._transport.is_alone:
            with self._step:
                self.client.normal_members.changed(member)
            return
        what = f"group_add({group!r}, {channel!r})"
        status = await self._ask(member.n, wire.MEMBER.encode(member), what, to_all=True, member=member)
        if status != Status.OK:
            raise RequestRefused(
                f"{what}: {self.address} has no room for more normal channels in groups (--queue-names of a forwarder)"
            )

    async def discard_normal(self, group: str, channel: str) -> None:
        """Remove a normal channel from a group, at the exchange.

        Raises:
            ForwarderUnavailable: If no answer arrives in time.
        """
        member = wire.Member(self.inbox, next_number(), 0, 0, 0, 0, group.encode(), channel.encode())
        with self._step:
            self.client.normal_members.changed(member)
        if not self._transport.is_alone:
            what = f"group_discard({group!r}, {channel!r})"
            await self._ask(member.n, wire.MEMBER.encode(member), what, to_all=True)

    async def change_foreign(self, owner: bytes, group: str, channel: str, *, add: bool) -> None:
        """Ask another process to add its channel to a group or to remove it.

        If that process lost its connection a moment ago, this waits for its return. It is not an error if it has ended.

        Raises:
            ForwarderUnavailable: If no answer arrives in time.
            OwnerUnavailable: If the other process does not reconnect in time.
        """
        what = f"group_{'add' if add else 'discard'}({group!r}, {channel!r})"

        def ask() -> Awaitable[int]:
            number = next_number()
            frame = wire.ASK.encode(wire.Ask(owner, number, add, self.inbox, group.encode(), channel.encode()))
            return self._ask(number, frame, what, key=wire.direct_prefix(owner), must=True)

        if await self._ask_while(Status.AWAY, ask) == Status.AWAY:
            raise OwnerUnavailable(self.address, self._options.connect_timeout, what)

    async def flush(self) -> None:
        """Drop all messages and groups, of every client of the address.

        Raises:
            FlushIncomplete: If some client did not answer in time.
            ForwarderUnavailable: If the forwarder did not answer in time.
            RequestRefused: If the forwarder does not permit it, or too many flushes are under way.
        """
        if not self._transport.is_alone:
            await self._flush_everybody()
        if self._transport.is_alone:  # which may have become known just now
            with self._step:
                self.client.empty()

    async def _flush_everybody(self) -> None:
        number = next_number()
        flush = wire.Flush(self.inbox, number, wire.milliseconds(self._options.connect_timeout))
        status = await self._ask(number, wire.FLUSH.encode(flush), "flush()", repeats=False, to_all=True)
        if status == Status.REFUSED:
            raise RequestRefused(
                f"flush(): {self.address} does not allow it (--no-flush), or too many flushes are in progress"
            )
        if status == Status.GONE:
            raise FlushIncomplete(self.address, min(MAX_FLUSH, self._options.connect_timeout))

    # Waiting for an answer

    async def _ask_while(self, status: Status, ask: Callable[[], Awaitable[int]]) -> int:
        """Ask again while the answer is this status, for `connect_timeout` at most; return the last answer."""
        until = time.monotonic() + self._options.connect_timeout
        while True:
            answer = await ask()
            if answer != status or time.monotonic() > until:
                return answer
            await asyncio.sleep(ASK_AGAIN_AFTER)

    async def _ask(
        self,
        number: int,
        frame: bytes,
        what: str,
        *,
        to_all: bool = False,
        repeats: bool = True,
        produces: bool = False,
        must: bool = False,
        key: bytes = b"",
        member: wire.Member | None = None,
        expires: float = inf,
    ) -> int:
        """Send a request and wait for the status that answers it.

        Args:
            number: Of the request.
            frame: The request.
            what: The call, for messages to people.
            to_all: Whether it is sent to every exchange, by the subscribers' way, and each has to answer it.
            repeats: Whether it may be sent again until it is answered.
            produces: Whether only the producer of an embedded layer may send it.
            must: Whether a request to one is held even if the outbox is full: it carries no message.
            key: Chooses the exchange of a request to one.
            member: The normal channel that it adds to a group.
            expires: When the message that it carries expires.

        Raises:
            ForwarderUnavailable: If no answer arrives within `connect_timeout`.
            ConnectionLost: If the connection was lost before the answer, and the request may not be sent again.
        """
        loop = asyncio.get_running_loop()
        waiter, timeout = Waiter(loop), self._options.connect_timeout
        request: Request[Waiter] = Request(frame, repeats, to_all, waiter, key, member)
        end = partial(self._end_request, number, loop)
        try:
            with self._step:
                self._check_open()
                if self._loops.enter(loop, takes_over=False):
                    self._look_at_loop()
                now = time.monotonic()
                self.client.begin_request(number, request)
                if produces and self._producer is None:
                    self._promote()
                if to_all:
                    found = self._transport.send_upstream(frame)
                else:
                    found = self._transport.send_downstream(frame, min(now + timeout, expires), number, key, must=must)
                if found:
                    self.client.out.input_found()
            if request.answer is None:
                await waiter.wait(timeout)
            answer = request.answer
            if answer is None:
                answer = self._late_answer(request)
            if answer is None:
                raise ForwarderUnavailable(self.address, timeout, what, self._transport.refusal)
            if isinstance(answer, Exception):
                raise answer
            if answer == LOST:
                raise ConnectionLost(self.address, what)
        except BaseException as error:
            self._clean_up(end, error)
            raise
        self._clean_up(end)
        return answer

    def _end_request(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.client.requests.end(number)
        if self._producer is not None:
            self._producer.withdraw(number)
        self._loops.leave(loop)

    def _late_answer(self, request: Request[Waiter]) -> int | Exception | None:
        """Read all input: an answer that has arrived counts, even if this loop was too busy to read it in time."""
        for _ in range(TURNS_IN_A_ROW):
            if not self.drain() or request.answer is not None:
                break
        return request.answer

    # The housekeeper's side

    def call_soon(self, when: float) -> None:
        """Let the housekeeper call `tick` at a time at the latest."""
        housekeeper().call(self, when)

    def watched(self) -> Watched:
        """Return the sockets that the housekeeper is to watch: the transport's, and input that no event loop reads."""
        with self._step:
            watched = self._transport.watched()
            return Watched(
                {monitor: partial(self._event, handle) for monitor, handle in watched.monitors.items()},
                self._unattended_inputs(),
                {socket: partial(self._turn, turn) for socket, turn in watched.sockets.items()},
                self._loops.reading,
            )

    def _turn(self, turn: Callable[[], None]) -> None:
        with self._step:
            if not self.closed:
                turn()

    def _event(self, handle: Callable[[int], None], event: int) -> None:
        with self._step:
            if not self.closed:
                handle(event)

    def read_unattended(self) -> None:
        """Read the input that no event loop reads, in turns that release the lock."""
        for _ in range(TURNS_IN_A_ROW):
            if not self.drain():
                return
        self.call_soon(0.0)

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again at the latest."""
        while self._changes:  # before held messages are sent
            self._announce(self._changes.popleft())
        with self._step:
            if self.closed:
                return inf
            if self._changes:
                return now  # a change that was added just now: it is announced before held messages are sent
            if self._producer is not None:
                self._producer.send_batch()
            while self._left_over:
                self._left_over.popleft()()
            due = self.client.keep(now, SLICE, self._transport.is_behind)
            if self._transport.is_connected:
                self._repeat_requests(now)
            due = min(due, now + NOTICE_EVERY, self._transport.tick(now), self.client.requests.due(now))
            checks_are_due = now >= self._noticed_at + NOTICE_EVERY
            if checks_are_due:
                self._noticed_at = now
                self._notice_blocked_loop()
            reads = self._unattended_inputs()
        if reads:
            self.read_unattended()
        if checks_are_due:
            self._transport.look_around()
            self._refresh_keyring()
            self._notice_disuse(now)
        return due

    def _repeat_requests(self, now: float) -> None:
        out = self.client.out
        for _, request in self.client.requests.to_repeat(now):
            if request.to_all:
                for attachment in self.client.attachments:
                    if attachment in request.asked:
                        out.send_upstream([request.frame], attachment)
            else:
                out.reply(Reply(request.frame, request.key))

    def _notice_blocked_loop(self) -> None:
        stands_still, self._loop_turns_noticed = self._loop_turns == self._loop_turns_noticed, self._loop_turns
        if stands_still and self._transport.has_input():
            self._loop_is_blocked = True

    def _refresh_keyring(self) -> None:
        line = self.keyring.refresh() if self.keyring is not None else None
        if line is not None:
            reports.log(line[0], "%s", line[1])

    def _notice_disuse(self, now: float) -> None:
        if len(self.users):
            self._used_at = now
        elif now > self._used_at + UNUSED_FOR:
            self._used_at = now
            self.on_unused()

    def _announce(self, change: LinkChange) -> None:
        """Put a message of the layer itself into the mailboxes of all consumers."""
        payload = self.announcer(change)  # foreign code: without the lock
        if payload is None:
            return
        # A shared payload was never sealed, also in the mailbox of a normal channel, whose others are.
        mail = (time.monotonic() + self._options.expiry, Shared(payload), None)
        boxes = iter(list(self.client.mailboxes.boxes.values()))
        while some := list(islice(boxes, SLICE)):
            with self._step:
                self.client.mailboxes.announce(some, mail, self.client.out.wake)

    # The end

    @property
    def undelivered(self) -> int:
        """How many messages are held, or were handed back and may not have arrived."""
        held = self._producer.held if self._producer is not None else 0
        return held + sum(one.credit.unproved for one in list(self.client.attachments))

    def begin_delivery(self) -> None:
        """Hand unread jobs back, and request the acknowledgement of everything that was sent."""
        with self._step:
            self._stop_reading()
            if self._producer is not None and self._producer.held:
                self._producer.mark_now()

    def deliver_held(self) -> None:
        """Hand unread jobs back, and wait until everything has been sent and has arrived, at most `linger`."""
        until = time.monotonic() + self._options.linger
        self.begin_delivery()
        while self.undelivered and time.monotonic() < until:
            self.call_soon(0.0)
            time.sleep(HELD_EVERY)

    def stop(self) -> bool:
        """Begin to close: hand unread jobs back, end readers and callers. Return False if that was done before."""
        with self._step:
            if self.closed:
                return False
            self._stop_reading()
            self.perform()
            self.closed = True
            self._producer = None
            self.client.fail_requests(ConnectionClosed(self._transport.address, may_be_sent=True))
            for box in self.client.mailboxes.boxes.values():
                self.client.out.wake += box.waiters
            self._loops.release()
            return True

    def _stop_reading(self) -> None:
        for attachment in self.client.attachments:
            self.client.stop_reading(attachment)

    def finish(self) -> None:
        """Close the sockets; blocks for `linger` at most."""
        housekeeper().forget(self)
        with self._lock:
            self._loops.forget_closed()
            self._transport.close()
        self._transport.terminate()

    def abandon(self) -> None:
        """Close the parent's connection in a forked child, whose threads and sockets do not exist here."""
        self.closed = True
        self._producer = None
        self._lock = threading.Lock()  # the parent's may be held for ever
        self._step = _Step(self, self._lock)
        self._transport.abandon()

    def stats(self) -> Stats:
        """Return the counts so far and the present state."""
        counters, producer = self.client.counters, self._producer
        return Stats(
            connected=self._transport.is_connected,
            sent=counters.sent,
            received=counters.received,
            dropped=dict(counters.dropped),
            repeated=counters.repeated,
            sent_again=counters.sent_again,
            reconnects=counters.reconnects,
            waiting=self.client.mailboxes.waiting,
            held=producer.held if producer is not None else 0,
            channels=len(self.client.mailboxes.boxes),
            groups=len(self.client.memberships.groups),
            members=self.client.memberships.count,
            links=self._transport.stats(),
        )
