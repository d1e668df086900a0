"""The thread that looks after connections while no event loop does."""

import os
import struct
import threading
import time

import pytest
import zmq

from channels_zmq import keeper as keeping
from channels_zmq.keeper import Keeper, Watched

PATIENCE = 10.0
LATER = 1000.0


class Connection:
    """Remembers what the keeper does to it, and on which thread."""

    def __init__(self):
        self.monitors, self.descriptor = {}, None
        self.again = LATER
        self.ticks = threading.Semaphore(0)
        self.drained, self.happened = threading.Event(), threading.Event()
        self.threads, self.events = set(), []
        self.on_tick = lambda: None

    def watched(self):
        return Watched(self.monitors, self.descriptor)

    def tick(self, now):
        self.threads.add(threading.current_thread())
        self.on_tick()
        self.ticks.release()
        return now + self.again

    def drain(self):
        os.read(self.descriptor, 1)
        self.drained.set()

    def event(self, number):
        self.events.append(number)
        self.happened.set()


@pytest.fixture
def keeper():
    keeper = Keeper()
    yield keeper
    keeper.end()
    os.close(keeper._wake_reads)
    os.close(keeper._wake_writes)


@pytest.fixture
def connection():
    return Connection()


@pytest.fixture
def pipe():
    reads, writes = os.pipe()
    yield reads, writes
    os.close(reads)
    os.close(writes)


def await_tick(connection):
    assert connection.ticks.acquire(timeout=PATIENCE)


def test_a_connection_is_ticked_at_once_on_a_thread_of_the_keeper(keeper, connection):
    """A daemon, so that it holds up no exit; all connections share it."""
    other = Connection()
    for one in (connection, other):
        keeper.watch(one)
        await_tick(one)
    (thread,) = connection.threads | other.threads
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_a_tick_says_when_the_next_one_is_due(keeper, connection):
    """At the latest."""
    connection.again = 0.01
    keeper.watch(connection)
    for _ in range(3):
        await_tick(connection)


def test_a_call_brings_the_next_tick_forward(keeper, connection):
    """Also while the keeper sleeps."""
    keeper.watch(connection)
    await_tick(connection)
    keeper.call(connection, time.monotonic())
    await_tick(connection)


def test_a_call_during_a_tick_is_not_forgotten(keeper, connection):
    """The earlier of the two times counts."""
    asked = iter([True, False])
    connection.on_tick = lambda: keeper.call(connection, 0.0) if next(asked, False) else None
    keeper.watch(connection)
    await_tick(connection)
    await_tick(connection)


def test_a_call_for_later_changes_nothing(keeper, connection):
    """The time that was known before stays; and a connection that is not watched is none to call."""
    connection.again = 0.05
    keeper.watch(connection)
    await_tick(connection)
    keeper.call(connection, time.monotonic() + LATER)
    await_tick(connection)
    keeper.call(Connection(), 0.0)


def test_a_descriptor_that_no_loop_reads_is_drained(keeper, connection, pipe):
    """As soon as something is there."""
    connection.descriptor, writes = pipe
    keeper.watch(connection)
    await_tick(connection)
    os.write(writes, b"x")
    assert connection.drained.wait(PATIENCE)
    keeper.forget(connection)


def test_events_of_monitors_are_told(keeper, connection):
    """By their number, all that are there."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as monitor, context.socket(zmq.PAIR) as monitored:
        monitor.bind("inproc://events")
        monitored.connect("inproc://events")
        for event in (zmq.Event.HANDSHAKE_SUCCEEDED, zmq.Event.DISCONNECTED):
            monitored.send_multipart([struct.pack("=hi", event, 0), b"tcp://x"])
        connection.monitors = {monitor: connection.event}
        keeper.watch(connection)
        assert connection.happened.wait(PATIENCE)
        keeper.forget(connection)
    assert connection.events == [zmq.Event.HANDSHAKE_SUCCEEDED, zmq.Event.DISCONNECTED]


def test_a_forgotten_connection_is_touched_no_more(keeper, connection, pipe):
    """Once `forget` has returned its sockets may be closed; a second time is no error."""
    connection.descriptor, writes = pipe
    keeper.watch(connection)
    await_tick(connection)
    for _ in range(2):
        keeper.forget(connection)
    keeper.call(connection, 0.0)
    os.write(writes, b"x")
    other = Connection()
    keeper.watch(other)
    await_tick(other)
    assert not connection.ticks.acquire(blocking=False)
    assert not connection.drained.is_set()


def test_a_connection_may_be_forgotten_by_the_keeper_itself(keeper, connection):
    """It does not wait for itself."""
    connection.on_tick = lambda: keeper.forget(connection)
    keeper.watch(connection)
    await_tick(connection)
    other = Connection()
    keeper.watch(other)
    await_tick(other)


def test_an_error_of_one_connection_is_logged_and_the_keeper_goes_on(keeper, connection, monkeypatch, caplog):
    """It looks after the others and, later, after that one."""
    monkeypatch.setattr(keeping, "LONGEST_SLEEP", 0.0)
    errors = iter([ValueError("odd")])

    def fail():
        for error in errors:
            raise error

    connection.on_tick = fail
    keeper.watch(connection)
    keeper.watch(other := Connection())
    await_tick(other)
    keeper.call(connection, 0.0)
    await_tick(connection)
    assert [(record.message, str(record.exc_info[1])) for record in caplog.records] == [
        ("the keeper goes on after an error", "odd")
    ]


def test_an_ended_keeper_has_no_thread_and_begins_none(keeper, connection):
    """The interpreter exits: what comes later is not looked after, and not waited for."""
    keeper.watch(connection)
    await_tick(connection)
    keeper.end()
    (thread,) = connection.threads
    assert not thread.is_alive()
    keeper.watch(Connection())
    keeper.forget(connection)
    assert not thread.is_alive()


def test_a_keeper_that_ends_before_it_began_starts_no_thread(keeper, connection):
    """Nothing was ever watched."""
    keeper.end()
    keeper.watch(connection)
    assert keeper._thread is None
    keeper.forget(connection)


def test_a_keeper_may_be_ended_by_itself(keeper, connection):
    """It does not wait for itself."""
    connection.on_tick = keeper.end
    keeper.watch(connection)
    await_tick(connection)
    (thread,) = connection.threads
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_more_calls_than_the_pipe_holds_block_nobody(keeper):
    """A wake-up is under way then."""
    for _ in range(70_000):
        keeper._wake()


def test_a_process_has_one_keeper_until_it_is_forked(monkeypatch):
    """The child has none of its parent's threads."""
    monkeypatch.setattr(keeping, "_keeper", before := keeping.keeper())
    assert keeping.keeper() is before
    keeping.renew()
    assert keeping.keeper() is not before
    os.close(keeping.keeper()._wake_reads)
    os.close(keeping.keeper()._wake_writes)
