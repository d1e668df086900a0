"""The sending socket is replaced if its connection breaks or leads nowhere while the receiving one remains."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from forwarders import Forwarder, port_of, until
from relays import Relay

from channels_zmq.core import DedicatedZmqChannelLayer

pytestmark = pytest.mark.slow

MEGABYTE = 1_000_000


@pytest.fixture
def swallower() -> Iterator[zmq.Socket[bytes]]:
    """Bind a socket that takes messages as a forwarder does, and answers nothing."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull = context.socket(zmq.PULL)
    pull.bind("tcp://127.0.0.1:*")
    yield pull
    context.destroy(linger=0)


def layer_by(relay: Relay, forwarder: Forwarder, **config: Any) -> DedicatedZmqChannelLayer:
    """Return a layer that sends through the relay and receives from the forwarder directly."""
    return DedicatedZmqChannelLayer(pull_socket_address=relay.address, pub_socket_address=forwarder.pub, **config)


def swallowed_messages(swallower: zmq.Socket[bytes]) -> int:
    """Return how many group messages the swallower has, and check that all its other frames are echoes."""
    frames = []
    while swallower.poll(0):
        frames.append(swallower.recv())
    assert {frame[:1] for frame in frames} <= {b"G", b"E"}
    return sum(frame[:1] == b"G" for frame in frames)


def test_a_sending_socket_whose_echo_stays_unanswered_is_replaced(
    run: Any, forwarder: Forwarder, relay: Relay, swallower: zmq.Socket[bytes]
) -> None:
    """A sending socket whose echo remains unanswered is replaced, and all messages arrive once and in order.

    Those that the swallower took are sent again.
    """

    async def scenario() -> None:
        layer = layer_by(relay, forwarder, capacity=1000)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_send("chat", {"n": 0})
        assert (await layer.receive(channel))["n"] == 0

        relay.target = port_of(swallower.get_string(zmq.LAST_ENDPOINT))
        relay.cut()
        for number in range(1, 101):
            await layer.group_send("chat", {"n": number})
        await until(lambda: relay.accepted == 2)
        assert not layer.stats()["connected"]
        for number in range(101, 201):
            await layer.group_send("chat", {"n": number})
        relay.target = port_of(forwarder.pull)  # for new connections
        got = [(await layer.receive(channel))["n"]]
        while got[-1] != 200:
            got.append((await layer.receive(channel))["n"])

        assert got == list(range(1, 201))
        assert swallowed_messages(swallower) <= 100, "what was sent while the forwarder was known to be away has waited"
        stats = layer.stats()
        assert (stats["dropped"], stats["reconnects"], relay.accepted) == ({}, 1, 3)

    run(scenario())


def test_after_an_outage_longer_than_their_expiry_nothing_stale_arrives(
    run: Any, forwarder: Forwarder, relay: Relay
) -> None:
    """After an outage that is longer than their expiry, no stale message arrives, and each is counted as lost.

    Messages in a socket cannot expire there, so the socket is discarded; receivers notice that gap.
    """

    async def scenario() -> None:
        layer = layer_by(relay, forwarder, expiry=1.0)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_send("chat", {"n": 0})
        assert (await layer.receive(channel))["n"] == 0
        await until(lambda: layer.stats()["held"] == 0)  # acknowledged, so not counted as lost

        relay.hold()
        for _ in range(30):
            await layer.group_send("chat", {"stale": bytes(MEGABYTE)})  # more than TCP's buffers take
        under_way = layer.stats()["links"][0]["unacknowledged"]
        assert 0 < under_way < 30, "the rest waits in the outbox"
        await asyncio.to_thread(forwarder.kill)
        await asyncio.to_thread(relay.end)
        await until(lambda: not layer.stats()["connected"])
        await layer.group_send("chat", {"stale": b""})
        await until(lambda: layer.stats()["dropped"] == {"outbox_expired": 31})
        await asyncio.to_thread(forwarder.start)
        relay.start()
        await until(lambda: layer.stats()["connected"])
        await layer.group_send("chat", {"n": 1})

        assert await layer.receive(channel) == {"n": 1}
        stats = layer.stats()
        assert (stats["dropped"], stats["waiting"]) == ({"outbox_expired": 31, "missed": under_way}, 0)

    run(scenario())
