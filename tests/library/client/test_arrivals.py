"""The time until which everything has arrived, by the answers to probes."""

import pytest
from fakes import Clock

from channels_zmq.client.arrivals import PROBE_BYTES, PROBE_EVERY, SILENT_AFTER, Arrivals
from channels_zmq.client.attachment import Attachment

LONGEST = 0.5


class Rig:
    """The arrivals of a session that has just begun."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.attachment = Attachment(b"i" * 16, 1, lambda cause, count: None, longest=LONGEST, clock=clock)
        self.arrivals = Arrivals(self.attachment)
        self.began = clock.now
        self.arrivals.begin(clock.now)

    def reads(self, size: int = 1) -> None:
        self.arrivals.unproved += size
        self.arrivals.heard_at = self.clock.now

    def probe(self, since: float) -> int:
        return self.arrivals.probe(self.clock.now, since)

    def routine(self, after: float = PROBE_EVERY) -> int:
        self.clock.now += after
        return self.arrivals.routine_probe(self.clock.now)

    def are_behind(self, since: float = 0.0) -> bool:
        return self.arrivals.are_behind(self.clock.now, since or self.began - 1.0)


@pytest.fixture
def rig(clock: Clock) -> Rig:
    return Rig(clock)


def test_what_was_published_before_an_answered_probe_was_sent_has_arrived(rig: Rig) -> None:
    """All messages before an answered probe have arrived; before the first answer, all those before the session."""
    rig.clock.now += 5.0
    sent_at, number = rig.clock.now, rig.probe(rig.clock.now)
    rig.clock.now += 1.0
    assert rig.arrivals.complete_until == rig.began
    rig.attachment.synced = number
    assert rig.arrivals.complete_until == sent_at


def test_each_answer_counts_for_its_own_probe(rig: Rig) -> None:
    """Each answer proves the time of its own probe, also while a later one is pending."""
    first_at, first = rig.clock.now + 1.0, 0
    for _ in range(2):
        rig.clock.now += 1.0
        number = rig.probe(rig.clock.now - 0.1)
        first = first or number
    rig.attachment.synced = first
    assert (rig.arrivals.complete_until, rig.are_behind(), rig.are_behind(first_at)) == (first_at, False, True)
    rig.attachment.synced = number
    assert (rig.arrivals.complete_until, rig.are_behind(first_at)) == (first_at + 1.0, False)


def test_a_session_begins_without_probes(rig: Rig) -> None:
    """A new session begins without probes, because answers to those of the former one have no meaning in it."""
    number = rig.probe(rig.clock.now)
    rig.clock.now += 1.0
    rig.arrivals.begin(rig.clock.now)
    rig.attachment.synced = number
    assert (rig.arrivals.complete_until, rig.are_behind()) == (rig.clock.now, False)


def test_a_probe_is_repeated_until_it_is_answered(rig: Rig) -> None:
    """A probe is repeated until it is answered, as the exchange may drop it; a later time gets a probe of its own."""
    since = rig.clock.now - 1.0
    number = rig.probe(since)
    rig.clock.now += PROBE_EVERY - 0.1
    assert rig.probe(since) == 0
    rig.clock.now += 0.1
    assert rig.probe(since) == number
    later = rig.probe(rig.clock.now)
    assert later > number
    rig.attachment.synced = later
    assert rig.probe(since) == 0
    assert rig.probe(rig.clock.now) > later


def test_while_much_arrives_there_is_a_probe_each_second(rig: Rig) -> None:
    """While much arrives there is one probe a second, and none for little input, whose replay would be cheap."""
    rig.reads(PROBE_BYTES - 1)
    assert rig.routine() == 0
    rig.reads()
    number = rig.attachment.synced = rig.routine()
    rig.reads(PROBE_BYTES)
    assert number
    assert rig.routine(PROBE_EVERY / 2) == 0
    assert rig.routine(PROBE_EVERY / 2) > number


def test_a_routine_probe_waits_for_its_answer(rig: Rig) -> None:
    """A routine probe is repeated until its answer: on a slow link, ever new probes would never be answered."""
    rig.reads(PROBE_BYTES)
    number = rig.routine()
    rig.reads(PROBE_BYTES)
    assert [rig.routine() for _ in range(2)] == [number, number]


def test_more_may_come_until_a_probe_is_answered(rig: Rig) -> None:
    """Until a probe is answered, more may come: while frames arrive, and then for the largest frame's time."""
    rig.reads()
    assert not rig.are_behind()
    number = rig.probe(rig.clock.now)
    rig.clock.now += LONGEST / 2
    assert rig.are_behind()
    rig.clock.now += LONGEST
    assert not rig.are_behind()
    rig.reads()
    rig.clock.now += SILENT_AFTER
    assert rig.are_behind()
    rig.clock.now += LONGEST
    assert not rig.are_behind()
    rig.reads()
    rig.attachment.synced = number
    assert not rig.are_behind()
