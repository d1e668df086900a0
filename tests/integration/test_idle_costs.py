"""What very many idle consumers cost: nothing while nothing happens, and nothing when a producer misses a number."""

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import zmq
from forwarders import Forwarder

from channels_zmq_forwarder import wire

pytestmark = pytest.mark.slow

Make = Callable[..., Any]

CONSUMERS, GROUPS, READERS = 100_000, 1_000, 10_000
REST = 10.0
"""Seconds over which a process at rest is measured."""
SHARE = 0.02
"""Of a core, on top of a process without consumers."""
PAUSE = 0.25
PATIENCE = 300.0
kept: list[Any] = []
"""The tasks of the consumers."""


async def idle(layer: Any, consumers: int, groups: int, readers: int) -> None:
    """Let consumers join groups, and all of them wait for good."""
    for number in range(consumers):
        channel = await layer.new_channel()
        await layer.group_add(f"group-{number % groups}", channel)
        kept.append(asyncio.create_task(layer.receive(channel)))
    kept.extend(asyncio.create_task(layer.receive(f"jobs-{number}")) for number in range(readers))
    await asyncio.sleep(1)
    gc.collect()
    gc.freeze()


async def reconnects(layer: Any) -> int:
    """Return how often the connection broke."""
    return int(layer.stats()["reconnects"])


async def longest_pause(layer: Any, group: str, until_missed: int) -> float:
    """Return the longest pause of a 1 ms ticker until so many messages are known to be missed."""
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    longest, last = 0.0, time.monotonic()
    while layer.stats()["dropped"].get("missed", 0) < until_missed:
        await asyncio.sleep(0.001)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def shares(*pids: int) -> list[float]:
    """Return the share of a core that each process uses while all are at rest."""
    processes = [psutil.Process(pid) for pid in pids]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    began = time.monotonic()
    time.sleep(REST)  # the measurement itself
    took = time.monotonic() - began
    return [(sum(process.cpu_times()[:2]) - used) / took for process, used in zip(processes, before, strict=True)]


def test_a_hundred_thousand_idle_consumers_cost_nothing_at_rest(forwarder: Forwarder, open_peer: Make) -> None:
    """Neither their process nor the forwarder; and a gap in the numbers of one producer pauses no event loop."""
    bare, full = (open_peer(**forwarder.config) for _ in range(2))
    for peer in (bare, full):
        peer.ask("until_connected", True)
    assert forwarder._process is not None
    without = shares(bare.process.pid, forwarder._process.pid)
    full.run(idle, CONSUMERS, GROUPS, READERS, patience=PATIENCE)
    at_rest = shares(full.process.pid, forwarder._process.pid)
    print(f"shares of a core: {without} without consumers, {at_rest} with them")
    assert full.run(reconnects) == 0  # who begins so many queues at once is no flood

    measured = full.begin_run(longest_pause, "gap", 1)
    with zmq.Context() as context, context.socket(zmq.PUSH) as stranger:
        stranger.connect(forwarder.pull)
        topic, number = wire.group_topic("gap"), 1
        while not measured.done():
            stranger.send(wire.ordered(topic, b"stranger", number, 0, 60_000, b"\x80"))
            number += 1_000_000
            time.sleep(0.01)
    pause = measured.result(PATIENCE)
    print(f"longest pause of the loop around a gap: {pause * 1000:.1f} ms")
    for with_them, bare_share in zip(at_rest, without, strict=True):
        assert with_them - bare_share < SHARE
    assert pause < PAUSE
