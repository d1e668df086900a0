"""How an exchange ends: its clients detach, and take over the messages that wait in queues of normal channels.

Pure: the exchange reports its clients and their frames, and publishes the messages that `step` returns.

- A client takes part if its hello lists forwarders. Others neither detach nor take messages back, so the drain does not
  wait for them.
- Further jobs are not handed to these clients. So a client has received all of its jobs when it learns of the drain,
  hands back those that no reader has taken, and detaches.
- Messages are returned once every client that takes part has detached on both connections or has disconnected. A
  client that does not detach delays this for at most half of the time, and gets no messages.
- A client whose connection was lost may return within `RETURNS_WITHIN`, request what it has missed, and detach. The end
  waits for such clients, and for the replays, but for the former for at most half of the time.
- All messages of a channel are returned to one client, in the order of the queue; channels go to the clients in turns.
- At most `WINDOW` returned messages of a client are not yet taken. If it disconnects, or the time is over, it is
  unknown whether it has these: they are counted as `lost_delivery`, since messages must not be delivered twice.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import NamedTuple

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.queues import ChannelQueues
from channels_zmq_forwarder.replays import Replays

WINDOW = 256
"""Maximum number of messages that were returned to a client and that it has not taken yet."""
RETURNS_WITHIN = 3.0
"""Seconds within which a client whose connection was lost, or one of the last instance, may reconnect."""


class Way(Enum):
    """A way from a client to the exchange."""

    UPSTREAM = "upstream"
    INBOUND = "inbound"


@dataclass(slots=True)
class Participant:
    """A client that takes part, in its session."""

    session: int
    detached: set[Way] = field(default_factory=set)
    returned: int = 0
    taken: int = 0
    says_goodbye: bool = False
    """Whether it has detached before the drain: it disconnects for good."""

    @property
    def untaken(self) -> int:
        """How many messages were returned to the client that it has not taken yet."""
        return self.returned - self.taken


class Outcome(NamedTuple):
    """How a drain has ended: messages `returned` in all, those of them that are `untaken`, and those `left` behind."""

    returned: int
    untaken: int
    left: int


class Drain:
    """The end of an exchange, from the first client on: clients may detach before it has begun.

    Args:
        queues: The messages that are returned.
        replays: To clients that have missed messages; the end waits for them, too.
        clock: Monotonic seconds.
        drops: Counts lost messages, by cause.
    """

    def __init__(
        self, queues: ChannelQueues, replays: Replays, clock: Callable[[], float], drops: Counter[str]
    ) -> None:
        self.has_begun = False
        self._queues, self._replays, self._clock, self._drops = queues, replays, clock, drops
        self._patient_until = self._until = inf
        self._participants: dict[bytes, Participant] = {}
        self._attached: set[bytes] = set()
        self._returning: OrderedDict[bytes, float] = OrderedDict()  # until when lost ones may return, in this order
        self._turns: dict[bytes, None] = {}  # those that have detached and have room; the first is next
        self._owners: dict[bytes, bytes] = {}  # the client that gets the messages of a channel
        self._returned = self._untaken = 0

    def gets_no_jobs(self, inbox: bytes) -> bool:
        """Return whether a client takes part in a drain that has begun."""
        return self.has_begun and inbox in self._participants

    @property
    def participants(self) -> int:
        """How many clients take part."""
        return len(self._participants)

    def count_returning(self) -> int:
        """Forget the clients that have not returned in time; return how many others may still return."""
        now = self._clock()
        while self._returning and next(iter(self._returning.values())) <= now:
            self._returning.popitem(last=False)
        return len(self._returning)

    @property
    def is_expecting(self) -> bool:
        """Whether clients are expected to detach."""
        return self.has_begun and bool(self._attached)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do, or no time to do it."""
        if not self.has_begun:
            return False
        now = self._clock()
        if now >= self._until:
            return True
        if self.count_returning() and now < self._patient_until:
            return False
        if not self._participants:
            return True
        return not (self._attached or self._queues.waiting or self._untaken or self._replays.is_due)

    # Clients

    def join(self, inbox: bytes, session: int) -> None:
        """Let a client take part; nothing changes if it does so already in this session."""
        known = self._participants.get(inbox)
        if known is None or known.session != session:
            self.leave(inbox)
            self._returning.pop(inbox, None)
            self._participants[inbox] = Participant(session)
            self._attached.add(inbox)

    def connection_lost(self, inbox: bytes) -> None:
        """Remove a client from the drain, since its connection was lost; it may return unless it has said goodbye."""
        client = self._participants.get(inbox)
        if client is not None:
            if not client.says_goodbye:
                self._returning[inbox] = self._clock() + RETURNS_WITHIN
            self.leave(inbox)

    def leave(self, inbox: bytes) -> None:
        """Remove a client from the drain: it takes no part any more, or begins a new session."""
        client = self._participants.pop(inbox, None)
        if client is not None:
            self._attached.discard(inbox)
            self._turns.pop(inbox, None)
            self._untaken -= client.untaken
            if client.untaken:
                self._drops["lost_delivery"] += client.untaken

    def detach(self, frame: wire.Detach, way: Way) -> None:
        """Note that a client sends nothing this way any more."""
        client = self._in_session(frame.inbox, frame.session)
        if client is not None:
            client.says_goodbye |= not self.has_begun
            client.detached.add(way)
            if len(client.detached) == len(Way) and frame.inbox in self._attached:
                self._attached.discard(frame.inbox)
                self._turns[frame.inbox] = None

    def take(self, frame: wire.Taken) -> None:
        """Note how many messages a client has taken; a lower number than before is late."""
        client = self._in_session(frame.inbox, frame.session)
        if client is not None and client.taken < frame.ordinal <= client.returned:
            self._untaken -= frame.ordinal - client.taken
            client.taken = frame.ordinal
            self._turns.setdefault(frame.inbox)

    def _in_session(self, inbox: bytes, session: int) -> Participant | None:
        client = self._participants.get(inbox)
        return client if client is not None and client.session == session else None

    # The end

    def begin(self, until: float) -> list[bytes]:
        """Begin to drain, until a time of the clock at the latest; return frames to publish before this is reported."""
        now = self._clock()
        self.has_begun = True
        self._until, self._patient_until = until, now + (until - now) / 2
        return [frame for inbox in self._participants for frame in self._queues.close_windows(inbox)]

    def due(self) -> float:
        """Return when `step` may have something to do without a frame."""
        return self._patient_until if self._attached else inf

    def step(self) -> list[bytes]:
        """Return the messages that can be returned now; to be called after each frame once it has begun."""
        out: list[bytes] = []
        now = self._clock()
        if (self._attached and now < self._patient_until) or now >= self._until:
            return out
        while self._turns and (found := self._next()) is not None:
            channel, inbox = found
            out += self._return(channel, inbox, self._participants[inbox])
        return out

    def _next(self) -> tuple[bytes, bytes] | None:
        """Return a channel whose messages can be returned now, and the client that gets them."""
        # Few channels are passed over: a client fills up in one, which then moves to the end.
        for channel in self._queues.waiting:
            owner = self._owners.get(channel)
            if owner is None or owner not in self._participants:
                owner = self._owners[channel] = next(iter(self._turns))
            if owner in self._turns:
                return channel, owner
        return None

    def _return(self, channel: bytes, inbox: bytes, client: Participant) -> list[bytes]:
        entries, out = self._queues.withdraw(channel, WINDOW - client.untaken)
        now = self._clock()
        for entry in entries:
            client.returned += 1
            left = wire.milliseconds(entry.deadline - now)
            returned = wire.Returned(inbox, client.session, client.returned, entry.number, left, channel, entry.payload)
            out.append(wire.RETURNED.encode(returned))
        self._returned += len(entries)
        self._untaken += len(entries)
        del self._turns[inbox]
        if client.untaken < WINDOW:
            self._turns[inbox] = None
        return out

    def end(self) -> Outcome:
        """Count the messages that are left behind; return how the drain has ended.

        Messages that still wait are `not_returned`. Of others it is unknown whether their clients have them.
        """
        unknown = self._queues.orphaned() + self._untaken
        if unknown:
            self._drops["lost_delivery"] += unknown
        left = self._queues.depth()
        if left:
            self._drops["not_returned"] += left
        return Outcome(self._returned, self._untaken, left)
