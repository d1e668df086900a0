"""Late frames: how a client handles those that were in flight when its own state changed."""

from collections.abc import Iterator

import pytest
import zmq
from actors import Actor, Outcome
from forwarders import free_ports
from peers import wait_until
from standins import StandIn

from channels_zmq import connections, serializers
from channels_zmq_forwarder import wire


def group_message(number: int, flags: int = 0) -> bytes:
    """Return a message of another process to the group `room`."""
    payload = serializers.pack(serializers.named("msgpack"), {"n": number})
    return wire.ordered(wire.group_topic("room"), b"sender..", number, flags, 60_000, payload)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    with zmq.Context() as context:
        stand_in = StandIn(context, pull, pub)
        yield stand_in
        stand_in.close()


@pytest.fixture
def actor(stand_in: StandIn) -> Iterator[Actor]:
    """Start an actor whose layer is connected to the stand-in."""
    actor = Actor()
    actor.open("DedicatedZmqChannelLayer", stand_in.config)
    with stand_in.serving():
        actor.call(0, "send", "jobs", {})
    yield actor
    actor.close()
    actor.end()


def test_a_message_that_crosses_a_discard_is_no_loss_later(stand_in: StandIn, actor: Actor) -> None:
    """A message that crosses a discard, and those sent before the next join, do not count as missed later."""
    channel = actor.call(0, "new_channel")
    with stand_in.serving():
        actor.call(0, "group_add", "room", channel)
    stand_in.publish(group_message(5, wire.FLAG_FIRST))
    assert actor.call(0, "receive", channel) == {"n": 5}
    actor.call(0, "group_discard", "room", channel)
    stand_in.publish(group_message(6))  # was in flight before the subscription ended
    stand_in.await_client()
    with stand_in.serving():
        actor.call(0, "group_add", "room", channel)
    stand_in.publish(group_message(9))
    assert actor.call(0, "receive", channel) == {"n": 9}
    assert actor.stats()["dropped"] == {}


def test_what_may_still_arrive_is_not_given_up(
    stand_in: StandIn, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gap is not given up while its messages may still arrive.

    A process that is behind reads newer messages from one connection before older ones from another.
    """
    channel = actor.call(0, "new_channel")
    with stand_in.serving():
        actor.call(0, "group_add", "room", channel)
    stand_in.publish(group_message(5, wire.FLAG_FIRST))
    assert actor.call(0, "receive", channel) == {"n": 5}
    (connection,) = connections.connections()
    asked: list[float] = []

    def is_behind(now: float, since: float) -> bool:
        asked.append(since)
        return True

    monkeypatch.setattr(connection._transport, "is_behind", is_behind)
    stand_in.publish(group_message(7))
    wait_until(lambda: len(asked) > 0)
    stand_in.publish(group_message(6))
    assert [actor.call(0, "receive", channel) for _ in range(2)] == [{"n": 6}, {"n": 7}]
    assert actor.stats()["dropped"] == {}


def test_what_a_flush_has_dropped_is_no_loss(stand_in: StandIn, actor: Actor) -> None:
    """Messages that a flush has dropped do not count as lost, though the sequence numbers include them.

    The exchange drops messages until every client has emptied its mailboxes.
    """
    channel = actor.call(0, "new_channel")
    prefix = wire.direct_prefix(stand_in.client)
    for number in (5, 9):
        payload = serializers.pack(serializers.named("msgpack"), {"n": number})
        body = wire.direct_body(channel, payload)
        stand_in.publish(wire.ordered(prefix, b"sender..", number, 0, 60_000, body))
        assert actor.call(0, "receive", channel) == {"n": number}
        stand_in.publish(wire.EMPTY.encode(wire.Empty(stand_in.client, number)))
        stand_in.await_client()
    assert actor.stats()["dropped"] == {}


def test_a_join_returns_once_its_subscription_is_in_force(stand_in: StandIn, actor: Actor) -> None:
    """Each join of a group waits until the group's subscription is in force; a later one returns at once."""
    first, second, third = (actor.call(0, "new_channel") for _ in range(3))
    stand_in.holds_syncs = True
    joins = [actor.begin(0, "group_add", "room", channel) for channel in (first, second)]
    stand_in.serve_until(lambda: len(stand_in.held) == 2)
    stand_in.await_client()
    assert actor.stats()["groups"] == 1
    assert actor.finish(joins[1], cancel=True) is Outcome.CANCELLED
    stand_in.answer_sync(stand_in.held[0])
    assert actor.finish(joins[0]) is None
    assert actor.call(0, "group_add", "room", third) is None


def test_a_join_is_asked_for_behind_the_first_hello() -> None:
    """A join is requested after the first hello.

    Otherwise it returns before the forwarder knows this client, and a flush by another process misses it.
    """
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    actor = Actor()
    actor.open("DedicatedZmqChannelLayer", {"pull_socket_address": pull, "pub_socket_address": pub})
    join = actor.begin(0, "group_add", "room", actor.call(0, "new_channel"))
    while not actor.stats()["groups"]:
        pass
    with zmq.Context() as context:
        stand_in = StandIn(context, pull, pub)
        stand_in.holds_syncs = True
        stand_in.serve_until(lambda: stand_in.held)
        greeted = stand_in.client
        stand_in.answer_sync(stand_in.held[0])
        assert actor.finish(join) is None
        actor.close()
        actor.end()
        stand_in.close()
    assert greeted


def test_another_process_is_answered_once_the_subscription_is_in_force(stand_in: StandIn, actor: Actor) -> None:
    """A join for another process is confirmed once its subscription is in force, as a message may follow at once."""
    channel = actor.call(0, "new_channel")
    stand_in.holds_syncs = True
    number = stand_in.ask(1, b"room", channel.encode())
    stand_in.serve_until(lambda: stand_in.held)
    stand_in.await_client()
    assert number not in stand_in.confirmed
    stand_in.answer_sync(stand_in.held[0])
    stand_in.serve_until(lambda: number in stand_in.confirmed)


def test_the_answer_to_an_abandoned_join_confirms_no_later_one(stand_in: StandIn, actor: Actor) -> None:
    """The answer to an abandoned join confirms no later one.

    After a join, a discard and a second join, a third join waits for the answer to the second subscription.
    """
    first, second, third = (actor.call(0, "new_channel") for _ in range(3))
    stand_in.holds_syncs = True
    joins = [actor.begin(0, "group_add", "room", first)]
    actor.call(0, "group_discard", "room", first)
    joins.append(actor.begin(0, "group_add", "room", second))
    stand_in.serve_until(lambda: len(stand_in.held) == 2)
    stand_in.answer_sync(stand_in.held[0])
    stand_in.await_client()
    assert actor.finish(joins[0]) is None
    joins.append(actor.begin(0, "group_add", "room", third))
    stand_in.await_client()
    third_result = actor.finish(joins[2], cancel=True)
    actor.finish(joins[1], cancel=True)
    assert third_result is Outcome.CANCELLED, "it returned before its subscription was in force"
