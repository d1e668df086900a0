"""Layers with different prefixes at one address are separate layers, and no name shows its prefix."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from channels_zmq.core import EmbeddedZmqChannelLayer
from channels_zmq.errors import ConfigurationError, RequestRefused

Make = Callable[..., Any]
Run = Callable[..., Any]
KEYS = ["an encryption key of some length"]


@pytest.mark.parametrize(
    "keys", [pytest.param([], id="plain"), pytest.param(KEYS, id="encrypted", marks=pytest.mark.slow)]
)
def test_layers_of_different_prefixes_do_not_meet(make_layer: Make, run: Run, keys: list[str]) -> None:
    """Layers with different prefixes share no message, also if one prefix begins with another one.

    This holds for groups, normal channels, and normal channels in groups.
    """

    async def scenario() -> None:
        layers = {
            prefix: make_layer(prefix=prefix, symmetric_encryption_keys=keys) for prefix in ("", "a", "ab", "a:b")
        }
        channels = {prefix: await layer.new_channel() for prefix, layer in layers.items()}
        for prefix, layer in layers.items():
            await layer.group_add("chat", channels[prefix])
            await layer.group_add("chat", "copies")
        for prefix, layer in layers.items():
            await layer.group_send("chat", {"group": prefix})
            await layer.send("jobs", {"job": prefix})
            await layer.send(channels[prefix], {"direct": prefix})
        for prefix, layer in layers.items():
            assert await layer.receive(channels[prefix]) == {"group": prefix}
            assert await layer.receive(channels[prefix]) == {"direct": prefix}
            assert await layer.receive("jobs") == {"job": prefix}
            assert await layer.receive("copies") == {"group": prefix}
        for prefix, layer in layers.items():
            await layer.group_discard("chat", channels[prefix])
            await layer.group_discard("chat", "copies")
            await layer.group_send("chat", {"late": prefix})
            await layer.send(channels[prefix], {"last": prefix})
            await layer.send("copies", {"last": prefix})
            assert await layer.receive(channels[prefix]) == {"last": prefix}
            assert await layer.receive("copies") == {"last": prefix}

    run(scenario())


def test_capacities_are_by_names_without_the_prefix(make_layer: Make, run: Run) -> None:
    """A channel has the capacity of its name without the prefix, and an error shows that name."""

    async def scenario() -> None:
        layer = make_layer(prefix="stage", channel_capacity={"jobs": 1}, prefetch=0)
        await layer.send("jobs", {"n": 1})
        with pytest.raises(ChannelFull, match="'jobs'"):
            await layer.send("jobs", {"n": 2})
        await layer.send("others", {"n": 1})
        await layer.send("others", {"n": 2})

    run(scenario())


def test_other_processes_have_the_same_prefix_or_hear_nothing(
    make_shared_layer: Make, open_peer: Callable[..., Any], run: Run
) -> None:
    """A process with another prefix gets no group message, while a direct one still reaches its known channel."""

    async def scenario() -> None:
        layer = make_shared_layer(prefix="stage")
        await layer.group_send("nobody", {})  # an embedded layer binds its address by this
        config = layer.config.model_dump(include={"prefix", "pull_socket_address", "pub_socket_address"})
        same, other = open_peer(**config), open_peer(**{**config, "prefix": "another"})
        ours = await layer.new_channel()
        await layer.group_add("chat", ours)
        channels = [await asyncio.to_thread(peer.ask, "member", "chat") for peer in (same, other)]
        await layer.group_send("chat", {"from": "group", "n": 1})
        for channel in channels:
            await layer.send(channel, {"from": "direct", "n": 2})
        assert await asyncio.to_thread(same.ask, "receive", channels[0], 2) == [["group", 1], ["direct", 2]]
        assert await asyncio.to_thread(other.ask, "receive", channels[1], 1) == [["direct", 2]]

    run(scenario())


def test_a_layer_with_a_prefix_cannot_be_flushed(make_layer: Make, run: Run) -> None:
    """A layer with a prefix refuses a flush, which would empty the others at its address; messages remain."""

    async def scenario() -> None:
        layer, other = make_layer(prefix="stage"), make_layer()
        assert "flush" not in layer.extensions
        assert "flush" in other.extensions
        await other.send("jobs", {"n": 1})
        with pytest.raises(RequestRefused, match="prefix"):
            await layer.flush()
        assert await other.receive("jobs") == {"n": 1}

    run(scenario())


@pytest.mark.parametrize("prefix", ["with blank", "ümlaut", "x" * 51, "a!b", None])
def test_bad_prefixes_are_refused(prefix: object) -> None:
    """A prefix that is too long, not a string, or contains invalid characters raises `ConfigurationError`."""
    with pytest.raises(ConfigurationError, match="prefix"):
        EmbeddedZmqChannelLayer(prefix=prefix)
