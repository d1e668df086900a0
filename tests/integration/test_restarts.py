"""A forwarder that is away for a while, and processes that die: which messages arrive, and which errors appear."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.exceptions import ChannelFull
from forwarders import Forwarder, close_all, free_ports, until
from peers import Peer, wait_until

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer
from channels_zmq.errors import AddressInUse, ForwarderUnavailable
from channels_zmq_forwarder import wire


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close_all()


@pytest.mark.parametrize("how", ["end", "kill"])
def test_what_is_sent_while_the_forwarder_is_away_arrives_once_and_in_order(
    run: Any, forwarder: Forwarder, how: str
) -> None:
    """Messages that are sent while the forwarder is away arrive once and in order.

    Consumers get both announcements, and no subscription is lost.
    """

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(
            **forwarder.config, capacity=1000, on_disconnect="layer.gone", on_reconnect="layer.back"
        )
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_send("chat", {"type": "before"})
        assert (await layer.receive(channel))["type"] == "before"
        await asyncio.to_thread(getattr(forwarder, how))
        assert (await layer.receive(channel))["type"] == "layer.gone"
        for number in range(100):
            await layer.group_send("chat", {"type": "held", "n": number})
        await asyncio.to_thread(forwarder.start)
        assert await layer.receive(channel) == {"type": "layer.back", "missed": None}
        assert [(await layer.receive(channel))["n"] for _ in range(100)] == list(range(100))
        stats = layer.stats()
        assert (stats["dropped"], stats["repeated"], stats["reconnects"]) == ({}, 0, 1)

    run(scenario())


def test_a_waiting_reader_of_a_normal_channel_is_served_after_a_restart(run: Any, forwarder: Forwarder) -> None:
    """A reader that waits on a normal channel is served after a restart, because its credit is announced again."""

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        await layer.group_add("chat", "jobs")
        read = asyncio.create_task(layer.receive("jobs"))
        await asyncio.sleep(0)
        await asyncio.to_thread(forwarder.kill)
        await until(lambda: not layer.stats()["connected"])
        await asyncio.to_thread(forwarder.start)
        await layer.send("jobs", {"n": 1})
        assert (await read)["n"] == 1
        await layer.group_send("chat", {"n": 2})
        assert (await layer.receive("jobs"))["n"] == 2

    run(scenario())


def test_an_absent_forwarder_is_named(run: Any) -> None:
    """An error names the absent forwarder: `group_add` and a confirmed `send` wait for `connect_timeout`.

    The outbox holds messages for a group up to its capacity, and requests to other processes beyond it.
    """
    pull, pub = free_ports(2)

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(
            pull_socket_address=f"tcp://127.0.0.1:{pull}",
            pub_socket_address=f"tcp://127.0.0.1:{pub}",
            connect_timeout=0.1,
            outbox_capacity=2,
        )
        with pytest.raises(ForwarderUnavailable, match=str(pub)):
            await layer.group_add("chat", await layer.new_channel())
        with pytest.raises(ForwarderUnavailable, match="connect_timeout"):
            await layer.send("jobs", {})
        for _ in range(3):
            await layer.group_send("chat", {})
        assert (layer.stats()["held"], layer.stats()["dropped"]) == (2, {"outbox_full": 1})
        with pytest.raises(ChannelFull, match="outbox_capacity"):
            await layer.send(await layer.new_channel(), {})
        with pytest.raises(ForwarderUnavailable, match="group_add"):  # a full outbox holds this request, too
            await layer.group_add("chat", "specific.0123456789abcdef!of-another-process")

    run(scenario())


def test_a_second_sending_process_is_told_of_the_dedicated_layer(tmp_path: Any, run: Any) -> None:
    """A second process that sends at one address gets an error that recommends the dedicated layer.

    ZeroMQ would let it take over an `ipc://` address.
    """
    address = f"ipc://{tmp_path}/pub"
    program = f"""
import asyncio
from channels_zmq.core import EmbeddedZmqChannelLayer
asyncio.run(EmbeddedZmqChannelLayer(pub_socket_address={address!r}).group_send("chat", {{}}))
print("bound", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "bound\n"

        async def scenario() -> None:
            layer = EmbeddedZmqChannelLayer(pub_socket_address=address)
            with pytest.raises(AddressInUse, match="DedicatedZmqChannelLayer"):
                await layer.group_send("chat", {})

        run(scenario())
        other.communicate("\n", timeout=10)


def test_an_embedded_reader_that_came_first_is_served(run: Any) -> None:
    """An embedded reader that started first gets the jobs and group messages of a producer that starts later."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    program = f"""
import asyncio
from channels_zmq.core import EmbeddedZmqChannelLayer
async def main():
    layer = EmbeddedZmqChannelLayer(pub_socket_address={address!r})
    await layer.send("jobs", {{"n": 1}})
    while input() == "again":
        await layer.group_send("chat", {{"n": 2}})
    await layer.close()
asyncio.run(main())
"""

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=address)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        job = asyncio.create_task(layer.receive("jobs"))
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdin=subprocess.PIPE)
        assert other.stdin is not None
        assert (await job)["n"] == 1
        other.stdin.write(b"again\nend\n")
        assert (await layer.receive(channel))["n"] == 2
        await other.wait()

    run(scenario())


def test_a_killed_consumer_takes_nothing_of_others_along(run: Any, forwarder: Forwarder) -> None:
    """After SIGKILL of one worker, another one gets all later jobs, except at most the dead worker's credit."""
    program = f"""
import asyncio
from channels_zmq.core import DedicatedZmqChannelLayer
async def main():
    layer = DedicatedZmqChannelLayer(**{forwarder.config!r})
    while True:
        print((await layer.receive("jobs"))["n"], flush=True)
asyncio.run(main())
"""

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, capacity=1000)
        worker = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
        assert worker.stdout is not None
        await layer.send("jobs", {"n": -1})
        assert await worker.stdout.readline() == b"-1\n"
        worker.kill()
        await worker.wait()
        for number in range(100):
            await layer.send("jobs", {"n": number})
        got: list[int] = []
        while 99 not in got:
            got.append((await layer.receive("jobs"))["n"])
        assert got == sorted(got)
        assert 100 - len(got) <= 1 + layer.config.prefetch

    run(scenario())


@pytest.mark.parametrize("how, returning", [("end", 0), ("kill", 1)])
def test_a_forwarder_that_ends_waits_for_processes_that_may_return(tmp_path: Path, how: str, returning: int) -> None:
    """A process that was killed may as well be cut off, and return; one that has closed its layer does not."""
    pull, pub = free_ports(2)
    forwarder = Forwarder(f"tcp://127.0.0.1:{pull}", f"tcp://127.0.0.1:{pub}", log=tmp_path / "log")
    forwarder.start()
    peer = Peer("asyncio", **forwarder.config)
    peer.ask("member", "chat")
    getattr(peer, how)()
    wait_until(lambda: not forwarder.status()["clients"])
    assert forwarder.end() == 0
    assert f"draining: 0 of 0 clients take over messages, {returning} more may return" in forwarder.log_text()


def test_a_forwarder_of_another_wire_version_is_named(run: Any) -> None:
    """A forwarder with an unknown version of the wire format raises `WireVersionMismatch` with that version."""
    import zmq

    from channels_zmq.errors import WireVersionMismatch

    pull, pub = free_ports(2)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    puller, publisher = context.socket(zmq.PULL), context.socket(zmq.XPUB)
    puller.bind(f"tcp://127.0.0.1:{pull}")
    publisher.bind(f"tcp://127.0.0.1:{pub}")

    def welcome() -> None:
        while True:
            frame = publisher.recv()
            if frame[:1] == b"H":
                hello = wire.HELLO.decode(frame)
                answer = wire.Welcome(hello.inbox, 99, wire.State.SERVING, bytes(8), hello.session, 1)
                publisher.send(wire.WELCOME.encode(answer))
                return

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(
            pull_socket_address=f"tcp://127.0.0.1:{pull}", pub_socket_address=f"tcp://127.0.0.1:{pub}"
        )
        answering = asyncio.create_task(asyncio.to_thread(welcome))
        with pytest.raises(WireVersionMismatch, match="99"):
            await layer.send("jobs", {})
        await answering

    try:
        run(scenario())
    finally:
        close_all()
        context.destroy(linger=0)
