"""Backlogs for a forwarder whose connection stalls or is cut are bounded, and arrive in full."""

import contextlib
from collections.abc import Awaitable, Callable

import psutil
import pytest
from channels.exceptions import ChannelFull
from event_loops import FACTORIES
from forwarders import Forwarder, until
from relays import Relay

from channels_zmq.client.window import BLOCK_BYTES
from channels_zmq.core import DedicatedZmqChannelLayer

Run = Callable[[Awaitable[None]], None]
MESSAGES = 30_000


def held(layer: DedicatedZmqChannelLayer) -> int:
    return int(layer.stats()["held"])


@pytest.mark.parametrize("run", FACTORIES, indirect=True)
def test_a_connection_that_is_cut_under_a_backlog_loses_nothing(run: Run, forwarder: Forwarder, relay: Relay) -> None:
    """Of 30,000 messages to a group and a process, none is lost, repeated or reordered by two cuts."""

    async def scenario() -> None:
        many = {"capacity": 10**6, "outbox_capacity": 10**6}
        by_relay = forwarder.config | {"pull_socket_address": relay.address}
        sender = DedicatedZmqChannelLayer(**by_relay, **many)
        receiver = DedicatedZmqChannelLayer(**forwarder.config, **many)
        channels = [await receiver.new_channel() for _ in range(2)]
        await receiver.group_add("chat", channels[0])
        await sender.group_send("chat", {"n": -1})
        assert await receiver.receive(channels[0]) == {"n": -1}
        relay.hold()
        for number in range(MESSAGES // 2):
            await sender.group_send("chat", {"n": number})
            await sender.send(channels[1], {"n": number})
        assert held(sender) > 0
        for _ in range(2):
            relay.cut()
            relay.resume()
        for channel in channels:
            assert [(await receiver.receive(channel))["n"] for _ in range(MESSAGES // 2)] == list(range(MESSAGES // 2))
        await until(lambda: held(sender) == 0)
        assert (sender.stats()["dropped"], receiver.stats()["dropped"]) == ({}, {})

    run(scenario())


def test_what_waits_for_a_connection_that_stands_still_is_bounded(run: Run, forwarder: Forwarder, relay: Relay) -> None:
    """A stalled connection holds at most `outbox_bytes` in the window and again in the outbox.

    Every message that was accepted arrives once and in order.
    """
    bound, size = 2**20, 10_000

    async def scenario() -> None:
        by_relay = forwarder.config | {"pull_socket_address": relay.address}
        sender = DedicatedZmqChannelLayer(**by_relay, outbox_bytes=bound)
        receiver = DedicatedZmqChannelLayer(**forwarder.config, capacity=10**6)
        channel = await receiver.new_channel()
        await sender.send(channel, {"n": -1})
        assert await receiver.receive(channel) == {"n": -1}
        relay.hold()
        before, count = psutil.Process().memory_info().rss, 0
        with contextlib.suppress(ChannelFull):
            while True:
                await sender.send(channel, {"n": count, "padding": "x" * size})
                count += 1
        with pytest.raises(ChannelFull, match="raise outbox_bytes"):
            await sender.send(channel, {"n": count, "padding": "x" * size})
        assert bound < count * size < 2 * bound + BLOCK_BYTES
        assert psutil.Process().memory_info().rss - before < 16 * bound
        relay.resume()
        assert [(await receiver.receive(channel))["n"] for _ in range(count)] == list(range(count))

    run(scenario())
