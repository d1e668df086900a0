"""Credit for normal channels: how many jobs one exchange may hand over to the readers of this process.

Pure: methods return the frames to send in lists. A *job* is a message of a normal channel. The exchange hands jobs over
while their number is below the absolute `limit` that the client sent last, so that a repeated or lost `Ready` does no
harm. Other rules strand jobs: docs/design/0004.

- The limit is the number of received jobs, one for each waiting reader, and `prefetch` more while the channel is read.
- A job is *settled* once a reader has taken it or it was handed back; until then it counts towards the capacity.
- Unless a reader takes them within `GRACE`, unread jobs are returned to the exchange, to their old places. A reader
  that was woken has `WOKEN_GRACE`: its event loop may be busy.
- When a connection is lost, the exchange learns which jobs have arrived. It returns the others to their queues.
- Once a second the client queries how many jobs the exchange has handed over in total, which reveals lost jobs.
- A channel that was not read for a while is forgotten on both sides.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from channels_zmq.client.deadlines import Deadlines
from channels_zmq.client.mailboxes import Delivery, Mail, Mailbox
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Question

GRACE = 0.1
"""Seconds after its last reader that a normal channel keeps its credit, for a reader that returns at once."""
WOKEN_GRACE = 1.0
"""The same after a reader was woken: a time shorter than a turn of a busy event loop would starve its readers."""
ASK_EVERY = 1.0
"""Seconds between two questions for the total."""
FORGET_AFTER = 30.0
"""Seconds without a reader after which a normal channel is forgotten on both sides."""
REPEAT_EVERY = 60.0
"""Seconds between two repetitions of an unchanged limit, for an exchange that had no room for the channel."""

Box = Mailbox[Any]


@dataclass(slots=True, eq=False)
class Window:
    """The credit of the exchange on one normal channel.

    Attributes:
        box: Where its jobs wait; its waiters are the readers.
        received: Jobs of this session that have arrived, or are known to be lost.
        limit: The limit that the exchange was sent last in this session.
        most: The largest one of this session: no more jobs can have been handed over.
        kept_until: Until when its jobs and its credit are kept without a reader that waits or takes a job.
        look_at: When housekeeping is next due.
        withheld: Unread jobs of a session that was left; they are read here, or put back by the exchange.
        returned: The jobs of this session that were handed back last: those after the first ordinal, up to the second
            one. Unless it is known that the exchange has received them, they are reported as not arrived.
        unsure: How many other jobs were handed back, which no report can list as not arrived.
        proved_by: The count of answers about the total that proves that the exchange has received all of these.
    """

    box: Box
    received: int = 0
    limit: int = 0
    most: int = 0
    kept_until: float = 0.0
    look_at: float = inf
    withheld: list[Mail] = field(default_factory=list)
    returned: tuple[int, int] = 0, 0
    unsure: int = 0
    proved_by: int = 0

    def wanted(self, prefetch: int) -> int:
        """Return the limit that suits the present readers; unread jobs of other exchanges count too."""
        return self.received + max(0, len(self.box.waiters) + prefetch - len(self.box.mail))

    @property
    def is_open(self) -> bool:
        """Whether the exchange may hand over a job, or has."""
        return self.limit > self.received


class Credit:
    """The windows of all normal channels that this process has read from.

    Args:
        inbox: Of this process.
        prefetch: Jobs that the exchange may hand over ahead of readers, for each channel.
        drop: Counts dropped jobs by cause.
        clock: Monotonic seconds.
    """

    def __init__(
        self, inbox: bytes, prefetch: int, drop: Callable[[str, int], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.prefetch = prefetch
        self.session = 0
        self._hellos = 0  # since the session was left
        self._report: list[bytes] = []  # on the jobs that had arrived when this process left the last session
        self._is_open = False
        """Whether the exchange has welcomed this session, and it has not ended since."""
        self._inbox, self._drop, self._clock = inbox, drop, clock
        self._windows: dict[str, Window] = {}
        self._looks: Deadlines[Window] = Deadlines(lambda at, window: window.look_at == at)
        self._total = 0
        """Jobs received, or known to be lost, on all channels of this session."""
        self._ask_at = inf
        self._asked = self._answered = 0  # questions for the total, and answers, in this session
        self._unsure = 0
        """Jobs handed back in sessions that were left, of which it is unknown whether they have arrived."""

    # Readers

    def touched(self, box: Box) -> list[bytes]:
        """Note a reader that waits, or has taken a job; open the window further if that is worth a frame."""
        window = self._windows.get(box.name)
        if window is None:
            window = self._windows[box.name] = Window(box)
            box.windows += 1
        window.kept_until = self._clock() + GRACE
        if window.kept_until < window.look_at:
            self._look(window, window.kept_until)
        if not self._is_open:
            return []  # `begin_session` will open the window
        if self._ask_at == inf:
            self._ask_at = self._clock() + ASK_EVERY
        wanted = window.wanted(self.prefetch)
        if window.limit < window.received + len(box.waiters) or wanted - window.limit > self.prefetch // 2:
            window.limit = max(window.limit, wanted)  # jobs of readers that were woken are still in the mailbox
            return [self._ready(window)]
        return []

    def gave_up(self, box: Box) -> None:
        """Note that a reader was cancelled."""
        window = self._windows.get(box.name)
        if window is not None:
            window.kept_until = self._clock() + GRACE
            self._look(window, window.kept_until)

    # Frames of the exchange

    def arrived(self, job: wire.Job) -> tuple[Any, list[bytes]]:
        """Take a job.

        A job of an earlier session is ignored: the exchange has learned that it did not arrive, and puts it back.

        Returns:
            The reader to wake, if one waits, and the frames to send.
        """
        channel = wire.name(job.channel)
        window = self._windows.get(channel)
        if job.session != self.session or (window is not None and job.ordinal <= window.received):
            return None, []
        now = self._clock()
        mail: Mail = (now + job.ttl / 1000, job.payload, Delivery(self, job.session, job.ordinal, job.number))
        if window is None:
            return None, self._back(channel, [mail])
        self._drop("lost_delivery", job.ordinal - window.received - 1)
        self._total += job.ordinal - window.received
        window.received = job.ordinal
        window.box.append(mail)
        waiter = window.box.next_waiter()
        if waiter is not None:
            window.kept_until = now + WOKEN_GRACE
        if window.kept_until < window.look_at:
            self._look(window, window.kept_until)
        return waiter, []

    def counted(self, handed: wire.Handed) -> list[bytes]:
        """Take the number of jobs that were handed over on one channel; return the frames that replace lost ones.

        Every job that was handed over has left the exchange before this frame, by the same connection.
        """
        window = self._windows.get(wire.name(handed.channel))
        if window is None or handed.session != self.session:
            return []
        if not window.received < handed.handed <= window.most:
            return []
        lost = handed.handed - window.received
        window.received = handed.handed
        self._total += lost
        window.limit = window.wanted(self.prefetch)
        self._drop("lost_delivery", lost)
        return [self._ready(window)]

    def counted_in_total(self, total: wire.HandedTotal) -> list[bytes]:
        """Take the number of jobs that were handed over on all channels; ask about each one if some are lost."""
        if total.session != self.session:
            return []
        self._answered += 1
        if total.handed <= self._total:
            return []
        return [self._ready(window, ask=Question.HANDED) for window in self._windows.values() if window.is_open]

    def queried(self, query: wire.Query) -> list[bytes]:
        """Answer how many jobs of a channel are settled."""
        channel = wire.name(query.channel)
        window = self._windows.get(channel)
        if query.session != self.session:
            return []
        if window is not None:
            return [self._ready(window, answers=query.n)]
        # Forgotten, and so settled: the exchange takes any number of settled jobs for all that it has handed over.
        everything = 2**64 - 1
        return [
            wire.READY.encode(
                wire.Ready(self._inbox, self.session, 0, everything, query.n, Question.FORGET, query.channel)
            )
        ]

    # Sessions

    def leave_session(self, *, loses_frames: bool = True) -> list[bytes]:
        """Take no more jobs of the session, and return the frames that report which ones were read.

        The last unread ones to arrive count as not arrived, and are withheld: the exchange puts them back
        with the others, so that the capacity of the channel stays exact. The frames are the same until the next session
        has begun, since the exchange may not have received them.

        Args:
            loses_frames: Whether frames of the session to the exchange may be lost, such as jobs that were handed back.
        """
        self._hellos += 1
        if self.session:
            self._report = [
                self._leave(window, loses_frames) for window in self._windows.values() if window.most or window.unsure
            ]
            self.session = 0
            self.end_session()
        return self._report

    def _leave(self, window: Window, loses_frames: bool) -> bytes:
        box, received = window.box, self._read_up_to(window)
        window.withheld += box.remove(self._is_unread)
        first, last = window.returned
        if loses_frames and self._answered < window.proved_by:
            self._unsure += window.unsure
            if received > last:
                self._unsure += last - first
            else:  # the exchange puts back those that it has not received
                received = first
        return wire.RECEIVED.encode(wire.Received(self._inbox, self.session, received, box.name.encode()))

    def begin_session(self, session: int, *, is_same: bool) -> list[bytes]:
        """Count anew, since an exchange has just welcomed us; return the frames that open the windows.

        Args:
            session: Its number.
            is_same: Whether it is the instance that handed over the withheld jobs, and so has put them back. Any other
                one knows nothing of them, and the former one has ended with all that was handed back to it. If there
                were several hellos, an earlier one may have reached the former instance: it is unknown whether a job
                was handed to another reader, and so it counts as lost.
        """
        now = self._clock()
        unsure, self._unsure = self._unsure, 0
        if is_same:
            self._drop("lost_delivery", unsure)
        for window in self._windows.values():
            withheld, window.withheld = window.withheld, []
            if withheld and not is_same and self._hellos > 1:
                self._drop("lost_delivery", len(withheld))
            elif withheld and not is_same:
                for mail in reversed(withheld):
                    window.box.prepend(mail)
            if window.box.mail:
                window.kept_until = max(window.kept_until, now + (WOKEN_GRACE if window.box.waiters else GRACE))
                self._look(window, window.kept_until)
        self.session, self._is_open, self._report, self._hellos = session, True, [], 0
        self._total = self._asked = self._answered = 0
        self._ask_at = now + ASK_EVERY if self._windows else inf
        frames = []
        for window in self._windows.values():
            window.received = window.limit = window.most = 0
            window.returned, window.unsure, window.proved_by = (0, 0), 0, 0
            if window.box.waiters:
                window.limit = window.wanted(self.prefetch)
                frames.append(self._ready(window))
        return frames

    @property
    def unproved(self) -> int:
        """How many jobs were handed back of which it is unknown whether the exchange has received them."""
        windows = [window for window in list(self._windows.values()) if self._answered < window.proved_by]
        return sum(window.returned[1] - window.returned[0] + window.unsure for window in windows)

    def readable(self) -> list[Box]:
        """Return the mailboxes that have both jobs and readers, because jobs were withheld for a while."""
        return [window.box for window in self._windows.values() if window.box.mail and window.box.waiters]

    def end_session(self) -> None:
        """Send nothing more before the next session: the connection is down, or the exchange is about to end."""
        self._is_open = False
        self._ask_at = inf

    def detach(self) -> None:
        """Forget all windows: the exchange does not belong to the layer any more."""
        self.end_session()
        for window in self._windows.values():
            window.box.windows -= 1
            self._drop("lost_delivery", len(window.withheld))
        self._windows.clear()
        self._looks.clear()

    def empty(self) -> None:
        """Drop the withheld jobs; those in the mailboxes are dropped with the other messages there."""
        for window in self._windows.values():
            window.withheld.clear()

    # Housekeeping

    def keep(self, now: float, at_most: int = 1000) -> list[bytes]:
        """Hand back unread jobs, and query the total; return the frames."""
        frames: list[bytes] = []
        for _ in range(at_most):
            window = self._looks.pop(now)
            if window is None:
                break
            window.look_at = inf
            frames += self._keep(window, now)
        if now >= self._ask_at:
            self._ask_at = now + ASK_EVERY if self._windows else inf
            if self._windows:
                frames.append(self._ask_for_total())
        return frames

    @property
    def due(self) -> float:
        """When `keep` has something to do, at the latest."""
        return min(self._looks.next, self._ask_at)

    def _keep(self, window: Window, now: float) -> list[bytes]:
        box = window.box
        if now < window.kept_until:
            self._look(window, window.kept_until)
            return []
        if box.waiters:
            self._look(window, now + REPEAT_EVERY)
            return self._ready_again(window) if self._is_open else []
        if now >= window.kept_until + FORGET_AFTER and not box.mail:
            return self._forget(window)
        self._look(window, max(now + GRACE, window.kept_until + FORGET_AFTER))
        return self._close(window) if self._is_open and (box.mail or window.is_open) else []

    def _ask_for_total(self) -> bytes:
        self._asked += 1
        return wire.TOTAL.encode(wire.Total(self._inbox, self.session))

    def _ready_again(self, window: Window) -> list[bytes]:
        """Repeat the limit for waiting readers. If a job waits, too, the reader woken for it has not taken it."""
        if not any(map(self._is_ours, window.box.mail)):
            return [self._ready(window)]
        frames = self._close(window)
        window.limit = window.wanted(self.prefetch)
        return [*frames, self._ready(window)]

    def hand_everything_back(self) -> list[bytes]:
        """Return the frames that hand all unread jobs back, because this process stops reading."""
        if not self._is_open:
            return []
        return [frame for window in self._windows.values() for frame in self._close(window)]

    def _forget(self, window: Window) -> list[bytes]:
        del self._windows[window.box.name]
        window.box.windows -= 1
        return [self._ready(window, ask=Question.FORGET)] if self._is_open else []

    def _look(self, window: Window, at: float) -> None:
        if at != window.look_at:
            window.look_at = at
            self._looks.add(at, window)

    def _close(self, window: Window) -> list[bytes]:
        """Close a window and hand its jobs back.

        The window closes first, or the exchange would hand over the same jobs again. That frame does not settle them:
        their return does, each to its old place. The last frame settles those that have expired, and large ones, which
        are returned by the producers' way.
        """
        window.limit = window.received
        closing = self._ready(window)
        read = self._read_up_to(window)
        jobs = window.box.remove(self._is_ours)
        frames = self._back(window.box.name, jobs)
        small = sum(len(frame) <= wire.MAX_UPSTREAM for frame in frames)
        settles_all = small < len(jobs)
        if self._answered >= window.proved_by:
            window.returned, window.unsure = (read, read), 0
        first, last = window.returned
        if read > last or settles_all:  # the report cannot say any more that those before have not arrived
            window.unsure += last - first
            first = read
        if settles_all:
            window.unsure += small
            first = window.received
            frames.append(self._ready(window))
        else:  # the report cannot name jobs of an earlier instance
            window.unsure += sum(not self._is_unread(mail) for mail in jobs)
        if small:  # asked for behind them, the total proves that they have arrived
            frames.append(self._ask_for_total())
            window.proved_by = self._asked
        window.returned = first, window.received
        return [closing, *frames]

    def _is_ours(self, mail: Mail) -> bool:
        delivery = mail[2]
        return delivery is not None and delivery.source is self

    def _is_unread(self, mail: Mail) -> bool:
        """Return whether a mail is a job of this session."""
        delivery = mail[2]
        return delivery is not None and delivery.source is self and delivery.session == self.session

    def _settled(self, window: Window) -> int:
        """Return the number of jobs of this session that do not wait here any more."""
        return max(0, window.received - sum(map(self._is_unread, window.box.mail)))

    def _read_up_to(self, window: Window) -> int:
        """Return the ordinal of the last job of this session that does not wait here any more; the later ones do."""
        unread = (mail[2].ordinal for mail in window.box.mail if mail[2] is not None and self._is_unread(mail))
        return next(unread, window.received + 1) - 1

    def _ready(self, window: Window, *, ask: Question = Question.NOTHING, answers: int = 0) -> bytes:
        window.most = max(window.most, window.limit)
        channel = window.box.name.encode()
        settled = self._settled(window)
        return wire.READY.encode(wire.Ready(self._inbox, self.session, window.limit, settled, answers, ask, channel))

    def _back(self, channel: str, jobs: list[Mail]) -> list[bytes]:
        now, name = self._clock(), channel.encode()
        frames = [
            wire.BACK.encode(wire.Back(self._inbox, delivery.number, wire.milliseconds(deadline - now), name, payload))
            for deadline, payload, delivery in jobs
            if deadline > now and delivery is not None and isinstance(payload, bytes)
        ]
        self._drop("expired", len(jobs) - len(frames))
        return frames
