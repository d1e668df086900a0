"""A new producer holds messages for other processes, bounded in number and bytes, while they connect."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import zmq
from fakes import AnyName, Clock
from socketless import options

from channels_zmq.client.client import Client
from channels_zmq.client.output import LinkRestored
from channels_zmq.errors import OutboxFull
from channels_zmq.transports import embedded_producer
from channels_zmq.transports.embedded_producer import SETTLE, EmbeddedProducer
from channels_zmq_forwarder import wire

SECRET = b"0123456789abcdef"
OTHER = wire.claimable(b"fedcba9876543210")
SENDER = b"s" * 8
G = wire.group_topic("g")
TTL = 60_000
SIZE = len(wire.ordered(G, SENDER, 1, 0, TTL, b"x"))
"""Size of a frame whose message has one byte."""


class Xpub:
    """The producer's socket, which records the published frames."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes, flags: int) -> None:
        self.frames.append(frame)

    def payloads(self) -> list[bytes]:
        """Remove the published frames, and return the payloads of the group messages."""
        frames, self.frames = self.frames, []
        return [wire.read_group(frame)[5] for frame in frames if wire.is_group(frame)]


class Readers:
    """The connections of other processes, with the frames that they have sent."""

    def __init__(self) -> None:
        self.arriving: list[bytes] = []

    def recv(self, flags: int) -> bytes:
        if not self.arriving:
            raise zmq.Again
        return self.arriving.pop(0)

    def is_due(self, published: int) -> bool:
        return False

    def look(self, now: float, published: int) -> list[tuple[str, str]]:
        return []


class Former:
    """The reader that was promoted to the producer."""

    was_lost = False

    def __init__(self, client: Client) -> None:
        self.attachment = client.attach()

    def retire(self) -> None:
        pass

    def keep_retired(self) -> None:
        pass

    def terminate(self) -> None:
        pass


class Rig:
    """A producer that has just bound its address, and its sockets."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.xpub, self.readers = clock, Xpub(), Readers()
        monkeypatch.setattr(embedded_producer, "plain_send", lambda xpub: xpub.send)
        monkeypatch.setattr(embedded_producer, "readable", lambda xpub: False)
        monkeypatch.setattr(embedded_producer, "time", SimpleNamespace(monotonic=clock))
        monkeypatch.setattr(EmbeddedProducer, "_bind", lambda producer: self.xpub)
        self.client = Client(SECRET, SENDER, clock=clock)
        self.client.receiver.own_names = AnyName()
        former = cast(Any, Former(self.client))
        self.producer = EmbeddedProducer("tcp://a", options(), self.client, lambda when: None, former)
        self.producer.start()
        self.producer._subscribers = cast(Any, self.readers)
        hello = wire.HELLO.encode(wire.Hello(OTHER, wire.VERSION, 1, 0))
        self.arrives(wire.subscription(G), wire.subscription(wire.inbox_topic(OTHER)), hello)
        self.xpub.frames.clear()

    def arrives(self, *frames: bytes) -> None:
        """Let frames of other processes arrive, and read them."""
        self.readers.arriving += frames
        self.producer.read()

    def send(self, *payloads: bytes) -> int:
        """Send messages to a group until one is refused, and return the number of accepted ones."""
        for number, payload in enumerate(payloads):
            try:
                self.producer.publish_group(G, payload, TTL)
            except OutboxFull:
                return number
        return len(payloads)

    def settle(self) -> None:
        """Let the time pass for which a new producer holds its messages."""
        self.clock.now += SETTLE
        self.producer.tick(self.clock.now)


@pytest.fixture
def rig(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Return a producer whose messages are held."""
    rig = Rig(clock, monkeypatch)
    yield rig
    rig.producer.terminate()


def ask(number: int) -> bytes:
    """Return a process's request to another one to add a channel to a group."""
    return wire.ASK.encode(wire.Ask(OTHER, number, 1, wire.claimable(SECRET), b"g", b"channel"))


def test_what_a_new_producer_sends_is_published_in_order_once_its_readers_had_time_to_connect(rig: Rig) -> None:
    """A new producer holds messages until its readers had time to connect, publishes them in order, then holds none."""
    assert rig.send(b"1", b"2") == 2
    assert (rig.producer.held, rig.xpub.payloads()) == (2, [])
    rig.settle()
    assert (rig.producer.held, rig.xpub.payloads()) == (0, [b"1", b"2"])
    assert rig.send(b"3") == 1
    assert (rig.producer.held, rig.xpub.payloads()) == (0, [b"3"])


def test_the_number_of_held_frames_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message beyond the bound of held frames raises OutboxFull, and those before it are published."""
    monkeypatch.setattr(embedded_producer, "SETTLE_FRAMES", 3)
    assert rig.send(b"1", b"2", b"3", b"4") == 3
    with pytest.raises(OutboxFull):
        rig.producer.publish_direct(OTHER, "channel", b"5", TTL)
    assert rig.producer.held == 3
    rig.settle()
    assert rig.xpub.payloads() == [b"1", b"2", b"3"]


@pytest.mark.parametrize("room, accepted", [(2 * SIZE, 2), (2 * SIZE - 1, 1), (SIZE - 1, 0)])
def test_the_bytes_of_held_frames_are_bounded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, room: int, accepted: int
) -> None:
    """The bytes of held frames are bounded, including their heads."""
    monkeypatch.setattr(embedded_producer, "SETTLE_BYTES", room)
    assert rig.send(b"1", b"2", b"3") == accepted
    assert rig.producer.held == accepted


def test_a_smaller_message_may_fit_after_one_that_did_not(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused message takes no room, so that a smaller one may fit after it."""
    monkeypatch.setattr(embedded_producer, "SETTLE_BYTES", 2 * SIZE)
    assert [rig.send(payload) for payload in (b"1", b"too large", b"2")] == [1, 0, 1]


def test_messages_and_requests_to_other_processes_share_the_bounds(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages and requests share the bounds; a request beyond them is not held, because its sender repeats it."""
    monkeypatch.setattr(embedded_producer, "SETTLE_FRAMES", 4)
    rig.producer.publish_direct(OTHER, "channel", b"1", TTL)
    assert rig.send(b"2") == 1
    rig.producer.send_downstream(ask(1), rig.clock.now, 1)
    rig.arrives(ask(2), ask(3))
    rig.producer.send_downstream(ask(4), rig.clock.now, 4)
    assert rig.producer.held == 4
    rig.settle()
    questions = [wire.ASK.decode(frame).n for frame in rig.xpub.frames if wire.sub_kind(frame) == wire.ASK.kind]
    assert questions == [1, 2]


def test_a_held_message_ages(rig: Rig) -> None:
    """A message that is held has less time left to live when it is published."""
    rig.send(b"1")
    rig.settle()
    (frame,) = rig.xpub.frames
    assert wire.ttl_of(frame) == TTL - 1000 * SETTLE


def test_consumers_learn_that_a_lost_producer_was_replaced(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the former producer was reported as lost, the end of the outage is reported when this one begins."""
    monkeypatch.setattr(Former, "was_lost", True)
    rig = Rig(clock, monkeypatch)
    assert rig.client.out.changes == [LinkRestored(None)]
    assert rig.client.counters.reconnects == 1
    rig.producer.terminate()


def test_what_the_exchange_drops_is_counted(rig: Rig) -> None:
    """Messages that the exchange drops count as those of this process; frames that are no messages do not."""
    for number in (1, 2):
        job = wire.Enqueue(rig.client.inbox, number, TTL, 1, b"jobs", b"x")
        rig.producer.send_downstream(wire.ENQUEUE.encode(job), rig.clock.now, number)
    rig.arrives(wire.HELLO.encode(wire.Hello(wire.claimable(b"x" * 16), wire.VERSION, 1, 0)))
    assert rig.client.counters.dropped == {"queue_full": 1}


@pytest.mark.parametrize("frame", [wire.subscription, wire.unsubscription])
def test_no_peer_ends_the_producer_as_a_client_of_itself(rig: Rig, frame: Callable[[bytes], bytes]) -> None:
    """The inbox of the producer has no connection, and (un)subscriptions of others to it change nothing."""
    rig.arrives(frame(wire.inbox_topic(rig.client.inbox)))
    assert rig.client.inbox in rig.producer._exchange.clients


@pytest.mark.parametrize("bound, limit", [("SETTLE_FRAMES", 2), ("SETTLE_BYTES", 2 * SIZE)])
def test_what_was_dropped_leaves_its_room(rig: Rig, monkeypatch: pytest.MonkeyPatch, bound: str, limit: int) -> None:
    """A flush frees the room of the messages that it drops, and only the later messages are published."""
    monkeypatch.setattr(embedded_producer, bound, limit)
    assert rig.send(b"1", b"2", b"3") == 2
    rig.producer.drop_held()
    assert rig.producer.held == 0
    assert rig.send(b"4", b"5", b"6") == 2
    rig.settle()
    assert rig.xpub.payloads() == [b"4", b"5"]


def test_members_of_the_producers_own_process_get_what_is_not_held_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members in the producer's own process get every message, also a refused one, because they need no connection."""
    monkeypatch.setattr(embedded_producer, "SETTLE_FRAMES", 1)
    rig.client.memberships.completed(rig.client.join(G, "here", 9, None))
    assert rig.send(b"1", b"2") == 1
    assert [payload for _, payload, _ in rig.client.mailboxes.boxes["here"].mail] == [b"1", b"2"]
