"""What the steps of a client want done: a frame and its size in, the way that it leaves by out."""

from collections.abc import Callable

import pytest
from fakes import Clock, Reader

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.output import LinkChange, LinkLost, LinkRestored, Output, Reply, Upstream
from channels_zmq_forwarder import wire

INBOX = b"0123456789abcdef"


@pytest.fixture
def out() -> Output:
    return Output()


@pytest.fixture
def exchange(clock: Clock) -> Attachment:
    return Attachment(INBOX, 4, lambda cause, count: None, clock=clock)


def back(size: int, ttl: int = 2500) -> bytes:
    """A job that goes back to its queue, as a frame of so many bytes."""
    empty = wire.BACK.encode(wire.Back(INBOX, 7, ttl, b"jobs", b""))
    frame = wire.BACK.encode(wire.Back(INBOX, 7, ttl, b"jobs", b"x" * (size - len(empty))))
    assert len(frame) == size
    return frame


SMALL, LARGE = back(wire.MAX_UPSTREAM), back(wire.MAX_UPSTREAM + 1)
TO_QUEUE = Reply(LARGE, b"jobs", ttl=2.5)


@pytest.mark.parametrize(
    "frames, upstream, replies",
    [
        ([], [], []),
        ([b"1", b"2"], [b"1", b"2"], []),
        ([SMALL], [SMALL], []),
        ([LARGE], [], [TO_QUEUE]),
        ([b"1", LARGE, b"2"], [b"1", b"2"], [TO_QUEUE]),
    ],
    ids=["none", "in order", "the largest", "too large", "one too large"],
)
@pytest.mark.parametrize("is_to_one", [False, True])
def test_a_frame_goes_by_the_subscribers_way_unless_it_is_too_large(
    out: Output,
    exchange: Attachment,
    is_to_one: bool,
    frames: list[bytes],
    upstream: list[bytes],
    replies: list[Reply],
) -> None:
    """A large job goes back by the producers' way: to its queue's home, for as long as it may live."""
    to = exchange if is_to_one else None
    out.send_upstream(frames, to)
    assert out.busy is bool(frames)
    taken = out.take()
    assert taken.upstream == [Upstream(frame, to) for frame in upstream]
    assert taken.replies == replies


def test_nothing_to_send_leaves_what_there_is_to_do(out: Output) -> None:
    """In whatever order it came."""
    out.reply(Reply(b"1"))
    out.send_upstream([])
    assert out.busy


ACTS: dict[str, Callable[[Output], object]] = {
    "a frame": lambda out: out.send_upstream([b"1"]),
    "a reply": lambda out: out.reply(Reply(b"1")),
    "an outage": lambda out: out.change(LinkLost()),
    "its end": lambda out: out.change(LinkRestored(None)),
    "input": Output.input_found,
}


@pytest.mark.parametrize("act", ACTS)
def test_what_is_to_be_done_under_the_lock_makes_an_output_busy(out: Output, act: str) -> None:
    """Until it is taken."""
    assert not out.busy
    ACTS[act](out)
    assert (out.busy, out.has_input) == (True, act == "input")
    out.take()
    assert (out.busy, out.has_input) == (False, False)


def test_readers_to_wake_make_an_output_busy_with_nothing(out: Output) -> None:
    """They are woken once the lock is released."""
    out.wake.append(Reader())
    assert not out.busy


def test_a_reply_is_for_the_home_of_its_key_or_for_one_exchange(out: Output, exchange: Attachment) -> None:
    """It waits for `connect_timeout` unless it says how long; the order stays."""
    replies = [Reply(b"1", b"key"), Reply(b"2", to=exchange), Reply(b"3", b"key", ttl=1.5)]
    for reply in replies:
        out.reply(reply)
    assert [(one.key, one.to, one.ttl) for one in out.take().replies] == [
        (b"key", None, None),
        (b"", exchange, None),
        (b"key", None, 1.5),
    ]


def test_what_is_done_once_the_lock_is_released_stays(out: Output) -> None:
    """Changes of the link in their order, and readers; they are not in what was taken."""
    reader = Reader()
    changes: list[LinkChange] = [LinkLost(), LinkRestored(3)]
    for change in changes:
        out.change(change)
    out.wake.append(reader)
    taken = out.take()
    assert (taken.changes, taken.wake) == ([], [])
    assert (out.changes, out.wake) == (changes, [reader])


def test_what_was_taken_is_not_changed_by_what_follows(out: Output, exchange: Attachment) -> None:
    """The connection works through it while operations on sockets add more."""
    confirm = wire.Confirm(INBOX, 1, wire.Status.OK, b"i" * 8)
    out.send_upstream([b"1"])
    out.reply(Reply(b"2"))
    out.session.append((exchange, confirm))
    out.emptied = True
    taken = out.take()
    out.send_upstream([b"3"])
    out.reply(Reply(b"4"))
    out.session.append((exchange, confirm))
    out.input_found()
    assert (len(taken.upstream), len(taken.replies), len(taken.session)) == (1, 1, 1)
    assert (taken.emptied, out.emptied, taken.has_input) == (True, False, False)
    assert [one.frame for one in out.take().upstream] == [b"3"]
