"""The sockets of a process at a forwarder: PUSH for what it sends, XSUB for what it receives and asks.

In the data-flow diagram these are the arrows into and out of the forwarder. The rules, step by step:
docs/wire-protocol.md, "Connecting" and "Sending".
"""

import logging
import threading
import time

import zmq
from zmq.constants import SocketOption

from channels_zmq.asking import Options
from channels_zmq.connection import Connection
from channels_zmq.errors import ConfigurationError, ForwarderUnavailable, OutboxFull, WireVersionMismatch
from channels_zmq.keeper import Watched, keeper
from channels_zmq.outbox import Waiting
from channels_zmq.requests import next_number
from channels_zmq.subscriber import CONNECTING, REFUSALS, Socket, Subscriber, connect, monitor, set_options
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.curve import secure_client
from channels_zmq_forwarder.sockets import plain_send
from channels_zmq_forwarder.wire import Topic

logger = logging.getLogger("channels_zmq")

ECHO_EVERY = 1.0
ECHO_PATIENCE = 3.0
"""Seconds without an echo while the subscriber's side is up, after which the sending socket is replaced."""
FULL_RETRY = 0.005
"""Seconds until a full sending socket is tried again."""
PUSH_MARK = 10_000

_KEEPALIVE: dict[SocketOption, int] = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
}


class DedicatedConnection(Connection):
    """One process at one forwarder.

    Args:
        pull_address: Where the forwarder takes messages in.
        pub_address: Where it publishes.
        options: Bounds and times.
    """

    def __init__(self, pull_address: str, pub_address: str, options: Options) -> None:
        super().__init__(f"{pull_address} and {pub_address}", options)
        self._pull_address, self._pub_address = pull_address, pub_address
        self._context: zmq.Context[Socket] = zmq.Context()
        self._other_version: int | None = None
        self._push_is_up = False
        self._up = self._was_up = False
        self._goes_at_once = False
        self._nothing_held = threading.Event()
        self._instance = b""
        self._down_since: float | None = None
        self._lost_before = 0
        self._stale_push = False
        self._echo = 0  # the number of the one that waits for its answer, 0 for none
        self._echo_at = self._echoing_since = 0.0

    # Opening and closing

    def start(self) -> None:
        """Connect both sockets and let the keeper watch them."""
        try:
            if self.options.keys is not None:
                self._keys = self.options.keys.wait_and_read(self.options.connect_timeout)
            self._subscriber = Subscriber(self._context, self._pub_address, self.options, self, self._keys)
            self._push, self._push_monitor = self._open_push()
        except ConfigurationError:
            self._context.destroy(linger=0)
            raise
        self._subscribe(wire.inbox_topic(self.inbox))
        self._loops.watch(self._subscriber.descriptor)
        keeper().watch(self)

    def _open_push(self) -> tuple[Socket, Socket]:
        push = self._context.socket(zmq.PUSH)
        linger = round(self.options.linger * 1000)
        set_options(push, CONNECTING | _KEEPALIVE | {zmq.SNDHWM: PUSH_MARK, zmq.LINGER: linger})
        if self._keys is not None:
            secure_client(push, self._keys.server, self._keys.secret)
        events = monitor(push)
        connect(push, self._pull_address, "pull_socket_address")
        self._send = plain_send(push)
        return push, events

    def watched(self) -> Watched:
        """Return what the keeper is to watch: both monitors, and the descriptor while no loop attends to it."""
        with self._lock:
            return Watched(
                {self._subscriber.monitor: self._subscriber_event, self._push_monitor: self._push_event},
                self._subscriber.descriptor if self._loops.unattended() else None,
            )

    def finish(self) -> None:
        """Send what is held if the forwarder is there, and close; blocks for `linger` at most."""
        keeper().forget(self)
        with self._lock:
            self._flush_outbox()
            self._subscriber.close()
            self._push.disable_monitor()
            self._push_monitor.close(linger=0)
            self._push.close()
        self._context.term()

    def deliver_held(self) -> None:
        """Wait until the outbox is empty, for `linger` at most; the keeper sends what it holds."""
        if len(self._outbox):
            self.call_soon(0.0)
            self._nothing_held.wait(self.options.linger)

    @property
    def connected(self) -> bool:
        """Whether the forwarder has welcomed this process and answered its echo."""
        return self._up

    # The seam

    def _upstream(self, frame: bytes) -> None:
        if self._subscriber.send(frame):
            self.drain()

    def _subscribe(self, topic: Topic) -> None:
        self._upstream(b"\1" + topic)

    def _unsubscribe(self, topic: Topic) -> None:
        self._upstream(b"\0" + topic)

    def _read(self) -> bool:
        return self._subscriber.read()

    def _ordered(self, prefix: bytes, body: bytes, ttl: int) -> None:
        if not (self._goes_at_once and self._number_and_push(prefix, body, ttl)):
            self._hold(Waiting(time.monotonic() + ttl / 1000, prefix, body))

    def _number_and_push(self, prefix: bytes, body: bytes, ttl: int) -> bool:
        number, flags = self._numbers.next(prefix)
        try:
            self._send(wire.ordered(prefix, self._sender, number, flags, ttl, body), zmq.DONTWAIT)
        except zmq.Again:
            self._numbers.take_back(prefix, number, flags)
            return False
        return True

    def _pushed(self, frame: bytes) -> bool:
        try:
            self._send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _downstream(self, frame: bytes, deadline: float, number: int) -> None:
        if self._other_version is not None and number:
            raise WireVersionMismatch(self.address, self._other_version, wire.VERSION)
        if not (self._goes_at_once and self._pushed(frame)):
            self._hold(Waiting(deadline, b"", frame, number))

    def _hold(self, waiting: Waiting) -> None:
        now = time.monotonic()
        if not self._outbox.hold(waiting, now):
            raise OutboxFull(self.address, len(self._outbox))
        self._goes_at_once = False
        self._nothing_held.clear()
        if self._up:
            self.call_soon(now + FULL_RETRY)

    def _flush_outbox(self) -> None:
        now = time.monotonic()
        self.counters.drop("outbox", self._outbox.expire(now))
        while self._up and (waiting := self._outbox.first()) is not None:
            if waiting.prefix:
                left = wire.milliseconds(waiting.deadline - now)
                sent = self._number_and_push(waiting.prefix, waiting.body, left)
            else:
                sent = self._pushed(waiting.body)
            if not sent:
                break
            self._outbox.remove_first()
        if not len(self._outbox):
            self._goes_at_once = self._up
            self._nothing_held.set()

    # Going down and coming up: called by the keeper

    def _subscriber_event(self, event: int) -> None:
        with self._lock:
            self._subscriber.event(event)

    def _push_event(self, event: int) -> None:
        with self._lock:
            if event in REFUSALS:
                self.was_refused(REFUSALS[event])
                return
            self._push_is_up = event == zmq.Event.HANDSHAKE_SUCCEEDED
            if self._push_is_up:
                self._begin_echo()
            else:
                self.subscriber_went_down()

    def subscriber_went_down(self) -> None:
        """Hold from now on what is sent, and tell consumers, once an outage."""
        self._up = self._goes_at_once = False
        if self._down_since is None:
            self._down_since = time.monotonic()
            self._stale_push = self._was_up
            self._mailboxes.nothing_under_way()
            self._lost_before = sum(self.counters.dropped.values())
            if self._was_up:
                logger.warning("the forwarder at %s is away", self.address)
                self._tell_disconnected()

    def _welcomed(self, frame: bytes) -> None:
        if self._subscriber.welcomed(frame):
            self._other_version = None
            self._begin_session()
            self._begin_echo()

    def other_version(self, theirs: int) -> None:
        """Say that the forwarder cannot be understood, in the log and to whoever waits for an answer."""
        error = WireVersionMismatch(self.address, theirs, wire.VERSION)
        if self._other_version != theirs:
            self._other_version = theirs
            logger.error("%s", error)
        self._requests.fail(error)

    def _begin_echo(self) -> None:
        if self._subscriber.welcome is None or not self._push_is_up:
            return
        now = time.monotonic()
        if not self._echo:
            self._echoing_since = now
        self._echo = next_number()
        self._echo_at = now
        self._pushed(wire.ECHO.encode(wire.Echo(self.inbox, self._echo)))
        self.call_soon(now + ECHO_EVERY)

    def _confirmed(self, frame: bytes) -> None:
        confirm = wire.CONFIRM.decode(frame)
        welcome = self._subscriber.welcome
        if self._echo and confirm.n == self._echo and welcome is not None:
            if confirm.instance == welcome.instance:
                self._came_up(confirm.instance)
        else:
            super()._confirmed(frame)

    def _came_up(self, instance: bytes) -> None:
        self._echo = 0
        self._up = True
        self._refusal = ""
        again, self._was_up = self._was_up, True
        away, self._down_since = self._down_since, None
        self._flush_outbox()
        if instance != self._instance:
            self._instance = instance
            self._add_plain_members_again()
        if again and away is not None:
            lost = sum(self.counters.dropped.values()) - self._lost_before
            logger.warning("the forwarder at %s is back after %.1f s", self.address, time.monotonic() - away)
            self._tell_reconnected(lost or None)

    def tick(self, now: float) -> float:
        """Repeat what got no answer, flush and drain; return when to be called again."""
        with self._lock:
            due = super().tick(now)
            self.drain()
            due = min(due, self._subscriber.tick(now))
            if not self._up and (keys := self._keys_to_try()) is not None:
                self._subscriber.connect_with(keys)
                self._replace_push()
            if self._echo:
                due = min(due, self._keep_echoing(now))
            if self._stale_push and self._down_since and now - self._down_since > self.options.expiry:
                self._replace_push()  # all that it holds has expired
            self._flush_outbox()
            if len(self._outbox):
                due = min(due, now + (FULL_RETRY if self._up else 1.0))
            return min(due, now + 1.0)

    def _keep_echoing(self, now: float) -> float:
        welcome = self._subscriber.welcome
        if welcome is not None and welcome.state == wire.State.SERVING and now - self._echoing_since > ECHO_PATIENCE:
            logger.warning("%s does not answer: connecting anew", self._pull_address)
            self._replace_push()
        elif now >= self._echo_at + ECHO_EVERY:
            self._begin_echo()
        return max(now, self._echo_at + ECHO_EVERY)

    def _replace_push(self) -> None:
        self._stale_push = False
        self._push_is_up = False
        self._echo = 0
        old, monitor = self._push, self._push_monitor
        self._push, self._push_monitor = self._open_push()
        old.disable_monitor()
        monitor.close(linger=0)
        old.close(linger=0)

    def _silence(self, timeout: float, what: str) -> ForwarderUnavailable:
        if self._other_version is not None:
            return WireVersionMismatch(self.address, self._other_version, wire.VERSION)
        return super()._silence(timeout, what)
