"""The messages of one exchange that may not have reached this process, and the request to replay them.

Pure. A connection that breaks loses the messages on their way, and those that are published before this process has
subscribed again. And others may send by an exchange, or to this process, before the two are connected. The exchange
keeps messages for some seconds, and this process requests them with each hello until it is welcomed. Those that are not
replayed when no part of the answer has arrived for `REPLAYED_WITHIN` count as missed.
"""

import time
from collections.abc import Callable, Collection

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.replays import ANSWERED_WITHIN

ON_THE_WAY = 0.25
"""Seconds that a message may have been on its way."""
READ_WITHIN = 1.0
"""Seconds until the exchange has read the request, at most: behind the subscriptions, and those of others."""
BACK_WITHIN = 0.25
"""Seconds to wait for the next connection after a cut: mostly it is up, and requests the replay, after 0.1 s."""
REPLAYED_WITHIN = 1.0
"""Seconds to wait for a part of the answer, after each hello and each part, beyond those that the largest one takes."""
ARRIVED_WITHIN = 10.0
"""Seconds to wait for the whole answer in a session while parts arrive. The exchange replays for `ANSWERED_WITHIN` at
most, which bounds the wait for the first part, but a slow link takes longer."""
WAITS_AT_MOST = 10.0
"""Seconds to wait in all without a part of an answer, beyond those that the largest one takes: a connection that keeps
breaking must not stop the others."""
ATTEMPTS = 3
"""Sessions that ask for the same messages. If connections break meanwhile, a replay may be what breaks them."""


class Resumption:
    """The messages of one exchange that may be missing.

    Args:
        inbox: Of this process.
        longest: Seconds that the largest frame takes on the slowest link.
        clock: Monotonic seconds.
    """

    def __init__(self, inbox: bytes, longest: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.until = 0.0
        """Until when to wait for the next connection, or for the answer."""
        self._missing_since: float | None = None  # until an answer is complete
        self._inbox, self._longest, self._clock = inbox, longest, clock
        self._session = 0  # of the last request
        self._asked_at = 0.0  # when the first request in it was sent
        self._attempts = 0
        self._is_asked = False
        self._waits_since = self._waited = 0.0  # the present wait, and the seconds of those before it

    @property
    def is_unused(self) -> bool:
        """Whether nothing has been missing from this exchange so far."""
        return self._missing_since is None and not self._session

    def lacks(self, since: float) -> None:
        """Note that there is no connection, or was none before; everything published before a time has arrived."""
        self._is_asked = False
        self._wait_until(self._clock() + BACK_WITHIN)
        if self._missing_since is None or self._attempts >= ATTEMPTS:
            self._missing_since, self._attempts = since, 0

    def request(self, session: int, joined: Callable[[], Collection[bytes]]) -> bytes | None:
        """Return the request for what is missing, and wait for its answer; None if nothing can be missing.

        Args:
            session: The one that begins.
            joined: Returns the topics of the groups that this process has joined.
        """
        if self._missing_since is None:
            return None
        now = self._clock()
        if session != self._session:
            self._session, self._asked_at = session, now
            self._attempts += 1
        self._is_asked = True
        self._wait(now, ANSWERED_WITHIN)
        topics = joined()
        age = wire.milliseconds(now - self._missing_since + ON_THE_WAY + READ_WITHIN)
        every = len(topics) > wire.MAX_HASHES
        hashes = b"" if every else wire.encode_hashes(topics)
        return wire.RESUME.encode(wire.Resume(self._inbox, session, age, every, hashes))

    def is_answered_by(self, replayed: wire.Replayed) -> bool:
        """Return whether this is a part of the answer to the last request, rather than to one before another cut."""
        is_answer = replayed.session == self._session
        if is_answer and self._is_asked:
            self._waited, self._waits_since = 0.0, self._clock()
            self._wait(self._clock(), ARRIVED_WITHIN)
        return is_answer

    def _wait(self, now: float, at_most: float) -> None:
        self._wait_until(min(now + REPLAYED_WITHIN, self._asked_at + at_most) + self._longest)

    def _wait_until(self, until: float) -> None:
        now = self._clock()
        self._waited += max(0.0, min(now, self.until) - self._waits_since)
        self._waits_since = now
        self.until = min(until, now + max(0.0, WAITS_AT_MOST + self._longest - self._waited))

    def ended(self) -> None:
        """Note that the answer is complete: every missing message that the exchange still had has arrived.

        This changes nothing if the connection has been lost again before the end of the answer is read.
        """
        if self._is_asked:
            self._missing_since, self._attempts, self.until = None, 0, 0.0
            self._waited = 0.0
