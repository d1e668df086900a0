"""Several layers at one address, and many short-lived ones: none harms another, and none leaves anything behind."""

import asyncio
import gc
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import util
from typing import Any

import psutil
import pytest
from forwarders import PATIENCE, Forwarder, close_all, until

from channels_zmq import connection, connections
from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

Make = Callable[..., Any]
Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    close_all()


@pytest.mark.parametrize("topology", ["embedded", "dedicated"])
def test_a_name_server_that_does_not_answer_holds_up_no_other_layer(
    run: Run, forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch, topology: str
) -> None:
    """A name server that does not answer delays no other layer, not even its closing.

    One thread maintains all connections, and each requests its addresses from that thread.
    """
    asked, answers = threading.Event(), threading.Event()
    lookup = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **more: Any) -> Any:
        if host == "localhost":
            asked.set()
            answers.wait(PATIENCE)
            raise OSError(socket.EAI_FAIL, "no answer")
        return lookup(host, *args, **more)

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    slow: Any
    if topology == "dedicated":
        slow = DedicatedZmqChannelLayer(
            pull_socket_address="tcp://localhost:5555", pub_socket_address="tcp://localhost:5556"
        )
    else:
        slow = EmbeddedZmqChannelLayer(pub_socket_address="tcp://localhost:5556")

    async def scenario() -> None:
        await slow.new_channel()
        slow.stats()
        assert await asyncio.to_thread(asked.wait, PATIENCE)
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_send("chat", {"n": 1})
        assert await layer.receive(channel) == {"n": 1}
        await layer.close()
        assert not answers.is_set()

    try:
        run(scenario())
    finally:
        answers.set()


@pytest.mark.slow
def test_a_layer_with_a_short_expiry_drops_no_message_of_another_one_in_an_outage(
    run: Run, forwarder: Forwarder
) -> None:
    """In an outage each message has the expiry of the layer that sent it, whichever layer was made first.

    The layers share one connection.
    """

    async def scenario() -> None:
        short = DedicatedZmqChannelLayer(**forwarder.config, expiry=0.3)
        long = DedicatedZmqChannelLayer(**forwarder.config)
        again = DedicatedZmqChannelLayer(**forwarder.config, expiry=0.3)
        channel = await long.new_channel()
        await long.group_add("chat", channel)
        await asyncio.to_thread(forwarder.kill)
        await until(lambda: not long.stats()["connected"])
        for layer in (short, long, again):
            await layer.group_send("chat", {"expiry": layer.expiry})
        await until(lambda: long.stats()["dropped"] == {"outbox_expired": 2})
        await asyncio.to_thread(forwarder.start)
        await until(lambda: long.stats()["connected"])
        assert (await long.receive(channel))["expiry"] == 60
        assert len(connections.connections()) == 1

    run(scenario())


def test_messages_of_two_expiries_that_wait_in_one_mailbox_end_each_at_its_time(make_layer: Make, run: Run) -> None:
    """Messages of two expiries in one mailbox expire each at its own time, the short one from the middle."""

    async def scenario() -> None:
        long, short = make_layer(), make_layer(expiry=0.2)
        channel = await long.new_channel()
        await long.group_add("chat", channel)
        await long.group_send("nobody", {})
        await until(lambda: long.stats()["connected"])
        for layer in (long, short, long):
            await layer.group_send("chat", {"expiry": layer.expiry})
        await until(lambda: sum(long.stats()["dropped"].values()) == 1 and long.stats()["waiting"] == 2)
        assert [(await long.receive(channel))["expiry"] for _ in range(2)] == [60, 60]

    run(scenario())


@pytest.mark.slow
def test_fifty_layers_that_were_closed_leave_nothing(make_layer: Make, run: Run) -> None:
    """Fifty closed layers leave no finalizer of multiprocessing, no thread and no descriptor.

    A thread that has ended still counts for a moment.
    """
    me = psutil.Process()

    def left() -> tuple[int, int, int]:
        gc.collect()
        return len(vars(util)["_finalizer_registry"]), me.num_threads(), me.num_fds()

    async def use() -> None:
        async with make_layer(linger=0) as layer:
            channel = await layer.new_channel()
            await layer.group_add("chat", channel)
            await layer.group_send("chat", {"n": 1})
            assert await layer.receive(channel) == {"n": 1}

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # asyncio's own number of threads varies
        sizes = []
        for number in range(50):
            await use()
            if number % 10 == 9:
                sizes.append(left())
        await until(lambda: left() == min(sizes))

    run(scenario())


@pytest.mark.slow
def test_a_layer_that_is_made_while_its_address_is_closed_as_unused_works(
    make_layer: Make, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer works also if it is made while its address is being closed as unused.

    The housekeeper closes an unused connection at once, so this happens to the next layer at any moment.
    """
    monkeypatch.setattr(connection, "UNUSED_FOR", -1.0)
    monkeypatch.setattr(connection, "NOTICE_EVERY", 0.001)

    async def scenario() -> None:
        for number in range(8):
            layer = make_layer()
            channel = await layer.new_channel()
            await layer.group_add("chat", channel)
            await layer.group_send("chat", {"n": number})
            assert await layer.receive(channel) == {"n": number}
            known = connections.connections()
            del layer
            if number % 2:
                await until(lambda: all(one.closed for one in known))  # noqa: B023 # called at once

    run(scenario())
