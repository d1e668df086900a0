"""Probes: how a process learns up to which time everything has arrived that was published for it.

Pure. Frames arrive in the order in which an exchange has published them, but they may wait at the exchange, or on a
slow link, for seconds. A probe is a sync: its answer arrives behind everything that was published before it. This
process sends probes if something depends on them, and each second while much arrives: after a lost connection it
requests a replay of everything that was published since the last answered probe.
"""

from collections import deque
from math import inf
from typing import NamedTuple

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.requests import next_number

PROBE_EVERY = 1.0
"""Seconds between two probes, or two repetitions of one."""
SILENT_AFTER = 2.75
"""Seconds without a frame after which no more is expected, beyond those that the largest one takes. A link waits as
long for an acknowledgement."""
PROBE_BYTES = 64 * 1024
"""Bytes that may arrive without a probe: replaying them is cheaper than constant probes by all processes."""


class _Probe(NamedTuple):
    number: int
    sent_at: float


class Arrivals:
    """What has arrived in a session with one exchange.

    Args:
        attachment: The exchange.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.heard_at = -inf
        """When a frame was read last, to the turn."""
        self.unproved = 0
        """Bytes that were read since the last probe."""
        self._attachment = attachment
        self._probes: deque[_Probe] = deque()  # the unanswered ones
        self._began = self._proved_until = self._sent_at = -inf

    def begin(self, now: float) -> None:
        """Begin a session. Only a replay can bring messages that were published before it and missed."""
        self._probes.clear()
        self._began, self._proved_until, self.unproved = now, -inf, 0

    @property
    def complete_until(self) -> float:
        """The monotonic time before which everything published has arrived, or will not arrive in this session."""
        self._take_answers()
        return max(self._began, self._proved_until)

    def probe(self, now: float, since: float) -> int:
        """Return the number of a sync to send, or 0 if none is due.

        The exchange drops a sync like any other frame if too much waits for this process, so it is repeated.

        Args:
            now: Monotonic seconds.
            since: An earlier probe counts if it was sent after this time.
        """
        self._take_answers()
        if self._proved_until > since:
            return 0
        return self._sync(now, is_new=not self._probes or self._probes[-1].sent_at <= since)

    def routine_probe(self, now: float) -> int:
        """Return the number of a sync to send because much has arrived since the last one, or 0."""
        self._take_answers()
        is_new = not self._probes
        if is_new and (self.unproved < PROBE_BYTES or now < self._sent_at + PROBE_EVERY):
            return 0
        return self._sync(now, is_new=is_new)

    def _sync(self, now: float, *, is_new: bool) -> int:
        if is_new:
            self._probes.append(_Probe(next_number(), now))
            self.unproved = 0
        elif now < self._sent_at + PROBE_EVERY:
            return 0
        self._sent_at = now
        return self._probes[-1].number

    def are_behind(self, now: float, since: float) -> bool:
        """Return whether frames arrive, but not yet the answer to a probe that was sent after a time."""
        self._take_answers()
        sent_at = next((probe.sent_at for probe in self._probes if probe.sent_at > since), inf)
        if self._proved_until > since or sent_at == inf:  # answered, or never sent
            return False
        longest = self._attachment.longest
        is_arriving = sent_at < self.heard_at and now < self.heard_at + SILENT_AFTER + longest
        return is_arriving or now < sent_at + longest

    def _take_answers(self) -> None:
        while self._probes and self._probes[0].number <= self._attachment.synced:
            self._proved_until = self._probes.popleft().sent_at
