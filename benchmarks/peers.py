"""The channel layers that are measured, each by its import path and the CONFIG that a project would give it.

Every layer is used by the Channels API only, so that ours and the peers run through the same code.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from .servers import Addresses, free_port

Message = dict[str, Any]

# More than any measure has in flight at once: a layer that drops is not faster.
CAPACITY = 1_000_000
LEAN = "-lean"
"""The end of the name of a peer whose consumers are those of `channels_zmq.consumers`."""


class Layer(Protocol):
    """The part of the Channels layer API that the measures use."""

    async def send(self, channel: str, message: Message) -> None: ...
    async def receive(self, channel: str) -> Message: ...
    async def new_channel(self) -> str: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: Message) -> None: ...


@dataclass(frozen=True, slots=True)
class Peer:
    """One channel layer and its CONFIG, which can be sent to another process.

    Args:
        name: Its name in the tables.
        backend: The dotted path of the layer's class, as in CHANNEL_LAYERS.
        config: The keyword arguments of that class.
        path: Folders to import it from, if it is not the layer of this environment.
    """

    name: str
    backend: str
    config: Mapping[str, object]
    path: tuple[str, ...] = ()

    def open(self) -> Layer:
        """Make the layer in the calling process.

        Raises:
            ImportError: If the layer is not the one of `path`, whose figures would then be those of another.
        """
        return cast(Layer, self.layer_class()(**self.config))

    def layer_class(self) -> Any:
        """Import the layer's class in the calling process.

        Raises:
            ImportError: If it is not the one of `path`.
        """
        sys.path[:0] = self.path
        module, _, name = self.backend.rpartition(".")
        imported = importlib.import_module(module)
        if self.path and not (imported.__file__ or "").startswith(self.path):
            raise ImportError(f"{module} is {imported.__file__}, which is not in {', '.join(self.path)}")
        return getattr(imported, name)


async def close(layer: Layer) -> None:
    """Close a layer that can be closed; the Redis layers close themselves with their event loop."""
    if hasattr(type(layer), "close"):
        await cast(Any, layer).close()


def peer(name: str, addresses: Addresses) -> Peer:
    """Return the channel layer of that name on the servers of this run, with or without `LEAN`.

    Args:
        name: `dedicated`, `encrypted` (the same with a key), `embedded` (reachable by TCP, on a fresh port),
            `embedded-local` (its default address), `redis-pubsub`, `redis-core` or `inmemory`.
        addresses: Where the servers listen.
    """
    # redis-py 8 ends a blocking read after 5 s by default, which ends a consumer (channels_redis issue 422), and it
    # refuses a process that needs more than 100 connections at a time.
    redis = {"address": addresses.redis, "socket_timeout": None, "max_connections": CAPACITY}
    match name.removesuffix(LEAN):
        case "dedicated" | "encrypted":
            backend = "channels_zmq.core.DedicatedZmqChannelLayer"
            config: dict[str, object] = {
                "pull_socket_address": addresses.forwarder_pull,
                "pub_socket_address": addresses.forwarder_pub,
                "capacity": CAPACITY,
            }
            if name == "encrypted":
                config["symmetric_encryption_keys"] = ["a key of the benchmark, known to all"]
        case "embedded":
            backend = "channels_zmq.core.EmbeddedZmqChannelLayer"
            config = {"pub_socket_address": f"tcp://127.0.0.1:{free_port()}", "capacity": CAPACITY}
        case "embedded-local":
            backend = "channels_zmq.core.EmbeddedZmqChannelLayer"
            config = {"capacity": CAPACITY}
        case "redis-pubsub":
            backend = "channels_redis.pubsub.RedisPubSubChannelLayer"
            config = {"hosts": [redis]}
        case "redis-core":
            backend = "channels_redis.core.RedisChannelLayer"
            config = {"hosts": [redis], "capacity": CAPACITY}
        case "inmemory":
            backend = "channels.layers.InMemoryChannelLayer"
            config = {"capacity": CAPACITY}
        case _:
            raise ValueError(f"there is no peer {name!r}")
    return Peer(name, backend, config)
