"""Normal channels as members of groups: the exchange keeps them, since no process owns a normal channel.

In the data-flow diagram this is between a group message and the queues: each member's queue gets one copy. Pure: time
is an argument.

- A member stays until it is discarded or expires, even if the process that added it has ended. A member without an
  expiry is removed `KEPT_FOR` after the last process that added it has disconnected.
- Adding a member again extends its life and never shortens it.
- The later of an addition and a discard applies, even if they arrive in the other order: clients repeat both to every
  exchange that they connect to. Discards are remembered for this.
- Each queue gets one copy of a message that is sent again: the last number of each sender and group is remembered, also
  over a flush.
- Every connected process that added a member is notified when it is discarded.
"""

from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import NamedTuple

from channels_zmq_forwarder.wire import FLAG_ACKNOWLEDGED, FLAG_ELSEWHERE, Member, Status, is_repeated

KEPT_FOR = 60.0
"""Seconds that a member without an expiry is kept for the processes that added it to reconnect."""

Name = tuple[bytes, bytes]
"""A group and a normal channel."""


class NormalMember(NamedTuple):
    """A normal channel that belongs to a group, from `since` until `expires`; `added` is the last add. Seconds."""

    expires: float
    added: float
    since: float
    capacity: int
    adders: frozenset[bytes]


class NormalMembers:
    """The normal members of all groups.

    Args:
        limit: How many there may be, how many discards are remembered, and how many runs of copied messages, the latest
            first.
        per_client: How many one client may add.
    """

    def __init__(self, limit: int, per_client: int) -> None:
        self.count = 0
        self._limit, self._per_client = limit, per_client
        self._added: dict[bytes, set[Name]] = {}  # by each client; those that have left since included
        self._groups: dict[bytes, dict[bytes, NormalMember]] = {}
        self._discards: OrderedDict[Name, float] = OrderedDict()
        self._copied: OrderedDict[bytes, int] = OrderedDict()  # the last number of each run that was copied
        # Members by the end of their life. An item whose member has left or lives longer is skipped.
        self._expiry: list[tuple[float, Name]] = []

    def of(self, group: bytes, now: float, published: float = inf) -> list[tuple[bytes, NormalMember]]:
        """Return the channels that belong to a group, without those added after a message was `published`."""
        members = self._groups.get(group)
        return [one for one in members.items() if one[1].expires > now and one[1].since <= published] if members else []

    def is_new(self, run: bytes, number: int, flags: int) -> bool:
        """Return whether a message is to be copied, and note it: no queue may get a copy of one message twice.

        If another instance may have received a message that is sent again, it may have queued the copies. An instance
        that has acknowledged the message has queued them for all that were members then.

        Args:
            run: Names the sender and the group.
            number: Of the message in its run.
            flags: Of the message.
        """
        last = self._copied.pop(run, 0)
        repeated = is_repeated(number, last)
        self._copied[run] = last if repeated else number
        if len(self._copied) > self._limit:
            self._copied.popitem(last=False)
        return not repeated and not flags & (FLAG_ACKNOWLEDGED | FLAG_ELSEWHERE)

    def join(self, member: Member, now: float, is_living: Callable[[bytes], bool]) -> Status | None:
        """Add a channel to a group.

        Args:
            member: The request; `age` is how long ago it was made.
            now: Seconds of the clock.
            is_living: Returns whether a client is connected, to forget adders that are not.

        Returns:
            OK, REFUSED if there are too many members, or None if the channel has been discarded since.
        """
        added = now - member.age / 1000
        if added < self._discards.get((member.group, member.channel), -inf):
            return None
        known = self._groups.get(member.group, {}).get(member.channel)
        name = member.group, member.channel
        added_by_client = self._added.get(member.inbox, set())
        if (known is None and self.count >= self._limit) or (
            name not in added_by_client and len(added_by_client) >= self._per_client
        ):
            return Status.REFUSED
        self._added.setdefault(member.inbox, added_by_client).add(name)
        expires = added + member.life / 1000 if member.life else inf
        adders, capacity, since = {member.inbox}, member.capacity, added
        if known is None:
            self.count += 1
        else:
            since = min(since, known.since)
            if added < known.added:
                added, capacity = known.added, known.capacity
            expires = max(expires, known.expires)
            adders.update(inbox for inbox in known.adders if is_living(inbox))
        channels = self._groups.setdefault(member.group, {})
        channels[member.channel] = NormalMember(expires, added, since, capacity, frozenset(adders))
        if expires < inf and (known is None or expires > known.expires):
            self._expires(expires, name)
        return Status.OK

    def gone(self, inbox: bytes, now: float, is_living: Callable[[bytes], bool]) -> None:
        """Note that a client has disconnected; members without an expiry that no other one added end in `KEPT_FOR`."""
        for name in self._added.pop(inbox, ()):
            known = self._groups.get(name[0], {}).get(name[1])
            if known is None or known.expires < inf or any(map(is_living, known.adders)):
                continue
            self._groups[name[0]][name[1]] = known._replace(expires=now + KEPT_FOR)
            self._expires(now + KEPT_FOR, name)

    def leave(self, member: Member, now: float) -> frozenset[bytes]:
        """Remove a channel from a group, unless it was added later; return the inboxes that had added it."""
        name, discarded = (member.group, member.channel), now - member.age / 1000
        self._discards[name] = max(discarded, self._discards.get(name, -inf))
        self._discards.move_to_end(name)
        if len(self._discards) > self._limit:
            self._discards.popitem(last=False)
        known = self._groups.get(member.group, {}).get(member.channel)
        if known is None or discarded < known.added:
            return frozenset()
        self._remove(name)
        return known.adders

    def due(self) -> float:
        """Return when `expire` may have something to do."""
        return self._expiry[0][0] if self._expiry else inf

    def expire(self, now: float) -> None:
        """Forget the members whose life has ended."""
        while self._expiry and self._expiry[0][0] <= now:
            _, name = heappop(self._expiry)
            known = self._groups.get(name[0], {}).get(name[1])
            if known is not None and known.expires <= now:
                self._remove(name)

    def clear(self) -> None:
        """Forget all members and discards, but not which messages were copied: they may be sent again afterwards."""
        self._groups.clear()
        self._discards.clear()
        self._expiry.clear()
        self._added.clear()
        self.count = 0

    def _remove(self, name: Name) -> None:
        group, channel = name
        for inbox in self._groups[group].pop(channel).adders:
            added = self._added.get(inbox)
            if added is not None:
                added.discard(name)
                if not added:
                    del self._added[inbox]
        self.count -= 1
        if not self._groups[group]:
            del self._groups[group]

    def _expires(self, when: float, name: Name) -> None:
        heappush(self._expiry, (when, name))
        if len(self._expiry) > 2 * self.count + 1000:
            self._expiry = [
                (member.expires, (group, channel))
                for group, members in self._groups.items()
                for channel, member in members.items()
                if member.expires < inf
            ]
            heapify(self._expiry)
