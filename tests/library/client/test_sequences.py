"""Sequence numbers: those that a sender assigns, and those that a receiver has seen."""

import itertools

import pytest

from channels_zmq.client.sequences import BEGINS, REPEATED, Numbers, Runs
from channels_zmq_forwarder.wire import FLAG_FIRST, MAX_JUMP

SENDER, OTHER = b"s" * 8, b"o" * 8
G, H, OLD, NEW = b"Gg\0", b"Gh\0", b"Gi\0", b"Gj\0"


@pytest.fixture
def numbers() -> Numbers:
    clock = itertools.count(1000, 1000)
    return Numbers(clock=lambda: next(clock), size=2)


# Assigned


def test_a_run_begins_at_the_clock_and_is_flagged(numbers: Numbers) -> None:
    """A run begins at the clock's value with a flag, and its following numbers increase by one."""
    assert [numbers.next(G) for _ in range(3)] == [(1000, FLAG_FIRST), (1001, 0), (1002, 0)]


def test_several_numbers_are_taken_at_once(numbers: Numbers) -> None:
    """A batch gets consecutive numbers at once, and returns them if it was not sent."""
    assert numbers.next(G, 3) == (1000, FLAG_FIRST)
    assert numbers.next(G, 2) == (1003, 0)
    assert numbers.last(G) == 1004
    numbers.take_back(G, 1003, 0)
    assert numbers.next(G) == (1003, 0)


def test_each_prefix_has_a_run_of_its_own(numbers: Numbers) -> None:
    """Each prefix has its own run, so that a message to one topic causes no gap in another."""
    assert numbers.next(G) == (1000, FLAG_FIRST)
    assert numbers.next(H) == (2000, FLAG_FIRST)
    assert numbers.next(G) == (1001, 0)


def test_a_forgotten_run_begins_again_higher(numbers: Numbers) -> None:
    """A forgotten run begins again at a higher number; otherwise a receiver would drop its messages as repeated."""
    last, _ = numbers.next(G)
    for prefix in (H, OLD, NEW, b"Gk\0"):
        numbers.next(prefix)
    number, flags = numbers.next(G)
    assert number > last
    assert flags == FLAG_FIRST


def test_a_topic_in_use_is_never_forgotten(numbers: Numbers) -> None:
    """A run is kept while fewer topics than a generation are used between two of its uses, whatever their total."""
    numbers.next(G)
    for other in range(1000):
        numbers.next(b"G%d\0" % other)
        assert numbers.next(G) == (1001 + other, 0)


def test_a_topic_that_was_not_used_for_two_generations_is_forgotten(numbers: Numbers) -> None:
    """A topic that was not used for two generations is forgotten, so that at most two generations are in memory."""
    for other in range(1000):
        numbers.next(b"G%d\0" % other)
    assert len(numbers._young) + len(numbers._old) <= 4
    assert numbers.last(G) == 0


@pytest.mark.parametrize("between", [0, 1, 2, 3])
def test_a_run_goes_on_from_either_generation(numbers: Numbers, between: int) -> None:
    """A run in either generation continues, and reading its last number does not consume one."""
    numbers.next(G)
    for other in range(between):
        numbers.next(b"G%d\0" % other)
    assert numbers.last(G) == 1000
    assert numbers.next(G) == (1001, 0)
    assert numbers.last(G) == 1001


def test_a_prefix_without_a_number_has_0_as_its_last(numbers: Numbers) -> None:
    """The last number of a prefix without messages is 0."""
    assert numbers.last(G) == 0


def test_a_number_that_was_taken_back_is_given_again(numbers: Numbers) -> None:
    """A number that was taken back is assigned again, so that a frame that the socket refused leaves no gap."""
    numbers.next(G)
    taken = numbers.next(G)
    numbers.take_back(G, *taken)
    assert numbers.last(G) == 1000
    assert numbers.next(G) == taken


def test_a_number_of_an_old_run_can_be_taken_back(numbers: Numbers) -> None:
    """A number of a run from the old generation can be taken back, because its use has made the topic young again."""
    for prefix in (G, H, NEW):
        numbers.next(prefix)
    taken = numbers.next(G)
    numbers.take_back(G, *taken)
    assert numbers.next(G) == taken == (1001, 0)


def test_a_first_number_that_was_taken_back_leaves_the_next_one_first(numbers: Numbers) -> None:
    """If the first number of a run is taken back, the next one is flagged: the run begins with the first frame sent."""
    numbers.take_back(G, *numbers.next(G))
    assert numbers.last(G) == 0
    assert numbers.next(G) == (2000, FLAG_FIRST)


# Seen


def test_numbers_in_order_miss_nothing() -> None:
    """Numbers in order from a flagged first one have no gap."""
    runs = Runs()
    assert [runs.see(SENDER, number, flags) for number, flags in ((41, FLAG_FIRST), (42, 0), (43, 0))] == [0, 0, 0]


def test_others_may_have_preceded_the_first_frame_of_an_unknown_sender() -> None:
    """The first frame of an unknown sender may have predecessors; once it is skipped to, nothing counts as missing."""
    runs = Runs()
    assert [runs.see(SENDER, 41, 0) for _ in range(2)] == [BEGINS, BEGINS]
    assert runs.skip_to(SENDER, 41) == 0
    assert runs.see(SENDER, 42, 0) == 0


def test_a_gap_shows_how_many_are_missing() -> None:
    """A gap reports the number of missing messages until it is skipped, because another exchange may close it."""
    runs = Runs()
    runs.see(SENDER, 5, FLAG_FIRST)
    assert [runs.see(SENDER, 9, 0) for _ in range(2)] == [3, 3]
    assert runs.skip_to(SENDER, 9) == 3
    assert (runs.see(SENDER, 10, 0), runs.last(SENDER)) == (0, 10)


@pytest.mark.parametrize("senders", [1, 2, 3])
def test_a_run_that_was_restarted_goes_on_anywhere_above_its_last_number(senders: int) -> None:
    """A restarted run continues at any number above its last; received numbers are repetitions in either generation."""
    runs = Runs(size=2)
    for sender in range(senders):
        runs.see(b"%d" % sender, 5, FLAG_FIRST)
    for sender in range(senders):
        runs.restart()
        assert runs.see(b"%d" % sender, 5, 0) == REPEATED
        assert runs.see(b"%d" % sender, 9, 0) == BEGINS
        assert runs.skip_to(b"%d" % sender, 9) == 0
        assert runs.see(b"%d" % sender, 9, 0) == REPEATED
        assert runs.see(b"%d" % sender, 11, 0) == 1


def test_nothing_is_missing_before_a_run_that_was_restarted() -> None:
    """Nothing counts as missing before the first number of a restarted run or of an unknown sender."""
    runs = Runs()
    assert runs.skip_to(SENDER, 9) == 0
    runs.restart()
    assert runs.skip_to(SENDER, 20) == 0
    assert runs.skip_to(SENDER, 22) == 1


@pytest.mark.parametrize("number, flags", [(5, 0), (4, 0), (5, FLAG_FIRST), (1, FLAG_FIRST)])
def test_a_number_that_is_not_higher_is_repeated(number: int, flags: int) -> None:
    """A number that is not higher than the last one is a repetition, whether it is flagged or not."""
    runs = Runs()
    runs.skip_to(SENDER, 5)
    assert runs.see(SENDER, number, flags) == REPEATED
    assert runs.see(SENDER, 6, 0) == 0


def test_a_run_that_begins_anew_is_no_loss() -> None:
    """A sender that forgot its run begins a higher one with a flag, and nothing counts as lost."""
    runs = Runs()
    runs.skip_to(SENDER, 5)
    assert runs.see(SENDER, 5000, FLAG_FIRST) == 0
    assert runs.see(SENDER, 5002, 0) == 1


@pytest.mark.parametrize("flags", [0, FLAG_FIRST])
@pytest.mark.parametrize("forged", [2**64 - 1, 5 + MAX_JUMP + 1])
def test_a_forged_number_makes_nothing_a_repetition(forged: int, flags: int) -> None:
    """A number too far ahead for any sender begins the run anew, so that a forged one hides no real message."""
    runs = Runs()
    runs.skip_to(SENDER, 5)
    assert runs.see(SENDER, forged, flags) == (0 if flags else BEGINS)
    assert runs.skip_to(SENDER, forged) == 0
    assert runs.see(SENDER, 6, 0) == BEGINS
    assert runs.skip_to(SENDER, 6) == 0
    assert runs.see(SENDER, 7, 0) == 0


@pytest.mark.parametrize("distance", [1, MAX_JUMP - 1])
def test_a_number_that_a_sender_may_skip_shows_what_is_missing(distance: int) -> None:
    """Up to the largest jump of a sender, a gap shows how many are missing, and lower numbers are repetitions."""
    runs = Runs()
    runs.skip_to(SENDER, 5)
    assert runs.see(SENDER, 5 + distance, 0) == distance - 1
    runs.skip_to(SENDER, 5 + distance)
    assert runs.see(SENDER, 6, 0) == REPEATED


def test_each_sender_has_a_run_of_its_own() -> None:
    """Each sender has its own run, so that equal numbers of two senders are not repetitions."""
    runs = Runs()
    runs.skip_to(SENDER, 5)
    assert runs.see(OTHER, 5, FLAG_FIRST) == 0
    assert len(runs) == 2


@pytest.mark.parametrize("number, missing", [(7, REPEATED), (8, 0), (10, 2)])
def test_frames_up_to_the_start_are_taken_for_older_ones(number: int, missing: int) -> None:
    """Numbers up to the start are repetitions, and a gap counts from the start."""
    runs = Runs()
    runs.start_after(SENDER, 7)
    assert runs.see(SENDER, number, 0) == missing


def test_starting_after_0_accepts_any_number() -> None:
    """A start after 0 accepts any number, because the sender had sent nothing on the topic."""
    runs = Runs()
    runs.start_after(SENDER, 0)
    assert len(runs) == 0
    assert runs.see(SENDER, 1, 0) == BEGINS


def test_a_start_never_goes_back() -> None:
    """A start below the last number that was seen does not lower it."""
    runs = Runs()
    runs.skip_to(SENDER, 9)
    runs.start_after(SENDER, 7)
    assert runs.see(SENDER, 9, 0) == REPEATED


def test_a_receiver_remembers_a_bounded_number_of_senders() -> None:
    """A receiver remembers a bounded number of senders: active ones, but none that was unseen for two generations."""
    runs = Runs(size=2)
    runs.skip_to(SENDER, 5)
    runs.skip_to(OTHER, 5)
    for number in range(1000):
        runs.skip_to(b"%08d" % number, 5)
        assert runs.see(SENDER, 6 + number, 0) == 0
    assert len(runs) <= 4
    assert runs.see(OTHER, 5, 0) == BEGINS


def test_a_sender_of_the_old_generation_is_still_judged() -> None:
    """A sender of the old generation keeps its last number, becomes young again, and is counted once."""
    runs = Runs(size=2)
    for sender in (SENDER, OTHER, b"t" * 8):
        runs.skip_to(sender, 5)
    assert runs.see(SENDER, 5, 0) == REPEATED
    assert runs.see(OTHER, 8, 0) == 2
    assert len(runs) == 3


def test_after_clearing_no_number_is_known() -> None:
    """After clearing, every sender is unknown, so that messages which the exchange dropped meanwhile cause no gap."""
    runs = Runs(size=1)
    for sender in (SENDER, OTHER):
        runs.skip_to(sender, 5)
    runs.clear()
    assert len(runs) == 0
    assert runs.see(SENDER, 3, 0) == BEGINS
