"""The thread that services connections while no event loop does."""

import asyncio
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from channels_zmq import housekeeper as housekeeping
from channels_zmq import reports
from channels_zmq.housekeeper import LOOK_EVERY, Housekeeper, Watched

PATIENCE = 10.0
LATER = 1000.0


class Connection:
    """A connection that records the calls of the housekeeper and their threads."""

    def __init__(self) -> None:
        self.monitors: dict[zmq.Socket[bytes], Callable[[int], None]] = {}
        self.descriptor: int | None = None
        self.sockets: dict[Any, Callable[[], None]] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.address = ""
        self.again = LATER
        self.ticks = threading.Semaphore(0)
        self.drained, self.happened = threading.Event(), threading.Event()
        self.threads: set[threading.Thread] = set()
        self.events: list[int] = []
        self.on_watched: Callable[[], None] = lambda: None
        self.on_tick: Callable[[], None] = lambda: None

    def watched(self) -> Watched:
        self.on_watched()
        descriptors = () if self.descriptor is None else (self.descriptor,)
        return Watched(self.monitors, descriptors, self.sockets, self.loop)

    def tick(self, now: float) -> float:
        self.threads.add(threading.current_thread())
        self.on_tick()
        self.ticks.release()
        return now + self.again

    def read_unattended(self) -> None:
        assert self.descriptor is not None
        os.read(self.descriptor, 1)
        self.drained.set()

    def event(self, number: int) -> None:
        self.events.append(number)
        self.happened.set()


@pytest.fixture
def housekeeper() -> Iterator[Housekeeper]:
    housekeeper = Housekeeper()
    yield housekeeper
    housekeeper.end()


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reads, writes = os.pipe()
    yield reads, writes
    os.close(reads)
    os.close(writes)


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """Return two connected sockets."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        yield one, other


def failing(*errors: ValueError) -> Callable[[], None]:
    """Return a function that raises these errors, one a call, and then nothing."""
    left = list(errors)

    def fail() -> None:
        if left:
            raise left.pop(0)

    return fail


def await_tick(connection: Connection) -> None:
    assert connection.ticks.acquire(timeout=PATIENCE)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    reports.flush(PATIENCE)
    return caplog.messages


def test_a_connection_is_ticked_at_once_on_a_thread_of_the_housekeeper(
    housekeeper: Housekeeper, connection: Connection
) -> None:
    """The housekeeper ticks all connections at once, on one daemon thread, which does not delay the exit."""
    other = Connection()
    for one in (connection, other):
        housekeeper.watch(one)
        await_tick(one)
    (thread,) = connection.threads | other.threads
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_a_tick_returns_when_the_next_one_is_due(housekeeper: Housekeeper, connection: Connection) -> None:
    """The housekeeper ticks a connection again at the time that the last tick returned."""
    connection.again = 0.01
    housekeeper.watch(connection)
    for _ in range(3):
        await_tick(connection)


def test_a_tick_that_is_always_due_follows_at_once(housekeeper: Housekeeper, connection: Connection) -> None:
    """A tick that is always due repeats at once, and does not keep the housekeeper from other connections."""
    connection.again = -math.inf
    housekeeper.watch(connection)
    for _ in range(3):
        await_tick(connection)
    housekeeper.watch(other := Connection())
    await_tick(other)


def test_a_call_brings_the_next_tick_forward(housekeeper: Housekeeper, connection: Connection) -> None:
    """A call brings the next tick forward, also while the housekeeper sleeps."""
    housekeeper.watch(connection)
    await_tick(connection)
    housekeeper.call(connection, time.monotonic())
    await_tick(connection)


def test_a_call_during_a_tick_is_not_forgotten(housekeeper: Housekeeper, connection: Connection) -> None:
    """A call during a tick is kept: of its time and the time that the tick returns, the earlier one applies."""
    asked = iter([True])
    connection.on_tick = lambda: housekeeper.call(connection, 0.0) if next(asked, False) else None
    housekeeper.watch(connection)
    await_tick(connection)
    await_tick(connection)


def test_a_call_for_a_later_time_changes_nothing(housekeeper: Housekeeper, connection: Connection) -> None:
    """A call for a later time does not delay the next tick, and a call for an unwatched connection causes none."""
    connection.again, unwatched = 0.05, Connection()
    housekeeper.watch(connection)
    await_tick(connection)
    housekeeper.call(connection, time.monotonic() + LATER)
    housekeeper.call(unwatched, 0.0)
    for _ in range(2):
        await_tick(connection)
    assert unwatched.threads == set()


def test_of_two_calls_at_once_the_earlier_one_counts(
    housekeeper: Housekeeper, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call keeps an earlier time that another thread set between the read without the lock and the read with it."""

    class Due(dict[Connection, float]):
        def __init__(self) -> None:
            self.answers = iter([LATER, 1.0])

        def get(self, key: Connection, default: Any = None) -> float:
            return next(self.answers)

    monkeypatch.setattr(housekeeper, "_due", due := Due())
    housekeeper.call(connection, 2.0)
    assert not due


def test_a_call_before_the_housekeeper_sleeps_needs_no_wake_up(
    housekeeper: Housekeeper, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call while the housekeeper is awake wakes nobody, because the housekeeper reads the time before it sleeps."""
    housekeeper._due[connection] = LATER
    monkeypatch.setattr(housekeeper, "_wake", lambda: pytest.fail("woken"))
    housekeeper.call(connection, 1.0)
    assert housekeeper._due[connection] == 1.0


def test_a_descriptor_that_no_loop_reads_is_drained(
    housekeeper: Housekeeper, connection: Connection, pipe: tuple[int, int]
) -> None:
    """The housekeeper drains a descriptor that no loop reads as soon as there is input."""
    connection.descriptor, writes = pipe
    housekeeper.watch(connection)
    await_tick(connection)
    os.write(writes, b"x")
    assert connection.drained.wait(PATIENCE)
    housekeeper.forget(connection)


def test_a_connection_is_ticked_when_its_event_loop_has_ended(housekeeper: Housekeeper, connection: Connection) -> None:
    """The housekeeper ticks a connection when its event loop has ended, and not before, however long the loop runs."""
    loop = connection.loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    running = threading.Event()
    loop.call_soon_threadsafe(running.set)
    running.wait(PATIENCE)
    housekeeper.watch(connection)
    await_tick(connection)
    assert not connection.ticks.acquire(timeout=3 * LOOK_EVERY)
    connection.on_tick = lambda: setattr(connection, "loop", None)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    await_tick(connection)
    loop.close()


def test_events_of_monitors_are_handed_over(
    housekeeper: Housekeeper, connection: Connection, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    """The housekeeper passes all pending events of a monitor to its handler, by their number."""
    monitor, monitored = pair
    for event in (zmq.Event.HANDSHAKE_SUCCEEDED, zmq.Event.DISCONNECTED):
        monitored.send_multipart([struct.pack("=hi", event, 0), b"tcp://x"])
    connection.monitors = {monitor: connection.event}
    housekeeper.watch(connection)
    assert connection.happened.wait(PATIENCE)
    housekeeper.forget(connection)
    assert connection.events == [zmq.Event.HANDSHAKE_SUCCEEDED, zmq.Event.DISCONNECTED]


def test_a_monitor_that_its_own_handler_closes_is_not_read_on(
    housekeeper: Housekeeper, connection: Connection, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    """A monitor that its handler closes is not read further, because a connection may replace the monitored socket."""
    monitor, monitored = pair
    for _ in range(2):
        monitored.send_multipart([struct.pack("=hi", zmq.Event.DISCONNECTED, 0), b"tcp://x"])

    def close(event: int) -> None:
        monitor.close()
        connection.monitors = {}
        connection.event(event)

    connection.monitors = {monitor: close}
    housekeeper.watch(connection)
    assert connection.happened.wait(PATIENCE)
    housekeeper.forget(connection)
    assert connection.events == [zmq.Event.DISCONNECTED]


def test_other_sockets_have_callbacks(
    housekeeper: Housekeeper, connection: Connection, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    """The housekeeper calls the callback of a further socket while the socket has input."""
    here, there = pair

    def read() -> None:
        here.recv()
        connection.happened.set()

    connection.sockets = {here: read}
    housekeeper.watch(connection)
    await_tick(connection)
    there.send(b"x")
    assert connection.happened.wait(PATIENCE)
    housekeeper.forget(connection)


def test_a_forgotten_connection_is_touched_no_more(
    housekeeper: Housekeeper, connection: Connection, pipe: tuple[int, int]
) -> None:
    """Once `forget` has returned, the housekeeper uses no socket of the connection; a second call raises nothing."""
    connection.descriptor, writes = pipe
    housekeeper.watch(connection)
    await_tick(connection)
    for _ in range(2):
        housekeeper.forget(connection)
    housekeeper.call(connection, 0.0)
    os.write(writes, b"x")
    other = Connection()
    housekeeper.watch(other)
    await_tick(other)
    assert not connection.ticks.acquire(blocking=False)
    assert not connection.drained.is_set()


def test_a_connection_may_be_forgotten_by_the_housekeeper_itself(
    housekeeper: Housekeeper, connection: Connection
) -> None:
    """The housekeeper's own thread may forget a connection, and does not wait for itself."""
    connection.on_tick = lambda: housekeeper.forget(connection)
    housekeeper.watch(connection)
    await_tick(connection)
    other = Connection()
    housekeeper.watch(other)
    await_tick(other)


def test_an_error_of_one_connection_is_logged_and_the_housekeeper_continues(
    housekeeper: Housekeeper, connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After an error at a connection the housekeeper continues with the others, and with that one a little later."""
    monkeypatch.setattr(housekeeping, "AFTER_ERROR", 0.01)
    connection.address = "tcp://odd"
    connection.on_tick = failing(ValueError("odd"))
    housekeeper.watch(connection)
    housekeeper.watch(other := Connection())
    await_tick(other)
    await_tick(connection)
    (message,) = logged(caplog)
    assert message.startswith("the housekeeper continues after an error at tcp://odd:\nTraceback")
    assert message.endswith("ValueError: odd\n")


def test_an_error_of_a_socket_is_logged(
    housekeeper: Housekeeper,
    connection: Connection,
    pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error in a socket's callback is logged, with a traceback that shows the owner."""
    here, there = pair

    def fail() -> None:
        here.recv()
        connection.happened.set()
        raise ValueError("odd")

    connection.sockets = {here: fail}
    there.send(b"x")
    housekeeper.watch(connection)
    assert connection.happened.wait(PATIENCE)
    housekeeper.forget(connection)
    (message,) = logged(caplog)
    assert message.startswith("the housekeeper continues after an error at a socket:")


def test_an_error_of_the_housekeeper_itself_is_logged(
    housekeeper: Housekeeper, connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The housekeeper logs its own error and pauses, so that a permanent error does not occupy a processor."""
    monkeypatch.setattr(housekeeping, "AFTER_ERROR", 0.01)
    fail, tick = failing(ValueError("odd")), housekeeper._tick

    def tick_or_fail(connections: list[housekeeping.Kept]) -> None:
        fail()
        tick(connections)

    monkeypatch.setattr(housekeeper, "_tick", tick_or_fail)
    housekeeper.watch(connection)
    await_tick(connection)
    (message,) = logged(caplog)
    assert message.startswith("the housekeeper continues after an error at its own:")


def test_an_ended_housekeeper_has_no_thread_and_starts_none(housekeeper: Housekeeper, connection: Connection) -> None:
    """A housekeeper that has ended, as at the interpreter's exit, starts no thread and awaits no later connection."""
    housekeeper.watch(connection)
    await_tick(connection)
    housekeeper.end()
    (thread,) = connection.threads
    assert not thread.is_alive()
    housekeeper.watch(other := Connection())
    housekeeper.forget(other)
    assert not thread.is_alive()


def test_a_housekeeper_that_ends_before_it_began_starts_no_thread(
    housekeeper: Housekeeper, connection: Connection
) -> None:
    """A housekeeper that ends before it has watched a connection starts no thread."""
    housekeeper.end()
    housekeeper.watch(connection)
    assert housekeeper._thread is None
    housekeeper.forget(connection)


def test_a_housekeeper_may_be_ended_by_itself(housekeeper: Housekeeper, connection: Connection) -> None:
    """The housekeeper's own thread may end it, and does not wait for itself."""
    connection.on_tick = housekeeper.end
    housekeeper.watch(connection)
    await_tick(connection)
    (thread,) = connection.threads
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_more_wake_ups_than_the_thread_takes_block_nobody(housekeeper: Housekeeper, connection: Connection) -> None:
    """If the socket that wakes the thread is full, a further wake-up does not block, because one is already pending."""
    ticking, go_on = threading.Event(), threading.Event()

    def tick() -> None:
        ticking.set()
        go_on.wait(PATIENCE)

    connection.on_tick = tick
    housekeeper.watch(connection)
    assert ticking.wait(PATIENCE)
    for _ in range(70_000):
        housekeeper._wake()
    assert housekeeper._wakes is not None
    with pytest.raises(BlockingIOError):  # else there was room for all of them
        housekeeper._wakes[0].send(b"x")
    go_on.set()


def test_a_process_has_one_housekeeper_until_it_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has one housekeeper, and a forked child has another, because it has none of its parent's threads."""
    monkeypatch.setattr(housekeeping, "_housekeeper", before := Housekeeper())
    assert housekeeping.housekeeper() is before
    housekeeping.renew()
    assert housekeeping.housekeeper() is not before


def test_a_forked_child_closes_its_copies_of_what_wakes_the_parents_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child closes its copies of the sockets that wake the parent's thread, because it has no such thread."""
    former = Housekeeper()
    former._wakes = copies = socket.socketpair()
    monkeypatch.setattr(housekeeping, "_housekeeper", former)
    housekeeping.renew()
    assert [end.fileno() for end in copies] == [-1, -1]
