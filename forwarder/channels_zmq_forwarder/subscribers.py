"""The subscribers' side of a publishing socket: receives their frames, and ends the connections of bad peers.

In the data-flow diagram this is XPUB, seen from the subscribers. The forwarder and the embedded producer use it. A
connection is ended, and no other one is affected, if its peer

- holds a key that has been revoked,
- subscribes to something that is not a topic, to too many, or to the inbox of another client, or claims that inbox
  (`Inboxes`),
- does not take what is published (`SlowSubscribers`), or
- sends hellos too often, since each one may be answered by a long list.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.connections import Connections, Peer, SlowSubscribers
from channels_zmq_forwarder.inboxes import LAST, Inboxes, Verdict
from channels_zmq_forwarder.sockets import Marks, readable
from channels_zmq_forwarder.topics import Topics
from channels_zmq_forwarder.zap import Admission, Arrival, Gate

HELLOS_WITHIN = 1.0
"""Seconds within which hellos are counted."""
HELLOS = 100
"""Hellos of a connection within that time: a client sends one for each change of its list of forwarders."""


_OF_INBOXES = frozenset(bytes([layout.kind]) for layout in wire.UPSTREAM_LAYOUTS) | {wire.SUBSCRIBE, wire.UNSUBSCRIBE}
"""Kinds of frames that concern one inbox, and subscriptions, of which some do."""


class Ended(NamedTuple):
    """A connection that was ended, and why."""

    peer: Peer
    reason: str


class Subscribers:
    """The subscribers of a publishing socket. To be made before the socket is bound.

    Args:
        socket: The XPUB.
        connections: Its connections.
        marks: Bounds of the socket.
        gate: Guards the socket; None if every client may connect.
        dropped: Called with the cause of each frame that is dropped.
    """

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        connections: Connections,
        marks: Marks,
        gate: Gate | None,
        dropped: Callable[[str], None],
    ) -> None:
        # Otherwise a subscription to a topic that another client has subscribed to before is not reported.
        socket.set(zmq.XPUB_VERBOSE, 1)
        self.connections = connections
        self._admission = Admission(socket, connections, gate, dropped)
        self._dropped = dropped
        self._topics = Topics(marks.topics)
        self._inboxes = Inboxes()
        self._slow = SlowSubscribers(connections, marks.behind)
        self._hellos: Counter[int] = Counter()
        self._forget_hellos_at = 0.0
        self._ended: list[Ended] = []
        self._ending: set[int] = set()  # frames of theirs that are buffered already are dropped
        connections.accepted.append(self._inboxes.came)
        connections.gone = self._gone

    @property
    def ended_topics(self) -> int:
        """How many topics have ended since the start; libzmq has freed memory for each."""
        return self._topics.ended

    def recv(self, flags: int) -> bytes | None:
        """Receive a frame, as `recv` of the socket does; return None if its peer may not send it.

        A subscription to an inbox is returned in place of the claim that it has waited for.
        """
        arrival = self._admission.recv(flags)
        if arrival is None:
            return None
        if arrival.descriptor in self._ending:
            self._end_successor(arrival.descriptor)
            return None
        frame, descriptor, kind = arrival.frame, arrival.descriptor, arrival.frame[:1]
        if descriptor is None:
            if kind == wire.UNSUBSCRIBE:
                self._topics.end(wire.subscribed_topic(frame))
            return frame
        if kind not in _OF_INBOXES:
            return frame
        if kind not in LAST and readable(self.connections.monitor):
            self.connections.turn()  # the descriptor may have named another connection
        if kind == wire.CLAIM_BYTE:
            return self._claimed(arrival, descriptor)
        if kind == wire.SUBSCRIBE:
            return frame if self._may_subscribe(arrival, descriptor) else None
        if kind == wire.UNSUBSCRIBE:
            return frame if self._may_unsubscribe(wire.subscribed_topic(frame), descriptor) else None
        if not self._inboxes.may_use(frame, descriptor):
            self._dropped("foreign_inbox")
            return None
        if kind == wire.HELLO_BYTE:
            self._hellos[descriptor] += 1
            if self._hellos[descriptor] > HELLOS:
                self._refused("too_many_hellos", descriptor, "it sent hello too often")
                return None
        return frame

    def _claimed(self, arrival: Arrival, descriptor: int) -> bytes | None:
        try:
            claim = wire.CLAIM.decode(arrival.frame)
        except wire.FrameError:
            self._dropped("malformed")
            return None
        claimed = self._inboxes.claim(claim, descriptor, arrival.key)
        if claimed is None:
            self._refused("foreign_inbox", descriptor, "it claimed the inbox of another client")
            return None
        for other in claimed.others:
            self._refuse_inbox(other)
        return wire.subscription(wire.inbox_topic(claim.inbox)) if claimed.subscribes else None

    def _may_subscribe(self, arrival: Arrival, descriptor: int) -> bool:
        topic = wire.subscribed_topic(arrival.frame)
        if not wire.is_topic(topic):
            self._refused("invalid_topic", descriptor, "it subscribed to a topic that is neither a group nor an inbox")
            return False
        excessive = self._topics.subscribe(topic, descriptor)
        if excessive is not None:
            self._refused("too_many_topics", excessive, "it subscribed to too many topics")
        inbox = wire.inbox_of(topic)
        if not inbox:
            return True
        verdict = self._inboxes.subscribe(inbox, descriptor, arrival.key)
        if verdict is Verdict.REFUSED:
            self._refuse_inbox(descriptor)
        return verdict is Verdict.COUNTS

    def _refuse_inbox(self, descriptor: int) -> None:
        self._refused("foreign_inbox", descriptor, "it subscribed to the inbox of another client")

    def _may_unsubscribe(self, topic: bytes, descriptor: int) -> bool:
        inbox = wire.inbox_of(topic)  # libzmq reports every attempt
        if inbox and not self._inboxes.may_end(inbox, descriptor):
            self._dropped("foreign_inbox")
            return False
        self._topics.end(topic)
        return True

    def _refused(self, cause: str, descriptor: int, reason: str) -> None:
        """Count a frame as dropped, and end a connection for it."""
        self._dropped(cause)
        self._end(descriptor, reason)

    def _end(self, descriptor: int, reason: str) -> None:
        peers = self.connections.peers
        if descriptor not in peers:
            self.connections.turn()  # it may be new; or else it has ended
        if descriptor in peers and self.connections.end(descriptor):
            self._ending.add(descriptor)
            self._ended.append(Ended(peers[descriptor], reason))

    def _end_successor(self, descriptor: int) -> None:
        """End a connection that has got the descriptor of an ended one: its first frames may have been dropped.

        Its client claims its inbox once for each connection, and would wait for a welcome for ever.
        """
        if readable(self.connections.monitor):
            self.connections.turn()
        if descriptor in self.connections.peers and descriptor not in self._ending:
            self._end(
                descriptor, "its first frames may have been dropped as those of an ended connection with its descriptor"
            )

    def _gone(self, descriptor: int) -> None:
        self._topics.gone(descriptor)
        self._inboxes.gone(descriptor)
        self._hellos.pop(descriptor, None)
        self._ending.discard(descriptor)

    def end_revoked(self) -> int:
        """End the connections by keys that are not allowed any more; return how many there were."""
        return self._admission.end_revoked()

    def is_due(self, published: int) -> bool:
        """Return whether so much was published since the last check that the next one should not wait."""
        return self._slow.is_due(published)

    def end_slow(self, published: int) -> None:
        """End the connections of slow peers if another check of them is due; the next `look` reports them.

        Args:
            published: Bytes that were published since the start.
        """
        self._ended += [Ended(peer, "it was too far behind") for peer in self._slow.look(published)]

    def look(self, now: float, published: int) -> list[Ended]:
        """End the connections of slow peers, and begin to count the hellos of the others anew.

        To be called several times a second.

        Args:
            now: Monotonic seconds.
            published: Bytes that were published since the start.

        Returns:
            The connections that were ended since the last call, for any reason but their key.
        """
        self.end_slow(published)
        ended, self._ended = self._ended, []
        if now >= self._forget_hellos_at:
            self._forget_hellos_at = now + HELLOS_WITHIN
            self._hellos.clear()
            for descriptor in self._inboxes.forget(now):
                self._refused("foreign_inbox", descriptor, "it did not claim the inbox to which it subscribed")
        return ended
