"""Real forwarders and layers for the tests of this folder."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from event_loops import FACTORIES
from forwarders import PATIENCE, Forwarder, close_all, free_ports
from network import Network, missing
from peers import Peer
from relays import Relay, relay_to

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

Layer = DedicatedZmqChannelLayer | EmbeddedZmqChannelLayer


@pytest.fixture
def forwarder() -> Iterator[Forwarder]:
    """Start a forwarder that only this test uses."""
    pull, pub = free_ports(2)
    own = Forwarder(f"tcp://127.0.0.1:{pull}", f"tcp://127.0.0.1:{pub}")
    own.start()
    yield own
    own.end()


@pytest.fixture
def relay(forwarder: Forwarder) -> Iterator[Relay]:
    """Relay senders to the forwarder's port for producers; receivers connect to the forwarder directly."""
    with relay_to(forwarder.pull) as relay:
        yield relay
        close_all()


@pytest.fixture
def network() -> Iterator[Network]:
    """Create a network that only this test uses."""
    if lacking := missing("ip"):
        pytest.skip(lacking)
    with Network() as network:
        yield network


@pytest.fixture(params=["embedded-inproc", "embedded-tcp", "embedded-ipc", "dedicated"])
def make_layer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Layer]]:
    """Return a function that makes layers of one topology and address, and close their connections at the end."""
    if request.param == "dedicated":
        shared = request.getfixturevalue("forwarder")

        def make(**config: Any) -> Layer:
            return DedicatedZmqChannelLayer(**shared.config, **config)
    else:
        addresses = {
            "embedded-inproc": f"inproc://{os.urandom(4).hex()}",
            "embedded-tcp": f"tcp://127.0.0.1:{free_ports(1)[0]}",
            "embedded-ipc": f"ipc://{tmp_path}/pub",
        }

        def make(**config: Any) -> Layer:
            return EmbeddedZmqChannelLayer(pub_socket_address=addresses[request.param], **config)

    yield make
    close_all()


@pytest.fixture(params=["embedded-tcp", "dedicated"])
def make_shared_layer(request: pytest.FixtureRequest) -> Iterator[Callable[..., Layer]]:
    """Return a function that makes layers of one topology at an address that other processes can reach."""
    if request.param == "dedicated":
        config = request.getfixturevalue("forwarder").config
        yield partial(DedicatedZmqChannelLayer, **config)
    else:
        yield partial(EmbeddedZmqChannelLayer, pub_socket_address=f"tcp://127.0.0.1:{free_ports(1)[0]}")
    close_all()


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    """Start Chromium."""
    from browsers import chromium  # only the tests with a browser need playwright

    async with chromium() as browser:
        yield browser


@pytest.fixture
def open_peer() -> Iterator[Callable[..., Peer]]:
    """Return a function that starts processes with the layer of a CONFIG, and kill them after the test."""
    peers: list[Peer] = []

    def open_peer(loop: str = "asyncio", **config: Any) -> Peer:
        peers.append(Peer(loop, **config))
        return peers[-1]

    yield open_peer
    for peer in peers:
        peer.kill()


@pytest.fixture(params=[name for name in FACTORIES if name != "readerless"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a function that runs a coroutine on a new event loop, bounded in time.

    A module may parametrize it with all `FACTORIES`.
    """

    def run(coroutine: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(PATIENCE):
                return await coroutine

        with asyncio.Runner(loop_factory=FACTORIES[request.param]) as runner:
            return runner.run(bounded())

    return run
