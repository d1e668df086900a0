"""The lives of processes and layers: fork, interpreter exit, changed settings, fresh loops."""

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings
from django.test import override_settings
from forwarders import Forwarder, close_all, until
from peers import wait_until

from channels_zmq import connections
from channels_zmq.core import DedicatedZmqChannelLayer


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close_all()


def python(program: str) -> str:
    """Run a program in a process of its own, and return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_was_sent_just_before_the_interpreter_exits_arrives(run: Any, forwarder: Forwarder) -> None:
    """Messages from just before the interpreter exits arrive, also from a child of multiprocessing.

    No code closes the layer; the exit does, within `linger`.
    """
    program = f"""
import asyncio, multiprocessing
from channels_zmq.core import DedicatedZmqChannelLayer
def send(first):
    async def main():
        layer = DedicatedZmqChannelLayer(**{forwarder.config!r}, linger=20)
        await layer.group_add("other", await layer.new_channel())
        for number in range(first, first + 100):
            await layer.group_send("chat", {{"n": number}})
    asyncio.run(main())
if __name__ == "__main__":
    send(0)
    child = multiprocessing.get_context("fork").Process(target=send, args=(100,))
    child.start()
    child.join()
"""

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, capacity=1000)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await asyncio.to_thread(python, program)
        got = [(await layer.receive(channel))["n"] for _ in range(200)]
        assert sorted(got) == list(range(200))

    run(scenario())


def test_a_forked_child_opens_everything_anew(run: Any, forwarder: Forwarder) -> None:
    """Parent and child both send and receive after a fork, the child by an inbox of its own."""
    program = f"""
import asyncio, os
from channels_zmq.core import DedicatedZmqChannelLayer
layer = DedicatedZmqChannelLayer(**{forwarder.config!r})
async def use():
    async with asyncio.timeout(10):
        channel = await layer.new_channel()
        await layer.group_add("mine", channel)
        await layer.send(channel, {{"n": os.getpid()}})
        assert (await layer.receive(channel))["n"] == os.getpid()
        return channel
first = asyncio.run(use())
child = os.fork()
again = asyncio.run(use())
same = first.split("!")[0] == again.split("!")[0]
if child == 0:
    os._exit(1 if same else 0)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("both")
"""
    assert run(asyncio.to_thread(python, program)) == "both\n"


def test_a_thousand_calls_in_fresh_loops_open_no_connection(forwarder: Forwarder) -> None:
    """A thousand calls by `async_to_sync`, each in a new event loop, add no connection, thread or descriptor."""
    layer = DedicatedZmqChannelLayer(**forwarder.config)
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)("chat", channel)
    async_to_sync(layer.send)("warm-up", {})
    gc.collect()  # objects of earlier tests
    me = psutil.Process()
    before = len(connections.connections()), me.num_threads(), me.num_fds()
    for number in range(1000):
        async_to_sync(layer.group_send)("other", {"n": number})
    async_to_sync(layer.send)("jobs", {"n": 1})
    assert async_to_sync(layer.receive)("jobs") == {"n": 1}
    gc.collect()
    assert len(connections.connections()) == before[0] == 1
    # The library notices the end of the last loop a moment later, and a thread may be ending.
    wait_until(lambda: me.num_threads() <= before[1] and me.num_fds() <= before[2])


def test_layers_that_are_dropped_and_made_again_share_one_connection(forwarder: Forwarder) -> None:
    """A hundred layers that are made and dropped one after the other, as by `setting_changed`, share one connection."""
    names = set()
    for _ in range(100):
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        names.add(async_to_sync(layer.new_channel)().split("!")[0])
        del layer
    assert len(names) == len(connections.connections()) == 1


def test_changed_settings_leave_no_socket_and_no_thread_behind(run: Any, forwarder: Forwarder) -> None:
    """A hundred changes of the settings leave no connection, thread or descriptor, and each layer works.

    Django's own signal changes them between a dedicated layer and an embedded one.
    """
    if not settings.configured:
        settings.configure()
    me = psutil.Process()

    async def use(capacity: int, backend: str, config: dict[str, Any]) -> None:
        described = {"BACKEND": f"channels_zmq.core.{backend}", "CONFIG": {**config, "capacity": capacity}}
        with override_settings(CHANNEL_LAYERS={"default": described}):
            layer = get_channel_layer()
            assert layer.capacity == capacity
            channel = await layer.new_channel()
            await layer.group_add("chat", channel)
            await layer.group_send("chat", {"n": capacity})
            assert (await layer.receive(channel))["n"] == capacity
            await layer.send("jobs", {"n": capacity})
            assert (await layer.receive("jobs"))["n"] == capacity
            await layer.group_discard("chat", channel)

    async def scenario() -> None:
        def sizes() -> tuple[int, int, int]:
            return len(connections.connections()), me.num_threads(), me.num_fds()

        def has_not_grown() -> bool:
            return all(now <= then for now, then in zip(sizes(), first, strict=True))

        for number in range(0, 100, 2):
            await use(number + 1, "DedicatedZmqChannelLayer", forwarder.config)
            await use(number + 2, "EmbeddedZmqChannelLayer", {})
            if not number:
                first = sizes()
            if number % 10 == 0:
                gc.collect()
                await until(has_not_grown)  # a thread that writes a log line may exist for a moment
        assert first[0] == 2

    run(scenario())


def test_a_blocked_client_is_subscribed_again(run: Any, forwarder: Forwarder) -> None:
    """A client whose loop is blocked while its forwarder is replaced subscribes again, and gets a message sent then."""
    program = f"""
import asyncio
from channels_zmq.core import DedicatedZmqChannelLayer
async def main():
    layer = DedicatedZmqChannelLayer(**{forwarder.config!r})
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    print("ready", flush=True)
    input()  # blocks the loop
    async with asyncio.timeout(10):
        print((await layer.receive(channel))["n"], flush=True)
asyncio.run(main())
"""

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert other.stdin is not None
        assert other.stdout is not None
        assert await other.stdout.readline() == b"ready\n"
        await layer.group_send("warm-up", {})
        await asyncio.to_thread(forwarder.kill)
        await asyncio.to_thread(forwarder.start)
        await layer.group_add("mine", channel := await layer.new_channel())
        # The forwarder waits for its clients for some seconds; on a busy machine one may need longer.
        await asyncio.to_thread(wait_until, lambda: "chat" in forwarder.status()["some_groups"])
        await layer.group_send("chat", {"n": os.getpid()})
        await layer.send(channel, {"n": 1})
        await layer.receive(channel)  # behind the group message, so that one has been published
        other.stdin.write(b"\n")
        assert await other.stdout.readline() == f"{os.getpid()}\n".encode()
        await other.wait()

    run(scenario())
