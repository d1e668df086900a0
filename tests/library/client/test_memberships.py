"""Which channels belong to which groups, and the frames that subscribe and unsubscribe."""

from math import inf

import pytest
from fakes import Clock, Reader
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from channels_zmq.client import memberships as module
from channels_zmq.client.mailboxes import Mailboxes
from channels_zmq.client.memberships import REMEMBERED, Memberships
from channels_zmq.client.requests import next_number
from channels_zmq.client.sequences import BEGINS, REPEATED, Runs
from channels_zmq_forwarder import wire

SENDER, OTHER = b"s" * 8, b"o" * 8
G, H = wire.group_topic("g"), wire.group_topic("h")
SUBSCRIBE, UNSUBSCRIBE = [wire.subscription(G)], [wire.unsubscription(G)]


@pytest.fixture
def mailboxes(clock: Clock) -> Mailboxes[Reader]:
    return Mailboxes(lambda cause, count: None, idle=1e9, clock=clock)


@pytest.fixture
def memberships(mailboxes: Mailboxes[Reader], clock: Clock) -> Memberships:
    return Memberships(mailboxes, SENDER, clock)


def join(
    memberships: Memberships, channel: str = "a", topic: wire.Topic = G, life: float | None = None, floor: int = 0
) -> tuple[module.Join, list[bytes]]:
    return memberships.join(topic, channel, 9, life, floor)


def added(
    memberships: Memberships, channel: str = "a", topic: wire.Topic = G, life: float | None = None
) -> list[bytes]:
    """Add a member, and return the frames to send."""
    entry, frames = join(memberships, channel, topic, life)
    memberships.completed(entry)
    return frames


def members(memberships: Memberships, topic: wire.Topic = G) -> list[str]:
    group = memberships.groups.get(topic)
    return [box.name for box in group.members] if group else []


# Joining and leaving


def test_only_the_first_member_subscribes_and_only_the_last_one_unsubscribes(memberships: Memberships) -> None:
    """Only the first member subscribes and only the last one unsubscribes, with exactly one frame each."""
    assert added(memberships, "a") == SUBSCRIBE
    assert added(memberships, "b") == []
    assert memberships.leave(G, "a") == []
    assert memberships.leave(G, "b") == UNSUBSCRIBE
    assert memberships.groups == {}


def test_renewing_the_sole_member_subscribes_once_and_unsubscribes_once(memberships: Memberships) -> None:
    """A renewal neither adds a second membership nor ends the first: one subscription, one unsubscription."""
    assert [added(memberships) for _ in range(3)] == [SUBSCRIBE, [], []]
    assert members(memberships) == ["a"]
    assert memberships.leave(G, "a") == UNSUBSCRIBE
    assert memberships.leave(G, "a") == []


@pytest.mark.parametrize("topic, channel", [(G, "b"), (H, "a"), (G, "c")])
def test_leaving_a_group_without_being_a_member_changes_nothing(
    memberships: Memberships, mailboxes: Mailboxes[Reader], topic: wire.Topic, channel: str
) -> None:
    """Leaving an unknown group, or one of which the channel is not a member, changes nothing and raises nothing."""
    added(memberships)
    mailboxes.open("c", 9)
    assert memberships.leave(topic, channel) == []
    assert members(memberships) == ["a"]


def test_a_membership_keeps_its_mailbox(memberships: Memberships, mailboxes: Mailboxes[Reader]) -> None:
    """A membership keeps its mailbox, and an unused mailbox is forgotten when its last membership ends."""
    for topic in (G, H):
        added(memberships, topic=topic)
    memberships.leave(G, "a")
    assert list(mailboxes.boxes) == ["a"]
    memberships.leave(H, "a")
    assert mailboxes.boxes == {}


# Joins that fail


def test_a_failed_join_of_the_first_member_unsubscribes(memberships: Memberships, mailboxes: Mailboxes[Reader]) -> None:
    """A failed join of the first member unsubscribes, and leaves neither a group nor a mailbox."""
    entry, frames = join(memberships)
    assert (frames, memberships.failed(entry)) == (SUBSCRIBE, UNSUBSCRIBE)
    assert (memberships.groups, mailboxes.boxes) == ({}, {})


def test_a_failed_renewal_leaves_the_membership(memberships: Memberships) -> None:
    """A failed renewal keeps the membership, because the channel was a member before."""
    added(memberships)
    renewal, _ = join(memberships)
    assert memberships.failed(renewal) == []
    assert members(memberships) == ["a"]


@pytest.mark.parametrize("fails_first", [True, False])
def test_of_two_concurrent_joins_one_may_fail(memberships: Memberships, fails_first: bool) -> None:
    """Of two concurrent joins of a channel, one success makes it a member, whichever ends first."""
    (one, _), (other, frames) = join(memberships), join(memberships)
    assert frames == []
    if fails_first:
        assert memberships.failed(one) == []
        memberships.completed(other)
    else:
        memberships.completed(one)
        assert memberships.failed(other) == []
    assert members(memberships) == ["a"]


def test_if_two_concurrent_joins_fail_nothing_is_left(memberships: Memberships) -> None:
    """If two concurrent joins of a channel both fail, the second failure unsubscribes and nothing is left."""
    (one, _), (other, _) = join(memberships), join(memberships)
    assert [memberships.failed(one), memberships.failed(other)] == [[], UNSUBSCRIBE]
    assert memberships.groups == {}


def test_a_failed_join_leaves_other_channels_alone(memberships: Memberships) -> None:
    """A failed join of one channel does not affect the join of another channel."""
    entry, _ = join(memberships, "a")
    join(memberships, "b")
    assert memberships.failed(entry) == []
    assert members(memberships) == ["b"]


@pytest.mark.parametrize("is_added_again", [False, True])
def test_a_failed_join_after_a_discard_undoes_nothing(memberships: Memberships, is_added_again: bool) -> None:
    """A failed join after a discard undoes nothing: the discard has removed it, and a later join is independent."""
    entry, _ = join(memberships)
    assert memberships.leave(G, "a") == UNSUBSCRIBE
    if is_added_again:
        assert added(memberships) == SUBSCRIBE
    assert memberships.failed(entry) == []
    assert members(memberships) == ["a"] * is_added_again


def test_a_completed_join_after_a_discard_adds_nothing(memberships: Memberships) -> None:
    """A join that completes after a discard adds no member, because the discard is the later operation."""
    entry, _ = join(memberships)
    memberships.leave(G, "a")
    memberships.completed(entry)
    assert memberships.groups == {}


def test_a_failed_join_after_clearing_undoes_nothing(memberships: Memberships) -> None:
    """A failed join after a flush undoes nothing, because the flush has ended all memberships."""
    entry, _ = join(memberships)
    assert memberships.clear() == UNSUBSCRIBE
    assert memberships.failed(entry) == []
    assert added(memberships) == SUBSCRIBE


# Subscriptions in force


def test_a_subscription_is_in_force_once_a_later_sync_is_answered(memberships: Memberships) -> None:
    """Only the answer to a sync that was sent after the subscription proves that the subscription is in force."""
    before = next_number()
    group = join(memberships)[0].group
    memberships.in_force(group, before)
    assert group.in_force_after
    memberships.in_force(group, next_number())
    assert not group.in_force_after


def test_a_join_beside_a_pending_one_has_to_wait_too(memberships: Memberships) -> None:
    """A join beside a pending one waits for the same subscription, and any later answer puts it in force for both."""
    first, second = join(memberships, "a")[0], join(memberships, "b")[0]
    assert second.group.in_force_after
    memberships.in_force(second.group, next_number())
    assert not first.group.in_force_after


def test_numbers_that_were_seen_before_the_subscription_was_in_force_say_nothing(memberships: Memberships) -> None:
    """Numbers from before the subscription was in force do not count: messages in between were not for this process."""
    group = join(memberships)[0].group
    group.runs.skip_to(OTHER, 5)
    memberships.in_force(group, next_number())
    assert group.runs.see(OTHER, 99, 0) == BEGINS


def test_numbers_count_once_the_subscription_is_in_force(memberships: Memberships) -> None:
    """Once the subscription is in force, numbers count, and a second answer does not reset them."""
    group = join(memberships)[0].group
    for _ in range(2):
        memberships.in_force(group, next_number())
        group.runs.skip_to(OTHER, 5)
    assert group.runs.see(OTHER, 7, 0) == 1


@pytest.mark.parametrize("is_in_force", [False, True])
def test_own_messages_older_than_the_subscription_are_taken_for_seen(
    memberships: Memberships, is_in_force: bool
) -> None:
    """Own messages up to `floor`, the last number assigned on the topic at the join, count as seen."""
    group = join(memberships, floor=7)[0].group
    if is_in_force:
        memberships.in_force(group, next_number())
    assert [group.runs.see(SENDER, number, 0) for number in (6, 7, 8)] == [REPEATED, REPEATED, 0]


# Numbers of a topic that was left


def rejoined(memberships: Memberships, topic: wire.Topic = G) -> Runs:
    """Let a channel join a group again and the subscription be in force; return the group's runs."""
    entry, _ = join(memberships, topic=topic)
    memberships.in_force(entry.group, next_number())
    return entry.group.runs


def left(memberships: Memberships, topic: wire.Topic = G, numbers: tuple[int, ...] = (5,), channel: str = "a") -> None:
    """Let a channel leave a group after messages with these numbers."""
    entry, _ = join(memberships, channel, topic)
    for number in numbers:
        entry.group.runs.skip_to(OTHER, number)
    memberships.leave(topic, channel)


@pytest.mark.parametrize("number, seen", [(4, REPEATED), (5, REPEATED), (6, BEGINS), (99, BEGINS)])
@pytest.mark.parametrize("is_in_force", [False, True])
def test_what_was_received_before_a_group_was_left_is_a_repetition(
    memberships: Memberships, number: int, seen: int, is_in_force: bool
) -> None:
    """After a new join, messages from before the leave are repetitions, and messages in between are not missing."""
    left(memberships)
    runs = rejoined(memberships) if is_in_force else join(memberships)[0].group.runs
    assert runs.see(OTHER, number, 0) == seen


@pytest.mark.parametrize("after, seen", [(REMEMBERED - 0.1, REPEATED), (REMEMBERED, BEGINS)])
def test_the_numbers_of_a_topic_are_forgotten_after_a_while(
    memberships: Memberships, clock: Clock, after: float, seen: int
) -> None:
    """The numbers of a topic that was left are forgotten after `REMEMBERED`, as nothing is sent again that late."""
    left(memberships)
    clock.now += after
    assert rejoined(memberships).see(OTHER, 5, 0) == seen


def test_the_time_counts_from_the_last_leave(memberships: Memberships, clock: Clock) -> None:
    """The time for which numbers are remembered counts from the last leave, so frequent joins and leaves renew it."""
    left(memberships)
    clock.now += REMEMBERED - 1
    left(memberships, numbers=())
    clock.now += REMEMBERED - 1
    assert rejoined(memberships).see(OTHER, 5, 0) == REPEATED


def test_each_topic_remembers_its_own_numbers(memberships: Memberships) -> None:
    """Each topic remembers its own numbers, because the same number on another topic is another message."""
    left(memberships)
    assert rejoined(memberships, H).see(OTHER, 5, 0) == BEGINS
    assert rejoined(memberships, G).see(OTHER, 5, 0) == REPEATED


def test_a_gap_after_the_new_subscription_is_in_force_is_a_loss(memberships: Memberships) -> None:
    """A gap behind the first message of the new subscription is a loss."""
    left(memberships)
    runs = rejoined(memberships)
    runs.skip_to(OTHER, 8)
    assert runs.see(OTHER, 10, 0) == 1


def test_only_some_topics_that_were_left_are_remembered(
    memberships: Memberships, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the topics that were left last are remembered, and a topic without messages takes no place among them."""
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    topics = [wire.group_topic(str(number)) for number in range(3)]
    for topic in topics:
        left(memberships, topic)
    left(memberships, wire.group_topic("empty"), numbers=())
    assert [rejoined(memberships, topic).see(OTHER, 5, 0) for topic in topics] == [BEGINS, REPEATED, REPEATED]


def test_topics_that_are_forgotten_take_no_memory(memberships: Memberships, clock: Clock) -> None:
    """Topics whose time is over take no memory, however few topics are left later."""
    for number in range(100):
        left(memberships, wire.group_topic(str(number)))
    clock.now += REMEMBERED
    left(memberships)
    assert list(memberships._left) == [G]


def test_a_membership_that_ends_by_itself_is_remembered_too(memberships: Memberships, clock: Clock) -> None:
    """The numbers of a membership that expires are remembered in the same way as of one that was left."""
    added(memberships, life=10.0)
    memberships.groups[G].runs.skip_to(OTHER, 5)
    clock.now += 10
    assert memberships.end_due(clock.now) == UNSUBSCRIBE
    assert rejoined(memberships).see(OTHER, 5, 0) == REPEATED


def test_clearing_forgets_the_numbers_of_topics_that_were_left(memberships: Memberships) -> None:
    """A flush forgets the numbers of topics that were left, together with their messages."""
    left(memberships)
    memberships.clear()
    assert rejoined(memberships).see(OTHER, 5, 0) == BEGINS


def test_own_messages_of_before_a_new_subscription_are_repetitions(memberships: Memberships) -> None:
    """Own messages before a new subscription are repetitions, also those sent between the two memberships."""
    entry, _ = join(memberships, floor=7)
    entry.group.runs.skip_to(SENDER, 9)
    memberships.leave(G, "a")
    runs = join(memberships, floor=12)[0].group.runs
    assert [runs.see(SENDER, number, 0) for number in (9, 10, 12, 13)] == [REPEATED, REPEATED, REPEATED, 0]


# The end of memberships


def test_a_membership_ends_when_its_time_is_over(memberships: Memberships, clock: Clock) -> None:
    """A membership ends at its deadline and not before, and leaves no entry in the heap."""
    added(memberships, life=10.0)
    assert memberships.end_due(clock.now + 9.9) == []
    assert memberships.ends.next == clock.now + 10
    assert memberships.end_due(clock.now + 10) == UNSUBSCRIBE
    assert (memberships.groups, memberships.ends.next) == ({}, inf)


def test_a_membership_without_a_life_stays(memberships: Memberships, clock: Clock) -> None:
    """A membership without an expiry stays and needs no entry in the heap."""
    added(memberships)
    assert memberships.end_due(1e12) == []
    assert len(memberships.ends) == 0


def test_each_membership_ends_in_its_own_time(memberships: Memberships, clock: Clock) -> None:
    """Each membership ends at its own deadline, and the group stays subscribed while it has a member."""
    for channel, life in (("a", 20.0), ("b", 30.0), ("c", 5.0)):
        added(memberships, channel, life=life)
    seen = []
    for now in (5, 20, 30):
        frames = memberships.end_due(clock.now + now)
        seen.append((frames, members(memberships)))
    assert seen == [([], ["a", "b"]), ([], ["b"]), (UNSUBSCRIBE, [])]


@pytest.mark.parametrize("life", [10.0, 30.0, 1.0, None])
def test_a_renewal_decides_when_a_membership_ends(memberships: Memberships, clock: Clock, life: float | None) -> None:
    """The life of a membership counts from the last addition, whether that makes it longer or shorter."""
    added(memberships, life=10.0)
    clock.now += 5
    added(memberships, life=life)
    end = clock.now + (life or 1e9)
    assert memberships.end_due(end - 0.1) == []
    assert memberships.end_due(end) == (UNSUBSCRIBE if life else [])


def test_reading_renews_a_membership(memberships: Memberships, mailboxes: Mailboxes[Reader], clock: Clock) -> None:
    """Reading renews a membership: its life counts from the last read."""
    added(memberships, life=10.0)
    clock.now += 9
    box = mailboxes.boxes["a"]
    box.append((inf, b"1", None))
    mailboxes.take(box)
    assert memberships.end_due(clock.now + 9.9) == []
    assert memberships.end_due(clock.now + 10) == UNSUBSCRIBE


def test_a_waiting_reader_keeps_a_membership(
    memberships: Memberships, mailboxes: Mailboxes[Reader], clock: Clock
) -> None:
    """A waiting reader keeps its membership in a quiet group, and the life counts from the end of the wait."""
    added(memberships, life=10.0)
    box, reader = mailboxes.boxes["a"], Reader()
    box.waiters.append(reader)
    clock.now += 100
    assert memberships.end_due(clock.now) == []
    clock.now += 5
    mailboxes.stop_waiting(box, reader)
    assert memberships.end_due(clock.now + 9.9) == []
    assert memberships.end_due(clock.now + 10) == UNSUBSCRIBE


def test_a_membership_that_was_left_does_not_end_a_later_one(memberships: Memberships, clock: Clock) -> None:
    """The heap entry of a membership that was left does not end a later membership of the same channel."""
    added(memberships, life=10.0)
    memberships.leave(G, "a")
    added(memberships, life=20.0)
    assert memberships.end_due(clock.now + 10) == []
    assert members(memberships) == ["a"]


def test_one_call_ends_a_bounded_number_of_memberships(memberships: Memberships, clock: Clock) -> None:
    """One call ends a bounded number of memberships, and the next deadline shows that more are due."""
    for number in range(25):
        added(memberships, str(number), life=10.0)
    now = clock.now + 10
    left = []
    for _ in range(3):
        memberships.end_due(now, 10)
        left.append((len(members(memberships)), memberships.ends.next <= now))
    assert left == [(15, True), (5, True), (0, False)]


def test_nothing_due_costs_nothing(memberships: Memberships, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing due, `end_due` visits none of 100,000 memberships."""
    for number in range(100_000):
        added(memberships, str(number), life=10.0)
    looked = []
    monkeypatch.setattr(memberships.ends, "_is_current", lambda at, entry: looked.append(entry))
    assert [memberships.end_due(clock.now + 9.9) for _ in range(10)] == [[]] * 10
    assert looked == []


def test_joining_and_leaving_very_often_leaves_a_small_heap(memberships: Memberships, clock: Clock) -> None:
    """Consumers that join and leave 100,000 times leave a small heap."""
    for number in range(100_000):
        clock.now += 0.001
        added(memberships, str(number), life=86_400.0)
        memberships.leave(G, str(number))
    assert len(memberships.ends) <= 64 + 1


def test_renewing_very_often_adds_nothing(memberships: Memberships, clock: Clock) -> None:
    """Frequent renewals add no entry to the heap, because one is enough until it is due."""
    for _ in range(1000):
        clock.now += 0.001
        added(memberships, life=86_400.0)
    assert len(memberships.ends) == 1


def test_clearing_unsubscribes_from_every_topic_once(memberships: Memberships, mailboxes: Mailboxes[Reader]) -> None:
    """Clearing sends one unsubscription for each topic, and no membership keeps a mailbox afterwards."""
    for channel, topic in (("a", G), ("b", G), ("a", H)):
        added(memberships, channel, topic, life=10.0)
    assert memberships.clear() == [wire.unsubscription(G), wire.unsubscription(H)]
    assert memberships.clear() == []
    assert {box.memberships for box in mailboxes.boxes.values()} == {0}
    assert memberships.ends.next == inf


# Any order of these operations


class Machine(RuleBasedStateMachine):
    """Any sequence of joins, completions, failures, discards, ends and flushes, compared with a model."""

    joins = Bundle("joins")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.mailboxes: Mailboxes[Reader] = Mailboxes(lambda cause, count: None, idle=1e9, clock=self.clock)
        self.memberships = Memberships(self.mailboxes, SENDER, self.clock)
        self.subscribed: set[wire.Topic] = set()
        self.members: dict[tuple[wire.Topic, str], dict[str, float]] = {}

    def apply(self, frames: list[bytes]) -> None:
        for frame in frames:
            topic = wire.Topic(wire.subscribed_topic(frame))
            if frame == wire.subscription(topic):
                assert topic not in self.subscribed, "subscribed twice"
                self.subscribed.add(topic)
            else:
                self.subscribed.remove(topic)

    @rule(
        target=joins,
        topic=st.sampled_from([G, H]),
        channel=st.sampled_from("abc"),
        life=st.sampled_from([None, 1.0, 5.0, 20.0]),
    )
    def join(
        self, topic: wire.Topic, channel: str, life: float | None
    ) -> tuple[module.Join, tuple[wire.Topic, str], dict[str, float]]:
        entry, frames = self.memberships.join(topic, channel, 9, life, 0)
        self.apply(frames)
        member = self.members.setdefault((topic, channel), {"joins": 0, "is_confirmed": False})
        member["joins"] += 1
        member["end"] = self.clock.now + (inf if life is None else life)
        return entry, (topic, channel), member

    @rule(join=consumes(joins))
    def complete(self, join: tuple[module.Join, tuple[wire.Topic, str], dict[str, float]]) -> None:
        entry, _, member = join
        self.memberships.completed(entry)
        member["joins"] -= 1
        member["is_confirmed"] = True

    @rule(join=consumes(joins))
    def fail(self, join: tuple[module.Join, tuple[wire.Topic, str], dict[str, float]]) -> None:
        entry, key, member = join
        self.apply(self.memberships.failed(entry))
        member["joins"] -= 1
        if not member["joins"] and not member["is_confirmed"] and self.members.get(key) is member:
            del self.members[key]

    @rule(topic=st.sampled_from([G, H]), channel=st.sampled_from("abc"))
    def leave(self, topic: wire.Topic, channel: str) -> None:
        self.apply(self.memberships.leave(topic, channel))
        self.members.pop((topic, channel), None)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 30.0]))
    def end(self, seconds: float) -> None:
        self.clock.now += seconds
        self.apply(self.memberships.end_due(self.clock.now))
        self.members = {key: member for key, member in self.members.items() if member["end"] > self.clock.now}

    @rule()
    def clear(self) -> None:
        self.apply(self.memberships.clear())
        self.members.clear()

    @invariant()
    def exactly_the_groups_with_members_are_subscribed(self) -> None:
        assert self.subscribed == set(self.memberships.groups) == {topic for topic, _ in self.members}

    @invariant()
    def the_members_are_those_of_the_model(self) -> None:
        found = {(topic, box.name) for topic, group in self.memberships.groups.items() for box in group.members}
        assert found == set(self.members)

    @invariant()
    def memberships_are_counted(self) -> None:
        assert self.memberships.count == len(self.members)
        for name, box in self.mailboxes.boxes.items():
            assert box.memberships == sum(channel == name for _, channel in self.members)


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40)
