"""One daemon thread a process that looks after connections while no event loop does.

It sleeps on the sockets' monitors and on the connections' timers: it subscribes again after a reconnect though the loop
is blocked, reads while no loop does, flushes the outbox, repeats unanswered requests and hands jobs back. It is no part
of a message's way.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import zmq
from zmq.utils.monitor import recv_monitor_message

logger = logging.getLogger("channels_zmq")

LONGEST_SLEEP = 1.0


class Watched(NamedTuple):
    """What to watch for a connection now."""

    monitors: "Mapping[zmq.Socket[bytes], Callable[[int], None]]"
    descriptor: int | None
    """A descriptor that no event loop reads at the moment."""
    sockets: "Mapping[zmq.Socket[bytes], Callable[[], None]]" = MappingProxyType({})
    """Other sockets, and what to call when one of them can be read."""


class Kept(Protocol):
    """A connection, as the keeper sees it."""

    def watched(self) -> Watched: ...  # noqa: D102
    def tick(self, now: float) -> float: ...  # noqa: D102
    def drain(self) -> None: ...  # noqa: D102


class Keeper:
    """The thread and its list of connections."""

    def __init__(self) -> None:
        self._due: dict[Kept, float] = {}
        self._lock = threading.Lock()
        self._sleeps_until = 0.0
        self._wake_reads, self._wake_writes = os.pipe()
        os.set_blocking(self._wake_reads, False)
        os.set_blocking(self._wake_writes, False)
        self._leaving: dict[Kept, threading.Event] = {}
        self._thread: threading.Thread | None = None
        self._ended = False

    def watch(self, connection: Kept) -> None:
        """Look after a connection from now on."""
        with self._lock:
            self._due[connection] = 0.0
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(target=self._run, name="channels-zmq keeper", daemon=True)
                self._thread.start()
        self._wake()

    def forget(self, connection: Kept) -> None:
        """Look after a connection no more; its sockets are not touched any more when this returns."""
        done = threading.Event()
        with self._lock:
            watched = self._due.pop(connection, None) is not None
            thread = self._thread
            if not watched or thread is None or not thread.is_alive() or thread is threading.current_thread():
                return
            self._leaving[connection] = done
        self._wake()
        done.wait(5.0)

    def call(self, connection: Kept, when: float) -> None:
        """Call a connection's `tick` at a time at the latest."""
        due = self._due.get(connection)
        if due is not None and when < due:
            self._due[connection] = when
            if when < self._sleeps_until:
                self._wake()

    def end(self) -> None:
        """End the thread, because the interpreter exits."""
        self._ended = True
        thread = self._thread
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # full means that a wake-up is under way; closed, at exit
            os.write(self._wake_writes, b"\0")

    def _run(self) -> None:
        while not self._ended:
            try:
                self._turn()
            except Exception:
                logger.exception("the keeper goes on after an error")
                time.sleep(LONGEST_SLEEP)

    def _turn(self) -> None:
        with self._lock:
            for done in self._leaving.values():
                done.set()
            self._leaving.clear()
            connections = list(self._due)
        poller = zmq.Poller()
        poller.register(self._wake_reads, zmq.POLLIN)
        handlers: dict[object, Callable[[], None]] = {}
        for connection in connections:
            watched = connection.watched()
            for monitor, handler in watched.monitors.items():
                poller.register(monitor, zmq.POLLIN)
                handlers[monitor] = _reader(monitor, handler)
            for socket, callback in watched.sockets.items():
                poller.register(socket, zmq.POLLIN)
                handlers[socket] = callback
            if watched.descriptor is not None:
                poller.register(watched.descriptor, zmq.POLLIN)
                handlers[watched.descriptor] = connection.drain
        for item, _ in poller.poll(math.ceil(self._sleep(connections) * 1000)):
            if item == self._wake_reads:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_reads, 4096)
            else:
                handlers[item]()
        self._sleeps_until = 0.0
        self._tick(connections)

    def _sleep(self, connections: list[Kept]) -> float:
        now = time.monotonic()
        until = min((self._due.get(connection, now) for connection in connections), default=now + 3600.0)
        self._sleeps_until = until
        # A call that came before the line above saw no need to wake us: look once more.
        until = min((self._due.get(connection, now) for connection in connections), default=until)
        return max(0.0, until - now)

    def _tick(self, connections: list[Kept]) -> None:
        now = time.monotonic()
        for connection in connections:
            due = self._due.get(connection)
            if due is not None and due <= now:
                self._due[connection] = now + 3600.0
                again = connection.tick(now)
                with self._lock:
                    if connection in self._due:
                        self._due[connection] = min(self._due[connection], again)


def _reader(monitor: "zmq.Socket[bytes]", handler: Callable[[int], None]) -> Callable[[], None]:
    def read() -> None:
        while not monitor.closed and monitor.poll(0):
            handler(recv_monitor_message(monitor, zmq.DONTWAIT)["event"])

    return read


_keeper = Keeper()


def keeper() -> Keeper:
    """Return this process's keeper."""
    return _keeper


def renew() -> None:
    """Begin with a new keeper: after a fork there is no thread, and the old one's sockets are the parent's."""
    global _keeper
    _keeper = Keeper()
