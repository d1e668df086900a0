"""Which event loops watch a connection's file descriptor, and how a reader on any of them is woken.

ZeroMQ's descriptor tells of changes, not of states, so a loop that begins to watch drains once. Every loop with a
waiter watches by itself, for another loop that would do it in its place can stop at any moment. Beside these the
*attached* loop watches: the one that last read from a channel. Everything is called under the connection's lock, or
takes it where a loop calls back.
"""

import asyncio
import contextlib
import threading
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any


class Waiter:
    """A coroutine that waits on one loop, to be woken from any thread."""

    __slots__ = ("future", "loop")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.future: Future[Any] = loop.create_future()

    @property
    def usable(self) -> bool:
        """Whether somebody still waits."""
        return not self.future.done() and not self.loop.is_closed()

    def wake(self, value: object = None, *, here: AbstractEventLoop | None) -> None:
        """Let the coroutine go on; `here` is the loop that runs in this thread, if one does."""
        if self.loop is here:
            _settle(self.future, value)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                self.loop.call_soon_threadsafe(_settle, self.future, value)


def _settle(future: "Future[Any]", value: object) -> None:
    if future.done():
        return
    if isinstance(value, BaseException):
        future.set_exception(value)
    else:
        future.set_result(value)


def running_here() -> AbstractEventLoop | None:
    """Return the loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def wake(waiters: Iterable[Waiter]) -> None:
    """Wake readers, each on its own loop."""
    here = running_here()
    for waiter in waiters:
        if waiter.loop is not here:
            waiter.wake(here=here)
        elif not waiter.future.done():  # the same as `wake`, which as a call of its own is a tenth of a reader's time
            waiter.future.set_result(None)


class Loops:
    """The loops that watch one descriptor.

    Args:
        drain: Reads what is there; called on a watching loop.
        lock: The connection's lock, which may be taken again by its holder.
    """

    def __init__(self, drain: Callable[[], None], lock: AbstractContextManager[Any]) -> None:
        self.attached: AbstractEventLoop | None = None
        self._drain = drain
        self._lock = lock
        self.descriptor: int | None = None
        self._waiters: dict[AbstractEventLoop, int] = {}

    def watch(self, descriptor: int | None) -> None:
        """Change the descriptor; the loops that watch the old one go over to it. Call `release` before closing."""
        self.descriptor = descriptor
        for loop in list(self._waiters):
            if descriptor is not None and not loop.is_closed():
                self._on(loop, lambda loop=loop: self._add(loop))  # type: ignore[misc] # a default binds it now

    def enter(self, loop: AbstractEventLoop, *, attach: bool) -> None:
        """Count a waiter on the running loop, which watches from now on; `attach` makes it the attached one."""
        count = self._waiters.get(loop)
        self._waiters[loop] = (count or 0) + 1
        if count is None:
            self._add(loop)
        if attach and self.attached is not loop:
            former, self.attached = self.attached, loop
            if former is not None:
                self._on(former, lambda: self._remove_if_idle(former))

    def leave(self, loop: AbstractEventLoop) -> None:
        """Count a waiter less on the running loop; the last one takes the watch with it unless the loop is attached."""
        count = self._waiters.get(loop)
        if count is not None:
            self._waiters[loop] = count - 1
            if count == 1 and loop is not self.attached:
                self._remove_if_idle(loop)

    def unattended(self) -> bool:
        """Return whether no attached loop runs, so that somebody else has to read."""
        loop = self.attached
        if loop is not None and loop.is_closed():
            self._waiters.pop(loop, None)
            self.attached = None
        for other in [other for other in self._waiters if other.is_closed()]:
            del self._waiters[other]
        return self.attached is None or not self.attached.is_running()

    def drain_soon(self) -> bool:
        """Let a watching loop drain again; return False if there is none."""
        for loop in (self.attached, *self._waiters):
            if loop is not None and loop.is_running():
                with contextlib.suppress(RuntimeError):  # closed meanwhile
                    loop.call_soon_threadsafe(self._drain)
                    return True
        return False

    def release(self) -> list[threading.Event]:
        """Let no loop watch any more; return events to wait for, without the lock, before the descriptor is closed."""
        descriptor, self.descriptor = self.descriptor, None
        pending = []
        for loop in list(self._waiters):
            if descriptor is None or loop.is_closed():
                continue
            done = threading.Event()
            self._on(loop, lambda loop=loop, done=done: (loop.remove_reader(descriptor), done.set()))  # type: ignore[misc] # defaults bind them now
            pending.append(done)
        return pending

    def _add(self, loop: AbstractEventLoop) -> None:
        with self._lock:
            if self.descriptor is not None:
                loop.add_reader(self.descriptor, self._drain)
                loop.call_soon(self._drain)

    def _remove_if_idle(self, loop: AbstractEventLoop) -> None:
        with self._lock:
            if self._waiters.get(loop) == 0 and loop is not self.attached:
                del self._waiters[loop]
                if self.descriptor is not None and not loop.is_closed():
                    loop.remove_reader(self.descriptor)

    def _on(self, loop: AbstractEventLoop, action: Callable[[], object]) -> None:
        """Run an action on a loop's thread: now if that is this one or the loop does not run, soon otherwise."""
        if loop.is_closed():
            self._waiters.pop(loop, None)
        elif loop is running_here() or not loop.is_running():
            action()
        else:
            with contextlib.suppress(RuntimeError):  # closed meanwhile: it watches nothing any more
                loop.call_soon_threadsafe(action)
