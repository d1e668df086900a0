"""Sequence numbers, for each sender and topic: loss becomes visible, and what came twice is dropped.

Pure. A run of numbers begins at the sender's clock in nanoseconds, so that a forgotten run begins again higher, never
lower. Numbers are given when a frame goes to the socket, so that one that expired while it waited is no gap.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from channels_zmq_forwarder.wire import FLAG_FIRST, SENDER_SIZE

SENT_TOPICS = 8192
"""Topics whose last number a sender remembers: 0.15-0.3 us a message for 1,000 topics, +0.6 us beyond this many."""
RECEIVED_RUNS = 65_536
"""Runs that a receiver remembers, at about 140 bytes each."""


class Numbers:
    """The numbers that this process gives, by prefix; the least recently used are forgotten."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns, size: int = SENT_TOPICS) -> None:
        self._last: OrderedDict[bytes, int] = OrderedDict()
        self._clock, self._size = clock, size

    def next(self, prefix: bytes) -> tuple[int, int]:
        """Return the next number of a prefix and its flags."""
        last = self._last.get(prefix)
        if last is not None:
            self._last[prefix] = last + 1
            self._last.move_to_end(prefix)
            return last + 1, 0
        number = self._last[prefix] = self._clock()
        if len(self._last) > self._size:
            self._last.popitem(last=False)
        return number, FLAG_FIRST

    def take_back(self, prefix: bytes, number: int, flags: int) -> None:
        """Undo `next`, for a frame that did not go to the socket after all."""
        if flags:
            del self._last[prefix]
        else:
            self._last[prefix] = number - 1


REPEATED = -1


class Runs:
    """The last number that this process received, for each sender and prefix."""

    def __init__(self, size: int = RECEIVED_RUNS) -> None:
        self._last: OrderedDict[bytes, int] = OrderedDict()
        self._keys: dict[bytes, set[bytes]] = {}
        self._size = size

    def __len__(self) -> int:
        return len(self._last)

    def see(self, key: bytes, number: int, flags: int) -> int:
        """Note a number; return how many before it are missing, or `REPEATED`.

        A run that was not seen before is accepted from wherever it is.
        """
        last = self._last.get(key)
        if last is None:
            self._remember(key, number)
            return 0
        if number <= last:
            return REPEATED
        self._last[key] = number
        self._last.move_to_end(key)
        return 0 if flags & FLAG_FIRST else number - last - 1

    def forget(self, prefix: bytes) -> None:
        """Forget all runs of a topic, since it is no longer subscribed to."""
        for key in self._keys.pop(prefix, ()):
            del self._last[key]

    def clear(self) -> None:
        """Forget all runs."""
        self._last.clear()
        self._keys.clear()

    def _remember(self, key: bytes, number: int) -> None:
        self._last[key] = number
        self._keys.setdefault(key[:-SENDER_SIZE], set()).add(key)
        if len(self._last) > self._size:
            oldest, _ = self._last.popitem(last=False)
            keys = self._keys[oldest[:-SENDER_SIZE]]
            keys.discard(oldest)
            if not keys:
                del self._keys[oldest[:-SENDER_SIZE]]
