"""The readers of a plain channel in this process: how many jobs the exchange may hand over to them.

Pure. The exchange hands over while what it handed is below the absolute `limit` that we said, so that a repeated or
lost `Ready` does no harm; the arithmetic, and the rules that strand jobs instead: docs/design/0004.

- The window is what was received, and room for each waiting reader and `prefetch` more while readers keep coming.
- A job that no reader takes within `GRACE` goes back to the exchange, to its old place.
- A reader that has waited for a second asks what was handed, which finds hand-overs that got lost.
"""

from dataclasses import dataclass

from channels_zmq.mailboxes import Mail, Mailbox

GRACE = 0.1
"""Seconds after its last reader that a plain channel keeps its room, for the reader that comes back at once."""
ASK_EVERY = 1.0


@dataclass(slots=True)
class Readers:
    """The readers of one plain channel.

    Args:
        box: Where its jobs wait; its waiters are the readers.
        prefetch: Jobs that may come ahead of their readers.
    """

    box: Mailbox
    prefetch: int
    received: int = 0
    """Jobs received, or known to be lost, in this session."""
    said: int = 0
    """The limit that the exchange was told last in this session."""
    left_at: float = 0.0
    """When a reader last came or went."""
    asked_at: float = 0.0

    def new_session(self, now: float) -> int:
        """Begin to count anew; return the limit to say, 0 for none."""
        self.received = self.said = 0
        self.asked_at = now
        if self._wanted() > 0 and self.box.waiters:
            self.said = self._wanted()
        return self.said

    def arrived(self) -> None:
        """Count a job of this session."""
        self.received += 1

    def touched(self, now: float) -> int:
        """Note a reader that waits or has taken a job; return the limit to say if it is worth a frame, else 0."""
        self.left_at = now
        waiting = len(self.box.waiters)
        if waiting == 1:
            self.asked_at = now
        wanted = self._wanted()
        if self.said < self.received + waiting or wanted - self.said > self.prefetch // 2:
            self.said = wanted
            return wanted
        return 0

    def left(self, now: float) -> None:
        """Note a reader that gave up."""
        self.left_at = now

    def is_abandoned(self, now: float) -> bool:
        """Return whether no reader waits, none came within the grace time, and something is open or lies here."""
        if self.box.waiters or now < self.left_at + GRACE:
            return False
        return bool(self.box.mail) or self.said > self.received

    def close_window(self) -> tuple[int, list[Mail]]:
        """Take back the room and return the limit to say and the jobs to hand back."""
        jobs = list(self.box.mail)
        self.box.mail.clear()
        self.said = self.received
        return self.said, jobs

    def wants_to_ask(self, now: float) -> bool:
        """Return whether a reader has waited so long that the exchange should be asked what it handed over."""
        if not self.box.waiters or now < self.asked_at + ASK_EVERY:
            return False
        self.asked_at = now
        self.said = max(self.said, self._wanted())
        return True

    def told(self, handed: int) -> tuple[int, int]:
        """Take the answer; return how many jobs are lost, and the limit to say if that made room, else 0."""
        lost = max(0, handed - self.received)
        if not lost:
            return 0, 0
        self.received = handed
        self.said = self._wanted()
        return lost, self.said

    def _wanted(self) -> int:
        return self.received + max(0, len(self.box.waiters) + self.prefetch - len(self.box.mail))
