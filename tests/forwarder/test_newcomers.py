"""The peers that are disconnected when descriptors run short."""

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import pytest
import zmq
from fakes import Clock
from open_sockets import Sockets
from strangers import RawPeer

from channels_zmq_forwarder.connections import Connections
from channels_zmq_forwarder.newcomers import Newcomers
from channels_zmq_forwarder.sockets import HANDSHAKE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can be asked what a peer has sent")

AT_MOST = 6
USABLE = 8

Peer = TypeVar("Peer", bound=RawPeer | socket.socket)


class Server:
    """Two sockets that share a small number of descriptors."""

    def __init__(self, sockets: Sockets[zmq.Socket[bytes]], clock: Clock) -> None:
        self.sockets = [sockets.open(zmq.PULL) for _ in range(2)]
        self.connections = [Connections(one) for one in self.sockets]
        self.newcomers = Newcomers(self.connections, USABLE, clock)
        self.ports = [one.bind_to_random_port("tcp://127.0.0.1") for one in self.sockets]
        self.peers: list[RawPeer | socket.socket] = []

    def turn(self) -> None:
        for one in self.connections:
            one.turn()

    def count(self) -> int:
        return sum(len(one.peers) for one in self.connections)

    def accept(self, connect: Callable[[], Peer]) -> Peer:
        """Let a peer connect, and wait until it has been accepted; return it."""
        before = {peer for one in self.connections for peer in one.peers.values()}
        peer = connect()
        self.peers.append(peer)
        while before >= {peer for one in self.connections for peer in one.peers.values()}:
            self.turn()
        return peer

    def idle(self, port: int = 0) -> socket.socket:
        return self.accept(lambda: socket.create_connection(("127.0.0.1", self.ports[port]), timeout=10))

    def client(self, port: int = 0) -> socket.socket:
        """Return a peer that has completed its handshake."""
        return self.accept(lambda: RawPeer(self.ports[port], "PUSH")).socket


def has_ended(peer: socket.socket) -> bool:
    """Wait for the end of a connection that the other side breaks."""
    with suppress(ConnectionResetError):
        while peer.recv(1000):
            pass
    return True


def passes(server: Server, peer: socket.socket, port: int = 0) -> bool:
    """Send a frame over a connection, and receive it."""
    peer.sendall(b"\0\5hello")
    return bool(server.sockets[port].poll(10_000)) and server.sockets[port].recv() == b"hello"


@pytest.fixture
def server(sockets: Sockets[zmq.Socket[bytes]], clock: Clock) -> Iterator[Server]:
    server = Server(sockets, clock)
    yield server
    for peer in server.peers:
        peer.close()
    for one in server.connections:
        one.close()


def test_silent_peers_are_ended_the_oldest_first(server: Server) -> None:
    """With too few descriptors, silent peers are ended, the oldest first, and clients stay although they are older.

    While there are free descriptors, all peers stay.
    """
    client = server.client()
    idle = [server.idle() for _ in range(AT_MOST - 1)]
    assert server.newcomers.ended == 0
    other = server.client()
    assert server.newcomers.ended == 1
    assert has_ended(idle[0])
    assert passes(server, client)
    assert passes(server, other)
    while server.count() > AT_MOST:
        server.turn()


def test_peers_at_one_port_leave_room_at_the_other(server: Server) -> None:
    """Silent peers at one port are ended for a client at the other, since both share the process's descriptors."""
    idle = [server.idle(0) for _ in range(AT_MOST)]
    assert passes(server, server.client(1), port=1)
    assert has_ended(idle[0])


def test_who_has_been_connected_for_long_stays(server: Server, clock: Clock) -> None:
    """A peer that has been connected for long stays, and the new connection is ended instead.

    Its handshake is complete, or libzmq would have disconnected it.
    """
    clients = [server.client() for _ in range(AT_MOST)]
    clock.now += HANDSHAKE / 1000 + 1
    assert has_ended(server.idle())
    assert all(passes(server, client) for client in clients)


def test_of_peers_that_have_sent_something_the_youngest_is_ended(server: Server) -> None:
    """Of peers that have sent something the youngest is ended, so that the others continue their work.

    All of them may have completed their handshake.
    """
    clients = [server.client() for _ in range(AT_MOST)]
    assert has_ended(server.client())
    assert all(passes(server, client) for client in clients)


def test_silent_peers_take_no_descriptor_once_there_have_been_too_many(server: Server) -> None:
    """Once there have been too many, a silent peer takes no descriptor.

    The system keeps it until it sends something, as every ZeroMQ peer does at once.
    """
    for _ in range(AT_MOST + 1):
        server.idle()
    with socket.create_connection(("127.0.0.1", server.ports[0])) as silent:
        server.client()
        hosts = {(peer.host, peer.port) for one in server.connections for peer in one.peers.values()}
        assert silent.getsockname() not in hosts
