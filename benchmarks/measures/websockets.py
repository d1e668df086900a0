"""A room of 1,000 WebSockets, served by two uvicorn processes with Channels consumers; one process sends to it.

The consumers do what Channels' tutorial does: they join the group, and send each of its messages as JSON text; those
of a peer with `-lean` are of `channels_zmq.consumers`, the others of Channels. The browsers are one process of TCP
connections that read WebSocket frames (without compression) and check each.

Figures. One message at a time, from before `group_send` until the last browser has it: `last_p50_us`, `last_p99_us`;
`cpu_us_per_delivery` is the CPU time of the sender, the servers and the forwarder or Redis meanwhile, for each browser
that got a message. Then as many messages as the layer carries, with a few in flight: `messages_per_s`. Then, at 20, 50
and 80 % of that rate, the time of each single delivery from the moment for which its message was planned:
`load_20_p99_us` and so on.
"""

import asyncio
import base64
import itertools
import json
import os
import time
from collections import defaultdict
from typing import Any

import uvicorn
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings

from benchmarks.crew import Crew, Line, Reports, Worker, WrongResultError
from benchmarks.goals import Goal
from benchmarks.messages import TEXT
from benchmarks.peers import LEAN, Peer, close
from benchmarks.servers import free_port
from channels_zmq import consumers

from .base import Bench, Figures, Measure, cpu_seconds, fresh, percentile

SERVERS = 2
WARM_UP = 3
"""The number of first messages that are not counted."""
UNDER_WAY = 4
"""The number of messages that may be in flight while the rate is measured."""
LOADS = (20, 50, 80)
"""The loads, in percent of the rate."""
PACED_SECONDS = 2.5
TEXT_FRAME, PING, PONG = 0x81, 0x89, 0x8A
"""The first bytes of WebSocket frames."""
MASKED = 0x80
LONG_FRAME, HUGE_FRAME = 126, 127
"""Values of the length byte of a WebSocket frame after which the length follows in 2 or in 8 bytes."""


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    sockets, single, burst = bench.size(1_000, 20), bench.size(50, 5), bench.size(40, 8)
    peer, room, ports = bench.peer(name), fresh("room"), [free_port() for _ in range(SERVERS)]
    with bench.crew() as crew:
        one, other = crew.link()
        servers = [crew.start(serve, peer, room, port, name.endswith(LEAN)) for port in ports]
        for server in servers:
            crew.take(server)
        browsers = crew.start(browse, other, ports, sockets)
        crew.take(browsers)
        sender = crew.start(send, one, peer, room)
        _ask(crew, sender, ("single", WARM_UP))

        at_work = (*servers, sender)
        before = _cpu(crew, at_work) + cpu_seconds(bench.server(name))
        times = _ask(crew, sender, ("single", single))
        used = _cpu(crew, at_work) + cpu_seconds(bench.server(name)) - before
        figures = {
            "last_p50_us": percentile(times, 50),
            "last_p99_us": percentile(times, 99),
            "cpu_us_per_delivery": used / (single * sockets) * 1e6,
        }
        rate = burst / _ask(crew, sender, ("burst", burst)) * 1e9
        figures["messages_per_s"] = rate
        for load in LOADS:
            pace = rate * load / 100
            planned = _ask(crew, sender, ("paced", max(3, round(pace * PACED_SECONDS)), round(1e9 / pace)))
            reached = _ask(crew, browsers, "times")
            late = [at - planned[number] for number, when in reached.items() if number in planned for at in when]
            figures[f"load_{load}_p99_us"] = percentile(late, 99)
        _ask(crew, browsers, "end")
        for worker in (sender, *servers):
            worker.line.put("end")
    return figures


def _ask(crew: Crew, worker: Worker, question: object) -> Any:
    worker.line.put(question)
    return crew.take(worker)


def _cpu(crew: Crew, workers: tuple[Worker, ...]) -> float:
    return sum(float(_ask(crew, worker, "cpu")) for worker in workers)


async def serve(line: Line, peer: Peer, room: str, port: int, lean: bool) -> None:
    """Serve the room in one process, with our consumers or those of Channels."""
    peer.layer_class()
    settings.configure(CHANNEL_LAYERS={"default": {"BACKEND": peer.backend, "CONFIG": peer.config}})

    class Room(consumers.AsyncWebsocketConsumer if lean else AsyncWebsocketConsumer):  # type: ignore[misc] # no type information
        groups = (room,)

        async def chat_message(self, event: dict[str, Any]) -> None:
            await self.send(text_data=json.dumps({"n": event["n"], "text": event["text"]}))

    # The loop is the crew's. A backlog for all browsers, which connect at once.
    config = uvicorn.Config(Room.as_asgi(), port=port, loop="none", lifespan="off", log_level="warning", backlog=4096)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    line.put("ready")
    while await line.aget() == "cpu":
        line.put(time.process_time())
    server.should_exit = True
    await serving


async def send(line: Line, link: Line, peer: Peer, room: str) -> None:
    """Send to the room as the harness requests."""
    layer, numbers = peer.open(), itertools.count()

    async def send_next() -> int:
        number = next(numbers)
        await layer.group_send(room, {"type": "chat.message", "n": number, "text": TEXT})
        return number

    while (question := await line.aget()) != "end":
        match question:
            case "cpu":
                line.put(time.process_time())
            case ("single", count):
                times = []
                for _ in range(count):
                    start = time.monotonic_ns()
                    await send_next()
                    times.append(await link.aget() - start)
                line.put(times)
            case ("burst", count):
                start = end = time.monotonic_ns()
                for sent in range(count + UNDER_WAY):
                    if sent >= UNDER_WAY:
                        end = await link.aget()
                    if sent < count:
                        await send_next()
                line.put(end - start)
            case ("paced", count, interval):
                line.put(await _paced(link, send_next, count, interval))
    await close(layer)


async def _paced(link: Line, send_next: Any, count: int, interval: int) -> dict[int, int]:
    """Send at planned moments, however late the earlier ones were, and return these moments by number."""
    planned, start = {}, time.monotonic_ns() + interval
    for turn in range(count):
        at = start + turn * interval
        await asyncio.sleep((at - time.monotonic_ns()) / 1e9)
        planned[await send_next()] = at
    for _ in range(count):
        await link.aget()
    return planned


async def browse(line: Reports, link: Line, ports: list[int], sockets: int) -> None:
    """Run all browsers, and report to the sender when the last one has a message."""
    loop, room = asyncio.get_running_loop(), _Room(line, link, sockets)
    browsers: list[_Browser] = []
    for number in range(sockets):
        _, browser = await loop.create_connection(lambda: _Browser(room), "127.0.0.1", ports[number % len(ports)])
        browsers.append(browser)
    await asyncio.gather(*(browser.is_open for browser in browsers))
    line.put("connected")
    while await line.aget() == "times":
        line.put({number: times for number, times in room.times.items() if len(times) == sockets})
        room.times.clear()
    for browser in browsers:
        browser.is_ending = True
        browser.transport.close()
    line.put("closed")


class _Room:
    """The times at which each message arrived at the browsers."""

    def __init__(self, line: Reports, link: Line, sockets: int) -> None:
        self.times: defaultdict[int, list[int]] = defaultdict(list)
        self.fail = line.fail
        self._link, self._sockets = link, sockets
        self._texts: list[bytes] = []

    def text(self, number: int) -> bytes:
        """Return the text that the message of that number must have."""
        while number >= len(self._texts):
            self._texts.append(json.dumps({"n": len(self._texts), "text": TEXT}).encode())
        return self._texts[number]

    def arrived(self, number: int) -> None:
        times, now = self.times[number], time.monotonic_ns()
        times.append(now)
        if len(times) == self._sockets:
            self._link.put(now)


class _Browser(asyncio.Protocol):
    """A WebSocket that only reads."""

    def __init__(self, room: _Room) -> None:
        self.is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_ending = False
        self.transport: asyncio.Transport
        self._room, self._data, self._expected = room, b"", 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        lines = ["GET / HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        transport.write("\r\n".join(lines).encode())

    def connection_lost(self, error: Exception | None) -> None:
        if not self.is_ending:
            self._fail(f"a browser was disconnected after {self._expected} messages: {error}")

    def _fail(self, reason: str) -> None:
        self.is_ending = True
        self._room.fail(WrongResultError(reason))

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self.is_open.done():
            head, separator, rest = self._data.partition(b"\r\n\r\n")
            if not separator:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._fail(f"the server answered {head[:64]!r}")
                return
            self._data = rest
            self.is_open.set_result(None)
        while (frame := self._next_frame()) is not None:
            kind, payload = frame
            if kind == PING:
                self.transport.write(bytes((PONG, MASKED | len(payload), 0, 0, 0, 0)) + payload)
            elif kind == TEXT_FRAME and payload == self._room.text(self._expected):
                self._room.arrived(self._expected)
                self._expected += 1
            else:
                self._fail(f"a browser got {payload[:64]!r} instead of message {self._expected}")

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Return the kind and the payload of the next whole frame; those of servers are not masked."""
        data, begin = self._data, 2
        if len(data) < begin:
            return None
        length = data[1]
        if length >= LONG_FRAME:
            begin = 10 if length == HUGE_FRAME else 4
            length = int.from_bytes(data[2:begin], "big")
        if len(data) < begin + length:
            return None
        self._data = data[begin + length :]
        return data[0], data[begin : begin + length]


OUR_CONSUMERS = "dedicated" + LEAN
RATE = "messages to 1,000 WebSockets"
COST = "CPU for a delivery to one of 1,000 WebSockets"
WEBSOCKETS = Measure(
    "websockets",
    "a room of 1,000 WebSockets on two uvicorn processes",
    (OUR_CONSUMERS, "dedicated", "redis-pubsub" + LEAN, "redis-pubsub", "redis-core"),
    run,
    (
        *(
            goal
            for peer in ("redis-pubsub", "redis-core")
            for goal in (
                Goal("last_p50_us", peer, "<=", 1.0),
                Goal("last_p99_us", peer, "<=", 1.0),
                Goal("cpu_us_per_delivery", peer, "<=", 1.0),
                Goal(
                    "cpu_us_per_delivery",
                    peer,
                    "<=",
                    0.6,
                    ours=OUR_CONSUMERS,
                    headline=COST if peer == "redis-pubsub" else "",
                ),
                Goal("messages_per_s", peer, ">=", 1.0),
                Goal(
                    "messages_per_s",
                    peer,
                    ">=",
                    1.0,
                    ours=OUR_CONSUMERS,
                    headline=RATE if peer == "redis-pubsub" else "",
                ),
            )
        ),
        Goal("load_80_p99_us", "redis-pubsub", "<=", 1.0, than="load_50_p99_us"),
    ),
    at_most=2,
)
