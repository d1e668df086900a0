"""Requests that wait for an answer."""

import itertools
from math import inf
from typing import Any

import pytest
from fakes import Reader

from channels_zmq.client.requests import LOST, REPEAT_EVERY, Request, Requests, next_number


@pytest.fixture
def requests() -> Requests[Reader]:
    return Requests()


def request(frame: bytes = b"frame", **fields: Any) -> Request[Reader]:
    return Request(frame, **{"waiter": Reader()} | fields)


def numbers(due: list[tuple[int, Request[Reader]]]) -> list[int]:
    return [number for number, _ in due]


def test_no_number_is_given_twice() -> None:
    """Request numbers are unique and positive, because 0 stands for no request."""
    given = [next_number() for _ in range(1000)]
    assert given == sorted(set(given))
    assert min(given) > 0


def test_nobody_can_predict_a_number() -> None:
    """Request numbers are unpredictable; otherwise a peer could confirm the next request in the exchange's name."""
    given = [next_number() for _ in range(1000)]
    steps = {after - before for before, after in itertools.pairwise(given)}
    assert len(steps) > 900


@pytest.mark.parametrize("answer", [0, 3, ConnectionError()])
def test_an_answer_is_noted_at_its_request(requests: Requests[Reader], answer: ConnectionError | int) -> None:
    """An answer, a status including 0 or an error, is recorded at its request only."""
    mine, other = request(), request()
    requests.begin(1, mine, 0.0)
    requests.begin(2, other, 0.0)
    assert requests.answered(1, answer) is mine
    assert (mine.answer, other.answer) == (answer, None)


@pytest.mark.parametrize("is_late", ["twice", "after the end", "unknown"])
def test_a_late_answer_changes_nothing(requests: Requests[Reader], is_late: str) -> None:
    """A late answer changes nothing: the first answer stays, and a caller that has given up gets none."""
    mine = request()
    requests.begin(1, mine, 0.0)
    first = 5 if is_late == "twice" else None
    if is_late == "twice":
        requests.answered(1, 5)
    elif is_late == "after the end":
        requests.end(1)
    assert requests.answered(2 if is_late == "unknown" else 1, 0) is None
    assert mine.answer == first


def test_a_request_may_be_ended_twice(requests: Requests[Reader]) -> None:
    """A request may be ended twice, by its answer and by its caller."""
    requests.begin(1, request(), 0.0)
    requests.end(1)
    requests.end(1)
    assert len(requests) == 0


def test_a_failure_reaches_every_waiter_without_an_answer(requests: Requests[Reader]) -> None:
    """A failure reaches each waiting request without an answer, and no request of another process."""
    open_one, answered, foreign = request(), request(), request(b"sync", waiter=None)
    for number, one in enumerate((open_one, answered, foreign)):
        requests.begin(number, one, 0.0)
    requests.answered(1, 0)
    error = ConnectionError()
    assert requests.fail(error) == [open_one]
    assert [one.answer for one in (open_one, answered, foreign)] == [error, 0, None]


def test_a_request_is_repeated_at_a_steady_pace_until_it_is_answered(requests: Requests[Reader]) -> None:
    """A request is repeated every `REPEAT_EVERY` until it is answered, even if its caller takes the answer later."""
    requests.begin(1, request(), 10.0)
    times = [10.9, 10.0 + REPEAT_EVERY, 11.9, 11.0 + REPEAT_EVERY]
    assert [numbers(requests.to_repeat(now)) for now in times] == [[], [1], [], [1]]
    requests.answered(1, 0)
    assert requests.to_repeat(99.0) == []
    assert requests.due(99.0) == inf


def test_a_request_that_has_ended_is_not_repeated(requests: Requests[Reader]) -> None:
    """A request whose caller has given up is not repeated."""
    requests.begin(1, request(), 0.0)
    requests.end(1)
    assert requests.to_repeat(99.0) == []


def test_requests_are_repeated_in_the_order_in_which_they_began(requests: Requests[Reader]) -> None:
    """Requests are repeated in the order in which they began, each at its own time."""
    for number, now in ((3, 0.0), (1, 0.0), (2, 1.0)):
        requests.begin(number, request(), now)
    assert [numbers(requests.to_repeat(now)) for now in (1.0, 2.0)] == [[3, 1], [2, 3, 1]]


def test_a_message_for_a_normal_channel_is_never_repeated(requests: Requests[Reader]) -> None:
    """A message for a normal channel is sent once and never repeated, even after a loss."""
    requests.begin(1, request(repeats=False), 0.0)
    assert requests.to_repeat(99.0) == []
    assert requests.due(5.0) == inf


A, B, C = "abc"  # exchanges


def to_all(*asked: str, **fields: Any) -> Request[Reader]:
    return request(to_all=True, asked=set(asked), **fields)


def test_a_request_to_all_is_answered_by_the_last_one(requests: Requests[Reader]) -> None:
    """A request to all exchanges is answered by the last one, with the highest status of all answers."""
    mine = to_all(A, B, C)
    requests.begin(1, mine, 0.0)
    assert [requests.answered(1, status, one) for one, status in ((A, 0), (A, 0), (C, 2))] == [None, None, None]
    assert requests.answered(1, 0, B) is mine
    assert mine.answer == 2


def test_a_request_to_all_does_not_wait_for_an_exchange_that_is_lost(requests: Requests[Reader]) -> None:
    """The loss of the last exchange without an answer completes a request to all."""
    mine = to_all(A, B)
    requests.begin(1, mine, 0.0)
    requests.answered(1, 0, A)
    assert requests.stop_waiting_for(B) == [(1, mine)]
    assert mine.answer == 0


def test_a_request_to_all_needs_one_answer(requests: Requests[Reader]) -> None:
    """A request to all needs at least one answer: while no exchange is reachable, it waits for the next one."""
    mine = to_all(A)
    requests.begin(1, mine, 0.0)
    assert requests.stop_waiting_for(A) == []
    assert requests.reached(B) == [mine]
    assert requests.answered(1, 0, B) is mine


def test_a_request_to_all_waits_for_an_exchange_that_comes_meanwhile(requests: Requests[Reader]) -> None:
    """A request to all without an answer also waits for an exchange that appears meanwhile; other requests do not."""
    mine, answered, single = to_all(A), to_all(A), request()
    for number, one in enumerate((mine, answered, single)):
        requests.begin(number, one, 0.0)
    requests.answered(1, 0, A)
    assert requests.reached(B) == [mine]
    assert requests.answered(0, 0, A) is None
    assert requests.answered(0, 0, B) is mine


def test_the_loss_of_its_exchange_ends_a_request_that_may_not_be_repeated(requests: Requests[Reader]) -> None:
    """The loss of its exchange ends a sent request that may not be repeated, because its outcome is unknown."""
    sent, repeats, held, elsewhere = (request(repeats=number == 1) for number in range(4))
    for number, one in enumerate((sent, repeats, held, elsewhere)):
        requests.begin(number, one, 0.0)
    requests.sent_by(0, A)
    requests.sent_by(1, A)
    requests.sent_by(3, B)
    assert requests.fail_sent_to(A) == [(0, sent)]
    assert [one.answer for one in (sent, repeats, held, elsewhere)] == [LOST, None, None, None]


def test_the_next_repetition_is_known(requests: Requests[Reader]) -> None:
    """The time of the next repetition is known, and is far away without a request."""
    assert requests.due(5.0) == inf
    requests.begin(1, request(), 6.0)
    requests.begin(2, request(), 7.0)
    assert requests.due(6.5) == 6.0 + REPEAT_EVERY


def test_an_overdue_request_is_looked_at_again_later(requests: Requests[Reader]) -> None:
    """An overdue request without a connection is due again later, so that the housekeeping does not spin."""
    requests.begin(1, request(), 6.0)
    assert requests.due(6.0 + REPEAT_EVERY) == 6.0 + 2 * REPEAT_EVERY
    assert numbers(requests.to_repeat(9.0)) == [1]


def test_requests_that_have_ended_during_an_outage_leave_nothing(requests: Requests[Reader]) -> None:
    """Requests that ended during an outage leave no entry, although none of their repetitions was sent."""
    for number in range(1000):
        requests.begin(number, request(), number / 100)
        requests.end(number)
        requests.due(number / 100)
    assert requests.due(99.0) == inf
    assert len(requests._due) == 0


def test_nothing_due_looks_at_no_request(requests: Requests[Reader]) -> None:
    """With 100,000 open requests and nothing due, only the first entry is compared."""
    for number in range(100_000):
        requests.begin(number, request(), 0.0)
    del requests._open  # any access would raise
    assert requests.to_repeat(REPEAT_EVERY - 0.1) == []


def test_where_there_is_no_exchange_requests_to_all_are_answered_at_once(requests: Requests[Reader]) -> None:
    """Without an exchange, requests to all are answered at once, and those to one exchange continue to wait."""
    to_all, answered, to_one = request(to_all=True), request(to_all=True), request()
    for number, one in enumerate((to_all, answered, to_one), 1):
        requests.begin(number, one, 0.0)
    to_all.asked = {"exchange"}
    requests.answered(2, 3)
    assert requests.answer_for_nobody(0) == [(1, to_all)]
    assert [one.answer for one in (to_all, answered, to_one)] == [0, 3, None]
