"""The work queue: never a layer twice at once, soon after a change, and less often while a layer fails."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fakes import Clock

from channels_zmq_operator.cluster import ClusterError
from channels_zmq_operator.models import Key
from channels_zmq_operator.workqueue import WorkQueue

A, B = ("home", "a"), ("home", "b")
NEVER = float("inf")


class Work:
    """A reconciler whose calls last until a test releases them, and end with the result that the test sets."""

    def __init__(self) -> None:
        self.begun: list[Key] = []
        self.running: set[Key] = set()
        self.most = 0
        self.held = False
        self.free = asyncio.Event()
        self.result: float | Exception = NEVER

    async def __call__(self, key: Key) -> float:
        assert key not in self.running, "two workers look at one layer"
        self.begun.append(key)
        self.running.add(key)
        self.most = max(self.most, len(self.running))
        if self.held:
            await self.free.wait()
        self.running.remove(key)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


async def settled() -> None:
    """Run everything that does not wait for time to pass."""
    for _ in range(50):
        await asyncio.sleep(0)


@asynccontextmanager
async def working(workers: int = 1) -> AsyncIterator[tuple[WorkQueue, Work, Clock]]:
    work, clock = Work(), Clock()
    queue = WorkQueue(work, clock=clock)
    task = asyncio.create_task(queue.run(workers))
    yield queue, work, clock
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def wake(queue: WorkQueue) -> None:
    """Make the workers read the clock, as the end of their pause does."""
    queue._changed.set()
    await settled()


async def test_what_is_added_is_looked_at_once() -> None:
    """A layer that is added several times before a worker is free is reconciled once."""
    async with working() as (queue, work, _):
        for _ in range(3):
            queue.add(A)
        queue.add(B)
        assert len(queue) == 2
        await settled()
        assert work.begun == [A, B]
        assert (queue.done, queue.failed, len(queue)) == (2, 0, 0)


async def test_several_are_looked_at_at_once_but_never_one_twice() -> None:
    """Workers reconcile different layers concurrently, but never one layer twice at once.

    A layer that changes during its reconciliation is reconciled once more afterwards.
    """
    async with working(3) as (queue, work, _):
        work.held = True
        for _ in range(5):
            queue.add(A)
            queue.add(B)
            await settled()
        assert sorted(work.begun) == [A, B]
        assert work.most == 2
        assert len(queue) == 4
        work.held = False
        work.free.set()
        await settled()
        assert sorted(work.begun) == [A, A, B, B]


async def test_more_layers_than_workers_wait() -> None:
    """With two workers no more than two layers are reconciled at a time, and all ten get their turn."""
    async with working(2) as (queue, work, _):
        keys = [("home", str(number)) for number in range(10)]
        work.held = True
        for key in keys:
            queue.add(key)
        await settled()
        assert len(work.begun) == 2
        work.free.set()
        await settled()
        assert sorted(work.begun) == keys
        assert work.most == 2


async def test_a_later_look_comes_when_it_is_due() -> None:
    """A delayed reconciliation runs when it is due and not before; a change brings it forward."""
    async with working() as (queue, work, clock):
        work.result = 100.0
        queue.add(A)
        await settled()
        clock.now += 99
        await wake(queue)
        assert work.begun == [A]
        clock.now += 1
        await wake(queue)
        assert work.begun == [A, A]
        queue.add(A)
        await settled()
        assert work.begun == [A, A, A]
        queue.add(A, 1000)  # does not postpone the reconciliation that is due at 100
        clock.now += 100
        await wake(queue)
        assert len(work.begun) == 4


async def test_workers_wake_by_themselves_when_a_look_is_due() -> None:
    """On a real clock, idle workers wake without a notification when a reconciliation is due."""
    work = Work()
    queue = WorkQueue(work)
    queue.add(A, 0.01)
    task = asyncio.create_task(queue.run(2))
    async with asyncio.timeout(5):
        while not work.begun:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("error", [ClusterError("x", 403, "Forbidden", ""), ZeroDivisionError("oh")])
async def test_pauses_double_while_it_fails_and_are_bounded(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """The pause before a retry doubles from 0.5 s up to 60 s, whatever the error, and starts over after a success."""
    async with working() as (queue, work, clock):
        work.result = error
        queue.add(A)
        await settled()
        pauses = []
        for _ in range(10):
            pauses.append(queue._due[A] - clock.now)
            clock.now = queue._due[A]
            await wake(queue)
        assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert (queue.done, queue.failed) == (0, 11)
        work.result = NEVER
        queue.add(A)
        await settled()
        work.result = error
        queue.add(A)
        await settled()
        assert queue._due[A] - clock.now == 0.5
    levels = {record.levelno for record in caplog.records}
    assert levels == ({logging.WARNING} if isinstance(error, ClusterError) else {logging.WARNING, logging.ERROR})


async def test_a_failing_layer_does_not_hold_up_another() -> None:
    """Each layer has a backoff of its own, so a failing layer does not delay another one."""
    async with working() as (queue, work, _):
        work.result = ClusterError("x", 500, "", "")
        queue.add(A)
        await settled()
        work.result = NEVER
        queue.add(B)
        await settled()
        assert work.begun == [A, B]


async def test_it_is_stuck_while_there_is_something_to_do_and_nothing_ends() -> None:
    """The queue is stuck while a layer is due and no reconciliation ends, because all workers hang or none runs.

    An idle queue is not stuck, however long it is idle, nor when work arrives just after that.
    """
    async with working() as (queue, work, clock):
        clock.now += 10_000
        assert queue.stuck_for() == 0
        work.held = True
        queue.add(A)
        assert queue.stuck_for() == 0
        await settled()
        queue.add(B, 50)
        clock.now += 100
        assert queue.stuck_for() == 100
        work.free.set()
        await settled()
        assert queue.stuck_for() == 0
        clock.now += 10_000
        assert queue.stuck_for() == 0
        queue.add(A, 500)
        clock.now += 400
        assert queue.stuck_for() == 0
    clock.now += 200
    assert queue.stuck_for() == 100


async def test_it_is_not_stuck_while_others_end() -> None:
    """A layer that takes long, or waits long behind others, does not cause a restart while other layers finish."""
    async with working(2) as (queue, work, clock):
        work.held = True
        queue.add(A)
        await settled()
        clock.now += 100
        assert queue.stuck_for() == 100
        work.held = False
        queue.add(B)
        await settled()
        assert work.running == {A}
        assert queue.stuck_for() == 0
        clock.now += 10
        assert queue.stuck_for() == 10
        work.free.set()
