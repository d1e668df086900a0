"""Exact counts of messages that were lost, delivered twice or out of order, and of jobs.

No I/O. A sequence takes a few integers and the numbers that are missing, so a count may run for hours. A job takes
twelve bytes in a file, which survives the worker.
"""

import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

JOB = struct.Struct("!III")
"""A job in a log: its sender, its channel, its number."""
Job = tuple[int, int, int]
EXAMPLES = 2
"""The number of gaps that are described one by one."""


@dataclass(slots=True)
class Sequence:
    """The numbers that one receiver received of one sender and topic, which should be 0, 1, 2 and so on.

    Args:
        following: One more than the highest number so far.
        missing: Numbers below it that have not arrived.
        twice: Arrivals of a number that had arrived before.
        disorder: First arrivals of a number after a higher one.
        lateness: Seconds that the last message took; infinite if none has arrived since `Tally.forget_lag`.
    """

    following: int = 0
    missing: set[int] = field(default_factory=set)
    twice: int = 0
    disorder: int = 0
    lateness: float = 0.0

    def take(self, number: int) -> None:
        """Count one arrival."""
        if number == self.following:
            self.following = number + 1
        elif number > self.following:
            self.missing.update(range(self.following, number))
            self.following = number + 1
        elif number in self.missing:
            self.missing.discard(number)
            self.disorder += 1
        else:
            self.twice += 1

    def lost(self, sent: int) -> int:
        """Return how many of the first `sent` numbers have not arrived."""
        return len(self.missing) + sent - self.following


class Gaps:
    """The longest time between two arrivals from `begin` to `end`.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.longest = 0.0
        self._clock = clock
        self._last: float | None = None

    def begin(self) -> None:
        """Start to measure."""
        self._last = self._clock()

    def arrived(self) -> float:
        """Record an arrival, and return its time."""
        now = self._clock()
        if self._last is not None:
            self.longest = max(self.longest, now - self._last)
            self._last = now
        return now

    def end(self) -> None:
        """Stop measuring; the time since the last arrival counts too."""
        self.arrived()
        self._last = None


Sent = dict[int, list[int]]
"""The count of numbers that each sender has sent of each topic."""


class Tally:
    """The messages that one receiver received, by sender and topic.

    Args:
        clock: Monotonic seconds. All processes of a host share this clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.gaps = Gaps(clock)
        self.received = 0
        self.lateness = 0.0
        """The longest time from sending to receiving a message, in seconds."""
        self._sequences: dict[tuple[int, int], Sequence] = {}

    def take(self, sender: int, topic: int, number: int, sent_at: float) -> None:
        """Count one message."""
        lateness = self.gaps.arrived() - sent_at
        if lateness > self.lateness:
            self.lateness = lateness
        self.received += 1
        sequence = self._sequences.get((sender, topic))
        if sequence is None:
            sequence = self._sequences[sender, topic] = Sequence()
        sequence.take(number)
        sequence.lateness = lateness

    @property
    def lag(self) -> float:
        """The longest time that the last message of a sequence took, in seconds.

        It is infinite until a message of each one has arrived after the last `forget_lag`, and 0 without any sequence.
        """
        return max((one.lateness for one in self._sequences.values()), default=0.0)

    def forget_lag(self) -> None:
        """Let only later messages count for `lag`."""
        for sequence in self._sequences.values():
            sequence.lateness = inf

    def lost(self, sent: Sent, topics: Iterable[int]) -> int:
        """Return how many messages of these topics have not arrived."""
        wanted = list(topics)
        return sum(self._of(sender, topic).lost(counts[topic]) for sender, counts in sent.items() for topic in wanted)

    def examples(self, sent: Sent, topics: Iterable[int]) -> list[str]:
        """Return a description of the first gaps."""
        found = []
        for topic in topics:
            for sender, counts in sent.items():
                sequence = self._of(sender, topic)
                if lost := sequence.lost(counts[topic]):
                    first = min(sequence.missing, default=sequence.following)
                    found.append(
                        f"sender {sender}, topic {topic}: {lost} of {counts[topic]} lost, the first is {first}"
                    )
        return found[:EXAMPLES]

    @property
    def twice(self) -> int:
        """How many messages arrived again."""
        return sum(sequence.twice for sequence in self._sequences.values())

    @property
    def disorder(self) -> int:
        """How many messages arrived after a later one of their sender and topic."""
        return sum(sequence.disorder for sequence in self._sequences.values())

    def _of(self, sender: int, topic: int) -> Sequence:
        return self._sequences.get((sender, topic)) or Sequence()


@dataclass(frozen=True, slots=True)
class JobCounts:
    """The counts of all jobs.

    Args:
        confirmed: Jobs whose `send` returned.
        done: Jobs that a worker did.
        lost: Confirmed jobs that no worker did.
        twice: Repetitions of a job, by the same worker or another one.
        unknown: Jobs whose `send` raised; they may have been done.
    """

    confirmed: int
    done: int
    lost: int
    twice: int
    unknown: int


def count_jobs(sent: Sent, unknown: Iterable[Job], logs: Iterable[bytes]) -> JobCounts:
    """Compare the jobs that were sent with those that were done.

    Args:
        sent: By sender, how many jobs it has sent to each channel, including unknown ones.
        unknown: Jobs whose `send` raised.
        logs: The log of each worker: one `JOB` for each job that it did.
    """
    times = Counter(job for log in logs for job in JOB.iter_unpack(log[: len(log) // JOB.size * JOB.size]))
    doubtful = set(unknown)
    confirmed = lost = 0
    for sender, counts in sent.items():
        for channel, count in enumerate(counts):
            for number in range(count):
                if (sender, channel, number) not in doubtful:
                    confirmed += 1
                    lost += (sender, channel, number) not in times
    return JobCounts(confirmed, len(times), lost, times.total() - len(times), len(doubtful))
