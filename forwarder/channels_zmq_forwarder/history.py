"""The messages that an exchange has relayed within the last seconds, so that it can publish them once more.

Pure. A connection that breaks loses what was published since, until the client has connected again (`replays`).
Messages are kept in blocks: nothing but an `append` is done for each of them, the rest once a turn.
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
BLOCK_SECONDS = 0.05
"""A block ends with the turn in which it reaches one of these bounds."""
OVERHEAD = 64
"""Bytes of memory that a message takes beside its own."""


@dataclass(slots=True, eq=False)
class Block:
    """Messages that were relayed one after the other, the first one at `since`, the last one at `until`."""

    since: float = inf
    until: float = inf
    frames: list[bytes] = field(default_factory=list)
    size: int = 0


class History:
    """The messages of the last `SECONDS`, as far as they fit.

    Args:
        max_bytes: How much memory they may take; 0 keeps nothing.
        clock: Monotonic seconds.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_kept = max_bytes > 0
        self.size = 0
        """Bytes of memory that the closed blocks take."""
        self.record: Callable[[bytes], None]
        """Keeps a message that is relayed in this turn; `end_turn` may replace the function."""
        self._max_bytes, self._clock = max_bytes, clock
        self._blocks: deque[Block] = deque()
        self._begin()

    def _begin(self) -> None:
        self._open = Block()
        self.record = self._open.frames.append if self.is_kept else _ignore

    def end_turn(self, size: int) -> None:
        """Note that a turn is over, in which messages of `size` bytes were relayed, or slightly fewer."""
        block = self._open
        if not block.frames:
            return
        now = self._clock()
        if block.since == inf:
            block.since = now
        block.until = now
        block.size += size
        if len(block.frames) >= BLOCK_FRAMES or block.size >= BLOCK_BYTES or now >= block.since + BLOCK_SECONDS:
            self._close()

    def _close(self) -> None:
        block = self._open
        block.size += OVERHEAD * len(block.frames)
        self._blocks.append(block)
        self.size += block.size
        self._begin()
        while self.size > self._max_bytes:
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
