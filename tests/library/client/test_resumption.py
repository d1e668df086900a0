"""The messages that may not have reached a process, and the request for them."""

import pytest
from fakes import Clock

from channels_zmq.client.memberships import REMEMBERED
from channels_zmq.client.resumption import (
    ARRIVED_WITHIN,
    ATTEMPTS,
    BACK_WITHIN,
    ON_THE_WAY,
    READ_WITHIN,
    REPLAYED_WITHIN,
    WAITS_AT_MOST,
    Resumption,
)
from channels_zmq_forwarder import history, wire
from channels_zmq_forwarder.replays import ANSWERED_WITHIN

INBOX = b"0123456789abcdef"
TOPICS = [wire.group_topic("g"), wire.group_topic("h")]
LONGEST = 0.5
PART = REPLAYED_WITHIN + LONGEST
MARGIN_MS = 1000 * (ON_THE_WAY + READ_WITHIN)


@pytest.fixture
def resumption(clock: Clock) -> Resumption:
    return Resumption(INBOX, LONGEST, clock)


def request(resumption: Resumption, session: int = 2, topics: list[wire.Topic] = TOPICS) -> wire.Resume | None:
    frame = resumption.request(session, lambda: topics)
    return None if frame is None else wire.RESUME.decode(frame)


def test_whatever_is_replayed_is_recognised_by_its_run() -> None:
    """A topic that was left is remembered for longer than the history, so that each replayed message is recognized."""
    assert history.SECONDS + ANSWERED_WITHIN < REMEMBERED


def test_nothing_is_asked_for_if_nothing_can_be_missing(resumption: Resumption) -> None:
    """A process that was not connected to any exchange before requests nothing, nor does it look at its groups."""
    assert resumption.request(1, lambda: pytest.fail("it looks at its groups")) is None
    assert resumption.until == 0.0


def test_what_was_published_since_everything_had_arrived_is_asked_for(resumption: Resumption, clock: Clock) -> None:
    """The request covers the time since everything had arrived, plus a margin for messages in transit then."""
    resumption.lacks(clock.now - 2.0)
    hashes = wire.encode_hashes(TOPICS)
    assert request(resumption) == wire.Resume(INBOX, 2, 2000 + int(MARGIN_MS), 0, hashes)
    assert resumption.until == clock.now + PART


def test_a_cut_before_the_answer_adds_to_what_is_missing(resumption: Resumption, clock: Clock) -> None:
    """After another cut the request still covers the first one, and only the new session's answer counts."""
    resumption.lacks(clock.now - 2.0)
    for _ in range(ATTEMPTS):
        request(resumption)
    clock.now += 1.0
    resumption.lacks(clock.now - 0.1)
    asked = request(resumption, 3)
    assert asked is not None
    assert asked.age == 3000 + MARGIN_MS
    assert [resumption.is_answered_by(wire.Replayed(INBOX, session, 1)) for session in (2, 3)] == [False, True]


def test_the_end_of_an_answer_that_is_read_after_another_cut_leaves_something_missing(
    resumption: Resumption, clock: Clock
) -> None:
    """The end of an answer that is read after another cut covers the first cut only, so a further request follows."""
    resumption.lacks(clock.now - 2.0)
    request(resumption)
    resumption.lacks(clock.now - 0.1)
    resumption.ended()
    asked = request(resumption, 3)
    assert asked is not None
    assert asked.age == 2000 + MARGIN_MS
    resumption.ended()
    assert request(resumption, 4) is None


def test_nothing_is_missing_after_the_answer(resumption: Resumption, clock: Clock) -> None:
    """After the answer nothing is requested until the next cut."""
    resumption.lacks(clock.now - 2.0)
    request(resumption)
    resumption.ended()
    assert (resumption.until, request(resumption)) == (0.0, None)
    resumption.lacks(clock.now - 0.1)
    asked = request(resumption)
    assert asked is not None
    assert asked.age == 100 + MARGIN_MS


@pytest.mark.parametrize("count, every", [(0, 0), (wire.MAX_HASHES, 0), (wire.MAX_HASHES + 1, 1)])
def test_a_process_with_many_groups_asks_for_all(resumption: Resumption, clock: Clock, count: int, every: int) -> None:
    """A process with more groups than a request can list requests all messages, so that the frame is small enough."""
    resumption.lacks(clock.now)
    asked = request(resumption, topics=[wire.group_topic(f"g{number}") for number in range(count)])
    assert asked is not None
    assert (asked.every, len(asked.topics)) == (every, 0 if every else 4 * count)
    assert len(wire.RESUME.encode(asked)) <= wire.MAX_UPSTREAM


def test_an_exchange_that_never_answers_is_not_waited_for_without_end(resumption: Resumption, clock: Clock) -> None:
    """The wait for an exchange that never answers is bounded, however often the hello is repeated."""
    resumption.lacks(clock.now - 2.0)
    begun = clock.now
    for _ in range(10):
        request(resumption)
        clock.now += REPLAYED_WITHIN
    assert resumption.until == begun + ANSWERED_WITHIN + LONGEST


def flap(resumption: Resumption, clock: Clock, seconds: float) -> float:
    """Let a connection come and break without an answer; return for how long that was waited for."""
    waited = 0.0
    for session in range(round(seconds / 0.5)):
        resumption.lacks(clock.now)
        request(resumption, session)
        waited += min(0.5, max(0.0, resumption.until - clock.now))
        clock.now += 0.5
    return waited


def test_a_connection_that_breaks_again_and_again_is_not_waited_for_without_end(
    resumption: Resumption, clock: Clock
) -> None:
    """Messages of other exchanges wait no longer than `WAITS_AT_MOST` for one that answers nothing, until it does."""
    assert flap(resumption, clock, 2 * WAITS_AT_MOST) == pytest.approx(WAITS_AT_MOST + LONGEST)
    assert resumption.is_answered_by(wire.Replayed(INBOX, resumption._session, last=0))
    assert flap(resumption, clock, 2 * WAITS_AT_MOST) == pytest.approx(WAITS_AT_MOST + LONGEST, abs=0.5)


def test_an_answer_is_expected_before_it_is_asked_for(resumption: Resumption, clock: Clock) -> None:
    """An answer is expected from the cut on, because messages of other exchanges belong behind those to be replayed."""
    resumption.lacks(clock.now - 2.0)
    assert resumption.until == clock.now + BACK_WITHIN
    clock.now += 0.1
    request(resumption)
    assert resumption.until == clock.now + PART


def test_an_answer_in_many_parts_is_waited_for_while_they_arrive(resumption: Resumption, clock: Clock) -> None:
    """The wait for an answer is extended by each of its parts, up to a bound, and not by parts of an earlier answer."""
    resumption.lacks(clock.now - 2.0)
    request(resumption)
    begun = clock.now
    for _ in range(5):
        clock.now += REPLAYED_WITHIN / 2
        resumption.is_answered_by(wire.Replayed(INBOX, 1, 0))
    assert resumption.until == begun + PART
    clock.now = begun
    for _ in range(30):
        clock.now += REPLAYED_WITHIN / 2
        resumption.is_answered_by(wire.Replayed(INBOX, 2, 0))
        assert resumption.until == min(clock.now + PART, begun + ARRIVED_WITHIN + LONGEST)


def test_the_same_messages_are_asked_for_a_few_times(resumption: Resumption, clock: Clock) -> None:
    """The same messages are requested `ATTEMPTS` times: after that, their replay may itself break each connection."""
    resumption.lacks(clock.now - 2.0)
    for session in range(2, 2 + ATTEMPTS):
        asked = request(resumption, session)
        assert asked is not None
        assert asked.age == 2000 + MARGIN_MS
    resumption.lacks(clock.now)
    asked = request(resumption, 9)
    assert asked is not None
    assert asked.age == MARGIN_MS
