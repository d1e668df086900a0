"""Code of the application that the library calls: log handlers, serializers, callbacks, finalizers.

It may block, hold locks of its own or use the layer. So it never runs under a lock of the library, and a log handler
never on an event loop.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull
from forwarders import PATIENCE, Forwarder, close_all, free_ports, until
from peers import wait_until

from channels_zmq import connection, connections, housekeeper, reports, serializers
from channels_zmq.core import DedicatedZmqChannelLayer

Make = Callable[..., Any]
Run = Callable[..., Any]

BOUNDED = PATIENCE / 4
"""Seconds after which a scenario stops waiting, so that a deadlock is a failure and not a hang."""


class Forwarding(logging.Handler):
    """A handler that sends each record to a group, as an application does that shows its log to visitors."""

    def __init__(self, layer: Any) -> None:
        super().__init__(logging.WARNING)
        self._layer = layer

    def emit(self, record: logging.LogRecord) -> None:
        async_to_sync(self._layer.group_send)("log", {"from": record.name, "n": record.levelno})


class Locking(logging.Handler):
    """A handler that sends records of the application while logging holds the handler's lock."""

    def __init__(self, layer: Any) -> None:
        super().__init__(logging.WARNING)
        self._layer = layer
        self.entered, self.goes_on = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("channels_zmq"):
            return
        self.entered.set()
        self.goes_on.wait(BOUNDED)
        async_to_sync(self._layer.group_send)("log", {})


class Blocking(logging.Handler):
    """A handler that blocks on each record until it is released."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.entered, self.goes_on = threading.Event(), threading.Event()
        self.was_let_go = True

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        self.was_let_go = self.goes_on.wait(BOUNDED)


@pytest.fixture
def add_handler() -> Iterator[Callable[..., None]]:
    """Return a function that adds a handler to a logger, and remove these handlers after the test."""
    added: list[tuple[str, logging.Handler]] = []

    def add(handler: logging.Handler, name: str = "channels_zmq") -> None:
        added.append((name, handler))
        logging.getLogger(name).addHandler(handler)

    yield add
    for name, handler in added:
        logging.getLogger(name).removeHandler(handler)


async def forward_log(layer: Any) -> None:
    """Send all later records of the library to the group `log`."""
    logging.getLogger("channels_zmq").addHandler(Forwarding(layer))


async def overflow(layer: Any) -> None:
    """Lose a message because the mailbox of a member is full."""
    member = await layer.new_channel()
    await layer.group_add("full", member)
    for _ in range(layer.capacity + 1):
        await layer.group_send("full", {})
    await until(lambda: layer.stats()["dropped"].get("mailbox_full"))


async def expire(layer: Any) -> None:
    """Lose a message because its reader does not take a second one in time."""
    member = await layer.new_channel()
    await layer.group_add("late", member)
    reading = asyncio.create_task(layer.receive(member))
    for _ in range(2):
        await layer.group_send("late", {})
    await until(lambda: layer.stats()["dropped"].get("expired"))
    reading.cancel()  # on a busy machine both have expired
    await asyncio.gather(reading, return_exceptions=True)


async def overfill(layer: Any, channel: str) -> None:
    """Send more messages to a channel than its capacity."""
    for number in range(layer.capacity + 1):
        await layer.send(channel, {"n": number})


async def overflow_beside_logging(layer: Any) -> list[bool]:
    """Lose a message while the application's log handler is about to send, and return whether both threads ended."""
    handler = Locking(layer)
    logging.getLogger().addHandler(handler)
    member = await layer.new_channel()
    await layer.group_add("full", member)

    def lose() -> None:
        for _ in range(layer.capacity + 1):
            async_to_sync(layer.group_send)("full", {})

    logs = threading.Thread(target=logging.getLogger("application").warning, args=("so much",), daemon=True)
    loses = threading.Thread(target=lose, daemon=True)
    logs.start()
    await asyncio.to_thread(handler.entered.wait)
    loses.start()
    await asyncio.to_thread(loses.join, 1.0)
    handler.goes_on.set()
    for thread in (loses, logs):
        await asyncio.to_thread(thread.join, BOUNDED)
    return [not loses.is_alive(), not logs.is_alive()]


def test_a_handler_may_send_what_is_logged_about_an_outage(forwarder: Forwarder, open_peer: Make) -> None:
    """A handler may send the log lines about an outage: both the one during it and the one after it arrive."""
    peer = open_peer(**forwarder.config)
    peer.ask("until_connected", True)
    peer.run(forward_log)
    log = peer.ask("member", "log")
    peer.ask("until_connected", True)
    forwarder.kill()
    peer.ask("until_connected", False)
    forwarder.start()
    peer.ask("until_connected", True)
    assert peer.ask("receive", log, 2) == [["channels_zmq", logging.WARNING]] * 2


@pytest.mark.parametrize("loss", [overflow, expire])
@pytest.mark.parametrize("topology", ["embedded", "dedicated"])
def test_a_handler_may_send_what_is_logged_about_a_loss(
    request: pytest.FixtureRequest, open_peer: Make, topology: str, loss: Any
) -> None:
    """A handler may send the log line about a loss through the same layer that has lost the message."""
    addresses = {"pub_socket_address": "inproc://channels"}
    if topology == "dedicated":
        addresses = request.getfixturevalue("forwarder").config
    peer = open_peer(**addresses, capacity=2, expiry=1)
    log = peer.ask("member", "log")
    peer.run(forward_log)
    got = peer.begin("receive", log, 1)
    peer.run(loss)
    assert got.result(PATIENCE) == [["channels_zmq", logging.WARNING]]


def test_a_handler_that_sends_under_its_own_lock_and_a_loss_do_not_wait_for_each_other(open_peer: Make) -> None:
    """A handler that sends under its own lock and a loss do not deadlock.

    The handler skips the library's records, but logging takes its lock for them all the same.
    """
    peer = open_peer(pub_socket_address="inproc://channels", capacity=1)
    assert peer.run(overflow_beside_logging) == [True, True]


def test_a_handler_that_blocks_stops_no_event_loop(make_layer: Make, run: Run, add_handler: Any) -> None:
    """A handler that blocks delays only the library's log thread, and messages still pass."""
    handler = Blocking()
    add_handler(handler)

    async def scenario() -> None:
        layer = make_layer(capacity=1)
        await overflow(layer)
        await asyncio.to_thread(handler.entered.wait, BOUNDED)
        channel = await layer.new_channel()
        for number in range(100):
            await layer.send(channel, {"n": number})
            assert await layer.receive(channel) == {"n": number}
        assert not handler.goes_on.is_set()
        handler.goes_on.set()

    run(scenario())
    assert handler.was_let_go


def test_a_handler_that_raises_gets_the_next_record_all_the_same(
    make_layer: Make, run: Run, add_handler: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A handler that raises gets the next record too; its error is printed, as no caller could handle it."""
    lines: list[str] = []

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            raise LookupError("no place to write to")

    add_handler(Raising(logging.WARNING))

    async def scenario() -> None:
        layer = make_layer(capacity=1)
        await overflow(layer)
        await until(lambda: len(lines) == 1)
        await layer.send("not-mine!x", {})
        await until(lambda: len(lines) == 2)

    run(scenario())
    reports.flush(PATIENCE)
    assert "unroutable" in lines[1]
    assert "no place to write to" in capfd.readouterr().err


class OwnedLock:
    """A lock that knows which thread holds it."""

    made: "list[OwnedLock]" = []  # noqa: RUF012 # shared on purpose

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.owner: int | None = None
        self.was_taken = False
        OwnedLock.made.append(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            self.owner, self.was_taken = threading.get_ident(), True
        return taken

    def release(self) -> None:
        self.owner = None
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class Foreign:
    """A record of the application's code that has run, and of that which ran under a lock of the library."""

    def __init__(self) -> None:
        self.ran: set[str] = set()
        self.under_lock: set[str] = set()

    def runs(self, what: str) -> None:
        self.ran.add(what)
        if any(lock.owner == threading.get_ident() for lock in OwnedLock.made):
            self.under_lock.add(what)

    def noting(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.runs(what)
            return function(*arguments)

        return call


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch, add_handler: Any) -> Iterator[Foreign]:
    """Provide foreign code of every sort, and make all locks of the library know their holders."""
    foreign = Foreign()
    threads = SimpleNamespace(**{name: getattr(threading, name) for name in threading.__all__})
    threads.Lock = threads.RLock = OwnedLock
    OwnedLock.made.clear()
    for module in (connection, housekeeper, reports):
        monkeypatch.setattr(module, "threading", threads)
    monkeypatch.setattr(connection, "UNUSED_FOR", 0.1)
    own, reporter = housekeeper.Housekeeper(), reports.Reporter()
    monkeypatch.setattr(connections, "_lock", OwnedLock())
    monkeypatch.setattr(housekeeper, "_housekeeper", own)
    monkeypatch.setattr(reports, "_reporter", reporter)
    assert {type(lock) for lock in (own._lock, reporter._lock)} == {OwnedLock}

    class Payload(bytes):
        def __del__(self) -> None:
            foreign.runs("finalizer")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            foreign.runs("handler")

    def dumps(message: Any) -> bytes:
        return Payload(json.dumps(message).encode())

    serializer = serializers.Serializer(foreign.noting("dumps", dumps), foreign.noting("loads", json.loads))
    monkeypatch.setitem(serializers._registry, "noting", serializer)
    add_handler(Handler(logging.DEBUG))
    yield foreign
    close_all()
    own.end()


@pytest.mark.slow
def test_no_foreign_code_runs_under_the_lock_of_a_connection(
    make_layer: Make, run: Run, foreign: Foreign, request: pytest.FixtureRequest
) -> None:
    """No foreign code runs under a lock of the library, whatever happens.

    The test causes losses of every sort, an outage of a forwarder, expiry, closing, and a layer that is dropped.
    """

    async def scenario() -> None:
        layer = make_layer(capacity=2, expiry=1, serializer="noting", on_disconnect="gone", on_reconnect="back")
        await overflow(layer)
        await expire(layer)
        known = layer._connection()
        assert isinstance(known._lock, OwnedLock)
        assert known._loops._lock is known._lock
        with known._step:
            assert known._lock.owner == threading.get_ident()
        known.announcer = foreign.noting("announcer", known.announcer)
        known.on_unused = foreign.noting("on_unused", known.on_unused)
        channel = await layer.new_channel()
        with pytest.raises(ChannelFull):
            await overfill(layer, channel)
        await layer.receive(channel)
        await layer.send("jobs", {"n": 1})
        assert await layer.receive("jobs") == {"n": 1}
        if "forwarder" in request.fixturenames:
            forwarder = request.getfixturevalue("forwarder")
            for change, connected in ((forwarder.kill, False), (forwarder.start, True)):
                await asyncio.to_thread(change)
                await until(lambda: layer.stats()["connected"] is connected)  # noqa: B023 # called at once
            await layer.group_send("full", {})
            await until(lambda: "announcer" in foreign.ran)
        await layer.flush()
        await asyncio.gather(*[layer.send("jobs", {"n": number}) for number in range(2)])

    run(scenario())
    wait_until(lambda: foreign.ran >= {"handler", "dumps", "loads", "finalizer", "on_unused"})
    assert foreign.under_lock == set()
    for lock in (connections._lock, housekeeper.housekeeper()._lock, reports._reporter._lock):
        assert isinstance(lock, OwnedLock)
        assert lock.was_taken


CALLS: dict[str, Callable[[Any, str], Coroutine[Any, Any, Any]]] = {
    "receive": lambda layer, channel: layer.receive(channel),
    "receive of a normal channel": lambda layer, channel: layer.receive("jobs"),
    "group_add": lambda layer, channel: layer.group_add("chat", channel),
    "send": lambda layer, channel: layer.send("jobs", {}),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_collector_may_end_a_coroutine_in_a_thread_that_holds_the_lock(call: str) -> None:
    """The garbage collector may end a coroutine in a thread that holds the lock, and its state is cleaned up.

    The event loop of the coroutine was closed while the coroutine waited.
    """
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    layer = DedicatedZmqChannelLayer(pull_socket_address=pull, pub_socket_address=pub)

    async def begin() -> Coroutine[Any, Any, Any]:
        coroutine = CALLS[call](layer, await layer.new_channel())
        coroutine.send(None)  # without a task, which would end with its loop in an orderly way
        return coroutine

    with asyncio.Runner() as runner:
        coroutine = runner.run(begin())
    known = layer._connection()
    client = known.client

    def collect() -> None:
        with known._lock:
            coroutine.close()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(BOUNDED)
    assert not thread.is_alive(), "a deadlock"
    wait_until(lambda: not any(box.waiters for box in client.mailboxes.boxes.values()))
    wait_until(lambda: not (client.requests or client.memberships.groups or known._loops._watches))
    close_all()
