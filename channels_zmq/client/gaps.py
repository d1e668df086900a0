"""Reorders messages that arrive ahead of earlier ones of the same sender: holds them, then delivers them in order.

Pure. While a sender changes from one exchange to another, its messages arrive by two connections. A message behind a
gap waits for the missing ones for `HOLD`, and longer while they may be on their way or not read yet. The first
message of a run may or may not be behind a gap, so it waits only until all sockets have been read. Both wait longer
while any exchange replays what its connection has lost. `client/arrivals.py` knows what is on its way. Runs of other
senders and topics never wait.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

from channels_zmq.client.sequences import Runs

HOLD = 0.2
"""Seconds that a message waits for those before it."""
BEHIND_AT_MOST = 3.0
"""How many seconds longer it waits while the missing ones may be on their way, or this process has not read them."""
LOOK_AGAIN_AFTER = 0.02
"""Seconds until it is asked again whether that is so; then after twice as many each time, up to `HOLD`. To ask 50 times
a second took so much of the time of a process that was saturated that it lost messages."""
MAX_FRAMES = 10_000
MAX_BYTES = 8 * 2**20
"""Bounds of all held messages together, unless it is a single one. Beyond them the oldest gap is given up."""

Deliver = Callable[[], None]
IsBehind = Callable[[float, float], bool]
"""Called with the time and an earlier one: returns whether what was published before that may still arrive."""


def nothing_is_behind(now: float, since: float) -> bool:
    """Return False: everything that was published has arrived."""
    return False


class _Held(NamedTuple):
    """A message: what delivers it, the bytes of its frame, and when it arrived."""

    deliver: Deliver
    size: int
    at: float


@dataclass(slots=True, eq=False)
class _Gap:
    """The held messages of one run, by number.

    Attributes:
        since: When the first of them arrived: what is missing before it was published before.
        until: When that is given up, unless it may still arrive.
        numbers: A heap of the numbers in `held`, and of some that have left it.
    """

    since: float
    until: float
    held: dict[int, _Held] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)


class Gaps:
    """All runs in which messages are missing.

    Args:
        missed: Called with the number of messages that are given up.
        clock: Monotonic seconds.
    """

    def __init__(self, missed: Callable[[int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.frames = 0
        """How many messages wait."""
        self.beginnings: list[tuple[Runs, bytes, _Gap]] = []
        """Runs whose first messages wait until all sockets have been read."""
        self.replays_until = 0.0
        """Nothing that is missing is given up before."""
        self._size = 0
        self._gaps: dict[tuple[Runs, bytes], _Gap] = {}  # those that began last are behind the others
        self._missed, self._clock = missed, clock

    def hold(self, runs: Runs, sender: bytes, number: int, size: int, deliver: Deliver, *, begins: bool) -> bool:
        """Hold a message; return False if it waits already.

        Args:
            runs: Those of its topic.
            sender: Of the message.
            number: Of the message.
            size: Bytes of its frame.
            deliver: Called with nothing when its turn has come.
            begins: Whether it is the first one of its run here, rather than behind a gap.
        """
        gap, now = self._gaps.get((runs, sender)), self._clock()
        if gap is None:
            gap = self._gaps[runs, sender] = _Gap(now, now + HOLD)
            if begins:
                self.beginnings.append((runs, sender, gap))
        if number in gap.held:
            return False
        gap.held[number] = _Held(deliver, size, now)
        heappush(gap.numbers, number)
        self.frames += 1
        self._size += size
        while self.frames > MAX_FRAMES or (self._size > MAX_BYTES and self.frames > 1):
            self._give_up(*next(iter(self._gaps)))
        return True

    def holds(self, runs: Runs, sender: bytes) -> bool:
        """Return whether messages of a run are held."""
        return (runs, sender) in self._gaps

    def closed_up(self, runs: Runs, sender: bytes) -> None:
        """Deliver the held messages that directly follow the last number of a run.

        What is missing before the others has been missing for as long as the first of them has waited.
        """
        gap = self._gaps.get((runs, sender))
        if gap is None:
            return
        while (number := runs.last(sender) + 1) in gap.held:
            runs.skip_to(sender, number)
            self._deliver(gap, number)
        self._drop_repeated(runs, sender, gap)
        if not gap.held:
            del self._gaps[runs, sender]
        elif (since := gap.held[gap.numbers[0]].at) > gap.since:
            gap.since, gap.until = since, since + HOLD
            self._gaps[runs, sender] = self._gaps.pop((runs, sender))

    @property
    def due(self) -> float:
        """When `expire` has something to do."""
        if not self._gaps:
            return inf
        return max(next(iter(self._gaps.values())).until, self.replays_until)

    @property
    def awaits_replay(self) -> bool:
        """Whether everything that is missing may still come."""
        return self._clock() < self.replays_until

    def expire(self, now: float, is_behind: IsBehind = nothing_is_behind) -> None:
        """Give up messages that have been missing for too long, and deliver the messages behind them."""
        while self._gaps and self.due <= now:
            run, first = next(iter(self._gaps.items()))
            latest = first.since + HOLD + BEHIND_AT_MOST
            if now < latest and is_behind(now, first.since):
                pause = min(HOLD, max(LOOK_AGAIN_AFTER, now - first.since - HOLD))
                first.until = min(now + pause, latest)
                return
            self._give_up(*run)

    def all_is_read(self) -> None:
        """Deliver the first messages of runs, since any earlier ones would have been read by now."""
        if self.awaits_replay:
            return
        beginnings, self.beginnings = self.beginnings, []
        for runs, sender, gap in beginnings:
            if self._gaps.get((runs, sender)) is gap:
                self._give_up(runs, sender)

    def clear(self) -> None:
        """Drop everything."""
        self._gaps.clear()
        self.beginnings.clear()
        self.frames = self._size = 0

    def _give_up(self, runs: Runs, sender: bytes) -> None:
        """Give up what is missing before the first held message of a run; deliver that, and those that follow it."""
        gap = self._gaps[runs, sender]
        self._drop_repeated(runs, sender, gap)
        if gap.held:
            first = gap.numbers[0]
            self._missed(runs.skip_to(sender, first))
            self._deliver(gap, first)
        self.closed_up(runs, sender)

    def _drop_repeated(self, runs: Runs, sender: bytes, gap: _Gap) -> None:
        """Drop held messages that are repetitions because the sender has begun anew meanwhile."""
        while gap.numbers and ((first := gap.numbers[0]) not in gap.held or runs.is_repeated(sender, first)):
            heappop(gap.numbers)
            if first in gap.held:
                self._drop(gap, first)

    def _deliver(self, gap: _Gap, number: int) -> None:
        self._drop(gap, number)()

    def _drop(self, gap: _Gap, number: int) -> Deliver:
        held = gap.held.pop(number)
        self.frames -= 1
        self._size -= held.size
        return held.deliver
