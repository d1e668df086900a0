"""The messages that are refused when memory is short, and the trims of the heap."""

import pytest
from fakes import Clock

from channels_zmq_forwarder.memory import NOT_READY_AFTER, TRIM_AFTER, TRIM_EVERY, MemoryGuard, Refusal, Trims

NOTHING, LARGE, ALL = Refusal


@pytest.fixture
def guard(clock: Clock) -> MemoryGuard:
    return MemoryGuard(1000, clock)


@pytest.mark.parametrize(
    "resident",
    [
        [(700, NOTHING), (701, LARGE), (651, LARGE), (650, NOTHING), (700, NOTHING)],
        [(900, LARGE), (901, ALL), (801, ALL), (800, LARGE), (900, LARGE), (650, NOTHING)],
        [(950, ALL), (600, NOTHING)],
    ],
)
def test_a_refusal_begins_above_one_mark_and_ends_below_a_lower_one(
    guard: MemoryGuard, resident: list[tuple[int, Refusal]]
) -> None:
    """A refusal begins above one mark and ends below a lower one; otherwise each message would change the decision."""
    assert [guard.decide(used, 0) for used, _ in resident] == [refusal for _, refusal in resident]


def test_what_is_known_to_be_held_counts_whatever_the_system_reports(guard: MemoryGuard) -> None:
    """The bytes that are known to be held count too, since resident memory is not known everywhere."""
    assert guard.decide(0, 950) is ALL
    assert guard.decide(0, 100) is NOTHING


def test_without_a_limit_nothing_is_refused(clock: Clock) -> None:
    """Without a limit nothing is refused, queues hold as much as the settings allow, and the heap is never trimmed."""
    guard = MemoryGuard(0, clock)
    assert guard.queue_bytes(2**40, 100) == 2**40
    assert not guard.should_trim(2**40)
    assert guard.decide(2**40, 2**40) is NOTHING
    assert guard.is_ready


def test_queues_get_a_share_of_the_limit(guard: MemoryGuard) -> None:
    """Queues get a share of the limit, so that a channel without readers leaves memory for all other messages."""
    assert guard.queue_bytes(10_000, 0) == 400
    assert guard.queue_bytes(10_000, 100) == 400
    assert guard.queue_bytes(100, 200) == 100


def test_full_queues_alone_never_lead_to_a_refusal(guard: MemoryGuard) -> None:
    """Full queues alone never lead to a refusal.

    Python keeps the memory of small messages, so the refusal would last for ever.
    """
    assert guard.queue_bytes(10_000, 350) == 250
    assert guard.decide(350 + 250, 250) is NOTHING
    assert guard.queue_bytes(10_000, 700) == 50


def test_the_heap_is_trimmed_before_anything_is_refused(guard: MemoryGuard, clock: Clock) -> None:
    """The heap is trimmed at the mark of a refusal, since the C library keeps freed memory, but not all the time.

    A trim reads the whole heap.
    """
    assert not guard.should_trim(700)
    assert guard.should_trim(701)
    assert not guard.should_trim(701)
    clock.now += TRIM_EVERY
    assert guard.should_trim(701)


def test_the_heap_is_trimmed_until_a_refusal_ends(guard: MemoryGuard, clock: Clock) -> None:
    """During a refusal the heap is trimmed until the refusal can end, so that freed memory does not prolong it."""
    guard.decide(701, 0)
    assert guard.should_trim(660)
    clock.now += TRIM_EVERY
    assert not guard.should_trim(650)


def test_a_forwarder_that_refuses_all_messages_for_long_is_not_ready(guard: MemoryGuard, clock: Clock) -> None:
    """A forwarder that refuses all messages for long is useless and not ready; refusing large ones does not count."""
    guard.decide(750, 0)
    clock.now += NOT_READY_AFTER
    assert guard.is_ready
    guard.decide(950, 0)
    clock.now += NOT_READY_AFTER - 1
    guard.decide(950, 0)
    assert guard.is_ready
    clock.now += 1
    assert not guard.is_ready
    guard.decide(750, 0)
    assert guard.is_ready


@pytest.mark.parametrize(
    ("limit", "wanted", "resident", "bytes_behind"),
    [
        (0, 0, 900, 0),
        (0, 10, 900, 10),
        (1000, 0, 0, 250),
        (1000, 90, 0, 90),
        (1000, 500, 0, 250),
        (1000, 500, 450, 100),
        (1000, 0, 450, 100),
        (1000, 500, 900, 50),
    ],
)
def test_a_subscriber_may_be_behind_by_a_share_of_the_limit(
    clock: Clock, limit: int, wanted: int, resident: int, bytes_behind: int
) -> None:
    """A subscriber may be behind by a share of the limit, and at most by the memory that the process leaves.

    Without a limit the setting counts, where 0 is any number.
    """
    assert MemoryGuard(limit, clock).subscriber_bytes(wanted, resident) == bytes_behind


@pytest.mark.parametrize("limit, wanted, expected", [(0, 1000, 1000), (16_000, 900, 900), (16_000, 1001, 1000)])
def test_the_messages_of_the_last_seconds_take_a_sixteenth_of_the_limit(
    clock: Clock, limit: int, wanted: int, expected: int
) -> None:
    """The history takes at most a sixteenth of the limit, and no more than the setting."""
    assert MemoryGuard(limit, clock).history_bytes(wanted) == expected


def test_nothing_is_trimmed_before_something_has_ended() -> None:
    """The heap is not trimmed for a few ended topics, which take little memory, nor for a backlog alone."""
    trims = Trims()
    assert not any(trims.is_due(now, 0, topics, is_behind=True) for now, topics in enumerate((0, TRIM_AFTER - 1)))


@pytest.mark.parametrize(("ended", "topics"), [(1, 0), (0, TRIM_AFTER)])
def test_the_heap_is_trimmed_for_a_moment_after_something_has_ended(ended: int, topics: int) -> None:
    """After an end the heap is trimmed once and once more, since received frames are freed later.

    It is not trimmed with each beat, and then only after the next end.
    """
    trims = Trims()
    due = [
        trims.is_due(now, ended, topics, is_behind=False)
        for now in (10.0, 10.5, 10 + TRIM_EVERY, 10.1 + 2 * TRIM_EVERY)
    ]
    assert due == [True, False, True, False]
    assert trims.is_due(20.0, 2 * ended, 2 * topics, is_behind=False)


def test_the_heap_is_trimmed_until_what_was_taken_in_is_read() -> None:
    """After an end the heap is trimmed until the backlog is read, however long that takes."""
    trims = Trims()
    times = [10.0 + number * TRIM_EVERY for number in range(9)]
    due = [trims.is_due(now, 1, 0, is_behind=now <= times[4]) for now in times]
    assert due == [True] * 7 + [False] * 2
