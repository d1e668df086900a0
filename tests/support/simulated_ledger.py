"""The messages of a simulation with their intended and actual receivers: the promises of the layer as assertions."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import inf

from simulated_network import ID_SIZE
from simulated_process import Process
from simulated_time import World

from channels_zmq_forwarder import wire

LIFE = 600.0
"""Seconds after which most messages expire, which is longer than a simulation."""
IN_TRANSIT = 10.0
"""Seconds for which a request whose call has ended may still be in transit."""
ROUNDING = 0.002
"""Seconds by which an age may be inexact, because frames carry it in milliseconds."""


@dataclass(slots=True, eq=False)
class Message:
    """A message that was sent; `order` is its position among those of its sender on its topic."""

    number: int
    sender: Process
    topic: bytes | str
    published: float
    order: int
    life: float
    """Seconds after which it expires."""
    is_accepted: bool = True
    is_confirmed: bool = False
    read_by: list[tuple[Process, str]] = field(default_factory=list)
    copied_to: set[str] = field(default_factory=set)
    """Normal channels from which a copy of the group message was read."""

    def __str__(self) -> str:
        return f"message {self.number} of {self.sender.number} on {self.topic!r}"

    @property
    def payload(self) -> bytes:
        return self.number.to_bytes(ID_SIZE)


@dataclass(slots=True, eq=False)
class Member:
    """A channel in a group, with the times when `group_add` was called, when it returned, and when the channel left."""

    process: Process
    channel: str
    topic: wire.Topic
    called: float
    is_first: bool
    """Whether no other channel of the process belonged to the group at the time of the call, which was its own."""
    joined: float | None = None
    left: float | None = None


@dataclass(slots=True, eq=False)
class Change:
    """A call that adds a normal channel to a group, or discards it, with the time when it ended."""

    process: Process
    member: tuple[str, str]
    """The group and the channel."""
    adds: bool
    called: float
    ended: float = inf
    is_confirmed: bool = False


class Ledger:
    """All messages of a simulation, with the checks of their delivery.

    Args:
        world: The time.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.messages: list[Message] = []
        self.members: list[Member] = []
        self._memberships: dict[tuple[Process, str, bytes | str], Member] = {}
        self.changes: dict[tuple[str, str], list[Change]] = {}
        """The changes of normal members, by group and channel, in the order of their calls."""
        self.flushed = -1.0
        """Time of the call of the last flush that has returned."""
        self.excused: set[int] = set()
        """Numbers of jobs that may be lost uncounted: they were lost with a process, or on the way back."""
        self.late_at_most = inf
        """Maximum seconds between the end of a message's life and its arrival: those that it spends on the way."""
        self._orders: Counter[tuple[Process, bytes | str]] = Counter()
        self._last: dict[tuple[tuple[Process, str], Process, bytes | str], int] = {}
        self.arrived: defaultdict[tuple[Process, bytes | str, Process], list[int]] = defaultdict(list)
        """Orders of the messages that each process received, by process, topic and sender."""

    def new(self, sender: Process, topic: str | bytes, life: float) -> Message:
        self._orders[sender, topic] += 1
        message = Message(len(self.messages), sender, topic, self.world.now, self._orders[sender, topic], life)
        self.messages.append(message)
        return message

    def of(self, payload: bytes) -> Message:
        return self.messages[int.from_bytes(payload[-ID_SIZE:])]

    def member(self, process: Process, channel: str, topic: wire.Topic, *, is_foreign: bool) -> Member:
        is_first = not is_foreign and topic not in process.client.memberships.groups
        member = Member(process, channel, topic, self.world.now, is_first)
        self.members.append(member)
        self._memberships[process, channel, topic] = member
        return member

    def change(self, process: Process, group: str, channel: str, *, adds: bool) -> Change:
        change = Change(process, (group, channel), adds, self.world.now)
        self.changes.setdefault(change.member, []).append(change)
        return change

    def is_normal_member(self, member: tuple[str, str]) -> bool | None:
        """Return whether a normal channel must be in a group.

        None if it is uncertain: changes may have overlapped, or the last one has failed, or its process is gone.
        """
        *others, last = self.changes[member]
        is_certain = last.is_confirmed and not last.process.is_gone
        return last.adds if is_certain and all(one.ended + IN_TRANSIT < last.called for one in others) else None

    # Checks of events

    def received(self, process: Process, channel: str, payload: bytes) -> None:
        """Check a group or direct message that a consumer has received."""
        message = self.of(bytes(payload))
        member = self._memberships.get((process, channel, message.topic))
        receiver = process, channel
        what = f"{message} to {channel}"
        assert receiver not in message.read_by, f"twice: {what}"
        message.read_by.append(receiver)
        last = self._last.get((receiver, message.sender, message.topic), 0)
        assert message.order > last, f"out of order, behind {last}: {what} ({message.order})"
        self._last[receiver, message.sender, message.topic] = message.order
        seen = self.arrived[process, message.topic, message.sender]
        if not self._is_early(process, message, member) and (not seen or message.order > seen[-1]):
            seen.append(message.order)
        assert message.published > self.flushed, f"flushed: {what}"
        self._check_age(message, what)
        if member is not None and message.published < member.called:
            self._check_old(process, member, message, what)

    @staticmethod
    def _is_early(process: Process, message: Message, member: Member | None) -> bool:
        """Return whether a message proves nothing about gaps: it precedes a join, or arrived before the join returned.

        Of several members of a process only the one that joined first counts.
        """
        if member is None:
            return False
        if member.joined is None or not member.is_first:
            return True
        arrival, _ = process.read[message.payload][0]
        return arrival < member.joined or message.published < member.called

    def _check_old(self, process: Process, member: Member, message: Message, what: str) -> None:
        """Check a message from before a join: it was in transit at the join, and its age is consistent with that."""
        if message.sender is process:
            assert not member.is_first, f"an own message of before the join: {what}"
            return
        for read, copy in process.read[message.payload]:
            age = wire.age_of(copy) / 1000
            if (not age and read >= member.called) or (age and read - age >= member.called - ROUNDING):
                return
        raise AssertionError(f"of before the join: {what}")

    def _check_age(self, message: Message, what: str) -> None:
        """Check that a message has not expired."""
        late = self.world.now - message.published - message.life
        assert late <= self.late_at_most, f"expired {late:.3f} s ago: {what}"

    def took_job(self, process: Process, payload: bytes) -> None:
        """Check a job that a reader has received."""
        message = self.of(bytes(payload))
        assert not message.read_by, f"a job is read twice: {message.number} of {message.sender.number}"
        self._check_age(message, str(message))
        message.read_by.append((process, "job"))

    def took_copy(self, channel: str, payload: bytes) -> None:
        """Check a copy of a group message that a reader of a normal channel has received."""
        message = self.of(bytes(payload))
        what = f"{message} to {channel}"
        assert channel not in message.copied_to, f"copied twice: {what}"
        assert message.published > self.flushed, f"flushed: {what}"
        self._check_age(message, what)
        assert any(one.adds and wire.group_topic(one.member[0]) == message.topic for one in self._of(channel)), what
        message.copied_to.add(channel)

    def _of(self, channel: str) -> list[Change]:
        return [one for member, changes in self.changes.items() if member[1] == channel for one in changes]

    # Checks at the end

    def lost(self, member: Member) -> list[Message]:
        """Return the messages that a member should have received and has not."""
        receiver = member.process, member.channel
        return [
            message
            for message in self.messages
            if message.topic == member.topic
            and message.is_accepted
            and member.joined is not None
            and message.published >= member.joined
            and (member.left is None or message.published < member.left)
            and receiver not in message.read_by
        ]

    def missed(self, process: Process) -> int:
        """Return how many messages are missing between those that a process received, over all runs.

        Messages with a short life do not count: they may have expired before they got a number.
        """
        orders: defaultdict[tuple[bytes | str, Process], set[int]] = defaultdict(set)
        for message in self.messages:
            if message.is_accepted and message.life == LIFE:
                orders[message.topic, message.sender].add(message.order)
        total = 0
        for (receiver, topic, sender), seen in self.arrived.items():
            if receiver is process and seen:
                between = {order for order in orders[topic, sender] if seen[0] <= order <= seen[-1]}
                total += len(between.difference(seen))
        return total
