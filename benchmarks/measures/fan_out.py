"""A group with 1, 100 and 1,000 members in another process.

Figures, for each size: `p50_us`, from before `group_send` until the last member has the message (one message at a
time); `deliveries_per_s`, messages times members, with several messages sent one after another without waiting. A
member is like a consumer: a task that loops over `receive()` of its own channel.
"""

import asyncio
import time

from benchmarks.crew import Line
from benchmarks.goals import Goal
from benchmarks.messages import PROBE, check, message
from benchmarks.peers import Layer, Message, Peer, close

from .base import Bench, Figures, Measure, fresh, percentile

SIZES = (1, 100, 1_000)
PROBE_SECONDS = 0.1


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    single = {size: bench.size(repeats, 3) for size, repeats in zip(SIZES, (300, 100, 40), strict=True)}
    burst = {size: bench.size(repeats, 3) for size, repeats in zip(SIZES, (4_000, 100, 20), strict=True)}
    groups = {size: fresh("fan") for size in SIZES}
    figures: Figures = {}
    with bench.crew() as crew:
        peer = bench.peer(name)
        one, other = crew.link()
        sender = crew.start(send, one, peer, groups, single, burst)
        receiver = crew.start(receive, other, peer, groups, single, burst)
        for size in SIZES:
            times, elapsed = crew.take(sender)
            crew.take(receiver)
            figures[f"members_{size}_p50_us"] = percentile(times, 50)
            figures[f"members_{size}_deliveries_per_s"] = burst[size] * size / elapsed * 1e9
    return figures


async def send(
    line: Line, link: Line, peer: Peer, groups: dict[int, str], single: dict[int, int], burst: dict[int, int]
) -> None:
    """Send one message after the other, each when the last member has the one before; then send a burst."""
    layer = peer.open()
    for size in SIZES:
        await layer.group_send(groups[size], message(PROBE))
        while not await link.arrives(PROBE_SECONDS):
            await layer.group_send(groups[size], message(PROBE))
        times = []
        for number in range(single[size]):
            start = time.monotonic_ns()
            await layer.group_send(groups[size], message(number))
            times.append(await link.aget() - start)
        start = time.monotonic_ns()
        for number in range(single[size], single[size] + burst[size]):
            await layer.group_send(groups[size], message(number))
        line.put((times, await link.aget() - start))
    await close(layer)


async def receive(
    line: Line, link: Line, peer: Peer, groups: dict[int, str], single: dict[int, int], burst: dict[int, int]
) -> None:
    """Run the members, and report to the sender when the last one has a message, of the burst the last message."""
    layer = peer.open()
    for size in SIZES:
        tally = _Tally(link, size, single[size], single[size] + burst[size])
        channels = [await layer.new_channel() for _ in range(size)]
        for channel in channels:
            await layer.group_add(groups[size], channel)
        who = f"{peer.name}, member of {size}"
        async with asyncio.TaskGroup() as members:
            for channel in channels:
                members.create_task(_member(layer, channel, tally, who))
        line.put("done")
    await close(layer)


class _Tally:
    """How many members still lack each message."""

    def __init__(self, link: Line, members: int, single: int, total: int) -> None:
        self.messages = [message(number) for number in range(total)]
        self._missing = [members] * total
        self._unreached = members
        self._single = single
        self._link = link

    def reached(self) -> None:
        self._unreached -= 1
        if not self._unreached:
            self._link.put("reached")

    def got(self, number: int) -> None:
        self._missing[number] -= 1
        if not self._missing[number] and (number < self._single or number == len(self._missing) - 1):
            self._link.put(time.monotonic_ns())


async def _member(layer: Layer, channel: str, tally: _Tally, who: str) -> None:
    check(await layer.receive(channel), PROBE, who)
    tally.reached()
    expected: Message
    for number, expected in enumerate(tally.messages):
        got = await layer.receive(channel)
        while got["n"] == PROBE:
            got = await layer.receive(channel)
        if got != expected:
            check(got, number, who)
        tally.got(number)


FAN_OUT = Measure(
    "fan_out",
    "group with members in another process",
    ("dedicated", "embedded", "redis-pubsub", "redis-core"),
    run,
    (
        Goal("members_1000_deliveries_per_s", "redis-pubsub", ">=", 4, headline="deliveries to a group of 1,000"),
        Goal("members_1000_p50_us", "redis-pubsub", "<=", 0.25, headline="until the last of 1,000 has a message, p50"),
    ),
    at_most=3,
)
