"""How long the library blocks an event loop: a burst blocks it no longer than a few messages do."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from forwarders import close_all, config_of, until

Make = Callable[..., Any]
Run = Callable[..., Any]

MEMBERS = 10_000
BURST = 50
SOME = 5
SHORT = 0.02
"""Seconds of CPU time below which a pause is too short for a comparison."""


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    close_all()


class Ticker:
    """A record of the longest time between two turns of the running event loop, in CPU time of its thread.

    The time of other processes and threads on a busy machine does not count.
    """

    def __init__(self) -> None:
        self._longest, self._last = 0.0, time.thread_time()
        self._task = asyncio.create_task(self._tick())

    def longest(self) -> float:
        """Return the longest pause since the last call."""
        longest, self._longest = self._longest, 0.0
        return longest

    def stop(self) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            now = time.thread_time()
            self._longest, self._last = max(self._longest, now - self._last), now
            await asyncio.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [False, True])
def test_a_burst_to_a_large_group_pauses_the_loop_no_longer_than_a_few_messages(
    make_shared_layer: Make, run: Run, open_peer: Make, waiting: bool
) -> None:
    """A burst to a large group pauses the loop no longer than a few messages do, whether its members wait or not.

    The sender is another process.
    """
    read = 0

    async def consume(layer: Any, channel: str) -> None:
        nonlocal read
        while True:
            await layer.receive(channel)
            read += 1

    async def scenario() -> None:
        layer = make_shared_layer(capacity=10_000)
        peer = open_peer(**config_of(layer))
        await asyncio.to_thread(peer.ask, "send", "group:none", "0", 0, 1)
        channels = [await layer.new_channel() for _ in range(MEMBERS)]
        await until(lambda: layer.stats()["connected"])
        for channel in channels:
            await layer.group_add("chat", channel)
        consumers = [asyncio.create_task(consume(layer, channel)) for channel in channels if waiting]
        attached = asyncio.create_task(layer.receive(await layer.new_channel()))
        await asyncio.sleep(0)
        ticker = Ticker()

        async def pause_of(count: int) -> float:
            received, expected = layer.stats()["received"] + count, read + count * MEMBERS
            sending = peer.begin("send", "group:chat", "0", 0, count)
            await until(lambda: layer.stats()["received"] >= received and (not waiting or read >= expected))
            await asyncio.wrap_future(sending)
            return ticker.longest()

        await pause_of(1)
        one = max([await pause_of(1) for _ in range(SOME)])
        burst = await pause_of(BURST)
        ticker.stop()
        for task in (attached, *consumers):
            task.cancel()
        await asyncio.gather(attached, *consumers, return_exceptions=True)
        print(f"longest pause: {one * 1000:.1f} ms for one message, {burst * 1000:.1f} ms for {BURST}")
        assert burst < SOME * max(one, SHORT)

    run(scenario())
