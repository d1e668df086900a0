"""The ZAP server: decides which CURVE keys may connect, and logs the peers that were refused.

ZeroMQ asks it over an inproc socket for each handshake on a guarded socket (ZeroMQ RFC 27, ZAP). A handshake that fails
before that, because the peer has no key or the key of another server, is read from the sockets' monitors. Used by every
side that binds.
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import zmq
from zmq.utils import z85

from channels_zmq_forwarder.connections import Connections, Peer, plain_host
from channels_zmq_forwarder.curve import AllowedKeys, public_key

logger = logging.getLogger("channels_zmq_forwarder")

LOG_EVERY = 10.0
"""Seconds between two log lines about refusals of one address."""
LOG_ADDRESSES = 1000
ZAP = "inproc://zeromq.zap.01"


class Gate:
    """Decides which keys may connect to the CURVE sockets of a context, and logs refusals.

    Args:
        context: The context of the sockets; it can have one gate.
        secret_key: The secret key of the side that binds.
        allowed: The keys that may connect; any key if None.
        clock: Monotonic seconds, to limit the rate of log lines.
        warn: Called with each line to log and its arguments.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        secret_key: bytes,
        allowed: AllowedKeys | None,
        clock: Callable[[], float] = time.monotonic,
        warn: Callable[..., None] = logger.warning,
    ) -> None:
        self.allowed = allowed
        self._warn = warn
        self.refused = 0
        """Handshakes that failed."""
        self._secret_key, self._public_key = secret_key, public_key(secret_key)
        self._clock = clock
        self.socket = context.socket(zmq.REP)
        """The socket to watch: `turn` is due when it is readable."""
        self.socket.linger = 0
        self.socket.bind(ZAP)
        self._logged_at: dict[str, float] = {}
        self._not_logged = 0

    def guard(self, socket: "zmq.Socket[bytes]") -> Connections:
        """Require CURVE and an allowed key of every connection to a socket; to be called before it is bound.

        Returns:
            Its connections.
        """
        socket.curve_secretkey = self._secret_key
        socket.curve_server = True
        socket.zap_domain = b"channels-zmq"
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # otherwise every key may connect once this socket is closed
        return Connections(socket, self._was_refused)

    def allows(self, key: bytes) -> bool:
        """Return whether a CURVE key may connect, by the list that is in force; this side's own always may."""
        return self.allowed is None or key in self.allowed.keys or key == self._public_key

    def turn(self) -> None:
        """Answer all pending requests. Never blocks."""
        while self._answer():
            pass

    def close(self) -> None:
        """Close the gate's own socket; the guarded ones must be closed before."""
        self.socket.close()

    def _was_refused(self, peer: Peer) -> None:
        self._log_refusal(peer.host, "it has no key or the key of another server")

    def _answer(self) -> bool:
        try:
            version, request, _, address, _, mechanism, *credentials = self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        public = z85.encode(credentials[0]) if mechanism == b"CURVE" and credentials else b""
        allowed = bool(public) and self.allows(public)
        if not allowed:
            host = plain_host(address.decode(errors="replace"))
            self._log_refusal(host or "a local socket", "its key is not allowed")
        code, text = (b"200", b"OK") if allowed else (b"400", b"not allowed")
        self.socket.send_multipart([version, request, code, text, public if allowed else b"", b""])
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
        self._warn("%s was refused: %s%s", peer, reason, more)


class Arrival(NamedTuple):
    """A frame, and the connection that it arrived by: its file descriptor and its CURVE key.

    The descriptor is None for a frame of libzmq itself, which reports that a connection has ended, and for a peer in
    this process. The key is empty without CURVE.
    """

    frame: bytes
    descriptor: int | None
    key: bytes


class Admission:
    """Receives frames from a socket, and ends the connections of keys that have been revoked.

    A key may be revoked while it is in use. The list that is in force when a frame is read decides.

    Args:
        socket: The socket. An XPUB must report each subscription (`XPUB_VERBOSE`), or a holder of a revoked key may
            continue to receive topics that others had subscribed to before.
        connections: Those of the socket.
        gate: Guards the socket; None if every client may connect.
        dropped: Called with the cause of each frame that is dropped.
    """

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        connections: Connections,
        gate: Gate | None,
        dropped: Callable[[str], None],
    ) -> None:
        self._socket, self._connections, self._gate, self._dropped = socket, connections, gate, dropped

    def recv(self, flags: int) -> Arrival | None:
        """Receive a frame, as `recv` of the socket does; return None if it is dropped."""
        frame = self._socket.recv(flags, copy=False)
        descriptor = _descriptor(frame)
        if descriptor is None or self._gate is None:
            return Arrival(frame.bytes, descriptor, b"")
        key = str(frame.get("User-Id")).encode()
        self._connections.keys[descriptor] = key
        if self._gate.allows(key):
            return Arrival(frame.bytes, descriptor, key)
        self._dropped("revoked_key")
        self._connections.end(descriptor)
        return None

    def end_revoked(self) -> int:
        """End the connections by keys that are not allowed any more; return how many there were.

        A connection that has sent no frame has no subscription, so it receives nothing.
        """
        if self._gate is None:
            return 0
        self._connections.turn()
        keys = self._connections.keys
        revoked = [descriptor for descriptor, key in keys.items() if not self._gate.allows(key)]
        for descriptor in revoked:
            self._connections.end(descriptor)
        return len(revoked)


def _descriptor(frame: zmq.Frame) -> int | None:
    try:
        return int(frame.get(zmq.MessageOption.SRCFD))
    except zmq.ZMQError:
        return None
