"""Consumers that have ended with messages unread: counted apart, bounded in number, and no reason for advice."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from forwarders import until

from channels_zmq.client import mailboxes

Make = Callable[..., Any]
Run = Callable[..., Any]


async def come_and_go(layer: Any, count: int) -> list[str]:
    """Let consumers come, wait and end; return their channels."""
    channels = [await layer.new_channel() for _ in range(count)]
    reads = [asyncio.create_task(layer.receive(channel)) for channel in channels]
    await asyncio.sleep(0)
    for read in reads:
        read.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    return channels


def test_what_waits_for_an_ended_consumer_is_abandoned_and_never_called_expired(
    make_layer: Make, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Its mailbox is gone afterwards, and no log line advises to read sooner."""

    async def scenario() -> None:
        layer = make_layer(expiry=0.2)
        channels = await come_and_go(layer, 100)
        for channel in channels:
            await layer.send(channel, {})
        await until(lambda: layer.stats()["dropped"] == {"abandoned": len(channels)})
        await until(lambda: layer.stats()["channels"] == 0)

    with caplog.at_level(logging.WARNING, "channels_zmq"):
        run(scenario())
    assert "expired" not in caplog.text


@pytest.mark.slow
def test_the_mailboxes_of_ended_consumers_are_bounded_in_number(
    make_layer: Make, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest are dropped first, long before what waits there expires; a consumer that reads keeps its own."""
    monkeypatch.setattr(mailboxes, "MAX_UNCLAIMED", 50)

    async def scenario() -> None:
        layer = make_layer()
        living = await layer.new_channel()
        read = asyncio.create_task(layer.receive(living))
        channels = await come_and_go(layer, 500)
        for channel in channels:
            await layer.send(channel, {})
        await until(lambda: layer.stats()["dropped"] == {"abandoned": 450})
        assert layer.stats()["channels"] == 51
        await layer.send(living, {"n": 1})
        assert await read == {"n": 1}

    run(scenario())
