"""Counts of losses, and log lines that do not flood."""

import logging

import pytest

from channels_zmq.counters import ADVICE, WARN_EVERY, Counters


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def counters(clock):
    return Counters(clock=clock)


def test_every_loss_is_counted_by_its_cause(counters):
    """Whether or not it is logged."""
    counters.drop("full")
    counters.drop("full", 4)
    counters.drop("expired", 2)
    assert counters.dropped == {"full": 5, "expired": 2}


def test_no_loss_is_no_line(counters, caplog):
    """Nor does its cause appear among the counts."""
    counters.drop("full", 0)
    assert counters.dropped == {}
    assert caplog.messages == []


def test_the_first_loss_is_logged_at_once(counters, caplog):
    """With its number, its cause and what to do."""
    counters.drop("full", 2)
    assert caplog.messages == [f"2 messages lost (full), 2 in all: {ADVICE['full']}"]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_flood_of_losses_is_one_line_a_minute(counters, clock, caplog):
    """The next line tells of all that was lost since."""
    for _ in range(100):
        counters.drop("full")
    clock.now += WARN_EVERY - 1
    counters.drop("full")
    assert len(caplog.messages) == 1
    clock.now += 1
    counters.drop("full")
    assert caplog.messages[1].startswith("101 messages lost (full), 102 in all")


def test_each_cause_has_lines_of_its_own(counters, caplog):
    """A frequent loss does not hide a rare one."""
    counters.drop("full")
    counters.drop("expired")
    assert len(caplog.messages) == 2


def test_an_unknown_cause_is_logged_without_advice(counters, caplog):
    """Telling of a loss never fails."""
    counters.drop("moonshine")
    assert caplog.messages == ["1 messages lost (moonshine), 1 in all: "]
