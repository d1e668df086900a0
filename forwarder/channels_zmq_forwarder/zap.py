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

TELL_EVERY = 10.0
"""Seconds between two log lines about refusals of one address."""
TELL_ADDRESSES = 1000
ZAP = "inproc://zeromq.zap.01"
_WATCHED = (
    zmq.Event.ACCEPTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)
_FAILED = (zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)


class Gate:
    """Decides who may connect to the CURVE sockets of a context, and tells of those who may not.

    Args:
        context: Of the sockets; it can have one gate.
        secret_key: Of the side that binds.
        allowed: Who may connect; everybody who knows the public key if None.
        clock: Monotonic seconds, for the rate of log lines.
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
        self._guarded: dict[zmq.Socket[bytes], tuple[zmq.Socket[bytes], _Arrivals]] = {}  # and its monitor
        self._told_at: dict[str, float] = {}
        self._untold = 0

    @property
    def sockets(self) -> "list[zmq.Socket[bytes]]":
        """What to watch: `turn` is due when one of them can be read."""
        return [self._zap, *(monitor for monitor, _ in self._guarded.values())]

    def guard(self, socket: "zmq.Socket[bytes]") -> None:
        """Let only those connect to a socket who may; to be called before it is bound."""
        socket.curve_secretkey = self._secret_key
        socket.curve_server = True
        socket.zap_domain = b"channels-zmq"
        self._guarded[socket] = socket.get_monitor_socket(_WATCHED), _Arrivals()

    def release(self, socket: "zmq.Socket[bytes]") -> None:
        """Watch a socket no more, because it is about to be closed."""
        monitor, _ = self._guarded.pop(socket)
        socket.disable_monitor()
        monitor.close(linger=0)

    def turn(self) -> None:
        """Answer who asks, and read what happened, until nothing is left. Never blocks."""
        while self._answer():
            pass
        for monitor, arrivals in self._guarded.values():
            with suppress(zmq.Again):
                while True:
                    event = recv_monitor_message(monitor, zmq.DONTWAIT)
                    peer = arrivals.refused(event["event"], event["value"])
                    if peer is not None:
                        self._tell(peer, "it has no key, or the key of another server")

    def close(self) -> None:
        """Close its own sockets, once the guarded ones are closed."""
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
            self._tell(_plain(address.decode(errors="replace")) or "a local socket", "its key is not allowed")
        code, text = (b"200", b"OK") if allowed else (b"400", b"not allowed")
        self._zap.send_multipart([version, request, code, text, public if allowed else b"", b""])
        return True

    def _tell(self, peer: str, reason: str) -> None:
        self.refused += 1
        now = self._clock()
        if now - self._told_at.get(peer, -TELL_EVERY) < TELL_EVERY:
            self._untold += 1
            return
        if len(self._told_at) >= TELL_ADDRESSES:
            self._told_at.clear()
        self._told_at[peer] = now
        more = f" ({self._untold} more refusals were not logged)" if self._untold else ""
        self._untold = 0
        logger.warning("%s was refused: %s%s", peer, reason, more)


class _Arrivals:
    """Finds out who it was whose handshake failed: an event with the descriptor comes before, and one after."""

    def __init__(self) -> None:
        self._peers: dict[int, str] = {}
        self._failed = False

    def refused(self, event: int, descriptor: int) -> str | None:
        """Take an event; return the address of a peer that was refused by it."""
        if event == zmq.Event.ACCEPTED:
            self._peers[descriptor] = _peer(descriptor)
        elif event in _FAILED:
            self._failed = True
        elif event == zmq.Event.DISCONNECTED:
            failed, self._failed = self._failed, False
            peer = self._peers.pop(descriptor, "an unknown address")
            return peer if failed else None
        return None


def _peer(descriptor: int) -> str:
    try:
        with sockets.socket(fileno=os.dup(descriptor)) as copy:
            name = copy.getpeername()
    except OSError:
        return "an address that is gone already"
    return _plain(str(name[0])) if isinstance(name, tuple) else "a local socket"


def _plain(address: str) -> str:
    """Return an IPv4 address as such, also if it is the peer of an IPv6 socket."""
    return address.removeprefix("::ffff:")
