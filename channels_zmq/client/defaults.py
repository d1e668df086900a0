"""What a client needs from a layer where no call brings it along. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from channels_zmq_forwarder import wire


@dataclass(slots=True)
class Defaults:
    """The settings of the layer that was made last: it decides for all layers of an address."""

    capacity: Callable[[str], int] = lambda channel: 100
    group_expiry: float | None = None
    max_ttl: int = wire.MAX_MILLISECONDS
    """Milliseconds that a message waits to be read at most, whatever its sender says: the expiry."""
