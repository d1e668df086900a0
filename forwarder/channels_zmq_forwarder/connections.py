"""The single connections of a bound socket: lists them, measures how far a peer is behind, ends one of them.

libzmq has no functions for this. Its monitor reports the file descriptor of each connection, and the system reports the
unsent and the acknowledged bytes of a descriptor. libzmq cannot close a single connection, but it drops a broken one.
"""

import array
import ctypes
import os
import socket as sockets
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import zmq

from channels_zmq_forwarder.sockets import next_event

try:  # not when they are needed: there may be no descriptor left to open a module by
    import fcntl
    import resource
except ImportError:  # on Windows, where nothing calls them
    pass

_WATCHED = (
    zmq.Event.LISTENING
    | zmq.Event.ACCEPTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)
_FAILED = (zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)
_UNSENT = 0x894B
"""SIOCOUTQNSD of linux/sockios.h: bytes in the send queue of a TCP connection that were not sent yet."""
_BYTES = struct.Struct("=120xQQ")
"""Of `struct tcp_info` in linux/tcp.h: `tcpi_bytes_acked` and `tcpi_bytes_received`."""
GREETING = 64
"""Bytes that a peer sends before the commands of its handshake (ZeroMQ RFC 23, ZMTP 3.0)."""
EVENTS = 1000
"""Events that are processed in one step."""
DEFERRED = 5
"""Seconds that the system keeps a connection back whose peer sends nothing; Linux prolongs it to 7."""
_DESCRIPTORS = "/proc/self/fd"
_ATTACH_FILTER, _DETACH_FILTER = 26, 27
"""SO_ATTACH_FILTER and SO_DETACH_FILTER of asm-generic/socket.h."""
_DROP = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""A socket filter of one instruction: keep 0 bytes of each packet (BPF_RET | BPF_K)."""
_FILTER = struct.Struct("@HP")
"""`struct sock_fprog`: the number of instructions, and where they are."""
LOOKS = 16
"""Number of checks while the largest permitted backlog is published."""


class Peer(NamedTuple):
    """The remote end of a connection; the port is 0 for a local socket."""

    host: str
    port: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


_UNKNOWN = Peer("a closed connection")


class Breaker:
    """Ends connections that libzmq reads, but none on Windows. Needs no further descriptor: there may be none left."""

    def __init__(self) -> None:
        self._nothing = os.open(os.devnull, os.O_RDONLY)
        self._copy = os.dup(self._nothing)

    def end(self, descriptor: int, peer: Peer | None) -> bool:
        """End the connection of a peer, whose frames that wait are lost; return whether it was open and could end."""
        if os.name == "nt":  # its socket is not a file descriptor there
            return False
        with suppress(OSError):  # closed; another file may have its number by now
            os.dup2(descriptor, self._copy, inheritable=False)
            try:
                with _borrowed(self._copy) as copy:
                    if _peer_of(copy) == peer:
                        _break(copy)
                        return True
            finally:
                os.dup2(self._nothing, self._copy, inheritable=False)
        return False

    def close(self) -> None:
        """Close its own descriptors."""
        os.close(self._copy)
        os.close(self._nothing)


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
        self.accepted: list[Callable[[int], None]] = []
        """Each is called with the descriptor of each new connection."""
        self.gone: Callable[[int], None] = lambda descriptor: None
        """Called with the descriptor of each connection that has ended."""
        self._socket, self._refused = socket, refused
        self.monitor: zmq.Socket[bytes] = socket.get_monitor_socket(int(_WATCHED))
        """The socket to watch: `turn` is due when it is readable."""
        self._has_failed = False
        self._listeners: list[int] = []
        self._breaker = Breaker()

    def turn(self) -> None:
        """Process all events. Never blocks."""
        while self.step():
            pass

    def step(self) -> bool:
        """Process the events that have arrived, `EVENTS` at most; return whether there may be more."""
        arrived: list[tuple[int, int, Peer | None]] = []
        with suppress(zmq.Again):
            while len(arrived) < EVENTS:
                event, descriptor = next_event(self.monitor)
                # At once, because the peer of a connection that has ended can no longer be looked up.
                arrived.append((event, descriptor, _peer(descriptor) if event == zmq.Event.ACCEPTED else None))
        for event, descriptor, peer in arrived:
            self._process(event, descriptor, peer)
        return len(arrived) == EVENTS

    def _process(self, event: int, descriptor: int, peer: Peer | None) -> None:
        # The event of a failure does not name its connection. Events that carry its descriptor precede it (accepted)
        # and follow it (disconnected).
        if peer is not None:
            self.peers[descriptor] = peer
            for accepted in self.accepted:
                accepted(descriptor)
        elif event == zmq.Event.LISTENING:
            self._listeners.append(descriptor)
        elif event in _FAILED:
            self._has_failed = True
        elif event == zmq.Event.DISCONNECTED:
            self.keys.pop(descriptor, None)
            self.gone(descriptor)
            failed, self._has_failed = self._has_failed, False
            peer = self.peers.pop(descriptor, _UNKNOWN)
            if failed and self._refused is not None:
                # A peer that is still connected belongs to a later connection with the same number, which was there
                # already when the peer was looked up.
                self._refused(_UNKNOWN if peer == _peer(descriptor) else peer)

    def end(self, descriptor: int) -> bool:
        """End a connection. Frames that wait for its peer are lost; the peer may reconnect.

        Returns:
            Whether it was still open, and could end.
        """
        self.keys.pop(descriptor, None)
        return self._breaker.end(descriptor, self.peers.get(descriptor))

    def defer(self) -> None:
        """Let the system keep further connections back until their peers have sent something, as ZMTP peers do.

        A connection whose peer sends nothing takes no descriptor meanwhile; it is accepted after `DEFERRED`. In return
        more addresses of refused peers are lost: as the greeting is there already, such a connection ends at once.
        """
        for listener in self._listeners:
            with suppress(OSError, AttributeError), _borrowed(listener) as socket:  # local, or not on Linux
                socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_DEFER_ACCEPT, DEFERRED)

    def close(self) -> None:
        """Stop watching, because the socket is about to be closed."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)
        self._breaker.close()


class TcpSockets:
    """The TCP connections of this process to some of its ports, and their listeners, on Linux.

    Unlike `Connections` it includes those whose events have not been read yet, and may be used by any thread.
    """

    def __init__(self, ports: Collection[int]) -> None:
        self._ports = ports

    def received(self) -> dict[tuple[int, Peer], int]:
        """Return how many bytes the peer of each connection has sent."""
        received = {}
        for socket in self._each(listening=False):
            with suppress(OSError, struct.error):
                received[socket.fileno(), _peer_of(socket)] = _passed(socket)[1]
        return received

    def refuse(self) -> None:
        """Let the system drop attempts to connect; peers repeat them."""
        program = ctypes.create_string_buffer(_DROP)
        for socket in self._each(listening=True):
            with suppress(OSError):
                socket.setsockopt(sockets.SOL_SOCKET, _ATTACH_FILTER, _FILTER.pack(1, ctypes.addressof(program)))

    def accept(self) -> None:
        """Let peers connect again, after `refuse`."""
        for socket in self._each(listening=True):
            with suppress(OSError):
                socket.setsockopt(sockets.SOL_SOCKET, _DETACH_FILTER, 0)

    def _each(self, *, listening: bool) -> Iterator[sockets.socket]:
        for descriptor in _descriptors():
            with suppress(OSError, IndexError), _borrowed(descriptor) as socket:
                is_listener = socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_ACCEPTCONN) == 1
                if is_listener == listening and socket.getsockname()[1] in self._ports:
                    yield socket


@dataclass(slots=True)
class _Behind:
    """When a subscriber was first seen not to have taken everything: bytes published and acknowledged until then."""

    published: int
    acknowledged: int


class SlowSubscribers:
    """Ends the connections of subscribers that fall far behind, so that the memory which waits for them is bounded.

    libzmq bounds the number of messages that wait for a subscriber, but not their size. The waiting bytes are at most
    those that were published since the connection was first seen to have something left to send, without those that its
    peer has acknowledged since, and a little that was there before. A subscriber of few topics is thus overrated, but
    only while its connection is stuck at every check.

    Only TCP connections on Linux are checked.

    Args:
        connections: Those of the publishing socket.
        max_bytes: The largest permitted backlog of a subscriber, approximately; 0 for no bound.
    """

    def __init__(self, connections: Connections, max_bytes: int) -> None:
        self.max_bytes = max_bytes if sys.platform == "linux" else 0
        self._connections = connections
        self._looked_at = 0
        self._behind: dict[tuple[int, Peer], _Behind] = {}  # another peer's connection may get the same descriptor

    def is_due(self, published: int) -> bool:
        """Return whether enough was published since the last check for another one."""
        return self.max_bytes > 0 and published >= self._looked_at + self.max_bytes // LOOKS

    def look(self, published: int) -> list[Peer]:
        """Check all connections if that is due.

        Args:
            published: Bytes that were published since the start.

        Returns:
            The peers whose connections were ended.
        """
        if not self.is_due(published):
            return []
        self._connections.turn()
        behind: dict[tuple[int, Peer], _Behind] = {}
        ended = []
        for descriptor, peer in list(self._connections.peers.items()):
            if not _has_unsent(descriptor) or (acknowledged := _acknowledged(descriptor)) is None:
                continue
            start = self._behind.get((descriptor, peer)) or _Behind(published, acknowledged)
            if published - start.published - (acknowledged - start.acknowledged) > self.max_bytes:
                if self._connections.end(descriptor):
                    ended.append(peer)
            else:
                behind[descriptor, peer] = start
        self._behind, self._looked_at = behind, published
        return ended


def _descriptors() -> Iterable[int]:
    """Return the descriptors of this process that are open, and perhaps some that are not; empty except on Linux."""
    try:
        return map(int, os.listdir(_DESCRIPTORS))
    except FileNotFoundError:
        return ()
    except OSError:  # listing them needs a descriptor, and all are in use
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _passed(connection: sockets.socket) -> tuple[int, int]:
    """Return how many bytes a peer has acknowledged and sent; raises OSError or struct.error if that is unknown."""
    acknowledged, received = _BYTES.unpack(connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _BYTES.size))
    return int(acknowledged), int(received)


def _acknowledged(descriptor: int) -> int | None:
    """Return how many bytes a peer has acknowledged; None if it has ended, or is not a TCP connection on Linux."""
    with suppress(OSError, struct.error), _borrowed(descriptor) as connection:
        return _passed(connection)[0]
    return None


def is_silent(descriptor: int) -> bool:
    """Return whether a peer has sent no more than a greeting; False for what is not a TCP connection on Linux."""
    with suppress(OSError, struct.error), _borrowed(descriptor) as connection:
        return _passed(connection)[1] <= GREETING
    return False


def _has_unsent(descriptor: int) -> bool:
    unsent = array.array("i", [0])
    with suppress(OSError):  # it has ended, or it is not a TCP connection
        fcntl.ioctl(descriptor, _UNSENT, unsent)
    return unsent[0] > 0


def _break(connection: sockets.socket) -> None:
    """Break a connection that libzmq reads.

    After `shutdown` libzmq continues to read from a TCP connection for as long as the peer sends. Connecting it to no
    address resets it, and drops unread bytes.
    """
    no_address = bytes(16)  # of the family AF_UNSPEC
    if connection.family == sockets.AF_UNIX or ctypes.CDLL(None).connect(connection.fileno(), no_address, 16):
        connection.shutdown(sockets.SHUT_RDWR)


@contextmanager
def _borrowed(descriptor: int) -> Iterator[sockets.socket]:
    """Yield a socket of a descriptor that its owner opens and closes."""
    connection = sockets.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _peer(descriptor: int) -> Peer:
    with suppress(OSError), _borrowed(descriptor) as connection:
        return _peer_of(connection)
    return _UNKNOWN


def _peer_of(socket: sockets.socket) -> Peer:
    name = socket.getpeername()
    return Peer(plain_host(str(name[0])), int(name[1])) if isinstance(name, tuple) else Peer("a local socket")


def plain_host(host: str) -> str:
    """Return an IPv4 address as such, even if it is the peer of an IPv6 socket."""
    return host.removeprefix("::ffff:")
