"""Layers with encryption keys: every path of a message, processes without a key, and rotation under load."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import zmq
from forwarders import Forwarder, until

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq_forwarder import wire

Make = Callable[..., Any]
Run = Callable[..., Any]

OLD, NEW = "an old key of some length", "a new key of some length, too"
SECRET = "what only members may read"
STEPS = ([OLD], [OLD, NEW], [NEW, OLD], [NEW])


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
def test_messages_pass_by_every_way(make_layer: Make, run: Run, serializer: str) -> None:
    """Encrypted messages pass through a group, a process-specific and a normal channel, and one in a group."""

    async def scenario() -> None:
        layer = make_layer(symmetric_encryption_keys=[OLD], serializer=serializer)
        channels = [await layer.new_channel() for _ in range(3)]
        for channel in channels[:2]:
            await layer.group_add("chat", channel)
        await layer.group_add("chat", "jobs")
        await layer.group_send("chat", {"text": SECRET, "list": [1]})
        for channel in channels[:2]:
            assert await layer.receive(channel) == {"text": SECRET, "list": [1]}
        assert await layer.receive("jobs") == {"text": SECRET, "list": [1]}
        await layer.send("jobs", {"n": 1})
        assert await layer.receive("jobs") == {"n": 1}
        await layer.send(channels[2], {"n": 2})
        assert await layer.receive(channels[2]) == {"n": 2}
        assert layer.stats()["dropped"] == {}

    run(scenario())


def test_messages_pass_between_processes(make_shared_layer: Make, open_peer: Make, run: Run) -> None:
    """Encrypted messages pass between processes in both topologies; the process that sends is the producer."""
    made = make_shared_layer(symmetric_encryption_keys=[OLD])
    config = {key: value for key, value in made.config.model_dump().items() if key.endswith("socket_address")}
    config = {key: value[0] if isinstance(value, tuple) else value for key, value in config.items()}
    reader = open_peer(**config, symmetric_encryption_keys=[OLD])
    channel = reader.run(join, "chat")

    async def scenario() -> None:
        await made.group_add("chat", "jobs")
        await made.group_send("nobody", {})
        await asyncio.to_thread(reader.ask, "until_connected", True)
        reading = reader.begin_run(read, channel, 3)
        await made.group_send("chat", {"n": 1})
        await made.send(channel, {"n": 2})
        await made.send("jobs", {"n": 3})
        assert await asyncio.wrap_future(reading) == [1, 2, 3]

    run(scenario())


async def join(layer: Any, group: str) -> str:
    channel = str(await layer.new_channel())
    await layer.group_add(group, channel)
    return channel


async def read(layer: Any, channel: str, total: int) -> list[int]:
    """Read a channel, but the last message from `jobs`, which may have a copy of a group's message before it."""
    found = [(await layer.receive(channel))["n"] for _ in range(total - 1)]
    while found[-1] != total:
        job = (await layer.receive("jobs"))["n"]
        found = [*found, job] if job == total else found
    return found


def test_jobs_that_are_handed_back_can_be_read_by_others(forwarder: Forwarder, run: Run) -> None:
    """Jobs that a process has fetched ahead and returns are encrypted, and another process reads them."""

    async def scenario() -> None:
        config = {**forwarder.config, "symmetric_encryption_keys": [OLD], "prefetch": 10}
        first = DedicatedZmqChannelLayer(**config)
        for number in range(5):
            await first.send("jobs", {"n": number})
        assert (await first.receive("jobs"))["n"] == 0
        await until(lambda: first.stats()["waiting"] == 4)
        await first.close()
        second = DedicatedZmqChannelLayer(**config)
        assert [(await second.receive("jobs"))["n"] for _ in range(4)] == [1, 2, 3, 4]
        assert second.stats()["dropped"] == {}

    run(scenario())


def test_the_forwarder_sees_no_content(forwarder: Forwarder, run: Run) -> None:
    """The frame of a group message, as the forwarder and every subscriber see it, reveals no content."""

    async def scenario(subscriber: "zmq.Socket[bytes]") -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, symmetric_encryption_keys=[OLD])
        channel = await join(layer, "chat")
        await layer.group_send("chat", {"text": SECRET})
        assert (await layer.receive(channel))["text"] == SECRET
        frame = await asyncio.to_thread(subscriber.recv)
        assert frame.startswith(wire.group_topic("chat"))
        assert SECRET.encode() not in frame
        assert b"text" not in frame

    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.rcvtimeo = 20_000
        subscriber.connect(forwarder.pub)
        subscriber.subscribe(wire.group_topic("chat"))
        run(wait_for_subscription(forwarder))
        run(scenario(subscriber))


async def wait_for_subscription(forwarder: Forwarder) -> None:
    await until(lambda: forwarder.status()["groups"] == 1)


@pytest.mark.parametrize("keys", [[], [NEW]])
def test_a_process_without_the_key_cannot_inject(forwarder: Forwarder, run: Run, keys: list[str]) -> None:
    """Messages of a process without the key are dropped and counted on every path, and the others still arrive."""

    async def scenario() -> None:
        ours = DedicatedZmqChannelLayer(**forwarder.config, symmetric_encryption_keys=[OLD])
        stranger = DedicatedZmqChannelLayer(**forwarder.config, symmetric_encryption_keys=keys)
        channel = await join(ours, "chat")
        working = asyncio.create_task(ours.receive("jobs"))
        await stranger.send("jobs", {"n": 1})
        await stranger.group_send("chat", {"n": 2})
        await stranger.send(channel, {"n": 3})
        await until(lambda: ours.stats()["dropped"].get("undecryptable") == 3)
        await ours.send("jobs", {"n": 4})
        await ours.group_send("chat", {"n": 5})
        assert (await working, await ours.receive(channel)) == ({"n": 4}, {"n": 5})
        assert ours.stats()["dropped"] == {"undecryptable": 3}

    run(scenario())


def test_consumers_are_told_of_an_outage(forwarder: Forwarder, run: Run) -> None:
    """The layer's own announcement of an outage, which is not encrypted, reaches a reader and counts as no loss."""

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, symmetric_encryption_keys=[OLD], on_disconnect="went")
        channel = await join(layer, "chat")
        readers = [asyncio.create_task(layer.receive(one)) for one in (channel, "jobs")]
        await layer.send("other", {})
        await asyncio.to_thread(forwarder.end)
        assert await readers[0] == {"type": "went"}
        assert readers[1].cancel(), "a reader of a normal channel gets no announcement"
        assert layer.stats()["dropped"] == {}

    run(scenario())


@pytest.mark.parametrize(("one", "other"), [pair[::way] for pair in pairwise(STEPS) for way in (1, -1)])
def test_processes_at_neighbouring_steps_of_a_rotation_understand_each_other(
    make_shared_layer: Make, run: Run, one: list[str], other: list[str]
) -> None:
    """Processes at neighbouring steps of a rotation read each other's messages, so they can restart one by one."""

    async def scenario() -> None:
        sender, _ = layers = [make_shared_layer(symmetric_encryption_keys=keys) for keys in (one, other)]
        channels = [await join(layer, "chat") for layer in layers]
        await sender.group_send("chat", {"n": 1})
        for reader, channel in zip(layers, channels, strict=True):
            await sender.send(channel, {"n": 2})
            assert [(await reader.receive(channel))["n"] for _ in range(2)] == [1, 2]
            reading = asyncio.create_task(reader.receive("jobs"))
            await sender.send("jobs", {"n": 3})
            assert await reading == {"n": 3}
            assert reader.stats()["dropped"] == {}

    run(scenario())


class Files:
    """The key files of two processes, which get new keys one after the other."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / name for name in ("sender", "receiver")]
        for path in self.paths:
            self.give(path, STEPS[0])

    def give(self, path: Path, keys: list[str]) -> None:
        """Replace a file in one step, as a mounted volume does."""
        fresh = path.with_suffix(".new")
        fresh.write_text("\n".join(keys), encoding="ascii")
        fresh.replace(path)


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_keys_are_rotated_under_load_without_a_loss(
    make_shared_layer: Make, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, order: tuple[int, int]
) -> None:
    """Two processes rotate their keys in either order under load, and no message of any kind is lost."""
    files = Files(tmp_path)
    caplog.set_level(logging.INFO, "channels_zmq")

    def reads() -> int:
        return sum("reloaded the encryption keys" in record.getMessage() for record in caplog.records)

    async def scenario() -> None:
        sender, receiver = (
            make_shared_layer(symmetric_encryption_keys_file=str(path), capacity=10**6, prefetch=100)
            for path in files.paths
        )
        channel = await join(receiver, "chat")
        stop = asyncio.Event()
        sent = 0

        async def send() -> None:
            nonlocal sent
            for sent in count(1):
                await sender.group_send("chat", {"n": 3 * sent})
                await sender.send(channel, {"n": 3 * sent + 1})
                await sender.send("jobs", {"n": 3 * sent + 2})
                if stop.is_set():
                    break
                await asyncio.sleep(0.001)  # of load

        done: list[int] = []

        async def work() -> None:
            while True:
                done.append((await receiver.receive("jobs"))["n"])

        sending, working = asyncio.create_task(send()), asyncio.create_task(work())
        await until(lambda: sent > 5)
        for keys in STEPS[1:]:
            for process in order:
                before, at = reads(), sent
                files.give(files.paths[process], keys)
                await until(lambda: reads() > before and sent > at + 5)  # noqa: B023
            # Messages with the former keys must arrive before the next step removes one.
            await until(lambda: len(done) >= sent - 1)
        stop.set()
        await sending
        read = [(await receiver.receive(channel))["n"] for _ in range(2 * sent)]
        assert read == [n for number in range(1, sent + 1) for n in (3 * number, 3 * number + 1)]
        await until(lambda: len(done) == sent)
        # The order is free: a job that is not read in time is returned, and later ones may be read before it.
        assert sorted(done) == [3 * number + 2 for number in range(1, sent + 1)]
        working.cancel()
        assert (sender.stats()["dropped"], receiver.stats()["dropped"]) == ({}, {})

    run(scenario())


def test_a_forked_child_counts_with_a_salt_of_its_own(forwarder: Forwarder) -> None:
    """A forked child has a salt of its own; with a shared one, equal counters would reveal two messages."""
    program = f"""
import asyncio, os
from channels_zmq.core import DedicatedZmqChannelLayer
layer = DedicatedZmqChannelLayer(**{forwarder.config!r}, symmetric_encryption_keys=[{OLD!r}])
async def use():
    await layer.group_send("chat", {{}})
    return layer._keyring().seal_for_group(b"Gg\\0", b"x")[:21].hex()
def say():  # by one write: two processes share the output
    os.write(1, asyncio.run(use()).encode() + b"\\n")
say()
child = os.fork()
say()
if child:
    os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    heads = done.stdout.split()
    assert len(set(heads)) == 3
    assert len({head[:34] for head in heads}) == 2
