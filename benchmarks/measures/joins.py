"""WebSockets that come and go, 1,000 a second, each in two groups: how long joining takes, and what it leaves.

Each makes a channel and waits on it, joins a group of its own and one of 50 rooms, and leaves both `LIFE` later: 2,000
joins and 2,000 leaves a second for `SECONDS`, in one process. A peer that cannot keep up has at most `BUSY` to do at a
time; `joins_per_s` is the rate that it reached. Figures of `group_add`: p50 and p99 in us, of the own group, which is
new to the process and to the server, and of the room, where others of the process are already. (Ours and Redis core
return when the membership is in force, Redis pub/sub when it has written the command.) Then, of the server: the
highest number of connections and the number after the last has left, its memory before and after in MiB, and the
groups that it still has.

WebSockets that are present at the end get one message by each of their two groups before they leave.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from benchmarks.crew import Line, WrongResultError
from benchmarks.goals import Goal
from benchmarks.messages import PROBE, check, message
from benchmarks.peers import Layer, Message, Peer, close
from benchmarks.servers import groups_at

from .base import Bench, Figures, Measure, fresh, percentile, private_bytes

SECONDS = 10
A_SECOND = 1_000
"""The number of WebSockets that arrive each second."""
ROOMS = 50
LIFE = 2.0
"""Seconds for which each WebSocket stays."""
BUSY = 64
"""The number of WebSockets that join or leave at the same time.

With more than 100 the calls of Redis core raise, for lack of connections.
"""
LOOK_EVERY = 0.25
FORGET_WITHIN = 5.0
"""Seconds within which a server must have forgotten the last groups."""
PROBE_SECONDS = 0.05


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once, on a server of its own."""
    with bench.alone(name) as own, own.crew() as crew:
        server = own.server(name)
        worker = crew.start(serve, own.peer(name), fresh("storm"), bench.size(SECONDS, 1))
        crew.take(worker)
        before = private_bytes(server)
        with _counted_connections(server) as connections:
            worker.line.put("go")
            rate, times = crew.take(worker)
            crew.take(worker)
            left = _groups_left(own, name)
        after = private_bytes(server)
        worker.line.put("end")
    figures = {"joins_per_s": rate}
    for kind, values in times.items():
        figures |= {f"{kind}_p50_us": percentile(values, 50), f"{kind}_p99_us": percentile(values, 99)}
    return figures | {
        "server_connections_at_most": max(connections),
        "server_connections_after": connections[-1],
        "server_before_mib": before / 2**20,
        "server_after_mib": after / 2**20,
        "groups_left": left,
    }


async def serve(line: Line, peer: Peer, names: str, seconds: int) -> None:
    """Let WebSockets join and leave, and report the joins a second and their times, and when all have left."""
    layer = peer.open()
    storm = _Storm(layer, names, peer.name)
    await storm.come(0)
    await storm.leave()
    storm.times = {kind: [] for kind in storm.times}
    line.put("ready")
    await line.aget()
    line.put((await storm.run(seconds), storm.times))
    await storm.deliver()
    await storm.end()
    line.put("left")
    await line.aget()
    await close(layer)


@dataclass(slots=True)
class _WebSocket:
    channel: str
    groups: tuple[str, str]
    number: int
    reads: "asyncio.Task[Message]"
    leaves_at: float


class _Storm:
    """The WebSockets of one process."""

    def __init__(self, layer: Layer, names: str, name: str) -> None:
        self.times: dict[str, list[int]] = {"own_group": [], "room": []}
        self._layer, self._names, self._name = layer, names, name
        self._present: deque[_WebSocket] = deque()
        self._busy = asyncio.Semaphore(BUSY)

    async def run(self, seconds: int) -> float:
        """Let WebSockets join at the rate, or as fast as the layer can, and return the joins a second."""
        begin, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._leave_when_due(begin + seconds))
            while (now := time.monotonic()) < begin + seconds:
                await asyncio.sleep(max(0.0, begin + number / A_SECOND - now))
                await self._busy.acquire()
                tasks.create_task(self.come(number)).add_done_callback(self._release)
                number += 1
            return sum(map(len, self.times.values())) / (time.monotonic() - begin)

    async def come(self, number: int) -> None:
        channel = await self._layer.new_channel()
        reads = asyncio.create_task(self._layer.receive(channel))
        groups = (f"{self._names}-{number}-own", f"{self._names}-{number % ROOMS}")
        for kind, group in zip(self.times, groups, strict=True):
            start = time.perf_counter_ns()
            await self._layer.group_add(group, channel)
            self.times[kind].append(time.perf_counter_ns() - start)
        self._present.append(_WebSocket(channel, groups, number, reads, time.monotonic() + LIFE))

    async def leave(self) -> None:
        """Let the WebSocket leave that has stayed longest."""
        one = self._present.popleft()
        for group in one.groups:
            await self._layer.group_discard(group, one.channel)
        one.reads.cancel()
        await asyncio.wait({one.reads})
        if not one.reads.cancelled():
            raise WrongResultError(f"{self._name}: a message that was not sent: {one.reads.result()}")

    async def deliver(self) -> None:
        """Send to each group of the present WebSockets, and let each of them read its two messages."""
        await self._settle()
        for one in self._present:
            await self._layer.group_send(one.groups[0], message(one.number))
        for room in range(ROOMS):
            await self._layer.group_send(f"{self._names}-{room}", message(room))
        for one in self._present:
            for expected in (one.number, one.number % ROOMS):
                check(await one.reads, expected, f"{self._name}, WebSocket {one.number}")
                one.reads = asyncio.create_task(self._layer.receive(one.channel))

    async def end(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(len(self._present)):
                await self._busy.acquire()
                tasks.create_task(self.leave()).add_done_callback(self._release)

    async def _settle(self) -> None:
        """Wait until all subscriptions are in force: that of one more channel follows all others."""
        channel = await self._layer.new_channel()
        reads = asyncio.create_task(self._layer.receive(channel))
        while not reads.done():
            await self._layer.send(channel, message(PROBE))
            await asyncio.wait({reads}, timeout=PROBE_SECONDS)

    async def _leave_when_due(self, until: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            while time.monotonic() < until:
                if not self._present or self._present[0].leaves_at > time.monotonic():
                    await asyncio.sleep(0.001)
                    continue
                await self._busy.acquire()
                tasks.create_task(self.leave()).add_done_callback(self._release)

    def _release(self, task: "asyncio.Task[None]") -> None:
        self._busy.release()


@contextmanager
def _counted_connections(server: int) -> Iterator[list[int]]:
    """Count the connections of a server every `LOOK_EVERY`, and once at the end."""
    process, counts, is_over = psutil.Process(server), list[int](), threading.Event()

    def look() -> None:
        counts.append(sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp")))

    def keep_looking() -> None:
        while not is_over.wait(LOOK_EVERY):
            look()

    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        thread.join()
        look()


def _groups_left(bench: Bench, name: str) -> int:
    end = time.monotonic() + FORGET_WITHIN
    while (left := groups_at(bench.addresses, name)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


JOINS = Measure(
    "joins",
    "WebSockets that come and go, 1,000 a second",
    ("dedicated", "redis-pubsub", "redis-core"),
    run,
    (
        Goal("own_group_p50_us", "redis-pubsub", "<=", 0.333),
        Goal("room_p50_us", "redis-pubsub", "<=", 0.333, headline="`group_add` during 2,000 joins a second, p50"),
        Goal("groups_left", "", "<=", 0),
    ),
    at_most=1,
)
