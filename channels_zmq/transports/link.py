"""One forwarder as a client sees it: PUSH for messages, XSUB for what arrives and for requests, and a state.

In the data-flow diagram these are the arrows into and out of the forwarder. The rules, step by step:
docs/wire-protocol.md, "Connecting" and "Sending".

Theory of operation. Two connections lead to a forwarder, and they may fail, or reach different instances,
independently. The subscriber's side leads: each of its connections begins a session with a hello. When it was
welcomed, an echo by the producer's side proves that both sides reach the same instance; only then is the link `UP`
and messages are sent. All else waits in the outbox. `states` has the table of transitions; `_enter` is the only place
that changes the state.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq
from zmq.constants import SocketOption

from channels_zmq.client.client import Client, LinkLost, LinkRestored, SessionFrame
from channels_zmq.client.requests import next_number
from channels_zmq.errors import ConfigurationError, OutboxFull, WireVersionMismatch
from channels_zmq.housekeeper import Watched
from channels_zmq.keys import KeyWatch
from channels_zmq.options import Options
from channels_zmq.transports.discovery import Endpoint
from channels_zmq.transports.outbox import Outbox
from channels_zmq.transports.states import TRANSITIONS, Event, State
from channels_zmq.transports.subscriber import (
    CONNECTING,
    REFUSALS,
    Socket,
    Subscriber,
    connect,
    monitor,
    set_options,
)
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.sockets import plain_send
from channels_zmq_forwarder.wire import Topic

ECHO_EVERY = 1.0
ECHO_PATIENCE = 3.0
"""Seconds without an echo while the subscriber's side is connected, after which the sending socket is replaced."""
FULL_RETRY = 0.005
"""Seconds until a full sending socket is tried again."""
PUSH_MARK = 10_000
TICK_EVERY = 1.0

_SYNC = bytes((wire.SYNC.kind,))
_KEEPALIVE: dict[SocketOption, int] = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
}


@dataclass(slots=True)
class _Outage:
    """Since when a link that was up is not up, and how many messages had been lost before."""

    since: float
    lost_before: int
    replaced_push: bool = False


@dataclass(slots=True)
class _Echo:
    """The echo that waits for its answer."""

    number: int
    sent_at: float


class Link:
    """One process at one forwarder.

    Args:
        pull_address: Where the forwarder takes messages in.
        pub_address: Where it publishes.
        options: Bounds and times.
        client: Takes the frames that arrive.
        call_soon: Arranges for `tick` at a time at the latest.
    """

    must_confirm = True
    is_alone = False
    is_bound = False

    def __init__(
        self,
        pull_address: str,
        pub_address: str,
        options: Options,
        client: Client,
        call_soon: Callable[[float], None],
    ) -> None:
        self.address = f"{pull_address} and {pub_address}"
        self.nothing_held = threading.Event()
        self.nothing_held.set()
        self.refusal = ""
        self.state = State.DOWN
        self._pull, self._pub_address = Endpoint(pull_address), pub_address
        self._options, self._client, self._call_soon = options, client, call_soon
        self._numbers, self._sender = client.numbers, client.sender
        self._own_prefix = wire.direct_prefix(client.inbox)
        self._context: zmq.Context[Socket] = zmq.Context()
        self._keys = KeyWatch(options.keys)
        self._outbox = Outbox(options.outbox_capacity, options.outbox_bytes)
        self._joined: dict[bytes, int] = {}  # topics subscribed to while messages were held: the last of these
        self._passes = False
        """Whether a message is sent at once: the link is up, and nothing is held."""
        self._longest_ttl = 0
        self._other_version: int | None = None
        self._echo: _Echo | None = None
        self._verifying_since = 0.0
        self._instance = b""
        """The last instance that this link was up with; nothing if it never was."""
        self._outage: _Outage | None = None

    # Opening and closing

    def start(self) -> None:
        """Open both sockets, and connect them unless a key file is missing so far.

        Raises:
            ConfigurationError: If an address or a key is invalid.
        """
        self._subscriber = Subscriber(self._context, self._pub_address, self._options, self._client)
        self._push, self._push_monitor = self._open_push()
        try:
            if self._subscriber.connect_first(self._keys):
                self._connect_push()
        except ConfigurationError:
            self._context.destroy(linger=0)
            raise
        self._subscriber.send(wire.subscription(wire.inbox_topic(self._client.inbox)))

    def _open_push(self) -> tuple[Socket, Socket]:
        push = self._context.socket(zmq.PUSH)
        linger = round(self._options.linger * 1000)
        set_options(push, CONNECTING | _KEEPALIVE | {zmq.SNDHWM: PUSH_MARK, zmq.LINGER: linger})
        self._send = plain_send(push)
        return push, monitor(push)

    def _connect_push(self) -> None:
        connect(self._push, self._pull, "pull_socket_address", self._keys.current)

    @property
    def is_connected(self) -> bool:
        """Whether messages are sent now rather than held."""
        return self.state is State.UP

    @property
    def descriptor(self) -> int:
        """What event loops watch for input."""
        return self._subscriber.descriptor

    @property
    def held(self) -> int:
        """How many messages wait to be sent."""
        return len(self._outbox)

    def producer(self) -> "Link":
        """Return this transport: every client of a forwarder may send."""
        return self

    promote = producer

    def watched(self) -> Watched:
        """Return the monitors of both sockets."""
        return Watched({self._subscriber.monitor: self._subscriber_event, self._push_monitor: self._push_event})

    def close(self) -> None:
        """Send what is held if the forwarder is there, and close the sockets."""
        self._flush_outbox()
        self._subscriber.close()
        self._push.disable_monitor()
        self._push_monitor.close(linger=0)
        self._push.close()

    def terminate(self) -> None:
        """Wait until what was sent is delivered, at most the linger time."""
        self._context.term()

    def abandon(self) -> None:
        """Do nothing: a forked child has nothing here to let go of."""

    # Sending

    def publish_group(self, topic: bytes, payload: bytes, ttl: int) -> None:
        """Number a message and send it, or hold it."""
        if ttl > self._longest_ttl:
            self._longest_ttl = ttl
        if not (self._passes and self._number_and_send(topic, payload, ttl)):
            self._hold(time.monotonic() + ttl / 1000, topic, payload)

    def publish_direct(self, owner: bytes, channel: str, payload: bytes, ttl: int) -> None:
        """Number a message and send it, or hold it."""
        self.publish_group(wire.direct_prefix(owner), wire.direct_body(channel, payload), ttl)

    def publish_own(self, channel: str, payload: bytes, ttl: int, capacity: int) -> bool | None:
        """Send a message to a channel of this process by the forwarder, so that it keeps its place among others."""
        client = self._client
        box = client.mailboxes.open(channel, capacity)
        if client.mailboxes.is_full(box):
            return False
        if box.in_flight and len(box.mail) + len(box.in_flight) >= capacity:
            return None if self.is_connected else False
        self.publish_group(self._own_prefix, wire.direct_body(channel, payload), ttl)
        client.sent_to_own(box)
        return True

    def send_upstream(self, frame: bytes) -> bool:
        """Send a frame by the XSUB; return whether input is there now.

        ZeroMQ keeps what is sent before the first connection, and would send a sync ahead of the hello. The forwarder
        would answer a client that it does not know yet. `begin_session` sends every open sync again.
        """
        if self._subscriber.welcome is None and frame[:1] == _SYNC:
            return False
        return self._subscriber.send(frame)

    def send_downstream(self, frame: bytes, deadline: float, number: int) -> bool:
        """Send a request by the PUSH, or hold it."""
        if self._other_version is not None and number:
            raise WireVersionMismatch(self.address, self._other_version, wire.VERSION)
        if not (self._passes and self._sent(frame)):
            self._hold(deadline, b"", frame, number)
        return False

    def _number_and_send(self, prefix: bytes, body: bytes, ttl: int) -> int:
        """Return the number of the message, 0 if the socket is full."""
        number, flags = self._numbers.next(prefix)
        try:
            self._send(wire.ordered(prefix, self._sender, number, flags, ttl, body), zmq.DONTWAIT)
        except zmq.Again:
            self._numbers.take_back(prefix, number, flags)
            return 0
        return number

    def _sent(self, frame: bytes) -> bool:
        try:
            self._send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    # Holding

    def _hold(self, deadline: float, prefix: bytes, body: bytes, number: int = 0) -> None:
        now = time.monotonic()
        if not self._outbox.hold(deadline, prefix, body, number, now):
            raise OutboxFull(self.address, len(self._outbox))
        self._passes = False
        self.nothing_held.clear()
        if self.state is State.UP:
            self._call_soon(now + FULL_RETRY)

    def _flush_outbox(self) -> None:
        now = time.monotonic()
        self._client.counters.drop("outbox_expired", self._outbox.expire(now))
        while self.state is State.UP and (held := self._outbox.first()) is not None:
            if held.prefix:
                left = wire.milliseconds(held.deadline - now)
                sent = self._number_and_send(held.prefix, held.body, left)
                if sent and held.order <= self._joined.get(held.prefix, 0):
                    self._client.older_than_subscription(Topic(held.prefix), sent)
            else:
                sent = self._sent(held.body)
            if not sent:
                break
            self._outbox.remove_first()
        self._look_at_outbox()

    def _look_at_outbox(self) -> None:
        if not len(self._outbox):
            self._joined.clear()
            self.nothing_held.set()
        self._passes = self.state is State.UP and not len(self._outbox)

    def subscribed(self, topic: Topic) -> None:
        """Note that messages held now are older than the subscription to their topic."""
        if len(self._outbox):
            self._joined[topic] = self._outbox.order

    def withdraw(self, number: int) -> None:
        """Drop a held request."""
        if len(self._outbox) and self._outbox.withdraw(number):
            self._look_at_outbox()

    def drop_held(self) -> None:
        """Drop all held messages."""
        self._outbox.clear()
        self._look_at_outbox()

    # Receiving

    def has_input(self) -> bool:
        """Return whether a frame can be read."""
        return self._subscriber.has_input()

    def read(self) -> bool:
        """Feed the client for one turn; return whether more input may be there."""
        return self._subscriber.read()

    # The state

    def _enter(self, event: Event) -> bool:
        """Change the state as the table says; return whether the event counts in it."""
        former = self.state
        state = TRANSITIONS[former].get(event)
        if state is None:
            return False
        self.state = state
        self._passes = False
        if former is State.UP and state is not State.UP:
            self._echo = None
            self._went_down()
        return True

    def _went_down(self) -> None:
        """Hold from now on what is sent, and announce the outage."""
        counters = self._client.counters
        self._outage = _Outage(time.monotonic(), counters.lost())
        counters.report(logging.WARNING, "the forwarder at %s is unreachable", self.address)
        self._client.out.change(LinkLost())

    def _subscriber_event(self, event: int) -> None:
        if event in REFUSALS:
            self._was_refused(REFUSALS[event])
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._enter(Event.CONNECTED)
            while self._subscriber.read():  # what came by the former connection counts as received by it
                pass
            self._subscriber.greet(self._client.before_hello())
            self._call_soon(self._subscriber.due)
        else:
            self._subscriber.lost()
            self._enter(Event.LOST)

    def _push_event(self, event: int) -> None:
        if event in REFUSALS:
            self._was_refused(REFUSALS[event])
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            if self._enter(Event.PUSH_CONNECTED):
                self._send_echo()
        elif self._enter(Event.PUSH_LOST):
            self._verifying_since = time.monotonic()  # an echo is worth sending once there is a connection again

    def _was_refused(self, reason: str) -> None:
        self.refusal = reason
        self._keys.refused()

    def take_session(self, frames: Sequence[SessionFrame]) -> None:
        """Take welcomes, and the answer to the echo."""
        for frame in frames:
            if isinstance(frame, wire.Welcome):
                self._welcomed(frame)
            else:
                self._confirmed(frame)

    def _welcomed(self, welcome: wire.Welcome) -> None:
        if welcome.version != wire.VERSION:
            self._refuse_version(welcome.version)
            return
        former = self._subscriber.welcome
        if self._subscriber.take(welcome):
            self._other_version = None
            self._client.begin_session(self._subscriber.session)
            self._enter(Event.WELCOMED)
            self._verify()
        elif former is not None and former.state != welcome.state:
            self._verifying_since = time.monotonic()  # it could not answer an echo before

    def _refuse_version(self, theirs: int) -> None:
        error = WireVersionMismatch(self.address, theirs, wire.VERSION)
        if self._other_version != theirs:
            self._other_version = theirs
            self._client.counters.report(logging.ERROR, "%s", error)
        self._client.fail_requests(error)

    def _verify(self) -> None:
        self._verifying_since = time.monotonic()
        self._send_echo()

    def _send_echo(self) -> None:
        now = time.monotonic()
        self._echo = _Echo(next_number(), now)
        self._sent(wire.ECHO.encode(wire.Echo(self._client.inbox, self._echo.number)))
        self._call_soon(now + ECHO_EVERY)

    def _confirmed(self, confirm: wire.Confirm) -> None:
        welcome = self._subscriber.welcome
        if self._echo is None or confirm.n != self._echo.number or welcome is None:
            return
        if confirm.instance == welcome.instance and self._enter(Event.ECHOED):
            self._came_up(confirm.instance)

    def _came_up(self, instance: bytes) -> None:
        self._echo = None
        self.refusal = ""
        self._instance = instance
        outage, self._outage = self._outage, None
        if outage is None:
            self._flush_outbox()
        else:
            counters = self._client.counters
            lost = counters.lost() - outage.lost_before
            away = time.monotonic() - outage.since
            counters.reconnects += 1
            counters.report(logging.WARNING, "the forwarder at %s is reachable again after %.1f s", self.address, away)
            self._client.out.change(LinkRestored(lost or None))
            self._call_soon(0.0)  # `tick` sends what is held, behind the announcement

    # Housekeeping

    def tick(self, now: float) -> float:
        """Repeat what got no answer, try changed keys and flush the outbox; return when to be called again."""
        self._subscriber.tick(now)
        if self.state is not State.UP and (self._keys.have_changed() or self._resolved_otherwise()):
            self._connect_anew()
        due = min(now + TICK_EVERY, self._subscriber.due)
        if self.state is State.VERIFYING:
            self._keep_verifying(now)
        self._replace_stale_push(now)
        self._flush_outbox()
        if len(self._outbox) and self.state is State.UP:
            due = min(due, now + FULL_RETRY)
        return due

    def look_around(self) -> None:
        """Read the keys, and resolve the names of both addresses, again."""
        if self.state is not State.UP:
            self._keys.look()
            self._pull.look()
            self._subscriber.endpoint.look()

    def _resolved_otherwise(self) -> bool:
        return self._pull.has_changed() or self._subscriber.endpoint.has_changed()

    def _connect_anew(self) -> None:
        try:
            self._subscriber.connect(self._keys.current)
            self._replace_push()
        except ConfigurationError as error:
            self._client.counters.report(logging.ERROR, "%s", error)

    def _keep_verifying(self, now: float) -> None:
        welcome = self._subscriber.welcome
        serves = welcome is not None and welcome.state == wire.State.SERVING
        if serves and now - self._verifying_since > ECHO_PATIENCE:
            self._client.counters.report(logging.WARNING, "no echo from %s: connecting anew", self._pull.address)
            self._replace_push()
            self._verify()
        elif self._echo is not None and now >= self._echo.sent_at + ECHO_EVERY:
            self._send_echo()

    def _replace_stale_push(self, now: float) -> None:
        """Drop what the PUSH has held since before an outage, once all of it has expired."""
        outage = self._outage
        if outage is not None and not outage.replaced_push and (now - outage.since) * 1000 > self._longest_ttl:
            outage.replaced_push = True
            self._replace_push()
            if self.state is State.VERIFYING:
                self._send_echo()

    def _replace_push(self) -> None:
        old, old_monitor = self._push, self._push_monitor
        self._push, self._push_monitor = self._open_push()
        self._connect_push()
        old.disable_monitor()
        old_monitor.close(linger=0)
        old.close(linger=0)
