"""What is kept of the messages of the last seconds."""

from fakes import Clock

from channels_zmq_forwarder.history import BLOCK_BYTES, BLOCK_FRAMES, BLOCK_SECONDS, OVERHEAD, SECONDS, History


def relay(history: History, *frames: bytes) -> None:
    """Relay messages in one turn."""
    for frame in frames:
        history.record(frame)
    history.end_turn()


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
    history.end_turn()
    assert history.since(0.0) == []
    assert history.size == 0


def test_a_block_says_when_its_messages_were_relayed(clock: Clock) -> None:
    """From the turn of the first one to the turn of the last one."""
    history = History(2**20, clock)
    begun = clock.now
    relay(history, b"1")
    clock.now += BLOCK_SECONDS
    relay(history, b"2")
    clock.now += 1
    relay(history)
    relay(history, b"3", b"4")
    first, second = history.since(0.0)
    assert (first.since, first.until, first.frames) == (begun, begun + BLOCK_SECONDS, [b"1", b"2"])
    assert (second.since, second.until, second.frames) == (clock.now, clock.now, [b"3", b"4"])


def test_a_block_ends_with_a_turn_that_fills_it(clock: Clock) -> None:
    """By the number of its messages, or by their size."""
    history = History(2**30, clock)
    relay(history, *[b"x"] * BLOCK_FRAMES)
    relay(history, b"x" * BLOCK_BYTES)
    relay(history, b"x")
    assert [len(block.frames) for block in history.since(0.0)] == [BLOCK_FRAMES, 1, 1]


def test_what_is_older_than_asked_for_is_left_out(clock: Clock) -> None:
    """As far as its block tells."""
    history = History(2**20, clock)
    for number in range(4):
        relay(history, b"%d" % number)
        clock.now += 1
        relay(history, b"end of %d" % number)
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
    history.end_turn()
    assert (history.size, kept(history)) == (0, [])


def test_a_block_that_is_asked_for_is_as_old_as_its_last_message(clock: Clock) -> None:
    """Not as the question, or as turns that have relayed nothing."""
    history = History(2**20, clock)
    relay(history, b"x")
    relayed = clock.now
    clock.now += 1
    relay(history)
    assert [block.until for block in history.since(0.0)] == [relayed]
