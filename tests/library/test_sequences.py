"""Sequence numbers, given and seen."""

import itertools

import pytest

from channels_zmq.sequences import REPEATED, Numbers, Runs
from channels_zmq_forwarder.wire import FLAG_FIRST

SENDER, OTHER = b"s" * 8, b"o" * 8
G, H = b"Gg\0", b"Gh\0"


@pytest.fixture
def numbers():
    clock = itertools.count(1000, 1000)
    return Numbers(clock=lambda: next(clock), size=2)


def test_a_run_begins_at_the_clock_and_says_so(numbers):
    """The first number is flagged, the following ones count up."""
    assert [numbers.next(G) for _ in range(3)] == [(1000, FLAG_FIRST), (1001, 0), (1002, 0)]


def test_each_prefix_has_a_run_of_its_own(numbers):
    """What goes to one topic is no gap in another."""
    assert numbers.next(G) == (1000, FLAG_FIRST)
    assert numbers.next(H) == (2000, FLAG_FIRST)
    assert numbers.next(G) == (1001, 0)


def test_a_forgotten_run_begins_again_higher(numbers):
    """Else a receiver would take its messages for repeated ones."""
    last, _ = numbers.next(G)
    numbers.next(H)
    numbers.next(b"Gi\0")
    number, flags = numbers.next(G)
    assert number > last
    assert flags == FLAG_FIRST


def test_the_least_recently_used_run_is_forgotten(numbers):
    """A busy topic keeps its run, however old it is."""
    numbers.next(G)
    numbers.next(H)
    numbers.next(G)
    numbers.next(b"Gi\0")
    assert numbers.next(G) == (1002, 0)
    assert numbers.next(H)[1] == FLAG_FIRST


def test_a_number_that_was_taken_back_is_given_again(numbers):
    """A frame that did not go leaves no gap."""
    numbers.next(G)
    taken = numbers.next(G)
    numbers.take_back(G, *taken)
    assert numbers.next(G) == taken


def test_a_first_number_that_was_taken_back_leaves_the_next_one_first(numbers):
    """The run begins with the first frame that goes."""
    numbers.take_back(G, *numbers.next(G))
    assert numbers.next(G)[1] == FLAG_FIRST


def test_numbers_in_order_miss_nothing():
    """A run is accepted from wherever it is first seen."""
    runs = Runs()
    assert [runs.see(G + SENDER, number, 0) for number in (41, 42, 43)] == [0, 0, 0]


def test_a_gap_tells_how_many_are_missing():
    """Loss becomes visible, and is told once."""
    runs = Runs()
    runs.see(G + SENDER, 5, FLAG_FIRST)
    assert runs.see(G + SENDER, 9, 0) == 3
    assert runs.see(G + SENDER, 10, 0) == 0


@pytest.mark.parametrize("number, flags", [(5, 0), (4, 0), (5, FLAG_FIRST), (1, FLAG_FIRST)])
def test_what_came_before_is_repeated(number, flags):
    """The same number and every lower one, flagged or not."""
    runs = Runs()
    runs.see(G + SENDER, 5, 0)
    assert runs.see(G + SENDER, number, flags) == REPEATED


def test_a_run_that_begins_anew_is_no_loss():
    """A sender that forgot its run begins higher and says that nothing is missing."""
    runs = Runs()
    runs.see(G + SENDER, 5, 0)
    assert runs.see(G + SENDER, 5000, FLAG_FIRST) == 0
    assert runs.see(G + SENDER, 5002, 0) == 1


def test_senders_and_topics_are_told_apart():
    """Each pair has a run of its own."""
    runs = Runs()
    runs.see(G + SENDER, 5, 0)
    assert runs.see(G + OTHER, 5, 0) == 0
    assert runs.see(H + SENDER, 5, 0) == 0
    assert len(runs) == 3


def test_a_topic_that_is_subscribed_to_again_misses_nothing():
    """What was sent in between was not for this process; other topics' runs go on."""
    runs = Runs()
    for key in (G + SENDER, G + OTHER, H + SENDER):
        runs.see(key, 5, 0)
    runs.forget(G)
    assert runs.see(G + SENDER, 99, 0) == 0
    assert runs.see(H + SENDER, 7, 0) == 1


def test_forgetting_a_strange_topic_is_no_error():
    """A group may be left before anything came of it, also one that was left before."""
    runs = Runs()
    runs.see(G + SENDER, 5, 0)
    runs.forget(G)
    runs.forget(G)
    assert len(runs) == 0


def test_the_receiver_remembers_a_bounded_number_of_runs():
    """The least recently seen are forgotten, and nothing is kept of them."""
    runs = Runs(size=2)
    for key in (G + SENDER, H + SENDER):
        runs.see(key, 5, 0)
    runs.see(G + SENDER, 6, 0)
    runs.see(H + OTHER, 5, 0)
    assert len(runs) == 2
    assert runs.see(G + SENDER, 8, 0) == 1
    runs.forget(H)
    assert len(runs) == 1


def test_nothing_is_kept_of_a_topic_whose_runs_are_all_forgotten():
    """A receiver that has seen very many topics does not grow."""
    runs = Runs(size=1)
    for number in range(100):
        runs.see(b"G%d\0" % number + SENDER, 5, 0)
    assert len(runs) == len(runs._keys) == 1


def test_after_a_flush_no_number_is_known():
    """What the exchange dropped meanwhile is no gap, and what comes next is taken from wherever it is."""
    runs = Runs()
    runs.see(G + SENDER, 5, 0)
    runs.see(H + OTHER, 5, 0)
    runs.clear()
    assert len(runs) == 0
    assert runs.see(G + SENDER, 3, 0) == 0
    assert runs.see(G + SENDER, 4, 0) == 0
