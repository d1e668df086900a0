"""Reorders messages that arrive ahead of earlier ones of the same sender: holds them, then delivers them in order.

Pure. While a sender changes from one exchange to another, its messages arrive by two connections. A message behind a
gap waits for the missing ones for `HOLD`, and longer while they may be on their way or not read yet. The first
message of a run may or may not be behind a gap, so it waits only until all sockets have been read. Both wait longer
while any exchange replays what it has not delivered. `client/arrivals.py` determines whether messages are on their
way. Runs of other senders and topics never wait.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import NamedTuple

from channels_zmq.client.sequences import Runs

HOLD = 0.2
"""Seconds that a message waits for those before it, and up to `GRAIN` more."""
BEHIND_AT_MOST = 3.0
"""How many seconds longer it waits while the missing ones may be on their way, or this process has not read them."""
GRAIN = 0.05
"""Seconds to which the times of gaps are rounded up, so that many gaps are handled together."""
LOOK_AGAIN_AFTER = 0.02
"""Seconds until the next check whether they may; then twice as long each time, up to `HOLD`. With 50 checks a second a
saturated process lost messages."""
MAX_BYTES = 32 * 2**20
"""Bound of the memory of all held messages together, unless it is a single one. Beyond it the oldest gap is given up. A
replay of 60,000 messages takes 2 s on a busy core, in which up to 30,000 newer ones arrive."""
OVERHEAD = 600
"""Bytes of memory that a held message takes beside its payload; a gap takes the same."""
SPARE = 64
"""Entries of closed gaps that a heap may have beside one for each open gap."""

Run = tuple[Runs, bytes]
"""The runs of a topic, and a sender."""
Deliver = Callable[[], None]
IsBehind = Callable[[float, float], bool]
"""Called with the time and an earlier one: returns whether what was published before that may still arrive."""


def nothing_is_behind(now: float, since: float) -> bool:
    """Return False: everything that was published has arrived."""
    return False


class _Held(NamedTuple):
    """A message: what delivers it, the bytes of memory that it takes, and when it arrived, rounded up to `GRAIN`."""

    deliver: Deliver
    size: int
    at: float


@dataclass(slots=True, eq=False)
class _Gap:
    """The held messages of one run.

    Attributes:
        run: Which one.
        since: When a message behind the gap arrived, rounded up: what is missing was published before.
        held: By number.
        numbers: A heap of the numbers in `held`, and of some that have left it.
    """

    run: Run
    since: float
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
        self.beginnings: dict[Run, _Gap] = {}
        """Runs of which nothing was delivered: their first messages wait until all sockets have been read."""
        self.replays_until = 0.0
        """No missing message is given up before this time, except to bound the memory."""
        self._size = 0
        self._gaps: dict[Run, _Gap] = {}
        self._oldest_first: list[tuple[float, int, _Gap]] = []  # a heap, with some gaps that have closed
        self._count = 0  # of all entries that were put into it
        self._look_at = 0.0  # `expire` gives up nothing before: missing messages may have been on their way
        self._missed, self._clock = missed, clock

    def hold(self, runs: Runs, sender: bytes, number: int, size: int, deliver: Deliver, *, begins: bool) -> bool:
        """Hold a message; return False if it waits already.

        Args:
            runs: Those of its topic.
            sender: Of the message.
            number: Of the message.
            size: Bytes of its payload.
            deliver: Called without arguments when it is the message's turn.
            begins: Whether it is the first one of its run here, rather than behind a gap.
        """
        run, at = (runs, sender), ceil(self._clock() / GRAIN) * GRAIN
        gap = self._gaps.get(run)
        if gap is None:
            gap = self._gaps[run] = _Gap(run, at)
            self._size += OVERHEAD
            self._enqueue(gap)
            if begins:
                self.beginnings[run] = gap
        if not begins:
            self.beginnings.pop(run, None)
        if number in gap.held:
            return False
        size += OVERHEAD
        gap.held[number] = _Held(deliver, size, at)
        heappush(gap.numbers, number)
        self.frames += 1
        self._size += size
        while self._size > MAX_BYTES and self.frames > 1:
            self._give_up(self._oldest())
        return True

    def holds(self, runs: Runs, sender: bytes) -> bool:
        """Return whether messages of a run are held."""
        return (runs, sender) in self._gaps

    def closed_up(self, runs: Runs, sender: bytes) -> None:
        """Deliver the held messages that directly follow the last number of a run, of which something was delivered.

        The next gap counts from the arrival of the message with the lowest number.
        """
        run = runs, sender
        gap = self._gaps.get(run)
        if gap is None:
            return
        self.beginnings.pop(run, None)
        while (number := runs.last(sender) + 1) in gap.held:
            runs.skip_to(sender, number)
            self._deliver(gap, number)
        first = self._first(gap)
        if first is None:
            del self._gaps[run]
            self._size -= OVERHEAD
        elif (since := gap.held[first].at) > gap.since:
            gap.since = since
            self._enqueue(gap)

    @property
    def due(self) -> float:
        """When `expire` has something to do."""
        if not self._gaps:
            return inf
        return max(self._oldest().since + HOLD, self._look_at, self.replays_until)

    @property
    def awaits_replay(self) -> bool:
        """Whether all missing messages may still arrive."""
        return self._clock() < self.replays_until

    def expire(self, now: float, is_behind: IsBehind = nothing_is_behind, at_most: int = sys.maxsize) -> None:
        """Give up messages that have been missing for too long, and deliver the messages behind them.

        Args:
            now: Monotonic seconds.
            is_behind: Whether missing messages may still arrive.
            at_most: How many to deliver, and the rest of the last run; `due` is not later than `now` if there are more.
        """
        given_up, enough = -inf, self.frames - at_most
        while self.due <= now and self.frames > enough:
            gap = self._oldest()
            if gap.since > given_up:
                latest = gap.since + HOLD + BEHIND_AT_MOST
                if now < latest and is_behind(now, gap.since):
                    pause = min(HOLD, max(LOOK_AGAIN_AFTER, now - gap.since - HOLD))
                    self._look_at = min(now + pause, latest)
                    return
                given_up = gap.since
            self._give_up(gap)

    def all_is_read(self) -> None:
        """Deliver the first messages of runs, since any earlier ones would have been read by now."""
        if self.awaits_replay:
            return
        for gap in list(self.beginnings.values()):
            self._give_up(gap)

    def clear(self) -> None:
        """Drop everything."""
        self._gaps.clear()
        self._oldest_first.clear()
        self.beginnings.clear()
        self.frames = self._size = 0

    def _enqueue(self, gap: _Gap) -> None:
        self._count += 1
        heappush(self._oldest_first, (gap.since, self._count, gap))
        if len(self._oldest_first) > 2 * len(self._gaps) + SPARE:
            self._oldest_first = [one for one in self._oldest_first if self._is_open(one[2], one[0])]
            heapify(self._oldest_first)

    def _is_open(self, gap: _Gap, since: float) -> bool:
        return self._gaps.get(gap.run) is gap and gap.since == since

    def _oldest(self) -> _Gap:
        """Return the oldest gap; there must be one."""
        while True:
            since, _, gap = self._oldest_first[0]
            if self._is_open(gap, since):
                return gap
            heappop(self._oldest_first)

    def _give_up(self, gap: _Gap) -> None:
        """Give up the messages missing before the first held one of a run; deliver that, and those that follow it."""
        runs, sender = gap.run
        first = self._first(gap)
        if first is not None:
            self._missed(runs.skip_to(sender, first))
            self._deliver(gap, first)
        self.closed_up(runs, sender)

    def _first(self, gap: _Gap) -> int | None:
        """Return the lowest held number of a run; drop repetitions, as the sender may have begun anew meanwhile."""
        runs, sender = gap.run
        while gap.numbers:
            first = gap.numbers[0]
            if first in gap.held:
                if not runs.is_repeated(sender, first):
                    return first
                self._drop(gap, first)
            heappop(gap.numbers)
        return None

    def _deliver(self, gap: _Gap, number: int) -> None:
        self._drop(gap, number)()

    def _drop(self, gap: _Gap, number: int) -> Deliver:
        held = gap.held.pop(number)
        self.frames -= 1
        self._size -= held.size
        return held.deliver
