"""Plain channels that are members of groups: an exchange keeps them, since no process owns a plain channel.

In the data-flow diagram this stands between a group message and the queues: each member's queue takes one copy. Pure:
time comes in as an argument.

- A member stays until somebody discards it or its life ends, also when the process that added it is gone.
- Adding again lengthens its life and never shortens it.
- Whoever added a member and still lives is told when it is discarded.
"""

from collections.abc import Collection
from math import inf
from typing import NamedTuple

from channels_zmq_forwarder.wire import Member


class PlainMember(NamedTuple):
    """A plain channel that belongs to a group, until `expires` on the exchange's clock."""

    expires: float
    capacity: int
    adders: frozenset[bytes]


class PlainMembers:
    """The plain members of all groups.

    Args:
        limit: How many there may be.
    """

    def __init__(self, limit: int) -> None:
        self.count = 0
        self._limit = limit
        self._groups: dict[bytes, dict[bytes, PlainMember]] = {}

    def of(self, group: bytes, now: float) -> list[tuple[bytes, PlainMember]]:
        """Return the channels that belong to a group."""
        members = self._groups.get(group)
        return [item for item in members.items() if item[1].expires > now] if members else []

    def join(self, member: Member, now: float, living: Collection[bytes]) -> bool:
        """Add a channel to a group; return False if there are too many. `living` are the clients that are there."""
        known = self._groups.get(member.group, {}).get(member.channel)
        if known is None and self.count >= self._limit:
            return False
        expires = now + (member.life - member.age) / 1000 if member.life else inf
        adders = {member.inbox}
        if known is None:
            self.count += 1
        else:
            expires = max(expires, known.expires)
            adders.update(inbox for inbox in known.adders if inbox in living)
        channels = self._groups.setdefault(member.group, {})
        channels[member.channel] = PlainMember(expires, member.capacity, frozenset(adders))
        return True

    def leave(self, group: bytes, channel: bytes) -> frozenset[bytes]:
        """Take a channel out of a group; return who had added it."""
        channels = self._groups.get(group, {})
        known = channels.pop(channel, None)
        if known is None:
            return frozenset()
        self.count -= 1
        if not channels:
            del self._groups[group]
        return known.adders

    def expire(self, now: float) -> None:
        """Forget the members whose life has ended."""
        ended = [(group, name) for group, all_ in self._groups.items() for name, m in all_.items() if m.expires <= now]
        for group, channel in ended:
            self.leave(group, channel)

    def clear(self) -> None:
        """Forget all members."""
        self._groups.clear()
        self.count = 0
