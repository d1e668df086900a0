"""Each of many simultaneous requests is answered, however many arrive before a process reads them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from actors import RemoteActor
from forwarders import Forwarder, close_all, free_ports

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

COUNT = 1000


@pytest.fixture
def other() -> Iterator[Any]:
    """Start a second process, and check at the end that it had no errors."""
    other = RemoteActor()
    yield other
    other.close()
    errors = other.errors()
    other.end()
    close_all()
    assert errors == []


async def attach(layer: Any, channel: str) -> None:
    """Make the running loop the one that reads input, so that nothing is read while it is blocked."""
    reader = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    await layer.send(channel, {})
    await reader


def test_a_process_answers_as_many_questions_for_its_channels_as_come_at_once(
    run: Any, forwarder: Forwarder, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A process answers a thousand requests of another process that adds its channel to as many groups at once."""
    config = {**forwarder.config, "connect_timeout": 15.0}
    other.open("DedicatedZmqChannelLayer", config)

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**config, capacity=2 * COUNT)
        channel = await layer.new_channel()
        await attach(layer, channel)
        handles = [other.begin(0, "group_add", f"g{number}", channel) for number in range(COUNT)]
        for handle in handles:
            assert await asyncio.to_thread(other.finish, handle) is None
        for number in range(COUNT):
            await layer.group_send(f"g{number}", {"n": number})
        assert [(await layer.receive(channel))["n"] for _ in range(COUNT)] == list(range(COUNT))

    run(scenario())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_an_embedded_producer_answers_as_many_questions_as_come_at_once(
    run: Any, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader joins a thousand groups at once; the producer confirms each join, and each message arrives."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    config = {"pub_socket_address": address, "connect_timeout": 15.0}

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(**config)
        await attach(layer, await layer.new_channel())
        other.open("EmbeddedZmqChannelLayer", {**config, "capacity": 2 * COUNT})
        while not other.stats()["connected"]:
            await asyncio.sleep(0.001)
        channel = other.call(0, "new_channel")
        handles = [other.begin(0, "group_add", f"g{number}", channel) for number in range(COUNT)]
        for handle in handles:
            assert await asyncio.to_thread(other.finish, handle) is None
        for number in range(COUNT):
            await layer.group_send(f"g{number}", {"n": number})
        for number in range(COUNT):
            assert (await asyncio.to_thread(other.call, 0, "receive", channel))["n"] == number

    run(scenario())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
