"""Which event loops watch a descriptor, and how readers on them are woken: real loops, a real pipe."""

import asyncio
import os
import threading

import pytest

from channels_zmq.loops import Loops, Waiter, running_here, wake

PATIENCE = 10.0


class Pipe:
    """A descriptor to watch; `drain` empties it and remembers on which loops it was called."""

    def __init__(self):
        self.reads, self.writes = os.pipe()
        os.set_blocking(self.reads, False)
        self.drained = []
        self.called = threading.Event()

    def drain(self):
        try:
            data = os.read(self.reads, 99)
        except BlockingIOError:
            data = b""
        self.drained.append((running_here(), data))
        self.called.set()

    def write(self):
        self.called.clear()
        os.write(self.writes, b"x")

    def close(self):
        os.close(self.reads)
        os.close(self.writes)


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def loops(pipe):
    loops = Loops(pipe.drain, threading.RLock())
    loops.watch(pipe.reads)
    return loops


@pytest.fixture
def other():
    """A loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()


@pytest.fixture
def idle():
    """A loop that does not run."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def on(loop, action):
    """Do something on a loop that runs in another thread; return its result."""

    async def act():
        return action()

    return asyncio.run_coroutine_threadsafe(act(), loop).result(PATIENCE)


async def turns():
    """Let this loop look at its descriptors more than once."""
    for _ in range(3):
        await asyncio.sleep(0)


class ClosedMeanwhile:
    """A loop that is closed between the question and the call."""

    def is_closed(self):
        return False

    def is_running(self):
        return True

    def create_future(self):
        return None

    def call_soon_threadsafe(self, *arguments):
        raise RuntimeError("Event loop is closed")


# Waiters


async def test_readers_of_the_running_loop_are_woken_at_once():
    """Those who have given up are passed over."""
    loop = asyncio.get_running_loop()
    one, gone = Waiter(loop), Waiter(loop)
    gone.future.cancel()
    wake([gone, one])
    assert one.future.done()
    assert await one.future is None
    assert gone.future.cancelled()


async def test_a_waiter_is_woken_on_its_own_loop():
    """With the value; then nobody waits any more, and a second call changes nothing."""
    waiter = Waiter(asyncio.get_running_loop())
    assert waiter.usable
    for value in (1, 2):
        waiter.wake(value, here=running_here())
    assert await waiter.future == 1
    assert not waiter.usable


async def test_a_waiter_is_woken_from_another_thread():
    """Which has a loop of its own, or none."""
    waiter = Waiter(asyncio.get_running_loop())
    await asyncio.to_thread(wake, [waiter])
    assert await waiter.future is None


async def test_an_error_ends_the_wait():
    """Whoever waits for an answer is told why there is none."""
    waiter = Waiter(asyncio.get_running_loop())
    waiter.wake(ValueError("why"), here=running_here())
    with pytest.raises(ValueError, match="why"):
        await waiter.future


async def test_a_cancelled_waiter_is_not_usable():
    """It takes nobody's turn."""
    waiter = Waiter(asyncio.get_running_loop())
    waiter.future.cancel()
    assert not waiter.usable


def test_a_waiter_whose_loop_has_closed_is_passed_over():
    """It is not usable, and waking it is no error."""
    loop = asyncio.new_event_loop()
    waiter = Waiter(loop)
    loop.close()
    assert not waiter.usable
    wake([waiter])


def test_no_loop_runs_here():
    """In a thread without one."""
    assert running_here() is None


# Watching


async def test_a_loop_that_begins_to_watch_reads_what_is_there(pipe, loops):
    """The descriptor told of it before."""
    pipe.write()
    loops.enter(asyncio.get_running_loop(), attach=False)
    await turns()
    assert b"x" in [data for _, data in pipe.drained]
    loops.leave(asyncio.get_running_loop())


async def test_a_loop_with_a_waiter_watches(pipe, loops):
    """Until its last waiter goes."""
    here = asyncio.get_running_loop()
    loops.enter(here, attach=False)
    loops.enter(here, attach=False)
    loops.leave(here)
    await turns()
    before = len(pipe.drained)
    pipe.write()
    await turns()
    assert pipe.drained[before:] == [(here, b"x")]
    loops.leave(here)
    pipe.write()
    await turns()
    assert len(pipe.drained) == before + 1


async def test_the_attached_loop_watches_on(pipe, loops):
    """Without a waiter: the consumer whose handler runs comes back."""
    here = asyncio.get_running_loop()
    loops.enter(here, attach=True)
    loops.leave(here)
    await turns()
    before = len(pipe.drained)
    pipe.write()
    await turns()
    assert pipe.drained[before:] == [(here, b"x")]
    loops.release()


async def test_attaching_takes_the_watch_from_the_former_loop(pipe, loops, other):
    """If nobody waits there."""
    on(other, lambda: loops.enter(other, attach=True))
    on(other, lambda: loops.leave(other))
    loops.enter(asyncio.get_running_loop(), attach=True)
    on(other, lambda: None)
    assert not on(other, lambda: other.remove_reader(pipe.reads))
    loops.release()


async def test_a_former_loop_with_a_waiter_watches_on(pipe, loops, other):
    """Another loop that would do it in its place can stop at any moment."""
    on(other, lambda: loops.enter(other, attach=True))
    loops.enter(asyncio.get_running_loop(), attach=True)
    on(other, lambda: None)
    assert on(other, lambda: other.remove_reader(pipe.reads))
    loops.release()


async def test_the_watch_of_a_former_loop_that_does_not_run_ends_at_once(pipe, loops, idle):
    """As after each call of `async_to_sync`."""
    loops.enter(idle, attach=True)
    loops.leave(idle)
    loops.enter(asyncio.get_running_loop(), attach=True)
    assert not idle.remove_reader(pipe.reads)
    loops.release()


async def test_a_former_loop_that_has_closed_is_forgotten(loops):
    """It watches nothing any more."""
    former = asyncio.new_event_loop()
    loops.enter(former, attach=True)
    former.close()
    loops.enter(asyncio.get_running_loop(), attach=True)
    loops.leave(former)
    assert not loops.unattended()
    loops.release()


def test_leaving_a_loop_that_never_entered_is_no_error(loops, idle):
    """It was forgotten meanwhile."""
    loops.leave(idle)
    assert loops.unattended()


async def test_without_a_descriptor_nothing_is_watched(pipe):
    """An embedded layer on an address of its own process has none; waiters count all the same."""
    here = asyncio.get_running_loop()
    loops = Loops(pipe.drain, threading.RLock())
    loops.enter(here, attach=False)
    loops.leave(here)
    loops.watch(None)
    await turns()
    assert pipe.drained == []
    assert loops.release() == []


async def test_waiting_loops_go_over_to_a_new_descriptor(pipe):
    """And read what is there already; one that has closed does not."""
    here = asyncio.get_running_loop()
    closed = asyncio.new_event_loop()
    loops = Loops(pipe.drain, threading.RLock())
    for loop in (here, closed):
        loops.enter(loop, attach=False)
    closed.close()
    pipe.write()
    loops.watch(pipe.reads)
    await turns()
    assert b"x" in [data for _, data in pipe.drained]
    assert here.remove_reader(pipe.reads)


# Who reads otherwise


def test_nobody_attends_before_a_loop_is_attached(loops, idle):
    """A loop that only waits for an answer can end at any moment."""
    assert loops.unattended()
    loops.enter(idle, attach=False)
    assert loops.unattended()
    loops.leave(idle)


def test_a_loop_attends_while_it_runs(loops, other, idle):
    """One that does not, or is closed, does not."""
    on(other, lambda: loops.enter(other, attach=True))
    assert not loops.unattended()
    loops.enter(idle, attach=True)
    assert loops.unattended()
    loops.release()


def test_closed_loops_are_forgotten(loops):
    """Attached or waiting."""
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    loops.enter(first, attach=True)
    loops.enter(second, attach=False)
    first.close()
    second.close()
    assert loops.unattended()
    assert loops.attached is None
    assert loops.release() == []


def test_a_running_loop_drains_soon(pipe, loops, other, idle):
    """The attached one first; one that only waits will do; one that does not run is passed over."""
    assert not loops.drain_soon()
    loops.enter(idle, attach=True)
    assert not loops.drain_soon()
    on(other, lambda: loops.enter(other, attach=False))
    on(other, lambda: None)
    pipe.called.clear()
    assert loops.drain_soon()
    assert pipe.called.wait(PATIENCE)
    assert {loop for loop, _ in pipe.drained} == {other}
    loops.release()


def test_a_loop_that_closes_meanwhile_is_no_error(loops):
    """Nobody drains there, nobody waits there, and nothing is watched there."""
    closing = ClosedMeanwhile()
    loops.attached = closing
    assert not loops.drain_soon()
    loops._on(closing, lambda: None)
    Waiter(closing).wake(here=None)


# Before a descriptor is closed


async def test_releasing_ends_every_watch(pipe, loops, other):
    """Here at once, on other loops when they have come to it, which the events tell."""
    here = asyncio.get_running_loop()
    on(other, lambda: loops.enter(other, attach=True))
    loops.enter(here, attach=False)
    released = loops.release()
    assert [event.wait(PATIENCE) for event in released] == [True, True]
    assert not here.remove_reader(pipe.reads)
    assert not on(other, lambda: other.remove_reader(pipe.reads))
    assert loops.release() == []


def test_releasing_passes_over_a_loop_that_has_closed(loops):
    """There is nothing to wait for."""
    closed = asyncio.new_event_loop()
    loops.enter(closed, attach=False)
    closed.close()
    assert loops.release() == []


async def test_after_releasing_a_waiter_may_still_leave(loops):
    """Its loop watches nothing any more."""
    here = asyncio.get_running_loop()
    loops.enter(here, attach=False)
    loops.release()
    loops.leave(here)
    assert loops.unattended()
