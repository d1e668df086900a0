"""What the tests of the forwarder share."""

import pytest
import zmq
import zmq.asyncio
from fakes import Clock


class Sockets:
    """Opens sockets and closes them when the test is over."""

    def __init__(self, context):
        self.context = context
        self._opened = []

    def open(self, kind, address=None):
        socket = self.context.socket(kind)
        self._opened.append(socket)
        if address is not None:
            socket.connect(address)
        return socket


@pytest.fixture
def sockets():
    """Sockets without a loop."""
    with zmq.Context() as context:
        yield Sockets(context)
        context.destroy(linger=0)


@pytest.fixture
def async_sockets():
    """Sockets of the running loop."""
    with zmq.asyncio.Context() as context:
        yield Sockets(context)
        context.destroy(linger=0)


@pytest.fixture
def clock():
    """Time that a test moves."""
    return Clock()
