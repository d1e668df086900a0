"""One run of a forwarder, in this process and as a program."""

import asyncio
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq
import zmq.asyncio
from forwarders import until
from open_sockets import Sockets
from strangers import opening

from channels_zmq_forwarder import connections, wire
from channels_zmq_forwarder import server as server_module
from channels_zmq_forwarder.__main__ import BAD_USAGE, main
from channels_zmq_forwarder.curve import new_pair
from channels_zmq_forwarder.daemon import json_lines
from channels_zmq_forwarder.exchange import Frames
from channels_zmq_forwarder.memory import BEGINS_ABOVE, Refusal
from channels_zmq_forwarder.process import ResidentMemory
from channels_zmq_forwarder.server import Server, serve
from channels_zmq_forwarder.settings import Settings
from channels_zmq_forwarder.wire import State, Status

SECRET, OTHER_SECRET = b"a" * 16, b"b" * 16
A, B = wire.claimable(SECRET), wire.claimable(OTHER_SECRET)
LOCAL = "tcp://127.0.0.1:*"

Frame = TypeVar("Frame", bound=tuple[object, ...])


def settings(**changes: Any) -> Settings:
    values = {"pull_address": [LOCAL], "pub_address": [LOCAL], "admin_address": "", "settle": 0.0, **changes}
    return Settings(**values)


@asynccontextmanager
async def running(changes: Settings) -> AsyncIterator[Server]:
    """Run a forwarder that accepts producers until the block ends."""
    stop = asyncio.Event()
    started: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(changes, stop, ready=started.set_result))
    async with asyncio.timeout(10):
        ways: list[asyncio.Future[Any]] = [task, started]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        try:
            if not started.done():
                await task
            yield started.result()
        finally:
            stop.set()
            await task


async def subscriber(
    sockets: Sockets[zmq.asyncio.Socket], address: str, secret: bytes = SECRET, peers: int = 0, forwarders: bytes = b""
) -> zmq.asyncio.Socket:
    xsub = sockets.open(zmq.XSUB, address)
    for frame in opening(secret):
        await xsub.send(frame)
    await xsub.send(wire.HELLO.encode(wire.Hello(wire.claimable(secret), wire.VERSION, 1, peers, forwarders)))
    return xsub


def listed(*, serves: bool) -> bytes:
    """Return the list of forwarders of a hello."""
    return wire.encode_forwarders([wire.KnownForwarder(b"tcp://other:1", b"tcp://other:2", serves)])


async def receive(xsub: zmq.asyncio.Socket, layout: wire.Layout[Frame]) -> Frame:
    """Return the next frame of a kind."""
    async with asyncio.timeout(10):
        while wire.sub_kind(frame := await xsub.recv()) != layout.kind:
            pass
    return layout.decode(frame)


async def test_frames_pass_in_both_directions(async_sockets: Sockets[zmq.asyncio.Socket]) -> None:
    """Frames pass through a whole forwarder in both directions."""
    async with running(settings()) as server:
        xsub = await subscriber(async_sockets, server.pub_addresses[0])
        assert wire.WELCOME.decode(await xsub.recv()).state == State.SERVING
        push = async_sockets.open(zmq.PUSH, server.pull_addresses[0])
        await push.send(wire.ECHO.encode(wire.Echo(A, 4)))
        assert wire.CONFIRM.decode(await xsub.recv()).instance == server.exchange.instance


@pytest.mark.parametrize("address", ["tcp://[::1]:*", "tcp://*:*"])
async def test_frames_pass_by_ipv6(async_sockets: Sockets[zmq.asyncio.Socket], address: str) -> None:
    """A forwarder that binds an IPv6 or wildcard address is reachable by IPv6 at the address that it reports."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    async with running(settings(pull_address=[address], pub_address=[address])) as server:
        pub, pull = (at.replace("[::]", "[::1]") for at in (server.pub_addresses[0], server.pull_addresses[0]))
        async_sockets.context.setsockopt(zmq.IPV6, 1)  # for the sockets that are opened now
        xsub = await subscriber(async_sockets, pub)
        await xsub.recv()
        push = async_sockets.open(zmq.PUSH, pull)
        await push.send(wire.ECHO.encode(wire.Echo(A, 4)))
        assert wire.CONFIRM.decode(await xsub.recv()).n == 4


async def test_a_burst_is_taken_whole(async_sockets: Sockets[zmq.asyncio.Socket]) -> None:
    """A burst is received completely: the descriptor reports it once, so turns continue by themselves, in one chain."""
    async with running(settings()) as server:
        push = async_sockets.open(zmq.PUSH, server.pull_addresses[0])
        for _ in range(5_000):
            await push.send(b"?")
        await until(lambda: server.exchange.drops["malformed"] >= 5_000)
        assert server.exchange.drops == {"malformed": 5_000}


async def test_a_turn_that_fails_is_followed_by_another(
    async_sockets: Sockets[zmq.asyncio.Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in the exchange costs one frame and is logged; the forwarder continues."""
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, about: failures.append(about["exception"]))
    async with running(settings()) as server:
        handle = server.exchange._inbound[wire.ECHO.kind]

        def fail_once(frame: bytes) -> Frames:
            server.exchange._inbound[wire.ECHO.kind] = handle
            raise ZeroDivisionError

        server.exchange._inbound[wire.ECHO.kind] = fail_once
        xsub = await subscriber(async_sockets, server.pub_addresses[0])
        await xsub.recv()
        push = async_sockets.open(zmq.PUSH, server.pull_addresses[0])
        for number in (1, 2):
            await push.send(wire.ECHO.encode(wire.Echo(A, number)))
        assert wire.CONFIRM.decode(await xsub.recv()).n == 2
    assert [type(failure) for failure in failures] == [ZeroDivisionError]


async def test_producers_are_accepted_when_the_subscribers_have_reconnected(
    async_sockets: Sockets[zmq.asyncio.Socket],
) -> None:
    """A forwarder settles until as many clients have connected as a hello reports of the last instance."""
    server = Server(settings(settle_at_most=3600.0))
    stop = asyncio.Event()
    server.exchange.peers_expected = 1  # otherwise it would accept producers at once
    async with server.beating():
        start = asyncio.create_task(server.start(stop))
        while not server.pub_addresses:
            await asyncio.sleep(0)
        one = await subscriber(async_sockets, server.pub_addresses[0], A, peers=2)
        assert wire.WELCOME.decode(await one.recv()).state == State.SETTLING
        assert not server.pull_addresses
        other = await subscriber(async_sockets, server.pub_addresses[0], OTHER_SECRET)
        while wire.WELCOME.decode(await one.recv()).state != State.SERVING:
            pass
        assert wire.WELCOME.decode(await other.recv()).state == State.SETTLING
        await start
    assert server.pull_addresses
    server.close()


async def test_input_that_arrives_while_news_are_published_is_read_at_once(
    async_sockets: Sockets[zmq.asyncio.Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Input that arrives while news are published is read at once.

    ZeroMQ takes it in while it sends, and the descriptor does not report it afterwards.
    """
    monkeypatch.setattr(server_module, "BEAT", 3600.0)
    async with running(settings()) as server:
        xsub = await subscriber(async_sockets, server.pub_addresses[0])
        await xsub.recv()
        descriptor = server.pump.descriptors()[1]
        for number in range(20):
            await xsub.send(wire.SYNC.encode(wire.Sync(A, number)))
            # Nothing else runs until the input arrives; then publishing takes it in.
            select.select([descriptor], [], [], 5)
            server._publish(server.exchange.enter(State.SERVING))
            async with asyncio.timeout(5):
                while wire.sub_kind(frame := await xsub.recv()) != wire.SYNCED.kind:
                    pass
            assert wire.SYNCED.decode(frame).n == number


async def test_producers_are_accepted_at_the_latest_after_a_while(
    async_sockets: Sockets[zmq.asyncio.Socket], unused_tcp_port: int
) -> None:
    """Producers are accepted after a maximum time, so that subscribers that do not reconnect do not stop all others."""
    address = f"tcp://127.0.0.1:{unused_tcp_port}"
    begun = time.monotonic()
    changes = settings(pub_address=[address], settle=0.5, settle_at_most=0.8)
    stop, started = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve(changes, stop, ready=lambda server: started.set()))
    await (await subscriber(async_sockets, address, peers=2**32 - 1)).recv()
    await asyncio.wait_for(started.wait(), 5)
    assert time.monotonic() - begun >= 0.8
    stop.set()
    await task


# Draining and stopping


async def test_a_forwarder_returns_what_waits_before_it_ends(
    async_sockets: Sockets[zmq.asyncio.Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forwarder returns its waiting messages before it ends, driven by frames alone and not by beats."""
    monkeypatch.setattr(server_module, "BEAT", 3600.0)
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(settings(), stop, ready=started.set_result))
    server = await started
    xsub = await subscriber(async_sockets, server.pub_addresses[0], forwarders=listed(serves=False))
    await receive(xsub, wire.WELCOME)
    push = async_sockets.open(zmq.PUSH, server.pull_addresses[0])
    for number in range(3):
        await push.send(wire.ENQUEUE.encode(wire.Enqueue(A, number + 1, 60_000, 100, b"jobs", b"%d" % number)))
        await receive(xsub, wire.CONFIRM)
    stop.set()
    assert (await receive(xsub, wire.WELCOME)).state == State.DRAINING
    for way in (push, xsub):
        await way.send(wire.DETACH.encode(wire.Detach(A, 1)))
    returned = [await receive(xsub, wire.RETURNED) for _ in range(3)]
    assert [(message.ordinal, message.payload) for message in returned] == [(1, b"0"), (2, b"1"), (3, b"2")]
    assert not task.done()
    await xsub.send(wire.TAKEN.encode(wire.Taken(A, 1, 3)))
    await asyncio.wait_for(task, 5)


async def test_a_forwarder_drains_for_a_bounded_time(
    async_sockets: Sockets[zmq.asyncio.Socket], caplog: pytest.LogCaptureFixture
) -> None:
    """A forwarder drains for a bounded time: messages for a client that does not respond are lost and logged."""
    caplog.set_level(logging.INFO)
    async with running(settings(drain_at_most=0.2)) as server:
        xsub = await subscriber(async_sockets, server.pub_addresses[0], forwarders=listed(serves=False))
        await receive(xsub, wire.WELCOME)
        push = async_sockets.open(zmq.PUSH, server.pull_addresses[0])
        await push.send(wire.ENQUEUE.encode(wire.Enqueue(A, 1, 60_000, 100, b"jobs", b"")))
        await receive(xsub, wire.CONFIRM)
        begun = time.monotonic()
    assert 0.2 <= time.monotonic() - begun < 5
    assert "draining: 1 of 1 clients take over messages, 0 more may return, 1 messages wait" in caplog.messages
    assert "stopping: returned 0 messages of normal channels, 0 of them not acknowledged; dropped 1" in caplog.messages


@pytest.mark.parametrize("drain_at_most, forwarders", [(0.0, listed(serves=False)), (3600.0, b"")])
async def test_a_forwarder_ends_at_once_if_nobody_takes_part(
    async_sockets: Sockets[zmq.asyncio.Socket], drain_at_most: float, forwarders: bytes
) -> None:
    """A forwarder ends at once if its setting forbids draining, or if no client lists forwarders and so detaches."""
    async with running(settings(drain_at_most=drain_at_most)) as server:
        xsub = await subscriber(async_sockets, server.pub_addresses[0], forwarders=forwarders)
        await receive(xsub, wire.WELCOME)
        begun = time.monotonic()
    assert time.monotonic() - begun < 5


async def test_a_forwarder_that_settles_can_be_stopped() -> None:
    """A forwarder that settles stops at once, and never accepts producers."""
    stop = asyncio.Event()
    called: list[Server] = []
    task = asyncio.create_task(serve(settings(settle=30.0, settle_at_most=30.0), stop, ready=called.append))
    asyncio.get_running_loop().call_later(0.05, stop.set)
    await asyncio.wait_for(task, 5)
    assert called == []


@pytest.mark.parametrize(
    ("address", "keys", "warning"),
    [
        ("tcp://*:*", {}, "no CURVE key is set"),
        ("tcp://*:*", {"curve_secret_key": new_pair()[1].decode()}, "no list of allowed keys is set"),
        ("tcp://*:*", {"curve_secret_key": new_pair()[1].decode(), "curve_allowed_keys": new_pair()[0].decode()}, ""),
        (LOCAL, {}, ""),
    ],
)
async def test_a_forwarder_that_everybody_can_use_says_so(
    caplog: pytest.LogCaptureFixture, address: str, keys: dict[str, str | list[str]], warning: str
) -> None:
    """A forwarder that any machine can use logs a warning, unless it has a key and a list of allowed keys."""
    async with running(settings(pull_address=[address], pub_address=[address], **keys)):
        pass
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [warning in line for line in lines] == [True] * bool(warning)


async def test_events_of_connections_are_read_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of connections are read in steps, so that a flood of them lets other work run.

    All are read, although the descriptor reports them only once.
    """
    monkeypatch.setattr(connections, "EVENTS", 1)
    async with running(settings()) as server:
        (known,) = [server.pump.connections[one] for one in server.pump.connections if one.type == zmq.XPUB]
        with ExitStack() as stack:
            for _ in range(10):
                address = ("127.0.0.1", int(server.pub_addresses[0].rpartition(":")[2]))
                stack.enter_context(socket.create_connection(address))
            await until(lambda: len(known.peers) == 10)


async def test_memory_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 70 % of the memory limit large messages are refused, above 90 % all messages."""
    server = Server(settings(memory_limit=1000))
    for resident, largest in ((950, 0), (750, 65_536), (700, 65_536), (650, None)):
        monkeypatch.setattr(server.resident, "read", partial(int, resident))
        server._watch_memory()
        assert server.exchange._largest == largest
    server.close()
    server._turn()


async def test_a_beat_reads_no_memory_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit a beat does not read the memory, since nothing could follow from it."""
    monkeypatch.setattr(server_module, "cgroup_memory_limit", lambda: 0)
    server = Server(settings())
    monkeypatch.setattr(server.resident, "read", lambda: pytest.fail("read"))
    server._watch_memory()
    server.close()


async def test_freed_memory_is_returned_before_anything_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Freed memory is returned to the system before messages are refused.

    The C library keeps it otherwise, and messages would be refused for ever.
    """
    resident = [950]
    monkeypatch.setattr(server_module, "trim_heap", lambda: resident.__setitem__(0, 100))
    server = Server(settings(memory_limit=1000))
    server.resident.read = lambda: resident[0]
    server._watch_memory()
    assert server.memory.refuses == Refusal.NOTHING
    resident[0] = 950
    server._watch_memory()  # too early for another trim
    assert server.memory.refuses == Refusal.ALL
    assert "refusing all messages" in caplog.text
    server.close()


async def test_queues_may_hold_a_share_of_the_memory_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Queues and subscribers get a share of the memory limit, and the log reports that the settings are reduced."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(ResidentMemory, "read", lambda self: 100_000)
    server = Server(settings(memory_limit=10**6, queue_bytes=10**6))
    assert server.exchange.queues.limits.queue_bytes == 400_000
    assert "may hold 400000 bytes instead of 1000000" in caplog.text
    assert "a subscriber may be behind by 250000 bytes instead of 67108864" in caplog.text
    server.close()


async def test_the_history_has_a_share_of_the_memory_limit() -> None:
    """The history holds a sixteenth of the memory limit, so that a second block replaces the first one."""
    server = Server(settings(memory_limit=16 * 10_000, history_bytes=10**6))
    server.exchange.history.record(b"x" * 9_000)
    server.exchange.history.end_block()
    assert len(server.exchange.history.since(0.0)) == 1
    server.exchange.history.record(b"x" * 9_000)
    server.exchange.history.end_block()
    assert len(server.exchange.history.since(0.0)) == 1
    server.close()


async def test_a_beat_that_fails_is_followed_by_another(caplog: pytest.LogCaptureFixture) -> None:
    """A defect in a beat is logged and does not stop the periodic work."""
    server = Server(settings())
    calls = []

    def fail_once() -> list[bytes]:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError
        return []

    server.exchange.announce = fail_once
    async with server.beating():
        while len(calls) < 2:
            await asyncio.sleep(0)
    server.close()
    assert "a periodic task failed" in caplog.text


async def test_expired_messages_are_swept(async_sockets: Sockets[zmq.asyncio.Socket]) -> None:
    """Expired messages are swept without a frame from outside."""
    async with running(settings()) as server:
        server.exchange.inbound(wire.ENQUEUE.encode(wire.Enqueue(A, 1, 0, 10, b"jobs", b"")))
        assert server.exchange.queues.depth() == 1
        await until(lambda: server.exchange.queues.depth() == 0)
        assert server.exchange.drops == {"expired": 1}


def test_a_json_line_is_one_object() -> None:
    """A JSON log line is one object, which contains the traceback if there is one."""
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        record = logging.LogRecord("name", logging.ERROR, "", 1, "it %s", ("failed",), sys.exc_info())
    line = json_lines().format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["level"], parsed["logger"], parsed["message"]) == ("ERROR", "name", "it failed")
    assert "broken" in parsed["exception"]


# The forwarder as a program


def run(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "channels_zmq_forwarder", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


LOCALLY = ("--pull-address", LOCAL, "--pub-address", LOCAL, "--admin-address", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    """SIGTERM and SIGINT drain the forwarder, which exits with 0; each log line is JSON with `--log-format json`."""
    with run(*LOCALLY, "--log-format", "json", "--settle", "0") as process:
        assert process.stderr is not None
        lines = [json.loads(process.stderr.readline()) for _ in range(2)]
        process.send_signal(number)
        _, rest = process.communicate(timeout=10)
    lines += [json.loads(line) for line in rest.splitlines()]
    assert process.returncode == 0
    assert [line["message"].partition(" on ")[0] for line in lines] == [
        "accepting subscribers",
        "accepting producers",
        "draining: 0 of 0 clients take over messages, 0 more may return, 0 messages wait",
        "stopping: returned 0 messages of normal channels, 0 of them not acknowledged; dropped 0",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(
    sockets: Sockets[zmq.Socket[bytes]], number: signal.Signals, unused_tcp_port: int
) -> None:
    """A second signal ends a draining forwarder at once, so that a user need not wait for unresponsive clients."""
    address = f"tcp://127.0.0.1:{unused_tcp_port}"
    flags = ("--pub-address", address, "--settle", "0", "--drain-at-most", "3600")
    with run(*LOCALLY, *flags) as process:
        xsub = sockets.open(zmq.XSUB, address)
        xsub.rcvtimeo = 10_000
        for frame in opening(SECRET):
            xsub.send(frame)
        xsub.send(wire.HELLO.encode(wire.Hello(A, wire.VERSION, 1, 0, listed(serves=False))))
        while wire.WELCOME.decode(xsub.recv()).state != State.SERVING:
            pass
        process.send_signal(number)
        while wire.WELCOME.decode(xsub.recv()).state != State.DRAINING:
            pass
        process.send_signal(number)
        process.communicate(timeout=10)
    assert process.returncode == 0


LIMIT = 128 * 2**20
"""The least memory limit that is advised."""


class Client:
    """A client of a forwarder that runs as a program with a memory limit."""

    def __init__(self, sockets: Sockets[zmq.Socket[bytes]], pull: str, pub: str) -> None:
        limits = ("--memory-limit", f"{LIMIT}", "--queue-bytes", "1GiB", "--pub-high-water-mark", "100000")
        flags = ("--pull-address", pull, "--pub-address", pub, "--admin-address", "", "--settle", "0")
        self.process = run(*flags, *limits)
        self._sockets, self._pub = sockets, pub
        self.xsub, self.push = sockets.open(zmq.XSUB), sockets.open(zmq.PUSH, pull)
        self.xsub.set(zmq.RCVHWM, 0)
        self.xsub.connect(pub)
        self.xsub.rcvtimeo = 30_000
        for frame in opening(SECRET):
            self.xsub.send(frame)
        self.xsub.send(wire.HELLO.encode(wire.Hello(A, wire.VERSION, 1, 0)))
        while self.receive(wire.WELCOME).state != State.SERVING:
            pass

    def stuck(self, group: str) -> "zmq.Socket[bytes]":
        """Return a subscriber of a group that buffers next to nothing until it is read."""
        sub = self._sockets.open(zmq.SUB)
        sub.set(zmq.RCVHWM, 1)
        sub.rcvtimeo = 1_000
        sub.connect(self._pub)
        sub.subscribe(wire.group_topic(group))
        return sub

    def receive(self, layout: wire.Layout[Frame]) -> Frame:
        while wire.sub_kind(frame := self.xsub.recv()) != layout.kind:
            pass
        return layout.decode(frame)

    def send(self, payload: bytes = bytes(60_000), ttl: int = 600_000) -> Status:
        """Return the status of a message for a normal channel."""
        self.push.send(wire.ENQUEUE.encode(wire.Enqueue(A, 1, ttl, 10**6, b"jobs", payload)))
        return wire.Status(self.receive(wire.CONFIRM).status)

    def read(self, count: int) -> None:
        """Read messages from the normal channel, a few at a time."""
        for number in range(1, count + 1):
            self.xsub.send(wire.READY.encode(wire.Ready(A, 1, number, number - 1, 0, 0, b"jobs")))
            self.receive(wire.JOB)
        self.xsub.send(wire.READY.encode(wire.Ready(A, 1, count, count, 0, 0, b"jobs")))


@pytest.fixture(params=["tcp"])
def client(
    request: pytest.FixtureRequest,
    sockets: Sockets[zmq.Socket[bytes]],
    unused_tcp_port_factory: Callable[[], int],
    tmp_path: Path,
) -> Iterator[Client]:
    pull, pub = (f"tcp://127.0.0.1:{unused_tcp_port_factory()}" for _ in range(2))
    client = Client(sockets, pull, pub if request.param == "tcp" else f"ipc://{tmp_path}/pub")
    yield client
    client.process.terminate()
    client.process.communicate(timeout=10)


def test_a_queue_that_nobody_reads_stops_no_other_message(client: Client) -> None:
    """A queue without readers fills its share of the memory and stops no other message.

    Once it has been read, messages are accepted again.
    """
    sent = 0
    while (status := client.send()) == Status.OK:
        sent += 1
    assert status == Status.FULL
    client.xsub.send(wire.subscription(wire.group_topic("room")))
    client.xsub.send(wire.SYNC.encode(wire.Sync(A, 1)))
    client.receive(wire.SYNCED)
    message = wire.ordered(wire.group_topic("room"), b"sender..", 1, wire.FLAG_FIRST, 60_000, bytes(100_000))
    client.push.send(message)
    while not wire.is_group(frame := client.xsub.recv()):  # a welcome that reports clients
        pass
    assert frame == message
    client.read(sent)
    for _ in range(sent):
        assert client.send() == Status.OK


def test_a_subscriber_that_is_too_far_behind_stops_no_large_message(client: Client) -> None:
    """A subscriber that is too far behind is disconnected before memory is short.

    That holds at the least advised limit, and however fast it falls behind.
    """
    client.stuck("room")
    client.xsub.send(wire.subscription(wire.group_topic("room")))
    client.xsub.send(wire.SYNC.encode(wire.Sync(A, 1)))
    client.receive(wire.SYNCED)
    for number in range(1, 600):
        flags = wire.FLAG_FIRST if number == 1 else 0
        client.push.send(wire.ordered(wire.group_topic("room"), b"sender..", number, flags, 60_000, bytes(100_000)))
        while not wire.is_group(frame := client.xsub.recv()):  # a welcome that reports clients
            pass
        assert wire.read_group(frame)[2] == number
    assert client.process.stderr is not None
    log = [client.process.stderr.readline()]
    while "too far behind" not in log[-1]:
        log.append(client.process.stderr.readline())
    assert not any("memory is short" in line for line in log)
    status = Path(f"/proc/{client.process.pid}/status").read_text().partition("VmHWM:")[2]
    assert int(status.split()[0]) * 1024 < BEGINS_ABOVE[Refusal.LARGE] * LIMIT


@pytest.mark.parametrize("client", ["ipc"], indirect=True)
def test_messages_are_accepted_again_when_a_slow_subscriber_has_read(client: Client) -> None:
    """Messages are accepted again once a slow subscriber has read its backlog.

    The memory of that backlog is freed, and the C library returns it only on request. Nothing bounds the bytes that
    wait for a subscriber by `ipc://`.
    """
    message = wire.ordered(wire.group_topic("room"), b"sender..", 1, wire.FLAG_FIRST, 60_000, bytes(60_000))
    stuck, sent = client.stuck("room"), 0
    while (status := client.send(b"", ttl=1)) == Status.OK:
        assert sent < 10_000
        for _ in range(50):
            client.push.send(message)
        sent += 50
    assert status == Status.MEMORY
    with suppress(zmq.Again):  # the last messages may have been refused
        for _ in range(sent):
            stuck.recv()
    deadline = time.monotonic() + 30
    while client.send(b"", ttl=1) == Status.MEMORY:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("flag", ["--pull-address", "--pub-address", "--admin-address", "--status-address"])
def test_an_address_in_use_ends_it_with_one_line(flag: str) -> None:
    """An address in use ends the program with one line that names the address and the reason."""
    with zmq.Context() as context, context.socket(zmq.PULL) as taken:
        taken.bind(LOCAL)
        address = taken.get_string(zmq.LAST_ENDPOINT)
        value = address if flag.startswith("--pu") else address.removeprefix("tcp://")
        with run(*LOCALLY, flag, value, "--settle", "0", "--log-level", "ERROR") as process:
            out, err = process.communicate(timeout=10)
    assert process.returncode == BAD_USAGE
    assert out == ""
    assert err.startswith("channels-zmq-forwarder: cannot bind ")
    assert value in err
    assert "ddress already in use" in err
    assert len(err.splitlines()) == 1


def test_a_setting_that_cannot_be_used_ends_it_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Invalid settings end the program with one line, before it opens a socket."""
    assert main(["--settle", "9"]) == BAD_USAGE
    assert capsys.readouterr().err == "channels-zmq-forwarder: settle-at-most (5.0) is less than settle (9.0)\n"


def test_help_names_every_flag() -> None:
    """`--help` names every flag with its whole description."""
    with run("--help", env={**os.environ, "COLUMNS": "200"}) as process:
        out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    words = " ".join(out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in words
        assert field.description
        assert " ".join(field.description.split()) in words
