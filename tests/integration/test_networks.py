"""A network of the test's own between processes and a forwarder, which is cut without a word to either, or slow."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from forwarders import Forwarder, close_all, free_ports, until
from network import HOST, Network, missing
from peers import Peer

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq_forwarder.sockets import SLOWEST_LINK

LARGE = 1_000_000
"""Bytes, of which the buffers of a new TCP connection take a part."""
LARGEST = 2**23
PROCESSES = 20
RATE = PROCESSES * SLOWEST_LINK / 8
"""Bytes a second of the link that they share."""
ENVELOPE = 100
"""Bytes that the rest of a message takes beside its text, at most."""


@pytest.fixture
def network() -> Iterator[Network]:
    if lacking := missing("ip"):
        pytest.skip(lacking)
    with Network() as network:
        yield network


@pytest.mark.slow
def test_a_network_that_is_cut_in_the_middle_of_a_frame_is_noticed(run: Any, network: Network) -> None:
    """Heartbeats wait behind it: until TCP gave up, a process kept its connection, and the jobs that it was handed."""
    forwarder = Forwarder(*(f"tcp://{HOST}:{port}" for port in free_ports(2)))
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


async def take(layer: DedicatedZmqChannelLayer, channel: str) -> int:
    """Return the length of the next message's text."""
    return len((await layer.receive(channel))["text"])


@pytest.mark.slow
def test_the_largest_message_reaches_20_processes_by_the_slowest_link_for_each(run: Any, network: Network) -> None:
    """Heartbeats wait behind it: 8 MiB for all of them by 320 Mbit/s disconnected all, and reached none."""
    if lacking := missing("tc"):
        pytest.skip(lacking)
    forwarder = Forwarder(
        *(f"tcp://{HOST}:{port}" for port in free_ports(2)), flags=("--max-message-size", str(LARGEST))
    )
    forwarder.start()
    config = {**forwarder.config, "max_message_size": LARGEST}
    peers = [Peer("asyncio", by=network.prefix) for _ in range(PROCESSES)]
    text = "x" * (LARGEST - ENVELOPE)

    async def scenario() -> None:
        sender = DedicatedZmqChannelLayer(**config)
        await until(lambda: sender.stats()["connected"])
        began = time.monotonic()
        await sender.group_send("chat", {"text": text})
        received = [peer.begin_run(take, channel) for peer, channel in zip(peers, channels, strict=True)]
        assert await asyncio.gather(*map(asyncio.wrap_future, received)) == [len(text)] * PROCESSES
        assert time.monotonic() - began > PROCESSES * LARGEST / RATE, "the link is faster than it should be"

    try:
        for peer in peers:
            peer.ask("open", config)
        channels = [peer.ask("member", "chat") for peer in peers]
        network.limit(8 * RATE)
        run(scenario())
        for stats in [peer.ask("stats") for peer in peers]:
            assert (stats["reconnects"], stats["dropped"]) == (0, {})
    finally:
        for peer in peers:
            peer.kill()
        close_all()
        forwarder.end()
