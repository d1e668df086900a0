"""How many jobs of a normal channel the exchange may hand over to this process."""

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
    """What was dropped, by cause."""
    return Counter()


@pytest.fixture
def credit(clock: Clock, dropped: Counter[str]) -> Credit:
    credit = Credit(INBOX, PREFETCH, lambda cause, count: dropped.update({cause: count}), clock)
    credit.begin_session(SESSION, is_same=False)
    return credit


@pytest.fixture
def mailboxes(clock: Clock) -> Iterator[Mailboxes[Reader]]:
    """Make mailboxes; at the end of every test they count what waits as a look at each of them does."""
    mailboxes: Mailboxes[Reader] = Mailboxes(lambda cause, count: None, clock=clock)
    yield mailboxes
    assert mailboxes.waiting == sum(len(box.mail) for box in mailboxes.boxes.values())


@pytest.fixture
def box(mailboxes: Mailboxes[Reader]) -> Mailbox[Reader]:
    return mailboxes.open("jobs", 100)


def ignore(cause: str, count: int) -> None:
    """Count nothing."""


def wait(credit: Credit, box: Mailbox[Reader]) -> list[bytes]:
    """Let one more reader wait; return the frames to send."""
    box.waiters.append(Reader())
    return credit.touched(box)


def leave(credit: Credit, box: Mailbox[Reader]) -> None:
    """Let all readers give up."""
    box.waiters.clear()
    credit.gave_up(box)


def job(
    number: int = 1, *, payload: bytes = b"x", ttl: int = 60_000, session: int = SESSION, channel: bytes = b"jobs"
) -> wire.Job:
    """Return a job whose ordinal is its number too."""
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
    """It has room for that reader, and `prefetch` more, for this inbox, session and channel."""
    (sent,) = ready(wait(credit, box))
    assert sent == wire.Ready(INBOX, SESSION, 1 + PREFETCH, 0, 0, 0, b"jobs")
    assert box.is_normal


def test_each_waiting_reader_has_room(credit: Credit, box: Mailbox[Reader]) -> None:
    """However many they are."""
    sent = 0
    for count in range(1, 20):
        sent = max([sent, *limits(wait(credit, box))])
        assert sent >= count


def test_without_prefetch_no_job_comes_before_its_reader(clock: Clock, box: Mailbox[Reader]) -> None:
    """The window is as wide as the readers are many."""
    credit = Credit(INBOX, 0, ignore, clock)
    credit.begin_session(SESSION, is_same=False)
    assert [limits(wait(credit, box)) for _ in range(3)] == [[1], [2], [3]]


def test_jobs_that_wait_here_take_the_room_of_others(credit: Credit, box: Mailbox[Reader]) -> None:
    """A slow reader is not sent ever more."""
    wait(credit, box)
    for number in range(1 + PREFETCH):
        credit.arrived(job(number))
    assert credit.touched(box) == []
    take(box)
    assert credit.touched(box) == []


def test_the_window_moves_on_as_jobs_are_taken(credit: Credit, box: Mailbox[Reader]) -> None:
    """It never closes on a reader that keeps coming, and not every job costs a frame."""
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
    """Otherwise a frame on its way would undo a later one."""
    sent = limits(wait(credit, box))
    for number in range(20):
        credit.arrived(job(number))
        sent += limits(credit.touched(box))
        take(box)
        sent += limits(wait(credit, box))
    assert sent == sorted(sent)


# Jobs


def test_a_job_wakes_the_reader_whose_turn_it_is(credit: Credit, box: Mailbox[Reader]) -> None:
    """It waits in the mailbox until it is taken."""
    wait(credit, box)
    first = box.waiters[0]
    assert credit.arrived(job(payload=b"1")) == (first, [])
    assert [delivery for _, _, delivery in box.mail] == [Delivery(credit, SESSION, 1)]
    assert take(box) == b"1"


def test_a_job_that_arrives_twice_is_taken_once(credit: Credit, box: Mailbox[Reader]) -> None:
    """By its ordinal, which counts from 1 in each session."""
    wait(credit, box)
    for payload in (b"1", b"again"):
        credit.arrived(job(payload=payload))
    assert [take(box), take(box)] == [b"1", None]


def test_a_gap_between_jobs_shows_that_some_are_lost(
    credit: Credit, box: Mailbox[Reader], dropped: Counter[str]
) -> None:
    """They count as received: the total agrees afterwards."""
    wait(credit, box)
    waiter = box.waiters[0]
    assert credit.arrived(job(4)) == (waiter, [])
    assert credit.counted_in_total(total(4)) == []
    assert credit.counted(handed(4)) == []
    assert +dropped == {"lost_delivery": 3}


def test_a_job_passes_over_a_reader_that_is_not_usable(credit: Credit, box: Mailbox[Reader]) -> None:
    """A cancelled reader does not take a job from another reader."""
    for _ in range(2):
        wait(credit, box)
    first, second = box.waiters
    first.usable = False
    assert credit.arrived(job())[0] is second


def test_a_job_expires_when_its_time_is_over(
    credit: Credit, mailboxes: Mailboxes[Reader], box: Mailbox[Reader], clock: Clock
) -> None:
    """Its milliseconds count from its arrival."""
    wait(credit, box)
    credit.arrived(job(ttl=1500))
    credit.arrived(job(2, payload=b"2"))
    clock.now += 1.5
    assert mailboxes.take(box) == b"2"


def test_a_job_of_a_channel_that_nobody_read_goes_back(credit: Credit) -> None:
    """It returns to its old place, with the time that it has left."""
    waiter, frames = credit.arrived(job(5, payload=b"1", ttl=1500, channel=b"other"))
    assert waiter is None
    assert back(frames) == [wire.Back(INBOX, 5, 1500, b"other", b"1")]


def test_a_job_of_an_earlier_session_is_ignored(credit: Credit, box: Mailbox[Reader]) -> None:
    """The exchange has learned that it did not arrive, and puts it back: it would be read twice."""
    wait(credit, box)
    assert credit.arrived(job(payload=b"1", session=SESSION - 1)) == (None, [])
    credit.arrived(job(1, payload=b"2"))
    assert [take(box), take(box)] == [b"2", None]
    assert limits(credit.hand_everything_back()) == [1]


# Back


def test_a_job_that_no_reader_takes_goes_back(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """After the grace time, not before, in order, and the window closes with it."""
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
    """However long it had waited before: it has not had the time to take the jobs that came with the first one."""
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
    """Nobody is on the way to the job."""
    wait(credit, box)
    credit.arrived(job())
    leave(credit, box)
    clock.now += GRACE
    assert [item.number for item in back(credit.keep(clock.now))] == [1]


def test_a_job_whose_reader_never_comes_goes_back_although_others_wait(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """As when the event loop of the one is blocked. The window opens again for the others, who may get the same job."""
    wait(credit, box)
    wait(credit, box)
    credit.arrived(job())
    assert len(box.waiters) == 1
    clock.now += WOKEN_GRACE
    frames = credit.keep(clock.now)
    assert [frame[:1] for frame in frames[:3]] == [b"R", b"B", b"R"]
    assert limits(frames) == [1, 1 + 1 + PREFETCH]
    assert not box.mail
    assert limits(credit.keep(clock.now + REPEAT_EVERY)) == [1 + 1 + PREFETCH]


def test_the_window_closes_before_its_jobs_go_back(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """Otherwise the exchange would hand them to this process again at once."""
    wait(credit, box)
    credit.arrived(job())
    clock.now += WOKEN_GRACE
    assert [frame[:1] for frame in credit.keep(clock.now)[:2]] == [b"R", b"B"]


def test_the_grace_time_counts_from_the_last_reader(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """However long it had waited before it went."""
    wait(credit, box)
    credit.keep(clock.now + GRACE)
    clock.now += 10
    leave(credit, box)
    assert limits(credit.keep(clock.now + GRACE - 0.01)) == []
    assert limits(credit.keep(clock.now + GRACE)) == [0]


def test_an_expired_job_does_not_go_back(
    credit: Credit, box: Mailbox[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """Nobody could read it. It is counted."""
    wait(credit, box)
    credit.arrived(job(ttl=round(WOKEN_GRACE * 1000)))
    clock.now += WOKEN_GRACE
    assert back(credit.keep(clock.now)) == []
    assert not box.mail
    assert +dropped == {"expired": 1}


def test_an_announcement_in_a_mailbox_of_jobs_does_not_go_back(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """Only jobs came from the exchange."""
    wait(credit, box)
    announcement = (clock.now + 60, b"announcement", None)
    box.append(announcement)
    credit.arrived(job())
    assert [item.payload for item in back(credit.hand_everything_back())] == [b"x"]
    assert list(box.mail) == [announcement]


def test_an_open_window_without_readers_is_closed(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """Otherwise the exchange would hand jobs to a process without readers. It is closed once."""
    wait(credit, box)
    leave(credit, box)
    clock.now += GRACE
    assert limits(credit.keep(clock.now)) == [0]
    assert limits(credit.keep(clock.now + FORGET_AFTER / 2)) == []


def test_a_job_that_crossed_the_closing_goes_back_at_once(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """It was on its way when the last reader went."""
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
    """A worker that handles a job comes again at once."""
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
    """Limits are absolute: received jobs stay counted."""
    wait(credit, box)
    credit.arrived(job())
    clock.now += WOKEN_GRACE
    credit.keep(clock.now)
    assert limits(wait(credit, box)) == [1 + 1 + PREFETCH]


def test_stopping_hands_everything_back(credit: Credit, box: Mailbox[Reader], mailboxes: Mailboxes[Reader]) -> None:
    """At once, for every channel."""
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
    """The reader of a process-specific channel needs no window."""
    credit.gave_up(mailboxes.open("other", 9))
    assert credit.due == inf


# Two exchanges


@pytest.fixture
def other(clock: Clock) -> Credit:
    """The credit of another exchange, whose readers are the same."""
    other = Credit(INBOX, PREFETCH, ignore, clock)
    other.begin_session(SESSION, is_same=False)
    return other


def wait_at_both(credit: Credit, other: Credit, box: Mailbox[Reader]) -> tuple[list[bytes], list[bytes]]:
    """Let one more reader wait; return the frames for each exchange."""
    return wait(credit, box), other.touched(box)


def test_a_reader_has_room_at_every_exchange(credit: Credit, other: Credit, box: Mailbox[Reader]) -> None:
    """Whichever has a job first may hand it over."""
    assert [limits(frames) for frames in wait_at_both(credit, other, box)] == [[1 + PREFETCH]] * 2
    assert box.windows == 2


def test_jobs_of_another_exchange_take_the_room_of_others_too(
    credit: Credit, other: Credit, box: Mailbox[Reader]
) -> None:
    """A slow reader is not sent ever more by all of them together."""
    wait(credit, box)
    box.waiters.clear()
    for number in range(1, 1 + PREFETCH):
        credit.arrived(job(number))
    assert limits(wait(other, box)) == [1]


def test_each_exchange_gets_back_what_it_has_handed_over(
    credit: Credit, other: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """The same number at two exchanges is two jobs. What is not its own stays, in order."""
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
    """Each exchange counts its own."""
    wait_at_both(credit, other, box)
    credit.arrived(job())
    other.arrived(job())
    assert take(box) == b"x"
    assert [ready(one.queried(query()))[0].settled for one in (credit, other)] == [1, 0]


def test_a_channel_is_normal_as_long_as_an_exchange_has_a_window(
    credit: Credit, other: Credit, box: Mailbox[Reader]
) -> None:
    """Leaving one exchange leaves the other alone."""
    wait_at_both(credit, other, box)
    credit.detach()
    assert (box.windows, box.is_normal) == (1, True)
    assert other.arrived(job())[0] is not None
    other.detach()
    assert (box.windows, box.is_normal) == (0, False)
    assert credit.due == inf


def test_a_reader_may_come_back_after_an_exchange_was_left(credit: Credit, box: Mailbox[Reader]) -> None:
    """It counts from nothing."""
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
    """However many windows there are."""
    for number in range(100):
        wait(credit, mailboxes.open(str(number), 9))
    asked = []
    for _ in range(30):
        clock.now += ASK_EVERY / 10
        asked += questions(credit.keep(clock.now))
    assert asked == [wire.Total(INBOX, SESSION)] * 3


def test_further_readers_do_not_put_the_question_off(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """It is due a second after the first one."""
    wait(credit, box)
    clock.now += ASK_EVERY / 2
    wait(credit, box)
    assert credit.due <= clock.now + ASK_EVERY / 2
    clock.now += ASK_EVERY / 2
    assert len(questions(credit.keep(clock.now))) == 1


def test_without_windows_nothing_is_asked(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """The questions end with the last window, and begin again with the next."""
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
    """Without an exchange so far, no answer is possible."""
    credit = Credit(INBOX, PREFETCH, ignore, clock)
    wait(credit, box)
    clock.now += ASK_EVERY
    assert questions(credit.keep(clock.now)) == []
    assert credit.due > clock.now


def test_a_waiting_reader_repeats_its_limit_now_and_then(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """The exchange may have had no room for the channel."""
    wait(credit, box)
    times = [GRACE, GRACE + REPEAT_EVERY - 1, GRACE + REPEAT_EVERY]
    assert [limits(credit.keep(clock.now + after)) for after in times] == [[5], [], [5]]


@pytest.mark.parametrize("answer", [total(1), total(0), total(9, session=SESSION - 1)])
def test_a_total_that_matches_asks_nothing(credit: Credit, box: Mailbox[Reader], answer: wire.HandedTotal) -> None:
    """As many have arrived, or it is that of an earlier session."""
    wait(credit, box)
    credit.arrived(job())
    assert credit.counted_in_total(answer) == []


def test_a_total_that_shows_a_loss_asks_about_each_open_window(
    credit: Credit, mailboxes: Mailboxes[Reader], clock: Clock
) -> None:
    """A closed one cannot have lost a job unnoticed."""
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
    """Once; the total agrees afterwards."""
    wait(credit, box)
    credit.arrived(job())
    take(box)
    assert limits(credit.counted(handed(3))) == [3 + PREFETCH]
    assert credit.counted(handed(3)) == []
    assert +dropped == {"lost_delivery": 2}
    assert credit.counted_in_total(total(3)) == []


@pytest.mark.parametrize("answer", [handed(0), handed(2, session=SESSION - 1), handed(2, channel=b"other")])
def test_a_count_without_news_is_ignored(credit: Credit, box: Mailbox[Reader], answer: wire.Handed) -> None:
    """It was late, from an earlier session, or for a channel without a reader."""
    wait(credit, box)
    assert credit.counted(answer) == []


def test_an_impossible_count_is_ignored(credit: Credit, box: Mailbox[Reader]) -> None:
    """More than was ever allowed was not handed over, nor could a later limit be sent."""
    wait(credit, box)
    assert credit.counted(handed(2**64 - 1)) == []
    assert limits(wait(credit, box)) in ([], [2 + PREFETCH])


def test_jobs_up_to_the_largest_limit_can_be_lost(
    credit: Credit, box: Mailbox[Reader], clock: Clock, dropped: Counter[str]
) -> None:
    """The window was closed while they were on their way."""
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
    """Those that no longer wait here; with the number of the question."""
    wait(credit, box)
    for number in (1, 2):
        credit.arrived(job(number))
    for _ in range(taken):
        take(box)
    (answer,) = ready(credit.queried(query(9)))
    assert (answer.settled, answer.answers, answer.limit) == (settled, 9, 1 + PREFETCH)


def test_jobs_that_went_back_are_settled(credit: Credit, box: Mailbox[Reader]) -> None:
    """The exchange has them again."""
    wait(credit, box)
    credit.arrived(job())
    (closing,) = ready(credit.hand_everything_back())
    (answer,) = ready(credit.queried(query()))
    assert answer.settled == 1
    assert closing.limit == 1


def test_a_forgotten_channel_is_settled_altogether(credit: Credit) -> None:
    """The exchange takes the number for all that it has handed over."""
    (answer,) = ready(credit.queried(query(9, channel=b"other")))
    assert answer == wire.Ready(INBOX, SESSION, 0, 2**64 - 1, 9, Question.FORGET, b"other")


@pytest.mark.parametrize("channel", [b"jobs", b"other"])
def test_a_query_of_an_earlier_session_is_ignored(credit: Credit, box: Mailbox[Reader], channel: bytes) -> None:
    """The exchange that sent it has ended the session."""
    wait(credit, box)
    assert credit.queried(query(session=SESSION - 1, channel=channel)) == []


# Sessions


def reported(credit: Credit) -> list[wire.Received]:
    """Leave the session; return what the exchange learns of it."""
    return [wire.RECEIVED.decode(frame) for frame in credit.leave_session()]


def test_before_a_new_session_the_exchange_learns_what_has_arrived(
    credit: Credit, mailboxes: Mailboxes[Reader]
) -> None:
    """Of each channel whose window was open in the last session: the jobs that were read."""
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
    """The exchange has been told that it has not arrived, puts it back, and hands it over again."""
    wait(credit, box)
    if not is_open:
        credit.end_session()
    assert [one.received for one in reported(credit)] == [0]
    assert credit.arrived(job()) == (None, [])
    assert not box.mail
    assert [one.received for one in reported(credit)] == [0]


def test_what_has_arrived_is_reported_until_a_session_begins(credit: Credit, box: Mailbox[Reader]) -> None:
    """The exchange may not have received it: the connection may be lost before its welcome, any number of times."""
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
    """The connection may have broken before they were there. The exchange puts back those that it still misses."""
    wait(credit, box)
    credit.arrived(job(1))
    take(box)
    went_back(credit, box, clock, job(2))
    went_back(credit, box, clock, job(3))  # it was on the way
    (frame,) = credit.leave_session(loses_frames=loses_frames)
    assert wire.RECEIVED.decode(frame).received == received


def test_jobs_that_went_back_before_one_was_read_are_reported_as_received(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """Otherwise that one would be read twice."""
    wait(credit, box)
    went_back(credit, box, clock, job(1))
    wait(credit, box)
    credit.arrived(job(2))
    take(box)
    assert [one.received for one in reported(credit)] == [2]


def test_jobs_that_went_back_in_an_earlier_session_are_not_reported(
    credit: Credit, box: Mailbox[Reader], clock: Clock
) -> None:
    """The ordinals begin anew."""
    wait(credit, box)
    went_back(credit, box, clock, job(1), job(2))
    credit.leave_session()
    credit.begin_session(SESSION + 1, is_same=True)
    wait(credit, box)
    credit.arrived(job(1, session=SESSION + 1))
    take(box)
    assert [one.received for one in reported(credit)] == [1]


def test_a_large_job_that_went_back_is_reported_as_received(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """It went by the producers' way, where it is not lost."""
    wait(credit, box)
    went_back(credit, box, clock, job(1), job(2, payload=bytes(wire.MAX_UPSTREAM)))
    assert [one.received for one in reported(credit)] == [2]


@pytest.mark.parametrize("is_same", [True, False])
def test_an_unread_job_of_a_session_that_was_left_is_read_once(
    credit: Credit, box: Mailbox[Reader], is_same: bool
) -> None:
    """The instance that has handed it over puts it back; any other one does not know it, so it is read here."""
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
    """To the one that there is now, by the number that it has."""
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
    """It was withheld for the next session, which never began."""
    wait(credit, box)
    credit.arrived(job(1))
    credit.leave_session()
    credit.detach()
    assert +dropped == {"lost_delivery": 1}


def test_a_job_that_is_withheld_during_a_flush_is_dropped(credit: Credit, box: Mailbox[Reader]) -> None:
    """It is in no mailbox then, and would return to one with the next session."""
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
    """That one was received, or the session would not have begun."""
    wait(credit, box)
    box.waiters.clear()
    reported(credit)
    credit.begin_session(SESSION + 1, is_same=False)
    assert reported(credit) == []


@pytest.mark.parametrize("frame", ["handed", "total", "query"])
def test_what_the_exchange_says_of_a_session_that_was_left_is_ignored(
    credit: Credit, box: Mailbox[Reader], frame: str
) -> None:
    """Its counts are settled by the report."""
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
    """The next session opens it."""
    wait(credit, box)
    reported(credit)
    assert wait(credit, box) == []
    assert limits(credit.begin_session(SESSION + 1, is_same=False)) == [2 + PREFETCH]


def test_before_the_first_session_nothing_has_arrived(clock: Clock, box: Mailbox[Reader]) -> None:
    """A reader may wait already."""
    credit = Credit(INBOX, PREFETCH, ignore, clock)
    wait(credit, box)
    assert credit.leave_session() == []


def test_a_channel_that_was_closed_throughout_the_last_session_is_not_resumed(
    credit: Credit, box: Mailbox[Reader]
) -> None:
    """No job of it can be on its way."""
    wait(credit, box)
    leave(credit, box)
    credit.begin_session(SESSION + 1, is_same=False)
    assert credit.leave_session() == []


def test_a_new_session_counts_anew(credit: Credit, box: Mailbox[Reader]) -> None:
    """The window opens for the readers that wait."""
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
    """They take room, and are not settled in it."""
    wait(credit, box)
    credit.arrived(job())
    wait(credit, box)
    (sent,) = ready(credit.begin_session(SESSION + 1, is_same=False))
    assert (sent.limit, sent.settled) == (1 + PREFETCH - 1, 0)


def test_a_new_session_opens_no_window_without_readers(credit: Credit, box: Mailbox[Reader]) -> None:
    """It opens with the next reader."""
    wait(credit, box)
    box.waiters.clear()
    assert credit.begin_session(SESSION + 1, is_same=False) == []
    assert limits(wait(credit, box)) == [1 + PREFETCH]


def test_jobs_of_the_last_session_go_back_in_the_new_one(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """Nobody has read them; they have their old numbers, and do not count for the new window."""
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
    """The connection is down, or the exchange is about to end and has all its jobs."""
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
    """The exchange learns at the next one that they have."""
    wait(credit, box)
    credit.arrived(job(payload=b"1"))
    credit.end_session()
    assert take(box) == b"1"
    assert [one.received for one in reported(credit)] == [1]


def test_no_total_is_asked_for_after_the_session(credit: Credit, box: Mailbox[Reader], clock: Clock) -> None:
    """Until the next one begins; it is due a second later then."""
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
    """Until then its count must outlive its readers; a reader that comes later counts from nothing."""
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
    """However long it waits."""
    wait(credit, box)
    clock.now += 2 * FORGET_AFTER
    assert [frame.ask for frame in ready(credit.keep(clock.now))] == [Question.NOTHING]
    assert box.is_normal


def test_nothing_due_costs_nothing(
    credit: Credit, mailboxes: Mailboxes[Reader], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It visits none of 100,000 windows; the query is one frame."""
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
    """Each reader brings several looks forward."""
    box = mailboxes.open("jobs", 9)
    for _ in range(10_000):
        clock.now += 0.01
        wait(credit, box)
        leave(credit, box)
    assert len(credit._looks) <= 64 + 2
