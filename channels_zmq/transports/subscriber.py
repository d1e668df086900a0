"""The XSUB socket of a process and its session with an exchange: sends subscriptions and requests, receives frames.

Its high-water marks are 0: at a send mark subscriptions are lost silently, and a receive mark together with heartbeats
aborts the process (libzmq issues 3937 and 4767). Every reconnect begins a new session with a hello, which is repeated
until the welcome arrives.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf

import zmq
from zmq.constants import SocketOption

from channels_zmq.client.arrivals import Arrivals
from channels_zmq.client.attachment import Attachment
from channels_zmq.client.client import Client
from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import ClientKeys, KeyWatch
from channels_zmq.options import Options
from channels_zmq.transports.discovery import Endpoint
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.curve import secure_client
from channels_zmq_forwarder.sockets import heartbeats, number, readable

Socket = zmq.Socket[bytes]

HELLO_EVERY = 1.0
"""Seconds between two hellos of a session whose exchange does not serve yet, or any more."""
FRAMES_A_TURN = 256
WAKES_A_TURN = 1000
SECONDS_A_TURN = 0.005
"""A turn of reading ends at any of these bounds, so that the event loop runs other callbacks."""
READS_FORMER_FOR = 1.0
"""Seconds for which frames of a former connection are read before a session begins by the next one."""
_CONNECTING: dict[SocketOption, int] = {
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 0,
    zmq.CONNECT_TIMEOUT: 2000,
}
_NO_COMMON_KEY = "only one side has CURVE keys, or curve_server_key is the key of another server"
REFUSALS: dict[int, str] = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: "the key of this process (curve_secret_key) is not allowed",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: _NO_COMMON_KEY,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: _NO_COMMON_KEY,  # which of the two it is depends on which side is faster
}
_EVENTS = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED
for _event in REFUSALS:
    _EVENTS |= _event
FAILURES = frozenset((zmq.Event.CONNECT_RETRIED, zmq.Event.CLOSED))
"""Events of an attempt to connect that has failed."""
REQUESTS = tuple(bytes((layout.kind,)) for layout in (wire.SYNC, wire.MEMBER, wire.FLUSH))
"""Kinds of frames that an exchange answers only to clients it knows."""
SUBSCRIPTIONS = (wire.SUBSCRIBE, wire.UNSUBSCRIBE)
"""Kinds of the frames by which an XSUB subscribes and unsubscribes."""


class Subscriber:
    """One XSUB and its session.

    Args:
        context: Makes the socket.
        address: Where the exchange publishes.
        options: Bounds and times.
        client: Takes the frames that arrive.
        attachment: The exchange, as the client knows it.
        known: Returns the list of forwarders that a hello carries.
    """

    def __init__(
        self,
        context: "zmq.Context[Socket]",
        address: str,
        options: Options,
        client: Client,
        attachment: Attachment,
        known: Callable[[], bytes] = bytes,
    ) -> None:
        self.session = 0
        self.welcome: wire.Welcome | None = None
        """The last welcome of this session."""
        self.keys: ClientKeys | None = None
        """The keys that it connects with."""
        self.is_connected = False
        """Whether there is a connection, and so a session that was greeted."""
        self._client, self._attachment, self._known = client, attachment, known
        self.endpoint = Endpoint(address)
        self._subscribed: set[bytes] = set()
        """The topics of groups that the socket is subscribed to. ZeroMQ counts: each must be subscribed only once."""
        self._batch: Iterator[None] | None = None
        """The messages of a frame that are left to be taken."""
        self._before_hello: Callable[[], Iterable[bytes]] | None = None
        """Returns the frames to send before the hello of a session that is about to begin."""
        self._greets_by = 0.0
        self._hello_at = 0.0
        self._socket = context.socket(zmq.XSUB)
        linger = round(options.linger * 1000)
        max_frame = options.max_message_size + wire.MAX_OVERHEAD
        self.arrivals = Arrivals(attachment)
        set_options(self._socket, _CONNECTING | heartbeats(max_frame))
        set_options(self._socket, {zmq.SNDHWM: 0, zmq.RCVHWM: 0, zmq.LINGER: linger, zmq.MAXMSGSIZE: max_frame})
        self.monitor = monitor(self._socket, zmq.Event.CONNECT_RETRIED)
        self.descriptor = number(self._socket, zmq.FD)

    def connect_first(self, keys: KeyWatch) -> bool:
        """Connect for the first time, unless a key file is missing so far; return whether it has connected.

        Raises:
            ConfigurationError: If the address or a key is invalid.
        """
        if not keys.may_connect():
            line = "waiting to connect to %s: %s"
            self._client.counters.report(logging.WARNING, line, self.endpoint.address, keys.problem)
            return False
        self.connect(keys.current)
        return True

    def connect(self, keys: ClientKeys | None) -> bool:
        """Connect, for the first time or anew with other keys; the subscriptions stay.

        After a refused handshake ZeroMQ does not retry automatically.

        Returns:
            Whether input is there.

        Raises:
            ConfigurationError: If the address cannot be connected to.
        """
        with contextlib.suppress(zmq.ZMQError):  # not connected yet, or ZeroMQ has given up already
            self._socket.disconnect(self.endpoint.address)
        self.keys = keys
        connect(self._socket, self.endpoint, "pub_socket_address", keys)
        return readable(self._socket)

    def subscribe_inbox(self) -> None:
        """Subscribe to the inbox of this process. To be called first, since an exchange may know another connection."""
        self._socket.send(self._client.claim, zmq.DONTWAIT)
        self._socket.send(wire.subscription(wire.inbox_topic(self._client.inbox)), zmq.DONTWAIT)

    def send(self, frame: bytes) -> bool:
        """Send a frame up; return whether input is there now, which the descriptor does not signal.

        ZeroMQ keeps frames that are sent without a connection, and sends them ahead of the hello of the next one. A
        request would be answered to a client that the exchange does not know yet; `begin_session` sends every open
        request again. Subscriptions and unsubscriptions of consumers that begin and end during an outage would take
        memory, and delay the hello; the changes that remain are sent with the next connection.
        """
        if frame[:1] in REQUESTS and self.welcome is None:
            return False
        if frame[:1] in SUBSCRIPTIONS and not self._is_change(frame):
            return False
        self._socket.send(frame, zmq.DONTWAIT)
        return readable(self._socket)

    def _is_change(self, frame: bytes) -> bool:
        """Note a subscription or unsubscription; return False if it changes nothing, or has to wait."""
        topic = wire.subscribed_topic(frame)
        if not self.is_connected or (frame[:1] == wire.SUBSCRIBE) == (topic in self._subscribed):
            return False
        self._subscribed ^= {topic}
        return True

    def has_input(self) -> bool:
        """Return whether a frame can be read, or is only read in part. If so, the end of this step reads it.

        The descriptor does not signal it any more: it is edge-triggered, and asking takes the edge.
        """
        has_input = self._batch is not None or readable(self._socket)
        if has_input:
            self._client.out.input_found()
        return has_input

    def read(self) -> bool:
        """Feed the client with frames that have arrived, for one turn; return whether more may be there."""
        began = time.monotonic()
        try:
            if self._batch is None:
                self._take_frame()
            self.arrivals.heard_at = began
            # It is mostly one frame: asking takes half the time of `zmq.Again`.
            return (self._batch is not None or readable(self._socket)) and self._read_on(began + SECONDS_A_TURN)
        except zmq.Again:
            return False

    def _take_frame(self) -> None:
        frame = self._socket.recv(zmq.DONTWAIT)
        self.arrivals.unproved += len(frame)
        self._batch = self._client.feed(frame, self._attachment)

    def _read_on(self, until: float) -> bool:
        """Take the rest of a batch, and further frames, until a time."""
        receiver, wake, take_frame = self._client.receiver, self._client.out.wake, self._take_frame
        for _ in range(FRAMES_A_TURN - 1):
            if self._batch is not None:
                for _ in self._batch:
                    if receiver.now > until or len(wake) > WAKES_A_TURN:
                        return True
                self._batch = None
            elif receiver.now > until or len(wake) > WAKES_A_TURN:
                break
            take_frame()
        return True

    def probe(self, now: float, since: float) -> None:
        """Ask whether everything has arrived that was published before a time, unless the answer is known.

        Args:
            now: Monotonic seconds.
            since: Likewise.
        """
        if self.welcome is not None and (number := self.arrivals.probe(now, since)):
            self._sync(number)

    def is_behind(self, now: float, since: float) -> bool:
        """Return whether messages that were published before a time may still arrive, which a probe finds out.

        Args:
            now: Monotonic seconds.
            since: Likewise.
        """
        if self.has_input():
            return True
        self.probe(now, since)
        return self.welcome is not None and self.arrivals.are_behind(now, since)

    def _sync(self, number: int) -> None:
        if self.send(wire.SYNC.encode(wire.Sync(self._client.inbox, number))):
            self._client.out.input_found()

    def greet(self, before: Callable[[], Iterable[bytes]]) -> None:
        """Begin a new session, because a connection was made.

        Frames of the former connection count as received by it, so they are read first: one turn now and one with each
        `tick`, as they may be many, and for a bounded time, as the new connection may deliver frames without end.

        Args:
            before: Returns the frames that the exchange needs before the hello.
        """
        self._client.connected(self._attachment)
        self._before_hello, self._greets_by = before, time.monotonic() + READS_FORMER_FOR
        self._go_on_greeting()

    def _go_on_greeting(self) -> None:
        if not self.read() or time.monotonic() >= self._greets_by:
            before, self._before_hello = self._before_hello, None
            assert before is not None, "called only while a session is about to begin"
            self.begin_session(before())

    def begin_session(self, before: Iterable[bytes]) -> None:
        """Begin a new session: send the hello.

        libzmq sends the subscriptions again at the next call on the socket. Those that have changed follow, then the
        claim of the inbox, and the frames that the exchange needs before the hello.

        Args:
            before: The latter.
        """
        self.is_connected = True
        self.welcome = None
        self.session = self._client.new_session()
        self.arrivals.begin(time.monotonic())
        readable(self._socket)
        groups = self._client.memberships.groups.keys()
        changes = [wire.unsubscription(topic) for topic in self._subscribed - groups]
        changes += [wire.subscription(topic) for topic in groups - self._subscribed]
        self._subscribed = set(groups)
        for frame in (*changes, self._client.claim, *before):
            self._socket.send(frame, zmq.DONTWAIT)
        self.say_hello()

    def lost(self) -> None:
        """Note that the connection was lost, and the frames on their way with it."""
        if self.is_connected:
            self._client.connection_lost(self._attachment, self.arrivals.complete_until)
        self.is_connected = False
        self.welcome = self._before_hello = None

    def take(self, welcome: wire.Welcome) -> bool:
        """Take a welcome; return True if it is the first one of the session."""
        if welcome.session != self.session or not self.is_connected:
            return False
        first, self.welcome = self.welcome is None, welcome
        self._attachment.welcomed(welcome)
        return first

    def tick(self, now: float) -> None:
        """Continue to greet, repeat the hello or send a probe, if that is due."""
        if self._before_hello is not None:
            self._go_on_greeting()
        elif now >= self.due:
            self.say_hello()
        if self.welcome is not None and (number := self.arrivals.routine_probe(now)):
            self._sync(number)

    @property
    def due(self) -> float:
        """When the hello is due: it is repeated until the exchange serves, and again once it is about to end."""
        if self._before_hello is not None:
            return -inf
        serves = self.welcome is not None and self.welcome.state == wire.State.SERVING
        return self._hello_at + HELLO_EVERY if self.is_connected and not serves else inf

    def disconnect(self) -> None:
        """Disconnect for good, but keep the socket until `close`."""
        self._socket.set(zmq.LINGER, 0)
        with contextlib.suppress(zmq.ZMQError):  # never connected
            self._socket.disconnect(self.endpoint.address)
        self.lost()

    def close(self) -> None:
        """Close the socket and its monitor."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)
        self._socket.close(linger=None if self.is_connected else 0)  # no exchange would receive the rest

    def say_hello(self) -> None:
        """Send the hello of this session, or repeat it."""
        self._hello_at = time.monotonic()
        peers = self._client.peers(self._attachment)
        hello = wire.Hello(self._client.inbox, wire.VERSION, self.session, peers, self._known())
        self._socket.send(wire.HELLO.encode(hello), zmq.DONTWAIT)
        if self.welcome is None and (resume := self._client.resume(self._attachment, self.session)) is not None:
            self._socket.send(resume, zmq.DONTWAIT)
        if self.send(wire.BATCHING.encode(wire.Batching(self._client.inbox, self.session))):
            self._client.out.input_found()


def set_options(socket: Socket, options: dict[SocketOption, int]) -> None:
    """Set several options of a socket."""
    for option, value in options.items():
        socket.set(option, value)


def monitor(socket: Socket, failures: int) -> Socket:
    """Return a socket that reports a socket's handshakes and disconnections, and one kind of `FAILURES`."""
    return socket.get_monitor_socket(_EVENTS | failures)


def connect(socket: Socket, endpoint: Endpoint, setting: str, keys: ClientKeys | None) -> None:
    """Connect a socket, which succeeds whether a peer listens or not.

    Raises:
        ConfigurationError: If the address is invalid; names the setting.
    """
    if keys is not None:
        secure_client(socket, keys.server, keys.secret)
    endpoint.apply(socket)
    try:
        socket.connect(endpoint.address)
    except zmq.ZMQError as error:
        raise ConfigurationError(setting, f"cannot connect to {endpoint.address!r}: {error.strerror}") from error
