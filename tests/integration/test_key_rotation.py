"""The keys of clients are rotated twice while they send: no connection breaks, and no message is lost."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from forwarders import Forwarder, close_all, free_ports, port_of, until
from relays import relay_to
from rotations import KEYS, Rotation

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq_forwarder.sockets import SLOWEST_LINK

LINES_OF_REVOCATION = "1 revoked"


@pytest.fixture
def rotation(tmp_path: Path) -> Rotation:
    return Rotation(tmp_path)


@pytest.fixture
def guarded(rotation: Rotation, tmp_path: Path) -> Iterator[Forwarder]:
    """Start a forwarder that allows the keys of the rotation."""
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    own = Forwarder(pull, pub, flags=rotation.flags, log=tmp_path / "forwarder.log")
    own.start()
    yield own
    close_all()
    own.end()


def connections(forwarder: Forwarder) -> int:
    """Return how many connections this process has to the forwarder."""
    ports = {port_of(forwarder.pull), port_of(forwarder.pub)}
    return sum(one.raddr.port in ports for one in psutil.Process().net_connections("tcp") if one.raddr)


def session(layer: DedicatedZmqChannelLayer) -> int:
    return layer.stats()["links"][0]["session"]


def test_keys_are_rotated_twice_under_load_without_a_gap(
    run: Callable[..., Any], guarded: Forwarder, rotation: Rotation
) -> None:
    """Two rotations of the keys under load cut no connection, and lose, repeat or reorder no message.

    Connections older than both rotations adopt each new key while the former one is valid, which is then revoked.
    """
    config = {**rotation.config, "on_disconnect": "went", "on_reconnect": "came", "capacity": 10**6}

    async def scenario() -> None:
        sender = DedicatedZmqChannelLayer(**guarded.config, **config)
        # Another file name makes it another connection.
        Path(rotation.file("copy.secret")).symlink_to(rotation.file("client.secret"))
        receiver = DedicatedZmqChannelLayer(
            **guarded.config, **config | {"curve_secret_key_file": rotation.file("copy.secret")}
        )
        channel = await receiver.new_channel()
        await receiver.group_add("chat", channel)
        await until(lambda: sender.stats()["connected"])
        sent, jobs = 0, 0
        stop = asyncio.Event()

        async def send() -> None:
            nonlocal sent
            for sent in count(1):
                await sender.group_send("chat", {"n": 2 * sent})
                await sender.send(channel, {"n": 2 * sent + 1})
                if stop.is_set():
                    break
                if sent % 5 == 0:
                    await asyncio.sleep(0.001)  # of load, 10,000 messages/s at most

        async def send_jobs() -> None:
            nonlocal jobs
            for jobs in count(1):
                await sender.send("jobs", {"n": jobs})
                if stop.is_set():
                    break
                await asyncio.sleep(0.002)  # of load

        done: list[int] = []

        async def work() -> None:
            while True:
                done.append((await receiver.receive("jobs"))["n"])

        sending = [asyncio.create_task(one) for one in (send(), send_jobs())]
        working = asyncio.create_task(work())
        for former, key in pairwise(KEYS):
            before = session(sender), session(receiver)
            rotation.allow(former, key)
            rotation.give(key)
            await until(lambda: session(sender) > before[0] and session(receiver) > before[1])  # noqa: B023
            await until(lambda: connections(guarded) > 4)
            await until(lambda: connections(guarded) == 4)
            revoked = guarded.log_text().count(LINES_OF_REVOCATION)
            rotation.allow(key)
            await until(lambda: guarded.log_text().count(LINES_OF_REVOCATION) > revoked)  # noqa: B023
        stop.set()
        await asyncio.gather(*sending)
        read = [(await receiver.receive(channel))["n"] for _ in range(2 * sent)]
        assert [n for n in read if n % 2 == 0] == [2 * n for n in range(1, sent + 1)]
        assert [n for n in read if n % 2 == 1] == [2 * n + 1 for n in range(1, sent + 1)]
        await until(lambda: len(done) == jobs)
        assert sorted(done) == list(range(1, jobs + 1))
        working.cancel()
        for layer in (sender, receiver):
            stats = layer.stats()
            assert (stats["reconnects"], stats["dropped"], stats["waiting"]) == (0, {}, 0)

    run(scenario())
    assert "a revoked key was in use" not in guarded.log_text()


@pytest.mark.slow
def test_keys_are_changed_while_much_is_on_its_way(
    run: Callable[..., Any], guarded: Forwarder, rotation: Rotation
) -> None:
    """A change of keys loses nothing, although the old connection has seconds of messages in flight.

    The link is slow, and the new connection is ready at once.
    """
    count, text = 160, "x" * 64 * 1024  # they take 5 s
    config = {**rotation.config, "capacity": 2 * count}

    async def scenario() -> None:
        with relay_to(guarded.pub, SLOWEST_LINK / 8) as relay:
            sender = DedicatedZmqChannelLayer(**guarded.config, **config)
            receiver = DedicatedZmqChannelLayer(**guarded.config | {"pub_socket_address": relay.address}, **config)
            channel = await receiver.new_channel()
            await receiver.group_add("chat", channel)
            before = session(receiver)
            for number in range(count):
                await sender.group_send("chat", {"n": number, "text": text})
            await until(lambda: receiver.stats()["received"] > 0)
            rotation.allow(*KEYS[:2])
            rotation.give(KEYS[1])
            await until(lambda: relay.accepted >= 2 and session(receiver) > before)
            for number in range(count, 2 * count):
                await sender.group_send("chat", {"n": number})
            own = await receiver.new_channel()
            await receiver.group_add("own", own)
            assert receiver.stats()["received"] >= count, "the answer waits behind what came before it"
            read = [(await receiver.receive(channel))["n"] for _ in range(2 * count)]
            assert read == list(range(2 * count))
            stats = receiver.stats()
            assert (stats["reconnects"], stats["dropped"]) == (0, {})

    run(scenario())
