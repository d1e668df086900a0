"""Which channels belong to which groups, as far as this process has the say.

Its own channels are members here, and the process subscribes to their groups. A plain channel is a member at the
exchange, which this process tells again whenever a new instance comes. For a channel of another process that one is
asked. The steps: docs/data-flow.md.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from channels_zmq.asking import Asking, Options
from channels_zmq.errors import RequestRefused
from channels_zmq.loops import Waiter
from channels_zmq.mailboxes import Mailboxes
from channels_zmq.requests import REPEAT_EVERY, Request, next_number
from channels_zmq.sequences import Runs
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Status, Topic


@dataclass(slots=True)
class Defaults:
    """What a connection needs from a layer where no call brings it along; the layer made last has the say."""

    capacity: Callable[[str], int] = lambda channel: 100
    group_expiry: float | None = None
    disconnected: Callable[[], bytes] | None = None
    """Makes the payload that tells consumers that the forwarder is away."""
    reconnected: Callable[[int | None], bytes] | None = None
    """The same for its return, from how many messages are known to be lost."""


class Joining(Asking):
    """The part of a connection that joins and leaves groups; what begins with an underscore needs the lock."""

    def __init__(self, address: str, options: Options) -> None:
        super().__init__(address, options)
        self.defaults = Defaults()
        self._mailboxes: Mailboxes[Waiter] = Mailboxes(idle=options.expiry)
        self._runs = Runs()
        self._unconfirmed: dict[str, int] = {}
        """Groups whose subscription is not known to be in force, with a number below all syncs that stand behind it."""
        self._plain_members: dict[tuple[str, str], tuple[wire.Member, float]] = {}

    # The seam between the topologies

    def _subscribe(self, topic: Topic) -> None:
        self._upstream(b"\1" + topic)

    def _unsubscribe(self, topic: Topic) -> None:
        self._upstream(b"\0" + topic)

    def _must_confirm(self) -> bool:
        """Return whether a subscription is in force only once the exchange has said so."""
        return True

    # Channels of this process

    async def join(self, group: str, channel: str, capacity: int, life: float | None) -> None:
        """Add a channel of this process to a group; return once nothing published from now on is missed."""
        with self._lock:
            if not self._begin_membership(group, channel, capacity, life):
                return
            number = next_number()
        try:
            sync = wire.SYNC.encode(wire.Sync(self.inbox, number))
            await self._ask(number, sync, f"group_add({group!r})", upstream=True)
        except BaseException:
            self.leave(group, channel)
            raise
        with self._lock:
            self._in_force(group, number)

    def leave(self, group: str, channel: str) -> None:
        """Take a channel of this process out of a group."""
        with self._lock:
            if self._mailboxes.leave(group, channel):
                self._abandon(group)

    def _begin_membership(self, group: str, channel: str, capacity: int, life: float | None) -> bool:
        """Add a member; return whether its subscription has yet to be confirmed."""
        if self._mailboxes.join(group, channel, capacity, life):
            self._subscribe(wire.group_topic(group))
            if self._must_confirm():
                self._unconfirmed[group] = next_number()
        return group in self._unconfirmed

    def _in_force(self, group: str, sync: int) -> None:
        """Note the answer to a sync: the subscription before it is in force. What came earlier was for a former one."""
        if self._unconfirmed.get(group, sync) < sync:
            del self._unconfirmed[group]
            self._runs.forget(wire.group_topic(group))

    def _abandon(self, group: str) -> None:
        topic = wire.group_topic(group)
        self._unconfirmed.pop(group, None)
        self._unsubscribe(topic)
        self._runs.forget(topic)

    def _end_memberships(self) -> None:
        for group in self._mailboxes.end_memberships():
            self._abandon(group)

    # Plain channels

    async def add_plain(self, group: str, channel: str, capacity: int, life: float | None) -> None:
        """Add a plain channel to a group, at the exchange."""
        member = self._plain_member(group, channel, capacity, life)
        status = await self._ask(member.n, wire.MEMBER.encode(member), f"group_add({group!r}, {channel!r})")
        if status != Status.OK:
            raise RequestRefused(f"group_add({group!r}): the forwarder at {self.address} has no room for more members")
        with self._lock:
            self._remember_plain_member(member)

    def _plain_member(self, group: str, channel: str, capacity: int, life: float | None) -> wire.Member:
        lifetime = 0 if life is None else max(1, round(life * 1000))
        return wire.Member(self.inbox, next_number(), 1, 0, lifetime, capacity, group.encode(), channel.encode())

    def _remember_plain_member(self, member: wire.Member) -> None:
        self._plain_members[member.group.decode(), member.channel.decode()] = member, time.monotonic()

    async def discard_plain(self, group: str, channel: str) -> None:
        """Take a plain channel out of a group, at the exchange."""
        member = wire.Member(self.inbox, next_number(), 0, 0, 0, 0, group.encode(), channel.encode())
        with self._lock:
            self._plain_members.pop((group, channel), None)
        await self._ask(member.n, wire.MEMBER.encode(member), f"group_discard({group!r}, {channel!r})")

    def _member_removed(self, frame: bytes) -> None:
        removed = wire.REMOVED.decode(frame)
        self._plain_members.pop((wire.name(removed.group), wire.name(removed.channel)), None)

    def _add_plain_members_again(self) -> None:
        """Tell a new instance of the exchange which plain channels this process has added to groups."""
        now = time.monotonic()
        for member, since in list(self._plain_members.values()):
            age = wire.milliseconds(now - since)
            self._reply(wire.MEMBER.encode(member._replace(n=next_number(), age=age)))

    # Channels of other processes

    async def change_foreign(self, owner: bytes, group: str, channel: str, *, add: bool) -> None:
        """Ask another process to add its channel to a group or to take it out. A process that is gone is no error."""
        number = next_number()
        frame = wire.ASK.encode(wire.Ask(owner, number, add, self.inbox, group.encode(), channel.encode()))
        await self._ask(number, frame, f"group_{'add' if add else 'discard'}({group!r}, {channel!r})")

    def _asked(self, frame: bytes) -> None:
        """Another process wants a channel of ours in a group or out of it."""
        ask = wire.ASK.decode(frame)
        group, channel = wire.name(ask.group), wire.name(ask.channel)
        confirm = wire.CONFIRM.encode(wire.Confirm(ask.reply, ask.n, Status.OK, wire.NO_INSTANCE))
        if not ask.add:
            self.leave(group, channel)
        elif self._begin_membership(group, channel, self.defaults.capacity(channel), self.defaults.group_expiry):
            self._confirm_once_synced(group, confirm)
            return
        self._reply(confirm)

    def _confirm_once_synced(self, group: str, confirm: bytes) -> None:
        number = next_number()
        sync = wire.SYNC.encode(wire.Sync(self.inbox, number))

        def synced(status: int | Exception) -> None:
            self._requests.end(number)
            self._in_force(group, number)
            self._reply(confirm)

        self._requests.begin(number, Request(synced, sync, True, True, time.monotonic() + REPEAT_EVERY))
        self._upstream(sync)
