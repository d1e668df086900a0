"""Sequence numbers for each sender and topic: losses become visible, and repeated frames are dropped.

Pure. A run of numbers begins at the sender's clock in nanoseconds, so that a run which was forgotten begins again with
a higher number, never with a lower one. A frame gets its number when it is handed to the socket for the first time: a
message that expires while it waits leaves no gap, and one that is sent again keeps its number.

Both tables forget the entries that were not used for longest. They do it by generations: entries are written to the
young table; when that is full it becomes the old one, and the former old one is dropped. An entry that is used while it
is old becomes young again. This needs no bookkeeping for each message, and half the memory of an ordered dictionary.
"""

import time
from collections.abc import Callable

from channels_zmq_forwarder.wire import FLAG_FIRST, MAX_JUMP, is_repeated

SENT_TOPICS = 32_768
"""Topics in one generation of a sender: at least this many keep their number, at most twice as many are held.

A topic takes about 120 bytes, and a message 0.2 us, 0.4 us beyond two generations: a sender that uses more topics in
turns begins a run anew for each message, and then its receivers cannot detect losses (`make bench-sequences`).
"""
RECEIVED_RUNS = 4096
"""Senders in one generation of a topic, at about 80 bytes each, 200 for the first one (`make bench-sequences`)."""
REPEATED, BEGINS = -1, -2
"""Results of `Runs.see`: a duplicate, and the first frame seen of a run, which earlier ones may have preceded."""


class Numbers:
    """The sequence numbers that this process gives, by prefix.

    Args:
        clock: Monotonic nanoseconds, the first number of a run.
        size: Prefixes in one generation.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns, size: int = SENT_TOPICS) -> None:
        self._young: dict[bytes, int] = {}
        self._old: dict[bytes, int] = {}
        self._clock, self._size = clock, size

    def next(self, prefix: bytes, count: int = 1) -> tuple[int, int]:
        """Take the next numbers of a prefix; return the first of them, and its flags."""
        last = self._young.get(prefix)
        if last is not None:
            self._young[prefix] = last + count
            return last + 1, 0
        last = self._old.get(prefix)
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        number, flags = (self._clock(), FLAG_FIRST) if last is None else (last + 1, 0)
        self._young[prefix] = number + count - 1
        return number, flags

    def take_back(self, prefix: bytes, number: int, flags: int) -> None:
        """Undo `next`, which has returned this number and these flags, for a frame that the socket did not take."""
        if flags:
            del self._young[prefix]
        else:
            self._young[prefix] = number - 1

    def last(self, prefix: bytes) -> int:
        """Return the last number of a prefix, 0 if it has none."""
        return self._young.get(prefix) or self._old.get(prefix) or 0


class Runs:
    """The last number of each sender on one topic.

    A number below zero belongs to a run that may continue anywhere: the numbers between were not for this process.

    Args:
        size: Senders in one generation.
    """

    __slots__ = ("_old", "_size", "_young")

    def __init__(self, size: int = RECEIVED_RUNS) -> None:
        self._young: dict[bytes, int] = {}
        self._old: dict[bytes, int] | None = None
        self._size = size

    def __len__(self) -> int:
        return len(self._young) + len(self._old or ())

    def see(self, sender: bytes, number: int, flags: int) -> int:
        """Classify a number, and note it if it is the next one or the first one.

        Returns:
            0 if it was noted, else `REPEATED`, `BEGINS`, or how many numbers are missing before it. In the last two
            cases `skip_to` notes it.
        """
        last = self._young.get(sender)
        if last is None:
            last = self._promoted(sender)
        if last == number - 1:
            self._young[sender] = number
            return 0
        if last is not None and is_repeated(number, abs(last)):
            return REPEATED
        if flags & FLAG_FIRST:
            self._young[sender] = number
            return 0
        return BEGINS if last is None else _between(last, number, BEGINS)

    def skip_to(self, sender: bytes, number: int) -> int:
        """Note a number behind a gap; return how many before it are missing."""
        last = self._young.get(sender)
        if last is None:
            last = self._promoted(sender)
        self._young[sender] = number
        return 0 if last is None else _between(last, number, 0)

    def is_repeated(self, sender: bytes, number: int) -> bool:
        """Return whether a held frame of a sender has become a duplicate meanwhile."""
        return is_repeated(number, self.last(sender))

    def last(self, sender: bytes) -> int:
        """Return the last number of a sender, 0 if it is unknown."""
        last = self._young.get(sender)
        if last is None and self._old:
            last = self._old.get(sender)
        return abs(last or 0)

    def start_after(self, sender: bytes, number: int) -> None:
        """Treat every frame of a sender up to this number as received before."""
        if number:
            self._young[sender] = max(number, self.last(sender))

    def restart(self) -> None:
        """Let every run continue anywhere above its last number; lower numbers remain repetitions."""
        self._young = {sender: -abs(last) for sender, last in self._young.items()}
        if self._old:
            self._old = {sender: -abs(last) for sender, last in self._old.items()}

    def clear(self) -> None:
        """Forget all senders."""
        self._young.clear()
        self._old = None

    def _promoted(self, sender: bytes) -> int | None:
        last = self._old.pop(sender, None) if self._old else None
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        if last is not None:
            self._young[sender] = last
        return last


def _between(last: int, number: int, otherwise: int) -> int:
    """Return how many numbers lie between two, unless the run may continue anywhere, or jumps too far for a loss."""
    return number - last - 1 if 0 <= last < number <= last + MAX_JUMP else otherwise
