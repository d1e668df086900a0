"""The set of links as links appear and fail, without sockets: the test plays the network and the forwarders."""

import selectors
from collections.abc import Callable
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import AnyName, Clock, Reader
from socketless import CONNECTED, INVALID, TWO, Context, Exchange, Subscriber, options, perform, replace_sockets

from channels_zmq.client import batch
from channels_zmq.client.client import Client
from channels_zmq.client.output import LinkLost, LinkRestored
from channels_zmq.client.requests import LOST, Request
from channels_zmq.client.window import BLOCK_FRAMES, BLOCK_SECONDS
from channels_zmq.errors import ConfigurationError, OutboxFull, WireVersionMismatch
from channels_zmq.transports import discovery
from channels_zmq.transports import links as module
from channels_zmq.transports.discovery import Bootstrap
from channels_zmq.transports.homes import ROTATE_EVERY, Homes
from channels_zmq.transports.link import CONNECTS_WITHIN, FULL_RETRY, PATIENCE, Link
from channels_zmq.transports.links import Links
from channels_zmq.transports.roster import FORGET_AFTER, IGNORE_FOR, Forwarder
from channels_zmq.transports.states import Event, State
from channels_zmq.transports.uplink import OPEN_EVERY
from channels_zmq_forwarder import sockets, wire
from channels_zmq_forwarder.wire import KnownForwarder

SECRET, FOREIGN = b"0123456789abcdef", b"fedcba9876543210"
INBOX = wire.claimable(SECRET)
SENDER = b"s" * 8
A, B, C, D, ALIAS = (
    Forwarder(f"tcp://10.0.0.{number}:5555", f"tcp://10.0.0.{number}:5556") for number in (1, 2, 3, 4, 5)
)
UNUSABLE = Forwarder("tcp://pull", INVALID)
NAMED = Forwarder("tcp://zmq:5555", "tcp://zmq:5556")
INSTANCES = {A: b"a" * 8, B: b"b" * 8, C: b"c" * 8}
TTL = 60_000
WINDOW = 2 * BLOCK_FRAMES
EVERY = 5.0
"""Seconds between two resolutions of a name."""


def is_of(homes: Homes[Any], key: bytes, forwarder: Forwarder) -> bool:
    home = homes.of(key)
    return home is not None and bool(home.name == forwarder.pub)


def topics_of(home: Forwarder, *others: Forwarder, count: int = 3) -> list[wire.Topic]:
    """Return topics that hashing assigns to one of several forwarders."""
    homes: Homes[Any] = Homes(lambda key: False)
    homes.serve([SimpleNamespace(name=one.pub) for one in (home, *others)])
    topics = (wire.group_topic(str(number)) for number in range(1000))
    return [topic for topic in topics if is_of(homes, topic, home)][:count]


G = topics_of(A, B)[0]
"""A topic of A while A serves."""
H = topics_of(B, A)[0]


def encoded(*forwarders: Forwarder, serves: bool = True, instances: dict[Forwarder, bytes] = INSTANCES) -> bytes:
    """Return a list of forwarders as a welcome carries it."""
    return wire.encode_forwarders(
        KnownForwarder(one.pull.encode(), one.pub.encode(), serves, instances.get(one, b"").hex().encode())
        for one in forwarders
    )


class Selector:
    """A selector that records the watched descriptors."""

    def __init__(self) -> None:
        self.watched: list[object] = []
        self.is_closed = False

    def register(self, descriptor: Any, events: int) -> None:
        self.watched.append(descriptor)

    def unregister(self, descriptor: Any) -> None:
        self.watched.remove(descriptor)

    def fileno(self) -> int:
        return 42

    def close(self) -> None:
        self.is_closed = True


class Rig:
    """Links between stand-ins, at a time that a test moves."""

    def __init__(self, clock: Clock, *forwarders: Forwarder, capacity: int = 1000) -> None:
        self.clock = clock
        self.calls: list[float] = []
        chosen = options(outbox_capacity=capacity, resolve_every=EVERY)
        self.client = Client(SECRET, SENDER, window=WINDOW, clock=clock)
        self.client.receiver.own_names = AnyName()
        self.links = Links(forwarders or (A, B), chosen, self.client, self.calls.append)
        self.links.start()
        self._exchanges: dict[Forwarder, Exchange] = {}

    def link(self, forwarder: Forwarder) -> Link:
        return self.links._links[forwarder]

    def exchange(self, forwarder: Forwarder) -> Exchange:
        exchange = self._exchanges.get(forwarder)
        if exchange is None or exchange.link is not self.link(forwarder):
            instance = INSTANCES.get(forwarder, TWO)
            exchange = self._exchanges[forwarder] = Exchange(self.link(forwarder), self.client, instance)
        return exchange

    def perform(self) -> None:
        perform(self.client, self.links)

    def tick(self, after: float = 0.0) -> float:
        self.clock.now += after
        due = self.links.tick(self.clock.now)
        self.perform()
        return due

    def look_around(self) -> float:
        self.links.look_around()
        if self.links._lookup._thread is not None:
            self.links._lookup._thread.join()
        return self.tick()

    def welcome(self, forwarder: Forwarder, *args: wire.State, forwarders: bytes | None = None, **changes: Any) -> None:
        """Let a forwarder send a welcome, by default with the list of the last hello."""
        exchange = self.exchange(forwarder)
        lists = exchange.subscriber.lists
        exchange.welcome(*args, forwarders=lists[-1] if forwarders is None else forwarders, **changes)
        self.perform()

    def confirm(self, forwarder: Forwarder, number: int | None = None) -> None:
        """Answer the last echo or marker, or the one with this number."""
        exchange = self.exchange(forwarder)
        exchange.confirm(exchange.echoes()[-1] if number is None else number)
        self.perform()

    def verify(self, *forwarders: Forwarder, **changes: Any) -> None:
        """Connect all, then welcome all, then let all send an echo."""
        for forwarder in forwarders:
            self.exchange(forwarder).connected()
        for forwarder in forwarders:
            self.welcome(forwarder, **changes)
        self.tick(OPEN_EVERY)

    def come_up(self, *forwarders: Forwarder, **changes: Any) -> None:
        """Let links come up, with each serving forwarder listing all."""
        self.verify(*forwarders, **changes)
        for forwarder in forwarders:
            self.confirm(forwarder)
            assert self.link(forwarder).state is State.UP
        self.tick()
        for forwarder in self.up():
            self.welcome(forwarder)

    def go_down(self, forwarder: Forwarder) -> None:
        self.exchange(forwarder).disconnected()
        self.perform()

    def publish(self, payload: bytes = b"x", topic: wire.Topic = G, ttl: int = TTL) -> None:
        self.links.publish_group(topic, payload, ttl)

    def sent(self, forwarder: Forwarder) -> list[bytes]:
        """Remove the frames that a link has sent, and return the payloads of the group messages in order."""
        return self.exchange(forwarder).payloads()

    def up(self) -> list[Forwarder]:
        return [one for one, link in self.links._links.items() if link.state is State.UP]

    def carried(self, forwarder: Forwarder) -> bool:
        """Remove the frames that a link has sent, and return whether any was neither an echo nor a marker."""
        return any(frame[:1] != b"E" for frame in self.exchange(forwarder).push.take())

    def frames(self, forwarder: Forwarder) -> list[tuple[bytes, bytes, int, int, int, bytes]]:
        return [wire.read_group(frame) for frame in self.exchange(forwarder).push.take() if frame[:1] == b"G"]

    def changes(self) -> list[LinkLost | LinkRestored]:
        changes, self.client.out.changes = self.client.out.changes, []
        return changes

    def lines(self) -> list[str]:
        reports, self.client.counters.reports = self.client.counters.reports, []
        return [report.message % report.arguments for report in reports]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the answers of the resolver by host; an error is raised."""
    answers: dict[str, Any] = {}

    def resolve(address: str) -> list[str]:
        answer = answers[address.removeprefix("tcp://").rpartition(":")[0]]
        if isinstance(answer, OSError):
            raise answer
        return [f"tcp://{host}:{address.rpartition(':')[2]}" for host in answer]

    for each in (discovery, sockets):
        monkeypatch.setattr(each, "resolve", resolve)
    return answers


@pytest.fixture
def context() -> Context:
    return Context()


@pytest.fixture
def make(clock: Clock, monkeypatch: pytest.MonkeyPatch, context: Context) -> Callable[..., Rig]:
    replace_sockets(monkeypatch, clock)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(module, "zmq", SimpleNamespace(Context=lambda: context))
    monkeypatch.setattr(module, "selectors", SimpleNamespace(DefaultSelector=Selector, EVENT_READ=1))
    monkeypatch.setattr(module, "Bootstrap", partial(Bootstrap, clock=clock))
    return partial(Rig, clock)


@pytest.fixture
def rig(make: Callable[..., Rig]) -> Rig:
    """Return links to two forwarders that are not reached yet."""
    return make()


@pytest.fixture
def pair(rig: Rig) -> Rig:
    """Return links to two forwarders that both serve."""
    rig.come_up(A, B)
    for forwarder in (A, B):
        rig.exchange(forwarder).push.take()
    return rig


# Sending


def test_each_topic_is_sent_by_its_home(pair: Rig) -> None:
    """Each topic is sent by its home and by no other link."""
    for topic in (G, H):
        pair.publish(topic, topic)
    assert (pair.sent(A), pair.sent(B)) == ([G], [H])


def test_messages_wait_until_a_link_is_up(rig: Rig) -> None:
    """Messages wait in the lobby in order, and homes send them when links are up; the first link ends no outage."""
    for number in range(3):
        rig.publish(b"g%d" % number, G)
        rig.publish(b"h%d" % number, H)
    assert (rig.links.held, rig.links.is_connected) == (6, False)
    rig.verify(A, B)
    for forwarder in (A, B):
        rig.confirm(forwarder)
    sent = rig.sent(A) + rig.sent(B)
    assert [payload for payload in sent if payload[:1] == b"g"] == [b"g0", b"g1", b"g2"]
    assert [payload for payload in sent if payload[:1] == b"h"] == [b"h0", b"h1", b"h2"]
    assert (rig.changes(), rig.client.counters.reconnects, rig.links.is_connected) == ([], 0, True)


def test_a_message_that_expires_in_the_lobby_is_counted(rig: Rig) -> None:
    """A message that expires in the lobby is counted by the next tick and uses no sequence number."""
    rig.publish(ttl=1000)
    rig.tick(1.0)
    assert rig.links.held == 0
    assert rig.client.counters.dropped == {"outbox_expired": 1}
    assert rig.client.numbers.last(G) == 0


def test_a_full_outbox_is_an_error(make: Callable[..., Rig]) -> None:
    """A full outbox raises an error with all addresses and the number of held messages, in the lobby and at links."""
    rig = make(capacity=2)
    for _ in range(2):
        rig.publish()
    with pytest.raises(OutboxFull, match="2 messages: raise outbox_capacity") as caught:
        rig.publish()
    assert str(A) in str(caught.value)
    assert str(B) in str(caught.value)
    rig.links.drop_held()
    assert rig.links.held == 0
    rig.publish()


def test_all_links_and_the_lobby_share_one_bound(make: Callable[..., Rig]) -> None:
    """All links and the lobby share one bound, so that messages held at one link leave less room for others."""
    rig = make(capacity=3)
    rig.come_up(A, B)
    for forwarder in (A, B):
        rig.exchange(forwarder).push.is_full = True
    for topic in (G, H, G):
        rig.publish(topic=topic)
    with pytest.raises(OutboxFull):
        rig.publish(topic=H)


def test_a_sender_makes_room_in_a_full_window_before_it_holds_a_message(pair: Rig) -> None:
    """A sender reads answers that have arrived, and so makes room in a full window, before it holds a message."""
    for _ in range(WINDOW):
        pair.publish()
    exchange = pair.exchange(A)
    for number in exchange.echoes():
        frame = wire.CONFIRM.encode(wire.Confirm(INBOX, number, wire.Status.OK, exchange.instance))
        exchange.subscriber.arriving.append(frame)
    exchange.push.take()
    pair.publish(b"next")
    assert pair.sent(A) == [b"next"]


def test_a_message_for_which_the_window_has_no_room_is_held(pair: Rig) -> None:
    """A message without room in the window is held until an answer arrives, while the other link continues."""
    pair.publish(b"0", H)
    assert pair.sent(B) == [b"0"]
    for _ in range(WINDOW):
        pair.publish()
    first, _ = pair.exchange(A).echoes()
    pair.exchange(A).push.take()
    pair.publish(b"1")
    pair.publish(b"2", H)
    assert (pair.sent(A), pair.sent(B)) == ([], [b"2"])
    pair.confirm(A, first)
    assert pair.sent(A) == [b"1"]


def test_a_link_sends_in_order_and_no_other_link_waits_for_it(pair: Rig) -> None:
    """A link whose socket is full holds messages and later sends them in order, while other links continue."""
    pair.publish(b"0", H)
    assert pair.sent(B) == [b"0"]
    pair.exchange(A).push.is_full = True
    pair.publish(b"1")
    pair.publish(b"2", H)
    assert pair.sent(B) == [b"2"]
    pair.exchange(A).push.is_full = False
    for topic in topics_of(A, B):
        pair.publish(topic, topic)
    assert pair.sent(A) == [b"1", *topics_of(A, B)]


def test_what_is_held_or_unacknowledged_is_counted(pair: Rig) -> None:
    """Held and unacknowledged messages are counted over the lobby and all links, and each link reports its state."""
    pair.publish(topic=G)
    pair.publish(topic=H)
    assert pair.links.held == 2
    assert [one["state"] for one in pair.links.stats()] == ["up", "up"]
    assert [one["unacknowledged"] for one in pair.links.stats()] == [1, 1]
    pair.links.mark_now()
    for forwarder in (A, B):
        pair.confirm(forwarder)
    assert pair.links.held == 0


def test_a_flush_drops_what_is_held_everywhere(pair: Rig) -> None:
    """A flush drops the messages in the lobby and at each link, and none of them is sent again."""
    for topic in (G, H):
        pair.publish(topic=topic)
    pair.links.drop_held()
    assert pair.links.held == 0
    for forwarder in (A, B):
        pair.go_down(forwarder)
    pair.publish()
    assert pair.links.held == 1
    pair.links.drop_held()
    assert pair.links.held == 0


# A link that goes down while another one is up


def test_what_a_lost_link_may_not_have_delivered_is_sent_again_first_and_in_order(pair: Rig) -> None:
    """The next home sends the lost link's unacknowledged messages first, with their numbers, then held and new ones."""
    for payload in (b"1", b"2"):
        pair.publish(payload)
    pair.exchange(A).push.is_full = True
    pair.publish(b"3")
    before = pair.frames(A)
    pair.go_down(A)
    pair.publish(b"4")
    after = pair.frames(B)
    assert [frame[5] for frame in before] == [b"1", b"2"]
    assert [frame[5] for frame in after] == [b"1", b"2", b"3", b"4"]
    first = before[0][2]
    assert [frame[2] - first for frame in before] == [0, 1]
    assert [frame[2] - first for frame in after] == [0, 1, 2, 3]
    assert pair.link(B).stats(carries=True)["sent_again"] == 2
    assert pair.changes() == []


def test_a_message_that_was_acknowledged_a_moment_ago_is_sent_again(pair: Rig) -> None:
    """A recently acknowledged message is sent again, because a failed forwarder may not have delivered it."""
    pair.publish(b"1")
    pair.tick(BLOCK_SECONDS)
    pair.confirm(A)
    pair.go_down(A)
    assert pair.sent(B) == [b"1"]


def test_what_is_sent_again_takes_few_frames(pair: Rig) -> None:
    """Messages that are sent again are packed into few frames, each of which costs its receivers a check."""
    topics = topics_of(A, B)[:2]
    for forwarder in (A, B):
        pair.exchange(forwarder).accept_batches()
    for number in range(10):
        for topic in topics:
            pair.publish(b"%d" % number, topic)
    pair.tick(BLOCK_SECONDS)
    pair.publish(b"10", topics[0])
    pair.go_down(A)
    frames = [frame for frame in pair.exchange(B).push.frames if frame[:1] == b"G"]
    assert [len(wire.split(frame)) for frame in frames] == [10, 10, 1]
    assert pair.link(B).stats(carries=True)["sent_again"] == 3
    assert pair.sent(B) == 2 * [b"%d" % number for number in range(10)] + [b"10"]


def test_topics_of_other_links_do_not_move(pair: Rig) -> None:
    """The topics of other links keep their home when a link fails."""
    pair.publish(b"1", H)
    pair.go_down(A)
    pair.publish(b"2", H)
    assert pair.sent(B) == [b"1", b"2"]


def test_what_goes_on_to_another_link_is_never_refused(make: Callable[..., Rig]) -> None:
    """Messages that move to another link are never refused, and take no room from new messages."""
    rig = make(capacity=1)
    rig.come_up(A, B)
    for _ in range(10):
        rig.publish()
    for forwarder in (A, B):
        rig.go_down(forwarder)
    assert rig.links.held == 10
    rig.publish()
    with pytest.raises(OutboxFull):
        rig.publish()


@pytest.mark.parametrize("how", ["lost", "push lost", "silent", "drains", "reconnected"])
def test_topics_move_however_a_link_ceases_to_serve(pair: Rig, how: str) -> None:
    """However a link stops serving, its topics move, with unacknowledged messages before any newer one."""
    pair.publish(b"1")
    match how:
        case "lost":
            pair.go_down(A)
        case "push lost":
            pair.exchange(A).push_disconnected()
        case "silent":
            pair.link(A)._enter(Event.SILENT)
        case "drains":
            pair.welcome(A, wire.State.DRAINING)
        case "reconnected":
            pair.exchange(A).connected()
    pair.publish(b"2")
    assert pair.sent(B) == [b"1", b"2"]
    assert pair.changes() == []


def test_a_topic_in_use_stays_where_it_is_when_its_home_comes_back(pair: Rig) -> None:
    """A topic in use does not move when its home returns, so that no message is overtaken; a silent topic moves."""
    pair.go_down(A)
    pair.publish(b"1")
    pair.come_up(A)
    pair.exchange(B).push.take()
    for number in range(5):
        pair.tick(0.5)
        pair.publish(b"%d" % number)
    assert pair.sent(B) == [b"0", b"1", b"2", b"3", b"4"]
    pair.tick(ROTATE_EVERY)
    pair.tick(ROTATE_EVERY)
    pair.exchange(A).push.take()
    pair.publish(b"moved")
    assert pair.sent(A) == [b"moved"]


def test_plain_messages_are_not_sent_again(pair: Rig) -> None:
    """A message to a normal channel is not sent again, and its caller learns that the outcome is unknown."""
    request: Request[Reader] = Request(b"Aplain", repeats=False, waiter=Reader())
    pair.client.begin_request(5, request)
    pair.links.send_downstream(b"Aplain", inf, 5, b"jobs")
    (sent_by,) = [one for one in (A, B) if b"Aplain" in pair.exchange(one).push.take()]
    pair.go_down(sent_by)
    (other,) = {A, B} - {sent_by}
    assert request.answer == LOST
    assert pair.exchange(other).push.frames == []


# No link is up


def test_an_outage_is_announced_once_when_the_last_link_is_lost(pair: Rig) -> None:
    """An outage is announced once, and its end, with the number of lost messages, when no link is still coming up."""
    pair.go_down(A)
    assert pair.changes() == []
    pair.client.counters.drop("missed", 2)
    pair.go_down(B)
    assert (pair.changes(), pair.links.is_connected) == ([LinkLost()], False)
    pair.client.counters.drop("missed", 3)
    pair.verify(A, B)
    pair.confirm(A)
    assert (pair.changes(), pair.links.is_connected) == ([], False)  # the other one may have more clients
    pair.confirm(B)
    assert (pair.changes(), pair.links.is_connected) == ([LinkRestored(3)], True)
    assert (pair.changes(), pair.client.counters.reconnects) == ([], 1)


@pytest.mark.parametrize("state", ["connecting", "greeting", "verifying"])
def test_the_first_messages_wait_a_moment_for_a_link_that_is_about_to_come_up(
    make: Callable[..., Rig], state: str
) -> None:
    """The first messages wait up to `CONNECTS_WITHIN` for a link that is coming up: others may already use it."""
    rig = make(A, B)
    if state != "connecting":
        rig.exchange(B).connected()
    if state == "verifying":
        rig.welcome(B)
    rig.come_up(A)
    rig.publish(b"1")
    assert (rig.sent(A), rig.links.is_connected) == ([], False)
    rig.tick(CONNECTS_WITHIN)
    assert (rig.sent(A), rig.links.is_connected) == ([b"1"], True)


def test_an_outage_without_a_known_loss_is_restored_without_a_number(make: Callable[..., Rig]) -> None:
    """The end of an outage without a known loss reports None rather than 0, because a loss may show later."""
    rig = make(A)
    rig.come_up(A)
    rig.exchange(A).push_disconnected()
    rig.tick(OPEN_EVERY)
    rig.confirm(A)
    assert rig.changes() == [LinkLost(), LinkRestored(None)]


def test_a_link_that_never_was_up_is_no_outage(rig: Rig) -> None:
    """The failure of a link that never was up is not an outage, because no connection was announced."""
    rig.exchange(A).connected()
    rig.go_down(A)
    assert rig.changes() == []


def test_held_messages_are_sent_behind_the_announcement(make: Callable[..., Rig]) -> None:
    """Held messages are sent by the tick after the end of the outage, which the housekeeper announces first."""
    rig = make(A)
    rig.come_up(A)
    rig.exchange(A).push.take()
    rig.go_down(A)
    rig.publish(b"1")
    rig.verify(A)
    rig.confirm(A)
    assert (rig.sent(A), rig.calls[-1]) == ([], 0.0)
    rig.tick()
    assert rig.sent(A) == [b"1"]


def test_a_new_message_takes_no_held_one_ahead_of_the_announcement(make: Callable[..., Rig]) -> None:
    """A new message waits behind the held ones until the tick after the announcement, and does not release them."""
    rig = make(A)
    rig.come_up(A)
    rig.exchange(A).push.take()
    rig.go_down(A)
    rig.publish(b"1")
    rig.verify(A)
    rig.confirm(A)
    rig.publish(b"2")
    rig.link(A).make_room()
    assert (rig.changes()[-1], rig.sent(A)) == (LinkRestored(None), [])
    rig.tick()
    rig.publish(b"3")
    assert rig.sent(A) == [b"1", b"2", b"3"]


def test_a_second_link_takes_no_held_message_ahead_of_the_announcement(pair: Rig) -> None:
    """A second link that comes up before the tick does not send held messages ahead of the announcement."""
    for one in (A, B):
        pair.go_down(one)
    pair.publish(b"1")
    pair.publish(b"2", H)
    pair.verify(A, B)
    for one in (A, B):
        pair.exchange(one).payloads()
    for one in (A, B):
        echo = pair.link(one)._echo
        assert echo is not None
        pair.confirm(one, echo.number)
    assert (pair.changes(), pair.sent(A) + pair.sent(B)) == ([LinkLost(), LinkRestored(None)], [])
    pair.tick()
    assert sorted(pair.sent(A) + pair.sent(B)) == [b"1", b"2"]


def test_after_a_reconnect_to_the_same_instance_everything_is_sent_again_before_anything_newer(
    make: Callable[..., Rig],
) -> None:
    """After a reconnect, unacknowledged messages are repeated before newer ones: two connections are read in turns."""
    rig = make(A)
    rig.come_up(A)
    rig.publish(b"1")
    before = rig.frames(A)
    rig.exchange(A).push_disconnected()
    rig.publish(b"2")
    rig.tick(OPEN_EVERY)
    rig.confirm(A)
    rig.tick()
    rig.publish(b"3")
    after = rig.frames(A)
    assert [frame[5] for frame in after] == [b"1", b"2", b"3"]
    assert after[0][2] == before[0][2]
    assert rig.link(A).stats(carries=True)["sent_again"] == 1


def test_with_no_other_forwarder_messages_wait_for_the_successor_of_a_draining_one(make: Callable[..., Rig]) -> None:
    """Without another forwarder, all messages, also unacknowledged ones, wait for the successor of a draining one."""
    rig = make(A)
    rig.come_up(A)
    rig.publish(b"1")
    rig.welcome(A, wire.State.DRAINING)
    rig.publish(b"2")
    assert rig.changes() == [LinkLost()]
    rig.go_down(A)
    rig.come_up(A)
    assert rig.sent(A) == [b"1", b"2"]


def test_an_expired_message_is_not_sent_again(make: Callable[..., Rig]) -> None:
    """An expired message is not sent again, and is counted because it was not acknowledged."""
    rig = make(A)
    rig.come_up(A)
    rig.publish(ttl=1000)
    rig.go_down(A)
    rig.clock.now += 1
    rig.come_up(A)
    assert rig.sent(A) == []
    assert rig.client.counters.dropped == {"outbox_expired": 1}


def test_each_message_counts_that_expires_before_it_is_sent_again(make: Callable[..., Rig]) -> None:
    """Each expired message counts, also of several that would have been sent again in one frame."""
    rig = make(A)
    rig.come_up(A)
    for _ in range(5):
        rig.publish(ttl=1000)
    rig.go_down(A)
    rig.clock.now += 1
    rig.come_up(A)
    assert rig.client.counters.dropped == {"outbox_expired": 5}


def test_messages_held_before_a_join_are_older_than_the_subscription(make: Callable[..., Rig]) -> None:
    """Messages that were held before a join are not delivered to this process, by whichever path they are sent."""
    rig = make(A)
    rig.publish(b"older")
    join = rig.client.join(G, "a", 9, None)
    rig.links.subscribed(G)
    rig.publish(b"newer")
    rig.come_up(A)
    rig.client.join_synced(join, 10**9)
    for frame in rig.exchange(A).push.take():
        if frame[:1] == b"G":
            rig.exchange(A).publish(frame)
    assert [payload for _, payload, _ in rig.client.mailboxes.boxes["a"].mail] == [b"newer"]


# Requests


def test_requests_with_the_same_key_are_sent_by_one_link(pair: Rig) -> None:
    """Requests with the same key are sent by one link, in order."""
    for number in range(5):
        assert not pair.links.send_downstream(b"A%d" % number, inf, number, b"jobs")
    frames = [pair.exchange(forwarder).push.take() for forwarder in (A, B)]
    assert sorted(frames) == [[], [b"A0", b"A1", b"A2", b"A3", b"A4"]]


def test_a_request_waits_until_a_link_is_up(rig: Rig) -> None:
    """A request waits until a link is up, unless it is withdrawn or expires first."""
    for number in (7, 8, 9):
        rig.links.send_downstream(b"A%d" % number, rig.clock.now + (1 if number == 8 else 5), number, b"jobs")
    rig.links.withdraw(7)
    assert rig.links.held == 2
    rig.clock.now += 1
    rig.come_up(A)
    assert [frame for frame in rig.exchange(A).push.frames if frame[:1] == b"A"] == [b"A9"]


def test_a_job_ages_while_it_waits(rig: Rig) -> None:
    """A message for a normal channel that waits for a link has less time left to live when it is sent."""
    job = wire.Enqueue(INBOX, 5, 3000, 9, b"jobs", b"x")
    rig.links.send_downstream(wire.ENQUEUE.encode(job), rig.clock.now + 3, 5, b"jobs")
    rig.clock.now += 1
    rig.come_up(A)
    (frame,) = [frame for frame in rig.exchange(A).push.frames if frame[:1] == b"Q"]
    assert wire.ENQUEUE.decode(frame) == job._replace(ttl=3000 - round(1000 * (1 + OPEN_EVERY)))


def test_a_request_that_waits_at_a_link_can_be_withdrawn(pair: Rig) -> None:
    """A request that a link holds can be withdrawn, whichever link it is."""
    for forwarder in (A, B):
        pair.exchange(forwarder).push.is_full = True
    pair.links.send_downstream(b"A", inf, 7, b"jobs")
    assert pair.links.held == 1
    pair.links.withdraw(7)
    assert pair.links.held == 0


@pytest.mark.parametrize("must", [False, True])
def test_a_message_that_was_taken_over_is_held_whatever_the_bounds_are(make: Callable[..., Rig], must: bool) -> None:
    """A message that this process has taken over is held beyond the bounds; other frames are refused."""
    rig = make(capacity=0)
    send = partial(rig.links.send_downstream, b"A", inf, 0, b"jobs", must=must)
    if must:
        send()
        assert rig.links.held == 1
    else:
        with pytest.raises(OutboxFull):
            send()


def test_a_frame_for_one_exchange_goes_to_it_alone(pair: Rig) -> None:
    """A frame for one exchange is sent to it only, by the producer's path and by the subscriber's path."""
    to = pair.link(B).attachment
    for forwarder in (A, B):
        pair.exchange(forwarder).subscriber.take_sent()
    pair.links.send_to(to, b"M")
    pair.links.send_upstream(b"R", to)
    assert [pair.exchange(one).push.take() for one in (A, B)] == [[], [b"M"]]
    assert [pair.exchange(one).subscriber.take_sent() for one in (A, B)] == [[], [b"R"]]


@pytest.mark.parametrize("state", [wire.State.DRAINING, wire.State.SETTLING])
def test_a_request_to_all_is_answered_by_an_exchange_that_takes_no_messages(rig: Rig, state: wire.State) -> None:
    """A request to all is answered by settling and draining exchanges too, because it takes the subscriber's path."""
    if state is wire.State.DRAINING:
        rig.come_up(A, B)
        rig.welcome(B, state)
    else:
        rig.come_up(A)
        rig.exchange(B).connected()
        rig.welcome(B, state)
    for one in (A, B):
        rig.exchange(one).subscriber.take_sent()
    request: Request[Reader] = Request(b"Mmember", to_all=True)
    rig.client.begin_request(5, request)
    rig.links.send_upstream(request.frame)
    for one in (A, B):
        assert (rig.exchange(one).subscriber.take_sent(), request.answer) == ([b"Mmember"], None)
        rig.exchange(one).confirm(5)
    assert request.answer == 0


def test_a_frame_for_all_exchanges_goes_to_each(pair: Rig) -> None:
    """A frame for all exchanges is sent to each one, whether its PUSH is verified or not."""
    pair.exchange(A).push_disconnected()
    for forwarder in (A, B):
        pair.exchange(forwarder).subscriber.take_sent()
    for frame in (b"\1Gg\0", b"Mmember"):
        pair.links.send_upstream(frame)
    assert [pair.exchange(one).subscriber.take_sent() for one in (A, B)] == [[b"\1Gg\0", b"Mmember"]] * 2


@pytest.mark.parametrize("why", ["push lost", "push full", "draining"])
def test_a_frame_for_one_exchange_whose_push_cannot_take_it_goes_by_the_other_way(pair: Rig, why: str) -> None:
    """A frame takes the subscriber's path if the PUSH cannot take it, as the exchange would otherwise wait in vain."""
    match why:
        case "push lost":
            pair.exchange(B).push_disconnected()
        case "push full":
            pair.exchange(B).push.is_full = True
        case "draining":
            pair.welcome(B, wire.State.DRAINING)
    for forwarder in (A, B):
        pair.exchange(forwarder).subscriber.take_sent()
        pair.exchange(forwarder).push.take()
    assert not pair.links.send_to(pair.link(B).attachment, b"f")
    assert [pair.exchange(one).subscriber.take_sent() for one in (A, B)] == [[], [b"f"]]
    assert [pair.exchange(one).push.take() for one in (A, B)] == [[], []]


def test_nothing_waits_in_the_socket_of_a_link_that_is_not_connected(rig: Rig) -> None:
    """Frames for a link without a connection are dropped: its next session repeats the subscriptions."""
    rig.exchange(A).subscriber.take_sent()
    rig.links.send_upstream(b"\1Gg\0")
    rig.links.send_upstream(b"R", rig.link(A).attachment)
    assert rig.exchange(A).subscriber.take_sent() == []


def test_a_frame_for_an_exchange_that_was_forgotten_is_dropped(pair: Rig) -> None:
    """A frame for a forgotten exchange, as left over from a step, is dropped."""
    to = pair.link(A).attachment
    pair.links._remove(pair.link(A))
    assert not pair.links.send_upstream(b"R", to)
    pair.links.take_session([(to, wire.Welcome(INBOX, 1, 0, TWO, 1, 1))])
    pair.links.send_to(to, b"M")
    assert b"M" not in pair.exchange(B).push.frames
    assert b"R" not in pair.exchange(B).subscriber.sent


@pytest.mark.parametrize("is_up", [False, True])
def test_another_version_fails_requests_unless_another_forwarder_serves(rig: Rig, is_up: bool) -> None:
    """Another wire version fails requests unless another forwarder serves; messages with no waiting caller are held."""
    rig.exchange(A).connected()
    rig.welcome(A, version=wire.VERSION + 1)
    if is_up:
        rig.come_up(B)
    if is_up:
        rig.links.send_downstream(b"A", inf, 5, b"jobs")
    else:
        with pytest.raises(WireVersionMismatch):
            rig.links.send_downstream(b"A", inf, 5, b"jobs")
    rig.links.send_to(rig.link(A).attachment, b"f")
    rig.links.send_downstream(b"k", inf, 0, b"jobs")
    assert (len(rig.link(B)._window), rig.links.held) == ((2, 0) if is_up else (0, 1))


# A flush of all


def empty(rig: Rig, forwarder: Forwarder) -> None:
    rig.exchange(forwarder).publish(wire.EMPTY.encode(wire.Empty(INBOX, 6)))
    rig.perform()


@pytest.mark.parametrize("why", ["verifying", "full"])
def test_a_client_that_is_emptied_answers_although_its_push_cannot_take_it(make: Callable[..., Rig], why: str) -> None:
    """An emptied client answers by the subscriber's path if its PUSH cannot: the exchange waits, and asks once."""
    rig = make(A)
    if why == "verifying":
        rig.exchange(A).connected()
        rig.welcome(A)
    else:
        rig.come_up(A)
        rig.exchange(A).push.is_full = True
    empty(rig, A)
    assert wire.FLUSHED.encode(wire.Flushed(INBOX, 6)) in rig.exchange(A).subscriber.sent


def test_a_client_that_is_emptied_answers_behind_all_messages_it_has_sent(pair: Rig) -> None:
    """The answer to a flush follows all messages that the client has sent, because the flush drops them."""
    pair.publish(b"1")
    empty(pair, A)
    frames = pair.exchange(A).push.take()
    assert (frames[0][:1], frames[-1]) == (b"G", wire.FLUSHED.encode(wire.Flushed(INBOX, 6)))


# Batches


@pytest.fixture
def _every_sender_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "RUN", 0)
    monkeypatch.setattr(batch, "WITHIN", inf)


@pytest.fixture
def busy(_every_sender_is_busy: None, pair: Rig) -> Rig:
    """Return links of a sender so busy that each message waits for others, to two forwarders that accept batches."""
    for forwarder in (A, B):
        pair.exchange(forwarder).accept_batches()
    return pair


def test_messages_that_wait_are_taken_apart_for_a_forwarder_that_takes_no_batches(busy: Rig) -> None:
    """A waiting batch is split into messages if its next forwarder does not accept batches."""
    busy.go_down(B)
    busy.come_up(B)
    assert not busy.link(B).takes_batches
    busy.publish(b"1")
    busy.publish(b"2")
    busy.go_down(A)
    busy.links.send_batch()
    busy.tick(FULL_RETRY)
    frames = [frame for frame in busy.exchange(B).push.frames if frame[:1] == b"G"]
    assert [wire.is_batch(frame) for frame in frames] == [False, False]
    assert busy.sent(B) == [b"1", b"2"]


def test_messages_to_one_destination_leave_as_one_frame(busy: Rig) -> None:
    """Messages to one destination leave as one frame with consecutive numbers, adjacent to those before and after."""
    assert busy.links.publish_group(G, b"1", TTL)
    busy.links.send_batch()
    assert [busy.links.publish_group(G, payload, TTL) for payload in (b"2", b"3", b"4")] == [True, False, False]
    assert busy.links.held == len(busy.exchange(A).push.frames) + 3
    busy.links.send_batch()
    busy.publish(b"5")
    busy.links.send_batch()
    alone, together, last = busy.exchange(A).push.take()
    assert wire.is_batch(together)
    read = [wire.read_group(frame) for frame in (*wire.split(alone), *wire.split(together), *wire.split(last))]
    assert [payload for *_, payload in read] == [b"1", b"2", b"3", b"4", b"5"]
    first = read[0][2]
    assert [number for _, _, number, *_ in read] == list(range(first, first + 5))


def test_a_batch_leaves_before_anything_else(busy: Rig) -> None:
    """A batch leaves before anything else, so batching does not change the order of groups, channels and requests."""
    request = wire.ECHO.encode(wire.Echo(INBOX, 1))
    attachment = busy.link(A).attachment
    for action in (
        lambda: busy.publish(b"other", H),
        lambda: busy.links.publish_direct(FOREIGN, "a", b"x", TTL),
        lambda: busy.links.send_upstream(request),
        lambda: busy.links.send_downstream(request, inf, 1, G),
        lambda: busy.links.send_to(attachment, request),
        busy.links.mark_now,
        busy.links.read,
        busy.links.close,
    ):
        busy.links.send_batch()
        busy.exchange(A).push.take()
        push = busy.exchange(A).push
        busy.publish(b"1")
        assert push.frames == []
        action()
        assert wire.read_group(wire.split(push.frames[0])[0])[5] == b"1"


def test_a_batch_that_a_socket_does_not_take_is_held_in_order(busy: Rig) -> None:
    """A batch that a socket refuses is held in order, even beyond the bounds, because its messages were accepted."""
    busy.publish(b"1")
    busy.publish(b"2")
    busy.exchange(A).push.is_full = True
    busy.links.send_batch()
    assert busy.link(A).stats(carries=True)["held"] == 2
    busy.publish(b"3")
    busy.exchange(A).push.is_full = False
    busy.tick()
    assert busy.sent(A) == [b"1", b"2", b"3"]


def test_a_batch_whose_link_goes_down_is_sent_by_the_next_one_behind_what_may_be_lost(busy: Rig) -> None:
    """A batch whose link has failed is sent by the next home, behind the messages that may be lost."""
    busy.publish(b"1")
    busy.links.send_batch()
    busy.publish(b"2")
    busy.publish(b"3")
    busy.go_down(A)
    busy.links.send_batch()
    assert busy.sent(B) == [b"1", b"2", b"3"]


def test_a_forwarder_that_has_not_accepted_batches_gets_single_messages(busy: Rig) -> None:
    """A forwarder that has not accepted batches gets single messages, also when it takes over those of another."""
    busy.go_down(B)
    busy.come_up(B)
    for payload in (b"1", b"2", b"3"):
        busy.publish(payload)
    busy.links.send_batch()
    busy.go_down(A)
    busy.publish(b"4")
    frames = [frame for frame in busy.exchange(B).push.frames if frame[:1] == b"G"]
    assert not any(map(wire.is_batch, frames))
    assert busy.sent(B) == [b"1", b"2", b"3", b"4"]


def test_a_flush_drops_a_batch(busy: Rig) -> None:
    """A flush drops a waiting batch together with the held messages."""
    busy.publish(b"1")
    busy.links.drop_held()
    busy.links.send_batch()
    assert busy.sent(A) == []


def test_an_own_message_does_not_wait_for_others(busy: Rig) -> None:
    """A message to this process itself leaves at once, because it counts for the channel's capacity while in flight."""
    busy.publish(b"1")
    assert busy.links.publish_own("a", b"x", TTL, 10)
    assert busy.sent(A) == [b"1"]
    assert busy.links.held > 0


# Direct messages


def test_a_direct_message_to_another_process_is_numbered_by_its_inbox(make: Callable[..., Rig]) -> None:
    """Direct messages to all channels of a process share a run of numbers, and so a home."""
    rig = make(A)
    rig.come_up(A)
    rig.exchange(A).push.take()
    for channel in ("a", "b"):
        rig.links.publish_direct(FOREIGN, channel, b"x", TTL)
    read = [wire.read_direct(frame) for frame in rig.exchange(A).push.take()]
    assert [body for *_, body in read] == [b"a\0x", b"b\0x"]
    assert read[1][1] == read[0][1] + 1


def test_an_own_message_counts_for_the_capacity_while_it_is_in_flight(make: Callable[..., Rig]) -> None:
    """Own messages in flight count for the capacity; until they arrive, whether the channel is full is unknown."""
    rig = make(A)
    rig.come_up(A)
    rig.exchange(A).push.take()
    assert [rig.links.publish_own("a", b"%d" % number, TTL, 2) for number in range(3)] == [True, True, None]
    for frame in rig.exchange(A).push.take():
        rig.exchange(A).publish(frame)
    assert rig.links.publish_own("a", b"x", TTL, 2) is False


def test_an_own_message_is_refused_while_no_link_is_up_and_enough_are_in_flight(rig: Rig) -> None:
    """While no link is up, an own message is refused if enough are in flight, because none of them can arrive."""
    assert [rig.links.publish_own("a", b"x", TTL, 2) for _ in range(3)] == [True, True, False]


# Receiving


def test_every_link_is_read(pair: Rig) -> None:
    """Each link is read once a turn, and the result is true if any link has more input."""
    seen = []
    pair.client.feed = lambda frame, attachment: seen.append((frame, attachment))
    assert not pair.links.has_input()
    pair.exchange(A).subscriber.arriving = [b"1", b"2"]
    pair.exchange(B).subscriber.arriving = [b"3"]
    assert pair.links.has_input()
    assert [pair.links.read(), pair.links.read()] == [True, False]
    a, b = pair.link(A).attachment, pair.link(B).attachment
    assert seen == [(b"1", a), (b"3", b), (b"2", a)]
    assert not pair.links.has_input()


def test_the_beginning_of_a_run_waits_for_a_forwarder_that_a_welcome_of_the_same_turn_lists(
    make: Callable[..., Rig],
) -> None:
    """Messages that others have sent by that forwarder may precede it."""
    rig = make(A, C)
    rig.come_up(A, C)
    join = rig.client.join(G, "a", 9, None)
    rig.client.memberships.completed(join)
    exchange = rig.exchange(A)
    welcome = wire.Welcome(
        INBOX, wire.VERSION, wire.State.SERVING, INSTANCES[A], rig.link(A).session, 1, encoded(A, B, C)
    )
    message = wire.ordered(G, b"o" * 8, 7, 0, TTL, b"x")
    exchange.subscriber.arriving = [message, wire.WELCOME.encode(welcome)]
    for _ in range(3):
        rig.links.read()
        rig.perform()
    assert B in rig.links._links
    assert rig.client.gaps.frames == 1


def test_one_descriptor_stands_for_all_links(pair: Rig) -> None:
    """One descriptor, the selector's, stands for all links, and a forgotten link is no longer watched."""
    assert pair.links.descriptor == 42
    selector = cast(Selector, pair.links._selector)
    both = [pair.exchange(one).subscriber.descriptor for one in (A, B)]
    assert selector.watched == both
    assert set(pair.links.inputs) == set(both)
    pair.links._remove(pair.link(A))
    assert selector.watched == list(pair.links.inputs) == both[1:]


def test_a_selector_without_a_descriptor_leaves_the_loops_none_to_watch(
    pair: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a selector has no descriptor, as on Windows, loops watch none, and the housekeeper watches each link's own."""
    monkeypatch.setattr(pair.links, "_selector", selectors.SelectSelector())
    assert pair.links.descriptor is None
    assert len(pair.links.inputs) == 2


def test_the_monitors_of_all_sockets_are_watched(pair: Rig) -> None:
    """The monitors of all sockets are watched, and each event reaches its own link."""
    monitors: Any = pair.links.watched().monitors
    assert len(monitors) == 4
    monitors[pair.exchange(B).subscriber.monitor](CONNECTED)
    assert [pair.link(one).state for one in (A, B)] == [State.UP, State.GREETING]


# Which links are homes


def test_a_link_carries_messages_once_every_other_forwarder_lists_it(make: Callable[..., Rig]) -> None:
    """A link becomes a home once every other forwarder lists it, as a process that just started may not know it."""
    rig = make(A, B)
    rig.come_up(A)
    rig.exchange(A).push.take()
    rig.verify(B)
    rig.confirm(B)
    for topic in topics_of(B, A, count=10):
        rig.publish(topic=topic)
    assert (len(rig.sent(A)), rig.sent(B)) == (10, [])
    rig.tick()
    rig.welcome(A)
    for topic in topics_of(B, A, count=20)[10:]:
        rig.publish(topic=topic)
    assert (rig.sent(A), len(rig.sent(B))) == ([], 10)


def key_of(home: Forwarder, other: Forwarder) -> wire.Topic:
    """Return a key of normal channels that hashing assigns to one of two forwarders."""
    homes: Homes[Any] = Homes(lambda key: False)
    homes.serve([SimpleNamespace(name=one.pub) for one in (home, other)])
    return next(key for key in (wire.Topic(b"jobs-%d" % number) for number in range(100)) if is_of(homes, key, home))


@pytest.mark.parametrize("kind", ["topic", "normal channel"])
def test_what_the_only_link_has_carried_stays_there_for_a_while(make: Callable[..., Rig], kind: str) -> None:
    """Keys that the only link has carried stay there for a while after another comes up, and move when silent."""
    rig = make(A, B)
    rig.come_up(A)
    rig.tick(CONNECTS_WITHIN)
    key = H if kind == "topic" else key_of(B, A)

    def send() -> Forwarder:
        if kind == "topic":
            rig.publish(topic=key)
        else:
            rig.links.send_downstream(b"A", inf, 0, key)
        sent = [one for one in (A, B) if one in rig.up() and rig.carried(one)]
        assert len(sent) == 1
        return sent[0]

    assert send() == A
    rig.come_up(B)
    assert send() == A
    for _ in range(4):
        rig.tick(ROTATE_EVERY)
        for number in rig.exchange(A).echoes():  # an unacknowledged message would keep the key here
            rig.confirm(A, number)
    assert send() == B


def test_a_topic_that_was_never_used_goes_to_where_it_belongs_at_once(make: Callable[..., Rig]) -> None:
    """A topic without messages so far moves to its proper home at once, because no message can be overtaken."""
    rig = make(A, B)
    rig.come_up(A)
    rig.come_up(B)
    rig.publish(b"1", H)
    assert rig.sent(B) == [b"1"]


def test_a_forwarder_of_an_older_release_lists_none(make: Callable[..., Rig]) -> None:
    """If forwarders send no list, as in an older release, all that are up are homes at once."""
    rig = make(A, B)
    rig.verify(A, B, forwarders=b"")
    for forwarder in (A, B):
        rig.confirm(forwarder)
    for topic in (G, H):
        rig.publish(topic, topic)
    assert (rig.sent(A), rig.sent(B)) == ([G], [H])


def verify_unlisted(rig: Rig) -> None:
    """Let both forwarders send an echo; each lists only itself."""
    for forwarder in (A, B):
        rig.exchange(forwarder).connected()
        rig.welcome(forwarder, forwarders=encoded(forwarder))
    rig.tick(CONNECTS_WITHIN)


def test_if_no_forwarder_lists_the_others_one_carries_all(rig: Rig) -> None:
    """If no forwarder lists the others, one of them carries all messages; otherwise none could be sent."""
    verify_unlisted(rig)
    for forwarder in (A, B):
        rig.confirm(forwarder)
    for topic in (G, H):
        rig.publish(topic, topic)
    assert (rig.sent(A), rig.sent(B)) == ([G, H], [])
    assert [one["carries"] for one in rig.links.stats()] == [True, False]


def test_the_one_that_carries_all_goes_on_when_another_one_comes_up(rig: Rig) -> None:
    """The link that carries all messages continues when another comes up, so that none is overtaken."""
    verify_unlisted(rig)
    rig.confirm(B)
    rig.publish(b"1")
    rig.confirm(A)
    rig.publish(b"2")
    assert (rig.sent(A), rig.sent(B)) == ([], [b"1", b"2"])


def test_what_a_link_has_not_delivered_for_sure_when_another_one_takes_over_is_sent_again(rig: Rig) -> None:
    """Unacknowledged messages are sent again when another link, with more clients, takes over from one that is up."""
    verify_unlisted(rig)
    rig.confirm(B)
    rig.publish(b"1")
    rig.confirm(A)
    rig.welcome(B, forwarders=encoded(A, B))
    rig.publish(b"2")
    assert rig.link(B).state is State.UP
    assert (rig.sent(A), rig.sent(B)) == ([b"1", b"2"], [b"1"])


def test_clients_that_a_forwarder_had_before_it_settled_are_not_waited_for(rig: Rig) -> None:
    """Clients that a forwarder had before it settled do not count when another forwarder becomes a home."""
    for forwarder in (A, B):
        rig.exchange(forwarder).connected()
    rig.link(B).attachment.clients = 9
    rig.welcome(B, wire.State.SETTLING, forwarders=encoded(A, B))
    rig.welcome(A, forwarders=encoded(A, B))
    rig.tick(CONNECTS_WITHIN)
    rig.confirm(A)
    assert rig.link(A).is_reached


# Learning of forwarders


def test_a_forwarder_that_a_welcome_lists_is_connected_to(make: Callable[..., Rig]) -> None:
    """A forwarder in a welcome's list is connected at once and only once; its session has all subscriptions."""
    rig = make(A)
    rig.client.join(G, "a", 9, None)
    rig.perform()
    rig.exchange(A).connected()
    for _ in range(2):
        rig.welcome(A, forwarders=encoded(A, B))
    assert list(rig.links._links) == [A, B]
    subscriber = rig.exchange(B).subscriber
    assert subscriber.sent == [wire.subscription(wire.inbox_topic(INBOX))]
    rig.exchange(B).connected()
    assert wire.subscription(G) in subscriber.sent
    assert len(rig.client.attachments) == 2


def test_a_join_waits_for_a_forwarder_that_was_just_learned_of(make: Callable[..., Rig]) -> None:
    """A join waits for a forwarder that was just discovered, because others may already send by it."""
    rig = make(A)
    rig.exchange(A).connected()
    request: Request[Reader] = Request(b"Ysync", to_all=True)
    rig.client.begin_request(5, request)
    rig.welcome(A, forwarders=encoded(A, B))
    synced = wire.SYNCED.encode(wire.Synced(INBOX, 5))
    rig.exchange(A).publish(synced)
    assert request.answer is None
    rig.exchange(B).connected()
    rig.welcome(B)
    assert b"Ysync" in rig.exchange(B).subscriber.sent
    rig.exchange(B).publish(synced)
    assert request.answer == 0


def test_a_hello_lists_the_forwarders_that_this_process_is_connected_to(rig: Rig) -> None:
    """A hello lists the connected forwarders, including its recipient, with their states and known instances."""
    rig.exchange(A).connected()
    assert rig.exchange(A).subscriber.lists == [encoded(A, serves=False, instances={})]
    rig.welcome(A)
    rig.exchange(B).connected()
    known = {A: INSTANCES[A]}
    assert rig.exchange(B).subscriber.lists == [encoded(A, B, serves=False, instances=known)]


def test_the_hello_is_repeated_when_its_list_has_changed(pair: Rig) -> None:
    """When its list has changed, the hello is repeated once, by the next tick, at each forwarder that has welcomed."""
    lists = {one: pair.exchange(one).subscriber.lists for one in (A, B)}
    pair.tick()
    for one in (A, B):
        lists[one].clear()
    pair.tick()
    assert lists == {A: [], B: []}
    pair.go_down(B)
    for _ in range(2):
        pair.tick()
    assert lists == {A: [encoded(A)], B: []}


def test_a_draining_forwarder_is_sent_no_changed_list(pair: Rig) -> None:
    """A draining forwarder gets no changed list, because `Detach` is the last frame of its session."""
    pair.tick()
    pair.welcome(B, wire.State.DRAINING)
    pair.exchange(B).subscriber.lists.clear()
    pair.tick()
    assert pair.exchange(B).subscriber.lists == []


def test_a_forwarder_that_is_reached_by_two_addresses_is_used_by_one(make: Callable[..., Rig]) -> None:
    """Of two addresses of one forwarder, the one in CONFIG is used, and the other is not discovered again."""
    rig = make(A)
    rig.come_up(A)
    rig.welcome(A, forwarders=encoded(A, B))
    rig.exchange(B).connected()
    rig.exchange(B).instance = INSTANCES[A]
    rig.welcome(B, forwarders=encoded(A, B))
    for _ in range(3):
        rig.tick(ROTATE_EVERY)
    assert list(rig.links._links) == [A]
    assert len(rig.client.attachments) == 1
    rig.welcome(A, forwarders=encoded(A, B))
    rig.tick()
    assert list(rig.links._links) == [A]


def test_of_two_addresses_of_config_that_lead_to_one_forwarder_one_is_used(rig: Rig) -> None:
    """If two addresses in CONFIG lead to one forwarder, the link with its latest session is kept without a break."""
    for forwarder in (A, B):
        rig.exchange(forwarder).connected()
    for forwarder in (A, B):
        rig.exchange(forwarder).instance = TWO
        rig.welcome(forwarder)
    (kept,) = {A, B} - {*rig.links._roster._ignored}
    session = rig.exchange(kept).subscriber.session
    for _ in range(2):
        rig.tick(ROTATE_EVERY)
    assert list(rig.links._links) == [kept]
    assert rig.exchange(kept).subscriber.session == session
    assert rig.link(kept).state is State.VERIFYING
    rig.confirm(kept)
    for topic in (G, H):
        rig.publish(topic, topic)
    assert rig.sent(kept) == [G, H]


def test_a_forwarder_whose_instance_is_known_is_not_learned_by_another_address(make: Callable[..., Rig]) -> None:
    """A listed forwarder is not connected if its instance is known by another address, or not reported at all."""
    rig = make(A)
    rig.exchange(A).connected()
    rig.welcome(A, forwarders=encoded(A, B, C, instances={A: INSTANCES[A], B: INSTANCES[A]}))
    assert list(rig.links._links) == [A]


def test_a_list_is_looked_at_once_all_that_are_connected_have_said_which_instance_they_are(
    make: Callable[..., Rig],
) -> None:
    """A list is processed once all connected forwarders have reported their instances: its addresses may be aliases."""
    rig = make(A, C)
    rig.come_up(C)
    rig.exchange(A).connected()
    rig.welcome(C, forwarders=encoded(B, C, ALIAS, instances={**INSTANCES, ALIAS: INSTANCES[A]}))
    rig.tick()
    assert list(rig.links._links) == [A, C]
    rig.welcome(A, forwarders=encoded(A, D, instances={**INSTANCES, D: TWO}))
    assert {*rig.links._links} == {A, B, C, D}


def test_a_forwarder_that_begins_a_new_session_is_not_learned_by_another_address(make: Callable[..., Rig]) -> None:
    """After a reconnect, too, an alias of a forwarder that begins a new session is not connected."""
    rig = make(A, C)
    rig.come_up(A, C)
    rig.exchange(A).connected()
    for _ in range(2):
        rig.welcome(C, forwarders=encoded(A, B, C, instances={**INSTANCES, B: INSTANCES[A]}))
        rig.tick(ROTATE_EVERY)
        rig.welcome(A)
    assert list(rig.links._links) == [A, C]


def test_a_link_that_is_not_connected_keeps_no_list_from_being_looked_at(make: Callable[..., Rig]) -> None:
    """A link that is not connected does not delay the processing of a list, because it may never connect."""
    rig = make(A, C)
    rig.come_up(C)
    rig.welcome(C, forwarders=encoded(B, C))
    assert list(rig.links._links) == [A, C, B]
    rig.come_up(A, B)
    rig.go_down(A)
    rig.welcome(C, forwarders=encoded(B, C, D, instances={**INSTANCES, D: TWO}))
    assert D in rig.links._links


def test_an_address_that_was_a_double_is_tried_again_later(make: Callable[..., Rig]) -> None:
    """An address that was an alias is tried again after `IGNORE_FOR`, as it may lead to another forwarder by then."""
    rig = make(A)
    rig.exchange(A).instance = INSTANCES[C]
    rig.come_up(A)
    rig.welcome(A, forwarders=encoded(A, B, instances={A: INSTANCES[C], B: INSTANCES[B]}))
    rig.come_up(B)
    for instance in (INSTANCES[B], INSTANCES[C]):
        rig.go_down(A)
        rig.exchange(A).instance = instance
        rig.exchange(A).connected()
        rig.welcome(A, forwarders=encoded(A, B, instances={A: instance, B: INSTANCES[B]}))
        rig.tick()
        assert list(rig.links._links) == [A]
    for after in (IGNORE_FOR - ROTATE_EVERY, 0.0):
        rig.tick(after)
        assert list(rig.links._links) == [A]
    rig.tick(ROTATE_EVERY)
    rig.tick()
    assert list(rig.links._links) == [A, B]


def test_the_address_of_config_replaces_another_one_of_the_same_forwarder(make: Callable[..., Rig]) -> None:
    """An address in CONFIG replaces an alias that carries messages, and messages sent by the alias are sent again."""
    rig = make(A, C)
    rig.come_up(C)
    rig.welcome(C, forwarders=encoded(B, C, instances={B: INSTANCES[A], C: INSTANCES[C]}))
    rig.exchange(B).instance = INSTANCES[A]
    rig.come_up(B)
    rig.tick(CONNECTS_WITHIN)
    topic = topics_of(B, C)[0]
    rig.publish(b"1", topic)
    assert rig.sent(B) == [b"1"]
    rig.exchange(A).connected()
    rig.welcome(A)
    rig.publish(b"2", topic)
    assert rig.sent(B) == []
    b = rig.exchange(B).subscriber
    for _ in range(2):
        rig.tick(ROTATE_EVERY)
    assert (list(rig.links._links), b.is_closed) == ([A, C], True)
    assert sorted(rig.sent(C)) == [b"1", b"2"]


def test_a_double_that_was_up_loses_no_message(make: Callable[..., Rig]) -> None:
    """When a link turns out to be a double, its unacknowledged messages are sent first by the link that is kept."""
    rig = make(A)
    rig.come_up(A)
    rig.welcome(A, forwarders=encoded(A, B))
    rig.tick()
    rig.exchange(B).instance = INSTANCES[B]
    rig.come_up(B)
    rig.publish(b"1", H)
    assert rig.sent(B) == [b"1"]
    rig.exchange(B).instance = INSTANCES[A]
    rig.link(B).greet()
    rig.welcome(B)
    rig.publish(b"2", H)
    for _ in range(2):
        rig.tick(ROTATE_EVERY)
    assert list(rig.links._links) == [A]
    rig.welcome(A)
    rig.tick(OPEN_EVERY)
    rig.confirm(A)
    rig.tick()
    rig.publish(b"3", H)
    assert rig.sent(A)[-3:] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("was_cut", [False, True])
def test_a_link_that_replaces_a_double_asks_for_what_that_has_not_delivered(
    make: Callable[..., Rig], was_cut: bool
) -> None:
    """The first hello by another address requests everything that was published since the process could be reached.

    The double's connection may have been cut a moment before, or hold frames that are not read yet.
    """
    rig = make(B)
    rig.links._roster._listed[A] = rig.clock.now
    rig.links._connect_to_all()
    rig.exchange(A).instance = rig.exchange(B).instance = b"a" * 8
    rig.come_up(A)
    rig.clock.now += 5.0
    if was_cut:
        rig.exchange(A).disconnected()
        rig.exchange(A).connected()
    rig.exchange(B).connected()
    rig.welcome(A, session=rig.link(B).session)
    rig.welcome(B)
    rig.tick()
    assert list(rig.links._links) == [B]
    (asked,) = cast(Subscriber, rig.link(B).downlink.current).resumes
    assert asked.age >= 5000
    assert asked.session == rig.link(B).session


@pytest.mark.parametrize("order", [(B, A), (A, B)])
@pytest.mark.parametrize("configured", [(A,), (A, B), (B, A), (C, A, B)])
def test_a_double_is_recognized_by_the_welcome_of_the_other_session(
    make: Callable[..., Rig], configured: tuple[Forwarder, ...], order: tuple[Forwarder, ...]
) -> None:
    """A double shows by a welcome for the other link's session: a hello with a lower session is never welcomed."""
    rig = make(*configured)
    if B not in configured:
        rig.links._roster._listed[B] = rig.clock.now
        rig.links._connect_to_all()
    for one in (A, B):
        rig.exchange(one).instance = b"a" * 8
        rig.exchange(one).connected()
    session = rig.link(B).session
    for one in order:
        rig.welcome(one, session=session)
    rig.tick()
    (kept,) = {A, B} & rig.links._links.keys()
    assert B in configured or kept == A
    assert rig.link(kept).session > session or kept == B
    rig.welcome(kept)
    rig.tick(OPEN_EVERY)
    rig.confirm(kept)
    assert rig.up() == [kept]


def test_a_late_welcome_of_an_earlier_session_shows_no_double(rig: Rig) -> None:
    """A late welcome of an earlier session marks no double, since the link may have led to another instance then."""
    rig.exchange(A).connected()
    session = rig.link(A).session
    rig.come_up(A, B)
    rig.welcome(A, session=session)
    rig.tick()
    assert rig.up() == [A, B]


@pytest.mark.parametrize("forwarders", [b"nonsense", b"0tcp://\xff\0tcp://b"])
def test_a_malformed_list_is_counted(make: Callable[..., Rig], forwarders: bytes) -> None:
    """A malformed list is counted, while the welcome takes effect."""
    rig = make(A)
    rig.exchange(A).connected()
    rig.welcome(A, forwarders=forwarders)
    assert rig.client.counters.dropped == {"malformed": 1}
    assert list(rig.links._links) == [A]
    assert rig.link(A).state is State.VERIFYING


def test_a_malformed_list_of_one_forwarder_does_not_hinder_the_others(rig: Rig) -> None:
    """A malformed list counts as that of an older release, so that its link and the others carry messages."""
    rig.verify(A, B, forwarders=b"nonsense")
    for one in (A, B):
        rig.confirm(one)
    for topic in (G, H):
        rig.publish(topic, topic)
    assert (rig.sent(A), rig.sent(B)) == ([G], [H])


def test_an_invalid_address_that_a_welcome_lists_is_waited_for_by_nobody(make: Callable[..., Rig]) -> None:
    """No join waits for an invalid address from a welcome's list, because no exchange is there."""
    rig = make(A)
    rig.exchange(A).connected()
    rig.welcome(A, forwarders=encoded(A, UNUSABLE, instances={UNUSABLE: TWO}))
    request: Request[Reader] = Request(b"Ysync", to_all=True)
    rig.client.begin_request(5, request)
    rig.exchange(A).publish(wire.SYNCED.encode(wire.Synced(INBOX, 5)))
    assert (request.answer, len(rig.client.attachments)) == (0, 1)


def test_an_invalid_address_that_a_welcome_lists_is_reported_once(make: Callable[..., Rig], context: Context) -> None:
    """An invalid address from a list is reported once in `IGNORE_FOR`, and leaves no socket open."""
    rig = make(A)
    rig.come_up(A)
    for count in (1, 2):
        for after in (0.0, IGNORE_FOR - ROTATE_EVERY - 0.01, 0.0):
            rig.tick(after)
            rig.welcome(A, forwarders=encoded(A, UNUSABLE, instances={UNUSABLE: TWO}))
        (line,) = rig.lines()
        assert "pub_socket_address" in line
        assert list(rig.links._links) == [A]
        assert [one.is_closed for one in context.subscribers if one.address == INVALID] == [True] * count
        rig.tick(ROTATE_EVERY + 0.01)


def test_an_invalid_address_of_config_is_an_error(make: Callable[..., Rig], context: Context) -> None:
    """An invalid address in CONFIG raises an error and leaves no socket open."""
    with pytest.raises(ConfigurationError, match="pub_socket_address"):
        make(A, Forwarder(B.pull, INVALID))
    assert context.is_destroyed


@pytest.mark.parametrize(
    "configured, listed, is_reported",
    [
        ((A, B), (A, B), False),
        ((A, B), (A,), False),
        ((A, B), (A, C), True),
        ((A,), (A, B), False),
        ((NAMED,), (A, B), False),
    ],
)
def test_processes_that_list_different_forwarders_are_reported_once(
    make: Callable[..., Rig],
    resolver: dict[str, Any],
    configured: tuple[Forwarder, ...],
    listed: tuple[Forwarder, ...],
    is_reported: bool,
) -> None:
    """A difference between lists is reported once if CONFIG lists several forwarders; one only serves to find more."""
    resolver["zmq"] = ["10.0.0.1"]
    rig = make(*configured)
    rig.look_around()
    rig.exchange(A).connected()
    for _ in range(2):
        rig.welcome(A, forwarders=encoded(*listed))
    reports = [line for line in rig.lines() if "different forwarders" in line]
    assert len(reports) == is_reported
    if is_reported:
        assert f"elsewhere also {C}" in reports[0]


# Forgetting


def learn(rig: Rig, forwarder: Forwarder) -> None:
    """Discover a forwarder by another one, and let its link come up."""
    rig.come_up(A)
    rig.welcome(A, forwarders=encoded(A, forwarder))
    rig.come_up(forwarder)


def test_a_forwarder_that_nobody_lists_and_that_is_down_is_forgotten(make: Callable[..., Rig]) -> None:
    """A forwarder that is down and unlisted is forgotten after a while: its sockets close, and no request awaits it."""
    rig = make(A)
    learn(rig, B)
    subscriber = rig.exchange(B).subscriber
    rig.go_down(B)
    rig.tick(FORGET_AFTER)
    rig.welcome(A, forwarders=encoded(A))
    rig.tick(FORGET_AFTER - ROTATE_EVERY)
    assert list(rig.links._links) == [A, B]
    for _ in range(2):
        rig.tick(ROTATE_EVERY)
    assert (list(rig.links._links), len(rig.client.attachments)) == ([A], 1)
    assert subscriber.is_closed
    rig.publish(b"1")
    assert rig.sent(A) == [b"1"]


def test_a_message_of_a_forwarder_that_is_forgotten_goes_by_another_one(make: Callable[..., Rig]) -> None:
    """Unacknowledged and held messages of a forgotten forwarder are sent by another one."""
    rig = make(A)
    learn(rig, B)
    rig.publish(b"1", H)
    rig.exchange(B).push.is_full = True
    rig.publish(b"2", H)
    rig.links._roster._listed.clear()
    rig.links._remove(rig.link(B))
    rig.tick()
    assert list(rig.links._links) == [A]
    assert rig.sent(A) == [b"1", b"2"]


def test_a_forgotten_forwarder_is_not_learned_again_by_what_was_listed_long_ago(make: Callable[..., Rig]) -> None:
    """A forgotten forwarder is added again by a new welcome that lists it, and not by an old list."""
    rig = make(A, C)
    learn(rig, B)
    rig.go_down(B)
    rig.welcome(A, forwarders=encoded(A))
    rig.tick(FORGET_AFTER)
    seen = []
    for _ in range(5):
        rig.tick(ROTATE_EVERY)
        if B in rig.links._links:
            rig.link(B).state = State.DOWN
        seen.append(list(rig.links._links))
    assert seen[1:] == [[A, C]] * 4
    rig.welcome(A, forwarders=encoded(A, B))
    assert B in rig.links._links


@pytest.mark.parametrize("why", ["listed", "unreached", "up", "configured", "verifying"])
def test_a_forwarder_is_not_forgotten_for_less(make: Callable[..., Rig], why: str) -> None:
    """A forwarder that others list, that is up or being verified, or that CONFIG contains, is not forgotten."""
    rig = make(*((A, B) if why == "configured" else (A,)))
    if why == "configured":
        rig.come_up(A, B)
    else:
        learn(rig, B)
    rig.tick(FORGET_AFTER)
    before = dict(rig.links._links)
    match why:
        case "listed":
            rig.go_down(B)
            rig.welcome(A, forwarders=encoded(A, B))
        case "unreached":
            rig.go_down(B)
            rig.welcome(A, forwarders=encoded(A, B, serves=False, instances={}))
        case "configured":
            rig.go_down(B)
        case "verifying":
            rig.exchange(B).push_disconnected()
    for _ in range(3):
        rig.tick(ROTATE_EVERY)
    assert rig.links._links == before


# Names


def test_the_forwarders_of_a_name_are_connected_to_once_it_is_resolved(
    make: Callable[..., Rig], resolver: dict[str, Any]
) -> None:
    """A name is resolved by `look_around` and not at the start, possibly on an event loop; the next tick connects."""
    resolver["zmq"] = ["10.0.0.2", "10.0.0.1"]
    rig = make(NAMED)
    rig.tick()
    assert rig.links.stats() == []
    rig.links.look_around()
    assert rig.links.stats() == []
    assert rig.calls[-1] == 0.0
    rig.tick()
    assert list(rig.links._links) == [A, B]
    rig.come_up(A, B)
    assert (rig.links.is_connected, rig.lines()) == (True, [])


def test_a_forwarder_that_is_up_is_not_dropped_for_being_absent_from_a_name(
    make: Callable[..., Rig], resolver: dict[str, Any]
) -> None:
    """A forwarder that is up stays although its name no longer contains it, because DNS is partial and late."""
    resolver["zmq"] = ["10.0.0.1", "10.0.0.2"]
    rig = make(NAMED)
    rig.look_around()
    rig.come_up(A, B)
    resolver["zmq"] = ["10.0.0.2", "10.0.0.3"]
    rig.clock.now += EVERY
    rig.look_around()
    rig.come_up(C)
    a = rig.link(A)
    for forwarder in (A, B, C):
        rig.welcome(forwarder, forwarders=encoded(B, C))
    rig.tick(FORGET_AFTER)
    for _ in range(3):
        rig.tick(ROTATE_EVERY)
    assert list(rig.links._links) == [A, B, C]
    assert rig.link(A) is a
    rig.go_down(A)
    for _ in range(3):
        rig.tick(ROTATE_EVERY)
    assert list(rig.links._links) == [B, C]


def test_a_name_is_resolved_again_at_once_when_a_link_is_lost(
    make: Callable[..., Rig], resolver: dict[str, Any]
) -> None:
    """After the loss of a link its name is resolved at the next look, because a successor may have another address."""
    resolver["zmq"] = ["10.0.0.1"]
    rig = make(NAMED)
    rig.look_around()
    rig.come_up(A)
    resolver["zmq"] = ["10.0.0.2"]
    rig.look_around()
    assert list(rig.links._links) == [A]
    rig.go_down(A)
    rig.look_around()
    assert B in rig.links._links


def test_a_name_is_resolved_at_each_look_while_there_is_no_forwarder(
    make: Callable[..., Rig], resolver: dict[str, Any]
) -> None:
    """Without a forwarder that is up, a name is resolved at each look, because a successor may appear at any moment."""
    resolver["zmq"] = ["10.0.0.1"]
    rig = make(NAMED)
    rig.look_around()
    rig.come_up(A)
    rig.go_down(A)
    for host, forwarder in (("10.0.0.2", B), ("10.0.0.3", C)):
        rig.look_around()
        resolver["zmq"] = [host]
        rig.look_around()
        assert forwarder in rig.links._links
    rig.come_up(A, B, C)
    assert rig.links.is_connected
    resolver["zmq"] = ["10.0.0.4"]
    rig.look_around()
    assert rig.links._links.keys() == {A, B, C}


def test_a_name_that_does_not_resolve_is_reported_once_until_it_does(
    make: Callable[..., Rig], resolver: dict[str, Any]
) -> None:
    """A name that does not resolve is reported once until it does, and is also the reason that a caller gets."""
    resolver["zmq"] = OSError(-2, "no such name")
    rig = make(NAMED)
    for _ in range(3):
        rig.clock.now += EVERY
        rig.look_around()
    assert rig.lines() == ["cannot resolve zmq: no such name"]
    assert rig.links.refusal == "cannot resolve zmq: no such name"
    resolver["zmq"] = ["10.0.0.1"]
    rig.clock.now += EVERY
    rig.look_around()
    assert (rig.lines(), rig.links.refusal) == ([], "")
    resolver["zmq"] = OSError(-2, "no such name")
    rig.clock.now += EVERY
    rig.look_around()
    assert rig.lines()[0] == "cannot resolve zmq: no such name"
    assert list(rig.links._links) == [A]


def test_the_reason_of_any_link_is_the_reason_of_all(rig: Rig) -> None:
    """A caller gets the reason for the refusal of any link."""
    assert rig.links.refusal == ""
    rig.link(B).refusal = "key"
    assert rig.links.refusal == "key"


def test_every_link_looks_at_its_keys(pair: Rig) -> None:
    """`look_around` checks the keys of every link, without the lock."""
    looked: list[Forwarder] = []
    for forwarder in (A, B):
        pair.link(forwarder).look_around = partial(looked.append, forwarder)
    pair.links.look_around()
    assert looked == [A, B]


# Housekeeping


def test_a_tick_is_due_when_the_first_link_needs_one(pair: Rig) -> None:
    """The next tick is due when the first link needs one, and at the latest for the rotation of homes."""
    assert pair.tick() <= pair.clock.now + ROTATE_EVERY
    pair.publish()
    assert pair.tick() == pair.clock.now + BLOCK_SECONDS


def test_without_any_link_a_tick_comes_back(make: Callable[..., Rig], resolver: dict[str, Any]) -> None:
    """Without any link, ticks continue, because a name may resolve later."""
    resolver["zmq"] = []
    rig = make(NAMED)
    assert rig.clock.now < rig.tick() <= rig.clock.now + ROTATE_EVERY


def test_a_silent_link_is_noticed_by_ticks(pair: Rig) -> None:
    """Ticks notice a silent link, whose messages are then sent by the other one."""
    pair.publish(b"1")
    for _ in range(20):
        pair.tick(PATIENCE / 10)
    assert pair.link(A).state is State.VERIFYING
    assert b"1" in pair.sent(B)


# The end


def test_closing_detaches_from_each_forwarder_that_is_connected(make: Callable[..., Rig]) -> None:
    """The goodbye is a detach of the current session; without a connection nothing is sent."""
    rig = make(A, B)
    rig.come_up(A)
    connected, other = (cast(Subscriber, rig.link(one).downlink.current) for one in (A, B))
    session, before = rig.link(A).session, list(other.sent)
    rig.links.close()
    assert wire.DETACH.decode(connected.sent[-1]) == wire.Detach(rig.client.inbox, session)
    assert other.sent == before


def test_closing_sends_what_is_held_and_closes_everything(pair: Rig, context: Context) -> None:
    """Closing sends held messages, closes every socket, and gives accepted messages the linger time for delivery."""
    pair.exchange(A).push.is_full = True
    pair.publish(b"1")
    push = pair.exchange(A).push
    push.is_full = False
    pair.links.close()
    pair.links.terminate()
    assert [frame[:1] for frame in push.frames] == [b"G"]
    assert all(one.linger is not None for one in context.pushes)
    assert context.is_terminated
    assert cast(Selector, pair.links._selector).is_closed
