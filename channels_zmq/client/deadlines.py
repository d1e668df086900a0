"""A heap of deadlines: its cost grows with the number of due items, not of all items. Pure."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Generic, TypeVar

Item = TypeVar("Item")

_SMALL = 64


class Deadlines(Generic[Item]):
    """Items in the order of their deadlines. An item is never removed early: it stops being current instead.

    Args:
        is_current: Whether an entry still counts, from its deadline and its item. Entries that do not are skipped, and
            discarded once they are the majority.
    """

    def __init__(self, is_current: Callable[[float, Item], bool]) -> None:
        self._is_current = is_current
        self._heap: list[tuple[float, int, Item]] = []
        self._order = count()  # so that items are never compared
        self._compact_at = _SMALL
        self.next = inf
        """The earliest deadline, also of an entry that does not count any more; infinite without entries."""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline: float, item: Item) -> None:
        """Add an item."""
        heappush(self._heap, (deadline, next(self._order), item))
        if len(self._heap) > self._compact_at:
            self._heap = [entry for entry in self._heap if self._is_current(entry[0], entry[2])]
            heapify(self._heap)
            self._compact_at = 2 * len(self._heap) + _SMALL
        self._look()

    def pop(self, now: float) -> Item | None:
        """Remove and return the next item whose deadline has passed, or None."""
        while self._heap and self._heap[0][0] <= now:
            deadline, _, item = heappop(self._heap)
            if self._is_current(deadline, item):
                self._look()
                return item
        self._look()
        return None

    def clear(self) -> None:
        """Remove all items."""
        self._heap.clear()
        self._compact_at = _SMALL
        self.next = inf

    def _look(self) -> None:
        self.next = self._heap[0][0] if self._heap else inf
