"""IPv6, by a literal address and by a name that has no IPv4 address."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from forwarders import Forwarder, close_all, free_ports

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

Make = Callable[..., Any]
Run = Callable[..., Any]


def only_ipv6(name: str) -> bool:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return {family for family, *_ in found} == {socket.AF_INET6}


@pytest.fixture(params=["[::1]", "name"])
def host(request: pytest.FixtureRequest) -> str:
    """Return a host that is reached by IPv6 alone."""
    if request.param != "name":
        return str(request.param)
    name = next((name for name in ("ip6-localhost", "ip6-loopback") if only_ipv6(name)), None)
    if name is None:
        pytest.skip("this machine has no name for the loopback that resolves to IPv6 alone")
    return name


@pytest.fixture
def config(request: pytest.FixtureRequest, host: str, topology: str) -> Iterator[dict[str, Any]]:
    """Return the CONFIG of a layer of either topology."""
    pull, pub = (f"tcp://{host}:{port}" for port in free_ports(2))
    if topology == "dedicated":
        forwarder = Forwarder(pull, pub)
        forwarder.start()
        yield forwarder.config
        close_all()
        forwarder.end()
    else:
        yield {"pub_socket_address": pub}
        close_all()


@pytest.mark.parametrize("topology", ["embedded", "dedicated"])
def test_messages_pass_by_ipv6(run: Run, open_peer: Make, topology: str, config: dict[str, Any]) -> None:
    """By IPv6, messages pass to a group, to a channel of another process, and to a normal channel."""
    make = DedicatedZmqChannelLayer if topology == "dedicated" else EmbeddedZmqChannelLayer
    peer = open_peer(**config)

    async def scenario() -> None:
        layer = make(**config)
        await layer.group_send("none", {})
        await asyncio.to_thread(peer.ask, "until_connected", True)
        channel = await asyncio.to_thread(peer.ask, "member", "chat")
        await layer.group_send("chat", {"from": "0", "n": 0})
        await layer.send(channel, {"from": "0", "n": 1})
        await layer.send("jobs", {"from": "0", "n": 2})
        assert await asyncio.to_thread(peer.ask, "receive", channel, 2) == [["0", 0], ["0", 1]]
        assert await asyncio.to_thread(peer.ask, "receive", "jobs", 1) == [["0", 2]]

    run(scenario())
