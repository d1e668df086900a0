"""Which messages wait for the end of the turn, and which leave at once."""

import pytest
from fakes import Clock

from channels_zmq.client.batch import BYTES, MESSAGES, RUN, WITHIN, Batch
from channels_zmq_forwarder import wire

G, H = b"Gg\0", b"Gh\0"
TTL = 60_000


@pytest.fixture
def batch(clock: Clock) -> Batch:
    return Batch(clock)


def begins(batch: Batch, prefix: bytes = G, body: bytes = b"x", ttl: int = TTL) -> bool:
    """Do what an owner does with a message while no other waits; return whether it waits."""
    batch.alone -= 1
    return batch.alone < 0 and batch.begin(prefix, body, ttl)


def busy(batch: Batch) -> Batch:
    """Let the sender have sent as many messages as make it a busy one."""
    for _ in range(RUN):
        begins(batch)
    batch.take()
    return batch


def test_the_first_messages_leave_at_once(batch: Batch, clock: Clock) -> None:
    """However fast they follow each other: a handler that sends a few, and then computes, delays none."""
    assert not any(begins(batch) for _ in range(RUN + 1))  # since when the run lasts was unknown
    assert not batch.bodies
    assert not any(begins(batch) for _ in range(RUN))
    assert begins(batch, body=b"y")
    assert (batch.prefix, batch.ttl, batch.take()) == (G, TTL, [b"y"])


@pytest.mark.parametrize("after, waits", [(0.0, True), (WITHIN / 2, True), (2 * WITHIN, False), (60.0, False)])
def test_a_message_waits_only_right_behind_many_others(batch: Batch, clock: Clock, after: float, waits: bool) -> None:
    """One that comes later leaves at once, and so do those behind it."""
    busy(batch)
    assert not begins(batch)
    busy(batch)
    clock.now += after
    assert begins(batch) is waits
    if not waits:
        assert not any(begins(batch) for _ in range(RUN))


def full(batch: Batch, *, size: int = 1) -> Batch:
    """Begin a batch, and add what it has room for."""
    begins(busy(batch))
    busy(batch)
    assert begins(batch, body=b"x" * size)
    while batch.add(G, b"x" * size, TTL):
        pass
    return batch


def test_a_batch_is_bounded_in_messages(batch: Batch) -> None:
    """Beyond that there is nothing more to gain."""
    assert len(full(batch).take()) == MESSAGES


@pytest.mark.parametrize("size, count", [(BYTES // 3, 3), (BYTES // 2 + 1, 1), (BYTES, 1)])
def test_a_batch_is_bounded_in_bytes(batch: Batch, size: int, count: int) -> None:
    """All its bodies together."""
    assert len(full(batch, size=size).take()) == count


def test_every_socket_takes_every_batch() -> None:
    """Also that of a process which permits smaller messages only."""
    bodies = [b"x" * (BYTES // MESSAGES)] * MESSAGES
    frame = wire.ordered(b"G%b\0" % (b"g" * wire.MAX_NAME), bytes(8), 1, wire.FLAG_BATCH, TTL, wire.batch(bodies))
    assert len(wire.again(frame, TTL, 1, elsewhere=True, acknowledged=True)) < wire.MAX_OVERHEAD


def test_a_message_that_is_larger_than_a_batch_never_waits(batch: Batch) -> None:
    """It would be a batch of its own."""
    begins(busy(batch))
    busy(batch)
    assert not begins(batch, body=b"x" * (BYTES + 1))


@pytest.mark.parametrize("prefix, ttl", [(H, TTL), (G, TTL - 1)])
def test_a_batch_has_one_destination_and_one_expiry(batch: Batch, prefix: bytes, ttl: int) -> None:
    """Another message goes behind it."""
    begins(busy(batch))
    busy(batch)
    assert begins(batch)
    assert not batch.add(prefix, b"x", ttl)


def test_batches_follow_each_other(batch: Batch, clock: Clock) -> None:
    """As long as the sender stays busy."""
    full(batch).take()
    clock.now += WITHIN / 2
    assert begins(batch)


def test_a_sender_to_many_destinations_does_not_wait(batch: Batch) -> None:
    """A batch of one message gains nothing, so the next ones leave at once."""
    begins(busy(batch))
    busy(batch)
    assert begins(batch)
    assert batch.take() == [b"x"]
    assert not any(begins(batch, prefix) for prefix in (H, G) * (RUN // 2))
