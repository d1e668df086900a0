"""Messages per second from one process to one other, pipelined, 200 bytes each. Figures: messages/s.

The sender sends as fast as it may; the receiver reads everything in one loop over `receive()`. The time runs from
before the first send to after the last receive (the clock is the system's monotonic one, the same for both
processes). `WINDOW` bounds the messages in flight, in the same way for every peer, so that no layer is fast by
dropping. It is below *half* of the smallest high-water mark on the path (10,000 at the forwarder): libzmq reports to
the writer of a pipe how much was read only after every half of the mark, so XPUB may drop from 5,000 frames in flight
on.
"""

import time
from collections.abc import Awaitable, Callable

from benchmarks.crew import Line
from benchmarks.goals import Goal
from benchmarks.messages import PROBE, check, message
from benchmarks.peers import Message, Peer, close

from .base import Bench, Figures, Measure, fresh

WINDOW = 4_000
ACKNOWLEDGE_EVERY = 500
PROBE_SECONDS = 0.05


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    full = {"redis-core": 1_500, "redis-pubsub": 10_000}.get(name, 50_000)
    count = bench.size(full, 100)
    figures: Figures = {}
    for way in ("channel", "group"):
        with bench.crew() as crew:
            peer, group = bench.peer(name), fresh("stream")
            one, other = crew.link()
            sender = crew.start(send, one, peer, way, group, count)
            receiver = crew.start(receive, other, peer, way, group, count)
            start, end = crew.take(sender), crew.take(receiver)
        figures[f"{way}_messages_per_s"] = count / (end - start) * 1e9
    return figures


async def send(line: Line, link: Line, peer: Peer, way: str, group: str, count: int) -> None:
    """Send everything, never more than `WINDOW` ahead of the receiver."""
    layer = peer.open()
    destination = await link.aget() if way == "channel" else group
    deliver: Callable[[str, Message], Awaitable[None]] = layer.send if way == "channel" else layer.group_send
    await deliver(destination, message(PROBE))
    while not await link.arrives(PROBE_SECONDS):
        await deliver(destination, message(PROBE))
    received = 0
    start = time.monotonic_ns()
    for number in range(count):
        while number - received >= WINDOW:
            received = await link.aget()
        await deliver(destination, message(number))
    line.put(start)
    while received < count:
        received = await link.aget()
    await close(layer)


async def receive(line: Line, link: Line, peer: Peer, way: str, group: str, count: int) -> None:
    """Read and check everything."""
    layer = peer.open()
    channel = await layer.new_channel()
    if way == "channel":
        link.put(channel)
    else:
        await layer.group_add(group, channel)
    check(await layer.receive(channel), PROBE, "probe")
    link.put("reached")
    who = f"{peer.name}, receiving by {way}"
    expected = 0
    while expected < count:
        got = await layer.receive(channel)
        if got["n"] == PROBE:
            continue
        check(got, expected, who)
        expected += 1
        if expected % ACKNOWLEDGE_EVERY == 0 or expected == count:
            end = time.monotonic_ns()
            link.put(expected)
    line.put(end)
    await close(layer)


THROUGHPUT = Measure(
    "throughput",
    "pipelined messages between two processes",
    ("dedicated", "embedded", "redis-pubsub", "redis-core"),
    run,
    (
        Goal("channel_messages_per_s", "redis-pubsub", ">=", 20),
        Goal("group_messages_per_s", "redis-pubsub", ">=", 20, headline="group messages between two processes"),
    ),
)
