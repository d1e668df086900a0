"""Flushes in progress: the request of each, and the clients that have not answered yet. Pure.

During a flush messages are dropped. It ends when all clients have answered or disconnected, or at its deadline: a
silent client must not prevent others from sending. It empties itself once it reads its `Empty` frame. Answers may
arrive on the producers' port, so the request to each client has a number that other clients cannot guess.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from channels_zmq_forwarder import wire

MAX_FLUSH = 1.0
"""Seconds after which a flush ends, even if its sender requests a longer `ttl`."""
MAX_FLUSHES = 16
"""Flushes that may be under way at a time; the exchange refuses others."""


@dataclass(slots=True, eq=False)
class _Flush:
    request: wire.Flush
    deadline: float
    waiting: dict[bytes, int]
    """The number of the request to each client that has not answered yet."""


class Flushes:
    """All flushes of an exchange.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._under_way: list[_Flush] = []

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, request: wire.Flush, clients: Iterable[bytes]) -> list[bytes] | None:
        """Begin a flush; return the `Empty` frames for every client, or None if too many flushes are under way."""
        if len(self._under_way) >= MAX_FLUSHES:
            return None
        flush = _Flush(
            request,
            self._clock() + min(request.ttl / 1000, MAX_FLUSH),
            {inbox: secrets.randbits(64) for inbox in clients},
        )
        self._under_way.append(flush)
        return [_empty(inbox, number) for inbox, number in flush.waiting.items()]

    def again(self, inbox: bytes) -> list[bytes]:
        """Return the `Empty` frames for a client that has reconnected and may have missed them."""
        return [_empty(inbox, flush.waiting[inbox]) for flush in self._under_way if inbox in flush.waiting]

    def answered(self, answer: wire.Flushed) -> list[wire.Flush]:
        """Process a client's answer; return the requests that it completes."""
        flushes = [flush for flush in self._under_way if flush.waiting.get(answer.inbox) == answer.n]
        return self._done_without(answer.inbox, flushes)

    def gone(self, inbox: bytes) -> list[wire.Flush]:
        """Stop waiting for a client that has disconnected; return the requests that this completes."""
        return self._done_without(inbox, self._under_way)

    def due(self) -> float:
        """Return when `expire` has something to do."""
        return min((flush.deadline for flush in self._under_way), default=inf)

    def expire(self) -> list[wire.Flush]:
        """End the flushes whose deadline has passed; return their requests, which are not completed."""
        now = self._clock()
        return self._end([flush for flush in self._under_way if flush.deadline <= now])

    def _done_without(self, inbox: bytes, flushes: list[_Flush]) -> list[wire.Flush]:
        for flush in flushes:
            flush.waiting.pop(inbox, None)
        return self._end([flush for flush in flushes if not flush.waiting])

    def _end(self, flushes: list[_Flush]) -> list[wire.Flush]:
        self._under_way = [flush for flush in self._under_way if flush not in flushes]
        return [flush.request for flush in flushes]


def _empty(inbox: bytes, number: int) -> bytes:
    return wire.EMPTY.encode(wire.Empty(inbox, number))
