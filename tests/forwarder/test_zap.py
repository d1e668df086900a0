"""The keys that may connect to a guarded socket, and keys that are revoked."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from fakes import Clock
from open_sockets import Sockets
from zmq.utils.monitor import recv_monitor_message

from channels_zmq_forwarder import zap
from channels_zmq_forwarder.curve import AllowedKeys, new_pair, secure_client
from channels_zmq_forwarder.sockets import HANDSHAKE
from channels_zmq_forwarder.zap import Admission, Gate


class Peers:
    """A guarded socket, and clients that connect to it."""

    def __init__(self, sockets: Sockets[zmq.Socket[bytes]], allowed: AllowedKeys | None, clock: Clock) -> None:
        self.public, secret = new_pair()
        self.gate = Gate(sockets.context, secret, allowed, clock)
        self._sockets = sockets
        self.socket = self.open()
        self.connections = self.gate.guard(self.socket)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")

    def open(self) -> zmq.Socket[bytes]:
        return self._sockets.open(zmq.PULL)

    def client(self, secret: bytes, *, public: bytes | None = None) -> zmq.Socket[bytes]:
        """Connect and send a frame, which arrives only if the gate allows the key; return the socket."""
        client = self._sockets.open(zmq.PUSH)
        secure_client(client, public or self.public, secret)
        client.set(zmq.HANDSHAKE_IVL, HANDSHAKE)  # as the other side; by default it is 30 s
        client.connect(f"tcp://127.0.0.1:{self.port}")
        client.send(b"hello")
        return client

    def refused(self, count: int) -> None:
        """Run turns until that many connections are refused."""
        while self.gate.refused < count:
            self.turn()

    def turn(self) -> None:
        self.gate.turn()
        self.connections.turn()


@pytest.fixture
def closing() -> Iterator[list[Peers]]:
    """Return a list of peers that are closed at the end."""
    made: list[Peers] = []
    yield made
    for peers in made:
        peers.connections.close()
        peers.socket.close(linger=0)
        peers.gate.close()


@pytest.fixture
def guard(sockets: Sockets[zmq.Socket[bytes]], clock: Clock, closing: list[Peers]) -> Callable[..., Peers]:
    """Return a function that guards a socket with a list of keys."""

    def guard(allowed: AllowedKeys | None) -> Peers:
        closing.append(peers := Peers(sockets, allowed, clock))
        return peers

    return guard


def test_any_key_may_connect_without_a_list(guard: Callable[..., Peers]) -> None:
    """Without a list any key may connect: CURVE then encrypts the traffic and authenticates only the server."""
    peers = guard(None)
    peers.client(new_pair()[1])
    while not peers.socket.poll(0):
        peers.gate.turn()
    assert peers.socket.recv() == b"hello"


@pytest.mark.parametrize("wrong", ["own key", "server's key"])
def test_refusals_are_logged_at_a_limited_rate(
    guard: Callable[..., Peers], clock: Clock, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    """Refusals are logged at a limited rate for each address, and the next line reports how many were not logged."""
    peers = guard(AllowedKeys([new_pair()[0]]))
    other = new_pair()[0] if wrong == "server's key" else None
    with caplog.at_level(logging.WARNING):
        for count in range(1, 4):
            peers.client(new_pair()[1], public=other)
            peers.refused(count)
        assert sum("was refused" in line for line in caplog.messages) <= 2  # a peer that left too fast has no address
        clock.now += zap.LOG_EVERY
        peers.client(new_pair()[1], public=other)
        peers.refused(4)
    assert any("more refusals were not logged" in line for line in caplog.messages)
    assert not peers.socket.poll(0)


def test_nobody_is_let_in_when_the_gate_is_gone(guard: Callable[..., Peers]) -> None:
    """Once the gate is closed no peer can connect, although ZeroMQ accepts every peer by default then."""
    peers = guard(None)
    peers.gate.close()
    client = peers.client(new_pair()[1])
    with client.get_monitor_socket(zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_SUCCEEDED) as monitor:
        assert recv_monitor_message(monitor)["event"] == zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
        client.disable_monitor()
    assert not peers.socket.poll(0)


# Keys that are revoked while they are in use


class Admitted(Peers):
    """A guarded XPUB or PULL that admits frames of allowed keys only, and clients that are connected to it."""

    def __init__(self, sockets: Sockets[zmq.Socket[bytes]], clock: Clock, path: Path, kind: zmq.SocketType) -> None:
        self.path, self.pairs = path, {name: new_pair() for name in ("one", "two")}
        self.allow("one", "two")
        self.dropped: list[str] = []
        self._kind = kind
        self.allowed = AllowedKeys((), path)
        super().__init__(sockets, self.allowed, clock)
        self.admission = Admission(self.socket, self.connections, self.gate, self.dropped.append)

    def open(self) -> zmq.Socket[bytes]:
        socket = self._sockets.open(self._kind)
        if self._kind == zmq.XPUB:
            socket.set(zmq.XPUB_VERBOSE, 1)
        return socket

    def allow(self, *names: str) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(b"\n".join(self.pairs[name][0] for name in names) + b"\n")
        fresh.replace(self.path)

    def connect(self, name: str, kind: zmq.SocketType) -> zmq.Socket[bytes]:
        client = self._sockets.open(kind)
        secure_client(client, self.public, self.pairs[name][1])
        client.connect(f"tcp://127.0.0.1:{self.port}")
        return client

    def subscribe(self, name: str) -> zmq.Socket[bytes]:
        client = self.connect(name, zmq.XSUB)
        client.send(b"\1G")
        assert self.recv() == b"\1G"
        return client

    def recv(self) -> bytes | None:
        while not self.socket.poll(0):
            self.turn()
        arrival = self.admission.recv(zmq.DONTWAIT)
        return None if arrival is None else arrival.frame

    def until_one_is_left(self) -> None:
        while len(self.connections.peers) > 1:
            self.turn()


@pytest.fixture
def admit(
    sockets: Sockets[zmq.Socket[bytes]], clock: Clock, closing: list[Peers], tmp_path: Path
) -> Callable[..., Admitted]:
    """Return a function that creates a socket that admits two keys."""

    def admit(kind: zmq.SocketType) -> Admitted:
        closing.append(admitted := Admitted(sockets, clock, tmp_path / "allowed", kind))
        return admitted

    return admit


def test_a_revoked_key_receives_nothing_more_and_nobody_else_notices(admit: Callable[..., Admitted]) -> None:
    """A client whose key is revoked receives nothing more and cannot reconnect, and other clients miss no message.

    That holds although it subscribes to nothing but the topic of another client, and sends nothing.
    """
    admitted = admit(zmq.XPUB)
    one, two = admitted.subscribe("one"), admitted.subscribe("two")
    admitted.allow("one")
    assert admitted.allowed.refresh()
    assert admitted.admission.end_revoked() == 1
    admitted.until_one_is_left()
    for number in range(20):
        admitted.socket.send(b"G%d" % number)
    assert [one.recv() for _ in range(20)] == [b"G%d" % number for number in range(20)]
    while not admitted.gate.refused:  # it reconnects, and is refused
        admitted.turn()
    assert not two.poll(0)
    assert admitted.admission.end_revoked() == 0


def test_what_a_revoked_key_still_sends_is_dropped_and_ends_its_connection(admit: Callable[..., Admitted]) -> None:
    """A frame of a revoked key is dropped and ends its connection, even if it was sent before the list changed.

    The list decides when a frame is read.
    """
    admitted = admit(zmq.PULL)
    one, two = (admitted.connect(name, zmq.PUSH) for name in ("one", "two"))
    for client in (one, two):
        client.send(b"before")
        assert admitted.recv() == b"before"
    admitted.allow("one")
    admitted.allowed.refresh()
    two.send(b"injected")
    assert admitted.recv() is None
    assert admitted.dropped == ["revoked_key"]
    admitted.until_one_is_left()
    one.send(b"after")
    assert admitted.recv() == b"after"


def test_a_key_that_is_put_back_is_admitted_again(admit: Callable[..., Admitted]) -> None:
    """A key that is put back into the list is admitted again at once, without another key being revoked."""
    admitted = admit(zmq.PULL)
    client = admitted.connect("two", zmq.PUSH)
    for names in (("one",), ("one", "two")):
        admitted.allow(*names)
        admitted.allowed.refresh()
        admitted.admission.end_revoked()
    client.send(b"again")
    assert admitted.recv() == b"again"
