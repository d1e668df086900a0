"""Real forwarders and layers for the tests of this folder."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from channels_zmq import registry
from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

Layer = DedicatedZmqChannelLayer | EmbeddedZmqChannelLayer
PATIENCE = 20.0


def free_ports(count: int) -> list[int]:
    """Return TCP ports of the loopback that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


class Forwarder:
    """A forwarder in a process of its own, which can be killed and started again at the same addresses."""

    def __init__(self, pull: str, pub: str, *, settle: float = 0.3) -> None:
        self.pull, self.pub = pull, pub
        self.admin = f"127.0.0.1:{free_ports(1)[0]}"
        self._settle = settle
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {"pull_socket_address": self.pull, "pub_socket_address": self.pub}

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it lets producers in."""
        command = [sys.executable, "-m", "channels_zmq_forwarder", "--settle", str(self._settle)]
        command += ["--pull-address", self.pull, "--pub-address", self.pub, "--admin-address", self.admin]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while wait and not self.is_ready():
            assert self._process.poll() is None, "the forwarder has ended"
            time.sleep(0.01)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.admin}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it and wait until it is gone."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE)
            self._process = None

    def kill(self) -> None:
        self.end(signal.SIGKILL)


@pytest.fixture
def forwarder() -> Iterator[Forwarder]:
    """A forwarder of this test alone."""
    pull, pub = free_ports(2)
    own = Forwarder(f"tcp://127.0.0.1:{pull}", f"tcp://127.0.0.1:{pub}")
    own.start()
    yield own
    own.end()


@pytest.fixture(scope="session", params=["tcp", "ipc"])
def shared_forwarder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forwarder]:
    """A forwarder that tests share; each test uses names of its own."""
    if request.param == "tcp":
        pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    else:
        folder = tmp_path_factory.mktemp("forwarder")
        pull, pub = f"ipc://{folder}/pull", f"ipc://{folder}/pub"
    forwarder = Forwarder(pull, pub)
    forwarder.start()
    yield forwarder
    forwarder.end()


@pytest.fixture(params=["embedded-inproc", "embedded-tcp", "embedded-ipc", "dedicated"])
def make_layer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Layer]]:
    """Make layers of one topology and address; their connections are closed at the end."""
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


def close_all() -> None:
    """Close every connection of this process, as at interpreter exit."""
    for known in list(registry.connections()):
        registry.close(known)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run a coroutine to its end on a new event loop, bounded in time."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(PATIENCE):
                return await coroutine

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(bounded())

    return run
