"""The producer of an embedded layer reads input from its readers although it publishes all the time."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from forwarders import PATIENCE, close_all, free_ports, until

from channels_zmq import connection
from channels_zmq.core import EmbeddedZmqChannelLayer
from channels_zmq_forwarder import wire


@pytest.fixture
def reader() -> Iterator[Any]:
    """Make a bare socket that subscribes, without the rest of a reader."""
    context = zmq.Context()
    socket = context.socket(zmq.XSUB)
    yield socket
    socket.close(linger=0)
    context.term()


async def test_a_subscription_is_read_also_if_its_sign_was_consumed_by_a_publication(
    reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription is read although a publication has consumed the readiness of the edge-triggered descriptor.

    Otherwise the reader had to repeat its request after 1 s.
    """
    monkeypatch.setattr(connection, "NOTICE_EVERY", 10 * PATIENCE)  # otherwise the housekeeper would read it
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    layer = EmbeddedZmqChannelLayer(pub_socket_address=address)
    waiting = asyncio.ensure_future(layer.receive(await layer.new_channel()))  # makes this loop the one that reads
    await layer.group_send("busy", {})
    topics = layer._connection()._producer._exchange.topics  # type: ignore[union-attr]
    reader.connect(address)
    reader.send(wire.subscription(wire.group_topic("busy")))
    await until(lambda: wire.group_topic("busy") in topics)
    with contextlib.suppress(zmq.Again):
        reader.recv(zmq.DONTWAIT)
    reader.send(wire.subscription(wire.group_topic("more")))
    end = time.monotonic() + PATIENCE
    while wire.group_topic("more") not in topics:  # the loop has no turn, so only publications can read it
        assert time.monotonic() < end
        await layer.group_send("busy", {})
    waiting.cancel()
    await asyncio.wait([waiting])
    close_all()
