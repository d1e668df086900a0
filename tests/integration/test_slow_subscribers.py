"""A process that does not keep up loses only its own messages, and the memory is bounded."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from forwarders import Forwarder, close_all, config_of, free_ports, until

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer
from channels_zmq_forwarder.wire import group_topic

BEHIND = 4 * 2**20
LARGE = 16 * 2**20
"""The largest message in bytes, from which the heartbeats' timeout follows, so that they do not disconnect first."""
TEXT = "x" * 50_000
AT_ONCE = 20


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Forwarder]:
    """Start a forwarder that bounds the backlog of a subscriber."""
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    forwarder = Forwarder(
        pull, pub, flags=("--subscriber-bytes", f"{BEHIND}", "--max-message-size", f"{LARGE}"), log=tmp_path / "log"
    )
    forwarder.start()
    yield forwarder
    forwarder.end()


@pytest.fixture(params=["embedded-tcp", "dedicated"])
def bounded(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[tuple[Any, Any, Any]]:
    """Return a layer whose subscribers may be `BEHIND`, the address to subscribe to, and a function for its log."""
    layer: DedicatedZmqChannelLayer | EmbeddedZmqChannelLayer
    settings: dict[str, Any] = {"capacity": 10_000, "max_message_size": LARGE}
    if request.param == "dedicated":
        forwarder = request.getfixturevalue("guarded")
        layer = DedicatedZmqChannelLayer(**forwarder.config, **settings)
        yield layer, forwarder.pub, forwarder.log_text
    else:
        address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        layer = EmbeddedZmqChannelLayer(pub_socket_address=address, subscriber_bytes=BEHIND, **settings)
        with caplog.at_level(logging.WARNING, "channels_zmq"):
            yield layer, address, lambda: caplog.text
    close_all()


async def join(layer: Any) -> str:
    """Join in another process, and return the channel."""
    await until(lambda: layer.stats()["connected"])  # a reader without a producer does not wait for it
    channel = str(await layer.new_channel())
    await layer.group_add("all", channel)
    return channel


async def read(layer: Any, channel: str) -> list[int]:
    """Read `AT_ONCE` messages in another process, and return their numbers."""
    return [(await layer.receive(channel))["n"] for _ in range(AT_ONCE)]


def test_only_the_connection_of_a_subscriber_that_does_not_keep_up_is_ended(
    bounded: tuple[Any, str, Callable[[], str]], open_peer: Callable[..., Any], run: Callable[..., Any]
) -> None:
    """Only the connection of a subscriber that reads nothing is ended, and another one gets everything in order."""
    layer, address, log = bounded

    async def scenario() -> None:
        await layer.group_send("nobody", {})  # makes an embedded layer bind, which holds messages for a moment
        peer = await asyncio.to_thread(open_peer, **config_of(layer), capacity=10_000, max_message_size=LARGE)
        channel = await asyncio.to_thread(peer.run, join)
        await until(lambda: layer.stats()["connected"] and not layer.stats()["held"])
        with zmq.Context() as context, context.socket(zmq.SUB) as stuck:
            stuck.set(zmq.RCVHWM, 1)
            stuck.set(zmq.LINGER, 0)
            stuck.subscribe(group_topic("all"))
            stuck.connect(address)
            first = 0
            while "behind" not in log():
                numbers = range(first, first + AT_ONCE)
                for number in numbers:
                    await layer.group_send("all", {"n": number, "text": TEXT})
                assert await asyncio.to_thread(peer.run, read, channel) == list(numbers)
                first += AT_ONCE

    run(scenario())
    assert log().count("behind") == 1
