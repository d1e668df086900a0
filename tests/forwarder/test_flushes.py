"""Flushes in progress; `test_exchange` tests how the exchange uses them."""

import pytest
from fakes import Clock

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.flushes import MAX_FLUSH, MAX_FLUSHES, Flushes

A, B = b"a" * 16, b"b" * 16


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def flushes(clock: Clock) -> Flushes:
    return Flushes(clock)


def asked(n: int, ttl: int = 5_000) -> wire.Flush:
    return wire.Flush(A, n, ttl)


def answers(frames: list[bytes] | None) -> list[wire.Flushed]:
    """Return the answers to these requests."""
    assert frames is not None, "refused"
    empties = map(wire.EMPTY.decode, frames)
    return [wire.Flushed(empty.inbox, empty.n) for empty in empties]


def test_every_client_is_asked_and_the_last_answer_ends_the_flush(flushes: Flushes) -> None:
    """A flush ends with the answer of the last client, and a second answer of the same client is ignored."""
    of_a, of_b = answers(flushes.begin(asked(7), [A, B]))
    assert (of_a.inbox, of_b.inbox) == (A, B)
    assert flushes.answered(of_a) == []
    assert flushes.answered(of_a) == []
    assert len(flushes) == 1
    assert flushes.answered(of_b) == [asked(7)]
    assert len(flushes) == 0


def test_no_client_can_answer_for_another_one(flushes: Flushes) -> None:
    """A client cannot answer for another one, since each request has a number of its own."""
    of_a, of_b = answers(flushes.begin(asked(7), [A, B]))
    assert flushes.answered(of_b._replace(inbox=A)) == []
    assert flushes.answered(of_b) == []
    assert flushes.answered(of_a) == [asked(7)]


def test_an_answer_counts_for_its_own_flush_only(flushes: Flushes) -> None:
    """An answer counts only for its own flush, and an answer to an unknown flush is ignored."""
    (one,), (other,) = (answers(flushes.begin(asked(number), [A])) for number in (7, 8))
    assert flushes.answered(wire.Flushed(A, one.n ^ other.n ^ 1)) == []
    assert flushes.answered(other) == [asked(8)]
    assert flushes.answered(one) == [asked(7)]


def test_a_disconnected_client_is_not_waited_for(flushes: Flushes) -> None:
    """A client that disconnects completes every flush that waited for it alone."""
    flushes.begin(asked(7), [A, B])
    flushes.begin(asked(8), [B])
    assert flushes.gone(B) == [asked(8)]
    assert flushes.gone(A) == [asked(7)]


def test_a_client_that_reconnects_is_asked_again(flushes: Flushes) -> None:
    """A client that reconnects is sent each request that it has not answered again, as it may have missed it."""
    first, second = flushes.begin(asked(7), [A, B]), flushes.begin(asked(8), [A, B])
    assert first is not None
    assert second is not None
    flushes.answered(answers(first)[0])
    assert flushes.again(A) == second[:1]
    assert flushes.again(B) == [first[1], second[1]]


@pytest.mark.parametrize(("ttl", "seconds"), [(500, 0.5), (2**32 - 1, MAX_FLUSH)])
def test_it_is_over_when_its_time_is_up(flushes: Flushes, clock: Clock, ttl: int, seconds: float) -> None:
    """A flush expires after the `ttl` of its sender, up to the limit."""
    flushes.begin(asked(7, ttl), [A])
    clock.now += seconds - 0.1
    assert flushes.expire() == []
    assert len(flushes) == 1
    clock.now += 0.2
    assert flushes.expire() == [asked(7, ttl)]
    assert len(flushes) == 0


def test_too_many_are_refused(flushes: Flushes) -> None:
    """Flushes beyond a maximum number are refused, since each of them delays the messages of all clients."""
    for number in range(MAX_FLUSHES):
        assert flushes.begin(asked(number), [A]) is not None
    assert flushes.begin(asked(99), [A]) is None
