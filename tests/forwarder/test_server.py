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
from contextlib import asynccontextmanager

import pytest
import zmq

from channels_zmq_forwarder import server as server_module
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.__main__ import BAD_USAGE, main
from channels_zmq_forwarder.server import JsonLines, Server, cgroup_memory_limit, resident_memory, serve
from channels_zmq_forwarder.settings import Settings
from channels_zmq_forwarder.wire import State

A, B = b"a" * 16, b"b" * 16
LOCAL = "tcp://127.0.0.1:*"


def settings(**changes):
    values = {"pull_address": [LOCAL], "pub_address": [LOCAL], "admin_address": "", "settle": 0.0, **changes}
    return Settings(**values)


@asynccontextmanager
async def running(changes):
    """Run a forwarder until the block ends; it accepts producers."""
    stop, started = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(changes, stop, ready=started.set_result))
    async with asyncio.timeout(10):
        await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
        try:
            yield started.result() if started.done() else await task
        finally:
            stop.set()
            await task


async def subscriber(sockets, address, inbox=A, peers=0):
    xsub = sockets.open(zmq.XSUB, address)
    await xsub.send(wire.subscription(wire.inbox_topic(inbox)))
    await xsub.send(wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, 1, peers)))
    return xsub


async def test_frames_pass_in_both_directions(async_sockets):
    """The frames pass through a whole forwarder."""
    async with running(settings()) as server:
        xsub = await subscriber(async_sockets, server.pub_addresses[0])
        assert wire.WELCOME.decode(await xsub.recv()).state == State.SERVING
        push = async_sockets.open(zmq.PUSH, server.pull_addresses[0])
        await push.send(wire.ECHO.encode(wire.Echo(A, 4)))
        assert wire.CONFIRM.decode(await xsub.recv()).instance == server.exchange.instance


@pytest.mark.parametrize("address", ["tcp://[::1]:*", "tcp://*:*"])
async def test_frames_pass_by_ipv6(async_sockets, address):
    """The addresses that the forwarder reports can be connected to."""
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


async def test_a_burst_is_taken_whole(async_sockets):
    """The descriptor reports a burst once, so turns continue by themselves, in one chain."""
    async with running(settings()) as server:
        push = async_sockets.open(zmq.PUSH, server.pull_addresses[0])
        for _ in range(5_000):
            await push.send(b"?")
        while server.exchange.drops["malformed"] < 5_000:
            await asyncio.sleep(0.001)


async def test_a_turn_that_fails_is_followed_by_another(async_sockets, monkeypatch):
    """A defect in the exchange costs one frame and is logged; the forwarder continues."""
    failures = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, about: failures.append(about["exception"]))
    async with running(settings()) as server:
        handle = server.exchange._inbound[wire.ECHO.kind]

        def fail_once(frame):
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


async def test_producers_are_accepted_when_the_subscribers_have_reconnected(async_sockets):
    """A hello reports how many clients the last instance had; the forwarder settles until they have connected."""
    server = Server(settings(settle_at_most=3600.0))
    stop = asyncio.Event()
    server.exchange.peers_expected = 1  # without anybody to wait for it would let producers in at once
    async with server.beating():
        start = asyncio.create_task(server.start(stop))
        while not server.pub_addresses:
            await asyncio.sleep(0)
        one = await subscriber(async_sockets, server.pub_addresses[0], A, peers=2)
        assert wire.WELCOME.decode(await one.recv()).state == State.SETTLING
        assert not server.pull_addresses
        other = await subscriber(async_sockets, server.pub_addresses[0], B)
        while wire.WELCOME.decode(await one.recv()).state != State.SERVING:
            pass
        assert wire.WELCOME.decode(await other.recv()).state == State.SETTLING
        await start
    assert server.pull_addresses
    server.close()


async def test_input_that_arrives_while_news_are_published_is_read_at_once(async_sockets, monkeypatch):
    """ZeroMQ takes it in while it sends, and the descriptor does not report it afterwards."""
    monkeypatch.setattr(server_module, "BEAT", 3600.0)
    async with running(settings()) as server:
        xsub = await subscriber(async_sockets, server.pub_addresses[0])
        await xsub.recv()
        descriptor = server.pump.descriptors()[1]
        for number in range(20):
            await xsub.send(wire.SYNC.encode(wire.Sync(A, number)))
            # Nothing else runs until the input is there; then publishing takes it in.
            select.select([descriptor], [], [], 5)
            server._publish(server.exchange.enter(State.SERVING))
            async with asyncio.timeout(5):
                while wire.sub_kind(frame := await xsub.recv()) != wire.SYNCED.kind:
                    pass
            assert wire.SYNCED.decode(frame).n == number


async def test_producers_are_accepted_at_the_latest_after_a_while(async_sockets, unused_tcp_port):
    """Subscribers that do not reconnect must not stop all others."""
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


async def test_a_forwarder_that_settles_can_be_stopped():
    """It stops at once and never accepts producers."""
    stop, called = asyncio.Event(), []
    task = asyncio.create_task(serve(settings(settle=30.0, settle_at_most=30.0), stop, ready=called.append))
    asyncio.get_running_loop().call_later(0.05, stop.set)
    await asyncio.wait_for(task, 5)
    assert called == []


async def test_memory_is_watched(monkeypatch):
    """Above 70 % large messages are refused, above 90 % all; without a limit memory is not read."""
    server = Server(settings(memory_limit=1000))
    for resident, largest in ((950, 0), (750, 65_536), (700, None)):
        monkeypatch.setattr(server_module, "resident_memory", lambda resident=resident: resident)
        server._watch_memory()
        assert server.exchange._largest == largest
    server._memory_limit = 0
    monkeypatch.setattr(server_module, "resident_memory", lambda: 1 / 0)
    server._watch_memory()
    server.close()
    server._turn()


async def test_a_beat_that_fails_is_followed_by_another(caplog):
    """A defect is logged and does not stop the periodic work."""
    server = Server(settings())
    calls = []

    def fail_once():
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError
        return ()

    server.exchange.announce = fail_once
    async with server.beating():
        while len(calls) < 2:
            await asyncio.sleep(0)
    server.close()
    assert "a periodic task failed" in caplog.text


async def test_expired_messages_are_swept(async_sockets):
    """The sweep needs no frame from outside."""
    async with running(settings()) as server:
        server.exchange.inbound(wire.ENQUEUE.encode(wire.Enqueue(A, 1, 0, 10, b"jobs", b"")))
        assert server.exchange.queues.depth() == 1
        while server.exchange.queues.depth():
            await asyncio.sleep(0.01)


def test_the_memory_of_this_process_is_known():
    """Linux reports it; elsewhere it is 0."""
    assert resident_memory() > 10**6 or sys.platform != "linux"


def test_where_there_is_no_proc_memory_is_not_known(monkeypatch):
    """Memory is then not watched."""
    monkeypatch.setattr(server_module, "Path", FakeFiles({}))
    assert resident_memory() == 0
    assert cgroup_memory_limit() == 0


@pytest.mark.parametrize(
    "files, limit",
    [
        ({"/sys/fs/cgroup/memory.max": "1048576\n"}, 2**20),
        ({"/sys/fs/cgroup/memory.max": "max\n"}, 0),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576\n"}, 2**20),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0),
    ],
)
def test_the_limit_of_the_container_is_read(monkeypatch, files, limit):
    """Both versions of cgroups are read; a huge number means no limit."""
    monkeypatch.setattr(server_module, "Path", FakeFiles(files))
    assert cgroup_memory_limit() == limit


class FakeFiles:
    """Files by path; other files do not exist."""

    def __init__(self, files):
        self.files, self.path = files, ""

    def __call__(self, path):
        self.path = path
        return self

    def read_text(self):
        if self.path not in self.files:
            raise FileNotFoundError(self.path)
        return self.files[self.path]


def test_a_json_line_is_one_object():
    """The object contains the traceback if there is one."""
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        record = logging.LogRecord("name", logging.ERROR, "", 1, "it %s", ("failed",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["level"], parsed["logger"], parsed["message"]) == ("ERROR", "name", "it failed")
    assert "broken" in parsed["exception"]


# As a program


def run(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "channels_zmq_forwarder", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


LOCALLY = ("--pull-address", LOCAL, "--pub-address", LOCAL, "--admin-address", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number):
    """The exit code is 0; each log line is JSON with `--log-format json`."""
    with run(*LOCALLY, "--log-format", "json", "--settle", "0") as process:
        lines = [json.loads(process.stderr.readline()) for _ in range(2)]
        process.send_signal(number)
        _, rest = process.communicate(timeout=10)
    lines += [json.loads(line) for line in rest.splitlines()]
    assert process.returncode == 0
    assert [line["message"].partition(" on ")[0] for line in lines] == [
        "accepting subscribers",
        "accepting producers",
        "stopping",
    ]


@pytest.mark.parametrize("flag", ["--pull-address", "--pub-address", "--admin-address"])
def test_an_address_in_use_ends_it_with_one_line(flag):
    """The line names the address and the reason."""
    with zmq.Context() as context, context.socket(zmq.PULL) as taken:
        taken.bind(LOCAL)
        address = taken.get(zmq.LAST_ENDPOINT).decode()
        value = address.removeprefix("tcp://") if flag == "--admin-address" else address
        with run(*LOCALLY, flag, value, "--settle", "0", "--log-level", "ERROR") as process:
            out, err = process.communicate(timeout=10)
    assert process.returncode == BAD_USAGE
    assert out == ""
    assert err.startswith("channels-zmq-forwarder: cannot bind ")
    assert value in err
    assert "ddress already in use" in err
    assert len(err.splitlines()) == 1


def test_a_setting_that_cannot_be_used_ends_it_with_one_line(capsys):
    """Invalid settings end the program before it opens a socket."""
    assert main(["--settle", "9"]) == BAD_USAGE
    assert capsys.readouterr().err == "channels-zmq-forwarder: settle-at-most (5.0) is less than settle (9.0)\n"


def test_help_names_every_flag():
    """The help contains descriptions and defaults."""
    with run("--help", env={**os.environ, "COLUMNS": "200"}) as process:
        out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in out
        assert field.description.split()[0] in out
