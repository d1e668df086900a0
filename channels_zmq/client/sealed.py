"""A client of a layer with encryption keys: it decrypts group and direct messages when they arrive.

In the data-flow diagram this is between the client and the mailboxes. A payload is decrypted once for all local members
of its group, and waits in their mailboxes as plain bytes. Messages of normal channels stay encrypted until a reader
takes them, since unread ones are handed back to the exchange.
"""

from typing import Any, Protocol

from channels_zmq.client.client import Client
from channels_zmq_forwarder.wire import Topic


class Opener(Protocol):
    """Opens payloads; None for one that was not sealed with a known key, or for another place."""

    def open_from_group(self, topic: bytes, sealed: bytes, /) -> bytes | None: ...  # noqa: D102

    def open_from_channel(self, channel: str, sealed: bytes, /) -> bytes | None: ...  # noqa: D102


class SealedClient(Client):
    """The state of one process at one address, for a layer with encryption keys.

    Args:
        secret: See `Client`.
        sender: See `Client`.
        opener: Opens payloads.
        **bounds: See `Client`.
    """

    def __init__(self, secret: bytes, sender: bytes, opener: Opener, **bounds: Any) -> None:
        super().__init__(secret, sender, **bounds)
        self._opener = opener

    def deliver_group(self, topic: Topic, ttl: int, payload: bytes) -> None:
        """Put a group message into the mailboxes of its members, once it is opened."""
        if topic in self.memberships.groups:
            opened = self._counted(self._opener.open_from_group(topic, payload))
            if opened is not None:
                super().deliver_group(topic, ttl, opened)

    def _deliver_to_former_members(self, topic: Topic, ttl: int, payload: bytes, published: float) -> None:
        opened = self._counted(self._opener.open_from_group(topic, payload))
        if opened is not None:
            super()._deliver_to_former_members(topic, ttl, opened, published)

    def deliver_own(self, channel: str, ttl: int, payload: bytes, capacity: int) -> bool:
        """Put a direct message of this process into a mailbox, once it is opened; return False if that is full."""
        if channel not in self.mailboxes.boxes:
            self._deliver(channel, ttl, payload, capacity)
            return True
        opened = self._counted(self._opener.open_from_channel(channel, payload))
        return opened is None or super().deliver_own(channel, ttl, opened, capacity)

    def _deliver(self, channel: str, ttl: int, payload: bytes, capacity: int) -> None:
        opened = self._counted(self._opener.open_from_channel(channel, payload))
        if opened is not None:
            super()._deliver(channel, ttl, opened, capacity)

    def _counted(self, opened: bytes | None) -> bytes | None:
        if opened is None:
            self.counters.drop("undecryptable")
        return opened
