"""The reaction of a link to each event in each state, without sockets: the test plays the network and the forwarder."""

from collections.abc import Callable
from math import inf
from typing import Any, cast

import pytest
import zmq
from fakes import AnyName, Clock, Reader
from socketless import (
    CONNECTED,
    DISCONNECTED,
    INVALID,
    ONE,
    TWO,
    Context,
    Exchange,
    Push,
    Subscriber,
    options,
    perform,
    replace_sockets,
)

from channels_zmq.client.arrivals import SILENT_AFTER
from channels_zmq.client.attachment import Attachment
from channels_zmq.client.client import Client
from channels_zmq.client.gaps import BEHIND_AT_MOST
from channels_zmq.client.mailboxes import Mailbox, Payload
from channels_zmq.client.requests import LOST, Request
from channels_zmq.client.window import BLOCK_FRAMES, BLOCK_SECONDS, KEEP_SECONDS
from channels_zmq.errors import ConfigurationError, WireVersionMismatch
from channels_zmq.keys import ClientKeys
from channels_zmq.transports.downlink import CHANGE_WITHIN
from channels_zmq.transports.link import (
    CONNECTS_WITHIN,
    ECHO_EVERY,
    FULL_RETRY,
    PATIENCE,
    REPORT_EVERY,
    REPORTED_AFTER,
    TICK_EVERY,
    WATCH_EVERY,
    Link,
)
from channels_zmq.transports.outbox import Held, Kind, Ledger
from channels_zmq.transports.push import Push as OpenPush
from channels_zmq.transports.roster import Forwarder
from channels_zmq.transports.states import TRANSITIONS, Event, State
from channels_zmq.transports.subscriber import READS_FORMER_FOR, REFUSALS
from channels_zmq.transports.uplink import OPEN_EVERY, RETIRE_AFTER
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.curve import new_pair
from channels_zmq_forwarder.sockets import SLOWEST_LINK

SECRET = b"0123456789abcdef"
INBOX = wire.claimable(SECRET)
SENDER = b"s" * 8
FORWARDER = Forwarder("tcp://pull", "tcp://pub")
NAME = "tcp://pull and tcp://pub"
G = wire.group_topic("g")
TTL = 60_000
WINDOW = 2 * BLOCK_FRAMES
SETTLING, SERVING, DRAINING = wire.State.SETTLING, wire.State.SERVING, wire.State.DRAINING


class Keys:
    """Key files that a test changes."""

    def __init__(self) -> None:
        self.missing, self.keys, self.reads = "", ClientKeys(new_pair()[0], new_pair()[1]), 0

    def read(self) -> ClientKeys:
        self.reads += 1
        return self.keys

    def missing_file(self) -> str:
        return self.missing

    def change(self) -> None:
        self.keys = ClientKeys(new_pair()[0], new_pair()[1])


class Rig:
    """A link between stand-ins, at a time that a test moves; the rig is also the owner of the link."""

    def __init__(
        self,
        clock: Clock,
        forwarder: Forwarder = FORWARDER,
        keys: Keys | None = None,
        capacity: int = 1000,
        context: Context | None = None,
    ) -> None:
        self.clock = clock
        self.calls: list[float] = []
        chosen = options(outbox_capacity=capacity, keys=keys)
        self.client = Client(SECRET, SENDER, window=WINDOW, clock=clock)
        self.client.receiver.own_names = AnyName()
        self.context = context or Context()
        self.ledger = Ledger(chosen.outbox_capacity, chosen.outbox_bytes)
        self.told: list[str] = []
        self.taken: list[Held] = []
        self.welcomes: list[wire.Welcome] = []
        self.holds_back, self.others_use_it = False, True
        self.watched: list[Subscriber] = []
        self.link = Link(
            forwarder,
            cast(Any, self.context),
            chosen,
            self.client,
            self.ledger,
            self,
            self.calls.append,
            lambda: b"list",
        )
        self.link.start()
        self.exchange = Exchange(self.link, self.client)

    # The methods of a link's owner

    def may_be_used(self, link: Link) -> bool:
        assert link is self.link
        return self.others_use_it

    def came_up(self, link: Link) -> None:
        assert link is self.link
        self.told.append("up")
        link.flush()

    def went_down(self, link: Link) -> None:
        assert link is self.link
        self.told.append("down")
        self.taken += link.take()

    def welcomed(self, link: Link, welcome: wire.Welcome) -> None:
        self.welcomes.append(welcome)

    def watch(self, subscriber: Any) -> None:
        self.watched.append(subscriber)

    def unwatch(self, subscriber: Any) -> None:
        self.watched.remove(subscriber)

    # The methods of a client's transport

    def take_session(self, frames: list[tuple[Attachment, wire.Confirm | wire.Welcome]]) -> None:
        for attachment, frame in frames:
            assert attachment is self.link.attachment
            self.link.take_session(frame)

    def send_upstream(self, frame: bytes, to: Attachment | None) -> None:
        self.link.send_upstream(frame)

    def send_to(self, to: object, frame: bytes) -> None:
        self.link.send(frame) or self.link.send_upstream(frame)

    def drop_held(self) -> None:
        self.link.drop_held()

    def perform(self) -> None:
        perform(self.client, self)

    # The actions of a test

    def welcome(self, *args: wire.State, **changes: Any) -> None:
        self.exchange.welcome(*args, **changes)
        self.perform()

    def confirm(self, number: int | None = None, instance: bytes | None = None) -> None:
        """Answer the last echo or marker, or the one with this number."""
        self.exchange.confirm(self.exchange.echoes()[-1] if number is None else number, instance)
        self.perform()

    def tick(self, after: float = 0.0) -> float:
        self.clock.now += after
        due = self.link.tick(self.clock.now)
        self.perform()
        return due

    def verify(self) -> None:
        """Connect and welcome the link, so that its PUSH is open and has sent an echo."""
        self.exchange.connected()
        self.welcome()
        self.tick(OPEN_EVERY)

    def come_up(self) -> None:
        self.verify()
        self.confirm()
        assert self.link.state is State.UP
        self.exchange.push.take()
        self.lines()

    def publish(self, payload: bytes = b"x", topic: wire.Topic = G, ttl: int = TTL) -> int:
        """Send or hold a message, as the set of links does, and return its number."""
        number = self.link.publish(topic, payload, ttl) if self.link.passes else 0
        if not number:
            self.hold(payload, topic, ttl)
        return number

    def hold(self, payload: bytes = b"x", topic: wire.Topic = G, ttl: int = TTL) -> bool:
        return self.link.hold(Held(self.clock.now + ttl / 1000, topic, payload), self.clock.now)

    def payloads(self) -> list[bytes]:
        return self.exchange.payloads()

    def fill(self) -> None:
        """Fill the window."""
        for number in range(WINDOW):
            self.publish(b"%d" % number)

    def lines(self) -> list[str]:
        reports, self.client.counters.reports = self.client.counters.reports, []
        return [report.message % report.arguments for report in reports]

    def kinds(self) -> list[bytes]:
        """Remove the frames that were sent upstream, and return their kinds."""
        return [frame[:1] for frame in self.exchange.subscriber.take_sent()]


@pytest.fixture
def make(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    replace_sockets(monkeypatch, clock)
    return lambda **how: Rig(clock, **how)


@pytest.fixture
def rig(make: Callable[..., Rig]) -> Rig:
    return make()


# The table


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_changes_the_state_as_the_table_says(rig: Rig, state: State, event: Event) -> None:
    """An event that a state does not list changes nothing, and leaving `UP` is reported once to the owner and the log.

    Requests do not wait for a link that is down. No message passes before the held ones.
    """
    rig.link.state, rig.link.passes = state, state is State.UP
    target = TRANSITIONS[state].get(event)
    assert rig.link._enter(event) == (target is not None)
    assert rig.link.state is (target or state)
    leaves = state is State.UP and target is not None
    assert rig.told == ["down"] * leaves
    assert len(rig.lines()) == leaves
    assert rig.link.passes == (state is State.UP and target is None)
    assert rig.link.attachment.is_reachable == (target is not State.DOWN)


@pytest.mark.parametrize("state", State)
def test_a_link_is_connected_once_its_subscribers_side_is(rig: Rig, state: State) -> None:
    """A link counts as connected if its subscriber's side is, whatever the state of its producer's side."""
    rig.link.state = state
    assert rig.link.is_connected == (state not in (State.CONNECTING, State.DOWN))
    assert rig.link.stats(carries=True)["state"] == state.value


# Starting


def test_a_link_subscribes_to_its_inbox_when_it_starts_and_to_all_groups_when_it_connects(rig: Rig) -> None:
    """A link subscribes to its inbox at the start, and to all groups when it connects, for earlier members."""
    join = rig.client.join(G, "a", 9, None)
    link = Link(
        FORWARDER, cast(Any, rig.context), rig.link._options, rig.client, rig.ledger, rig, rig.calls.append, bytes
    )
    link.start()
    assert rig.watched == [rig.exchange.subscriber, link._subscriber]
    subscriber = cast(Subscriber, link._subscriber)
    assert subscriber.take_sent() == [wire.subscription(wire.inbox_topic(INBOX))]
    assert rig.context.pushes == []
    link._subscriber_event(CONNECTED)
    assert subscriber.take_sent() == [wire.subscription(join.group.topic)]


def test_an_invalid_address_is_an_error(make: Callable[..., Rig]) -> None:
    """An invalid address raises an error that names the setting, and leaves no socket open."""
    context = Context()
    with pytest.raises(ConfigurationError, match="pub_socket_address"):
        make(context=context, forwarder=Forwarder("tcp://pull", INVALID))
    assert [one.is_closed for one in context.subscribers] == [True]


# Coming up


def test_a_link_comes_up_step_by_step(rig: Rig) -> None:
    """A link comes up by a handshake, a welcome, a PUSH that `tick` opens, an echo, and the same instance's answer."""
    states = [rig.link.state]
    rig.exchange.connected()
    states.append(rig.link.state)
    assert rig.calls == [0.0]
    rig.calls.clear()
    rig.welcome()
    states.append(rig.link.state)
    assert rig.context.pushes == []
    assert rig.calls[-1] == 0.0
    rig.tick(OPEN_EVERY)
    (push,) = rig.context.pushes
    assert (push.address, [frame[:1] for frame in push.frames]) == ("tcp://pull", [b"E"])
    assert push.options[zmq.RECONNECT_IVL] == -1
    rig.confirm()
    states.append(rig.link.state)
    assert states == [State.CONNECTING, State.GREETING, State.VERIFYING, State.UP]
    assert (rig.told, rig.link.passes, rig.link.instance) == (["up"], True, ONE)
    assert rig.lines() == []


def test_a_session_begins_with_what_the_exchange_cannot_know(rig: Rig) -> None:
    """A session begins with normal members and a hello, which lists the forwarders; requests follow the welcome."""
    rig.client.normal_members.changed(wire.Member(INBOX, 1, 1, 0, 0, 9, b"g", b"jobs"))
    rig.client.begin_request(5, Request(b"Ysync", to_all=True))
    rig.exchange.connected()
    ((member,),) = rig.exchange.subscriber.greeted
    assert member[:1] == b"M"
    assert rig.exchange.subscriber.lists == [b"list"]
    rig.kinds()
    rig.welcome()
    assert rig.kinds() == [b"Y"]
    assert rig.link.attachment.credit.session == 1


def test_ticks_repeat_the_hello_as_often_as_it_needs(rig: Rig) -> None:
    """Ticks repeat the hello, at the time that the subscriber sets, until it is answered."""
    rig.exchange.connected()
    rig.exchange.subscriber.due = rig.clock.now + 0.3
    assert rig.tick() == rig.clock.now + 0.3
    assert rig.exchange.subscriber.ticked == [rig.clock.now]


def test_what_came_by_the_former_connection_is_read_before_the_next_session(rig: Rig) -> None:
    """Input of the former connection is read before the next session begins, and counts for the former one."""
    rig.come_up()
    seen = []
    rig.exchange.subscriber.arriving = [b"1", b"2"]
    rig.client.feed = lambda frame, attachment: seen.append((frame, rig.exchange.subscriber.session))
    rig.exchange.connected()
    assert seen == [(b"1", 1), (b"2", 1)]
    assert rig.exchange.subscriber.session == 2


def test_no_push_is_opened_before_the_exchange_serves(rig: Rig) -> None:
    """While the exchange settles and cannot answer an echo, no PUSH is opened and the time to verify does not begin."""
    rig.exchange.connected()
    rig.welcome(SETTLING)
    for _ in range(10):
        rig.tick(1.0)
    assert (rig.link.state, rig.context.pushes, rig.lines()) == (State.VERIFYING, [], [])
    rig.calls.clear()
    rig.welcome(SERVING)
    assert rig.calls == [0.0]
    rig.tick()
    assert rig.lines() == [], "the time to verify counts from now"
    rig.confirm()
    assert rig.link.state is State.UP


@pytest.mark.parametrize("answer", [{"instance": TWO}, {"number": 10**9}])
def test_another_answer_than_that_of_the_welcoming_instance_does_not_verify(rig: Rig, answer: dict[str, Any]) -> None:
    """Only the welcoming instance's answer to the current echo verifies a link: its sides may reach two instances."""
    rig.verify()
    rig.confirm(**answer)
    assert (rig.link.state, rig.told) == (State.VERIFYING, [])


def test_an_echo_without_a_welcome_verifies_nothing(rig: Rig) -> None:
    """An answer to an echo does not verify a link that has lost its subscriber's connection since."""
    rig.verify()
    (number,) = rig.exchange.echoes()
    rig.exchange.disconnected()
    rig.confirm(number)
    assert rig.link.state is State.DOWN


@pytest.mark.parametrize("state", State)
def test_a_confirmation_without_an_echo_is_ignored(rig: Rig, state: State) -> None:
    """A late confirmation, without a pending echo, changes neither the state nor the owner's view."""
    rig.link.state = state
    rig.confirm(number=1)
    assert (rig.link.state, rig.told) == (state, [])


def test_a_welcome_of_an_earlier_session_is_ignored(rig: Rig) -> None:
    """A welcome of an earlier session reaches neither the link nor its owner."""
    rig.exchange.connected()
    rig.welcome(session=0)
    assert (rig.link.state, rig.welcomes) == (State.GREETING, [])


def test_the_owner_learns_of_every_welcome_of_the_session(rig: Rig) -> None:
    """The owner gets every welcome of the session, as a later one may list more forwarders; the session begins once."""
    rig.exchange.connected()
    for forwarders in (b"", b"0tcp://a\0tcp://b"):
        rig.welcome(forwarders=forwarders)
    assert [one.forwarders for one in rig.welcomes] == [b"", b"0tcp://a\0tcp://b"]
    assert rig.link.welcome is rig.welcomes[-1]
    assert rig.link.state is State.VERIFYING


def test_requests_for_all_exchanges_follow_the_welcome(rig: Rig) -> None:
    """After the welcome, requests for all exchanges take the subscriber's path: the producer's may open much later."""
    rig.client.begin_request(5, Request(b"Mmember", to_all=True))
    rig.client.begin_request(6, Request(b"Lflush", to_all=True))
    rig.exchange.connected()
    rig.kinds()
    rig.welcome(SETTLING)
    assert rig.kinds() == [b"M", b"L"]


# Verifying


def test_an_unanswered_echo_is_repeated(rig: Rig) -> None:
    """An unanswered echo is repeated with its number, so that an answer counts however late it arrives."""
    rig.verify()
    (first,) = rig.exchange.echoes()
    rig.tick(ECHO_EVERY - 0.1)
    assert rig.exchange.echoes() == [first]
    rig.tick(0.1)
    assert rig.exchange.echoes() == [first, first]
    rig.confirm(first)
    assert rig.link.state is State.UP


def test_an_answer_that_waits_behind_other_frames_is_waited_for(rig: Rig) -> None:
    """A link waits for an answer behind other frames, as a probe shows: repeated new PUSHes would never get one."""
    rig.verify()
    rig.exchange.subscriber.others_come_first = True
    rig.tick(PATIENCE / 2 - OPEN_EVERY - 0.05)
    assert rig.exchange.subscriber.probed_at == -inf
    rig.tick(0.1)
    assert rig.exchange.subscriber.probed_at == rig.clock.now
    rig.tick(SILENT_AFTER - 0.1)
    assert (rig.lines(), len(rig.context.pushes)) == ([], 1)
    rig.tick(0.1)
    assert rig.lines() == ["no echo from tcp://pull: reconnecting"]


def test_a_push_that_a_serving_instance_does_not_hear_is_replaced(rig: Rig) -> None:
    """A PUSH whose echo stays unanswered is replaced and its frames are dropped; the next one gets as much time."""
    rig.verify()
    rig.tick(PATIENCE - OPEN_EVERY - 0.1)
    assert rig.lines() == []
    rig.calls.clear()
    rig.tick(0.2)
    assert rig.lines() == ["no echo from tcp://pull: reconnecting"]
    assert rig.calls == [0.0]
    rig.tick()
    first, second = rig.context.pushes
    assert (first.linger, second.linger, len(second.frames)) == (0, None, 1)
    rig.tick(PATIENCE - 0.1)
    assert rig.lines() == []


def test_further_welcomes_do_not_put_off_the_end_of_the_patience(rig: Rig) -> None:
    """Further welcomes, which each change of the number of clients causes, do not extend the time to verify."""
    rig.verify()
    for _ in range(round(PATIENCE)):
        rig.tick(1.0)
        rig.welcome()
    rig.tick()
    assert rig.lines() == ["no echo from tcp://pull: reconnecting"]


def test_an_address_of_the_producers_side_that_is_invalid_is_reported(make: Callable[..., Rig]) -> None:
    """An invalid address of the producer's side, even one from another process, is reported once; the link stays."""
    rig = make(forwarder=Forwarder(INVALID, "tcp://pub"))
    rig.verify()
    rig.tick(OPEN_EVERY)
    assert rig.link.state is State.VERIFYING
    (line,) = rig.lines()
    assert "pull_socket_address" in line
    assert [(push.linger, rig.exchange.push) for push in rig.context.pushes] == [(0, None)] * 2


# Losing a connection


def test_a_lost_push_is_replaced_by_the_next_tick_and_verified(rig: Rig) -> None:
    """A lost PUSH is replaced by the next tick and verified; its frames are dropped, because they are sent again."""
    rig.come_up()
    opened_at = rig.clock.now
    rig.clock.now += 10 * PATIENCE
    rig.exchange.push_disconnected()
    assert (rig.link.state, rig.told, rig.link.passes) == (State.VERIFYING, ["up", "down"], False)
    assert rig.calls[-1] == opened_at + OPEN_EVERY
    rig.lines()
    rig.tick()
    assert rig.lines() == [], "the time to verify counts from the loss"
    first, second = rig.context.pushes
    assert (first.linger, [frame[:1] for frame in second.frames]) == (0, [b"E"])
    rig.confirm()
    assert rig.link.state is State.UP
    assert rig.exchange.subscriber.session == 1


def test_a_push_is_not_opened_more_often_than_is_useful(rig: Rig) -> None:
    """A PUSH is opened every `OPEN_EVERY` at most, because a forwarder that ends refuses connections at once."""
    rig.verify()
    rig.exchange.push_disconnected()
    due = rig.tick()
    assert len(rig.context.pushes) == 1
    assert due == rig.clock.now + OPEN_EVERY
    rig.tick(OPEN_EVERY)
    assert len(rig.context.pushes) == 2


def test_the_handshake_of_a_push_changes_nothing(rig: Rig) -> None:
    """The handshake of a PUSH does not verify the link; only the answer to an echo does."""
    rig.verify()
    rig.link._push_event(CONNECTED)
    assert rig.link.state is State.VERIFYING
    rig.tick(OPEN_EVERY)
    assert len(rig.context.pushes) == 1


@pytest.mark.parametrize("noticed", [True, False])
def test_a_new_session_needs_a_new_push(rig: Rig, noticed: bool) -> None:
    """A new session needs a new PUSH, even after an unnoticed loss: an echo by the former one proves nothing."""
    rig.come_up()
    if noticed:
        rig.exchange.disconnected()
        assert rig.link.state is State.DOWN
    rig.exchange.connected()
    assert (rig.link.state, rig.told) == (State.GREETING, ["up", "down"])
    rig.exchange.instance = TWO
    rig.welcome()
    rig.tick(OPEN_EVERY)
    first, second = rig.context.pushes
    assert first.linger == 0
    rig.confirm()
    assert (rig.link.state, rig.link.instance, rig.exchange.push) == (State.UP, TWO, second)


def test_a_link_that_is_down_has_neither_a_session_nor_a_push(rig: Rig) -> None:
    """A link that is down has no session, and the next tick, due at once, closes its PUSH and drops the frames."""
    rig.come_up()
    rig.calls.clear()
    rig.exchange.disconnected()
    assert (rig.link.welcome, rig.exchange.subscriber.is_connected, rig.calls) == (None, False, [0.0])
    rig.tick()
    (push,) = rig.context.pushes
    assert (push.linger, rig.exchange.push) == (0, None)
    rig.tick(PATIENCE)
    assert len(rig.context.pushes) == 1


@pytest.mark.parametrize("event", ["lost", "push lost"])
def test_an_outage_and_its_end_are_logged(rig: Rig, event: str) -> None:
    """An outage and its end are logged, with the duration."""
    rig.come_up()
    if event == "lost":
        rig.exchange.disconnected()
    else:
        rig.exchange.push_disconnected()
    assert rig.lines() == [f"the forwarder at {NAME} is unreachable"]
    rig.clock.now += 1.3
    if event == "lost":
        rig.exchange.connected()
        rig.welcome()
    rig.tick(0.2)
    rig.confirm()
    assert rig.lines() == [f"the forwarder at {NAME} is reachable after 1.5 s"]


@pytest.mark.parametrize(
    "event, to_one, to_all",
    [("lost", LOST, 0), ("push lost", None, None), ("reconnected", LOST, None), ("drains", None, None)],
)
def test_requests_learn_that_their_exchange_may_never_answer(
    rig: Rig, event: str, to_one: int | None, to_all: int | None
) -> None:
    """Messages for normal channels fail once no answer can arrive; requests to all stop waiting for a lost link."""
    rig.come_up()
    plain = Request(b"Aplain", repeats=False, waiter=Reader())
    everybody: Request[Reader] = Request(b"Ysync", to_all=True)
    rig.client.begin_request(5, plain)
    rig.client.attach()
    rig.client.begin_request(6, everybody)
    rig.client.feed(wire.SYNCED.encode(wire.Synced(INBOX, 6)), rig.client.attachments[1])
    assert rig.link.send_request(plain.frame, 5)
    match event:
        case "lost":
            rig.exchange.disconnected()
        case "push lost":
            rig.exchange.push_disconnected()
        case "reconnected":
            rig.exchange.connected()
        case "drains":
            rig.welcome(DRAINING)
    assert (plain.answer, everybody.answer) == (to_one, to_all)


@pytest.mark.parametrize("lost", ["push", "subscriber"])
def test_what_is_lost_while_the_link_is_down_changes_nothing(rig: Rig, lost: str) -> None:
    """While the link is down, further losses change nothing, because the subscriber's side determines the state."""
    rig.link._enter(Event.FAILED)
    (rig.exchange.push_disconnected if lost == "push" else rig.exchange.disconnected)()
    assert (rig.link.state, rig.told) == (State.DOWN, [])


def test_an_attempt_to_connect_that_fails_is_not_waited_for(rig: Rig) -> None:
    """A failed attempt to connect delays no request, so that a process can join while one of its forwarders is down."""
    request: Request[Reader] = Request(b"Ysync", to_all=True)
    rig.client.attach()
    rig.client.begin_request(5, request)
    rig.client.feed(wire.SYNCED.encode(wire.Synced(INBOX, 5)), rig.client.attachments[1])
    assert request.answer is None
    rig.link._subscriber_event(zmq.Event.CONNECT_RETRIED)
    assert (rig.link.state, request.answer) == (State.DOWN, 0)


@pytest.mark.parametrize("others_use_it, seconds", [(True, PATIENCE), (False, CONNECTS_WITHIN)])
def test_an_attempt_to_connect_that_is_not_answered_is_waited_for_briefly(
    rig: Rig, others_use_it: bool, seconds: float
) -> None:
    """An unanswered attempt to connect delays requests for a bounded time, less if no client uses the forwarder."""
    request: Request[Reader] = Request(b"Ysync", to_all=True)
    rig.client.attach()
    rig.client.begin_request(5, request)
    rig.client.feed(wire.SYNCED.encode(wire.Synced(INBOX, 5)), rig.client.attachments[1])
    rig.others_use_it = others_use_it
    rig.tick(seconds - 0.1)
    assert (rig.link.state, request.answer) == (State.CONNECTING, None)
    assert rig.calls[-1] == pytest.approx(rig.clock.now + 0.1)
    rig.tick(0.1)
    assert (rig.link.state, request.answer) == (State.DOWN, 0)


@pytest.mark.parametrize("refusal, reason", [("", ""), ("no key", ": no key")])
def test_a_forwarder_that_is_never_reached_is_logged_once(rig: Rig, refusal: str, reason: str) -> None:
    """A forwarder that is never reached, refusing or silent, is logged once, and again when it is finally reached."""
    rig.link._enter(Event.FAILED)
    rig.link.refusal = refusal
    rig.tick(REPORTED_AFTER)
    assert rig.lines() == []
    for _ in range(3):
        rig.tick(0.5)
    assert rig.lines() == [f"the forwarder at {NAME} cannot be reached{reason}; trying again"]
    rig.verify()
    rig.confirm()
    assert [line.rpartition(" after ")[0] for line in rig.lines()] == [f"the forwarder at {NAME} is reachable"]


# The window


def test_a_message_stays_in_the_window_until_a_marker_behind_it_is_answered(rig: Rig) -> None:
    """A message stays in the window until a marker behind it is answered; without one no marker is sent."""
    rig.come_up()
    rig.tick()
    assert rig.exchange.echoes() == []
    rig.calls.clear()
    for _ in range(3):
        rig.publish()
    assert rig.calls == [rig.clock.now + BLOCK_SECONDS]
    assert rig.tick() == rig.clock.now + BLOCK_SECONDS
    rig.tick(BLOCK_SECONDS)
    assert [frame[:1] for frame in rig.exchange.push.frames] == [b"G", b"G", b"G", b"E"]
    assert (rig.link.held, rig.link.stats(carries=True)["unacknowledged"]) == (3, 3)
    rig.confirm()
    assert (rig.link.held, rig.link.stats(carries=True)["unacknowledged"]) == (0, 0)
    rig.tick(1.0)
    assert len(rig.exchange.echoes()) == 1


def test_a_marker_follows_every_full_block(rig: Rig) -> None:
    """A marker follows every full block, without a tick."""
    rig.come_up()
    for _ in range(BLOCK_FRAMES):
        rig.publish()
    frames = [frame[:1] for frame in rig.exchange.push.frames]
    assert frames == [b"G"] * BLOCK_FRAMES + [b"E"]


def test_a_full_window_holds_messages_until_one_of_its_markers_is_answered(rig: Rig) -> None:
    """A full window holds messages until a marker is answered, then sends them in order, and new ones pass again."""
    rig.come_up()
    rig.fill()
    assert not rig.link.passes
    first, _ = rig.exchange.echoes()
    rig.payloads()
    rig.publish(b"held")
    assert rig.tick(BLOCK_SECONDS) == rig.clock.now + WATCH_EVERY
    assert (rig.payloads(), rig.link.held) == ([], WINDOW + 1)
    rig.confirm(first)
    assert rig.payloads() == [b"held"]
    assert rig.link.passes
    rig.publish(b"next")
    assert rig.payloads() == [b"next"]


def test_a_sender_reads_answers_that_have_arrived_before_it_holds_a_message(rig: Rig) -> None:
    """A sender reads answers that have arrived before it holds a message, since the event loop may not have done so."""
    rig.come_up()
    rig.fill()
    for number in rig.exchange.echoes():
        frame = wire.CONFIRM.encode(wire.Confirm(INBOX, number, wire.Status.OK, ONE))
        rig.exchange.subscriber.arriving.append(frame)
    rig.link.make_room()
    assert rig.link.passes
    assert len(rig.exchange.subscriber.arriving) == 1, "no more is read than is needed"


def test_a_window_without_answers_has_no_room(rig: Rig) -> None:
    """Without an answer a full window gets no room, and a sender reads a single turn to look for one."""
    rig.come_up()
    rig.fill()
    rig.exchange.subscriber.arriving = [b"?"] * 100
    rig.link.make_room()
    assert not rig.link.passes
    assert len(rig.exchange.subscriber.arriving) == 99
    assert rig.client.out.has_input, "the event loop is not told of what was there before"


def test_a_link_that_is_not_up_reads_nothing_for_its_senders(rig: Rig) -> None:
    """A link that is not up reads no input for its senders, because its window is empty."""
    rig.exchange.subscriber.arriving = [b"?"]
    rig.link.make_room()
    assert rig.exchange.subscriber.arriving == [b"?"]


def test_a_marker_that_the_socket_does_not_take_is_sent_later(rig: Rig) -> None:
    """A marker that the socket refuses is sent later, behind all messages."""
    rig.come_up()
    rig.publish()
    rig.exchange.push.is_full = True
    rig.tick(BLOCK_SECONDS)
    rig.exchange.push.is_full = False
    rig.tick(BLOCK_SECONDS)
    assert [frame[:1] for frame in rig.exchange.push.frames] == [b"G", b"E"]
    rig.confirm()
    assert rig.link.held == 0


def test_an_acknowledgement_can_be_asked_for_at_once(rig: Rig) -> None:
    """An acknowledgement can be requested at once, as at exit; without messages or a connection no marker is sent."""
    rig.come_up()
    rig.link.mark_now()
    assert rig.exchange.echoes() == []
    rig.publish()
    rig.link.mark_now()
    rig.confirm()
    assert rig.link.held == 0
    rig.exchange.disconnected()
    rig.link.mark_now()
    assert len(rig.exchange.echoes()) == 1


# Silence


def silent(rig: Rig, seconds: float, every: float = WATCH_EVERY) -> None:
    """Let time pass in ticks."""
    for _ in range(int(seconds / every)):
        rig.tick(every)


def test_a_link_by_which_nothing_is_acknowledged_is_given_up(rig: Rig) -> None:
    """A link without acknowledgements is given up after `PATIENCE`, and must be verified by a new PUSH."""
    rig.come_up()
    rig.tick()
    rig.publish(b"1")
    silent(rig, PATIENCE)
    assert rig.link.state is State.UP
    rig.tick(WATCH_EVERY)
    assert (rig.link.state, rig.told) == (State.VERIFYING, ["up", "down"])
    assert [wire.read_group(held.body)[5] for held in rig.taken] == [b"1"]
    assert rig.calls[-1] == 0.0
    rig.tick()
    first, second = rig.context.pushes
    assert (first.linger, [frame[:1] for frame in second.frames]) == (0, [b"E"])
    assert rig.exchange.subscriber.session == 1
    assert rig.lines() == [f"the forwarder at {NAME} is unreachable"]


def test_a_link_is_given_up_on_time(rig: Rig) -> None:
    """A link is given up within 1 ms after `PATIENCE`, so that messages are late by no more, and with few ticks."""
    rig.come_up()
    rig.tick(TICK_EVERY)
    rig.publish()
    rig.link.mark_now()
    rig.tick(0.1)
    rig.confirm()
    sent, due, ticks = rig.clock.now, rig.clock.now, 0
    rig.publish()
    while rig.link.state is State.UP:
        due = rig.tick(max(0.0, due - rig.clock.now))
        ticks += 1
    assert PATIENCE <= rig.clock.now - sent < PATIENCE + 0.001
    assert ticks < 2 * PATIENCE / WATCH_EVERY


def test_a_link_by_which_only_requests_are_sent_is_given_up_too(rig: Rig) -> None:
    """A link that carries only requests is given up too, so that their callers learn of the loss in time."""
    rig.come_up()
    rig.tick()
    request = Request(b"Q", repeats=False, waiter=Reader())
    rig.client.begin_request(5, request)
    assert rig.link.send_request(b"Q", 5)
    rig.tick(BLOCK_SECONDS)
    assert [frame[:1] for frame in rig.exchange.push.frames] == [b"Q", b"E"]
    silent(rig, PATIENCE - WATCH_EVERY)
    assert (rig.link.state, request.answer) == (State.UP, None)
    silent(rig, 2 * WATCH_EVERY)
    assert (rig.link.state, request.answer, rig.taken) == (State.VERIFYING, LOST, [])


@pytest.mark.parametrize("end, lost", [("acknowledged", 0), ("lost", 1), ("drained", 0)])
def test_a_job_that_was_handed_back_by_a_lost_link_counts_as_lost(rig: Rig, end: str, lost: int) -> None:
    """A job without a caller that waits counts as lost if it is unknown whether the forwarder has received it."""
    rig.come_up()
    rig.tick()
    assert rig.link.send_request(wire.BACK.encode(wire.Back(rig.client.inbox, 7, TTL, b"jobs", b"x")), 0)
    if end == "acknowledged":
        rig.tick(BLOCK_SECONDS)
        rig.confirm()
    elif end == "drained":
        rig.welcome(wire.State.DRAINING)
    rig.exchange.push_disconnected()
    assert rig.client.counters.dropped["lost_delivery"] == lost


def test_jobs_that_are_handed_back_are_acknowledged_once_a_round_trip(rig: Rig) -> None:
    """An acknowledgement of a job that was handed back is requested at once, and those behind it share the next one."""
    rig.come_up()
    rig.tick()
    back = wire.BACK.encode(wire.Back(rig.client.inbox, 7, TTL, b"jobs", b"x"))
    echoes = [0] * 3
    for round_trip in range(3):
        for _ in range(100 if round_trip < 2 else 0):
            assert rig.link.send_request(back, 0)
        echoes[round_trip] = len(rig.exchange.echoes())
        assert rig.link.held > 0, "a process that is closed now does not wait for them"
        rig.confirm()
    assert echoes == [1, 2, 3]
    assert (len(rig.exchange.echoes()), rig.link.held) == (3, 0)


def asked(rig: Rig) -> Request[Reader]:
    """Send a request that is not repeated."""
    request = Request(b"Q", repeats=False, waiter=Reader())
    rig.client.begin_request(5, request)
    assert rig.link.send_request(b"Q", 5)
    return request


@pytest.mark.parametrize("drains", [False, True])
def test_an_answer_that_has_arrived_before_the_connection_is_lost_counts(rig: Rig, drains: bool) -> None:
    """An answer that arrived before the connection was lost counts, although a busy loop reads it later."""
    rig.come_up()
    request = asked(rig)
    if drains:
        rig.welcome(wire.State.DRAINING)
    answer = wire.CONFIRM.encode(wire.Confirm(rig.client.inbox, 5, wire.Status.OK, ONE))
    rig.exchange.subscriber.arriving = [group_frame(1), answer]
    rig.exchange.disconnected()
    assert rig.client.out.has_input
    rig.tick()
    assert (request.answer, rig.link.state) == (None, State.DOWN)
    while rig.link.downlink.read():
        pass
    rig.tick()
    assert request.answer == wire.Status.OK


@pytest.mark.parametrize("end", ["read", "connected again", "time is over"])
def test_a_request_without_an_answer_fails_when_all_is_read(rig: Rig, end: str) -> None:
    """A request without an answer fails when all input is read, a new session begins, or after `READS_FORMER_FOR`."""
    rig.come_up()
    request = asked(rig)
    rig.exchange.subscriber.arriving = [group_frame(1)]
    rig.exchange.disconnected()
    rig.calls.clear()
    rig.tick()
    assert (request.answer, min(rig.calls)) == (None, rig.clock.now + FULL_RETRY)
    match end:
        case "read":
            rig.link.downlink.read()
            rig.tick()
        case "connected again":
            rig.exchange.connected()
        case _:
            rig.tick(READS_FORMER_FOR)
    assert request.answer == LOST


@pytest.mark.parametrize("end", ["answered", "echoed", "lost", "time is over"])
def test_a_request_waits_for_its_answer_when_only_push_is_lost(rig: Rig, end: str) -> None:
    """If only PUSH is lost, the answer may arrive until that of the next PUSH's echo, for `READS_FORMER_FOR`."""
    rig.come_up()
    request = asked(rig)
    rig.calls.clear()
    rig.exchange.push_disconnected()
    assert rig.clock.now + READS_FORMER_FOR in rig.calls
    rig.tick(OPEN_EVERY)
    assert request.answer is None
    match end:
        case "answered":
            answer = wire.CONFIRM.encode(wire.Confirm(rig.client.inbox, 5, wire.Status.OK, ONE))
            rig.client.feed(answer, rig.link.attachment)
        case "echoed":
            rig.confirm()
        case "lost":
            rig.exchange.disconnected()
        case _:
            rig.tick(READS_FORMER_FOR)
    assert request.answer == (wire.Status.OK if end == "answered" else LOST)


def test_the_window_of_a_link_that_no_topic_is_sent_by_is_emptied_too(rig: Rig) -> None:
    """The window is emptied when a link goes down even if its owner takes nothing: none of it can be acknowledged."""
    rig.come_up()
    rig.link.send(b"k")
    rig.tick(BLOCK_SECONDS)
    rig.went_down = lambda link: None
    rig.exchange.push_disconnected()
    assert len(rig.link._window) == 0


def test_large_requests_wait_for_room_in_the_window(rig: Rig) -> None:
    """Requests wait for room in the window; otherwise PUSH would accept any amount of bytes."""
    rig.come_up()
    size = rig.link._window._max_bytes
    assert rig.link.send_request(bytes(size), 5)
    assert not rig.link.send_request(b"Q", 6)
    rig.confirm()
    assert rig.link.send_request(b"Q", 6)


def test_a_link_that_falls_silent_after_an_answer_is_given_up(rig: Rig) -> None:
    """The time after which a silent link is given up counts from the last answer."""
    rig.come_up()
    rig.tick()
    rig.publish()
    silent(rig, PATIENCE / 2)
    rig.confirm()
    rig.publish()
    silent(rig, PATIENCE)
    assert rig.link.state is State.UP
    silent(rig, 2 * WATCH_EVERY)
    assert rig.link.state is State.VERIFYING


def test_a_large_message_has_the_time_that_it_takes_on_the_slowest_link(rig: Rig) -> None:
    """A large message gets the time that the slowest link needs; otherwise it would be repeated and never arrive."""
    rig.come_up()
    rig.tick()
    rig.publish(bytes(SLOWEST_LINK // 8))
    rig.tick()
    silent(rig, PATIENCE + 1)
    assert rig.link.state is State.UP
    silent(rig, 2 * WATCH_EVERY)
    assert rig.link.state is State.VERIFYING


def test_a_marker_that_a_full_socket_refuses_is_tried_again_after_a_pause(rig: Rig) -> None:
    """A marker that a full socket refuses is tried again after `FULL_RETRY`; without a pause the thread would spin."""
    rig.come_up()
    rig.tick()
    for _ in range(BLOCK_FRAMES - 1):
        rig.publish()
    rig.exchange.push.is_full = True
    rig.tick(BLOCK_SECONDS)
    assert rig.tick() == rig.clock.now + FULL_RETRY
    rig.exchange.push.is_full = False
    rig.tick(FULL_RETRY)
    assert [frame[:1] for frame in rig.exchange.push.take()[-1:]] == [b"E"]


def test_it_is_looked_at_often_enough_while_something_is_unacknowledged(rig: Rig) -> None:
    """A link is watched every `WATCH_EVERY` while frames are unacknowledged, and rarely otherwise."""
    rig.come_up()
    assert rig.tick() == rig.clock.now + TICK_EVERY
    rig.publish()
    assert rig.tick(BLOCK_SECONDS) == rig.clock.now + WATCH_EVERY


@pytest.mark.parametrize("why", ["nothing sent", "answers", "stood still", "unread input", "others first"])
def test_some_silence_is_none(rig: Rig, why: str) -> None:
    """Silence does not count if nothing was sent, answers arrive, or this process stood still or has unread input."""
    rig.come_up()
    if why != "nothing sent":
        rig.tick()
        rig.publish()
    match why:
        case "nothing sent":
            silent(rig, 2 * PATIENCE)
        case "answers":
            for _ in range(5):
                silent(rig, PATIENCE - 0.5)
                rig.confirm()
                rig.publish()
        case "stood still":
            rig.tick(10 * PATIENCE)
        case "unread input":
            rig.exchange.subscriber.arriving = [b"?"]
            silent(rig, 2 * PATIENCE)
        case "others first":
            rig.exchange.subscriber.others_come_first = True
            silent(rig, PATIENCE + 1)
            assert PATIENCE / 2 < rig.clock.now - rig.exchange.subscriber.probed_at < PATIENCE
    assert (rig.link.state, rig.told) == (State.UP, ["up"])


def test_silence_before_an_outage_does_not_count_behind_it(rig: Rig) -> None:
    """The time after which a silent link is given up starts again when the link comes up."""
    rig.come_up()
    rig.tick()
    rig.publish()
    silent(rig, PATIENCE - WATCH_EVERY)
    rig.exchange.push_disconnected()
    rig.tick(OPEN_EVERY)
    rig.confirm()
    rig.publish()
    silent(rig, PATIENCE - WATCH_EVERY)
    assert rig.link.state is State.UP


# Handing over to other links


def numbers(taken: list[Held]) -> list[int]:
    return [wire.read_group(held.body)[2] for held in taken]


def test_what_may_be_lost_is_handed_over_in_the_order_in_which_it_was_sent(rig: Rig) -> None:
    """Frames that may be lost are handed over in the order of sending, acknowledged or not, then held messages."""
    rig.come_up()
    sent = [rig.publish(b"acknowledged")]
    rig.link.mark_now()
    rig.confirm()
    sent += [rig.publish(b"marked")]
    rig.link.mark_now()
    sent += [rig.publish(b"open")]
    rig.hold(b"held")
    rig.exchange.disconnected()
    *again, last = rig.taken
    assert numbers(again) == sent
    assert [(held.kind, held.key) for held in again] == [(Kind.REPEAT, G)] * 3
    assert (last.kind, last.key, last.body) == (Kind.MESSAGE, G, b"held")
    assert [held.counts for held in rig.taken] == [False, True, True, True]
    assert (rig.link.held, rig.ledger.count) == (0, 0)


def test_what_is_handed_over_keeps_its_deadline(rig: Rig) -> None:
    """Frames that are handed over keep their deadlines, which count from when they were sent or held."""
    rig.come_up()
    rig.publish(ttl=1000)
    until = rig.clock.now + 1
    rig.clock.now += 0.4
    rig.hold(ttl=2000)
    rig.exchange.disconnected()
    assert [held.deadline for held in rig.taken] == [until, until + 1.4]


def test_the_forwarder_is_told_of_the_window_when_it_has_changed(rig: Rig) -> None:
    """The forwarder gets a report on a changed window, at most once in `REPORT_EVERY`, if it accepts the frame."""

    def reports() -> list[tuple[int, int]]:
        frames = [frame for frame in rig.exchange.push.take() if frame[:1] == b"W"]
        return [wire.WINDOW.decode(frame)[1:] for frame in frames]

    rig.come_up()
    rig.publish()
    rig.tick(REPORT_EVERY)
    assert reports() == []
    rig.exchange.accept_batches()
    for _ in range(2):
        rig.publish()
        rig.tick()
    assert reports() == [(2, 0)]
    rig.tick(REPORT_EVERY)
    assert reports() == [(3, 0)]
    rig.tick(REPORT_EVERY)
    assert reports() == []


def test_what_was_acknowledged_a_while_ago_is_not_sent_again(rig: Rig) -> None:
    """A message that was acknowledged `KEEP_SECONDS` ago is not sent again, because it has reached its subscribers."""
    rig.come_up()
    rig.publish()
    rig.tick(BLOCK_SECONDS)
    rig.confirm()
    rig.tick(KEEP_SECONDS)
    rig.exchange.disconnected()
    assert rig.taken == []


def test_a_message_that_is_sent_again_keeps_its_number_and_loses_the_time_in_between(rig: Rig) -> None:
    """A message that is sent again keeps its number, has the time in between deducted from its TTL, and is counted."""
    rig.come_up()
    number = rig.publish(b"1", ttl=1000)
    rig.exchange.disconnected()
    rig.clock.now += 0.2
    rig.exchange.connected()
    rig.welcome()
    rig.tick(OPEN_EVERY)
    for held in rig.taken:
        assert rig.link.hold(held, rig.clock.now, must=True)
    rig.confirm()
    (frame,) = [frame for frame in rig.exchange.push.take() if frame[:1] == b"G"]
    _, sender, again, _, ttl, payload = wire.read_group(frame)
    assert (sender, again, ttl, payload) == (SENDER, number, 600, b"1")
    assert (rig.link.stats(carries=True)["sent_again"], rig.link.stats(carries=True)["unacknowledged"]) == (1, 1)
    assert rig.client.counters.sent_again == 1
    assert rig.publish() == number + 1


def send_again(rig: Rig, after: float, instance: bytes = ONE) -> list[bytes]:
    """Lose the link, send its unacknowledged messages by the next connection, and return the frames."""
    rig.exchange.disconnected()
    rig.exchange.instance = instance
    rig.clock.now += after - OPEN_EVERY
    for held in rig.taken:
        rig.link.hold(held, rig.clock.now, must=True)
    rig.taken.clear()
    rig.verify()
    rig.confirm()
    return [frame for frame in rig.exchange.push.take() if frame[:1] == b"G"]


def flags_of(frame: bytes) -> int:
    return wire.read_group(frame)[3]


@pytest.mark.parametrize("instance, is_elsewhere", [(ONE, False), (TWO, True)])
def test_a_message_that_is_sent_again_says_whether_another_instance_may_have_it(
    rig: Rig, instance: bytes, is_elsewhere: bool
) -> None:
    """A repeated message has a flag if another instance may have passed it to normal channels, unknown to this one."""
    rig.come_up()
    rig.publish(b"1")
    (frame,) = send_again(rig, 0.5, instance)
    assert bool(flags_of(frame) & wire.FLAG_AGAIN)
    assert bool(flags_of(frame) & wire.FLAG_ELSEWHERE) == is_elsewhere


def test_a_message_that_was_elsewhere_says_so_for_ever(rig: Rig) -> None:
    """A message that another instance may have keeps that flag at each further repetition."""
    rig.come_up()
    rig.publish(b"1")
    send_again(rig, 0.5, TWO)
    (frame,) = send_again(rig, 0.5, TWO)
    assert flags_of(frame) & wire.FLAG_ELSEWHERE


def test_the_age_of_a_message_counts_from_when_it_was_sent_first(rig: Rig) -> None:
    """The age of a message counts from its first sending, however often it is repeated; a new message has none."""
    rig.come_up()
    rig.publish(b"1")
    ages = [wire.age_of(frame) for after in (0.5, 0.75) for frame in send_again(rig, after)]
    assert ages == [500, 1250]
    rig.publish(b"2")
    (frame,) = [frame for frame in rig.exchange.push.take() if frame[:1] == b"G"]
    assert (wire.age_of(frame), flags_of(frame)) == (0, 0)


@pytest.mark.parametrize(("is_acknowledged", "age"), [(False, 500), (True, 550)])
def test_the_age_of_a_message_is_that_of_its_block_from_the_end_in_doubt(
    rig: Rig, is_acknowledged: bool, age: int
) -> None:
    """The age counts from the block's marker, or from its first message if the block was acknowledged.

    The time of each single message is not recorded: a member that joined before the marker must not miss the message,
    and an acknowledged one most likely reached the members of its time.
    """
    rig.come_up()
    rig.publish(b"1")
    rig.clock.now += 0.05
    rig.link.mark_now()
    if is_acknowledged:
        rig.confirm()
    (frame,) = send_again(rig, 0.5)
    assert bool(flags_of(frame) & wire.FLAG_ACKNOWLEDGED) == is_acknowledged
    assert wire.age_of(frame) == pytest.approx(age, abs=1)


def test_markers_follow_what_is_sent_again(rig: Rig) -> None:
    """Markers follow repeated messages as they do new ones, after each full block and after a moment."""
    rig.come_up()
    for _ in range(BLOCK_FRAMES + 1):
        rig.publish()
    rig.exchange.disconnected()
    rig.verify()
    rig.exchange.push.is_full = True
    for held in rig.taken:
        rig.link.hold(held, rig.clock.now, must=True)
    rig.confirm()
    rig.exchange.push.is_full = False
    rig.exchange.push.take()
    rig.calls.clear()
    rig.link.flush()
    frames = [frame[:1] for frame in rig.exchange.push.frames]
    assert frames == [b"G"] * BLOCK_FRAMES + [b"E", b"G"]
    assert rig.calls[-1] == rig.clock.now + BLOCK_SECONDS
    rig.confirm()
    assert rig.link.held == 1


# Holding


@pytest.mark.parametrize("state", [one for one in State if one is not State.UP])
def test_nothing_is_sent_by_a_link_that_is_not_up(rig: Rig, state: State) -> None:
    """A link that is not up sends neither messages, markers nor requests, and holds messages."""
    rig.come_up()
    rig.link.state, rig.link.passes = state, False
    rig.publish(b"1")
    rig.link.flush()
    rig.link.mark_now()
    assert rig.exchange.push.frames == []
    assert (rig.link.held, rig.link.passes) == (1, False)
    assert not rig.link.send_request(b"Q", 5)


def test_held_messages_are_sent_in_order_when_the_link_comes_up(rig: Rig) -> None:
    """Held messages are sent in order when the link comes up, before new ones."""
    for payload in (b"1", b"2"):
        rig.publish(payload)
    rig.verify()
    assert rig.payloads() == []
    rig.tick(ECHO_EVERY)
    rig.confirm()
    rig.publish(b"3")
    assert rig.payloads() == [b"1", b"2", b"3"]


def test_a_full_socket_holds_messages_without_a_gap_in_their_numbers(rig: Rig) -> None:
    """Messages that a full socket refuses are held, tried again soon, and sent in order with consecutive numbers."""
    rig.come_up()
    rig.publish(b"1")
    rig.exchange.push.is_full = True
    for payload in (b"2", b"3"):
        rig.publish(payload)
    assert rig.calls[-1] == rig.clock.now + FULL_RETRY
    assert rig.tick() == rig.clock.now + FULL_RETRY
    rig.exchange.push.is_full = False
    rig.tick(FULL_RETRY)
    frames = [wire.read_group(frame) for frame in rig.exchange.push.take() if frame[:1] == b"G"]
    assert [frame[5] for frame in frames] == [b"1", b"2", b"3"]
    assert [frame[2] - frames[0][2] for frame in frames] == [0, 1, 2]
    assert rig.link.passes


def test_a_socket_that_stays_full_is_tried_again_and_again(rig: Rig) -> None:
    """A link retries a full socket after `FULL_RETRY`, however the state was detected; one that is not up does not."""
    rig.publish()
    assert rig.calls == []
    rig.come_up()
    rig.exchange.push.is_full = True
    rig.publish()
    for attempt in (rig.link.flush, rig.publish):
        rig.calls.clear()
        attempt()
        assert rig.calls == [rig.clock.now + FULL_RETRY]
    assert (rig.link.passes, rig.link.held) == (False, 3)


@pytest.mark.parametrize("why", ["down", "held", "full"])
def test_no_message_passes_as_long_as_there_is_a_reason(rig: Rig, why: str) -> None:
    """No message passes while the link is not up, holds a message, or has a full window, each by itself."""
    if why != "down":
        rig.come_up()
    if why == "held":
        rig.exchange.push.is_full = True
        rig.publish()
    elif why == "full":
        rig.fill()
    for step in (rig.link.flush, rig.link.mark_now, rig.link.make_room):
        step()
        assert not rig.link.passes


def test_a_marker_lets_no_message_overtake_a_held_one(rig: Rig) -> None:
    """A marker that a socket accepts again lets no message overtake a held one."""
    rig.come_up()
    rig.publish(b"1")
    rig.exchange.push.is_full = True
    rig.publish(b"2")
    rig.exchange.push.is_full = False
    rig.link.mark_now()
    rig.publish(b"3")
    rig.tick()
    assert rig.payloads() == [b"1", b"2", b"3"]


def test_a_held_message_loses_the_time_that_it_was_held(rig: Rig) -> None:
    """A held message has the time of the hold deducted from its TTL; an expired one is counted and uses no number."""
    rig.publish(b"1", ttl=1000)
    rig.publish(b"2", ttl=5000)
    rig.clock.now += 2 - OPEN_EVERY
    rig.verify()
    rig.confirm()
    (frame,) = [wire.read_group(frame) for frame in rig.exchange.push.take() if frame[:1] == b"G"]
    assert (frame[4], frame[5], frame[3]) == (3000, b"2", wire.FLAG_FIRST)
    assert rig.client.counters.dropped == {"outbox_expired": 1}


def test_a_message_that_was_acknowledged_expires_without_being_counted(rig: Rig) -> None:
    """An acknowledged message expires uncounted, because it most likely has arrived."""
    rig.come_up()
    rig.publish(ttl=1000)
    rig.tick(BLOCK_SECONDS)
    rig.confirm()
    rig.publish(ttl=1000)
    rig.exchange.disconnected()
    assert len(rig.taken) == 2
    for held in rig.taken:
        rig.link.hold(held, rig.clock.now, must=True)
    rig.clock.now += 1
    rig.link.flush()
    assert (rig.client.counters.dropped, rig.link.held) == ({"outbox_expired": 1}, 0)


def test_a_full_outbox_refuses_messages(make: Callable[..., Rig]) -> None:
    """A full outbox refuses new messages, but holds those that were accepted before."""
    rig = make(capacity=2)
    assert [rig.hold() for _ in range(3)] == [True, True, False]
    assert rig.link.hold(Held(inf, G, b"x"), rig.clock.now, must=True)


def test_a_held_request_is_sent_in_its_turn_and_its_exchange_noted(rig: Rig) -> None:
    """A held request is sent in its turn and its exchange is recorded, so that the caller learns of the link's loss."""
    request: Request[Reader] = Request(b"Aplain", repeats=False, waiter=Reader())
    rig.client.begin_request(5, request)
    rig.publish(b"1")
    rig.link.hold(Held(inf, b"jobs", request.frame, Kind.REQUEST, 5), rig.clock.now)
    rig.verify()
    rig.confirm()
    assert [frame[:1] for frame in rig.exchange.push.take()] == [b"E", b"G", b"A"]
    rig.exchange.disconnected()
    assert request.answer == LOST


def test_a_request_does_not_overtake_held_messages(rig: Rig) -> None:
    """A request does not overtake held messages, because frames with the same key keep their order."""
    rig.come_up()
    rig.exchange.push.is_full = True
    rig.publish(b"1")
    rig.exchange.push.is_full = False
    assert not rig.link.send_request(b"Aplain", 5)
    assert rig.exchange.push.frames == []


def test_a_full_socket_takes_no_request(rig: Rig) -> None:
    """A request that a full socket refuses has to be held, and no exchange is recorded for it."""
    rig.come_up()
    request: Request[Reader] = Request(b"Aplain", repeats=False, waiter=Reader())
    rig.client.begin_request(5, request)
    rig.exchange.push.is_full = True
    assert not rig.link.send_request(b"Aplain", 5)
    rig.link.hold(Held(inf, b"jobs", request.frame, Kind.REQUEST, 5), rig.clock.now)
    rig.link.flush()
    rig.exchange.disconnected()
    assert request.answer is None
    assert [held.number for held in rig.taken] == [5]


def test_a_withdrawn_request_is_not_sent(rig: Rig) -> None:
    """A withdrawn request is not sent, and withdrawing an unknown number changes nothing."""
    rig.link.hold(Held(inf, b"jobs", b"A1", Kind.REQUEST, 7), rig.clock.now)
    rig.publish(b"1")
    assert [rig.link.withdraw(number) for number in (7, 7, 8)] == [True, False, False]
    rig.verify()
    rig.confirm()
    assert b"A1" not in rig.exchange.push.frames
    assert rig.payloads() == [b"1"]


def test_messages_pass_again_once_the_only_held_request_is_withdrawn(rig: Rig) -> None:
    """When the only held request is withdrawn, messages pass again without waiting for a tick."""
    rig.come_up()
    rig.link.hold(Held(inf, b"jobs", b"A1", Kind.REQUEST, 7), rig.clock.now)
    assert not rig.link.passes
    rig.link.withdraw(7)
    assert rig.link.passes


def test_held_messages_older_than_a_subscription_are_not_delivered_to_this_process(rig: Rig) -> None:
    """Messages that were held before a join are not delivered to this process, although they are published after it."""
    rig.publish(b"older")
    join = rig.client.join(G, "a", 9, None)
    rig.ledger.subscribed(G)
    rig.publish(b"newer")
    rig.verify()
    rig.confirm()
    rig.client.join_synced(join, 10**9)
    for frame in rig.exchange.push.take():
        if frame[:1] == b"G":
            rig.exchange.publish(frame)
    assert [payload for _, payload, _ in rig.client.mailboxes.boxes["a"].mail] == [b"newer"]
    assert (rig.client.counters.repeated, rig.client.counters.dropped) == (0, {})


def test_a_flush_drops_what_is_held_and_what_is_unacknowledged(rig: Rig) -> None:
    """A flush drops held and unacknowledged messages, none of which is sent again, and new messages pass."""
    rig.come_up()
    rig.fill()
    rig.publish(b"held")
    rig.payloads()
    rig.link.drop_held()
    assert (rig.link.held, rig.ledger.count, rig.link.passes) == (0, 0, True)
    rig.publish(b"new")
    rig.exchange.disconnected()
    assert [wire.read_group(held.body)[5] for held in rig.taken] == [b"new"]


# Draining


def test_a_forwarder_that_is_about_to_end_is_sent_nothing_more(rig: Rig) -> None:
    """A draining forwarder gets no more messages; the link hands over unacknowledged ones and stays connected."""
    rig.come_up()
    rig.publish(b"1")
    rig.welcome(DRAINING)
    assert (rig.link.state, rig.told, rig.link.passes) == (State.DRAINING, ["up", "down"], False)
    assert [wire.read_group(held.body)[5] for held in rig.taken] == [b"1"]
    assert rig.lines() == [f"the forwarder at {NAME} is draining"]
    assert rig.link.attachment.is_reachable
    assert rig.link.is_connected


def test_a_client_leaves_a_draining_forwarder_on_both_ways(rig: Rig) -> None:
    """A client detaches from a draining forwarder once, on both paths, behind the returned jobs and the messages."""
    box = rig.client.mailboxes.open("jobs", 9)
    box.waiters.append(Reader())
    rig.client.read_normal(box)
    rig.come_up()
    rig.exchange.publish(wire.JOB.encode(wire.Job(INBOX, 1, 1, 7, TTL, b"jobs", b"x")))
    rig.kinds()
    rig.publish(b"1")
    for _ in range(2):
        rig.welcome(DRAINING)
    *before, last = rig.exchange.subscriber.take_sent()
    assert [frame[:1] for frame in before] == [b"R", b"B", b"T"]
    detach = wire.DETACH.encode(wire.Detach(INBOX, 1))
    assert last == detach
    assert (rig.exchange.push.frames[0][:1], rig.exchange.push.frames[-1]) == (b"G", detach)
    assert rig.exchange.push.frames.count(detach) == 1
    assert not box.mail


def test_a_draining_forwarder_is_sent_no_window_any_more(rig: Rig) -> None:
    """A draining forwarder gets no more windows, because readers open theirs elsewhere."""
    rig.come_up()
    rig.welcome(DRAINING)
    rig.kinds()
    box = rig.client.mailboxes.open("jobs", 9)
    box.waiters.append(Reader())
    rig.client.read_normal(box)
    rig.perform()
    assert rig.kinds() == []


@pytest.mark.parametrize("has_push", [True, False])
def test_a_client_that_finds_a_forwarder_draining_opens_a_push_to_leave_it(rig: Rig, has_push: bool) -> None:
    """If its PUSH is missing or lost, a client opens one to detach from a draining forwarder."""
    if has_push:
        rig.come_up()
        rig.exchange.push_disconnected()
    else:
        rig.exchange.connected()
    rig.calls.clear()
    rig.welcome(DRAINING)
    assert rig.link.state is State.DRAINING
    assert rig.calls == [0.0]
    rig.tick(OPEN_EVERY)
    assert rig.exchange.push.frames == [wire.DETACH.encode(wire.Detach(INBOX, 1))]
    rig.tick(PATIENCE)
    assert len(rig.exchange.push.frames) == 1, "no echo, no marker"


def test_a_draining_forwarder_that_is_gone_is_down_and_its_successor_comes_up(rig: Rig) -> None:
    """When a draining forwarder has ended, the link is down as after any loss, and comes up with the successor."""
    rig.come_up()
    rig.welcome(DRAINING)
    rig.exchange.disconnected()
    assert (rig.link.state, rig.told) == (State.DOWN, ["up", "down"])
    rig.exchange.instance = TWO
    rig.come_up()
    assert rig.told == ["up", "down", "up"]


@pytest.mark.parametrize("state", [SERVING, SETTLING])
def test_a_forwarder_that_does_not_end_after_all_is_greeted_anew(rig: Rig, state: wire.State) -> None:
    """A forwarder that stops draining is greeted in a new session, and the link comes up by a new PUSH."""
    rig.come_up()
    rig.welcome(DRAINING)
    old = rig.exchange.push
    rig.calls.clear()
    rig.welcome(state)
    assert (rig.link.state, rig.exchange.subscriber.session, rig.calls[-1]) == (State.GREETING, 2, 0.0)
    rig.welcome()
    rig.tick(OPEN_EVERY)
    assert (old.linger, rig.exchange.push is old) == (0, False)
    rig.confirm()
    assert (rig.link.state, rig.told) == (State.UP, ["up", "down", "up"])


def test_a_session_that_a_forwarder_was_left_in_begins_anew_when_it_is_greeted(rig: Rig) -> None:
    """Greeting a link again begins a new session, as after another link to the same instance was given up."""
    rig.come_up()
    rig.publish(b"1")
    rig.link.greet()
    assert (rig.link.state, rig.exchange.subscriber.session, rig.told) == (State.GREETING, 2, ["up", "down"])
    assert [wire.read_group(held.body)[5] for held in rig.taken] == [b"1"]
    rig.welcome()
    rig.tick(OPEN_EVERY)
    rig.confirm()
    assert rig.link.state is State.UP


# Another version


def test_another_version_is_reported_once_and_fails_every_request(rig: Rig) -> None:
    """Another wire version is reported once and fails all requests, until a welcome with this version arrives."""
    request: Request[Reader] = Request(b"frame", waiter=Reader())
    rig.client.begin_request(1, request)
    rig.exchange.connected()
    for _ in range(2):
        rig.welcome(version=wire.VERSION + 1)
    assert len(rig.lines()) == 1
    assert isinstance(request.answer, WireVersionMismatch)
    assert rig.client.out.wake == [request.waiter]
    assert (rig.link.state, rig.link.other_version, rig.welcomes) == (State.GREETING, wire.VERSION + 1, [])
    rig.welcome()
    assert (rig.link.state, rig.link.other_version) == (State.VERIFYING, None)


# Keys


def test_a_refusal_is_kept_as_the_reason_until_the_link_is_up(rig: Rig) -> None:
    """The reason of a refusal by either side is kept for callers until the link is up."""
    for event in (rig.link._subscriber_event, rig.link._push_event):
        rig.link.refusal = ""
        event(zmq.Event.HANDSHAKE_FAILED_AUTH)
        assert "curve_secret_key" in rig.link.refusal
        assert rig.link.state is State.DOWN
    rig.come_up()
    assert rig.link.refusal == ""


def test_a_refused_link_connects_anew_once_its_keys_were_read_again(make: Callable[..., Rig]) -> None:
    """ZeroMQ stops after a refusal, so the link connects again with the keys that it reads next, for PUSH too."""
    keys = Keys()
    rig = make(keys=keys)
    first = keys.keys
    rig.link._subscriber_event(zmq.Event.HANDSHAKE_FAILED_AUTH)
    rig.tick(1.0)
    assert rig.exchange.subscriber.connected_with == [first]
    keys.change()
    rig.link.look_around()
    rig.tick(1.0)
    assert rig.exchange.subscriber.connected_with == [first, keys.keys]
    rig.come_up()
    assert rig.exchange.push.curve_serverkey == keys.keys.server


def test_a_refused_link_connects_anew_with_the_same_keys(make: Callable[..., Rig]) -> None:
    """A refused link connects again with the same keys, which may be allowed now; without a refusal it does not."""
    keys = Keys()
    rig = make(keys=keys)
    rig.exchange.connected()
    counts = []
    for is_refused in (False, True, False):
        if is_refused:
            rig.link._push_event(zmq.Event.HANDSHAKE_FAILED_AUTH)
        rig.link.look_around()
        rig.tick(1.0)
        counts.append(len(rig.exchange.subscriber.connected_with))
    assert counts == [1, 2, 2]


def test_a_link_that_was_up_connects_anew_by_the_keys_that_were_found_last(make: Callable[..., Rig]) -> None:
    """A link that was up and is lost connects again with the keys that were read last."""
    keys = Keys()
    rig = make(keys=keys)
    rig.come_up()
    rig.exchange.disconnected()
    keys.change()
    rig.link.look_around()
    rig.tick(1.0)
    assert rig.exchange.subscriber.connected_with[1:] == [keys.keys]


def test_keys_that_have_changed_while_a_link_came_up_do_not_cut_it(make: Callable[..., Rig]) -> None:
    """Keys that change while a link is coming up do not interrupt it."""
    keys = Keys()
    rig = make(keys=keys)
    rig.verify()
    keys.change()
    rig.link.look_around()
    rig.confirm()
    rig.tick()
    assert (rig.link.state, len(rig.exchange.subscriber.connected_with)) == (State.UP, 1)


def test_the_connection_that_other_keys_end_counts_as_lost(make: Callable[..., Rig]) -> None:
    """A connection that ends for other keys counts as lost, so the next session requests a replay of unread input."""
    keys = Keys()
    rig = make(keys=keys)
    rig.verify()
    keys.change()
    rig.link.look_around()
    rig.tick()
    assert (rig.exchange.subscriber.is_lost, rig.link.state) == (True, State.DOWN)
    assert rig.exchange.subscriber.connected_with[1:] == [keys.keys]
    rig.come_up()


def test_a_link_that_cannot_connect_with_other_keys_says_so(make: Callable[..., Rig]) -> None:
    """If a link cannot connect with other keys, the log names the setting."""
    keys = Keys()
    rig = make(keys=keys)
    keys.change()
    rig.exchange.subscriber.address = INVALID
    rig.link.look_around()
    rig.tick()
    (line,) = rig.lines()
    assert "pub_socket_address" in line


def test_a_link_waits_for_a_key_file(make: Callable[..., Rig]) -> None:
    """A link waits for a key file, which a container may mount after the start; its socket keeps subscriptions."""
    keys = Keys()
    keys.missing = "/keys/secret"
    rig = make(keys=keys)
    assert rig.exchange.subscriber.connected_with == []
    assert rig.kinds() == [wire.SUBSCRIBE]
    keys.missing = ""
    rig.link.look_around()
    rig.tick()
    assert rig.exchange.subscriber.connected_with == [keys.keys]


# A change of keys without a gap


STEPS = ["connecting", "connected", "welcomed", "renewed"]
"""The steps of a change of keys."""


class Renewal(Rig):
    """A link that is up with its first keys, and the steps by which it changes to others."""

    def __init__(self, clock: Clock, **how: Any) -> None:
        self.keys = Keys()
        super().__init__(clock, keys=self.keys, **how)
        self.come_up()
        self.kinds()
        self.first = self.exchange.subscriber

    @property
    def open_push(self) -> OpenPush:
        assert self.link._uplink.current is not None
        return self.link._uplink.current

    def begin(self) -> Subscriber:
        """Change the keys, and return the subscriber that connects with them."""
        self.keys.change()
        return self.look()

    def look(self) -> Subscriber:
        self.link.look_around()
        self.tick()
        return cast(Subscriber, self.link.downlink.next)

    def event(self, socket: Any, event: zmq.Event) -> None:
        """Let the monitor of a subscriber or of a PUSH report an event."""
        self.link.monitors()[socket.monitor](event)
        self.perform()

    def change_subscriber(self) -> Subscriber:
        """Begin the next session with a new subscriber, before its welcome."""
        subscriber = self.begin()
        self.event(subscriber, CONNECTED)
        return subscriber

    def change_push(self) -> None:
        """Welcome the next session, and change to a new PUSH."""
        self.welcome()
        self.tick(OPEN_EVERY)

    def renew(self) -> None:
        self.change_subscriber()
        self.change_push()

    def go(self, step: str) -> Subscriber:
        """Change the keys, perform the change up to a step, and return the subscriber that connects with them."""
        subscriber = self.begin()
        if step != "connecting":
            self.event(subscriber, CONNECTED)
        if step == "welcomed":
            self.welcome()
        if step == "renewed":
            self.change_push()
        return subscriber

    def hold_taken(self) -> None:
        """Hold the frames that the link has handed over, as its owner does without another link."""
        taken, self.taken = self.taken, []
        for held in taken:
            self.link.hold(held, self.clock.now, must=True)

    def arrive(self, subscriber: Subscriber, *frames: bytes) -> None:
        """Let frames arrive at a subscriber, and read them."""
        subscriber.arriving += frames
        while self.link.downlink.read():
            pass
        self.client.gaps.all_is_read()
        self.perform()

    def delivered(self, channel: str = "a") -> list[Payload]:
        return [payload for _, payload, _ in self.client.mailboxes.boxes[channel].mail]


@pytest.fixture
def renewal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Renewal:
    """Return a link that is up and may change its keys."""
    replace_sockets(monkeypatch, clock)
    return Renewal(clock)


def group_frame(number: int, payload: bytes | None = None, flags: int = 0) -> bytes:
    """Return a message of another process, by default with its number as payload."""
    return wire.ordered(G, b"o" * 8, number, flags, TTL, b"%d" % number if payload is None else payload)


def member(rig: Renewal) -> None:
    """Add a member whose subscription is in force."""
    join = rig.client.join(G, "a", 99, None)
    rig.perform()
    rig.client.join_synced(join, 10**9)


def test_a_link_that_is_up_takes_up_other_keys_without_going_down(renewal: Renewal) -> None:
    """A link changes its keys by a second subscriber, a new session and a second PUSH, unnoticed by its owner."""
    first, (old,) = renewal.first, renewal.context.pushes
    second = renewal.begin()
    assert (second.connected_with, first.connected_with) == ([renewal.keys.keys], [first.connected_with[0]])
    assert renewal.exchange.subscriber is first, "not before it has connected"
    renewal.event(second, CONNECTED)
    assert (renewal.exchange.subscriber, second.session, first.session) == (second, 2, 1)
    assert renewal.calls[-1] == 0.0
    renewal.calls.clear()
    renewal.welcome()
    assert (renewal.exchange.push, renewal.calls[-1]) == (old, 0.0)
    renewal.tick(OPEN_EVERY)
    new = renewal.exchange.push
    assert renewal.context.pushes == [old, new]
    assert (new.curve_serverkey, new.address, new.frames) == (renewal.keys.keys.server, "tcp://pull", [])
    assert (old.linger, old.frames) == (None, [])
    assert (renewal.link.state, renewal.told, renewal.link.passes, renewal.lines()) == (State.UP, ["up"], True, [])


def test_the_former_subscriber_is_closed_with_the_welcome_and_the_former_push_a_moment_later(renewal: Renewal) -> None:
    """After the welcome, behind all its input, the former subscriber closes, the former PUSH after `RETIRE_AFTER`."""
    first, (old,) = renewal.first, renewal.context.pushes
    second = renewal.change_subscriber()
    renewal.tick(CHANGE_WITHIN - 0.01)
    assert (first.is_closed, renewal.watched) == (False, [first])
    renewal.calls.clear()
    renewal.welcome()
    assert (first.is_closed, renewal.watched, renewal.calls[0]) == (False, [second], 0.0)
    renewal.tick(OPEN_EVERY)
    assert (first.is_closed, old.linger) == (True, None)
    assert renewal.tick(RETIRE_AFTER - 0.01) == pytest.approx(renewal.clock.now + 0.01)
    assert old.linger is None
    renewal.tick(0.01)
    assert old.linger == 2000
    assert list(renewal.link.monitors()) == [second.monitor, renewal.open_push.monitor]


@pytest.mark.parametrize("end", ["too late", "disconnected", "the next one lost"])
def test_a_former_subscriber_that_does_not_bring_the_welcome_is_left(renewal: Renewal, end: str) -> None:
    """A former subscriber without the welcome is read for a bounded time and closed, and its losses are requested."""
    first, seen = renewal.first, []
    renewal.client.feed = lambda frame, attachment: seen.append(frame)
    second = renewal.change_subscriber()
    hellos = len(second.lists)
    first.arriving, second.arriving = [b"1", b"2", b"3"], [b"4"]
    if end == "too late":
        renewal.tick(CHANGE_WITHIN - 0.1)
        assert second.arriving, "it waits"
        renewal.tick(0.1)
    elif end == "disconnected":
        renewal.event(first, DISCONNECTED)
    else:
        renewal.exchange.disconnected()
    assert (first.is_lost, len(second.lists) - hellos) == (True, end != "the next one lost")
    while renewal.link.downlink.read():
        pass
    assert (seen, renewal.watched) == ([b"1", b"2", b"3", b"4"], [second])
    renewal.tick()
    assert first.is_closed


def test_a_former_subscriber_that_has_ended_is_left_though_messages_arrive_without_end(renewal: Renewal) -> None:
    """A former subscriber that has ended is closed after `READS_FORMER_FOR`, even if it never becomes empty."""
    first = renewal.first
    second = renewal.change_subscriber()
    renewal.event(first, DISCONNECTED)
    first.arriving = [b"?"]
    renewal.tick(READS_FORMER_FOR - 0.1)
    assert renewal.watched == [first]
    renewal.tick(0.1)
    assert (renewal.watched, first.is_closed) == ([second], True)


def test_push_is_not_changed_before_the_next_session_is_welcomed(renewal: Renewal) -> None:
    """Until the next session is welcomed, messages are sent by the former PUSH."""
    old = renewal.exchange.push
    renewal.change_subscriber()
    renewal.tick(RETIRE_AFTER - 0.01)
    renewal.publish(b"1")
    assert (renewal.exchange.push, renewal.payloads(), renewal.first.is_closed) == (old, [b"1"], False)
    renewal.change_push()
    assert (renewal.exchange.push is old, renewal.payloads()) == (False, [b"1"])


def test_push_is_changed_however_late_the_next_session_is_welcomed(renewal: Renewal) -> None:
    """PUSH changes however late a busy forwarder welcomes the next session, and the former PUSH lingers as usual."""
    old = renewal.exchange.push
    renewal.change_subscriber()
    for _ in range(5):
        renewal.tick(RETIRE_AFTER)
    renewal.change_push()
    assert (renewal.exchange.push is old, old.linger) == (False, None)
    renewal.tick(RETIRE_AFTER)
    assert (old.linger, renewal.first.is_closed, renewal.link.state) == (2000, True, State.UP)


def test_a_push_that_was_just_opened_is_not_changed_at_once(renewal: Renewal) -> None:
    """A PUSH is not replaced within `OPEN_EVERY` after it was opened."""
    old = renewal.exchange.push
    renewal.change_subscriber()
    renewal.welcome()
    renewal.tick()
    assert renewal.exchange.push is old
    renewal.tick(OPEN_EVERY)
    assert renewal.exchange.push is not old


def test_further_welcomes_of_the_session_change_nothing(renewal: Renewal) -> None:
    """Further welcomes of a session, which both connections deliver, change nothing."""
    renewal.renew()
    for _ in range(2):
        renewal.change_push()
    assert (len(renewal.context.pushes), renewal.told) == (2, ["up"])


def test_keys_that_have_not_changed_open_nothing(renewal: Renewal) -> None:
    """Unchanged keys, which are checked every second, open no socket."""
    for _ in range(3):
        assert renewal.look() is None
    assert (len(renewal.context.pushes), renewal.watched) == (1, [renewal.first])


def test_each_step_has_its_monitor(renewal: Renewal) -> None:
    """At each step, the monitors of all open sockets are available to the housekeeper."""
    push = renewal.open_push
    second = renewal.begin()
    assert list(renewal.link.monitors()) == [renewal.first.monitor, second.monitor, push.monitor]
    renewal.event(second, CONNECTED)
    assert list(renewal.link.monitors()) == [second.monitor, renewal.first.monitor, push.monitor]
    renewal.change_push()
    assert renewal.open_push is not push
    assert list(renewal.link.monitors()) == [second.monitor, renewal.open_push.monitor]


# ... receiving


def test_the_second_subscriber_subscribes_to_the_same(renewal: Renewal) -> None:
    """The second subscriber has the same subscriptions, and begins its session with normal members and a hello."""
    member(renewal)
    renewal.client.normal_members.changed(wire.Member(INBOX, 1, 1, 0, 0, 9, b"g", b"jobs"))
    second = renewal.begin()
    assert second.take_sent() == [wire.subscription(wire.inbox_topic(INBOX))]
    assert (second.greeted, second.lists) == ([], [])
    renewal.event(second, CONNECTED)
    (((frame,),), lists) = second.greeted, second.lists
    assert (frame[:1], lists) == (b"M", [b"list"])
    assert second.take_sent() == [wire.subscription(G), frame]


@pytest.mark.parametrize("step", ["connecting", "connected"])
def test_subscriptions_that_are_made_meanwhile_reach_whom_they_must(renewal: Renewal, step: str) -> None:
    """New subscriptions are sent by the first subscriber until the second one is connected, and then by that one."""
    second = renewal.begin()
    if step == "connected":
        renewal.event(second, CONNECTED)
        renewal.welcome()
    for one in (renewal.first, second):
        one.take_sent()
    frames = [wire.subscription(G), wire.unsubscription(G)]
    for frame in [*frames, b"Ysync"]:
        renewal.link.send_upstream(frame)
    by_first, by_second = renewal.first.take_sent(), second.take_sent()
    if step == "connecting":
        assert (by_first, by_second) == ([*frames, b"Ysync"], [])
    else:
        assert (by_first, by_second) == ([], [*frames, b"Ysync"])


def test_what_arrives_by_both_connections_is_delivered_once_and_in_order(renewal: Renewal) -> None:
    """Messages that both connections deliver are delivered once and in order, however slow the former connection is."""
    member(renewal)
    renewal.arrive(renewal.first, group_frame(1))
    second = renewal.change_subscriber()
    second.arriving = [group_frame(2), group_frame(3), group_frame(4)]
    renewal.tick(BEHIND_AT_MOST + 1.0)  # the link is that slow
    renewal.arrive(renewal.first, group_frame(2), group_frame(3))
    assert renewal.delivered() == [b"1", b"2", b"3"]
    renewal.welcome()
    renewal.arrive(second, group_frame(5), group_frame(6))
    assert renewal.delivered() == [b"1", b"2", b"3", b"4", b"5", b"6"]
    assert renewal.client.counters.dropped == {}


def test_the_connection_that_is_read_has_input(renewal: Renewal) -> None:
    """Until the welcome, input is that of the former connection, and missing messages may still arrive."""
    first, second = renewal.first, renewal.change_subscriber()
    second.arriving = [b"?"]
    assert (renewal.link.has_input(), renewal.link.is_behind(renewal.clock.now, 0.0)) == (False, True)
    first.arriving = [b"?"]
    assert renewal.link.has_input()
    renewal.exchange.welcome()
    ((_, welcome),) = renewal.client.out.take().session
    renewal.link.take_session(welcome)
    assert renewal.client.out.has_input, "no descriptor shows what arrived before it was watched"
    assert renewal.link.has_input()


def test_a_full_window_has_the_former_connection_read(renewal: Renewal) -> None:
    """With a full window the former connection is read, because it delivers the acknowledgement."""
    renewal.fill()
    number = renewal.exchange.echoes()[-1]
    first, second = renewal.first, renewal.change_subscriber()
    first.arriving = [wire.CONFIRM.encode(wire.Confirm(INBOX, number, wire.Status.OK, ONE))]
    second.arriving = [b"?"]
    assert renewal.link.make_room()
    assert second.arriving == [b"?"]


def test_what_has_arrived_by_the_former_connection_is_read_before_the_next(renewal: Renewal) -> None:
    """The former connection is read to its end before the next one; a turn before the change counts for its session."""
    seen = []
    second = renewal.begin()
    renewal.client.feed = lambda frame, attachment: seen.append((frame, renewal.exchange.subscriber.session))
    renewal.first.arriving = [b"1", b"2"]
    second.arriving = [b"3"]
    renewal.event(second, CONNECTED)
    assert seen == [(b"1", 1)]
    while renewal.link.downlink.read():
        pass
    assert seen[1:] == [(b"2", 2)]
    renewal.link.downlink.read_current()
    assert not renewal.link.downlink.read()
    assert seen[2:] == [(b"3", 2)]


def test_a_join_during_the_change_waits_for_the_next_welcome(renewal: Renewal) -> None:
    """During the change, the sync of a join is sent after the next welcome and not before."""
    second = renewal.change_subscriber()
    request: Request[Reader] = Request(b"Ysync", to_all=True)
    renewal.client.begin_request(5, request)
    renewal.link.send_upstream(request.frame)
    assert b"Ysync" not in second.sent
    renewal.welcome()
    assert b"Ysync" in second.sent
    renewal.exchange.publish(wire.SYNCED.encode(wire.Synced(INBOX, 5)))
    assert request.answer == 0


def test_a_request_that_the_former_session_has_not_answered_is_asked_again(renewal: Renewal) -> None:
    """A request that the former session did not answer is sent again, because its frame may be lost."""
    request: Request[Reader] = Request(b"Ysync", to_all=True)
    renewal.client.begin_request(5, request)
    second = renewal.change_subscriber()
    renewal.welcome()
    assert b"Ysync" in second.sent
    renewal.arrive(second, wire.SYNCED.encode(wire.Synced(INBOX, 5)))
    assert request.answer == 0


def test_an_answer_by_the_former_connection_counts(renewal: Renewal) -> None:
    """An answer by the former connection counts, and the request is not sent again."""
    request: Request[Reader] = Request(b"Ysync", to_all=True)
    renewal.client.begin_request(5, request)
    second = renewal.change_subscriber()
    renewal.arrive(renewal.first, wire.SYNCED.encode(wire.Synced(INBOX, 5)))
    assert request.answer == 0
    renewal.welcome()
    assert b"Ysync" not in second.sent


# ... jobs


def read_jobs(rig: Renewal) -> Mailbox[Reader]:
    box = rig.client.mailboxes.open("jobs", 9)
    box.waiters.append(Reader())
    rig.client.read_normal(box)
    rig.perform()
    return box


def job(session: int, ordinal: int = 1, payload: bytes = b"x") -> bytes:
    return wire.JOB.encode(wire.Job(INBOX, session, ordinal, ordinal, TTL, b"jobs", payload))


def hand_a_job_back(rig: Renewal) -> None:
    """Take a job, and hand it back unread."""
    read_jobs(rig)
    rig.arrive(rig.first, job(1))
    rig.client.stop_reading(rig.link.attachment)
    rig.perform()


def test_a_job_of_the_former_session_that_arrives_late_is_ignored(renewal: Renewal) -> None:
    """A late job of the former session is ignored: the exchange, knowing it as not received, hands it over again."""
    box = read_jobs(renewal)
    renewal.arrive(renewal.first, job(1, 1, b"1"))
    box.clear()  # a reader takes it
    second = renewal.change_subscriber()
    ((received,),) = second.greeted
    assert wire.RECEIVED.decode(received) == wire.Received(INBOX, 1, 1, b"jobs")
    renewal.arrive(renewal.first, job(1, 2, b"2"))
    renewal.welcome()
    renewal.arrive(second, job(1, 2, b"2"))
    assert not box.mail
    read_jobs(renewal)
    renewal.arrive(second, job(2, 1, b"2"))
    assert [payload for _, payload, _ in box.mail] == [b"2"]


def test_a_job_that_has_arrived_unread_is_put_back(renewal: Renewal) -> None:
    """An unread job of the former session is put back, because the input is read before the report on the jobs read."""
    box = read_jobs(renewal)
    second = renewal.begin()
    renewal.first.arriving = [job(1)]
    renewal.event(second, CONNECTED)
    ((received,),) = second.greeted
    assert wire.RECEIVED.decode(received).received == 0
    renewal.welcome()
    assert not box.mail


def test_the_next_session_begins_once_jobs_that_were_handed_back_have_arrived(renewal: Renewal) -> None:
    """The next session begins once the forwarder has what went back: the former connection may be broken unnoticed."""
    hand_a_job_back(renewal)
    second = renewal.change_subscriber()
    renewal.tick()
    assert second.greeted == []
    renewal.arrive(renewal.first, wire.HANDED_TOTAL.encode(wire.HandedTotal(INBOX, 1, 1)))
    renewal.tick()
    ((received,),) = second.greeted
    assert wire.RECEIVED.decode(received) == wire.Received(INBOX, 1, 1, b"jobs")


def test_the_next_session_waits_for_jobs_that_were_handed_back_for_a_while_only(renewal: Renewal) -> None:
    """The wait for the proof of jobs that went back is bounded, as further ones may go back before each answer."""
    hand_a_job_back(renewal)
    second = renewal.change_subscriber()
    renewal.tick(CHANGE_WITHIN - 0.1)
    assert second.greeted == []
    renewal.tick(0.1)
    assert len(second.greeted) == 1


def test_a_next_subscriber_that_is_disconnected_while_it_waits_begins_no_session(renewal: Renewal) -> None:
    """A next subscriber that loses its connection while it waits begins its session once it has connected again."""
    hand_a_job_back(renewal)
    second = renewal.change_subscriber()
    renewal.event(second, zmq.Event.DISCONNECTED)
    renewal.arrive(renewal.first, wire.HANDED_TOTAL.encode(wire.HandedTotal(INBOX, 1, 1)))
    renewal.tick()
    assert second.greeted == []
    renewal.event(second, CONNECTED)
    assert len(second.greeted) == 1


def test_a_job_of_the_next_session_counts_once_although_both_connections_bring_it(renewal: Renewal) -> None:
    """A job of the next session counts once although both connections, subscribed to the inbox, deliver it."""
    box = read_jobs(renewal)
    second = renewal.change_subscriber()
    renewal.welcome()
    renewal.exchange.publish(job(2))  # read in the same turn as the welcome
    renewal.arrive(second, job(2))
    assert (len(box.mail), renewal.client.counters.dropped) == (1, {})


def test_windows_open_in_the_next_session_once_it_is_welcomed(renewal: Renewal) -> None:
    """Windows open in the next session after its welcome, because the exchange does not know the session before."""
    read_jobs(renewal)
    second = renewal.change_subscriber()
    second.take_sent()
    read_jobs(renewal)
    assert second.take_sent() == []
    renewal.welcome()
    (ready,) = [wire.READY.decode(frame) for frame in second.take_sent()]
    assert (ready.session, ready.settled) == (2, 0)
    assert renewal.first.sent[-1][:1] == b"R", "of the former session"


# ... sending


def test_the_window_is_sent_again_by_the_new_push_before_anything_newer(renewal: Renewal) -> None:
    """The new PUSH repeats the window, with its numbers, before newer messages: two connections are read in turns."""
    old = renewal.exchange.push
    sent = [renewal.publish(b"1")]
    renewal.link.mark_now()
    renewal.confirm()
    sent += [renewal.publish(b"2")]
    renewal.link.mark_now()
    renewal.change_subscriber()
    sent += [renewal.publish(b"3")]
    old.is_full = True
    renewal.publish(b"4")
    renewal.change_push()
    renewal.publish(b"5")
    frames = [wire.read_group(frame) for frame in renewal.exchange.push.take() if frame[:1] == b"G"]
    assert renewal.exchange.push is not old
    assert [frame[5] for frame in frames] == [b"1", b"2", b"3", b"4", b"5"]
    assert [frame[2] for frame in frames] == [*sent, sent[-1] + 1, sent[-1] + 2]
    assert [frame[3] & wire.FLAG_AGAIN > 0 for frame in frames] == [True, True, True, False, False]
    assert not any(frame[3] & wire.FLAG_ELSEWHERE for frame in frames), "it is the same instance"
    assert renewal.link.stats(carries=True)["sent_again"] == 3


def test_the_new_push_acknowledges_what_it_was_sent(renewal: Renewal) -> None:
    """Only the answer to a marker of the new PUSH acknowledges the frames that it repeated."""
    renewal.publish(b"1")
    renewal.tick(BLOCK_SECONDS)
    (before,) = renewal.exchange.echoes()
    renewal.renew()
    renewal.tick(BLOCK_SECONDS)
    renewal.confirm(before)
    assert renewal.link.held == 1
    renewal.confirm()
    assert renewal.link.held == 0


def test_the_new_push_takes_over_once_jobs_are_acknowledged_that_were_handed_back(renewal: Renewal) -> None:
    """The new PUSH takes over once handed back jobs are acknowledged: they are not sent again, and would not count."""
    old = renewal.exchange.push
    back = wire.BACK.encode(wire.Back(renewal.client.inbox, 7, TTL, b"jobs", b"x"))
    assert renewal.link.send_request(back, 0)
    renewal.renew()
    assert renewal.exchange.push is old
    assert not renewal.link.send_request(back, 0), "further ones would delay the change without end"
    renewal.confirm()
    renewal.tick(OPEN_EVERY)
    assert renewal.exchange.push is not old
    assert renewal.client.counters.dropped["lost_delivery"] == 0


def test_a_full_window_is_taken_over_by_the_new_push(renewal: Renewal) -> None:
    """The new PUSH takes over a full window, and new messages wait until one of its own markers is answered."""
    renewal.fill()
    renewal.publish(b"held")
    renewal.payloads()
    renewal.renew()
    assert renewal.payloads() == [b"%d" % number for number in range(WINDOW)]
    assert (renewal.link.held, renewal.link.passes) == (WINDOW + 1, False)
    renewal.link.mark_now()
    renewal.confirm()
    assert (renewal.payloads(), renewal.link.passes) == ([b"held"], True)


def test_a_new_push_without_room_holds_messages_in_their_order(
    renewal: Renewal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the new PUSH has no room, messages are held in order until it has."""
    renewal.publish(b"1")
    renewal.change_subscriber()
    monkeypatch.setattr(Push, "is_full", True)
    renewal.change_push()
    new = renewal.exchange.push
    renewal.publish(b"2")
    assert (new.frames, renewal.link.held) == ([], 2)
    monkeypatch.setattr(Push, "is_full", False)
    renewal.tick(FULL_RETRY)
    assert (renewal.exchange.push, renewal.payloads()) == (new, [b"1", b"2"])


def test_an_outbox_that_is_smaller_than_the_window_loses_nothing_of_it(renewal: Renewal) -> None:
    """A change of keys loses nothing of a window that is larger than the outbox, whose bound does not apply."""
    rig = Renewal(renewal.clock, capacity=1)
    for number in range(3):
        rig.publish(b"%d" % number)
    rig.renew()
    assert rig.payloads() == [b"0", b"1", b"2"]


def test_messages_that_wait_for_an_announcement_go_on_waiting(renewal: Renewal) -> None:
    """Messages that wait for an announcement continue to wait, and the owner's tick sends them by the new PUSH."""
    renewal.publish(b"1")
    renewal.change_subscriber()
    renewal.holds_back = True
    renewal.change_push()
    assert renewal.payloads() == []
    renewal.holds_back = False
    renewal.tick()
    assert renewal.payloads() == [b"1"]


def test_a_plain_message_on_its_way_by_the_former_push_is_not_given_up(renewal: Renewal) -> None:
    """A message to a normal channel in the former PUSH is not repeated, and either connection delivers its answer."""
    request: Request[Reader] = Request(b"Aplain", repeats=False, waiter=Reader())
    renewal.client.begin_request(5, request)
    assert renewal.link.send_request(request.frame, 5)
    renewal.renew()
    renewal.tick(RETIRE_AFTER)
    assert request.answer is None
    assert renewal.exchange.push.frames == [], "it is never sent again"
    renewal.exchange.confirm(5)
    assert request.answer == 0


def test_a_next_session_with_another_instance_is_verified(renewal: Renewal) -> None:
    """If the next session is with another instance, the link is verified, and repeated messages have a flag for it."""
    old = renewal.exchange.push
    renewal.publish(b"1")
    renewal.change_subscriber()
    renewal.exchange.instance = TWO
    renewal.calls.clear()
    renewal.welcome()
    assert (renewal.link.state, renewal.told, renewal.calls[-1]) == (State.VERIFYING, ["up", "down"], 0.0)
    renewal.hold_taken()
    renewal.tick(OPEN_EVERY)
    new = renewal.exchange.push
    assert (old.linger, renewal.context.pushes, [frame[:1] for frame in new.frames]) == (0, [old, new], [b"E"])
    renewal.confirm()
    assert (renewal.link.state, renewal.link.instance) == (State.UP, TWO)
    (frame,) = [wire.read_group(frame) for frame in new.take() if frame[:1] == b"G"]
    assert (frame[5], frame[3] & wire.FLAG_ELSEWHERE > 0) == (b"1", True)
    renewal.tick(RETIRE_AFTER)
    assert (renewal.first.is_closed, renewal.exchange.push, len(renewal.context.pushes)) == (True, new, 2)


def test_a_next_session_with_another_instance_that_is_about_to_end_is_left(renewal: Renewal) -> None:
    """If the next session is with another, draining instance, the link detaches by a new PUSH, which leads there."""
    old = renewal.exchange.push
    second = renewal.change_subscriber()
    renewal.exchange.instance = TWO
    renewal.welcome(DRAINING)
    renewal.tick(OPEN_EVERY)
    detach = wire.DETACH.encode(wire.Detach(INBOX, 2))
    assert (renewal.link.state, old.linger, old.frames) == (State.DRAINING, 0, [])
    assert (renewal.exchange.push.frames, second.sent[-1]) == ([detach], detach)


@pytest.mark.parametrize(
    "events", [[zmq.Event.CLOSED], [DISCONNECTED], [zmq.Event.HANDSHAKE_FAILED_AUTH, DISCONNECTED]]
)
def test_a_new_push_that_fails_is_replaced_and_verified(renewal: Renewal, events: list[zmq.Event]) -> None:
    """A new PUSH that fails is replaced and verified as any other, and its messages are sent again."""
    renewal.publish(b"1")
    renewal.renew()
    failed = renewal.exchange.push
    for event in events:
        renewal.event(renewal.link._uplink.current, event)
    assert (renewal.link.state, renewal.told) == (State.VERIFYING, ["up", "down"])
    renewal.hold_taken()
    renewal.tick(OPEN_EVERY)
    renewal.confirm()
    assert (failed.linger, renewal.link.state, renewal.payloads()) == (0, State.UP, [b"1"])


# ... failing


@pytest.mark.parametrize("event", sorted(REFUSALS))
def test_a_new_key_that_is_refused_keeps_the_former_connections(renewal: Renewal, event: zmq.Event) -> None:
    """If the new key is refused, the former connections stay, the reason is logged, and the new socket closes."""
    second = renewal.begin()
    renewal.event(second, event)
    renewal.tick()
    assert (renewal.link.state, renewal.told) == (State.UP, ["up"])
    (line,) = renewal.lines()
    assert "refuses the new key" in line
    assert REFUSALS[event] in line
    assert second.is_closed
    assert list(renewal.link.monitors()) == [renewal.first.monitor, renewal.open_push.monitor]
    renewal.publish(b"1")
    assert (renewal.payloads(), renewal.exchange.subscriber) == ([b"1"], renewal.first)


def test_a_refused_key_is_tried_again_by_every_look_and_reported_once(renewal: Renewal) -> None:
    """A refused key is tried again at each look and reported once, and again if it is refused after it had worked."""
    for attempt in (renewal.begin, renewal.look, renewal.look):
        second = attempt()
        assert second.connected_with == [renewal.keys.keys]
        renewal.event(second, zmq.Event.HANDSHAKE_FAILED_AUTH)
        renewal.tick()
        assert (second.is_closed, renewal.link.downlink.next) == (True, None)
    assert len(renewal.lines()) == 1
    allowed = renewal.look()
    renewal.event(allowed, CONNECTED)
    renewal.change_push()
    assert (renewal.exchange.subscriber, renewal.link.refusal, renewal.told) == (allowed, "", ["up"])
    renewal.tick(RETIRE_AFTER)
    assert renewal.look() is None
    renewal.event(renewal.begin(), zmq.Event.HANDSHAKE_FAILED_AUTH)
    assert len(renewal.lines()) == 1


def test_another_key_is_taken_up_after_one_that_was_refused(renewal: Renewal) -> None:
    """After a refused key, another one is accepted, and the reason of the refusal is cleared."""
    renewal.event(renewal.begin(), zmq.Event.HANDSHAKE_FAILED_AUTH)
    renewal.tick()
    assert renewal.link.refusal
    good = renewal.begin()
    assert (good.connected_with, renewal.link.refusal) == ([renewal.keys.keys], "")
    renewal.event(good, CONNECTED)
    renewal.change_push()
    assert (renewal.exchange.subscriber, renewal.exchange.push.curve_serverkey) == (good, renewal.keys.keys.server)


@pytest.mark.parametrize("step", STEPS)
def test_keys_that_change_during_the_change_wait_for_its_end(renewal: Renewal, step: str) -> None:
    """Keys that change during a change wait for its end, only the last ones are used, each socket is closed once."""
    second = renewal.go(step)
    for _ in range(2):
        assert renewal.begin() is (second if step == "connecting" else None)
    assert not second.is_closed
    if step == "connecting":
        renewal.event(second, CONNECTED)
    if step != "renewed":
        renewal.change_push()
    renewal.tick(RETIRE_AFTER - 0.01)
    assert renewal.link.downlink.next is None
    renewal.tick(0.02)
    third = cast(Subscriber, renewal.link.downlink.next)
    assert (third.connected_with, renewal.exchange.subscriber) == ([renewal.keys.keys], second)
    renewal.event(third, CONNECTED)
    renewal.change_push()
    renewal.tick(RETIRE_AFTER)
    renewal.tick(1.0)
    assert renewal.context.subscribers == [renewal.first, second, third]
    assert [one.is_closed for one in renewal.context.subscribers] == [True, True, False]
    assert [push.linger for push in renewal.context.pushes] == [2000, 2000, None]
    assert renewal.exchange.push.curve_serverkey == renewal.keys.keys.server
    assert (renewal.watched, renewal.told) == ([third], ["up"])


def test_keys_that_change_before_the_next_session_is_welcomed_wait_for_it(renewal: Renewal) -> None:
    """Keys that change again wait for the welcome of the next session, even once the former subscriber has ended.

    Otherwise the welcome would change PUSH for the first keys, and that of a third session would do it once more while
    the former PUSH still delivers its frames.
    """
    renewal.change_subscriber()
    renewal.event(renewal.first, DISCONNECTED)
    renewal.link.downlink.read()
    renewal.tick()
    assert renewal.first.is_closed
    assert renewal.begin() is None
    renewal.change_push()
    renewal.tick(RETIRE_AFTER - 0.01)
    assert renewal.link.downlink.next is None
    renewal.tick(0.02)
    third = cast(Subscriber, renewal.link.downlink.next)
    assert third.connected_with == [renewal.keys.keys]
    renewal.event(third, CONNECTED)
    renewal.change_push()
    renewal.tick(RETIRE_AFTER)
    assert [push.linger for push in renewal.context.pushes] == [2000, 2000, None]
    assert renewal.told == ["up"]


def test_keys_that_wait_are_taken_up_at_once_if_those_before_them_are_refused(renewal: Renewal) -> None:
    """If keys are refused while newer ones wait, the newer ones are used at once."""
    second = renewal.begin()
    renewal.begin()
    renewal.event(second, zmq.Event.HANDSHAKE_FAILED_AUTH)
    renewal.tick()
    third = cast(Subscriber, renewal.link.downlink.next)
    assert (second.is_closed, third is second, third.connected_with) == (True, False, [renewal.keys.keys])


def test_keys_that_wait_are_taken_up_by_the_connection_of_a_link_that_is_lost(renewal: Renewal) -> None:
    """If the link is lost while keys wait, its own connection uses them, since none has to be kept."""
    second = renewal.change_subscriber()
    renewal.begin()
    renewal.exchange.disconnected()
    renewal.tick(RETIRE_AFTER)
    assert renewal.link.downlink.next is None
    assert second.connected_with[1:] == [renewal.keys.keys]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("loss", ["subscriber", "push", "silent"])
def test_a_link_that_is_lost_during_the_change_comes_up_again(renewal: Renewal, step: str, loss: str) -> None:
    """A link that is lost at any step of the change comes up again with the new keys, and loses no message."""
    renewal.publish(b"1")
    second = renewal.go(step)
    match loss:
        case "subscriber":
            renewal.exchange.disconnected()
        case "push":
            renewal.exchange.push_disconnected()
        case "silent":
            renewal.link._uplink._is_stale = True
            renewal.link._enter(Event.SILENT)
    assert (renewal.told, renewal.link.state is State.UP) == (["up", "down"], False)
    renewal.hold_taken()
    renewal.tick()
    assert renewal.link.downlink.next is None
    assert second.is_closed == (step == "connecting")
    if not renewal.link.is_connected:  # lost, or ended to connect with the new keys
        renewal.exchange.connected()
    if renewal.exchange.subscriber.welcome is None:
        renewal.welcome()
    renewal.tick(OPEN_EVERY)
    renewal.confirm()
    assert (renewal.link.state, renewal.payloads()) == (State.UP, [b"1"])
    renewal.tick(RETIRE_AFTER)
    still_open = [one for one in renewal.context.pushes if one.linger is None]
    assert still_open == [renewal.exchange.push]
    assert renewal.exchange.push.curve_serverkey == renewal.keys.keys.server
    assert renewal.watched == [renewal.exchange.subscriber]
    assert not renewal.link._is_renewing


def test_a_link_that_is_lost_as_the_second_subscriber_connects_comes_up_again(renewal: Renewal) -> None:
    """A link that is lost before the second subscriber's handshake is reported comes up again with the first one."""
    second = renewal.begin()
    renewal.exchange.disconnected()
    renewal.event(second, CONNECTED)
    assert renewal.exchange.subscriber is renewal.first
    renewal.tick()
    assert second.is_closed
    renewal.exchange.connected()
    renewal.welcome()
    renewal.tick(OPEN_EVERY)
    renewal.confirm()
    assert renewal.link.state is State.UP


def test_a_link_that_is_lost_after_the_change_takes_up_further_keys_at_once(renewal: Renewal) -> None:
    """A link that is lost after the change uses further keys at once, because it has no connection to keep."""
    renewal.renew()
    second = renewal.exchange.subscriber
    renewal.exchange.disconnected()
    assert renewal.begin() is None
    assert second.connected_with[1:] == [renewal.keys.keys]


def test_a_forwarder_that_is_about_to_end_is_not_connected_to_by_other_keys(renewal: Renewal) -> None:
    """A draining forwarder is not connected to with other keys, because it still delivers messages."""
    renewal.welcome(DRAINING)
    assert renewal.begin() is None
    assert (len(renewal.first.connected_with), renewal.link.state) == (1, State.DRAINING)


@pytest.mark.parametrize("step", STEPS)
def test_a_forwarder_that_drains_during_the_change_is_left(renewal: Renewal, step: str) -> None:
    """If a forwarder drains during the change, the link detaches by its present session and PUSH."""
    second = renewal.go(step)
    push = renewal.exchange.push
    renewal.welcome(DRAINING)
    detach = wire.DETACH.encode(wire.Detach(INBOX, 1 if step == "connecting" else 2))
    assert (push.frames[-1], renewal.exchange.subscriber.sent[-1]) == (detach, detach)
    if step == "connecting":
        renewal.event(second, CONNECTED)
    renewal.tick(OPEN_EVERY)
    assert (renewal.link.state, renewal.exchange.push) == (State.DRAINING, push)
    assert renewal.exchange.subscriber is (renewal.first if step == "connecting" else second)
    assert (second.is_closed, renewal.link.downlink.next) == (step == "connecting", None)


@pytest.mark.parametrize("step", STEPS)
def test_a_link_that_is_closed_during_the_change_closes_everything(renewal: Renewal, step: str) -> None:
    """A link that closes during the change closes every socket; an open one would delay the end of the process."""
    renewal.go(step)
    renewal.link.close()
    assert [one.is_closed for one in renewal.context.subscribers] == [True, True]
    assert [one.linger for one in renewal.context.pushes] == [2000] * (2 if step == "renewed" else 1)
    assert renewal.watched == []


def test_a_push_that_cannot_be_opened_is_tried_again(renewal: Renewal) -> None:
    """A PUSH that cannot be opened is reported and tried again, while the former one is used."""
    old, address = renewal.exchange.push, renewal.link.forwarder.pull
    renewal.link._uplink._address = INVALID
    renewal.renew()
    (line,) = renewal.lines()
    assert "pull_socket_address" in line
    renewal.tick(RETIRE_AFTER)
    renewal.publish(b"1")
    assert (renewal.exchange.push, renewal.payloads()) == (old, [b"1"])
    renewal.link._uplink._address = address
    renewal.tick(OPEN_EVERY)
    assert (renewal.exchange.push is old, renewal.payloads()) == (False, [b"1"])
    renewal.tick(RETIRE_AFTER)
    assert not renewal.link._is_renewing


# The end


def test_a_link_that_closes_sends_what_it_holds_and_lingers(rig: Rig) -> None:
    """A link that closes sends its held messages, and lingers so that frames in its socket are delivered."""
    rig.come_up()
    rig.exchange.push.is_full = True
    rig.publish(b"1")
    push = rig.exchange.push
    push.is_full = False
    rig.link.close()
    assert [frame[:1] for frame in push.frames] == [b"G"]
    assert (push.linger, rig.exchange.subscriber.is_closed, rig.exchange.push) == (2000, True, None)
    assert rig.watched == []


def test_monitors_are_those_of_the_sockets_that_are_open(rig: Rig) -> None:
    """The monitors are those of the open sockets, each with the handler of its side."""
    rig.exchange.connected()
    assert list(rig.link.monitors()) == [rig.exchange.subscriber.monitor]
    rig.welcome()
    rig.tick(OPEN_EVERY)
    rig.confirm()
    monitors: Any = rig.link.monitors()
    _, push_monitor = monitors
    monitors[push_monitor](DISCONNECTED)
    assert rig.link.state is State.VERIFYING
    monitors = rig.link.monitors()
    monitors[rig.exchange.subscriber.monitor](DISCONNECTED)
    assert rig.link.state is State.DOWN
    rig.tick()
    assert push_monitor.is_closed
    assert list(rig.link.monitors()) == [rig.exchange.subscriber.monitor]
