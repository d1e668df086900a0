"""Messages that have arrived for the channels of this process and wait to be read.

In the data-flow diagram this is the last stage before `receive()`. Pure: neither sockets nor an event loop; a waiter is
an opaque object that is returned to be woken. Payloads stay bytes here, so that every reader gets a separate message;
the members of a group share one payload.

- A message stays in its mailbox until a reader takes it: a reader that is woken and then cancelled loses nothing.
- At most `capacity` messages wait on a channel; the newest is refused. Expired messages do not count.
- Waiters are woken in the order of their arrival, one for each message.
- A mailbox without messages, readers and memberships is forgotten at one of the checks, at most `idle` seconds apart,
  that follow its last use by `idle` seconds or more; at once if its reader gives up, or it leaves its last group.
- At most `MAX_UNCLAIMED` channels without a reader keep their messages.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from channels_zmq.client.deadlines import Deadlines

MAX_UNCLAIMED = 10_000
"""Channels without a reader whose messages are kept."""
LOOK_SECONDS = 1e-5
"""Seconds between two checks of a mailbox, for each message in it: a check takes 5 % of that."""


class Wakeable(Protocol):
    """A reader that waits. `usable` is False once it was cancelled or its event loop has closed."""

    @property
    def usable(self) -> bool: ...  # noqa: D102


Waiter = TypeVar("Waiter", bound=Wakeable)


@dataclass(slots=True, eq=False)
class Shared:
    """A payload that several channels of this process get, with room for what the first reader has unpacked."""

    payload: bytes
    unpacked: tuple[object, dict[str, Any]] = (None, {})
    """The serializer that unpacked it, and a message of which a shallow copy shares nothing mutable."""


class Delivery(NamedTuple):
    """The origin of a job: the credit and the session by which it was handed over, its ordinal in that, its number."""

    source: object
    session: int
    ordinal: int
    number: int


Payload = bytes | Shared
Mail = tuple[float, Payload, Delivery | None]
"""A message in a mailbox: its deadline, its payload, and for a job its origin, else None.

A plain tuple, since one is made for each message: it takes 0.03 us, a named tuple 0.25 us."""

_NO_MAIL: Any = ()
"""Stands in for the deque of a mailbox that has never had a message: an empty deque takes 0.6 kB."""


@dataclass(slots=True, eq=False)
class Mailbox(Generic[Waiter]):
    """One channel of this process.

    Attributes:
        in_use: The mailboxes that have had a message: mostly few of very many. This one enters and leaves by itself.
        mail: Messages in the order of their arrival.
        waiters: Readers in the order of their arrival.
        read_at: When a reader last took a message, or gave up waiting; at first when the mailbox was made.
        is_read: Whether a reader waits, or has taken a message and is expected back.
        memberships: Groups that the channel belongs to.
        windows: Exchanges that may hand over jobs of this normal channel; these are bounded by credit.
        in_flight: Order numbers of the direct messages which this process has sent to the channel and which have not
            arrived yet; None for none.
        newest_seen: The newest of `in_flight` at the last housekeeping.
        look_at: When housekeeping of this mailbox is next due; its messages do not expire before.
    """

    name: str
    capacity: int
    read_at: float
    in_use: "set[Mailbox[Waiter]]"
    mail: deque[Mail] = field(default_factory=lambda: _NO_MAIL)
    waiters: list[Waiter] = field(default_factory=list)
    is_read: bool = False
    memberships: int = 0
    windows: int = 0
    in_flight: deque[int] | None = None
    newest_seen: int = 0
    look_at: float = 0.0

    def begin(self) -> deque[Mail]:
        """Make room for the first message."""
        self.in_use.add(self)
        self.mail = deque()
        return self.mail

    def append(self, mail: Mail) -> None:
        """Add a message, even beyond the capacity."""
        if self.mail is _NO_MAIL:
            self.begin()
        self.mail.append(mail)

    def prepend(self, mail: Mail) -> None:
        """Put a message before all others."""
        if self.mail is _NO_MAIL:
            self.begin()
        self.mail.appendleft(mail)

    def drop_expired(self, now: float) -> int:
        """Drop the messages whose deadline has passed and return how many they were."""
        return len(self.remove(lambda mail: mail[0] <= now)) if self.mail else 0

    def remove(self, is_chosen: Callable[[Mail], bool]) -> list[Mail]:
        """Remove the messages for which a function returns true, and return them in their order."""
        chosen = [mail for mail in self.mail if is_chosen(mail)]
        if chosen:
            self.mail = deque(mail for mail in self.mail if not is_chosen(mail))
        return chosen

    def clear(self) -> int:
        """Remove all messages and return how many they were."""
        waiting, self.mail = len(self.mail), _NO_MAIL
        self.in_use.discard(self)
        return waiting

    def next_waiter(self) -> Waiter | None:
        """Remove and return the waiter whose turn it is."""
        while self.waiters:
            waiter = self.waiters.pop(0)
            if waiter.usable:
                return waiter
        return None

    @property
    def is_normal(self) -> bool:
        """Whether it buffers jobs of a normal channel."""
        return self.windows > 0

    @property
    def is_unused(self) -> bool:
        """Whether the mailbox holds nothing, has no reader, and is not needed by a membership or a window."""
        return not (self.mail or self.waiters or self.memberships or self.windows)

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost if the mailbox were forgotten."""
        return self.is_unused and not self.in_flight


class Mailboxes(Generic[Waiter]):
    """All channels of one process and address.

    Args:
        drop: Counts lost messages, by cause: `mailbox_full`, `expired` and `abandoned`.
        idle: Seconds after which an unused mailbox is forgotten.
        clock: Monotonic seconds.
    """

    def __init__(
        self, drop: Callable[[str, int], None], *, idle: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.boxes: dict[str, Mailbox[Waiter]] = {}
        self._in_use: set[Mailbox[Waiter]] = set()
        self._drop = drop
        self._idle = idle
        self._clock = clock
        self._looks: Deadlines[Mailbox[Waiter]] = Deadlines(
            lambda at, box: box.look_at == at and self.boxes.get(box.name) is box
        )
        self._unclaimed: dict[str, Mailbox[Waiter]] = {}  # without reader and membership, oldest first

    @property
    def waiting(self) -> int:
        """How many messages wait to be read."""
        return sum(len(box.mail) for box in list(self._in_use))

    def open(self, channel: str, capacity: int) -> Mailbox[Waiter]:
        """Return the mailbox of a channel, and create it if necessary; a changed capacity takes effect at once."""
        box = self.boxes.get(channel)
        if box is None:
            now = self._clock()
            box = self.boxes[channel] = Mailbox(channel, capacity, now, self._in_use)
            self._look(box, now + self._idle)
        box.capacity = capacity
        return box

    # Messages

    def deliver(self, box: Mailbox[Waiter], mail: Mail) -> Waiter | None:
        """Put a message into one mailbox, unless it is full, and return the waiter to wake."""
        if len(box.mail) >= box.capacity and self.is_full(box):
            self._drop("mailbox_full", 1)
            return None
        return self.put(box, mail)

    def put(self, box: Mailbox[Waiter], mail: Mail) -> Waiter | None:
        """Put a message into a mailbox that has room for it, and return the waiter to wake."""
        box.append(mail)
        if mail[0] < box.look_at:
            self._look(box, mail[0])
        if box.waiters:
            return box.next_waiter()
        if not (box.is_read or box.memberships or box.windows):
            self._unclaim(box)
        return None

    def deliver_group(
        self, boxes: Collection[Mailbox[Waiter]], deadline: float, payload: bytes, wake: list[Waiter]
    ) -> None:
        """Put a group message into the mailboxes of its members and add the waiters to wake to a list."""
        refused = 0
        mail: Mail = (deadline, Shared(payload) if len(boxes) > 1 else payload, None)
        for box in boxes:
            waiting = box.mail
            if len(waiting) >= box.capacity:
                if self.is_full(box):
                    refused += 1
                    continue
                waiting = box.mail  # without expired messages
            if waiting is _NO_MAIL:
                waiting = box.begin()
            waiting.append(mail)
            if deadline < box.look_at:
                self._look(box, deadline)
            if box.waiters and (waiter := box.next_waiter()) is not None:
                wake.append(waiter)
        if refused:
            self._drop("mailbox_full", refused)

    def announce(self, boxes: Iterable[Mailbox[Waiter]], mail: Mail, wake: list[Waiter]) -> None:
        """Put a message of the layer itself into mailboxes, even beyond the capacity.

        Forgotten mailboxes, and those of normal channels, do not get it.
        """
        living = [box for box in boxes if not box.windows and self.boxes.get(box.name) is box]
        wake += [waiter for box in living if (waiter := self.put(box, mail)) is not None]

    def is_full(self, box: Mailbox[Waiter]) -> bool:
        """Return whether no further message may wait in a mailbox, after dropping expired ones."""
        if len(box.mail) < box.capacity:
            return False
        now = self._clock()
        if now < box.look_at:  # nothing has expired yet: it spares a walk for each message that is refused
            return True
        self._count_expired(box, box.drop_expired(now))
        return len(box.mail) >= box.capacity

    # Readers

    def take(self, box: Mailbox[Waiter]) -> Payload | None:
        """Remove the next message of a mailbox and return its payload; None if its reader has to wait for one.

        The reader is expected back.
        """
        box.is_read = True
        if self._unclaimed:
            self._unclaimed.pop(box.name, None)
        mail = box.mail
        if not mail:
            return None
        now = box.read_at = self._clock()
        taken, expired = None, 0
        while mail:
            deadline, payload, _ = mail.popleft()
            if deadline > now:
                taken = payload
                break
            expired += 1
        if expired:
            self._count_expired(box, expired)
        return taken

    def stop_waiting(self, box: Mailbox[Waiter], waiter: Waiter) -> Waiter | None:
        """Let a reader give up; return the waiter to wake in its place if it had been woken already."""
        box.read_at = self._clock()
        successor = None
        try:
            box.waiters.remove(waiter)
        except ValueError:
            successor = box.next_waiter() if box.mail else None
        if successor is None and not box.waiters:
            box.is_read = False  # also that of a normal channel, or of a member
            self.release(box)
        return successor

    def release(self, box: Mailbox[Waiter]) -> None:
        """Forget a mailbox that has lost its reader or a membership, or keep its messages for a while.

        A consumer that leaves its last group and does not wait for a message is about to end: what it has left unread
        counts as abandoned, unless it reads again after all.
        """
        if box.is_idle:
            self._forget(box)
        elif not (box.waiters or box.memberships or box.windows):
            box.is_read = False
            if box.mail:
                self._unclaim(box)

    # Direct messages that this process has sent to its own channels

    def sent(self, box: Mailbox[Waiter], order: int) -> None:
        """Note a direct message on its way; `order` grows with each."""
        if box.in_flight is None:
            box.in_flight = deque()
        box.in_flight.append(order)

    def passed(self, box: Mailbox[Waiter], order: int) -> None:
        """Note that no message up to this order number is on its way any more."""
        while box.in_flight and box.in_flight[0] <= order:
            box.in_flight.popleft()

    # Housekeeping

    def look(self, now: float, at_most: int) -> float:
        """Drop expired messages and forget unused mailboxes where that is due; return when to call again.

        Args:
            now: Monotonic seconds.
            at_most: Mailboxes to check; if more are due, the result is not after `now`.
        """
        for _ in range(at_most):
            box = self._looks.pop(now)
            if box is None:
                break
            self._keep(box, now)
        return self._looks.next

    def _keep(self, box: Mailbox[Waiter], now: float) -> None:
        next_look = now + self._idle
        if box.mail:
            self._count_expired(box, box.drop_expired(now))
            soonest = min((deadline for deadline, _, _ in box.mail), default=next_look)
            next_look = max(soonest, now + len(box.mail) * LOOK_SECONDS)
        elif box.mail is not _NO_MAIL and not box.waiters:
            box.clear()
        if box.is_read and not box.waiters and box.read_at + self._idle <= now:
            box.is_read = False  # the reader has ended without giving up: it was not waiting
            if box.mail and not (box.memberships or box.windows):
                self._unclaim(box)
        if box.is_unused and box.read_at + self._idle <= now and not self._is_expecting(box):
            self._forget(box)
        else:
            self._look(box, next_look)

    def _is_expecting(self, box: Mailbox[Waiter]) -> bool:
        """Return whether a message may still arrive. Those that were in flight at the last check are lost."""
        newest = box.in_flight[-1] if box.in_flight else 0
        seen, box.newest_seen = box.newest_seen, newest
        return 0 < newest != seen

    def clear(self) -> None:
        """Drop all messages; readers keep waiting."""
        for box in list(self.boxes.values()):
            box.clear()
            box.in_flight = None
            if box.is_idle:
                self._forget(box)
        self._unclaimed.clear()

    def _look(self, box: Mailbox[Waiter], at: float) -> None:
        box.look_at = at
        self._looks.add(at, box)

    def _count_expired(self, box: Mailbox[Waiter], expired: int) -> None:
        self._drop("expired" if box.is_read else "abandoned", expired)

    def _unclaim(self, box: Mailbox[Waiter]) -> None:
        self._unclaimed[box.name] = box
        if len(self._unclaimed) > MAX_UNCLAIMED:
            oldest = self._unclaimed.pop(next(iter(self._unclaimed)))
            self._drop("abandoned", oldest.clear())
            self.release(oldest)

    def _forget(self, box: Mailbox[Waiter]) -> None:
        self._unclaimed.pop(box.name, None)
        self._in_use.discard(box)
        if self.boxes.get(box.name) is box:  # a late reader may hold one that was forgotten and made anew
            del self.boxes[box.name]
