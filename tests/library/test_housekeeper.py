"""The thread that looks after connections while no event loop does."""

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
    """Remembers what the housekeeper does to it, and on which thread."""

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
    """Two connected sockets."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        yield one, other


def failing(*errors: ValueError) -> Callable[[], None]:
    """Return a function that raises these errors, then nothing."""
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
    """A daemon holds up no exit; all connections share it."""
    other = Connection()
    for one in (connection, other):
        housekeeper.watch(one)
        await_tick(one)
    (thread,) = connection.threads | other.threads
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_a_tick_returns_when_the_next_one_is_due(housekeeper: Housekeeper, connection: Connection) -> None:
    """At the latest."""
    connection.again = 0.01
    housekeeper.watch(connection)
    for _ in range(3):
        await_tick(connection)


def test_a_tick_that_is_always_due_follows_at_once(housekeeper: Housekeeper, connection: Connection) -> None:
    """What is due has no time then; nothing else stops meanwhile."""
    connection.again = -math.inf
    housekeeper.watch(connection)
    for _ in range(3):
        await_tick(connection)
    housekeeper.watch(other := Connection())
    await_tick(other)


def test_a_call_brings_the_next_tick_forward(housekeeper: Housekeeper, connection: Connection) -> None:
    """Also while the housekeeper sleeps."""
    housekeeper.watch(connection)
    await_tick(connection)
    housekeeper.call(connection, time.monotonic())
    await_tick(connection)


def test_a_call_during_a_tick_is_not_forgotten(housekeeper: Housekeeper, connection: Connection) -> None:
    """The earlier of the two times counts."""
    asked = iter([True])
    connection.on_tick = lambda: housekeeper.call(connection, 0.0) if next(asked, False) else None
    housekeeper.watch(connection)
    await_tick(connection)
    await_tick(connection)


def test_a_call_for_a_later_time_changes_nothing(housekeeper: Housekeeper, connection: Connection) -> None:
    """The earlier time stays; a connection that is not watched is not called."""
    connection.again = 0.05
    housekeeper.watch(connection)
    await_tick(connection)
    housekeeper.call(connection, time.monotonic() + LATER)
    await_tick(connection)
    housekeeper.call(Connection(), 0.0)


def test_of_two_calls_at_once_the_earlier_one_counts(
    housekeeper: Housekeeper, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread has brought the tick forward between the look without the lock and the one with it."""

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
    """It will see the time before it goes to sleep."""
    housekeeper._due[connection] = LATER
    monkeypatch.setattr(housekeeper, "_wake", lambda: pytest.fail("woken"))
    housekeeper.call(connection, 1.0)
    assert housekeeper._due[connection] == 1.0


def test_a_descriptor_that_no_loop_reads_is_drained(
    housekeeper: Housekeeper, connection: Connection, pipe: tuple[int, int]
) -> None:
    """As soon as something is there."""
    connection.descriptor, writes = pipe
    housekeeper.watch(connection)
    await_tick(connection)
    os.write(writes, b"x")
    assert connection.drained.wait(PATIENCE)
    housekeeper.forget(connection)


def test_a_connection_is_ticked_when_its_event_loop_has_ended(housekeeper: Housekeeper, connection: Connection) -> None:
    """Not before, however long the loop runs."""
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
    """By their number, all that are there."""
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
    """A connection may replace the monitored socket."""
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
    """They are called while something can be read."""
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
    """Once `forget` has returned its sockets may be closed; a second call is not an error."""
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
    """It does not wait for itself."""
    connection.on_tick = lambda: housekeeper.forget(connection)
    housekeeper.watch(connection)
    await_tick(connection)
    other = Connection()
    housekeeper.watch(other)
    await_tick(other)


def test_an_error_of_one_connection_is_logged_and_the_housekeeper_continues(
    housekeeper: Housekeeper, connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It looks after the others and, a little later, after that one."""
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
    """Whose it is, the traceback shows."""
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
    """It goes on after a pause, so that an error which stays does not take a processor."""
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
    """The interpreter exits: connections that come later are neither looked after nor waited for."""
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
    """Nothing was ever watched."""
    housekeeper.end()
    housekeeper.watch(connection)
    assert housekeeper._thread is None
    housekeeper.forget(connection)


def test_a_housekeeper_may_be_ended_by_itself(housekeeper: Housekeeper, connection: Connection) -> None:
    """It does not wait for itself."""
    connection.on_tick = housekeeper.end
    housekeeper.watch(connection)
    await_tick(connection)
    (thread,) = connection.threads
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_more_wake_ups_than_the_thread_takes_block_nobody(housekeeper: Housekeeper, connection: Connection) -> None:
    """One is under way then."""
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
    """The child has none of its parent's threads."""
    monkeypatch.setattr(housekeeping, "_housekeeper", before := Housekeeper())
    assert housekeeping.housekeeper() is before
    housekeeping.renew()
    assert housekeeping.housekeeper() is not before


def test_a_forked_child_closes_its_copies_of_what_wakes_the_parents_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has no such thread."""
    former = Housekeeper()
    former._wakes = copies = socket.socketpair()
    monkeypatch.setattr(housekeeping, "_housekeeper", former)
    housekeeping.renew()
    assert [end.fileno() for end in copies] == [-1, -1]
