"""The capacity of a channel is exact: only a message that was read, lost or dropped leaves room."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import zmq
from channels.exceptions import ChannelFull
from forwarders import Forwarder, close_all, config_of, free_ports, until
from peers import PeerError
from strangers import Peer as Stranger

from channels_zmq.core import DedicatedZmqChannelLayer

Make = Callable[..., Any]
Run = Callable[..., Any]

CAPACITY = 5


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    close_all()


async def accepted(layer: Any, channel: str) -> int:
    """Return how many messages a channel accepts before it is full."""
    for count in range(10 * CAPACITY):
        try:
            await layer.send(channel, {"n": count})
        except ChannelFull:
            return count
    return 10 * CAPACITY


async def takes_its_capacity(layer: Any, channel: str) -> None:
    """Check that an empty channel accepts exactly its capacity, keeps the order, and is empty again."""
    assert await accepted(layer, channel) == CAPACITY
    assert [(await layer.receive(channel))["n"] for _ in range(CAPACITY)] == list(range(CAPACITY))


@pytest.mark.parametrize("kind", ["process", "normal"])
@pytest.mark.parametrize("prefetch", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_a_channel_takes_exactly_its_capacity_whatever_happened_before(
    make_layer: Make, run: Run, kind: str, prefetch: int
) -> None:
    """A channel accepts exactly its capacity at first, after reads, after a cancelled read, and as a group's member."""

    async def scenario() -> None:
        layer = make_layer(capacity=CAPACITY, prefetch=prefetch)
        channel = await layer.new_channel() if kind == "process" else "jobs"
        await takes_its_capacity(layer, channel)
        await takes_its_capacity(layer, channel)
        read = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        read.cancel()
        await asyncio.gather(read, return_exceptions=True)
        await takes_its_capacity(layer, channel)
        await layer.group_add("chat", channel)
        await takes_its_capacity(layer, channel)
        await layer.group_send("chat", {"n": -1})
        assert (await layer.receive(channel))["n"] == -1
        await takes_its_capacity(layer, channel)
        for _ in range(CAPACITY - 2):
            await layer.group_send("chat", {"n": -1})
        if kind == "process":
            await until(lambda: layer.stats()["waiting"] == CAPACITY - 2)
        assert await accepted(layer, channel) == 2

    run(scenario())


@pytest.mark.slow
def test_after_a_flush_by_another_process_a_channel_is_empty_for_its_senders(
    make_shared_layer: Make, run: Run, open_peer: Make
) -> None:
    """Messages that a flush drops anywhere no longer count against the capacity of their channel."""

    async def scenario() -> None:
        layer = make_shared_layer(capacity=CAPACITY)
        other = open_peer(**config_of(layer))
        channel = await layer.new_channel()
        await layer.group_send("none", {})  # the embedded one is the producer
        await asyncio.to_thread(other.ask, "until_connected", True)
        for _ in range(3):
            for number in range(CAPACITY):
                await layer.send(channel, {"n": number})
            await asyncio.to_thread(other.ask, "flush")
            await takes_its_capacity(layer, channel)

    run(scenario())


def test_messages_that_the_forwarder_drops_during_a_flush_do_not_count(
    run: Run, forwarder: Forwarder, open_peer: Make
) -> None:
    """Messages that the forwarder drops during a flush do not count against the capacity.

    The forwarder drops messages until every client has emptied its mailboxes; a silent client delays that.
    """
    other = open_peer(**forwarder.config, connect_timeout=15.0)
    other.ask("until_connected", True)

    async def scenario(silent: Stranger) -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, capacity=CAPACITY)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await until(lambda: layer.stats()["connected"])
        flush = other.begin("flush")
        await until(lambda: layer.stats()["groups"] == 0)  # this process has emptied itself
        for number in range(CAPACITY):
            await layer.send(channel, {"n": number})
        passed = 0
        while forwarder.status()["drops"]["flushed"] + passed < CAPACITY:  # it lasts for a second at most
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(layer.receive(channel), 0.05)
                passed += 1
        silent.close()
        with contextlib.suppress(PeerError):  # its flush may be incomplete
            await asyncio.wrap_future(flush)
        await takes_its_capacity(layer, channel)

    with zmq.Context() as context, Stranger(context, forwarder.pull, forwarder.pub) as silent:
        run(scenario(silent))


@pytest.mark.slow
def test_messages_that_a_killed_forwarder_held_arrive_and_count_once(run: Run, forwarder: Forwarder) -> None:
    """Messages to the sender's own channel that a killed forwarder held are sent again, and count once."""

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, capacity=CAPACITY)
        channel = await layer.new_channel()
        await takes_its_capacity(layer, channel)
        await asyncio.to_thread(forwarder.freeze)
        for number in range(CAPACITY):
            await layer.send(channel, {"n": number})
        await asyncio.to_thread(forwarder.kill)
        await until(lambda: not layer.stats()["connected"])
        await asyncio.to_thread(forwarder.start)
        await until(lambda: layer.stats()["connected"])
        await until(lambda: layer.stats()["waiting"] == CAPACITY)
        assert await accepted(layer, channel) == 0
        assert [(await layer.receive(channel))["n"] for _ in range(CAPACITY)] == list(range(CAPACITY))
        assert await accepted(layer, channel) == CAPACITY

    run(scenario())


def test_messages_that_the_forwarder_refuses_for_want_of_memory_do_not_count(run: Run) -> None:
    """If the forwarder refuses messages because its memory is exhausted, they do not count against the capacity.

    It drops all of them, so a channel of the sender itself stays empty and is never full.
    """
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    exhausted = Forwarder(pull, pub, flags=("--memory-limit", "1MiB"))
    exhausted.start()

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**exhausted.config, capacity=CAPACITY)
        channel = await layer.new_channel()
        await until(lambda: layer.stats()["connected"])
        assert await accepted(layer, channel) == 10 * CAPACITY
        assert layer.stats()["waiting"] == 0

    try:
        run(scenario())
        assert exhausted.status()["frames_in"] >= 10 * CAPACITY
    finally:
        close_all()
        exhausted.end()


def test_a_channel_that_no_process_reads_is_refused_dropped_and_made_no_queue_of(
    make_layer: Make, run: Run, request: pytest.FixtureRequest
) -> None:
    """A name that `new_channel` did not make cannot be read, drops messages, and makes no queue or group."""

    async def scenario() -> None:
        layer = make_layer()
        with pytest.raises(TypeError, match="new_channel"):
            async with asyncio.timeout(5):
                await layer.receive("not-mine!x")
        await layer.send("not-mine!x", {"n": 1})
        await layer.group_add("chat", "not-mine!x")
        await layer.group_send("chat", {"n": 2})
        await layer.group_discard("chat", "not-mine!x")
        await layer.flush()  # behind all of it
        assert layer.stats()["dropped"] == {"unroutable": 1}
        if isinstance(layer, DedicatedZmqChannelLayer):
            status = await asyncio.to_thread(request.getfixturevalue("forwarder").status)
            assert (status["queue_count"], status["groups"]) == (0, 0)

    run(scenario())
