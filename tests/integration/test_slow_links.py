"""Links that are as slow as the heartbeats allow for: the largest message passes, and all connections stay."""

import time
from typing import Any

import pytest
from forwarders import Forwarder, close_all, free_ports
from relays import relay_to

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq_forwarder.sockets import SLOWEST_LINK

RATE = SLOWEST_LINK / 8
"""Bytes a second."""
ENVELOPE = 100
"""Bytes that the rest of a message takes beside its text, at most."""


@pytest.mark.parametrize("size", [2**20, pytest.param(2**23, marks=pytest.mark.slow)], ids=["1 MiB", "8 MiB"])
@pytest.mark.parametrize("slow", ["pull_socket_address", "pub_socket_address"], ids=["sending", "receiving"])
def test_the_largest_message_passes_the_slowest_link(run: Any, slow: str, size: int) -> None:
    """Heartbeats and acknowledgements wait behind it for longer than a dead peer would be waited for."""
    forwarder = Forwarder(
        *(f"tcp://127.0.0.1:{port}" for port in free_ports(2)), flags=("--max-message-size", str(size))
    )
    forwarder.start()

    async def scenario() -> None:
        with relay_to(forwarder.config[slow], RATE) as relay:
            config = {**forwarder.config, slow: relay.address}
            layer = DedicatedZmqChannelLayer(**config, max_message_size=size)
            channel = await layer.new_channel()
            await layer.group_add("chat", channel)
            text = "x" * (size - ENVELOPE)
            began = time.monotonic()
            await layer.group_send("chat", {"text": text})
            await layer.group_send("chat", {"text": "behind it"})
            assert await layer.receive(channel) == {"text": text}
            assert time.monotonic() - began > len(text) / RATE, "the link is faster than it should be"
            assert await layer.receive(channel) == {"text": "behind it"}
            stats = layer.stats()
            assert (stats["reconnects"], stats["sent_again"], stats["dropped"]) == (0, 0, {})
            close_all()

    try:
        run(scenario())
    finally:
        forwarder.end()
