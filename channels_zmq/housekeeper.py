"""One daemon thread for each process that serves connections while no event loop does.

It sleeps on the sockets' monitors and on the connections' deadlines. It resubscribes after a reconnect while the loop
is blocked, reads while no loop does, flushes the outbox, repeats unanswered requests and hands jobs back. Messages do
not pass through it otherwise. No event signals that an event loop has ended, so it polls the loops that read.
"""

import contextlib
import logging
import math
import socket
import threading
import time
import traceback
from asyncio import AbstractEventLoop
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import zmq

from channels_zmq import reports
from channels_zmq_forwarder.sockets import next_event

IDLE = 3600.0
LOOK_EVERY = 0.5
"""Seconds between two checks whether an event loop has ended. No waiter of this process depends on them, and each one
delays a concurrent round trip by 100 us."""
AFTER_ERROR = 1.0
"""Seconds until a connection that failed is served again."""


class Watched(NamedTuple):
    """What to watch for a connection now.

    Attributes:
        monitors: Monitors of sockets, and what to call with each event.
        descriptors: Descriptors of sockets whose input no event loop reads at the moment.
        sockets: Other sockets, and what to call when one of them can be read.
        loop: The event loop that reads; `tick` is called when it has ended.
    """

    monitors: "Mapping[zmq.Socket[bytes], Callable[[int], None]]"
    descriptors: Collection[int] = ()
    sockets: "Mapping[zmq.Socket[bytes], Callable[[], None]]" = MappingProxyType({})
    loop: AbstractEventLoop | None = None


class Kept(Protocol):
    """A connection, as the housekeeper sees it."""

    def watched(self) -> Watched: ...  # noqa: D102
    def tick(self, now: float) -> float: ...  # noqa: D102
    def read_unattended(self) -> None: ...  # noqa: D102


class Housekeeper:
    """The thread and its connections. Its lock is never held while a connection is called."""

    def __init__(self) -> None:
        self._due: dict[Kept, float] = {}
        self._lock = threading.Lock()
        self._sleeps_until = 0.0
        self._wakes: tuple[socket.socket, socket.socket] | None = None
        """One end to write and one to poll, while the thread runs. Not a pipe: Windows can poll sockets only."""
        self._leaving: list[threading.Event] = []
        self._thread: threading.Thread | None = None
        self._ended = False

    def watch(self, connection: Kept) -> None:
        """Serve a connection from now on."""
        with self._lock:
            self._due[connection] = 0.0
            if self._thread is None and not self._ended:
                self._wakes = socket.socketpair()
                for end in self._wakes:
                    end.setblocking(False)
                self._thread = threading.Thread(target=self._run, name="channels-zmq housekeeper", daemon=True)
                self._thread.start()
        self._wake()

    def forget(self, connection: Kept) -> None:
        """Stop serving a connection: wait until its sockets are not touched any more, 5 s at most."""
        done = threading.Event()
        with self._lock:
            watched = self._due.pop(connection, None) is not None
            thread = self._thread
            if not watched or thread is None or not thread.is_alive() or thread is threading.current_thread():
                return
            self._leaving.append(done)
        self._wake()
        done.wait(5.0)

    def call(self, connection: Kept, when: float) -> None:
        """Call a connection's `tick` at a time at the latest. Does nothing for a connection that was forgotten."""
        due = self._due.get(connection)
        if due is None or when >= due:
            return  # mostly: it spares the lock
        with self._lock:
            if when >= self._due.get(connection, when):
                return
            self._due[connection] = when
            sleeps = when < self._sleeps_until
        if sleeps:
            self._wake()

    def end(self) -> None:
        """End the thread, because the interpreter exits."""
        self._ended = True
        thread = self._thread
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)
            if not thread.is_alive():
                self.abandon()

    def abandon(self) -> None:
        """Close the sockets that wake the thread, which has ended, or belongs to the parent of a forked child."""
        for end in self._wakes or ():
            end.close()

    def _wake(self) -> None:
        if self._wakes is not None:
            with contextlib.suppress(OSError):  # full: a wake-up is under way; closed: the interpreter exits
                self._wakes[0].send(b"\0")

    def _run(self) -> None:
        while not self._ended:
            try:
                self._turn()
            except Exception:
                _report_error("its own")
                time.sleep(AFTER_ERROR)

    def _turn(self) -> None:
        with self._lock:
            for done in self._leaving:
                done.set()
            self._leaving.clear()
            connections = list(self._due)
        assert self._wakes is not None, "they are opened before the thread begins"
        wakes = self._wakes[1]
        poller = zmq.Poller()
        poller.register(wakes, zmq.POLLIN)
        handlers: dict[object, Callable[[], None]] = {}
        loops: dict[Kept, AbstractEventLoop] = {}
        for connection in connections:
            with self._guarded(connection):
                watched = connection.watched()
                for monitor, handler in watched.monitors.items():
                    poller.register(monitor, zmq.POLLIN)
                    handlers[monitor] = _reader(monitor, handler)
                for socket, callback in watched.sockets.items():
                    poller.register(socket, zmq.POLLIN)
                    handlers[socket] = callback
                for descriptor in watched.descriptors:
                    poller.register(descriptor, zmq.POLLIN)
                    handlers[descriptor] = connection.read_unattended
                if watched.loop is not None:
                    loops[connection] = watched.loop
        for item, _ in self._wait(poller, loops):
            if item == wakes.fileno():
                with contextlib.suppress(BlockingIOError):
                    wakes.recv(4096)
            else:
                with self._guarded():
                    handlers[item]()
        self._tick(connections)

    def _wait(self, poller: zmq.Poller, loops: Mapping[Kept, AbstractEventLoop]) -> list[tuple[Any, int]]:
        """Wait until an input is there, or something is due, or an event loop has ended; return the inputs.

        Checking the loops alone takes a third of the CPU time of a whole turn.
        """
        while True:
            left = self._sleep(LOOK_EVERY if loops else IDLE)
            ready = poller.poll(left)
            ended = [connection for connection, loop in loops.items() if not loop.is_running()]
            if ready or ended or not left:
                self._sleeps_until = 0.0
                for connection in ended:
                    self.call(connection, 0.0)
                return ready

    def _sleep(self, at_most: float) -> int:
        """Return for how many milliseconds to sleep; a call for a time before the end of that wakes the thread.

        Args:
            at_most: Seconds.
        """
        with self._lock:
            now = time.monotonic()
            self._sleeps_until = min(now + at_most, min(self._due.values(), default=math.inf))
            return math.ceil(max(0.0, self._sleeps_until - now) * 1000)

    def _tick(self, connections: list[Kept]) -> None:
        now = time.monotonic()
        for connection in connections:
            with self._lock:
                due = self._due.get(connection)
                if due is None or due > now:
                    continue
                self._due[connection] = now + IDLE
            again = now + AFTER_ERROR
            with self._guarded(connection):
                again = connection.tick(now)
            self.call(connection, again)

    @contextlib.contextmanager
    def _guarded(self, connection: Kept | None = None) -> Iterator[None]:
        """Let an error of one connection leave the others alone."""
        try:
            yield
        except Exception:
            _report_error(getattr(connection, "address", "a socket"))


def _report_error(where: str) -> None:
    line = "the housekeeper continues after an error at %s:\n%s"
    reports.log(logging.ERROR, line, where, traceback.format_exc())


def _reader(monitor: "zmq.Socket[bytes]", handler: Callable[[int], None]) -> Callable[[], None]:
    def read() -> None:
        while not monitor.closed and monitor.poll(0):
            event, _ = next_event(monitor)
            handler(event)

    return read


_housekeeper = Housekeeper()


def housekeeper() -> Housekeeper:
    """Return this process's housekeeper."""
    return _housekeeper


def renew() -> None:
    """Start with a new housekeeper: after a fork its thread does not run, and its sockets are the parent's."""
    global _housekeeper
    _housekeeper.abandon()
    _housekeeper = Housekeeper()
