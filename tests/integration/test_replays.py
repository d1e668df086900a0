"""A receiver whose connection is cut gets the messages that were published meanwhile."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from forwarders import Forwarder, close_all, until
from relays import Relay, relay_to

from channels_zmq.core import DedicatedZmqChannelLayer

MESSAGES = 1000
ON_THE_WAY = 0.5
"""Seconds for which messages are in flight at most on a busy machine: members that join meanwhile may get them."""


@pytest.fixture
def relay(forwarder: Forwarder) -> Iterator[Relay]:
    """Relay the receiver to the forwarder's port for subscribers."""
    with relay_to(forwarder.pub) as relay:
        yield relay
        close_all()


async def deliver(layer: DedicatedZmqChannelLayer, channel: str, count: int) -> list[int]:
    return [(await layer.receive(channel))["n"] for _ in range(count)]


def layers(forwarder: Forwarder, relay: Relay) -> tuple[DedicatedZmqChannelLayer, DedicatedZmqChannelLayer]:
    """Return a layer that sends, and one that receives through the relay: two connections of one process."""
    sender = DedicatedZmqChannelLayer(pull_socket_address=forwarder.pull, pub_socket_address=forwarder.pub)
    receiver = DedicatedZmqChannelLayer(
        pull_socket_address=forwarder.pull, pub_socket_address=relay.address, capacity=2 * MESSAGES
    )
    return sender, receiver


def test_what_is_published_while_a_receiver_is_cut_off_arrives(run: Any, forwarder: Forwarder, relay: Relay) -> None:
    """Messages to groups and channels of a receiver that is cut off arrive once and in order.

    The sender repeats none of them: the forwarder replays them.
    """

    async def scenario() -> None:
        sender, receiver = layers(forwarder, relay)
        member, own = await receiver.new_channel(), await receiver.new_channel()
        await receiver.group_add("chat", member)
        readers = [asyncio.ensure_future(deliver(receiver, channel, MESSAGES)) for channel in (member, own)]

        async def send_some(numbers: range) -> None:
            for number in numbers:
                await sender.group_send("chat", {"n": number})
                await sender.send(own, {"n": number})
                await asyncio.sleep(0)

        await send_some(range(100))
        relay.end()
        await until(lambda: not receiver.stats()["connected"])
        await send_some(range(100, 900))
        relay.start()
        await until(lambda: receiver.stats()["connected"])
        await send_some(range(900, MESSAGES))
        assert await asyncio.gather(*readers) == [list(range(MESSAGES))] * 2
        assert not receiver.stats()["dropped"]
        assert [link["sent_again"] for link in sender.stats()["links"]] == [0]

    run(scenario())


def test_a_member_that_joins_when_the_connection_is_back_gets_nothing_older(
    run: Any, forwarder: Forwarder, relay: Relay
) -> None:
    """A member that joins after a cut gets no message from before, unlike the members of that time."""

    async def scenario() -> None:
        sender, receiver = layers(forwarder, relay)
        old, new = await receiver.new_channel(), await receiver.new_channel()
        await receiver.group_add("chat", old)
        relay.end()
        await until(lambda: not receiver.stats()["connected"])
        for number in range(100):
            await sender.group_send("chat", {"n": number})
        await until(lambda: sender.stats()["connected"] and not sender.stats()["held"])
        published = time.monotonic()
        await until(lambda: time.monotonic() > published + ON_THE_WAY)
        relay.start()
        await receiver.group_add("chat", new)
        await sender.group_send("chat", {"n": 100})
        assert await deliver(receiver, old, 101) == list(range(101))
        assert await deliver(receiver, new, 1) == [100]

    run(scenario())


def test_what_is_sent_to_a_process_that_is_about_to_connect_arrives(
    run: Any, forwarder: Forwarder, relay: Relay
) -> None:
    """Messages to a channel whose process has not connected yet arrive in order: others may learn its name before."""

    async def scenario() -> None:
        sender, receiver = layers(forwarder, relay)
        relay.hold()
        own = await receiver.new_channel()
        for number in range(MESSAGES):
            await sender.send(own, {"n": number})
            await asyncio.sleep(0)
        await until(lambda: not sender.stats()["held"])
        relay.resume()
        assert await deliver(receiver, own, MESSAGES) == list(range(MESSAGES))
        assert not receiver.stats()["dropped"]

    run(scenario())
