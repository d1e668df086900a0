"""The settings of CONFIG that a connection needs, parsed and frozen."""

from dataclasses import dataclass

from channels_zmq.encryption import Keyring
from channels_zmq.keys import ClientKeySource, ServerKeySource


@dataclass(frozen=True, slots=True)
class Options:
    """Bounds and times of one connection: durations in seconds, sizes in bytes."""

    connect_timeout: float
    expiry: float
    linger: float
    max_message_size: int
    outbox_capacity: int
    outbox_bytes: int
    resolve_every: float = 5.0
    subscriber_bytes: int = 64 * 2**20
    keys: ClientKeySource | None = None
    server_keys: ServerKeySource | None = None
    keyring: Keyring | None = None
