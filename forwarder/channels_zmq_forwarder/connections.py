"""The single connections of a bound socket: lists them, measures how far a peer is behind, ends one of them.

libzmq offers none of this. Its monitor reports the file descriptor of each connection, and the system reports the
unsent and the acknowledged bytes of a descriptor. libzmq cannot close a single connection, but it drops one that is
broken.
"""

import array
import ctypes
import fcntl
import os
import socket as sockets
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

_WATCHED = (
    zmq.Event.ACCEPTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)
_FAILED = (zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)
_UNSENT = 0x894B
"""SIOCOUTQNSD of linux/sockios.h: bytes in the send queue of a TCP connection that were not sent yet."""
_BYTES_ACKED = struct.Struct("=120xQ")
"""Of `struct tcp_info` in linux/tcp.h: `tcpi_bytes_acked`."""
LOOKS = 16
"""Number of looks while the largest permitted backlog is published."""


class Peer(NamedTuple):
    """The remote end of a connection; the port is 0 for a local socket."""

    host: str
    port: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


class Connections:
    """The connections to one socket, by file descriptor. To be made before the socket is bound.

    Args:
        socket: The socket.
        refused: Called with the peer of a handshake that has failed.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", refused: Callable[[Peer], None] | None = None) -> None:
        self.peers: dict[int, Peer] = {}
        self.keys: dict[int, bytes] = {}
        """The CURVE keys of the connections that have sent a frame; `Admission` records them."""
        self.gone: Callable[[int], None] = lambda descriptor: None
        """Called with the descriptor of each connection that has ended."""
        self._socket, self._refused = socket, refused
        self.monitor: zmq.Socket[bytes] = socket.get_monitor_socket(int(_WATCHED))
        """The socket to watch: `turn` is due when it is readable."""
        self._has_failed = False

    def turn(self) -> None:
        """Process all events. Never blocks."""
        with suppress(zmq.Again):
            while True:
                event = recv_monitor_message(self.monitor, zmq.DONTWAIT)
                self._process(event["event"], int(event["value"]))

    def _process(self, event: int, descriptor: int) -> None:
        # The event of a failure does not name its connection. Events that carry its descriptor precede it (accepted)
        # and follow it (disconnected), and by the time of the latter the address can no longer be asked for.
        if event == zmq.Event.ACCEPTED:
            self.peers[descriptor] = _peer(descriptor)
        elif event in _FAILED:
            self._has_failed = True
        elif event == zmq.Event.DISCONNECTED:
            self.keys.pop(descriptor, None)
            self.gone(descriptor)
            failed, self._has_failed = self._has_failed, False
            peer = self.peers.pop(descriptor, Peer("an unknown address"))
            if failed and self._refused is not None:
                self._refused(peer)

    def end(self, descriptor: int) -> bool:
        """End a connection. Frames that wait for its peer are lost; the peer may reconnect.

        Returns:
            Whether it was still open.
        """
        self.keys.pop(descriptor, None)
        with suppress(OSError), _copy(descriptor) as copy:  # closed; another file may have its number by now
            if self.peers.get(descriptor) == _peer_of(copy):
                _break(copy)
                return True
        return False

    def close(self) -> None:
        """Stop watching, because the socket is about to be closed."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)


@dataclass(slots=True)
class _Behind:
    """When a subscriber was first seen not to have taken everything: bytes published and acknowledged until then."""

    published: int
    acknowledged: int


class SlowSubscribers:
    """Ends the connections of subscribers that fall far behind, so that the memory which waits for them is bounded.

    libzmq bounds the number of messages that wait for a subscriber, whatever their size. At most as many bytes wait as
    were published since the connection was first seen to have something left to send, but for those that its peer has
    acknowledged since, and a little that was there before. A subscriber of few topics is thus overrated, but only while
    its connection is stuck at every look.

    Only TCP connections on Linux are looked at.

    Args:
        connections: Those of the publishing socket.
        max_bytes: The largest permitted backlog of a subscriber, approximately; 0 for no bound.
    """

    def __init__(self, connections: Connections, max_bytes: int) -> None:
        self.max_bytes = max_bytes if sys.platform == "linux" else 0
        self._connections = connections
        self._looked_at = 0
        self._behind: dict[int, _Behind] = {}

    def is_due(self, published: int) -> bool:
        """Return whether so much was published since the last look that another one makes sense."""
        return self.max_bytes > 0 and published >= self._looked_at + self.max_bytes // LOOKS

    def look(self, published: int) -> list[Peer]:
        """Look at all connections if that is due.

        Args:
            published: Bytes that were published since the start.

        Returns:
            The peers whose connections were ended.
        """
        if not self.is_due(published):
            return []
        self._connections.turn()
        behind, ended = {}, []
        for descriptor, peer in list(self._connections.peers.items()):
            if not _has_unsent(descriptor) or (acknowledged := _acknowledged(descriptor)) is None:
                continue
            start = self._behind.get(descriptor) or _Behind(published, acknowledged)
            if published - start.published - (acknowledged - start.acknowledged) > self.max_bytes:
                self._connections.end(descriptor)
                ended.append(peer)
            else:
                behind[descriptor] = start
        self._behind, self._looked_at = behind, published
        return ended


def _acknowledged(descriptor: int) -> int | None:
    """Return how many bytes a peer has acknowledged; None if it has ended, or is no TCP connection on Linux."""
    with suppress(OSError, struct.error), _copy(descriptor) as copy:
        info = copy.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _BYTES_ACKED.size)
        return int(_BYTES_ACKED.unpack(info)[0])
    return None


def _has_unsent(descriptor: int) -> bool:
    unsent = array.array("i", [0])
    with suppress(OSError):  # it has ended, or it is no TCP connection
        fcntl.ioctl(descriptor, _UNSENT, unsent)
    return unsent[0] > 0


def _break(connection: sockets.socket) -> None:
    """Break a connection that libzmq reads.

    After `shutdown` libzmq goes on to read from a TCP connection for as long as the peer sends. Connecting it to no
    address resets it, and drops what was not read.
    """
    no_address = bytes(16)  # of the family AF_UNSPEC
    if connection.family == sockets.AF_UNIX or ctypes.CDLL(None).connect(connection.fileno(), no_address, 16):
        connection.shutdown(sockets.SHUT_RDWR)


def _copy(descriptor: int) -> sockets.socket:
    copy = os.dup(descriptor)
    try:
        return sockets.socket(fileno=copy)
    except OSError:  # no socket has this number any more
        os.close(copy)
        raise


def _peer(descriptor: int) -> Peer:
    try:
        with _copy(descriptor) as copy:
            return _peer_of(copy)
    except OSError:
        return Peer("a closed connection")


def _peer_of(socket: sockets.socket) -> Peer:
    name = socket.getpeername()
    return Peer(plain_host(str(name[0])), int(name[1])) if isinstance(name, tuple) else Peer("a local socket")


def plain_host(host: str) -> str:
    """Return an IPv4 address as such, also if it is the peer of an IPv6 socket."""
    return host.removeprefix("::ffff:")
