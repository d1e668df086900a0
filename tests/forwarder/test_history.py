"""What is kept of the messages of the last seconds."""

from fakes import Clock

from channels_zmq_forwarder.history import OVERHEAD, SECONDS, History


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
    """Those of the current block, too."""
    history = History(2**20, clock)
    block(history, b"0", b"1")
    block(history, b"2")
    relay(history, b"3")
    relay(history, b"4")
    assert kept(history) == [b"%d" % number for number in range(5)]


def test_a_block_without_messages_is_none(clock: Clock) -> None:
    """Control frames come, too."""
    history = History(2**20, clock)
    block(history)
    assert history.since(0.0) == []
    assert history.size == 0


def test_a_block_says_until_when_its_messages_were_relayed(clock: Clock) -> None:
    """No message of it came later."""
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
    """As far as its block tells."""
    history = History(2**20, clock)
    for number in range(4):
        block(history, b"%d" % number)
        clock.now += 1
        block(history, b"end of %d" % number)
    assert kept(history, clock.now - 1) == [b"end of 2", b"3", b"end of 3"]


def test_the_oldest_messages_go_when_there_are_too_many(clock: Clock) -> None:
    """Each takes memory of its own beside its bytes."""
    size = 100 * (10 + OVERHEAD)
    history = History(2 * size, clock)
    for number in range(3):
        block(history, *[b"%010d" % number] * 100)
    assert set(kept(history)) == {b"%010d" % 1, b"%010d" % 2}
    assert history.size == 2 * size


def test_messages_are_forgotten_in_time(clock: Clock) -> None:
    """Also if nothing follows them."""
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


def test_nothing_is_kept_without_memory_for_it(clock: Clock) -> None:
    """The function that records stays the same."""
    history = History(0, clock)
    record = history.record
    block(history, b"x")
    assert (kept(history), history.record) == ([], record)


def test_a_flush_forgets_everything(clock: Clock) -> None:
    """Also what has been recorded since the last block."""
    history = History(2**20, clock)
    block(history, b"x")
    relay(history, b"y")
    history.clear()
    history.end_block()
    assert (history.size, kept(history)) == (0, [])
