"""Joins: one subscription for each group, no earlier messages, and a failed join that undoes only itself."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from event_loops import FACTORIES
from forwarders import Forwarder, close_all, free_ports, until
from relays import relay_to

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer
from channels_zmq.errors import ForwarderUnavailable, OwnerUnavailable

pytestmark = pytest.mark.parametrize("run", FACTORIES, indirect=True)

Make = Callable[..., Any]
Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    close_all()


async def is_away(layer: Any) -> None:
    await until(lambda: not layer.stats()["connected"])


async def is_back(layer: Any) -> None:
    await until(lambda: layer.stats()["connected"])


def test_a_member_that_is_added_a_hundred_times_has_one_subscription(run: Run, forwarder: Forwarder) -> None:
    """A member that is added a hundred times has one subscription, which a single discard ends."""

    def topics() -> list[str]:
        return [line for line in forwarder.metrics().splitlines() if "_subscriptions " in line and line[0] != "#"]

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        channel = await layer.new_channel()
        await layer.send("jobs", {})  # connected
        before = await asyncio.to_thread(topics)
        for _ in range(100):
            await layer.group_add("chat", channel)
        assert (await asyncio.to_thread(forwarder.status))["groups"] == 1
        await layer.group_discard("chat", channel)
        await layer.flush()  # behind the unsubscription, by the same way
        assert (await asyncio.to_thread(forwarder.status))["groups"] == 0
        assert await asyncio.to_thread(topics) == before

    run(scenario())


def test_a_renewal_that_fails_in_an_outage_leaves_the_membership(run: Run, forwarder: Forwarder) -> None:
    """A renewal that fails in an outage leaves the membership, so a message after the outage arrives."""

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, connect_timeout=1.5)
        channel = await layer.new_channel()
        await is_back(layer)
        await layer.group_add("chat", channel)
        await asyncio.to_thread(forwarder.kill)
        await is_away(layer)
        with pytest.raises(ForwarderUnavailable):
            await layer.group_add("chat", channel)
        await asyncio.to_thread(forwarder.start)
        await is_back(layer)
        await layer.group_send("chat", {"n": 1})
        assert await layer.receive(channel) == {"n": 1}

    run(scenario())


def test_a_change_by_another_process_waits_for_an_owner_that_has_lost_its_connection(
    run: Run, forwarder: Forwarder
) -> None:
    """A change of a membership by another process waits for the owner, which reconnects a moment later.

    The requesting process is connected all the time.
    """

    async def scenario() -> None:
        with relay_to(forwarder.pub) as relay:
            asking = DedicatedZmqChannelLayer(**forwarder.config)
            owning = DedicatedZmqChannelLayer(**forwarder.config | {"pub_socket_address": relay.address})
            channel = await owning.new_channel()
            await owning.group_add("leaves", channel)
            await asking.group_send("leaves", {"left": False})
            assert await owning.receive(channel) == {"left": False}
            relay.end()
            while (status := await asyncio.to_thread(forwarder.status))["clients"] > 1:
                pass
            changes = [
                asyncio.ensure_future(asking.group_add("joins", channel)),
                asyncio.ensure_future(asking.group_discard("leaves", channel)),
            ]
            asked_often = status["frames_in"] + 10 * len(changes)  # an acknowledgement may be requested in between
            while not changes[0].done() and (await asyncio.to_thread(forwarder.status))["frames_in"] < asked_often:
                pass
            relay.start()
            await asyncio.gather(*changes)
            await asking.group_send("leaves", {"left": True})
            await asking.group_send("joins", {"joined": True})
            assert await owning.receive(channel) == {"joined": True}
            close_all()

    run(scenario())


def test_a_change_by_another_process_raises_if_the_owner_stays_away(run: Run, forwarder: Forwarder) -> None:
    """A join by another process raises `OwnerUnavailable` if the owner stays away for longer than the timeout.

    The owner may return, and would not know of the change.
    """

    async def scenario() -> None:
        with relay_to(forwarder.pub) as relay:
            asking = DedicatedZmqChannelLayer(**forwarder.config, connect_timeout=1.5)
            owning = DedicatedZmqChannelLayer(**forwarder.config | {"pub_socket_address": relay.address})
            channel = await owning.new_channel()
            await owning.group_add("chat", channel)
            await is_back(asking)
            relay.end()
            while (await asyncio.to_thread(forwarder.status))["clients"] > 1:
                pass
            with pytest.raises(OwnerUnavailable, match=r"was not back within 1\.5 s"):
                await asking.group_add("more", channel)
            close_all()

    run(scenario())


def test_a_reader_whose_connection_was_cut_waits_for_its_producer(run: Run) -> None:
    """A reader whose connection was cut waits for its producer, so that its flush and its join succeed.

    With the loss ZeroMQ reports that it is about to reconnect, not that it has tried to.
    """
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"

    async def scenario() -> None:
        with relay_to(address) as relay:
            producer = EmbeddedZmqChannelLayer(pub_socket_address=address)
            reader = EmbeddedZmqChannelLayer(pub_socket_address=relay.address)
            await producer.group_send("nobody", {})
            own, channel = await producer.new_channel(), await reader.new_channel()
            await is_back(reader)
            await producer.send(own, {"flushed": True})
            for call in (reader.flush, partial(reader.group_add, "chat", channel)):
                relay.hold()
                relay.cut()
                await is_away(reader)
                relay.resume()
                await call()
            await producer.send(own, {"flushed": False})
            assert await producer.receive(own) == {"flushed": False}
            await producer.group_send("chat", {"n": 1})
            assert await reader.receive(channel) == {"n": 1}
            close_all()

    run(scenario())


def test_a_cancelled_join_takes_nothing_from_another_one_of_the_same_channel(make_shared_layer: Make, run: Run) -> None:
    """If one of two simultaneous joins of a channel is cancelled, the other one succeeds all the same.

    Either is cancelled, some turns of the loop later each time.
    """

    async def scenario() -> None:
        layer = make_shared_layer()
        await layer.group_send("chat", {})  # the embedded one is the producer
        for number in range(20):
            group, channel = f"chat-{number}", await layer.new_channel()
            joins = [asyncio.create_task(layer.group_add(group, channel)) for _ in range(2)]
            for _ in range(number // 2):
                await asyncio.sleep(0)
            joins[number % 2].cancel()
            await asyncio.gather(*joins, return_exceptions=True)
            assert joins[1 - number % 2].exception() is None
            await layer.group_send(group, {"n": number})
            assert await layer.receive(channel) == {"n": number}

    run(scenario())


@pytest.mark.slow
def test_a_joining_reader_of_an_embedded_layer_may_cancel_beside_another(run: Run, open_peer: Make) -> None:
    """A cancelled join does not affect another one of its channel where joins wait for a producer process."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    producer = open_peer(pub_socket_address=address)
    producer.ask("send", "group:none", "0", 0, 1)

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=address)
        await layer.new_channel()
        await is_back(layer)
        for number in range(20):
            group, channel = f"chat-{number}", await layer.new_channel()
            joins = [asyncio.create_task(layer.group_add(group, channel)) for _ in range(2)]
            for _ in range(number // 2):
                await asyncio.sleep(0)
            joins[number % 2].cancel()
            await asyncio.gather(*joins, return_exceptions=True)
            await asyncio.to_thread(producer.ask, "send", f"group:{group}", "0", number, 1)
            assert (await layer.receive(channel))["n"] == number

    run(scenario())


def test_a_process_gets_no_message_of_its_own_from_before_its_join(make_shared_layer: Make, run: Run) -> None:
    """A process gets none of the 100 messages that it sent just before its join; the first one is from afterwards."""

    async def scenario() -> None:
        layer = make_shared_layer(capacity=1000)
        await layer.group_send("none", {})
        for number in range(50):
            group, channel = f"chat-{number}", await layer.new_channel()
            for _ in range(100):
                await layer.group_send(group, {"before": True})
            await layer.group_add(group, channel)
            await layer.group_send(group, {"n": number})
            assert await layer.receive(channel) == {"n": number}
            await layer.group_discard(group, channel)
        assert layer.stats()["waiting"] == 0

    run(scenario())


@pytest.mark.slow
def test_a_process_gets_no_message_of_its_own_that_was_held_before_its_join(run: Run, forwarder: Forwarder) -> None:
    """A process gets no message that its outbox held before its join, although it is published afterwards."""

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, connect_timeout=20)
        first = await layer.new_channel()
        await layer.group_add("chat", first)
        await layer.group_discard("chat", first)
        await asyncio.to_thread(forwarder.kill)
        await is_away(layer)
        for _ in range(20):
            await layer.group_send("chat", {"before": True})
        second = await layer.new_channel()
        join = asyncio.create_task(layer.group_add("chat", second))
        await asyncio.sleep(0)
        await layer.group_send("chat", {"during": True})
        await asyncio.to_thread(forwarder.start)
        await join
        await layer.group_send("chat", {"n": 1})
        got = [await layer.receive(second)]
        while got[-1] != {"n": 1}:
            got.append(await layer.receive(second))
        assert {"before": True} not in got

    run(scenario())


@pytest.mark.slow
def test_a_second_member_that_joins_in_an_outage_misses_nothing_afterwards(
    run: Run, forwarder: Forwarder, open_peer: Make
) -> None:
    """A second member that joins in an outage misses no message that is sent after its join has returned.

    The process has subscribed for the first member, but the forwarder is away: the join waits.
    """
    sender = open_peer(**forwarder.config)
    sender.ask("until_connected", True)

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, connect_timeout=20, capacity=1000)
        first, second = [await layer.new_channel() for _ in range(2)]
        await layer.group_add("chat", first)
        await asyncio.to_thread(forwarder.kill)
        await is_away(layer)
        join = asyncio.create_task(layer.group_add("chat", second))
        await asyncio.sleep(0)
        assert not join.done()
        await asyncio.to_thread(forwarder.start)
        await join
        await asyncio.to_thread(sender.ask, "send", "group:chat", "0", 0, 200)
        assert [(await layer.receive(second))["n"] for _ in range(200)] == list(range(200))

    run(scenario())
