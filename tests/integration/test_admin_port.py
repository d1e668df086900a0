"""The admin port of a forwarder process, while peers occupy it."""

import socket
import time
from contextlib import ExitStack

import pytest
from forwarders import PATIENCE, Forwarder, port_of

from channels_zmq_forwarder.listener import CONNECTIONS


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: local"])
def test_half_requests_use_up_no_descriptors(forwarder: Forwarder, sent: bytes) -> None:
    """Beside five hundred half requests, `/readyz` answers, and the forwarder holds at most `CONNECTIONS` of them."""
    before = forwarder.descriptors()
    with ExitStack() as stack:
        for _ in range(5 * CONNECTIONS):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(forwarder.admin))))
            peer.sendall(sent)
        deadline = time.monotonic() + PATIENCE
        while not forwarder.is_ready() or forwarder.descriptors() > before + CONNECTIONS:
            assert time.monotonic() < deadline
