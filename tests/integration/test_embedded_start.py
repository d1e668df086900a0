"""The first moments of an embedded layer: readers that started before its producer miss nothing."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import zmq
from event_loops import FACTORIES
from forwarders import close_all, free_ports, until

from channels_zmq.core import EmbeddedZmqChannelLayer
from channels_zmq.transports import embedded_producer
from channels_zmq.transports.embedded_producer import EmbeddedProducer

Make = Callable[..., Any]
Run = Callable[..., Any]

MANY = 300
BLOCKED = 0.5
"""Seconds for which an event loop does not run: too short for the housekeeper to read in its place."""


@pytest.fixture
def address() -> Iterator[str]:
    yield f"tcp://127.0.0.1:{free_ports(1)[0]}"
    close_all()


@pytest.mark.slow
@pytest.mark.parametrize("loop", FACTORIES)
def test_the_first_message_of_a_producer_reaches_the_readers_that_came_before(
    run: Run, open_peer: Make, loop: str
) -> None:
    """The first message of a producer reaches the readers that joined before it bound the address, 4 times of 4."""
    readers = [open_peer(loop) for _ in range(2)]

    async def scenario(address: str, number: int) -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=address)
        await layer.group_send("chat", {"from": "0", "n": number})
        for reader, channel in zip(readers, channels, strict=True):
            assert await asyncio.to_thread(reader.ask, "receive", channel, 1) == [["0", number]]
        await layer.close()

    for number in range(4):
        address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        for reader in readers:
            reader.ask("open", {"pub_socket_address": address})
        channels = [reader.ask("member", "chat") for reader in readers]
        run(scenario(address, number))


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_reader_that_starts_beside_a_producer_misses_nothing_from_its_join_on(
    run: Run, tmp_path: Path, open_peer: Make, transport: str
) -> None:
    """A reader that starts beside a producer receives each message that is sent after its `group_add` has returned."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}" if transport == "tcp" else f"ipc://{tmp_path}/pub"
    reader = open_peer()

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=address)
        await layer.group_send("nobody", {})
        for number in range(30):
            await asyncio.to_thread(reader.ask, "open", {"pub_socket_address": address})
            channel = await asyncio.to_thread(reader.ask, "member", "chat")
            await layer.group_send("chat", {"from": "0", "n": number})
            assert await asyncio.to_thread(reader.ask, "receive", channel, 1) == [["0", number]]
            await asyncio.to_thread(reader.ask, "close")

    try:
        run(scenario())
    finally:
        close_all()


@pytest.mark.slow
def test_a_normal_channel_joins_and_leaves_a_group_before_there_is_a_producer(
    run: Run, address: str, open_peer: Make
) -> None:
    """A normal channel can join and leave a group before there is a producer, which then delivers accordingly."""
    producer = open_peer()

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=address, connect_timeout=1)
        await layer.group_add("chat", "kept")
        await layer.group_add("chat", "removed")
        await layer.group_discard("chat", "removed")
        await layer.group_discard("chat", "never-added")
        await asyncio.to_thread(producer.ask, "open", {"pub_socket_address": address})
        await asyncio.to_thread(producer.ask, "send", "group:nobody", "0", 0, 1)
        await until(lambda: layer.stats()["connected"])
        await asyncio.to_thread(producer.ask, "send", "group:chat", "0", 1, 1)
        assert (await layer.receive("kept"))["n"] == 1
        for number in (2, 3):
            await asyncio.to_thread(producer.ask, "send", "removed", "0", number, 1)
        assert [(await layer.receive("removed"))["n"] for _ in range(2)] == [2, 3]

    run(scenario())


@pytest.mark.slow
def test_a_channel_of_a_reader_that_came_before_its_producer_joins_and_leaves_a_group(
    run: Run, address: str, open_peer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader's channel joins and leaves a group although its process has yet to connect to the new producer.

    The producer requests the change from that process, and another reader requests one as well.
    """
    monkeypatch.setattr(embedded_producer, "SETTLE", 2.0)  # busy machines connect their readers within this time
    reader, other = (open_peer(pub_socket_address=address) for _ in range(2))

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=address)
        channel, same = [await asyncio.to_thread(reader.ask, "channel") for _ in range(2)]
        left = await asyncio.to_thread(reader.ask, "member", "left")
        await layer.group_send("nobody", {})
        asked = asyncio.create_task(asyncio.to_thread(other.ask, "add", "chat", same))
        await layer.group_add("chat", channel)
        await layer.group_discard("left", left)
        await asked
        for group, number in (("left", 1), ("chat", 2)):
            await layer.group_send(group, {"from": "0", "n": number})
        for one in (channel, same):
            assert await asyncio.to_thread(reader.ask, "receive", one, 1) == [["0", 2]]
        await layer.send(left, {"from": "0", "n": 3})
        assert await asyncio.to_thread(reader.ask, "receive", left, 1) == [["0", 3]]

    run(scenario())


def test_a_reader_may_flush(run: Run, address: str, open_peer: Make) -> None:
    """A reader's flush empties only its own process without a producer, and all processes with one."""
    producer = open_peer()

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=address)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.flush()
        assert layer.stats()["groups"] == 0
        await asyncio.to_thread(producer.ask, "open", {"pub_socket_address": address})
        own = await asyncio.to_thread(producer.ask, "member", "chat")
        await asyncio.to_thread(producer.ask, "send", "group:chat", "0", 1, 1)
        await until(lambda: layer.stats()["connected"])
        await layer.flush()
        assert (await asyncio.to_thread(producer.ask, "stats"))["waiting"] == 0
        await asyncio.to_thread(producer.ask, "send", own, "0", 2, 1)
        assert await asyncio.to_thread(producer.ask, "receive", own, 1) == [["0", 2]]

    run(scenario())


def test_a_connection_that_the_reader_makes_while_it_becomes_the_producer_is_ignored(run: Run) -> None:
    """A reader that becomes the producer ignores a late event of its own connection.

    It may have connected to the address that its own process then bound, and the housekeeper reports that only later.
    """

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=f"tcp://127.0.0.1:{free_ports(1)[0]}")
        await layer.new_channel()
        connection = layer._connection()
        reader = connection._transport
        await layer.send("jobs", {"n": 1})
        assert connection._transport is not reader
        (event,) = reader.watched().monitors.values()
        connection._event(event, zmq.Event.HANDSHAKE_SUCCEEDED)
        assert await layer.receive("jobs") == {"n": 1}
        producer = cast(EmbeddedProducer, connection._transport)
        await until(lambda: producer._subscribers is not None and not producer._subscribers.connections.peers)

    run(scenario())
    close_all()


@pytest.mark.slow
@pytest.mark.parametrize("loop", FACTORIES)
def test_a_reader_that_becomes_the_producer_loses_nothing_that_has_arrived(
    run: Run, address: str, open_peer: Make, loop: str
) -> None:
    """What a producer has sent before its end is read before this process takes its place, whatever has waited."""
    producer = open_peer(loop)

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=address, capacity=1000)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await asyncio.to_thread(producer.ask, "open", {"pub_socket_address": address})
        await asyncio.to_thread(producer.ask, "send", "group:chat", "0", 0, 1)
        assert (await layer.receive(channel))["n"] == 0
        producer.ask("send", "group:chat", "0", 1, MANY)  # the event loop is blocked meanwhile
        producer.ask("close")
        time.sleep(BLOCKED)
        await layer.group_send("nobody", {})
        assert [(await layer.receive(channel))["n"] for _ in range(MANY)] == list(range(1, MANY + 1))
        await layer.close()

    run(scenario())
