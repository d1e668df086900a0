"""Messages that are held while the forwarder is unreachable."""

from collections import OrderedDict
from typing import Any

import pytest

from channels_zmq.transports.outbox import Held, Kind, Ledger, Outbox


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(capacity=3, max_bytes=10)


@pytest.fixture
def outbox(ledger: Ledger) -> Outbox:
    return Outbox(ledger)


def hold(
    outbox: Outbox, body: bytes = b"x", deadline: float = 1e9, number: int = 0, now: float = 0.0, **how: Any
) -> bool:
    return outbox.hold(Held(deadline, b"Gg\0", body, number=number), now, **how)


def order(outbox: Outbox) -> int:
    held = outbox.first()
    assert held is not None
    return held.order


def drained(outbox: Outbox) -> list[bytes]:
    bodies: list[bytes] = []
    while (held := outbox.first()) is not None:
        bodies.append(held.body)
        outbox.remove_first()
    return bodies


def test_messages_leave_in_the_order_in_which_they_were_held(outbox: Outbox) -> None:
    """Messages leave the outbox in the order in which they were held."""
    for body in (b"1", b"2", b"3"):
        assert hold(outbox, body)
    assert drained(outbox) == [b"1", b"2", b"3"]
    assert outbox.first() is None


def test_a_held_message_keeps_its_parts_and_gets_an_order(outbox: Outbox) -> None:
    """A held message keeps its parts and gets an order number, which increases even after others have left."""
    hold(outbox, b"1", 5.0, number=7)
    assert outbox.first() == Held(5.0, b"Gg\0", b"1", Kind.MESSAGE, 7, 1)
    outbox.remove_first()
    hold(outbox)
    assert order(outbox) == 2


def test_a_message_stays_until_it_is_removed(outbox: Outbox) -> None:
    """A message stays in the outbox until it is removed, so that one that the socket refuses is not lost."""
    hold(outbox)
    assert outbox.first() is outbox.first()
    assert len(outbox) == 1


def test_no_more_than_its_capacity_is_held(outbox: Outbox) -> None:
    """An outbox at its capacity refuses the newest message."""
    assert [hold(outbox, body) for body in (b"1", b"2", b"3", b"4")] == [True, True, True, False]
    assert drained(outbox) == [b"1", b"2", b"3"]


def test_no_more_than_its_bytes_are_held(outbox: Outbox) -> None:
    """An outbox holds exactly as many bytes as configured, and a message that leaves makes room."""
    assert [hold(outbox, b"x" * size) for size in (6, 5, 4)] == [True, False, True]
    assert outbox._ledger.size == 10
    outbox.remove_first()
    assert hold(outbox, b"x" * 6)


def test_an_outbox_without_capacity_holds_nothing() -> None:
    """A capacity of 0 disables the outbox."""
    assert not hold(Outbox(Ledger(capacity=0, max_bytes=10)))


def test_expired_messages_make_room(outbox: Outbox) -> None:
    """Expired messages make room, at whichever position they are."""
    for deadline in (9.0, 5.0, 9.0):
        hold(outbox, deadline=deadline)
    assert not hold(outbox, now=4.9)
    assert hold(outbox, now=5.0)


def test_expired_messages_are_dropped_and_counted(outbox: Outbox) -> None:
    """Expired messages are dropped and counted, while the others keep their order and their bytes."""
    for body, deadline in ((b"1", 9.0), (b"22", 5.0), (b"333", 9.0)):
        hold(outbox, body, deadline)
    assert [outbox.expire(now) for now in (4.9, 5.0)] == [0, 1]
    assert outbox._ledger.size == 4
    assert drained(outbox) == [b"1", b"333"]


def test_messages_that_expired_to_make_room_are_counted_too(outbox: Outbox) -> None:
    """Messages that were dropped as expired to make room are counted by the next call of `expire`."""
    for _ in range(3):
        hold(outbox, deadline=5.0)
    assert hold(outbox, now=5.0)
    assert [outbox.expire(5.0) for _ in range(2)] == [3, 0]


def test_each_expired_message_is_counted_once(outbox: Outbox) -> None:
    """Each expired message is counted once, and messages that expire later are still counted then."""
    for deadline in (5.0, 9.0):
        hold(outbox, deadline=deadline)
    assert [outbox.expire(now) for now in (5.0, 5.0, 8.9, 9.0, 9.0)] == [1, 0, 0, 1, 0]
    hold(outbox, deadline=10.0, now=9.0)
    assert [outbox.expire(now) for now in (10.0, 10.0)] == [1, 0]


def test_a_message_that_was_sent_does_not_expire(outbox: Outbox) -> None:
    """A message that was sent no longer expires, because only held messages are counted."""
    hold(outbox, deadline=5.0)
    outbox.remove_first()
    assert outbox.expire(6.0) == 0


def test_nothing_due_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing expired, refusing a message examines none of the 100,000 held ones."""
    outbox = Outbox(Ledger(capacity=100_000, max_bytes=2**30))
    for _ in range(100_000):
        hold(outbox, deadline=5.0)
    monkeypatch.setattr(outbox, "_remove", None)
    assert [hold(outbox, now=4.9) for _ in range(10)] == [False] * 10
    assert outbox.expire(4.9) == 0


def test_messages_that_expire_one_after_the_other_are_not_searched_for_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In an outage longer than the expiry, messages that expire one by one do not cause a search of all each time."""
    count = 10_000
    outbox = Outbox(Ledger(capacity=count, max_bytes=2**30))
    for number in range(count):
        hold(outbox, deadline=5.0 + number / count)
    visited = 0

    class Counted(OrderedDict[int, Held]):
        def items(self) -> Any:
            nonlocal visited
            visited += len(self)
            return super().items()

    monkeypatch.setattr(outbox, "_held", Counted(outbox._held))
    expired = sum(outbox.expire(5.0 + number / count) for number in range(2 * count))
    assert expired == count
    assert visited < 50 * count


def test_a_withdrawn_request_is_not_sent(outbox: Outbox) -> None:
    """A request is withdrawn once, by its number, and is not sent."""
    for number in (7, 8):
        hold(outbox, b"%d" % number, number=number)
    assert [outbox.withdraw(7), outbox.withdraw(7), outbox.withdraw(9)] == [True, False, False]
    assert outbox._ledger.size == 1
    assert drained(outbox) == [b"8"]


def test_clearing_leaves_nothing(outbox: Outbox) -> None:
    """Clearing removes all messages and frees their room."""
    hold(outbox, b"x" * 10)
    outbox.clear()
    assert (len(outbox), outbox._ledger.size) == (0, 0)
    assert hold(outbox, b"x" * 10)


def test_several_outboxes_share_one_bound(ledger: Ledger, outbox: Outbox) -> None:
    """Several outboxes share one bound and one order, so that the first message held in any of them is known."""
    other = Outbox(ledger)
    assert [hold(one) for one in (outbox, other, outbox, other)] == [True, True, True, False]
    assert (order(outbox), order(other)) == (1, 2)
    other.clear()
    assert hold(outbox)


def test_what_was_accepted_before_is_held_whatever_the_bounds_are(outbox: Outbox) -> None:
    """A message that was accepted before may move to another outbox beyond the bounds, and keeps its order."""
    other = Outbox(outbox._ledger)
    for _ in range(3):
        hold(outbox)
    taken = outbox.take()
    assert len(outbox) == 0
    assert all(other.hold(held, 0.0, must=True) for held in taken)
    assert hold(other, b"x" * 100, must=True)
    assert [held.order for held in other.take()] == [1, 2, 3, 7]


def test_messages_that_are_sent_again_expire_silently(outbox: Outbox) -> None:
    """Messages that are sent again expire uncounted, because they were acknowledged and most have arrived."""
    outbox.hold(Held(5.0, b"Gg\0", b"1", Kind.REPEAT, counts=0), 0.0)
    hold(outbox, deadline=5.0)
    assert (outbox.expire(5.0), len(outbox)) == (1, 0)


def test_a_message_held_before_its_subscription_is_known(ledger: Ledger, outbox: Outbox) -> None:
    """A message held before a subscription to its group counts as older, even when it moves between outboxes."""
    hold(outbox)
    ledger.subscribed(b"Gg\0")
    ledger.subscribed(b"Gh\0")
    hold(outbox)
    older, younger = outbox.take()
    assert [ledger.is_older(held) for held in (older, younger)] == [True, False]
    ledger.subscribed(b"Gg\0")  # while nothing is held
    assert not ledger.is_older(older)
