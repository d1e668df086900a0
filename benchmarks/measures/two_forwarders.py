"""The gain of a second forwarder: messages over 1,000 groups by one or two. Figure: messages per CPU second.

One process sends, one receives; the figure is the number of messages over the CPU time of the forwarder that has used
most. On a machine with enough cores that is the one which sets the limit; here cores are shared with the sender and the
receiver, so that messages/s would show these. Two forwarders carry at most twice as much, if the homes of the groups
are spread evenly.

A forwarder that is idle for most of the time takes more time for a message than a busy one, which takes many at once.
So the forwarders are frozen (SIGSTOP) until about `BACKLOG` messages have been sent to each, again and again. All run
in a network whose receive buffers hold this backlog, or else the forwarder pays for a part of the sender's work.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.crew import Line
from benchmarks.goals import Goal
from benchmarks.messages import check, message
from benchmarks.own_network import own_network
from benchmarks.peers import CAPACITY, Layer, Peer, close
from benchmarks.servers import forwarder

from .base import Bench, Figures, Measure, cpu_seconds, fresh

GROUPS = 1_000
BACKLOG = 3_000
"""The backlog of each forwarder, which is less than the window of a link."""
FORWARDERS = {"one-forwarder": 1, "two-forwarders": 2}
NO_NETWORK = (
    "what a second forwarder adds: without root's rights and `ip`, the forwarders pay for a part of the sender's work"
)


def run(bench: Bench, name: str) -> Figures:
    """Measure with one or two forwarders once."""
    backlog = FORWARDERS[name] * BACKLOG
    count = bench.size(130, 2) * 2 * BACKLOG
    groups = [fresh("group") for _ in range(bench.size(GROUPS, 10))]
    with ExitStack() as stack:
        if not stack.enter_context(own_network()) and NO_NETWORK not in bench.notes:
            bench.notes.append(NO_NETWORK)
        found = [stack.enter_context(forwarder({})) for _ in range(FORWARDERS[name])]
        addresses = {
            "pull_socket_address": [one.pull for one in found],
            "pub_socket_address": [one.pub for one in found],
        }
        peer = Peer(name, "channels_zmq.core.DedicatedZmqChannelLayer", {**addresses, "capacity": CAPACITY})
        crew = stack.enter_context(bench.crew())
        one, other = crew.link()
        pids = [one.pid for one in found]
        receiver = crew.start(receive, other, peer, groups, count, backlog)
        sender = crew.start(send, one, peer, groups, count, backlog, pids)
        crew.take(sender)
        before = [cpu_seconds(pid) for pid in pids]
        sender.line.put("go")
        crew.take(receiver)
        used = max(cpu_seconds(pid) - earlier for pid, earlier in zip(pids, before, strict=True))
    return {"messages_per_cpu_s": count / used}


async def send(
    line: Line, link: Line, peer: Peer, groups: list[str], count: int, backlog: int, pids: list[int]
) -> None:
    """Send a backlog of messages to all groups in turns, and wait until the receiver has them, again and again."""
    layer = peer.open()
    await link.aget()
    await _use_all(layer, peer)
    line.put("reached")
    await line.aget()
    for first in range(0, count, backlog):
        with _frozen(pids):
            for number in range(first, first + backlog):
                await layer.group_send(groups[number % len(groups)], message(number))
        await link.aget()
    await close(layer)


@contextmanager
def _frozen(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def _use_all(layer: Layer, peer: Peer) -> None:
    """Wait until the layer sends by all forwarders."""
    stats = getattr(layer, "stats")  # noqa: B009 - only our layers have it
    while [link["carries"] for link in stats()["links"]].count(True) < FORWARDERS[peer.name]:
        await layer.group_send("nobody", {})
        await asyncio.sleep(0.01)


async def receive(line: Line, link: Line, peer: Peer, groups: list[str], count: int, backlog: int) -> None:
    """Read and check everything: the order holds for each group, as its forwarder is the same."""
    layer = peer.open()
    channel = await layer.new_channel()
    for group in groups:
        await layer.group_add(group, channel)
    link.put("joined")
    expected = list(range(len(groups)))
    for arrived in range(1, count + 1):
        got = await layer.receive(channel)
        group = got["n"] % len(groups)
        check(got, expected[group], peer.name)
        expected[group] += len(groups)
        if arrived % backlog == 0:
            link.put(arrived)
    line.put("done")
    await close(layer)


TWO_FORWARDERS = Measure(
    "two_forwarders",
    "what a second forwarder adds",
    tuple(reversed(FORWARDERS)),
    run,
    (Goal("messages_per_cpu_s", "one-forwarder", ">=", 1.7, ours="two-forwarders"),),
    at_most=3,
)
