"""What is held while the forwarder is away."""

import pytest

from channels_zmq.outbox import Outbox, Waiting


@pytest.fixture
def outbox():
    return Outbox(capacity=3, max_bytes=10)


def message(body=b"x", deadline=1e9, number=0):
    return Waiting(deadline, b"", body, number)


def drained(outbox):
    bodies = []
    while (waiting := outbox.first()) is not None:
        bodies.append(waiting.body)
        outbox.remove_first()
    return bodies


def test_messages_leave_in_the_order_in_which_they_came(outbox):
    """First in, first out."""
    for body in (b"1", b"2", b"3"):
        assert outbox.hold(message(body), 0.0)
    assert drained(outbox) == [b"1", b"2", b"3"]
    assert outbox.first() is None


def test_a_message_stays_until_it_is_removed(outbox):
    """Looking at it does not take it out, so that one the socket refused is not lost."""
    outbox.hold(message(), 0.0)
    assert outbox.first() is outbox.first()
    assert len(outbox) == 1


def test_no_more_than_its_capacity_is_held(outbox):
    """The newest is refused."""
    assert [outbox.hold(message(body), 0.0) for body in (b"1", b"2", b"3", b"4")] == [True, True, True, False]
    assert drained(outbox) == [b"1", b"2", b"3"]


def test_no_more_than_its_bytes_are_held(outbox):
    """Exactly as many fit, and what left makes room."""
    assert outbox.hold(message(b"x" * 6), 0.0)
    assert not outbox.hold(message(b"x" * 5), 0.0)
    assert outbox.hold(message(b"x" * 4), 0.0)
    assert outbox.size == 10
    outbox.remove_first()
    assert outbox.hold(message(b"x" * 6), 0.0)


def test_an_outbox_without_capacity_holds_nothing():
    """0 turns it off."""
    assert not Outbox(capacity=0, max_bytes=10).hold(message(), 0.0)


def test_what_has_expired_makes_room(outbox):
    """Wherever it stands."""
    for deadline in (9.0, 5.0, 9.0):
        outbox.hold(message(deadline=deadline), 0.0)
    assert not outbox.hold(message(), 4.9)
    assert outbox.hold(message(), 5.0)


def test_what_has_expired_is_dropped_and_counted(outbox):
    """The others keep their order and their bytes."""
    for body, deadline in ((b"1", 9.0), (b"22", 5.0), (b"333", 9.0)):
        outbox.hold(message(body, deadline), 0.0)
    assert outbox.expire(4.9) == 0
    assert outbox.expire(5.0) == 1
    assert outbox.size == 4
    assert drained(outbox) == [b"1", b"333"]


def test_what_expired_to_make_room_is_counted_too(outbox):
    """The next one to ask is told."""
    for _ in range(3):
        outbox.hold(message(deadline=5.0), 0.0)
    assert outbox.hold(message(), 5.0)
    assert [outbox.expire(5.0) for _ in range(2)] == [3, 0]


def test_what_expired_is_told_once(outbox):
    """And what expires later is not forgotten over it."""
    for deadline in (5.0, 9.0):
        outbox.hold(message(deadline=deadline), 0.0)
    assert [outbox.expire(now) for now in (5.0, 5.0, 8.9, 9.0, 9.0)] == [1, 0, 0, 1, 0]
    outbox.hold(message(deadline=10.0), 9.0)
    assert [outbox.expire(now) for now in (10.0, 10.0)] == [1, 0]


def test_a_withdrawn_request_does_not_go(outbox):
    """It is found by its number, once."""
    outbox.hold(message(b"1", number=7), 0.0)
    outbox.hold(message(b"2", number=8), 0.0)
    assert outbox.withdraw(7)
    assert not outbox.withdraw(7)
    assert outbox.size == 1
    assert drained(outbox) == [b"2"]


def test_clearing_leaves_nothing(outbox):
    """What was dropped is counted, and the room is free again."""
    outbox.hold(message(b"x" * 10), 0.0)
    assert outbox.clear() == 1
    assert len(outbox) == 0
    assert outbox.hold(message(b"x" * 10), 0.0)


def test_a_message_that_went_does_not_expire(outbox):
    """Only what is held is counted."""
    outbox.hold(message(deadline=5.0), 0.0)
    outbox.remove_first()
    assert outbox.expire(6.0) == 0
