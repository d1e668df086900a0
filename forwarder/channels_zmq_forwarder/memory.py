"""Decides which messages a forwarder refuses when memory is short, and when it gives memory back.

Pure: the server measures and trims the heap, and passes the figures in.

- Queues of normal channels get a share of the limit. A channel without a reader fills this share and no more, so that
  the messages of groups still pass. The share is bounded with the process itself, too: Python keeps most of the memory
  of many small messages after they have left, and that alone must never lead to a refusal.
- A subscriber may be behind by a quarter of the limit, and by less where the process itself leaves less, so that a slow
  one does not stop the others.
- The messages of the last seconds, kept for clients that miss them, take a sixteenth of the limit at most.
- Above 70 % of the limit large messages are refused, until less than 65 % is in use; above 90 % all, until less than
  80 % is. The gaps keep the decision from changing with every message.
- Neither does the C library return memory that is scattered. So its heap is trimmed before anything is refused, and
  after connections or topics have ended that took much; for each reason at most once in `TRIM_EVERY`.
"""

from collections.abc import Callable
from enum import IntEnum
from math import inf

QUEUES_SHARE = 0.4
"""Share of the limit that queues of normal channels may hold."""
QUEUES_FILL_UP_TO = 0.6
"""Share of the limit that the process may use while these queues are full."""
SUBSCRIBER_SHARE = 0.25
"""Share of the limit that may wait for a single subscriber."""
SUBSCRIBER_FILLS_UP_TO = 0.55
"""Share of the limit that the process may use while one is so far behind; the history takes a sixteenth beside it."""
LEAST_SHARE = 0.05
"""Share of the limit that queues may hold, and that may wait for a subscriber, in any case."""
HISTORY_SHARE = 1 / 16
"""Share of the limit that the messages of the last seconds may take."""
FILLS_ABOVE = 0.4
"""Share of the limit, beside queues and history, above which producers may be flooding."""
TRIM_EVERY = 1.0
"""Seconds between two trims of the heap; one took 5 to 27 ms with 450 MiB in use."""
TRIM_AFTER = 10_000
"""Topics that have ended after which the heap is trimmed: each has taken about 1 KB in many pieces."""
NOT_READY_AFTER = 10.0
"""Seconds of refusing all messages after which the forwarder reports that it is not ready."""


class Refusal(IntEnum):
    """Which messages are refused."""

    NOTHING = 0
    LARGE = 1
    ALL = 2


BEGINS_ABOVE = {Refusal.LARGE: 0.70, Refusal.ALL: 0.90}
ENDS_BELOW = {Refusal.LARGE: 0.65, Refusal.ALL: 0.80}


class MemoryGuard:
    """Decides from memory figures which messages are refused.

    Args:
        limit: Bytes that the process may use; 0 for no limit, so that nothing is ever refused.
        clock: Monotonic seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit = limit
        self.refuses = Refusal.NOTHING
        self.is_filling = False
        """Whether the memory use beside queues and history is so high that a flood of messages must be ended."""
        self._clock = clock
        self._trimmed = -inf
        self._all_since = inf

    @property
    def is_ready(self) -> bool:
        """Whether messages are accepted, or were so a short time ago."""
        return self._clock() - self._all_since < NOT_READY_AFTER

    def queue_bytes(self, wanted: int, resident: int) -> int:
        """Return how many bytes queues may hold.

        Args:
            wanted: Bytes that the settings allow.
            resident: Resident bytes of the process while nothing waits, 0 if the system does not report them.
        """
        if not self.limit:
            return wanted
        return min(wanted, self._share(QUEUES_SHARE, QUEUES_FILL_UP_TO, resident))

    def subscriber_bytes(self, wanted: int, resident: int) -> int:
        """Return how many bytes a subscriber may be behind, of which 0 means any number.

        Args:
            wanted: Bytes that the settings allow.
            resident: Resident bytes of the process while nothing waits, 0 if the system does not report them.
        """
        if not self.limit:
            return wanted
        bound = self._share(SUBSCRIBER_SHARE, SUBSCRIBER_FILLS_UP_TO, resident)
        return min(wanted, bound) if wanted else bound

    def _share(self, at_most: float, fill_up_to: float, resident: int) -> int:
        """Return the bytes of a share of the limit, and fewer where the process itself leaves fewer up to a mark."""
        return int(self.limit * max(LEAST_SHARE, min(at_most, fill_up_to - resident / self.limit)))

    def history_bytes(self, wanted: int) -> int:
        """Return how many bytes the messages of the last seconds may take."""
        return min(wanted, int(self.limit * HISTORY_SHARE)) if self.limit else wanted

    def should_trim(self, resident: int) -> bool:
        """Return whether to trim the heap before a decision about this many resident bytes."""
        now = self._clock()
        if self._decision(resident) is Refusal.NOTHING or now < self._trimmed + TRIM_EVERY:
            return False
        self._trimmed = now
        return True

    def decide(self, resident: int, held: int) -> Refusal:
        """Decide which messages are refused from now on.

        Args:
            resident: Resident bytes of the process, 0 if the system does not report them.
            held: Bytes that are known to be in use, even if the system reports fewer.
        """
        self.refuses = self._decision(max(resident, held))
        self.is_filling = self.limit > 0 and resident - held > self.limit * FILLS_ABOVE
        if self.refuses is not Refusal.ALL:
            self._all_since = inf
        elif self._all_since == inf:
            self._all_since = self._clock()
        return self.refuses

    def _decision(self, used: int) -> Refusal:
        for refusal in (Refusal.ALL, Refusal.LARGE):
            mark = (ENDS_BELOW if self.refuses >= refusal else BEGINS_ABOVE)[refusal]
            if self.limit and used > self.limit * mark:
                return refusal
        return Refusal.NOTHING


class Trims:
    """Decides when to trim the heap after connections or topics have ended, whether memory is short or not."""

    def __init__(self) -> None:
        self._due, self._until = 0.0, -inf
        self._ended = self._topics = 0

    def is_due(self, now: float, ended: int, topics: int, *, is_behind: bool) -> bool:
        """Return whether to trim the heap now.

        Args:
            now: Monotonic seconds.
            ended: How many connections have been ended since the start, because they were slow or sent too much.
            topics: How many topics have ended since the start.
            is_behind: Whether buffered frames wait to be read, those of an ended connection included.
        """
        if ended > self._ended or topics >= self._topics + TRIM_AFTER or (is_behind and now <= self._until):
            self._until = now + 2 * TRIM_EVERY  # once more when the buffered frames have been read
        self._ended = ended
        if not self._due <= now <= self._until:
            return False
        self._due, self._topics = now + TRIM_EVERY, topics
        return True
