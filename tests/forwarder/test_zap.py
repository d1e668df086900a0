"""The keys that may connect to a guarded socket."""

import logging

import pytest
import zmq

from channels_zmq_forwarder import zap
from channels_zmq_forwarder.curve import AllowedKeys, new_pair, secure_client
from channels_zmq_forwarder.zap import Gate


class Peers:
    """A guarded socket, and clients that connect to it."""

    def __init__(self, sockets, allowed, clock):
        self.public, secret = new_pair()
        self.gate = Gate(sockets.context, secret, allowed, clock)
        self.socket = sockets.open(zmq.PULL)
        self.gate.guard(self.socket)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self._sockets = sockets

    def client(self, secret, *, public=None):
        """Connect and send a frame, which arrives only if the gate allows the key."""
        client = self._sockets.open(zmq.PUSH)
        secure_client(client, public or self.public, secret)
        client.connect(f"tcp://127.0.0.1:{self.port}")
        client.send(b"hello")

    def refused(self, count):
        """Make turns until that many connections were refused."""
        while self.gate.refused < count:
            self.gate.turn()


@pytest.fixture
def guard(sockets, clock):
    """Return a function that guards a socket with a list of keys."""
    made = []

    def guard(allowed):
        made.append(Peers(sockets, allowed, clock))
        return made[-1]

    yield guard
    for peers in made:
        peers.socket.close(linger=0)
        peers.gate.close()


def test_any_key_may_connect_without_a_list(guard):
    """CURVE then encrypts the traffic and authenticates the server only."""
    peers = guard(None)
    peers.client(new_pair()[1])
    while not peers.socket.poll(0):
        peers.gate.turn()
    assert peers.socket.recv() == b"hello"


@pytest.mark.parametrize("wrong", ["own key", "server's key"])
def test_refusals_are_logged_at_a_limited_rate(guard, clock, caplog, wrong):
    """The rate is limited for each address; the next line reports how many were not logged."""
    peers = guard(AllowedKeys([new_pair()[0]]))
    other = new_pair()[0] if wrong == "server's key" else None
    with caplog.at_level(logging.WARNING):
        for count in range(1, 4):
            peers.client(new_pair()[1], public=other)
            peers.refused(count)
        assert sum("was refused" in line for line in caplog.messages) <= 2  # one whose address went too fast may differ
        clock.now += zap.LOG_EVERY
        peers.client(new_pair()[1], public=other)
        peers.refused(4)
    assert any("more refusals were not logged" in line for line in caplog.messages)
    assert not peers.socket.poll(0)
