"""Flushes that are under way: who asked for each, and which clients have yet to answer. Pure.

While there is one, messages are dropped; it is over when all clients have answered or gone, or when its time is up.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from channels_zmq_forwarder import wire

MAX_FLUSH = 30.0
"""Seconds that a flush may hold messages up, whatever its sender wishes."""
MAX_FLUSHES = 16
"""Flushes that may be under way at a time; further ones are refused."""


@dataclass(slots=True)
class _Flush:
    number: int
    request: wire.Flush
    deadline: float
    waiting: set[bytes]


class Flushes:
    """All flushes of an exchange.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._under_way: dict[int, _Flush] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, request: wire.Flush, clients: Iterable[bytes]) -> list[bytes] | None:
        """Begin a flush; return the frames that tell every client to empty itself, or None if there are too many."""
        if len(self._under_way) >= MAX_FLUSHES:
            return None
        self._number += 1
        waiting = set(clients)
        deadline = self._clock() + min(request.ttl / 1000, MAX_FLUSH)
        self._under_way[self._number] = _Flush(self._number, request, deadline, waiting)
        return [_empty(inbox, self._number) for inbox in clients]

    def again(self, inbox: bytes) -> list[bytes]:
        """Return the frames for a client that may have missed them."""
        return [_empty(inbox, flush.number) for flush in self._under_way.values() if inbox in flush.waiting]

    def answered(self, answer: wire.Flushed) -> list[wire.Flush]:
        """Note a client's answer; return the requests that are done by it."""
        flush = self._under_way.get(answer.n)
        return self._done_without(answer.inbox, [flush] if flush else [])

    def gone(self, inbox: bytes) -> list[wire.Flush]:
        """Wait for a client no longer; return the requests that are done by it."""
        return self._done_without(inbox, list(self._under_way.values()))

    def due(self) -> float:
        """Return when `expire` has something to do."""
        return min((flush.deadline for flush in self._under_way.values()), default=inf)

    def expire(self) -> None:
        """End those whose time is up; whoever asked hears nothing."""
        now = self._clock()
        self._under_way = {number: flush for number, flush in self._under_way.items() if flush.deadline > now}

    def _done_without(self, inbox: bytes, flushes: list[_Flush]) -> list[wire.Flush]:
        for flush in flushes:
            flush.waiting.discard(inbox)
        done = [flush for flush in flushes if not flush.waiting]
        for flush in done:
            del self._under_way[flush.number]
        return [flush.request for flush in done]


def _empty(inbox: bytes, number: int) -> bytes:
    return wire.EMPTY.encode(wire.Empty(inbox, number))
