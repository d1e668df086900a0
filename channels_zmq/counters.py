"""What a connection counts, and how it tells of losses without flooding the log."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TypedDict

logger = logging.getLogger("channels_zmq")

WARN_EVERY = 60.0
"""Seconds between two log lines about losses of one cause."""

ADVICE = {
    "full": "the readers are slower than the senders; raise capacity for bursts",
    "expired": "nobody read them in time; raise expiry, or read sooner",
    "missed": "the forwarder was replaced, or this process did not read for too long",
    "outbox": "the forwarder is away; raise outbox_capacity to hold more",
    "malformed": "a stranger sends to these addresses, or a process uses another serializer",
    "jobs lost": "hand-overs of plain messages did not arrive",
    "resilience": "drop_rate asks for it",
}


class Stats(TypedDict):
    """What `layer.stats()` returns: counts since the process first used the address, and what is there now."""

    connected: bool
    sent: int
    received: int
    dropped: dict[str, int]
    """Messages lost, by cause; the causes are the keys of `ADVICE`."""
    repeated: int
    """Messages that arrived a second time and were ignored."""
    reconnects: int
    waiting: int
    """Messages that wait to be read in this process."""
    held: int
    """Messages in the outbox."""
    channels: int
    groups: int


class Counters:
    """Counts of one connection.

    Args:
        clock: Monotonic seconds, for the rate of log lines.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.sent = 0
        self.received = 0
        self.repeated = 0
        self.reconnects = 0
        self.dropped: Counter[str] = Counter()
        self._clock = clock
        self._told_at: dict[str, float] = {}
        self._told: Counter[str] = Counter()

    def drop(self, cause: str, count: int = 1) -> None:
        """Count lost messages; log the first, then at most one line a minute with the number since."""
        if not count:
            return
        self.dropped[cause] += count
        now = self._clock()
        if now - self._told_at.get(cause, -WARN_EVERY) >= WARN_EVERY:
            self._told_at[cause] = now
            since = self.dropped[cause] - self._told[cause]
            self._told[cause] = self.dropped[cause]
            logger.warning(
                "%d messages lost (%s), %d in all: %s", since, cause, self.dropped[cause], ADVICE.get(cause, "")
            )
