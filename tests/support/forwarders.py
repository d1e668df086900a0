"""Real forwarders, and utilities that the tests of several folders share."""

import asyncio
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import forwarder_process

from channels_zmq import connections
from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

try:
    import fcntl
except ImportError:  # not available on Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 20.0
PORTS = range(20_000, 32_000)
"""Below the range that Linux assigns to connecting sockets, which could take a port that is free for a moment."""
CLAIMS = 500
"""Ports that a process may claim at a time: far fewer are in use, and other processes need some."""


class _Ports:
    """An iterator of ports, each returned once in a long time, that no other testing process claims.

    A claim is a lock on one byte of a file, which ends with its process. On Windows nothing is claimed.
    """

    def __init__(self) -> None:
        self._candidates = itertools.cycle(random.sample(PORTS, len(PORTS)))
        self._claimed: deque[int] = deque()
        if fcntl is not None:
            file = f"{tempfile.gettempdir()}/channels-zmq-tests-ports-{os.getuid()}"
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)

    def __next__(self) -> int:
        """Return the next port.

        Raises:
            OSError: If another process claims it.
        """
        port = next(self._candidates)
        if fcntl is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            self._claimed.append(port)
            if len(self._claimed) > CLAIMS:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, self._claimed.popleft())
        return port


_ports = _Ports()


def free_ports(count: int) -> list[int]:
    """Return TCP ports of the loopback that are free at the moment."""
    servers: list[socket.socket] = []
    while len(servers) < count:
        with contextlib.suppress(OSError):  # the port is in use, or claimed by another process
            servers.append(socket.create_server(("127.0.0.1", next(_ports))))
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def port_of(address: str) -> int:
    """Return the port of a TCP address."""
    return int(address.rpartition(":")[2])


@functools.cache
def _forking() -> "ForkServerContext":
    """Return the context that forks processes from one which has imported the forwarder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(forwarder_process.IMPORTED)
    return context


class Forwarder:
    """A forwarder in its own process, which can be killed and started again at the same addresses."""

    def __init__(
        self,
        pull: str,
        pub: str,
        *,
        settle: float = 0.3,
        flags: tuple[str, ...] = (),
        log: Path | None = None,
        descriptors: int | None = None,
    ) -> None:
        self.pull, self.pub = pull, pub
        self.admin = f"127.0.0.1:{free_ports(1)[0]}"
        self._flags = ("--settle", str(settle), *flags)
        self._log = log
        self._descriptors = descriptors
        self._process: BaseProcess | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {"pull_socket_address": self.pull, "pub_socket_address": self.pub}

    def start(self, *, wait: bool = True) -> None:
        """Start the forwarder, and wait until it accepts producers unless told otherwise."""
        addresses = "--pull-address", self.pull, "--pub-address", self.pub, "--admin-address", self.admin
        how = [*self._flags, *addresses], dict(os.environ), self._log or Path(os.devnull), self._descriptors
        self._process = _forking().Process(target=forwarder_process.run, args=how, daemon=True)
        self._process.start()
        deadline = time.monotonic() + PATIENCE
        while wait and not self.is_ready():
            if self._process.exitcode is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"the forwarder did not start:\n{self.log_text() if self._log else '(not logged)'}"
                )
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        """The id of the forwarder's process."""
        assert self._process is not None, "it runs"
        assert self._process.pid is not None
        return self._process.pid

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.admin}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def status(self) -> dict[str, Any]:
        """Return the content of the status page."""
        with urllib.request.urlopen(f"http://{self.admin}/status.json", timeout=5) as answer:
            return dict(json.load(answer))

    def metrics(self) -> str:
        """Return the metrics in Prometheus's text format."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def descriptors(self) -> int:
        """Return the number of open descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def log_text(self) -> str:
        """Return the log."""
        assert self._log is not None, "given at its making"
        return self._log.read_text(encoding="utf-8")

    def end(self, number: int = signal.SIGTERM) -> int:
        """End the forwarder by a signal, wait for the end, and return the exit code, 0 if it was not running."""
        if self._process is None:
            return 0
        if self._process.exitcode is None:
            os.kill(self.pid, number)
        process, self._process = self._process, None
        process.join(PATIENCE)
        ended = process.exitcode is not None
        if not ended:  # the test fails, and must not affect another one
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
        assert ended, f"a forwarder has not ended by the signal {number}"
        return code or 0

    def freeze(self) -> None:
        """Freeze the forwarder, after which only `kill` ends it."""
        os.kill(self.pid, signal.SIGSTOP)

    def kill(self) -> None:
        self.end(signal.SIGKILL)


def config_of(layer: DedicatedZmqChannelLayer | EmbeddedZmqChannelLayer) -> dict[str, Any]:
    """Return the addresses of a layer, by which another process can use the same one."""
    return {key: value for key, value in layer.config.model_dump().items() if key.endswith("socket_address")}


def close_all() -> None:
    """Close every connection of this process, as at interpreter exit."""
    for known in list(connections.connections()):
        connections.close(known)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; the timeout of the test bounds the wait."""
    while not condition():
        await asyncio.sleep(0.005)
