"""A process keeps receiving, within bounds, while its event loop is blocked or has ended."""

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from forwarders import close_all, config_of, until
from peers import Peer, wait_until

from channels_zmq import connection
from channels_zmq.client.credit import GRACE
from channels_zmq.housekeeper import housekeeper
from channels_zmq.transports import embedded_producer, embedded_reader, link, links

Make = Callable[..., Any]
Run = Callable[..., Any]

MANY = 20_000
EXPIRY = 1.0
LATE = 1.5
"""How many seconds beyond its expiry a message may be old.

Its age counts from its arrival, which is noticed within a second.
"""
BATCH = 500
IN_AN_HOUR = 3600.0


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    close_all()


@pytest.fixture
def no_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing that the housekeeper does from time to time be due for an hour."""
    monkeypatch.setattr(connection, "NOTICE_EVERY", IN_AN_HOUR)
    monkeypatch.setattr(links, "ROTATE_EVERY", IN_AN_HOUR)
    for transport in (embedded_reader, embedded_producer, link):
        monkeypatch.setattr(transport, "TICK_EVERY", IN_AN_HOUR)


async def send_with_times(layer: Any, group: str, count: int, batch: int) -> None:
    """Send messages that contain their time of sending, and let other callbacks run between batches."""
    for number in range(count):
        await layer.group_send(group, {"n": number, "at": time.monotonic()})
        if number % batch == 0:
            await asyncio.sleep(0.01)


async def open_both(make: Make, open_peer: Make, **config: Any) -> tuple[Any, Peer]:
    """Return a layer of this process that reads, and a process that sends at the same address."""
    layer = make(**config)
    peer = open_peer(**config_of(layer), **config)
    await asyncio.to_thread(peer.ask, "send", "group:none", "0", 0, 1)  # the producer, if it is embedded
    await layer.new_channel()
    await until(lambda: layer.stats()["connected"])
    return layer, peer


async def housekeeping(layer: Any) -> None:
    """Let the housekeeper check the connection of a layer now, and wait until it sleeps again."""
    keeper, known = housekeeper(), layer._connection()
    keeper.call(known, 0.0)

    def sleeps() -> bool:
        return min(*keeper._due.values(), keeper._sleeps_until) > time.monotonic()

    await until(sleeps)


@pytest.mark.slow
def test_while_a_loop_is_blocked_its_process_takes_messages_in_and_lets_them_expire(
    make_shared_layer: Make, run: Run, open_peer: Make
) -> None:
    """A process with a blocked loop receives messages, expires those that are old, and counts each lost one."""

    async def scenario() -> None:
        layer, peer = await open_both(make_shared_layer, open_peer, expiry=EXPIRY, capacity=MANY)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        reading = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        sending = peer.begin_run(send_with_times, "chat", MANY, BATCH)

        def taken_in() -> int:
            stats = layer.stats()
            return int(stats["received"] + stats["dropped"].get("missed", 0))

        wait_until(sending.done)  # on the loop's thread: this is the block
        sending.result()
        wait_until(lambda: taken_in() >= MANY)
        wait_until(lambda: layer.stats()["waiting"] == 0)
        assert not reading.done()
        await asyncio.to_thread(peer.run, send_with_times, "chat", 1, BATCH)
        message = await reading
        assert time.monotonic() - message["at"] <= EXPIRY + LATE
        assert (message["n"], layer.stats()["waiting"]) == (0, 0)
        assert sum(layer.stats()["dropped"].values()) == MANY

    run(scenario())


def test_what_arrives_after_a_loop_has_ended_reaches_the_reader_on_another_one(
    make_shared_layer: Make, run: Run, open_peer: Make, no_timers: None
) -> None:
    """A reader on another loop gets each message after the watching loop has ended, without the help of a timer.

    The loop that read last was the one that watched; it stops in the middle of a stream of messages.
    """
    layers: list[Any] = []
    read: list[dict[str, Any]] = []
    waits = threading.Event()
    names: dict[str, str] = {}

    async def read_in_thread() -> None:
        channel = names["other"] = await layers[0].new_channel()
        await layers[0].group_add("other", channel)
        reading = asyncio.create_task(layers[0].receive(channel))
        await asyncio.sleep(0)
        waits.set()
        for _ in range(10):
            read.append(await reading)
            reading = asyncio.create_task(layers[0].receive(channel))
        reading.cancel()

    async def first() -> Peer:
        layer, peer = await open_both(make_shared_layer, open_peer)
        layers.append(layer)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        thread.start()
        await asyncio.to_thread(waits.wait)
        reading = asyncio.create_task(layer.receive(channel))  # this loop is attached from now on
        await asyncio.to_thread(peer.ask, "send", "group:chat", "0", 0, 1)
        await reading
        return peer

    thread = threading.Thread(target=lambda: asyncio.run(read_in_thread()), daemon=True)
    peer = run(first())

    def has_read_more(than: int) -> bool:
        return len(read) > than

    for _ in range(10):
        seen = len(read)
        peer.run(send_with_times, "other", 1, 1)
        wait_until(partial(has_read_more, seen))
    thread.join()


def test_what_arrives_after_the_only_loop_has_ended_is_read_without_one(
    make_shared_layer: Make, run: Run, open_peer: Make, no_timers: None
) -> None:
    """The housekeeper notices by itself that the only loop has ended, and reads what arrives afterwards.

    This holds however short the loop ran: nothing else is due for an hour.
    """
    layers: list[Any] = []

    async def scenario() -> Peer:
        layer, peer = await open_both(make_shared_layer, open_peer)
        layers.append(layer)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await housekeeping(layer)  # before the loop is attached, so that only the attachment can wake it again
        reading = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await asyncio.to_thread(peer.ask, "send", "group:chat", "0", 0, 1)
        await reading  # this loop stays attached, and nothing waits on it
        return peer

    peer = run(scenario())
    (layer,) = layers
    received = layer.stats()["received"]
    peer.ask("send", "group:chat", "0", 1, 1)
    wait_until(lambda: layer.stats()["received"] > received)


@pytest.mark.slow
def test_a_reader_in_a_busy_loop_gets_its_jobs(make_shared_layer: Make, run: Run, open_peer: Make) -> None:
    """A reader gets its jobs although its busy loop turns too rarely to fetch them before they would be returned."""
    busy = True

    async def hold_up() -> None:
        while busy:
            time.sleep(1.5 * GRACE)  # a handler that blocks
            await asyncio.sleep(0)

    async def scenario() -> None:
        nonlocal busy
        layer, peer = await open_both(make_shared_layer, open_peer)
        reading = asyncio.create_task(layer.receive("jobs"))
        holding = asyncio.create_task(hold_up())
        for number in range(5):
            await asyncio.to_thread(peer.ask, "send", "jobs", "0", number, 1)
            assert (await reading)["n"] == number
            reading = asyncio.create_task(layer.receive("jobs"))
        reading.cancel()
        busy = False
        await holding

    run(scenario())
