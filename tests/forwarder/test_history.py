"""The history: the messages of the last seconds."""

import tracemalloc

import pytest
from fakes import Clock

from channels_zmq_forwarder.history import BUFFER_BYTES, SECONDS, SEPARATOR, History


def relay(history: History, *frames: bytes) -> None:
    for frame in frames:
        history.record(frame)


def block(history: History, *frames: bytes) -> None:
    """Relay messages that become a block of their own."""
    relay(history, *frames)
    history.end_block()


def kept(history: History, since: float = 0.0) -> list[bytes]:
    return [frame for block in history.since(since) for frame in block.frames]


def test_messages_are_kept_in_order(clock: Clock) -> None:
    """Messages are kept in order, including those of the current block."""
    history = History(2**20, clock)
    block(history, b"0", b"1")
    block(history, b"2")
    relay(history, b"3")
    relay(history, b"4")
    assert kept(history) == [b"%d" % number for number in range(5)]


def test_messages_are_kept_as_they_are(clock: Clock) -> None:
    """Messages are kept unchanged, even if they equal a part of a separator."""
    history = History(2**20, clock)
    messages = [b"x", SEPARATOR[:8], SEPARATOR[8:], b"\0" * 100_000, SEPARATOR[8:], SEPARATOR[:8]]
    block(history, *messages)
    assert kept(history) == messages


def test_a_block_without_messages_is_none(clock: Clock) -> None:
    """A block without messages, as when only control frames arrive, is not kept."""
    history = History(2**20, clock)
    block(history)
    assert history.since(0.0) == []
    assert history.size == 0


def test_a_block_says_until_when_its_messages_were_relayed(clock: Clock) -> None:
    """A block has the time at which it ended; none of its messages was relayed later."""
    history = History(2**20, clock)
    relay(history, b"1")
    clock.now += 0.05
    block(history, b"2", b"3")
    ended = clock.now
    clock.now += 1
    relay(history, b"4")
    first, second = history.since(0.0)
    assert (first.until, list(first.frames)) == (ended, [b"1", b"2", b"3"])
    assert (second.until, list(second.frames)) == (clock.now, [b"4"])


def test_what_is_older_than_asked_for_is_left_out(clock: Clock) -> None:
    """Blocks that ended before the requested time are left out."""
    history = History(2**20, clock)
    for number in range(4):
        block(history, b"%d" % number)
        clock.now += 1
        block(history, b"end of %d" % number)
    assert kept(history, clock.now - 1) == [b"end of 2", b"3", b"end of 3"]


def test_the_oldest_messages_go_when_there_are_too_many(clock: Clock) -> None:
    """The oldest messages are dropped when the history exceeds its bytes, which include the separators."""
    size = 100 * 10 + 99 * len(SEPARATOR)
    history = History(2 * size, clock)
    for number in range(3):
        block(history, *[b"%010d" % number] * 100)
    assert set(kept(history)) == {b"%010d" % 1, b"%010d" % 2}
    assert history.size == 2 * size


def test_messages_are_forgotten_in_time(clock: Clock) -> None:
    """Messages are dropped after some seconds, even if none follows them."""
    history = History(2**20, clock)
    assert history.due == float("inf")
    block(history, b"x")
    assert history.due == clock.now + SECONDS
    clock.now += SECONDS - 0.1
    history.forget()
    assert history.size
    clock.now += 0.1
    history.forget()
    assert (history.size, history.due, kept(history)) == (0, float("inf"), [])


@pytest.mark.parametrize("max_bytes", [2**20, 0])
def test_the_parts_of_record_do_the_same(clock: Clock, max_bytes: int) -> None:
    """`write` returns the length of its argument, as `record` expects, even if nothing is kept."""
    history = History(max_bytes, clock)
    relay(history, b"1")
    assert (history.write(b"two"), history.write(SEPARATOR)) == (3, len(SEPARATOR))
    relay(history, b"3")
    assert kept(history) == ([b"1", b"two", b"3"] if max_bytes else [])


def test_memory_of_a_large_block_is_given_back(clock: Clock) -> None:
    """The memory of a large block is freed with it: the block is copied, and its buffer shrinks to the usual size."""
    history = History(2**24, clock)
    tracemalloc.start()
    try:
        block(history, bytes(2**23))
        clock.now += SECONDS
        history.forget()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 2 * BUFFER_BYTES


def test_a_buffer_that_could_not_grow_is_replaced(clock: Clock) -> None:
    """A buffer that could not grow is replaced, since Python closes it.

    Its messages are lost, and later ones are kept.
    """
    history = History(2**20, clock)
    relay(history, b"lost")
    history._open.close()
    history.end_block()
    relay(history, b"kept")
    assert kept(history) == [b"kept"]


def test_a_flush_forgets_everything(clock: Clock) -> None:
    """A flush drops all messages, including those recorded since the last block."""
    history = History(2**20, clock)
    block(history, b"x")
    relay(history, b"y")
    history.clear()
    history.end_block()
    assert (history.size, kept(history)) == (0, [])
