"""The admin endpoints: health, metrics and the status page."""

import asyncio
import re
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import aiohttp
import psutil
import pytest
from fakes import Clock
from prometheus_client.parser import text_string_to_metric_families

from channels_zmq_forwarder import __version__, wire
from channels_zmq_forwarder import admin as admin_module
from channels_zmq_forwarder.admin import BEATS_WITHIN, DROP_CAUSES, LISTED, NAME_BYTES, Admin
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.memory import NOT_READY_AFTER, MemoryGuard
from channels_zmq_forwarder.pump import Traffic
from channels_zmq_forwarder.sockets import AddressError
from channels_zmq_forwarder.wire import State

A = b"a" * 16


class Page:
    """The admin endpoints and the exchange that they show."""

    def __init__(self, port: int, clock: Callable[[], float]) -> None:
        self.exchange, self.traffic = Exchange(b"instance"), Traffic()
        self.memory = MemoryGuard(1000, clock)
        self.admin = Admin(self.exchange, self.traffic, memory=self.memory)
        self.address = f"127.0.0.1:{port}"

    async def get(self, path: str) -> tuple[int, str, str]:
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.address}{path}") as response:
            return response.status, response.content_type, await response.text()

    async def metrics(self) -> dict[tuple[str, ...], float]:
        _, content_type, text = await self.get("/metrics")
        assert content_type == "text/plain"
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def status(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.address}/status.json") as response:
            status: dict[str, Any] = await response.json()
            return status


@pytest.fixture
async def page(unused_tcp_port: int, clock: Clock) -> AsyncIterator[Page]:
    page = Page(unused_tcp_port, clock)
    async with page.admin.serving(page.address):
        yield page


def enqueue(channel: bytes, *, n: int = 1) -> bytes:
    return wire.ENQUEUE.encode(wire.Enqueue(A, n, 60_000, 100, channel, b"payload"))


async def test_it_is_alive_before_it_is_ready(page: Page) -> None:
    """A settling forwarder is not ready, but alive, so that it is not restarted."""
    assert (await page.get("/livez"))[0] == 200
    assert (await page.get("/readyz"))[::2] == (503, "settling\n")
    page.exchange.enter(State.SERVING)
    assert (await page.get("/readyz"))[::2] == (200, "serving\n")


async def test_it_is_not_ready_while_it_drains(page: Page) -> None:
    """A draining forwarder is not ready, so that no load balancer or rollout counts on it any more."""
    page.exchange.enter(State.SERVING)
    page.exchange.drain(float("inf"))
    assert (await page.get("/readyz"))[::2] == (503, "draining\n")
    assert (await page.status())["state"] == "draining"


async def test_it_is_not_ready_once_it_has_refused_all_messages_for_a_while(page: Page, clock: Clock) -> None:
    """A forwarder that refuses all messages for a while is not ready; status and gauge show the refusal at once."""
    page.exchange.enter(State.SERVING)
    page.memory.decide(950, 0)
    assert (await page.get("/readyz"))[0] == 200
    assert (await page.status())["refuses"] == "all"
    assert (await page.metrics())["channels_zmq_forwarder_memory_refusing",] == 2
    clock.now += NOT_READY_AFTER
    assert (await page.get("/readyz"))[::2] == (503, "short of memory\n")


async def test_it_is_not_alive_once_its_periodic_tasks_have_stopped(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forwarder whose periodic tasks have stopped is not alive.

    These tasks expire messages, reread keys and watch the memory; a restart helps.
    """
    page.admin.beat(0.0)
    assert (await page.get("/livez"))[0] == 200
    now = time.monotonic()
    monkeypatch.setattr(admin_module, "time", SimpleNamespace(monotonic=lambda: now + BEATS_WITHIN + 1))
    assert (await page.get("/livez"))[::2] == (503, "periodic tasks have stopped\n")
    page.admin.beat(0.0)
    assert (await page.get("/livez"))[0] == 200


async def test_metrics_count_frames_and_bytes(page: Page) -> None:
    """The metrics count frames, bytes and drops by cause, and have gauges of clients, queues and memory."""
    page.exchange.enter(State.SERVING)
    page.traffic.frames_in, page.traffic.bytes_in, page.traffic.frames_out, page.traffic.bytes_out = 4, 30, 2, 10
    page.traffic.ended_subscribers = 3
    page.exchange.upstream(b"\1" + wire.inbox_topic(A))
    page.exchange.upstream(wire.HELLO.encode(wire.Hello(A, wire.VERSION, 1, 0)))
    page.exchange.inbound(b"?")
    page.exchange.inbound(enqueue(b"jobs"))
    page.admin.beat(0.002)
    metrics = await page.metrics()
    for name, value in {
        "info": 1.0,
        "ready": 1.0,
        "frames_received_total": 4.0,
        "received_bytes_total": 30.0,
        "ended_subscribers_total": 3.0,
        "frames_published_total": 2.0,
        "published_bytes_total": 10.0,
        "clients": 1.0,
        "subscriptions": 1.0,
        "queues": 1.0,
        "queue_depth": 1.0,
        "queue_unsettled": 0.0,
        "history_bytes": 0.0,
        "replayed_messages_total": 0.0,
        "loop_lag_seconds_count": 1.0,
    }.items():
        labels = (__version__,) if name == "info" else ()
        assert metrics[f"channels_zmq_forwarder_{name}", *labels] == value
    assert metrics["channels_zmq_forwarder_drops_total", "malformed"] == 1
    assert metrics["channels_zmq_forwarder_drops_total", "memory"] == 0
    assert metrics["channels_zmq_forwarder_queue_bytes",] > 0
    assert metrics["process_resident_memory_bytes",] > 0


async def test_the_wait_of_jobs_is_a_histogram(page: Page) -> None:
    """The time that a message spends in its queue is observed in a histogram."""
    page.exchange.queues.observe_wait(0.02)
    metrics = await page.metrics()
    assert metrics["channels_zmq_forwarder_queue_wait_seconds_bucket", "0.025"] == 1
    assert metrics["channels_zmq_forwarder_queue_wait_seconds_bucket", "0.005"] == 0


async def test_a_timer_that_ran_early_has_no_lag(page: Page) -> None:
    """A timer that ran early counts as having no lag: clocks are not exact, so a lag may be negative."""
    page.admin.beat(-0.001)
    assert (await page.metrics())["channels_zmq_forwarder_loop_lag_seconds_sum",] == 0


async def test_status_shows_the_longest_queues_first(page: Page) -> None:
    """The status lists the longest queues first, with the number of readers of each."""
    for channel, count in ((b"short", 1), (b"long", 3), ("lang-é".encode(), 2)):
        for _ in range(count):
            page.exchange.inbound(enqueue(channel))
    page.exchange.upstream(b"\1" + wire.inbox_topic(A))
    page.exchange.upstream(wire.HELLO.encode(wire.Hello(A, wire.VERSION, 1, 0)))
    page.exchange.upstream(wire.READY.encode(wire.Ready(A, 1, 2, 0, 0, 0, b"short")))
    status = await page.status()
    assert status["queues"] == [
        {"channel": "long", "waiting": 3, "unsettled": 0, "readers": 0},
        {"channel": "lang-é", "waiting": 2, "unsettled": 0, "readers": 0},
        {"channel": "short", "waiting": 0, "unsettled": 1, "readers": 1},
    ]
    assert (status["waiting"], status["queue_count"], status["clients"]) == (5, 3, 1)


async def test_status_lists_only_some_of_many(page: Page) -> None:
    """The status lists only some of many groups and queues: a page of 100,000 groups would be useless."""
    for number in range(LISTED + 5):
        page.exchange.upstream(b"\1" + wire.group_topic(f"room{number:03}"))
        page.exchange.inbound(enqueue(b"jobs%d" % number))
    status = await page.status()
    assert status["groups"] == LISTED + 5
    assert status["some_groups"] == [f"room{number:03}" for number in range(LISTED)]
    assert len(status["queues"]) == LISTED
    assert status["queue_count"] == LISTED + 5


async def test_status_shows_the_fullest_windows_of_clients(page: Page) -> None:
    """The status lists the clients with most unacknowledged messages, and how many each has sent again."""
    for number in range(LISTED + 5):
        inbox = b"%016d" % number
        page.exchange.upstream(b"\1" + wire.inbox_topic(inbox))
        page.exchange.upstream(wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, 1, 0)))
        page.exchange.inbound(wire.WINDOW.encode(wire.Window(inbox, number, 1)))
    windows = (await page.status())["windows"]
    assert len(windows) == LISTED
    assert windows[0] == {"client": f"{LISTED + 4:016}", "unacknowledged": LISTED + 4, "sent_again": 1}


async def test_status_survives_names_that_are_not_utf_8(page: Page) -> None:
    """A name that is not UTF-8 is shown with replacement characters, since a subscription may contain any bytes."""
    page.exchange.upstream(b"\1G\xff\xfe\0")
    page.exchange.inbound(enqueue(b"\xff"))
    assert (await page.status())["some_groups"] == ["\ufffd\ufffd"]


async def test_status_shows_only_the_beginning_of_a_long_name(page: Page) -> None:
    """The status cuts a long name, since a client may subscribe to megabytes, which every poll would transfer."""
    page.exchange.upstream(b"\1G" + b"g" * 2_000_000 + b"\0")
    _, _, text = await page.get("/status.json")
    assert len(text) < 5_000
    status = await page.status()
    assert status["some_groups"] == ["g" * NAME_BYTES + "…"]


async def test_names_are_served_only_at_the_status_address(unused_tcp_port_factory: Callable[[], int]) -> None:
    """Names of groups and channels are served only at the status address; health and metrics may be public."""
    page = Page(unused_tcp_port_factory(), lambda: 0.0)
    page.exchange.upstream(b"\1" + wire.group_topic("secret-room"))
    page.exchange.inbound(enqueue(b"secret-jobs"))
    public, private = page.address, f"127.0.0.1:{unused_tcp_port_factory()}"
    async with page.admin.serving(public, private):
        for path in ("/", "/status.json"):
            assert (await page.get(path))[0] == 404
        assert "secret" not in (await page.get("/metrics"))[2]
        assert (await page.get("/livez"))[0] == 200
        page.address = private
        assert "secret-room" in (await page.get("/status.json"))[2]
        for path in ("/", "/livez", "/readyz", "/metrics"):
            assert (await page.get(path))[0] in (200, 503), "the page links to it"


async def test_an_empty_status_address_serves_no_names(unused_tcp_port: int) -> None:
    """With an empty status address only health and metrics are served."""
    other = Page(unused_tcp_port, lambda: 0.0)
    async with other.admin.serving(other.address, ""):
        assert (await other.get("/status.json"))[0] == 404
        assert (await other.get("/livez"))[0] == 200


async def test_the_status_contains_version_and_uptime(page: Page) -> None:
    """The status contains version, instance, state and uptime, and every cause of drops, also at 0."""
    status = await page.status()
    assert status["version"] == __version__
    assert status["instance"] == b"instance".hex()
    assert status["state"] == "settling"
    assert 0 <= status["uptime"] < 60
    assert status["drops"] == dict.fromkeys(DROP_CAUSES, 0)


async def test_the_page_needs_nothing_from_elsewhere(page: Page) -> None:
    """The page loads nothing from elsewhere, so it works offline and behind a proxy with a strict content policy."""
    status, content_type, text = await page.get("/")
    assert (status, content_type) == (200, "text/html")
    assert "status.json" in text
    for outside in ("http://", "https://", 'src="', "@import", "innerHTML"):
        assert outside not in text


async def test_the_policy_of_the_page_names_its_script_and_style(page: Page) -> None:
    """The content security policy has the hashes of the page's script and style, and permits nothing else."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{page.address}/") as response:
        policy, text = response.headers["Content-Security-Policy"], await response.text()
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*)</{tag}>", text, re.DOTALL)
        assert f"{tag}-src 'sha256-{b64encode(sha256(content.encode()).digest()).decode()}';" in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


async def test_an_empty_address_serves_nothing() -> None:
    """An empty address disables the endpoints: the process listens at no further port."""

    def listening() -> set[object]:
        return {one.laddr for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN}

    before = listening()
    async with Admin(Exchange(b"instance"), Traffic()).serving(""):
        assert listening() == before
    async with Admin(Exchange(b"instance"), Traffic()).serving("127.0.0.1:0"):
        assert len(listening()) == len(before) + 1


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_an_address_in_use_is_named(host: str, unused_tcp_port: int) -> None:
    """An address that is in use raises AddressError with the names of the settings, also for IPv6."""
    one, other = (Admin(Exchange(b"instance"), Traffic()) for _ in range(2))
    async with one.serving(f"{host}:{unused_tcp_port}"):
        with pytest.raises(AddressError, match="--admin-address or --status-address"):
            async with other.serving(f"{host}:{unused_tcp_port}"):
                raise AssertionError("it was bound twice")


async def test_all_interfaces_of_both_families_are_served(unused_tcp_port: int) -> None:
    """A wildcard address is served over IPv4 and IPv6, since probes reach a pod by an address of either family."""
    async with Admin(Exchange(b"instance"), Traffic()).serving(f"*:{unused_tcp_port}"):
        for host in ["127.0.0.1", *(["::1"] if socket.has_ipv6 else [])]:
            _, writer = await asyncio.open_connection(host, unused_tcp_port)
            writer.close()
            await writer.wait_closed()
