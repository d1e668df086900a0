"""The connections to a publishing socket: which subscribers are too far behind, and how one connection is ended."""

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
"""More than a subscriber may be behind, and more than the system buffers for a connection."""

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
        """Return a subscriber that buffers no more than one frame."""
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
        """Return a connection to the publisher that does not speak ZeroMQ."""
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
    """Return a function that creates a publisher."""
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
    """A subscriber that falls too far behind is disconnected, and one that reads everything receives everything."""
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
    """A slow subscriber may connect again after it is disconnected; the messages that waited for it are lost."""
    publisher = make()
    slow = publisher.subscribe()
    while not publisher.look():
        publisher.publish()
    assert publisher.xpub.recv() == b"\0"
    while not publisher.xpub.poll(0):  # it notices the end once it has read the frames before it
        if slow.poll(1):
            read(slow)
    assert publisher.xpub.recv() == b"\1"
    publisher.publish()
    read(slow)


def test_a_subscriber_that_reads_late_is_not_behind(make: Callable[..., Publisher]) -> None:
    """A subscriber that reads late is not behind, as the bytes that it has received do not count."""
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
    """A new connection is not judged by the bytes of the previous connection with its descriptor.

    A client may be replaced between two looks, while both connections are busy.
    """
    acknowledged = 500 * BEHIND
    monkeypatch.setattr(connections, "_has_unsent", lambda descriptor: True)
    monkeypatch.setattr(connections, "_acknowledged", lambda descriptor: acknowledged)
    known = SimpleNamespace(peers={7: Peer("10.0.0.1", 1)}, turn=lambda: None)
    slow = SlowSubscribers(cast(Connections, known), BEHIND)
    assert slow.look(BEHIND) == []
    known.peers, acknowledged = {7: Peer("10.0.0.2", 2)}, 0
    assert slow.look(2 * BEHIND) == []


def test_a_subscriber_of_other_topics_is_not_behind(make: Callable[..., Publisher]) -> None:
    """A subscriber of other topics is not behind although it reads nothing, since nothing waits for it."""
    publisher = make()
    publisher.subscribe(b"other")
    for _ in range(FAR // len(FRAME)):
        publisher.publish()
        assert publisher.look() == []


@pytest.mark.parametrize("case", ["no bound", "ipc"])
def test_a_connection_that_cannot_or_need_not_be_judged_stays(
    make: Callable[..., Publisher], tmp_path: Path, case: str
) -> None:
    """Without a bound, and over a local socket, no subscriber is disconnected.

    The system does not report how much the peer of a local socket has received.
    """
    publisher = make(behind=0) if case == "no bound" else make(f"ipc://{tmp_path}/pub")
    publisher.subscribe()
    for _ in range(FAR // len(FRAME)):
        publisher.publish()
        assert publisher.look() == []


def test_a_look_is_due_when_enough_was_published(make: Callable[..., Publisher]) -> None:
    """Connections are checked only after enough was published, since checking a thousand takes a millisecond."""
    publisher = make()
    assert [publisher.slow.is_due(published) for published in (0, BEHIND // 16 - 1, BEHIND // 16)] == [0, 0, 1]
    publisher.slow.look(BEHIND)
    assert [publisher.slow.is_due(BEHIND + more) for more in (0, BEHIND // 16)] == [False, True]


def test_a_descriptor_that_belongs_to_another_connection_meanwhile_is_left_alone(
    make: Callable[..., Publisher],
) -> None:
    """A descriptor that now belongs to another connection is left alone: the system reuses numbers of closed files."""
    publisher = make()
    subscriber = publisher.subscribe()
    (descriptor,) = publisher.connections.peers
    publisher.connections.peers[descriptor] = Peer("127.0.0.1", 1)
    publisher.connections.end(descriptor)
    publisher.publish()
    read(subscriber)


def test_a_descriptor_that_is_closed_meanwhile_is_left_alone(make: Callable[..., Publisher]) -> None:
    """Ending or checking a connection whose descriptor is closed does not fail."""
    publisher = make()
    publisher.connections.peers[2**20] = Peer("127.0.0.1", 1)
    publisher.connections.end(2**20)
    publisher.published = BEHIND
    assert publisher.look() == []


def test_a_descriptor_that_belongs_to_a_file_meanwhile_is_left_alone(
    make: Callable[..., Publisher], tmp_path: Path
) -> None:
    """A descriptor that now belongs to a file stays open, and no other descriptor is leaked."""
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
    """On Windows no connection is ended, since the number of a socket may be that of a file."""
    publisher = make()
    publisher.subscribe()
    publisher.connections.turn()
    (descriptor,) = publisher.connections.peers
    monkeypatch.setattr(connections, "os", SimpleNamespace(name="nt"))
    assert not publisher.connections.end(descriptor)
    monkeypatch.undo()
    assert publisher.connections.end(descriptor)


def test_a_connection_is_ended_when_no_descriptor_is_left(make: Callable[..., Publisher]) -> None:
    """A connection, for example of a revoked key, is ended even if its peer has used up all descriptors."""
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
    """A step processes a bounded number of events, so that a flood of connections lets the rest of the program run."""
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
    """A refused peer is not logged with the address of a new connection that has its descriptor.

    A descriptor is free as soon as a connection has ended. It is better to log no address than a wrong one.
    """
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
    """A peer is formatted as people write addresses, for log lines."""
    assert str(peer) == shown
