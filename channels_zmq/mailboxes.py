"""What has arrived for the channels of this process and waits to be read, and which groups they belong to.

In the data-flow diagram this is the last stop before `receive()`. Pure: no sockets, no event loop; a waiter is an
opaque object that is handed back to be woken. Payloads stay bytes here, so that every reader decodes its own copy.

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
from typing import NamedTuple, Protocol


class Waiter(Protocol):
    """A reader that waits. `usable` is False once it was cancelled or its event loop has closed."""

    @property
    def usable(self) -> bool: ...  # noqa: D102


class Mail(NamedTuple):
    """A message that waits to be read; `number` is a job's place in its plain queue, 0 for other messages."""

    deadline: float
    payload: bytes
    number: int = 0


class Membership(NamedTuple):
    """Since when, and for how many seconds without a sign of life, a channel belongs to a group."""

    since: float
    life: float


@dataclass(slots=True)
class Mailbox:
    """One channel of this process."""

    name: str
    capacity: int
    read_at: float
    mail: deque[Mail] = field(default_factory=deque)
    waiters: deque[Waiter] = field(default_factory=deque)
    groups: dict[str, Membership] = field(default_factory=dict)
    under_way: int = 0
    """Direct messages of this very process for it that the forwarder has not brought back yet."""
    pinned: bool = False
    """Never forgotten: a plain channel's, which has a credit."""

    def put(self, mail: Mail, now: float) -> bool:
        """Append a message; return False if the mailbox is full."""
        if self.is_full(now):
            return False
        self.mail.append(mail)
        return True

    def is_full(self, now: float) -> bool:
        """Return whether no further message may wait here, after dropping what has expired."""
        if len(self.mail) < self.capacity:
            return False
        self.mail = deque(mail for mail in self.mail if mail.deadline > now)
        return len(self.mail) >= self.capacity

    def take(self, now: float) -> Mail | None:
        """Remove and return the oldest message that has not expired."""
        while self.mail:
            mail = self.mail.popleft()
            if mail.deadline > now:
                return mail
        return None

    def next_waiter(self) -> Waiter | None:
        """Remove and return the waiter whose turn it is, if a message is there for it."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if waiter.usable:
                return waiter
        return None


class Delivery(NamedTuple):
    """What became of a message: whom to wake, and how many mailboxes refused it."""

    wake: list[Waiter]
    refused: int


class Mailboxes:
    """All channels and groups of one process and address.

    Args:
        idle: Seconds after which an empty, unread mailbox in no group is forgotten.
        clock: Monotonic seconds.
    """

    def __init__(self, *, idle: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.groups: dict[str, dict[str, Mailbox]] = {}
        self._boxes: dict[str, Mailbox] = {}
        self._idle = idle
        self._clock = clock
        self._next_end = inf  # no membership ends before this

    def __len__(self) -> int:
        return len(self._boxes)

    def waiting(self) -> int:
        """Return how many messages wait to be read."""
        return sum(len(box.mail) for box in self._boxes.values())

    def find(self, channel: str) -> Mailbox | None:
        """Return the mailbox of a channel if there is one."""
        return self._boxes.get(channel)

    def open(self, channel: str, capacity: int) -> Mailbox:
        """Return the mailbox of a channel, a new one if there is none; a later `capacity` takes effect at once."""
        box = self._boxes.get(channel)
        if box is None:
            box = self._boxes[channel] = Mailbox(channel, capacity, self._clock())
        box.capacity = capacity
        return box

    # Groups

    def join(self, group: str, channel: str, capacity: int, life: float | None) -> bool:
        """Add a channel to a group; return True if the group has its first member here."""
        now = self._clock()
        box = self.open(channel, capacity)
        box.groups[group] = Membership(now, inf if life is None else life)
        self._next_end = min(self._next_end, now + box.groups[group].life)
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
        self._forget_if_idle(box, -inf)
        if not members:
            del self.groups[group]
        return not members

    def end_memberships(self) -> list[str]:
        """Take out the members whose time has passed; return the groups that have no member here any more."""
        now = self._clock()
        if now < self._next_end:
            return []
        empty = []
        self._next_end = inf
        for box in list(self._boxes.values()):
            for group, membership in list(box.groups.items()):
                end = max(membership.since, now if box.waiters else box.read_at) + membership.life
                if end > now:
                    self._next_end = min(self._next_end, end)
                elif self.leave(group, box.name):
                    empty.append(group)
        return empty

    @property
    def memberships_may_end(self) -> bool:
        """Whether `end_memberships` has something to look at now."""
        return self._clock() >= self._next_end

    # Messages

    def deliver(self, channel: str, mail: Mail, capacity: int) -> Delivery:
        """Put a message into one mailbox; the capacity is that of a mailbox that has to be made for it."""
        box = self._boxes.get(channel)
        if box is None:
            box = self.open(channel, capacity)
        if not box.put(mail, self._clock()):
            return Delivery([], 1)
        waiter = box.next_waiter()
        return Delivery([waiter] if waiter else [], 0)

    def deliver_group(self, group: str, mail: Mail) -> Delivery:
        """Put a message into the mailbox of every member."""
        members = self.groups.get(group)
        if not members:
            return Delivery([], 0)
        now, wake, refused = self._clock(), [], 0
        for box in members.values():
            if len(box.mail) >= box.capacity and box.is_full(now):
                refused += 1
                continue
            box.mail.append(mail)
            if box.waiters:
                waiter = box.next_waiter()
                if waiter is not None:
                    wake.append(waiter)
        return Delivery(wake, refused)

    def deliver_all(self, mail: Mail) -> Delivery:
        """Put a message into every mailbox that is not a plain channel's, over the capacity if need be."""
        wake = []
        for box in self._boxes.values():
            if not box.pinned:
                box.mail.append(mail)
                waiter = box.next_waiter()
                if waiter is not None:
                    wake.append(waiter)
        return Delivery(wake, 0)

    # Readers

    def take(self, box: Mailbox) -> Mail | None:
        """Take the oldest message of a channel, as a reader does."""
        box.read_at = now = self._clock()
        return box.take(now)

    def wait(self, box: Mailbox, waiter: Waiter) -> None:
        """Let a reader wait for the next message of a channel."""
        self._boxes.setdefault(box.name, box)
        box.waiters.append(waiter)

    def stop_waiting(self, box: Mailbox, waiter: Waiter) -> Waiter | None:
        """A reader gives up. Return the waiter to wake in its place if it had been woken already."""
        box.read_at = self._clock()
        try:
            box.waiters.remove(waiter)
        except ValueError:
            successor = box.next_waiter() if box.mail else None
        else:
            successor = None
        self._forget_if_idle(box, -inf)
        return successor

    # Housekeeping

    def sweep(self) -> int:
        """Drop expired messages and idle mailboxes; return how many messages that were."""
        now, expired = self._clock(), 0
        for box in list(self._boxes.values()):
            if box.mail and box.mail[0].deadline <= now:
                before = len(box.mail)
                box.mail = deque(mail for mail in box.mail if mail.deadline > now)
                expired += before - len(box.mail)
            self._forget_if_idle(box, self._idle)
        return expired

    def clear(self) -> list[str]:
        """Drop all messages and memberships, but keep who waits; return the groups that there were."""
        groups = list(self.groups)
        self.groups.clear()
        for box in list(self._boxes.values()):
            box.mail.clear()
            box.groups.clear()
            box.under_way = 0
            self._forget_if_idle(box, -inf)
        return groups

    def nothing_under_way(self) -> None:
        """Forget which direct messages of this process are under way, since some of them may be lost."""
        for box in self._boxes.values():
            box.under_way = 0

    def boxes(self) -> list[Mailbox]:
        """Return all mailboxes."""
        return list(self._boxes.values())

    def _forget_if_idle(self, box: Mailbox, idle: float) -> None:
        if box.mail or box.waiters or box.groups or box.pinned or box.under_way:
            return
        if box.read_at + idle <= self._clock():
            self._boxes.pop(box.name, None)
