"""The XSUB of a process: subscriptions and questions go up, frames come down; and the session it has with an exchange.

Its marks are 0: at a send mark subscriptions vanish silently, and a receive mark beside heartbeats aborts the process
(libzmq issues 3937 and 4767). Every reconnect begins a new session with a hello, repeated until it is welcomed.
"""

import contextlib
import time
from typing import Protocol

import zmq
from zmq.constants import SocketOption

from channels_zmq.asking import Options
from channels_zmq.connection import DRAIN_AT_ONCE
from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import ClientKeys
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.curve import secure_client
from channels_zmq_forwarder.sockets import number, readable

Socket = zmq.Socket[bytes]

HELLO_EVERY = 1.0
CONNECTING: dict[SocketOption, int] = {
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 0,
    zmq.CONNECT_TIMEOUT: 2000,
}
_HEARTBEAT: dict[SocketOption, int] = {zmq.HEARTBEAT_IVL: 1000, zmq.HEARTBEAT_TIMEOUT: 2000}
_NO_COMMON_KEY = "only one side has CURVE keys, or curve_server_key is that of another server"
REFUSALS: dict[int, str] = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: "it does not allow the key of this process (curve_secret_key)",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: _NO_COMMON_KEY,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: _NO_COMMON_KEY,  # which of the two it is depends on who is faster
}
_EVENTS = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED
for _event in REFUSALS:
    _EVENTS |= _event


class Owner(Protocol):
    """The connection that a subscriber belongs to; all calls are made under its lock."""

    inbox: bytes
    session: int

    def feed(self, frame: bytes) -> None:
        """Take a frame that came down."""

    def drain(self) -> None:
        """Read what is there: the descriptor will not tell of it."""

    def call_soon(self, when: float) -> None:
        """Arrange for `Subscriber.tick` at a time at the latest."""

    def subscriber_went_down(self) -> None:
        """The exchange is out of reach."""

    def was_refused(self, reason: str) -> None:
        """The exchange does not let this process in."""

    def other_version(self, theirs: int) -> None:
        """The exchange cannot be understood."""


class Subscriber:
    """One XSUB and its session.

    Args:
        context: Makes the socket.
        address: Where the exchange publishes.
        options: Bounds and times.
        owner: Takes what comes.
        keys: For CURVE.
    """

    def __init__(
        self, context: "zmq.Context[Socket]", address: str, options: Options, owner: Owner, keys: ClientKeys | None
    ) -> None:
        self.welcome: wire.Welcome | None = None
        self.connected = False
        self._owner = owner
        self._address = address
        self._peers = 0
        self._hello_at = 0.0
        self._socket = context.socket(zmq.XSUB)
        linger = round(options.linger * 1000)
        set_options(self._socket, CONNECTING | _HEARTBEAT | {zmq.SNDHWM: 0, zmq.RCVHWM: 0, zmq.LINGER: linger})
        self._socket.set(zmq.MAXMSGSIZE, options.max_message_size + wire.MAX_OVERHEAD)
        if keys is not None:
            secure_client(self._socket, keys.server, keys.secret)
        self.monitor = monitor(self._socket)
        connect(self._socket, address, "pub_socket_address")
        self.descriptor = number(self._socket, zmq.FD)

    def send(self, frame: bytes) -> bool:
        """Send a frame up; return whether input is there now, of which the descriptor will not tell."""
        self._socket.send(frame, zmq.DONTWAIT)
        return readable(self._socket)

    def read(self) -> bool:
        """Hand the owner up to `DRAIN_AT_ONCE` frames; return whether more may be there."""
        recv, feed = self._socket.recv, self._owner.feed
        try:
            feed(recv(zmq.DONTWAIT))
            if not readable(self._socket):  # it is mostly one frame: asking takes half the time of `zmq.Again`
                return False
            for _ in range(DRAIN_AT_ONCE - 1):
                feed(recv(zmq.DONTWAIT))
        except zmq.Again:
            return False
        return True

    def event(self, event: int) -> None:
        """Take an event of the monitor."""
        if event in REFUSALS:
            self._owner.was_refused(REFUSALS[event])
            return
        self.welcome = None
        self.connected = event == zmq.Event.HANDSHAKE_SUCCEEDED
        if self.connected:
            self._owner.session += 1
            readable(self._socket)  # libzmq sends the subscriptions again when it is asked for anything
            self._say_hello()
        else:
            self._owner.subscriber_went_down()

    def welcomed(self, frame: bytes) -> bool:
        """Take a welcome; return True for the first one of the session."""
        welcome = wire.WELCOME.decode(frame)
        if welcome.version != wire.VERSION:
            self._owner.other_version(welcome.version)
            return False
        if welcome.session != self._owner.session:
            return False
        first, self.welcome, self._peers = self.welcome is None, welcome, welcome.clients
        return first

    def tick(self, now: float) -> float:
        """Repeat an unanswered hello; return when to be called again at the latest."""
        if self.connected and self.welcome is None:
            if now >= self._hello_at + HELLO_EVERY:
                self._say_hello()
            return self._hello_at + HELLO_EVERY
        return now + HELLO_EVERY

    def connect_with(self, keys: ClientKeys) -> None:
        """Connect anew; the subscriptions stay. After a refusal ZeroMQ does not try again by itself."""
        with contextlib.suppress(zmq.ZMQError):  # it has given up already
            self._socket.disconnect(self._address)
        secure_client(self._socket, keys.server, keys.secret)
        self._socket.connect(self._address)
        if readable(self._socket):  # as after a reconnect
            self._owner.drain()

    def leave(self) -> None:
        """Disconnect, but keep the socket: an event loop may still watch its descriptor."""
        self._socket.set(zmq.LINGER, 0)
        self._socket.disconnect(self._address)
        self.connected = False

    def close(self) -> None:
        """Close the socket and its monitor; no loop may watch the descriptor any more."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)
        self._socket.close(linger=None if self.connected else 0)  # nobody would take what is left

    def _say_hello(self) -> None:
        self._hello_at = time.monotonic()
        self._owner.call_soon(self._hello_at + HELLO_EVERY)
        owner = self._owner
        if self.send(wire.HELLO.encode(wire.Hello(owner.inbox, wire.VERSION, owner.session, self._peers))):
            owner.drain()


def set_options(socket: Socket, options: dict[SocketOption, int]) -> None:
    """Set several options of a socket."""
    for option, value in options.items():
        socket.set(option, value)


def monitor(socket: Socket) -> Socket:
    """Return a socket that tells of a socket's handshakes and disconnections."""
    return socket.get_monitor_socket(_EVENTS)


def connect(socket: Socket, address: str, setting: str) -> None:
    """Connect a socket, which succeeds whether anybody listens or not.

    Raises:
        ConfigurationError: The address is none.
    """
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise ConfigurationError(setting, f"cannot connect to {address!r}: {error.strerror}") from error
