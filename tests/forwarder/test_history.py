"""What is kept of the messages of the last seconds."""

from fakes import Clock

from channels_zmq_forwarder.history import BLOCK_BYTES, BLOCK_FRAMES, OVERHEAD, SECONDS, History


def relay(history: History, *frames: bytes) -> None:
    """Relay messages in one turn."""
    for frame in frames:
        history.record(frame)
    history.end_turn(sum(map(len, frames)))


def kept(history: History, since: float = 0.0) -> list[bytes]:
    return [frame for block in history.since(since) for frame in block.frames]


def test_messages_are_kept_in_order(clock: Clock) -> None:
    """Those of the current block, too."""
    history = History(2**20, clock)
    for number in range(2 * BLOCK_FRAMES + 1):
        relay(history, b"%d" % number)
    assert kept(history) == [b"%d" % number for number in range(2 * BLOCK_FRAMES + 1)]


def test_a_turn_without_messages_changes_nothing(clock: Clock) -> None:
    """Control frames come, too."""
    history = History(2**20, clock)
    relay(history)
    history.end_block()
    assert history.since(0.0) == []
    assert history.size == 0


def test_a_block_says_until_when_its_messages_were_relayed(clock: Clock) -> None:
    """No message of it came later."""
    history = History(2**20, clock)
    relay(history, b"1")
    clock.now += 0.05
    relay(history, b"2", b"3")
    history.end_block()
    ended = clock.now
    clock.now += 1
    relay(history, b"4")
    first, second = history.since(0.0)
    assert (first.until, first.frames) == (ended, [b"1", b"2", b"3"])
    assert (second.until, second.frames) == (clock.now, [b"4"])


def test_a_block_ends_with_a_turn_that_fills_it(clock: Clock) -> None:
    """By the number of its messages, or by the bytes of all frames."""
    history = History(2**30, clock)
    relay(history, *[b"x"] * BLOCK_FRAMES)
    relay(history, b"x" * BLOCK_BYTES)
    history.record(b"x")
    history.end_turn(BLOCK_BYTES)  # of frames that are not kept
    relay(history, b"x")
    assert [len(block.frames) for block in history.since(0.0)] == [BLOCK_FRAMES, 1, 1, 1]


def test_what_is_older_than_asked_for_is_left_out(clock: Clock) -> None:
    """As far as its block tells."""
    history = History(2**20, clock)
    for number in range(4):
        relay(history, b"%d" % number)
        history.end_block()
        clock.now += 1
        relay(history, b"end of %d" % number)
        history.end_block()
    assert kept(history, clock.now - 1) == [b"end of 2", b"3", b"end of 3"]


def test_the_oldest_messages_go_when_there_are_too_many(clock: Clock) -> None:
    """Each takes memory of its own beside its bytes."""
    size = BLOCK_FRAMES * (10 + OVERHEAD)
    history = History(2 * size, clock)
    for number in range(3):
        relay(history, *[b"%010d" % number] * BLOCK_FRAMES)
    assert set(kept(history)) == {b"%010d" % 1, b"%010d" % 2}
    assert history.size == 2 * size


def test_messages_are_forgotten_in_time(clock: Clock) -> None:
    """Also if nothing follows them."""
    history = History(2**20, clock)
    assert history.due == float("inf")
    relay(history, *[b"x"] * BLOCK_FRAMES)
    assert history.due == clock.now + SECONDS
    clock.now += SECONDS - 0.1
    history.forget()
    assert history.size
    clock.now += 0.1
    history.forget()
    assert (history.size, history.due, kept(history)) == (0, float("inf"), [])


def test_nothing_is_kept_without_memory_for_it(clock: Clock) -> None:
    """The function that records stays the same."""
    history = History(0, clock)
    record = history.record
    relay(history, *[b"x"] * BLOCK_FRAMES)
    assert (kept(history), history.record) == ([], record)


def test_a_flush_forgets_everything(clock: Clock) -> None:
    """Also what the current turn has recorded."""
    history = History(2**20, clock)
    relay(history, *[b"x"] * BLOCK_FRAMES)
    history.record(b"y")
    history.clear()
    history.end_turn(1)
    history.end_block()
    assert (history.size, kept(history)) == (0, [])
