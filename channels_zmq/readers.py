"""The readers of plain channels in this process: how many jobs the exchange may hand over to them.

Pure: the frames to send come back in lists. The exchange hands over while what it handed is below the absolute `limit`
that we said, so that a repeated or lost `Ready` does no harm; rules that strand jobs instead: docs/design/0004.

- The window is what was received, room for each waiting reader, and `prefetch` more while readers keep coming.
- A job that no reader takes within `GRACE` goes back to the exchange, to its old place.
- A reader that has waited for a second asks what was handed over, which finds hand-overs that got lost.
- A channel that nobody has read for a while is forgotten here and, by a question of its own, at the exchange.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from channels_zmq.loops import Waiter
from channels_zmq.mailboxes import Mailbox
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Question

GRACE = 0.1
"""Seconds after its last reader that a plain channel keeps its room, for the reader that comes back at once."""
ASK_EVERY = 1.0
FORGET_AFTER = 30.0
"""Seconds without a reader after which a plain channel is forgotten on both sides."""
NEVER = 60.0


@dataclass(slots=True)
class Window:
    """How far the exchange may go on one plain channel.

    Args:
        box: Where its jobs wait; its waiters are the readers.
    """

    box: Mailbox[Waiter]
    received: int = 0
    """Jobs received, or known to be lost, in this session."""
    most: int = 0
    """The largest limit that was said in this session: no more can have been handed over."""
    said: int = 0
    """The limit that the exchange was told last in this session."""
    touched_at: float = 0.0
    """When a reader last came or went."""
    asked_at: float = 0.0

    def wanted(self, prefetch: int) -> int:
        """Return the limit that suits the readers who are here."""
        return self.received + max(0, len(self.box.waiters) + prefetch - len(self.box.mail))

    def is_abandoned(self, now: float) -> bool:
        """Return whether no reader waits or came within the grace time, and something is open or lies here."""
        if self.box.waiters or now < self.touched_at + GRACE:
            return False
        return bool(self.box.mail) or self.said > self.received

    def is_idle(self, now: float) -> bool:
        """Return whether it is closed and no reader came for a while, so that neither side need remember it."""
        return not (self.box.waiters or self.box.mail or now < self.touched_at + FORGET_AFTER)


class Readers:
    """The windows of all plain channels that this process has read from.

    Args:
        inbox: Of this process.
        prefetch: Jobs that may come ahead of their readers, for each channel.
        clock: Monotonic seconds.
    """

    def __init__(self, inbox: bytes, prefetch: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.prefetch = prefetch
        self.session = 0
        self._inbox = inbox
        self._clock = clock
        self._windows: dict[str, Window] = {}

    def touched(self, box: Mailbox[Waiter]) -> list[bytes]:
        """Note a reader that waits, or has taken a job, and open the window further if that is worth a frame."""
        window = self._windows.get(box.name)
        if window is None:
            window = self._windows[box.name] = Window(box)
            box.pinned = True
        window.touched_at = now = self._clock()
        waiting = len(box.waiters)
        if waiting == 1:
            window.asked_at = now
        wanted = window.wanted(self.prefetch)
        if window.said < window.received + waiting or wanted - window.said > self.prefetch // 2:
            window.said = wanted
            return [self._ready(window)]
        return []

    def gave_up(self, channel: str) -> bool:
        """Note that a reader was cancelled; return whether the channel is one of these."""
        window = self._windows.get(channel)
        if window is not None:
            window.touched_at = self._clock()
        return window is not None

    def arrived(self, job: wire.Job) -> tuple[Waiter | None, list[bytes]]:
        """Take a job; return the reader to wake."""
        channel = wire.name(job.channel)
        window = self._windows.get(channel)
        deadline = self._clock() + job.ttl / 1000
        if window is None:
            return None, self._back(channel, [(deadline, job.payload, job.number)])
        if job.session == self.session:
            window.received += 1
        window.box.mail.append((deadline, job.payload, job.number))
        return window.box.next_waiter(), []

    def told(self, handed: wire.Handed) -> tuple[int, list[bytes]]:
        """Take the answer to `ask`; return how many jobs are lost, and the frames that make up for them."""
        window = self._windows.get(wire.name(handed.channel))
        if window is None or handed.session != self.session:
            return 0, []
        if not window.received < handed.handed <= window.most:
            return 0, []
        lost = handed.handed - window.received
        window.received = handed.handed
        window.said = window.wanted(self.prefetch)
        return lost, [self._ready(window)]

    def begin_session(self, session: int) -> list[bytes]:
        """Count anew, since an exchange has just welcomed us, and tell it of every reader that waits."""
        self.session = session
        now = self._clock()
        frames = []
        for window in self._windows.values():
            window.received = window.said = window.most = 0
            if window.box.waiters:
                window.asked_at = now
                window.said = window.wanted(self.prefetch)
                frames.append(self._ready(window, Question.HANDED))
        return frames

    def keep(self, now: float) -> tuple[float, list[bytes]]:
        """Hand back what nobody reads and ask where somebody waits; return when to call again, and the frames."""
        due, frames = now + NEVER, []
        for window in list(self._windows.values()):
            if window.is_abandoned(now):
                frames += self._close(window)
            elif window.is_idle(now):
                frames.append(self._forget(window))
            elif window.box.waiters:
                if now >= window.asked_at + ASK_EVERY:
                    window.asked_at = now
                    window.said = max(window.said, window.wanted(self.prefetch))
                    frames.append(self._ready(window, Question.HANDED))
                due = min(due, window.asked_at + ASK_EVERY)
            elif window.box.mail or window.said > window.received:
                due = min(due, window.touched_at + GRACE)
        return due, frames

    def _forget(self, window: Window) -> bytes:
        del self._windows[window.box.name]
        window.box.pinned = False
        return self._ready(window, Question.FORGET)

    def hand_everything_back(self) -> list[bytes]:
        """Return the frames that give all jobs back that nobody has read, because this process stops reading."""
        return [frame for window in self._windows.values() for frame in self._close(window)]

    def _close(self, window: Window) -> list[bytes]:
        jobs = [(deadline, payload, number) for deadline, payload, number in window.box.mail if type(payload) is bytes]
        window.box.mail.clear()
        window.said = window.received
        return [self._ready(window), *self._back(window.box.name, jobs)]

    def queried(self, query: wire.Query) -> list[bytes]:
        """Return the frames that report at once what is settled."""
        window = self._windows.get(wire.name(query.channel))
        if window is None or query.session != self.session:
            return []
        return [self._ready(window, answers=query.n)]

    def _ready(self, window: Window, ask: Question = Question.NOTHING, answers: int = 0) -> bytes:
        window.most = max(window.most, window.said)
        channel = window.box.name.encode()
        settled = max(0, window.received - len(window.box.mail))
        return wire.READY.encode(wire.Ready(self._inbox, self.session, window.said, settled, answers, ask, channel))

    def _back(self, channel: str, jobs: list[tuple[float, bytes, int]]) -> list[bytes]:
        now = self._clock()
        return [
            wire.BACK.encode(
                wire.Back(self._inbox, number, wire.milliseconds(deadline - now), channel.encode(), payload)
            )
            for deadline, payload, number in jobs
            if deadline > now
        ]
