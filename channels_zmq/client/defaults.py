"""The settings of a layer that a client needs where no call passes them. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from channels_zmq_forwarder import wire


@dataclass(slots=True)
class Defaults:
    """The settings of the layer that began last to use a connection: they apply to all its layers."""

    capacity: Callable[[str], int] = lambda channel: 100
    group_expiry: float | None = None
    max_ttl: int = wire.MAX_MILLISECONDS
    """Maximum milliseconds that a message waits to be read, even if its sender permits more: the longest expiry of the
    layers."""
