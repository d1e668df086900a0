"""The send window of one link: keeps frames until they are acknowledged, and a moment longer, to send them again.

Pure. Group and direct messages are kept in blocks. Each block is followed by a *marker*, an echo with a growing number,
on the same connection. The answer to a marker acknowledges all frames before it. Requests and jobs are not kept, since
they are not sent again, but they count: they take as much room in the socket.

An acknowledgement proves that the exchange has read a frame, not that the frame has reached its subscribers: an
exchange that is killed loses the frames in its pipes. Therefore recently acknowledged frames are sent again, too.
Receivers recognise duplicates by their numbers.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

BLOCK_FRAMES = 1024
BLOCK_BYTES = 512 * 1024
BLOCK_SECONDS = 0.5
"""A marker follows after this many frames, bytes or seconds, whichever is reached first. With 64 frames the answers
took 5 % of a busy sender's time; with 512 a fifth of the slowest 1 % of round trips met a marker. One that is due by
its time interrupts a busy process for 0.4 ms, so with 0.1 s one of a hundred round trips met one, and took twice as
long."""
LARGE = 1024
"""A block of frames that are not larger is bounded by their number, 1 MiB: measuring each would take longer."""
KEEP_SECONDS = 0.5
KEEP_FRAMES = 16_384
KEEP_BYTES = 8 * 2**20
"""Bounds of the acknowledged frames that are kept beside the last block."""
NOW = float("-inf")
"""When a marker is due at once."""
LEAST_BYTES = 2**20
"""A window takes at least this many bytes, even if `outbox_bytes` is smaller."""
AHEAD_SECONDS = 4.0
AHEAD_BYTES = 8 * 2**20
"""It takes the bytes that the link carries in this time, according to the last answer to a marker, and at least those
of a link of 16 Mbit/s: messages do not expire in a socket, so the rest is to wait in the outbox."""


@dataclass(slots=True, eq=False)
class _Block:
    """The frames that were sent between two markers, and when the first one and the second marker were sent.

    Attributes:
        frames: The frames that are kept.
        kept_size: Bytes of the kept frames, but for small ones before the marker.
        others: How many frames are not kept.
        jobs: How many of those carry a job for which no caller waits.
        size: Bytes of all frames, with the same exception.
        ahead: Bytes that were unacknowledged when the marker was sent.
    """

    since: float = 0.0
    until: float = inf
    frames: list[bytes] = field(default_factory=list)
    kept_size: int = 0
    others: int = 0
    jobs: int = 0
    size: int = 0
    ahead: int = 0
    marker: int = 0
    acknowledged_at: float = 0.0

    def __len__(self) -> int:
        return len(self.frames) + self.others


class Unsettled(NamedTuple):
    """Frames to send again: between which times they were sent, and whether they were acknowledged."""

    since: float
    until: float
    frames: list[bytes]
    is_acknowledged: bool


class Window:
    """The unacknowledged frames of one link.

    Args:
        max_frames: How many frames it takes.
        max_bytes: How many bytes they may have together.
        clock: Monotonic seconds.
    """

    def __init__(self, max_frames: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = 0
        """Bytes of the unacknowledged frames, but for small ones that no marker follows yet."""
        self.room = 0
        """How many frames that are not `LARGE` may be kept by `keep` before `append` has to be called again."""
        self._max_frames, self._max_bytes, self._clock = max_frames, max(max_bytes, LEAST_BYTES), clock
        self._bytes = min(self._max_bytes, AHEAD_BYTES)  # the present bound
        self._block_frames = min(BLOCK_FRAMES, max(1, max_frames // 2))  # one is answered while the next one is sent
        self._begin_block()
        self._marked: deque[_Block] = deque()
        self._markers: set[int] = set()  # the unanswered ones
        self._marked_frames = 0
        self._kept: deque[_Block] = deque()
        self._kept_frames = self._kept_size = 0
        self._answered_at = -inf

    def __len__(self) -> int:
        return self._marked_frames + len(self._open)

    @property
    def kept(self) -> int:
        """How many of the unacknowledged frames are kept."""
        return sum(len(block.frames) for block in (*self._marked, self._open))

    @property
    def jobs(self) -> int:
        """How many jobs are unacknowledged for which no caller waits."""
        return sum(block.jobs for block in (*self._marked, self._open))

    @property
    def is_full(self) -> bool:
        """Whether no more frames are to be sent before an acknowledgement."""
        return len(self) >= self._max_frames or self.size >= self._bytes

    @property
    def oldest(self) -> float:
        """When the first unacknowledged frame was sent, to the block; infinite if all frames are acknowledged."""
        first = self._marked[0] if self._marked else self._open
        return first.since if len(first) else inf

    @property
    def unanswered_since(self) -> float:
        """Since when an answer is awaited: the last one, or the first frame after it; infinite if none is awaited."""
        return max(self.oldest, self._answered_at)

    @property
    def awaited(self) -> int:
        """How many bytes the next answer acknowledges, but for small frames that no marker follows yet."""
        return (self._marked[0] if self._marked else self._open).size

    def _begin_block(self) -> None:
        self._open, self.room = _Block(), 0
        self.keep = self._open.frames.append
        """Keeps a frame that was sent, without any check: see `room`. `marked` adds up the sizes."""

    def append(self, frame: bytes) -> float:
        """Keep a frame that was sent; return when a marker is due if this frame has changed it, else 0."""
        self.keep(frame)
        size = len(frame) if len(frame) > LARGE else 0
        self._open.kept_size += size
        return self._sent(size)

    def count(self, size: int, *, is_job: bool = False) -> float:
        """Count a frame that was sent and is not kept; return when a marker is due if it has changed that, else 0.

        Args:
            size: Of the frame, in bytes.
            is_job: Whether it carries a job for which no caller waits.
        """
        self._open.others += 1
        self._open.jobs += is_job
        return self._sent(size)

    def _sent(self, size: int) -> float:
        block = self._open
        count = len(block)
        if count == 1:
            block.since = self._clock()
        block.size += size
        self.size += size
        self.room = max(0, min(self._block_frames - count, self._max_frames - len(self)) - 1)
        return self.marker_due if count == 1 or self._is_marker_due else 0.0

    @property
    def _is_marker_due(self) -> bool:
        """Whether the block is full, or has jobs, which may count as lost until then, and no marker is unanswered."""
        block = self._open
        if block.jobs and not self._markers:
            return True
        return len(block) >= self._block_frames or len(self) == self._max_frames or block.size >= BLOCK_BYTES

    @property
    def marker_due(self) -> float:
        """When the next marker is to be sent; infinite if nothing asks for one."""
        block = self._open
        if not len(block):
            return inf
        return NOW if self._is_marker_due else block.since + BLOCK_SECONDS

    def marked(self, number: int) -> None:
        """Note that a marker with this number was sent behind all frames."""
        self._markers.add(number)
        block = self._open
        if not len(block):  # a repeated request to acknowledge the earlier blocks
            return
        small = sum(map(len, block.frames)) - block.kept_size
        block.kept_size += small
        block.size += small
        self.size += small
        block.marker, block.until, block.ahead = number, self._clock(), self.size
        self._marked.append(block)
        self._marked_frames += len(block)
        self._begin_block()  # last: `kept` may be read by another thread, and counts a block rather twice than not

    def acknowledge(self, number: int) -> bool:
        """Take an answer; return whether it answers a marker, and so acknowledges everything before that."""
        if number not in self._markers:
            return False
        marked = self._marked
        now = self._answered_at = self._clock()
        self._markers = {later for later in self._markers if later > number}
        while marked and marked[0].marker <= number:
            block = marked.popleft()
            block.acknowledged_at = now
            self._marked_frames -= len(block)
            self.size -= block.size
            self._kept.append(block)
            self._kept_frames += len(block.frames)
            self._kept_size += block.kept_size
            rate = block.ahead / max(now - block.until, 0.001)
            self._bytes = min(self._max_bytes, max(AHEAD_BYTES, round(rate * AHEAD_SECONDS)))
        self.forget(now)
        return True

    def forget(self, now: float) -> None:
        """Discard acknowledged frames that are old, or that exceed the bounds beside the last block."""
        kept = self._kept
        while kept and (
            kept[0].acknowledged_at + KEEP_SECONDS <= now
            or (len(kept) > 1 and (self._kept_frames > KEEP_FRAMES or self._kept_size > KEEP_BYTES))
        ):
            block = kept.popleft()
            self._kept_frames -= len(block.frames)
            self._kept_size -= block.kept_size

    def take(self) -> list[Unsettled]:
        """Remove and return everything in the order in which it was sent, because the link cannot be relied on."""
        now = self._clock()
        self.forget(now)
        blocks = [
            Unsettled(block.since, min(block.until, now), block.frames, block.acknowledged_at > 0)
            for block in (*self._kept, *self._marked, self._open)
            if block.frames
        ]
        self.clear()
        return blocks

    def clear(self) -> None:
        """Forget all frames."""
        self._begin_block()
        self._marked.clear()
        self._markers.clear()
        self._kept.clear()
        self.size = self._marked_frames = self._kept_frames = self._kept_size = 0
