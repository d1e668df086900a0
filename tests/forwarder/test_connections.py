"""The connections to a publishing socket: who is far behind, and how a single one ends."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import zmq
from descriptors import none_left
from open_sockets import Sockets

from channels_zmq_forwarder import connections
from channels_zmq_forwarder.connections import Connections, Peer, SlowSubscribers

FRAME = bytes(16 * 1024)
BEHIND = 8 * 2**20
FAR = 8 * BEHIND
"""More than a subscriber may be behind, and the system holds for a connection."""

LOCAL = "tcp://127.0.0.1:*"


class Publisher:
    """A publishing socket and its subscribers."""

    def __init__(self, sockets: Sockets[zmq.Socket[bytes]], address: str = LOCAL, behind: int = BEHIND) -> None:
        self._sockets = sockets
        self.xpub = sockets.open(zmq.XPUB)
        self.xpub.set(zmq.XPUB_VERBOSER, 1)
        self.xpub.set(zmq.SNDHWM, 0)
        self.connections = Connections(self.xpub)
        self.slow = SlowSubscribers(self.connections, behind)
        self.xpub.bind(address)
        self.address = self.xpub.get_string(zmq.LAST_ENDPOINT)
        self.published = 0

    def subscribe(self, topic: bytes = b"") -> zmq.Socket[bytes]:
        """Return a subscriber; libzmq reads no more than one frame ahead of it."""
        subscriber = self._sockets.open(zmq.SUB)
        subscriber.set(zmq.RCVHWM, 1)
        subscriber.subscribe(topic)
        subscriber.connect(self.address)
        self.xpub.recv()
        while not self.connections.monitor.poll(0) and not self.connections.peers:
            pass
        self.connections.turn()
        return subscriber

    def connect(self) -> socket.socket:
        """Return a connection to it that speaks no ZeroMQ."""
        port = int(self.address.rpartition(":")[2])
        return socket.create_connection(("127.0.0.1", port), timeout=10)

    def publish(self, count: int = 1) -> None:
        for _ in range(count):
            self.xpub.send(FRAME)
            self.published += len(FRAME)

    def look(self) -> list[Peer]:
        return self.slow.look(self.published)


@pytest.fixture
def make(sockets: Sockets[zmq.Socket[bytes]]) -> Iterator[Callable[..., Publisher]]:
    """Return a function that makes a publisher."""
    made = []

    def make(address: str = LOCAL, **settings: Any) -> Publisher:
        made.append(Publisher(sockets, address, **settings))
        return made[-1]

    yield make
    for publisher in made:
        publisher.connections.close()


def read(subscriber: zmq.Socket[bytes]) -> None:
    assert subscriber.poll(5000)
    assert subscriber.recv() == FRAME


def test_the_connection_of_a_slow_subscriber_is_ended_and_no_other(make: Callable[..., Publisher]) -> None:
    """Once it is further behind than it may be; one that reads everything gets everything."""
    publisher = make()
    fast, _ = publisher.subscribe(), publisher.subscribe()
    slow_peer = list(publisher.connections.peers.values())[-1]
    ended: list[Peer] = []
    while not ended:
        assert publisher.published < FAR
        publisher.publish()
        read(fast)
        ended = publisher.look()
    assert ended == [slow_peer]
    assert publisher.published > BEHIND
    while len(publisher.connections.peers) == 2:
        publisher.connections.turn()
    publisher.publish(10)
    for _ in range(10):
        read(fast)


def test_it_may_connect_anew(make: Callable[..., Publisher]) -> None:
    """What waited for it is lost."""
    publisher = make()
    slow = publisher.subscribe()
    while not publisher.look():
        publisher.publish()
    assert publisher.xpub.recv() == b"\0"
    while not publisher.xpub.poll(0):  # it notices the end once it has read what came before
        if slow.poll(1):
            read(slow)
    assert publisher.xpub.recv() == b"\1"
    publisher.publish()
    read(slow)


def test_a_subscriber_that_reads_late_is_not_behind(make: Callable[..., Publisher]) -> None:
    """What it has taken does not count, whatever was published."""
    publisher = make()
    late = publisher.subscribe()
    for _ in range(FAR // (64 * len(FRAME))):
        publisher.publish(64)
        assert publisher.look() == []
        for _ in range(64):
            read(late)


def test_a_new_connection_is_not_behind_by_what_another_one_of_its_descriptor_has_received(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client was replaced between two looks, and both were busy at that moment."""
    acknowledged = 500 * BEHIND
    monkeypatch.setattr(connections, "_has_unsent", lambda descriptor: True)
    monkeypatch.setattr(connections, "_acknowledged", lambda descriptor: acknowledged)
    known = SimpleNamespace(peers={7: Peer("10.0.0.1", 1)}, turn=lambda: None)
    slow = SlowSubscribers(cast(Connections, known), BEHIND)
    assert slow.look(BEHIND) == []
    known.peers, acknowledged = {7: Peer("10.0.0.2", 2)}, 0
    assert slow.look(2 * BEHIND) == []


def test_a_subscriber_of_other_topics_is_not_behind(make: Callable[..., Publisher]) -> None:
    """Nothing waits for it, although it reads nothing."""
    publisher = make()
    publisher.subscribe(b"other")
    for _ in range(FAR // len(FRAME)):
        publisher.publish()
        assert publisher.look() == []


@pytest.mark.parametrize("case", ["no bound", "ipc"])
def test_a_connection_that_cannot_or_need_not_be_judged_stays(
    make: Callable[..., Publisher], tmp_path: Path, case: str
) -> None:
    """The system does not tell what the peer of a local socket has taken."""
    publisher = make(behind=0) if case == "no bound" else make(f"ipc://{tmp_path}/pub")
    publisher.subscribe()
    for _ in range(FAR // len(FRAME)):
        publisher.publish()
        assert publisher.look() == []


def test_a_look_is_due_when_enough_was_published(make: Callable[..., Publisher]) -> None:
    """A look at a thousand connections takes a millisecond."""
    publisher = make()
    assert [publisher.slow.is_due(published) for published in (0, BEHIND // 16 - 1, BEHIND // 16)] == [0, 0, 1]
    publisher.slow.look(BEHIND)
    assert [publisher.slow.is_due(BEHIND + more) for more in (0, BEHIND // 16)] == [False, True]


def test_a_descriptor_that_belongs_to_another_connection_meanwhile_is_left_alone(
    make: Callable[..., Publisher],
) -> None:
    """The system gives the number of a closed file to the next one."""
    publisher = make()
    subscriber = publisher.subscribe()
    (descriptor,) = publisher.connections.peers
    publisher.connections.peers[descriptor] = Peer("127.0.0.1", 1)
    publisher.connections.end(descriptor)
    publisher.publish()
    read(subscriber)


def test_a_descriptor_that_is_closed_meanwhile_is_left_alone(make: Callable[..., Publisher]) -> None:
    """Nothing fails."""
    publisher = make()
    publisher.connections.peers[2**20] = Peer("127.0.0.1", 1)
    publisher.connections.end(2**20)
    publisher.published = BEHIND
    assert publisher.look() == []


def test_a_descriptor_that_belongs_to_a_file_meanwhile_is_left_alone(
    make: Callable[..., Publisher], tmp_path: Path
) -> None:
    """And all are closed."""
    publisher = make()
    with open(tmp_path / "file", "w") as file:
        publisher.connections.peers[file.fileno()] = Peer("127.0.0.1", 1)
        before = len(os.listdir("/proc/self/fd"))
        publisher.connections.end(file.fileno())
        assert len(os.listdir("/proc/self/fd")) == before
        file.write("still open")


def test_where_sockets_are_no_descriptors_no_connection_is_ended(
    make: Callable[..., Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows: the number of one may be that of a file."""
    publisher = make()
    publisher.subscribe()
    publisher.connections.turn()
    (descriptor,) = publisher.connections.peers
    monkeypatch.setattr(connections, "os", SimpleNamespace(name="nt"))
    assert not publisher.connections.end(descriptor)
    monkeypatch.undo()
    assert publisher.connections.end(descriptor)


def test_a_connection_is_ended_when_no_descriptor_is_left(make: Callable[..., Publisher]) -> None:
    """For example of a revoked key: a peer that uses up the descriptors must not keep it connected."""
    publisher = make()
    publisher.subscribe()
    (descriptor,) = publisher.connections.peers
    with none_left():
        assert publisher.connections.end(descriptor)
    while publisher.connections.peers:
        publisher.connections.turn()


def test_a_step_processes_a_bounded_number_of_events(
    make: Callable[..., Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a flood of connections lets the rest of the program run."""
    publisher = make()
    publisher.subscribe()
    monkeypatch.setattr(connections, "EVENTS", 1)
    with ExitStack() as stack:
        peers = [stack.enter_context(publisher.connect()) for _ in range(2)]
        assert all(peer.recv(1) for peer in peers)
        assert publisher.connections.step()
        assert len(publisher.connections.peers) == 2
        assert publisher.connections.step()
        assert len(publisher.connections.peers) == 3
        assert not publisher.connections.step()


def test_nobody_is_taken_for_a_refused_peer_whose_number_it_has(sockets: Sockets[zmq.Socket[bytes]]) -> None:
    """A number is free as soon as a connection has ended. It is better to log no address than a wrong one."""
    server = sockets.open(zmq.PULL)
    refused: list[Peer] = []
    watched = Connections(server, refused.append)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
        stranger.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"PLAIN".ljust(52, b"\0"))
        with suppress(ConnectionResetError):
            while stranger.recv(100):
                pass
    with socket.create_connection(("127.0.0.1", port), timeout=10) as innocent:
        assert innocent.recv(1)
        watched.turn()
        assert list(watched.peers.values()) == [Peer(*innocent.getsockname())]
        assert refused == [Peer("a closed connection")]
    watched.close()


@pytest.mark.parametrize(
    ("peer", "shown"),
    [(Peer("10.0.0.1", 5), "10.0.0.1:5"), (Peer("::1", 5), "[::1]:5"), (Peer("a local socket"), "a local socket")],
)
def test_a_peer_is_shown_as_people_write_it(peer: Peer, shown: str) -> None:
    """In log lines."""
    assert str(peer) == shown
