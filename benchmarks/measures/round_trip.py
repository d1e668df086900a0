"""Round trip between two processes: A sends to B, B answers, A has the answer. Figures: p50 and p99 in us.

The messages go to a channel (`send` to the other's own channel) and to a group with one member. The limit is raw libzmq
with plain blocking receives; `raw-asyncio` is printed for information and is not a goal (`raw_round_trip`).
"""

import asyncio
import itertools
import time
from collections.abc import Sequence

from benchmarks.crew import Crew, Line, Worker, WrongResultError
from benchmarks.goals import Goal
from benchmarks.messages import KIND, PROBE, STOP, check, message
from benchmarks.peers import Layer, Peer, close

from .base import Bench, Figures, Measure, fresh, percentile
from .raw_round_trip import run_raw

PROBE_SECONDS = 0.05
BURST = 250
"""The number of successive round trips of one of two trees that are compared."""
WARM_UP = 10
"""Round trips before each burst that are not counted, as the processor's caches are full of the other tree."""


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    return run_raw(bench, name) if name.startswith("raw") else run_in_turns([bench], name)[0]


def run_in_turns(benches: Sequence[Bench], name: str) -> list[Figures]:
    """Measure one peer once on each bench, in turns of a burst: a machine's speed changes within seconds."""
    full, quick = (2_000, 50) if name != "redis-core" else (500, 20)
    count = benches[0].size(full, quick)
    bursts = [min(BURST, count - begun) for begun in range(0, count, BURST)]
    figures: list[Figures] = [{} for _ in benches]
    for way in ("channel", "group"):
        times: list[list[int]] = [[] for _ in benches]
        with benches[0].crew() as crew:
            pairs = [_start(crew, bench.peer(name), way, count + WARM_UP * len(bursts)) for bench in benches]
            for asking, _ in pairs:
                crew.take(asking)
            for burst in bursts:
                for (asking, _), taken in zip(pairs, times, strict=True):
                    asking.line.put(WARM_UP + burst)
                    taken += crew.take(asking)[WARM_UP:]
            for asking, answering in pairs:
                asking.line.put(0)
                crew.take(answering)
        for one, taken in zip(figures, times, strict=True):
            one |= {f"{way}_p50_us": percentile(taken, 50), f"{way}_p99_us": percentile(taken, 99)}
    return figures


def _start(crew: Crew, peer: Peer, way: str, count: int) -> tuple[Worker, Worker]:
    groups, (one, other) = (fresh("a"), fresh("b")), crew.link()
    return crew.start(ask, one, peer, way, groups), crew.start(answer, other, peer, way, groups, count)


async def ask(line: Line, link: Line, peer: Peer, way: str, groups: tuple[str, str]) -> None:
    """Role A: send, wait for the answer, and record the time in ns.

    It repeats this as many times as the harness requests, until that is 0.
    """
    layer = peer.open()
    own, other = await _meet(layer, link, way, groups[0], groups[1])
    await _reach(layer, own, other, way)
    line.put("ready")
    numbers = itertools.count()
    while count := await line.aget():
        times = []
        for number in itertools.islice(numbers, count):
            start = time.perf_counter_ns()
            await _send(layer, way, other, message(number))
            got = await layer.receive(own)
            while got["n"] == PROBE:  # a late answer to one of several probes
                got = await layer.receive(own)
            times.append(time.perf_counter_ns() - start)
            check(got, number, f"{peer.name}, asking by {way}")
        line.put(times)
    await _send(layer, way, other, message(STOP))
    await link.aget()
    await close(layer)


async def answer(line: Line, link: Line, peer: Peer, way: str, groups: tuple[str, str], count: int) -> None:
    """Role B: send each message back."""
    layer = peer.open()
    own, other = await _meet(layer, link, way, groups[1], groups[0])
    expected = 0
    while (got := await layer.receive(own))["n"] != STOP:
        if got["n"] != PROBE:
            check(got, expected, f"{peer.name}, answering by {way}")
            expected += 1
        await _send(layer, way, other, {"type": KIND, "n": got["n"], "text": got["text"]})
    if expected != count:
        raise WrongResultError(f"{peer.name}, answering by {way}: {expected} messages instead of {count}")
    link.put("done")
    line.put("done")
    await close(layer)


async def _meet(layer: Layer, link: Line, way: str, group: str, other_group: str) -> tuple[str, str]:
    own = await layer.new_channel()
    if way == "group":
        await layer.group_add(group, own)
        return own, other_group
    link.put(own)
    return own, await link.aget()


async def _reach(layer: Layer, own: str, other: str, way: str) -> None:
    """Send probes until one has returned. The read is never cancelled: that ends a channel of Redis pub/sub."""
    back = asyncio.create_task(layer.receive(own))
    while not back.done():
        await _send(layer, way, other, message(PROBE))
        await asyncio.wait({back}, timeout=PROBE_SECONDS)
    check(back.result(), PROBE, "probe")


async def _send(layer: Layer, way: str, name: str, content: dict[str, object]) -> None:
    if way == "channel":
        await layer.send(name, content)
    else:
        await layer.group_send(name, content)


HEADLINE = "round trip between two processes, p50"
ROUND_TRIP = Measure(
    "round_trip",
    "round trip between two processes",
    ("dedicated", "redis-pubsub", "redis-core", "raw", "raw-asyncio"),
    run,
    tuple(
        goal
        for way in ("channel", "group")
        for goal in (
            Goal(f"{way}_p50_us", "raw-asyncio", "<=", 1.25, headline=HEADLINE if way == "group" else ""),
            Goal(f"{way}_p50_us", "redis-pubsub", "<=", 0.6, headline=HEADLINE if way == "group" else ""),
            Goal(f"{way}_p99_us", "redis-pubsub", "<=", 1.0),
        )
    ),
    in_turns=run_in_turns,
)
