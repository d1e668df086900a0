"""The exchange run inside a process: for one producer, with no other process to start.

In the data-flow diagram this is the forwarder's box drawn inside process A. A process begins as a *reader*, connected
to the address, unless the address is of this process only; its first send makes it the *producer*, which binds the
address and drives the exchange under the connection's lock. Local members are served in the same call, without a
socket.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import IO

import zmq

from channels_zmq.asking import Options
from channels_zmq.connection import DRAIN_AT_ONCE, Connection
from channels_zmq.errors import AddressInUse, ConfigurationError, WireVersionMismatch
from channels_zmq.keeper import Watched, keeper
from channels_zmq.loops import wake
from channels_zmq.subscriber import Socket, Subscriber
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.sockets import (
    AddressError,
    Marks,
    bind,
    guard,
    number,
    plain_send,
    publish_options,
    readable,
)
from channels_zmq_forwarder.wire import Topic
from channels_zmq_forwarder.zap import Gate

logger = logging.getLogger("channels_zmq")

LOCAL = "inproc://"


class EmbeddedConnection(Connection):
    """One process at one embedded address, reader or producer.

    Args:
        address: The `pub_socket_address`; `inproc://` serves this process alone and needs no socket.
        options: Bounds and times.
    """

    def __init__(self, address: str, options: Options) -> None:
        super().__init__(address, options)
        self._is_local = address.startswith(LOCAL)
        self._context: zmq.Context[Socket] = zmq.Context()
        self._subscriber: Subscriber | None = None
        self._exchange: Exchange | None = None
        self._xpub: Socket | None = None
        self._send: Callable[[bytes, int], object] | None = None
        self._guard: IO[str] | None = None
        self._gate: Gate | None = None
        self._was_up = False
        self._exchange_swept = 0.0

    # Opening and closing

    def start(self) -> None:
        """Begin as a reader; at an address of this process alone as the producer, since nobody else can be it."""
        if self._is_local:
            self._become_producer()
        else:
            if self.options.keys is not None:
                self._keys = self.options.keys.wait_and_read(self.options.connect_timeout)
            self._subscriber = Subscriber(self._context, _reachable(self.address), self.options, self, self._keys)
            self._subscriber.send(b"\1" + wire.inbox_topic(self.inbox))
            self._loops.watch(self._subscriber.descriptor)
        keeper().watch(self)

    def may_send(self) -> None:
        """Become the producer if this process is not.

        Raises:
            AddressInUse: The address cannot be bound.
        """
        if self._exchange is None:
            with self._lock:
                if self._exchange is None:  # another thread may have been first
                    self._become_producer()

    def _become_producer(self) -> None:
        xpub = None if self._is_local else self._bind()
        if self._subscriber is not None:
            self._subscriber.leave()  # it is closed at the end, for an event loop may still watch it
            self._loops.release()
        self._xpub = xpub
        self._send = plain_send(xpub) if xpub is not None else None
        self._exchange = Exchange(os.urandom(8))
        self._exchange.enter(wire.State.SERVING)
        self._readers.prefetch = 0  # a job is handed over in the same call
        self.session += 1
        self._upstream(b"\1" + wire.inbox_topic(self.inbox))
        self._upstream(wire.HELLO.encode(wire.Hello(self.inbox, wire.VERSION, self.session, 0)))
        self._begin_session()
        self._add_plain_members_again()
        self._loops.watch(number(xpub, zmq.FD) if xpub is not None else None)
        self.call_soon(0.0)

    def _bind(self) -> Socket:
        xpub = self._context.socket(zmq.XPUB)
        publish_options(xpub, Marks())
        xpub.set(zmq.MAXMSGSIZE, self.options.max_message_size + wire.MAX_OVERHEAD)
        try:
            if self.options.keys is not None:
                self._gate = self._open_gate()
                self._gate.guard(xpub)
            self._guard = guard(self.address)
            bind(xpub, _bindable(self.address))
        except ConfigurationError:
            xpub.close(linger=0)
            raise
        except AddressError as error:
            xpub.close(linger=0)
            self._close_gate()
            self.let_guard_go()
            raise AddressInUse(self.address, str(error)) from error
        return xpub

    def _open_gate(self) -> Gate:
        if self.options.server_keys is None:
            raise ConfigurationError(
                "CONFIG['curve_server_secret_key']",
                "the process that sends needs it; this one has only curve_server_key",
            )
        return Gate(self._context, *self.options.server_keys.read())

    def _close_gate(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate = None

    def watched(self) -> Watched:
        """Return what the keeper is to watch: a reader's monitor, and the descriptor while no loop attends to it."""
        with self._lock:
            reader = self._subscriber if self._exchange is None else None
            monitors = {reader.monitor: self._subscriber_event} if reader is not None else {}
            gate = dict.fromkeys(self._gate.sockets, self._gate.turn) if self._gate is not None else {}
            return Watched(monitors, self._loops.descriptor if self._loops.unattended() else None, gate)

    def finish(self) -> None:
        """Close the sockets; blocks for `linger` at most."""
        keeper().forget(self)
        with self._lock:
            if self._subscriber is not None:
                self._subscriber.close()
            if self._xpub is not None:
                self._xpub.close(linger=round(self.options.linger * 1000))
            self._close_gate()
            self.let_guard_go()
        self._context.term()

    def let_guard_go(self) -> None:
        """Close this process's handle on the lock file; after a fork the parent still holds it."""
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    @property
    def connected(self) -> bool:
        """Whether this process is the producer, or one has welcomed it."""
        return self._exchange is not None or (self._subscriber is not None and self._subscriber.welcome is not None)

    def _must_confirm(self) -> bool:
        """Return True for a reader that is connected; a reader whose producer has not started yet just waits for it."""
        return self._exchange is None and self.connected

    async def add_plain(self, group: str, channel: str, capacity: int, life: float | None) -> None:
        """Add a plain channel to a group; a reader whose producer has not started yet tells it once it does."""
        with self._lock:
            if not self.connected:
                self._remember_plain_member(self._plain_member(group, channel, capacity, life))
                return
        await super().add_plain(group, channel, capacity, life)

    # Sending: the producer's side

    def group_send(self, topic: Topic, payload: bytes, ttl: int) -> None:
        """Send a message to a group, to local members in this very call."""
        with self._lock:
            exchange = self._exchange
            assert exchange is not None, "may_send comes first"
            if exchange.relays_unchanged and topic not in exchange.topics:
                self.counters.sent += 1
                self._deliver_group(topic[1:-1].decode(), ttl, payload)
            else:
                super().group_send(topic, payload, ttl)

    def _send_to_own(self, channel: str, payload: bytes, ttl: int, capacity: int) -> bool:
        """Put a message into a mailbox of this process, which knows exactly whether it is full."""
        now = time.monotonic()
        box = self._mailboxes.open(channel, capacity)
        if box.is_full(now):
            return False
        self.counters.sent += 1
        waiter = self._mailboxes.deliver(channel, (now + ttl / 1000, payload, 0), capacity)
        if waiter is not None:
            wake((waiter,))
        self.counters.received += 1  # there was room
        return True

    def _ordered(self, prefix: bytes, body: bytes, ttl: int) -> None:
        sequence, flags = self._numbers.next(prefix)
        frame = wire.ordered(prefix, self._sender, sequence, flags, ttl, body)
        assert self._exchange is not None, "may_send comes first"
        self._publish(self._exchange.inbound(frame))

    def _publish(self, frames: Sequence[bytes]) -> None:
        """Bring frames of the exchange to this process and to the subscribers."""
        own = self.inbox
        for frame in frames:
            if frame[1 : 1 + wire.INBOX_SIZE] == own and frame[:1] == b"P":
                self.feed(frame)
                continue
            if frame[:1] == b"G" and wire.name(frame[1 : wire.topic_end(frame)]) in self._mailboxes.groups:
                self.feed(frame)
            if self._send is not None:
                self._send(frame, zmq.DONTWAIT)
        if self._xpub is not None and frames and readable(self._xpub):
            self.drain()

    # The seam

    def _upstream(self, frame: bytes) -> None:
        if self._exchange is not None:
            self._publish(self._exchange.upstream(frame))
        elif self._subscriber is not None and self._subscriber.send(frame):
            self.drain()

    def _downstream(self, frame: bytes, deadline: float, number: int) -> None:
        if self._exchange is not None:
            self._publish(self._exchange.inbound(frame))
        else:
            self._upstream(frame)

    def _subscribe(self, topic: Topic) -> None:
        if self._exchange is None:
            self._upstream(b"\1" + topic)

    def _unsubscribe(self, topic: Topic) -> None:
        if self._exchange is None:
            self._upstream(b"\0" + topic)

    def _read(self) -> bool:
        if self._exchange is None:
            return self._subscriber is not None and self._subscriber.read()
        if self._xpub is None:
            return False
        recv, upstream = self._xpub.recv, self._exchange.upstream
        try:
            for _ in range(DRAIN_AT_ONCE):
                frames = upstream(recv(zmq.DONTWAIT))
                if frames:
                    self._publish(frames)
        except zmq.Again:
            return False
        return True

    # A reader's session

    def _subscriber_event(self, event: int) -> None:
        with self._lock:
            if self._exchange is None and self._subscriber is not None:
                self._subscriber.event(event)

    def subscriber_went_down(self) -> None:
        """Tell consumers that the producer is away."""
        if self._was_up:
            self._was_up = False
            logger.warning("the producer at %s is away", self.address)
            self._tell_disconnected()

    def other_version(self, theirs: int) -> None:
        """Say that the producer cannot be understood."""
        self._requests.fail(WireVersionMismatch(self.address, theirs, wire.VERSION))

    def _welcomed(self, frame: bytes) -> None:
        if self._exchange is None and self._subscriber is not None and self._subscriber.welcomed(frame):
            again = self.session > 1
            self._was_up = True
            self._refusal = ""
            self._begin_session()
            self._add_plain_members_again()
            if again:
                self._tell_reconnected(None)

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again."""
        with self._lock:
            due = super().tick(now)
            if self._exchange is None:
                self.drain()
                assert self._subscriber is not None
                if not self.connected and (keys := self._keys_to_try()) is not None:
                    self._subscriber.connect_with(keys)
                return min(due, self._subscriber.tick(now), now + 1.0)
            if now >= self._exchange_swept + 1.0:
                self._exchange_swept = now
                self._publish(self._exchange.sweep())
                if self._gate is not None and self._gate.allowed is not None:
                    self._gate.allowed.refresh()
            if self._xpub is not None:
                self.drain()
            busy = self._xpub is not None or self._exchange.queues or self._mailboxes.boxes
            return min(due, now + (1.0 if busy else 60.0))


def _bindable(address: str) -> str:
    return address.replace("tcp://localhost:", "tcp://127.0.0.1:", 1)


def _reachable(address: str) -> str:
    """Return where to reach what binds all interfaces."""
    for everywhere in ("tcp://*:", "tcp://0.0.0.0:"):
        if address.startswith(everywhere):
            return "tcp://127.0.0.1:" + address.removeprefix(everywhere)
    return address
