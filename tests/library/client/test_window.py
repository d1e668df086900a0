"""Frames that were sent and are not acknowledged."""

import itertools
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from fakes import Clock

from channels_zmq.client.requests import next_number
from channels_zmq.client.window import (
    BLOCK_BYTES,
    BLOCK_FRAMES,
    BLOCK_SECONDS,
    KEEP_BYTES,
    KEEP_FRAMES,
    KEEP_SECONDS,
    LARGE,
    LEAST_BYTES,
    NOW,
    Unsettled,
    Window,
)


@pytest.fixture
def window(clock: Clock) -> Window:
    return Window(2 * BLOCK_FRAMES, 2**20, clock)


def frames(taken: list[Unsettled]) -> list[bytes]:
    return [frame for one in taken for frame in one.frames]


def test_the_first_frame_of_a_block_says_when_its_marker_is_due(window: Window, clock: Clock) -> None:
    """The first frame of a block sets the time of its marker, later frames do not; without a frame none is due."""
    assert window.marker_due == inf
    assert window.append(b"a") == clock.now + BLOCK_SECONDS
    assert [window.append(b"b") for _ in range(3)] == [0.0] * 3
    assert window.marker_due == clock.now + BLOCK_SECONDS


@pytest.mark.parametrize(("frame", "count"), [(b"x", BLOCK_FRAMES), (bytes(BLOCK_BYTES // 2), 2)])
def test_a_full_block_asks_for_a_marker_at_once(window: Window, frame: bytes, count: int) -> None:
    """A block that is full, in frames or in bytes, asks for a marker at once."""
    due = [window.append(frame) for _ in range(count)]
    assert due[-1] == window.marker_due == NOW
    assert NOW not in due[:-1]


@pytest.mark.parametrize(
    ("most", "blocks"),
    [(1, [1]), (3, [1, 1, 1]), (1000, [500, 500]), (2 * BLOCK_FRAMES + 76, [BLOCK_FRAMES, BLOCK_FRAMES, 76])],
)
def test_a_window_has_two_blocks_or_more_and_is_never_overrun(clock: Clock, most: int, blocks: list[int]) -> None:
    """A window has at least two blocks, so that one is sent while another is awaited, and never exceeds its size."""
    window = Window(most, 2**20, clock)
    sent, numbers = [], itertools.count(1)
    while not window.is_full:
        sent.append(next(number for number in itertools.count(1) if window.append(b"x") == NOW))
        window.marked(next(numbers))
    assert (sent, len(window)) == (blocks, most)
    for number in range(1, 10):
        window.acknowledge(number)
        while not window.is_full:
            window.append(b"x")
            if window.marker_due == NOW:
                window.marked(next(numbers))
        assert len(window) == most


def test_a_full_window_asks_for_no_marker_for_each_frame(clock: Clock) -> None:
    """A full window still asks for one marker a block and not for one a frame."""
    window = Window(2 * BLOCK_FRAMES, 2**20, clock)
    for number in range(2 * BLOCK_FRAMES):
        if window.count(1) == NOW:
            window.marked(number)
    assert window.is_full
    assert NOW not in [window.count(1) for _ in range(BLOCK_FRAMES - 1)]


def room(window: Window, clock: Clock, rate: float) -> int:
    """Return how many bytes a window takes, in whole blocks, and acknowledge them at the rate of a link."""
    numbers = []
    while not window.is_full:
        window.append(bytes(BLOCK_BYTES))
        numbers.append(next_number())
        window.marked(numbers[-1])
    for number in numbers:
        clock.now += BLOCK_BYTES / rate
        window.acknowledge(number)
    return len(numbers) * BLOCK_BYTES


@pytest.mark.parametrize(("rate", "taken"), [(2**20, 8), (4 * 2**20, 16), (2**30, 32)])
def test_a_window_takes_as_much_as_its_link_carries_in_a_few_seconds(clock: Clock, rate: int, taken: int) -> None:
    """A window adapts, within bounds, to its link's rate: more would wait in a socket and never expire."""
    window = Window(1000, 32 * 2**20, clock)
    assert [room(window, clock, rate) >> 20 for _ in range(3)] == [8, taken, taken]


def test_an_answer_acknowledges_everything_before_its_marker(window: Window) -> None:
    """An answer acknowledges all frames up to its marker, including earlier markers, and none behind it."""
    for number in (1, 2, 3):
        window.append(b"%d" % number)
        window.marked(number)
    window.append(b"open")
    assert window.acknowledge(2)
    assert (len(window), window.size) == (2, len(b"3"))


@pytest.mark.parametrize("number", [0, 4])
def test_an_answer_to_no_marker_of_this_window_acknowledges_nothing(window: Window, number: int) -> None:
    """An answer to no marker of this window, as to an echo or an acknowledged marker, acknowledges nothing."""
    window.append(b"a")
    window.marked(5)
    assert not window.acknowledge(number)
    assert len(window) == 1
    assert window.acknowledge(5)
    assert not window.acknowledge(5)


def test_an_answer_between_two_markers_acknowledges_nothing(window: Window) -> None:
    """An answer between two markers belongs to a request on another connection, and acknowledges nothing."""
    for number in (5, 9):
        window.append(b"%d" % number)
        window.marked(number)
    assert not window.acknowledge(7)
    assert len(window) == 2
    assert window.acknowledge(9)
    assert not window.acknowledge(5), "it was covered"


def test_an_answer_is_awaited_since_the_last_one_or_since_the_first_frame_behind_it(
    window: Window, clock: Clock
) -> None:
    """An answer counts as awaited since the previous answer or since the first frame after it, whichever is later."""
    assert window.unanswered_since == inf
    clock.now = 1.0
    window.append(b"1")
    window.marked(1)
    clock.now = 2.0
    window.append(b"2")
    assert window.unanswered_since == 1.0
    clock.now = 3.0
    window.acknowledge(1)
    assert window.unanswered_since == 3.0
    window.marked(2)
    window.acknowledge(2)
    assert window.unanswered_since == inf
    clock.now = 4.0
    window.append(b"3")
    assert window.unanswered_since == 4.0


def test_a_marker_behind_no_frame_asks_once_more(window: Window, clock: Clock) -> None:
    """The answer to one of several markers covers the frames before it, and later frames are watched as usual."""
    clock.now = 1.0
    window.append(b"1")
    for number in (1, 2, 3):
        window.marked(number)
    assert window.acknowledge(2)
    assert (len(window), window.oldest) == (0, inf)
    assert not window.acknowledge(1), "it was covered"
    clock.now = 2.0
    window.append(b"2")
    assert (window.oldest, window.unanswered_since) == (2.0, 2.0)
    clock.now = 3.0
    assert window.acknowledge(3)
    assert (len(window), window.unanswered_since) == (1, 3.0)


@pytest.mark.parametrize("forget", [Window.take, Window.clear])
def test_an_answer_to_a_marker_of_frames_that_are_gone_acknowledges_nothing(
    window: Window, forget: Callable[..., Any]
) -> None:
    """After a window was taken or cleared, an answer to a former marker acknowledges no later frame."""
    window.append(b"a")
    window.marked(5)
    forget(window)
    window.append(b"b")
    window.marked(9)
    assert not window.acknowledge(5)
    assert len(window) == 1


def test_a_full_window_has_room_again_after_an_acknowledgement(clock: Clock) -> None:
    """A window is bounded in frames, and an acknowledgement makes room again."""
    window = Window(4, 2**20, clock)
    for number in (1, 2):
        window.append(b"a")
        window.append(b"b")
        window.marked(number)
    assert window.is_full
    window.acknowledge(1)
    assert not window.is_full


def test_a_window_is_bounded_in_bytes(clock: Clock) -> None:
    """A window is bounded in bytes, but takes at least `LEAST_BYTES`, however few are configured."""
    window = Window(1000, 10, clock)
    window.append(bytes(LEAST_BYTES - 100))
    for _ in range(100):
        window.append(b"x")
    assert not window.is_full
    window.marked(1)  # the sizes of small frames are added up here
    assert window.is_full


def test_frames_that_are_not_kept_count_until_they_are_acknowledged(window: Window, clock: Clock) -> None:
    """Frames that are not kept count and ask for markers until they are acknowledged, but are not sent again."""
    assert window.count(10) == clock.now + BLOCK_SECONDS
    clock.now += 0.1
    assert window.append(b"kept") == 0.0
    assert window.count(20) == 0.0
    window.marked(1)
    assert (len(window), window.kept, window.size, window.awaited) == (3, 1, 34, 34)
    assert window.oldest == clock.now - 0.1
    window.count(1)
    assert (len(window), window.kept) == (4, 1)
    window.acknowledge(1)
    assert (len(window), window.kept, window.size) == (1, 0, 1)
    assert frames(window.take()) == [b"kept"]


def test_a_job_asks_for_a_marker_at_once_unless_another_one_is_unanswered(window: Window, clock: Clock) -> None:
    """A job asks for a marker at once: until the answer its loss would be counted. Jobs behind a marker share one."""
    assert window.count(10, is_job=True) == NOW
    window.marked(1)
    assert window.count(10, is_job=True) == clock.now + BLOCK_SECONDS
    assert window.count(10, is_job=True) == 0.0
    window.acknowledge(1)
    assert window.marker_due == NOW
    window.marked(2)
    window.acknowledge(2)
    assert (window.marker_due, window.jobs) == (inf, 0)


@pytest.mark.parametrize(("size", "count"), [(1, BLOCK_FRAMES), (BLOCK_BYTES // 2, 2), (BLOCK_BYTES, 1)])
def test_a_block_is_full_of_frames_that_are_not_kept(clock: Clock, size: int, count: int) -> None:
    """Frames that are not kept fill a block and the window, in frames or in bytes."""
    window = Window(2 * BLOCK_FRAMES, LEAST_BYTES, clock)
    due = [window.count(size) for _ in range(count)]
    assert due[-1] == NOW
    assert NOW not in due[:-1]
    while not window.is_full:
        window.count(size)
    assert len(window) == 2 * BLOCK_FRAMES or window.size >= LEAST_BYTES


def test_an_acknowledged_frame_that_is_larger_than_the_bound_is_kept(clock: Clock) -> None:
    """An acknowledged frame above the bound is kept alone."""
    window = Window(1000, 10 * KEEP_BYTES, clock)
    for number, frame in enumerate((b"small", bytes(KEEP_BYTES + 1))):
        window.append(frame)
        window.marked(number)
        window.acknowledge(number)
    assert [len(one) for one in frames(window.take())] == [KEEP_BYTES + 1]


def test_room_for_small_frames_is_known_behind_one_that_is_not_kept(window: Window) -> None:
    """`room` is the number of small frames that `keep` takes without a check, also behind a frame that is not kept."""
    window.count(10)
    window.append(b"1")
    assert window.room == BLOCK_FRAMES - 3
    for _ in range(window.room):
        window.keep(b"x")
    assert window.append(b"last") == NOW


def test_large_frames_that_are_not_kept_leave_those_that_are(clock: Clock) -> None:
    """Large frames that are not kept displace no kept frame, because the bound limits memory."""
    window = Window(1000, 10 * KEEP_BYTES, clock)
    window.append(b"kept")
    window.count(2 * KEEP_BYTES)
    window.marked(1)
    window.acknowledge(1)
    assert frames(window.take()) == [b"kept"]


def test_the_answer_that_comes_next_acknowledges_the_oldest_block(window: Window) -> None:
    """The next answer covers the oldest block, whose size determines how long the answer may take on a slow link."""
    assert window.awaited == 0
    window.append(bytes(LARGE + 1))
    assert window.awaited == LARGE + 1
    window.append(b"small")
    window.marked(1)
    window.append(bytes(LARGE + 2))
    assert window.awaited == LARGE + 1 + len(b"small")
    window.acknowledge(1)
    assert window.awaited == LARGE + 2


@pytest.mark.parametrize(("size", "most"), [(LARGE, BLOCK_FRAMES * LARGE), (LARGE + 1, BLOCK_BYTES + LARGE)])
def test_a_full_block_is_bounded_in_bytes_whatever_the_size_of_its_frames(clock: Clock, size: int, most: int) -> None:
    """A full block is bounded in bytes: by the number of small frames, and by the sum of larger ones."""
    window = Window(10**6, 10**9, clock)
    count = next(number for number in range(1, BLOCK_FRAMES + 1) if window.append(bytes(size)) == NOW)
    assert count * size <= most <= LEAST_BYTES
    window.marked(1)
    assert window.size == count * size


def test_what_is_taken_is_in_the_order_in_which_it_was_sent(window: Window, clock: Clock) -> None:
    """Frames are taken in the order of sending, acknowledged or not, each with the times of its block."""
    begin = clock.now
    for number in (1, 2):
        window.append(b"%d" % number)
        clock.now += 0.01
        window.marked(number)
        clock.now += 0.09
    window.append(b"3")
    clock.now += 0.005
    window.acknowledge(1)
    taken = window.take()
    assert frames(taken) == [b"1", b"2", b"3"]
    assert [one.is_acknowledged for one in taken] == [True, False, False]
    assert [one.since - begin for one in taken] == pytest.approx([0.0, 0.1, 0.2])
    assert [one.until - begin for one in taken] == pytest.approx([0.01, 0.11, 0.205])


def test_nothing_is_taken_twice(window: Window) -> None:
    """A window is empty after it was taken, so that no frame is taken twice."""
    window.append(b"a")
    window.marked(1)
    window.append(b"b")
    window.take()
    assert (window.take(), len(window), window.size, window.marker_due) == ([], 0, 0, inf)
    assert not window.acknowledge(1)


def test_acknowledged_frames_are_kept_for_a_moment_only(window: Window, clock: Clock) -> None:
    """Acknowledged frames are dropped after `KEEP_SECONDS`."""
    window.append(b"a")
    window.marked(1)
    window.acknowledge(1)
    clock.now += KEEP_SECONDS
    window.append(b"b")
    assert frames(window.take()) == [b"b"]


@pytest.mark.parametrize(("frame", "most"), [(b"x", KEEP_FRAMES), (bytes(BLOCK_BYTES), KEEP_BYTES // BLOCK_BYTES)])
def test_few_acknowledged_frames_are_kept(clock: Clock, frame: bytes, most: int) -> None:
    """Acknowledged frames are kept within a bound in frames and in bytes, and the oldest are dropped first."""
    window = Window(10**6, 10**9, clock)
    number = 0
    for _ in range(most + BLOCK_FRAMES):
        if window.append(frame) == NOW:
            number += 1
            window.marked(number)
            window.acknowledge(number)
    kept = frames([one for one in window.take() if one.is_acknowledged])
    assert most - BLOCK_FRAMES <= len(kept) <= most
