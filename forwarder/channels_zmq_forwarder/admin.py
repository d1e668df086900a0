"""The admin endpoints of a forwarder: health, metrics and a status page.

`/livez`, `/readyz`, `/metrics` (Prometheus), `/status.json`, and `/`, a page that shows the latter and updates itself.
Only the last two show names of groups and channels; they may have a separate address.
"""

import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from heapq import nlargest, nsmallest
from importlib.resources import files

from aiohttp import web
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from channels_zmq_forwarder import __version__, wire
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.listener import listening
from channels_zmq_forwarder.memory import MemoryGuard
from channels_zmq_forwarder.pump import Traffic
from channels_zmq_forwarder.zap import Gate

PREFIX = "channels_zmq_forwarder"
WAIT_BUCKETS = (0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300)
LAG_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5)
DROP_CAUSES = (
    "malformed",
    "invalid_topic",
    "too_many_topics",
    "too_many_hellos",
    "foreign_inbox",
    "stray",
    "version_mismatch",
    "unroutable",
    "queue_full",
    "queue_bytes",
    "queue_names",
    "expired",
    "lost_delivery",
    "flushed",
    "memory",
    "revoked_key",
    "forwarders",
    "not_returned",
)
BEATS_WITHIN = 10.0
"""Seconds without a periodic task after which the forwarder no longer counts as alive."""
LISTED = 50
"""How many groups, queues and forwarders the status page lists."""
NAME_BYTES = 200
"""Bytes of a name that the status page shows: Channels permits 99 characters, a hostile client sends longer names."""


class Admin:
    """The admin endpoints of one forwarder.

    Args:
        exchange: The exchange to report on.
        traffic: The counters of the pump.
        gate: The gate that counts refused connections; None without CURVE.
        memory: Decides which messages are refused; None without a limit.
    """

    def __init__(
        self, exchange: Exchange, traffic: Traffic, gate: Gate | None = None, memory: MemoryGuard | None = None
    ) -> None:
        self._exchange, self._traffic = exchange, traffic
        self._memory = memory or MemoryGuard(0, time.monotonic)
        self._started = self._beat_at = time.monotonic()
        self.registry = CollectorRegistry()
        self.registry.register(_State(exchange, traffic, gate, self._memory))
        ProcessCollector(registry=self.registry)
        self._lag = Histogram(
            f"{PREFIX}_loop_lag_seconds",
            "Delay of a timer of the event loop.",
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        wait = Histogram(
            f"{PREFIX}_queue_wait_seconds",
            "Time that a message waited in a queue of a normal channel until it was handed to a reader.",
            buckets=WAIT_BUCKETS,
            registry=self.registry,
        )
        exchange.queues.observe_wait = wait.observe

    def beat(self, lag: float) -> None:
        """Note a periodic task, and how late it ran in seconds; `/livez` fails when it stops."""
        self._beat_at = time.monotonic()
        self._lag.observe(max(0.0, lag))

    @asynccontextmanager
    async def serving(self, address: str, status_address: str | None = None) -> AsyncIterator[None]:
        """Serve the endpoints while the block runs.

        Args:
            address: Of health and metrics: `HOST:PORT`; host `*` binds all interfaces, an empty address serves nothing.
            status_address: Of the status page, with health and metrics beside it; that of the others if None.

        Raises:
            AddressError: If an address cannot be bound.
        """
        health = [
            web.get("/livez", self._livez),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
        ]
        routes = {address: health}
        routes[address if status_address is None else status_address] = [
            *health,
            web.get("/status.json", self._status),
            web.get("/", self._page),
        ]
        async with AsyncExitStack() as stack:
            for bound, served in routes.items():
                if bound:
                    await stack.enter_async_context(listening(bound, served))
            yield

    async def _livez(self, request: web.Request) -> web.Response:
        if time.monotonic() > self._beat_at + BEATS_WITHIN:
            return web.Response(text="periodic tasks have stopped\n", status=503)
        return web.Response(text="alive\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        state = self._exchange.state
        is_ready = state is wire.State.SERVING and self._memory.is_ready
        reason = state.name.lower() if self._memory.is_ready else "short of memory"
        return web.Response(text=f"{reason}\n", status=200 if is_ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self.registry),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _status(self, request: web.Request) -> web.Response:
        exchange, traffic = self._exchange, self._traffic
        groups = exchange.groups()
        queues = nlargest(LISTED, exchange.queues.by_channel.items(), key=lambda item: item[1].used)
        windows = nlargest(LISTED, exchange.windows.values(), key=lambda window: window[1:])
        return web.json_response(
            {
                "version": __version__,
                "instance": exchange.instance.hex(),
                "state": exchange.state.name.lower(),
                "uptime": time.monotonic() - self._started,
                "clients": len(exchange.clients),
                "refuses": self._memory.refuses.name.lower(),
                "frames_in": traffic.frames_in,
                "bytes_in": traffic.bytes_in,
                "frames_out": traffic.frames_out,
                "bytes_out": traffic.bytes_out,
                "ended_subscribers": traffic.ended_subscribers,
                "drops": {cause: exchange.drops[cause] for cause in DROP_CAUSES},
                "forwarders": [
                    {"pull": _shown(pull), "pub": _shown(pub), "connected": connected, "up": up}
                    for (pull, pub), connected, up in exchange.directory.links()[:LISTED]
                ],
                "windows": [
                    {"client": _shown(one.inbox), "unacknowledged": one.unacknowledged, "sent_again": one.sent_again}
                    for one in windows
                ],
                "groups": len(groups),
                "some_groups": [_shown(name) for name in nsmallest(LISTED, groups)],
                "queue_count": len(exchange.queues),
                "waiting": exchange.queues.depth(),
                "oldest_wait": exchange.queues.oldest_wait(),
                "queues": [
                    {
                        "channel": _shown(name),
                        "waiting": len(queue.waiting),
                        "unsettled": queue.unsettled,
                        "readers": queue.open_windows,
                    }
                    for name, queue in queues
                ],
            }
        )

    async def _page(self, request: web.Request) -> web.Response:
        page = files("channels_zmq_forwarder").joinpath("status.html").read_text(encoding="utf-8")
        headers = {"Content-Security-Policy": _policy(page)}
        return web.Response(text=page, content_type="text/html", headers=headers)


class _State(Collector):
    """Collects metrics from exchange and pump at each scrape, so that counting costs a frame next to nothing."""

    def __init__(self, exchange: Exchange, traffic: Traffic, gate: Gate | None, memory: MemoryGuard) -> None:
        self._exchange, self._traffic, self._gate, self._memory = exchange, traffic, gate, memory

    def collect(self) -> Iterator[Metric]:
        exchange, traffic = self._exchange, self._traffic
        info = GaugeMetricFamily(f"{PREFIX}_info", "Always 1; the label is the version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        for name, text, value in (
            ("frames_received", "Frames from producers.", traffic.frames_in),
            ("received_bytes", "Bytes from producers.", traffic.bytes_in),
            ("frames_published", "Frames published; each may reach any number of subscribers.", traffic.frames_out),
            ("published_bytes", "Bytes published.", traffic.bytes_out),
            (
                "replayed_messages",
                "Messages replayed to clients that had missed them.",
                exchange.replays.messages,
            ),
            (
                "ended_subscribers",
                "Connections of subscribers that were ended; the log has the reasons.",
                traffic.ended_subscribers,
            ),
            (
                "refused_handshakes",
                "Connections refused because of their key.",
                self._gate.refused if self._gate else 0,
            ),
        ):
            yield CounterMetricFamily(f"{PREFIX}_{name}", text, value=value)
        drops = CounterMetricFamily(f"{PREFIX}_drops", "Frames that were dropped, by cause.", labels=["cause"])
        for cause in sorted({*DROP_CAUSES, *exchange.drops}):
            drops.add_metric([cause], exchange.drops[cause])
        yield drops
        for name, text, amount in (
            ("ready", "1 while producers are accepted.", float(exchange.state is wire.State.SERVING)),
            (
                "memory_refusing",
                "Whether messages are refused because memory is short: 0 no, 1 large ones, 2 all.",
                self._memory.refuses,
            ),
            ("clients", "Connected client processes.", len(exchange.clients)),
            ("subscriptions", "Topics with a subscriber: groups and processes.", len(exchange.topics)),
            ("queues", "Normal channels with messages or readers.", len(exchange.queues)),
            ("queue_depth", "Messages that wait in queues of normal channels.", exchange.queues.depth()),
            (
                "queue_unsettled",
                "Messages handed to readers that have not settled them.",
                exchange.queues.unsettled,
            ),
            (
                "queue_bytes",
                "Memory of messages in queues of normal channels, including those that readers have not settled.",
                exchange.queues.size,
            ),
            (
                "history_bytes",
                "Memory of the messages of the last seconds, kept for clients that miss them.",
                exchange.history.size,
            ),
            (
                "queue_age_seconds",
                "Time that the oldest message in a queue of a normal channel has waited.",
                exchange.queues.oldest_wait(),
            ),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=amount)


def _shown(name: bytes) -> str:
    text = name[:NAME_BYTES].decode(errors="replace")
    return f"{text}…" if len(name) > NAME_BYTES else text


def _policy(page: str) -> str:
    """Return a content security policy by which a page runs its own script, and asks only its own origin."""
    script, style = (
        b64encode(sha256(text.encode()).digest()).decode()
        for tag in ("script", "style")
        for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    )
    return (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
