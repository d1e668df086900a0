"""The queue of one plain channel."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from channels_zmq_forwarder.queues import ENTRY_SIZE, Entry, PlainQueue

A, B = b"a" * 16, b"b" * 16
FOREVER = 1e9


def entry(number, deadline=FOREVER, payload=b""):
    return Entry(number, deadline, 0.0, payload)


def filled(*numbers):
    queue = PlainQueue()
    for number in numbers:
        assert queue.put(entry(number), 100, 0)
    return queue


def handed(queue, now=0.0):
    return [(inbox, item.number) for inbox, _, item in queue.hand_over(now)]


def test_a_full_queue_refuses():
    """At most `capacity` messages wait."""
    queue = filled(1, 2)
    assert not queue.put(entry(3), 2, 0)
    assert len(queue.entries) == 2


def test_what_has_expired_makes_room():
    """A message whose time is over counts as gone, wherever in the queue it stands."""
    queue = filled(1)
    queue.put(entry(2, deadline=5), 2, 0)
    assert not queue.put(entry(3), 2, 4.9)
    assert queue.put(entry(3), 2, 5)
    assert [item.number for item in queue.entries] == [1, 3]
    assert queue.expired == 1


def test_what_has_expired_is_not_handed_over():
    """A reader gets the first message that still lives."""
    queue = filled()
    queue.put(entry(1, deadline=5), 9, 0)
    queue.put(entry(2), 9, 0)
    queue.open_window(A, 1, 5)
    assert handed(queue, now=5) == [(A, 2)]
    assert queue.expired == 1


def test_messages_leave_in_order():
    """First in, first out."""
    queue = filled(1, 2, 3)
    queue.open_window(A, 1, 9)
    assert handed(queue) == [(A, 1), (A, 2), (A, 3)]


def test_a_message_handed_back_returns_to_its_place():
    """Before what is younger, behind what is older, whatever the order of the hand-backs."""
    queue = filled(1, 2, 3, 4, 5)
    queue.open_window(A, 1, 4)
    handed(queue)
    for number in (3, 1, 2):
        queue.put_back(entry(number))
    queue.put_back(entry(4))
    assert [item.number for item in queue.entries] == [1, 2, 3, 4, 5]


def test_a_message_handed_back_finds_room_in_a_full_queue():
    """It was accepted once, so it is not refused later."""
    queue = filled(2, 3)
    queue.put_back(entry(1))
    assert not queue.put(entry(4), 3, 0)
    assert len(queue.entries) == 3


def test_readers_take_turns():
    """One message each, in the order in which they opened their windows."""
    queue = filled(1, 2, 3, 4, 5)
    queue.open_window(A, 1, 9)
    queue.open_window(B, 1, 2)
    assert handed(queue) == [(A, 1), (B, 2), (A, 3), (B, 4), (A, 5)]


def test_a_window_is_absolute():
    """Saying the same limit again opens nothing, so that a repeated frame does no harm."""
    queue = filled(1, 2, 3)
    queue.open_window(A, 1, 1)
    assert handed(queue) == [(A, 1)]
    queue.open_window(A, 1, 1)
    assert handed(queue) == []
    queue.open_window(A, 1, 2)
    assert handed(queue) == [(A, 2)]


def test_a_window_can_be_closed():
    """A limit that goes down takes the reader out of the turns."""
    queue = PlainQueue()
    queue.open_window(A, 1, 5)
    queue.open_window(A, 1, 0)
    queue.put(entry(1), 9, 0)
    assert handed(queue) == []
    assert queue.readers == 0


def test_a_window_that_was_never_used_is_not_remembered():
    """A reader that came and went without a message leaves nothing behind."""
    queue = PlainQueue()
    queue.open_window(A, 1, 5)
    queue.open_window(A, 1, 0)
    assert queue.idle


def test_a_used_window_is_remembered():
    """What was handed over counts for as long as the session does."""
    queue = filled(1, 2)
    queue.open_window(A, 1, 1)
    assert handed(queue) == [(A, 1)]
    assert queue.open_window(A, 1, 0).handed == 1
    queue.open_window(A, 1, 1)
    assert handed(queue) == []


def test_a_new_session_begins_at_nothing_handed():
    """The reader counts from zero again, and so does the queue; it keeps one turn."""
    queue = filled(1, 2, 3)
    queue.open_window(A, 1, 1)
    handed(queue)
    queue.open_window(A, 2, 1)
    queue.open_window(B, 1, 9)
    assert handed(queue) == [(A, 2), (B, 3)]


def test_a_new_session_of_an_open_window_takes_one_turn():
    """A reconnect does not double a reader's share."""
    queue = PlainQueue()
    queue.open_window(A, 1, 5)
    queue.open_window(A, 2, 1)
    for number in (1, 2):
        queue.put(entry(number), 9, 0)
    assert handed(queue) == [(A, 1)]


def test_a_reader_that_is_forgotten_gets_nothing():
    """Its messages go to the others."""
    queue = PlainQueue()
    queue.open_window(A, 1, 5)
    queue.open_window(B, 1, 5)
    queue.forget(A)
    queue.forget(A)
    queue.put(entry(1), 9, 0)
    assert handed(queue) == [(B, 1)]
    queue.open_window(B, 1, 1)
    queue.forget(B)
    assert queue.idle


def test_a_queue_is_idle_without_messages_and_readers():
    """Only then may it be forgotten."""
    queue = filled(1)
    assert not queue.idle
    queue.open_window(A, 1, 1)
    handed(queue)
    assert not queue.idle
    queue.forget(A)
    assert queue.idle


def test_clearing_keeps_the_readers():
    """A flush takes messages, not windows."""
    queue = filled(1, 2)
    queue.clear()
    assert queue.size == 0
    queue.open_window(A, 1, 1)
    queue.put(entry(3), 9, 0)
    assert handed(queue) == [(A, 3)]


def test_size_counts_payloads_and_entries():
    """Empty messages take memory too."""
    queue = PlainQueue()
    queue.put(entry(1, payload=b"x" * 10), 9, 0)
    queue.put(entry(2), 9, 0)
    assert queue.size == 2 * ENTRY_SIZE + 10


class QueueAgainstModel(RuleBasedStateMachine):
    """The queue beside a list of messages and a window for each reader."""

    def __init__(self):
        super().__init__()
        self.queue, self.now, self.number = PlainQueue(), 0.0, 0
        self.waiting, self.held, self.windows, self.seen_expired = {}, {}, {}, 0

    @rule(capacity=st.integers(0, 5), life=st.integers(0, 5), size=st.integers(0, 9))
    def put(self, capacity, life, size):
        self.number += 1
        item = Entry(self.number, self.now + life, self.now, bytes(size))
        living = [other for other in self.waiting.values() if other.deadline > self.now]
        accepted = self.queue.put(item, capacity, self.now)
        if len(self.waiting) < capacity:
            assert accepted
        else:
            assert accepted == (len(living) < capacity)
            self.waiting = {other.number: other for other in living}
        if accepted:
            self.waiting[item.number] = item

    @rule(who=st.sampled_from([A, B]), session=st.integers(1, 2), room=st.integers(0, 4))
    def open_window(self, who, session, room):
        known = self.windows.get(who)
        handed = known[1] if known and known[0] == session else 0
        self.queue.open_window(who, session, handed + room)
        self.windows[who] = [session, handed, handed + room]
        if not handed + room:
            del self.windows[who]

    @rule(who=st.sampled_from([A, B]))
    def forget(self, who):
        self.queue.forget(who)
        self.windows.pop(who, None)

    @rule()
    def hand_over(self):
        for inbox, session, item in self.queue.hand_over(self.now):
            window = self.windows[inbox]
            assert window[0] == session
            assert window[1] < window[2], "beyond the window"
            window[1] += 1
            older = [n for n, other in self.waiting.items() if n < item.number and other.deadline > self.now]
            assert not older, "out of order"
            assert item.deadline > self.now
            del self.waiting[item.number]
            self.held[item.number] = item
        open_readers = [window for window in self.windows.values() if window[1] < window[2]]
        assert not open_readers or not self.queue.entries, "stranded"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def put_back(self, data):
        item = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        self.queue.put_back(item)
        self.waiting[item.number] = item

    @rule(seconds=st.integers(0, 3), expire=st.booleans())
    def time_passes(self, seconds, expire):
        self.now += seconds
        if expire:
            self.queue.expire(self.now)

    @rule()
    def clear(self):
        self.queue.clear()
        self.waiting.clear()

    @invariant()
    def books_balance(self):
        numbers = [item.number for item in self.queue.entries]
        assert numbers == sorted(set(numbers))
        assert self.queue.size == sum(ENTRY_SIZE + len(item.payload) for item in self.queue.entries)
        assert self.queue.credits.keys() == self.windows.keys()
        self.waiting = {n: item for n, item in self.waiting.items() if n in numbers or item.deadline > self.now}
        assert set(numbers) == self.waiting.keys(), "a living message went missing, or a message came from nowhere"
        assert self.queue.readers == sum(handed < limit for _, handed, limit in self.windows.values())


TestQueueAgainstModel = QueueAgainstModel.TestCase
TestQueueAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
