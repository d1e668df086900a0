"""Adds up the topics that the connections of a publishing socket subscribe to, and decides which are too many. Pure.

- A topic is a group's or an inbox, in the form that `wire` defines. So no client can subscribe to a prefix
  of many topics.
- A topic counts for the connection that subscribed to it first, until its last subscriber has left. One that others
  have subscribed to before takes next to no memory.
"""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Share:
    """The bytes of the topics that count for one connection. It may outlive the connection: topics end one by one."""

    size: int = 0


class Topics:
    """The topics of all connections, which are named by their file descriptors.

    Args:
        max_size: The bytes that all topics may have together; a quarter of it may count for one connection.
    """

    def __init__(self, max_size: int) -> None:
        self.ended = 0
        """How many topics have ended since the start."""
        self._max_size, self._size = max_size, 0
        self._topics: dict[bytes, _Share] = {}
        self._shares: dict[int, _Share] = {}

    def __len__(self) -> int:
        return len(self._topics)

    def subscribe(self, topic: bytes, descriptor: int) -> int | None:
        """Count a subscription; return the connection to end if there are too many topics, else None.

        That is the connection which has too many, or the one for which most count if there are too many in all.
        """
        share = self._shares.setdefault(descriptor, _Share())
        if topic in self._topics:
            return None
        self._topics[topic] = share
        share.size += len(topic)
        self._size += len(topic)
        if share.size > self._max_size // 4:
            return descriptor
        if self._size > self._max_size:
            return max(self._shares, key=lambda one: self._shares[one].size)
        return None

    def end(self, topic: bytes) -> None:
        """Forget a topic, because its last subscriber has left."""
        share = self._topics.pop(topic, None)
        if share is not None:
            share.size -= len(topic)
            self._size -= len(topic)
            self.ended += 1

    def gone(self, descriptor: int) -> None:
        """Forget a connection; its descriptor may name another one from now on."""
        self._shares.pop(descriptor, None)
