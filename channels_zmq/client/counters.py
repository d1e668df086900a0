"""The counters of a connection, and the rate at which losses are reported.

Pure: a report is a log line that has not been written yet. The connection writes it once its lock is released, since a
log handler is code of the application.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, TypedDict

REPORT_EVERY = 60.0
"""Seconds between two reports of losses by one cause."""

ADVICE = {
    "mailbox_full": "readers are slower than senders; raise capacity for bursts",
    "expired": "they were not read in time; raise expiry or read sooner",
    "missed": "this process was cut off for longer than forwarders keep messages, or it did not read for too long",
    "outbox_full": "the forwarder is unreachable or slow; raise outbox_capacity or outbox_bytes to hold more",
    "outbox_expired": "the forwarder was unreachable for longer than expiry",
    "malformed": "another program sends to these addresses, or a process uses another serializer",
    "undecryptable": "no key in symmetric_encryption_keys fits, or they were encrypted for another group or channel",
    "lost_delivery": "the connection was cut while messages of normal channels were handed over or handed back",
    "queue_full": "the readers of a normal channel are slower than senders; raise capacity",
    "queue_bytes": "messages for normal channels that nobody reads fill the memory that they may take",
    "unroutable": "their channel name has a '!' and was not returned by new_channel(): no process reads it",
}
"""Causes that are reported, and what to do about each."""
SILENT = frozenset(("abandoned", "drop_rate"))
"""Causes that are only counted: messages for a consumer that has ended, and those that `drop_rate` drops."""


class Report(NamedTuple):
    """A log line to write: level, format and arguments, as `Logger.log` takes them."""

    level: int
    message: str
    arguments: tuple[object, ...]


class LinkStats(TypedDict):
    """What `layer.stats()` reports about one link."""

    forwarder: str
    """The addresses of the forwarder."""
    state: str
    session: int
    """The number of the session; a new connection begins another one."""
    carries: bool
    """Whether messages are sent by it: it is up, and the other clients have reached its forwarder."""
    unacknowledged: int
    """Frames that were sent and not acknowledged."""
    held: int
    """Messages that wait to be sent by this link."""
    sent_again: int
    """Frames that were sent by this link after another one, or an earlier connection, had failed."""


class Stats(TypedDict):
    """What `layer.stats()` returns: counts since the connection was opened, and the present state."""

    connected: bool
    sent: int
    received: int
    dropped: dict[str, int]
    """Lost messages by cause; the causes are the keys of `ADVICE` and the members of `SILENT`."""
    repeated: int
    """Messages that arrived a second time and were ignored."""
    sent_again: int
    """Frames that were sent again because a forwarder, or the connection to it, had failed."""
    reconnects: int
    waiting: int
    """Messages in the mailboxes of this process."""
    held: int
    """Messages that wait to be sent, or to be acknowledged."""
    channels: int
    groups: int
    members: int
    """Memberships of channels of this process in groups."""
    links: list[LinkStats]
    """The links to forwarders; none with the embedded layer."""


class Counters:
    """Counts of one connection.

    Args:
        clock: Monotonic seconds, for the rate of reports.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.sent = 0
        self.received = 0
        self.repeated = 0
        self.sent_again = 0
        self.reconnects = 0
        self.dropped: Counter[str] = Counter()
        self.reports: list[Report] = []
        """Log lines that the connection has yet to write."""
        self._clock = clock
        self._reported_at: dict[str, float] = {}
        self._reported: Counter[str] = Counter()

    def drop(self, cause: str, count: int = 1) -> None:
        """Count lost messages; report the first, then the number since at most once a minute."""
        if not count:
            return
        self.dropped[cause] += count
        if cause in SILENT:
            return
        now = self._clock()
        if now - self._reported_at.get(cause, -REPORT_EVERY) >= REPORT_EVERY:
            self._reported_at[cause] = now
            since = self.dropped[cause] - self._reported[cause]
            self._reported[cause] = self.dropped[cause]
            self.report(
                logging.WARNING,
                "%d messages lost (%s), %d in total: %s",
                since,
                cause,
                self.dropped[cause],
                ADVICE[cause],
            )

    def report(self, level: int, message: str, *arguments: object) -> None:
        """Add a log line for the connection to write."""
        self.reports.append(Report(level, message, arguments))

    def lost(self) -> int:
        """Return how many messages were lost so far, except by causes of `SILENT`."""
        return self.dropped.total() - sum(self.dropped[cause] for cause in SILENT)
