"""The ZAP server: decides which CURVE keys may connect, and logs the peers that were refused.

ZeroMQ asks it over an inproc socket for each handshake on a guarded socket (ZeroMQ RFC 27, ZAP). A handshake that fails
before that, because the peer has no key or the key of another server, is read from the sockets' monitors. Used by every
side that binds.
"""

import logging
import time
from collections.abc import Callable

import zmq
from zmq.utils import z85

from channels_zmq_forwarder.connections import Connections, Peer, plain_host
from channels_zmq_forwarder.curve import AllowedKeys

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
        self._guarded: dict[zmq.Socket[bytes], Connections] = {}
        self._logged_at: dict[str, float] = {}
        self._not_logged = 0

    @property
    def sockets(self) -> "list[zmq.Socket[bytes]]":
        """The sockets to watch: `turn` is due when one of them is readable."""
        return [self._zap, *(connections.monitor for connections in self._guarded.values())]

    def guard(self, socket: "zmq.Socket[bytes]") -> Connections:
        """Require CURVE and an allowed key of every connection to a socket; to be called before it is bound.

        Returns:
            Its connections, which `turn` keeps up to date.
        """
        socket.curve_secretkey = self._secret_key
        socket.curve_server = True
        socket.zap_domain = b"channels-zmq"
        connections = self._guarded[socket] = Connections(socket, self._was_refused)
        return connections

    def release(self, socket: "zmq.Socket[bytes]") -> None:
        """Forget a socket that is about to be closed."""
        del self._guarded[socket]

    def turn(self) -> None:
        """Answer all pending requests and process all events. Never blocks."""
        while self._answer():
            pass
        for connections in self._guarded.values():
            connections.turn()

    def close(self) -> None:
        """Close the gate's own socket; the guarded ones must be closed before."""
        self._zap.close()

    def _was_refused(self, peer: Peer) -> None:
        self._log_refusal(peer.host, "it has no key, or the key of another server")

    def _answer(self) -> bool:
        try:
            version, request, _, address, _, mechanism, *credentials = self._zap.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        public = z85.encode(credentials[0]) if mechanism == b"CURVE" and credentials else b""
        allowed = bool(public) and (self.allowed is None or public in self.allowed.keys)
        if not allowed:
            host = plain_host(address.decode(errors="replace"))
            self._log_refusal(host or "a local socket", "its key is not allowed")
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
