"""Requests that wait for an answer, by number, and what to repeat until it is there.

Pure. Most requests may be repeated without harm, and are, since any frame may be lost when a connection dies. A message
for a normal channel is never repeated.
"""

import itertools
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

REPEAT_EVERY = 1.0
"""Seconds between two sendings of a request."""
NEVER = 60.0

Waiter = TypeVar("Waiter")

_numbers = itertools.count(1)


def next_number() -> int:
    """Return a request number that is unique within this process."""
    return next(_numbers)


@dataclass(slots=True, eq=False)
class Request(Generic[Waiter]):
    """A request under way.

    Attributes:
        frame: What is sent.
        upstream: Whether it goes the subscribers' way.
        repeats: Whether it may be sent again.
        waiter: Is woken by the answer; None for a request of another process.
        reply: Frame that is sent once the answer is there, for a request of another process.
        answer: The status, or the error, once it is known.
    """

    frame: bytes
    upstream: bool = False
    repeats: bool = True
    waiter: Waiter | None = None
    reply: bytes = b""
    answer: int | Exception | None = None


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

    def answered(self, number: int, answer: int | Exception) -> Request[Waiter] | None:
        """Note an answer and return its request; None if nobody waits for it, or it has one already."""
        request = self._open.get(number)
        if request is None or request.answer is not None:
            return None
        request.answer = answer
        return request

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

    def upstream(self) -> list[bytes]:
        """Return the frames of the unanswered requests that went the subscribers' way and may be repeated."""
        return [one.frame for one in self._open.values() if one.upstream and one.repeats and one.answer is None]

    def due(self, now: float) -> float:
        """Return when to call `to_repeat`.

        It is not called without a connection, so a request may be overdue: that one is looked at again later, not now.
        """
        while self._due and self._due[0][1] not in self._open:
            self._due.popleft()
        if not self._due:
            return now + NEVER
        at, _ = self._due[0]
        return at if at > now else now + REPEAT_EVERY
