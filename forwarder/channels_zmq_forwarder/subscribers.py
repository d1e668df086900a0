"""The subscribers' side of a publishing socket: receives their frames, and ends the connections of bad peers.

In the data-flow diagram this is XPUB, seen from the subscribers. The forwarder and the embedded producer use it. A
connection is ended, and no other one is affected, if its peer

- holds a key that has been revoked,
- subscribes to something that is no topic, or to too many,
- does not take what is published (`SlowSubscribers`), or
- says hello too often, since each hello may be answered by a long list.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.connections import Connections, Peer, SlowSubscribers
from channels_zmq_forwarder.curve import AllowedKeys
from channels_zmq_forwarder.sockets import Marks
from channels_zmq_forwarder.topics import Topics
from channels_zmq_forwarder.zap import Admission, Arrival

HELLOS_WITHIN = 1.0
"""Seconds within which hellos are counted."""
HELLOS = 100
"""Hellos of a connection within that time: a client sends one for each change of its list of forwarders."""


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
        allowed: The keys that may connect, if they are limited.
        dropped: Called with the cause of each frame that is dropped.
    """

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        connections: Connections,
        marks: Marks,
        allowed: AllowedKeys | None,
        dropped: Callable[[str], None],
    ) -> None:
        # Else a subscription to a topic that somebody else has subscribed to before is not reported.
        socket.set(zmq.XPUB_VERBOSE, 1)
        self.connections = connections
        self._admission = Admission(socket, connections, allowed, dropped)
        self._dropped = dropped
        self._topics = Topics(marks.topics)
        self._slow = SlowSubscribers(connections, marks.behind)
        self._hellos: Counter[int] = Counter()
        self._forget_hellos_at = 0.0
        self._ended: list[Ended] = []
        self._ending: set[int] = set()  # their frames that were taken in already are dropped
        connections.gone = self._gone

    @property
    def ended_topics(self) -> int:
        """How many topics have ended since the start; libzmq has freed memory for each."""
        return self._topics.ended

    def recv(self, flags: int) -> bytes | None:
        """Receive a frame, as `recv` of the socket does; return None if its peer may not send it."""
        arrival = self._admission.recv(flags)
        return None if arrival is None or self._is_refused(arrival) else arrival.frame

    def _is_refused(self, arrival: Arrival) -> bool:
        frame, descriptor = arrival.frame, arrival.descriptor
        kind = frame[:1]
        if descriptor is None:
            if kind == wire.UNSUBSCRIBE:
                self._topics.end(wire.subscribed_topic(frame))
        elif descriptor in self._ending:
            return True
        elif kind == wire.SUBSCRIBE:
            return self._is_refused_topic(wire.subscribed_topic(frame), descriptor)
        elif kind == wire.UNSUBSCRIBE:
            topic = wire.subscribed_topic(frame)
            if not self._topics.may_unsubscribe(topic, descriptor):
                self._dropped("stray")
                return True
            self._topics.end(topic)
        elif kind == wire.HELLO_BYTE:
            self._hellos[descriptor] += 1
            if self._hellos[descriptor] > HELLOS:
                self._dropped("too_many_hellos")
                self._end(descriptor, "it said hello too often")
                return True
        return False

    def _is_refused_topic(self, topic: bytes, descriptor: int) -> bool:
        if not wire.is_topic(topic):
            self._dropped("invalid_topic")
            self._end(descriptor, "it subscribed to something that is neither a group nor an inbox")
            return True
        excessive = self._topics.subscribe(topic, descriptor)
        if excessive is not None:
            self._dropped("too_many_topics")
            self._end(excessive, "it subscribed to too many topics")
        return False

    def _end(self, descriptor: int, reason: str) -> None:
        peers = self.connections.peers
        if descriptor not in peers:
            self.connections.turn()  # it may be new; or else it has ended
        if descriptor in peers and self.connections.end(descriptor):
            self._ending.add(descriptor)
            self._ended.append(Ended(peers[descriptor], reason))

    def _gone(self, descriptor: int) -> None:
        self._topics.gone(descriptor)
        self._ending.discard(descriptor)

    def end_revoked(self) -> int:
        """End the connections by keys that are not allowed any more; return how many there were."""
        return self._admission.end_revoked()

    def is_due(self, published: int) -> bool:
        """Return whether so much was published since the last look that the next one should not wait."""
        return self._slow.is_due(published)

    def look(self, now: float, published: int) -> list[Ended]:
        """End the connections of slow peers, and let the others say hello again.

        To be called several times a second.

        Args:
            now: Monotonic seconds.
            published: Bytes that were published since the start.

        Returns:
            The connections that were ended since the last call, for any reason but their key.
        """
        ended, self._ended = self._ended, []
        ended += [Ended(peer, "it was too far behind") for peer in self._slow.look(published)]
        if now >= self._forget_hellos_at:
            self._forget_hellos_at = now + HELLOS_WITHIN
            self._hellos.clear()
        return ended
