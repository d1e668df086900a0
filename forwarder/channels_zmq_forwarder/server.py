"""One run of a forwarder: starts in order, pumps until it is stopped, drains, closes.

Start: subscribers are accepted first, and producers once the subscribers of the last instance have reconnected, so that
the messages that producers held meanwhile are received. The rule, and the losses without it:
docs/design/0003.

Stop: clients switch to other forwarders and take over the messages in queues of normal channels (`drain`). No socket is
unbound meanwhile: that would end open connections.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.admin import Admin
from channels_zmq_forwarder.connections import Connections
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.floods import Senders, ending_floods
from channels_zmq_forwarder.memory import MemoryGuard, Refusal, Trims
from channels_zmq_forwarder.newcomers import Newcomers
from channels_zmq_forwarder.process import (
    MAX_DESCRIPTORS,
    ResidentMemory,
    cgroup_memory_limit,
    raise_descriptor_limit,
    spare_descriptors,
    trim_heap,
)
from channels_zmq_forwarder.pump import Pump
from channels_zmq_forwarder.queues import Limits
from channels_zmq_forwarder.settings import Settings, curve_keys
from channels_zmq_forwarder.settling import has_settled
from channels_zmq_forwarder.sockets import Marks, is_local, number
from channels_zmq_forwarder.zap import LOG_EVERY, Gate

logger = logging.getLogger("channels_zmq_forwarder")

BEAT = 0.1
"""Seconds between two checks of memory, lag and due work."""
REFRESH_KEYS_EVERY = 1.0
LARGE = 65_536
"""Bytes of a message above which it is refused as soon as memory runs short."""
SETTLE_LOOK_EVERY = 0.02
"""Seconds between two checks whether the subscribers have reconnected."""


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    *,
    ready: Callable[["Server"], None] | None = None,
    end: asyncio.Event | None = None,
) -> None:
    """Run a forwarder until `stop` is set.

    Args:
        settings: Addresses and limits.
        stop: Ends the forwarder in order: it drains first.
        ready: Called once producers are accepted.
        end: Ends the forwarder at once, also while it drains. The forwarder sets it when it has drained.

    Raises:
        AddressError: If an address cannot be bound.
    """
    server = Server(settings, end, raise_descriptor_limit())
    try:
        served = server.admin.serving(settings.admin_address, settings.status_page_address)
        async with served, server.beating():
            await server.start(stop)
            if ready is not None and not stop.is_set():
                ready(server)
            await stop.wait()
            await server.drain()
    finally:
        server.close()


class Server:
    """The parts of a running forwarder, and the callbacks and timers that drive them.

    Args:
        settings: Addresses and limits.
        end: Ends `drain`: set when the forwarder has drained, or by the caller if it must end at once.
        descriptors: How many this process may use.
    """

    def __init__(
        self, settings: Settings, end: asyncio.Event | None = None, descriptors: int = MAX_DESCRIPTORS
    ) -> None:
        self.settings = settings
        self.memory = MemoryGuard(settings.memory_limit or cgroup_memory_limit(), time.monotonic)
        self.resident = ResidentMemory()
        resident = self.resident.read()
        queue_bytes = self.memory.queue_bytes(settings.queue_bytes, resident)
        self._report_bound("queues of normal channels may hold", queue_bytes, settings.queue_bytes)
        behind = self.memory.subscriber_bytes(settings.subscriber_bytes, resident)
        self._report_bound("a subscriber may be behind by", behind, settings.subscriber_bytes)
        self.exchange = Exchange(
            os.urandom(8),
            limits=Limits(
                queue_bytes=queue_bytes,
                queue_names=settings.queue_names,
                names_per_client=-(-settings.queue_names // 4),
                max_ttl=wire.milliseconds(settings.max_ttl),
            ),
            may_be_flushed=settings.flush,
            history_bytes=self.memory.history_bytes(settings.history_bytes),
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        marks = Marks(
            publish=settings.pub_high_water_mark,
            max_frame=settings.max_message_size + wire.MAX_OVERHEAD,
            behind=behind,
            topics=settings.topic_bytes,
        )
        keys = curve_keys(settings)
        self.gate = Gate(self._context, *keys) if keys is not None else None
        self.pump = Pump(self._context, self.exchange, marks, self.gate)
        self._newcomers = Newcomers(self.pump.connections.values(), descriptors)
        self.admin = Admin(self.exchange, self.pump.traffic, self.gate, self.memory)
        self.pub_addresses: list[str] = []
        self._pub_ports, self._pull_ports = set[int](), set[int]()
        self._subscribers, self._producers = Senders(self._pub_ports), Senders(self._pull_ports)
        self.pull_addresses: list[str] = []
        self._end = end or asyncio.Event()
        self._watched: list[tuple[int, Callable[[], None]]] = []
        self._turn_is_due = False
        self._with_events: set[Connections] = set()
        self._logged_shortage_at, self._logged_newcomers = 0.0, 0
        self._trims = Trims()
        self._closed = False

    def _report_bound(self, what: str, allowed: int, wanted: int) -> None:
        if allowed < wanted:
            line = "%s %d bytes instead of %d, because of the memory limit of %d"
            logger.info(line, what, allowed, wanted, self.memory.limit)

    async def start(self, stop: asyncio.Event) -> None:
        """Accept subscribers, wait for those of the last instance, accept producers; return early if `stop` is set."""
        self.pub_addresses = self.pump.bind_publisher(self.settings.pub_address)
        self._pub_ports |= _tcp_ports(self.pub_addresses)
        self._watch()
        logger.info("accepting subscribers on %s", ", ".join(self.pub_addresses))
        self._warn_if_open()
        if not await self._settle(stop):
            return
        self.pull_addresses = self.pump.bind_pull(self.settings.pull_address)
        self._pull_ports |= _tcp_ports(self.pull_addresses)
        self._publish(self.exchange.enter(wire.State.SERVING))
        self._input()  # both sockets: their descriptors do not report input that was there when they were bound
        logger.info("accepting producers on %s", ", ".join(self.pull_addresses))

    def _warn_if_open(self) -> None:
        remote = [one for one in (*self.settings.pull_address, *self.settings.pub_address) if not is_local(one)]
        if not remote:
            return
        if self.gate is None:
            line = "every program that can reach %s can read and send messages: no CURVE key is set"
            logger.warning(line, ", ".join(remote))
        elif self.gate.allowed is None:
            line = (
                "every program with the server's public key can read and send messages: no list of allowed keys is set"
            )
            logger.warning(line)

    async def drain(self) -> None:
        """Let the clients take over the waiting messages; return when they have, or when it takes too long."""
        if self.pull_addresses and self.settings.drain_at_most:
            logger.info(
                "draining: %d of %d clients take over messages, %d more may return, %d messages wait",
                self.exchange.participants,
                len(self.exchange.clients),
                self.exchange.count_returning(),
                self.exchange.queues.depth(),
            )
            self._publish(self.exchange.drain(time.monotonic() + self.settings.drain_at_most))
            self._input()
            self._notice_end()
            await self._end.wait()
        outcome = self.exchange.end()
        logger.log(
            logging.WARNING if outcome.untaken or outcome.left else logging.INFO,
            "stopping: returned %d messages of normal channels, %d of them not acknowledged; dropped %d",
            *outcome,
        )

    def _notice_end(self) -> None:
        if self.exchange.is_drained:
            self._end.set()

    def _watch(self) -> None:
        """Watch all descriptors, and read each once: they report changes only, and input may be there already."""
        loop = asyncio.get_running_loop()
        self._watched = [(descriptor, self._input) for descriptor in self.pump.descriptors()]
        for one in self.pump.connections.values():
            self._watched.append((number(one.monitor, zmq.FD), partial(self._read_events, one)))
        if self.gate is not None:
            self._watched.append((number(self.gate.socket, zmq.FD), self.gate.turn))
        for descriptor, callback in self._watched:
            loop.add_reader(descriptor, callback)
            callback()

    def _unwatch(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor, _ in self._watched:
            loop.remove_reader(descriptor)
        self._watched = []

    async def _settle(self, stop: asyncio.Event) -> bool:
        begun, settings = time.monotonic(), self.settings
        while not stop.is_set():
            waited = time.monotonic() - begun
            if has_settled(self.exchange, waited, settings.settle, settings.settle_at_most):
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), SETTLE_LOOK_EVERY)
        return not stop.is_set()

    def _input(self) -> None:
        # One chain of turns at a time, or each new frame would begin another.
        if not self._turn_is_due:
            self._turn()

    def _read_events(self, connections: Connections) -> None:
        if connections not in self._with_events:  # one chain of steps at a time, too
            self._step(connections)

    def _step(self, connections: Connections) -> None:
        self._with_events.discard(connections)
        if not self._closed and connections.step():
            self._with_events.add(connections)
            asyncio.get_running_loop().call_soon(self._step, connections)

    def _publish(self, frames: Sequence[bytes]) -> None:
        """Publish frames outside a turn, and begin a turn if that took in input; the only way to publish from here."""
        if frames and self.pump.publish(frames):
            self._input()

    def _turn(self) -> None:
        if self._closed:
            return
        # If the turn fails, the next one takes the rest: the descriptor does not report it again.
        self._turn_is_due = True
        try:
            self._turn_is_due = self.pump.turn()
        finally:
            if self._turn_is_due:
                asyncio.get_running_loop().call_soon(self._turn)
            if self.exchange.state is wire.State.DRAINING:
                self._notice_end()

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Watch loop lag, memory and floods, and do due work, while the block runs."""
        beat = asyncio.create_task(self._beat())
        try:
            pump = self.pump
            with ending_floods(
                self._subscribers, lambda: pump.is_behind_subscribers, lambda: pump.turns, self.resident.read
            ):
                yield
        finally:
            beat.cancel()
            with suppress(asyncio.CancelledError):
                await beat

    async def _beat(self) -> None:
        refreshed = 0.0
        while True:
            before = time.monotonic()
            await asyncio.sleep(BEAT)
            now = time.monotonic()
            self.admin.beat(now - before - BEAT)
            try:
                is_behind_producers, is_behind_subscribers = self.pump.was_behind()
                self._end_floods_of_producers(now, is_behind=is_behind_producers)
                self._end_bad_subscribers(now)
                self._trim(now, is_behind=is_behind_producers or is_behind_subscribers)
                self._log_newcomers(now)
                self._watch_memory()
                if now - refreshed >= REFRESH_KEYS_EVERY:
                    refreshed = now
                    self._refresh_keys()
                self.exchange.history.end_block()
                if self.exchange.due() <= now:
                    self._publish(self.exchange.sweep())
                self._publish(self.exchange.announce())
                self._notice_end()
            except Exception:  # a defect must not end all beats after this one
                logger.exception("a periodic task failed")

    def _refresh_keys(self) -> None:
        if self.gate is None or self.gate.allowed is None:
            return
        with spare_descriptors():
            revoked = self.gate.allowed.refresh()
        if revoked:
            ended = self.pump.end_revoked()
            if ended:
                logger.warning("ended %d connections with revoked keys", ended)

    def _log_newcomers(self, now: float) -> None:
        ended = self._newcomers.ended - self._logged_newcomers
        if ended and now >= self._logged_shortage_at + LOG_EVERY:
            self._logged_shortage_at, self._logged_newcomers = now, self._newcomers.ended
            logger.warning("descriptors are short: ended %d new connections", ended)

    def _end_bad_subscribers(self, now: float) -> None:
        for peer, reason in self.pump.end_bad_subscribers(now):
            logger.warning("ended the connection of the subscriber at %s: %s", peer, reason)

    def _end_floods_of_producers(self, now: float, *, is_behind: bool) -> None:
        ended = self._producers.look(now, is_harmful=is_behind and self.memory.is_filling, is_behind=is_behind)
        if ended:
            logger.warning("ended %d connections of producers: they sent faster than the forwarder reads", ended)

    def _trim(self, now: float, *, is_behind: bool) -> None:
        ended = self.pump.traffic.ended_subscribers + self._subscribers.ended + self._producers.ended
        if self._trims.is_due(now, ended, self.pump.subscribers.ended_topics, is_behind=is_behind):
            trim_heap()

    def _watch_memory(self) -> None:
        if not self.memory.limit:
            return
        before, resident = self.memory.refuses, self.resident.read()
        if self.memory.should_trim(resident):
            trim_heap()
            resident = self.resident.read()
        now = self.memory.decide(resident, self.exchange.queues.size + self.exchange.history.size)
        if now is before:
            return
        self.exchange.refuse_above({Refusal.NOTHING: None, Refusal.LARGE: LARGE, Refusal.ALL: 0}[now])
        in_use = f"{resident / 2**20:.0f} of {self.memory.limit / 2**20:.0f} MiB are in use"
        match now:
            case Refusal.NOTHING:
                logger.info("accepting all messages again: %s", in_use)
            case Refusal.LARGE:
                logger.warning("memory is short: refusing messages of more than %d bytes: %s", LARGE, in_use)
            case Refusal.ALL:
                logger.error("memory is short: refusing all messages: %s", in_use)

    def close(self) -> None:
        """Stop watching the sockets and close them; published frames are still delivered, for a second at most."""
        self._closed = True
        self._unwatch()
        self.pump.close()
        if self.gate is not None:
            self.gate.close()
        self._context.term()
        for opened in (self._subscribers, self._producers, self.resident):
            opened.close()


def _tcp_ports(addresses: Sequence[str]) -> set[int]:
    return {int(address.rpartition(":")[2]) for address in addresses if address.startswith("tcp:")}
