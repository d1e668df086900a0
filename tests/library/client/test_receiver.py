"""Group and direct messages: frames in; messages, readers to wake, unsubscriptions and counts out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes import Clock, Reader

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.counters import Counters
from channels_zmq.client.defaults import Defaults
from channels_zmq.client.gaps import HOLD, Gaps
from channels_zmq.client.mailboxes import Mailbox, Mailboxes, Shared
from channels_zmq.client.memberships import Join, Memberships
from channels_zmq.client.output import Output
from channels_zmq.client.receiver import Receiver
from channels_zmq.client.requests import next_number
from channels_zmq.client.resumption import ON_THE_WAY
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import FLAG_BATCH, FLAG_FIRST, Topic

INBOX = b"0123456789abcdef"
SENDER, OTHER = b"s" * 8, b"o" * 8
G, H = wire.group_topic("g"), wire.group_topic("h")
TTL = 60_000


def group(
    number: int, *bodies: bytes, sender: bytes = OTHER, flags: int = 0, ttl: int = TTL, topic: Topic = G
) -> bytes:
    """Return a group message, a batch if there are several bodies; without a body its payload is the number."""
    bodies = bodies or (b"%d" % number,)
    body, flags = (bodies[0], flags) if len(bodies) == 1 else (wire.batch(bodies), flags | FLAG_BATCH)
    return wire.ordered(topic, sender, number, flags, ttl, body)


def direct(number: int, *bodies: bytes, channel: str = "a", sender: bytes = OTHER, ttl: int = TTL) -> bytes:
    """Return a direct message, a batch if there are several bodies; without a body its payload is the number."""
    some = [wire.direct_body(channel, body) for body in bodies or (b"%d" % number,)]
    body, flags = (some[0], 0) if len(some) == 1 else (wire.batch(some), FLAG_BATCH)
    return wire.ordered(wire.direct_prefix(INBOX), sender, number, flags, ttl, body)


def again(frame: bytes, age: float = 0.0, *, acknowledged: bool = False) -> bytes:
    """Return a frame that was first sent so many seconds ago, as it is sent again."""
    return wire.again(frame, TTL, wire.milliseconds(age), elsewhere=False, acknowledged=acknowledged)


class Letters:
    """An opener of payloads that begin with a letter: `g` for groups, `c` for channels."""

    def open_from_group(self, topic: bytes, sealed: bytes) -> bytes | None:
        return sealed[1:] if sealed[:1] == b"g" else None

    def open_from_channel(self, channel: str, sealed: bytes) -> bytes | None:
        return sealed[1:] if sealed[:1] == b"c" else None


class Rig:
    """A receiver and its parts at one exchange, with the channel `a`, which has a reader, in the group `g`."""

    def __init__(self, clock: Clock, opener: Letters | None = None) -> None:
        self.clock, self.out, self.counters = clock, Output(), Counters(clock)
        self.mailboxes: Mailboxes[Any] = Mailboxes(self.counters.drop, clock=clock)
        self.memberships = Memberships(self.mailboxes, SENDER, clock)
        self.gaps = Gaps(lambda count: self.counters.drop("missed", count), clock)
        self.attachments = [self.attachment()]
        self.receiver = Receiver(
            INBOX,
            SENDER,
            mailboxes=self.mailboxes,
            memberships=self.memberships,
            gaps=self.gaps,
            attachments=self.attachments,
            counters=self.counters,
            out=self.out,
            clock=clock,
            opener=opener,
        )
        self.readers: dict[str, Reader] = {}
        self.add("a")
        self.wait("a")

    def attachment(self) -> Attachment:
        return Attachment(INBOX, 4, self.counters.drop, clock=self.clock)

    def add(self, channel: str, topic: Topic = G, life: float | None = None, floor: int = 0) -> Join:
        """Add a member whose subscription is in force."""
        join, _ = self.memberships.join(topic, channel, 3, life, floor)
        self.memberships.in_force(join.group, next_number())
        self.memberships.completed(join)
        return join

    def wait(self, channel: str) -> None:
        self.readers[channel] = reader = Reader()
        self.mailboxes.open(channel, 3).waiters.append(reader)

    def take(self, *frames: bytes) -> int:
        """Take frames as a client does, and return the number of steps that direct messages and batches need."""
        steps = 0
        for frame in frames:
            if wire.is_group(frame):
                topic, sender, number, flags, ttl, payload = wire.read_group(frame)
                if flags & FLAG_BATCH:
                    bodies = wire.batch_bodies(payload)
                    steps += sum(
                        1 for _ in self.receiver.take_group_batch(frame, topic, sender, number, flags, ttl, bodies)
                    )
                else:
                    self.receiver.take_group(frame, topic, sender, number, flags, ttl, payload)
            else:
                steps += sum(1 for _ in self.receiver.take_direct(frame) or ())
        return steps

    def box(self, channel: str = "a") -> Mailbox[Any]:
        return self.mailboxes.boxes[channel]

    def came(self) -> "Came":
        """Return the results so far."""
        mail = {name: [_plain(mail[1]) for mail in box.mail] for name, box in self.mailboxes.boxes.items() if box.mail}
        woken = [name for name, reader in self.readers.items() if reader in self.out.wake]
        logged = [str(report.arguments[1]) for report in self.counters.reports]
        return Came(
            mail,
            woken,
            self.counters.received,
            self.counters.repeated,
            dict(self.counters.dropped),
            self.gaps.frames,
            [frame for frame, _ in self.out.upstream],
            logged,
        )


def _plain(payload: Any) -> bytes:
    return bytes(payload.payload if isinstance(payload, Shared) else payload)


@dataclass
class Came:
    """Results: payloads by channel, channels with woken readers, counts, and the causes of log lines."""

    mail: dict[str, list[bytes]] = field(default_factory=dict)
    woken: list[str] = field(default_factory=list)
    received: int = 0
    repeated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    held: int = 0
    upstream: list[bytes] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)


def came_to_a(*payloads: bytes, **more: Any) -> Came:
    """Return the results for payloads in the channel `a`, whose reader is woken."""
    return Came({"a": list(payloads)}, ["a"], len(payloads), **more)


@pytest.fixture
def rig(clock: Clock) -> Rig:
    return Rig(clock)


# The meaning of numbers, the same for groups and direct messages

NUMBERS: dict[str, tuple[list[int], Came]] = {
    "in order": ([5, 6], came_to_a(b"5", b"6")),
    "the first one seen": ([5], came_to_a(b"5")),
    "repeated": ([5, 6, 5, 6], came_to_a(b"5", b"6", repeated=2)),
    "behind a gap": ([5, 7], came_to_a(b"5", held=1)),
    "behind a gap, repeated": ([5, 7, 7], came_to_a(b"5", held=1, repeated=1)),
    "a gap that closes": ([5, 7, 6], came_to_a(b"5", b"6", b"7")),
    "one of two gaps closes": ([5, 8, 6], came_to_a(b"5", b"6", held=1)),
    "below the first one seen": ([5, 4], came_to_a(b"5", repeated=1)),
}


@pytest.mark.parametrize("case", NUMBERS)
@pytest.mark.parametrize("message", [group, direct])
def test_what_the_numbers_of_messages_say(rig: Rig, message: Callable[..., bytes], case: str) -> None:
    """The number of a message decides whether it is delivered, held behind a gap, or counted as repeated."""
    numbers, expected = NUMBERS[case]
    rig.take(*map(message, numbers))
    assert rig.came() == expected


@pytest.mark.parametrize("message", [group, direct])
def test_own_messages_that_are_repeated_are_not_counted(rig: Rig, message: Callable[..., bytes]) -> None:
    """Repeated own messages are not counted, because this process sent them before it joined."""
    rig.take(*(message(number, sender=SENDER) for number in (5, 5)))
    assert rig.came() == came_to_a(b"5")


@pytest.mark.parametrize("message", [group, direct])
@pytest.mark.parametrize("frames", [[5], [5, 5], [5, 7, 6]])
def test_every_message_moves_the_time_by_which_a_turn_ends(
    rig: Rig, message: Callable[..., bytes], frames: list[int]
) -> None:
    """Each message, also one that is repeated or held, sets the time by which a turn of reading ends."""
    for number in frames:
        rig.clock.now += 1
        rig.take(message(number))
        assert rig.receiver.now == rig.clock.now


# The first message of a run

WAYS: dict[str, Callable[[Rig], None]] = {
    "another exchange": lambda rig: rig.attachments.append(rig.attachment()),
    "a replay": lambda rig: setattr(rig.gaps, "replays_until", rig.clock.now + 1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("message", [group, direct])
def test_the_first_message_of_a_run_waits_if_earlier_ones_may_come(
    rig: Rig, message: Callable[..., bytes], way: str
) -> None:
    """The first message of a run waits while another path may bring earlier ones, and its successors wait behind it."""
    WAYS[way](rig)
    rig.take(message(5))
    assert rig.came() == Came(held=1)
    del rig.attachments[1:]
    rig.gaps.replays_until = 0.0
    rig.take(message(6))
    assert rig.came() == Came(held=2)
    rig.gaps.all_is_read()
    assert rig.came() == came_to_a(b"5", b"6")


@pytest.mark.parametrize("way", WAYS)
def test_the_first_message_of_all_waits_for_nothing(rig: Rig, way: str) -> None:
    """The first message that a sender ever publishes carries a flag, and waits for no other path."""
    WAYS[way](rig)
    rig.take(group(5, flags=FLAG_FIRST))
    assert rig.came() == came_to_a(b"5")


# Group messages


def test_a_group_message_reaches_all_members_and_no_other_channel(rig: Rig) -> None:
    """A group message reaches all members and no other channel, and counts as one received message."""
    rig.add("b")
    rig.add("c", H)
    rig.take(group(5))
    assert rig.came() == Came({"a": [b"5"], "b": [b"5"]}, ["a"], 1)


def test_a_message_for_a_group_without_members_is_for_nobody(rig: Rig) -> None:
    """A message for a group without members is ignored, and its number is not recorded."""
    rig.take(group(5, topic=H), group(9, topic=H), group(7, b"x", b"y", topic=H))
    assert rig.came() == Came()


def test_the_messages_of_a_batch_are_taken_one_with_each_step(rig: Rig) -> None:
    """Each step takes one message of a batch; the messages have consecutive numbers and can be repeated singly."""
    WAYS["another exchange"](rig)
    assert rig.take(group(5, b"x", b"y", flags=FLAG_FIRST)) == 2
    assert rig.came() == came_to_a(b"x", b"y")
    assert rig.take(group(6, b"y", b"z")) == 2
    assert rig.came() == came_to_a(b"x", b"y", b"z", repeated=1)


@pytest.mark.parametrize("held", [False, True])
def test_members_whose_time_is_over_leave_before_a_message_is_delivered(rig: Rig, held: bool) -> None:
    """Members whose time is over leave, with an unsubscription, before a message, even a held one, is delivered."""
    rig.add("b", H, life=5.0)
    if held:
        rig.take(group(5, topic=H), group(7, topic=H))
        rig.box("b").clear()
        rig.clock.now += 5
        rig.gaps.expire(rig.clock.now)
    else:
        rig.clock.now += 5
        rig.take(group(5, topic=H))
    came = rig.came()
    assert (came.mail, came.upstream) == ({}, [wire.unsubscription(H)])
    assert came.received == held


@pytest.mark.parametrize(
    "age, acknowledged, gets_it",
    [
        (0.0, False, "ab"),
        (1.9, False, "ab"),
        (2.0, False, "ab"),
        (2.1, False, "a"),
        (2.0 - ON_THE_WAY, True, "ab"),
        (2.1 - ON_THE_WAY, True, "a"),
    ],
)
@pytest.mark.parametrize("held", [False, True])
def test_a_message_that_is_sent_again_is_for_the_members_of_the_time_when_it_was_sent_first(
    rig: Rig, age: float, acknowledged: bool, gets_it: str, held: bool
) -> None:
    """`b` joined 2 s ago and gets only younger messages; an acknowledged one counts as older, as it likely arrived."""
    rig.take(group(4 if held else 5))
    rig.box().clear()
    rig.clock.now += 10
    rig.add("b")
    rig.clock.now += 2
    rig.take(again(group(6), age, acknowledged=acknowledged))
    if held:
        assert rig.came().held == 1
        rig.take(group(5, ttl=0))
    mail = rig.came().mail
    assert [channel for channel in "ab" if b"6" in mail.get(channel, [])] == list(gets_it)


def test_a_message_behind_a_gap_is_not_for_members_that_join_while_it_is_held(rig: Rig) -> None:
    """A held message does not reach members that join while it is held, because it arrived before."""
    rig.take(group(5), group(7))
    rig.clock.now += HOLD / 2
    rig.add("b")
    rig.take(group(6))
    assert rig.came().mail == {"a": [b"5", b"6", b"7"], "b": [b"6"]}


def test_a_message_that_is_sent_again_closes_a_gap(rig: Rig) -> None:
    """A message that is sent again closes a gap, and the held messages follow it."""
    rig.clock.now += 1
    rig.take(group(5), group(7), again(group(6), 0.1))
    assert rig.came() == came_to_a(b"5", b"6", b"7")


@pytest.mark.parametrize("message", [group, direct])
def test_a_message_ages_while_it_waits_behind_a_gap(rig: Rig, message: Callable[..., bytes]) -> None:
    """A message expires after its time to live, of which it has spent a part behind a gap."""
    arrived = rig.clock.now
    rig.take(message(5), message(7, ttl=2000))
    rig.clock.now += 1.5
    rig.take(message(6))
    assert [mail[0] for mail in rig.box().mail] == [arrived + TTL / 1000, rig.clock.now + TTL / 1000, arrived + 2.0]


@pytest.mark.parametrize("message", [group, direct])
def test_a_message_that_has_expired_behind_a_gap_is_counted(rig: Rig, message: Callable[..., bytes]) -> None:
    """A message that expires while it waits behind a gap is not read, and counts as expired."""
    rig.take(message(5), message(7, ttl=200))
    rig.clock.now += 0.3
    rig.take(message(6))
    assert [rig.mailboxes.take(rig.box()) for _ in range(3)] == [b"5", b"6", None]
    assert rig.counters.dropped == {"expired": 1}


@pytest.mark.parametrize("ttl, waits", [(TTL, 5.0), (2000, 2.0)])
@pytest.mark.parametrize("message", [group, direct])
def test_no_message_waits_longer_than_the_largest_expiry(
    rig: Rig, message: Callable[..., bytes], ttl: int, waits: float
) -> None:
    """No message waits longer than the largest expiry, whatever TTL its sender sets."""
    rig.receiver.use(Defaults(max_ttl=5000))
    rig.take(message(5, ttl=ttl))
    assert [mail[0] for mail in rig.box().mail] == [rig.clock.now + waits]


# Own messages from before the subscription


@pytest.mark.parametrize("topic, expected", [(G, []), (H, [b"50"])])
def test_an_own_message_that_is_older_than_the_subscription_is_ignored(
    rig: Rig, topic: Topic, expected: list[bytes]
) -> None:
    """An own message from before the subscription is ignored; the record for one group affects no other group."""
    rig.receiver.older_than_subscription(topic, 50)
    rig.take(group(50, sender=SENDER))
    assert rig.came().mail == ({"a": expected} if expected else {})
    rig.take(group(51, sender=SENDER))
    assert rig.came().mail == {"a": [*expected, b"51"]}


# Direct messages


@pytest.mark.parametrize(
    "channel, is_made, has_box, expected",
    [
        ("made", True, False, Came({"made": [b"5"]}, received=1)),
        ("read", False, True, Came({"read": [b"5"]}, received=1)),
        ("strange", False, False, Came(dropped={"unroutable": 1}, logged=["unroutable"])),
    ],
)
def test_a_direct_message_needs_a_channel_that_this_process_has_made_or_reads(
    rig: Rig, channel: str, is_made: bool, has_box: bool, expected: Came
) -> None:
    """A direct message needs a channel that this process made or reads, so no peer can fill memory with mailboxes."""
    if has_box:
        rig.mailboxes.open(channel, 3)
    if is_made:
        made = rig.receiver.own_names.new(channel)
        expected.mail = {made: expected.mail[channel]}
        channel = made
    rig.take(direct(5, channel=channel))
    assert rig.came() == expected


def test_a_full_mailbox_refuses_and_a_new_one_has_the_default_capacity(rig: Rig) -> None:
    """A full mailbox refuses messages, counted and logged once, and a new mailbox has the default capacity."""
    rig.receiver.use(Defaults(capacity=lambda channel: 1))
    made = rig.receiver.own_names.new("new")
    rig.take(*(direct(number, channel=made) for number in (5, 6, 7)))
    assert rig.came() == Came({made: [b"5"]}, [], 3, dropped={"mailbox_full": 2}, logged=["mailbox_full"])
    rig.take(*(direct(number) for number in (8, 9, 10)))
    assert len(rig.box().mail) == rig.box().capacity == 3


@pytest.mark.parametrize("sender, left", [(SENDER, 1), (OTHER, 2)])
def test_an_own_message_that_has_arrived_is_not_in_flight_any_more(rig: Rig, sender: bytes, left: int) -> None:
    """An own message that has arrived is no longer in flight; one of another process settles none."""
    for _ in range(2):
        rig.receiver.sent_to_own(rig.box())
    assert rig.receiver.own_order == 2
    rig.take(direct(5, sender=sender))
    assert list(rig.box().in_flight or ()) == [1, 2][-left:]


def test_a_malformed_direct_message_raises(rig: Rig) -> None:
    """A malformed direct message raises a FrameError, which the client counts."""
    with pytest.raises(wire.FrameError):
        rig.take(wire.ordered(wire.direct_prefix(INBOX), OTHER, 5, 0, TTL, b"no channel"))
    assert rig.came() == Came()


def test_a_malformed_message_of_a_batch_is_counted_and_the_others_are_taken(rig: Rig) -> None:
    """In a batch, a malformed message is counted and the others are taken in order, one at each step."""
    bodies = [wire.direct_body("a", b"x"), b"no channel", wire.direct_body("a", b"z")]
    frame = wire.ordered(wire.direct_prefix(INBOX), OTHER, 5, FLAG_BATCH | FLAG_FIRST, TTL, wire.batch(bodies))
    WAYS["another exchange"](rig)
    assert rig.take(frame) == 3
    assert rig.came() == Came({"a": [b"x", b"z"]}, ["a"], 2, dropped={"malformed": 1}, logged=["malformed"])


@pytest.mark.parametrize("capacity, accepted", [(1, [True, False, False]), (2, [True, True, False])])
@pytest.mark.parametrize("channel", ["a", "new"])
def test_a_message_of_this_process_is_delivered_or_refused_at_once(
    rig: Rig, channel: str, capacity: int, accepted: list[bool]
) -> None:
    """A message to this process itself is accepted up to the sending layer's capacity; a refusal is not a loss."""
    assert [rig.receiver.deliver_own(channel, TTL, b"x", capacity) for _ in accepted] == accepted
    came = rig.came()
    assert (came.mail, came.received, came.dropped) == ({channel: [b"x"] * capacity}, capacity, {})
    assert came.woken == ["a"] * (channel == "a")


# Encrypted payloads

SEALED: dict[str, tuple[bytes, Came]] = {
    "a group message": (group(5, b"gx"), came_to_a(b"x")),
    "a group message for another place": (group(5, b"cx"), Came()),
    "a direct message": (direct(5, b"cx"), came_to_a(b"x")),
    "a direct message for another place": (direct(5, b"gx"), Came()),
    "a batch for a group": (group(5, b"gx", b"?", b"gz"), came_to_a(b"x", b"z")),
    "a direct batch": (direct(5, b"cx", b"?", b"cz"), came_to_a(b"x", b"z")),
}


@pytest.mark.parametrize("case", SEALED)
def test_payloads_are_opened_or_dropped(clock: Clock, case: str) -> None:
    """Payloads wait decrypted; one that cannot be decrypted is dropped, counted and logged."""
    frame, expected = SEALED[case]
    rig = Rig(clock, Letters())
    rig.take(frame)
    if len(expected.mail.get("a", [])) != 1:
        expected.dropped, expected.logged = {"undecryptable": 1}, ["undecryptable"]
    assert rig.came() == expected


def test_own_payloads_are_opened_too(clock: Clock) -> None:
    """Own payloads are decrypted too; one that cannot be decrypted counts as accepted and is dropped."""
    rig = Rig(clock, Letters())
    assert [rig.receiver.deliver_own("a", TTL, payload, 3) for payload in (b"cx", b"gx")] == [True, True]
    assert rig.came() == came_to_a(b"x", dropped={"undecryptable": 1}, logged=["undecryptable"])


# A flush


@pytest.mark.parametrize("message", [group, direct])
def test_a_flush_drops_what_is_held(rig: Rig, message: Callable[..., bytes]) -> None:
    """A flush drops held messages and does not count them as lost."""
    rig.take(message(5), message(7))
    rig.box().clear()
    rig.receiver.clear()
    rig.gaps.all_is_read()
    rig.gaps.expire(rig.clock.now + HOLD)
    assert rig.came() == Came(woken=["a"], received=1)


def test_direct_messages_may_go_on_anywhere_after_a_flush(rig: Rig) -> None:
    """After a flush direct messages continue at any higher number without a loss, and earlier ones stay repetitions."""
    rig.take(direct(5))
    rig.receiver.clear()
    rig.take(direct(99), direct(5))
    assert rig.came() == came_to_a(b"5", b"99", repeated=1)
