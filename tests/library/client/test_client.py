"""One client process: a frame comes in; frames to send and readers to wake come out."""

import pytest
from fakes import Reader
from hypothesis import given, settings
from hypothesis import strategies as st

from channels_zmq.client.client import Client, Defaults, LinkLost, LinkRestored, Output
from channels_zmq.client.requests import Request, next_number
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Question, Status

INBOX, FOREIGN = b"0123456789abcdef", b"fedcba9876543210"
SENDER, OTHER = b"s" * 8, b"o" * 8
INSTANCE = b"i" * 8
SESSION = 7
G, H = wire.group_topic("g"), wire.group_topic("h")
TTL = 60_000


@pytest.fixture
def client(clock):
    client = Client(INBOX, SENDER, clock=clock)
    client.begin_session(SESSION)
    return client


def group_frame(number, payload=b"x", *, topic=G, sender=OTHER, flags=0, ttl=TTL):
    return wire.ordered(topic, sender, number, flags, ttl, payload)


def direct_frame(number, payload=b"x", *, channel="a", sender=OTHER, flags=0, ttl=TTL):
    return wire.ordered(wire.direct_prefix(INBOX), sender, number, flags, ttl, wire.direct_body(channel, payload))


def ask(add=1, *, channel=b"a", n=3, group=b"g"):
    return wire.ASK.encode(wire.Ask(INBOX, n, add, FOREIGN, group, channel))


def job(number=1, payload=b"x", *, session=SESSION, channel=b"jobs"):
    return wire.JOB.encode(wire.Job(INBOX, session, number, number, TTL, channel, payload))


def confirm(n, status=Status.OK):
    return wire.CONFIRM.encode(wire.Confirm(INBOX, n, status, INSTANCE))


def synced(n):
    return wire.SYNCED.encode(wire.Synced(INBOX, n))


def add(client, channel="a", topic=G, *, life=None):
    """Add a member whose subscription is in force."""
    join = client.join(topic, channel, 9, life)
    client.join_synced(join, next_number())
    client.out.take()
    return join


def wait(client, channel="a", *, normal=False):
    """Let a reader wait for a message that is not there."""
    box, reader = client.mailboxes.open(channel, 9), Reader()
    assert client.mailboxes.begin_read(box) is None
    box.waiters.append(reader)
    if normal:
        client.read_normal(box)
    return reader


def payloads(client, channel="a"):
    box = client.mailboxes.boxes.get(channel)
    return [] if box is None else [payload for _, payload, _ in box.mail]


def woken(client):
    waiters, client.out.wake = client.out.wake, []
    return waiters


def upstream(client):
    return client.out.take().upstream


def foreign_reply(n=3):
    """Return the confirmation that another process gets for what it has asked for."""
    return wire.CONFIRM.encode(wire.Confirm(FOREIGN, n, Status.OK, wire.NO_INSTANCE))


# What is to be done


def test_an_output_is_busy_while_something_is_to_be_done_under_the_lock():
    """Waking readers is done once the lock is released, and empty lists are nothing to do."""
    out = Output()
    out.send_upstream([])
    out.wake.append(Reader())
    assert not out.busy
    for act in (lambda: out.send_upstream([b"1"]), lambda: out.reply(b"2"), lambda: out.change(LinkLost())):
        act()
        assert out.busy
        out.take()
        assert not out.busy


def test_taking_an_output_begins_anew_with_it():
    """Frames are taken in their order; changes and readers are not done under the lock, and stay."""
    out = Output()
    reader, change = Reader(), LinkRestored(3)
    out.send_upstream([b"1", b"2"])
    out.send_upstream([b"3"])
    out.reply(b"4")
    out.session.append(b"welcome")
    out.emptied = True
    out.change(change)
    out.wake.append(reader)
    taken = out.take()
    assert (taken.upstream, taken.replies, taken.session, taken.emptied) == (
        [b"1", b"2", b"3"],
        [b"4"],
        [b"welcome"],
        True,
    )
    again = out.take()
    assert (again.upstream, again.replies, again.session, again.emptied) == ([], [], [], False)
    assert (out.changes, out.wake) == ([change], [reader])


# Group messages


def test_a_group_message_reaches_every_member_once_and_wakes_its_readers(client):
    """It is one message received."""
    for channel in "ab":
        add(client, channel)
    reader = wait(client)
    client.feed(group_frame(1))
    assert [len(payloads(client, channel)) for channel in "ab"] == [1, 1]
    assert woken(client) == [reader]
    assert client.counters.received == 1


def test_a_group_message_without_members_here_is_ignored(client):
    """It arrives after the last member has left; nothing is lost."""
    client.feed(group_frame(1))
    assert (client.counters.received, client.counters.dropped) == (0, {})


def test_a_discarded_member_gets_nothing_sent_after_the_discard(client):
    """Earlier messages can still be read."""
    add(client)
    client.feed(group_frame(1, b"1"))
    client.leave(G, "a")
    client.feed(group_frame(2, b"2"))
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
def test_sequence_numbers_show_repeated_and_missed_messages(client, frame, numbers, received, dropped, repeated):
    """A repeated message is ignored; a gap is counted and the message delivered. Groups and direct messages alike."""
    add(client)
    for number in numbers:
        client.feed(frame(number))
    assert len(payloads(client)) == client.counters.received == received
    assert client.counters.dropped == dropped
    assert client.counters.repeated == repeated


def test_each_topic_has_numbers_of_its_own(client):
    """The same numbers on two topics are two messages."""
    for topic in (G, H):
        add(client, topic=topic)
        client.feed(group_frame(1, topic=topic))
    assert client.counters.received == 2


def test_a_membership_that_is_over_gets_no_message(client, clock):
    """It ends before the message is delivered, also if the housekeeping is late."""
    add(client, life=5.0)
    add(client, "b", H, life=5.0)
    add(client, "c", H)
    clock.now += 5
    client.feed(group_frame(1))
    client.feed(group_frame(1, topic=H))
    assert [payloads(client, channel) for channel in "abc"] == [[], [], [b"x"]]
    assert upstream(client) == [wire.unsubscription(G)]
    assert client.counters.received == 1


def test_own_messages_older_than_the_subscription_are_ignored(client):
    """They were sent before the join, and are not counted as repeated or missed."""
    sent = [client.numbers.next(G)[0] for _ in range(3)]
    add(client)
    newer = client.numbers.next(G)[0]
    for number in (sent[1], sent[2], newer):
        client.feed(group_frame(number, b"%d" % number, sender=SENDER))
    assert payloads(client) == [b"%d" % newer]
    assert (client.counters.dropped, client.counters.repeated) == ({}, 0)


@pytest.mark.parametrize("is_synced", [False, True])
def test_own_messages_that_were_held_during_the_join_are_older_than_the_subscription(client, is_synced):
    """They get their number later than the subscription; the others of this process are delivered."""
    join = client.join(G, "a", 9, None)
    if is_synced:
        client.join_synced(join, next_number())
    client.older_than_subscription(G, 50)
    if not is_synced:
        client.join_synced(join, next_number())
    for number in (50, 51):
        client.feed(group_frame(number, b"%d" % number, sender=SENDER))
    assert payloads(client) == [b"51"]
    assert (client.counters.dropped, client.counters.repeated) == ({}, 0)


def test_a_held_message_of_a_group_that_was_left_changes_nothing(client):
    """There is no subscription that it could be older than."""
    client.older_than_subscription(G, 50)
    add(client)
    client.feed(group_frame(49, sender=SENDER))
    assert payloads(client) == [b"x"]


# Direct messages


def test_a_direct_message_reaches_its_mailbox_and_wakes_its_reader(client, clock):
    """The time of the last message is known without asking the clock again."""
    reader = wait(client)
    clock.now += 1
    client.feed(direct_frame(1, b"1"))
    assert payloads(client) == [b"1"]
    assert woken(client) == [reader]
    assert (client.counters.received, client.now) == (1, clock.now)


def test_a_direct_message_without_a_mailbox_gets_the_default_capacity(client):
    """The layer made last decides."""
    client.defaults = Defaults(capacity=lambda channel: 2 if channel == "a" else 0)
    for number in range(3):
        client.feed(direct_frame(number))
    assert payloads(client) == [b"x", b"x"]
    assert client.counters.dropped == {"mailbox_full": 1}


def test_a_direct_message_keeps_the_capacity_of_its_mailbox(client):
    """A reader has brought it along."""
    wait(client)
    client.defaults = Defaults(capacity=lambda channel: 0)
    client.feed(direct_frame(1))
    assert payloads(client) == [b"x"]


def test_an_own_direct_message_is_in_flight_until_it_arrives(client):
    """Messages of other processes settle nothing."""
    box = client.mailboxes.open("a", 9)
    for _ in range(3):
        client.sent_to_own(box)
    assert (client.own_order, list(box.in_flight)) == (3, [1, 2, 3])
    client.feed(direct_frame(1, sender=OTHER))
    assert list(box.in_flight) == [1, 2, 3]
    client.feed(direct_frame(1, sender=SENDER))
    assert list(box.in_flight) == [2, 3]


def test_a_ghost_in_flight_is_settled_by_what_came_behind_it(client):
    """One of two messages was lost; the other one has arrived."""
    box = client.mailboxes.open("a", 9)
    for _ in range(2):
        client.sent_to_own(box)
    client.feed(direct_frame(2, sender=SENDER))
    assert len(box.in_flight) == 1
    client.mailboxes.passed(box, client.own_order)
    assert not box.in_flight


def test_a_message_of_this_process_is_delivered_or_refused_at_once(client):
    """The sender learns whether the channel is full; nothing is counted as lost then."""
    reader = wait(client)
    assert [client.deliver_own("a", TTL, b"%d" % number, 2) for number in range(3)] == [True, True, False]
    assert payloads(client) == [b"0", b"1"]
    assert woken(client) == [reader]
    assert (client.counters.received, client.counters.dropped) == (2, {})


# Joining


def test_a_join_subscribes_and_a_failed_join_unsubscribes(client):
    """Both frames are to be sent upstream."""
    join = client.join(G, "a", 9, None)
    assert join.group.in_force_after
    assert upstream(client) == [wire.subscription(G)]
    client.join_failed(join)
    assert upstream(client) == [wire.unsubscription(G)]


def test_in_the_process_of_the_exchange_a_subscription_is_in_force_at_once(client):
    """Nothing is to be waited for."""
    client.is_exchange = True
    join = client.join(G, "a", 9, None)
    assert not join.group.in_force_after


# Joins for other processes


def test_a_foreign_join_of_a_subscribed_group_is_confirmed_at_once(client):
    """With the defaults of the layer, since the other process brings none along."""
    client.defaults = Defaults(capacity=lambda channel: 5, group_expiry=20.0)
    add(client, "b")
    client.feed(ask())
    out = client.out.take()
    assert (out.upstream, out.replies) == ([], [foreign_reply()])
    (box,) = [box for box in client.memberships.groups[G].members if box.name == "a"]
    assert (box.capacity, client.memberships.groups[G].members[box].life) == (5, 20.0)


def test_a_foreign_join_of_a_new_group_is_confirmed_once_a_sync_is_answered(client, clock):
    """The sync follows the subscription and is repeated until it is answered."""
    client.feed(ask())
    subscription, sync = upstream(client)
    number = wire.SYNC.decode(sync).n
    assert subscription == wire.subscription(G)
    assert [request.frame for _, request in client.requests.to_repeat(clock.now + 1)] == [sync]
    assert client.out.take().replies == []
    client.feed(synced(number))
    assert client.out.take().replies == [foreign_reply()]
    assert not client.memberships.groups[G].in_force_after
    assert len(client.requests) == 0
    client.feed(synced(number))
    assert not client.out.busy


def test_a_foreign_join_stays_when_an_own_one_fails(client):
    """Both asked for the same membership."""
    own = client.join(G, "a", 9, None)
    client.feed(ask())
    client.join_failed(own)
    assert G in client.memberships.groups


def test_a_foreign_join_survives_the_failure_of_own_requests(client):
    """Nobody here waits for it."""
    client.feed(ask())
    number = wire.SYNC.decode(upstream(client)[1]).n
    client.fail_requests(ConnectionError())
    client.feed(synced(number))
    assert client.out.take().replies == [foreign_reply()]


@pytest.mark.parametrize("is_member", [True, False])
def test_a_foreign_discard_is_confirmed_at_once(client, is_member):
    """Whether the channel was a member or not."""
    if is_member:
        add(client)
    client.feed(ask(add=0))
    out = client.out.take()
    assert out.upstream == [wire.unsubscription(G)] * is_member
    assert out.replies == [foreign_reply()]


def test_a_normal_member_that_another_process_removed_is_not_repeated(client):
    """Otherwise the next session would add it again."""
    client.normal_members.changed(wire.Member(INBOX, 1, 1, 0, 0, 9, b"g", b"jobs"))
    client.feed(wire.REMOVED.encode(wire.Removed(INBOX, b"g", b"jobs")))
    assert client.before_hello() == []


# Requests


@pytest.mark.parametrize(
    "frame, answer", [(confirm, Status.OK), (lambda n: confirm(n, Status.FULL), Status.FULL), (synced, 0)]
)
def test_an_answer_wakes_its_caller_once(client, frame, answer):
    """Whichever frame it is; a second one is not for a caller."""
    request = Request(b"frame", waiter=Reader())
    client.requests.begin(5, request, 0.0)
    client.feed(frame(5))
    assert (request.answer, woken(client)) == (answer, [request.waiter])
    client.feed(frame(5))
    assert woken(client) == []


def test_an_answer_to_a_request_without_a_waiter_wakes_nobody(client):
    """It is noted all the same."""
    request = Request(b"frame")
    client.requests.begin(5, request, 0.0)
    assert client.answered(5, 0)
    assert (request.answer, woken(client)) == (0, [])


def test_a_confirmation_that_no_caller_waits_for_is_for_the_transport(client):
    """It may be the answer to an echo."""
    client.feed(confirm(5))
    assert client.out.busy
    assert client.out.take().session == [wire.Confirm(INBOX, 5, Status.OK, INSTANCE)]


def test_all_callers_learn_that_their_requests_have_failed(client):
    """Each is woken once."""
    requests = [Request(b"", waiter=Reader()) for _ in range(3)]
    for number, request in enumerate(requests):
        client.requests.begin(number, request, 0.0)
    error = ConnectionError()
    client.fail_requests(error)
    assert woken(client) == [request.waiter for request in requests]
    assert [request.answer for request in requests] == [error] * 3


# Normal channels


def test_a_reader_of_a_normal_channel_opens_a_window_and_gets_a_job(client):
    """The job wakes it and is counted."""
    reader = wait(client, "jobs", normal=True)
    (ready,) = upstream(client)
    assert wire.READY.decode(ready).limit == 5
    client.feed(job())
    assert woken(client) == [reader]
    assert client.mailboxes.begin_read(client.mailboxes.boxes["jobs"]) == b"x"
    client.read_normal(client.mailboxes.boxes["jobs"])
    assert client.counters.received == 1


def test_a_job_that_nobody_waits_for_goes_back(client):
    """It is for a channel that was forgotten here."""
    client.feed(job(4))
    (frame,) = upstream(client)
    assert wire.BACK.decode(frame).number == 4


def test_a_job_of_an_earlier_session_is_not_counted(client):
    """The exchange hands it over again."""
    wait(client, "jobs", normal=True)
    client.feed(job(session=SESSION - 1))
    assert (payloads(client, "jobs"), client.counters.received) == ([], 0)


def test_lost_jobs_are_counted(client):
    """The total shows that some are lost, the count of a channel how many."""
    wait(client, "jobs", normal=True)
    upstream(client)
    client.feed(wire.HANDED_TOTAL.encode(wire.HandedTotal(INBOX, SESSION, 2)))
    (asked,) = upstream(client)
    assert wire.READY.decode(asked).ask == Question.HANDED
    client.feed(wire.HANDED.encode(wire.Handed(INBOX, SESSION, 2, b"jobs")))
    assert client.counters.dropped == {"lost_delivery": 2}
    assert len(upstream(client)) == 1


def test_a_query_is_answered_upstream(client):
    """With the number of the question."""
    wait(client, "jobs", normal=True)
    upstream(client)
    client.feed(wire.QUERY.encode(wire.Query(INBOX, 9, SESSION, b"jobs")))
    (answer,) = upstream(client)
    assert wire.READY.decode(answer).answers == 9


# Readers


def test_a_reader_that_gives_up_after_it_was_woken_passes_its_turn_on(client):
    """The next one is woken for the message."""
    first, second = wait(client), wait(client)
    client.feed(direct_frame(1))
    assert woken(client) == [first]
    client.stop_waiting(client.mailboxes.boxes["a"], first)
    assert woken(client) == [second]


def test_a_normal_channel_whose_reader_gave_up_hands_its_jobs_back(client, clock):
    """The housekeeping does it, after a grace time."""
    reader = wait(client, "jobs", normal=True)
    client.feed(job())
    client.stop_waiting(client.mailboxes.boxes["jobs"], reader)
    upstream(client)
    clock.now += 1
    client.keep(clock.now, 100)
    assert [frame[:1] for frame in upstream(client)] == [b"R", b"B", b"T"]


# Sessions


def test_a_welcome_is_for_the_transport(client):
    """The client waits until it is told to begin the session."""
    welcome = wire.Welcome(INBOX, wire.VERSION, wire.State.SERVING, INSTANCE, SESSION, 1)
    client.feed(wire.WELCOME.encode(welcome))
    assert client.out.busy
    assert client.out.take().session == [welcome]


def test_a_new_session_repeats_what_the_exchange_cannot_know(client):
    """Normal members and arrived jobs go before the hello; requests and windows follow the welcome."""
    for _ in range(2):
        wait(client, "jobs", normal=True)
    client.feed(job())
    client.normal_members.changed(wire.Member(INBOX, 1, 1, 0, 0, 9, b"g", b"jobs"))
    client.requests.begin(5, Request(b"sync", upstream=True, waiter=Reader()), 0.0)
    upstream(client)
    assert [frame[:1] for frame in client.before_hello()] == [b"M", b"D"]
    client.begin_session(SESSION + 1)
    assert [frame[:1] for frame in upstream(client)] == [b"s", b"R"]


# Emptying


def test_an_exchange_that_is_flushed_empties_its_clients(client):
    """Messages, memberships and notes are gone, and the answer carries the same number; who waits stays."""
    add(client)
    reader = wait(client, "b")
    for channel in ("a", "c"):
        client.feed(direct_frame(1, channel=channel, flags=wire.FLAG_FIRST))
    client.normal_members.changed(wire.Member(INBOX, 1, 1, 0, 0, 9, b"g", b"jobs"))
    client.feed(wire.EMPTY.encode(wire.Empty(INBOX, 6)))
    out = client.out.take()
    assert out.emptied
    assert out.upstream == [wire.unsubscription(G)]
    assert out.replies == [wire.FLUSHED.encode(wire.Flushed(INBOX, 6))]
    assert list(client.mailboxes.boxes) == ["b"]
    assert client.mailboxes.boxes["b"].waiters == [reader]
    assert client.before_hello() == []


def test_messages_that_were_dropped_by_a_flush_are_not_missed(client):
    """The exchange drops messages until all clients have answered."""
    client.feed(direct_frame(1))
    client.empty()
    client.feed(direct_frame(9))
    assert client.counters.dropped == {}
    assert payloads(client) == [b"x"]


def test_emptying_sends_each_unsubscription_once(client):
    """A second flush finds no group."""
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
def test_a_malformed_frame_is_counted_and_changes_nothing(client, what):
    """Once; it never raises, and nothing is to be sent."""
    add(client)
    client.feed(MALFORMED[what])
    assert client.counters.dropped == {"malformed": 1}
    assert client.counters.received == 0
    assert not client.out.busy
    assert list(client.mailboxes.boxes) == ["a"]
    assert list(client.memberships.groups) == [G]
    client.feed(group_frame(1))
    assert payloads(client) == [b"x"]


HEADS = [b"", b"G", b"Gg\0", b"P", wire.inbox_topic(INBOX)] + [
    wire.inbox_topic(INBOX) + bytes([kind]) for kind in (wire.DIRECT, *(layout.kind for layout in wire.INBOX_LAYOUTS))
]


@settings(max_examples=300, deadline=None)
@given(frames=st.lists(st.builds(bytes.__add__, st.sampled_from(HEADS), st.binary(max_size=60)), max_size=5))
def test_no_bytes_make_a_client_fail(frames):
    """Each frame is taken, or counted as malformed; what comes out can be sent."""
    client = Client(INBOX, SENDER)
    add(client)
    for frame in frames:
        client.feed(frame)
    out = client.out.take()
    assert all(isinstance(frame, bytes) for frame in out.upstream + out.replies)


# Housekeeping


def test_housekeeping_does_what_is_due_and_returns_when_to_call_again(client, clock):
    """Memberships, mailboxes and windows, whichever is due first."""
    start = clock.now
    add(client, life=5.0)
    client.feed(direct_frame(1, channel="b", ttl=3000))
    assert client.keep(start, 100) == start + 3
    assert client.keep(start + 3, 100) == start + 5
    assert client.counters.dropped == {"abandoned": 1}
    assert client.keep(start + 5, 100) == start + 60
    assert upstream(client) == [wire.unsubscription(G)]
    wait(client, "jobs", normal=True)
    assert client.keep(start + 5, 100) < start + 10


def test_housekeeping_is_done_in_slices(client, clock):
    """The result says that more is due."""
    for number in range(25):
        add(client, str(number), life=5.0)
    now = clock.now + 5
    assert [client.keep(now, 10) <= now for _ in range(3)] == [True, True, False]
    assert client.memberships.groups == {}


def test_nothing_due_costs_nothing(client, clock):
    """With 100,000 channels in groups only deadlines are compared: nothing can be looked at."""
    for number in range(100_000):
        client.memberships.join(G, str(number), 9, 100.0, 0)
    for deadlines in (client.memberships.ends, client.mailboxes._looks):
        deadlines._is_current = None
    assert client.keep(clock.now + 59, 1000) == clock.now + 60


def test_a_client_without_anything_has_nothing_due(client, clock):
    """Its connection decides how long it sleeps."""
    assert client.keep(clock.now, 100) == float("inf")
    assert not client.out.busy
