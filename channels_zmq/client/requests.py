"""Requests that wait for an answer, by number, and which of them to repeat until the answer arrives.

Pure. Most requests are idempotent and are repeated, since any frame may be lost when a connection fails. A message for
a normal channel is never repeated: if its exchange is lost before it has answered, the outcome is unknown.

A request *to all* is sent to every exchange. It is answered once all reachable exchanges have answered, and at least
one; it does not wait for an exchange that is lost.
"""

import itertools
import os
from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

from channels_zmq_forwarder import wire

REPEAT_EVERY = 1.0
"""Seconds between two sendings of a request."""
LOST = -1
"""The answer of a request whose exchange was lost before it answered: the outcome is unknown."""

Waiter = TypeVar("Waiter")

RANDOM_BITS = 24
"""Random bits among the 64 of a request number; the others last for three years at 10,000 requests a second."""
_RANDOM_BYTES = 4096
"""Random bytes drawn at a time: each system call takes as long as the rest of a request's start."""
_numbers = itertools.count(1)
_random: list[int] = []
"""Random numbers of 32 bits, each for one request."""


def next_number() -> int:
    """Return a request number that is unique within this process, and larger than all before.

    Its low bits are random: another client cannot confirm a request that it has not seen.
    """
    try:
        random = _random.pop()
    except IndexError:
        _random.extend(memoryview(os.urandom(_RANDOM_BYTES)).cast("I"))
        random = _random.pop()
    return next(_numbers) << RANDOM_BITS | random >> 32 - RANDOM_BITS


@dataclass(slots=True, eq=False)
class Request(Generic[Waiter]):
    """A request under way.

    Attributes:
        frame: What is sent.
        repeats: Whether it may be sent again.
        to_all: Whether it is sent to every exchange, by the subscribers' way, and each has to answer it.
        waiter: Is woken by the answer; None for a request of another process.
        key: Chooses the exchange of a request to one.
        member: The normal channel that it adds to a group, to be noted once it is confirmed.
        answer: The status, or the error, once it is known.
        asked: The exchanges that have yet to answer; of a request to one, the exchange that it was sent to.
        status: The highest status that an exchange has answered so far.
    """

    frame: bytes
    repeats: bool = True
    to_all: bool = False
    waiter: Waiter | None = None
    key: bytes = b""
    member: wire.Member | None = None
    answer: int | Exception | None = None
    asked: set[object] = field(default_factory=set)
    status: int | None = None


class Requests(Generic[Waiter]):
    """The requests of one client."""

    def __init__(self) -> None:
        self._open: dict[int, Request[Waiter]] = {}
        self._due: deque[tuple[float, int]] = deque()  # in order: all are repeated after the same time

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, number: int, request: Request[Waiter], now: float) -> None:
        """Add a request that is sent now."""
        self._open[number] = request
        if request.repeats:
            self._due.append((now + REPEAT_EVERY, number))

    def end(self, number: int) -> None:
        """Forget a request: it was answered, or its caller has given up."""
        self._open.pop(number, None)

    def answered(self, number: int, answer: int | Exception, exchange: object = None) -> Request[Waiter] | None:
        """Note an answer; return its request if that completes it, None if it does not, or if the request has ended.

        Args:
            number: Of the request.
            answer: A status, or the error by which the request fails as a whole.
            exchange: The one that has answered.
        """
        request = self._open.get(number)
        if request is None or request.answer is not None:
            return None
        if request.to_all and isinstance(answer, int):
            request.asked.discard(exchange)
            request.status = max(answer, request.status or 0)
            if request.asked:
                return None
            answer = request.status
        request.answer = answer
        return request

    def is_open(self, number: int) -> bool:
        """Return whether a request with this number is under way."""
        return number in self._open

    def sent_by(self, number: int, exchange: object) -> None:
        """Note the exchange that a request to one was sent to."""
        request = self._open.get(number)
        if request is not None and not request.to_all:
            request.asked = {exchange}

    def answer_for_nobody(self, status: int) -> list[tuple[int, Request[Waiter]]]:
        """Answer the requests to all with a status, since no exchange exists; return them."""
        completed = [(number, one) for number, one in self._open.items() if one.to_all and one.answer is None]
        for _, request in completed:
            request.answer = status
        return completed

    def reached(self, exchange: object) -> list[Request[Waiter]]:
        """Let requests to all wait for an exchange that was reached just now; return those that it must get."""
        open_to_all = [one for one in self._open.values() if one.to_all and one.answer is None]
        for request in open_to_all:
            request.asked.add(exchange)
        return open_to_all

    def fail_sent_to(self, exchange: object) -> list[tuple[int, Request[Waiter]]]:
        """Answer with `LOST` the requests that only this exchange could have answered, and will not; return them."""
        sent = [
            (number, one)
            for number, one in self._open.items()
            if one.answer is None and not one.to_all and not one.repeats and exchange in one.asked
        ]
        for _, request in sent:
            request.answer = LOST
        return sent

    def stop_waiting_for(self, exchange: object) -> list[tuple[int, Request[Waiter]]]:
        """Stop waiting for an exchange; return the requests to all that this completes."""
        completed = []
        for number, request in self._open.items():
            if request.to_all and request.answer is None and exchange in request.asked:
                request.asked.discard(exchange)
                if not request.asked and request.status is not None:
                    request.answer = request.status
                    completed.append((number, request))
        return completed

    def fail(self, error: Exception) -> list[Request[Waiter]]:
        """Answer every open request that a caller waits for with an error, and return them."""
        waiting = [number for number, request in self._open.items() if request.waiter is not None]
        return [request for number in waiting if (request := self.answered(number, error)) is not None]

    def to_repeat(self, now: float) -> list[tuple[int, Request[Waiter]]]:
        """Return the requests that are due to be sent again."""
        due = []
        while self._due and self._due[0][0] <= now:
            _, number = self._due.popleft()
            request = self._open.get(number)
            if request is not None and request.answer is None:
                self._due.append((now + REPEAT_EVERY, number))
                due.append((number, request))
        return due

    def due(self, now: float) -> float:
        """Return when to call `to_repeat`.

        `to_repeat` is not called without a connection, so a request may be overdue: it is checked again later, not now.
        """
        while self._due and self._due[0][1] not in self._open:
            self._due.popleft()
        if not self._due:
            return inf
        at, _ = self._due[0]
        return at if at > now else now + REPEAT_EVERY
