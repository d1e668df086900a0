"""The messages that an exchange has relayed within the last seconds, so that it can replay them.

Pure. A connection that breaks loses what was published since, until the client has connected again (`replays`).
Messages are kept in blocks, which their owner ends: each message is only copied to the end of the current one.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from io import BytesIO
from math import inf
from typing import NamedTuple

SECONDS = 20.0
"""For how long messages are kept: less than receivers remember runs, by which they recognise repetitions."""
BLOCK_BYTES = 64 * 1024
"""Bytes of input after which the pump ends a block."""
SEPARATOR = os.urandom(16)
"""A random value between the messages of a block. It never leaves the process: a sender would have to guess it."""
BUFFER_BYTES = 512 * 1024
"""Memory that the buffer of a block keeps for the next one. A turn of small messages fills half of it."""


class Block(NamedTuple):
    """Messages that were relayed one after the other, until a time.

    They are copied. If the frames themselves were kept, each new one would be written to memory that is in no cache.

    Attributes:
        until: Monotonic seconds.
        data: The frames, with `SEPARATOR` between them.
    """

    until: float
    data: bytes

    @property
    def frames(self) -> list[bytes]:
        """The messages, in the order in which they were relayed."""
        return self.data.split(SEPARATOR)


class History:
    """The messages of the last `SECONDS`, as far as they fit.

    Args:
        max_bytes: How much memory they may take; 0 keeps nothing.
        clock: Monotonic seconds.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        """Bytes of memory that ended blocks take."""
        self.write: Callable[[bytes], int]
        """Called with a message that is relayed now, then with `SEPARATOR`, it does what `record` does, in half the
        time. Returns the length of its argument."""
        self._clock = clock
        self._blocks: deque[Block] = deque()
        self._make_buffer()

    def _make_buffer(self) -> None:
        self._open = BytesIO()
        self.write = self._open.write if self.max_bytes else len

    def record(self, frame: bytes) -> None:
        """Keep a message that is relayed now."""
        self.write(frame)
        self.write(SEPARATOR)

    def end_block(self) -> None:
        """Date the messages of the current block.

        To be called ten times a second, for their age to be known, and after `BLOCK_BYTES`, for their size to be.
        """
        if self._open.closed:  # by a MemoryError while it grew
            self._make_buffer()
        elif size := self._open.tell():
            self._open.seek(0)
            block = Block(self._clock(), self._open.read(size - len(SEPARATOR)))
            self._begin()
            self._blocks.append(block)
            self.size += len(block.data)
            while self.size > self.max_bytes:
                self._drop_first()

    def _begin(self) -> None:
        self._open.seek(0)
        self._open.truncate(BUFFER_BYTES)

    def _drop_first(self) -> None:
        self.size -= len(self._blocks.popleft().data)

    @property
    def due(self) -> float:
        """When `forget` has something to do."""
        return self._blocks[0].until + SECONDS if self._blocks else inf

    def forget(self) -> None:
        """Drop blocks that are too old."""
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
