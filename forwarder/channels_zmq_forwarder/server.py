"""One run of a forwarder: start in order, pump until told to stop, close.

Start: the consumers' side opens first, and the producers' side once the consumers are back, so that what producers held
while no forwarder was there meets its subscribers. The rule and what was lost without it: docs/design/0003.
"""

import asyncio
import json
import logging
import os
import resource
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.admin import Admin
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.pump import Pump
from channels_zmq_forwarder.queues import Limits
from channels_zmq_forwarder.settings import Settings, curve_keys
from channels_zmq_forwarder.sockets import Marks, number
from channels_zmq_forwarder.zap import Gate

logger = logging.getLogger("channels_zmq_forwarder")

BEAT = 0.1
"""Seconds between two looks at memory, lag and the start rule."""
SWEEP = 1.0
LARGE = 65_536
"""Bytes of a message that is refused first when memory runs short."""


async def serve(settings: Settings, stop: asyncio.Event, *, ready: Callable[["Server"], None] | None = None) -> None:
    """Run a forwarder until `stop` is set.

    Args:
        settings: Addresses and limits.
        stop: Ends the forwarder in order.
        ready: Called once producers are let in.

    Raises:
        AddressError: An address cannot be bound.
    """
    server = Server(settings)
    try:
        async with server.admin.serving(settings.admin_address), server.beating():
            await server.start(stop)
            if ready is not None and not stop.is_set():
                ready(server)
            await stop.wait()
            logger.info("stopping")
    finally:
        server.close()


class Server:
    """The parts of a running forwarder and the clockwork that drives them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.exchange = Exchange(
            os.urandom(8), limits=Limits(queue_bytes=settings.queue_bytes, queue_names=settings.queue_names)
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        marks = Marks(
            pull=settings.pull_high_water_mark,
            publish=settings.pub_high_water_mark,
            max_frame=settings.max_message_size + wire.MAX_OVERHEAD,
        )
        keys = curve_keys(settings)
        self.gate = Gate(self._context, *keys) if keys is not None else None
        self.pump = Pump(self._context, self.exchange, marks, self.gate)
        self.admin = Admin(self.exchange, self.pump.traffic, self.gate)
        self.pub_addresses: list[str] = []
        self.pull_addresses: list[str] = []
        self._memory_limit = settings.memory_limit or cgroup_memory_limit()
        self._watched: list[tuple[int, Callable[[], None]]] = []
        self._expected: set[bytes] = set()
        self._held_until = 0.0
        self._turn_is_due = False
        self._closed = False

    async def start(self, stop: asyncio.Event) -> None:
        """Open for consumers, wait for those of the last instance, open for producers; unless `stop` comes first."""
        self.pub_addresses = self.pump.bind_publisher(self.settings.pub_address)
        self._watch()
        logger.info("consumers are welcome at %s", ", ".join(self.pub_addresses))
        if not await self._settle(stop):
            return
        self.pull_addresses = self.pump.bind_pull(self.settings.pull_address)
        self._publish(self.exchange.enter(wire.State.SERVING))
        self._input()  # both sockets: what was there when they were bound is not reported by their descriptors
        logger.info("producers are welcome at %s", ", ".join(self.pull_addresses))

    def _watch(self) -> None:
        """Let the loop tell of everything that can be read; once read, for a descriptor tells of changes only."""
        loop = asyncio.get_running_loop()
        self._watched = [(descriptor, self._input) for descriptor in self.pump.descriptors()]
        if self.gate is not None:
            self._watched += [(number(socket, zmq.FD), self.gate.turn) for socket in self.gate.sockets]
        for descriptor, callback in self._watched:
            loop.add_reader(descriptor, callback)
            callback()

    def _unwatch(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor, _ in self._watched:
            loop.remove_reader(descriptor)
        self._watched = []

    async def _settle(self, stop: asyncio.Event) -> bool:
        begun = time.monotonic()
        while (waited := time.monotonic() - begun) < self.settings.settle_at_most:
            back = len(self.exchange.clients) >= self.exchange.peers_expected
            if waited >= self.settings.settle and back:
                break
            pause = self.settings.settle - waited if waited < self.settings.settle else BEAT
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(BEAT, pause))
                break
        return not stop.is_set()

    def _input(self) -> None:
        if not self._turn_is_due:  # one chain of turns at a time, or each new frame would begin another
            self._turn()

    def _publish(self, frames: Sequence[bytes]) -> None:
        """Publish frames outside a turn, and begin one if that took input in."""
        if frames and self.pump.publish(frames):
            self._input()

    def _turn(self) -> None:
        if self._closed:
            return
        self._turn_is_due = True  # if the turn fails, the next one takes what is left: the descriptor tells only once
        try:
            self._turn_is_due = self.pump.turn()
        finally:
            if self._turn_is_due:
                asyncio.get_running_loop().call_soon(self._turn)

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Watch loop lag and memory, and sweep what expired, while the block runs."""
        beat = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beat.cancel()
            with suppress(asyncio.CancelledError):
                await beat

    async def _beat(self) -> None:
        swept = 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            self.admin.loop_lag(now - before - BEAT)
            self._watch_memory()
            self._let_producers_in()
            if now - swept >= SWEEP:
                swept = now
                self._look_at_keys()
            if self.exchange.due() <= now:
                self._publish(self.exchange.sweep())
            self._publish(self.exchange.news())

    def _look_at_keys(self) -> None:
        if self.gate is None or self.gate.allowed is None:
            return
        self.gate.turn()
        revoked = self.gate.allowed.refresh()
        if not revoked:
            return
        self._unwatch()
        self._expected = self.pump.revoke(revoked)
        if self.pump.held:
            logger.warning("a revoked key was in use: %d other consumers come back in a moment", len(self._expected))
            self.exchange.enter(wire.State.SETTLING)
            self._held_until = time.monotonic() + self.settings.settle_at_most
        self._watch()

    def _let_producers_in(self) -> None:
        """Read producers again once the consumers are back that were disconnected for a revoked key."""
        back = self._expected <= self.exchange.clients.keys()
        if self.pump.held and (back or time.monotonic() > self._held_until):
            self.pump.held = False
            self._publish(self.exchange.enter(wire.State.SERVING))
            self._input()

    def _watch_memory(self) -> None:
        if not self._memory_limit:
            return
        share = resident_memory() / self._memory_limit
        self.exchange.refuse_above(0 if share > 0.9 else LARGE if share > 0.7 else None)

    def close(self) -> None:
        """Stop watching the sockets and close them; what was published is still delivered, for a second at most."""
        self._closed = True
        self._unwatch()
        self.pump.close()
        if self.gate is not None:
            self.gate.close()
        self._context.term()


def resident_memory() -> int:
    """Return the bytes of memory that this process occupies now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def cgroup_memory_limit() -> int:
    """Return the memory limit of the container in bytes, 0 if there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):
            continue
        if limit < 2**60:
            return limit
    return 0


class JsonLines(logging.Formatter):
    """One JSON object a log line: time, level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
