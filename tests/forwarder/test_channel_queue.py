"""The queue of one normal channel."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from channels_zmq_forwarder.channel_queue import ENTRY_SIZE, ChannelQueue, Entry

A, B = b"a" * 16, b"b" * 16
FOREVER = 1e9


def entry(number: int, payload: bytes = b"") -> Entry:
    return Entry(number, FOREVER, 0.0, payload)


def filled(*numbers: int) -> ChannelQueue:
    queue = ChannelQueue()
    for number in numbers:
        queue.put(entry(number))
    return queue


def handed(queue: ChannelQueue) -> list[tuple[bytes, int]]:
    """Hand messages to readers; return the pairs of inbox and number."""
    out = []
    while queue.open_windows and queue.waiting:
        item = queue.take()
        out.append((queue.hand(item, keep=True)[0], item.number))
    return out


def reclaimed(queue: ChannelQueue, inbox: bytes, number: int) -> Entry | None:
    job = queue.reclaim(inbox, number, entry(number).payload)
    return job.entry if job is not None else None


def test_messages_leave_in_order() -> None:
    """Messages leave the queue first in, first out."""
    queue = filled(1, 2, 3)
    queue.open_window(A, 1, 9)
    assert handed(queue) == [(A, 1), (A, 2), (A, 3)]


def test_a_message_put_back_returns_to_its_place() -> None:
    """Messages that are handed back in any order return to their places in the queue."""
    queue = filled(1, 2, 3, 4, 5)
    queue.open_window(A, 1, 4)
    handed(queue)
    for number in (3, 1, 2, 4):
        assert reclaimed(queue, A, number) == entry(number)
        queue.put(entry(number))
    queue.open_window(A, 1, 99)
    assert [number for _, number in handed(queue)] == [1, 2, 3, 4, 5]


def test_a_message_that_is_removed_leaves_the_order() -> None:
    """A removed message leaves nothing in the order of the queue, whatever its place."""
    queue = filled(*range(100))
    for number in range(1, 100):
        queue.remove(number)
    assert queue.remove(50) is None
    assert len(queue._order) <= 2 * len(queue.waiting) + 16
    queue.open_window(A, 1, 9)
    assert handed(queue) == [(A, 0)]


def test_readers_take_turns() -> None:
    """Each reader gets one message in turn, in the order in which they opened their windows."""
    queue = filled(1, 2, 3, 4, 5)
    queue.open_window(A, 1, 9)
    queue.open_window(B, 1, 2)
    assert handed(queue) == [(A, 1), (B, 2), (A, 3), (B, 4), (A, 5)]


def test_a_window_is_absolute() -> None:
    """A window is an absolute limit, so that a repeated frame opens nothing."""
    queue = filled(1, 2, 3)
    queue.open_window(A, 1, 1)
    assert handed(queue) == [(A, 1)]
    queue.open_window(A, 1, 1)
    assert handed(queue) == []
    queue.open_window(A, 1, 2)
    assert handed(queue) == [(A, 2)]


def test_a_window_can_be_closed() -> None:
    """A lower limit closes the window, and the reader gets no more turns."""
    queue = filled(1)
    queue.open_window(A, 1, 5)
    queue.open_window(A, 1, 0)
    assert handed(queue) == []
    assert queue.open_windows == 0


def test_a_window_that_was_never_used_is_not_remembered() -> None:
    """A reader that leaves without a message leaves nothing in the queue."""
    queue = ChannelQueue()
    queue.open_window(A, 1, 5)
    queue.open_window(A, 1, 0)
    assert queue.idle


def test_a_used_window_is_remembered() -> None:
    """The jobs that a reader was given count until its session ends, even if its window closes."""
    queue = filled(1, 2)
    queue.open_window(A, 1, 1)
    assert handed(queue) == [(A, 1)]
    assert queue.open_window(A, 1, 0).handed == 1
    queue.open_window(A, 1, 1)
    assert handed(queue) == []


def test_a_reader_that_is_forgotten_gets_nothing() -> None:
    """A reader that is forgotten gets no message; the other readers get all of them."""
    queue = filled(1)
    queue.open_window(A, 1, 5)
    queue.open_window(B, 1, 5)
    queue.forget(A)
    assert queue.forget(A) is None
    assert handed(queue) == [(B, 1)]


def test_jobs_count_until_they_are_settled() -> None:
    """Jobs count until they are settled, which happens in the order of their hand-over.

    A lower count is late and ignored; a count beyond the jobs that were handed over is capped.
    """
    queue = filled(1, 2, 3)
    queue.open_window(A, 1, 9)
    handed(queue)
    credit = queue.credits[A]
    for settled, left in ((2, [3]), (1, [3]), (99, [])):
        queue.settle(A, credit, settled)
        assert list(credit.unsettled) == left
        assert queue.used == len(left)
    assert queue.holders == set()
    assert queue.size == 0


def test_a_job_that_is_handed_back_is_settled_at_once() -> None:
    """A job that is handed back is settled at once; the next report includes it and settles no other job."""
    queue = filled(1, 2, 3)
    queue.open_window(A, 1, 3)
    handed(queue)
    assert reclaimed(queue, A, 2) == entry(2)
    assert queue.reclaim(A, 2, b"") is None
    assert queue.reclaim(B, 3, b"") is None
    queue.settle(A, queue.credits[A], 1)
    assert list(queue.credits[A].unsettled) == [1, 3]
    queue.settle(A, queue.credits[A], 2)
    assert list(queue.credits[A].unsettled) == [3]


def test_a_queue_is_idle_when_nothing_depends_on_it() -> None:
    """A queue is idle once it has no messages, no readers and no jobs of ended sessions."""
    queue = filled(1)
    assert not queue.idle
    queue.open_window(A, 1, 1)
    handed(queue)
    credit = queue.forget(A)
    assert credit is not None
    queue.orphans[A, 1] = credit.unsettled
    assert not queue.idle
    assert reclaimed(queue, A, 1) == entry(1)
    assert queue.idle


def test_clearing_keeps_the_readers() -> None:
    """A flush drops messages and jobs and keeps the windows."""
    queue = filled(1, 2)
    queue.open_window(A, 1, 1)
    handed(queue)
    queue.clear()
    assert (queue.size, queue.used) == (0, 0)
    queue.open_window(A, 1, 2)
    queue.put(entry(3))
    assert handed(queue) == [(A, 3)]


def test_size_counts_payloads_and_entries() -> None:
    """The size includes an entry for each message, even an empty one, and for each job until it is settled."""
    queue = ChannelQueue()
    queue.put(entry(1, b"x" * 10))
    queue.put(entry(2))
    assert queue.size == 2 * ENTRY_SIZE + 10
    queue.open_window(A, 1, 9)
    handed(queue)
    assert queue.size == 2 * ENTRY_SIZE + 10
    queue.hand(entry(3, b"x" * 10), keep=False)
    assert queue.size == 3 * ENTRY_SIZE + 10
    assert queue.credits[A].unsettled[3].entry is None


class QueueAgainstModel(RuleBasedStateMachine):
    """The queue, compared with a set of messages and a window for each reader."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.number = ChannelQueue(), 0
        self.waiting: set[int] = set()
        self.held: dict[int, bytes] = {}
        self.windows: dict[bytes, list[int]] = {}

    @rule(size=st.integers(0, 9))
    def put(self, size: int) -> None:
        self.number += 1
        self.queue.put(entry(self.number, bytes(size)))
        self.waiting.add(self.number)

    @rule(who=st.sampled_from([A, B]), room=st.integers(0, 4))
    def open_window(self, who: bytes, room: int) -> None:
        handed = self.windows.get(who, [0])[0]
        self.queue.open_window(who, 1, handed + room)
        self.windows[who] = [handed, handed + room]
        if not handed + room:
            del self.windows[who]

    @rule(who=st.sampled_from([A, B]))
    def forget(self, who: bytes) -> None:
        credit = self.queue.forget(who)
        for job in credit.unsettled.values() if credit else ():
            self.queue.release(job)
        self.windows.pop(who, None)
        self.held = {number: owner for number, owner in self.held.items() if owner != who}

    @rule()
    def hand_over(self) -> None:
        for inbox, number in handed(self.queue):
            self.windows[inbox][0] += 1
            assert self.windows[inbox][0] <= self.windows[inbox][1], "beyond the window"
            assert number == min(self.waiting), "out of order"
            self.waiting.remove(number)
            self.held[number] = inbox
        open_readers = [window for window in self.windows.values() if window[0] < window[1]]
        assert not open_readers or not self.queue.waiting, "stranded"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        inbox = self.held.pop(number)
        handed_over = self.queue.credits[inbox].unsettled[number].entry
        assert handed_over is not None
        job = self.queue.reclaim(inbox, number, handed_over.payload)
        assert job is not None
        assert job.entry is not None
        self.queue.put(job.entry)
        self.waiting.add(number)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(set(self.held.values()))))
        credit = self.queue.credits[owner]
        first = next(iter(credit.unsettled))
        self.queue.settle(owner, credit, credit.settled + 1)
        assert self.held.pop(first) == owner

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        removed = self.queue.remove(number)
        assert removed is not None
        assert removed.number == number
        self.waiting.remove(number)

    @rule()
    def clear(self) -> None:
        self.queue.clear()
        self.waiting.clear()
        self.held.clear()

    @invariant()
    def books_balance(self) -> None:
        jobs = [job for credit in self.queue.credits.values() for job in credit.unsettled.values()]
        assert self.queue.waiting.keys() == self.waiting
        assert self.queue.size == sum(item.size for item in self.queue.waiting.values()) + sum(job.size for job in jobs)
        assert self.queue.used == len(self.waiting) + len(self.held)
        assert self.queue.unsettled == len(self.held)
        assert self.queue.credits.keys() == self.windows.keys()
        assert self.queue.holders == set(self.held.values())
        assert self.queue.open_windows == sum(handed < limit for handed, limit in self.windows.values())


TestQueueAgainstModel = QueueAgainstModel.TestCase
TestQueueAgainstModel.settings = settings(max_examples=60, stateful_step_count=40)
