"""Ends connections that have not completed their handshake when few descriptors are left.

libzmq accepts connections until the system refuses one. Then its thread retries without a pause, and neither clients
nor probes can connect. libzmq does not bound connections (`ZMQ_MAX_SOCKETS` counts sockets), so this module frees
descriptors before the last one is used.

For each connection beyond a bound another one is ended. Only connections that are younger than the time limit of a
handshake qualify: libzmq does not report which of them have completed it. Peers that have sent at most a greeting have
not completed it, so they are ended first, the oldest first. Of the others the youngest is ended first: clients stay
connected, and new clients can connect after a while. In addition, once the bound has been reached, the system does not
hand over connections whose peers send nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from channels_zmq_forwarder.connections import Connections, Peer, is_silent
from channels_zmq_forwarder.sockets import HANDSHAKE

RESERVED = 6000
"""Descriptors that these connections leave to others: files, probes, and connections that were accepted but not counted
yet. There are no more of the latter, because libzmq waits for the events of the two monitors to be read: 2,000 of each
may wait, and `EVENTS` are processed in one step.
"""
RESERVED_SHARE = 4
"""A quarter of all descriptors is reserved if there are few."""


class Newcomer(NamedTuple):
    """A connection that may not have completed its handshake, and when it was accepted."""

    connections: Connections
    descriptor: int
    peer: Peer
    since: float


class Newcomers:
    """The connections to some sockets that may not have completed their handshake.

    Args:
        connections: Those of each socket.
        usable: Descriptors that this process may use.
        clock: Monotonic seconds.
    """

    def __init__(
        self, connections: Iterable[Connections], usable: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ended = 0
        """Connections that were ended."""
        self._connections = list(connections)
        self._at_most = usable - min(RESERVED, usable // RESERVED_SHARE)
        self._clock = clock
        self._unheard: deque[Newcomer] = deque()
        self._heard: deque[Newcomer] = deque()
        """Those whose peers have sent more than a greeting."""
        for one in self._connections:
            one.accepted.append(partial(self._accepted, one))

    def _accepted(self, connections: Connections, descriptor: int) -> None:
        now = self._clock()
        for newcomers in (self._unheard, self._heard):
            while newcomers and newcomers[0].since < now - HANDSHAKE / 1000:
                newcomers.popleft()
        self._unheard.append(Newcomer(connections, descriptor, connections.peers[descriptor], now))
        if sum(len(one.peers) for one in self._connections) > self._at_most:
            connections.defer()
            self.ended += self._end_one()

    def _end_one(self) -> bool:
        while self._unheard:
            oldest = self._unheard.popleft()
            if not is_silent(oldest.descriptor):
                self._heard.append(oldest)
            elif _end(oldest):
                return True
        while self._heard:
            if _end(self._heard.pop()):
                return True
        return False


def _end(newcomer: Newcomer) -> bool:
    connections, descriptor, peer, _ = newcomer
    return connections.peers.get(descriptor) is peer and connections.end(descriptor)
