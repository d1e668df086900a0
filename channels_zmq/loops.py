"""Which event loops watch a connection's descriptor, and how a waiter on any of them is woken.

Theory of operation. ZeroMQ's descriptor is edge-triggered: it becomes readable when the state of its socket changes,
and does not signal input that arrived before. So a loop that begins to watch drains once, and every operation
on the socket is followed by a check for input. Every loop with a waiter watches separately, since another may stop
at any moment. In addition, the *attached* loop watches for as long as it runs: the one that last read from a channel,
or the first one that waited for something else. As long as it does, the housekeeper does not: reading in two threads
would take a fourth of the time of a process that only sends jobs.

Some loops cannot watch: asyncio's Proactor, and on Windows any. The housekeeper reads for them, as it does while no
loop runs at all, and wakes their waiters; `_watch_by` decides which ones these are.

Each loop watches a duplicate of the descriptor that it owns. It closes the duplicate when it stops watching, on its own
thread and after `remove_reader`. The socket can thus be closed at any time, and no loop ever removes a reader from a
number that meanwhile belongs to another file.

All methods are called under the connection's lock, except those that a loop calls back: these take it.
"""

import asyncio
import contextlib
import os
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


class Waiter:
    """A coroutine that waits on one loop, to be woken from any thread."""

    __slots__ = ("future", "loop")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.future: Future[None] = loop.create_future()

    @property
    def usable(self) -> bool:
        """Whether the coroutine still waits."""
        return not self.future.done() and not self.loop.is_closed()

    async def wait(self, at_most: float) -> None:
        """Wait to be woken, for `at_most` seconds; `asyncio.timeout` would take 2 us more."""
        timer = self.loop.call_later(at_most, _settle, self.future)
        try:
            await self.future
        finally:
            timer.cancel()


def _settle(future: "Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def running_here() -> AbstractEventLoop | None:
    """Return the loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def wake(waiters: Iterable[Waiter]) -> None:
    """Wake coroutines, each on its own loop. Call it without any lock: a loop may be the application's own class."""
    here = running_here()
    for waiter in waiters:
        future = waiter.future
        if waiter.loop is not here:
            with contextlib.suppress(RuntimeError):  # the loop has been closed, and its waiters with it
                waiter.loop.call_soon_threadsafe(_settle, future)
        elif not future.done():
            future.set_result(None)


@dataclass(slots=True)
class _Watch:
    """One loop's watch: its duplicate of the descriptor, None while it does not watch, and how many waiters it has."""

    descriptor: int | None = None
    waiters: int = 0


class Loops:
    """The loops that watch one descriptor.

    Args:
        drain: Reads what is there; called on a watching loop.
        drain_by_housekeeper: Lets the housekeeper read what is there, and watch for as long as `unattended`.
        lock: The connection's lock.
    """

    def __init__(
        self, drain: Callable[[], None], drain_by_housekeeper: Callable[[], None], lock: AbstractContextManager[Any]
    ) -> None:
        self.attached: AbstractEventLoop | None = None
        self.descriptor: int | None = None
        self._drain, self._drain_by_housekeeper = drain, drain_by_housekeeper
        self._lock = lock
        self._watches: dict[AbstractEventLoop, _Watch] = {}

    def watch(self, descriptor: int | None) -> None:
        """Change the descriptor; the loops that watch the former one watch the new one instead."""
        self.descriptor = descriptor
        for loop in list(self._watches):
            self._on(loop, self._change_over)

    def release(self) -> None:
        """Let no loop watch any more."""
        self.descriptor = self.attached = None
        for loop in list(self._watches):
            self._on(loop, self._change_over)

    def enter(self, loop: AbstractEventLoop, *, takes_over: bool) -> bool:
        """Count a waiter on the running loop, which watches from now on.

        Args:
            loop: The running loop.
            takes_over: Whether it becomes the attached one although another one runs.

        Returns:
            Whether it has become the attached one.
        """
        watch = self._watches.get(loop)
        if watch is None:
            watch = self._watches[loop] = _Watch()
            self._begin(loop, watch)
        watch.waiters += 1
        former = self.attached
        if former is loop or (self.reading is not None and not takes_over):
            return False
        self.attached = loop
        if former is not None:
            self._on(former, self._end_if_idle)
        return True

    def leave(self, loop: AbstractEventLoop) -> None:
        """Remove a waiter from a loop, which stops watching with its last one unless it is attached."""
        watch = self._watches.get(loop)
        if watch is not None:
            watch.waiters -= 1
            if not watch.waiters and loop is not self.attached:
                self._on(loop, self._end_if_idle)

    @property
    def reading(self) -> AbstractEventLoop | None:
        """The attached loop if it runs."""
        return self.attached if self.attached is not None and self.attached.is_running() else None

    def forget_closed(self) -> None:
        """Forget the loops that were closed."""
        for loop in [loop for loop in self._watches if loop.is_closed()]:
            self._forget(loop)

    def unattended(self) -> bool:
        """Return whether no attached loop runs, or a loop cannot watch, so that the housekeeper has to read."""
        self.forget_closed()
        return self.reading is None or any(watch.descriptor is None for watch in self._watches.values())

    def drain_soon(self) -> bool:
        """Let a watching loop drain again; return False if no loop watches."""
        waiting = [loop for loop, watch in self._watches.items() if watch.waiters]
        for loop in (running_here(), *waiting, self.attached):  # the last one may be blocked
            if loop in self._watches and loop.is_running():
                with contextlib.suppress(RuntimeError):  # closed meanwhile
                    loop.call_soon_threadsafe(self._drain)
                    return True
        return False

    def _begin(self, loop: AbstractEventLoop, watch: _Watch) -> None:
        watch.descriptor = _watch_by(loop, self.descriptor, self._drain)
        if watch.descriptor is None:
            self._drain_by_housekeeper()
        else:
            loop.call_soon(self._drain)

    def _end(self, loop: AbstractEventLoop, watch: _Watch) -> None:
        descriptor, watch.descriptor = watch.descriptor, None
        if descriptor is not None:
            if not loop.is_closed():
                loop.remove_reader(descriptor)
            os.close(descriptor)

    def _forget(self, loop: AbstractEventLoop) -> None:
        watch = self._watches.pop(loop, None)
        if watch is not None:
            self._end(loop, watch)
        if self.attached is loop:
            self.attached = None

    def _end_if_idle(self, loop: AbstractEventLoop) -> None:
        watch = self._watches.get(loop)
        if watch is not None and not watch.waiters and loop is not self.attached:
            self._forget(loop)

    def _change_over(self, loop: AbstractEventLoop) -> None:
        watch = self._watches.get(loop)
        if watch is None:
            return
        self._end(loop, watch)
        if self.descriptor is None:
            self._watches.pop(loop)
        else:
            self._begin(loop, watch)

    def _on(self, loop: AbstractEventLoop, action: Callable[[AbstractEventLoop], None]) -> None:
        """Act on a loop's thread: now if that is this one or the loop does not run, soon otherwise."""
        if loop.is_closed():
            self._forget(loop)
        elif loop is running_here() or not loop.is_running():
            action(loop)
        else:
            with contextlib.suppress(RuntimeError):  # closed meanwhile: `unattended` will find it
                loop.call_soon_threadsafe(self._locked, action, loop)

    def _locked(self, action: Callable[[AbstractEventLoop], None], loop: AbstractEventLoop) -> None:
        with self._lock:
            action(loop)


def _watch_by(loop: AbstractEventLoop, descriptor: int | None, drain: Callable[[], None]) -> int | None:
    """Let a loop watch a duplicate of a descriptor; return it, or None if the loop cannot watch.

    On Windows a socket is not a file descriptor, so it cannot be duplicated, and one of its loops cannot watch at all.
    """
    if descriptor is None or os.name == "nt":
        return None
    duplicate = os.dup(descriptor)
    try:
        loop.add_reader(duplicate, drain)
    except NotImplementedError:
        os.close(duplicate)
        return None
    return duplicate
