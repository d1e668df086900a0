"""What has arrived for the channels of this process and waits to be read, and which groups they belong to.

In the data-flow diagram this is the last stop before `receive()`. Pure: no sockets, no event loop; a waiter is an
opaque object that is handed back to be woken. Payloads stay bytes here, so that every reader gets a message of its own;
the members of a group share one.

- A message stays in its mailbox until a reader takes it: a reader that is woken and then cancelled loses nothing.
- At most `capacity` messages wait on a channel; the newest is refused. What has expired does not count.
- Waiters are woken in the order in which they came, one for each message.
- A member belongs to a group until it is discarded, or until it was neither added nor read for `group_expiry`.
- A mailbox that is empty, unread for a while and in no group is forgotten.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Generic, NamedTuple, Protocol, TypeVar


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
    """The serializer that did it, and a message of which a shallow copy shares nothing that could be changed."""


Payload = bytes | Shared
Mail = tuple[float, Payload, int]
"""A message that waits to be read: its deadline, its payload, and for a job its place in its plain queue, else 0.

A plain tuple, for it is made once for each message: 0.03 us, a named one takes 0.25 us."""


class Membership(NamedTuple):
    """Since when, and for how many seconds without a sign of life, a channel belongs to a group."""

    since: float
    life: float


@dataclass(slots=True)
class Mailbox(Generic[Waiter]):
    """One channel of this process."""

    name: str
    capacity: int
    read_at: float
    mail: deque[Mail] = field(default_factory=deque)
    waiters: deque[Waiter] = field(default_factory=deque)
    groups: dict[str, Membership] = field(default_factory=dict)
    pinned: bool = False
    """A plain channel's: its messages are counted by a credit, and it is never forgotten."""
    under_way: int = 0
    """Direct messages of this very process for it that the forwarder has not brought back yet."""
    under_way_until: float = 0.0
    expired: int = 0
    """Messages that expired here unread and are not counted anywhere else yet."""

    def is_full(self, now: float) -> bool:
        """Return whether no further message may wait here, after dropping what has expired."""
        if len(self.mail) < self.capacity:
            return False
        self.drop_expired(now)
        return len(self.mail) >= self.capacity

    def will_be_full(self, now: float) -> bool:
        """Return whether it will be full once all that is under way to it has arrived."""
        if self.under_way and self.under_way_until <= now:
            self.under_way = 0
        if len(self.mail) + self.under_way < self.capacity:
            return False
        self.drop_expired(now)
        return len(self.mail) + self.under_way >= self.capacity

    def drop_expired(self, now: float) -> None:
        """Drop the messages whose time has passed."""
        before = len(self.mail)
        self.mail = deque(mail for mail in self.mail if mail[0] > now)
        self.expired += before - len(self.mail)

    def take(self, now: float) -> Payload | None:
        """Remove the oldest message that has not expired and return its payload."""
        self.read_at = now
        while self.mail:
            deadline, payload, _ = self.mail.popleft()
            if deadline > now:
                return payload
            self.expired += 1
        return None

    def next_waiter(self) -> Waiter | None:
        """Remove and return the waiter whose turn it is."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if waiter.usable:
                return waiter
        return None


class Mailboxes(Generic[Waiter]):
    """All channels and groups of one process and address.

    Args:
        idle: Seconds after which an empty, unread mailbox in no group is forgotten.
        clock: Monotonic seconds.
    """

    def __init__(self, *, idle: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.boxes: dict[str, Mailbox[Waiter]] = {}
        self.groups: dict[str, dict[str, Mailbox[Waiter]]] = {}
        self.refused = 0
        """Messages that full mailboxes did not take, until somebody counts them and sets this to 0."""
        self._idle = idle
        self._clock = clock
        self._expired = 0
        self.next_end = inf
        """No membership ends before this."""

    def waiting(self) -> int:
        """Return how many messages wait to be read."""
        return sum(len(box.mail) for box in self.boxes.values())

    def open(self, channel: str, capacity: int) -> Mailbox[Waiter]:
        """Return the mailbox of a channel, a new one if there is none; a changed capacity takes effect at once."""
        box = self.boxes.get(channel)
        if box is None:
            box = self.boxes[channel] = Mailbox(channel, capacity, self._clock())
        box.capacity = capacity
        return box

    # Groups

    def join(self, group: str, channel: str, capacity: int, life: float | None) -> bool:
        """Add a channel to a group; return True if the group has its first member here."""
        now = self._clock()
        box = self.open(channel, capacity)
        box.groups[group] = Membership(now, inf if life is None else life)
        self.next_end = min(self.next_end, now + box.groups[group].life)
        members = self.groups.setdefault(group, {})
        members[channel] = box
        return len(members) == 1

    def leave(self, group: str, channel: str) -> bool:
        """Take a channel out of a group; return True if the group has no member here any more."""
        members = self.groups.get(group)
        box = members.pop(channel, None) if members else None
        if members is None or box is None:
            return False
        del box.groups[group]
        self._forget_if_idle(box, 0.0)
        if not members:
            del self.groups[group]
        return not members

    def end_memberships(self) -> list[str]:
        """Take out the members whose time has passed; return the groups that have no member here any more."""
        now = self._clock()
        if now < self.next_end:
            return []
        empty = []
        self.next_end = inf
        for box in list(self.boxes.values()):
            for group, membership in list(box.groups.items()):
                end = max(membership.since, now if box.waiters else box.read_at) + membership.life
                if end > now:
                    self.next_end = min(self.next_end, end)
                elif self.leave(group, box.name):
                    empty.append(group)
        return empty

    # Messages

    def deliver(self, channel: str, mail: Mail, capacity: int) -> Waiter | None:
        """Put a message into one mailbox and return the waiter to wake.

        The capacity is that of a mailbox which has to be made for it.
        """
        box = self.boxes.get(channel)
        if box is None:
            box = self.open(channel, capacity)
        if len(box.mail) >= box.capacity and box.is_full(self._clock()):
            self.refused += 1
            return None
        box.mail.append(mail)
        return box.next_waiter() if box.waiters else None

    def deliver_group(self, group: str, deadline: float, payload: bytes) -> list[Waiter]:
        """Put a message into the mailbox of every member and return the waiters to wake."""
        wake: list[Waiter] = []
        members = self.groups.get(group, {})
        mail = deadline, (Shared(payload) if len(members) > 1 else payload), 0
        for box in members.values():
            waiting = box.mail
            if len(waiting) >= box.capacity:
                if box.is_full(self._clock()):
                    self.refused += 1
                    continue
                waiting = box.mail  # without what has expired
            waiting.append(mail)
            if box.waiters and (waiter := box.next_waiter()) is not None:
                wake.append(waiter)
        return wake

    def deliver_all(self, mail: Mail) -> list[Waiter]:
        """Put a message into every mailbox that is not a plain channel's, over the capacity if need be."""
        boxes = [box for box in self.boxes.values() if not box.pinned]
        for box in boxes:
            box.mail.append(mail)
        return [waiter for box in boxes if (waiter := box.next_waiter()) is not None]

    # Readers

    def stop_waiting(self, box: Mailbox[Waiter], waiter: Waiter) -> Waiter | None:
        """Let a reader give up; return the waiter to wake in its place if it had been woken already."""
        box.read_at = self._clock()
        successor = None
        try:
            box.waiters.remove(waiter)
        except ValueError:
            successor = box.next_waiter() if box.mail else None
        self._forget_if_idle(box, 0.0)
        return successor

    # Housekeeping

    def sweep(self) -> int:
        """Drop expired messages and idle mailboxes; return how many messages expired since the last sweep."""
        now = self._clock()
        for box in list(self.boxes.values()):
            if box.mail and box.mail[0][0] <= now:
                box.drop_expired(now)
            self._expired += box.expired
            box.expired = 0
            if box.under_way_until <= now:
                box.under_way = 0
            self._forget_if_idle(box, self._idle)
        expired, self._expired = self._expired, 0
        return expired

    def clear(self) -> list[str]:
        """Drop all messages and memberships, but keep who waits; return the groups that there were."""
        groups = list(self.groups)
        self.groups.clear()
        for box in list(self.boxes.values()):
            box.mail.clear()
            box.groups.clear()
            box.under_way = 0
            self._forget_if_idle(box, 0.0)
        return groups

    def nothing_under_way(self) -> None:
        """Forget which direct messages of this process are under way, since some of them may be lost."""
        for box in self.boxes.values():
            box.under_way = 0

    def _forget_if_idle(self, box: Mailbox[Waiter], idle: float) -> None:
        if box.mail or box.waiters or box.groups or box.pinned or box.under_way:
            return
        if box.read_at + idle <= self._clock():
            self._expired += box.expired
            box.expired = 0
            if self.boxes.get(box.name) is box:  # a late reader may hold one that was forgotten and made anew
                del self.boxes[box.name]
