"""Messages that arrived before others which their sender had sent earlier: held for a moment, then delivered in order.

Pure. While a sender changes from one exchange to another, its messages arrive by two ways. If one is missing before a
message, the other way may still bring it, so the message waits, for `HOLD` at most. Of the first message of a run that
this process sees nobody knows whether one is missing: it waits only until everything that has arrived is read. Runs of
other senders and topics never wait.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from channels_zmq.client.sequences import Runs

HOLD = 0.2
"""Seconds that a message waits for those before it."""
MAX_FRAMES = 10_000
MAX_BYTES = 8 * 2**20
"""Bounds of what waits together; beyond them the run that has waited longest is given up."""

Deliver = Callable[[], None]


@dataclass(slots=True, eq=False)
class _Gap:
    """What waits in one run, by number."""

    until: float
    held: dict[int, tuple[Deliver, int]] = field(default_factory=dict)


class Gaps:
    """All runs in which messages are missing.

    Args:
        missed: Called with the number of messages that are given up.
        clock: Monotonic seconds.
    """

    def __init__(self, missed: Callable[[int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.frames = 0
        """How many messages wait."""
        self.beginnings: list[tuple[Runs, bytes]] = []
        """Runs that wait until everything is read."""
        self._size = 0
        self._gaps: dict[tuple[Runs, bytes], _Gap] = {}  # in the order of `until`
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
        gap = self._gaps.get((runs, sender))
        if gap is None:
            gap = self._gaps[runs, sender] = _Gap(self._clock() + HOLD)
            if begins:
                self.beginnings.append((runs, sender))
        if number in gap.held:
            return False
        gap.held[number] = deliver, size
        self.frames += 1
        self._size += size
        while self.frames > MAX_FRAMES or self._size > MAX_BYTES:
            self._give_up(next(iter(self._gaps)))
        return True

    def closed_up(self, runs: Runs, sender: bytes) -> None:
        """Deliver what waits directly behind the last number of a run."""
        gap = self._gaps.get((runs, sender))
        if gap is None:
            return
        while (number := runs.last(sender) + 1) in gap.held:
            runs.skip_to(sender, number)
            self._deliver(gap, number)
        if not gap.held:
            del self._gaps[runs, sender]

    @property
    def due(self) -> float:
        """When `expire` has something to do."""
        return next(iter(self._gaps.values())).until if self._gaps else inf

    def expire(self, now: float) -> None:
        """Give up the messages that have been missing for too long, and deliver what waits behind them."""
        while self._gaps and self.due <= now:
            self._give_up(next(iter(self._gaps)))

    def all_is_read(self) -> None:
        """Deliver the first messages of runs: what might have come before them would be there."""
        beginnings, self.beginnings = self.beginnings, []
        for run in beginnings:
            if run in self._gaps:
                self._give_up(run)

    def clear(self) -> None:
        """Drop everything."""
        self._gaps.clear()
        self.beginnings.clear()
        self.frames = self._size = 0

    def _give_up(self, run: tuple[Runs, bytes]) -> None:
        gap, (runs, sender) = self._gaps.pop(run), run
        for number in sorted(gap.held):
            if number > runs.last(sender):
                self._missed(runs.skip_to(sender, number))
                self._deliver(gap, number)
            else:  # the sender has begun anew meanwhile
                self._drop(gap, number)

    def _deliver(self, gap: _Gap, number: int) -> None:
        self._drop(gap, number)()

    def _drop(self, gap: _Gap, number: int) -> Deliver:
        deliver, size = gap.held.pop(number)
        self.frames -= 1
        self._size -= size
        return deliver
