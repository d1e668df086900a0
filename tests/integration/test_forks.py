"""Forks at awkward moments: the child holds neither a lock nor a port of its parent."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from forwarders import free_ports

Make = Callable[..., Any]

USE = """
import asyncio, os, sys, threading
from channels.exceptions import StopConsumer
from channels_zmq import connections
from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

async def use(layer):
    async with asyncio.timeout(10):
        channel = await layer.new_channel()
        group = f"group-{os.getpid()}"
        await layer.group_add(group, channel)
        await layer.group_send(group, {"n": os.getpid()})
        assert (await layer.receive(channel))["n"] == os.getpid()
        await layer.group_discard(group, channel)

async def leave_unread(layer):
    async with asyncio.timeout(10):
        channel = await layer.new_channel()
        await layer.send(channel, {})
        while not layer.stats()["waiting"]:
            await asyncio.sleep(0.001)
        return channel

async def cannot_read(layer, channel):
    try:
        await layer.receive(channel)
    except (StopConsumer, TypeError):
        return
    raise AssertionError("it is the parent's")
"""


def python(program: str) -> "subprocess.Popen[str]":
    """Start a program that may use a layer in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", USE + program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(program: str) -> tuple[str, str]:
    """Return the output and the errors of a program that may use a layer."""
    with python(program) as process:
        try:
            return process.communicate(timeout=30)
        finally:
            process.kill()


@pytest.mark.parametrize("lock", ["known._lock", "connections._lock"])
@pytest.mark.parametrize("topology", ["embedded", "dedicated"])
def test_a_child_works_that_was_forked_while_a_thread_held_a_lock(
    request: pytest.FixtureRequest, topology: str, lock: str
) -> None:
    """A child that was forked while a thread held a lock can use the layer, and not its parent's channel.

    That thread does not exist in the child, so nothing else would ever release the lock.
    """
    if topology == "dedicated":
        layer = f"DedicatedZmqChannelLayer(**{request.getfixturevalue('forwarder').config!r})"
    else:
        layer = "EmbeddedZmqChannelLayer()"
    program = f"""
layer = {layer}
asyncio.run(use(layer))
unread = asyncio.run(leave_unread(layer))
(known,) = connections.connections()
held, forked = threading.Event(), threading.Event()
def hold():
    with {lock}:
        held.set()
        forked.wait()
holder = threading.Thread(target=hold)
holder.start()
held.wait()
child = os.fork()
if child == 0:
    asyncio.run(cannot_read(layer, unread))
    asyncio.run(use(layer))
    asyncio.run(use(type(layer)(**layer.config.model_dump(exclude_defaults=True))))
    os._exit(0)
forked.set()
holder.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
asyncio.run(use(layer))
print("both")
"""
    assert output(program) == ("both\n", "")


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_child_does_not_keep_the_address_of_an_embedded_producer(tmp_path: Any, transport: str) -> None:
    """A child does not keep the address of an embedded producer.

    The parent ends, and another process becomes the producer while the child lives.
    """
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}" if transport == "tcp" else f"ipc://{tmp_path}/pub"
    layer = f"EmbeddedZmqChannelLayer(pub_socket_address={address!r})"
    parent = python(f"""
asyncio.run(use({layer}))
child = os.fork()
if child == 0:
    os.close(1)
    os.close(2)
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
""")
    with parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0
        assert parent.wait(20) == 0
        with python(f"asyncio.run(use({layer}))") as successor:
            assert successor.communicate(timeout=30) == ("", "")
            assert successor.returncode == 0
        parent.communicate()  # closing its input ends the child


def test_a_child_of_an_embedded_producer_has_no_more_descriptors_than_its_parent() -> None:
    """A child of an embedded producer sees the end of a pipe that both processes have closed.

    A copy of a pipe's end in either process would keep the pipe open.
    """
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    program = f"""
import select
asyncio.run(use(EmbeddedZmqChannelLayer(pub_socket_address={address!r})))
reads, writes = os.pipe()
child = os.fork()
os.close(writes)
if child == 0:
    os._exit(0 if select.select([reads], [], [], 20)[0] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("ended")
"""
    assert output(program) == ("ended\n", "")
