"""Consumers that wait for messages that never arrive: `memory` and `growth` have many of them."""

import asyncio
import gc
from collections.abc import Awaitable, Iterable

from benchmarks.messages import PROBE, message
from benchmarks.peers import Layer, Message

AT_A_TIME = 64
"""The number of calls in flight: fewer than the connections that a Redis layer may open, which are 100."""
PROBE_SECONDS = 0.05
REST = 0.2
"""Seconds within which new tasks have begun to wait."""


class Consumers:
    """Channels of one process, each with a task that waits on it."""

    def __init__(self, layer: Layer) -> None:
        self.channels: list[str] = []
        self.reads: list[asyncio.Task[Message]] = []
        self._layer = layer

    async def add(self, count: int) -> None:
        """Add consumers, and wait until the server knows them as far as it will."""
        for first in range(0, count, AT_A_TIME):
            made = [self._layer.new_channel() for _ in range(min(AT_A_TIME, count - first))]
            for channel in await asyncio.gather(*made):
                self.channels.append(channel)
                self.reads.append(asyncio.create_task(self._layer.receive(channel)))
        await self.settle()

    async def join(self, memberships: Iterable[tuple[str, str]]) -> None:
        """Add channels to groups, and wait until the server knows of it."""
        calls: list[Awaitable[None]] = []
        for group, channel in memberships:
            calls.append(self._layer.group_add(group, channel))
            if len(calls) == AT_A_TIME:
                await asyncio.gather(*calls)
                calls.clear()
        await asyncio.gather(*calls)
        await self.settle()

    async def end(self) -> None:
        """Cancel all reads."""
        for read in self.reads:
            read.cancel()
        await asyncio.wait(self.reads)

    async def settle(self) -> None:
        """Wait until all commands so far are done: one more channel gets a message, which follows them."""
        channel = await self._layer.new_channel()
        reads = asyncio.create_task(self._layer.receive(channel))
        while not reads.done():
            await self._layer.send(channel, message(PROBE))
            await asyncio.wait({reads}, timeout=PROBE_SECONDS)
        await asyncio.sleep(REST)
        gc.collect()
