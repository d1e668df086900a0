"""A network for the test alone between a process and a forwarder, which is cut without a sign to either."""

import asyncio
from typing import Any

import pytest
from forwarders import Forwarder, close_all, free_ports, until
from network import Network
from peers import Peer

from channels_zmq.core import DedicatedZmqChannelLayer

LARGE = 1_000_000
"""A message size in bytes that exceeds the buffers of a new TCP connection."""


@pytest.mark.slow
def test_a_network_that_is_cut_in_the_middle_of_a_frame_is_noticed(run: Any, network: Network) -> None:
    """A forwarder notices a network that is cut in the middle of a frame, and drops the client.

    Heartbeats wait behind the frame: until TCP gave up, a process kept its connection, and the jobs assigned to it.
    """
    forwarder = Forwarder(*(f"tcp://{network.host}:{port}" for port in free_ports(2)))
    forwarder.start()
    peer = Peer("asyncio", by=network.prefix, **forwarder.config)

    async def scenario() -> None:
        await asyncio.to_thread(peer.ask, "member", "chat")
        sender = DedicatedZmqChannelLayer(**forwarder.config)
        await until(lambda: sender.stats()["connected"] and forwarder.status()["clients"] == 2)
        network.unplug()
        await sender.group_send("chat", {"text": "x" * LARGE})
        await until(lambda: forwarder.status()["clients"] == 1)

    try:
        run(scenario())
    finally:
        peer.kill()
        close_all()
        forwarder.end()
