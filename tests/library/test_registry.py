"""The connections of a process, by address."""

import asyncio
import threading

import pytest

from channels_zmq import keeper as keeping
from channels_zmq import registry
from channels_zmq.embedded import EmbeddedConnection

PATIENCE = 10.0
KEY = ("embedded", "inproc://x")


class Connection:
    """Remembers what is done to it."""

    inbox = b"0123456789abcdef"

    def __init__(self):
        self.closed = False
        self.done = []
        self.finished = threading.Event()
        self.released = [threading.Event()]
        self.released[0].set()

    def start(self):
        self.done.append("start")

    def deliver_held(self):
        self.done.append("deliver")

    def stop(self):
        self.done.append("stop")
        self.closed = True
        return self.released

    def finish(self):
        self.done.append("finish")
        self.finished.set()


class Embedded(Connection, EmbeddedConnection):
    """An embedded one, which holds a lock file."""

    def let_guard_go(self):
        self.done.append("guard")


@pytest.fixture(autouse=True)
def _empty(monkeypatch):
    """A registry of this test alone."""
    monkeypatch.setattr(registry, "_connections", {})
    monkeypatch.setattr(registry, "_before_fork", [])
    monkeypatch.setattr(registry, "_ended", set())
    monkeypatch.setattr(registry, "_lock", threading.Lock())
    monkeypatch.setattr(keeping, "_keeper", keeping.keeper())


def test_an_address_has_one_connection():
    """Which is started once; another address has another."""
    first = registry.connection(KEY, Connection)
    assert registry.connection(KEY, Connection) is first
    assert first.done == ["start"]
    second = registry.connection(("other",), Connection)
    assert registry.connections() == [first, second]


def test_a_closed_connection_is_replaced():
    """A layer that is used again opens its sockets again."""
    first = registry.connection(KEY, Connection)
    first.closed = True
    second = registry.connection(KEY, Connection)
    assert second is not first
    assert registry.connections() == [second]


def test_a_connection_that_cannot_start_is_not_kept():
    """The next use tries again."""

    class Failing(Connection):
        def start(self):
            raise ValueError("no address")

    with pytest.raises(ValueError, match="no address"):
        registry.connection(KEY, Failing)
    assert registry.connections() == []
    registry.connection(KEY, Connection)


def test_closing_delivers_stops_and_finishes_in_this_order():
    """And forgets the connection before, so that nobody gets it any more."""
    other = registry.connection(("other",), Connection)
    known = registry.connection(KEY, Connection)
    registry.close(known)
    assert known.done == ["start", "deliver", "stop", "finish"]
    assert registry.connections() == [other]


def test_closing_twice_is_closing_once():
    """The second time nothing is left to do."""
    known = registry.connection(KEY, Connection)
    registry.close(known)
    registry.close(known)
    assert known.done.count("finish") == 1


async def test_closing_from_a_loop_does_not_hold_it_up():
    """What blocks is done on other threads; what belongs to the loop is done here."""
    threads = {}

    class Noting(Connection):
        def deliver_held(self):
            threads["deliver"] = threading.current_thread()

        def stop(self):
            threads["stop"] = threading.current_thread()
            return super().stop()

        def finish(self):
            threads["finish"] = threading.current_thread()

    known = registry.connection(KEY, Noting)
    await registry.close_from_loop(known)
    assert registry.connections() == []
    here = threading.current_thread()
    assert {name: thread is here for name, thread in threads.items()} == {
        "deliver": False,
        "stop": True,
        "finish": False,
    }


async def test_the_sockets_are_closed_once_every_loop_has_let_go():
    """Not while one still watches a descriptor."""
    known = registry.connection(KEY, Connection)
    known.released[0].clear()
    closing = asyncio.create_task(registry.close_from_loop(known))
    while "stop" not in known.done:
        await asyncio.sleep(0)
    assert "finish" not in known.done
    known.released[0].set()
    await closing
    assert known.done[-1] == "finish"


def test_a_connection_that_nobody_uses_is_closed_on_another_thread():
    """The keeper, which notices it, may not block."""
    known = registry.connection(KEY, Connection)
    known.on_unused()
    assert known.finished.wait(PATIENCE)
    assert registry.connections() == []


def test_at_exit_everything_is_closed_and_the_keeper_ends(monkeypatch):
    """What was sent is delivered first."""
    ended = []

    class Keeper:
        def end(self):
            ended.append([known.done[-1] for known in both])

    monkeypatch.setattr(keeping, "_keeper", Keeper())
    both = [registry.connection((name,), Connection) for name in ("one", "two")]
    registry._at_exit()
    assert ended == [["finish", "finish"]]
    assert registry.connections() == []


def test_a_forked_child_begins_without_connections():
    """The parent's are closed for it, but not touched: their sockets are the parent's. Lock files are let go."""
    plain, embedded = registry.connection(KEY, Connection), registry.connection(("other",), Embedded)
    former, keeper = registry._connections, keeping.keeper()
    registry._lock.acquire()  # another thread of the parent may have held it
    registry._in_child()
    assert (plain.closed, plain.done) == (True, ["start"])
    assert (embedded.closed, embedded.done) == (True, ["start", "guard"])
    assert registry.connections() == []
    assert registry._before_fork == [former, keeper]
    assert keeping.keeper() is not keeper
    assert registry.connection(KEY, Connection) is not plain
