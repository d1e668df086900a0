"""What a link does in each state on each event, without sockets: a stand-in subscriber, a list in place of the PUSH."""

from math import inf

import pytest
import zmq

from channels_zmq.client.client import Client, LinkLost, LinkRestored
from channels_zmq.client.requests import Request
from channels_zmq.errors import OutboxFull, WireVersionMismatch
from channels_zmq.options import Options
from channels_zmq.transports import link as module
from channels_zmq.transports.link import ECHO_EVERY, ECHO_PATIENCE, FULL_RETRY, Link
from channels_zmq.transports.states import TRANSITIONS, Event, State
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Status

INBOX, FOREIGN = b"0123456789abcdef", b"fedcba9876543210"
SENDER = b"s" * 8
ONE, TWO = b"1" * 8, b"2" * 8
G = wire.group_topic("g")
TTL = 60_000
OPTIONS = Options(
    connect_timeout=5.0, expiry=60.0, linger=0.0, max_message_size=2**20, outbox_capacity=3, outbox_bytes=2**20
)
CONNECTED, DISCONNECTED = zmq.Event.HANDSHAKE_SUCCEEDED, zmq.Event.DISCONNECTED


class Subscriber:
    """The subscriber's side, as a link sees it."""

    def __init__(self):
        self.session, self.welcome, self.is_connected = 0, None, False
        self.greeted, self.due, self.endpoint = [], inf, Endpoint()

    def greet(self, before):
        self.session += 1
        self.welcome, self.is_connected = None, True
        self.greeted.append(list(before))

    def lost(self):
        self.welcome, self.is_connected = None, False

    def take(self, welcome):
        if welcome.session != self.session or not self.is_connected:
            return False
        first, self.welcome = self.welcome is None, welcome
        return first

    def read(self):
        return False

    def tick(self, now):
        return False


class Endpoint:
    """An address that always stands for the same."""

    def has_changed(self):
        return False


class Push:
    """The producer's side: what was sent, or no room for it."""

    def __init__(self):
        self.frames, self.is_full = [], False

    def send(self, frame, flags):
        if self.is_full:
            raise zmq.Again
        self.frames.append(frame)

    def take(self):
        frames, self.frames = self.frames, []
        return frames

    @property
    def echo(self):
        """The number of the last echo."""
        return [wire.ECHO.decode(frame).n for frame in self.frames if frame[:1] == b"E"][-1]


class Rig:
    """A link between two stand-ins, at a time that a test moves."""

    def __init__(self, clock, monkeypatch):
        monkeypatch.setattr(module.time, "monotonic", clock)
        self.clock = clock
        self.client = Client(INBOX, SENDER, clock=clock)
        self.calls = []
        self.link = Link("tcp://pull", "tcp://pub", OPTIONS, self.client, self.calls.append)
        self.subscriber, self.push = Subscriber(), Push()
        self.replaced = 0
        self.link._subscriber, self.link._send, self.link._pull = self.subscriber, self.push.send, Endpoint()
        self.link._pull.address = "tcp://pull"
        self.link._replace_push = self.replace_push

    def replace_push(self):
        self.replaced += 1

    def welcome(self, instance=ONE, *, version=wire.VERSION, state=wire.State.SERVING, session=None):
        session = self.subscriber.session if session is None else session
        self.link.take_session([wire.Welcome(INBOX, version, state, instance, session, 1)])

    def confirm(self, instance=ONE, number=None):
        self.link.take_session([wire.Confirm(INBOX, self.push.echo if number is None else number, Status.OK, instance)])

    def come_up(self, instance=ONE):
        self.link._subscriber_event(CONNECTED)
        self.welcome(instance)
        self.confirm(instance)
        assert self.link.state is State.UP

    def publish(self, payload, topic=G, ttl=TTL):
        self.link.publish_group(topic, payload, ttl)

    def sent(self):
        """Return the payloads of the group messages that were sent, in order."""
        return [wire.read_group(frame)[5] for frame in self.push.take() if frame[:1] == b"G"]

    def changes(self):
        changes, self.client.out.changes = self.client.out.changes, []
        return changes

    def lines(self):
        reports, self.client.counters.reports = self.client.counters.reports, []
        return [report.message % report.arguments for report in reports]


@pytest.fixture
def rig(clock, monkeypatch):
    rig = Rig(clock, monkeypatch)
    yield rig
    rig.link._context.term()


# The table


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_changes_the_state_as_the_table_says(rig, state, event):
    """An event that a state does not list changes nothing. Only leaving `UP` is an outage, announced once.

    A link that has come up sends what it holds before any new message passes.
    """
    rig.link.state, rig.link._passes = state, state is State.UP
    target = TRANSITIONS[state].get(event)
    assert rig.link._enter(event) == (target is not None)
    assert rig.link.state is (target or state)
    is_outage = state is State.UP and target is not None
    assert rig.changes() == [LinkLost()] * is_outage
    assert len(rig.lines()) == is_outage
    assert rig.link._passes == (state is State.UP and target is None)


@pytest.mark.parametrize("state", State)
def test_messages_are_sent_only_while_the_link_is_up(rig, state):
    """They are held otherwise."""
    rig.link.state, rig.link._passes = state, state is State.UP
    rig.publish(b"1")
    assert rig.link.is_connected == (state is State.UP)
    assert (rig.sent(), rig.link.held) == (([b"1"], 0) if state is State.UP else ([], 1))
    assert rig.link.nothing_held.is_set() == (state is State.UP)


# Coming up


def test_a_connection_begins_a_session_and_a_welcome_begins_to_verify(rig):
    """Whatever the exchange cannot know goes before the hello; an echo follows the welcome."""
    rig.client.normal_members.changed(wire.Member(INBOX, 1, 1, 0, 0, 9, b"g", b"jobs"))
    rig.link._subscriber_event(CONNECTED)
    assert rig.link.state is State.GREETING
    ((member,),) = rig.subscriber.greeted
    assert member[:1] == b"M"
    assert rig.push.frames == []
    rig.welcome()
    assert rig.link.state is State.VERIFYING
    assert [frame[:1] for frame in rig.push.frames] == [b"E"]
    assert rig.client.credit.session == 1


def test_held_messages_are_sent_in_order_when_the_link_comes_up_first(rig):
    """There was no outage, and nothing is announced."""
    for payload in (b"1", b"2"):
        rig.publish(payload)
    rig.come_up()
    rig.publish(b"3")
    assert rig.sent() == [b"1", b"2", b"3"]
    assert (rig.changes(), rig.client.counters.reconnects) == ([], 0)
    assert rig.link.nothing_held.is_set()


@pytest.mark.parametrize("answer", [{"instance": TWO}, {"number": 10**9}])
def test_another_answer_than_that_of_the_welcoming_instance_does_not_verify(rig, answer):
    """The two sides reach different instances, or it answers an earlier echo."""
    rig.link._subscriber_event(CONNECTED)
    rig.welcome(ONE)
    rig.confirm(**answer)
    assert rig.link.state is State.VERIFYING


def test_an_echo_without_a_welcome_verifies_nothing(rig):
    """The connection was lost after it was sent."""
    rig.link._subscriber_event(CONNECTED)
    rig.welcome()
    number = rig.push.echo
    rig.link._subscriber_event(DISCONNECTED)
    rig.confirm(number=number)
    assert rig.link.state is State.DOWN


def test_a_confirmation_without_an_echo_is_ignored(rig):
    """It is late."""
    rig.confirm(number=1)
    assert rig.link.state is State.DOWN


def test_a_welcome_of_an_earlier_session_is_ignored(rig):
    """Only the present session counts."""
    rig.link._subscriber_event(CONNECTED)
    rig.welcome(session=0)
    assert rig.link.state is State.GREETING


# Outages


@pytest.mark.parametrize("lost", ["subscriber", "push", "reconnected"])
def test_an_outage_is_announced_and_its_end_before_held_messages_are_sent(rig, clock, lost):
    """The end carries how many messages were lost; `tick` sends what was held, behind the announcement."""
    rig.come_up()
    rig.push.take()
    rig.client.counters.drop("missed", 2)
    if lost == "push":
        rig.link._push_event(DISCONNECTED)
        assert rig.link.state is State.VERIFYING
        rig.link._push_event(CONNECTED)
    else:
        if lost == "subscriber":
            rig.link._subscriber_event(DISCONNECTED)
            assert rig.link.state is State.DOWN
        rig.link._subscriber_event(CONNECTED)
    assert rig.changes() == [LinkLost()]
    rig.publish(b"1")
    rig.client.counters.drop("missed", 3)
    clock.now += 1.5
    if lost != "push":
        rig.welcome(TWO)
    rig.confirm(ONE if lost == "push" else TWO)
    assert rig.link.state is State.UP
    assert rig.changes() == [LinkRestored(3)]
    assert rig.client.counters.reconnects == 1
    assert rig.lines()[-1] == "the forwarder at tcp://pull and tcp://pub is reachable again after 1.5 s"
    assert rig.sent() == []
    rig.link.tick(clock.now)
    assert rig.sent() == [b"1"]


def test_an_outage_without_a_known_loss_is_restored_without_a_number(rig):
    """None, rather than 0: a loss may show later."""
    rig.come_up()
    rig.link._push_event(DISCONNECTED)
    rig.link._push_event(CONNECTED)
    rig.confirm()
    assert rig.changes() == [LinkLost(), LinkRestored(None)]


def test_a_reconnected_push_is_verified_at_once(rig):
    """By an echo, which is not sent before: it would hold up the end of a process. In between nothing is verified."""
    rig.come_up()
    rig.push.take()
    rig.link._push_event(CONNECTED)
    assert rig.push.take() == []
    rig.link._push_event(DISCONNECTED)
    assert rig.push.take() == []
    rig.link._push_event(CONNECTED)
    assert rig.push.echo


def test_a_push_that_is_lost_while_the_link_is_down_changes_nothing(rig):
    """The subscriber's side leads."""
    rig.link._push_event(DISCONNECTED)
    assert (rig.link.state, rig.push.frames) == (State.DOWN, [])


def test_what_the_push_has_held_since_an_outage_is_dropped_once_it_has_expired(rig, clock):
    """Once, by a new socket; an echo that went with it is sent again."""
    rig.come_up()
    rig.publish(b"1", ttl=2000)
    rig.link._push_event(DISCONNECTED)
    rig.link.tick(clock.now + 2)
    assert rig.replaced == 0
    echo = rig.push.echo
    for after in (2.1, 2.2):
        rig.link.tick(clock.now + after)
    assert rig.replaced == 1
    assert rig.push.echo > echo


# Verifying


def test_an_unanswered_echo_is_repeated(rig, clock):
    """The last number counts."""
    rig.link._subscriber_event(CONNECTED)
    rig.welcome()
    first = rig.push.echo
    assert rig.link.tick(clock.now) == clock.now + ECHO_EVERY
    assert rig.push.echo == first
    clock.now += ECHO_EVERY
    rig.link.tick(clock.now)
    second = rig.push.echo
    assert second > first
    rig.confirm(number=first)
    assert rig.link.state is State.VERIFYING
    rig.confirm(number=second)
    assert rig.link.state is State.UP


@pytest.mark.parametrize("state, replaced", [(wire.State.SERVING, 1), (wire.State.SETTLING, 0)])
def test_a_push_that_a_serving_instance_does_not_hear_is_replaced(rig, clock, state, replaced):
    """An instance that still settles cannot answer an echo; the time counts from when it serves."""
    rig.link._subscriber_event(CONNECTED)
    rig.welcome(state=state)
    clock.now += ECHO_PATIENCE + 0.1
    rig.link.tick(clock.now)
    assert rig.replaced == replaced
    assert rig.lines() == ["no echo from tcp://pull: connecting anew"] * replaced
    if not replaced:
        rig.welcome()
        rig.link.tick(clock.now + ECHO_PATIENCE - 0.1)
        assert rig.replaced == 0


# Another version


def test_another_version_is_reported_once_and_fails_every_request(rig):
    """Further requests fail at once; a welcome of the own version ends it."""
    request = Request(b"frame", waiter=object())
    rig.client.requests.begin(1, request, 0.0)
    rig.link._subscriber_event(CONNECTED)
    for _ in range(2):
        rig.welcome(version=wire.VERSION + 1)
    assert len(rig.lines()) == 1
    assert isinstance(request.answer, WireVersionMismatch)
    assert rig.client.out.wake == [request.waiter]
    with pytest.raises(WireVersionMismatch):
        rig.link.send_downstream(b"frame", rig.clock.now + 5, 2)
    rig.link.send_downstream(b"reply", rig.clock.now + 5, 0)
    rig.welcome()
    rig.link.send_downstream(b"frame", rig.clock.now + 5, 2)
    assert rig.link.held == 2


# Holding


def test_a_full_socket_holds_messages_without_a_gap_in_their_numbers(rig, clock):
    """It is tried again soon, in order."""
    rig.come_up()
    rig.publish(b"1")
    rig.push.is_full = True
    for payload in (b"2", b"3"):
        rig.publish(payload)
    assert rig.link.tick(clock.now) == clock.now + FULL_RETRY
    rig.push.is_full = False
    rig.link.tick(clock.now)
    frames = [wire.read_group(frame) for frame in rig.push.take() if frame[:1] == b"G"]
    assert [frame[5] for frame in frames] == [b"1", b"2", b"3"]
    numbers = [frame[2] for frame in frames]
    assert numbers == list(range(numbers[0], numbers[0] + 3))


def test_a_held_message_loses_the_time_that_it_was_held(rig, clock):
    """An expired one is counted, and takes no number."""
    rig.publish(b"1", ttl=1000)
    rig.publish(b"2", ttl=5000)
    clock.now += 2
    rig.come_up()
    (frame,) = [wire.read_group(frame) for frame in rig.push.take() if frame[:1] == b"G"]
    assert (frame[4], frame[5], frame[3]) == (3000, b"2", wire.FLAG_FIRST)
    assert rig.client.counters.dropped == {"outbox_expired": 1}


def test_a_full_outbox_is_an_error(rig):
    """It names the address and how many messages are held."""
    for _ in range(3):
        rig.publish(b"x")
    with pytest.raises(OutboxFull):
        rig.publish(b"x")
    rig.link.drop_held()
    assert (rig.link.held, rig.link.nothing_held.is_set()) == (0, True)


def test_a_withdrawn_request_is_not_sent(rig, clock):
    """Nobody waits for its answer any more; an unknown number changes nothing."""
    rig.link.withdraw(7)
    rig.link.send_downstream(b"Q1", clock.now + 5, 7)
    rig.publish(b"1")
    for number in (7, 8):
        rig.link.withdraw(number)
    rig.come_up()
    assert b"Q1" not in rig.push.frames
    assert rig.sent() == [b"1"]


def test_held_messages_older_than_a_subscription_are_not_delivered_to_this_process(rig, clock):
    """They get their numbers after the join, and are published after it."""
    rig.publish(b"older")
    join = rig.client.join(G, "a", 9, None)
    rig.link.subscribed(G)
    rig.publish(b"newer")
    rig.come_up()
    rig.client.join_synced(join, 10**9)
    for frame in rig.push.take():
        if frame[:1] == b"G":
            rig.client.feed(frame)
    assert [payload for _, payload, _ in rig.client.mailboxes.boxes["a"].mail] == [b"newer"]
    assert (rig.client.counters.repeated, rig.client.counters.dropped) == (0, {})


# Direct messages


def test_a_direct_message_to_another_process_is_numbered_by_its_inbox(rig):
    """All channels of that process share a run."""
    rig.come_up()
    rig.push.take()
    for channel in ("a", "b"):
        rig.link.publish_direct(FOREIGN, channel, b"x", TTL)
    read = [wire.read_direct(frame) for frame in rig.push.take()]
    assert [(channel, payload) for *_, channel, payload in read] == [("a", b"x"), ("b", b"x")]
    assert read[1][1] == read[0][1] + 1


def test_an_own_message_counts_for_the_capacity_while_it_is_in_flight(rig):
    """Whether the channel is full is unknown until the messages in flight have arrived."""
    rig.come_up()
    rig.push.take()
    assert [rig.link.publish_own("a", b"%d" % number, TTL, 2) for number in range(3)] == [True, True, None]
    for frame in rig.push.take():
        rig.client.feed(frame)
    assert rig.link.publish_own("a", b"x", TTL, 2) is False


def test_an_own_message_is_refused_while_the_link_is_down_and_enough_are_in_flight(rig):
    """Nothing can settle them."""
    assert [rig.link.publish_own("a", b"x", TTL, 2) for _ in range(3)] == [True, True, False]


# Refusals


def test_a_refusal_is_kept_as_the_reason_until_the_link_is_up(rig):
    """By either side; it tells a caller why there is no answer."""
    for event in (rig.link._subscriber_event, rig.link._push_event):
        event(zmq.Event.HANDSHAKE_FAILED_AUTH)
        assert "curve_secret_key" in rig.link.refusal
        assert rig.link.state is State.DOWN
    rig.come_up()
    assert rig.link.refusal == ""
