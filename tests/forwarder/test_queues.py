"""All queues of an exchange: exact capacity, orphans and deadlines."""

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from fakes import Clock

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.channel_queue import ENTRY_SIZE
from channels_zmq_forwarder.queues import ANSWER_WITHIN, ORPHANS_WAIT, ChannelQueues, Limits
from channels_zmq_forwarder.wire import Question, Status

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
JOBS = b"jobs"
Seen = list[Any]
"""Decoded frames of any kind, for one client or for several."""


class Queues(ChannelQueues):
    """Queues of normal channels with decoded frames."""

    def __init__(self, clock: "CountingClock | Clock", **limits: int) -> None:
        self.drops: Counter[str] = Counter()
        self.clock = clock
        super().__init__(b"instance", Limits(**limits), clock, self.drops)
        for inbox in (A, B, C):
            self.begin(inbox, 1)

    def send(
        self, payload: bytes = b"", *, n: int = 1, capacity: int = 2, channel: bytes = JOBS, ttl: int = 60_000
    ) -> Seen:
        return seen(self.put(wire.Enqueue(C, n, ttl, capacity, channel, payload)))

    def report(
        self,
        limit: int,
        settled: int = 0,
        *,
        inbox: bytes = A,
        session: int = 1,
        answers: int = 0,
        ask: Question = Question.NOTHING,
        channel: bytes = JOBS,
    ) -> Seen:
        return seen(self.ready(wire.Ready(inbox, session, limit, settled, answers, ask, channel)))

    def report_received(self, received: int, *, inbox: bytes = A, session: int = 1, channel: bytes = JOBS) -> Seen:
        return seen(self.received(wire.Received(inbox, session, received, channel)))

    def hand_back(self, job: wire.Job, inbox: bytes = A) -> Seen:
        return seen(self.put_back(wire.Back(inbox, job.number, job.ttl, job.channel, job.payload)))

    def swept(self, seconds: float = 0.0) -> Seen:
        self.clock.now += seconds
        return seen(self.sweep())

    def used(self, channel: bytes = JOBS) -> tuple[int, int]:
        queue = self.by_channel.get(channel)
        return (len(queue.waiting), queue.unsettled) if queue else (0, 0)


def seen(frames: Iterable[bytes]) -> Seen:
    layouts: dict[int, wire.Layout[Any]] = {layout.kind: layout for layout in wire.INBOX_LAYOUTS}
    return [layouts[wire.sub_kind(frame)].decode(frame) for frame in frames]


def statuses(frames: Seen) -> list[tuple[int, Status]]:
    return [(frame.n, Status(frame.status)) for frame in frames if isinstance(frame, wire.Confirm)]


def payloads(frames: Seen) -> list[tuple[bytes, bytes]]:
    return [(frame.inbox, frame.payload) for frame in frames if isinstance(frame, wire.Job)]


def the_job(frames: Seen) -> wire.Job:
    (job,) = [frame for frame in frames if isinstance(frame, wire.Job)]
    return job


def queries(frames: Seen) -> list[wire.Query]:
    return [frame for frame in frames if isinstance(frame, wire.Query)]


@pytest.fixture
def queues(clock: Clock) -> Queues:
    return Queues(clock)


# Capacity


def test_unsettled_jobs_count_for_the_capacity(queues: Queues) -> None:
    """Unsettled jobs count for the capacity.

    A message that fits only once they are settled is pending: it has no answer yet, and the client is queried.
    """
    queues.report(5)
    for n in (1, 2):
        assert statuses(queues.send(n=n)) == [(n, Status.OK)]
    (query,) = queues.send(n=3)
    assert (query.inbox, query.session, query.channel) == (A, 1, JOBS)
    assert queues.used() == (0, 2)


def test_a_pending_message_is_accepted_when_a_client_has_settled(queues: Queues) -> None:
    """An answer that settles a job makes room, so that the pending message is confirmed and handed over at once."""
    queues.report(5)
    queues.send(), queues.send()
    (query,) = queues.send(b"third", n=3)
    out = queues.report(5, 1, answers=query.n)
    assert statuses(out) == [(3, Status.OK)]
    assert payloads(out) == [(A, b"third")]
    assert queues.used() == (0, 2)


def test_a_pending_message_is_refused_when_nothing_was_settled(queues: Queues) -> None:
    """A pending message is refused as FULL once all clients have answered and none has settled a job."""
    queues.report(1), queues.report(1, inbox=B)
    queues.send(), queues.send()
    first, second = queues.send(n=3)
    assert queues.report(1, answers=first.n) == []
    assert statuses(queues.report(1, inbox=B, answers=second.n)) == [(3, Status.FULL)]
    assert queues.drops == {"queue_full": 1}


def test_a_report_that_answers_no_query_decides_nothing_but_room(queues: Queues) -> None:
    """A report that answers no query does not refuse a pending message, but the jobs that it settles make room.

    It may precede the query.
    """
    queues.report(2)
    queues.send(), queues.send()
    (query,) = queues.send(n=3)
    assert queues.report(2, 0) == []
    assert queues.report(2, 0, answers=query.n + 1) == []
    assert statuses(queues.report(2, 1)) == [(3, Status.OK)]


def test_a_silent_client_is_waited_for_only_so_long(queues: Queues) -> None:
    """A pending message is refused if a client does not answer in time."""
    queues.report(2)
    queues.send(), queues.send()
    queues.send(n=3)
    assert queues.due() <= queues.clock.now + ANSWER_WITHIN
    assert queues.swept(ANSWER_WITHIN - 0.01) == []
    assert statuses(queues.swept(0.01)) == [(3, Status.FULL)]
    assert queues.swept(100) == []


def test_a_client_that_ends_is_not_waited_for(queues: Queues) -> None:
    """A client that ends is not waited for, and its jobs count for a while.

    It may reconnect and report that it never received them.
    """
    queues.report(2)
    queues.send(), queues.send()
    queues.send(n=3)
    assert statuses(seen(queues.end(A))) == [(3, Status.FULL)]
    assert statuses(queues.send(n=4)) == [(4, Status.FULL)]
    assert statuses(queues.swept(ORPHANS_WAIT)) == []
    assert statuses(queues.send(n=5)) == [(5, Status.OK)]


def test_a_channel_whose_waiting_messages_fill_it_is_full_at_once(queues: Queues) -> None:
    """A channel whose waiting messages fill it is full without a query, since no answer could make room."""
    queues.send(), queues.send()
    assert statuses(queues.send(n=3)) == [(3, Status.FULL)]
    queues.report(1)
    assert queues.used() == (1, 1)
    assert queries(queues.send(n=4))
    assert statuses(queues.send(n=5)) == [(5, Status.FULL)]  # the waiting message and the pending one fill it


def test_pending_messages_keep_their_order(queues: Queues) -> None:
    """A later message does not overtake a pending one, even if it would fit by its own capacity."""
    queues.report(9)
    queues.send(), queues.send()
    (query,) = queues.send(b"third", n=3)
    assert queues.send(b"fourth", n=4, capacity=50) == []
    out = queues.report(9, 1, answers=query.n)
    assert payloads(out) == [(A, b"third"), (A, b"fourth")]
    assert statuses(out) == [(3, Status.OK), (4, Status.OK)]


def test_a_message_that_arrives_during_a_round_is_decided_by_the_next(queues: Queues) -> None:
    """A message that arrives during a round of queries is decided by the next round.

    A client may have settled a job between its answer and this message.
    """
    queues.report(1), queues.report(1, inbox=B)
    queues.send(capacity=3), queues.send(capacity=3)
    queues.report(2, inbox=B)
    queues.send(capacity=3)
    first, second = queues.send(n=4, capacity=3)
    queues.report(1, inbox=first.inbox, answers=first.n)
    assert queues.send(n=5, capacity=3) == []
    out = queues.report(2, inbox=second.inbox, answers=second.n)
    assert statuses(out) == [(4, Status.FULL)]
    assert [query.inbox for query in queries(out)] == [A, B]
    out = queues.report(1, 1, answers=queries(out)[0].n)
    assert statuses(out) == [(5, Status.OK)]


def test_there_is_one_query_for_each_round(queues: Queues) -> None:
    """There is one query for each round, and other messages wait for the answers that are in flight."""
    queues.report(5)
    for _ in range(3):
        queues.send(capacity=3)
    assert len(queries(queues.send(capacity=3))) == 1
    assert queues.send(capacity=3) == []


def test_reports_in_time_make_queries_unnecessary(queues: Queues) -> None:
    """A client that reports with each window stays below the capacity, so no query is sent."""
    queues.report(2)
    for n in range(100):
        out = queues.send(n=n + 1)
        assert statuses(out) == [(n + 1, Status.OK)]
        assert payloads(out) == [(A, b"")]
        queues.report(n + 3, n + 1)


def test_a_copy_of_a_group_message_is_dropped_without_an_answer(queues: Queues) -> None:
    """A copy of a group message is never confirmed; if it does not fit, it is dropped and counted."""
    queues.report(1)
    queues.send(n=0, capacity=1)
    (query,) = queues.send(n=0, capacity=1)
    assert queues.report(1, answers=query.n) == []
    assert queues.drops == {"queue_full": 1}


def test_a_message_that_expires_makes_room_for_a_pending_one(queues: Queues) -> None:
    """A sweep drops an expired message by its deadline, which makes room for a pending one."""
    queues.report(1)
    queues.send(), queues.send(ttl=500)
    assert queries(queues.send(n=3))
    assert statuses(queues.swept(0.5)) == [(3, Status.OK)]
    assert queues.drops == {"expired": 1}


def test_an_expired_message_makes_room(queues: Queues) -> None:
    """An expired message makes room for a new one, whatever its place in the queue."""
    queues.send(), queues.send(ttl=500)
    queues.clock.now += 0.4
    assert statuses(queues.send()) == [(1, Status.FULL)]
    queues.clock.now += 0.1
    assert statuses(queues.send()) == [(1, Status.OK)]
    assert queues.used() == (2, 0)


def test_pending_messages_take_memory(queues: Queues, clock: Clock) -> None:
    """Pending messages count for the limit of bytes, beyond which messages are refused."""
    queues = Queues(clock, queue_bytes=3 * ENTRY_SIZE)
    queues.report(2)
    queues.send(), queues.send()
    assert queries(queues.send(n=3))
    assert queues.size == 3 * ENTRY_SIZE
    assert statuses(queues.send(channel=b"other")) == [(1, Status.FULL)]
    queues.swept(ANSWER_WITHIN)
    assert queues.size == 2 * ENTRY_SIZE
    assert queues.drops == {"queue_bytes": 1, "queue_full": 1}


def test_a_flush_drops_what_is_pending_and_answers_so(queues: Queues) -> None:
    """A flush drops pending messages and answers FLUSHING, so that their senders may send them again.

    Clients flush the jobs that they hold.
    """
    queues.report(2)
    queues.send(), queues.send()
    queues.send(n=3)
    assert statuses(seen(queues.clear())) == [(3, Status.FLUSHING)]
    assert queues.used() == (0, 0)
    assert queues.report_received(0) == []
    assert queues.used() == (0, 0)


def test_a_job_that_comes_back_after_a_flush_stays_dropped(queues: Queues) -> None:
    """A job that is handed back after a flush stays dropped.

    Its client may have handed it back before it emptied itself: that frame and its answer arrive at two ports.
    """
    queues.report(1)
    job = the_job(queues.send(b"handed"))
    queues.report(2)
    elder = the_job(queues.hand_back(job._replace(number=7, payload=b"of another instance")))
    queues.clear()
    assert queues.hand_back(job) == queues.hand_back(elder) == []
    assert queues.used() == (0, 0)
    assert queues.drops == {"flushed": 2}
    queues.report(3)
    queues.hand_back(the_job(queues.send(b"later")))
    assert queues.used() == (1, 0)


# Jobs that were lost with a connection


def test_jobs_that_never_arrived_are_put_back(queues: Queues) -> None:
    """Jobs that never arrived are put back to their places for the next reader."""
    queues.report(3)
    for number in range(4):
        queues.send(b"%d" % number, capacity=9)
    assert queues.report_received(1) == []
    assert queues.used() == (3, 0)
    queues.begin(A, 2)
    out = queues.report(9, session=2)
    assert payloads(out) == [(A, b"1"), (A, b"2"), (A, b"3")]


def test_the_exchange_may_have_noticed_the_death_first(queues: Queues) -> None:
    """If the exchange notices a death first, it keeps the jobs for the report.

    Jobs that were received are not handed over again.
    """
    queues.report(2), queues.report(5, inbox=B)
    queues.send(b"0", capacity=9), queues.send(b"1", capacity=9), queues.send(b"2", capacity=9)
    queues.end(A)
    assert payloads(queues.report_received(1)) == [(B, b"2")]
    assert queues.used() == (0, 2)
    queues.swept(ORPHANS_WAIT)
    assert queues.drops == {}


def test_a_job_that_was_put_back_is_not_put_back_again_by_a_late_frame_of_its_client(queues: Queues) -> None:
    """A late frame of a client does not put back a job that was put back and read by another client since.

    The client had handed the job back over the connection that it has given up.
    """
    queues.report(2)
    job = the_job(queues.send(b"0"))
    queues.report_received(0)
    queues.begin(A, 2)
    assert payloads(queues.report(1, inbox=B)) == [(B, b"0")]
    queues.report(1, 1, inbox=B)
    assert queues.hand_back(job) == []
    assert (queues.used(), queues.drops) == ((0, 0), {"stray": 1})


def test_a_job_that_was_put_back_and_handed_over_again_may_be_handed_back(queues: Queues) -> None:
    """A job that was put back and handed over again may be handed back, even once it is settled.

    A large job is settled by then, since it is handed back at another port.
    """
    queues.report(1)
    queues.send(b"0")
    queues.report_received(0)
    queues.begin(A, 2)
    job = the_job(queues.report(1, session=2))
    queues.report(1, 1, session=2)
    queues.hand_back(job)
    assert queues.used() == (1, 0)


def test_a_message_that_waits_is_not_put_back_a_second_time(queues: Queues) -> None:
    """A message that waits is not put back a second time, even if its client had settled it before.

    It would count twice for the memory, and one client could replace the messages that wait for others.
    """
    queues.report(1)
    job = the_job(queues.send(b"0"))
    queues.report(1, 1)
    queues.hand_back(job)
    size = queues.size
    queues.hand_back(job._replace(payload=b"another"), B)
    assert (queues.size, queues.drops) == (size, {"stray": 1})
    queues.hand_back(job)
    assert (queues.size, queues.drops) == (size, {"stray": 2})
    assert payloads(queues.report(2, 1)) == [(A, b"0")]


def test_a_client_cannot_replace_a_message_of_another_one(queues: Queues) -> None:
    """A message that a client hands back under the number of one that another client has is dropped and counted."""
    queues.report(1)
    job = the_job(queues.send(b"0"))
    queues.hand_back(job._replace(payload=b"another"), B)
    assert queues.drops == {"stray": 1}
    queues.hand_back(job)
    assert payloads(queues.report(3, 1)) == [(A, b"0")]


def test_a_message_keeps_its_rights_if_another_one_has_its_number_on_another_channel(queues: Queues) -> None:
    """Of two messages that would wait under one number, one of which is forged, the second one gets another."""
    queues.report(1)
    job = the_job(queues.send(b"0"))
    queues.hand_back(job._replace(payload=b"another", channel=b"other"), B)
    queues.hand_back(job)
    assert payloads(queues.report(3, 1)) == [(A, b"0")]
    assert payloads(queues.report(3, inbox=B, channel=b"other")) == [(B, b"another")]


def test_a_job_that_its_client_has_settled_before_keeps_its_place(queues: Queues) -> None:
    """A large job goes back another way than the report that settles it, and may arrive behind that."""
    queues.report(3)
    jobs = [the_job(queues.send(payload, capacity=9)) for payload in (b"0", b"1", b"2")]
    queues.report(3, 3)
    for job in reversed(jobs):
        queues.hand_back(job)
    assert payloads(queues.report(9, 3)) == [(A, b"0"), (A, b"1"), (A, b"2")]


@pytest.mark.parametrize("seed", range(200))
def test_the_books_balance_whatever_clients_report(seed: int, clock: Clock) -> None:
    """No frame makes the queues fail, or leaves memory behind, also if clients name jobs and sessions of others."""
    random = Random(seed)
    queues = Queues(clock, queue_bytes=random.choice((3_000, 1_000_000)), queue_names=4, names_per_client=3)
    jobs: list[wire.Job] = []
    sessions = Counter({A: 1, B: 1, C: 1})
    for _ in range(150):
        clock.now += random.choice((0.0, 0.0, 0.01, 0.3, 2.0))
        inbox, channel = random.choice((A, B, C)), random.choice((b"x", b"y"))
        session = sessions[inbox] - random.choice((0, 0, 1))
        match random.randrange(8):
            case 0 | 1:
                payload, ttl = bytes(random.choice((0, 10, 900))), random.choice((0, 50, 10_000))
                frames = queues.send(
                    payload, n=random.choice((0, 5)), capacity=random.choice((1, 2, 9)), channel=channel, ttl=ttl
                )
            case 2 | 3:
                limit, settled, ask = (
                    random.choice((0, 1, 2, 5)),
                    random.choice((0, 1, 2, 2**64 - 1)),
                    random.choice([*Question]),
                )
                frames = queues.report(limit, settled, inbox=inbox, session=session, ask=ask, channel=channel)
            case 4 | 5 if jobs:
                frames = queues.hand_back(random.choice(jobs)._replace(channel=channel), inbox)
            case 6:
                frames = queues.report_received(random.choice((0, 1, 3)), inbox=inbox, session=session, channel=channel)
            case 7:
                sessions[inbox] += 1
                frames = seen(queues.begin(inbox, sessions[inbox]))
            case _:
                frames = queues.swept()
        jobs += [frame for frame in frames if isinstance(frame, wire.Job)]
        check_books(queues)
    for inbox in (A, B, C):
        queues.end(inbox)
    queues.swept(100.0)
    assert (queues.size, queues.unsettled, queues.depth(), len(queues)) == (0, 0, 0, 0)


def check_books(queues: Queues) -> None:
    """Check that the totals are those of the messages that wait, are pending, or are unsettled."""
    every = queues.by_channel.values()
    waiting = [entry for queue in every for entry in queue.waiting.values()]
    pending = [one for queue in every if queue.round is not None for one in queue.round.pending]
    held = [
        jobs
        for queue in every
        for jobs in (*(one.unsettled for one in queue.credits.values()), *queue.orphans.values())
    ]
    unsettled = [job for some in held for job in some.values()]
    assert queues.size == sum(sum(one.size for one in some) for some in (waiting, pending, unsettled))
    assert queues.unsettled == len(unsettled)
    assert queues._since.keys() == {entry.number for entry in waiting}
    assert queues.depth() == len(waiting)
    assert queues.waiting.keys() == {channel for channel, queue in queues.by_channel.items() if queue.waiting}


def test_a_new_session_may_begin_before_the_report(queues: Queues) -> None:
    """A report of received jobs counts also after the hello of a new session, which ends the old one."""
    queues.report(2)
    queues.send(b"0")
    queues.begin(A, 2)
    queues.report_received(0)
    assert payloads(queues.report(1, session=2)) == [(A, b"0")]


def test_a_report_of_a_dead_session_closes_its_window(queues: Queues) -> None:
    """A late Ready from the old connection, behind the report of its session, hands nothing over."""
    queues.report(1)
    queues.report_received(0)
    assert queues.report(5) == []
    queues.send(b"hi")
    assert queues.used() == (1, 0)


def test_a_report_of_an_unknown_session_is_ignored(queues: Queues) -> None:
    """A report of an unknown session or channel is ignored: it may be repeated or meant for another instance."""
    queues.report(1)
    queues.send()
    assert queues.report_received(0, session=7) == []
    assert queues.report_received(0, channel=b"other") == []
    assert queues.used() == (0, 1)


def test_jobs_of_a_client_that_does_not_reconnect_are_counted_as_lost(queues: Queues) -> None:
    """Jobs that a client did not settle are counted as lost if it does not reconnect in time."""
    queues.report(3)
    for _ in range(3):
        queues.send(capacity=9)
    queues.report(3, 1)
    queues.end(A)
    queues.swept(ORPHANS_WAIT - 0.1)
    assert queues.drops == {}
    queues.swept(0.1)
    assert queues.drops == {"lost_delivery": 2}
    assert queues.report_received(0) == []
    assert len(queues) == 0


def test_orphans_are_bounded_in_number(clock: Clock) -> None:
    """Orphaned jobs are kept up to a bounded number; the oldest are counted as lost first."""
    queues = Queues(clock, queue_names=2)
    for session in (1, 2, 3):
        queues.begin(A, session)
        queues.report(1, session=session)
        queues.send(capacity=9)
    queues.end(A)
    assert queues.drops == {"lost_delivery": 1}


def test_a_message_that_passes_through_full_queues_cannot_be_put_back(clock: Clock) -> None:
    """A message that passes through full queues reaches its reader, but cannot be put back, as it is not kept."""
    queues = Queues(clock, queue_bytes=ENTRY_SIZE)
    queues.send(channel=b"nobody-reads-this")
    queues.report(1)
    assert payloads(queues.send(b"hi")) == [(A, b"hi")]
    assert statuses(queues.send()) == [(1, Status.FULL)]
    queues.report_received(0)
    assert queues.drops == {"queue_bytes": 1, "lost_delivery": 1}


def test_a_job_that_is_handed_back_late_is_put_back_once(queues: Queues) -> None:
    """A job that is handed back after its session has ended is put back once, even if reported as never received."""
    queues.report(2)
    (job,) = [frame for frame in queues.send(b"0") if isinstance(frame, wire.Job)]
    queues.end(A)
    queues.hand_back(job)
    assert queues.used() == (1, 0)
    queues.report_received(0)
    assert queues.used() == (1, 0)


@pytest.mark.parametrize("has_ended", [True, False])
def test_nobody_can_hand_back_a_job_of_another_client(queues: Queues, has_ended: bool) -> None:
    """A client cannot hand back a job of another client, which would be read twice.

    Only its own client knows the payload.
    """
    queues.report(2)
    (job,) = [frame for frame in queues.send(b"secret") if isinstance(frame, wire.Job)]
    if has_ended:
        queues.end(A)
    assert queues.hand_back(job._replace(payload=b"guess")) == []
    assert queues.drops == {"foreign_inbox": 1}
    assert queues.used() == (0, 1)
    queues.hand_back(job)
    assert queues.used()[0] == has_ended


def test_forgetting_a_channel_gives_up_unsettled_jobs(queues: Queues) -> None:
    """Forgetting a channel counts its unsettled jobs as lost.

    Both sides count from zero afterwards, so a later report could not settle them.
    """
    queues.report(2)
    queues.send()
    queues.report(2, ask=Question.FORGET)
    assert queues.drops == {"lost_delivery": 1}
    assert len(queues) == 0


# Totals and numbers


def test_a_client_learns_how_many_jobs_it_was_handed_in_all(queues: Queues) -> None:
    """The total of jobs that a client was handed covers all channels of its session."""
    for channel in (b"one", b"two"):
        queues.report(5, channel=channel)
        queues.send(channel=channel)
    assert queues.total(A, 1) == 2
    assert queues.total(A, 2) is None
    queues.begin(A, 2)
    assert queues.total(A, 2) == 0


def test_numbers_of_two_instances_differ(clock: Clock) -> None:
    """Two instances number jobs differently, so that a job handed back to another instance settles nothing there."""
    one, other = Queues(clock), ChannelQueues(b"another!", Limits(), clock, Counter())
    one.report(1)
    (job,) = [frame for frame in one.send() if isinstance(frame, wire.Job)]
    other.begin(A, 1)
    other.ready(wire.Ready(A, 1, 2, 0, 0, 0, JOBS))
    other.put(wire.Enqueue(C, 1, 60_000, 9, JOBS, b""))
    other.put_back(wire.Back(A, job.number, job.ttl, JOBS, b""))
    assert other.by_channel[JOBS].unsettled == 2
    assert len({*other.by_channel[JOBS].credits[A].unsettled, job.number}) == 3


# Cost


class CountingClock:
    """A clock that does not advance."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_sweep_with_nothing_due_costs_nothing() -> None:
    """A sweep with nothing due reads only the first deadline, whatever the number of queues."""
    queues = Queues(CountingClock())
    for number in range(20_000):
        queues.send(channel=b"%d" % number)
    touched: list[bytes] = []

    class Watched(dict[bytes, Any]):
        def __getitem__(self, key: bytes) -> Any:
            touched.append(key)
            return super().__getitem__(key)

        def get(self, key: bytes, default: Any = None) -> Any:
            touched.append(key)
            return super().get(key, default)

        def values(self) -> Any:
            raise AssertionError("walks over all queues")

        __iter__ = items = keys = values

    queues.by_channel = Watched(queues.by_channel)
    for _ in range(100):
        assert queues.sweep() == []
        assert queues.depth() == 20_000
        assert queues.oldest_wait() == 0
    assert touched == []
    assert queues.due() == queues.clock.now + 60


def test_a_full_queue_refuses_without_a_walk_over_its_messages(queues: Queues) -> None:
    """A full queue refuses a message without a walk over its messages: expired ones are found by their deadlines."""
    for _ in range(1000):
        queues.send(capacity=1000)
    queue = queues.by_channel[JOBS]
    before = queue.waiting

    class Watched(dict[Any, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("walks over the queue")

        items = values = keys = __iter__

    queue.waiting = Watched(before)
    assert statuses(queues.send(capacity=1000)) == [(1, Status.FULL)]


def test_messages_that_have_left_leave_no_deadlines_behind(queues: Queues) -> None:
    """Stale deadlines of messages that were read are dropped when there are many of them."""
    for _ in range(10_000):
        queues.send()
        queues.report(1, inbox=B)
        queues.report(1, 1, inbox=B, ask=Question.FORGET)
    assert len(queues._expiry) <= 2 * queues.depth() + 1000
    assert queues.depth() == 0
    assert len(queues) == 0


def test_a_backlog_that_has_been_read_leaves_no_deadlines_behind(queues: Queues) -> None:
    """A backlog that was read leaves no deadlines, which would keep most of its memory until they are over."""
    for _ in range(10_000):
        queues.send(capacity=10_000)
    queues.report(10_000)
    assert len(queues._expiry) <= 1_000


def test_a_message_that_returns_again_and_again_has_one_deadline(queues: Queues) -> None:
    """A message that is handed back repeatedly keeps few deadlines.

    A reader that is cancelled all the time must not fill the memory.
    """
    queues.send(b"hi")
    for number in range(3_000):
        (job,) = queues.report(number + 1, number)
        queues.report(number, number)
        queues.hand_back(job)
    assert len(queues._expiry) <= 1_002
    assert queues.used() == (1, 0)


# Messages that are withdrawn


def test_messages_are_withdrawn_in_order(queues: Queues) -> None:
    """Messages are withdrawn in order, which frees their memory."""
    for payload in (b"1", b"2", b"3"):
        queues.send(payload, capacity=3)
    entries, frames = queues.withdraw(JOBS, 2)
    assert ([entry.payload for entry in entries], frames) == ([b"1", b"2"], [])
    assert (list(queues.waiting), queues.depth(), queues.size) == ([JOBS], 1, ENTRY_SIZE + 1)
    queues.withdraw(JOBS, 2)
    assert (queues.waiting, queues.depth(), len(queues)) == ({}, 0, 0)


def test_channels_on_which_messages_wait_are_known(queues: Queues) -> None:
    """The channels with waiting messages are known, whether a reader, expiry or a flush removes the messages."""
    for channel in (b"read", b"expired", b"flushed"):
        queues.send(channel=channel, ttl=10 if channel == b"expired" else 60_000)
    assert list(queues.waiting) == [b"read", b"expired", b"flushed"]
    queues.report(1, channel=b"read")
    assert list(queues.waiting) == [b"expired", b"flushed"]
    queues.swept(0.01)
    assert list(queues.waiting) == [b"flushed"]
    queues.clear()
    assert list(queues.waiting) == []


def test_a_pending_message_is_accepted_when_others_are_withdrawn(queues: Queues) -> None:
    """A pending message is confirmed and waits when a withdrawal makes room."""
    queues.send(b"1")
    (job,) = (frame for frame in queues.report(1) if isinstance(frame, wire.Job))
    queues.send(b"2")
    assert statuses(queues.send(b"3", n=3)) == []
    entries, frames = queues.withdraw(JOBS, 10)
    assert [entry.payload for entry in entries] == [b"2"]
    assert statuses(seen(frames)) == [(3, Status.OK)]
    assert (job.payload, list(queues.waiting)) == (b"1", [JOBS])


# Clients that request too much


def test_one_client_begins_so_many_queues_and_no_more(clock: Clock) -> None:
    """A client creates a bounded number of queues; others still can, and so can it once some of its queues are gone."""
    queues = Queues(clock, names_per_client=2)
    for name in (b"one", b"two"):
        assert statuses(queues.send(channel=name, ttl=1_000)) == [(1, Status.OK)]
    assert statuses(queues.send(channel=b"three")) == [(1, Status.REFUSED)]
    assert queues.report(1, channel=b"three", inbox=A) == []
    assert statuses(queues.send(channel=b"three")) == [(1, Status.OK)], "another client has begun it"
    queues.swept(1.0)
    for name in (b"one", b"two"):
        assert statuses(queues.send(channel=name)) == [(1, Status.OK)]
    assert queues.drops == {"queue_names": 1, "expired": 2}


@pytest.mark.parametrize("way", ["sent", "handed back"])
def test_no_message_waits_longer_than_permitted(clock: Clock, way: str) -> None:
    """No message waits longer than the limit, whatever time to live its sender states."""
    queues = Queues(clock, max_ttl=5_000)
    if way == "sent":
        queues.send(ttl=60_000)
    else:
        queues.hand_back(wire.Job(A, 1, 1, 1, 60_000, JOBS, b""))
    queues.swept(4.9)
    assert queues.depth() == 1
    queues.swept(0.2)
    assert queues.depth() == 0
