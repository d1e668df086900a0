"""The processes of one measure: start them, exchange values, notice failures, end them.

A *role* is a module-level function, plain or `async`, that runs in a process of its own. Its first argument is its
`Line` to the harness. Processes are spawned, never forked: each is as fresh as a server's worker.
"""

import asyncio
import inspect
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Self

import uvloop

_spawn = get_context("spawn")


class WrongResultError(Exception):
    """A receiver got a wrong number of messages, a wrong order or a wrong content."""


class CrewError(Exception):
    """A process of a measure failed, or did not answer in time; the text contains its report."""


class Line:
    """One end of a pipe between two processes, usable from plain code and from an event loop."""

    def __init__(self, end: "connection.Connection[Any, Any]") -> None:
        self._end = end

    def put(self, value: object) -> None:
        """Send a small value to the other end."""
        self._end.send(value)

    def get(self) -> Any:
        """Block until the next value arrives, and return it."""
        return self._end.recv()

    def poll(self, seconds: float = 0.0) -> bool:
        """Return whether a value arrives within that time."""
        return self._end.poll(seconds)

    async def aget(self) -> Any:
        """Wait for the next value on the running loop, and return it."""
        if not self._end.poll():
            loop = asyncio.get_running_loop()
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._end.fileno(), _settle, readable)
            try:
                await readable
            finally:
                loop.remove_reader(self._end.fileno())
                os.set_blocking(self._end.fileno(), True)  # uvloop has changed it, and `send` needs it
        return self._end.recv()

    async def arrives(self, seconds: float) -> bool:
        """Return whether a value arrives within that time, and discard it."""
        try:
            async with asyncio.timeout(seconds):
                await self.aget()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Close this end in this process."""
        self._end.close()


@dataclass(frozen=True, slots=True)
class _Report:
    value: object = None
    wrong: str = ""
    failure: str = ""


class Reports(Line):
    """The line of a role to the harness, which distinguishes its values from its failure."""

    def put(self, value: object) -> None:
        """Send a value to the harness."""
        super().put(_Report(value))

    def fail(self, error: Exception) -> None:
        """Report to the harness that this role failed, and why."""
        wrong = error
        while isinstance(wrong, ExceptionGroup):  # raised in a task group
            wrong = wrong.exceptions[0]
        if isinstance(wrong, WrongResultError):
            super().put(_Report(wrong=str(wrong)))
        else:
            super().put(_Report(failure="".join(traceback.format_exception(error))))


class Worker:
    """A process of the crew, seen from the harness."""

    def __init__(self, name: str, process: SpawnProcess, line: Line, end: "connection.Connection[Any, Any]") -> None:
        self.name = name
        self.process = process
        self.end = end
        self.line = line
        self.values: deque[object] = deque()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid or 0


class Crew:
    """The processes of one measure for one peer.

    Args:
        loop: `asyncio` or `uvloop`, on which `async` roles run.
        timeout: Seconds that `take` waits for one value.
    """

    def __init__(self, loop: str, timeout: float = 120.0) -> None:
        self._loop = loop
        self._timeout = timeout
        self._workers: list[Worker] = []
        self._talking: list[Worker] = []
        self._lent: list[Line] = []

    def __enter__(self) -> Self:
        return self

    def start(self, role: Callable[..., object], *arguments: object) -> Worker:
        """Run a role in a process of its own."""
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=_run, args=(role, self._loop, Reports(theirs), arguments), daemon=True)
        process.start()
        theirs.close()
        worker = Worker(role.__name__, process, Line(ours), ours)
        self._workers.append(worker)
        self._talking.append(worker)
        return worker

    def link(self) -> tuple[Line, Line]:
        """Return two ends of a pipe, for two roles."""
        one, other = (Line(end) for end in _spawn.Pipe())
        self._lent += [one, other]
        return one, other

    def take(self, worker: Worker) -> Any:
        """Wait for the next value of that worker, and return it.

        Raises:
            WrongResultError: If any of the workers found a wrong count, order or content.
            CrewError: If any of them failed, or the time has expired.
        """
        while not worker.values:
            if worker not in self._talking:
                raise CrewError(f"{worker.name} ended too early")
            ready = connection.wait([one.end for one in self._talking], self._timeout)
            if not ready:
                raise CrewError(f"{worker.name} said nothing for {self._timeout:.0f} s")
            for one in [one for one in self._talking if one.end in ready]:
                self._read(one)
        return worker.values.popleft()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until the processes have ended, or end them by pid after an error."""
        for worker in self._workers:
            if kind is not None:
                worker.process.terminate()
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.line.close()
        for line in self._lent:
            line.close()
        codes = {worker.name: worker.process.exitcode for worker in self._workers}
        if kind is None and any(codes.values()):
            raise CrewError(f"processes did not end well: {codes}")

    def _read(self, worker: Worker) -> None:
        try:
            report: _Report = worker.end.recv()
        except EOFError:
            self._talking.remove(worker)
            return
        if report.wrong:
            raise WrongResultError(report.wrong)
        if report.failure:
            raise CrewError(f"{worker.name} failed:\n{report.failure}")
        worker.values.append(report.value)


def _run(role: Callable[..., Any], loop: str, line: Reports, arguments: tuple[object, ...]) -> None:
    threading.Thread(target=_end_with_the_harness, daemon=True).start()
    try:
        if inspect.iscoroutinefunction(role):
            factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(role(line, *arguments))
        else:
            role(line, *arguments)
    except Exception as error:
        line.fail(error)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _end_with_the_harness() -> None:
    harness = parent_process()
    if harness is not None:
        connection.wait([harness.sentinel])
        os._exit(1)
