"""What waits to be read in one process, and the groups of its channels."""

from math import inf

import pytest
from fakes import Clock, Reader

from channels_zmq.mailboxes import Mailboxes, Shared

LATE = 1e9


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def boxes(clock):
    return Mailboxes(idle=60.0, clock=clock)


def mail(payload, deadline=LATE):
    return deadline, payload, 0


def wait(box, count=1):
    readers = [Reader() for _ in range(count)]
    box.waiters.extend(readers)
    return readers


def payloads(box, now=0.0):
    taken = iter(lambda: box.take(now), None)
    return [payload.payload if isinstance(payload, Shared) else payload for payload in taken]


def test_messages_are_taken_in_the_order_in_which_they_came(boxes):
    """First in, first out."""
    for payload in (b"1", b"2", b"3"):
        boxes.deliver("a", mail(payload), 9)
    assert payloads(boxes.boxes["a"]) == [b"1", b"2", b"3"]


def test_an_empty_mailbox_gives_nothing(boxes):
    """Nothing is told from an empty payload."""
    boxes.deliver("a", mail(b""), 9)
    assert boxes.boxes["a"].take(0.0) == b""
    assert boxes.boxes["a"].take(0.0) is None


def test_a_woken_and_cancelled_reader_loses_no_message(boxes):
    """A message stays in its mailbox until a reader takes it."""
    box = boxes.open("a", 9)
    (reader,) = wait(box)
    assert boxes.deliver("a", mail(b"1"), 9) is reader
    assert boxes.stop_waiting(box, reader) is None
    assert box.take(0.0) == b"1"


def test_a_woken_and_cancelled_reader_passes_its_turn_on(boxes):
    """The next reader is woken for the message that the first one was woken for."""
    box = boxes.open("a", 9)
    first, second = wait(box, 2)
    boxes.deliver("a", mail(b"1"), 9)
    assert boxes.stop_waiting(box, first) is second


def test_a_reader_that_gives_up_unwoken_wakes_nobody(boxes):
    """Who still waits in line took nobody's turn."""
    box = boxes.open("a", 9)
    first, second = wait(box, 2)
    boxes.deliver("a", mail(b"1"), 9)
    assert boxes.stop_waiting(box, second) is None
    assert boxes.stop_waiting(box, first) is None


def test_a_reader_that_finds_nothing_left_wakes_nobody(boxes):
    """Without a message there is no turn to pass on."""
    box = boxes.open("a", 9)
    first, second = wait(box, 2)
    boxes.deliver("a", mail(b"1"), 9)
    box.take(0.0)
    assert boxes.stop_waiting(box, first) is None
    assert list(box.waiters) == [second]


def test_a_full_mailbox_refuses_the_newest(boxes):
    """At most `capacity` messages wait, the oldest are kept, and what was refused is counted."""
    for payload in (b"1", b"2", b"3"):
        boxes.deliver("a", mail(payload), 2)
    assert boxes.refused == 1
    assert payloads(boxes.boxes["a"]) == [b"1", b"2"]


def test_what_has_expired_does_not_count(boxes, clock):
    """An expired message makes room, wherever it stands, and is counted as expired."""
    boxes.deliver("a", mail(b"1"), 2)
    boxes.deliver("a", mail(b"2", clock.now + 5), 2)
    clock.now += 5
    boxes.deliver("a", mail(b"3"), 2)
    assert boxes.refused == 0
    assert payloads(boxes.boxes["a"]) == [b"1", b"3"]
    assert boxes.sweep() == 1


def test_what_has_expired_is_not_read(boxes, clock):
    """A reader gets the first message that still lives."""
    boxes.deliver("a", mail(b"1", clock.now + 5), 9)
    boxes.deliver("a", mail(b"2"), 9)
    assert boxes.boxes["a"].take(clock.now + 5) == b"2"
    assert boxes.sweep() == 1


def test_a_changed_capacity_takes_effect_at_once(boxes):
    """The last one to open a mailbox says how much it holds."""
    boxes.deliver("a", mail(b"1"), 1)
    boxes.open("a", 2)
    boxes.deliver("a", mail(b"2"), 1)
    assert boxes.refused == 0
    assert boxes.boxes["a"].is_full(0.0)


def test_what_is_under_way_counts_for_the_sender(boxes):
    """A mailbox will be full once the messages that are on their way to it have arrived."""
    box = boxes.open("a", 2)
    box.mail.append(mail(b"1"))
    assert not box.will_be_full(0.0)
    box.under_way, box.under_way_until = 1, 5.0
    assert box.will_be_full(4.9)
    assert not box.is_full(4.9)
    assert not box.will_be_full(5.0)


def test_what_has_expired_makes_room_for_what_is_under_way(boxes):
    """The sender is not refused because of a message that nobody will read."""
    box = boxes.open("a", 2)
    box.mail.append(mail(b"1", 3.0))
    box.under_way, box.under_way_until = 1, 5.0
    assert box.will_be_full(2.9)
    assert not box.will_be_full(3.0)


def test_lost_messages_are_not_under_way_for_ever(boxes):
    """After a lost connection the count begins anew."""
    box = boxes.open("a", 1)
    box.under_way, box.under_way_until = 1, LATE
    boxes.nothing_under_way()
    assert not box.will_be_full(0.0)


def test_waiters_are_woken_in_their_order(boxes):
    """One for each message, and nobody once all are woken."""
    first, second = wait(boxes.open("a", 9), 2)
    woken = [boxes.deliver("a", mail(b"1"), 9) for _ in range(3)]
    assert woken == [first, second, None]


def test_a_waiter_that_is_not_usable_is_passed_over(boxes):
    """A reader that was cancelled, or whose loop has closed, takes nobody's turn."""
    first, second = wait(boxes.open("a", 9), 2)
    first.usable = False
    assert boxes.deliver("a", mail(b"1"), 9) is second


def test_a_message_that_is_refused_wakes_nobody(boxes):
    """A reader is woken only for a message that is there."""
    box = boxes.open("a", 1)
    boxes.deliver("a", mail(b"1"), 1)
    wait(box)
    assert boxes.deliver("a", mail(b"2"), 1) is None
    assert len(box.waiters) == 1


def test_a_group_reaches_each_member_once(boxes):
    """Who was added twice is still one member, and who was not is none."""
    for channel in ("a", "b", "a"):
        boxes.join("g", channel, 9, None)
    boxes.open("c", 9)
    boxes.deliver_group("g", *mail(b"1")[:2])
    assert {name: payloads(box) for name, box in boxes.boxes.items()} == {"a": [b"1"], "b": [b"1"], "c": []}


def test_a_member_full_of_expired_messages_gets_the_next_one(boxes, clock):
    """What has expired does not count."""
    boxes.join("g", "a", 1, inf)
    boxes.deliver_group("g", clock() + 1, b"old")
    boxes.deliver_group("g", clock() + 1, b"refused")
    clock.now += 2
    boxes.deliver_group("g", LATE, b"new")
    assert payloads(boxes.boxes["a"], clock()) == [b"new"]
    assert boxes.refused == 1


def test_members_share_a_payload_that_one_of_them_may_unpack_for_all(boxes):
    """An only member has nobody to share it with."""
    boxes.join("g", "a", 9, None)
    boxes.deliver_group("g", *mail(b"1")[:2])
    assert boxes.boxes["a"].take(0.0) == b"1"
    boxes.join("g", "b", 9, None)
    boxes.deliver_group("g", *mail(b"2")[:2])
    shared = boxes.boxes["a"].take(0.0)
    assert isinstance(shared, Shared)
    assert boxes.boxes["b"].take(0.0) is shared


def test_a_group_without_members_here_is_no_error(boxes):
    """A message can arrive after the last member left."""
    assert boxes.deliver_group("g", *mail(b"1")[:2]) == []


def test_a_group_message_wakes_one_reader_of_each_member(boxes):
    """Each member's first usable reader is woken."""
    expected = []
    for channel in ("a", "b"):
        boxes.join("g", channel, 9, None)
        gone, here, _ = wait(boxes.boxes[channel], 3)
        gone.usable = False
        expected.append(here)
    assert boxes.deliver_group("g", *mail(b"1")[:2]) == expected


def test_a_member_whose_readers_have_all_gone_has_its_message(boxes):
    """Nobody is woken, and the message waits."""
    boxes.join("g", "a", 9, None)
    (gone,) = wait(boxes.boxes["a"])
    gone.usable = False
    assert boxes.deliver_group("g", *mail(b"1")[:2]) == []
    assert payloads(boxes.boxes["a"]) == [b"1"]


def test_a_full_member_does_not_keep_the_others_from_a_message(boxes):
    """It alone misses the message, and that is counted."""
    for channel in ("a", "b"):
        boxes.join("g", channel, 1, None)
    boxes.deliver("a", mail(b"1"), 1)
    boxes.deliver_group("g", *mail(b"2")[:2])
    assert boxes.refused == 1
    assert payloads(boxes.boxes["b"]) == [b"2"]


def test_only_the_first_member_begins_a_group(boxes):
    """That is when there is something to subscribe to."""
    assert boxes.join("g", "a", 9, None)
    assert not boxes.join("g", "b", 9, None)
    assert boxes.join("h", "a", 9, None)


def test_only_the_last_member_ends_a_group(boxes):
    """That is when there is nothing to subscribe to any more."""
    boxes.join("g", "a", 9, None)
    boxes.join("g", "b", 9, None)
    assert not boxes.leave("g", "a")
    assert boxes.leave("g", "b")
    assert boxes.groups == {}


@pytest.mark.parametrize("group, channel", [("g", "b"), ("h", "a")])
def test_leaving_a_group_that_one_is_not_in_is_no_error(boxes, group, channel):
    """Neither for a strange group nor for a strange channel."""
    boxes.join("g", "a", 9, None)
    assert not boxes.leave(group, channel)
    assert list(boxes.groups["g"]) == ["a"]


def test_a_discarded_member_gets_nothing_sent_after_the_discard(boxes):
    """What came before it left can still be read."""
    boxes.join("g", "a", 9, None)
    boxes.deliver_group("g", *mail(b"1")[:2])
    boxes.leave("g", "a")
    boxes.deliver_group("g", *mail(b"2")[:2])
    assert payloads(boxes.boxes["a"]) == [b"1"]


def test_a_member_without_a_sign_of_life_leaves(boxes, clock):
    """A membership ends when `group_expiry` has passed, not before."""
    boxes.join("g", "a", 9, 10.0)
    clock.now += 9.9
    assert boxes.end_memberships() == []
    clock.now += 0.1
    assert boxes.end_memberships() == ["g"]
    assert boxes.groups == {}


def test_a_group_goes_on_while_one_member_lives(boxes, clock):
    """Only a group that has lost all its members here is ended."""
    boxes.join("g", "a", 9, 10.0)
    clock.now += 5
    boxes.join("g", "b", 9, 10.0)
    clock.now += 5
    assert boxes.end_memberships() == []
    assert list(boxes.groups["g"]) == ["b"]


def test_each_membership_ends_in_its_own_time(boxes, clock):
    """Whichever is looked at last; afterwards there is no time to look again."""
    ended = []
    for group, life in (("g", 20.0), ("h", 30.0), ("i", 5.0)):
        boxes.join(group, group, 9, life)
    for seconds in (5, 15, 10):
        clock.now += seconds
        ended.append(boxes.end_memberships())
    assert ended == [["i"], ["g"], ["h"]]
    assert boxes.next_end == inf


def test_being_added_again_keeps_a_member(boxes, clock):
    """The time counts from the last `group_add`."""
    boxes.join("g", "a", 9, 10.0)
    clock.now += 9
    boxes.join("g", "a", 9, 10.0)
    clock.now += 9
    assert boxes.end_memberships() == []


def test_reading_keeps_a_member(boxes, clock):
    """The time counts from the last read."""
    boxes.join("g", "a", 9, 10.0)
    boxes.boxes["a"].take(clock.now + 9)
    clock.now += 18
    assert boxes.end_memberships() == []
    clock.now += 1
    assert boxes.end_memberships() == ["g"]


def test_a_waiting_reader_keeps_a_member(boxes, clock):
    """A quiet group does not cut off those who listen; the time counts from when they stop."""
    boxes.join("g", "a", 9, 10.0)
    box = boxes.boxes["a"]
    (reader,) = wait(box)
    clock.now += 100
    assert boxes.end_memberships() == []
    clock.now += 5
    boxes.stop_waiting(box, reader)
    clock.now += 9.9
    assert boxes.end_memberships() == []
    clock.now += 0.1
    assert boxes.end_memberships() == ["g"]


def test_a_member_without_group_expiry_stays(boxes, clock):
    """None means never."""
    boxes.join("g", "a", 9, None)
    clock.now += 1e8
    assert boxes.end_memberships() == []


def test_an_idle_mailbox_is_forgotten(boxes, clock):
    """Empty, unread for a while and in no group: then it is gone."""
    boxes.open("a", 9)
    clock.now += 59.9
    boxes.sweep()
    assert "a" in boxes.boxes
    clock.now += 0.1
    boxes.sweep()
    assert boxes.boxes == {}


@pytest.mark.parametrize("reason", ["mail", "reader", "group", "pinned", "under way"])
def test_a_mailbox_in_use_is_kept(boxes, clock, reason):
    """A message, a reader, a group, a credit or a message under way each keep it."""
    box = boxes.open("a", 9)
    if reason == "mail":
        box.mail.append(mail(b"1"))
    elif reason == "reader":
        wait(box)
    elif reason == "group":
        boxes.join("g", "a", 9, None)
    elif reason == "pinned":
        box.pinned = True
    else:
        box.under_way, box.under_way_until = 1, 1e9
    clock.now += 1000
    boxes.sweep()
    assert boxes.boxes == {"a": box}


def test_many_channels_that_came_and_went_leave_nothing(boxes, clock):
    """Each was added, read and cancelled, and never discarded."""
    for number in range(1000):
        name = str(number)
        boxes.join("g", name, 9, 10.0)
        boxes.stop_waiting(boxes.boxes[name], Reader())
    clock.now += 60
    boxes.end_memberships()
    boxes.sweep()
    assert boxes.boxes == {}
    assert boxes.groups == {}


def test_a_cancelled_reader_of_an_unused_mailbox_takes_it_along(boxes):
    """A consumer that ends leaves nothing to sweep."""
    box = boxes.open("a", 9)
    (reader,) = wait(box)
    boxes.stop_waiting(box, reader)
    assert boxes.boxes == {}


def test_expired_messages_are_counted_once(boxes, clock):
    """Also when their mailbox is forgotten in the same moment."""
    boxes.join("g", "a", 9, None)
    boxes.deliver("a", mail(b"1", clock.now + 1), 9)
    clock.now += 1
    assert boxes.boxes["a"].take(clock.now) is None
    boxes.leave("g", "a")
    assert boxes.boxes == {}
    assert boxes.sweep() == 1
    assert boxes.sweep() == 0


def test_what_nobody_reads_is_dropped_when_it_expires(boxes, clock):
    """A sweep finds it, so that it does not take memory until somebody reads; what still lives stays."""
    boxes.deliver("a", mail(b"1", clock.now + 1), 9)
    boxes.deliver("a", mail(b"2"), 9)
    boxes.deliver("b", mail(b"3", clock.now + 2), 9)
    clock.now += 1
    assert boxes.sweep() == 1
    assert [box.mail[0][1] for box in boxes.boxes.values()] == [b"2", b"3"]


def test_a_message_for_all_reaches_every_mailbox_but_plain_ones(boxes):
    """It comes over the capacity, wakes the readers, and costs no plain channel a credit."""
    boxes.deliver("a", mail(b"1"), 1)
    plain = boxes.open("jobs", 9)
    plain.pinned = True
    (reader,) = wait(boxes.open("b", 9))
    assert boxes.deliver_all(mail(b"2")) == [reader]
    assert payloads(boxes.boxes["a"]) == [b"1", b"2"]
    assert payloads(plain) == []


def test_clearing_leaves_only_who_waits(boxes):
    """Messages and memberships are gone; readers wait on."""
    boxes.join("g", "a", 9, None)
    boxes.deliver("b", mail(b"1"), 9)
    wait(boxes.boxes["a"])
    assert boxes.clear() == ["g"]
    assert list(boxes.boxes) == ["a"]
    assert boxes.deliver_group("g", *mail(b"2")[:2]) == []
    assert boxes.waiting() == 0


def test_clearing_forgets_what_is_under_way(boxes):
    """The exchange drops it; it would count for the capacity for ever."""
    boxes.open("a", 9).under_way = 1
    boxes.clear()
    assert boxes.boxes == {}


def test_a_late_reader_does_not_take_a_new_mailbox_along(boxes):
    """It was woken before all was cleared, and gives up when its channel has a new mailbox."""
    former = boxes.open("a", 9)
    (reader,) = wait(former)
    boxes.deliver("a", mail(b"1"), 9)
    boxes.clear()
    boxes.deliver("a", mail(b"2"), 9)
    boxes.stop_waiting(former, reader)
    assert payloads(boxes.open("a", 9)) == [b"2"]


def test_a_message_that_got_lost_under_way_does_not_keep_a_mailbox(boxes, clock):
    """Nothing is under way any more once its time has passed."""
    box = boxes.open("a", 9)
    box.under_way, box.under_way_until = 1, clock.now + 60
    clock.now += 60
    boxes.sweep()
    assert boxes.boxes == {}


def test_all_that_waits_is_counted(boxes):
    """Over all channels."""
    for channel in ("a", "a", "b"):
        boxes.deliver(channel, mail(b"1"), 9)
    assert boxes.waiting() == 3
