"""Very many idle consumers cost nothing at rest, and nothing when a producer misses a number.

Everything is measured in CPU time, so other processes on a busy machine do not count.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import zmq
from forwarders import Forwarder

from channels_zmq import connection
from channels_zmq_forwarder import wire

pytestmark = pytest.mark.slow

Make = Callable[..., Any]

CONSUMERS, GROUPS, READERS = 100_000, 1_000, 10_000
REST = 10.0
"""Seconds for which a process at rest is measured."""
SHARE = 0.01
"""The permitted share of a core, in addition to that of a process without consumers."""
PAUSE = 0.005
"""Seconds of CPU time that one turn of the event loop, or one step under the connection's lock, may take."""
PERIODS = 5
"""The number of periods, whose median of the longest pauses counts.

Each has 1.1 s, since the housekeeper has a turn each second. A cause of pauses in this process occurs in each, while a
virtual machine may charge a thread once for time of its host.
"""
PATIENCE = 300.0
kept: list[Any] = []
"""The tasks of the consumers."""


async def idle(layer: Any, consumers: int, groups: int, readers: int) -> None:
    """Let consumers join groups, and all of them wait for ever."""
    for number in range(consumers):
        channel = await layer.new_channel()
        await layer.group_add(f"group-{number % groups}", channel)
        kept.append(asyncio.create_task(layer.receive(channel)))
    kept.extend(asyncio.create_task(layer.receive(f"jobs-{number}")) for number in range(readers))
    await asyncio.sleep(1)
    gc.collect()
    gc.freeze()


async def reconnects(layer: Any) -> int:
    """Return how many times the connection was restored."""
    return int(layer.stats()["reconnects"])


class Timed(connection._Step):
    """A step that records its longest duration in CPU time, for which an event loop may wait for the lock."""

    def __init__(self, known: connection.Connection) -> None:
        super().__init__(known, known._lock)
        self._began = self.longest = 0.0

    def __enter__(self) -> None:
        super().__enter__()
        self._began = time.thread_time()

    def __exit__(self, *error: Any) -> None:
        began = self._began  # the lock is held
        super().__exit__(*error)
        self.longest = max(self.longest, time.thread_time() - began)


async def longest_pauses(layer: Any, group: str) -> tuple[float, float]:
    """Return the longest turn of this loop, and the longest step of any thread, while messages are missed."""
    known = layer._connection()
    step = known._step = Timed(known)
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    turns, steps = [], []
    for _ in range(PERIODS):
        missed, end = layer.stats()["dropped"].get("missed", 0), time.monotonic() + 1.1
        longest, step.longest, last = 0.0, 0.0, time.thread_time()
        while layer.stats()["dropped"].get("missed", 0) == missed or time.monotonic() < end:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
        turns.append(longest)
        steps.append(step.longest)
    return median(turns), median(steps)


def cpu_time(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds; on Linux each process has a clock for it."""
    return time.clock_gettime(~pid << 3 | 2)


def shares(*pids: int) -> list[float]:
    """Return the share of a core that each process uses while all are at rest."""
    before = [cpu_time(pid) for pid in pids]
    began = time.monotonic()
    time.sleep(REST)  # the measurement itself
    took = time.monotonic() - began
    return [(cpu_time(pid) - used) / took for pid, used in zip(pids, before, strict=True)]


def test_a_hundred_thousand_idle_consumers_cost_nothing_at_rest(forwarder: Forwarder, open_peer: Make) -> None:
    """100,000 idle consumers cost neither their process nor the forwarder 1 % of a core at rest.

    A gap in the numbers of one producer pauses no event loop for 5 ms.
    """
    bare, full = (open_peer(**forwarder.config) for _ in range(2))
    for peer in (bare, full):
        peer.ask("until_connected", True)
    without = shares(bare.process.pid, forwarder.pid)
    full.run(idle, CONSUMERS, GROUPS, READERS, patience=PATIENCE)
    at_rest = shares(full.process.pid, forwarder.pid)
    print(f"shares of a core: {without} without consumers, {at_rest} with them")
    assert full.run(reconnects) == 0  # a client that begins so many queues at once is no flood

    measured = full.begin_run(longest_pauses, "gap")
    with zmq.Context() as context, context.socket(zmq.PUSH) as stranger:
        stranger.connect(forwarder.pull)
        topic, number = wire.group_topic("gap"), 1
        while not measured.done():
            stranger.send(wire.ordered(topic, b"stranger", number, 0, 60_000, b"\x80"))
            number += 1_000_000
            time.sleep(0.01)
    turn, step = measured.result(PATIENCE)
    print(f"around a gap: longest turn of the loop {turn * 1000:.1f} ms, longest step {step * 1000:.1f} ms")
    for with_them, bare_share in zip(at_rest, without, strict=True):
        assert with_them - bare_share < SHARE
    assert turn < PAUSE
    assert step < PAUSE
