"""Which channels of this process belong to which groups, and so which topics it is subscribed to.

Pure. This is the only owner of the set of subscribed group topics: a topic is subscribed exactly while its group has a
member here, and the frames that subscribe and unsubscribe come from here alone.

- A join that has to wait for its subscription holds a `Join`. `completed` makes the membership permanent; `failed`
  undoes only the changes of this join: an earlier membership, or one that another join relies on, stays.
- A member belongs to a group until it is discarded, or until it was neither added nor read for `group_expiry`.
- Memberships end in the order of their deadlines, which a heap keeps.
- The numbers that were received on a topic are remembered for `REMEMBERED` after its last member has left: a message
  that its sender sends again may arrive late, and must not be treated as new.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from channels_zmq.client.deadlines import Deadlines
from channels_zmq.client.mailboxes import Mailbox, Mailboxes
from channels_zmq.client.requests import next_number
from channels_zmq.client.sequences import Runs
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Topic

Box = Mailbox[Any]
REMEMBERED = 30.0
MAX_REMEMBERED = 10_000
"""Seconds that the runs of a topic are kept after its last member has left, and of how many topics at most."""


@dataclass(slots=True, eq=False)
class Membership:
    """One channel in one group.

    Attributes:
        joined: When it was added first.
        since: When it was added last.
        life: Seconds without an addition or a read after which it ends.
        joins: Joins under way that rely on it.
        confirmed: Whether a join has completed, so that a failing one must leave it alone.
        ends_at: Its earliest entry in the heap of ends.
    """

    joined: float
    since: float
    life: float
    joins: int = 0
    confirmed: bool = False
    ends_at: float = inf


@dataclass(slots=True, eq=False)
class Group:
    """A group with at least one member here.

    Attributes:
        members: Mailboxes of the members.
        runs: The last sequence number of each sender.
        in_force_after: An answer to a sync with a higher number proves that the subscription is in force; 0 once it is.
        floor: The last number that this process had given on the topic when it subscribed: its own messages up to this
            one are older than the subscription.
    """

    topic: Topic
    members: dict[Box, Membership] = field(default_factory=dict)
    runs: Runs = field(default_factory=Runs)
    in_force_after: int = 0
    floor: int = 0


class Join(NamedTuple):
    """A join that waits until the subscription of its group is in force."""

    group: Group
    box: Box
    membership: Membership


class Memberships:
    """The groups of one process and address.

    Args:
        mailboxes: Of the members.
        sender: The sender id of this process.
        clock: Monotonic seconds.
    """

    def __init__(self, mailboxes: Mailboxes[Any], sender: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self.groups: dict[Topic, Group] = {}
        self.count = 0
        """How many memberships there are in all groups."""
        self._mailboxes = mailboxes
        self._sender = sender
        self._clock = clock
        self._left: OrderedDict[Topic, tuple[float, Runs]] = OrderedDict()
        self.ends: Deadlines[Join] = Deadlines(_is_current)
        """When memberships end."""

    def join(
        self, topic: Topic, channel: str, capacity: int, life: float | None, floor: int
    ) -> tuple[Join, list[bytes]]:
        """Add a channel to a group.

        Args:
            topic: Of the group.
            channel: A channel of this process.
            capacity: Of the channel.
            life: Seconds without a sign of life after which the membership ends; None for never.
            floor: The last number that this process has given on the topic.

        Returns:
            The join, to be completed or failed, and the frames that subscribe.
        """
        now = self._clock()
        box = self._mailboxes.open(channel, capacity)
        group, frames = self.groups.get(topic), []
        if group is None:
            group = self.groups[topic] = Group(topic, runs=self._remembered(topic, now))
            group.in_force_after, group.floor = next_number(), floor
            group.runs.start_after(self._sender, floor)
            frames.append(wire.subscription(topic))
        membership = group.members.get(box)
        if membership is None:
            membership = group.members[box] = Membership(now, now, inf)
            box.memberships += 1
            self.count += 1
        membership.since, membership.life = now, inf if life is None else life
        membership.joins += 1
        entry = Join(group, box, membership)
        self._schedule_end(entry, now + membership.life)
        return entry, frames

    def completed(self, join: Join) -> None:
        """Keep a membership: its subscription is in force, or nothing needs to be waited for."""
        join.membership.joins -= 1
        join.membership.confirmed = True

    def failed(self, join: Join) -> list[bytes]:
        """Take back what a join did; return the frames that unsubscribe."""
        group, box, membership = join
        membership.joins -= 1
        if membership.confirmed or membership.joins or group.members.get(box) is not membership:
            return []
        return self._remove(group, box)

    def in_force(self, group: Group, sync: int) -> None:
        """Note that a sync was answered: subscriptions that were sent before it are in force.

        Messages that arrived on the topic before belong to an earlier subscription, so their numbers prove no losses.
        """
        if 0 < group.in_force_after < sync:
            group.in_force_after = 0
            group.runs.restart()
            group.runs.start_after(self._sender, group.floor)

    def joined(self) -> list[Topic]:
        """Return the topics of the groups whose subscription is in force: their members are not to miss a message."""
        return [topic for topic, group in self.groups.items() if not group.in_force_after]

    def leave(self, topic: Topic, channel: str) -> list[bytes]:
        """Remove a channel from a group; return the frames that unsubscribe."""
        group, box = self.groups.get(topic), self._mailboxes.boxes.get(channel)
        if group is None or box is None or box not in group.members:
            return []
        return self._remove(group, box)

    def end_due(self, now: float, at_most: int = 1000) -> list[bytes]:
        """Remove members whose time is over; return the frames that unsubscribe."""
        frames: list[bytes] = []
        for _ in range(at_most):
            entry = self.ends.pop(now)
            if entry is None:
                break
            group, box, membership = entry
            end = max(membership.since, now if box.waiters else box.read_at) + membership.life
            if end <= now:
                frames += self._remove(group, box)
            else:
                membership.ends_at = inf
                self._schedule_end(entry, end)
        return frames

    def clear(self) -> list[bytes]:
        """End all memberships; return the frames that unsubscribe."""
        frames = [wire.unsubscription(topic) for topic in self.groups]
        for group in self.groups.values():
            for box in group.members:
                box.memberships = 0
            group.members.clear()
        self.groups.clear()
        self.count = 0
        self._left.clear()
        self.ends.clear()
        return frames

    def _remembered(self, topic: Topic, now: float) -> Runs:
        """Return the runs of a topic that was left a moment ago, else new ones."""
        until, runs = self._left.pop(topic, (now, Runs()))
        if until <= now:
            return Runs()
        runs.restart()
        return runs

    def _remember(self, group: Group) -> None:
        now = self._clock()
        if len(group.runs):
            self._left[group.topic] = now + REMEMBERED, group.runs
            self._left.move_to_end(group.topic)
        while self._left:
            until, _ = next(iter(self._left.values()))
            if until > now and len(self._left) <= MAX_REMEMBERED:
                break
            self._left.popitem(last=False)

    def _schedule_end(self, entry: Join, end: float) -> None:
        if end < entry.membership.ends_at:
            entry.membership.ends_at = end
            self.ends.add(end, entry)

    def _remove(self, group: Group, box: Box) -> list[bytes]:
        del group.members[box]
        box.memberships -= 1
        self.count -= 1
        self._mailboxes.release(box)
        if group.members:
            return []
        del self.groups[group.topic]
        self._remember(group)
        return [wire.unsubscription(group.topic)]


def _is_current(ends_at: float, entry: Join) -> bool:
    group, box, membership = entry
    return membership.ends_at == ends_at and group.members.get(box) is membership
