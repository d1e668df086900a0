"""Helpers for ZeroMQ sockets, in the forwarder and in the library: options, addresses, binding, the fast `send`.

In the data-flow diagram these are the ends of the arrows: XPUB, PULL and the sockets that connect to them. An address
that cannot be bound is an `AddressError`.
"""

import errno
import os
import socket as addresses
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import IO, cast

import zmq
from zmq.backend import zmq_poll

from channels_zmq_forwarder import wire

IPC = "ipc://"
TCP = "tcp://"
EVERYWHERE = "tcp://*:"
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
HANDSHAKE = 5_000
"""Milliseconds within which a peer has to complete its handshake."""
UNACKNOWLEDGED = 10_000
"""Milliseconds after which Linux ends a connection whose peer acknowledges nothing that it was sent.

Heartbeats do not detect that in the middle of a frame: libzmq sends none before the rest of it.
"""
SLOWEST_LINK = 16_000_000
"""Bits per second between an exchange and each of its clients, all busy at once."""


class AddressError(Exception):
    """An address cannot be bound; the message names it and the reason."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Bounds of the sockets of an exchange.

    Attributes:
        publish: High-water mark of each subscriber, in frames.
        max_frame: Bytes of the largest frame; a larger one closes its connection.
        max_upstream: The same for frames of subscribers.
        behind: Bytes that a subscriber may be behind; its connection is ended beyond that. 0 for any number.
        topics: Bytes that all topics may have together; a quarter of it may count for one subscriber.
    """

    publish: int = 100_000
    max_frame: int = 2**20 + wire.MAX_OVERHEAD
    max_upstream: int = wire.MAX_UPSTREAM
    behind: int = 64 * 2**20
    topics: int = 32 * 2**20


_MONITOR_EVENT = struct.Struct("=HI")
"""The head of an event in `zmq_socket_monitor(3)`: its kind, and its value, mostly the descriptor of a connection."""


def next_event(monitor: "zmq.Socket[bytes]") -> tuple[int, int]:
    """Return the next event of a monitor, its kind and value; `zmq.utils.monitor` would import pyzmq's asyncio part.

    Raises:
        zmq.Again: If none has arrived.
    """
    head, _ = monitor.recv_multipart(zmq.DONTWAIT)
    event, value = _MONITOR_EVENT.unpack(head)
    return event, value


def use_ipv6(socket: "zmq.Socket[bytes]", address: str) -> None:
    """Prepare a socket for the address that it binds or connects to next: IPv6 literals, and all interfaces, need it.

    With the option an IPv4 literal would be bound as an IPv4-mapped address, and a name would be resolved to IPv6 even
    if no peer listens on it: resolve names first, see `resolve`.
    """
    socket.set(zmq.IPV6, address.startswith(("tcp://[", EVERYWHERE)))


def resolve(address: str) -> list[str]:
    """Return a TCP address with the host's name replaced by each of its IP addresses, in the system's order.

    Any other address is returned as it is: a literal, `*`, the name of a network interface, `ipc://`, `inproc://`.
    Blocks while the system resolves the name, so it must not be called on an event loop.

    Raises:
        OSError: If the name cannot be resolved.
    """
    host, _, port = address.removeprefix(TCP).rpartition(":")
    if not address.startswith(TCP) or host == "*" or host.startswith("[") or host in _interfaces():
        return [address]
    try:
        found = addresses.getaddrinfo(host, None, type=addresses.SOCK_STREAM)
    except UnicodeError:  # a label is empty, or too long
        raise OSError(errno.EINVAL, "invalid host name") from None
    hosts = dict.fromkeys(str(at[0]) for *_, at in found)
    return [f"{TCP}[{at}]:{port}" if ":" in at else f"{TCP}{at}:{port}" for at in hosts]


def resolve_pairs(pull: str, pub: str) -> list[tuple[str, str]]:
    """Return the two addresses of every forwarder that two names lead to.

    If a name has addresses of both families, only those of IPv4 count: they lead to the same forwarders. If both
    addresses have one name, it is resolved once, since two answers may differ while forwarders start and end. If two
    names share hosts, only these count; otherwise the sorted addresses are paired. Blocks while the system resolves.

    Raises:
        OSError: If a name cannot be resolved.
    """
    pubs = _preferred(resolve(pub))
    if pull.startswith(TCP) and pub.startswith(TCP) and host_of(pull) == host_of(pub):
        port = pull.rpartition(":")[2]
        return [(f"{TCP}{host_of(one)}:{port}", one) for one in sorted(pubs)]
    pulls = _preferred(resolve(pull))
    by_host = {host_of(one): one for one in pulls}
    shared = [(by_host[host_of(one)], one) for one in sorted(pubs) if host_of(one) in by_host]
    return shared or list(zip(sorted(pulls), sorted(pubs), strict=False))


def _preferred(found: list[str]) -> list[str]:
    return [one for one in found if not one.startswith(f"{TCP}[")] or found


def host_of(address: str) -> str:
    """Return the host of a TCP address, an IPv6 address in its brackets."""
    return address.removeprefix(TCP).rpartition(":")[0]


def _interfaces() -> set[str]:
    return {name for _, name in addresses.if_nameindex()}


def is_local(address: str) -> bool:
    """Return whether only processes of this machine can reach an address; names are not resolved."""
    if not address.startswith(TCP):
        return True
    host = host_of(address).strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def heartbeats(max_frame: int) -> dict[zmq.SocketOption, int]:
    """Return the options by which both ends of a subscriber's connection detect that the other one is lost.

    A frame under way holds up the heartbeats behind it. So the patience is 2 s, and the time that the largest frame
    takes on the slowest link: on a slower one healthy connections would be cut in the middle of a frame.
    """
    return {zmq.HEARTBEAT_IVL: 1000, zmq.HEARTBEAT_TIMEOUT: 2000 + round(1000 * longest_transfer(max_frame))}


def longest_transfer(size: int) -> float:
    """Return the seconds that a number of bytes takes on a link of `SLOWEST_LINK`."""
    return 8 * size / SLOWEST_LINK


def plain_send(socket: "zmq.Socket[bytes]") -> Callable[[bytes, int], object]:
    """Return the C implementation of `send` without pyzmq's wrapper: 290 ns a frame instead of 430, with `recv`."""
    return cast(Callable[[bytes, int], object], super(zmq.Socket, socket).send)


def accept_options(socket: "zmq.Socket[bytes]", max_frame: int) -> None:
    """Set the options of every socket that untrusted peers may connect to.

    It has no receive mark. libzmq stops reading from a connection at the mark. If the peer ends the connection then,
    and has sent a heartbeat before, libzmq aborts the process (`Assertion failed: !_io_error`).
    """
    socket.set(zmq.RCVHWM, 0)
    socket.set(zmq.MAXMSGSIZE, max_frame)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE)
    socket.set(zmq.BACKLOG, 4096)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 5)
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 2)
    socket.set(zmq.TCP_KEEPALIVE_CNT, 3)


def publish_options(xpub: "zmq.Socket[bytes]", marks: Marks) -> None:
    """Set the options of every publishing socket, in a forwarder and in an embedded producer."""
    accept_options(xpub, marks.max_upstream)
    xpub.set(zmq.SNDHWM, marks.publish)
    xpub.set(zmq.LINGER, 1000)
    for option, value in heartbeats(marks.max_frame).items():
        xpub.set(option, value)
    xpub.set(zmq.TCP_MAXRT, UNACKNOWLEDGED)


def bind(socket: "zmq.Socket[bytes]", address: str) -> str:
    """Bind a socket and return its address, with the port that the system chose for `:0` or `:*`.

    `tcp://*:PORT` is IPv6 and IPv4 where the machine has both. Of the addresses of a name an IPv4 one is preferred.

    Raises:
        AddressError: If the address is in use, not of this machine, or invalid.
    """
    try:
        literal = min(resolve(address), key=lambda one: one.startswith("tcp://["))
        use_ipv6(socket, literal)
        try:
            socket.bind(literal)
        except zmq.ZMQError as error:
            if not literal.startswith(EVERYWHERE) or error.errno not in _NO_IPV6:
                raise
            socket.set(zmq.IPV6, False)
            socket.bind(literal)
    except (OSError, zmq.ZMQError) as error:
        raise AddressError(f"cannot bind {address}: {error.strerror}") from error
    return cast(bytes, socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()


def guard(address: str) -> IO[str] | None:
    """Lock the file beside an `ipc://` path, because ZeroMQ lets a second process bind the path and steal it.

    Returns:
        The locked file, to be kept open as long as the socket; None if the address needs no lock.

    Raises:
        AddressError: If the file cannot be written, or if another process holds the lock.
    """
    path = address.removeprefix(IPC)
    if path == address or path.startswith(("@", "*")):
        return None
    try:
        import fcntl  # Windows has none
    except ImportError:
        raise AddressError(f"cannot bind {address}: this system cannot lock ipc paths, so use tcp://") from None
    try:
        # It may lie in a folder that others write to: a symbolic link of theirs is not followed, and nothing truncated.
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        lock = open(descriptor, "r+", encoding="ascii")  # noqa: SIM115 - it stays open as long as the socket
    except OSError as error:
        raise AddressError(f"cannot bind {address}: cannot write its lock file: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise AddressError(f"cannot bind {address}: another process uses it") from error
    return lock


def number(socket: "zmq.Socket[bytes]", option: int) -> int:
    """Return an integer option of a socket."""
    return cast(int, socket.get(option))


def readable(socket: "zmq.Socket[bytes]") -> bool:
    """Return whether a frame can be received now. The call also makes libzmq process pending commands of the socket.

    Other threads run meanwhile, unlike with `zmq.EVENTS`: an XPUB takes in all that its peers have sent, which lasts as
    long as a flood does, and the thread that ends floods must run then.
    """
    return bool(zmq_poll([(socket, zmq.POLLIN)], 0))
