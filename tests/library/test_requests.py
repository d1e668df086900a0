"""Requests that wait for an answer."""

import pytest

from channels_zmq.requests import NEVER, REPEAT_EVERY, Request, Requests, next_number


@pytest.fixture
def requests():
    return Requests()


def request(answers=None, *, upstream=False, repeat=True, repeat_at=1.0):
    answer = (lambda status: None) if answers is None else answers.append
    return Request(answer, b"frame", upstream, repeat, repeat_at)


def test_no_number_is_given_twice():
    """0 is none of them: it stands for no request."""
    numbers = [next_number() for _ in range(1000)]
    assert len(set(numbers)) == 1000
    assert min(numbers) > 0


def test_an_answer_reaches_who_waits_for_it(requests):
    """And nobody else."""
    mine, theirs = [], []
    requests.begin(1, request(mine))
    requests.begin(2, request(theirs))
    requests.answered(1, 3)
    assert (mine, theirs) == ([3], [])


def test_an_answer_that_nobody_waits_for_is_ignored(requests):
    """It may come twice, or after the timeout."""
    answers = []
    requests.begin(1, request(answers))
    requests.end(1)
    requests.answered(1, 0)
    requests.answered(2, 0)
    assert answers == []
    assert len(requests) == 0


def test_a_request_may_be_ended_twice(requests):
    """By its answer and by whoever gave up."""
    requests.begin(1, request())
    requests.end(1)
    requests.end(1)
    assert len(requests) == 0


def test_a_failure_reaches_everybody_who_waits(requests):
    """Also when each of them ends its request on being told."""
    told = []

    def answer_of(number):
        def answer(error):
            told.append((number, error))
            requests.end(number)

        return answer

    for number in (1, 2):
        requests.begin(number, Request(answer_of(number), b"", False, True, 1.0))
    error = ConnectionError()
    requests.fail(error)
    assert told == [(1, error), (2, error)]
    assert len(requests) == 0


def test_a_request_is_repeated_until_its_answer_comes(requests):
    """At its time, then at a steady pace, and not once it has ended."""
    requests.begin(1, request(repeat_at=1.0))
    times = [0.9, 1.0, 1.9, 1.0 + REPEAT_EVERY]
    assert [[number for number, _ in requests.to_repeat(now)] for now in times] == [[], [1], [], [1]]
    requests.end(1)
    assert list(requests.to_repeat(99.0)) == []


def test_what_must_not_be_repeated_never_is(requests):
    """A message for a plain channel goes once, whatever is lost."""
    requests.begin(1, request(repeat=False, upstream=True))
    assert list(requests.to_repeat(99.0)) == []
    assert requests.upstream() == []
    assert requests.due(5.0) == 5.0 + NEVER


def test_a_request_may_end_while_others_are_repeated(requests):
    """Sending one again may answer another."""
    requests.begin(1, request())
    requests.begin(2, request())
    repeated = []
    for number, _ in requests.to_repeat(1.0):
        repeated.append(number)
        requests.end(2)
    assert repeated[0] == 1
    assert len(requests) == 1


def test_only_what_went_the_subscribers_way_is_sent_again_there(requests):
    """A new connection of the subscriber has lost just these."""
    went_up, went_down = request(upstream=True), request()
    requests.begin(1, went_up)
    requests.begin(2, went_down)
    assert requests.upstream() == [went_up]


def test_the_next_look_is_due_with_the_earliest_request(requests):
    """Without one it is far away."""
    assert requests.due(5.0) == 5.0 + NEVER
    requests.begin(1, request(repeat_at=9.0))
    requests.begin(2, request(repeat_at=7.0))
    assert requests.due(5.0) == 7.0
