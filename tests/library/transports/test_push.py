"""The PUSH socket of a link."""

import threading
from collections.abc import Iterator

import pytest
import zmq

from channels_zmq.transports.push import Push

FRAME = bytes(10_000)


@pytest.fixture
def forwarder_context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.mark.parametrize("linger", [0, 0.05])
def test_frames_that_a_lost_connection_did_not_take_let_the_context_end(
    forwarder_context: "zmq.Context[zmq.Socket[bytes]]", linger: float
) -> None:
    """Frames for a lost connection do not delay the context's end: libzmq discards them and awaits no peer."""
    pull = forwarder_context.socket(zmq.PULL)
    pull.set(zmq.RCVHWM, 1)
    port = pull.bind_to_random_port("tcp://127.0.0.1")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    push = Push(context, f"tcp://127.0.0.1:{port}", None)
    assert push.monitor.poll(10_000), "it connects"
    push.monitor.recv_multipart()
    while push._socket.poll(0, zmq.POLLOUT):
        push.send(FRAME, zmq.DONTWAIT)
    pull.close(linger=0)
    assert push.monitor.poll(10_000), "it is cut off"
    # Let libzmq end the connection, which it does during a call on the socket and without an event.
    assert not push._socket.poll(200, zmq.POLLOUT)
    push.close(linger)
    ending = threading.Thread(target=context.term, daemon=True)
    ending.start()
    ending.join(10)
    assert not ending.is_alive()
