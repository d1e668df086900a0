"""The ZAP server: decides which CURVE keys may connect, and logs the peers that were refused.

ZeroMQ asks it over an inproc socket for each handshake on a guarded socket (ZeroMQ RFC 27, ZAP). A handshake that fails
before that, because the peer has no key or the key of another server, is read from the sockets' monitors. Used by every
side that binds.
"""

import logging
import os
import socket as sockets
import time
from collections.abc import Callable
from contextlib import suppress

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from channels_zmq_forwarder.curve import AllowedKeys

logger = logging.getLogger("channels_zmq_forwarder")

LOG_EVERY = 10.0
"""Seconds between two log lines about refusals of one address."""
LOG_ADDRESSES = 1000
ZAP = "inproc://zeromq.zap.01"
_WATCHED = (
    zmq.Event.ACCEPTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)
_FAILED = (zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)


class Gate:
    """Decides which keys may connect to the CURVE sockets of a context, and logs refusals.

    Args:
        context: The context of the sockets; it can have one gate.
        secret_key: The secret key of the side that binds.
        allowed: The keys that may connect; any key if None.
        clock: Monotonic seconds, to limit the rate of log lines.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        secret_key: bytes,
        allowed: AllowedKeys | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.allowed = allowed
        self.refused = 0
        """Handshakes that failed."""
        self._secret_key = secret_key
        self._clock = clock
        self._zap = context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(ZAP)
        self._guarded: dict[zmq.Socket[bytes], tuple[zmq.Socket[bytes], _Connections]] = {}  # and its monitor
        self._logged_at: dict[str, float] = {}
        self._not_logged = 0

    @property
    def sockets(self) -> "list[zmq.Socket[bytes]]":
        """The sockets to watch: `turn` is due when one of them is readable."""
        return [self._zap, *(monitor for monitor, _ in self._guarded.values())]

    def guard(self, socket: "zmq.Socket[bytes]") -> None:
        """Require CURVE and an allowed key of every connection to a socket; to be called before it is bound."""
        socket.curve_secretkey = self._secret_key
        socket.curve_server = True
        socket.zap_domain = b"channels-zmq"
        self._guarded[socket] = socket.get_monitor_socket(_WATCHED), _Connections()

    def connected(self, socket: "zmq.Socket[bytes]") -> set[int]:
        """Return the file descriptors of the connections to a guarded socket, as they are now."""
        self.turn()
        return set(self._guarded[socket][1].peers)

    def release(self, socket: "zmq.Socket[bytes]") -> None:
        """Stop watching a socket that is about to be closed."""
        monitor, _ = self._guarded.pop(socket)
        socket.disable_monitor()
        monitor.close(linger=0)

    def turn(self) -> None:
        """Answer all pending requests and process all events. Never blocks."""
        while self._answer():
            pass
        for monitor, connections in self._guarded.values():
            with suppress(zmq.Again):
                while True:
                    event = recv_monitor_message(monitor, zmq.DONTWAIT)
                    peer = connections.refused(event["event"], event["value"])
                    if peer is not None:
                        self._log_refusal(peer, "it has no key, or the key of another server")

    def close(self) -> None:
        """Close the gate's own sockets; the guarded ones must be closed before."""
        for monitor, _ in self._guarded.values():
            monitor.close(linger=0)
        self._zap.close()

    def _answer(self) -> bool:
        try:
            version, request, _, address, _, mechanism, *credentials = self._zap.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        public = z85.encode(credentials[0]) if mechanism == b"CURVE" and credentials else b""
        allowed = bool(public) and (self.allowed is None or public in self.allowed.keys)
        if not allowed:
            self._log_refusal(_plain(address.decode(errors="replace")) or "a local socket", "its key is not allowed")
        code, text = (b"200", b"OK") if allowed else (b"400", b"not allowed")
        self._zap.send_multipart([version, request, code, text, public if allowed else b"", b""])
        return True

    def _log_refusal(self, peer: str, reason: str) -> None:
        self.refused += 1
        now = self._clock()
        if now - self._logged_at.get(peer, -LOG_EVERY) < LOG_EVERY:
            self._not_logged += 1
            return
        if len(self._logged_at) >= LOG_ADDRESSES:
            self._logged_at.clear()
        self._logged_at[peer] = now
        more = f" ({self._not_logged} more refusals were not logged)" if self._not_logged else ""
        self._not_logged = 0
        logger.warning("%s was refused: %s%s", peer, reason, more)


class _Connections:
    """Finds the address of a peer whose handshake failed.

    The event of the failure does not name the connection. Events that carry its descriptor precede it (accepted) and
    follow it (disconnected), and by the time of the latter the address can no longer be asked for.
    """

    def __init__(self) -> None:
        self.peers: dict[int, str] = {}
        """The addresses of the peers that are connected, by file descriptor."""
        self._failed = False

    def refused(self, event: int, descriptor: int) -> str | None:
        """Process an event; return the address of the peer if it completes a refusal."""
        if event == zmq.Event.ACCEPTED:
            self.peers[descriptor] = _peer(descriptor)
        elif event in _FAILED:
            self._failed = True
        elif event == zmq.Event.DISCONNECTED:
            failed, self._failed = self._failed, False
            peer = self.peers.pop(descriptor, "an unknown address")
            return peer if failed else None
        return None


def _peer(descriptor: int) -> str:
    try:
        with sockets.socket(fileno=os.dup(descriptor)) as copy:
            name = copy.getpeername()
    except OSError:
        return "a closed connection"
    return _plain(str(name[0])) if isinstance(name, tuple) else "a local socket"


def _plain(address: str) -> str:
    """Return an IPv4 address as such, also if it is the peer of an IPv6 socket."""
    return address.removeprefix("::ffff:")
