"""Messages of a busy sender that wait for the end of a turn of its event loop, to leave as one frame.

Pure. Most of what a small message costs is the price of its frame: system calls, and the forwarder. A batch has
messages to one destination that were sent one directly after the other, so their order to everything else of this
process stays as it is: its owner sends the batch before anything else leaves.

A message waits only while the sender is busy. Otherwise a handler that sends twice, and then computes, would delay its
second message.
"""

import time
from collections.abc import Callable

MESSAGES = 32
"""Bound of a batch of new messages; one that is sent again has up to `wire.MAX_BATCH`."""
BYTES = 4096
"""Bound of any batch, whose frame has to be smaller than `wire.MAX_OVERHEAD`: every socket of a layer accepts that
much, even if its process has a small `max_message_size`."""
RUN = 16
WITHIN = 0.0005
"""A sender is busy once it has sent `RUN` messages within this many seconds, and while batches follow as fast."""


class Batch:
    """The messages that wait.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.bodies: list[bytes] = []
        self.prefix = b""
        self.ttl = 0
        self.alone = RUN
        """How many more messages leave alone before `begin` is to be called. The owner counts them down, which spares
        a call for each message."""
        self._clock = clock
        self._room = 0
        self._since = 0.0

    def begin(self, prefix: bytes, body: bytes, ttl: int) -> bool:
        """Begin a batch with a message if the sender is busy; else return False: the message is to be sent now."""
        now = self._clock()
        is_busy, self._since = now - self._since < WITHIN, now
        room = BYTES - len(body)
        if not is_busy or room < 0:
            self.alone = RUN
            return False
        self.prefix, self.ttl, self._room = prefix, ttl, room
        self.bodies.append(body)
        return True

    def add(self, prefix: bytes, body: bytes, ttl: int) -> bool:
        """Add a message to the batch that has begun; return False if the batch has to be sent before the message."""
        if prefix != self.prefix or ttl != self.ttl or len(body) > self._room or len(self.bodies) >= MESSAGES:
            return False
        self._room -= len(body)
        self.bodies.append(body)
        return True

    def take(self) -> list[bytes]:
        """Remove and return the messages that wait."""
        bodies, self.bodies = self.bodies, []
        if len(bodies) == 1:
            self.alone = RUN  # other messages were sent between those to one destination: waiting gains nothing
        return bodies
