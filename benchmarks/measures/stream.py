"""A stream of events over many groups, as AWX sends them. Figures: events/s, and CPU time in us per event.

One process sends events of 1 kB, in turn for 200 jobs that run at the same time, each of which has a group. Eight
processes serve the browsers. A job is watched by consumers in two of the processes, so that each process has 50
consumers and gets a quarter of the events: the progress of a job has few viewers and is never sent to all. A layer that
loses is not faster, so the sender keeps to a window (`WINDOW`) and every consumer checks all events of its job.

The CPU time is that of all nine processes and of the server. With fewer cores than that, it decides.
"""

import asyncio
import time

from benchmarks.crew import Line
from benchmarks.goals import Goal
from benchmarks.messages import PROBE, check, message, text_for
from benchmarks.peers import Layer, Peer, close

from .base import Bench, Figures, Measure, cpu_seconds, fresh

CONSUMERS = 8
JOBS = 200
WATCHERS = 2
"""The number of processes that have a consumer for a job."""
TEXT = text_for(1_000)
WINDOW = 2_000
"""Events in flight. All of them may wait for one process, and XPUB may drop from 5,000 on (`throughput`)."""
ACKNOWLEDGE_EVERY = 50
PROBE_SECONDS = 1.0


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    full = {"redis-core": 1_000, "redis-pubsub": 6_000}.get(name, 40_000)
    count, groups = bench.size(full, JOBS), [fresh("job") for _ in range(JOBS)]
    with bench.crew() as crew:
        peer = bench.peer(name)
        links = [crew.link() for _ in range(CONSUMERS)]
        producer = crew.start(produce, [one for one, _ in links], peer, groups, count)
        consumers = [crew.start(consume, link, peer, groups, number, count) for number, (_, link) in enumerate(links)]
        crew.take(producer)
        pids = [bench.server(name), *(worker.pid for worker in (producer, *consumers))]
        used = sum(map(cpu_seconds, pids))
        producer.line.put("go")
        start, end = crew.take(producer), max(crew.take(one) for one in consumers)
        used = sum(map(cpu_seconds, pids)) - used
        for worker in (producer, *consumers):
            worker.line.put("end")
    return {"events_per_s": count / (end - start) * 1e9, "cpu_us_per_event": used / count * 1e6}


def watchers(job: int) -> set[int]:
    """Return the processes that have a consumer for a job: two, in all combinations, and equally many jobs for each."""
    return {job % CONSUMERS, (job + 1 + job // CONSUMERS % (CONSUMERS - 1)) % CONSUMERS}


async def produce(line: Line, links: list[Line], peer: Peer, groups: list[str], count: int) -> None:
    """Send the events in turn for all jobs, never more than `WINDOW` ahead of the consumers."""
    layer = peer.open()
    for link in links:
        await link.aget()
    unreached = links
    while unreached:
        for group in groups:
            await layer.group_send(group, message(PROBE, TEXT))
        unreached = [link for link in unreached if not await link.arrives(PROBE_SECONDS)]
    line.put("reached")
    await line.aget()
    window = _Window(links)
    async with asyncio.TaskGroup() as listeners:
        for index in range(CONSUMERS):
            listeners.create_task(window.listen(index, deliveries(index, count)))
        start = time.monotonic_ns()
        for number in range(count):
            if number >= window.end:
                await window.opens(number)
            await layer.group_send(groups[number % JOBS], message(number, TEXT))
        line.put(start)
    await line.aget()
    await close(layer)


async def consume(line: Line, link: Line, peer: Peer, groups: list[str], index: int, count: int) -> None:
    """Run a consumer for each job that is watched here, and acknowledge the number of events that they all have."""
    layer = peer.open()
    jobs = [job for job in range(JOBS) if index in watchers(job)]
    channels = [await layer.new_channel() for _ in jobs]
    for job, channel in zip(jobs, channels, strict=True):
        await layer.group_add(groups[job], channel)
    link.put("joined")
    tally = _Tally(link, len(jobs), deliveries(index, count))
    async with asyncio.TaskGroup() as consumers:
        for job, channel in zip(jobs, channels, strict=True):
            numbers = range(job, count, JOBS)
            consumers.create_task(_watch(layer, channel, numbers, tally, f"{peer.name}, watching job {job}"))
    line.put(tally.end)
    await line.aget()
    await close(layer)


class _Window:
    """The events that the consumers have acknowledged, and therefore the limit for the producer."""

    def __init__(self, links: list[Line]) -> None:
        self.end = WINDOW
        self._links = links
        self._delivered = [0] * len(links)
        self._has_moved = asyncio.Event()

    async def listen(self, index: int, total: int) -> None:
        while self._delivered[index] < total:
            self._delivered[index] = await self._links[index].aget()
            self.end = sum(self._delivered) // WATCHERS + WINDOW
            self._has_moved.set()

    async def opens(self, number: int) -> None:
        while number >= self.end:
            self._has_moved.clear()
            await self._has_moved.wait()


class _Tally:
    """How many events the consumers of one process have got."""

    def __init__(self, link: Line, consumers: int, total: int) -> None:
        self.end = 0
        self._link = link
        self._unreached = consumers
        self._total, self._count = total, 0

    def reached(self) -> None:
        self._unreached -= 1
        if not self._unreached:
            self._link.put("reached")

    def got(self) -> None:
        self._count += 1
        if self._count % ACKNOWLEDGE_EVERY == 0 or self._count == self._total:
            self.end = time.monotonic_ns()
            self._link.put(self._count)


async def _watch(layer: Layer, channel: str, numbers: range, tally: _Tally, who: str) -> None:
    check(await layer.receive(channel), PROBE, who, TEXT)
    tally.reached()
    for number in numbers:
        got = await layer.receive(channel)
        while got["n"] == PROBE:
            got = await layer.receive(channel)
        check(got, number, who, TEXT)
        tally.got()


def deliveries(index: int, count: int) -> int:
    """Return how many of the events a process gets."""
    return sum(len(range(job, count, JOBS)) for job in range(JOBS) if index in watchers(job))


STREAM = Measure(
    "stream",
    "a stream of events over 200 groups to 8 processes",
    ("dedicated", "redis-pubsub", "redis-core"),
    run,
    (
        Goal("events_per_s", "redis-core", ">=", 10),
        Goal("events_per_s", "redis-pubsub", ">=", 4, headline="events of 1 kB to 200 groups in 8 processes"),
    ),
    at_most=3,
)
