"""Which event loops watch a descriptor, and how their readers are woken, with real loops and a real pipe."""

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from event_loops import ReaderlessLoop

from channels_zmq import loops as loops_module
from channels_zmq.loops import Loops, Waiter, running_here, wake

PATIENCE = 10.0
Result = TypeVar("Result")


class Pipe:
    """A descriptor to watch; `drain` empties it and records the loop that called it."""

    def __init__(self) -> None:
        self.reads, self.writes = os.pipe()
        os.set_blocking(self.reads, False)
        self.drained: list[tuple[asyncio.AbstractEventLoop | None, bytes]] = []
        self.asked = 0
        self.called = threading.Event()

    def drain(self) -> None:
        try:
            data = os.read(self.reads, 99)
        except BlockingIOError:
            data = b""
        self.drained.append((running_here(), data))
        self.called.set()

    def ask_housekeeper(self) -> None:
        self.asked += 1

    def write(self) -> None:
        self.called.clear()
        os.write(self.writes, b"x")

    def close(self) -> None:
        os.close(self.reads)
        os.close(self.writes)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def loops(pipe: Pipe) -> Iterator[Loops]:
    """Return loops that watch the pipe; afterwards all their duplicates of its descriptor must be closed."""
    before = open_descriptors()
    loops = Loops(pipe.drain, pipe.ask_housekeeper, threading.Lock())
    loops.watch(pipe.reads)
    yield loops
    loops.release()
    loops.unattended()
    gc.collect()
    assert open_descriptors() <= before


@pytest.fixture
def other() -> Iterator[asyncio.AbstractEventLoop]:
    """Return a loop that runs in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()


@pytest.fixture
def idle() -> Iterator[asyncio.AbstractEventLoop]:
    """Return a loop that does not run."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def open_descriptors() -> set[int]:
    """Return the descriptors of this process that belong to a pipe."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                found.add(int(name))
        except OSError:  # the descriptor of the listing itself
            continue
    return found


def watches(loops: Loops, loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a loop watches, which means that it has a duplicate of the descriptor."""
    watch = loops._watches.get(loop)
    return watch is not None and watch.descriptor is not None


def on(loop: asyncio.AbstractEventLoop, action: Callable[[], Result]) -> Result:
    """Call a function on a loop that runs in another thread, and return its result."""

    async def act() -> Result:
        return action()

    return asyncio.run_coroutine_threadsafe(act(), loop).result(PATIENCE)


async def turns() -> None:
    """Let this loop poll its descriptors more than once."""
    for _ in range(3):
        await asyncio.sleep(0)


class ClosedMeanwhile:
    """A loop that closes between the check of its state and the call."""

    def is_closed(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=asyncio.new_event_loop())

    def call_soon_threadsafe(self, *arguments: "ClosedMeanwhile | asyncio.Future[Any] | Callable[..., Any]") -> None:
        raise RuntimeError("Event loop is closed")


class NotingLock:
    """A lock that records which threads have acquired it."""

    def __init__(self) -> None:
        self.taken_by: list[threading.Thread] = []

    def __enter__(self) -> None:
        self.taken_by.append(threading.current_thread())

    def __exit__(self, *error: Any) -> None:
        pass


# Waiters


async def test_readers_of_the_running_loop_are_woken_at_once() -> None:
    """A waiter of the running loop is woken at once; cancelled ones are skipped, and waking twice changes nothing."""
    loop = asyncio.get_running_loop()
    one, gone = Waiter(loop), Waiter(loop)
    gone.future.cancel()
    assert (one.usable, gone.usable) == (True, False)
    for _ in range(2):
        wake([gone, one])
    assert one.future.done()
    await one.future
    assert gone.future.cancelled()
    assert not one.usable


async def test_a_waiter_is_woken_from_another_thread() -> None:
    """A waiter can be woken from another thread, and waking it a second time raises nothing."""
    waiter = Waiter(asyncio.get_running_loop())
    for _ in range(2):
        await asyncio.to_thread(wake, [waiter])
    await turns()
    await waiter.future


async def test_a_waiter_of_another_loop_is_woken_there(other: asyncio.AbstractEventLoop) -> None:
    """A waiter of another loop is woken on that loop, and not on the one that runs here."""
    waiter = on(other, lambda: Waiter(other))
    wake([waiter])

    async def wait() -> asyncio.AbstractEventLoop | None:
        await waiter.future
        return running_here()

    assert asyncio.run_coroutine_threadsafe(wait(), other).result(PATIENCE) is other


def test_a_waiter_whose_loop_has_closed_is_passed_over() -> None:
    """A waiter whose loop has closed is not usable, and waking it raises nothing."""
    loop = asyncio.new_event_loop()
    waiter = Waiter(loop)
    loop.close()
    assert not waiter.usable
    wake([waiter])


def test_no_loop_runs_in_a_thread_without_one() -> None:
    """In a thread without a running loop, `running_here` returns None."""
    assert running_here() is None


# Watching


async def test_a_loop_that_begins_to_watch_reads_without_a_sign(pipe: Pipe, loops: Loops) -> None:
    """A loop that begins to watch reads once by itself: ZeroMQ may have signalled input to another loop only."""
    here = asyncio.get_running_loop()
    loops.enter(here, takes_over=False)
    loops.enter(here, takes_over=False)
    await turns()
    assert pipe.drained == [(here, b"")]


async def test_a_loop_with_a_waiter_watches(pipe: Pipe, loops: Loops) -> None:
    """A loop that has a waiter reads the input that arrives."""
    here = asyncio.get_running_loop()
    loops.enter(here, takes_over=False)
    loops.enter(here, takes_over=False)
    loops.leave(here)
    await turns()
    before = len(pipe.drained)
    pipe.write()
    await turns()
    assert pipe.drained[before:] == [(here, b"x")]


async def test_the_first_loop_that_waits_is_attached(loops: Loops, other: asyncio.AbstractEventLoop) -> None:
    """The first loop that waits is attached and replaces the housekeeper; another watches while it has waiters."""
    here = asyncio.get_running_loop()
    assert loops.enter(here, takes_over=False)
    assert not loops.enter(here, takes_over=False)
    loops.leave(here)
    loops.leave(here)
    assert (watches(loops, here), loops.unattended(), loops.reading) == (True, False, here)
    assert not on(other, lambda: loops.enter(other, takes_over=False))
    assert watches(loops, other)
    on(other, lambda: loops.leave(other))
    assert (watches(loops, here), watches(loops, other)) == (True, False)


async def test_a_loop_that_waits_takes_the_place_of_one_that_does_not_run(
    loops: Loops, idle: asyncio.AbstractEventLoop
) -> None:
    """A waiting loop replaces an attached loop that does not run, as after each call of `async_to_sync`."""
    here = asyncio.get_running_loop()
    loops.enter(idle, takes_over=False)
    loops.leave(idle)
    loops.enter(here, takes_over=False)
    assert (watches(loops, idle), watches(loops, here), loops.unattended()) == (False, True, False)


@pytest.fixture(params=["readerless", "no-descriptor", "windows"])
def unable(
    request: pytest.FixtureRequest, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Loops, asyncio.Runner]]:
    """Return a loop that cannot watch a descriptor, because of its kind, of the transport, or of the system."""
    loops = Loops(pipe.drain, pipe.ask_housekeeper, threading.Lock())
    loops.watch(None if request.param == "no-descriptor" else pipe.reads)
    if request.param == "windows":
        monkeypatch.setattr(loops_module, "os", SimpleNamespace(name="nt", close=os.close))
    factory = ReaderlessLoop if request.param == "readerless" else asyncio.new_event_loop
    before = open_descriptors()
    with asyncio.Runner(loop_factory=factory) as runner:
        yield loops, runner
        loops.release()
        assert loops._watches == {}
    assert open_descriptors() == before


def test_for_a_loop_that_cannot_watch_the_housekeeper_reads(pipe: Pipe, unable: tuple[Loops, asyncio.Runner]) -> None:
    """The housekeeper reads in place of a loop that cannot watch, and is asked once, for the first waiter."""
    loops, runner = unable

    async def wait_attached() -> tuple[int, list[tuple[asyncio.AbstractEventLoop | None, bytes]], bool]:
        here = asyncio.get_running_loop()
        loops.enter(here, takes_over=True)
        loops.enter(here, takes_over=True)
        await turns()
        return pipe.asked, pipe.drained, loops.unattended()

    assert runner.run(wait_attached()) == (1, [], True)
    assert loops.unattended()


def test_an_attached_loop_that_watches_does_not_do_it_for_one_that_cannot(
    pipe: Pipe, unable: tuple[Loops, asyncio.Runner], other: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The housekeeper reads too while a loop that cannot watch has waiters: the attached one may stop at any moment."""
    loops, runner = unable
    monkeypatch.undo()
    loops.watch(pipe.reads)
    on(other, lambda: loops.enter(other, takes_over=True))
    assert not loops.unattended()

    async def wait_in_vain() -> tuple[bool, bool, bool]:
        here = asyncio.get_running_loop()
        before = loops.unattended()
        loops.enter(here, takes_over=False)
        during = loops.unattended()
        loops.leave(here)
        return before, during, loops.unattended()

    cannot = isinstance(runner.get_loop(), ReaderlessLoop)
    assert runner.run(wait_in_vain()) == (False, cannot, False)
    on(other, lambda: loops.leave(other))
    on(other, loops.release)


async def test_the_attached_loop_watches_on(pipe: Pipe, loops: Loops) -> None:
    """The attached loop continues to watch without a waiter, because its consumer returns when its handler has run."""
    here = asyncio.get_running_loop()
    loops.enter(here, takes_over=True)
    loops.leave(here)
    await turns()
    before = len(pipe.drained)
    pipe.write()
    await turns()
    assert pipe.drained[before:] == [(here, b"x")]


async def test_attaching_ends_the_watch_of_the_former_loop(loops: Loops, other: asyncio.AbstractEventLoop) -> None:
    """Attaching a loop ends the watch of the former one, on that loop's own thread, if no reader waits there."""
    here = asyncio.get_running_loop()
    on(other, lambda: loops.enter(other, takes_over=True))
    on(other, lambda: loops.leave(other))
    loops.enter(here, takes_over=True)
    loops.enter(here, takes_over=True)
    on(other, lambda: None)
    assert (watches(loops, other), watches(loops, here)) == (False, True)


async def test_a_former_loop_with_a_waiter_watches_on(loops: Loops, other: asyncio.AbstractEventLoop) -> None:
    """A formerly attached loop with a waiter continues to watch, because the new one can stop at any moment."""
    on(other, lambda: loops.enter(other, takes_over=True))
    loops.enter(asyncio.get_running_loop(), takes_over=True)
    on(other, lambda: None)
    assert watches(loops, other)
    on(other, lambda: loops.leave(other))
    assert not watches(loops, other)


async def test_the_watch_of_a_former_loop_that_does_not_run_ends_at_once(
    loops: Loops, idle: asyncio.AbstractEventLoop
) -> None:
    """The watch of a formerly attached loop that does not run ends at once, as after each call of `async_to_sync`."""
    loops.enter(idle, takes_over=True)
    loops.leave(idle)
    loops.enter(asyncio.get_running_loop(), takes_over=True)
    assert not watches(loops, idle)


async def test_a_former_loop_that_has_closed_is_forgotten(loops: Loops) -> None:
    """Attaching a loop forgets a closed former one, and closes its duplicate of the descriptor without a call of it."""
    former = asyncio.new_event_loop()
    loops.enter(former, takes_over=True)
    former.close()
    loops.enter(asyncio.get_running_loop(), takes_over=True)
    loops.leave(former)
    assert not loops.unattended()
    assert list(loops._watches) == [asyncio.get_running_loop()]


async def test_a_former_loop_that_watched_nothing_any_more_and_has_closed_is_no_error(loops: Loops) -> None:
    """A former loop that lost its descriptor before it closed can be replaced without an error."""
    former = asyncio.new_event_loop()
    loops.enter(former, takes_over=True)
    loops.watch(None)
    former.close()
    loops.enter(asyncio.get_running_loop(), takes_over=True)
    assert loops.attached is asyncio.get_running_loop()


def test_leaving_a_loop_that_never_entered_is_no_error(loops: Loops, idle: asyncio.AbstractEventLoop) -> None:
    """Leaving a loop that never entered, or that was forgotten meanwhile, raises nothing."""
    loops.leave(idle)
    assert loops.unattended()


async def test_without_a_descriptor_nothing_is_watched(pipe: Pipe) -> None:
    """Without a descriptor, as with an embedded layer on inproc, loops watch nothing but still count waiters."""
    here = asyncio.get_running_loop()
    loops = Loops(pipe.drain, pipe.ask_housekeeper, threading.Lock())
    loops.enter(here, takes_over=False)
    loops.watch(None)
    loops.leave(here)
    await turns()
    assert pipe.drained == []
    assert loops._watches == {}


async def test_waiting_loops_change_over_to_a_new_descriptor(pipe: Pipe) -> None:
    """Waiting loops change to a new descriptor and read its pending input; a closed loop is forgotten."""
    here = asyncio.get_running_loop()
    closed = asyncio.new_event_loop()
    loops = Loops(pipe.drain, pipe.ask_housekeeper, threading.Lock())
    for loop in (here, closed):
        loops.enter(loop, takes_over=False)
    closed.close()
    pipe.write()
    loops.watch(pipe.reads)
    await turns()
    assert b"x" in [data for _, data in pipe.drained]
    assert (watches(loops, here), list(loops._watches)) == (True, [here])
    loops.release()


async def test_a_loop_stops_watching_the_former_descriptor(pipe: Pipe, loops: Loops) -> None:
    """After a change of the descriptor, a loop ignores input at the former one and reads input at the new one."""
    here = asyncio.get_running_loop()
    loops.enter(here, takes_over=False)
    reads, writes = os.pipe()
    try:
        loops.watch(reads)
        await turns()
        before = len(pipe.drained)
        pipe.write()
        await turns()
        assert len(pipe.drained) == before
        os.write(writes, b"x")
        await turns()
        assert len(pipe.drained) > before
    finally:
        loops.release()
        os.close(reads)
        os.close(writes)


async def test_a_change_of_the_descriptor_after_the_last_waiter_has_left_changes_nothing(
    loops: Loops, other: asyncio.AbstractEventLoop
) -> None:
    """A loop whose last waiter has left before it could change to a new descriptor is forgotten and watches nothing."""
    on(other, lambda: loops.enter(other, takes_over=False))
    with loops._lock:
        loops.watch(loops.descriptor)
        loops._forget(other)
    on(other, lambda: None)
    assert not watches(loops, other)


async def test_the_descriptor_may_be_closed_while_a_loop_watches(pipe: Pipe, loops: Loops) -> None:
    """A loop watches a duplicate, whose number stays taken until the loop closes it, so the original may be closed."""
    here = asyncio.get_running_loop()
    reads, writes = os.pipe()
    loops.watch(reads)
    loops.enter(here, takes_over=False)
    os.close(reads)
    own = loops._watches[here].descriptor
    assert own not in (None, reads)
    os.fstat(own)
    loops.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(own)
    os.close(writes)


# The reader while no loop watches


def test_without_a_loop_that_runs_the_housekeeper_reads(loops: Loops, idle: asyncio.AbstractEventLoop) -> None:
    """While no loop runs, the housekeeper reads, also if a loop is attached."""
    assert loops.unattended()
    loops.enter(idle, takes_over=False)
    assert loops.unattended()
    loops.leave(idle)


def test_an_attached_loop_reads_while_it_runs(
    loops: Loops, other: asyncio.AbstractEventLoop, idle: asyncio.AbstractEventLoop
) -> None:
    """An attached loop reads while it runs; for one that does not run, the housekeeper reads."""
    on(other, lambda: loops.enter(other, takes_over=True))
    assert not loops.unattended()
    loops.enter(idle, takes_over=True)
    assert loops.unattended()
    loops.release()
    on(other, lambda: None)


def test_closed_loops_are_forgotten(loops: Loops) -> None:
    """Closed loops, attached or waiting, are forgotten and their duplicates of the descriptor closed."""
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    loops.enter(first, takes_over=True)
    loops.enter(second, takes_over=False)
    own = [loops._watches[loop].descriptor or 0 for loop in (first, second)]
    first.close()
    second.close()
    assert loops.unattended()
    assert (loops.attached, loops._watches) == (None, {})
    for descriptor in own:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_running_loop_drains_soon(
    pipe: Pipe, loops: Loops, other: asyncio.AbstractEventLoop, idle: asyncio.AbstractEventLoop
) -> None:
    """`drain_soon` drains on a running loop, for which a waiter suffices, and returns False if no known loop runs."""
    assert not loops.drain_soon()
    loops.enter(idle, takes_over=True)
    assert not loops.drain_soon()
    on(other, lambda: loops.enter(other, takes_over=False))
    on(other, lambda: None)
    pipe.called.clear()
    assert loops.drain_soon()
    assert pipe.called.wait(PATIENCE)
    assert {loop for loop, _ in pipe.drained} == {other}
    loops.release()
    on(other, lambda: None)


async def test_a_loop_with_a_waiter_drains_rather_than_the_attached_one(
    pipe: Pipe, loops: Loops, other: asyncio.AbstractEventLoop
) -> None:
    """`drain_soon` prefers a loop with a waiter to the attached one, which may be blocked and has no waiter."""
    here = asyncio.get_running_loop()
    on(other, lambda: loops.enter(other, takes_over=True))
    on(other, lambda: loops.leave(other))
    loops.enter(here, takes_over=False)
    await turns()
    pipe.drained.clear()
    assert await asyncio.to_thread(loops.drain_soon)
    await turns()
    assert pipe.drained == [(here, b"")]
    on(other, loops.release)


def test_a_loop_that_closes_meanwhile_is_no_error(loops: Loops) -> None:
    """A loop that closes between check and call neither raises, drains nor watches, and has no usable waiters."""
    closing = cast(asyncio.AbstractEventLoop, ClosedMeanwhile())
    loops.attached, loops._watches[closing] = closing, loops_module._Watch()
    assert not loops.drain_soon()
    loops._watches.clear()
    loops._on(closing, lambda loop: None)
    waiter = Waiter(closing)
    wake([waiter])
    waiter.future.get_loop().close()


# Before a descriptor is closed


async def test_releasing_ends_every_watch(loops: Loops, other: asyncio.AbstractEventLoop) -> None:
    """Releasing ends the watch of this loop at once, and that of another loop as soon as its thread runs the call."""
    here = asyncio.get_running_loop()
    on(other, lambda: loops.enter(other, takes_over=True))
    loops.enter(here, takes_over=False)
    loops.release()
    assert not watches(loops, here)
    on(other, lambda: None)
    assert (loops._watches, loops.attached, loops.descriptor) == ({}, None, None)


async def test_another_loop_takes_the_lock_before_it_changes_its_watch(
    pipe: Pipe, other: asyncio.AbstractEventLoop
) -> None:
    """Another loop changes its watch under the connection's lock, on its own thread."""
    lock = NotingLock()
    loops = Loops(pipe.drain, pipe.ask_housekeeper, lock)
    loops.watch(pipe.reads)
    on(other, lambda: loops.enter(other, takes_over=False))
    assert lock.taken_by == []
    loops.release()
    on(other, lambda: None)
    assert lock.taken_by == [on(other, threading.current_thread)]
    assert not watches(loops, other)


def test_releasing_forgets_a_loop_that_has_closed(loops: Loops) -> None:
    """Releasing forgets a closed loop at once, because it would never run a call."""
    closed = asyncio.new_event_loop()
    loops.enter(closed, takes_over=False)
    closed.close()
    loops.release()
    assert loops._watches == {}


async def test_after_releasing_a_waiter_may_still_leave(loops: Loops) -> None:
    """A waiter may still leave after the release, when its loop watches nothing any more."""
    here = asyncio.get_running_loop()
    loops.enter(here, takes_over=False)
    loops.release()
    loops.leave(here)
    assert loops.unattended()
