"""The operations of processes on a layer, one step at a time: in this process, or in a child that pipes control.

An actor has three *lanes*: an asyncio loop and a uvloop, each running in its own thread, and `FRESH`, where
`async_to_sync` makes an event loop for each step. A step is begun on a lane and finished later, or cancelled.
"""

import asyncio
import itertools
import logging
import os
import pickle
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any

import uvloop
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull

from channels_zmq import core, reports
from channels_zmq.client import batch

PATIENCE = 10.0
FRESH = 2
LANES = (0, 1, FRESH)


class Outcome(Enum):
    """The end of a step without a result."""

    FULL = "ChannelFull"
    CANCELLED = "cancelled"


class Errors(logging.Handler):
    """A handler that keeps error records: exceptions in callbacks of loops, and in the housekeeper."""

    NAMES = ("channels_zmq", "asyncio")

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []
        for name in self.NAMES:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))

    def close(self) -> None:
        for name in self.NAMES:
            logging.getLogger(name).removeHandler(self)
        super().close()


class Sending(logging.Handler):
    """A handler that sends each warning of the library to a group, as an application does to show its log in a browser.

    The thread for log lines has no caller to raise an error to, so the handler keeps its errors.
    """

    def __init__(self, layer: Any, group: str) -> None:
        super().__init__(logging.WARNING)
        self._layer, self._group = layer, group
        self._numbers = itertools.count(1)
        self._is_sending = False
        self._errors: list[str] = []
        logging.getLogger("channels_zmq").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._is_sending = True
        line = {"from": os.getpid(), "n": next(self._numbers), "line": record.getMessage()}
        try:
            async_to_sync(self._layer.group_send)(self._group, line)
        except Exception:
            self._errors.append(f"a log handler could not send:\n{traceback.format_exc()}")
        self._is_sending = False

    def end(self) -> list[str]:
        """Send the pending log lines of the library, detach the handler, and return its errors."""
        reports.flush(PATIENCE)
        logging.getLogger("channels_zmq").removeHandler(self)
        if self._is_sending:  # closing the handler would wait for the send
            return [*self._errors, "a log handler has not come back from sending"]
        self.close()
        return self._errors


class Actor:
    """Steps in this process, by two layers that share a connection; warnings are sent after `send_the_log`.

    The two layers differ in their `expiry`, so that the messages of a connection do not all have the same one.
    """

    def __init__(self) -> None:
        self._loops = [asyncio.new_event_loop(), uvloop.new_event_loop()]
        self._threads = [threading.Thread(target=loop.run_forever, daemon=True) for loop in self._loops]
        for thread in self._threads:
            thread.start()
        self._fresh = ThreadPoolExecutor(1)
        self._steps: dict[int, Any] = {}
        self._handles = itertools.count()
        self._errors = Errors()
        self._sending: Sending | None = None
        self._released = threading.Event()

    def open(self, layer: str, config: dict[str, Any]) -> None:
        """Begin with two new layers at one address."""
        first = getattr(core, layer)(**config)
        self._both = [first, getattr(core, layer)(**config | {"expiry": 2 * first.expiry})]
        self._layers = itertools.cycle(self._both)
        self._layer = next(self._layers)

    def send_the_log(self, group: str) -> None:
        """Send warnings to a group from now on."""
        self._sending = Sending(self._layer, group)

    def log(self, line: str) -> None:
        """Log a warning as the library does, and wait for the handlers."""
        logging.getLogger("channels_zmq").warning("%s", line)

    def begin(self, lane: int, name: str, *arguments: Any) -> int:
        """Begin a step, which is a coroutine method of the layer or of this class, and return its handle."""
        handle = next(self._handles)
        self._layer = next(self._layers)
        step = _outcome(
            (getattr(type(self), name, None) and getattr(self, name)) or getattr(self._layer, name), arguments
        )
        if lane == FRESH:
            self._steps[handle] = lane, self._fresh.submit(async_to_sync(_wait), step)
        else:
            self._steps[handle] = lane, self._on(lane, _start(step))
        return handle

    def finish(self, handle: int, *, cancel: bool = False) -> Any:
        """Wait for the end of a step, cancelled if requested, and return its result or an `Outcome`."""
        lane, step = self._steps.pop(handle)
        return step.result(PATIENCE) if lane == FRESH else self._on(lane, _ended(step, cancel=cancel))

    def call(self, lane: int, name: str, *arguments: Any) -> Any:
        """Perform a step from its beginning to its end."""
        return self.finish(self.begin(lane, name, *arguments))

    def _on(self, lane: int, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loops[lane]).result(PATIENCE)

    async def race(self, lane: int, channel: str, message: Any, before: int, after: int) -> tuple[Any, Any, int]:
        """Send while two readers wait, the first of which is cancelled some turns of the loop later.

        Return both outcomes, and the handle of the second reader.
        """
        first, second = (asyncio.create_task(self._layer.receive(channel)) for _ in range(2))
        handle = next(self._handles)
        self._steps[handle] = lane, second
        for _ in range(before):
            await asyncio.sleep(0)
        sent = await _outcome(self._layer.send, (channel, message))
        for _ in range(after):
            await asyncio.sleep(0)
        return sent, await _ended(first, cancel=True), handle

    async def join_twice(self, group: str, channel: str, turns: int) -> Any:
        """Add a channel to a group by two concurrent calls, the first of which is cancelled some turns later.

        Return the outcome of the second call.
        """
        first, second = (asyncio.create_task(self._layer.group_add(group, channel)) for _ in range(2))
        for _ in range(turns):
            await asyncio.sleep(0)
        await _ended(first, cancel=True)
        return await second

    def block(self, lane: int) -> None:
        """Block a loop until `release`, and return once nothing else runs on it."""
        stands_still, released = threading.Event(), threading.Event()
        self._released = released

        def stand_still() -> None:
            stands_still.set()
            released.wait()

        self._loops[lane].call_soon_threadsafe(stand_still)
        assert stands_still.wait(PATIENCE)

    def release(self) -> None:
        """Release the loop that was blocked last."""
        self._released.set()

    async def peek(self, channel: str) -> Any:
        """Read a message that is there already, without waiting."""
        return await _ended(await _start(self._layer.receive(channel)), cancel=True)

    async def burst(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Call the layer several times, one call after the other."""
        return [await _outcome(getattr(self._layer, name), arguments) for name, *arguments in calls]

    async def burst_by_both(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Call the two layers in turn, one call after the other."""
        layers = itertools.cycle(self._both)
        return [await _outcome(getattr(next(layers), name), arguments) for name, *arguments in calls]

    def stats(self) -> Any:
        return self._layer.stats()

    def errors(self) -> list[str]:
        """Return the errors that were logged since the last call."""
        lines, self._errors.lines = self._errors.lines, []
        return lines

    def close(self) -> None:
        """Close the layer and its connection."""
        if self._sending is not None:
            self._errors.lines += self._sending.end()
            self._sending = None
        used = {layer._known_connection for layer in self._both} - {None}
        self._on(0, self._layer.close())
        assert len(used) <= 1, "the two layers share a connection"

    def end(self) -> None:
        """Stop the loops."""
        for loop, thread in zip(self._loops, self._threads, strict=True):
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE)
            loop.close()
        self._fresh.shutdown()
        self._errors.close()


async def _outcome(method: Any, arguments: Any) -> Any:
    try:
        return await method(*arguments)
    except ChannelFull:
        return Outcome.FULL


async def _wait(step: Any) -> Any:
    return await step


async def _start(step: Any) -> Any:
    task = asyncio.create_task(step)
    await asyncio.sleep(0)
    return task


async def _ended(task: Any, *, cancel: bool) -> Any:
    if cancel:
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return Outcome.CANCELLED


class RemoteActor:
    """The same steps in another process."""

    def __init__(self) -> None:
        program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import actors; actors.serve()"
        command = [sys.executable, "-W", "error", "-c", program]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __getattr__(self, name: str) -> Any:
        def do(*arguments: Any, **options: Any) -> Any:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            pickle.dump((name, arguments, options), self._process.stdin)
            self._process.stdin.flush()
            error, result = pickle.load(self._process.stdout)
            assert not error, error
            return result

        return do

    def end(self) -> None:
        """Let the process end, and check that it succeeds."""
        self.__getattr__("end")()
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0


def serve() -> None:
    """Execute the requests from standard input until `end`; standard output carries only answers.

    All messages of this process wait for the end of the turn, as those of a busy sender do.
    """
    batch.RUN, batch.WITHIN = 0, float("inf")
    actor, requests, answers = Actor(), sys.stdin.buffer, sys.stdout.buffer
    name = ""
    while name != "end":
        name, arguments, options = pickle.load(requests)
        try:
            answer = "", getattr(actor, name)(*arguments, **options)
        except Exception:
            answer = traceback.format_exc(), None
        pickle.dump(answer, answers)
        answers.flush()
