"""Flushes that are under way: the request of each, and the clients that have not answered yet. Pure.

During a flush messages are dropped. It ends when all clients have answered or disconnected, or at its deadline: a
silent client must not keep the others from sending. It empties itself once it reads its `Empty` frame.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf

from channels_zmq_forwarder import wire

MAX_FLUSH = 1.0
"""Seconds after which a flush ends, whatever `ttl` its sender asks for."""
MAX_FLUSHES = 16
"""Flushes that may be under way at a time; the exchange refuses others."""


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
        """Begin a flush; return the `Empty` frames for every client, or None if too many flushes are under way."""
        if len(self._under_way) >= MAX_FLUSHES:
            return None
        self._number += 1
        waiting = set(clients)
        deadline = self._clock() + min(request.ttl / 1000, MAX_FLUSH)
        self._under_way[self._number] = _Flush(self._number, request, deadline, waiting)
        return [_empty(inbox, self._number) for inbox in clients]

    def again(self, inbox: bytes) -> list[bytes]:
        """Return the `Empty` frames for a client that has reconnected and may have missed them."""
        return [_empty(inbox, flush.number) for flush in self._under_way.values() if inbox in flush.waiting]

    def answered(self, answer: wire.Flushed) -> list[wire.Flush]:
        """Process a client's answer; return the requests that it completes."""
        flush = self._under_way.get(answer.n)
        return self._done_without(answer.inbox, [flush] if flush else [])

    def gone(self, inbox: bytes) -> list[wire.Flush]:
        """Stop waiting for a client that has disconnected; return the requests that this completes."""
        return self._done_without(inbox, list(self._under_way.values()))

    def due(self) -> float:
        """Return when `expire` has something to do."""
        return min((flush.deadline for flush in self._under_way.values()), default=inf)

    def expire(self) -> list[wire.Flush]:
        """End the flushes whose deadline has passed; return their requests, which are not completed."""
        now = self._clock()
        late = [number for number, flush in self._under_way.items() if flush.deadline <= now]
        return [self._under_way.pop(number).request for number in late]

    def _done_without(self, inbox: bytes, flushes: list[_Flush]) -> list[wire.Flush]:
        for flush in flushes:
            flush.waiting.discard(inbox)
        done = [flush for flush in flushes if not flush.waiting]
        for flush in done:
            del self._under_way[flush.number]
        return [flush.request for flush in done]


def _empty(inbox: bytes, number: int) -> bytes:
    return wire.EMPTY.encode(wire.Empty(inbox, number))
