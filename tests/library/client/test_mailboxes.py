"""Messages that wait to be read in one process."""

from collections import Counter
from collections.abc import Iterator
from math import inf

import pytest
from fakes import Clock, Reader

from channels_zmq.client import mailboxes
from channels_zmq.client.mailboxes import Mailboxes, Shared

IDLE = 60.0
LATE = 1e9


@pytest.fixture
def dropped() -> Counter[str]:
    return Counter()


@pytest.fixture
def boxes(clock: Clock, dropped: Counter[str]) -> Iterator[Mailboxes[Reader]]:
    """Return mailboxes; after each test their count of waiting messages must equal the sum over all mailboxes."""

    def drop(cause: str, count: int) -> None:
        if count:
            dropped[cause] += count

    boxes: Mailboxes[Reader] = Mailboxes(drop, idle=IDLE, clock=clock)
    yield boxes
    assert boxes.waiting == sum(len(box.mail) for box in boxes.boxes.values())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Limit the mailboxes without a reader to three."""
    monkeypatch.setattr(mailboxes, "MAX_UNCLAIMED", 3)
    return 3


def mail(payload: bytes, deadline: float = LATE) -> tuple[float, bytes, None]:
    return deadline, payload, None


def wait(boxes: Mailboxes[Reader], box: mailboxes.Mailbox[Reader], count: int = 1) -> list[Reader]:
    """Let readers wait on an empty mailbox, and return them."""
    readers = [Reader() for _ in range(count)]
    for reader in readers:
        assert boxes.take(box) is None
        box.waiters.append(reader)
    return readers


def payloads(boxes: Mailboxes[Reader], box: mailboxes.Mailbox[Reader]) -> list[bytes]:
    found = []
    while (payload := boxes.take(box)) is not None:
        found.append(payload.payload if isinstance(payload, Shared) else payload)
    return found


def deliver(boxes: Mailboxes[Reader], channel: str, mail: tuple[float, bytes, None], capacity: int) -> Reader | None:
    """Deliver a message; the capacity is for a mailbox that has to be created."""
    return boxes.deliver(boxes.boxes.get(channel) or boxes.open(channel, capacity), mail)


def deliver_group(
    boxes: Mailboxes[Reader], channels: str | list[str], payload: bytes, deadline: float = LATE
) -> list[Reader]:
    woken: list[Reader] = []
    boxes.deliver_group([boxes.boxes[channel] for channel in channels], deadline, payload, woken)
    return woken


def look(boxes: Mailboxes[Reader], now: float) -> float:
    """Run all looks that are due, and return the time of the next one."""
    while (due := boxes.look(now, 100)) <= now:
        pass
    return due


# Reading


def test_messages_are_taken_in_the_order_of_their_arrival(boxes: Mailboxes[Reader]) -> None:
    """Messages are taken in the order of their arrival."""
    for payload in (b"1", b"2", b"3"):
        deliver(boxes, "a", mail(payload), 9)
    assert payloads(boxes, boxes.boxes["a"]) == [b"1", b"2", b"3"]


def test_an_empty_payload_is_a_message(boxes: Mailboxes[Reader]) -> None:
    """An empty payload is a message, while an empty mailbox returns None."""
    deliver(boxes, "a", mail(b""), 9)
    assert boxes.take(boxes.boxes["a"]) == b""
    assert boxes.take(boxes.boxes["a"]) is None


def test_a_reader_takes_a_message_that_is_there_without_waiting(boxes: Mailboxes[Reader]) -> None:
    """A reader takes an available message without waiting, and waits only if there is none."""
    box = boxes.open("a", 9)
    deliver(boxes, "a", mail(b"1"), 9)
    assert [boxes.take(box), boxes.take(box)] == [b"1", None]


def test_a_reader_that_finds_expired_messages_only_has_to_wait(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """A reader that finds only expired messages has to wait, and those that it drops are counted."""
    for _ in range(2):
        deliver(boxes, "a", mail(b"1", clock.now + 1), 9)
    clock.now += 1
    assert boxes.take(boxes.boxes["a"]) is None
    assert dropped == {"expired": 2}


def test_expired_messages_are_not_read(boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]) -> None:
    """A reader skips expired messages and gets the first one that has not expired."""
    deliver(boxes, "a", mail(b"1", clock.now + 5), 9)
    deliver(boxes, "a", mail(b"2"), 9)
    clock.now += 5
    assert boxes.take(boxes.boxes["a"]) == b"2"
    assert dropped == {"expired": 1}


def test_a_woken_and_cancelled_reader_loses_no_message(boxes: Mailboxes[Reader]) -> None:
    """A message stays in its mailbox until a reader takes it, also if the woken reader is cancelled."""
    box = boxes.open("a", 9)
    (reader,) = wait(boxes, box)
    assert deliver(boxes, "a", mail(b"1"), 9) is reader
    assert boxes.stop_waiting(box, reader) is None
    assert boxes.take(box) == b"1"


def test_a_woken_and_cancelled_reader_passes_its_turn_on(boxes: Mailboxes[Reader]) -> None:
    """If a woken reader is cancelled, the next reader is woken for the same message."""
    box = boxes.open("a", 9)
    first, second = wait(boxes, box, 2)
    deliver(boxes, "a", mail(b"1"), 9)
    assert boxes.stop_waiting(box, first) is second


def test_a_reader_that_gives_up_unwoken_wakes_nobody(boxes: Mailboxes[Reader]) -> None:
    """A reader that gives up before it was woken wakes no other, because it had no turn."""
    box = boxes.open("a", 9)
    first, second = wait(boxes, box, 2)
    deliver(boxes, "a", mail(b"1"), 9)
    assert boxes.stop_waiting(box, second) is None
    assert boxes.stop_waiting(box, first) is None


def test_a_reader_that_finds_nothing_left_wakes_nobody(boxes: Mailboxes[Reader]) -> None:
    """A woken reader that gives up when no message is left wakes no other, because there is no turn to pass on."""
    box = boxes.open("a", 9)
    first, second = wait(boxes, box, 2)
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.take(box)
    assert boxes.stop_waiting(box, first) is None
    assert box.waiters == [second]


def test_waiters_are_woken_in_their_order(boxes: Mailboxes[Reader]) -> None:
    """Waiting readers are woken in order, one for each message, and no further reader once all are woken."""
    first, second = wait(boxes, boxes.open("a", 9), 2)
    assert [deliver(boxes, "a", mail(b"1"), 9) for _ in range(3)] == [first, second, None]


def test_a_waiter_that_is_not_usable_is_passed_over(boxes: Mailboxes[Reader]) -> None:
    """A reader that was cancelled, or whose loop has closed, is skipped and does not take another's turn."""
    first, second = wait(boxes, boxes.open("a", 9), 2)
    first.usable = False
    assert deliver(boxes, "a", mail(b"1"), 9) is second


# Capacity


def test_a_full_mailbox_refuses_the_newest(boxes: Mailboxes[Reader], dropped: Counter[str]) -> None:
    """At most `capacity` messages wait: the oldest are kept, and refused ones are counted."""
    for payload in (b"1", b"2", b"3"):
        deliver(boxes, "a", mail(payload), 2)
    assert dropped == {"mailbox_full": 1}
    assert payloads(boxes, boxes.boxes["a"]) == [b"1", b"2"]


def test_expired_messages_do_not_count_for_the_capacity(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """An expired message makes room, at whichever position it is."""
    boxes.take(boxes.open("a", 2))
    deliver(boxes, "a", mail(b"1"), 2)
    deliver(boxes, "a", mail(b"2", clock.now + 5), 2)
    assert boxes.is_full(boxes.boxes["a"])
    clock.now += 5
    deliver(boxes, "a", mail(b"3"), 2)
    assert payloads(boxes, boxes.boxes["a"]) == [b"1", b"3"]
    assert dropped == {"expired": 1}


def test_a_changed_capacity_takes_effect_at_once(boxes: Mailboxes[Reader], dropped: Counter[str]) -> None:
    """A new capacity, as given by the last `open`, applies at once."""
    deliver(boxes, "a", mail(b"1"), 1)
    boxes.open("a", 2)
    deliver(boxes, "a", mail(b"2"), 1)
    assert dropped == {}
    assert boxes.is_full(boxes.boxes["a"])


def test_a_mailbox_without_capacity_takes_nothing(
    boxes: Mailboxes[Reader], dropped: Counter[str], clock: Clock
) -> None:
    """A mailbox with a capacity of 0 refuses every message, and is forgotten like any other."""
    deliver(boxes, "a", mail(b"1"), 0)
    assert dropped == {"mailbox_full": 1}
    look(boxes, clock.now + IDLE)
    assert boxes.boxes == {}


def test_a_refused_message_wakes_nobody(boxes: Mailboxes[Reader]) -> None:
    """A refused message wakes no reader, because a reader is woken only for a message in its mailbox."""
    box = boxes.open("a", 1)
    (reader,) = wait(boxes, box)
    box.append(mail(b"1"))
    assert deliver(boxes, "a", mail(b"2"), 1) is None
    assert box.waiters == [reader]


def test_all_waiting_messages_are_counted(boxes: Mailboxes[Reader]) -> None:
    """The number of waiting messages is the sum over all channels."""
    for channel in ("a", "a", "b"):
        deliver(boxes, channel, mail(b"1"), 9)
    assert boxes.waiting == 3


# Groups


@pytest.mark.parametrize("channels, shares", [(["a"], False), (["a", "b"], True)])
def test_members_share_a_payload_that_the_first_reader_unpacks_for_all(
    boxes: Mailboxes[Reader], channels: list[str], shares: bool
) -> None:
    """The members of a group share a payload, which the first reader unpacks for all; a sole member does not."""
    for channel in channels:
        boxes.open(channel, 9)
    deliver_group(boxes, channels, b"1")
    taken = [boxes.take(boxes.boxes[channel]) for channel in channels]
    assert [isinstance(payload, Shared) for payload in taken] == [shares] * len(channels)
    assert taken[0] is taken[-1]


def test_a_group_message_wakes_the_first_usable_reader_of_each_member(boxes: Mailboxes[Reader]) -> None:
    """A group message wakes the first usable reader of each member; a member without one still gets its message."""
    expected = []
    for channel in ("a", "b"):
        gone, here, _ = wait(boxes, boxes.open(channel, 9), 3)
        gone.usable = False
        expected.append(here)
    (gone,) = wait(boxes, boxes.open("c", 9))
    gone.usable = False
    assert deliver_group(boxes, "abc", b"1") == expected
    assert payloads(boxes, boxes.boxes["c"]) == [b"1"]


def test_a_full_member_does_not_keep_the_others_from_a_message(boxes: Mailboxes[Reader], dropped: Counter[str]) -> None:
    """Only the full members miss a group message, which is counted; the others get it."""
    for channel in ("a", "b", "c"):
        boxes.open(channel, 1)
    for channel in ("a", "c"):
        deliver(boxes, channel, mail(b"1"), 1)
    deliver_group(boxes, "abc", b"2")
    assert dropped == {"mailbox_full": 2}
    assert [payloads(boxes, boxes.boxes[channel]) for channel in "abc"] == [[b"1"], [b"2"], [b"1"]]


def test_a_member_full_of_expired_messages_gets_the_next_one(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """A member whose mailbox is full of expired messages gets the next group message, as expired ones do not count."""
    boxes.take(boxes.open("a", 1))
    for payload in (b"old", b"refused"):
        deliver_group(boxes, "a", payload, clock.now + 1)
    clock.now += 2
    deliver_group(boxes, "a", b"new")
    assert payloads(boxes, boxes.boxes["a"]) == [b"new"]
    assert dropped == {"mailbox_full": 1, "expired": 1}


def test_an_announcement_reaches_every_mailbox_but_those_of_normal_channels(boxes: Mailboxes[Reader]) -> None:
    """An announcement may exceed the capacity, wakes readers, and skips normal channels, where it would cost credit."""
    deliver(boxes, "a", mail(b"1"), 1)
    normal = boxes.open("jobs", 9)
    normal.windows = 2
    (reader,) = wait(boxes, boxes.open("b", 9))
    woken: list[Reader] = []
    boxes.announce(list(boxes.boxes.values()), mail(b"2"), woken)
    assert woken == [reader]
    assert payloads(boxes, boxes.boxes["a"]) == [b"1", b"2"]
    assert payloads(boxes, normal) == []


def test_an_announcement_does_not_revive_a_mailbox_that_was_forgotten(boxes: Mailboxes[Reader]) -> None:
    """An announcement does not reach a mailbox that was released after its list was made: no look would visit it."""
    box = boxes.open("a", 9)
    boxes.release(box)
    boxes.announce([box], mail(b"1"), [])
    assert (boxes.waiting, boxes.boxes) == (0, {})


# Messages in flight


def test_settled_messages_are_not_in_flight_any_more(boxes: Mailboxes[Reader]) -> None:
    """Settling clears the messages in flight up to an order, also those that were lost, and keeps newer ones."""
    box = boxes.open("a", 9)
    boxes.passed(box, 9)
    for order in (1, 2, 5):
        boxes.sent(box, order)
    boxes.passed(box, 2)
    assert list(box.in_flight or ()) == [5]
    boxes.passed(box, 4)
    assert list(box.in_flight or ()) == [5]
    boxes.passed(box, 5)
    assert not box.in_flight


def test_a_message_in_flight_keeps_its_mailbox(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """A message in flight keeps its mailbox for at least one idle time."""
    box = boxes.open("a", 9)
    (reader,) = wait(boxes, box)
    boxes.sent(box, 1)
    boxes.stop_waiting(box, reader)
    look(boxes, clock.now + IDLE)
    assert boxes.boxes == {"a": box}


def test_a_message_that_was_lost_in_flight_does_not_keep_its_mailbox(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """A message that does not arrive between two looks is lost, and does not keep its mailbox any longer."""
    for number in range(1000):
        boxes.sent(boxes.open(str(number), 9), number + 1)
    for _ in range(2):
        clock.now += IDLE
        look(boxes, clock.now)
    assert boxes.boxes == {}


def test_a_mailbox_with_newer_messages_in_flight_is_kept(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """Newer messages in flight keep a mailbox: only those in flight at the last look count as lost."""
    box = boxes.open("a", 9)
    for order in (1, 2, 3):
        boxes.sent(box, order)
        clock.now += IDLE
        look(boxes, clock.now)
        assert boxes.boxes == {"a": box}
    boxes.passed(box, 3)
    clock.now += IDLE
    look(boxes, clock.now)
    assert boxes.boxes == {}


# Housekeeping


def test_an_idle_mailbox_is_forgotten(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """A mailbox is forgotten if it is empty, was not read for the idle time, and belongs to no group."""
    boxes.open("a", 9)
    assert look(boxes, clock.now + IDLE - 0.1) == clock.now + IDLE
    assert "a" in boxes.boxes
    assert look(boxes, clock.now + IDLE) == inf
    assert boxes.boxes == {}


@pytest.mark.parametrize("reason", ["mail", "reader", "group", "normal", "recently read"])
def test_a_mailbox_in_use_is_kept(boxes: Mailboxes[Reader], clock: Clock, reason: str) -> None:
    """A message, a reader, a membership, a window at an exchange, or a recent read each keep a mailbox."""
    box = boxes.open("a", 9)
    clock.now += 1000
    match reason:
        case "mail":
            box.append(mail(b"1"))
        case "reader":
            wait(boxes, box)
        case "group":
            box.memberships = 1
        case "normal":
            box.windows = 1
        case "recently read":
            box.append(mail(b"1"))
            boxes.take(box)
    look(boxes, clock.now)
    assert boxes.boxes == {"a": box}


def test_a_cancelled_reader_of_an_unused_mailbox_leaves_nothing(boxes: Mailboxes[Reader]) -> None:
    """An unused mailbox is forgotten when its reader is cancelled, so a consumer that ends needs no housekeeping."""
    box = boxes.open("a", 9)
    (reader,) = wait(boxes, box)
    boxes.stop_waiting(box, reader)
    assert boxes.boxes == {}


def test_unread_messages_are_dropped_when_they_expire(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """Unread messages are dropped and counted when they expire, without a reader, and the others stay."""
    deliver(boxes, "a", mail(b"1", clock.now + 1), 9)
    deliver(boxes, "a", mail(b"2"), 9)
    deliver(boxes, "b", mail(b"3", clock.now + 2), 9)
    assert look(boxes, clock.now + 1) == clock.now + 2
    assert dropped == {"abandoned": 1}
    assert [box.mail[0][1] for box in boxes.boxes.values()] == [b"2", b"3"]


def test_a_group_message_is_dropped_when_it_expires(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """Group messages are dropped as each one expires, also if one expires later than another."""
    boxes.open("a", 9)
    deliver_group(boxes, "a", b"1", clock.now + 2)
    deliver_group(boxes, "a", b"2", clock.now + 3)
    assert look(boxes, clock.now + 2) == clock.now + 3
    look(boxes, clock.now + 3)
    assert dropped == {"abandoned": 2}


def test_a_large_mailbox_is_looked_at_less_often(boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]) -> None:
    """A large mailbox is visited less often: each look visits all its messages, which expire at different times."""
    count = 10_000
    for number in range(count):
        deliver(boxes, "a", mail(b"x", clock.now + number / count), count)
    looks = 0
    while boxes.waiting:
        clock.now = max(clock.now, boxes.look(clock.now, 1))
        looks += 1
    assert looks < 100
    assert dropped == {"abandoned": count}


def test_expired_messages_are_counted_once(boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]) -> None:
    """Expired messages are counted once, also if their mailbox is forgotten at the same time."""
    deliver(boxes, "a", mail(b"1", clock.now + 1), 9)
    clock.now += IDLE
    for _ in range(2):
        look(boxes, clock.now)
    assert boxes.boxes == {}
    assert dropped == {"abandoned": 1}


def test_a_mailbox_that_had_messages_takes_little_memory_again(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """An emptied mailbox without a reader releases its deque of 0.6 kB; with a waiting reader it keeps the deque."""
    box, read = boxes.open("a", 9), boxes.open("b", 9)
    for one in (box, read):
        one.memberships = 1
        one.append(mail(b"1"))
        boxes.take(one)
    wait(boxes, read)
    look(boxes, clock.now + IDLE)
    assert (box.mail, list(read.mail)) == ((), [])
    assert read.mail != ()


def test_nothing_due_costs_nothing(boxes: Mailboxes[Reader], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing due, `look` visits none of 100,000 mailboxes."""
    for number in range(100_000):
        boxes.open(str(number), 9)
    looked = []
    monkeypatch.setattr(boxes._looks, "_is_current", lambda at, box: looked.append(box))
    for _ in range(10):
        assert boxes.look(clock.now + IDLE - 0.1, 1000) == clock.now + IDLE
    assert looked == []


def test_one_look_handles_a_bounded_number_of_mailboxes(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """One look handles a bounded number of mailboxes, and its result shows that more is due."""
    for number in range(25):
        boxes.open(str(number), 9)
    now = clock.now + IDLE
    assert [(boxes.look(now, 10) <= now, len(boxes.boxes)) for _ in range(3)] == [(True, 15), (True, 5), (False, 0)]


def test_many_messages_leave_a_small_heap(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """Messages that each bring the next look forward leave a small heap of deadlines."""
    boxes.open("a", 9)
    for number in range(10_000):
        deliver(boxes, "a", mail(b"1", clock.now + 50 - number / 1000), 1)
        boxes.take(boxes.boxes["a"])
    assert len(boxes._looks) < 200


# Channels without a reader


def test_messages_for_a_reader_that_has_ended_are_abandoned(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """Messages for a reader that has ended count as abandoned and not as expired, since no action is necessary."""
    box = boxes.open("a", 9)
    box.memberships = 1
    (reader,) = wait(boxes, box)
    boxes.stop_waiting(box, reader)
    deliver_group(boxes, "a", b"1", clock.now + 1)
    look(boxes, clock.now + 1)
    assert dropped == {"abandoned": 1}


def test_messages_that_a_slow_reader_did_not_take_have_expired(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """Messages that an active reader does not take in time count as expired, because it is expected to return."""
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.take(boxes.boxes["a"])
    deliver(boxes, "a", mail(b"2", clock.now + 1), 9)
    look(boxes, clock.now + 1)
    assert dropped == {"expired": 1}


@pytest.mark.parametrize("is_open", [False, True])
def test_only_some_channels_that_nobody_reads_keep_their_messages(
    boxes: Mailboxes[Reader], dropped: Counter[str], few: int, is_open: bool
) -> None:
    """Of the channels without a reader the oldest lose their messages, whether or not a message created the mailbox."""
    for number in range(few + 2):
        if is_open:
            boxes.open(str(number), 9)
        for _ in range(2):
            deliver(boxes, str(number), mail(b"1"), 9)
    assert list(boxes.boxes) == ["2", "3", "4"]
    assert dropped == {"abandoned": 4}


def test_channels_whose_readers_have_ended_are_bounded_too(
    boxes: Mailboxes[Reader], dropped: Counter[str], few: int
) -> None:
    """Channels whose readers ended with a message waiting count toward the bound too."""
    for number in range(few + 2):
        box = boxes.open(str(number), 9)
        (reader,) = wait(boxes, box)
        deliver(boxes, str(number), mail(b"1"), 9)
        boxes.stop_waiting(box, reader)
    assert len(boxes.boxes) == few
    assert dropped == {"abandoned": 2}


def test_a_reader_that_never_has_to_wait_is_a_reader(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str], few: int
) -> None:
    """A reader that never has to wait still counts: its messages are kept, and those it does not take have expired."""
    for _ in range(2):
        deliver(boxes, "a", mail(b"1"), 9)
    assert boxes.take(boxes.boxes["a"]) == b"1"
    deliver(boxes, "a", mail(b"2", clock.now + 1), 9)
    for number in range(few):
        deliver(boxes, str(number), mail(b"1"), 9)
    look(boxes, clock.now + 1)
    assert dropped == {"expired": 1}
    assert boxes.take(boxes.boxes["a"]) == b"1"


def test_a_reader_that_does_not_come_back_has_ended(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str], few: int
) -> None:
    """A reader that does not return within the idle time has ended, as a consumer whose handler raised."""
    for payload in (b"1", b"2"):
        deliver(boxes, "a", mail(payload), 9)
    boxes.take(boxes.boxes["a"])
    deliver(boxes, "a", mail(b"3", clock.now + IDLE), 9)
    clock.now += IDLE
    look(boxes, clock.now)
    assert dropped == {"expired": 1}
    for number in range(few):
        deliver(boxes, str(number), mail(b"1"), 9)
    assert dropped == {"expired": 1, "abandoned": 1}
    assert "a" not in boxes.boxes


@pytest.mark.parametrize("reason", ["waits", "member"])
def test_a_reader_that_waits_for_long_has_not_ended(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str], reason: str
) -> None:
    """A reader that waits for long has not ended; a silent member stays, and only its unread messages are abandoned."""
    box = boxes.open("a", 9)
    if reason == "waits":
        wait(boxes, box)
    else:
        box.memberships = 1
        boxes.take(box)
    clock.now += 2 * IDLE
    look(boxes, clock.now)
    assert box.is_read == (reason == "waits")
    assert boxes.boxes == {"a": box}


@pytest.mark.parametrize("reason", ["read", "member"])
def test_a_channel_that_is_read_or_belongs_to_a_group_keeps_its_messages(
    boxes: Mailboxes[Reader], dropped: Counter[str], few: int, reason: str
) -> None:
    """A channel with a reader or a membership keeps its messages, whatever arrives for channels without readers."""
    box = boxes.open("a", 9)
    if reason == "read":
        deliver(boxes, "a", mail(b"0"), 9)
        boxes.take(box)
    else:
        box.memberships = 1
    deliver(boxes, "a", mail(b"1"), 9)
    for number in range(few + 2):
        deliver(boxes, str(number), mail(b"1"), 9)
    assert payloads(boxes, box) == [b"1"]
    assert dropped == {"abandoned": 2}


def test_a_channel_that_loses_its_last_membership_is_bounded_from_then_on(boxes: Mailboxes[Reader], few: int) -> None:
    """A channel that loses its last membership keeps its messages, but counts toward the bound from then on."""
    box = boxes.open("a", 9)
    box.memberships = 1
    deliver(boxes, "a", mail(b"1"), 9)
    box.memberships = 0
    boxes.release(box)
    assert boxes.boxes == {"a": box}
    for number in range(few):
        deliver(boxes, str(number), mail(b"1"), 9)
    assert "a" not in boxes.boxes


@pytest.mark.parametrize("reads_again, cause", [(False, "abandoned"), (True, "expired")])
def test_what_a_consumer_leaves_unread_with_its_last_group_is_abandoned_unless_it_reads_again(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str], reads_again: bool, cause: str
) -> None:
    """Messages left unread when a consumer's last group ends are abandoned, unless the consumer reads again."""
    box = boxes.open("a", 9)
    box.memberships = 1
    for _ in range(2):
        deliver_group(boxes, "a", b"1", clock.now + 2)
    deliver_group(boxes, "a", b"2", clock.now + 1)
    assert boxes.take(box) == b"1"
    box.memberships = 0
    boxes.release(box)
    if reads_again:
        assert boxes.take(box) == b"1"
    look(boxes, clock.now + 1)
    assert dropped == {cause: 1}


def test_a_channel_that_loses_its_messages_and_is_still_in_use_is_not_forgotten(
    boxes: Mailboxes[Reader], few: int
) -> None:
    """A channel whose messages are dropped for the bound keeps its mailbox while a message is in flight to it."""
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.sent(boxes.boxes["a"], 1)
    for number in range(few):
        deliver(boxes, str(number), mail(b"1"), 9)
    assert not boxes.boxes["a"].mail


def test_very_many_channels_without_readers_are_bounded(boxes: Mailboxes[Reader]) -> None:
    """At most `MAX_UNCLAIMED` channels without readers keep messages."""
    for number in range(2 * mailboxes.MAX_UNCLAIMED):
        deliver(boxes, str(number), mail(b"1"), 9)
    assert len(boxes.boxes) == boxes.waiting == mailboxes.MAX_UNCLAIMED


# Clearing


def test_clearing_keeps_only_who_waits(boxes: Mailboxes[Reader]) -> None:
    """Clearing drops all messages, also those in flight, and forgets every mailbox without a waiting reader."""
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.sent(boxes.open("b", 9), 1)
    wait(boxes, boxes.open("c", 9))
    boxes.clear()
    assert list(boxes.boxes) == ["c"]
    assert boxes.waiting == 0


def test_a_late_reader_leaves_a_new_mailbox_alone(boxes: Mailboxes[Reader]) -> None:
    """A reader that was woken before the clearing and gives up later does not affect the new mailbox of its channel."""
    former = boxes.open("a", 9)
    (reader,) = wait(boxes, former)
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.clear()
    deliver(boxes, "a", mail(b"2"), 9)
    boxes.stop_waiting(former, reader)
    assert payloads(boxes, boxes.open("a", 9)) == [b"2"]
