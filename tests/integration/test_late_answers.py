"""An answer that has arrived counts, however long the event loop was busy when the time had expired."""

import asyncio
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from forwarders import Forwarder, close_all
from peers import wait_until

from channels_zmq.core import DedicatedZmqChannelLayer

Run = Callable[..., Any]

TIMEOUT = 0.3


@pytest.fixture
def layer(forwarder: Forwarder) -> Any:
    yield DedicatedZmqChannelLayer(**forwarder.config, connect_timeout=TIMEOUT)
    close_all()


async def block_until(condition: Callable[[], bool]) -> None:
    """Let a new call begin, then block the loop until its effect is visible and its time has expired."""
    await asyncio.sleep(0)
    wait_until(condition)
    time.sleep(2 * TIMEOUT)


def test_a_job_that_was_confirmed_while_the_loop_was_blocked_is_no_error(
    run: Run, forwarder: Forwarder, layer: Any
) -> None:
    """A job that was confirmed while the loop was blocked is not an error, and is in its queue once."""

    def waits(count: int) -> bool:
        return bool(forwarder.status()["waiting"] == count)

    async def scenario() -> None:
        await layer.new_channel()
        while not layer.stats()["connected"]:
            await asyncio.sleep(0.005)
        for number in range(3):
            send = asyncio.create_task(layer.send("jobs", {"n": number}))
            await block_until(partial(waits, number + 1))
            await send
        assert [(await layer.receive("jobs"))["n"] for _ in range(3)] == [0, 1, 2]
        assert forwarder.status()["waiting"] == 0

    run(scenario())


def test_a_join_that_was_confirmed_while_the_loop_was_blocked_is_no_error(
    run: Run, forwarder: Forwarder, layer: Any
) -> None:
    """A join that was confirmed while the loop was blocked is not an error, and the channel is a member."""

    async def scenario() -> None:
        channel = await layer.new_channel()
        while not layer.stats()["connected"]:
            await asyncio.sleep(0.005)
        join = asyncio.create_task(layer.group_add("chat", channel))
        await block_until(lambda: forwarder.status()["groups"] == 1)
        await join
        await layer.group_send("chat", {"n": 1})
        assert await layer.receive(channel) == {"n": 1}

    run(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_was_confirmed_before_its_forwarder_ended_is_no_error(
    run: Run, forwarder: Forwarder, layer: Any, number: int
) -> None:
    """A job that was confirmed before its forwarder ended is not an error.

    The connection is known to be lost before the loop has read the answer.
    """

    async def scenario() -> None:
        await layer.new_channel()
        while not layer.stats()["connected"]:
            await asyncio.sleep(0.005)
        send = asyncio.create_task(layer.send("jobs", {"n": 1}))
        await asyncio.sleep(0)
        wait_until(lambda: forwarder.status()["waiting"] == 1)
        forwarder.end(number)
        wait_until(lambda: not layer.stats()["connected"])
        await send

    run(scenario())
