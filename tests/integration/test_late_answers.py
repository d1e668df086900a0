"""An answer that has arrived counts, however long the event loop was busy when the time had expired."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
from forwarders import Forwarder, close_all, until
from peers import wait_until
from relays import Relay, relay_to

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.transports import link

Run = Callable[..., Any]


class Ways(NamedTuple):
    """A layer, and the two ways between it and its forwarder."""

    layer: DedicatedZmqChannelLayer
    upwards: Relay
    downwards: Relay


TIMEOUT = 0.5
AN_HOUR = 3600.0


@pytest.fixture
def layer(forwarder: Forwarder) -> Any:
    yield DedicatedZmqChannelLayer(**forwarder.config, connect_timeout=TIMEOUT)
    close_all()


@pytest.fixture
def ways(forwarder: Forwarder) -> Iterator[Ways]:
    """Relay both connections to a forwarder."""
    with relay_to(forwarder.pull) as upwards, relay_to(forwarder.pub) as downwards:
        config = {"pull_socket_address": upwards.address, "pub_socket_address": downwards.address}
        yield Ways(DedicatedZmqChannelLayer(**config, connect_timeout=AN_HOUR), upwards, downwards)
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
        await until(lambda: layer.stats()["connected"])
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
        await until(lambda: layer.stats()["connected"])
        join = asyncio.create_task(layer.group_add("chat", channel))
        await block_until(lambda: forwarder.status()["groups"] == 1)
        await join
        await layer.group_send("chat", {"n": 1})
        assert await layer.receive(channel) == {"n": 1}

    run(scenario())


async def confirm_one_job(layer: Any) -> None:
    """Let everything arrive that a new connection brings."""
    await layer.new_channel()
    await until(lambda: layer.stats()["connected"])
    await layer.send("jobs", {"n": 0})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_was_confirmed_before_its_forwarder_ended_is_no_error(
    run: Run, forwarder: Forwarder, ways: Ways, number: int
) -> None:
    """A job that was confirmed before its forwarder ended is not an error.

    The connection is known to be lost before the loop has read the answer.
    """

    async def scenario() -> None:
        layer, _, downwards = ways
        await confirm_one_job(layer)
        answered = downwards.answered
        send = asyncio.create_task(layer.send("jobs", {"n": 1}))
        await asyncio.sleep(0)
        wait_until(lambda: forwarder.status()["waiting"] == 2 and downwards.answered > answered)
        forwarder.end(number)
        wait_until(lambda: not layer.stats()["connected"])
        await send

    run(scenario())


def test_an_answer_on_its_way_is_waited_for_when_only_the_sending_connection_is_lost(
    run: Run, monkeypatch: pytest.MonkeyPatch, forwarder: Forwarder, ways: Ways
) -> None:
    """A job whose answer is on its way by the receiving connection succeeds, although the sending one is lost."""
    monkeypatch.setattr(link, "READS_FORMER_FOR", AN_HOUR)

    async def scenario() -> None:
        layer, upwards, downwards = ways
        await confirm_one_job(layer)
        downwards.hold()
        send = asyncio.create_task(layer.send("jobs", {"n": 1}))
        await until(lambda: forwarder.status()["waiting"] == 2)
        upwards.end()
        await until(lambda: not layer.stats()["connected"])
        assert not send.done()
        downwards.resume()
        await send

    run(scenario())
