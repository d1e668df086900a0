"""One clock, one list of future calls, and coroutines that run on them: a simulation needs neither threads nor loops.

Calls at the same time run in the order in which they were scheduled, so that a run depends on its seed alone.
"""

from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulated_process import Process

Entry = list[Any]
"""A scheduled call: its time, its position among those of that time, the function, and the arguments."""
Done = Callable[[Any, BaseException | None], None]
"""Called with the result of a coroutine, or with the exception that ended it."""


class World:
    """The time of a simulation and its random choices.

    Args:
        seed: Seed of the random choices.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.steps = 0
        self.on_loop: Loop | None = None
        """The loop of the coroutine that runs at the moment."""
        self.tasks: dict[Task, None] = {}
        """The tasks that have not ended."""
        self._heap: list[Entry] = []
        self._order = 0

    def __call__(self) -> float:
        return self.now

    def nanoseconds(self) -> int:
        return round(self.now * 1e9)

    def after(self, seconds: float, action: Callable[..., object], *args: Any) -> Entry:
        """Schedule a call, and return the argument for `cancel`."""
        self._order += 1
        entry = [self.now + seconds, self._order, action, args]
        heappush(self._heap, entry)
        return entry

    @staticmethod
    def cancel(entry: Entry) -> None:
        entry[2] = None

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end, heap = self.now + seconds, self._heap
        while heap and heap[0][0] <= end:
            at, _, action, args = heappop(heap)
            if action is not None:
                self.now = at
                self.steps += 1
                action(*args)
        self.now = end


class Future:
    """A future that a coroutine awaits, reduced to the part of asyncio's that the library uses."""

    def __init__(self) -> None:
        self._is_done = False
        self._task: Task | None = None

    def done(self) -> bool:
        return self._is_done

    def set_result(self, result: Any) -> None:
        self._is_done = True
        if self._task is not None:
            self._task.go_on_soon()

    def __await__(self) -> "Generator[Future, None, None]":
        if not self._is_done:
            yield self

    def wait(self, task: "Task") -> None:
        self._task = task


class Loop:
    """The event loop of one process."""

    def __init__(self, world: World, process: "Process") -> None:
        self.world, self.process = world, process

    def create_future(self) -> Future:
        return Future()

    def is_closed(self) -> bool:
        return self.process.is_gone

    def call_soon_threadsafe(self, action: Callable[..., Any], *args: Any) -> None:
        self.process.when_running(action, *args)

    call_soon = call_soon_threadsafe

    def call_later(self, seconds: float, action: Callable[..., Any], *args: Any) -> "Timer":
        return Timer(self.world, self.world.after(seconds, self.process.when_running, action, *args))


class Timer:
    """A call that is due later."""

    def __init__(self, world: World, entry: Entry) -> None:
        self._world, self._entry = world, entry

    def cancel(self) -> None:
        self._world.cancel(self._entry)


class Cancelled(BaseException):
    """A stand-in for asyncio's `CancelledError`."""


class Task:
    """A coroutine on the loop of a process.

    Args:
        loop: The loop of the process.
        coroutine: The coroutine, which runs at once until it waits.
        done: Called with the result, or with the exception that ended the coroutine.
    """

    def __init__(
        self, loop: Loop, coroutine: Coroutine[Future, None, Any], done: Done = lambda result, error: None
    ) -> None:
        self.world, self._loop, self._coroutine, self._done = loop.world, loop, coroutine, done
        self._is_due = False
        self.is_over = False
        self.world.tasks[self] = None
        self._step(None)

    def go_on_soon(self) -> None:
        if not self._is_due and not self.is_over:
            self._is_due = True
            self._loop.process.when_running(self._go_on)

    def _go_on(self) -> None:
        if self._is_due:
            self._step(None)

    def throw(self, error: BaseException) -> None:
        """Raise an exception in the coroutine in place of what it awaits."""
        if not self.is_over:
            self._step(error)

    def _step(self, error: BaseException | None) -> None:
        self._is_due = False
        if self._loop.process.is_gone:
            return
        world = self.world
        former, world.on_loop = world.on_loop, self._loop
        try:
            future = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        except StopIteration as end:
            self._end()
            result: Any = end.value
            failure: BaseException | None = None
        except (Exception, Cancelled) as raised:
            self._end()
            result, failure = None, raised
        else:
            future.wait(self)
            return
        finally:
            world.on_loop = former
        self._done(result, failure)

    def _end(self) -> None:
        self.is_over = True
        self.world.tasks.pop(self, None)

    def close(self) -> None:
        """End the coroutine at the end of the simulation, whatever its process is about to do."""
        self._end()
        with suppress(Exception):
            self._coroutine.close()


class Asyncio:
    """The names of asyncio that a connection uses.

    Args:
        world: The simulation's time.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def get_running_loop(self) -> Loop:
        assert self._world.on_loop is not None
        return self._world.on_loop

    async def sleep(self, seconds: float) -> None:
        await sleep(self.get_running_loop(), seconds)


async def sleep(loop: Loop, seconds: float) -> None:
    """Suspend a coroutine for a number of seconds."""
    future = loop.create_future()
    loop.world.after(seconds, future.set_result, None)
    await future
