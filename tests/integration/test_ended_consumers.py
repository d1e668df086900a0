"""Unread messages of consumers that have ended: counted apart, bounded in number, and no reason for advice."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.generic import websocket
from default_layers import as_default
from forwarders import until

from channels_zmq import consumers
from channels_zmq.client import mailboxes

Make = Callable[..., Any]
Run = Callable[..., Any]


async def come_and_go(layer: Any, count: int) -> list[str]:
    """Let consumers begin, wait and end, and return their channels."""
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
    """A message for an ended consumer counts as abandoned, its mailbox is removed, and no log line says "expired"."""

    async def scenario() -> None:
        layer = make_layer(expiry=0.2)
        channels = await come_and_go(layer, 100)
        await layer.group_send("nobody", {})
        await until(lambda: layer.stats()["connected"])
        for channel in channels:
            await layer.send(channel, {})
        await until(lambda: layer.stats()["dropped"] == {"abandoned": len(channels)})
        await until(lambda: layer.stats()["channels"] == 0)

    with caplog.at_level(logging.WARNING, "channels_zmq"):
        run(scenario())
    assert "expired" not in caplog.text


@pytest.mark.parametrize("generic", [websocket, consumers], ids=["channels", "lean"])
def test_what_a_busy_consumer_has_not_read_when_it_is_disconnected_is_abandoned(
    make_layer: Make, run: Run, caplog: pytest.LogCaptureFixture, generic: Any
) -> None:
    """Messages that a busy consumer has not read when its client disconnects count as abandoned.

    Its handler is running, so no reader waits for the other messages when the client disconnects.
    """
    handling, disconnects = asyncio.Event(), asyncio.Event()

    class Busy(generic.AsyncWebsocketConsumer):  # type: ignore[misc] # Channels has no type information
        groups = ("busy",)

        async def slow(self, event: dict[str, Any]) -> None:
            handling.set()
            await disconnects.wait()

    async def scenario() -> None:
        layer = make_layer(expiry=1.5)
        with as_default(layer):
            communicator: Any = ApplicationCommunicator  # it has no type information
            visitor = communicator(Busy.as_asgi(), {"type": "websocket", "path": "/"})
            await visitor.send_input({"type": "websocket.connect"})
            assert (await visitor.receive_output(10))["type"] == "websocket.accept"
            for _ in range(6):
                await layer.group_send("busy", {"type": "slow"})
            await handling.wait()
            await until(lambda: layer.stats()["waiting"] == 5)
            await visitor.send_input({"type": "websocket.disconnect", "code": 1000})
            disconnects.set()
            await visitor.wait(10)
        await until(lambda: layer.stats()["channels"] == 0)
        dropped = layer.stats()["dropped"]
        assert set(dropped) == {"abandoned"}
        assert 4 <= dropped["abandoned"] <= 5, "a task that is cancelled may have taken one"

    with caplog.at_level(logging.WARNING, "channels_zmq"):
        run(scenario())
    assert "expired" not in caplog.text


@pytest.mark.slow
def test_the_mailboxes_of_ended_consumers_are_bounded_in_number(
    make_layer: Make, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest mailboxes of ended consumers are dropped at a limit, long before their messages expire.

    A consumer that reads keeps its own mailbox.
    """
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
