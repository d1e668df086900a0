"""The messages that an exchange has relayed within the last seconds, so that it can replay them.

Pure. A connection that breaks loses what was published since, until the client has connected again (`replays`).
Messages are kept in blocks, which their owner ends: for each message nothing is done but an `append`.
"""

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import NamedTuple

SECONDS = 5.0
"""For how long messages are kept. A cut network is noticed within 3.6 s."""
BLOCK_BYTES = 64 * 1024
"""Bytes of input after which the pump ends a block."""
OVERHEAD = array("Q").itemsize
"""Bytes of memory that a message takes beside its own."""


class Block(NamedTuple):
    """Messages that were relayed one after the other, until a time.

    They are copied together. Else each new frame would be written to memory that is in no cache, for as long as former
    ones are kept: relaying frames would take a twentieth more CPU time.

    Attributes:
        until: Monotonic seconds.
        data: The frames.
        lengths: Their lengths.
    """

    until: float
    data: bytes
    lengths: "array[int]"

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        return len(self.data) + OVERHEAD * len(self.lengths)

    @property
    def frames(self) -> Iterator[bytes]:
        """The messages, in the order in which they were relayed."""
        at = 0
        for length in self.lengths:
            yield self.data[at : at + length]
            at += length


class History:
    """The messages of the last `SECONDS`, as far as they fit.

    Args:
        max_bytes: How much memory they may take; 0 keeps nothing.
        clock: Monotonic seconds.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        """Bytes of memory that the blocks take which have ended."""
        self.record: Callable[[bytes], None]
        """Keeps a message that is relayed now; `end_block` replaces the function."""
        self._clock = clock
        self._blocks: deque[Block] = deque()
        self._begin()

    def _begin(self) -> None:
        self._open: list[bytes] = []
        self.record = self._open.append if self.max_bytes else _ignore

    def end_block(self) -> None:
        """Date the messages of the current block.

        To be called ten times a second, for their age to be known, and after `BLOCK_BYTES`, for their size to be.
        """
        frames = self._open
        self._begin()
        if frames:
            block = Block(self._clock(), b"".join(frames), array("Q", map(len, frames)))
            self._blocks.append(block)
            self.size += block.size
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
        self.end_block()
        return [block for block in self._blocks if block.until >= when]

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()
        self.size = 0
        self._begin()


def _ignore(frame: bytes) -> None:
    """Keep nothing."""
