"""What is refused when memory is short."""

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
    """Otherwise each message would change the decision."""
    assert [guard.decide(used, 0) for used, _ in resident] == [refusal for _, refusal in resident]


def test_what_is_known_to_be_held_counts_whatever_the_system_reports(guard: MemoryGuard) -> None:
    """Resident memory is not known everywhere."""
    assert guard.decide(0, 950) is ALL
    assert guard.decide(0, 100) is NOTHING


def test_without_a_limit_nothing_is_refused(clock: Clock) -> None:
    """Queues may hold what the settings want, and the heap is never trimmed."""
    guard = MemoryGuard(0, clock)
    assert guard.queue_bytes(2**40, 100) == 2**40
    assert not guard.should_trim(2**40)
    assert guard.decide(2**40, 2**40) is NOTHING
    assert guard.is_ready


def test_queues_get_a_share_of_the_limit(guard: MemoryGuard) -> None:
    """A channel without readers leaves memory for all other messages."""
    assert guard.queue_bytes(10_000, 0) == 400
    assert guard.queue_bytes(10_000, 100) == 400
    assert guard.queue_bytes(100, 200) == 100


def test_full_queues_alone_never_lead_to_a_refusal(guard: MemoryGuard) -> None:
    """Python keeps the memory of small messages, so that it would last for ever."""
    assert guard.queue_bytes(10_000, 350) == 250
    assert guard.decide(350 + 250, 250) is NOTHING
    assert guard.queue_bytes(10_000, 700) == 50


def test_the_heap_is_trimmed_before_anything_is_refused(guard: MemoryGuard, clock: Clock) -> None:
    """The C library keeps freed memory; a trim looks at all of it, so it is not done all the time."""
    assert not guard.should_trim(700)
    assert guard.should_trim(701)
    assert not guard.should_trim(701)
    clock.now += TRIM_EVERY
    assert guard.should_trim(701)


def test_the_heap_is_trimmed_until_a_refusal_ends(guard: MemoryGuard, clock: Clock) -> None:
    """Memory that became free in the meantime must not keep a refusal up."""
    guard.decide(701, 0)
    assert guard.should_trim(660)
    clock.now += TRIM_EVERY
    assert not guard.should_trim(650)


def test_a_forwarder_that_refuses_all_messages_for_long_is_not_ready(guard: MemoryGuard, clock: Clock) -> None:
    """It is useless then; while it refuses only large ones it is not."""
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
    """At most by what the process itself leaves. Where there is no limit, as configured; 0 is any number."""
    assert MemoryGuard(limit, clock).subscriber_bytes(wanted, resident) == bytes_behind


@pytest.mark.parametrize("limit, wanted, expected", [(0, 1000, 1000), (16_000, 900, 900), (16_000, 1001, 1000)])
def test_the_messages_of_the_last_seconds_take_a_sixteenth_of_the_limit(
    clock: Clock, limit: int, wanted: int, expected: int
) -> None:
    """At most; or as much as the settings allow."""
    assert MemoryGuard(limit, clock).history_bytes(wanted) == expected


def test_nothing_is_trimmed_before_something_has_ended() -> None:
    """Few topics take little, and a backlog alone does not count."""
    trims = Trims()
    assert not any(trims.is_due(now, 0, topics, is_behind=True) for now, topics in enumerate((0, TRIM_AFTER - 1)))


@pytest.mark.parametrize(("ended", "topics"), [(1, 0), (0, TRIM_AFTER)])
def test_the_heap_is_trimmed_for_a_moment_after_something_has_ended(ended: int, topics: int) -> None:
    """Not with each beat, and once more, since what was taken in is gone later; then only after the next end."""
    trims = Trims()
    due = [
        trims.is_due(now, ended, topics, is_behind=False)
        for now in (10.0, 10.5, 10 + TRIM_EVERY, 10.1 + 2 * TRIM_EVERY)
    ]
    assert due == [True, False, True, False]
    assert trims.is_due(20.0, 2 * ended, 2 * topics, is_behind=False)


def test_the_heap_is_trimmed_until_what_was_taken_in_is_read() -> None:
    """However long that takes."""
    trims = Trims()
    times = [10.0 + number * TRIM_EVERY for number in range(9)]
    due = [trims.is_due(now, 1, 0, is_behind=now <= times[4]) for now in times]
    assert due == [True] * 7 + [False] * 2
