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
    """Make mailboxes; at the end of every test they count what waits as a look at each of them does."""

    def drop(cause: str, count: int) -> None:
        if count:
            dropped[cause] += count

    boxes: Mailboxes[Reader] = Mailboxes(drop, idle=IDLE, clock=clock)
    yield boxes
    assert boxes.waiting == sum(len(box.mail) for box in boxes.boxes.values())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let mailboxes without a reader be few."""
    monkeypatch.setattr(mailboxes, "MAX_UNCLAIMED", 3)
    return 3


def mail(payload: bytes, deadline: float = LATE) -> tuple[float, bytes, None]:
    return deadline, payload, None


def wait(boxes: Mailboxes[Reader], box: mailboxes.Mailbox[Reader], count: int = 1) -> list[Reader]:
    """Let readers wait for a message that is not there."""
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
    """Deliver a message; the capacity is that of a mailbox that has to be made for it."""
    return boxes.deliver(boxes.boxes.get(channel) or boxes.open(channel, capacity), mail)


def deliver_group(
    boxes: Mailboxes[Reader], channels: str | list[str], payload: bytes, deadline: float = LATE
) -> list[Reader]:
    woken: list[Reader] = []
    boxes.deliver_group([boxes.boxes[channel] for channel in channels], deadline, payload, woken)
    return woken


def look(boxes: Mailboxes[Reader], now: float) -> float:
    """Do all that is due."""
    while (due := boxes.look(now, 100)) <= now:
        pass
    return due


# Reading


def test_messages_are_taken_in_the_order_of_their_arrival(boxes: Mailboxes[Reader]) -> None:
    """First in, first out."""
    for payload in (b"1", b"2", b"3"):
        deliver(boxes, "a", mail(payload), 9)
    assert payloads(boxes, boxes.boxes["a"]) == [b"1", b"2", b"3"]


def test_an_empty_payload_is_a_message(boxes: Mailboxes[Reader]) -> None:
    """An empty mailbox returns None."""
    deliver(boxes, "a", mail(b""), 9)
    assert boxes.take(boxes.boxes["a"]) == b""
    assert boxes.take(boxes.boxes["a"]) is None


def test_a_reader_takes_a_message_that_is_there_without_waiting(boxes: Mailboxes[Reader]) -> None:
    """Only a reader that finds none has to wait."""
    box = boxes.open("a", 9)
    deliver(boxes, "a", mail(b"1"), 9)
    assert [boxes.take(box), boxes.take(box)] == [b"1", None]


def test_a_reader_that_finds_expired_messages_only_has_to_wait(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """What it dropped is counted."""
    for _ in range(2):
        deliver(boxes, "a", mail(b"1", clock.now + 1), 9)
    clock.now += 1
    assert boxes.take(boxes.boxes["a"]) is None
    assert dropped == {"expired": 2}


def test_expired_messages_are_not_read(boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]) -> None:
    """A reader gets the first message that has not expired."""
    deliver(boxes, "a", mail(b"1", clock.now + 5), 9)
    deliver(boxes, "a", mail(b"2"), 9)
    clock.now += 5
    assert boxes.take(boxes.boxes["a"]) == b"2"
    assert dropped == {"expired": 1}


def test_a_woken_and_cancelled_reader_loses_no_message(boxes: Mailboxes[Reader]) -> None:
    """A message stays in its mailbox until a reader takes it."""
    box = boxes.open("a", 9)
    (reader,) = wait(boxes, box)
    assert deliver(boxes, "a", mail(b"1"), 9) is reader
    assert boxes.stop_waiting(box, reader) is None
    assert boxes.take(box) == b"1"


def test_a_woken_and_cancelled_reader_passes_its_turn_on(boxes: Mailboxes[Reader]) -> None:
    """The next reader is woken for the message that the first one was woken for."""
    box = boxes.open("a", 9)
    first, second = wait(boxes, box, 2)
    deliver(boxes, "a", mail(b"1"), 9)
    assert boxes.stop_waiting(box, first) is second


def test_a_reader_that_gives_up_unwoken_wakes_nobody(boxes: Mailboxes[Reader]) -> None:
    """It has not taken another reader's turn."""
    box = boxes.open("a", 9)
    first, second = wait(boxes, box, 2)
    deliver(boxes, "a", mail(b"1"), 9)
    assert boxes.stop_waiting(box, second) is None
    assert boxes.stop_waiting(box, first) is None


def test_a_reader_that_finds_nothing_left_wakes_nobody(boxes: Mailboxes[Reader]) -> None:
    """Without a message there is no turn to pass on."""
    box = boxes.open("a", 9)
    first, second = wait(boxes, box, 2)
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.take(box)
    assert boxes.stop_waiting(box, first) is None
    assert box.waiters == [second]


def test_waiters_are_woken_in_their_order(boxes: Mailboxes[Reader]) -> None:
    """One for each message, and no further reader once all are woken."""
    first, second = wait(boxes, boxes.open("a", 9), 2)
    assert [deliver(boxes, "a", mail(b"1"), 9) for _ in range(3)] == [first, second, None]


def test_a_waiter_that_is_not_usable_is_passed_over(boxes: Mailboxes[Reader]) -> None:
    """A reader that was cancelled, or whose loop has closed, does not take another's turn."""
    first, second = wait(boxes, boxes.open("a", 9), 2)
    first.usable = False
    assert deliver(boxes, "a", mail(b"1"), 9) is second


# Capacity


def test_a_full_mailbox_refuses_the_newest(boxes: Mailboxes[Reader], dropped: Counter[str]) -> None:
    """At most `capacity` messages wait, the oldest are kept, and refused ones are counted."""
    for payload in (b"1", b"2", b"3"):
        deliver(boxes, "a", mail(payload), 2)
    assert dropped == {"mailbox_full": 1}
    assert payloads(boxes, boxes.boxes["a"]) == [b"1", b"2"]


def test_expired_messages_do_not_count_for_the_capacity(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """An expired message makes room, wherever it stands."""
    boxes.take(boxes.open("a", 2))
    deliver(boxes, "a", mail(b"1"), 2)
    deliver(boxes, "a", mail(b"2", clock.now + 5), 2)
    assert boxes.is_full(boxes.boxes["a"])
    clock.now += 5
    deliver(boxes, "a", mail(b"3"), 2)
    assert payloads(boxes, boxes.boxes["a"]) == [b"1", b"3"]
    assert dropped == {"expired": 1}


def test_a_changed_capacity_takes_effect_at_once(boxes: Mailboxes[Reader], dropped: Counter[str]) -> None:
    """It is that of the last `open`."""
    deliver(boxes, "a", mail(b"1"), 1)
    boxes.open("a", 2)
    deliver(boxes, "a", mail(b"2"), 1)
    assert dropped == {}
    assert boxes.is_full(boxes.boxes["a"])


def test_a_mailbox_without_capacity_takes_nothing(
    boxes: Mailboxes[Reader], dropped: Counter[str], clock: Clock
) -> None:
    """It is forgotten like any other."""
    deliver(boxes, "a", mail(b"1"), 0)
    assert dropped == {"mailbox_full": 1}
    look(boxes, clock.now + IDLE)
    assert boxes.boxes == {}


def test_a_refused_message_wakes_nobody(boxes: Mailboxes[Reader]) -> None:
    """A reader is woken only for a message that is there."""
    box = boxes.open("a", 1)
    (reader,) = wait(boxes, box)
    box.append(mail(b"1"))
    assert deliver(boxes, "a", mail(b"2"), 1) is None
    assert box.waiters == [reader]


def test_all_waiting_messages_are_counted(boxes: Mailboxes[Reader]) -> None:
    """Over all channels."""
    for channel in ("a", "a", "b"):
        deliver(boxes, channel, mail(b"1"), 9)
    assert boxes.waiting == 3


# Groups


@pytest.mark.parametrize("channels, shares", [(["a"], False), (["a", "b"], True)])
def test_members_share_a_payload_that_the_first_reader_unpacks_for_all(
    boxes: Mailboxes[Reader], channels: list[str], shares: bool
) -> None:
    """A sole member does not share it."""
    for channel in channels:
        boxes.open(channel, 9)
    deliver_group(boxes, channels, b"1")
    taken = [boxes.take(boxes.boxes[channel]) for channel in channels]
    assert [isinstance(payload, Shared) for payload in taken] == [shares] * len(channels)
    assert taken[0] is taken[-1]


def test_a_group_message_wakes_the_first_usable_reader_of_each_member(boxes: Mailboxes[Reader]) -> None:
    """A member without usable readers gets its message, and no reader is woken."""
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
    """It alone misses the message, which is counted."""
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
    """Expired messages do not count."""
    boxes.take(boxes.open("a", 1))
    for payload in (b"old", b"refused"):
        deliver_group(boxes, "a", payload, clock.now + 1)
    clock.now += 2
    deliver_group(boxes, "a", b"new")
    assert payloads(boxes, boxes.boxes["a"]) == [b"new"]
    assert dropped == {"mailbox_full": 1, "expired": 1}


def test_an_announcement_reaches_every_mailbox_but_those_of_normal_channels(boxes: Mailboxes[Reader]) -> None:
    """It exceeds the capacity if need be, wakes readers, and costs no normal channel a credit."""
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
    """Its consumer has left between the list of all mailboxes and its turn. Nobody would look after it any more."""
    box = boxes.open("a", 9)
    boxes.release(box)
    boxes.announce([box], mail(b"1"), [])
    assert (boxes.waiting, boxes.boxes) == (0, {})


# Messages in flight


def test_settled_messages_are_not_in_flight_any_more(boxes: Mailboxes[Reader]) -> None:
    """A loss leaves ghosts, which settling clears; newer messages stay."""
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
    """For one idle time at least."""
    box = boxes.open("a", 9)
    (reader,) = wait(boxes, box)
    boxes.sent(box, 1)
    boxes.stop_waiting(box, reader)
    look(boxes, clock.now + IDLE)
    assert boxes.boxes == {"a": box}


def test_a_message_that_was_lost_in_flight_does_not_keep_its_mailbox(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """A message that did not arrive between two looks never will."""
    for number in range(1000):
        boxes.sent(boxes.open(str(number), 9), number + 1)
    for _ in range(2):
        clock.now += IDLE
        look(boxes, clock.now)
    assert boxes.boxes == {}


def test_a_mailbox_with_newer_messages_in_flight_is_kept(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """Only what was in flight at the last look is lost; what has arrived was not."""
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
    """It is empty, was not read for a while, and belongs to no group."""
    boxes.open("a", 9)
    assert look(boxes, clock.now + IDLE - 0.1) == clock.now + IDLE
    assert "a" in boxes.boxes
    assert look(boxes, clock.now + IDLE) == inf
    assert boxes.boxes == {}


@pytest.mark.parametrize("reason", ["mail", "reader", "group", "normal", "recently read"])
def test_a_mailbox_in_use_is_kept(boxes: Mailboxes[Reader], clock: Clock, reason: str) -> None:
    """A message, a reader, a membership, a window of one exchange or a recent read each keep it."""
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
    """A consumer that ends needs no housekeeping."""
    box = boxes.open("a", 9)
    (reader,) = wait(boxes, box)
    boxes.stop_waiting(box, reader)
    assert boxes.boxes == {}


def test_unread_messages_are_dropped_when_they_expire(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """Without any reader; the others stay."""
    deliver(boxes, "a", mail(b"1", clock.now + 1), 9)
    deliver(boxes, "a", mail(b"2"), 9)
    deliver(boxes, "b", mail(b"3", clock.now + 2), 9)
    assert look(boxes, clock.now + 1) == clock.now + 2
    assert dropped == {"abandoned": 1}
    assert [box.mail[0][1] for box in boxes.boxes.values()] == [b"2", b"3"]


def test_a_group_message_is_dropped_when_it_expires(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """Also one that expires later than another."""
    boxes.open("a", 9)
    deliver_group(boxes, "a", b"1", clock.now + 2)
    deliver_group(boxes, "a", b"2", clock.now + 3)
    assert look(boxes, clock.now + 2) == clock.now + 3
    look(boxes, clock.now + 3)
    assert dropped == {"abandoned": 2}


def test_a_large_mailbox_is_looked_at_less_often(boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]) -> None:
    """Each look visits all its messages, and each of them expires at a time of its own."""
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
    """Also if their mailbox is forgotten at the same time."""
    deliver(boxes, "a", mail(b"1", clock.now + 1), 9)
    clock.now += IDLE
    for _ in range(2):
        look(boxes, clock.now)
    assert boxes.boxes == {}
    assert dropped == {"abandoned": 1}


def test_a_mailbox_that_had_messages_takes_little_memory_again(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """An empty deque takes 0.6 kB; a reader that waits will need it soon."""
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
    """It does not visit any of 100,000 mailboxes."""
    for number in range(100_000):
        boxes.open(str(number), 9)
    looked = []
    monkeypatch.setattr(boxes._looks, "_is_current", lambda at, box: looked.append(box))
    for _ in range(10):
        assert boxes.look(clock.now + IDLE - 0.1, 1000) == clock.now + IDLE
    assert looked == []


def test_one_look_handles_a_bounded_number_of_mailboxes(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """The result says that more is due."""
    for number in range(25):
        boxes.open(str(number), 9)
    now = clock.now + IDLE
    assert [(boxes.look(now, 10) <= now, len(boxes.boxes)) for _ in range(3)] == [(True, 15), (True, 5), (False, 0)]


def test_many_messages_leave_a_small_heap(boxes: Mailboxes[Reader], clock: Clock) -> None:
    """Each message that expires earlier brings the next look forward."""
    boxes.open("a", 9)
    for number in range(10_000):
        deliver(boxes, "a", mail(b"1", clock.now + 50 - number / 1000), 1)
        boxes.take(boxes.boxes["a"])
    assert len(boxes._looks) < 200


# Channels without a reader


def test_messages_for_a_reader_that_has_ended_are_abandoned(
    boxes: Mailboxes[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """They are not reported as expired: they can never be read, and no action is necessary."""
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
    """It has taken one, and is expected back."""
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.take(boxes.boxes["a"])
    deliver(boxes, "a", mail(b"2", clock.now + 1), 9)
    look(boxes, clock.now + 1)
    assert dropped == {"expired": 1}


@pytest.mark.parametrize("is_open", [False, True])
def test_only_some_channels_that_nobody_reads_keep_their_messages(
    boxes: Mailboxes[Reader], dropped: Counter[str], few: int, is_open: bool
) -> None:
    """The oldest channels lose theirs; it does not matter whether the mailbox was made by the message."""
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
    """Each had a message waiting."""
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
    """It takes what is there: its messages are kept, and those that it does not take in time have expired."""
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
    """After an idle time. A consumer whose handler raised was not waiting, so it could not give up."""
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
    """Nor does a group lose a member: only what it does not take in time is abandoned from then on."""
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
    """Whatever arrives for others."""
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
    """Its messages may still be read."""
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
    """Its handler was running when it was disconnected, so that it did not wait and could not give up."""
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
    """A message is in flight to it."""
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.sent(boxes.boxes["a"], 1)
    for number in range(few):
        deliver(boxes, str(number), mail(b"1"), 9)
    assert not boxes.boxes["a"].mail


def test_very_many_channels_without_readers_are_bounded(boxes: Mailboxes[Reader]) -> None:
    """By `MAX_UNCLAIMED` itself."""
    for number in range(2 * mailboxes.MAX_UNCLAIMED):
        deliver(boxes, str(number), mail(b"1"), 9)
    assert len(boxes.boxes) == boxes.waiting == mailboxes.MAX_UNCLAIMED


# Clearing


def test_clearing_keeps_only_who_waits(boxes: Mailboxes[Reader]) -> None:
    """Messages are dropped, also those in flight, and unused mailboxes forgotten."""
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.sent(boxes.open("b", 9), 1)
    wait(boxes, boxes.open("c", 9))
    boxes.clear()
    assert list(boxes.boxes) == ["c"]
    assert boxes.waiting == 0


def test_a_late_reader_leaves_a_new_mailbox_alone(boxes: Mailboxes[Reader]) -> None:
    """It was woken before all was cleared, and gives up when its channel has a new mailbox."""
    former = boxes.open("a", 9)
    (reader,) = wait(boxes, former)
    deliver(boxes, "a", mail(b"1"), 9)
    boxes.clear()
    deliver(boxes, "a", mail(b"2"), 9)
    boxes.stop_waiting(former, reader)
    assert payloads(boxes, boxes.open("a", 9)) == [b"2"]
