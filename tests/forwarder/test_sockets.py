"""Options and addresses of sockets."""

import errno
import socket as addresses
import sys
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pytest
import zmq
from open_sockets import Sockets

from channels_zmq_forwarder import sockets as module
from channels_zmq_forwarder.sockets import (
    AddressError,
    accept_options,
    bind,
    guard,
    heartbeats,
    is_local,
    number,
    readable,
    resolve,
    resolve_pairs,
    use_ipv6,
)

GREETING = b"\xff"
"""The first byte of ZMTP."""


def has_ipv6() -> bool:
    try:
        with addresses.create_server(("::1", 0), family=addresses.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    "address, reached_by",
    [
        ("tcp://127.0.0.1:*", ["127.0.0.1"]),
        ("tcp://localhost:*", ["127.0.0.1"]),
        pytest.param("tcp://[::1]:*", ["[::1]"], marks=needs_ipv6),
        pytest.param("tcp://[::]:*", ["[::1]", "127.0.0.1"], marks=needs_ipv6),
        pytest.param("tcp://*:*", ["[::1]", "127.0.0.1"], marks=needs_ipv6),
    ],
)
def test_addresses_of_both_families_are_bound(
    sockets: Sockets[zmq.Socket[bytes]], address: str, reached_by: list[str]
) -> None:
    """A wildcard address binds all interfaces of both families, so that clients reach a pod by an address of either."""
    pull = sockets.open(zmq.PULL)
    port = bind(pull, address).rpartition(":")[2]
    for host in reached_by:
        push = sockets.open(zmq.PUSH)
        target = f"tcp://{host}:{port}"
        use_ipv6(push, target)
        push.connect(target)
        push.send(host.encode())
        assert pull.poll(5_000), f"{address} is not reached by {target}"
        assert pull.recv() == host.encode()


@pytest.mark.parametrize("error", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_all_interfaces_are_bound_without_ipv6_too(error: int) -> None:
    """Without IPv6 a wildcard address is bound to IPv4 alone, and an IPv6 literal is an error."""

    class Socket:
        def __init__(self) -> None:
            self.options: dict[int, bool] = {}

        def set(self, option: zmq.SocketOption, value: bool) -> None:
            self.options[option] = value

        def bind(self, address: str) -> None:
            if self.options[zmq.IPV6]:
                raise zmq.ZMQError(error)

        def get(self, option: zmq.SocketOption) -> bytes:
            return b"tcp://0.0.0.0:5555\0"

    assert bind(cast(Any, Socket()), "tcp://*:5555") == "tcp://0.0.0.0:5555"
    with pytest.raises(AddressError):
        bind(cast(Any, Socket()), "tcp://[::1]:5555")


@pytest.mark.parametrize(
    "found, resolved",
    [
        (["fd00::1"], ["tcp://[fd00::1]:5555"]),
        (["10.0.0.1", "10.0.0.2", "10.0.0.1"], ["tcp://10.0.0.1:5555", "tcp://10.0.0.2:5555"]),
        (["fd00::1", "10.0.0.1"], ["tcp://[fd00::1]:5555", "tcp://10.0.0.1:5555"]),
    ],
)
def test_a_name_stands_for_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch, found: list[str], resolved: list[str]
) -> None:
    """A name resolves to all its addresses, of either family, in the system's order."""
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **more: [(0, 0, 0, "", (at, 0)) for at in found])
    assert resolve("tcp://forwarder:5555") == resolved


@pytest.mark.parametrize(
    "address", ["tcp://*:1", "tcp://[::1]:1", "tcp://127.0.0.1:1", "tcp://lo:1", "ipc:///run/f", "inproc://f"]
)
def test_other_addresses_are_not_resolved(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Literals, interfaces and addresses of other transports are returned unchanged."""
    monkeypatch.setattr(module, "_interfaces", lambda: {"lo"})
    assert resolve(address) == [address]


def test_a_name_that_cannot_be_resolved_is_named(sockets: Sockets[zmq.Socket[bytes]]) -> None:
    """A name that cannot be resolved raises AddressError with the address and the system's reason."""
    with pytest.raises(AddressError, match=r"cannot bind tcp://nowhere.invalid:5555: "):
        bind(sockets.open(zmq.PULL), "tcp://nowhere.invalid:5555")


def test_a_pair_of_paths_is_not_resolved() -> None:
    """A pair of ipc paths is returned unchanged, since only names are resolved."""
    pair = "ipc:///run/pull", "ipc:///run/pub"
    assert resolve_pairs(*pair) == [pair]


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.example"])
def test_an_invalid_host_name_is_an_error_like_any_other(host: str) -> None:
    """An invalid host name raises OSError, where Python raises `UnicodeError`.

    Such a name results, for example, from an empty variable in it.
    """
    with pytest.raises(OSError, match="invalid host name"):
        resolve(f"tcp://{host}:5555")


def test_an_address_in_use_is_named(sockets: Sockets[zmq.Socket[bytes]]) -> None:
    """An address in use raises AddressError with the address and the reason."""
    one, other = sockets.open(zmq.PULL), sockets.open(zmq.PULL)
    address = bind(one, "tcp://127.0.0.1:*")
    assert not address.endswith("*")
    with pytest.raises(AddressError, match=f"cannot bind {address}: Address already in use"):
        bind(other, address)


def test_an_ipc_address_without_a_folder_is_refused(tmp_path: Path) -> None:
    """An ipc address in a missing folder is refused by its lock file, before ZeroMQ refuses it."""
    with pytest.raises(AddressError, match="No such file"):
        guard(f"ipc://{tmp_path}/none/pub")


def test_without_file_locks_an_ipc_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without file locks, as on Windows, an ipc path is refused.

    Two processes would take it from each other unnoticed.
    """
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(AddressError, match=r"cannot bind ipc://.*: this system cannot lock ipc paths, so use tcp://"):
        guard(f"ipc://{tmp_path}/pub")


def guarded(address: str) -> IO[str]:
    lock = guard(address)
    assert lock is not None
    return lock


def test_a_lock_file_is_not_written_through_a_symbolic_link(tmp_path: Path) -> None:
    """A lock file is not written through a symbolic link.

    Otherwise a user who may write to the folder could make the forwarder empty any of its files.
    """
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "pub.lock").symlink_to(victim)
    with pytest.raises(AddressError, match="cannot write its lock file"):
        guard(f"ipc://{tmp_path}/pub")
    assert victim.read_text() == "precious"


def test_a_lock_file_is_for_its_owner_alone_and_keeps_what_it_holds(tmp_path: Path) -> None:
    """A lock file is accessible to its owner alone, and keeps its content."""
    lock = tmp_path / "pub.lock"
    with guarded(f"ipc://{tmp_path}/pub"):
        assert lock.stat().st_mode & 0o777 == 0o600
    lock.write_text("kept")
    with guarded(f"ipc://{tmp_path}/pub"):
        assert lock.read_text() == "kept"


def test_a_peer_that_does_not_complete_its_handshake_is_disconnected(
    sockets: Sockets[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that does not complete its handshake is disconnected: idle connections would use up the descriptors."""
    monkeypatch.setattr(module, "HANDSHAKE", 100)
    pull = sockets.open(zmq.PULL)
    accept_options(pull, 1000)
    address = bind(pull, "tcp://127.0.0.1:*")
    with addresses.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10) as peer:
        received = b"".join(iter(partial(peer.recv, 1000), b""))  # to the end of the connection
    assert received.startswith(GREETING)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "ipc://@abstract", "ipc://*"])
def test_other_addresses_need_no_lock_file(address: str) -> None:
    """TCP and abstract addresses need no lock file: TCP refuses a second bind, and an abstract address has no file."""
    assert guard(address) is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.8.0.1:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("ipc:///tmp/pub", True),
        ("tcp://*:1", False),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://eth0:1", False),
    ],
)
def test_a_local_address_is_told_from_others(address: str, expected: bool) -> None:
    """An address is local if it is a path, `localhost` or a loopback literal, without a DNS query."""
    assert is_local(address) is expected


def test_options_are_read(sockets: Sockets[zmq.Socket[bytes]]) -> None:
    """An integer option of a socket is returned as an int."""
    socket = sockets.open(zmq.PULL)
    assert number(socket, zmq.RCVHWM) == 1_000
    assert not readable(socket)


@pytest.mark.parametrize("max_frame, timeout", [(0, 2000), (2**20, 2524), (64 * 2**20, 35_554)])
def test_the_patience_of_heartbeats_grows_with_the_largest_frame(
    sockets: Sockets[zmq.Socket[bytes]], max_frame: int, timeout: int
) -> None:
    """The heartbeat timeout grows with the largest frame, since a frame in flight delays heartbeats.

    On a link of 16 Mbit/s it takes half a second for each megabyte.
    """
    options = heartbeats(max_frame)
    assert options == {zmq.HEARTBEAT_IVL: 1000, zmq.HEARTBEAT_TIMEOUT: timeout}
    socket = sockets.open(zmq.XSUB)
    for option, value in options.items():
        socket.set(option, value)
        assert socket.get(option) == value
