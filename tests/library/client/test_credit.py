"""The number of jobs of a normal channel that the exchange may hand over to this process."""

from collections import Counter
from collections.abc import Iterator
from math import inf

import pytest
from fakes import Clock, Reader

from channels_zmq.client.credit import ASK_EVERY, FORGET_AFTER, GRACE, REPEAT_EVERY, WOKEN_GRACE, Credit
from channels_zmq.client.mailboxes import Delivery, Mailbox, Mailboxes, Payload
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Question

INBOX = b"0123456789abcdef"
SESSION = 7
PREFETCH = 4


@pytest.fixture
def dropped() -> Counter[str]:
    """Return the counter of dropped messages, by cause."""
    return Counter()


@pytest.fixture
def credit(clock: Clock, dropped: Counter[str]) -> Credit:
    credit = Credit(INBOX, PREFETCH, lambda cause, count: dropped.update({cause: count}), clock)
    credit.begin_session(SESSION, is_same=False)
    return credit


@pytest.fixture
def mailboxes(clock: Clock) -> Iterator[Mailboxes[Reader]]:
    """Return mailboxes; after each test their count of waiting messages must equal the sum over all mailboxes."""
    mailboxes: Mailboxes[Reader] = Mailboxes(lambda cause, count: None, clock=clock)
    yield mailboxes
    assert mailboxes.waiting == sum(len(box.mail) for box in mailboxes.boxes.values())


@pytest.fixture
def box(mailboxes: Mailboxes[Reader]) -> Mailbox[Reader]:
    return mailboxes.open("jobs", 100)


def ignore(cause: str, count: int) -> None:
    """Ignore a drop."""


def wait(credit: Credit, box: Mailbox[Reader]) -> list[bytes]:
    """Let one more reader wait, and return the frames to send."""
    box.waiters.append(Reader())
    return credit.touched(box)


def leave(credit: Credit, box: Mailbox[Reader]) -> None:
    """Let all readers give up."""
    box.waiters.clear()
    credit.gave_up(box)


def job(
    number: int = 1, *, payload: bytes = b"x", ttl: int = 60_000, session: int = SESSION, channel: bytes = b"jobs"
) -> wire.Job:
    """Return a job whose ordinal equals its number."""
    return wire.Job(INBOX, session, number, number, ttl, channel, payload)


def take(box: Mailbox[Reader]) -> Payload | None:
    return box.mail.popleft()[1] if box.mail else None


def handed(count: int, *, session: int = SESSION, channel: bytes = b"jobs") -> wire.Handed:
    return wire.Handed(INBOX, session, count, channel)


def total(count: int, *, session: int = SESSION) -> wire.HandedTotal:
    return wire.HandedTotal(INBOX, session, count)


def query(number: int = 9, *, session: int = SESSION, channel: bytes = b"jobs") -> wire.Query:
    return wire.Query(INBOX, number, session, channel)


def ready(frames: list[bytes]) -> list[wire.Ready]:
    return [wire.READY.decode(frame) for frame in frames if frame[:1] == b"R"]


def limits(frames: list[bytes]) -> list[int]:
    return [frame.limit for frame in ready(frames)]


def back(frames: list[bytes]) -> list[wire.Back]:
    return [wire.BACK.decode(frame) for frame in frames if frame[:1] == b"B"]


def questions(frames: list[bytes]) -> list[wire.Total]:
    return [wire.TOTAL.decode(frame) for frame in frames if frame[:1] == b"T"]


# The window


def test_the_first_reader_opens_the_window(credit: Credit, box: Mailbox[Reader]) -> None:
    """The first reader's window has room for that reader and `prefetch` more, for this inbox, session and channel."""
    (sent,) = ready(wait(credit, box))
    assert sent == wire.Ready(INBOX, SESSION, 1 + PREFETCH, 0, 0, 0, b"jobs")
    assert box.is_normal


def test_each_waiting_reader_has_room(credit: Credit, box: Mailbox[Reader]) -> None:
    """However many readers wait, the window has room for each of them."""
    sent = 0
    for count in range(1, 20):
        sent = max([sent, *limits(wait(credit, box))])
        assert sent >= count


def test_without_prefetch_no_job_comes_before_its_reader(clock: Clock, box: Mailbox[Reader]) -> None:
    """Without prefetch the window is as wide as the number of readers, so no job arrives before its reader."""
    credit = Credit(INBOX, 0, ignore, clock)
    credit.begin_session(SESSION, is_same=False)
    assert [limits(wait(credit, box)) for _ in range(3)] == [[1], [2], [3]]


def test_jobs_that_wait_here_take_the_room_of_others(credit: Credit, box: Mailbox[Reader]) -> None:
    """Jobs that wait in the mailbox occupy room in the window, so that a slow reader does not receive ever more."""
    wait(credit, box)
    for number in range(1 + PREFETCH):
        credit.arrived(job(number))
    assert credit.touched(box) == []
    take(box)
    assert credit.touched(box) == []


def test_the_window_moves_on_as_jobs_are_taken(credit: Credit, box: Mailbox[Reader]) -> None:
    """The window advances as jobs are taken: it never closes on an active reader, and 100 jobs cost up to 34 frames."""
    limit, frames = limits(wait(credit, box))[-1], 0
    box.waiters.clear()
    for number in range(100):
        assert number < limit
        credit.arrived(job(number))
        take(box)
        moved = limits(credit.touched(box))
        frames += len(moved)
        limit = max([limit, *moved])
    assert frames <= 34


def test_the_limit_does_not_fall_while_readers_keep_coming(credit: Credit, box: Mailbox[Reader]) -> None:
    """The limit never falls while readers continue, because an earlier frame in transit would undo a later one."""
    sent = limits(wait(credit, box))
    for number in range(20):
        credit.arrived(job(number))
        sent += limits(credit.touched(box))
        take(box)
        sent += limits(wait(credit, box))
    assert sent == sorted(sent)


# Jobs


def test_a_job_wakes_the_reader_whose_turn_it_is(credit: Credit, box: Mailbox[Reader]) -> None:
    """A job wakes the reader whose turn it is, and stays in the mailbox until it is taken."""
    wait(credit, box)
    first = box.waiters[0]
    assert credit.arrived(job(payload=b"1")) == (first, [])
    assert [delivery for _, _, delivery in box.mail] == [Delivery(credit, SESSION, 1, 1)]
    assert take(box) == b"1"


def test_a_job_that_arrives_twice_is_taken_once(credit: Credit, box: Mailbox[Reader]) -> None:
    """A job that arrives twice is taken once, by its ordinal, which counts from 1 in each session."""
    wait(credit, box)
    for payload in (b"1", b"again"):
        credit.arrived(job(payload=payload))
    assert [take(box), take(box)] == [b"1", None]


def test_a_gap_between_jobs_shows_that_some_are_lost(
    credit: Credit, box: Mailbox[Reader], dropped: Counter[str]
) -> None:
    """The jobs in a gap between ordinals are lost, and count as received, so that the total agrees afterwards."""
    wait(credit, box)
    waiter = box.waiters[0]
    assert credit.arrived(job(4)) == (waiter, [])
    assert credit.counted_in_total(total(4)) == []
    assert credit.counted(handed(4)) == []
    assert +dropped == {"lost_delivery": 3}


def test_a_job_passes_over_a_reader_that_is_not_usable(credit: Credit, box: Mailbox[Reader]) -> None:
    """A cancelled reader is skipped and does not take a job from another reader."""
    for _ in range(2):
        wait(credit, box)
    first, second = box.waiters
    first.usable = False
    assert credit.arrived(job())[0] is second


def test_a_job_expires_when_its_time_is_over(
    credit: Credit, mailboxes: Mailboxes[Reader], box: Mailbox[Reader], clock: Clock
) -> None:
    """A job expires when its milliseconds, which count from its arrival, are over."""
    wait(credit, box)
    credit.arrived(job(ttl=1500))
    credit.arrived(job(2, payload=b"2"))
    clock.now += 1.5
    assert mailboxes.take(box) == b"2"


def test_a_job_of_a_channel_that_nobody_read_goes_back(credit: Credit) -> None:
    """A job of a channel without a reader returns to its old place in the queue with its remaining time."""
    waiter, frames = credit.arrived(job(5, payload=b"1", ttl=1500, channel=b"other"))
    assert waiter is None
    assert back(frames) == [wire.Back(INBOX, 5, 1500, b"other", b"1")]


def test_a_job_of_an_earlier_session_is_ignored(credit: Credit, box: Mailbox[Reader]) -> None:
    """A job of an earlier session is ignored, because the exchange puts it back: it would be read twice."""
    wait(credit, box)
    assert credit.arrived(job(payload=b"1", session=SESSION - 1)) == (None, [])
    credit.arrived(job(1, payload=b"2"))
    assert [take(box), take(box)] == [b"2", None]
    assert limits(credit.hand_everything_back()) == [1]


# Back


def test_a_job_that_no_reader_takes_goes_back(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """A job that no reader takes goes back in order after the grace time, not before, and the window closes with it."""
    wait(credit, box)
    for number in (1, 2):
        credit.arrived(job(number, ttl=1000))
    credit.gave_up(box)
    assert credit.keep(clock.now + GRACE / 2) == []
    clock.now += GRACE
    frames = credit.keep(clock.now)
    assert limits(frames) == [2]
    assert [(item.number, item.ttl) for item in back(frames)] == [(1, 900), (2, 900)]
    assert not box.mail


def test_the_grace_time_counts_from_when_a_reader_is_woken(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """The grace time counts from the wake-up of a reader, however long it waited: it needs time to take its jobs."""
    wait(credit, box)
    credit.keep(clock.now + GRACE)
    clock.now += 10
    for number in (1, 2):
        credit.arrived(job(number))
    assert back(credit.keep(clock.now + WOKEN_GRACE - 0.01)) == []
    clock.now += WOKEN_GRACE
    assert [item.number for item in back(credit.keep(clock.now))] == [1, 2]


def test_a_woken_reader_that_gives_up_has_no_more_time_than_others(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """If a woken reader gives up, its job goes back after the usual grace time, because no reader will take it."""
    wait(credit, box)
    credit.arrived(job())
    leave(credit, box)
    clock.now += GRACE
    assert [item.number for item in back(credit.keep(clock.now))] == [1]


def test_a_job_whose_reader_never_comes_goes_back_although_others_wait(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """A job whose woken reader does not take it goes back, and the window reopens for others, which may get the job."""
    wait(credit, box)
    wait(credit, box)
    credit.arrived(job())
    assert len(box.waiters) == 1
    clock.now += WOKEN_GRACE
    frames = credit.keep(clock.now)
    assert [frame[:1] for frame in frames[:4]] == [b"R", b"B", b"T", b"R"]
    assert limits(frames) == [1, 1 + 1 + PREFETCH]
    assert not box.mail
    assert limits(credit.keep(clock.now + REPEAT_EVERY)) == [1 + 1 + PREFETCH]


def test_the_window_closes_before_its_jobs_go_back(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """The window closes before its jobs go back; otherwise the exchange would hand them over to this process again."""
    wait(credit, box)
    credit.arrived(job())
    clock.now += WOKEN_GRACE
    assert [frame[:1] for frame in credit.keep(clock.now)[:2]] == [b"R", b"B"]


def test_the_grace_time_counts_from_the_last_reader(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """The grace time counts from the moment when the last reader leaves, however long that reader had waited."""
    wait(credit, box)
    credit.keep(clock.now + GRACE)
    clock.now += 10
    leave(credit, box)
    assert limits(credit.keep(clock.now + GRACE - 0.01)) == []
    assert limits(credit.keep(clock.now + GRACE)) == [0]


def test_an_expired_job_does_not_go_back(
    credit: Credit, box: Mailbox[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """An expired job is counted and does not go back, because no process could read it."""
    wait(credit, box)
    credit.arrived(job(ttl=round(WOKEN_GRACE * 1000)))
    clock.now += WOKEN_GRACE
    assert back(credit.keep(clock.now)) == []
    assert not box.mail
    assert +dropped == {"expired": 1}


def test_an_announcement_in_a_mailbox_of_jobs_does_not_go_back(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """An announcement in a mailbox of jobs does not go back, because it is not a job of the exchange."""
    wait(credit, box)
    announcement = (clock.now + 60, b"announcement", None)
    box.append(announcement)
    credit.arrived(job())
    assert [item.payload for item in back(credit.hand_everything_back())] == [b"x"]
    assert list(box.mail) == [announcement]


def test_an_open_window_without_readers_is_closed(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """A window without readers is closed, once; otherwise the exchange would hand over jobs that nobody reads."""
    wait(credit, box)
    leave(credit, box)
    clock.now += GRACE
    assert limits(credit.keep(clock.now)) == [0]
    assert limits(credit.keep(clock.now + FORGET_AFTER / 2)) == []


def test_a_job_that_crossed_the_closing_goes_back_at_once(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """A job that was in transit when the window closed goes back at once."""
    wait(credit, box)
    leave(credit, box)
    clock.now += GRACE
    credit.keep(clock.now)
    credit.arrived(job(1))
    assert credit.due <= clock.now
    frames = credit.keep(clock.now)
    assert [item.number for item in back(frames)] == [1]
    assert limits(frames) == [1]


def test_a_reader_that_comes_back_in_time_keeps_the_window(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """A reader that returns within the grace time, as a worker does after each job, keeps the window open."""
    wait(credit, box)
    credit.arrived(job())
    take(box)
    credit.touched(box)
    start = clock.now
    clock.now += GRACE / 2
    credit.touched(box)
    assert credit.keep(start + GRACE) == []
    assert limits(credit.keep(clock.now + GRACE)) == [1]


def test_a_reader_after_the_closing_opens_the_window_again(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """A reader after the closing reopens the window with an absolute limit: jobs received before stay counted."""
    wait(credit, box)
    credit.arrived(job())
    clock.now += WOKEN_GRACE
    credit.keep(clock.now)
    assert limits(wait(credit, box)) == [1 + 1 + PREFETCH]


def test_stopping_hands_everything_back(credit: Credit, box: Mailbox[Reader], mailboxes: Mailboxes[Reader]) -> None:
    """Stopping hands back the jobs of every channel at once."""
    other = mailboxes.open("other", 9)
    for one in (box, other):
        wait(credit, one)
    credit.arrived(job(1))
    credit.arrived(job(1, channel=b"other"))
    assert [(item.channel, item.number) for item in back(credit.hand_everything_back())] == [
        (b"jobs", 1),
        (b"other", 1),
    ]
    assert not box.mail


def test_giving_up_on_another_channel_changes_nothing(credit: Credit, mailboxes: Mailboxes[Reader]) -> None:
    """Giving up on a process-specific channel changes nothing, because its reader needs no window."""
    credit.gave_up(mailboxes.open("other", 9))
    assert credit.due == inf


# Two exchanges


@pytest.fixture
def other(clock: Clock) -> Credit:
    """Return the credit of another exchange, for the same readers."""
    other = Credit(INBOX, PREFETCH, ignore, clock)
    other.begin_session(SESSION, is_same=False)
    return other


def wait_at_both(credit: Credit, other: Credit, box: Mailbox[Reader]) -> tuple[list[bytes], list[bytes]]:
    """Let one more reader wait, and return the frames for each exchange."""
    return wait(credit, box), other.touched(box)


def test_a_reader_has_room_at_every_exchange(credit: Credit, other: Credit, box: Mailbox[Reader]) -> None:
    """A reader has room at each exchange, so that whichever has a job first may hand it over."""
    assert [limits(frames) for frames in wait_at_both(credit, other, box)] == [[1 + PREFETCH]] * 2
    assert box.windows == 2


def test_jobs_of_another_exchange_take_the_room_of_others_too(
    credit: Credit, other: Credit, box: Mailbox[Reader]
) -> None:
    """Jobs of another exchange occupy room too, so that all exchanges together do not send a slow reader ever more."""
    wait(credit, box)
    box.waiters.clear()
    for number in range(1, 1 + PREFETCH):
        credit.arrived(job(number))
    assert limits(wait(other, box)) == [1]


def test_each_exchange_gets_back_what_it_has_handed_over(
    credit: Credit, other: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """Each exchange gets back the jobs that it handed over, in order: the same number at two exchanges is two jobs."""
    wait_at_both(credit, other, box)
    for number in (1, 2):
        credit.arrived(job(number, payload=b"c%d" % number))
        other.arrived(job(number, payload=b"o%d" % number))
    clock.now += WOKEN_GRACE
    frames = credit.keep(clock.now)
    assert [(item.number, item.payload) for item in back(frames)] == [(1, b"c1"), (2, b"c2")]
    assert [payload for _, payload, _ in box.mail] == [b"o1", b"o2"]
    assert limits(frames) == [2]
    assert [item.payload for item in back(other.keep(clock.now))] == [b"o1", b"o2"]
    assert not box.mail


def test_a_job_of_another_exchange_says_nothing_about_settled_jobs(
    credit: Credit, other: Credit, box: Mailbox[Reader]
) -> None:
    """Each exchange counts its own settled jobs, whatever jobs of another exchange are in the mailbox."""
    wait_at_both(credit, other, box)
    credit.arrived(job())
    other.arrived(job())
    assert take(box) == b"x"
    assert [ready(one.queried(query()))[0].settled for one in (credit, other)] == [1, 0]


def test_a_channel_is_normal_as_long_as_an_exchange_has_a_window(
    credit: Credit, other: Credit, box: Mailbox[Reader]
) -> None:
    """A channel is normal while any exchange has a window for it; leaving one exchange does not affect the other."""
    wait_at_both(credit, other, box)
    credit.detach()
    assert (box.windows, box.is_normal) == (1, True)
    assert other.arrived(job())[0] is not None
    other.detach()
    assert (box.windows, box.is_normal) == (0, False)
    assert credit.due == inf


def test_a_reader_may_come_back_after_an_exchange_was_left(credit: Credit, box: Mailbox[Reader]) -> None:
    """A reader that returns after the process left an exchange opens a window that counts from 0."""
    wait(credit, box)
    credit.arrived(job())
    credit.detach()
    credit.begin_session(SESSION + 1, is_same=False)
    wait(credit, box)
    assert box.windows == 1


# Questions


def test_one_question_a_second_is_asked_for_all_channels(
    credit: Credit, mailboxes: Mailboxes[Reader], clock: Clock
) -> None:
    """A single question a second covers all channels, however many windows are open."""
    for number in range(100):
        wait(credit, mailboxes.open(str(number), 9))
    asked = []
    for _ in range(30):
        clock.now += ASK_EVERY / 10
        asked += questions(credit.keep(clock.now))
    assert asked == [wire.Total(INBOX, SESSION)] * 3


def test_further_readers_do_not_put_the_question_off(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """Further readers do not delay the question, which is due a second after the first one began to wait."""
    wait(credit, box)
    clock.now += ASK_EVERY / 2
    wait(credit, box)
    assert credit.due <= clock.now + ASK_EVERY / 2
    clock.now += ASK_EVERY / 2
    assert len(questions(credit.keep(clock.now))) == 1


def test_without_windows_nothing_is_asked(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """Questions stop with the last window and start again with the next one."""
    assert credit.due == inf
    wait(credit, box)
    leave(credit, box)
    for _ in range(2):
        clock.now += FORGET_AFTER
        credit.keep(clock.now)
    assert credit.due == inf
    wait(credit, box)
    assert credit.due <= clock.now + ASK_EVERY


def test_without_a_session_nothing_is_asked(clock: Clock, box: Mailbox[Reader]) -> None:
    """Without a session no question is sent, because no exchange could answer."""
    credit = Credit(INBOX, PREFETCH, ignore, clock)
    wait(credit, box)
    clock.now += ASK_EVERY
    assert questions(credit.keep(clock.now)) == []
    assert credit.due > clock.now


def test_a_waiting_reader_repeats_its_limit_now_and_then(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """A waiting reader repeats its limit from time to time, as the exchange may have had no room for the channel."""
    wait(credit, box)
    times = [GRACE, GRACE + REPEAT_EVERY - 1, GRACE + REPEAT_EVERY]
    assert [limits(credit.keep(clock.now + after)) for after in times] == [[5], [], [5]]


@pytest.mark.parametrize("answer", [total(1), total(0), total(9, session=SESSION - 1)])
def test_a_total_that_matches_asks_nothing(credit: Credit, box: Mailbox[Reader], answer: wire.HandedTotal) -> None:
    """A total that equals the number of received jobs, or belongs to an earlier session, causes no question."""
    wait(credit, box)
    credit.arrived(job())
    assert credit.counted_in_total(answer) == []


def test_a_total_that_shows_a_loss_asks_about_each_open_window(
    credit: Credit, mailboxes: Mailboxes[Reader], clock: Clock
) -> None:
    """A total that shows a loss causes a question for each open window; a closed one cannot lose a job unnoticed."""
    for name in ("jobs", "other", "closed"):
        wait(credit, mailboxes.open(name, 9))
    leave(credit, mailboxes.open("closed", 9))
    clock.now += GRACE
    credit.keep(clock.now)
    asked = ready(credit.counted_in_total(total(1)))
    assert [(frame.channel, frame.ask) for frame in asked] == [(b"jobs", Question.HANDED), (b"other", Question.HANDED)]


def test_a_lost_job_is_counted_and_the_window_opens_for_another(
    credit: Credit, box: Mailbox[Reader], dropped: Counter[str]
) -> None:
    """A lost job is counted once, so that the total agrees afterwards, and the window advances to admit another."""
    wait(credit, box)
    credit.arrived(job())
    take(box)
    assert limits(credit.counted(handed(3))) == [3 + PREFETCH]
    assert credit.counted(handed(3)) == []
    assert +dropped == {"lost_delivery": 2}
    assert credit.counted_in_total(total(3)) == []


@pytest.mark.parametrize("answer", [handed(0), handed(2, session=SESSION - 1), handed(2, channel=b"other")])
def test_a_count_without_news_is_ignored(credit: Credit, box: Mailbox[Reader], answer: wire.Handed) -> None:
    """A count that is late, of an earlier session, or for a channel without a reader is ignored."""
    wait(credit, box)
    assert credit.counted(answer) == []


def test_an_impossible_count_is_ignored(credit: Credit, box: Mailbox[Reader]) -> None:
    """A count above every limit that was sent is impossible and ignored; otherwise no later limit could be sent."""
    wait(credit, box)
    assert credit.counted(handed(2**64 - 1)) == []
    assert limits(wait(credit, box)) in ([], [2 + PREFETCH])


def test_jobs_up_to_the_largest_limit_can_be_lost(
    credit: Credit, box: Mailbox[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """Jobs up to the largest limit that was sent can be lost: the window closed while they were in transit."""
    wait(credit, box)
    leave(credit, box)
    clock.now += GRACE
    credit.keep(clock.now)
    credit.counted(handed(1 + PREFETCH))
    assert +dropped == {"lost_delivery": 1 + PREFETCH}


@pytest.mark.parametrize("taken, settled", [(0, 0), (1, 1), (2, 2)])
def test_a_query_is_answered_by_the_number_of_settled_jobs(
    credit: Credit, box: Mailbox[Reader], taken: int, settled: int
) -> None:
    """The answer to a query contains its number and the number of settled jobs, those no longer waiting here."""
    wait(credit, box)
    for number in (1, 2):
        credit.arrived(job(number))
    for _ in range(taken):
        take(box)
    (answer,) = ready(credit.queried(query(9)))
    assert (answer.settled, answer.answers, answer.limit) == (settled, 9, 1 + PREFETCH)


def test_jobs_that_went_back_are_settled(credit: Credit, box: Mailbox[Reader]) -> None:
    """Jobs that went back count as settled, because the exchange has them again."""
    wait(credit, box)
    credit.arrived(job())
    (closing,) = ready(credit.hand_everything_back())
    (answer,) = ready(credit.queried(query()))
    assert answer.settled == 1
    assert closing.limit == 1


def test_a_forgotten_channel_is_settled_altogether(credit: Credit) -> None:
    """For a forgotten channel the answer is the largest number, which the exchange reads as all that it handed over."""
    (answer,) = ready(credit.queried(query(9, channel=b"other")))
    assert answer == wire.Ready(INBOX, SESSION, 0, 2**64 - 1, 9, Question.FORGET, b"other")


@pytest.mark.parametrize("channel", [b"jobs", b"other"])
def test_a_query_of_an_earlier_session_is_ignored(credit: Credit, box: Mailbox[Reader], channel: bytes) -> None:
    """A query of an earlier session is ignored, because the exchange that sent it has ended that session."""
    wait(credit, box)
    assert credit.queried(query(session=SESSION - 1, channel=channel)) == []


# Sessions


def reported(credit: Credit) -> list[wire.Received]:
    """Leave the session, and return the reports to the exchange."""
    return [wire.RECEIVED.decode(frame) for frame in credit.leave_session()]


def test_before_a_new_session_the_exchange_learns_what_has_arrived(
    credit: Credit, mailboxes: Mailboxes[Reader]
) -> None:
    """Before a new session, the exchange gets the number of jobs received and read for each open window."""
    for name in ("jobs", "other"):
        wait(credit, mailboxes.open(name, 9))
    credit.arrived(job())
    take(mailboxes.boxes["jobs"])
    assert reported(credit) == [
        wire.Received(INBOX, SESSION, 1, b"jobs"),
        wire.Received(INBOX, SESSION, 0, b"other"),
    ]


@pytest.mark.parametrize("is_open", [True, False])
def test_a_job_of_a_session_that_was_left_is_ignored(credit: Credit, box: Mailbox[Reader], is_open: bool) -> None:
    """A job of a session that was left is ignored: the exchange, knowing it as not received, hands it over again."""
    wait(credit, box)
    if not is_open:
        credit.end_session()
    assert [one.received for one in reported(credit)] == [0]
    assert credit.arrived(job()) == (None, [])
    assert not box.mail
    assert [one.received for one in reported(credit)] == [0]


def test_what_has_arrived_is_reported_until_a_session_begins(credit: Credit, box: Mailbox[Reader]) -> None:
    """The report on received jobs is repeated until a session begins, because each lost connection may have lost it."""
    wait(credit, box)
    credit.arrived(job())
    take(box)
    reports = [reported(credit) for _ in range(3)]
    assert reports == [[wire.Received(INBOX, SESSION, 1, b"jobs")]] * 3
    wait(credit, box)
    credit.begin_session(SESSION + 1, is_same=False)
    assert reported(credit) == [wire.Received(INBOX, SESSION + 1, 0, b"jobs")]


def went_back(credit: Credit, box: Mailbox[Reader], clock: Clock, *jobs: wire.Job) -> None:
    """Let jobs arrive and go back unread."""
    for one in jobs:
        credit.arrived(one)
    leave(credit, box)
    clock.now += GRACE
    credit.keep(clock.now)


@pytest.mark.parametrize(("loses_frames", "received"), [(True, 1), (False, 3)])
def test_jobs_that_went_back_last_are_not_reported_as_received(
    credit: Credit, box: Mailbox[Reader], clock: Clock, loses_frames: bool, received: int
) -> None:
    """If the connection loses frames, the last jobs that went back are not reported: their return may be lost too."""
    wait(credit, box)
    credit.arrived(job(1))
    take(box)
    went_back(credit, box, clock, job(2))
    went_back(credit, box, clock, job(3))  # it was in transit
    (frame,) = credit.leave_session(loses_frames=loses_frames)
    assert wire.RECEIVED.decode(frame).received == received


@pytest.mark.parametrize("is_same", [False, True])
@pytest.mark.parametrize("is_proved", [False, True])
@pytest.mark.parametrize("payload, back", [(b"x", 1), (bytes(wire.MAX_UPSTREAM), 0)])
def test_jobs_that_went_back_before_one_was_read_are_reported_as_received(
    credit: Credit,
    box: Mailbox[Reader],
    clock: Clock,
    dropped: Counter[str],
    is_same: bool,
    is_proved: bool,
    payload: bytes,
    back: int,
) -> None:
    """Jobs that went back before a job was read are reported as received; otherwise that one would be read twice.

    They count as lost unless the answer to the question behind them proves that they have arrived, or the exchange has
    ended with all that it had. Large ones go by the producers' way.
    """
    wait(credit, box)
    went_back(credit, box, clock, job(1, payload=payload))
    if is_proved:
        credit.counted_in_total(total(1))
    wait(credit, box)
    credit.arrived(job(2))
    take(box)
    assert [one.received for one in reported(credit)] == [2]
    credit.begin_session(SESSION + 1, is_same=is_same)
    assert dropped == Counter(lost_delivery=0 if is_proved or not is_same else back)


def test_an_answer_to_an_earlier_question_proves_no_return(
    credit: Credit, box: Mailbox[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """Only a total that was asked for behind the returned jobs shows that they have arrived."""
    wait(credit, box)
    clock.now += ASK_EVERY
    credit.keep(clock.now)
    went_back(credit, box, clock, job(1))
    credit.counted_in_total(total(1))
    wait(credit, box)
    credit.arrived(job(2))
    take(box)
    reported(credit)
    credit.begin_session(SESSION + 1, is_same=True)
    assert dropped == Counter(lost_delivery=1)


@pytest.mark.parametrize("last", [job(3, payload=bytes(wire.MAX_UPSTREAM)), job(3, ttl=1)])
@pytest.mark.parametrize("at_once", [False, True])
def test_jobs_that_went_back_before_or_beside_one_that_settles_them_count_as_lost(
    credit: Credit, box: Mailbox[Reader], clock: Clock, dropped: Counter[str], last: wire.Job, at_once: bool
) -> None:
    """A large or an expired job settles all that went back before it, so that the exchange would put none back."""
    wait(credit, box)
    if at_once:
        went_back(credit, box, clock, job(1), job(2), last)
    else:
        went_back(credit, box, clock, job(1), job(2))
        went_back(credit, box, clock, last)
    dropped.clear()
    assert [one.received for one in reported(credit)] == [3]
    credit.begin_session(SESSION + 1, is_same=True)
    assert dropped == Counter(lost_delivery=2)


def test_jobs_of_an_earlier_instance_that_went_back_count_as_lost(
    credit: Credit, box: Mailbox[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """The present exchange has not handed them over, so the report cannot say that they have not arrived."""
    wait(credit, box)
    for one in (job(1), job(2)):
        credit.arrived(one)
    credit.leave_session()
    credit.begin_session(SESSION + 1, is_same=False)
    went_back(credit, box, clock, job(1, session=SESSION + 1))
    assert [one.received for one in reported(credit)] == [0]
    credit.begin_session(SESSION + 2, is_same=True)
    assert dropped == Counter(lost_delivery=2)


def test_a_job_that_expires_behind_an_unread_one_leaves_that_one_unread(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """The exchange puts back every job from the first unread one on, also if a later one has expired here."""
    wait(credit, box)
    for one in (job(1), job(2, ttl=20)):
        credit.arrived(one)
    box.drop_expired(clock.now + 1.0)
    assert len(box.mail) == 1
    assert [one.received for one in reported(credit)] == [0]


def test_jobs_that_went_back_in_an_earlier_session_are_not_reported(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """Jobs that went back in an earlier session are not reported, because ordinals start again in each session."""
    wait(credit, box)
    went_back(credit, box, clock, job(1), job(2))
    credit.leave_session()
    credit.begin_session(SESSION + 1, is_same=True)
    wait(credit, box)
    credit.arrived(job(1, session=SESSION + 1))
    take(box)
    assert [one.received for one in reported(credit)] == [1]


@pytest.mark.parametrize("is_same", [True, False])
def test_an_unread_job_of_a_session_that_was_left_is_read_once(
    credit: Credit, box: Mailbox[Reader], is_same: bool
) -> None:
    """An unread job of a session that was left is read once: here, unless the same instance puts it back."""
    wait(credit, box)
    credit.arrived(job(1, payload=b"read"))
    take(box)
    credit.arrived(job(2, payload=b"unread"))
    assert reported(credit) == [wire.Received(INBOX, SESSION, 1, b"jobs")]
    assert not box.mail
    credit.begin_session(SESSION + 1, is_same=is_same)
    assert [payload for _, payload, _ in box.mail] == ([] if is_same else [b"unread"])
    assert credit.readable() == ([] if is_same or not box.waiters else [box])


def test_an_unread_job_of_another_instance_goes_back_if_nobody_reads_it(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """An unread job of another instance goes back to the present one if nobody reads it, under its own number."""
    wait(credit, box)
    credit.arrived(job(1))
    box.waiters.clear()
    credit.leave_session()
    credit.begin_session(SESSION + 1, is_same=False)
    clock.now += WOKEN_GRACE
    backs = [wire.BACK.decode(frame).number for frame in credit.keep(clock.now) if frame[:1] == b"B"]
    assert (backs, list(box.mail)) == ([1], [])


def test_an_unread_job_is_counted_if_its_exchange_is_forgotten(
    credit: Credit, box: Mailbox[Reader], dropped: Counter[str]
) -> None:
    """An unread job that was withheld for the next session counts as lost if its exchange is forgotten first."""
    wait(credit, box)
    credit.arrived(job(1))
    credit.leave_session()
    credit.detach()
    assert +dropped == {"lost_delivery": 1}


def test_a_job_that_is_withheld_during_a_flush_is_dropped(credit: Credit, box: Mailbox[Reader]) -> None:
    """A flush drops a job that is withheld for the next session, although it is in no mailbox."""
    wait(credit, box)
    credit.arrived(job(1))
    box.waiters.clear()
    credit.leave_session()
    credit.empty()
    credit.begin_session(SESSION + 1, is_same=False)
    assert list(box.mail) == []


def test_a_session_without_windows_does_not_repeat_the_report_of_an_earlier_one(
    credit: Credit, box: Mailbox[Reader]
) -> None:
    """A session without windows does not repeat an earlier report: it was received, or no session would have begun."""
    wait(credit, box)
    box.waiters.clear()
    reported(credit)
    credit.begin_session(SESSION + 1, is_same=False)
    assert reported(credit) == []


@pytest.mark.parametrize("frame", ["handed", "total", "query"])
def test_what_the_exchange_says_of_a_session_that_was_left_is_ignored(
    credit: Credit, box: Mailbox[Reader], frame: str
) -> None:
    """Counts and queries of a session that was left are ignored, because the report has settled its counts."""
    wait(credit, box)
    reported(credit)
    match frame:
        case "handed":
            assert credit.counted(wire.Handed(INBOX, SESSION, 1, b"jobs")) == []
        case "total":
            assert credit.counted_in_total(total(1)) == []
        case "query":
            assert credit.queried(query()) == []


def test_a_reader_that_comes_between_two_sessions_opens_no_window(credit: Credit, box: Mailbox[Reader]) -> None:
    """A reader that starts to wait between two sessions opens no window; the next session opens it."""
    wait(credit, box)
    reported(credit)
    assert wait(credit, box) == []
    assert limits(credit.begin_session(SESSION + 1, is_same=False)) == [2 + PREFETCH]


def test_before_the_first_session_nothing_has_arrived(clock: Clock, box: Mailbox[Reader]) -> None:
    """Before the first session there is nothing to report, although a reader may already wait."""
    credit = Credit(INBOX, PREFETCH, ignore, clock)
    wait(credit, box)
    assert credit.leave_session() == []


def test_a_channel_that_was_closed_throughout_the_last_session_is_not_resumed(
    credit: Credit, box: Mailbox[Reader]
) -> None:
    """A channel that was closed throughout the last session is not reported, because no job can be in transit to it."""
    wait(credit, box)
    leave(credit, box)
    credit.begin_session(SESSION + 1, is_same=False)
    assert credit.leave_session() == []


def test_a_new_session_counts_anew(credit: Credit, box: Mailbox[Reader]) -> None:
    """A new session counts from 0 and opens the window for the readers that wait."""
    wait(credit, box)
    credit.arrived(job())
    take(box)
    wait(credit, box)
    (sent,) = ready(credit.begin_session(SESSION + 1, is_same=False))
    assert sent == wire.Ready(INBOX, SESSION + 1, 1 + PREFETCH, 0, 0, 0, b"jobs")
    assert credit.counted_in_total(total(0, session=SESSION + 1)) == []


def test_jobs_of_the_last_session_that_wait_here_are_not_counted_in_the_new_one(
    credit: Credit, box: Mailbox[Reader]
) -> None:
    """Jobs of the last session that wait here occupy room in the new one, but are not settled in it."""
    wait(credit, box)
    credit.arrived(job())
    wait(credit, box)
    (sent,) = ready(credit.begin_session(SESSION + 1, is_same=False))
    assert (sent.limit, sent.settled) == (1 + PREFETCH - 1, 0)


def test_a_new_session_opens_no_window_without_readers(credit: Credit, box: Mailbox[Reader]) -> None:
    """A new session opens no window without readers; the next reader opens it."""
    wait(credit, box)
    box.waiters.clear()
    assert credit.begin_session(SESSION + 1, is_same=False) == []
    assert limits(wait(credit, box)) == [1 + PREFETCH]


def test_jobs_of_the_last_session_go_back_in_the_new_one(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """Unread jobs of the last session go back in the new one with their old numbers, and do not count in its window."""
    wait(credit, box)
    credit.arrived(job(payload=b"1"))
    leave(credit, box)
    credit.begin_session(SESSION + 1, is_same=False)
    clock.now += GRACE
    frames = credit.keep(clock.now)
    assert [(item.number, item.payload) for item in back(frames)] == [(1, b"1")]
    assert [(frame.session, frame.limit, frame.settled) for frame in ready(frames)] == [(SESSION + 1, 0, 0)]


# The end of a session


@pytest.mark.parametrize("what", ["touched", "kept", "handed back", "forgotten"])
def test_nothing_is_sent_between_two_sessions(credit: Credit, box: Mailbox[Reader], clock: Clock, what: str) -> None:
    """Between two sessions nothing is sent: the connection is down, or the exchange has all jobs and soon ends."""
    wait(credit, box)
    credit.arrived(job())
    credit.end_session()
    match what:
        case "touched":
            frames = [frame for _ in range(10) for frame in wait(credit, box)]
        case "kept":
            leave(credit, box)
            clock.now += max(GRACE, ASK_EVERY)
            frames = credit.keep(clock.now)
        case "handed back":
            frames = credit.hand_everything_back()
        case "forgotten":
            take(box)
            leave(credit, box)
            for _ in range(2):
                clock.now += FORGET_AFTER
                frames = credit.keep(clock.now)
            assert not box.is_normal
    assert frames == []


def test_jobs_that_have_arrived_can_be_read_after_the_session(credit: Credit, box: Mailbox[Reader]) -> None:
    """Jobs that have arrived can be read after the end of the session, and are reported at the next one."""
    wait(credit, box)
    credit.arrived(job(payload=b"1"))
    credit.end_session()
    assert take(box) == b"1"
    assert [one.received for one in reported(credit)] == [1]


def test_no_total_is_asked_for_after_the_session(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """After the end of a session no total is asked for until the next one begins, and then a second later."""
    wait(credit, box)
    credit.end_session()
    for _ in range(3):
        clock.now += ASK_EVERY
        assert questions(credit.keep(clock.now)) == []
    credit.begin_session(SESSION + 1, is_same=False)
    clock.now += ASK_EVERY
    assert questions(credit.keep(clock.now)) == [wire.Total(INBOX, SESSION + 1)]


# Forgetting


def test_a_channel_without_readers_is_forgotten_on_both_sides_after_a_while(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """A channel without readers is forgotten on both sides only after a while: its count must outlive its readers."""
    wait(credit, box)
    credit.arrived(job())
    box.clear()
    leave(credit, box)
    clock.now += GRACE
    assert [frame.ask for frame in ready(credit.keep(clock.now))] == [Question.NOTHING]
    clock.now += FORGET_AFTER - 0.01
    assert (ready(credit.keep(clock.now)), box.is_normal) == ([], True)
    clock.now += 0.01
    assert [(frame.ask, frame.limit) for frame in ready(credit.keep(clock.now))] == [(Question.FORGET, 1)]
    assert not box.is_normal
    assert limits(wait(credit, box)) == [1 + PREFETCH]


def test_a_channel_whose_reader_waits_is_not_forgotten(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """A channel with a waiting reader is not forgotten, however long the reader waits."""
    wait(credit, box)
    clock.now += 2 * FORGET_AFTER
    assert [frame.ask for frame in ready(credit.keep(clock.now))] == [Question.NOTHING]
    assert box.is_normal


def test_nothing_due_costs_nothing(
    credit: Credit, mailboxes: Mailboxes[Reader], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 100,000 windows and nothing due, `keep` visits none of them and sends one frame a second."""
    for number in range(100_000):
        wait(credit, mailboxes.open(str(number), 9))
    while credit.due <= clock.now + GRACE:
        credit.keep(clock.now + GRACE)
    looked = []
    monkeypatch.setattr(credit._looks, "_is_current", lambda at, window: looked.append(window))
    clock.now += GRACE
    for _ in range(10):
        clock.now += ASK_EVERY
        assert len(credit.keep(clock.now)) == 1
    assert looked == []


def test_channels_that_come_and_go_leave_a_small_heap(
    credit: Credit, mailboxes: Mailboxes[Reader], clock: Clock
) -> None:
    """A channel whose readers come and leave often keeps a small heap, although each brings several looks forward."""
    box = mailboxes.open("jobs", 9)
    for _ in range(10_000):
        clock.now += 0.01
        wait(credit, box)
        leave(credit, box)
    assert len(credit._looks) <= 64 + 2
