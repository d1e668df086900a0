"""Small messages beside large ones: 1,000 of 200 bytes a second, and ten of 1 MB a second.

One process sends the small ones to a group and another the large ones to another group; a third one has a consumer in
each. So the server and the connection of the third carry both, as they do for any application. Figures: p50 and p99 in
us, from before `group_send` until the consumer has the message, of small ones without large ones (`alone`) and with
them (`beside`), and of the large ones. A sender that cannot keep its rate sends one message after the other:
`small_per_s` is the rate beside large ones.
"""

import asyncio
import time

from benchmarks.crew import Line
from benchmarks.goals import Goal
from benchmarks.messages import PROBE, TEXT, check, message, text_for
from benchmarks.peers import Layer, Peer, close

from .base import Bench, Figures, Measure, fresh, percentile

LARGE = 1_000_000
"""Bytes: a little less than the default of `max_message_size`, 1 MiB."""
SMALL_A_SECOND, LARGE_A_SECOND = 1_000, 10
TENTHS = 25
"""Tenths of a second for which each of both is measured."""
PROBE_SECONDS = 0.05

Times = list[int]
"""When each message was sent or received, in ns."""


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    tenths = bench.size(TENTHS, 2)
    counts = tenths * SMALL_A_SECOND // 10, tenths * LARGE_A_SECOND // 10
    with bench.crew() as crew:
        peer, groups = bench.peer(name), (fresh("small"), fresh("large"))
        links = [crew.link() for _ in groups]
        receiver = crew.start(receive, [other for _, other in links], peer, groups, counts)
        small = crew.start(send, links[0][0], peer, groups[0], TEXT, SMALL_A_SECOND, [counts[0]] * 2)
        large = crew.start(send, links[1][0], peer, groups[1], text_for(LARGE), LARGE_A_SECOND, [counts[1]])
        for worker in (small, large):
            crew.take(worker)
        small.line.put("go")
        alone = _latencies(crew.take(small), crew.take(receiver))
        for worker in (small, large):
            worker.line.put("go")
        sent = crew.take(small), crew.take(large)
        beside, of_large = map(_latencies, sent, crew.take(receiver))
    return {
        "alone_p50_us": percentile(alone, 50),
        "alone_p99_us": percentile(alone, 99),
        "beside_p50_us": percentile(beside, 50),
        "beside_p99_us": percentile(beside, 99),
        "large_p50_us": percentile(of_large, 50),
        "small_per_s": (counts[0] - 1) / (sent[0][-1] - sent[0][0]) * 1e9,
    }


async def send(line: Line, link: Line, peer: Peer, group: str, text: str, rate: int, counts: list[int]) -> None:
    """Send a number of messages at a rate each time when the harness requests it."""
    layer = peer.open()
    await layer.group_send(group, message(PROBE, text))
    while not await link.arrives(PROBE_SECONDS):
        await layer.group_send(group, message(PROBE, text))
    line.put("reached")
    number = 0
    for count in counts:
        await line.aget()
        sent: Times = []
        begin = time.monotonic()
        for index in range(count):
            await asyncio.sleep(max(0.0, begin + index / rate - time.monotonic()))
            content = message(number, text)
            sent.append(time.monotonic_ns())
            await layer.group_send(group, content)
            number += 1
        line.put(sent)
    await link.aget()
    await close(layer)


async def receive(line: Line, links: list[Line], peer: Peer, groups: tuple[str, str], counts: tuple[int, int]) -> None:
    """Receive small messages, then small and large ones, and report when each arrived."""
    layer = peer.open()
    channels = [await layer.new_channel() for _ in groups]
    texts = TEXT, text_for(LARGE)
    for group, channel, link, text in zip(groups, channels, links, texts, strict=True):
        await layer.group_add(group, channel)
        check(await layer.receive(channel), PROBE, "probe", text)
        link.put("reached")
    line.put(await _read(layer, channels[0], 0, counts[0], texts[0], peer.name))
    firsts = counts[0], 0
    reads = (
        _read(layer, channel, first, count, text, peer.name)
        for channel, first, count, text in zip(channels, firsts, counts, texts, strict=True)
    )
    line.put(await asyncio.gather(*reads))
    for link in links:
        link.put("done")
    await close(layer)


async def _read(layer: Layer, channel: str, first: int, count: int, text: str, who: str) -> Times:
    times: Times = []
    for number in range(first, first + count):
        got = await layer.receive(channel)
        while got["n"] == PROBE:
            got = await layer.receive(channel)
        times.append(time.monotonic_ns())
        check(got, number, f"{who}, consumer of {len(text)} bytes", text)
    return times


def _latencies(sent: Times, received: Times) -> list[int]:
    return [end - start for start, end in zip(sent, received, strict=True)]


LARGE_BESIDE_SMALL = Measure(
    "large_beside_small",
    "small messages beside ten of 1 MB a second",
    ("dedicated", "redis-pubsub", "redis-core"),
    run,
    (
        Goal(
            "beside_p99_us",
            "dedicated",
            "<=",
            2,
            than="alone_p99_us",
            headline="p99 of small messages beside 1 MB ones",
        ),
    ),
    at_most=3,
)
