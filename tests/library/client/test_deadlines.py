"""A heap of work with deadlines."""

from math import inf

import pytest

from channels_zmq.client.deadlines import Deadlines


class Current:
    """The current deadline of each item, and the number of queries for it."""

    def __init__(self) -> None:
        self.of: dict[object, float] = {}
        self.asked = 0

    def __call__(self, at: float, item: object) -> bool:
        self.asked += 1
        return self.of.get(item) == at


@pytest.fixture
def current() -> Current:
    return Current()


@pytest.fixture
def deadlines(current: Current) -> Deadlines[object]:
    return Deadlines(current)


def add(deadlines: Deadlines[object], current: Current, at: float, item: object) -> None:
    current.of[item] = at
    deadlines.add(at, item)


def popped(deadlines: Deadlines[object], now: float) -> list[object]:
    return list(iter(lambda: deadlines.pop(now), None))


def test_items_are_returned_in_the_order_of_their_deadlines(deadlines: Deadlines[object], current: Current) -> None:
    """Items are due at their deadlines and not before; equal deadlines keep the order of addition."""
    for at, item in ((3, "c"), (1, "a"), (2, "b"), (2, "b2")):
        add(deadlines, current, at, item)
    assert [popped(deadlines, now) for now in (0.9, 2, 2, 3)] == [[], ["a", "b", "b2"], [], ["c"]]


def test_items_that_cannot_be_compared_may_have_equal_deadlines(deadlines: Deadlines[object], current: Current) -> None:
    """Items with equal deadlines need not be comparable, because the order of addition decides."""
    one, other = object(), object()
    add(deadlines, current, 1, one)
    add(deadlines, current, 1, other)
    assert popped(deadlines, 1) == [one, other]


def test_the_next_deadline_is_known_without_a_search(deadlines: Deadlines[object], current: Current) -> None:
    """The next deadline follows additions, removals and clearing, and is infinite without items."""
    seen = [deadlines.next]
    for at in (5, 3, 7):
        add(deadlines, current, at, at)
        seen.append(deadlines.next)
    for now in (3, 5, 7):
        deadlines.pop(now)
        seen.append(deadlines.next)
    add(deadlines, current, 9, 9)
    deadlines.clear()
    assert [*seen, deadlines.next] == [inf, 5, 3, 3, 5, 7, inf, inf]
    assert len(deadlines) == 0


def test_an_entry_that_is_no_longer_current_is_skipped(deadlines: Deadlines[object], current: Current) -> None:
    """An item that was rescheduled is returned once, at its new deadline."""
    add(deadlines, current, 1, "a")
    add(deadlines, current, 5, "a")
    add(deadlines, current, 2, "b")
    assert [popped(deadlines, now) for now in (2, 5)] == [["b"], ["a"]]


def test_outdated_entries_alone_return_nothing(deadlines: Deadlines[object], current: Current) -> None:
    """Outdated entries are discarded without being returned."""
    add(deadlines, current, 1, "a")
    current.of.clear()
    assert deadlines.pop(1) is None
    assert (len(deadlines), deadlines.next) == (0, inf)


def test_churn_leaves_a_small_heap(deadlines: Deadlines[object], current: Current) -> None:
    """Outdated entries are discarded once they are the majority, so 100,000 updates of an item leave a small heap."""
    for at in range(100_000):
        add(deadlines, current, at, "a")
    assert len(deadlines) <= 2 + 64
    assert popped(deadlines, inf) == ["a"]


def test_compaction_keeps_every_current_entry(deadlines: Deadlines[object], current: Current) -> None:
    """Compaction keeps every current entry, bounds the heap by twice the items, and costs a constant per addition."""
    for turn in range(20):
        for item in range(1000):
            add(deadlines, current, 1000 * turn + item, item)
    assert len(deadlines) <= 2 * 1000 + 64
    assert current.asked < 3 * 20_000
    assert popped(deadlines, inf) == list(range(1000))


def test_nothing_due_costs_nothing(deadlines: Deadlines[object], current: Current) -> None:
    """With nothing due, `pop` examines none of 100,000 entries."""
    for item in range(100_000):
        add(deadlines, current, 10, item)
    current.asked = 0
    assert [deadlines.pop(9.9) for _ in range(10)] == [None] * 10
    assert current.asked == 0


def test_clearing_begins_the_bound_anew(deadlines: Deadlines[object], current: Current) -> None:
    """Clearing resets the bound, so that a heap that was large once is compacted early again."""
    for item in range(1000):
        add(deadlines, current, 1, item)
    deadlines.clear()
    for at in range(1000):
        add(deadlines, current, at, "a")
    assert len(deadlines) <= 2 + 64
