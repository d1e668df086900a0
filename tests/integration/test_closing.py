"""Closing beside other threads, and reused descriptors: only the library's errors, and no foreign reader is lost."""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import zmq
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull
from forwarders import Forwarder, close_all, until
from strangers import Peer

from channels_zmq import serializers
from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.errors import ChannelsZmqError, ConnectionClosed
from channels_zmq_forwarder import wire

pytestmark = pytest.mark.slow

Make = Callable[..., Any]
Run = Callable[..., Any]

SENDERS = 3
ROUNDS = 5


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    close_all()


def test_threads_that_send_while_the_layer_is_closed_succeed_or_raise_what_the_library_documents(
    make_layer: Make, run: Run
) -> None:
    """Threads that send while the layer is closed get documented errors only, none of ZeroMQ; then the layer works."""
    layer = make_layer(connect_timeout=2)
    unexpected: list[BaseException] = []
    rounds = threading.Event()
    sent = [0] * SENDERS

    def send(index: int) -> None:
        while not rounds.is_set():
            for call, target in ((layer.group_send, "chat"), (layer.send, "jobs")):
                try:
                    async_to_sync(call)(target, {"n": 1})
                except (ChannelsZmqError, ChannelFull):
                    pass
                except BaseException as error:
                    unexpected.append(error)
                    return
                sent[index] += 1

    async def scenario() -> None:
        for _ in range(ROUNDS):
            before = list(sent)
            while any(now <= then for now, then in zip(sent, before, strict=True)) and not unexpected:
                await asyncio.sleep(0.001)
            await layer.close()

    threads = [threading.Thread(target=send, args=(index,)) for index in range(SENDERS)]
    for thread in threads:
        thread.start()
    try:
        run(scenario())
    finally:
        rounds.set()
        for thread in threads:
            thread.join()
    assert unexpected == []

    async def works() -> None:
        channel = await layer.new_channel()
        await layer.send(channel, {"n": 2})
        assert await layer.receive(channel) == {"n": 2}

    run(works())


def test_a_job_whose_confirmation_is_awaited_when_the_layer_is_closed_is_not_sent_again(
    forwarder: Forwarder, run: Run
) -> None:
    """The call fails, since it is unknown whether the job was sent; a second copy could be read as well."""
    jobs: list[Any] = []

    async def scenario(worker: Peer) -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, capacity=1)
        worker.say(wire.READY.encode(wire.Ready(worker.inbox, 1, 9, 0, 0, 0, b"jobs")))
        worker.sync()
        await layer.send("jobs", {"n": 1})
        pending = asyncio.create_task(layer.send("jobs", {"n": 2}))  # until the worker has settled the first one
        assert wire.QUERY.decode(await asyncio.to_thread(worker.await_kind, wire.QUERY)).channel == b"jobs"
        await layer.close()
        with pytest.raises(ConnectionClosed):
            await pending
        for settled in (1, 2):
            worker.say(wire.READY.encode(wire.Ready(worker.inbox, 1, 9, settled, 0, 0, b"jobs")))
            job = wire.JOB.decode(await asyncio.to_thread(worker.await_kind, wire.JOB))
            jobs.append(serializers.unpack(serializers.named("msgpack"), job.payload))
            worker.say(wire.READY.encode(wire.Ready(worker.inbox, 1, 9, settled + 1, 0, 0, b"jobs")))
            worker.sync()
            if settled == 1:
                await layer.send("jobs", {"n": 3})

    with zmq.Context() as context, Peer(context, forwarder.pull, forwarder.pub) as worker:
        run(scenario(worker))
    assert jobs == [{"n": 2}, {"n": 3}]


def test_a_descriptor_that_is_used_again_keeps_its_reader(make_layer: Make, run: Run) -> None:
    """If another thread closes the layer, the loop still watches files that reuse its descriptors at once."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        for number in range(10):
            layer = make_layer()
            channel = await layer.new_channel()
            await layer.send(channel, {"n": number})
            assert await layer.receive(channel) == {"n": number}
            reading = asyncio.create_task(layer.receive(channel))
            await asyncio.sleep(0)
            closing = threading.Thread(target=close_all)
            closing.start()
            pipes: list[tuple[int, int]] = []
            while closing.is_alive() or len(pipes) < 20:
                pipes.append(os.pipe())
                if len(pipes) > 200:
                    closing.join()
            readable: list[int] = []
            for reads, _ in pipes:
                loop.add_reader(reads, readable.append, reads)
            await asyncio.gather(reading, return_exceptions=True)
            for _ in range(5):
                await asyncio.sleep(0)  # the callbacks that the library still has on this loop
            readable.clear()
            for _, writes in pipes:
                os.write(writes, b"x")
            while set(readable) != {reads for reads, _ in pipes}:
                await asyncio.sleep(0.001)
            for reads, writes in pipes:
                loop.remove_reader(reads)
                os.close(reads)
                os.close(writes)

    run(scenario())


def test_a_layer_that_is_used_while_it_is_closed_opens_again(make_layer: Make, run: Run) -> None:
    """A layer that is used while it is closed opens again, also if closing was cancelled.

    The first connection has bound the address, and releases it all the same.
    """

    async def scenario() -> None:
        layer = make_layer()
        await layer.group_send("before", {})
        first = layer._connection()
        closing = asyncio.ensure_future(layer.close())
        await asyncio.sleep(0)
        closing.cancel()
        await layer.group_send("meanwhile", {})
        assert layer._connection() is not first
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_send("chat", {"n": 1})
        assert await layer.receive(channel) == {"n": 1}
        await asyncio.wait([closing])
        await until(first.ended.is_set)

    run(scenario())
