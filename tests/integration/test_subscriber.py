"""The socket that receives, and its session, with an exchange that a test plays by hand."""

import contextlib
import time
from collections.abc import Callable, Iterator
from math import inf

import pytest
import zmq

from channels_zmq.client.client import Client
from channels_zmq.errors import ConfigurationError
from channels_zmq.options import Options
from channels_zmq.transports import subscriber as module
from channels_zmq.transports.subscriber import FRAMES_A_TURN, HELLO_EVERY, WAKES_A_TURN, Socket, Subscriber
from channels_zmq_forwarder import wire

INBOX = b"0123456789abcdef"
TOPIC = wire.inbox_topic(INBOX)
PATIENCE = 10.0
OPTIONS = Options(
    connect_timeout=5.0, expiry=60.0, linger=0.0, max_message_size=2**20, outbox_capacity=0, outbox_bytes=0
)


class Fed(Client):
    """A client that keeps what it is fed."""

    def __init__(self) -> None:
        super().__init__(INBOX, b"s" * 8)
        self.fed: list[bytes] = []
        self.on_feed: Callable[[], None] = lambda: None

    def feed(self, frame: bytes) -> None:
        self.fed.append(frame)
        self.on_feed()


@pytest.fixture
def context() -> Iterator["zmq.Context[Socket]"]:
    """Every socket of it is closed in the end."""
    context: zmq.Context[Socket] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def exchange(context: "zmq.Context[Socket]") -> Socket:
    """The publishing side."""
    exchange = context.socket(zmq.XPUB)
    exchange.set(zmq.RCVTIMEO, round(PATIENCE * 1000))
    exchange.set(zmq.SNDHWM, 0)
    exchange.set(zmq.XPUB_VERBOSE, 1)  # else a subscription that another connection had already is not shown
    exchange.bind("tcp://127.0.0.1:*")
    return exchange


@pytest.fixture
def client() -> Fed:
    return Fed()


@pytest.fixture
def subscriber(context: "zmq.Context[Socket]", exchange: Socket, client: Fed) -> Iterator[Subscriber]:
    """Connected, and subscribed to its inbox."""
    subscriber = Subscriber(context, exchange.get_string(zmq.LAST_ENDPOINT), OPTIONS, client)
    subscriber.connect(None)
    subscriber.send(wire.subscription(TOPIC))
    assert exchange.recv() == wire.subscription(TOPIC)
    yield subscriber
    with contextlib.suppress(zmq.ZMQError):  # the test has closed it
        subscriber.close()


def await_input(subscriber: Subscriber) -> None:
    end = time.monotonic() + PATIENCE
    while not subscriber.has_input():
        assert time.monotonic() < end, "nothing arrives"


def welcome(session: int, clients: int = 1) -> wire.Welcome:
    return wire.Welcome(INBOX, wire.VERSION, wire.State.SERVING, b"i" * 8, session, clients)


def hello(exchange: Socket) -> wire.Hello:
    return wire.HELLO.decode(exchange.recv())


# Frames


def test_input_that_is_there_while_a_frame_is_sent_is_reported(
    subscriber: Subscriber, exchange: Socket, client: Fed
) -> None:
    """The descriptor will not show it: without a look afterwards the frame would wait for a second."""
    exchange.send(TOPIC + b"early")
    await_input(subscriber)
    assert subscriber.send(b"up")
    assert not subscriber.read()
    assert client.fed == [TOPIC + b"early"]
    assert not subscriber.send(b"up")


def test_a_hello_reports_input_too(subscriber: Subscriber, exchange: Socket) -> None:
    """It is sent like any other frame."""
    exchange.send(TOPIC + b"early")
    await_input(subscriber)
    assert subscriber.greet([])


def test_reading_without_input_feeds_nothing(subscriber: Subscriber, client: Fed) -> None:
    """No more is to be expected then."""
    assert not subscriber.read()
    assert client.fed == []


def publish_many(exchange: Socket, subscriber: Subscriber, count: int) -> None:
    """Publish frames and wait until the first has arrived."""
    for number in range(count):
        exchange.send(TOPIC + b"%d" % number)
    await_input(subscriber)


def read_all(subscriber: Subscriber, client: Fed, count: int) -> int:
    """Read until all frames have arrived; return the longest turn."""
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
    """The event loop runs other callbacks between two turns."""
    count = 4 * FRAMES_A_TURN
    publish_many(exchange, subscriber, count)
    assert read_all(subscriber, client, count) <= FRAMES_A_TURN
    assert client.fed == [TOPIC + b"%d" % number for number in range(count)]


@pytest.mark.parametrize("bound", ["wakes", "time"])
def test_a_turn_ends_early_when_it_has_woken_many_or_taken_long(
    subscriber: Subscriber, exchange: Socket, client: Fed, bound: str
) -> None:
    """More input is left, and reported."""
    publish_many(exchange, subscriber, 100)

    def reach() -> None:
        if bound == "wakes":
            client.out.wake += [None] * (WAKES_A_TURN + 1)
        else:
            client.now = inf

    client.on_feed = reach
    end = time.monotonic() + PATIENCE
    while not (more := subscriber.read()):
        assert time.monotonic() < end
        assert len(client.fed) < 100, "a turn took all at once"
    assert more
    client.out.wake.clear()
    client.now = 0.0
    client.on_feed = lambda: None
    read_all(subscriber, client, 100)


# Sessions


def test_a_session_begins_with_what_must_be_known_before_and_a_hello(subscriber: Subscriber, exchange: Socket) -> None:
    """Each connection begins another one, with a higher number."""
    for session in (1, 2):
        subscriber.greet([b"first", b"second"])
        assert [exchange.recv(), exchange.recv()] == [b"first", b"second"]
        assert hello(exchange) == wire.Hello(INBOX, wire.VERSION, session, 0)
        assert (subscriber.session, subscriber.is_connected, subscriber.welcome) == (session, True, None)


def test_only_the_first_welcome_of_a_session_is_news(subscriber: Subscriber) -> None:
    """A later one may carry another state; one of another session is ignored."""
    subscriber.greet([])
    assert [subscriber.take(welcome(session)) for session in (0, 1, 1)] == [False, True, False]
    subscriber.take(welcome(1, clients=5))
    assert subscriber.welcome == welcome(1, clients=5)
    subscriber.lost()
    assert not subscriber.take(welcome(1))
    assert subscriber.welcome is None


def test_a_hello_carries_the_number_of_clients_that_was_seen_last(subscriber: Subscriber, exchange: Socket) -> None:
    """An exchange that settles waits for as many."""
    subscriber.greet([])
    subscriber.take(welcome(1, clients=5))
    subscriber.greet([])
    assert [hello(exchange).peers, hello(exchange).peers] == [0, 5]


def test_a_hello_is_repeated_until_it_is_answered(
    subscriber: Subscriber, exchange: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a second, and only while there is a connection."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    assert subscriber.due == inf
    subscriber.greet([])
    assert subscriber.due == 100.0 + HELLO_EVERY
    assert not subscriber.tick(100.9)
    now[0] = 101.0
    subscriber.tick(101.0)
    assert subscriber.due == 101.0 + HELLO_EVERY
    subscriber.take(welcome(1))
    assert subscriber.due == inf
    assert [hello(exchange).session, hello(exchange).session] == [1, 1]
    assert not exchange.poll(50)


# Connecting


def test_connecting_anew_keeps_the_subscriptions(
    context: "zmq.Context[Socket]", subscriber: Subscriber, exchange: Socket, client: Fed
) -> None:
    """As with other keys: ZeroMQ sends them again."""
    subscriber.connect(None)
    while exchange.recv() != wire.subscription(TOPIC):  # the end of the former connection may show first
        pass
    exchange.send(TOPIC + b"x")
    await_input(subscriber)
    subscriber.read()
    assert client.fed == [TOPIC + b"x"]


def test_an_invalid_address_is_an_error_that_names_the_setting(context: "zmq.Context[Socket]", client: Fed) -> None:
    """It is the address that CONFIG has."""
    invalid = Subscriber(context, "tcp://nonsense", OPTIONS, client)
    try:
        with pytest.raises(ConfigurationError, match="pub_socket_address"):
            invalid.connect(None)
    finally:
        invalid.close()


@pytest.mark.parametrize("was_connected", [True, False])
def test_a_disconnected_socket_receives_nothing_any_more(
    context: "zmq.Context[Socket]", exchange: Socket, client: Fed, was_connected: bool
) -> None:
    """The session is over; whether there ever was a connection does not matter."""
    subscriber = Subscriber(context, exchange.get_string(zmq.LAST_ENDPOINT), OPTIONS, client)
    if was_connected:
        subscriber.connect(None)
        subscriber.send(wire.subscription(TOPIC))
        exchange.recv()
        subscriber.greet([])
    subscriber.disconnect()
    assert (subscriber.is_connected, subscriber.welcome, subscriber.due) == (False, None, inf)
    subscriber.close()
