"""Which connection of a publishing socket may use which inbox. Pure.

- An inbox is the hash of a secret that only its client knows. A connection claims it with the secret, and can use only
  that inbox.
- A subscription to an inbox counts once its connection has claimed the inbox, so that another client cannot make a
  disconnected client seem connected.
- While a client is connected, only its own CURVE key may subscribe to its inbox. A client may have two connections: the
  exchange may notice late that one is broken, and a new key requires a new connection, whose claim is sent first.
- The end of a connection may be known before its last frames are read. Frames that a client sends when it leaves count
  for a while longer: it hands back unread jobs. Other clients cannot exploit this, even with a connection that has the
  same descriptor: the client's session is over, and handing back a job requires its content.
- It is also unknown which frames are the last ones of a connection if the next one has its descriptor: a claim or a
  subscription that is read late looks as if the new connection had sent it. So a new connection may name another
  inbox than its descriptor seems to have, once by a claim.
"""

from enum import Enum
from typing import NamedTuple

from channels_zmq_forwarder import wire

CLAIMED_WITHIN = 10.0
"""Seconds after which a connection that has subscribed to an inbox and not claimed it is ended."""
LAST = frozenset(bytes([layout.kind]) for layout in (wire.READY, wire.BACK, wire.TAKEN, wire.DETACH))
"""Kinds of frames by which a client leaves. They count even if it is not known yet that its connection has ended."""


class Verdict(Enum):
    """The decision about a subscription to an inbox."""

    COUNTS = 1
    WAITS = 2
    """It waits for the claim of its connection."""
    REFUSED = 3


class Claimed(NamedTuple):
    """The result of a claim."""

    subscribes: bool
    """Whether a subscription to the inbox has waited for it."""
    others: list[int]
    """Connections with other keys that have subscribed to the inbox: to be ended."""


class Inboxes:
    """The claims of all connections, which are named by their file descriptors."""

    def __init__(self) -> None:
        self._claimed: dict[int, bytes] = {}
        self._waiting: dict[int, bytes] = {}
        self._waits_since: dict[int, float] = {}  # as far as the last `forget` has seen
        self._may_change: set[int] = set()  # new connections, which have not claimed in place of a former one
        self._keys: dict[bytes, dict[int, bytes]] = {}  # of the connections that have claimed or wait, by inbox
        self._left: dict[int, bytes] = {}  # claims of connections that have ended since the last but one `forget`
        self._left_before: dict[int, bytes] = {}

    def subscribe(self, inbox: bytes, descriptor: int, key: bytes) -> Verdict:
        """Take a subscription to an inbox by a connection with this CURVE key, which is empty without CURVE."""
        if self._claimed.get(descriptor) == inbox:
            return Verdict.COUNTS
        if self._waiting.get(descriptor) == inbox:
            return Verdict.WAITS
        users = self._keys.get(inbox, {})
        owners = {other for user, other in users.items() if self._claimed.get(user) == inbox}
        has_another = descriptor in self._waiting or descriptor in self._claimed
        if (has_another and descriptor not in self._may_change) or (owners and key not in owners):
            return Verdict.REFUSED
        self._forget_user(self._waiting.pop(descriptor, None), descriptor)
        self._waiting[descriptor] = inbox
        self._keys.setdefault(inbox, {})[descriptor] = key
        return Verdict.WAITS

    def claim(self, claim: wire.Claim, descriptor: int, key: bytes) -> Claimed | None:
        """Take the claim of a connection with this CURVE key; return None if it is refused."""
        inbox = claim.inbox
        if wire.claimable(claim.secret) != inbox:
            return None
        former = self._claimed.get(descriptor, inbox)
        if former != inbox:
            if descriptor not in self._may_change:
                return None
            self._may_change.discard(descriptor)
            self._forget_user(former, descriptor)
        self._claimed[descriptor] = inbox
        subscribes = self._waiting.get(descriptor) == inbox
        if subscribes:
            del self._waiting[descriptor]
        users = self._keys.setdefault(inbox, {})
        users[descriptor] = key
        others = [user for user, other in users.items() if other != key and self._waiting.get(user) == inbox]
        return Claimed(subscribes, others)

    def may_use(self, frame: bytes, descriptor: int) -> bool:
        """Return whether a connection has claimed the inbox that a frame names as its sender's."""
        inbox = wire.inbox_in(frame)
        if self._claimed.get(descriptor) == inbox:
            return True
        return frame[:1] in LAST and inbox in (self._left.get(descriptor), self._left_before.get(descriptor))

    def may_end(self, inbox: bytes, descriptor: int) -> bool:
        """Return whether a connection may end the subscription to an inbox."""
        return self._claimed.get(descriptor) == inbox

    def came(self, descriptor: int) -> None:
        """Note that a connection was made."""
        self._may_change.add(descriptor)

    def gone(self, descriptor: int) -> None:
        """Note that a connection has ended; its descriptor may name another one from now on."""
        if descriptor in self._claimed:
            self._left[descriptor] = self._claimed[descriptor]
        self._may_change.discard(descriptor)
        for table in (self._claimed, self._waiting):
            self._forget_user(table.pop(descriptor, None), descriptor)

    def _forget_user(self, inbox: bytes | None, descriptor: int) -> None:
        users = self._keys.get(inbox) if inbox is not None else None
        if inbox is not None and users is not None:
            users.pop(descriptor, None)
            if not users:
                del self._keys[inbox]

    def forget(self, now: float) -> list[int]:
        """Forget the connections that had ended before the last call. To be called every second or so.

        Returns:
            The connections that have not claimed the inbox to which they have subscribed: while one of them is there,
            libzmq does not report that the client of the inbox has gone.
        """
        self._left, self._left_before = {}, self._left
        self._waits_since = {one: self._waits_since.get(one, now) for one in self._waiting}
        return [one for one, since in self._waits_since.items() if now >= since + CLAIMED_WITHIN]
