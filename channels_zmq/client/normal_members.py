"""Normal channels that this process has added to groups or removed from them, and the notes to exchanges about it.

Pure. The exchange keeps the memberships of normal channels, and loses them when it ends. So each process repeats its
notes at the start of each session, before its hello: an exchange that settles knows the members before it serves. What
is noted between the hello and the welcome follows the welcome. Each note has an age. If an exchange gets an addition
and a removal, the newer one applies, so that a removed channel stays removed, although another process still treats it
as a member.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from channels_zmq.client.deadlines import Deadlines
from channels_zmq_forwarder import wire

REMOVALS_KEPT = 600.0
"""Seconds that a removal is repeated: longer than an outage after which others add their members again."""


@dataclass(slots=True, eq=False)
class _Note:
    member: wire.Member
    since: float
    number: int


class NormalMembers:
    """The notes of one process.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.last_number = 0
        """The number of the last note; each has the next one."""
        self._notes: dict[tuple[bytes, bytes], _Note] = {}
        self._ends: Deadlines[_Note] = Deadlines(lambda _, note: self._notes.get(_key(note.member)) is note)
        self._clock = clock

    def __len__(self) -> int:
        return len(self._notes)

    def changed(self, member: wire.Member) -> None:
        """Note an addition that was confirmed, or a removal that was requested."""
        now = self._clock()
        self.last_number += 1
        note = self._notes[_key(member)] = _Note(member, now, self.last_number)
        life = (member.life / 1000 or inf) if member.add else REMOVALS_KEPT
        if life < inf:
            self._ends.add(now + life, note)
        self._forget_ended(now)

    def removed(self, group: bytes, channel: bytes) -> None:
        """Note that another process has removed a member."""
        note = self._notes.get((group, channel))
        if note is not None and note.member.add:
            del self._notes[group, channel]

    def repeat(self, after: int = 0) -> list[bytes]:
        """Return the frames that repeat all notes to an exchange, or those with numbers above `after`."""
        now = self._clock()
        self._forget_ended(now)
        return [
            wire.MEMBER.encode(note.member._replace(n=0, age=wire.milliseconds(now - note.since)))
            for note in self._notes.values()
            if note.number > after
        ]

    def clear(self) -> None:
        """Forget all notes."""
        self._notes.clear()
        self._ends.clear()

    def _forget_ended(self, now: float) -> None:
        while (note := self._ends.pop(now)) is not None:
            del self._notes[_key(note.member)]


def _key(member: wire.Member) -> tuple[bytes, bytes]:
    return member.group, member.channel
