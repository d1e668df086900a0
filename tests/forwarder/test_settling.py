"""The time at which a forwarder that has just started accepts producers."""

import pytest
from fakes import Clock

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.settling import BESIDE_OTHERS, SURE, has_settled

LEAST, MOST = 0.5, 5.0
INBOXES = [b"%016x" % number for number in range(3)]


def started(clock: Clock, *peers: int, serves: bool = False, history_bytes: int = 2**20) -> Exchange:
    """Return an exchange that has just started, with one client for each reported number of clients."""
    exchange = Exchange(b"instance", history_bytes=history_bytes, clock=clock)
    forwarders = wire.encode_forwarders([wire.KnownForwarder(b"tcp://a:1", b"tcp://a:2", serves)])
    for inbox, known in zip(INBOXES, peers, strict=False):
        exchange.upstream(wire.subscription(wire.inbox_topic(inbox)))
        exchange.upstream(wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, 1, known, forwarders)))
    return exchange


@pytest.mark.parametrize("peers", [(), (0,), (0, 0)])
def test_a_first_start_takes_a_fixed_time(clock: Clock, peers: tuple[int, ...]) -> None:
    """A first start settles for a fixed time, since no client knows how many others there are."""
    exchange = started(clock, *peers)
    assert not has_settled(exchange, LEAST - 0.01, LEAST, MOST)
    assert has_settled(exchange, LEAST, LEAST, MOST)


@pytest.mark.parametrize("peers, settled", [((3,), False), ((0, 3), False), ((3, 2, 0), True), ((1,), True)])
def test_a_restart_is_over_when_as_many_clients_are_back_as_one_knows_of(
    clock: Clock, peers: tuple[int, ...], settled: bool
) -> None:
    """A restart is over when as many clients are back as the largest reported number.

    Clients of which no other knows get half of the time.
    """
    exchange = started(clock, *peers)
    assert not has_settled(exchange, SURE * LEAST - 0.01, LEAST, MOST)
    assert has_settled(exchange, SURE * LEAST, LEAST, MOST) is settled
    assert has_settled(exchange, LEAST, LEAST, MOST) is settled


def test_without_replays_a_restart_takes_the_fixed_time_at_least(clock: Clock) -> None:
    """Without replays a restart takes at least the fixed time.

    An unknown client would otherwise miss the messages that were published before it was back.
    """
    exchange = started(clock, 1, history_bytes=0)
    assert not has_settled(exchange, LEAST - 0.01, LEAST, MOST)
    assert has_settled(exchange, LEAST, LEAST, MOST)


def test_clients_that_do_not_come_back_are_not_waited_for(clock: Clock) -> None:
    """Clients that do not reconnect are waited for only up to a maximum time, as the others cannot send meanwhile."""
    exchange = started(clock, 3)
    assert not has_settled(exchange, MOST - 0.01, LEAST, MOST)
    assert has_settled(exchange, MOST, LEAST, MOST)


def test_beside_others_a_forwarder_takes_its_time(clock: Clock) -> None:
    """Beside a serving forwarder, by which clients send meanwhile, a new one settles for longer."""
    exchange = started(clock, 3, serves=True)
    assert not has_settled(exchange, BESIDE_OTHERS - 0.01, LEAST, MOST)
    assert has_settled(exchange, BESIDE_OTHERS, LEAST, MOST)
    assert not has_settled(exchange, BESIDE_OTHERS, LEAST, BESIDE_OTHERS + 1)
