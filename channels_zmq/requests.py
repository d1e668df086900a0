"""Requests that wait for an answer, by number: who waits, and what to repeat until it comes.

Pure. Most requests may be repeated without harm, and are, since any frame may be lost when a connection dies; a message
for a plain channel never is.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

REPEAT_EVERY = 1.0
NEVER = 60.0

Answer = Callable[[int | Exception], None]

_numbers = itertools.count(1)


def next_number() -> int:
    """Return a number that no other request of this process has, ever."""
    return next(_numbers)


@dataclass(slots=True)
class Request:
    """A request under way.

    Attributes:
        answer: Called once with the status, or with an error.
        frame: What was sent.
        upstream: Whether it went the subscribers' way.
        repeat: Whether it may be sent again.
        repeat_at: When.
    """

    answer: Answer
    frame: bytes
    upstream: bool
    repeat: bool
    repeat_at: float


class Requests:
    """The requests of one connection."""

    def __init__(self) -> None:
        self._open: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, number: int, request: Request) -> None:
        """Note a request."""
        self._open[number] = request

    def end(self, number: int) -> None:
        """Forget a request, because it was answered or nobody waits any more."""
        self._open.pop(number, None)

    def answered(self, number: int, status: int) -> None:
        """Hand an answer to whoever waits for it; one that nobody waits for is ignored."""
        request = self._open.get(number)
        if request is not None:
            request.answer(status)

    def fail(self, error: Exception) -> None:
        """Hand an error to everybody who waits."""
        for request in list(self._open.values()):
            request.answer(error)

    def to_repeat(self, now: float) -> Iterator[tuple[int, Request]]:
        """Yield the requests that have waited long enough to be sent again."""
        for number, request in list(self._open.items()):
            if request.repeat and request.repeat_at <= now:
                request.repeat_at = now + REPEAT_EVERY
                yield number, request

    def upstream(self) -> list[Request]:
        """Return the requests that went the subscribers' way and may be repeated."""
        return [request for request in self._open.values() if request.upstream and request.repeat]

    def due(self, now: float) -> float:
        """Return when to look again at the latest."""
        return min((request.repeat_at for request in self._open.values() if request.repeat), default=now + NEVER)
