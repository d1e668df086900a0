"""Fixtures that the tests of the forwarder share."""

from collections.abc import Iterator

import pytest
import zmq
import zmq.asyncio
from fakes import Clock
from open_sockets import Sockets


@pytest.fixture
def sockets() -> Iterator[Sockets[zmq.Socket[bytes]]]:
    """Return a factory of sockets that need no loop."""
    with zmq.Context() as context:
        yield Sockets(context)
        context.destroy(linger=0)


@pytest.fixture
def async_sockets() -> Iterator[Sockets[zmq.asyncio.Socket]]:
    """Return a factory of sockets of the running loop."""
    with zmq.asyncio.Context() as context:
        yield Sockets(context)
        context.destroy(linger=0)


@pytest.fixture
def clock() -> Clock:
    """Return a clock that a test advances."""
    return Clock()
