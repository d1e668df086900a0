"""A simulated client process: the real connection, client and links, with simulated sockets and coroutines.

The environment of a process is replaced: its event loop, the housekeeper's thread, the clock. Everything below the
layer is the library's own.
"""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import AnyName
from simulated_network import ID_SIZE, Context, Line, Monitor, Network, XSub
from simulated_time import Asyncio, Done, Entry, Future, Loop, Task, World

from channels_zmq import connection as connection_module
from channels_zmq.client import requests as requests_module
from channels_zmq.client.client import Client
from channels_zmq.client.counters import Report
from channels_zmq.client.defaults import Defaults
from channels_zmq.client.sequences import Numbers
from channels_zmq.connection import HELD_EVERY, Connection
from channels_zmq.keys import ClientKeys, ClientKeySource
from channels_zmq.options import Options
from channels_zmq.transports import downlink as downlink_module
from channels_zmq.transports import link as link_module
from channels_zmq.transports import links as links_module
from channels_zmq.transports import push as push_module
from channels_zmq.transports import subscriber as subscriber_module
from channels_zmq.transports.links import Links
from channels_zmq.transports.roster import Forwarder


class Lock:
    """The lock of a connection; only one thread runs, so waiting for a held lock would never end."""

    def __init__(self) -> None:
        self._is_taken = False

    def acquire(self) -> None:
        assert not self._is_taken, "a step begins inside another one"
        self._is_taken = True

    def release(self) -> None:
        self._is_taken = False

    __enter__ = acquire

    def __exit__(self, *error: Any) -> None:
        self.release()


class Selector:
    """A selector that stands for the descriptors of all subscribers."""

    def __init__(self) -> None:
        self.watched: set[XSub] = set()

    def register(self, descriptor: XSub, events: int) -> None:
        self.watched.add(descriptor)

    def unregister(self, descriptor: XSub) -> None:
        self.watched.remove(descriptor)

    def fileno(self) -> int:
        return 1

    def close(self) -> None:
        assert not self.watched, "a closed subscriber is watched"


class Loops:
    """The event loop that reads."""

    attached = reading = None
    process: "Process"

    def __init__(self, drain: Callable[..., Any], drain_by_housekeeper: Callable[..., Any], lock: Lock) -> None:
        self.drain = drain
        self.descriptor: int | None = None

    def watch(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def release(self) -> None:
        self.descriptor = None

    def enter(self, loop: Loop, *, takes_over: bool) -> bool:
        return False

    def leave(self, loop: Loop) -> None:
        pass

    def forget_closed(self) -> None:
        pass

    def unattended(self) -> bool:
        return False

    def drain_soon(self) -> bool:
        self.process.drain_soon()
        return True


class Housekeeper:
    """The housekeepers of all processes."""

    def __init__(self) -> None:
        self.processes: dict[Connection, Process] = {}

    def watch(self, connection: Connection) -> None:
        self.call(connection, 0.0)

    def call(self, connection: Connection, when: float) -> None:
        process = self.processes.get(connection)
        if process is not None:
            process.tick_at(when)

    def forget(self, connection: Connection) -> None:
        process = self.processes.pop(connection, None)
        if process is not None:
            process.tick_at(None)


def replace_surroundings(
    monkeypatch: pytest.MonkeyPatch, world: World, network: Network, write: Callable[[list[Report]], None]
) -> Housekeeper:
    """Let connections run on simulated time and sockets.

    Args:
        monkeypatch: Undoes the replacements.
        world: The time.
        network: The network, which makes the sockets.
        write: Called with the log lines.
    """
    clock = SimpleNamespace(monotonic=world)
    for module in (connection_module, downlink_module, link_module, links_module, subscriber_module):
        monkeypatch.setattr(module, "time", clock)
    housekeeper = Housekeeper()
    monkeypatch.setattr(connection_module, "asyncio", Asyncio(world))
    monkeypatch.setattr(connection_module, "threading", SimpleNamespace(Lock=Lock, Event=Event))
    monkeypatch.setattr(connection_module, "Loops", Loops)
    monkeypatch.setattr(connection_module, "running_here", lambda: world.on_loop)
    monkeypatch.setattr(connection_module, "housekeeper", lambda: housekeeper)
    monkeypatch.setattr(connection_module, "reports", SimpleNamespace(write=write))
    monkeypatch.setattr(links_module, "zmq", SimpleNamespace(Context=network.context))
    monkeypatch.setattr(links_module, "selectors", SimpleNamespace(DefaultSelector=Selector, EVENT_READ=1))
    monkeypatch.setattr(push_module, "plain_send", lambda socket: socket.send)
    monkeypatch.setattr(subscriber_module, "readable", lambda socket: socket.readable())
    monkeypatch.setattr(
        subscriber_module, "secure_client", lambda socket, server, secret: setattr(socket, "key", secret)
    )
    monkeypatch.setattr(requests_module, "_numbers", iter(range(1, 2**62)))
    return housekeeper


class Keys:
    """Keys with which a process connects, and which change."""

    def __init__(self) -> None:
        self._changes = 0

    def change(self) -> None:
        self._changes += 1

    @property
    def secret(self) -> bytes:
        return b"%d" % self._changes

    def read(self) -> ClientKeys:
        return ClientKeys(b"", self.secret)

    def missing_file(self) -> str:
        return ""


class Process:
    """One client process.

    Args:
        world: Time and random choices.
        network: The network, which makes its sockets.
        housekeeper: The housekeeper of the simulation.
        number: Identifies the process.
        forwarders: The forwarders in its CONFIG.
        delays: Delays of its connections; those of the network if None.
        settings: `outbox_capacity`, `outbox_bytes`, `window` and `prefetch`.
    """

    context: Context
    inbox_channel: str

    def __init__(
        self,
        world: World,
        network: Network,
        housekeeper: Housekeeper,
        number: int,
        forwarders: Sequence[Forwarder],
        *,
        delays: tuple[float, float] | None = None,
        settings: SimpleNamespace,
    ) -> None:
        self.world, self.number, self.delays = world, number, delays
        self.is_gone = self.is_frozen = self.is_blocked = False
        self.is_closing = self.has_delivered = False
        self.closed_at = 0.0
        self.housekeeper_lag = 0.0
        """Seconds by which the housekeeper's thread is late, because other threads keep the interpreter busy."""
        self.on_thaw: list[Callable[[], None]] = []
        self.read: dict[bytes, list[tuple[float, bytes]]] = {}
        """The copies of each message that were read from a socket, each with its time and frame."""
        self.loop = Loop(world, self)
        self._drain_is_due = self._looks_for_input = self._looks = False
        self._tick: Entry | None = None
        self._tick_at = float("inf")
        self.keys = Keys()
        self.options = Options(
            connect_timeout=5.0,
            expiry=60.0,
            linger=2.0,
            max_message_size=2**20,
            outbox_capacity=settings.outbox_capacity,
            outbox_bytes=settings.outbox_bytes,
            keys=cast(ClientKeySource, self.keys),
        )
        client = Client(
            b"%016d" % number,
            b"%08d" % number,
            prefetch=settings.prefetch,
            window=settings.window,
            window_bytes=settings.outbox_bytes,
            clock=world,
        )
        client.numbers = Numbers(world.nanoseconds)
        client.receiver.own_names = AnyName()
        client.defaults = Defaults(capacity=lambda channel: 10_000)
        network.making = self
        self.client = client
        self.connection = Connection(self.options, client, partial(Links, forwarders, self.options, client))
        self.links = cast(Links, self.connection._transport)
        cast(Loops, self.connection._loops).process = self
        self.connection.users.add(self)
        housekeeper.processes[self.connection] = self
        self.connection.start()

    # The event loop

    def run(self, coroutine: Coroutine[Future, None, Any], done: Done = lambda result, error: None) -> Task:
        """Run a coroutine on the loop of this process."""
        return Task(self.loop, coroutine, done)

    @contextmanager
    def on_loop(self) -> Iterator[None]:
        """Run the block on the loop of this process."""
        self.world.on_loop = self.loop
        yield
        self.world.on_loop = None

    def when_running(self, action: Callable[..., Any], *args: Any) -> None:
        """Let the event loop call a function."""
        self.world.after(self.world.random.uniform(0, 0.0005), self._on_loop, action, args)

    def _on_loop(self, action: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self.is_gone:
            return
        if self.is_frozen or self.is_blocked:
            self.on_thaw.append(lambda: self._on_loop(action, args))
        else:
            action(*args)

    def input_arrived(self) -> None:
        """Let the event loop read when it runs, unless the descriptor of no socket is readable by then."""
        if not self._looks_for_input:
            self._looks_for_input = True
            self.when_running(self._look_for_input)
        if self.connection._loop_is_blocked:
            self.tick_at(0.0)

    def _look_for_input(self) -> None:
        self._looks_for_input = False
        if any(isinstance(one, XSub) and one.is_signalled and not one.is_closed for one in self.context.sockets):
            self._drain()

    def drain_soon(self) -> None:
        """Let the event loop read when it runs."""
        if not self._drain_is_due:
            self._drain_is_due = True
            self.when_running(self._drain)

    def _drain(self) -> None:
        self._drain_is_due = False
        if not self.connection.closed:
            self.connection._drain_on_loop()

    # The housekeeper

    def look_at_monitors(self) -> None:
        if not self._looks:
            self._looks = True
            self.world.after(self.housekeeper_lag + self.world.random.uniform(0, 0.002), self._look)

    def _look(self) -> None:
        if self.is_gone or self.connection.closed:
            return
        if self.is_frozen:
            self.on_thaw.append(self._look)
            return
        self._looks = False
        for socket, handle in self.connection.watched().monitors.items():
            monitor = cast(Monitor, socket)
            while monitor.events and not monitor.closed:
                handle(monitor.events.popleft())

    def tick_at(self, when: float | None) -> None:
        if when is not None and when >= self._tick_at:
            return
        if self._tick is not None:
            self.world.cancel(self._tick)
        self._tick, self._tick_at = None, float("inf")
        if when is not None:
            self._tick_at = when
            delay = max(0.0, when - self.world.now) + self.housekeeper_lag + 0.0001
            self._tick = self.world.after(delay, self._call_tick)

    def _call_tick(self) -> None:
        self._tick, self._tick_at = None, float("inf")
        if self.is_gone or self.connection.closed:
            return
        if self.is_frozen:
            self.on_thaw.append(self._call_tick)
            return
        if self._looks:  # events precede the tick
            self._look()
        self.tick_at(self.connection.tick(self.world.now))

    def resolves(self, forwarder: Forwarder) -> None:
        """Let a name in CONFIG resolve to one more forwarder."""
        found = self.links._bootstrap._found
        self.links._bootstrap._found = {**found, forwarder: [forwarder]}
        self.links._has_resolved = True
        self.connection.call_soon(0.0)

    # Faults and the end

    def has_read(self, message: bytes) -> None:
        self.read.setdefault(message[-ID_SIZE:], []).append((self.world.now, message))

    def freeze(self, seconds: float) -> None:
        """Freeze the whole process."""
        self.is_frozen = True
        self.world.after(seconds, self.thaw)

    def block(self, seconds: float) -> None:
        """Block only the event loop."""
        self.is_blocked = True
        self.world.after(seconds, self.thaw)

    def thaw(self) -> None:
        self.is_frozen = self.is_blocked = False
        thawing, self.on_thaw = self.on_thaw, []
        for action in thawing:
            action()

    def close(self, then: Callable[[], None]) -> None:
        """Close the connection, as `connections.close` does."""
        self.is_closing = True
        self.connection.begin_delivery()
        self._close_when_delivered(self.world.now + self.options.linger, then)

    def _close_when_delivered(self, until: float, then: Callable[[], None]) -> None:
        if self.is_gone:
            return
        if self.connection.undelivered and self.world.now < until:
            self.connection.call_soon(0.0)
            self.world.after(HELD_EVERY, self._close_when_delivered, until, then)
            return
        self.has_delivered = not self.connection.undelivered
        self.closed_at = self.world.now
        self.connection.stop()
        self.connection.finish()
        self.is_gone = True
        then()

    def lines(self, port: str | None = None) -> list[Line]:
        """Return the open connections of the process."""
        open_lines = (socket.line for socket in self.context.sockets if socket.line is not None)
        return [line for line in open_lines if port in (None, line.port)]

    def kill(self) -> None:
        """End the process at once."""
        self.is_gone = True
        for line in self.lines():
            line.cut(None, self.world.random.uniform(0.0005, 0.05))
        self.tick_at(None)
