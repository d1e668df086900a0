"""The frames that subscribers may send, and the connections that are ended."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import zmq
from open_sockets import Sockets
from strangers import PATIENCE, RawPeer, opening, well_formed

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.connections import Connections
from channels_zmq_forwarder.curve import new_pair, secure_client
from channels_zmq_forwarder.sockets import Marks, publish_options
from channels_zmq_forwarder.subscribers import HELLOS, Subscribers
from channels_zmq_forwarder.zap import Gate

SECRET = b"a" * 16
INBOX = wire.claimable(SECRET)
UPSTREAM = [bytes([layout.kind]) for layout in wire.UPSTREAM_LAYOUTS]
HELLO = wire.HELLO.encode(wire.Hello(INBOX, wire.VERSION, 1, 0))


class Publisher:
    """A publishing socket, optionally with CURVE keys, and the subscribers that connect to it."""

    def __init__(self, sockets: Sockets[zmq.Socket[bytes]], marks: Marks, *, has_keys: bool = False) -> None:
        self._sockets = sockets
        self.xpub = sockets.open(zmq.XPUB)
        publish_options(self.xpub, marks)
        self.drops: list[str] = []
        self.public, secret = new_pair()
        self.gate = Gate(sockets.context, secret, None) if has_keys else None
        self.connections = self.gate.guard(self.xpub) if self.gate else Connections(self.xpub)
        self.subscribers = Subscribers(self.xpub, self.connections, marks, self.gate, self.drops.append)
        self.port = self.xpub.bind_to_random_port("tcp://127.0.0.1")

    def close(self) -> None:
        self.connections.close()
        if self.gate is not None:
            self.xpub.close()
            self.gate.close()

    def connect(self, pair: tuple[bytes, bytes] | None = None, **options: Any) -> zmq.Socket[bytes]:
        """Return a subscriber that does not reconnect once its connection is ended."""
        xsub = self._sockets.open(zmq.XSUB)
        xsub.set(zmq.RECONNECT_IVL, -1)
        for name, value in options.items():
            xsub.set(getattr(zmq, name), value)
        if pair is not None:
            secure_client(xsub, self.public, pair[1])
        xsub.connect(f"tcp://127.0.0.1:{self.port}")
        return xsub

    def receive(self, until: Callable[[list[bytes]], bool]) -> list[bytes]:
        """Return the frames that arrive until a condition holds for them."""
        frames: list[bytes] = []
        while not until(frames):
            try:
                frame = self.subscribers.recv(zmq.DONTWAIT)
                frames += [] if frame is None else [frame]
            except zmq.Again:
                if self.gate is not None:
                    self.gate.turn()
                self.connections.monitor.poll(5)
                self.connections.turn()
        return frames

    def receives(self, frame: bytes) -> list[bytes]:
        """Return the frames that arrive up to this one."""
        return self.receive(lambda frames: frame in frames)

    def drop(self, count: int) -> list[bytes]:
        """Return the frames that arrive until this number of frames was dropped."""
        return self.receive(lambda frames: len(self.drops) >= count)

    def keep(self, count: int) -> list[bytes]:
        """Return the frames that arrive until there is this number of connections."""
        return self.receive(lambda frames: len(self.connections.peers) == count)


@pytest.fixture
def make(sockets: Sockets[zmq.Socket[bytes]]) -> Iterator[Callable[..., Publisher]]:
    """Return a function that creates a publisher."""
    made = []

    def make(has_keys: bool = False, **marks: int) -> Publisher:
        made.append(Publisher(sockets, Marks(**marks), has_keys=has_keys))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


@pytest.mark.parametrize(
    "topic",
    [
        b"",
        b"G",
        b"P",
        b"Groom",
        b"G\0",
        b"Groom\0more",
        b"G" + b"x" * (wire.MAX_NAME + 1) + b"\0",
        b"P" + b"a" * 15 + b"\0",
        b"P" + b"A" * 16 + b"\0",
        b"x" * (wire.MAX_UPSTREAM - 1),
    ],
)
def test_who_subscribes_to_something_that_is_no_topic_is_disconnected(
    make: Callable[..., Publisher], topic: bytes
) -> None:
    """A subscriber to an invalid topic is disconnected.

    A prefix would match the messages of many groups, and a long one takes 50 times its size in memory.
    """
    publisher = make()
    good, bad = publisher.connect(), publisher.connect()
    good.send(wire.subscription(wire.group_topic("room")))
    publisher.receives(wire.subscription(wire.group_topic("room")))
    bad.send(wire.subscription(topic))
    frames = publisher.drop(1)
    publisher.keep(1)
    assert wire.subscription(topic) not in frames
    assert publisher.drops == ["invalid_topic"]
    publisher.xpub.send(b"Groom\0hi")
    assert good.recv() == b"Groom\0hi"


def test_the_longest_names_are_topics(make: Callable[..., Publisher]) -> None:
    """The longest name of a group, and an inbox, are valid topics."""
    publisher = make()
    subscriber = publisher.connect()
    for frame in (wire.subscription(wire.group_topic("x" * wire.MAX_NAME)), *opening(SECRET)):
        subscriber.send(frame)
    publisher.receives(wire.subscription(wire.group_topic("x" * wire.MAX_NAME)))
    publisher.receives(wire.subscription(wire.inbox_topic(INBOX)))
    assert not publisher.drops


def test_a_frame_larger_than_any_of_ours_disconnects_its_sender(make: Callable[..., Publisher]) -> None:
    """A frame that is larger than any of ours disconnects its sender.

    Libzmq refuses it by its head, before it takes memory.
    """
    publisher = make()
    subscriber = publisher.connect()
    subscriber.send(wire.subscription(wire.group_topic("room")))
    publisher.receives(wire.subscription(wire.group_topic("room")))
    subscriber.send(b"?" * (wire.MAX_UPSTREAM + 1))
    publisher.keep(0)


def test_a_subscriber_with_too_many_topics_is_disconnected(make: Callable[..., Publisher]) -> None:
    """A subscriber with too many topics is disconnected and its topics end; those of others stay."""
    publisher = make(topics=2000)
    good, bad = publisher.connect(), publisher.connect()
    good.send(wire.subscription(wire.group_topic("room")))
    publisher.receives(wire.subscription(wire.group_topic("room")))
    for number in range(100, 200):
        bad.send(wire.subscription(wire.group_topic(f"g{number}")))
    publisher.receive(lambda frames: publisher.subscribers.ended_topics >= 80)
    assert set(publisher.drops) == {"too_many_topics"}
    (ended,) = publisher.subscribers.look(0.0, 0)
    assert ended.reason == "it subscribed to too many topics"
    publisher.xpub.send(b"Groom\0hi")
    assert good.recv() == b"Groom\0hi"


# Inboxes

CLAIM, SUBSCRIPTION = opening(SECRET)


def claimed(publisher: Publisher, **options: tuple[bytes, bytes]) -> zmq.Socket[bytes]:
    """Return a subscriber that has claimed the inbox and subscribed to it."""
    subscriber = publisher.connect(**options)
    for frame in opening(SECRET):
        subscriber.send(frame)
    publisher.receives(SUBSCRIPTION)
    return subscriber


@pytest.mark.parametrize("frames", [[CLAIM, SUBSCRIPTION], [SUBSCRIPTION, SUBSCRIPTION, CLAIM]])
def test_a_subscription_to_an_inbox_counts_once_it_is_claimed(
    make: Callable[..., Publisher], frames: list[bytes]
) -> None:
    """A subscription to an inbox counts once it is claimed, in either order.

    The claim is first on a new socket; when libzmq reconnects, it sends the subscriptions first.
    """
    publisher = make()
    subscriber = publisher.connect()
    for frame in (*frames, HELLO):
        subscriber.send(frame)
    assert publisher.receives(HELLO) == [SUBSCRIPTION, HELLO]
    assert not publisher.drops


@pytest.mark.parametrize(
    "frame",
    [wire.unsubscription(wire.inbox_topic(INBOX)), *(frame for frame in well_formed(INBOX) if frame[:1] in UPSTREAM)],
    ids=lambda frame: chr(frame[0]),
)
def test_nobody_can_use_the_inbox_of_somebody_else(make: Callable[..., Publisher], frame: bytes) -> None:
    """A frame for an inbox is dropped if its client has claimed another inbox, or none.

    XPUB reports an unsubscription whether there was a subscription or not.
    """
    publisher = make()
    owner, others = claimed(publisher), [RawPeer(publisher.port) for _ in range(2)]
    others[0].send(opening(b"b" * 16)[0], frame)
    others[1].send(frame)
    assert publisher.drop(2) == []
    assert publisher.drops == ["foreign_inbox"] * 2
    owner.send(frame)
    publisher.receives(frame)
    for other in others:
        other.close()


@pytest.mark.parametrize(
    "claim",
    [wire.CLAIM.encode(wire.Claim(INBOX, b"b" * 16)), wire.CLAIM.encode(wire.Claim(b"0" * 16, SECRET))],
)
def test_who_claims_an_inbox_without_its_secret_is_disconnected(make: Callable[..., Publisher], claim: bytes) -> None:
    """A subscriber that claims an inbox without its secret is disconnected, and has no access to it before that."""
    publisher = make()
    subscriber = publisher.connect()
    for frame in (SUBSCRIPTION, claim, HELLO):
        subscriber.send(frame)
    frames = publisher.drop(1) + publisher.keep(0)
    assert set(frames) <= {wire.unsubscription(wire.inbox_topic(INBOX))}, "libzmq reports that one by itself"
    assert publisher.drops == ["foreign_inbox"]


def test_a_claim_ends_with_its_connection(make: Callable[..., Publisher]) -> None:
    """A claim ends with its connection, since the next one may have the same file descriptor."""
    publisher = make()
    for _ in range(3):
        owner = claimed(publisher)
        owner.close()
        publisher.keep(0)
        other = publisher.connect()
        other.send(HELLO)
        publisher.drop(1)
        assert publisher.drops.pop() == "foreign_inbox"
        other.close()
        publisher.keep(0)


@pytest.mark.parametrize("frame", [frame for frame in well_formed(INBOX) if frame[:1] in (b"R", b"B")])
def test_what_a_client_sends_before_it_leaves_counts(make: Callable[..., Publisher], frame: bytes) -> None:
    """The frames that a client sends before it disconnects count.

    It hands its jobs back when it closes, and the end of its connection may be known before they are read.
    """
    publisher = make()
    owner = claimed(publisher)
    owner.send(frame)
    owner.close(linger=PATIENCE)
    while publisher.connections.peers:
        publisher.connections.monitor.poll(5)
        publisher.connections.turn()
    assert publisher.receives(frame) == [frame]


@pytest.mark.parametrize("is_first", [True, False])
def test_another_key_cannot_subscribe_to_the_inbox_of_a_client(make: Callable[..., Publisher], is_first: bool) -> None:
    """A subscriber to an inbox with another key is disconnected, whether it subscribes before the client or after."""
    publisher = make(has_keys=True)
    group = wire.subscription(wire.group_topic("room"))
    if is_first:
        other = publisher.connect(new_pair())
        for frame in (SUBSCRIPTION, group):
            other.send(frame)
        assert publisher.receives(group) == [group]
    owner = claimed(publisher, pair=new_pair())
    if not is_first:
        publisher.connect(new_pair()).send(SUBSCRIPTION)
        assert publisher.drop(1) == []
    publisher.keep(1)
    assert publisher.drops == ["foreign_inbox"]
    publisher.xpub.send(wire.direct_prefix(INBOX))
    assert owner.recv() == wire.direct_prefix(INBOX)


@pytest.mark.parametrize("has_new_key", [True, False])
def test_a_client_may_connect_again_before_the_end_of_its_connection_is_noticed(
    make: Callable[..., Publisher], has_new_key: bool
) -> None:
    """A client may reconnect before the end of its connection is noticed, with the same key or a new one.

    With a new key on a new socket its claim is first.
    """
    publisher, pair = make(has_keys=True), new_pair()
    first = claimed(publisher, pair=pair)
    second = publisher.connect(new_pair() if has_new_key else pair)
    for frame in [CLAIM, SUBSCRIPTION] if has_new_key else [SUBSCRIPTION, CLAIM]:
        second.send(frame)
    publisher.receives(SUBSCRIPTION)
    publisher.xpub.send(wire.direct_prefix(INBOX))
    assert [one.recv() for one in (first, second)] == [wire.direct_prefix(INBOX)] * 2
    assert not publisher.drops


def test_a_subscriber_that_says_hello_too_often_is_disconnected(make: Callable[..., Publisher]) -> None:
    """A subscriber that sends too many hellos is disconnected.

    Each hello may be answered by a list of forwarders, which is much longer.
    """
    publisher = make()
    subscriber = claimed(publisher)
    for _ in range(HELLOS + 1):
        subscriber.send(HELLO)
    assert publisher.drop(1).count(HELLO) == HELLOS
    publisher.keep(0)
    assert publisher.drops == ["too_many_hellos"]


def test_hellos_of_connections_that_have_ended_do_not_count_for_the_next_one_of_the_same_descriptor(
    make: Callable[..., Publisher],
) -> None:
    """Hellos of ended connections do not count for the next connection with the same descriptor.

    Short-lived clients get the same one in turn, and each sends a hello.
    """
    publisher = make()
    for _ in range(HELLOS + 5):
        subscriber = claimed(publisher)
        subscriber.send(HELLO)
        publisher.receives(HELLO)
        subscriber.close()
        publisher.keep(0)
    assert publisher.drops == []


def test_a_client_that_gets_the_descriptor_of_an_ended_connection_is_ended_too(make: Callable[..., Publisher]) -> None:
    """Its claim may have been dropped as a frame of that connection, and it claims its inbox once for a connection."""
    low = os.open(os.devnull, os.O_RDONLY)
    publisher = make()
    frames: list[bytes | None] = []
    with closing(RawPeer(publisher.port)) as bad:
        publisher.keep(1)
        (descriptor,) = publisher.connections.peers
        bad.subscribe(b"nonsense")
        while not publisher.drops:
            publisher.xpub.poll()
            publisher.subscribers.recv(zmq.DONTWAIT)
        while is_open(descriptor):
            time.sleep(0.001)
        os.close(low)  # which the next client takes, so that its peer here takes the other one
        with closing(RawPeer(publisher.port)) as good:
            good.send(*opening(SECRET), HELLO)
            while len(publisher.subscribers._ended) < 2:
                publisher.xpub.poll()
                with suppress(zmq.Again):
                    frames.append(publisher.subscribers.recv(zmq.DONTWAIT))
            frames += publisher.keep(0)
    assert not {*opening(SECRET), HELLO} & {*frames}
    assert "dropped" in publisher.subscribers.look(0.0, 0)[1].reason
    assert publisher.drops == ["invalid_topic"]


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_claim_that_is_read_after_the_end_of_its_connection_does_not_count(make: Callable[..., Publisher]) -> None:
    """A claim that is read after the end of its connection does not count.

    Otherwise the next connection with the same descriptor would be ended for a claim of its own.
    """
    publisher = make()
    hasty = publisher.connect()
    publisher.keep(1)
    hasty.send(CLAIM)
    hasty.close(linger=PATIENCE)
    while publisher.connections.peers:
        publisher.connections.monitor.poll(5)
        publisher.connections.turn()
    claim, subscription = opening(b"b" * 16)
    other = publisher.connect()
    for frame in (claim, subscription):
        other.send(frame)
    assert publisher.receive(lambda frames: bool(frames or publisher.drops)) == [subscription]
    assert not publisher.drops
