"""One client process: it takes a frame, and returns frames to send and readers to wake."""

from collections.abc import Callable
from typing import Any

import pytest
from fakes import AnyName, Clock, Reader
from hypothesis import given, settings
from hypothesis import strategies as st

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.client import REMEMBERED_ASKS, Client
from channels_zmq.client.credit import GRACE
from channels_zmq.client.defaults import Defaults
from channels_zmq.client.gaps import HOLD
from channels_zmq.client.mailboxes import Delivery, Shared
from channels_zmq.client.memberships import Join
from channels_zmq.client.output import Reply, Upstream
from channels_zmq.client.requests import LOST, Request, next_number
from channels_zmq.client.resumption import BACK_WITHIN, ON_THE_WAY, READ_WITHIN, REPLAYED_WITHIN
from channels_zmq.names import OwnNames
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Question, Status

SECRET, FOREIGN = b"0123456789abcdef", b"fedcba9876543210"
INBOX = wire.claimable(SECRET)
SENDER, OTHER = b"s" * 8, b"o" * 8
INSTANCE = b"i" * 8
SESSION = 7
G, H = wire.group_topic("g"), wire.group_topic("h")
TTL = 60_000


@pytest.fixture
def client(clock: Clock) -> Client:
    """Return a client at one exchange, whose session has begun."""
    client = Client(SECRET, SENDER, clock=clock)
    client.receiver.own_names = AnyName()
    client.begin_session(client.attach(), SESSION, b"instance")
    return client


@pytest.fixture
def pair(client: Client) -> Client:
    """Return a client at two exchanges, whose sessions have begun; the second one has replayed nothing."""
    second = client.attach()
    client.resume(second, SESSION + 1)
    client.begin_session(second, SESSION + 1, b"instance")
    replay(client, exchange=1, session=SESSION + 1)
    return client


def feed(client: Client, frame: bytes, exchange: int = 0) -> None:
    """Feed a frame from an exchange, by default the first one, when no other input is pending."""
    for _ in client.feed(frame, client.attachments[exchange]) or ():
        pass
    client.gaps.all_is_read()


def lose(client: Client, exchange: int = 0) -> None:
    client.became_unreachable(client.attachments[exchange])
    client.fail_unanswered(client.attachments[exchange])


def begin(client: Client, number: int, request: Request[Reader]) -> Request[Reader]:
    """Begin a request, which is sent now."""
    client.begin_request(number, request)
    return request


def group_frame(
    number: int, payload: bytes = b"x", *, topic: bytes = G, sender: bytes = OTHER, flags: int = 0, ttl: int = TTL
) -> bytes:
    return wire.ordered(topic, sender, number, flags, ttl, payload)


def direct_frame(
    number: int, payload: bytes = b"x", *, channel: str = "a", sender: bytes = OTHER, flags: int = 0, ttl: int = TTL
) -> bytes:
    return wire.ordered(wire.direct_prefix(INBOX), sender, number, flags, ttl, wire.direct_body(channel, payload))


def ask(add: int = 1, *, channel: bytes = b"a", n: int = 3, group: bytes = b"g") -> bytes:
    return wire.ASK.encode(wire.Ask(INBOX, n, add, FOREIGN, group, channel))


def job(number: int = 1, payload: bytes = b"x", *, session: int = SESSION, channel: bytes = b"jobs") -> bytes:
    return wire.JOB.encode(wire.Job(INBOX, session, number, number, TTL, channel, payload))


def confirm(n: int, status: Status = Status.OK) -> bytes:
    return wire.CONFIRM.encode(wire.Confirm(INBOX, n, status, INSTANCE))


def synced(n: int) -> bytes:
    return wire.SYNCED.encode(wire.Synced(INBOX, n))


def add(client: Client, channel: str = "a", topic: wire.Topic = G, *, life: float | None = None) -> Join:
    """Add a member whose subscription is in force."""
    join = client.join(topic, channel, 9, life)
    client.join_synced(join, next_number())
    client.out.take()
    return join


def wait(client: Client, channel: str = "a", *, normal: bool = False) -> Reader:
    """Let a reader wait on an empty mailbox, and return it."""
    box, reader = client.mailboxes.open(channel, 9), Reader()
    assert client.mailboxes.take(box) is None
    box.waiters.append(reader)
    if normal:
        client.read_normal(box)
    return reader


def payloads(client: Client, channel: str = "a") -> list[bytes]:
    box = client.mailboxes.boxes.get(channel)
    waiting = [] if box is None else [payload for _, payload, _ in box.mail]
    return [one.payload if isinstance(one, Shared) else one for one in waiting]


def give_up(client: Client, clock: Clock) -> None:
    """Let the time pass after which missing messages are given up."""
    clock.now += HOLD
    client.keep(clock.now, 100)


def woken(client: Client) -> list[Reader]:
    waiters, client.out.wake = client.out.wake, []
    return waiters


def upstream(client: Client) -> list[bytes]:
    return [frame for frame, _ in client.out.take().upstream]


def by_exchange(client: Client) -> list[tuple[bytes, int | None]]:
    """Return the kinds of the frames upstream, each with the index of its exchange, or None for all exchanges."""
    indexes = {one: index for index, one in enumerate(client.attachments)}
    return [(frame[:1], None if to is None else indexes[to]) for frame, to in client.out.take().upstream]


def foreign_reply(client: Client, n: int = 3, *, exchange: int = 0) -> Reply:
    """Return the confirmation of another process's request, for the exchange by which it was asked."""
    confirm = wire.CONFIRM.encode(wire.Confirm(FOREIGN, n, Status.OK, wire.NO_INSTANCE))
    return Reply(confirm, to=client.attachments[exchange])


# Group messages


def test_a_group_message_reaches_every_member_once_and_wakes_its_readers(client: Client) -> None:
    """A group message reaches each member once, wakes their readers, and counts as one received message."""
    for channel in "ab":
        add(client, channel)
    reader = wait(client)
    feed(client, group_frame(1))
    assert [len(payloads(client, channel)) for channel in "ab"] == [1, 1]
    assert woken(client) == [reader]
    assert client.counters.received == 1


def test_a_group_message_without_members_here_is_ignored(client: Client) -> None:
    """A group message without members here, as after the last one has left, is ignored and does not count as lost."""
    feed(client, group_frame(1))
    assert (client.counters.received, client.counters.dropped) == (0, {})


def test_a_discarded_member_gets_nothing_sent_after_the_discard(client: Client) -> None:
    """A discarded member gets no message that is sent after the discard, and can still read earlier ones."""
    add(client)
    feed(client, group_frame(1, b"1"))
    client.leave(G, "a")
    feed(client, group_frame(2, b"2"))
    assert payloads(client) == [b"1"]
    assert upstream(client) == [wire.unsubscription(G)]


@pytest.mark.parametrize(
    "numbers, received, dropped, repeated",
    [
        ([1, 2, 3], 3, {}, 0),
        ([1, 2, 2, 1], 2, {}, 2),
        ([1, 4, 5], 3, {"missed": 2}, 0),
        ([4, 1], 1, {}, 1),
    ],
)
@pytest.mark.parametrize("frame", [group_frame, direct_frame])
def test_sequence_numbers_show_repeated_and_missed_messages(
    client: Client,
    clock: Clock,
    frame: Callable[..., bytes],
    numbers: list[int],
    received: int,
    dropped: dict[str, int],
    repeated: int,
) -> None:
    """For groups and direct messages alike, a repetition is ignored, and a gap is counted while delivery continues."""
    add(client)
    for number in numbers:
        feed(client, frame(number))
    give_up(client, clock)
    assert len(payloads(client)) == client.counters.received == received
    assert client.counters.dropped == dropped
    assert client.counters.repeated == repeated


def test_each_topic_has_numbers_of_its_own(client: Client) -> None:
    """Each topic has its own numbers, so that equal numbers on two topics are two messages."""
    for topic in (G, H):
        add(client, topic=topic)
        feed(client, group_frame(1, topic=topic))
    assert client.counters.received == 2


def test_a_membership_that_is_over_gets_no_message(client: Client, clock: Clock) -> None:
    """A membership ends at its deadline before a message is delivered, even if the housekeeping is late."""
    add(client, life=5.0)
    add(client, "b", H, life=5.0)
    add(client, "c", H)
    clock.now += 5
    feed(client, group_frame(1))
    feed(client, group_frame(1, topic=H))
    assert [payloads(client, channel) for channel in "abc"] == [[], [], [b"x"]]
    assert upstream(client) == [wire.unsubscription(G)]
    assert client.counters.received == 1


def test_own_messages_older_than_the_subscription_are_ignored(client: Client) -> None:
    """Own messages from before the join are ignored, and count neither as repeated nor as missed."""
    sent = [client.numbers.next(G)[0] for _ in range(3)]
    add(client)
    newer = client.numbers.next(G)[0]
    for number in (sent[1], sent[2], newer):
        feed(client, group_frame(number, b"%d" % number, sender=SENDER))
    assert payloads(client) == [b"%d" % newer]
    assert (client.counters.dropped, client.counters.repeated) == ({}, 0)


@pytest.mark.parametrize("is_synced", [False, True])
def test_own_messages_that_were_held_during_the_join_are_older_than_the_subscription(
    client: Client, is_synced: bool
) -> None:
    """Own messages that were held during the join count as older than the subscription despite their later numbers."""
    join = client.join(G, "a", 9, None)
    if is_synced:
        client.join_synced(join, next_number())
    client.receiver.older_than_subscription(G, 50)
    if not is_synced:
        client.join_synced(join, next_number())
    for number in (50, 51):
        feed(client, group_frame(number, b"%d" % number, sender=SENDER))
    assert payloads(client) == [b"51"]
    assert (client.counters.dropped, client.counters.repeated) == ({}, 0)


def test_a_held_message_of_a_group_that_was_left_changes_nothing(client: Client) -> None:
    """A held message of a group without members does not count as older than a later subscription."""
    client.receiver.older_than_subscription(G, 50)
    add(client)
    feed(client, group_frame(49, sender=SENDER))
    assert payloads(client) == [b"x"]


# Gaps


@pytest.mark.parametrize("frame", [group_frame, direct_frame])
def test_the_first_message_of_a_sender_waits_until_all_exchanges_are_read(
    pair: Client, frame: Callable[..., bytes]
) -> None:
    """With two exchanges a sender's first message waits until both are read: the other may have an earlier one."""
    add(pair)
    for number, exchange in ((7, 0), (6, 1)):
        pair.feed(frame(number, b"%d" % number), pair.attachments[exchange])
    assert payloads(pair) == []
    pair.gaps.all_is_read()
    assert payloads(pair) == [b"6", b"7"]
    assert (pair.counters.dropped, pair.counters.received) == ({}, 2)


@pytest.mark.parametrize("frame", [group_frame, direct_frame])
def test_a_message_behind_a_gap_waits_for_the_other_exchange(pair: Client, frame: Callable[..., bytes]) -> None:
    """A message behind a gap waits for the other exchange to close it; then all are delivered in order."""
    add(pair)
    for number, exchange in ((1, 0), (3, 1), (4, 1), (2, 0), (5, 1)):
        feed(pair, frame(number, b"%d" % number), exchange)
    assert payloads(pair) == [b"1", b"2", b"3", b"4", b"5"]
    assert (pair.counters.dropped, pair.counters.repeated, pair.gaps.frames) == ({}, 0, 0)
    assert pair.counters.received == 5


@pytest.mark.parametrize("frame", [group_frame, direct_frame])
def test_a_gap_that_stays_is_counted_after_a_moment(pair: Client, frame: Callable[..., bytes], clock: Clock) -> None:
    """After `HOLD` the housekeeping counts an open gap, delivers the messages behind it, and wakes their readers."""
    add(pair)
    feed(pair, frame(1, b"1"))
    reader = wait_behind(pair, b"1")
    feed(pair, frame(4, b"4"), 1)
    assert (pair.due, woken(pair), pair.counters.dropped) == (clock.now + HOLD, [], {})
    pair.keep(clock.now + HOLD - 0.01, 100)
    assert payloads(pair) == []
    clock.now += HOLD
    assert pair.keep(clock.now, 100) > clock.now
    assert (payloads(pair), woken(pair)) == ([b"4"], [reader])
    assert pair.counters.dropped == {"missed": 2}


def wait_behind(client: Client, payload: bytes) -> Reader:
    """Let a reader take a message and wait for the next one."""
    assert client.mailboxes.take(client.mailboxes.boxes["a"]) == payload
    return wait(client)


@pytest.mark.parametrize("frame", [group_frame, direct_frame])
def test_a_message_that_arrives_twice_is_delivered_once_wherever_it_is(
    pair: Client, frame: Callable[..., bytes]
) -> None:
    """A message that arrives twice is delivered once, whether delivered or held, and each repetition is counted."""
    add(pair)
    for number in (1, 1, 3, 3, 2, 2):
        feed(pair, frame(number, b"%d" % number))
    assert payloads(pair) == [b"1", b"2", b"3"]
    assert pair.counters.repeated == 3


@pytest.mark.parametrize("frame", [group_frame, direct_frame])
def test_a_message_behind_a_gap_waits_with_one_exchange_too(
    client: Client, frame: Callable[..., bytes], clock: Clock
) -> None:
    """A message behind a gap waits with one exchange too, whose connection may be cut before the client notices."""
    add(client)
    feed(client, frame(1, b"1"))
    clock.now += HOLD
    feed(client, frame(4, b"4"))
    lose_connection(client, clock, seconds=HOLD / 2)
    resume(client)
    clock.now += HOLD
    client.keep(clock.now, 100)
    assert payloads(client) == [b"1"]
    replay(client, again(frame(2, b"2"), 100), again(frame(3, b"3"), 100))
    assert payloads(client) == [b"1", b"2", b"3", b"4"]
    assert client.counters.dropped == {}


def test_with_one_exchange_the_first_message_of_a_sender_waits_for_nothing(client: Client) -> None:
    """With one exchange a sender's first message does not wait, so that group and direct messages keep their order."""
    add(client)
    client.begin_session(client.attachments[0], SESSION + 1, b"instance")
    for frame in (group_frame(7, b"1"), direct_frame(1, b"2")):
        client.feed(frame, client.attachments[0])
    assert payloads(client) == [b"1", b"2"]


def test_a_run_that_is_held_stays_so_when_one_exchange_is_left(pair: Client) -> None:
    """A held run stays held when the other exchange is detached, so that no later message overtakes the held one."""
    add(pair)
    pair.feed(group_frame(7, b"1"), pair.attachments[0])
    pair.detach(pair.attachments[1])
    pair.feed(group_frame(8, b"2"), pair.attachments[0])
    pair.gaps.all_is_read()
    assert payloads(pair) == [b"1", b"2"]


def test_a_gap_holds_up_no_other_run(pair: Client) -> None:
    """A gap does not delay another topic, another sender, or direct messages."""
    for topic in (G, H):
        add(pair, topic=topic)
    feed(pair, group_frame(1, b"1"))
    feed(pair, group_frame(3, b"late"))
    for frame in (
        group_frame(7, b"2", topic=H),
        group_frame(7, b"3", sender=FOREIGN[:8]),
        direct_frame(7, b"4"),
    ):
        feed(pair, frame)
    assert payloads(pair) == [b"1", b"2", b"3", b"4"]


def test_a_held_message_is_not_delivered_to_a_member_that_has_left(pair: Client, clock: Clock) -> None:
    """A held message is not delivered to a member that has left meanwhile."""
    add(pair)
    feed(pair, group_frame(1))
    feed(pair, group_frame(3))
    pair.leave(G, "a")
    pair.keep(clock.now + HOLD, 100)
    assert (payloads(pair), pair.counters.received, pair.gaps.frames) == ([b"x"], 1, 0)


def test_a_flush_drops_what_waits_behind_a_gap(pair: Client, clock: Clock) -> None:
    """A flush drops messages behind a gap, because they were sent before it."""
    feed(pair, direct_frame(1))
    feed(pair, direct_frame(3))
    pair.empty()
    pair.keep(clock.now + HOLD, 100)
    assert (payloads(pair), pair.counters.dropped) == ([], {})


def test_a_held_message_of_this_process_is_in_flight_until_it_is_delivered(pair: Client) -> None:
    """A held message of this process stays in flight until it is delivered, because it cannot be read before."""
    box = pair.mailboxes.open("a", 9)
    for _ in range(3):
        pair.receiver.sent_to_own(box)
    feed(pair, direct_frame(1, sender=SENDER))
    feed(pair, direct_frame(3, sender=SENDER))
    assert list(box.in_flight or ()) == [2, 3]
    feed(pair, direct_frame(2, sender=SENDER), 1)
    assert not box.in_flight


# Direct messages


def test_a_direct_message_reaches_its_mailbox_and_wakes_its_reader(client: Client, clock: Clock) -> None:
    """A direct message reaches its mailbox, wakes its reader, and sets the receiver's current time."""
    reader = wait(client)
    clock.now += 1
    feed(client, direct_frame(1, b"1"))
    assert payloads(client) == [b"1"]
    assert woken(client) == [reader]
    assert (client.counters.received, client.receiver.now) == (1, clock.now)


def test_a_direct_message_without_a_mailbox_gets_the_default_capacity(client: Client) -> None:
    """A direct message without a mailbox creates one with the default capacity of the layer that was made last."""
    client.use(Defaults(capacity=lambda channel: 2 if channel == "a" else 0))
    for number in range(3):
        feed(client, direct_frame(number))
    assert payloads(client) == [b"x", b"x"]
    assert client.counters.dropped == {"mailbox_full": 1}


def test_a_direct_message_keeps_the_capacity_of_its_mailbox(client: Client) -> None:
    """A direct message does not change the capacity that a reader gave to its mailbox."""
    wait(client)
    client.use(Defaults(capacity=lambda channel: 0))
    feed(client, direct_frame(1))
    assert payloads(client) == [b"x"]


def test_an_own_direct_message_is_in_flight_until_it_arrives(client: Client) -> None:
    """Own direct messages are in flight until they arrive; messages of other processes settle none of them."""
    box = client.mailboxes.open("a", 9)
    for _ in range(3):
        client.receiver.sent_to_own(box)
    assert (client.receiver.own_order, list(box.in_flight or ())) == (3, [1, 2, 3])
    feed(client, direct_frame(1, sender=OTHER))
    assert list(box.in_flight or ()) == [1, 2, 3]
    feed(client, direct_frame(1, sender=SENDER))
    assert list(box.in_flight or ()) == [2, 3]


def test_a_ghost_in_flight_is_settled_by_what_came_behind_it(client: Client) -> None:
    """When a later own message has arrived, a lost earlier one is settled with it."""
    box = client.mailboxes.open("a", 9)
    for _ in range(2):
        client.receiver.sent_to_own(box)
    feed(client, direct_frame(2, sender=SENDER))
    assert len(box.in_flight or ()) == 1
    client.mailboxes.passed(box, client.receiver.own_order)
    assert not box.in_flight


def test_a_message_of_this_process_is_delivered_or_refused_at_once(client: Client) -> None:
    """A message to this process itself is accepted or refused at once, and a refused one does not count as lost."""
    reader = wait(client)
    assert [client.receiver.deliver_own("a", TTL, b"%d" % number, 2) for number in range(3)] == [True, True, False]
    assert payloads(client) == [b"0", b"1"]
    assert woken(client) == [reader]
    assert (client.counters.received, client.counters.dropped) == (2, {})


def test_a_message_of_this_process_may_be_the_first_of_its_channel(client: Client) -> None:
    """The first message to a channel of this process creates the mailbox, with the capacity of the call."""
    assert [client.receiver.deliver_own("a", TTL, b"%d" % number, 1) for number in range(2)] == [True, False]
    assert payloads(client) == [b"0"]
    assert client.counters.received == 1


def test_expired_messages_do_not_refuse_one_of_this_process(client: Client, clock: Clock) -> None:
    """Expired messages do not count toward the capacity for a message of this process."""
    assert client.receiver.deliver_own("a", 1000, b"old", 1)
    clock.now += 1
    assert client.receiver.deliver_own("a", TTL, b"new", 1)
    assert payloads(client) == [b"new"]


# Joining


def test_a_join_subscribes_and_a_failed_join_unsubscribes(client: Client) -> None:
    """A join sends a subscription, and its failure sends an unsubscription."""
    join = client.join(G, "a", 9, None)
    assert join.group.in_force_after
    assert upstream(client) == [wire.subscription(G)]
    client.join_failed(join)
    assert upstream(client) == [wire.unsubscription(G)]


def test_in_the_process_of_the_exchange_a_subscription_is_in_force_at_once(client: Client) -> None:
    """In the process of the exchange a subscription is in force at once, without a sync."""
    client.is_exchange = True
    join = client.join(G, "a", 9, None)
    assert not join.group.in_force_after


@pytest.mark.parametrize("whose", ["own", "foreign"])
def test_a_join_that_is_complete_survives_the_failure_of_a_later_one(client: Client, whose: str) -> None:
    """A completed join, by this or another process, survives the failure of a later one for the same channel."""
    add(client, "b")
    if whose == "own":
        add(client)
    else:
        feed(client, ask())
    client.join_failed(client.join(G, "a", 9, None))
    assert [box.name for box in client.memberships.groups[G].members] == ["b", "a"]


def test_a_join_subscribes_at_every_exchange(pair: Client) -> None:
    """A join subscribes at every exchange, because each may carry messages of the group."""
    pair.join(G, "a", 9, None)
    assert pair.out.take().upstream == [Upstream(wire.subscription(G))]


def test_numbers_begin_anew_when_a_join_is_in_force(client: Client, clock: Clock) -> None:
    """After a new join, messages since the earlier membership are not missing, and received ones stay repetitions."""
    add(client)
    for number in (1, 2):
        feed(client, group_frame(number))
    client.leave(G, "a")
    add(client)
    for number in (2, 9, 11):
        feed(client, group_frame(number, b"%d" % number))
    give_up(client, clock)
    assert payloads(client)[2:] == [b"9", b"11"]
    assert (client.counters.repeated, client.counters.dropped) == (1, {"missed": 1})


def test_a_message_that_is_sent_again_after_a_channel_has_come_back_is_not_delivered_twice(pair: Client) -> None:
    """A topic's numbers outlive its last member for a while, so that a late copy is not delivered after a new join."""
    add(pair)
    feed(pair, group_frame(1, b"1"), 0)
    pair.leave(G, "a")
    add(pair)
    feed(pair, group_frame(1, b"1"), 1)
    assert payloads(pair) == [b"1"]
    assert pair.counters.repeated == 1


# Batches


def batch_frame(number: int, *bodies: bytes, flags: int = 0, prefix: bytes = G) -> bytes:
    return wire.ordered(prefix, OTHER, number, flags | wire.FLAG_BATCH, TTL, wire.batch(bodies))


def group_batch(number: int, *bodies: bytes, flags: int = 0) -> bytes:
    return batch_frame(number, *bodies, flags=flags)


def direct_batch(number: int, *bodies: bytes, flags: int = 0) -> bytes:
    direct = [wire.direct_body("a", body) for body in bodies]
    return batch_frame(number, *direct, flags=flags, prefix=wire.direct_prefix(INBOX))


KINDS = [pytest.param(group_batch, group_frame, id="group"), pytest.param(direct_batch, direct_frame, id="direct")]


@pytest.mark.parametrize("batch, frame", KINDS)
def test_the_messages_of_a_batch_are_delivered_one_by_one(
    client: Client, batch: Callable[..., bytes], frame: Callable[..., bytes]
) -> None:
    """The messages of a batch are delivered one at each step, so that a turn of reading may end between them."""
    add(client)
    steps = client.feed(batch(1, b"1", b"2", b"3", flags=wire.FLAG_FIRST), client.attachments[0])
    assert steps is not None
    assert payloads(client) == []
    for expected in ([b"1"], [b"1", b"2"], [b"1", b"2", b"3"]):
        next(steps)
        assert payloads(client) == expected
    assert next(steps, "over") == "over"
    feed(client, frame(4, b"4"))
    assert payloads(client) == [b"1", b"2", b"3", b"4"]
    assert not client.counters.dropped


@pytest.mark.parametrize("batch, frame", KINDS)
def test_a_batch_and_its_messages_are_repetitions_of_each_other(
    pair: Client, batch: Callable[..., bytes], frame: Callable[..., bytes]
) -> None:
    """Messages and batches that contain them are repetitions of each other, since paths may deliver either form."""
    add(pair)
    feed(pair, frame(1, b"1", flags=wire.FLAG_FIRST))
    feed(pair, frame(2, b"2"))
    feed(pair, batch(1, b"1", b"2", b"3", flags=wire.FLAG_FIRST), 1)
    feed(pair, frame(3, b"3"))
    assert payloads(pair) == [b"1", b"2", b"3"]
    assert pair.counters.repeated == 3


@pytest.mark.parametrize("batch, frame", KINDS)
def test_a_batch_behind_a_gap_waits_for_the_other_exchange(
    pair: Client, batch: Callable[..., bytes], frame: Callable[..., bytes]
) -> None:
    """A batch behind a gap waits for the other exchange, and is delivered in order behind the missing messages."""
    add(pair)
    feed(pair, frame(1, b"1", flags=wire.FLAG_FIRST))
    feed(pair, batch(4, b"4", b"5"))
    assert payloads(pair) == [b"1"]
    feed(pair, batch(2, b"2", b"3"), 1)
    assert payloads(pair) == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize("batch, frame", KINDS)
def test_each_missing_message_before_a_batch_is_counted(
    client: Client, clock: Clock, batch: Callable[..., bytes], frame: Callable[..., bytes]
) -> None:
    """A batch's number is that of its first message, so that each message missing before it is counted."""
    add(client)
    feed(client, frame(1, b"1", flags=wire.FLAG_FIRST))
    feed(client, batch(4, b"4", b"5"))
    feed(client, frame(7, b"7"))
    give_up(client, clock)
    assert payloads(client) == [b"1", b"4", b"5", b"7"]
    assert client.counters.dropped["missed"] == 3


@pytest.mark.parametrize("age, is_for_new", [(1000, True), (1001, False)])
def test_a_batch_that_is_sent_again_reaches_members_of_the_time_it_was_sent_first(
    client: Client, clock: Clock, age: int, is_for_new: bool
) -> None:
    """A batch that is sent again reaches only the members of the time when it was first sent."""
    add(client, "old")
    clock.now += 1
    add(client, "new")
    clock.now += 1
    feed(client, again(group_batch(1, b"1", b"2"), age))
    assert payloads(client, "old") == [b"1", b"2"]
    assert payloads(client, "new") == [b"1", b"2"] * is_for_new


def test_a_group_may_be_left_between_the_messages_of_a_batch(client: Client) -> None:
    """If the group is left between the messages of a batch, the remaining ones are delivered to no member."""
    add(client)
    steps = client.feed(group_batch(1, b"1", b"2", flags=wire.FLAG_FIRST), client.attachments[0])
    assert steps is not None
    next(steps)
    client.leave(G, "a")
    assert list(steps) == [None]
    assert payloads(client) == [b"1"]
    assert not client.counters.dropped


def test_a_batch_for_a_group_without_members_here_is_ignored(client: Client) -> None:
    """A batch for a group without members here is ignored and does not count as lost."""
    feed(client, group_batch(1, b"1", b"2"))
    assert not client.mailboxes.boxes
    assert not client.counters.dropped


@pytest.mark.parametrize("prefix", [G, wire.direct_prefix(INBOX)])
def test_a_batch_whose_lengths_do_not_add_up_is_malformed(client: Client, prefix: bytes) -> None:
    """A batch whose lengths do not add up is malformed, and none of its messages is delivered."""
    add(client)
    feed(client, wire.ordered(prefix, OTHER, 1, wire.FLAG_BATCH, TTL, wire.batch([b"a\0x"]) + b"y"))
    assert payloads(client) == []
    assert client.counters.dropped["malformed"] == 1


def test_a_malformed_message_in_a_batch_does_not_spoil_the_others(client: Client) -> None:
    """A malformed message in a batch is counted, and the others are delivered."""
    add(client)
    feed(client, batch_frame(1, b"a\x001", b"2", b"a\x003", flags=wire.FLAG_FIRST, prefix=wire.direct_prefix(INBOX)))
    assert payloads(client) == [b"1", b"3"]
    assert client.counters.dropped == {"malformed": 1}


def test_an_exchange_accepts_batches_for_a_session(client: Client) -> None:
    """An accepted batching is recorded for its session, because it may be read before the welcome takes effect."""
    attachment = client.attachments[0]
    assert attachment.batching_session != SESSION
    feed(client, wire.BATCHING_ACCEPTED.encode(wire.BatchingAccepted(INBOX, SESSION)))
    assert attachment.batching_session == SESSION


# Messages that are sent again


def again(frame: bytes, age: int, *, ttl: int = TTL, elsewhere: bool = False, acknowledged: bool = False) -> bytes:
    return wire.again(frame, ttl, age, elsewhere=elsewhere, acknowledged=acknowledged)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("age, is_for_new", [(1, True), (1000, True), (1001, False), (2000, False)])
def test_a_message_that_is_sent_again_reaches_members_of_the_time_it_was_sent_first(
    client: Client, clock: Clock, age: int, is_for_new: bool, elsewhere: bool
) -> None:
    """A message that is sent again does not reach members that joined after it was first sent."""
    add(client, "old")
    clock.now += 1
    add(client, "new")
    clock.now += 1
    feed(client, again(group_frame(1), age, elsewhere=elsewhere))
    assert payloads(client, "old") == [b"x"]
    assert payloads(client, "new") == [b"x"] * is_for_new


def test_a_message_that_is_sent_again_at_once_has_no_age_and_reaches_all(client: Client) -> None:
    """A message that is sent again within a millisecond has the age 0 and reaches all members."""
    for channel in ("a", "b"):
        add(client, channel)
    feed(client, again(group_frame(1), 0))
    assert [payloads(client, channel) for channel in ("a", "b")] == [[b"x"], [b"x"]]


def test_a_renewed_membership_is_as_old_as_its_first_addition(client: Client, clock: Clock) -> None:
    """A renewed membership is as old as its first addition, so that a renewal loses no message."""
    add(client)
    clock.now += 1
    add(client)
    feed(client, again(group_frame(1), 500))
    assert payloads(client) == [b"x"]


def test_a_channel_that_has_left_and_come_back_is_a_new_member(client: Client, clock: Clock) -> None:
    """A channel that left and joined again is a new member, and gets no message that was published before."""
    add(client)
    client.leave(G, "a")
    clock.now += 1
    add(client)
    feed(client, again(group_frame(1), 500))
    assert payloads(client) == []


def test_a_message_that_is_sent_again_is_counted_and_numbered_as_any_other(client: Client) -> None:
    """Messages that are sent again are counted and numbered as others: repetitions are dropped, new ones delivered."""
    add(client)
    feed(client, group_frame(1, b"1"))
    feed(client, again(group_frame(1, b"1"), 20))
    feed(client, again(group_frame(2, b"2"), 0))
    feed(client, again(group_frame(2, b"2"), 20, elsewhere=True))
    feed(client, group_frame(3, b"3"))
    assert payloads(client) == [b"1", b"2", b"3"]
    assert (client.counters.received, client.counters.repeated, client.counters.dropped) == (3, 2, {})


def test_a_message_that_is_sent_again_closes_a_gap(pair: Client) -> None:
    """A message that is sent again closes a gap, and the messages behind it follow at once."""
    add(pair)
    feed(pair, group_frame(1, b"1"))
    feed(pair, group_frame(3, b"3"), 1)
    feed(pair, again(group_frame(2, b"2"), 0), 1)
    assert payloads(pair) == [b"1", b"2", b"3"]
    assert pair.gaps.frames == 0


def test_a_message_that_is_sent_again_and_held_is_for_members_of_the_time_it_was_sent_first(
    pair: Client, clock: Clock
) -> None:
    """The age of a held message counts from its arrival: a member that joined after its publication does not get it."""
    add(pair, "old")
    feed(pair, group_frame(1, b"1"))
    clock.now += 1
    add(pair, "new")
    feed(pair, again(group_frame(3, b"3"), 50))
    clock.now += HOLD / 2
    feed(pair, group_frame(2, b"2"), 1)
    assert (payloads(pair, "old"), payloads(pair, "new")) == ([b"1", b"2", b"3"], [b"2"])


def test_a_message_that_is_sent_again_wakes_the_readers_of_its_members_only(client: Client, clock: Clock) -> None:
    """A message that is sent again wakes only the readers of members that get it."""
    add(client, "old")
    clock.now += 1
    add(client, "new")
    clock.now += 1
    old, _ = wait(client, "old"), wait(client, "new")
    feed(client, again(group_frame(1), 1500))
    assert woken(client) == [old]


def test_a_message_that_is_sent_again_without_its_age_is_malformed(client: Client) -> None:
    """A frame that is flagged as sent again but has no age is malformed."""
    add(client)
    feed(client, group_frame(1, b"", flags=wire.FLAG_AGAIN))
    assert (payloads(client), client.counters.dropped) == ([], {"malformed": 1})


def test_a_direct_message_that_is_sent_again_arrives_once(pair: Client) -> None:
    """A direct message that is sent again is delivered once, whatever its age."""
    feed(pair, direct_frame(1, b"1"), 0)
    feed(pair, again(direct_frame(1, b"1"), 500), 1)
    feed(pair, again(direct_frame(2, b"2"), 500), 1)
    assert payloads(pair) == [b"1", b"2"]
    assert pair.counters.repeated == 1


# Joins for other processes


def test_a_foreign_join_of_a_subscribed_group_is_confirmed_at_once(client: Client) -> None:
    """Another process's join of a subscribed group is confirmed at once, with the default capacity and group expiry."""
    client.use(Defaults(capacity=lambda channel: 5, group_expiry=20.0))
    add(client, "b")
    feed(client, ask())
    out = client.out.take()
    assert (out.upstream, out.replies) == ([], [foreign_reply(client)])
    (box,) = [box for box in client.memberships.groups[G].members if box.name == "a"]
    assert (box.capacity, client.memberships.groups[G].members[box].life) == (5, 20.0)


def test_a_foreign_join_of_a_new_group_is_confirmed_once_a_sync_is_answered(client: Client, clock: Clock) -> None:
    """Another process's join of a new group is confirmed once a sync is answered, which is repeated until then."""
    feed(client, ask())
    subscription, sync = upstream(client)
    number = wire.SYNC.decode(sync).n
    assert subscription == wire.subscription(G)
    assert [request.frame for _, request in client.requests.to_repeat(clock.now + 1)] == [sync]
    assert client.out.take().replies == []
    feed(client, synced(number))
    assert client.out.take().replies == [foreign_reply(client)]
    assert not client.memberships.groups[G].in_force_after
    assert len(client.requests) == 0
    feed(client, synced(number))
    assert not client.out.busy


def test_a_foreign_join_waits_for_all_exchanges_that_can_be_reached(pair: Client) -> None:
    """Another process's join waits for all reachable exchanges, and not for one that is lost."""
    feed(pair, ask())
    out = pair.out.take()
    assert [to for _, to in out.upstream] == [None, None]
    number = wire.SYNC.decode(out.upstream[1].frame).n
    feed(pair, synced(number), 1)
    assert not pair.out.busy
    lose(pair, 0)
    assert pair.out.take().replies == [foreign_reply(pair)]
    assert not pair.memberships.groups[G].in_force_after


def test_a_foreign_join_stays_when_an_own_one_fails(client: Client) -> None:
    """Another process's join of a channel survives the failure of an own join of the same channel."""
    own = client.join(G, "a", 9, None)
    feed(client, ask())
    client.join_failed(own)
    assert G in client.memberships.groups


def test_a_foreign_join_survives_the_failure_of_own_requests(client: Client) -> None:
    """The failure of own requests does not affect another process's join, for which no caller waits here."""
    feed(client, ask())
    number = wire.SYNC.decode(upstream(client)[1]).n
    client.fail_requests(ConnectionError())
    feed(client, synced(number))
    assert client.out.take().replies == [foreign_reply(client)]


@pytest.mark.parametrize("is_member", [True, False])
def test_a_foreign_discard_is_confirmed_at_once(client: Client, is_member: bool) -> None:
    """Another process's discard is confirmed at once, whether the channel was a member or not."""
    if is_member:
        add(client)
    feed(client, ask(add=0))
    out = client.out.take()
    assert out.upstream == [Upstream(wire.unsubscription(G))] * is_member
    assert out.replies == [foreign_reply(client)]


@pytest.mark.parametrize("add", [1, 0])
def test_an_overtaken_request_of_another_process_changes_nothing(client: Client, add: int) -> None:
    """An older request that a stalled connection delivers after the opposite one is confirmed and changes nothing."""
    feed(client, ask(1 - add, n=9))
    for frame in upstream(client):
        if frame[:1] == b"Y":
            feed(client, synced(wire.SYNC.decode(frame).n))
    before = G in client.memberships.groups
    client.out.take()
    feed(client, ask(add, n=3))
    assert (G in client.memberships.groups, before) == (not add, not add)
    assert client.out.take().replies == [foreign_reply(client)]
    feed(client, ask(add, n=10))
    assert (G in client.memberships.groups) == bool(add)


def test_a_request_of_another_process_is_answered_the_way_by_which_it_came(pair: Client) -> None:
    """A request is answered by the exchange that delivered it, the only one that its process may be connected to."""
    feed(pair, ask(add=0), 1)
    assert pair.out.take().replies == [foreign_reply(pair, exchange=1)]


def test_the_requests_of_a_few_thousand_pairs_are_remembered(client: Client) -> None:
    """The latest requests of `REMEMBERED_ASKS` pairs are remembered, and older ones are forgotten."""
    for n in range(REMEMBERED_ASKS + 1):
        feed(client, ask(0, n=n + 10, channel=b"%d" % n))
    assert len(client._last_asks) == REMEMBERED_ASKS
    for channel in ("0", "9"):
        client.mailboxes.open(channel, 9)
        feed(client, ask(1, n=3, channel=channel.encode()))
    assert [box.name for box in client.memberships.groups[G].members] == ["0"]


def test_a_normal_member_that_another_process_removed_is_not_repeated(client: Client) -> None:
    """A normal member that another process removed is not repeated in the next session, which would add it again."""
    client.normal_members.changed(wire.Member(INBOX, 1, 1, 0, 0, 9, b"g", b"jobs"))
    feed(client, wire.REMOVED.encode(wire.Removed(INBOX, b"g", b"jobs")))
    assert client.before_hello(client.attachments[0]) == []


# Requests


@pytest.mark.parametrize(
    "frame, answer", [(confirm, Status.OK), (lambda n: confirm(n, Status.FULL), Status.FULL), (synced, 0)]
)
def test_an_answer_wakes_its_caller_once(client: Client, frame: Callable[..., bytes], answer: int) -> None:
    """An answer of either kind wakes its caller once, and a second answer wakes nobody."""
    request = begin(client, 5, Request(b"frame", waiter=Reader()))
    feed(client, frame(5))
    assert (request.answer, woken(client)) == (answer, [request.waiter])
    feed(client, frame(5))
    assert woken(client) == []


def test_an_answer_to_a_request_without_a_waiter_wakes_nobody(client: Client) -> None:
    """An answer to a request without a waiter is recorded and wakes nobody."""
    request = begin(client, 5, Request(b"frame"))
    feed(client, synced(5))
    assert (request.answer, woken(client)) == (0, [])


def test_a_confirmation_that_no_caller_waits_for_is_for_the_transport(pair: Client) -> None:
    """A confirmation without a request is passed to the transport with its exchange, since it may answer an echo."""
    feed(pair, confirm(5), 1)
    assert pair.out.busy
    assert pair.out.take().session == [(pair.attachments[1], wire.Confirm(INBOX, 5, Status.OK, INSTANCE))]


def test_a_marker_that_is_answered_acknowledges_what_was_sent_before_it(pair: Client) -> None:
    """The answer to a marker acknowledges the frames before it, at the exchange that answers only."""
    for attachment in pair.attachments:
        attachment.window.append(group_frame(1))
        attachment.window.marked(5)
    feed(pair, confirm(5), 1)
    assert [len(attachment.window) for attachment in pair.attachments] == [1, 0]


def test_the_answer_to_a_request_acknowledges_nothing(client: Client) -> None:
    """The answer to a request acknowledges no frames, however high its number, because the number is not a marker's."""
    client.attachments[0].window.append(group_frame(1))
    client.attachments[0].window.marked(5)
    begin(client, 9, Request(b"frame", waiter=Reader()))
    feed(client, confirm(9))
    assert len(client.attachments[0].window) == 1
    assert client.out.session == []


def test_all_callers_learn_that_their_requests_have_failed(client: Client) -> None:
    """The failure of all requests gives each of them the error, and wakes each caller once."""
    requests = [Request(b"", waiter=Reader()) for _ in range(3)]
    for number, request in enumerate(requests):
        begin(client, number, request)
    error = ConnectionError()
    client.fail_requests(error)
    assert woken(client) == [request.waiter for request in requests]
    assert [request.answer for request in requests] == [error] * 3


# Requests to all exchanges


def sync_request(**changes: Any) -> Request[Reader]:
    return Request(b"Ysync", to_all=True, waiter=Reader(), **changes)


def test_a_request_to_all_wakes_its_caller_once_all_exchanges_have_answered(pair: Client) -> None:
    """A request to all exchanges wakes its caller after the last exchange's answer, with the highest status."""
    request = begin(pair, 5, Request(b"frame", to_all=True, waiter=Reader()))
    for status in (Status.FULL, Status.OK):
        feed(pair, confirm(5, status), 0)
    assert (request.answer, woken(pair)) == (None, [])
    feed(pair, confirm(5), 1)
    assert (request.answer, woken(pair)) == (Status.FULL, [request.waiter])
    feed(pair, confirm(5), 1)
    assert woken(pair) == []


@pytest.mark.parametrize("how", ["lost", "detached"])
def test_a_request_to_all_does_not_wait_for_an_exchange_that_is_gone(pair: Client, how: str) -> None:
    """A request to all does not wait for an exchange that is lost or detached."""
    request = begin(pair, 5, sync_request())
    feed(pair, synced(5), 1)
    if how == "lost":
        lose(pair, 0)
    else:
        pair.detach(pair.attachments[0])
    assert (request.answer, woken(pair)) == (0, [request.waiter])


def test_a_request_to_all_is_not_answered_while_no_exchange_has_done_it(pair: Client) -> None:
    """If all exchanges are lost before an answer, a request to all is sent again to the first one that returns."""
    request = begin(pair, 5, sync_request())
    for exchange in (0, 1):
        lose(pair, exchange)
    assert (request.answer, woken(pair)) == (None, [])
    pair.begin_session(pair.attachments[1], SESSION + 2, b"instance")
    assert by_exchange(pair) == [(b"Y", 1)]
    feed(pair, synced(5), 1)
    assert (request.answer, woken(pair)) == (0, [request.waiter])


def test_the_last_sync_that_was_answered_is_known(pair: Client) -> None:
    """The highest answered sync of each exchange is recorded, whoever asked."""
    for number in (7, 5):
        feed(pair, synced(number), 1)
    assert [one.synced for one in pair.attachments] == [0, 7]


def test_an_exchange_that_was_lost_is_not_asked_before_it_is_back(pair: Client) -> None:
    """A request does not wait for a lost exchange; one that begins after that exchange's next welcome does."""
    lose(pair, 0)
    request = begin(pair, 5, sync_request())
    feed(pair, synced(5), 1)
    assert (request.answer, woken(pair)) == (0, [request.waiter])
    pair.begin_session(pair.attachments[0], SESSION + 2, b"instance")
    later = begin(pair, 6, sync_request())
    feed(pair, synced(6), 1)
    assert later.answer is None
    feed(pair, synced(6), 0)
    assert later.answer == 0


@pytest.mark.parametrize("how", ["attached", "session begun"])
def test_a_request_to_all_waits_for_an_exchange_that_comes_meanwhile(pair: Client, how: str) -> None:
    """A request to all also waits for an exchange that appears meanwhile, by which a join could miss messages."""
    if how == "session begun":
        lose(pair, 1)
    request = begin(pair, 5, sync_request())
    if how == "attached":
        pair.attach()
    else:
        pair.begin_session(pair.attachments[1], SESSION + 2, b"instance")
    for exchange in range(len(pair.attachments)):
        assert request.answer is None
        feed(pair, synced(5), exchange)
    assert (request.answer, woken(pair)) == (0, [request.waiter])


def test_an_exchange_that_was_reached_gets_the_requests_for_all_by_the_subscribers_way(pair: Client) -> None:
    """A new session sends the pending requests for all by the subscriber's path; those for one have a home instead."""
    begin(pair, 5, Request(b"Mmember", to_all=True, waiter=Reader()))
    begin(pair, 6, sync_request())
    begin(pair, 7, Request(b"Qone", waiter=Reader()))
    pair.begin_session(pair.attachments[1], SESSION + 2, b"instance")
    out = pair.out.take()
    to = pair.attachments[1]
    assert (out.upstream, out.replies) == ([Upstream(b"Mmember", to), Upstream(b"Ysync", to)], [])


@pytest.mark.parametrize("answer", [synced(5), confirm(5)])
def test_an_exchange_that_has_answered_is_not_waited_for_again_in_the_same_session(pair: Client, answer: bytes) -> None:
    """An exchange that has answered is asked again in a new session only, as it may have forgotten its state."""
    request = begin(pair, 5, sync_request())
    feed(pair, answer, 0)
    feed(pair, answer, 1)
    assert request.answer == 0
    again = begin(pair, 6, sync_request())
    feed(pair, synced(6), 0)
    pair.begin_session(pair.attachments[0], SESSION + 2, b"instance")
    feed(pair, synced(6), 1)
    assert again.answer is None


@pytest.mark.parametrize("repeats, answer", [(False, LOST), (True, None)])
@pytest.mark.parametrize("how", ["unanswered", "detached"])
def test_a_request_that_its_exchange_may_never_answer_fails_unless_it_is_repeated(
    pair: Client, how: str, repeats: bool, answer: int | None
) -> None:
    """A request that is not repeated fails once its exchange may never answer, because its outcome is unknown.

    An exchange that is only lost may have answered, and its answer is read first. The end of another exchange does not
    affect the request.
    """
    request = begin(pair, 5, Request(b"Qone", repeats=repeats, waiter=Reader()))
    tell = pair.fail_unanswered if how == "unanswered" else pair.detach
    other, asked = pair.attachments
    pair.requests.sent_by(5, asked)
    tell(other)
    pair.became_unreachable(asked)
    assert (request.answer, woken(pair)) == (None, [])
    tell(asked)
    assert request.answer == answer
    assert woken(pair) == ([request.waiter] if answer is not None else [])


def test_a_request_that_was_not_sent_yet_does_not_fail(pair: Client) -> None:
    """A request that was not sent yet does not fail: it is held for whichever exchange can be reached next."""
    request = begin(pair, 5, Request(b"Qone", repeats=False, waiter=Reader()))
    for exchange in (0, 1):
        lose(pair, exchange)
    assert (request.answer, woken(pair)) == (None, [])


# Normal channels


def test_a_reader_of_a_normal_channel_opens_a_window_and_gets_a_job(client: Client) -> None:
    """A reader of a normal channel opens a window, and a job wakes it and is counted as received."""
    reader = wait(client, "jobs", normal=True)
    (ready,) = upstream(client)
    assert wire.READY.decode(ready).limit == 5
    feed(client, job())
    assert woken(client) == [reader]
    assert client.mailboxes.take(client.mailboxes.boxes["jobs"]) == b"x"
    client.read_normal(client.mailboxes.boxes["jobs"])
    assert client.counters.received == 1


def test_a_job_that_nobody_waits_for_goes_back(client: Client) -> None:
    """A job for a channel that was forgotten here goes back to the exchange."""
    feed(client, job(4))
    (frame,) = upstream(client)
    assert wire.BACK.decode(frame).number == 4


def test_a_job_of_an_earlier_session_is_not_counted(client: Client) -> None:
    """A job of an earlier session is dropped uncounted, because the exchange hands it over again."""
    wait(client, "jobs", normal=True)
    feed(client, job(session=SESSION - 1))
    assert (payloads(client, "jobs"), client.counters.received) == ([], 0)


def test_a_job_of_a_session_that_was_left_is_ignored(client: Client) -> None:
    """A job of a session that was left is ignored; the exchange, knowing it as not received, hands it over again."""
    wait(client, "jobs", normal=True)
    (report,) = client.before_hello(client.attachments[0])
    assert wire.RECEIVED.decode(report).received == 0
    feed(client, job())
    assert (payloads(client, "jobs"), client.counters.received, woken(client)) == ([], 0, [])
    client.begin_session(client.attachments[0], SESSION + 1, b"instance")
    feed(client, job(session=SESSION + 1))
    assert payloads(client, "jobs") == [b"x"]


def test_a_gap_between_jobs_is_counted_at_once(client: Client, clock: Clock) -> None:
    """A gap between jobs is counted at once, and a job sets the time of the last message."""
    wait(client, "jobs", normal=True)
    clock.now += 1
    feed(client, job(3))
    assert client.counters.dropped == {"lost_delivery": 2}
    assert (payloads(client, "jobs"), client.receiver.now) == ([b"x"], clock.now)


def test_lost_jobs_are_counted(client: Client) -> None:
    """A total above the received jobs makes the client ask, and the count of a channel shows how many are lost."""
    wait(client, "jobs", normal=True)
    upstream(client)
    feed(client, wire.HANDED_TOTAL.encode(wire.HandedTotal(INBOX, SESSION, 2)))
    (asked,) = upstream(client)
    assert wire.READY.decode(asked).ask == Question.HANDED
    feed(client, wire.HANDED.encode(wire.Handed(INBOX, SESSION, 2, b"jobs")))
    assert client.counters.dropped == {"lost_delivery": 2}
    assert len(upstream(client)) == 1


def test_a_query_is_answered_upstream(client: Client) -> None:
    """A query is answered upstream, with its own number."""
    wait(client, "jobs", normal=True)
    upstream(client)
    feed(client, wire.QUERY.encode(wire.Query(INBOX, 9, SESSION, b"jobs")))
    (answer,) = upstream(client)
    assert wire.READY.decode(answer).answers == 9


# Jobs of several exchanges


def job_of(client: Client, exchange: int, number: int, payload: bytes = b"x") -> bytes:
    """Return the next job that an exchange hands over on a channel; its ordinal is 1."""
    session = client.attachments[exchange].credit.session
    return wire.JOB.encode(wire.Job(INBOX, session, 1, number, TTL, b"jobs", payload))


def test_a_reader_opens_a_window_at_every_exchange(pair: Client) -> None:
    """A reader opens a window at each exchange, in that exchange's session, and takes whichever job is first."""
    wait(pair, "jobs", normal=True)
    sent = pair.out.take().upstream
    assert [to for _, to in sent] == pair.attachments
    assert [wire.READY.decode(frame).session for frame, _ in sent] == [SESSION, SESSION + 1]
    assert pair.mailboxes.boxes["jobs"].windows == 2


def test_a_reader_may_be_handed_a_job_by_each_exchange(pair: Client) -> None:
    """Each exchange may hand a job to one reader: the first wakes it, and the other waits for its next call."""
    reader = wait(pair, "jobs", normal=True)
    for exchange, number in ((0, 3), (1, 4)):
        feed(pair, job_of(pair, exchange, number, b"%d" % number), exchange)
    assert woken(pair) == [reader]
    box = pair.mailboxes.boxes["jobs"]
    assert [mail[2] for mail in box.mail] == [
        Delivery(pair.attachments[0].credit, SESSION, 1, 3),
        Delivery(pair.attachments[1].credit, SESSION + 1, 1, 4),
    ]
    assert [pair.mailboxes.take(box) for _ in range(3)] == [b"3", b"4", None]
    assert pair.counters.received == 2


def test_each_job_goes_back_to_the_exchange_that_has_handed_it_over(pair: Client, clock: Clock) -> None:
    """Each job goes back to its exchange, behind the frame that closes the window there, even with equal numbers."""
    reader = wait(pair, "jobs", normal=True)
    for exchange in (0, 1):
        feed(pair, job_of(pair, exchange, 7, b"%d" % exchange), exchange)
    pair.stop_waiting(pair.mailboxes.boxes["jobs"], reader)
    pair.out.take()
    clock.now += 0.1
    pair.keep(clock.now, 100)
    sent = pair.out.take().upstream
    assert [(frame[:1], to and pair.attachments.index(to)) for frame, to in sent] == [
        (b"R", 0),
        (b"B", 0),
        (b"T", 0),
        (b"R", 1),
        (b"B", 1),
        (b"T", 1),
    ]
    back = [wire.BACK.decode(frame) for frame, _ in sent if frame[:1] == b"B"]
    assert [(one.number, one.payload) for one in back] == [(7, b"0"), (7, b"1")]
    assert payloads(pair, "jobs") == []


def test_every_window_closes_after_the_last_reader_has_given_up(pair: Client, clock: Clock) -> None:
    """After the last reader gave up, however long it had waited, every window closes when the grace time is over."""
    reader = wait(pair, "jobs", normal=True)
    clock.now += 1
    pair.keep(clock.now, 100)
    pair.out.take()
    clock.now += 10
    pair.stop_waiting(pair.mailboxes.boxes["jobs"], reader)
    clock.now += 0.1
    pair.keep(clock.now, 100)
    assert [one for one in by_exchange(pair) if one[0] == b"R"] == [(b"R", 0), (b"R", 1)]


def test_an_exchange_that_is_about_to_end_gets_its_jobs_back_and_no_other(pair: Client) -> None:
    """An exchange that is about to end gets back its own jobs only; those of the other exchange can still be read."""
    wait(pair, "jobs", normal=True)
    for exchange in (0, 1):
        feed(pair, job_of(pair, exchange, 7, b"%d" % exchange), exchange)
    pair.out.take()
    pair.stop_reading(pair.attachments[0])
    assert by_exchange(pair) == [(b"R", 0), (b"B", 0), (b"T", 0)]
    assert payloads(pair, "jobs") == [b"1"]


def test_a_question_of_an_exchange_is_answered_by_what_it_has_handed_over(pair: Client) -> None:
    """A query is answered to its exchange only, by the jobs that this exchange handed over."""
    wait(pair, "jobs", normal=True)
    feed(pair, job_of(pair, 0, 7), 0)
    pair.out.take()
    feed(pair, wire.QUERY.encode(wire.Query(INBOX, 9, SESSION + 1, b"jobs")), 1)
    ((frame, to),) = pair.out.take().upstream
    answer = wire.READY.decode(frame)
    assert (to, answer.answers, answer.settled) == (pair.attachments[1], 9, 0)


def test_a_lost_exchange_is_sent_nothing_about_jobs_and_the_others_go_on(pair: Client) -> None:
    """A lost exchange gets no frame about jobs, its jobs can still be read, and the other exchange is served."""
    wait(pair, "jobs", normal=True)
    feed(pair, job_of(pair, 0, 7, b"0"), 0)
    pair.out.take()
    lose(pair, 0)
    box = pair.mailboxes.boxes["jobs"]
    assert pair.mailboxes.take(box) == b"0"
    for _ in range(5):
        wait(pair, "jobs", normal=True)
    assert {to for _, to in by_exchange(pair)} == {1}


def test_a_session_that_begins_opens_windows_at_its_exchange_alone(pair: Client) -> None:
    """A new session opens windows at its exchange only; jobs of its former session are reported before the hello."""
    wait(pair, "jobs", normal=True)
    feed(pair, job_of(pair, 1, 7), 1)
    pair.mailboxes.take(pair.mailboxes.boxes["jobs"])
    wait(pair, "more", normal=True)
    pair.out.take()
    lose(pair, 1)
    received = [wire.RECEIVED.decode(frame) for frame in pair.before_hello(pair.attachments[1])]
    assert [(one.session, one.channel, one.received) for one in received] == [
        (SESSION + 1, b"jobs", 1),
        (SESSION + 1, b"more", 0),
    ]
    pair.begin_session(pair.attachments[1], SESSION + 2, b"instance")
    assert by_exchange(pair) == [(b"R", 1)]


def test_an_exchange_that_is_detached_leaves_no_window(pair: Client) -> None:
    """A detached exchange leaves no window; the channel stays normal while another exchange has one."""
    wait(pair, "jobs", normal=True)
    pair.out.take()
    box, gone = pair.mailboxes.boxes["jobs"], pair.attachments[0]
    pair.detach(gone)
    assert (box.windows, box.is_normal, gone in pair.attachments) == (1, True, False)
    for _ in range(5):
        wait(pair, "jobs", normal=True)
    assert {to for _, to in by_exchange(pair)} == {0}
    pair.detach(pair.attachments[0])
    assert (box.windows, box.is_normal, pair.attachments) == (0, False, [])


# Messages that an exchange returns


def returned(ordinal: int, number: int = 5, *, ttl: int = 1500, session: int = SESSION, payload: bytes = b"x") -> bytes:
    return wire.RETURNED.encode(wire.Returned(INBOX, session, ordinal, number, ttl, b"jobs", payload))


def took_over(client: Client) -> tuple[list[tuple[wire.Back, Reply]], list[tuple[wire.Taken, Attachment | None]]]:
    """Return the messages that are sent elsewhere, and the acknowledged ordinals with their exchanges."""
    out = client.out.take()
    back = [(wire.BACK.decode(one.frame), one) for one in out.replies]
    taken = [(wire.TAKEN.decode(frame), to) for frame, to in out.upstream]
    return back, taken


def test_a_returned_message_is_sent_by_its_next_home_and_acknowledged(pair: Client) -> None:
    """A returned message is sent to its next home with its number and remaining time, and acknowledged."""
    feed(pair, returned(1, 9, session=SESSION + 1), 1)
    ((back, reply),), ((taken, to),) = took_over(pair)
    assert back == wire.Back(INBOX, 9, 1500, b"jobs", b"x")
    assert (reply.key, reply.to, reply.ttl) == (b"jobs", None, 1.5)
    assert (taken, to) == (wire.Taken(INBOX, SESSION + 1, 1), pair.attachments[1])


def test_a_message_that_is_returned_again_is_acknowledged_again_and_not_sent_twice(client: Client) -> None:
    """A message that is returned again is acknowledged again, as the first answer may be lost, but sent on once."""
    for _ in range(2):
        feed(client, returned(1))
    back, taken = took_over(client)
    assert len(back) == 1
    assert [one.ordinal for one, _ in taken] == [1, 1]


def test_returned_messages_that_are_missing_are_counted(client: Client) -> None:
    """A gap between returned messages counts as lost, because the exchange sends each once and in order."""
    for ordinal, number in ((1, 5), (4, 8), (4, 8), (5, 9)):
        feed(client, returned(ordinal, number))
    back, taken = took_over(client)
    assert [one.number for one, _ in back] == [5, 8, 9]
    assert [one.ordinal for one, _ in taken] == [1, 4, 4, 5]
    assert client.counters.dropped == {"lost_delivery": 2}


@pytest.mark.parametrize("session", [SESSION - 1, SESSION + 1])
def test_a_message_that_was_returned_in_another_session_is_not_taken_over(client: Client, session: int) -> None:
    """A returned message of another session is not taken over: its exchange has counted it as lost."""
    feed(client, returned(1, session=session, payload=b"old"))
    assert took_over(client) == ([], [])
    feed(client, returned(1, payload=b"new"))
    ((back, _),), _ = took_over(client)
    assert (back.payload, client.counters.dropped) == (b"new", {})


def test_a_message_that_was_returned_in_a_session_that_was_left_is_not_taken_over(client: Client) -> None:
    """A returned message of a session that was left is not taken over, because it cannot be acknowledged."""
    client.before_hello(client.attachments[0])
    feed(client, returned(1))
    assert took_over(client) == ([], [])


def test_each_exchange_and_each_session_counts_what_it_returns(pair: Client) -> None:
    """Returned messages are counted for each exchange and session, from 1 on."""
    feed(pair, returned(1), 0)
    feed(pair, returned(1, session=SESSION + 1), 1)
    pair.begin_session(pair.attachments[0], SESSION + 2, b"instance")
    feed(pair, returned(1, session=SESSION + 2), 0)
    back, taken = took_over(pair)
    assert len(back) == 3
    assert [(one.session, one.ordinal) for one, _ in taken] == [(SESSION, 1), (SESSION + 1, 1), (SESSION + 2, 1)]


# Readers


def test_a_reader_that_gives_up_after_it_was_woken_passes_its_turn_on(client: Client) -> None:
    """If a reader gives up after it was woken, the next reader is woken for the message."""
    first, second = wait(client), wait(client)
    feed(client, direct_frame(1))
    assert woken(client) == [first]
    client.stop_waiting(client.mailboxes.boxes["a"], first)
    assert woken(client) == [second]


def test_a_normal_channel_whose_reader_gave_up_hands_its_jobs_back(client: Client, clock: Clock) -> None:
    """When the reader of a normal channel has given up, the housekeeping sends its jobs back after a grace time."""
    reader = wait(client, "jobs", normal=True)
    feed(client, job())
    client.stop_waiting(client.mailboxes.boxes["jobs"], reader)
    upstream(client)
    clock.now += GRACE
    client.keep(clock.now, 100)
    assert [frame[:1] for frame in upstream(client)] == [b"R", b"B", b"T"]


# Sessions


def test_a_welcome_is_for_the_transport(client: Client) -> None:
    """A welcome is passed to the transport, which then tells the client to begin the session."""
    welcome = wire.Welcome(INBOX, wire.VERSION, wire.State.SERVING, INSTANCE, SESSION, 1)
    feed(client, wire.WELCOME.encode(welcome))
    assert client.out.busy
    assert client.out.take().session == [(client.attachments[0], welcome)]


def test_each_session_has_a_number_of_its_own(client: Client) -> None:
    """Each new session of a client has a higher number than all its former sessions."""
    assert [client.new_session() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("is_lost, peers", [(False, 9), (True, 5)])
def test_a_hello_counts_the_clients_that_any_exchange_in_reach_has_reported(
    pair: Client, is_lost: bool, peers: int
) -> None:
    """A hello contains the highest number of clients that any reachable exchange, or the recipient, has reported."""
    pair.attach()
    for exchange, clients in zip(pair.attachments, (5, 9, 0), strict=True):
        exchange.clients = clients
    if is_lost:
        lose(pair, 1)
    assert [pair.peers(one) for one in pair.attachments] == [peers, 9, peers]


def test_a_new_session_repeats_what_the_exchange_cannot_know(client: Client) -> None:
    """A session repeats normal members and arrived jobs before its hello, requests and windows after the welcome."""
    for _ in range(2):
        wait(client, "jobs", normal=True)
    feed(client, job())
    client.normal_members.changed(wire.Member(INBOX, 1, 1, 0, 0, 9, b"g", b"jobs"))
    begin(client, 5, Request(b"sync", to_all=True, waiter=Reader()))
    upstream(client)
    assert [frame[:1] for frame in client.before_hello(client.attachments[0])] == [b"M", b"D"]
    client.begin_session(client.attachments[0], SESSION + 1, b"instance")
    assert [frame[:1] for frame in upstream(client)] == [b"s", b"R"]


@pytest.mark.parametrize("add", [1, 0])
@pytest.mark.parametrize("answered", ["before the hello", "before the welcome", "later"])
def test_an_exchange_that_comes_meanwhile_learns_of_a_change_of_normal_members(
    pair: Client, add: int, answered: str
) -> None:
    """An exchange whose session begins meanwhile gets a change of normal members, whenever the other one answers."""
    member = wire.Member(INBOX, 5, add, 0, 0, 9, b"g", b"jobs")
    told = []
    lose(pair, 0)
    if not add:
        pair.normal_members.changed(member)
    begin(pair, 5, Request(wire.MEMBER.encode(member), to_all=True, waiter=Reader(), member=member if add else None))
    if answered == "before the hello":
        feed(pair, confirm(5), 1)
    told += pair.before_hello(pair.attachments[0])
    if answered == "before the welcome":
        feed(pair, confirm(5), 1)
    pair.begin_session(pair.attachments[0], SESSION + 2, b"instance")
    told += upstream(pair)
    if answered == "later":
        feed(pair, confirm(5), 1)
        feed(pair, confirm(5), 0)
    members = [wire.MEMBER.decode(frame) for frame in told if frame[:1] == b"M"]
    assert {one.add for one in members} == {add}
    assert [wire.MEMBER.decode(frame).add for frame in pair.before_hello(pair.attachments[0])] == [add]


def test_a_refused_addition_of_a_normal_member_is_not_repeated(client: Client) -> None:
    """A refused addition of a normal member is not repeated, because the exchange has no room for it."""
    member = wire.Member(INBOX, 5, 1, 0, 0, 9, b"g", b"jobs")
    begin(client, 5, Request(wire.MEMBER.encode(member), to_all=True, waiter=Reader(), member=member))
    feed(client, confirm(5, Status.REFUSED))
    assert client.before_hello(client.attachments[0]) == []


# Emptying


def test_an_exchange_that_is_flushed_empties_its_clients(client: Client) -> None:
    """A flush drops messages, memberships and notes but no waiting reader, and its answer carries the same number."""
    add(client)
    reader = wait(client, "b")
    for channel in ("a", "c"):
        feed(client, direct_frame(1, channel=channel, flags=wire.FLAG_FIRST))
    client.normal_members.changed(wire.Member(INBOX, 1, 1, 0, 0, 9, b"g", b"jobs"))
    feed(client, wire.EMPTY.encode(wire.Empty(INBOX, 6)))
    out = client.out.take()
    assert out.emptied
    assert out.upstream == [Upstream(wire.unsubscription(G))]
    assert out.replies == [Reply(wire.FLUSHED.encode(wire.Flushed(INBOX, 6)), to=client.attachments[0])]
    assert list(client.mailboxes.boxes) == ["b"]
    assert client.mailboxes.boxes["b"].waiters == [reader]
    assert client.before_hello(client.attachments[0]) == []


def test_a_request_to_drop_everything_that_comes_again_is_only_answered(client: Client) -> None:
    """A repeated request to flush, as after a lost answer, is answered and drops none of the newer messages."""
    feed(client, wire.EMPTY.encode(wire.Empty(INBOX, 6)))
    client.out.take()
    add(client)
    feed(client, direct_frame(1, flags=wire.FLAG_FIRST))
    feed(client, wire.EMPTY.encode(wire.Empty(INBOX, 6)))
    out = client.out.take()
    assert (out.emptied, len(out.replies), len(client.mailboxes.boxes["a"].mail)) == (False, 1, 1)
    feed(client, wire.EMPTY.encode(wire.Empty(INBOX, 7)))
    assert client.out.take().emptied


def test_messages_that_were_dropped_by_a_flush_are_not_missed(client: Client) -> None:
    """Messages that the exchange drops during a flush do not count as missed."""
    feed(client, direct_frame(1))
    client.empty()
    feed(client, direct_frame(9))
    assert client.counters.dropped == {}
    assert payloads(client) == [b"x"]


def test_emptying_sends_each_unsubscription_once(client: Client) -> None:
    """Emptying unsubscribes once from each group, and a second flush finds none."""
    add(client)
    client.empty()
    client.empty()
    assert upstream(client) == [wire.unsubscription(G)]


# Malformed frames

GROUP, DIRECT = group_frame(1), direct_frame(1)
MALFORMED = {
    "empty": b"",
    "unknown kind": b"Z" + INBOX,
    "group without a NUL": b"Gg",
    "group without a name": b"G\0" + bytes(40),
    "group without a head": GROUP[: len(G) + 5],
    "inbox without a sub-kind": b"P" + INBOX + b"\0",
    "inbox alone": b"P",
    "unknown sub-kind": wire.inbox_topic(INBOX) + b"?",
    "direct without a head": DIRECT[:30],
    "direct without a channel": wire.ordered(wire.direct_prefix(INBOX), OTHER, 1, 0, TTL, b"\0x"),
    "direct without a NUL": wire.ordered(wire.direct_prefix(INBOX), OTHER, 1, 0, TTL, b"a"),
    "direct to a channel that is not UTF-8": wire.ordered(wire.direct_prefix(INBOX), OTHER, 1, 0, TTL, b"\xff\0x"),
    "ask for a channel that is not UTF-8": ask(channel=b"\xff"),
    "ask for a group that is not UTF-8": ask(group=b"\xff"),
    "ask to leave that is not UTF-8": ask(add=0, channel=b"\xff"),
    "job of a channel that is not UTF-8": job(channel=b"\xff"),
    "job without a channel": wire.JOB.encode(wire.Job(INBOX, SESSION, 1, 1, TTL, b"", b"")),
    "count of a channel that is not UTF-8": wire.HANDED.encode(wire.Handed(INBOX, SESSION, 1, b"\xff")),
    "query of a channel that is not UTF-8": wire.QUERY.encode(wire.Query(INBOX, 1, SESSION, b"\xff")),
    "confirmation that is too long": confirm(1) + b"x",
    "frame of a client": wire.HELLO.encode(wire.Hello(INBOX, 1, 1, 1)),
} | {
    f"short frame of sub-kind {chr(layout.kind)}": wire.inbox_topic(INBOX) + bytes([layout.kind])
    for layout in wire.INBOX_LAYOUTS
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_frame_is_counted_and_changes_nothing(client: Client, what: str) -> None:
    """A malformed frame is counted once and neither raises, changes state, nor sends a frame."""
    add(client)
    feed(client, MALFORMED[what])
    assert client.counters.dropped == {"malformed": 1}
    assert client.counters.received == 0
    assert not client.out.busy
    assert list(client.mailboxes.boxes) == ["a"]
    assert list(client.memberships.groups) == [G]
    feed(client, group_frame(1))
    assert payloads(client) == [b"x"]


HEADS = [b"", b"G", b"Gg\0", b"P", wire.inbox_topic(INBOX)] + [
    wire.inbox_topic(INBOX) + bytes([kind]) for kind in (wire.DIRECT, *(layout.kind for layout in wire.INBOX_LAYOUTS))
]


@settings(max_examples=300)
@given(frames=st.lists(st.builds(bytes.__add__, st.sampled_from(HEADS), st.binary(max_size=60)), max_size=5))
def test_no_bytes_make_a_client_fail(frames: list[bytes]) -> None:
    """Any bytes are processed or counted as malformed, and the resulting output can be sent."""
    client = Client(SECRET, SENDER)
    for _ in range(2):
        client.attach()
    add(client)
    for index, frame in enumerate(frames):
        feed(client, frame, index % 2)
    out = client.out.take()
    assert all(isinstance(one.frame, bytes) and one.to in (None, *client.attachments) for one in out.upstream)
    assert all(isinstance(one.frame, bytes) for one in out.replies)


# Housekeeping


def test_housekeeping_does_what_is_due_and_returns_when_to_call_again(client: Client, clock: Clock) -> None:
    """Housekeeping does everything due for memberships, mailboxes and windows, and returns the next deadline."""
    start = clock.now
    add(client, life=5.0)
    feed(client, direct_frame(1, channel="b", ttl=3000))
    assert client.keep(start, 100) == start + 3
    assert client.keep(start + 3, 100) == start + 5
    assert client.counters.dropped == {"abandoned": 1}
    assert client.keep(start + 5, 100) == start + 60
    assert upstream(client) == [wire.unsubscription(G)]
    wait(client, "jobs", normal=True)
    assert client.keep(start + 5, 100) < start + 10


def test_housekeeping_is_done_in_slices(client: Client, clock: Clock) -> None:
    """Housekeeping works in slices, and its result shows that more is due."""
    for number in range(25):
        add(client, str(number), life=5.0)
    now = clock.now + 5
    assert [client.keep(now, 10) <= now for _ in range(3)] == [True, True, False]
    assert client.memberships.groups == {}


def test_nothing_due_costs_nothing(client: Client, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 100,000 channels in groups and nothing due, housekeeping compares deadlines and visits no entry."""
    for number in range(100_000):
        client.memberships.join(G, str(number), 9, 100.0, 0)
    for deadlines in (client.memberships.ends, client.mailboxes._looks):
        monkeypatch.setattr(deadlines, "_is_current", None)
    assert client.keep(clock.now + 59, 1000) == clock.now + 60


def test_a_client_without_anything_has_nothing_due(client: Client, clock: Clock) -> None:
    """A client without channels has nothing due, so that its connection decides how long the housekeeper sleeps."""
    assert client.keep(clock.now, 100) == float("inf")
    assert not client.out.busy


# Peers that exceed their rights


@pytest.fixture
def strict(client: Client) -> Client:
    """Return a client that recognizes only its own channel names."""
    client.receiver.own_names = OwnNames(INBOX)
    client.use(Defaults(max_ttl=5_000))
    return client


def test_no_mailbox_is_made_for_a_channel_that_this_process_never_had(strict: Client) -> None:
    """A direct message creates no mailbox for a channel that this process never made, so no peer can fill memory."""
    made = strict.receiver.own_names.new("a")
    for number, channel in enumerate(("a", f"a.{INBOX.decode()}!0123456789abcdef012345", made)):
        feed(strict, direct_frame(number + 1, channel=channel))
    assert list(strict.mailboxes.boxes) == [made]
    assert strict.counters.dropped == {"unroutable": 2}


def test_a_channel_that_is_read_or_in_a_group_needs_no_name_of_ours(strict: Client) -> None:
    """A channel with a mailbox, being read or in a group, receives messages although this process did not make it."""
    strict.mailboxes.open("jobs", 9)
    feed(strict, direct_frame(1, channel="jobs"))
    assert payloads(strict, "jobs") == [b"x"]


def test_a_channel_that_this_process_never_had_joins_no_group(strict: Client) -> None:
    """A channel that this process never made joins no group, and the answer is GONE, as if its process had ended."""
    feed(strict, ask())
    assert not strict.memberships.groups
    (reply,) = strict.out.take().replies
    assert wire.CONFIRM.decode(reply.frame).status == Status.GONE
    feed(strict, ask(channel=strict.receiver.own_names.new("a").encode()))
    assert list(strict.memberships.groups) == [G]


def test_no_message_waits_longer_than_the_expiry(strict: Client, clock: Clock) -> None:
    """No message waits longer than the configured expiry, in a group or directly, whatever TTL its sender sets."""
    made = strict.receiver.own_names.new("a")
    add(strict, made)
    feed(strict, group_frame(1, ttl=TTL))
    feed(strict, direct_frame(1, channel=made, ttl=TTL))
    assert {deadline for deadline, _, _ in strict.mailboxes.boxes[made].mail} == {clock.now + 5}


# Messages missed while a connection was cut


def lose_connection(client: Client, clock: Clock, exchange: int = 0, seconds: float = 0.5) -> None:
    """Let the connection to an exchange have been cut for so many seconds."""
    clock.now += seconds
    client.connection_lost(client.attachments[exchange], clock.now - seconds)


def resume(client: Client, exchange: int = 0, session: int = SESSION + 5) -> wire.Resume:
    frame = client.resume(client.attachments[exchange], session)
    assert frame is not None
    return wire.RESUME.decode(frame)


def connect_again(client: Client, clock: Clock) -> None:
    """Let the connection have been cut, and the client request the missed messages."""
    lose_connection(client, clock)
    resume(client)


def replay(client: Client, *messages: bytes, last: int = 1, exchange: int = 0, session: int = SESSION + 5) -> None:
    frame = wire.Replayed(INBOX, session, last, wire.encode_messages(messages))
    for _ in client.feed(wire.REPLAYED.encode(frame), client.attachments[exchange]) or ():
        pass


def test_a_client_asks_for_the_messages_of_its_groups(client: Client, clock: Clock) -> None:
    """After its connection was cut, and only then, a client requests the missed messages of the groups it has joined.

    A join that waits for the exchange is not among them: messages from before it would be replayed.
    """
    add(client, topic=G)
    client.join(H, "a", 9, None)
    client.connected(client.attachments[0])
    assert client.resume(client.attachments[0], 1) is None
    assert not client.gaps.awaits_replay
    lose_connection(client, clock)
    assert wire.decode_hashes(resume(client).topics) == {wire.topic_hash(G)}
    assert client.gaps.awaits_replay


def test_a_client_asks_each_exchange_for_what_was_sent_since_it_began(clock: Clock) -> None:
    """Others may know the channels of a process, and send to them, before it is connected to the first exchange."""
    client = Client(SECRET, SENDER, clock=clock)
    first = client.attach()
    clock.now += 30.0
    client.connected(first)
    assert client.gaps.awaits_replay, "from the first frame on"
    assert resume(client).age == 30_000 + 1000 * (ON_THE_WAY + READ_WITHIN)
    replay(client)
    assert not client.gaps.awaits_replay
    client.begin_session(first, SESSION, INSTANCE)
    other = client.attach()
    assert client.gaps.awaits_replay, "what arrives by the first one may be behind what the other one has"
    clock.now += 30.0
    client.connected(other)
    assert resume(client, exchange=1).age == 60_000 + 1000 * (ON_THE_WAY + READ_WITHIN)
    client.detach(other)
    assert not client.gaps.awaits_replay


@pytest.mark.parametrize("later", [0, 1])
def test_what_one_exchange_brings_waits_for_one_that_connects_a_moment_later(clock: Clock, later: int) -> None:
    """At the start of a process one exchange may bring what follows messages that another one replays later."""
    client = Client(SECRET, SENDER, clock=clock)
    client.receiver.own_names = AnyName()
    exchanges = [client.attach(), client.attach()]
    for session, index in enumerate((1 - later, later), SESSION + 5):
        clock.now += 0.1
        client.connected(exchanges[index])
        resume(client, index, session)
        client.begin_session(exchanges[index], session, INSTANCE)
        replay(client, *([] if index != later else map(direct_frame, range(1, 5))), exchange=index, session=session)
        if index != later:
            feed(client, direct_frame(5))
    clock.now += HOLD
    client.keep(clock.now, 100)
    assert client.counters.received == 5


def test_messages_wait_for_an_exchange_that_was_found_just_now(client: Client, clock: Clock) -> None:
    """What others have sent by a further exchange may precede what arrives first, so that waits for the connection."""
    add(client)
    client.attach()
    feed(client, group_frame(7, b"7"))
    clock.now += BACK_WITHIN - 0.01
    client.keep(clock.now, 100)
    assert payloads(client) == []
    clock.now += HOLD
    client.keep(clock.now, 100)
    assert payloads(client) == [b"7"]


@pytest.mark.parametrize("frame", [group_frame, direct_frame])
def test_what_was_missed_goes_before_what_has_arrived_since(
    client: Client, clock: Clock, frame: Callable[..., bytes]
) -> None:
    """Replayed messages are delivered once and in order, before messages that arrived since, with one exchange too."""
    add(client)
    feed(client, frame(1, b"1"))
    connect_again(client, clock)
    feed(client, frame(4, b"4"))
    assert payloads(client) == [b"1"]
    replay(client, again(frame(1, b"1"), 400), again(frame(2, b"2"), 300), last=0)
    assert payloads(client) == [b"1", b"2"]
    replay(client, again(frame(3, b"3"), 200), again(frame(4, b"4"), 100))
    assert payloads(client) == [b"1", b"2", b"3", b"4"]
    assert (client.counters.repeated, client.counters.dropped) == (2, {})
    assert not client.gaps.awaits_replay


def test_the_first_messages_of_a_run_are_waited_for_too(client: Client, clock: Clock) -> None:
    """The first message of a run waits while a replay is expected, because it may have a predecessor there."""
    add(client)
    connect_again(client, clock)
    feed(client, group_frame(2, b"2"))
    assert payloads(client) == []
    replay(client, again(group_frame(1, b"1", flags=wire.FLAG_FIRST), 300))
    assert payloads(client) == [b"1", b"2"]


def test_the_first_messages_of_a_run_wait_for_a_connection_that_was_just_lost(client: Client, clock: Clock) -> None:
    """A first message waits from the loss of a connection on: it may arrive elsewhere before a replay is requested."""
    add(client)
    clock.now += 0.5
    client.connection_lost(client.attachments[0], clock.now)
    feed(client, group_frame(2, b"2"))
    client.gaps.all_is_read()
    assert payloads(client) == []
    resume(client)
    replay(client, again(group_frame(1, b"1", flags=wire.FLAG_FIRST), 300))
    assert (payloads(client), client.counters.dropped) == ([b"1", b"2"], {})


def test_what_is_not_published_again_is_counted(client: Client, clock: Clock) -> None:
    """A message that is not replayed counts as missed once the exchange has answered and the usual time has passed."""
    add(client)
    feed(client, group_frame(1, b"1"))
    connect_again(client, clock)
    feed(client, group_frame(4, b"4"))
    clock.now += HOLD
    client.keep(clock.now, 100)
    assert payloads(client) == [b"1"]
    replay(client, again(group_frame(3, b"3"), 200))
    client.keep(clock.now, 100)
    assert payloads(client) == [b"1", b"3", b"4"]
    assert client.counters.dropped == {"missed": 1}


def test_a_long_replay_is_waited_for_while_its_parts_arrive(client: Client, clock: Clock) -> None:
    """The wait for a replay lasts while its parts arrive: a busy machine needs over a second for tens of thousands."""
    add(client)
    feed(client, group_frame(1, b"1"))
    connect_again(client, clock)
    feed(client, group_frame(5, b"5"))
    for number in (2, 3, 4):
        clock.now += 0.9 * REPLAYED_WITHIN
        client.keep(clock.now, 100)
        replay(client, again(group_frame(number, b"%d" % number), 400), last=number == 4)
    assert payloads(client) == [b"1", b"2", b"3", b"4", b"5"]
    assert client.counters.dropped == {}


def test_an_exchange_that_does_not_answer_is_waited_for_once(client: Client, clock: Clock) -> None:
    """The wait for an exchange that does not answer, as an older version, ends once and does not delay later gaps."""
    add(client)
    feed(client, group_frame(1, b"1"))
    connect_again(client, clock)
    feed(client, group_frame(3, b"3"))
    clock.now += REPLAYED_WITHIN
    client.keep(clock.now, 100)
    assert payloads(client) == [b"1", b"3"]
    feed(client, group_frame(5, b"5"))
    give_up(client, clock)
    assert payloads(client) == [b"1", b"3", b"5"]


def test_two_exchanges_are_waited_for(pair: Client, clock: Clock) -> None:
    """A replay of each of two exchanges is awaited, and one answer does not end the wait for the other."""
    for exchange in (0, 1):
        lose_connection(pair, clock, exchange)
        resume(pair, exchange, SESSION + 5 + exchange)
    replay(pair)
    assert pair.gaps.awaits_replay
    replay(pair, exchange=1, session=SESSION + 6)
    assert not pair.gaps.awaits_replay


def test_the_answer_to_an_earlier_request_is_ignored(client: Client, clock: Clock) -> None:
    """The answer to an earlier request is ignored after another cut; the next answer contains everything missing."""
    add(client)
    lose_connection(client, clock)
    resume(client, session=SESSION + 5)
    lose_connection(client, clock, seconds=0.1)
    resume(client, session=SESSION + 6)
    replay(client, again(group_frame(2, b"2"), 100), session=SESSION + 5)
    assert payloads(client) == []
    assert client.gaps.awaits_replay
    replay(client, again(group_frame(1, b"1"), 200), again(group_frame(2, b"2"), 100), session=SESSION + 6)
    assert client.resume(client.attachments[0], SESSION + 7) is None


def test_the_end_of_an_answer_may_be_read_after_another_cut(client: Client, clock: Clock) -> None:
    """Messages in an answer that is read after another cut are delivered, and the next answer is still awaited."""
    add(client)
    connect_again(client, clock)
    lose_connection(client, clock, seconds=0.1)
    replay(client, again(group_frame(1, b"1", flags=wire.FLAG_FIRST), 200))
    assert payloads(client) == [b"1"]
    assert resume(client, session=SESSION + 6).age > 100
    assert client.gaps.awaits_replay


def test_a_repeated_message_counts_for_the_length_of_a_turn(client: Client, clock: Clock) -> None:
    """A repeated message, of which a replay mostly consists, also sets the time by which a turn ends."""
    add(client)
    feed(client, group_frame(1))
    clock.now += 1.0
    feed(client, group_frame(1))
    assert client.receiver.now == clock.now


def test_only_messages_are_published_again(client: Client, clock: Clock) -> None:
    """Anything but messages in a replay is malformed, and so is a list that ends within a message."""
    add(client)
    connect_again(client, clock)
    nested = wire.REPLAYED.encode(wire.Replayed(INBOX, SESSION + 5, 1))
    replay(client, nested, b"", job(), again(group_frame(1, b"1", flags=wire.FLAG_FIRST), 100))
    assert payloads(client) == [b"1"]
    cut = wire.REPLAYED.encode(wire.Replayed(INBOX, SESSION + 5, 1, wire.encode_messages([b"x"])))[:-1]
    feed(client, cut)
    assert client.counters.dropped == {"malformed": 4}


def test_a_batch_is_published_again_as_it_was(client: Client, clock: Clock) -> None:
    """A batch is replayed whole, and those of its messages that have arrived are skipped."""
    add(client)
    feed(client, group_frame(1, b"1"))
    connect_again(client, clock)
    replay(client, again(batch_frame(1, b"1", b"2", b"3"), 100))
    assert payloads(client) == [b"1", b"2", b"3"]
    assert client.counters.repeated == 1
