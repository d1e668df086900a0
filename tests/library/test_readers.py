"""How many jobs of a plain channel the exchange may hand over to this process."""

import pytest
from fakes import Clock, Reader

from channels_zmq.mailboxes import Mailboxes
from channels_zmq.readers import ASK_EVERY, FORGET_AFTER, GRACE, NEVER, Readers
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Question

INBOX = b"0123456789abcdef"
SESSION = 7
PREFETCH = 4


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def readers(clock):
    readers = Readers(INBOX, PREFETCH, clock)
    readers.begin_session(SESSION)
    return readers


@pytest.fixture
def box(clock):
    return Mailboxes(clock=clock).open("jobs", 100)


def wait(readers, box):
    """Let one more reader wait; return the frames to send."""
    box.waiters.append(Reader())
    return readers.touched(box)


def job(number=1, *, payload=b"x", ttl=60_000, session=SESSION, channel=b"jobs"):
    return wire.Job(INBOX, session, number, ttl, channel, payload)


def handed(count, *, session=SESSION, channel=b"jobs"):
    return wire.Handed(INBOX, session, count, channel)


def ready(frames):
    return [wire.READY.decode(frame) for frame in frames if frame[:1] == b"R"]


def limits(frames):
    return [said.limit for said in ready(frames)]


def back(frames):
    return [wire.BACK.decode(frame) for frame in frames if frame[:1] == b"B"]


# The window


def test_the_first_reader_opens_the_window(readers, box):
    """Room for it, and `prefetch` more, said for this inbox, session and channel."""
    (said,) = ready(wait(readers, box))
    assert said == wire.Ready(INBOX, SESSION, 1 + PREFETCH, 0, 0, 0, b"jobs")


def test_each_waiting_reader_has_room(readers, box):
    """However many they are."""
    said = 0
    for count in range(1, 20):
        said = max([said, *limits(wait(readers, box))])
        assert said >= count


def test_without_prefetch_no_job_comes_before_its_reader(clock, box):
    """The window is as wide as the readers are many."""
    readers = Readers(INBOX, 0, clock)
    assert [limits(wait(readers, box)) for _ in range(3)] == [[1], [2], [3]]


def test_jobs_that_wait_here_take_the_room_of_others(readers, box):
    """A slow reader is not sent ever more."""
    wait(readers, box)
    for number in range(1 + PREFETCH):
        readers.arrived(job(number))
    assert readers.touched(box) == []
    box.take(0.0)
    assert readers.touched(box) == []


def test_the_window_moves_on_as_jobs_are_taken(readers, box):
    """It never closes on a reader that keeps coming, and not every job costs a frame."""
    said, frames = limits(wait(readers, box))[-1], 0
    box.waiters.clear()
    for number in range(100):
        assert number < said
        readers.arrived(job(number))
        box.take(0.0)
        moved = limits(readers.touched(box))
        frames += len(moved)
        said = max([said, *moved])
    assert frames <= 34


def test_the_limit_never_falls_while_readers_wait(readers, box):
    """Else a frame on its way would undo a later one."""
    said = limits(wait(readers, box))
    for number in range(20):
        readers.arrived(job(number))
        said += limits(readers.touched(box))
        box.take(0.0)
        said += limits(wait(readers, box))
    assert said == sorted(said)


# Jobs


def test_a_job_wakes_the_reader_whose_turn_it_is(readers, box):
    """And waits in the mailbox until it is taken."""
    wait(readers, box)
    first = box.waiters[0]
    assert readers.arrived(job(payload=b"1")) == (first, [])
    assert box.take(0.0) == b"1"


def test_a_job_passes_over_a_reader_that_is_not_usable(readers, box):
    """A cancelled reader takes nobody's job."""
    wait(readers, box)
    wait(readers, box)
    first, second = box.waiters
    first.usable = False
    assert readers.arrived(job())[0] is second


def test_a_job_lives_as_long_as_it_was_given(readers, box, clock):
    """Its milliseconds count from its arrival."""
    wait(readers, box)
    readers.arrived(job(ttl=1500))
    readers.arrived(job(payload=b"2"))
    assert box.take(clock.now + 1.5) == b"2"


def test_a_job_of_a_channel_that_nobody_read_goes_back(readers, clock):
    """To its old place, with the time that it has left."""
    waiter, frames = readers.arrived(job(5, payload=b"1", ttl=1500, channel=b"other"))
    assert waiter is None
    assert back(frames) == [wire.Back(INBOX, 5, 1500, b"other", b"1")]


def test_a_job_of_an_earlier_session_is_read_but_not_counted(readers, box):
    """The exchange that counts now did not hand it over."""
    wait(readers, box)
    readers.arrived(job(payload=b"1", session=SESSION - 1))
    readers.arrived(job(payload=b"2"))
    assert [box.take(0.0), box.take(0.0)] == [b"1", b"2"]
    assert limits(readers.hand_everything_back()) == [1]


# Back


def test_a_job_that_no_reader_takes_goes_back(readers, box, clock):
    """After the grace time, not before, in order, and the window closes with it."""
    wait(readers, box)
    for number in (1, 2):
        readers.arrived(job(number, ttl=1000))
    readers.gave_up("jobs")
    assert readers.keep(clock.now) == (clock.now + GRACE, [])
    clock.now += GRACE
    _, frames = readers.keep(clock.now)
    assert limits(frames) == [2]
    assert [(item.number, item.ttl) for item in back(frames)] == [(1, 900), (2, 900)]
    assert not box.mail


def test_the_window_closes_before_its_jobs_go_back(readers, box, clock):
    """Else the exchange would hand them to this process again at once."""
    wait(readers, box)
    readers.arrived(job())
    clock.now += GRACE
    _, frames = readers.keep(clock.now)
    assert [frame[:1] for frame in frames] == [b"R", b"B"]


def test_the_grace_time_counts_from_the_last_reader(readers, box, clock):
    """However long it had waited before it went."""
    wait(readers, box)
    clock.now += 10
    box.waiters.clear()
    readers.gave_up("jobs")
    assert readers.keep(clock.now) == (clock.now + GRACE, [])


def test_a_job_that_expired_does_not_go_back(readers, box, clock):
    """Nobody could read it."""
    wait(readers, box)
    readers.arrived(job(1, ttl=round(GRACE * 1000)))
    clock.now += GRACE
    assert back(readers.keep(clock.now)[1]) == []
    assert not box.mail


def test_an_open_window_without_readers_is_closed(readers, box, clock):
    """Else the exchange would hand over to a process where nobody reads, once."""
    wait(readers, box)
    box.waiters.clear()
    readers.gave_up("jobs")
    clock.now += GRACE
    assert limits(readers.keep(clock.now)[1]) == [0]
    assert readers.keep(clock.now) == (clock.now + NEVER, [])


def test_a_job_that_crossed_the_closing_goes_back_too(readers, box, clock):
    """It was on its way when the last reader went."""
    wait(readers, box)
    box.waiters.clear()
    clock.now += GRACE
    readers.keep(clock.now)
    readers.arrived(job(3))
    _, frames = readers.keep(clock.now)
    assert [item.number for item in back(frames)] == [3]
    assert limits(frames) == [1]


def test_a_reader_that_comes_back_in_time_keeps_the_window(readers, box, clock):
    """A worker that handles a job comes again at once."""
    wait(readers, box)
    readers.arrived(job())
    box.take(0.0)
    readers.touched(box)
    clock.now += GRACE / 2
    readers.touched(box)
    clock.now += GRACE / 2
    assert readers.keep(clock.now)[1] == []


def test_a_reader_after_the_closing_opens_the_window_again(readers, box, clock):
    """Limits are absolute: what was received stays counted."""
    wait(readers, box)
    readers.arrived(job())
    clock.now += GRACE
    readers.keep(clock.now)
    assert limits(wait(readers, box)) == [1 + 1 + PREFETCH]


def test_closing_hands_everything_back(readers, box):
    """At once, without a grace time."""
    wait(readers, box)
    readers.arrived(job(1))
    assert [item.number for item in back(readers.hand_everything_back())] == [1]
    assert not box.mail


def test_only_a_channel_that_was_read_can_be_given_up(readers, box):
    """A process channel's reader needs no window."""
    wait(readers, box)
    assert readers.gave_up("jobs")
    assert not readers.gave_up("other")


# Questions


def test_a_reader_that_waits_asks_now_and_then(readers, box, clock):
    """Once a second what was handed over, with the limit again, in case that got lost."""
    wait(readers, box)
    assert readers.keep(clock.now) == (clock.now + ASK_EVERY, [])
    clock.now += ASK_EVERY
    due, frames = readers.keep(clock.now)
    assert [(said.ask, said.limit) for said in ready(frames)] == [(1, 1 + PREFETCH)]
    assert due == clock.now + ASK_EVERY
    assert readers.keep(clock.now)[1] == []


def test_further_readers_do_not_put_the_question_off(readers, box, clock):
    """It is due when the first one has waited for a second."""
    wait(readers, box)
    clock.now += ASK_EVERY / 2
    wait(readers, box)
    clock.now += ASK_EVERY / 2
    assert [said.ask for said in ready(readers.keep(clock.now)[1])] == [1]


def test_a_question_never_takes_back_what_was_said(readers, box, clock):
    """All readers but one went; jobs for all of them may be on their way."""
    limit = max(limits([frame for _ in range(PREFETCH) for frame in wait(readers, box)]))
    while len(box.waiters) > 1:
        box.waiters.popleft()
    clock.now += ASK_EVERY
    assert limits(readers.keep(clock.now)[1]) == [limit]


def test_a_question_says_also_what_was_not_worth_a_frame(readers, box, clock):
    """Since one goes anyway."""
    wait(readers, box)
    readers.arrived(job())
    box.take(0.0)
    assert wait(readers, box) == []
    clock.now += ASK_EVERY
    assert limits(readers.keep(clock.now)[1]) == [1 + 1 + PREFETCH]


def test_a_lost_job_is_found_and_made_up_for(readers, box):
    """It is counted, once, and the window opens by one more."""
    wait(readers, box)
    readers.arrived(job())
    box.take(0.0)
    lost, frames = readers.told(handed(3))
    assert lost == 2
    assert limits(frames) == [3 + PREFETCH]
    assert readers.told(handed(3)) == (0, [])


@pytest.mark.parametrize("answer", [handed(0), handed(9, session=SESSION - 1), handed(9, channel=b"other")])
def test_an_answer_that_tells_nothing_new_is_ignored(readers, box, answer):
    """It came late, from an earlier session, or for a channel that nobody read."""
    wait(readers, box)
    assert readers.told(answer) == (0, [])


def test_an_answer_that_cannot_be_true_is_ignored(readers, box):
    """More than was ever allowed was not handed over; nor could a later limit be said."""
    wait(readers, box)
    assert readers.told(handed(2**64 - 1)) == (0, [])
    assert limits(wait(readers, box)) in ([], [2 + PREFETCH])


# Sessions


def test_a_new_session_counts_anew(readers, box):
    """It tells the exchange of every reader that waits, and asks."""
    wait(readers, box)
    readers.arrived(job())
    box.take(0.0)
    wait(readers, box)
    (said,) = ready(readers.begin_session(SESSION + 1))
    assert said == wire.Ready(INBOX, SESSION + 1, 1 + PREFETCH, 0, 0, 1, b"jobs")


def test_a_new_session_has_asked_already(readers, box, clock):
    """The next question is due a second later."""
    wait(readers, box)
    clock.now += 10
    readers.begin_session(SESSION + 1)
    assert readers.keep(clock.now) == (clock.now + ASK_EVERY, [])


def test_a_new_session_says_nothing_of_channels_without_readers(readers, box):
    """Their windows open with the next reader."""
    wait(readers, box)
    box.waiters.clear()
    assert readers.begin_session(SESSION + 1) == []
    assert limits(wait(readers, box)) == [1 + PREFETCH]


def test_a_channel_without_readers_is_forgotten_on_both_sides_after_a_while(readers, box, clock):
    """Until then its count must outlive its readers; a reader who comes later counts from nothing."""
    wait(readers, box)
    readers.arrived(job())
    box.waiters.clear()
    box.mail.clear()
    clock.now += GRACE
    assert [said.ask for said in ready(readers.keep(clock.now)[1])] == [Question.NOTHING]
    clock.now += FORGET_AFTER - GRACE - 0.01
    assert (readers.keep(clock.now)[1], box.pinned) == ([], True)
    clock.now += 0.01
    assert [(said.ask, said.limit) for said in ready(readers.keep(clock.now)[1])] == [(Question.FORGET, 1)]
    assert not box.pinned
    assert readers.keep(clock.now)[1] == []
    assert limits(wait(readers, box)) == [1 + PREFETCH]


def test_a_channel_whose_reader_waits_is_not_forgotten(readers, box, clock):
    """However long it waits."""
    wait(readers, box)
    clock.now += 2 * FORGET_AFTER
    assert [said.ask for said in ready(readers.keep(clock.now)[1])] == [Question.HANDED]
    assert box.pinned
