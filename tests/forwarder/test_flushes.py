"""Flushes that are under way; `test_exchange` tests how the exchange uses them."""

import pytest
from fakes import Clock

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.flushes import MAX_FLUSH, MAX_FLUSHES, Flushes

A, B = b"a" * 16, b"b" * 16


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def flushes(clock):
    return Flushes(clock)


def asked(n, ttl=5_000):
    return wire.Flush(A, n, ttl)


def told(frames):
    return [(empty.inbox, empty.n) for empty in map(wire.EMPTY.decode, frames)]


def test_every_client_is_asked_and_the_last_answer_ends_the_flush(flushes):
    """A second answer of the same client is ignored."""
    assert told(flushes.begin(asked(7), [A, B])) == [(A, 1), (B, 1)]
    assert flushes.answered(wire.Flushed(A, 1)) == []
    assert flushes.answered(wire.Flushed(A, 1)) == []
    assert len(flushes) == 1
    assert flushes.answered(wire.Flushed(B, 1)) == [asked(7)]
    assert len(flushes) == 0


def test_an_answer_counts_for_its_own_flush_only(flushes):
    """An answer to an unknown flush is ignored."""
    flushes.begin(asked(7), [A])
    flushes.begin(asked(8), [A])
    assert flushes.answered(wire.Flushed(A, 9)) == []
    assert flushes.answered(wire.Flushed(A, 2)) == [asked(8)]
    assert flushes.answered(wire.Flushed(A, 1)) == [asked(7)]


def test_a_disconnected_client_is_not_waited_for(flushes):
    """A client that has disconnected completes every flush that waited for it alone."""
    flushes.begin(asked(7), [A, B])
    flushes.begin(asked(8), [B])
    assert flushes.gone(B) == [asked(8)]
    assert flushes.gone(A) == [asked(7)]


def test_a_client_that_reconnects_is_asked_again(flushes):
    """It may have missed the request."""
    flushes.begin(asked(7), [A, B])
    flushes.begin(asked(8), [A, B])
    flushes.answered(wire.Flushed(A, 1))
    assert told(flushes.again(A)) == [(A, 2)]
    assert told(flushes.again(B)) == [(B, 1), (B, 2)]


@pytest.mark.parametrize(("ttl", "seconds"), [(500, 0.5), (2**32 - 1, MAX_FLUSH)])
def test_it_is_over_when_its_time_is_up(flushes, clock, ttl, seconds):
    """The sender's `ttl` counts, up to the limit."""
    flushes.begin(asked(7, ttl), [A])
    clock.now += seconds - 0.1
    assert flushes.expire() == []
    assert len(flushes) == 1
    clock.now += 0.2
    assert flushes.expire() == [asked(7, ttl)]
    assert len(flushes) == 0


def test_too_many_are_refused(flushes):
    """Each flush holds up the messages of all clients."""
    for number in range(MAX_FLUSHES):
        assert flushes.begin(asked(number), [A]) is not None
    assert flushes.begin(asked(99), [A]) is None
