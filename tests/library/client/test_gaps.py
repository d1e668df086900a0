"""Messages behind a gap that another exchange may close."""

import time
from math import inf

import pytest
from fakes import Clock

from channels_zmq.client.gaps import BEHIND_AT_MOST, GRAIN, HOLD, MAX_BYTES, OVERHEAD, SPARE, Gaps
from channels_zmq.client.sequences import BEGINS, Runs
from channels_zmq_forwarder import wire

SENDER, OTHER = b"s" * 8, b"o" * 8


class Rig:
    """One run, with its delivered and its missed messages."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.runs = clock, Runs()
        self.delivered: list[int] = []
        self.missed = 0
        self.gaps = Gaps(self.miss, clock)

    def miss(self, count: int) -> None:
        self.missed += count

    def arrives(self, number: int, sender: bytes = SENDER, size: int = 10, flags: int = 0) -> bool:
        """Process an arriving number as the client does, and return whether the message is held."""
        missing = self.runs.see(sender, number, flags)
        if missing == 0:
            self.delivered.append(number)
            self.gaps.closed_up(self.runs, sender)
            return False
        begins = missing == BEGINS
        return self.gaps.hold(self.runs, sender, number, size, lambda: self.delivered.append(number), begins=begins)

    def begins(self, number: int, sender: bytes = SENDER) -> None:
        """Process the first number of a run when no other input is pending."""
        self.arrives(number, sender)
        self.gaps.all_is_read()


@pytest.fixture
def rig(clock: Clock) -> Rig:
    return Rig(clock)


def test_a_gap_that_closes_delivers_everything_in_order(rig: Rig) -> None:
    """When the missing messages arrive by another path, the gap closes and all messages are delivered in order."""
    rig.begins(1)
    for number in (4, 3, 6, 2):
        rig.arrives(number)
    assert (rig.delivered, rig.missed, rig.gaps.frames) == ([1, 2, 3, 4], 0, 1)
    rig.arrives(5)
    assert (rig.delivered, rig.missed, rig.gaps.frames, rig.gaps.due) == ([1, 2, 3, 4, 5, 6], 0, 0, inf)


def test_a_gap_that_unread_input_may_close_waits_longer_but_not_without_end(rig: Rig) -> None:
    """While unread input may close a gap, it waits for up to `BEHIND_AT_MOST` longer, as this process is behind."""
    rig.begins(1)
    rig.arrives(3)
    begun = rig.clock.now
    while rig.gaps.due < inf:
        rig.clock.now = rig.gaps.due
        assert rig.delivered == [1]
        rig.gaps.expire(rig.clock.now, lambda now, since: since == begun)
    assert rig.clock.now == begun + HOLD + BEHIND_AT_MOST
    assert (rig.delivered, rig.missed) == ([1, 3], 1)


def test_a_gap_that_waits_longer_is_closed_by_what_is_read_then(rig: Rig) -> None:
    """Messages that arrive while a gap waits longer close it, and everything is delivered in order."""
    rig.begins(1)
    rig.arrives(3)
    rig.clock.now += HOLD
    rig.gaps.expire(rig.clock.now, lambda now, since: True)
    rig.arrives(2)
    assert (rig.delivered, rig.missed, rig.gaps.due) == ([1, 2, 3], 0, inf)


def test_each_gap_waits_for_what_was_published_before_it_was_noticed(rig: Rig) -> None:
    """Each gap waits for the messages published before it was noticed, whatever an earlier gap has waited for."""
    first = rig.clock.now
    for sender in (SENDER, OTHER):
        rig.begins(1, sender)
        rig.arrives(3, sender)
        rig.clock.now += 1.0
    rig.gaps.expire(rig.clock.now, lambda now, since: since > first)
    assert (rig.delivered, rig.missed, rig.gaps.frames) == ([1, 1, 3], 1, 1)


def test_each_gap_of_a_run_waits_for_its_own_time(rig: Rig) -> None:
    """Each gap of a run waits its own time, because a second forwarder may fail before the first gap is given up."""
    rig.begins(1)
    rig.arrives(3)
    rig.clock.now += HOLD / 2
    rig.arrives(5)
    rig.clock.now += HOLD / 2
    rig.gaps.expire(rig.clock.now)
    assert (rig.delivered, rig.missed, rig.gaps.frames) == ([1, 3], 1, 1)
    assert rig.gaps.due == rig.clock.now + HOLD / 2
    rig.arrives(4)
    assert (rig.delivered, rig.missed, rig.gaps.due) == ([1, 3, 4, 5], 1, inf)


def test_a_gap_behind_one_that_closes_has_its_own_time(rig: Rig) -> None:
    """A gap behind one that closes has its own time, from the arrival of the first message behind it."""
    rig.begins(1)
    rig.arrives(3)
    rig.clock.now += HOLD / 2
    rig.arrives(5)
    rig.arrives(2)
    assert rig.clock.now + HOLD <= rig.gaps.due <= rig.clock.now + HOLD + GRAIN


def test_the_oldest_gap_is_given_up_first(rig: Rig) -> None:
    """The oldest gap is given up first, in whichever run: a run with several gaps does not fall behind later runs."""
    rig.begins(1)
    rig.begins(1, OTHER)
    for number, sender in ((3, SENDER), (5, SENDER), (3, OTHER)):
        rig.arrives(number, sender)
        rig.clock.now += 1.2 * GRAIN
    seen = []
    while rig.gaps.due < inf:
        rig.clock.now = max(rig.clock.now, rig.gaps.due)
        rig.gaps.expire(rig.clock.now)
        seen.append(rig.delivered[2:])
    assert seen == [[3], [3, 5], [3, 5, 3]]
    assert rig.missed == 3


@pytest.mark.parametrize("how", ["given up", "another one came first", "a forged number"])
def test_a_run_of_which_something_was_delivered_does_not_begin_any_more(rig: Rig, how: str) -> None:
    """A run of which a message was delivered does not begin again: a later gap waits although all input is read."""
    if how == "given up":
        rig.arrives(5)
        rig.clock.now += 2 * GRAIN
        rig.arrives(7)
        rig.clock.now = rig.gaps.due
        rig.gaps.expire(rig.clock.now)
    elif how == "another one came first":
        rig.arrives(7)
        rig.arrives(5, flags=wire.FLAG_FIRST)
    else:
        rig.begins(5)
        rig.arrives(2**64 - 1)
        rig.arrives(7)
    rig.gaps.all_is_read()
    assert rig.delivered == [5]
    rig.arrives(6)
    assert (rig.delivered, rig.missed) == ([5, 6, 7], 0)


def test_gaps_that_have_closed_take_no_memory(rig: Rig) -> None:
    """Closed gaps take no memory, however many close while another one stays open."""
    rig.begins(1)
    rig.begins(1, OTHER)
    rig.arrives(3, OTHER)
    for number in range(2, 2000, 2):
        rig.arrives(number + 1)
        rig.arrives(number)
    assert (len(rig.delivered), rig.gaps.frames) == (2000, 1)
    assert len(rig.gaps._oldest_first) <= SPARE + 3


def test_many_gaps_are_asked_about_together(rig: Rig) -> None:
    """Gaps that are close in time expire together, because each check asks every forwarder and costs a tick."""
    asked: list[float] = []
    looks = 0

    def is_behind(now: float, since: float) -> bool:
        asked.append(since)
        return False

    rig.begins(1)
    for number in range(1000):
        rig.arrives(3 + 2 * number)
        rig.clock.now += 0.001
    while rig.gaps.due < inf:
        rig.clock.now = max(rig.clock.now, rig.gaps.due)
        looks += 1
        rig.gaps.expire(rig.clock.now, is_behind)
    assert rig.missed == 1000
    assert looks <= len(asked) <= 1.0 / GRAIN + 1


def test_many_gaps_of_one_run_take_little_time(rig: Rig) -> None:
    """The time to give up gaps grows linearly at most: one forged message in two may not occupy a process for long."""

    def seconds(count: int) -> float:
        run = Rig(rig.clock)
        run.begins(1)
        for number in range(count):
            run.arrives(3 + 2 * number)
            run.clock.now += HOLD / count
        run.clock.now += HOLD + GRAIN
        began = time.process_time()
        run.gaps.expire(run.clock.now)
        assert (len(run.delivered), run.missed) == (count + 1, count)
        return time.process_time() - began

    most = 10_000
    assert min(seconds(most) for _ in range(3)) < 20 * min(seconds(most // 10) for _ in range(3)) + 0.01


def test_a_gap_that_stays_is_counted_and_the_rest_delivered_in_order(rig: Rig) -> None:
    """A gap that stays open is counted as missed after `HOLD` and not before, and the rest is delivered in order."""
    rig.begins(1)
    for number in (7, 4):
        rig.arrives(number)
    assert rig.gaps.due == rig.clock.now + HOLD
    rig.gaps.expire(rig.clock.now + HOLD - 0.01)
    assert rig.delivered == [1]
    rig.gaps.expire(rig.clock.now + HOLD)
    assert (rig.delivered, rig.missed, rig.gaps.frames) == ([1, 4, 7], 4, 0)
    rig.arrives(8)
    assert rig.delivered == [1, 4, 7, 8]


def test_what_is_given_up_is_delivered_in_parts(rig: Rig) -> None:
    """Messages behind a given-up gap are delivered in parts, so that readers run between tens of thousands of them."""
    for sender in (SENDER, OTHER):
        rig.begins(1, sender)
        for number in (3, 4):
            rig.arrives(number, sender)
    now = rig.clock.now + HOLD
    for frames in (2, 0):
        assert rig.gaps.due <= now
        rig.gaps.expire(now, at_most=1)
        assert rig.gaps.frames == frames
    assert (rig.delivered, rig.missed, rig.gaps.due) == ([1, 1, 3, 4, 3, 4], 2, inf)


def test_a_forged_number_does_not_hold_back_what_follows(rig: Rig) -> None:
    """A forged number does not delay the numbers that follow it, whether it is delivered first or they are."""
    rig.begins(1)
    rig.begins(2**64 - 1)
    rig.begins(2)
    rig.arrives(3)
    assert (rig.delivered, rig.missed) == ([1, 2**64 - 1, 2, 3], 0)


def test_other_runs_do_not_wait(rig: Rig) -> None:
    """A gap in the run of one sender does not delay the run of another sender."""
    rig.begins(1)
    rig.arrives(3)
    rig.clock.now += 0.1
    rig.begins(1, OTHER)
    rig.arrives(3, OTHER)
    rig.arrives(2, OTHER)
    assert rig.delivered == [1, 1, 2, 3]


def test_a_message_that_waits_already_is_not_held_twice(rig: Rig) -> None:
    """A message that is sent again while it is held is not held twice."""
    rig.begins(1)
    assert rig.arrives(3)
    assert not rig.arrives(3)
    rig.arrives(2)
    assert rig.delivered == [1, 2, 3]


@pytest.mark.parametrize(
    ("size", "most"),
    [(0, MAX_BYTES // OVERHEAD - 1), ((MAX_BYTES - OVERHEAD) // 4 - OVERHEAD, 4), (2 * MAX_BYTES, 1)],
)
def test_what_waits_is_bounded(rig: Rig, size: int, most: int) -> None:
    """The memory of held messages is bounded: the run that has waited longest is given up; one message always fits."""
    rig.begins(1)
    rig.begins(1, OTHER)
    rig.arrives(3, OTHER)
    for number in range(3, 3 + most):
        rig.arrives(number, size=size)
    assert rig.delivered == [1, 1, 3]
    assert rig.missed == 1
    assert rig.gaps.frames <= most


def test_a_run_that_has_begun_anew_forgets_what_waited(rig: Rig) -> None:
    """If a sender starts a higher run, the messages that are held of the former run are dropped as older."""
    rig.begins(1)
    rig.arrives(3)
    rig.runs.skip_to(SENDER, 100)
    rig.gaps.expire(rig.clock.now + HOLD)
    assert (rig.delivered, rig.gaps.frames) == ([1], 0)
    rig.arrives(101)
    assert rig.delivered == [1, 101]


def test_the_first_message_of_a_run_waits_until_everything_is_read(rig: Rig) -> None:
    """The first messages of a run wait until all input is read, so that older ones of another path precede them."""
    for number in (6, 7, 4, 3):
        rig.arrives(number)
    assert rig.delivered == []
    rig.gaps.all_is_read()
    assert (rig.delivered, rig.missed, rig.gaps.frames) == ([3, 4], 0, 2)
    rig.gaps.expire(rig.clock.now + HOLD)
    assert (rig.delivered, rig.missed, rig.gaps.frames) == ([3, 4, 6, 7], 1, 0)


def test_a_gap_after_a_beginning_that_closed_is_not_taken_for_it(rig: Rig) -> None:
    """A gap that opens after the beginning of the run has closed waits its time, even in the same round of reading."""
    rig.arrives(2)
    rig.runs.see(SENDER, 1, wire.FLAG_FIRST)
    rig.gaps.closed_up(rig.runs, SENDER)
    assert rig.delivered == [2]
    rig.arrives(4)
    rig.gaps.all_is_read()
    assert rig.delivered == [2]


def test_the_first_message_of_a_run_waits_for_a_moment_at_most(rig: Rig) -> None:
    """The first message of a run waits for `HOLD` at most, because there may always be more input."""
    rig.arrives(6)
    rig.gaps.expire(rig.clock.now + HOLD)
    rig.gaps.all_is_read()
    assert (rig.delivered, rig.missed) == ([6], 0)


def test_a_gap_waits_although_everything_is_read(rig: Rig) -> None:
    """A gap waits although all input is read, because the missing message may still be in transit."""
    rig.begins(1)
    rig.arrives(3)
    rig.gaps.all_is_read()
    assert rig.delivered == [1]


def test_everything_can_be_dropped(rig: Rig) -> None:
    """A flush drops the held messages."""
    rig.begins(1)
    rig.arrives(3)
    rig.gaps.clear()
    rig.arrives(2)
    assert (rig.delivered, rig.gaps.frames, rig.gaps.due) == ([1, 2], 0, inf)


@pytest.mark.parametrize("first", [True, False], ids=["the first of a run", "behind a gap"])
def test_nothing_is_given_up_while_what_is_missing_may_be_published_again(rig: Rig, first: bool) -> None:
    """While a replay is expected, nothing is given up; when its time is over, the usual time has passed too."""
    if not first:
        rig.begins(1)
    rig.gaps.replays_until = rig.clock.now + 5 * HOLD
    rig.arrives(4)
    rig.gaps.all_is_read()
    rig.clock.now += 4 * HOLD
    rig.gaps.expire(rig.clock.now)
    assert (rig.gaps.awaits_replay, rig.gaps.frames, rig.gaps.due) == (True, 1, rig.gaps.replays_until)
    rig.clock.now += HOLD
    rig.gaps.expire(rig.clock.now)
    assert (rig.gaps.awaits_replay, rig.delivered[-1], rig.gaps.frames) == (False, 4, 0)
