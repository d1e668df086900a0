"""The actions that the steps of a client request: a frame and its size determine the path by which it leaves."""

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
    """Return the frame of a given size for a job that goes back to its queue."""
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
    """A frame leaves by the subscriber's path; a job too large for it, by the producers' path to its queue's home."""
    to = exchange if is_to_one else None
    out.send_upstream(frames, to)
    assert out.busy is bool(frames)
    taken = out.take()
    assert taken.upstream == [Upstream(frame, to) for frame in upstream]
    assert taken.replies == replies


def test_nothing_to_send_leaves_what_there_is_to_do(out: Output) -> None:
    """An empty list of frames leaves earlier actions pending."""
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
    """These actions need the connection's lock, and make the output busy until it is taken."""
    assert not out.busy
    ACTS[act](out)
    assert (out.busy, out.has_input) == (True, act == "input")
    out.take()
    assert (out.busy, out.has_input) == (False, False)


def test_readers_to_wake_make_an_output_busy_with_nothing(out: Output) -> None:
    """Readers to wake do not make the output busy, because they are woken after the release of the lock."""
    out.wake.append(Reader())
    assert not out.busy


def test_a_reply_is_for_the_home_of_its_key_or_for_one_exchange(out: Output, exchange: Attachment) -> None:
    """A reply is for the home of its key or for one exchange, keeps its order, and may have a TTL of its own."""
    replies = [Reply(b"1", b"key"), Reply(b"2", to=exchange), Reply(b"3", b"key", ttl=1.5)]
    for reply in replies:
        out.reply(reply)
    assert [(one.key, one.to, one.ttl) for one in out.take().replies] == [
        (b"key", None, None),
        (b"", exchange, None),
        (b"key", None, 1.5),
    ]


def test_what_is_done_once_the_lock_is_released_stays(out: Output) -> None:
    """Taking the output leaves link changes, in order, and readers, which are handled after the lock's release."""
    reader = Reader()
    changes: list[LinkChange] = [LinkLost(), LinkRestored(3)]
    for change in changes:
        out.change(change)
    out.wake.append(reader)
    taken = out.take()
    assert (taken.changes, taken.wake) == ([], [])
    assert (out.changes, out.wake) == (changes, [reader])


def test_what_was_taken_is_not_changed_by_what_follows(out: Output, exchange: Attachment) -> None:
    """Later actions do not change the output that was taken, which the connection processes while more are added."""
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
