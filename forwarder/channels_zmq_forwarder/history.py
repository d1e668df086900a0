"""The messages that an exchange has relayed within the last seconds, so that it can replay them.

Pure. A connection that breaks loses what was published since, until the client has connected again (`replays`).
Messages are kept in blocks: for each of them nothing is done but an `append`, the rest is done once a turn.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

SECONDS = 5.0
"""For how long messages are kept. A cut network is noticed within 3.6 s."""
BLOCK_FRAMES = 256
BLOCK_BYTES = 64 * 1024
"""A block ends with the turn in which it reaches one of these bounds."""
BLOCK_SECONDS = 0.005
"""Between the first and the last turn of a block: how exactly the age of a message is known."""
OVERHEAD = 64
"""Bytes of memory that a message takes beside its own."""


@dataclass(slots=True, eq=False)
class Block:
    """Messages that were relayed one after the other, by the turns that have ended at `since` to `until`."""

    since: float = 0.0
    until: float = 0.0
    frames: list[bytes] = field(default_factory=list)
    size: int = 0


class History:
    """The messages of the last `SECONDS`, as far as they fit.

    Args:
        max_bytes: How much memory they may take; 0 keeps nothing.
        clock: Monotonic seconds.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        """Bytes of memory that the closed blocks take."""
        self.record: Callable[[bytes], None]
        """Keeps a message that is relayed in this turn; `end_turn` may replace the function."""
        self._clock = clock
        self._blocks: deque[Block] = deque()
        self._begin()

    def _begin(self) -> None:
        self._open = Block()
        self._dated = 0  # messages of the open block whose turn has ended
        self.record = self._open.frames.append if self.max_bytes else _ignore

    def end_turn(self) -> None:
        """Note that a turn is over, in which messages may have been relayed."""
        if len(self._open.frames) == self._dated:
            return
        now = self._clock()
        new = self._open.frames[self._dated :]
        if self._dated and now > self._open.since + BLOCK_SECONDS:
            del self._open.frames[self._dated :]
            self._close()
            self._open.frames += new
        block = self._open
        if not self._dated:
            block.since = now
        block.until = now
        block.size += sum(map(len, new)) + OVERHEAD * len(new)
        self._dated = len(block.frames)
        if self._dated >= BLOCK_FRAMES or block.size >= BLOCK_BYTES:
            self._close()

    def _close(self) -> None:
        self._blocks.append(self._open)
        self.size += self._open.size
        self._begin()
        while self.size > self.max_bytes:
            self._drop_first()

    def _drop_first(self) -> None:
        self.size -= self._blocks.popleft().size

    @property
    def due(self) -> float:
        """When `forget` has something to do."""
        return self._blocks[0].until + SECONDS if self._blocks else inf

    def forget(self) -> None:
        """Drop what is too old."""
        now = self._clock()
        while self.due <= now:
            self._drop_first()

    def since(self, when: float) -> list[Block]:
        """Return everything that was relayed since a time, as far as it is still there, in order."""
        self.end_turn()
        if self._open.frames:
            self._close()
        return [block for block in self._blocks if block.until >= when]

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()
        self.size = 0
        self._begin()


def _ignore(frame: bytes) -> None:
    """Keep nothing."""
