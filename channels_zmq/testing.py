"""For tests of applications: a layer for one test, a forwarder for some, and messages with a deadline.

`channels_zmq.pytest_plugin` makes fixtures of the first two. Nothing here needs pytest.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings
from django.test import override_settings

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.environment import DEDICATED, EMBEDDED
from channels_zmq.serializers import Message
from channels_zmq.tools.layers import Layer
from channels_zmq.tools.probe import probe

FORWARDERS_VARIABLES = "CHANNELS_ZMQ_FORWARDER_"
START = 30.0
"""Seconds that a forwarder may take to start, on a machine that is busy with other tests."""
END = 10.0
"""Seconds that it may take to end."""


class NoMessage(AssertionError):
    """No message arrived in time."""


@contextmanager
def embedded_layer(config: Mapping[str, Any] | None = None, *, alias: str = "default") -> Iterator[Layer]:
    """Put an embedded layer of this process alone in the place of an alias, with an address that no other process uses.

    Args:
        config: Keys of CONFIG.
        alias: Of `CHANNEL_LAYERS`, which may lack it.

    Yields:
        The layer; it is closed afterwards.
    """
    with _replaced(
        alias, EMBEDDED, {"pub_socket_address": f"inproc://test-{os.urandom(8).hex()}", **(config or {})}
    ) as own:
        yield own


@contextmanager
def dedicated_layer(
    addresses: Mapping[str, Any], config: Mapping[str, Any] | None = None, *, alias: str = "default"
) -> Iterator[Layer]:
    """Put a dedicated layer in the place of an alias, with a prefix that no other process uses.

    A prefix separates layers that share a forwarder. `flush` is refused with one.

    Args:
        addresses: `pull_socket_address` and `pub_socket_address`, as `ForwarderProcess.config` has them.
        config: Further keys of CONFIG.
        alias: Of `CHANNEL_LAYERS`, which may lack it.

    Yields:
        The layer; it is closed afterwards.
    """
    with _replaced(alias, DEDICATED, {**addresses, "prefix": f"test-{os.urandom(4).hex()}", **(config or {})}) as own:
        yield own


@contextmanager
def _replaced(alias: str, backend: str, config: dict[str, Any]) -> Iterator[Layer]:
    others = getattr(settings, "CHANNEL_LAYERS", {})
    with override_settings(CHANNEL_LAYERS={**others, alias: {"BACKEND": backend, "CONFIG": config}}):
        layer: Layer = get_channel_layer(alias)
        try:
            yield layer
        finally:
            async_to_sync(layer.close)()


class ForwarderProcess:
    """A forwarder in a separate process, at `ipc://` paths in a new temporary folder.

    Args:
        flags: Further flags of channels-zmq-forwarder, but for keys: `start` examines it without any.
    """

    def __init__(self, *flags: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="channels-zmq-")
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> dict[str, str]:
        """Its addresses, as CONFIG takes them."""
        paths = {"pull_socket_address": "pull", "pub_socket_address": "pub"}
        return {key: f"ipc://{self._folder}/{name}" for key, name in paths.items()}

    def start(self) -> None:
        """Start it, and wait until it accepts messages.

        Raises:
            RuntimeError: If it ends, or does not serve in time; the message contains its log.
        """
        command = [sys.executable, "-m", "channels_zmq_forwarder", "--settle", "0.05", "--status-address", ""]
        command += ["--pull-address", self.config["pull_socket_address"], "--admin-address", "", *self._flags]
        command += ["--pub-address", self.config["pub_socket_address"]]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(FORWARDERS_VARIABLES)}
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        layer, until = DedicatedZmqChannelLayer(**self.config), time.monotonic() + START
        while (finding := probe(layer, 1.0)[0]).problem:
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                with open(self._log, encoding="utf-8", errors="replace") as log_text:
                    raise RuntimeError(f"the forwarder does not start: {finding.problem}\n{log_text.read()}")

    def stop(self, *, kill: bool = False) -> None:
        """End it, by SIGTERM or at once; `start` starts it again at its addresses."""
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def _log(self) -> str:
        return f"{self._folder}/log"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


class GroupListener:
    """A member of a group, for `with` or `async with`; it receives every message that is sent inside the block.

    Args:
        group: Its name.
        alias: Of the layer.
    """

    def __init__(self, group: str, *, alias: str = "default") -> None:
        self.group, self._alias = group, alias
        self._layer: Any = None
        self._channel = ""

    async def receive(self, timeout: float = 1.0) -> Message:
        """Return the next message.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            NoMessage: If no message arrives in time; an `AssertionError`.
        """
        try:
            return dict(await asyncio.wait_for(self._layer.receive(self._channel), timeout))
        except TimeoutError:
            raise NoMessage(f"no message to group {self.group!r} within {timeout:g} s") from None

    def receive_sync(self, timeout: float = 1.0) -> Message:
        """Do what `receive` does, where no event loop runs."""
        return dict(async_to_sync(self.receive)(timeout))

    async def __aenter__(self) -> Self:
        self._layer = get_channel_layer(self._alias)
        self._channel = await self._layer.new_channel("listener")
        await self._layer.group_add(self.group, self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._layer.group_discard(self.group, self._channel)

    def __enter__(self) -> Self:
        async_to_sync(self.__aenter__)()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async_to_sync(self.__aexit__)(kind, error, traceback)
