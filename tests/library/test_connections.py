"""The table of a process's connections, by address."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from channels_zmq import connections, housekeeper, reports, workers
from channels_zmq.client.defaults import Defaults

PATIENCE = 10.0
KEY = ("embedded", "inproc://x")
DEFAULTS = Defaults()


class Layer:
    """A layer, to which a connection has a weak reference."""


def announcer(change: object) -> None:
    """Do nothing with an announced change."""


class Connection:
    """A connection that records the calls of its methods and their threads."""

    inbox = b"0123456789abcdef"

    def __init__(self) -> None:
        self.closed = False
        self.done: list[str] = []
        self.users: weakref.WeakSet[Layer] = weakref.WeakSet()
        self.used_with: list[tuple[Defaults, Callable[..., Any]]] = []
        self.threads: dict[str, threading.Thread] = {}
        self.finished, self.ended = threading.Event(), threading.Event()
        self.on_unused = lambda: None
        self.is_bound = False

    def note(self, what: str) -> None:
        self.done.append(what)
        self.threads[what] = threading.current_thread()

    def start(self) -> None:
        self.note("start")

    def use(self, layer: Layer, defaults: Defaults, announcer: Callable[..., Any]) -> None:
        self.users.add(layer)
        self.used_with.append((defaults, announcer))

    def deliver_held(self) -> None:
        self.note("deliver")

    def stop(self) -> bool:
        self.note("stop")
        was_open, self.closed = not self.closed, True
        return was_open

    def finish(self) -> None:
        self.note("finish")
        self.finished.set()

    def abandon(self) -> None:
        self.note("abandon")
        self.closed = True


@pytest.fixture
def on_exit(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Return the callbacks that were registered for the end of a worker."""
    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(workers, "on_worker_exit", registered.append)
    return registered


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, on_exit: list[Callable[[], None]]) -> None:
    """Give each test a table of connections, a housekeeper and a reporter of its own."""
    for name, value in (
        ("_connections", {}),
        ("_closing", {}),
        ("_before_fork", []),
        ("_ended", set()),
        ("_lock", threading.Lock()),
    ):
        monkeypatch.setattr(connections, name, value)
    monkeypatch.setattr(housekeeper, "_housekeeper", housekeeper.Housekeeper())
    monkeypatch.setattr(reports, "_reporter", reports._reporter)


@pytest.fixture
def layer() -> Layer:
    return Layer()


@pytest.fixture
def open_one(layer: Layer) -> Callable[..., Any]:
    """Return a function that opens connections for a layer that stays alive; a stand-in may replace the connection."""

    def open_one(key: tuple[str, ...] = KEY, make: Callable[[], Any] = Connection, layer: Layer = layer) -> Any:
        return connections.connection(key, make, layer, DEFAULTS, announcer)

    return open_one


def test_an_address_has_one_connection(open_one: Callable[..., Any]) -> None:
    """A process has one connection to an address and starts it once; another address has its own connection."""
    first = open_one()
    assert open_one() is first
    assert first.done == ["start"]
    second = open_one(("other",))
    assert connections.connections() == [first, second]


def test_every_layer_is_noted_with_its_defaults_and_announcer(open_one: Callable[..., Any], layer: Layer) -> None:
    """Each layer is registered at its connection, with its defaults and announcer, so that it stays open for them."""
    other = Layer()
    known = open_one()
    open_one(layer=other)
    assert set(known.users) == {layer, other}
    assert known.used_with == [(DEFAULTS, announcer)] * 2


def test_a_closed_connection_is_replaced(open_one: Callable[..., Any]) -> None:
    """A closed connection is replaced, so that a layer which is used again opens new sockets."""
    first = open_one()
    first.closed = True
    second = open_one()
    assert second is not first
    assert connections.connections() == [second]


def test_a_connection_that_cannot_start_is_not_kept(open_one: Callable[..., Any]) -> None:
    """A connection that fails to start is not kept, so that the next use tries again."""

    class Failing(Connection):
        def start(self) -> None:
            raise ValueError("invalid address")

    with pytest.raises(ValueError, match="invalid address"):
        open_one(make=Failing)
    assert connections.connections() == []
    open_one()


def test_gevent_is_refused_before_a_connection_is_made(
    open_one: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gevent, opening a connection raises before any socket exists, because sockets would block gevent's hub."""

    def refuse() -> None:
        raise RuntimeError("gevent")

    monkeypatch.setattr(connections, "refuse_gevent", refuse)
    with pytest.raises(RuntimeError, match="gevent"):
        open_one(make=lambda: pytest.fail("made"))


def test_closing_delivers_stops_and_finishes_in_this_order(open_one: Callable[..., Any]) -> None:
    """Closing first removes the connection, so that no new caller gets it, then delivers, stops and finishes."""
    other, known = open_one(("other",)), open_one()
    connections.close(known)
    assert known.done == ["start", "deliver", "stop", "finish"]
    assert connections.connections() == [other]


def test_an_inbox_has_ended_only_once_its_connection_is_closed(open_one: Callable[..., Any]) -> None:
    """While its connection is open, an inbox does not count as ended; once it is closed, the inbox does."""
    known = open_one()
    assert not connections.has_ended(known.inbox)
    connections.close(known)
    assert connections.has_ended(known.inbox)


@pytest.mark.parametrize("closes_first", ["this thread", "another thread"])
async def test_closing_twice_is_closing_once(open_one: Callable[..., Any], closes_first: str) -> None:
    """A second close does nothing, also if it begins before the first has ended."""
    known = open_one()
    if closes_first == "this thread":
        connections.close(known)
    else:
        known.deliver_held = known.stop
    connections.close(known)
    await connections.close_from_loop(known)
    assert known.done.count("finish") == (closes_first == "this thread")


async def test_closing_from_a_loop_does_not_hold_it_up(open_one: Callable[..., Any]) -> None:
    """Closing from a loop runs on another thread, so that it does not block the loop."""
    known = open_one()
    await connections.close_from_loop(known)
    assert known.done == ["start", "deliver", "stop", "finish"]
    assert threading.current_thread() not in [known.threads[what] for what in ("deliver", "stop", "finish")]
    assert connections.connections() == []


async def test_closing_goes_on_if_it_is_cancelled(open_one: Callable[..., Any]) -> None:
    """Closing continues if its caller is cancelled, as by a timeout: no other code could close the connection."""
    known, goes_on = open_one(), threading.Event()
    known.deliver_held = lambda: goes_on.wait(PATIENCE)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connections.close_from_loop(known), 0.01)
    goes_on.set()
    assert await asyncio.to_thread(known.finished.wait, PATIENCE)


async def test_a_connection_is_closed_also_if_no_thread_can_start(
    open_one: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no thread can start, the connection is closed on the loop's thread, for the linger time at most."""
    known = open_one()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    await connections.close_from_loop(known)
    assert known.done == ["start", "deliver", "stop", "finish"]
    assert known.ended.is_set()


def test_a_connection_is_closed_also_if_held_messages_cannot_be_sent(open_one: Callable[..., Any]) -> None:
    """A connection is stopped and finished even if it cannot deliver held messages; closing then raises that error."""
    known = open_one()
    known.deliver_held = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        connections.close(known)
    assert known.done == ["start", "stop", "finish"]


@pytest.mark.parametrize("is_bound", [True, False])
def test_a_successor_waits_for_the_address(open_one: Callable[..., Any], is_bound: bool) -> None:
    """A new connection to a bound address waits until the former one has released it; any other opens at once."""
    known, finishes, goes_on = open_one(), threading.Event(), threading.Event()
    known.is_bound = is_bound

    def finish() -> None:
        finishes.set()
        goes_on.wait(PATIENCE)
        known.note("finish")

    known.finish = finish
    closing = threading.Thread(target=connections.close, args=(known,))
    closing.start()
    assert finishes.wait(PATIENCE)
    opened: list[list[str]] = []
    opening = threading.Thread(target=lambda: opened.append([*open_one().done, *known.done]))
    opening.start()
    opening.join(0.05 if is_bound else PATIENCE)
    assert bool(opened) == (not is_bound)
    goes_on.set()
    for thread in (closing, opening):
        thread.join(PATIENCE)
    assert opened == [["start", "start", "deliver", "stop", *(["finish"] if is_bound else [])]]


def test_a_connection_without_layers_is_closed_on_another_thread(open_one: Callable[..., Any]) -> None:
    """A connection without layers is closed on another thread, as the housekeeper, which notices it, may not block."""
    known = open_one(layer=Layer())
    known.on_unused()
    assert known.finished.wait(PATIENCE)
    assert known.threads["finish"] is not threading.current_thread()
    assert connections.connections() == []


def test_a_connection_that_a_layer_has_begun_to_use_is_not_closed(open_one: Callable[..., Any]) -> None:
    """A connection that a layer began to use after the housekeeper had found it unused stays open."""
    known = open_one()
    known.on_unused()
    for thread in threading.enumerate():
        if thread.name == "channels-zmq closing":
            thread.join(PATIENCE)
    assert connections.connections() == [known]
    assert known.done == ["start", "deliver"]


def test_at_exit_everything_is_closed_and_the_housekeeper_ends(
    open_one: Callable[..., Any], on_exit: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a process or worker closes all connections, then ends the housekeeper, and writes log lines last."""
    order: list[object] = []

    class Ending:
        def end(self) -> None:
            order.append([known.done[-1] for known in both])

    monkeypatch.setattr(housekeeper, "_housekeeper", Ending())
    monkeypatch.setattr(reports, "flush", lambda: order.append("flushed"))
    both = [open_one((name,)) for name in ("one", "two")]
    assert set(on_exit) == {connections._at_exit}
    connections._at_exit()
    assert order == [["finish", "finish"], "flushed"]
    assert connections.connections() == []


def test_a_forked_child_begins_without_connections(open_one: Callable[..., Any]) -> None:
    """A forked child abandons the parent's connections, keeps them from the garbage collector, and has fresh locks."""
    known, ended = open_one(), open_one(("other",))
    connections.close(ended)
    table, former, reporter = connections._connections, housekeeper.housekeeper(), reports._reporter
    connections._lock.acquire()  # another thread of the parent may have held it
    connections._in_child()
    assert known.done == ["start", "abandon"]
    assert connections.connections() == []
    assert not connections.has_ended(ended.inbox)
    assert connections._before_fork == [table, {}, former]
    assert housekeeper.housekeeper() is not former
    assert reports._reporter is not reporter
    assert open_one() is not known
