"""The socket that receives, and its session, with an exchange that the test operates by hand."""

import contextlib
import socket as sockets
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq
from fakes import Clock
from zmq.utils.monitor import recv_monitor_message

from channels_zmq.client.arrivals import PROBE_BYTES
from channels_zmq.client.attachment import Attachment
from channels_zmq.client.client import Client
from channels_zmq.client.resumption import ON_THE_WAY, READ_WITHIN
from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import ClientKeySource, KeySetting, KeyWatch
from channels_zmq.options import Options
from channels_zmq.transports import subscriber as module
from channels_zmq.transports.subscriber import (
    FRAMES_A_TURN,
    HELLO_EVERY,
    READS_FORMER_FOR,
    WAKES_A_TURN,
    Socket,
    Subscriber,
    monitor,
)
from channels_zmq_forwarder import wire

SECRET = b"0123456789abcdef"
INBOX = wire.claimable(SECRET)
TOPIC = wire.inbox_topic(INBOX)
PATIENCE = 10.0
MARGIN_MS = 1000 * (ON_THE_WAY + READ_WITHIN)
LONGEST = 0.5
OPTIONS = Options(
    connect_timeout=5.0, expiry=60.0, linger=0.0, max_message_size=2**20, outbox_capacity=0, outbox_bytes=0
)


class Fed(Client):
    """A client that records the frames that it is fed."""

    def __init__(self) -> None:
        super().__init__(SECRET, b"s" * 8, longest=LONGEST)
        self.fed: list[bytes] = []
        self.fed_by: set[Attachment] = set()
        self.known = b"known"
        self.on_feed: Callable[[], None] = lambda: None

    def feed(self, frame: bytes, attachment: Attachment) -> None:
        self.fed.append(frame)
        self.fed_by.add(attachment)
        self.on_feed()


@pytest.fixture
def context() -> Iterator["zmq.Context[Socket]"]:
    """Make a context, and close all its sockets at the end."""
    context: zmq.Context[Socket] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def exchange(context: "zmq.Context[Socket]") -> Socket:
    """Bind the publishing side."""
    exchange = context.socket(zmq.XPUB)
    exchange.set(zmq.RCVTIMEO, round(PATIENCE * 1000))
    exchange.set(zmq.SNDHWM, 0)
    exchange.set(zmq.XPUB_VERBOSE, 1)  # otherwise a repeated subscription of another connection is hidden
    exchange.bind("tcp://127.0.0.1:*")
    return exchange


@pytest.fixture
def client() -> Fed:
    return Fed()


@pytest.fixture
def subscriber(context: "zmq.Context[Socket]", exchange: Socket, client: Fed) -> Iterator[Subscriber]:
    """Return a subscriber that is connected, and subscribed to its inbox."""
    address = exchange.get_string(zmq.LAST_ENDPOINT)
    subscriber = Subscriber(context, address, OPTIONS, client, client.attach(), lambda: client.known)
    subscriber.connect(None)
    subscriber.subscribe_inbox()
    assert [exchange.recv(), exchange.recv()] == [client.claim, wire.subscription(TOPIC)]
    yield subscriber
    with contextlib.suppress(zmq.ZMQError):  # the test has closed it
        subscriber.close()


def await_input(subscriber: Subscriber) -> None:
    end = time.monotonic() + PATIENCE
    while not subscriber.has_input():
        assert time.monotonic() < end, "nothing arrives"


def welcome(session: int, clients: int = 1, state: wire.State = wire.State.SERVING) -> wire.Welcome:
    return wire.Welcome(INBOX, wire.VERSION, state, b"i" * 8, session, clients)


def hello(exchange: Socket) -> wire.Hello:
    """Return the next hello, and check that a report that the process reads batches follows it.

    A request for a replay may precede that.
    """
    while (frame := exchange.recv())[:1] == wire.CLAIM_BYTE:
        pass
    said = wire.HELLO.decode(frame)
    asks = iter(exchange.recv, wire.BATCHING.encode(wire.Batching(said.inbox, said.session)))
    assert [wire.RESUME.decode(ask).session for ask in asks] in ([], [said.session])
    return said


# Frames


def test_input_that_is_only_asked_for_is_read_at_the_end_of_the_step(
    subscriber: Subscriber, exchange: Socket, client: Fed
) -> None:
    """Asking takes the edge of the descriptor, so no event loop would read the frame before the next one arrives."""
    exchange.send(TOPIC + b"x")
    await_input(subscriber)
    assert client.out.has_input
    client.out.take()
    assert subscriber.is_behind(0.0, 0.0)
    assert client.out.has_input


def test_a_probe_tells_whether_everything_has_arrived(subscriber: Subscriber, exchange: Socket, client: Fed) -> None:
    """A probe shows whether everything has arrived, but unread input may always contain more.

    No probe is sent before the welcome, as the exchange would not answer it.
    """
    subscriber.greet(list)
    hello(exchange)
    now = time.monotonic()
    assert not subscriber.is_behind(now, now - 1.0)
    subscriber.take(welcome(subscriber.session))
    assert subscriber.is_behind(now, now - 1.0)
    number = wire.SYNC.decode(exchange.recv()).n
    assert not subscriber.is_behind(now + 2 * LONGEST, now - 1.0)
    exchange.send(TOPIC + b"x")
    await_input(subscriber)
    assert subscriber.is_behind(now + 2 * LONGEST, now - 1.0)
    client.attachments[0].synced = number
    assert subscriber.is_behind(now + 2 * LONGEST, now - 1.0)
    subscriber.read()
    assert not subscriber.is_behind(now + 2 * LONGEST, now - 1.0)
    subscriber.probe(now + 3.0, now + 3.0)
    subscriber.lost()
    assert not subscriber.is_behind(now + 3.0, now + 2.0), "nothing comes by a connection that is gone"


def test_who_gets_much_probes_by_itself(subscriber: Subscriber, exchange: Socket) -> None:
    """A process that receives much sends a probe by itself, because its connection may be lost at any moment."""
    subscriber.greet(list)
    hello(exchange)
    subscriber.take(welcome(subscriber.session))
    for _ in range(2):
        exchange.send(TOPIC + bytes(PROBE_BYTES))
        await_input(subscriber)
        subscriber.read()
    subscriber.tick(time.monotonic())
    assert wire.SYNC.decode(exchange.recv()).n


def test_input_that_is_there_while_a_frame_is_sent_is_reported(
    subscriber: Subscriber, exchange: Socket, client: Fed
) -> None:
    """Input that arrives while a frame is sent is reported.

    The descriptor does not show it: without a check afterwards the frame would wait for a second.
    """
    exchange.send(TOPIC + b"early")
    await_input(subscriber)
    assert subscriber.send(b"up")
    assert not subscriber.read()
    assert client.fed == [TOPIC + b"early"]
    assert client.fed_by == set(client.attachments)
    assert not subscriber.send(b"up")


def test_a_hello_reports_input_too(subscriber: Subscriber, exchange: Socket) -> None:
    """A hello reports input that has arrived, as any other frame does."""
    exchange.send(TOPIC + b"early")
    await_input(subscriber)
    subscriber.say_hello()
    assert subscriber._client.out.has_input


def test_a_hello_without_input_reports_none(subscriber: Subscriber) -> None:
    """A hello without input reports none, as a step would read in vain."""
    subscriber.greet(list)
    assert not subscriber._client.out.busy


def test_reading_without_input_feeds_nothing(subscriber: Subscriber, client: Fed) -> None:
    """Reading without input feeds nothing, and reports that no more is there."""
    assert not subscriber.read()
    assert client.fed == []


def publish_many(exchange: Socket, subscriber: Subscriber, count: int) -> None:
    """Publish frames, and wait until the first one has arrived."""
    for number in range(count):
        exchange.send(TOPIC + b"%d" % number)
    await_input(subscriber)


def read_all(subscriber: Subscriber, client: Fed, count: int) -> int:
    """Read until all frames have arrived, and return the length of the longest turn."""
    longest, end = 0, time.monotonic() + PATIENCE
    while len(client.fed) < count:
        before = len(client.fed)
        subscriber.read()
        longest = max(longest, len(client.fed) - before)
        assert time.monotonic() < end, "frames are missing"
    return longest


def test_frames_are_fed_in_order_in_turns_of_bounded_length(
    subscriber: Subscriber, exchange: Socket, client: Fed
) -> None:
    """Frames are fed in order, in turns of at most `FRAMES_A_TURN`, between which the loop runs other callbacks."""
    count = 4 * FRAMES_A_TURN
    publish_many(exchange, subscriber, count)
    assert read_all(subscriber, client, count) <= FRAMES_A_TURN
    assert client.fed == [TOPIC + b"%d" % number for number in range(count)]


@pytest.mark.parametrize("bound", ["wakes", "time"])
def test_a_turn_ends_early_when_it_has_woken_many_or_taken_long(
    subscriber: Subscriber, exchange: Socket, client: Fed, bound: str
) -> None:
    """A turn that has woken many readers or taken long ends early, and reports that more input is left."""
    publish_many(exchange, subscriber, 100)

    def reach() -> None:
        if bound == "wakes":
            client.out.wake += [None] * (WAKES_A_TURN + 1)
        else:
            client.receiver.now = inf

    client.on_feed = reach
    end = time.monotonic() + PATIENCE
    while not (more := subscriber.read()):
        assert time.monotonic() < end
        assert len(client.fed) < 100, "a turn took all at once"
    assert more
    client.out.wake.clear()
    client.receiver.now = 0.0
    client.on_feed = lambda: None
    read_all(subscriber, client, 100)


# Sessions


def test_a_session_begins_with_what_must_be_known_before_and_a_hello(subscriber: Subscriber, exchange: Socket) -> None:
    """Each connection begins a session with a higher number: first its claim and the given frames, then a hello."""
    for session in (1, 2):
        subscriber.greet(lambda: [b"first", b"second"])
        assert [exchange.recv() for _ in range(3)] == [subscriber._client.claim, b"first", b"second"]
        assert hello(exchange) == wire.Hello(INBOX, wire.VERSION, session, 0, b"known")
        assert (subscriber.session, subscriber.is_connected, subscriber.welcome) == (session, True, None)


def test_a_session_begins_when_everything_before_it_is_read(
    subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session begins when everything before it is read.

    That may be very much, so it is read in turns, between which the event loop runs.
    """
    has_more = iter([True, True, False])
    monkeypatch.setattr(subscriber, "read", lambda: next(has_more))
    subscriber.greet(list)
    for _ in range(2):
        assert (subscriber.session, subscriber.due, subscriber.is_connected) == (0, -inf, False)
        subscriber.tick(time.monotonic())
    assert (subscriber.session, subscriber.is_connected, next(has_more, None)) == (1, True, None)


def test_a_session_begins_though_messages_arrive_without_end(
    subscriber: Subscriber, exchange: Socket, client: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session begins after a limited time even if messages arrive without end.

    They arrive by the new connection, or faster than this process reads.
    """
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(subscriber, "read", lambda: True)
    subscriber.greet(list)
    now[0] += READS_FORMER_FOR - 0.1
    subscriber.tick(now[0])
    assert subscriber.session == 0
    now[0] += 0.1
    subscriber.tick(now[0])
    assert subscriber.session == 1


def test_a_session_that_has_not_begun_does_not_outlive_its_connection(
    subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that has not begun when its connection is lost does not begin; the next connection begins one."""
    monkeypatch.setattr(subscriber, "read", lambda: True)
    subscriber.greet(list)
    subscriber.lost()
    assert subscriber.due == inf
    subscriber.tick(time.monotonic())
    assert subscriber.session == 0


def test_sessions_of_one_process_have_different_numbers(
    context: "zmq.Context[Socket]", subscriber: Subscriber, client: Fed
) -> None:
    """Sessions of one process have different numbers, also at different exchanges.

    So no frame about one session is ever taken for one about another.
    """
    other = Subscriber(context, subscriber.endpoint.address, OPTIONS, client, client.attach())
    for one in (subscriber, other, subscriber):
        one.greet(list)
    assert (subscriber.session, other.session) == (3, 2)
    other.close()


def test_a_hello_of_the_same_session_reports_the_forwarders_that_are_known_now(
    subscriber: Subscriber, exchange: Socket, client: Fed
) -> None:
    """A later hello of a session reports the forwarders that are known by then, also before a welcome."""
    subscriber.greet(list)
    client.known = b"more"
    subscriber.say_hello()
    assert [(one.session, one.forwarders) for one in (hello(exchange), hello(exchange))] == [
        (1, b"known"),
        (1, b"more"),
    ]


def test_only_the_first_welcome_of_a_session_is_news(subscriber: Subscriber) -> None:
    """Only the first welcome of a session counts as new; a later one may update it.

    A welcome of another session is ignored.
    """
    subscriber.greet(list)
    assert [subscriber.take(welcome(session)) for session in (0, 1, 1)] == [False, True, False]
    subscriber.take(welcome(1, clients=5))
    assert subscriber.welcome == welcome(1, clients=5)
    subscriber.lost()
    assert not subscriber.take(welcome(1))
    assert subscriber.welcome is None


def test_a_hello_carries_the_number_of_clients_that_was_seen_last(subscriber: Subscriber, exchange: Socket) -> None:
    """A hello carries the last known number of clients, for which a settling exchange waits."""
    subscriber.greet(list)
    subscriber.take(welcome(1, clients=5))
    subscriber.greet(list)
    assert [hello(exchange).peers, hello(exchange).peers] == [0, 5]


def test_a_hello_is_repeated_until_the_exchange_serves(
    subscriber: Subscriber, exchange: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hello is repeated once a second until the exchange serves, and only while there is a connection."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    assert subscriber.due == inf
    subscriber.greet(list)
    assert subscriber.due == 100.0 + HELLO_EVERY
    subscriber.tick(100.9)
    assert subscriber.due == 100.0 + HELLO_EVERY
    now[0] = 101.0
    subscriber.tick(101.0)
    assert subscriber.due == 101.0 + HELLO_EVERY
    subscriber.take(welcome(1, state=wire.State.SETTLING))
    assert subscriber.due == 101.0 + HELLO_EVERY
    subscriber.take(welcome(1))
    assert subscriber.due == inf
    subscriber.take(welcome(1, state=wire.State.DRAINING))
    assert subscriber.due == 101.0 + HELLO_EVERY
    assert [hello(exchange).session, hello(exchange).session] == [1, 1]
    subscriber.lost()
    assert subscriber.due == inf
    assert not exchange.poll(50)


# Connecting


def test_connecting_anew_keeps_the_subscriptions(
    context: "zmq.Context[Socket]", subscriber: Subscriber, exchange: Socket, client: Fed
) -> None:
    """Connecting again, as with other keys, keeps the subscriptions: ZeroMQ sends them again."""
    subscriber.connect(None)
    while exchange.recv() != wire.subscription(TOPIC):  # the end of the former connection may arrive first
        pass
    exchange.send(TOPIC + b"x")
    await_input(subscriber)
    subscriber.read()
    assert client.fed == [TOPIC + b"x"]


def test_an_invalid_address_is_an_error_that_names_the_setting(context: "zmq.Context[Socket]", client: Fed) -> None:
    """An invalid address raises an error that names the setting in CONFIG."""
    invalid = Subscriber(context, "tcp://nonsense", OPTIONS, client, client.attach())
    try:
        with pytest.raises(ConfigurationError, match="pub_socket_address"):
            invalid.connect(None)
    finally:
        invalid.close()


def test_a_missing_key_file_is_reported_and_waited_for(
    context: "zmq.Context[Socket]", exchange: Socket, client: Fed, tmp_path: Path
) -> None:
    """A missing key file is reported and delays the connection, because it may be mounted a moment later.

    Without keys, the connection waits for nothing.
    """
    missing = KeySetting("curve_server_key", None, str(tmp_path / "key"))
    address = exchange.get_string(zmq.LAST_ENDPOINT)
    subscriber = Subscriber(context, address, OPTIONS, client, client.attach())
    subscriber.subscribe_inbox()
    assert not subscriber.connect_first(KeyWatch(ClientKeySource(missing, missing)))
    ((_, message, arguments),) = client.counters.reports
    assert message % arguments == f"waiting to connect to {address}: {tmp_path / 'key'} does not exist"
    assert not exchange.poll(50)
    assert subscriber.connect_first(KeyWatch(None))
    assert exchange.recv() == wire.subscription(TOPIC)
    subscriber.close()


def events(monitor: Socket, until: int) -> list[int]:
    """Return the events that a monitor reports, up to a certain one."""
    seen: list[int] = []
    while until not in seen:
        assert monitor.poll(round(PATIENCE * 1000)), f"only {seen} so far"
        seen.append(recv_monitor_message(monitor)["event"])
    return seen


def test_a_monitor_reports_connections_and_their_end(subscriber: Subscriber, exchange: Socket) -> None:
    """A monitor reports the begin and the end of a connection, with which a session begins and ends."""
    assert events(subscriber.monitor, zmq.Event.HANDSHAKE_SUCCEEDED) == [zmq.Event.HANDSHAKE_SUCCEEDED]
    exchange.close(linger=0)
    assert events(subscriber.monitor, zmq.Event.DISCONNECTED) == [zmq.Event.DISCONNECTED]


@pytest.mark.parametrize("interval, failure", [(100, zmq.Event.CONNECT_RETRIED), (-1, zmq.Event.CLOSED)])
def test_a_monitor_reports_an_attempt_to_connect_that_has_failed(
    context: "zmq.Context[Socket]", interval: int, failure: int
) -> None:
    """A monitor reports a failed attempt to connect by the event that the socket has.

    A socket that does not connect again is closed instead.
    """
    push = context.socket(zmq.PUSH)
    push.set(zmq.RECONNECT_IVL, interval)
    watched = monitor(push, failure)
    with sockets.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen, so that no other process does
        push.connect(f"tcp://127.0.0.1:{unused.getsockname()[1]}")
        assert events(watched, failure) == [failure]
    push.disable_monitor()
    watched.close(linger=0)
    push.close(linger=0)


@pytest.mark.parametrize("was_connected", [True, False])
def test_a_disconnected_socket_receives_nothing_any_more(
    context: "zmq.Context[Socket]", exchange: Socket, client: Fed, was_connected: bool
) -> None:
    """A disconnected socket has no session, whether it was ever connected or not."""
    subscriber = Subscriber(context, exchange.get_string(zmq.LAST_ENDPOINT), OPTIONS, client, client.attach())
    if was_connected:
        subscriber.connect(None)
        subscriber.subscribe_inbox()
        exchange.recv()
        subscriber.greet(list)
    subscriber.disconnect()
    assert (subscriber.is_connected, subscriber.welcome, subscriber.due) == (False, None, inf)
    subscriber.close()


@pytest.mark.parametrize("layout", [wire.SYNC, wire.MEMBER, wire.FLUSH])
def test_a_request_is_not_sent_ahead_of_the_welcome(
    subscriber: Subscriber, exchange: Socket, layout: wire.Layout[wire.Sync]
) -> None:
    """A request is not sent ahead of the welcome; the client repeats it once it is welcomed.

    The exchange would answer a client that it does not know yet.
    """
    request = bytes((layout.kind,)) + b"request"
    subscriber.send(request)
    subscriber.greet(list)
    subscriber.send(request)
    assert hello(exchange).session == 1
    subscriber.take(welcome(1))
    subscriber.send(request)
    assert exchange.recv() == request


def send_changes(subscriber: Subscriber, client: Client) -> None:
    for frame, _ in client.out.take().upstream:
        subscriber.send(frame)


def test_without_a_connection_only_what_remains_of_subscriptions_is_sent_later(
    subscriber: Subscriber, exchange: Socket, client: Fed
) -> None:
    """After an outage a subscriber sends only the net changes of its subscriptions, before its hello.

    Consumers begin and end in an outage, and ZeroMQ would keep each of their frames, and send it before the hello.
    """
    one, other, third = (wire.group_topic(name) for name in ("one", "other", "third"))
    subscriber.send(wire.unsubscription(one))  # for a member that was discarded before this socket existed
    client.join(one, "a", 9, None)
    for _ in range(1000):
        client.join(other, "b", 9, None)
        client.leave(other, "b")
    send_changes(subscriber, client)
    subscriber.greet(list)
    assert exchange.recv() == wire.subscription(one)
    assert hello(exchange).session == 1
    client.join(other, "b", 9, None)
    for _ in range(2):
        subscriber.send(wire.subscription(other))
        subscriber.send(wire.unsubscription(third))
    client.out.take()
    assert exchange.recv() == wire.subscription(other)
    subscriber.lost()
    client.leave(one, "a")
    client.join(one, "a", 9, None)
    client.leave(other, "b")
    client.join(third, "c", 9, None)
    send_changes(subscriber, client)
    subscriber.greet(list)
    changes = [wire.unsubscription(other), wire.subscription(third)]
    assert [exchange.recv() for _ in range(3)] == [*changes, client.claim]


# Messages that a cut connection has lost


def requests(exchange: Socket) -> list[wire.Resume]:
    """Return the replays that the process requests before it reports that it reads batches, which ends its hello."""
    asked = []
    while (frame := exchange.recv())[:1] != bytes([wire.BATCHING.kind]):
        if frame[:1] == bytes([wire.RESUME.kind]):
            asked.append(wire.RESUME.decode(frame))
    return asked


def test_the_first_session_asks_for_what_others_have_sent(subscriber: Subscriber, exchange: Socket) -> None:
    """The first session requests what was published since the process began: others may know its channels."""
    subscriber.greet(list)
    (asked,) = requests(exchange)
    assert (asked.session, asked.topics) == (subscriber.session, b"")
    assert asked.age >= MARGIN_MS


def test_a_session_that_follows_a_cut_asks_for_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, subscriber: Subscriber, exchange: Socket, client: Fed
) -> None:
    """A session after a cut requests a replay since the last answered probe.

    Messages that were published after that probe may still have waited for this process.
    """
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    subscriber._attachment.resumption._clock = clock
    subscriber.greet(list)
    assert len(requests(exchange)) == 1
    subscriber._attachment.resumption.ended()
    assert subscriber.take(welcome(subscriber.session))
    for answered in (True, False):
        clock.now += 1.0
        subscriber.probe(clock.now, clock.now)
        number = wire.SYNC.decode(exchange.recv()).n
        if answered:
            client.attachments[0].synced = number
    clock.now += 1.5
    subscriber.lost()
    subscriber.lost()
    clock.now += 0.5
    subscriber.greet(list)
    (asked,) = requests(exchange)
    assert (asked.session, asked.age) == (subscriber.session, 3000 + MARGIN_MS)
    clock.now += 1.0
    subscriber.tick(clock.now)
    (asked,) = requests(exchange)
    assert asked.age == 4000 + MARGIN_MS
    assert subscriber.take(welcome(subscriber.session))
    subscriber.say_hello()
    assert requests(exchange) == []


def test_a_session_without_a_cut_asks_for_nothing(subscriber: Subscriber, exchange: Socket, client: Fed) -> None:
    """A session without a cut requests no replay: the exchange may only have forgotten the last session."""
    subscriber.greet(list)
    assert len(requests(exchange)) == 1
    client.begin_session(client.attachments[0], subscriber.session, b"i" * 8)
    client.attachments[0].resumption.ended()
    subscriber.greet(list)
    assert requests(exchange) == []
