"""A page that counts messages: those that its web process sends to a group, and those that arrive at each process.

    page <--sent, arrived-- CountingConsumer --counting.number--> group "counting" --> tally() of every web process
                                   ^                                                        |
                                   '--------------- counting.arrived, ten times a second ---'

With `make demo` the page can kill a forwarder: it requests that on the normal channel "forwarders", which the program
that started them reads.
"""

import asyncio
import contextlib
import json
import time
from typing import Any

from channels.exceptions import ChannelFull
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer

NUMBERS, PAGES = "counting", "counting.pages"
"""The groups of the tallies and of the pages, which receive the states of the forwarders."""
FORWARDERS = "forwarders"
"""The normal channel of the process that has started the forwarders."""
RATE, BURSTS = 500, 50
"""The number of messages per second, and the number of bursts in which they are sent."""
REPORT_EVERY = 0.1
FORGET_AFTER = 10.0


class Count:
    """The count of one page's numbers that have arrived."""

    def __init__(self) -> None:
        self.arrived = self.lost = self.twice = 0
        self.heard_at = 0.0
        self._last = 0

    def add(self, number: int) -> None:
        """Count a number; the first one may be any, as this process may have started later."""
        self.heard_at = time.monotonic()
        if self._last and number <= self._last:
            self.twice += 1
            return
        if self._last:
            self.lost += number - self._last - 1
        self.arrived += 1
        self._last = number

    def report(self) -> dict[str, int]:
        return {"arrived": self.arrived, "lost": self.lost, "twice": self.twice}


async def tally(process: str) -> None:
    """Count the numbers that arrive at this process, and report its count to each page, until the web process ends."""
    layer = get_channel_layer()
    counts: dict[str, Count] = {}
    channel = await layer.new_channel("counting")
    while True:
        try:
            await layer.group_add(NUMBERS, channel)
            break
        except ConnectionError:  # no forwarder yet
            continue
    reporting = asyncio.create_task(_report(layer, process, counts))
    try:
        while True:
            message = await layer.receive(channel)
            if message["type"] == "counting.number":  # the layer also announces when it is away, and back
                counts.setdefault(message["page"], Count()).add(message["n"])
    finally:
        reporting.cancel()


async def _report(layer: Any, process: str, counts: dict[str, Count]) -> None:
    while True:
        await asyncio.sleep(REPORT_EVERY)
        for page, count in list(counts.items()):
            if time.monotonic() > count.heard_at + FORGET_AFTER:
                del counts[page]
                continue
            with contextlib.suppress(ChannelFull):  # the next report contains more
                await layer.send(page, {"type": "counting.arrived", "process": process, **count.report()})


class CountingConsumer(AsyncWebsocketConsumer):
    """The page's end: it sends numbers until it is paused, and forwards the reports of the tallies to the page."""

    def __init__(self, process: str = "", forwarders: int = 0) -> None:
        super().__init__()
        self.process, self.forwarders = process, forwarders
        self.sent = 0
        self._sending: asyncio.Task[None] | None = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Run the consumer, which sends no more numbers however it ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pause()
            with contextlib.suppress(ConnectionError):
                await self.channel_layer.group_discard(PAGES, self.channel_name)

    async def connect(self) -> None:
        await self.accept()
        await self._give("welcome", process=self.process, forwarders=self.forwarders)
        with contextlib.suppress(ConnectionError):
            await self.channel_layer.group_add(PAGES, self.channel_name)
        if self.forwarders:
            await self._ask("forwarders.ask")
        self._sending = asyncio.create_task(self._send_numbers())

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            wish = json.loads(text_data or "")["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # not from our page
        if wish == "kill" and self.forwarders:
            await self._ask("forwarders.kill")
        elif wish == "pause":
            self._pause()
            await self._give("paused", sent=self.sent)
        elif wish == "go" and self._sending is None:
            self._sending = asyncio.create_task(self._send_numbers())

    async def counting_arrived(self, event: dict[str, Any]) -> None:
        fields = {key: value for key, value in event.items() if key != "type"}
        await self._give("arrived", sent=self.sent, **fields)

    async def counting_forwarders(self, event: dict[str, Any]) -> None:
        await self._give("forwarders", states=event["states"])

    async def layer_disconnected(self, event: dict[str, Any]) -> None:
        await self._give("layer", up=False)

    async def layer_reconnected(self, event: dict[str, Any]) -> None:
        await self._give("layer", up=True)

    async def _send_numbers(self) -> None:
        while True:
            for _ in range(RATE // BURSTS):
                self.sent += 1
                message = {"type": "counting.number", "page": self.channel_name, "n": self.sent}
                await self.channel_layer.group_send(NUMBERS, message)
            await asyncio.sleep(1 / BURSTS)

    def _pause(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    async def _ask(self, kind: str) -> None:
        with contextlib.suppress(ChannelFull, ConnectionError):
            await self.channel_layer.send(FORWARDERS, {"type": kind})

    async def _give(self, kind: str, **fields: Any) -> None:
        await self.send(json.dumps({"type": kind, **fields}))
