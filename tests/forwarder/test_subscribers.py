"""What subscribers may send, and which connections are ended."""

import pytest
import zmq
from strangers import RawPeer

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.connections import Connections
from channels_zmq_forwarder.sockets import Marks, publish_options
from channels_zmq_forwarder.subscribers import HELLOS, Subscribers

INBOX = b"a" * 16


class Publisher:
    """A publishing socket, and the subscribers that connect to it."""

    def __init__(self, sockets, marks):
        self._sockets = sockets
        xpub = sockets.open(zmq.XPUB)
        publish_options(xpub, marks)
        self.drops = []
        self.connections = Connections(xpub)
        self.subscribers = Subscribers(xpub, self.connections, marks, None, self.drops.append)
        self.port = xpub.bind_to_random_port("tcp://127.0.0.1")
        self.xpub = xpub

    def connect(self, **options):
        """Return a subscriber that does not come back once its connection was ended."""
        xsub = self._sockets.open(zmq.XSUB)
        xsub.set(zmq.RECONNECT_IVL, -1)
        for name, value in options.items():
            xsub.set(getattr(zmq, name), value)
        xsub.connect(f"tcp://127.0.0.1:{self.port}")
        return xsub

    def receive(self, until):
        """Return the frames that arrive until a condition holds."""
        frames = []
        while not until():
            try:
                frames.append(self.subscribers.recv(zmq.DONTWAIT))
            except zmq.Again:
                self.connections.monitor.poll(5)
                self.connections.turn()
        return [frame for frame in frames if frame is not None]

    def receives(self, frame):
        """Receive frames until this one is there."""
        while not self.xpub.poll(5):
            self.connections.turn()
        while self.subscribers.recv(0) != frame:
            pass

    def is_deserted(self):
        return not self.connections.peers


@pytest.fixture
def make(sockets):
    """Return a function that makes a publisher."""
    made = []

    def make(**marks):
        made.append(Publisher(sockets, Marks(**marks)))
        return made[-1]

    yield make
    for publisher in made:
        publisher.connections.close()


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
def test_who_subscribes_to_something_that_is_no_topic_is_disconnected(make, topic):
    """A prefix would match the messages of many groups, and a long one takes 50 times its size in memory."""
    publisher = make()
    good, bad = publisher.connect(), publisher.connect()
    good.send(wire.subscription(wire.group_topic("room")))
    publisher.receives(wire.subscription(wire.group_topic("room")))
    bad.send(wire.subscription(topic))
    frames = publisher.receive(lambda: publisher.drops)
    publisher.receive(lambda: len(publisher.connections.peers) == 1)
    assert wire.subscription(topic) not in frames
    assert publisher.drops == ["invalid_topic"]
    publisher.xpub.send(b"Groom\0hi")
    assert good.recv() == b"Groom\0hi"


def test_the_longest_names_are_topics(make):
    """Of a group and of an inbox."""
    publisher = make()
    subscriber = publisher.connect()
    for topic in (wire.group_topic("x" * wire.MAX_NAME), wire.inbox_topic(INBOX)):
        subscriber.send(wire.subscription(topic))
        publisher.receives(wire.subscription(topic))
    assert not publisher.drops


def test_a_frame_larger_than_any_of_ours_disconnects_its_sender(make):
    """Libzmq refuses it by its head, before it takes memory."""
    publisher = make()
    subscriber = publisher.connect()
    subscriber.send(wire.subscription(wire.group_topic("room")))
    publisher.receives(wire.subscription(wire.group_topic("room")))
    subscriber.send(b"?" * (wire.MAX_UPSTREAM + 1))
    publisher.receive(publisher.is_deserted)


def test_a_subscriber_with_too_many_topics_is_disconnected(make):
    """Its topics end; those of others stay."""
    publisher = make(topics=2000)
    good, bad = publisher.connect(), publisher.connect()
    good.send(wire.subscription(wire.group_topic("room")))
    publisher.receives(wire.subscription(wire.group_topic("room")))
    for number in range(100, 200):
        bad.send(wire.subscription(wire.group_topic(f"g{number}")))
    publisher.receive(lambda: publisher.subscribers.ended_topics >= 80)
    assert set(publisher.drops) == {"too_many_topics"}
    (ended,) = publisher.subscribers.look(0.0, 0)
    assert ended.reason == "it subscribed to too many topics"
    publisher.xpub.send(b"Groom\0hi")
    assert good.recv() == b"Groom\0hi"


def test_nobody_can_end_the_inbox_of_somebody_else(make):
    """XPUB reports an unsubscription from any connection, whether it had subscribed or not."""
    publisher = make()
    owner, other = publisher.connect(), RawPeer(publisher.port)
    owner.send(wire.subscription(wire.inbox_topic(INBOX)))
    publisher.receives(wire.subscription(wire.inbox_topic(INBOX)))
    other.send(wire.unsubscription(wire.inbox_topic(INBOX)))
    publisher.receive(lambda: publisher.drops)
    other.close()
    assert publisher.drops == ["stray"]
    owner.send(wire.unsubscription(wire.inbox_topic(INBOX)))
    publisher.receives(wire.unsubscription(wire.inbox_topic(INBOX)))


def test_a_subscriber_that_says_hello_too_often_is_disconnected(make):
    """Each hello may be answered by a list of forwarders, which is much longer."""
    publisher = make()
    subscriber = publisher.connect()
    hello = wire.HELLO.encode(wire.Hello(INBOX, wire.VERSION, 1, 0))
    for _ in range(HELLOS + 1):
        subscriber.send(hello)
    assert publisher.receive(lambda: publisher.drops).count(hello) == HELLOS
    publisher.receive(publisher.is_deserted)
    assert publisher.drops == ["too_many_hellos"]
