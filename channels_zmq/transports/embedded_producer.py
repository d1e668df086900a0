"""The exchange inside a process: for one producer, without a separate forwarder.

In the data-flow diagram this is the forwarder's box inside process A. The producer binds the address and drives the
exchange under the connection's lock. Messages to local members are delivered in the same call, without a socket.

A producer that has just bound the address holds its messages to other processes for a moment, since its readers are
still reconnecting and would miss them.
"""

import logging
import os
import socket as sockets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from stat import S_ISSOCK
from typing import IO, Protocol

import zmq

from channels_zmq import reports
from channels_zmq.client.attachment import Attachment
from channels_zmq.client.batch import Batch
from channels_zmq.client.client import Client
from channels_zmq.client.counters import LinkStats
from channels_zmq.client.output import SessionFrame
from channels_zmq.errors import AddressInUse, ConfigurationError, OutboxFull
from channels_zmq.housekeeper import Watched
from channels_zmq.options import Options
from channels_zmq.transports.subscriber import FRAMES_A_TURN, SECONDS_A_TURN, SUBSCRIPTIONS, Socket
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.connections import Connections
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
from channels_zmq_forwarder.subscribers import Subscribers
from channels_zmq_forwarder.wire import Topic
from channels_zmq_forwarder.zap import Gate

TICK_EVERY = 1.0
SETTLE = 0.5
"""Seconds that a new producer holds messages for other processes: its readers dial every 0.1 to 0.2 s."""
SETTLE_FRAMES = 10_000
SETTLE_BYTES = 64 * 2**20
"""Bounds of what it holds meanwhile."""
LOSSES = frozenset(("expired", "lost_delivery", "malformed", "queue_bytes", "queue_full", "unroutable"))
"""Causes of the exchange's drops by which messages are lost."""


class Former(Protocol):
    """The reader that was promoted."""

    @property
    def attachment(self) -> Attachment:
        """The exchange, as the client knows it."""

    @property
    def was_lost(self) -> bool:
        """Whether consumers were notified that the former producer is lost."""

    def retire(self) -> None:
        """Read what has arrived and disconnect, but keep the socket until `close`."""

    def keep_retired(self) -> None:
        """Let ZeroMQ carry out the disconnection."""

    def close(self) -> None:
        """Close the socket."""

    def terminate(self) -> None:
        """Wait until what was sent is delivered."""


class EmbeddedProducer:
    """The process that sends at an embedded address; it drives the exchange. For the arguments see `embedded`.

    Args:
        address: See `embedded`.
        options: See `embedded`.
        client: See `embedded`.
        call_soon: See `embedded`.
        former: The reader that was promoted; None at an address of this process alone.
    """

    is_connected = True
    is_alone = False
    must_confirm = False

    def __init__(
        self,
        address: str,
        options: Options,
        client: Client,
        call_soon: Callable[[float], None],
        former: Former | None,
    ) -> None:
        self.address = address
        self.refusal = ""
        self._options, self._client, self._call_soon, self._former = options, client, call_soon, former
        self._attachment = former.attachment if former is not None else client.attach()
        self._own_topic = wire.inbox_topic(client.inbox)
        self._context: zmq.Context[Socket] = zmq.Context()
        self._xpub: Socket | None = None
        self._guard: IO[str] | None = None
        self._gate: Gate | None = None
        self._subscribers: Subscribers | None = None
        self._keys_have_changed = False
        self._published = 0  # bytes
        self._endpoint = ""
        """Where the socket is bound, as the system reports."""
        self._exchange = Exchange(os.urandom(8))
        self._settled_at = inf
        self._unsettled: deque[tuple[float, bytes]] = deque()
        self._unsettled_size = 0
        self._batch = Batch()

    def start(self) -> None:
        """Bind the address, unless it is of this process alone, and become the first client of the own exchange.

        Raises:
            AddressInUse: If the address cannot be bound.
            ConfigurationError: If a key is missing or invalid.
        """
        client, session = self._client, self._client.new_session()
        if self._former is not None:
            self._xpub = self._bind()
            self._send = plain_send(self._xpub)
            self._former.retire()
            self._settled_at = time.monotonic() + SETTLE
            self._call_soon(self._settled_at)
        self._exchange.enter(wire.State.SERVING)
        client.is_exchange = True
        self._attachment.credit.prefetch = 0  # a job is handed over in the same call
        self._drive(self._exchange.upstream(wire.subscription(self._own_topic)))
        for frame in client.normal_members.repeat():
            self._drive(self._exchange.upstream(frame))
        self._drive(self._exchange.upstream(wire.HELLO.encode(wire.Hello(client.inbox, wire.VERSION, session, 0))))
        self._drive(self._exchange.upstream(wire.BATCHING.encode(wire.Batching(client.inbox, session))))
        client.begin_session(self._attachment, session, self._exchange.instance)
        if self._former is not None and self._former.was_lost:
            client.outage_ended()

    def _bind(self) -> Socket:
        xpub = self._context.socket(zmq.XPUB)
        # Readers have no other way up, so their frames may be as large as any.
        max_frame = self._options.max_message_size + wire.MAX_OVERHEAD
        marks = Marks(max_frame=max_frame, max_upstream=max_frame, behind=self._options.subscriber_bytes)
        publish_options(xpub, marks)
        try:
            if self._options.keys is not None:
                self._gate = self._open_gate()
            connections = Connections(xpub) if self._gate is None else self._gate.guard(xpub)
            self._subscribers = Subscribers(xpub, connections, marks, self._gate, self._drop)
            self._guard = guard(self.address)
            self._endpoint = bind(xpub, _bindable(self.address))
        except ConfigurationError:
            xpub.close(linger=0)
            self._context.term()
            raise
        except AddressError as error:
            self._close_subscribers()
            xpub.close(linger=0)
            self._close_gate()
            self._release_guard()
            self._context.term()
            raise AddressInUse(self.address, str(error)) from error
        return xpub

    def _open_gate(self) -> Gate:
        if self._options.server_keys is None:
            raise ConfigurationError(
                "CONFIG['curve_server_secret_key']",
                "required in the process that sends; only curve_server_key is set",
            )
        warn = partial(self._client.counters.report, logging.WARNING)
        return Gate(self._context, *self._options.server_keys.read(reports.log), warn=warn)

    def _drop(self, cause: str) -> None:
        self._exchange.drops[cause] += 1

    def _count_drops(self) -> None:
        """Count the messages that the exchange has dropped as those of this process; other frames are no loss."""
        drops = self._exchange.drops
        for cause in LOSSES & drops.keys():
            self._client.counters.drop(cause, drops[cause])
        drops.clear()

    def _close_subscribers(self) -> None:
        if self._subscribers is not None:
            self._subscribers.connections.close()
            self._subscribers = None

    def _close_gate(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate = None

    def _release_guard(self) -> None:
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def producer(self) -> "EmbeddedProducer":
        """Return this transport."""
        return self

    promote = producer

    @property
    def is_bound(self) -> bool:
        """Whether the address is bound: other processes can reach it."""
        return self._xpub is not None

    @property
    def descriptor(self) -> int | None:
        """The descriptor that event loops watch for frames of the readers."""
        return number(self._xpub, zmq.FD) if self._xpub is not None else None

    @property
    def inputs(self) -> Collection[int]:
        """The descriptor of the only socket; none if the address is of this process alone."""
        return () if self._xpub is None else (number(self._xpub, zmq.FD),)

    @property
    def held(self) -> int:
        """How many messages wait for the end of the turn, or for readers that are reconnecting."""
        return len(self._batch.bodies) + len(self._unsettled)

    # Sending

    def publish_group(self, topic: Topic, payload: bytes, ttl: int) -> bool:
        """Deliver a message to the members here, and publish it if another process or a queue belongs to the group."""
        receiver, exchange, begins = self._client.receiver, self._exchange, False
        if self._settled_at < inf:
            receiver.deliver_group(topic, ttl, payload)
            self._hold(self._frame(topic, payload, ttl))
        elif exchange.relays_unchanged:
            receiver.deliver_group(topic, ttl, payload)
            if topic in exchange.topics:
                begins = self._publish(topic, payload, ttl)
        else:
            self.send_batch()
            frame = self._frame(topic, payload, ttl)
            frames = exchange.inbound(frame)
            if frames and frames[0] is frame:  # else it refused the message
                receiver.deliver_group(topic, ttl, payload)
            self._drive(frames)
        return begins

    def publish_direct(self, owner: bytes, channel: str, payload: bytes, ttl: int) -> bool:
        """Publish a message to a channel of another process."""
        prefix, body = wire.direct_prefix(owner), wire.direct_body(channel, payload)
        if self._settled_at >= inf:
            return self._publish(prefix, body, ttl)
        self._hold(self._frame(prefix, body, ttl))
        return False

    def _publish(self, prefix: bytes, body: bytes, ttl: int) -> bool:
        """Publish a message, or add it to a batch; return whether it is the first one of the batch."""
        batch = self._batch
        if batch.bodies:
            if batch.add(prefix, body, ttl):
                return False
            self.send_batch()
        batch.alone -= 1
        if batch.alone < 0 and self._exchange.relays_unchanged and batch.begin(prefix, body, ttl):
            return True
        self._drive(self._exchange.inbound(self._frame(prefix, body, ttl)))
        return False

    def send_batch(self) -> None:
        """Publish the messages that wait for the end of the turn."""
        batch = self._batch
        if batch.bodies:
            bodies = batch.take()
            number, flags = self._client.numbers.next(batch.prefix, len(bodies))
            flags |= wire.FLAG_BATCH
            frame = wire.ordered(batch.prefix, self._client.sender, number, flags, batch.ttl, wire.batch(bodies))
            self._drive(self._exchange.inbound(frame))

    def publish_own(self, channel: str, payload: bytes, ttl: int, capacity: int) -> bool:
        """Put a message into a mailbox of this process, which knows exactly whether it is full."""
        return self._client.receiver.deliver_own(channel, ttl, payload, capacity)

    def _frame(self, prefix: bytes, body: bytes, ttl: int) -> bytes:
        sequence, flags = self._client.numbers.next(prefix)
        return wire.ordered(prefix, self._client.sender, sequence, flags, ttl, body)

    def _drive(self, frames: Iterable[bytes]) -> None:
        """Deliver frames of the exchange here, publish them to subscribers, and let their own frames be read soon."""
        if self._bring(frames):
            self._client.out.input_found()

    def _bring(self, frames: Iterable[bytes]) -> bool:
        """Deliver frames of the exchange here, and publish them to subscribers; return whether input is there now."""
        inbox, xpub, sent = self._client.inbox, self._xpub, False
        for frame in frames:
            if wire.is_for(inbox, frame):
                self._client.feed(frame, self._attachment)
            elif xpub is not None:
                self._send(frame, zmq.DONTWAIT)
                self._published += len(frame)
                sent = True
        has_input = False
        while self._exchange.is_unfinished:
            has_input |= self._bring(self._exchange.go_on())
        if self._exchange.drops:
            self._count_drops()
        if sent and self._subscribers is not None and self._subscribers.is_due(self._published):
            self._call_soon(0.0)
        return has_input or (sent and xpub is not None and readable(xpub))

    # Holding, while readers reconnect

    def _hold(self, frame: bytes) -> None:
        if len(self._unsettled) >= SETTLE_FRAMES or self._unsettled_size + len(frame) > SETTLE_BYTES:
            raise OutboxFull(self.address, len(self._unsettled))
        self._unsettled.append((time.monotonic(), frame))
        self._unsettled_size += len(frame)

    def _must_wait(self, frame: bytes) -> bool:
        """Hold a request to a process that may be reconnecting, as it would count as gone; return whether it waits."""
        if self._settled_at >= inf or wire.sub_kind(frame) != wire.ASK.kind:
            return False
        with suppress(OutboxFull):  # the request is repeated
            self._hold(frame)
        return True

    def _settle(self) -> None:
        self._settled_at = inf
        while self._unsettled:
            published, frame = self._unsettled.popleft()
            waited = int((time.monotonic() - published) * 1000)
            self._drive(self._exchange.late(wire.aged(frame, waited), published))
        self._unsettled_size = 0

    def subscribed(self, topic: Topic) -> None:
        """Do nothing: local members are served before a message is held."""

    def mark_now(self) -> None:
        """Publish the messages that wait for the end of the turn: there is nothing to acknowledge."""
        self.send_batch()

    def withdraw(self, number: int) -> None:
        """Do nothing: a request that is held counts as sent."""

    def drop_held(self) -> None:
        """Drop all held messages."""
        self._batch.take()
        self._unsettled.clear()
        self._unsettled_size = 0

    # Frames of this process and of the readers

    def send_upstream(self, frame: bytes, to: Attachment | None = None) -> bool:
        """Give the own exchange a frame; members here need no subscription. Return whether input is there now."""
        if frame[:1] in SUBSCRIPTIONS and wire.is_group(wire.subscribed_topic(frame)):
            return False
        self.send_batch()
        has_input = self._bring(self._exchange.upstream(frame))
        self._call_soon(self._exchange.due())
        return has_input

    def send_downstream(
        self, frame: bytes, deadline: float, number: int, key: bytes = b"", *, must: bool = False
    ) -> bool:
        """Give the own exchange a request; return whether input is there now."""
        return self.send_to(self._attachment, frame)

    def send_to(self, to: Attachment, frame: bytes) -> bool:
        """Give the own exchange a request; return whether input is there now."""
        self.send_batch()
        if self._must_wait(frame):
            return False
        has_input = self._bring(self._exchange.inbound(frame))
        self._call_soon(self._exchange.due())
        return has_input

    def take_session(self, frames: Sequence[tuple[Attachment, SessionFrame]]) -> None:
        """Ignore the welcome of the own exchange."""

    def has_input(self) -> bool:
        """Return whether a reader's frame can be read. If so, the end of this step reads it; see `Subscriber`."""
        has_input = self._xpub is not None and readable(self._xpub)
        if has_input:
            self._client.out.input_found()
        return has_input

    def is_behind(self, now: float, since: float) -> bool:
        """Return whether a frame can be read: messages of this process itself are delivered at once."""
        return self.has_input()

    def read(self) -> bool:
        """Give the exchange frames of the readers, for one turn; return whether more may be there."""
        if self._subscribers is None:
            return False
        self.send_batch()
        recv = self._subscribers.recv
        upstream, until = self._exchange.upstream, time.monotonic() + SECONDS_A_TURN
        try:
            for _ in range(FRAMES_A_TURN):
                frame = recv(zmq.DONTWAIT)
                if frame is not None and not self._is_of_own_inbox(frame) and not self._must_wait(frame):
                    self._bring(upstream(frame))
                if time.monotonic() > until:
                    break
        except zmq.Again:
            return False
        finally:
            self._call_soon(self._exchange.due())
        return True

    def _is_of_own_inbox(self, frame: bytes) -> bool:
        """Return whether a peer subscribes to the inbox of this process, which is a client without a connection."""
        return frame[:1] in SUBSCRIPTIONS and wire.subscribed_topic(frame) == self._own_topic

    def watched(self) -> Watched:
        """Return the sockets that authenticate CURVE clients, and that report connections."""
        watched: dict[Socket, Callable[[], None]] = {}
        if self._gate is not None:
            watched[self._gate.socket] = self._gate.turn
        if self._subscribers is not None:
            watched[self._subscribers.connections.monitor] = self._subscribers.connections.turn
        return Watched({}, (), watched)

    def tick(self, now: float) -> float:
        """Let the exchange do what is due; return when to be called again."""
        if now >= self._settled_at:
            self._settle()
        if now >= self._exchange.due():
            self._drive(self._exchange.sweep())
        if self._former is not None:
            self._former.keep_retired()
        if self._subscribers is not None:
            if self._keys_have_changed:
                self._keys_have_changed = False
                self._subscribers.end_revoked()
            for peer, reason in self._subscribers.look(now, self._published):
                line = "ended the connection of the reader at %s: %s"
                self._client.counters.report(logging.WARNING, line, peer, reason)
        reads = now + TICK_EVERY if self._xpub is not None else inf
        return min(self._settled_at, self._exchange.due(), reads)

    def look_around(self) -> None:
        """Read the list of allowed keys again if it has changed."""
        if self._gate is not None and self._gate.allowed is not None and self._gate.allowed.refresh():
            self._keys_have_changed = True
            self._call_soon(0.0)

    # The end

    def close(self) -> None:
        """Close the sockets; what was published is still delivered within the linger time."""
        self.send_batch()
        if self._settled_at < inf:
            self._settle()
        if self._former is not None:
            self._former.close()
        self._close_subscribers()
        if self._xpub is not None:
            self._xpub.close(linger=round(self._options.linger * 1000))
            self._endpoint = ""
        self._close_gate()
        self._release_guard()

    def terminate(self) -> None:
        """Wait until what was published is delivered, at most the linger time."""
        if self._former is not None:
            self._former.terminate()
        self._context.term()

    def stats(self) -> list[LinkStats]:
        """Return nothing: there are no forwarders."""
        return []

    def abandon(self) -> None:
        """Release the lock file and the listening port, which the parent of a forked child still holds."""
        self._release_guard()
        if self._endpoint:
            _close_listener(self._endpoint)


def _close_listener(endpoint: str) -> None:
    """Close this process's copy of the descriptor that listens at an endpoint; ZeroMQ does not report which it is."""
    for descriptor in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the directory itself
            if S_ISSOCK(os.fstat(descriptor).st_mode) and _listens(descriptor, endpoint):
                os.close(descriptor)


def _listens(descriptor: int, endpoint: str) -> bool:
    with sockets.socket(fileno=os.dup(descriptor)) as copy:
        return bool(copy.getsockopt(sockets.SOL_SOCKET, sockets.SO_ACCEPTCONN)) and _endpoint(copy) == endpoint


def _endpoint(socket: sockets.socket) -> str:
    name = socket.getsockname()
    if not isinstance(name, tuple):
        return f"ipc://{name}"
    host, port = name[:2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _bindable(address: str) -> str:
    return address.replace("tcp://localhost:", "tcp://127.0.0.1:", 1)
