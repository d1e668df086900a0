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
    """Offer a message while no other waits, as an owner does, and return whether it waits."""
    batch.alone -= 1
    return batch.alone < 0 and batch.begin(prefix, body, ttl)


def busy(batch: Batch) -> Batch:
    """Send as many messages as make the sender busy."""
    for _ in range(RUN):
        begins(batch)
    batch.take()
    return batch


def test_the_first_messages_leave_at_once(batch: Batch, clock: Clock) -> None:
    """The first messages leave at once, however fast: a handler that sends a few and then computes delays none."""
    assert not any(begins(batch) for _ in range(RUN + 1))  # the start of the run was unknown
    assert not batch.bodies
    assert not any(begins(batch) for _ in range(RUN))
    assert begins(batch, body=b"y")
    assert (batch.prefix, batch.ttl, batch.take()) == (G, TTL, [b"y"])


@pytest.mark.parametrize("after, waits", [(0.0, True), (WITHIN / 2, True), (2 * WITHIN, False), (60.0, False)])
def test_a_message_waits_only_right_behind_many_others(batch: Batch, clock: Clock, after: float, waits: bool) -> None:
    """A message waits only directly behind many others; a later one leaves at once, and so do its successors."""
    busy(batch)
    assert not begins(batch)
    busy(batch)
    clock.now += after
    assert begins(batch) is waits
    if not waits:
        assert not any(begins(batch) for _ in range(RUN))


def full(batch: Batch, *, size: int = 1) -> Batch:
    """Begin a batch, and add messages until it is full."""
    begins(busy(batch))
    busy(batch)
    assert begins(batch, body=b"x" * size)
    while batch.add(G, b"x" * size, TTL):
        pass
    return batch


def test_a_batch_is_bounded_in_messages(batch: Batch) -> None:
    """A batch has at most `MESSAGES` messages, because more would gain nothing."""
    assert len(full(batch).take()) == MESSAGES


@pytest.mark.parametrize("size, count", [(BYTES // 3, 3), (BYTES // 2 + 1, 1), (BYTES, 1)])
def test_a_batch_is_bounded_in_bytes(batch: Batch, size: int, count: int) -> None:
    """All bodies of a batch together have at most `BYTES` bytes."""
    assert len(full(batch, size=size).take()) == count


def test_every_socket_takes_every_batch() -> None:
    """The largest batch fits into the socket of every process, also of one that permits only small messages."""
    bodies = [b"x" * (BYTES // MESSAGES)] * MESSAGES
    frame = wire.ordered(b"G%b\0" % (b"g" * wire.MAX_NAME), bytes(8), 1, wire.FLAG_BATCH, TTL, wire.batch(bodies))
    assert len(wire.again(frame, TTL, 1, elsewhere=True, acknowledged=True)) < wire.MAX_OVERHEAD


def test_a_message_that_is_larger_than_a_batch_never_waits(batch: Batch) -> None:
    """A message that is larger than a batch leaves at once, because it would be a batch by itself."""
    begins(busy(batch))
    busy(batch)
    assert not begins(batch, body=b"x" * (BYTES + 1))


@pytest.mark.parametrize("prefix, ttl", [(H, TTL), (G, TTL - 1)])
def test_a_batch_has_one_destination_and_one_expiry(batch: Batch, prefix: bytes, ttl: int) -> None:
    """All messages of a batch have the same destination and expiry; any other message does not join it."""
    begins(busy(batch))
    busy(batch)
    assert begins(batch)
    assert not batch.add(prefix, b"x", ttl)


def test_batches_follow_each_other(batch: Batch, clock: Clock) -> None:
    """Another batch follows at once while the sender stays busy."""
    full(batch).take()
    clock.now += WITHIN / 2
    assert begins(batch)


def test_a_sender_to_many_destinations_does_not_wait(batch: Batch) -> None:
    """If a batch had a single message, the next ones leave at once: many destinations gain nothing from batches."""
    begins(busy(batch))
    busy(batch)
    assert begins(batch)
    assert batch.take() == [b"x"]
    assert not any(begins(batch, prefix) for prefix in (H, G) * (RUN // 2))
