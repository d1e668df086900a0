"""Ends the connections of peers that send faster than the forwarder reads, before they harm other clients.

One call on XPUB reads all frames that a connection has sent, and returns once no more frames are available. A
subscriber that keeps sending small frames blocks the event loop for as long, and fills the memory. PULL reads one frame
at a time, but libzmq buffers all that have arrived. A receive mark would bound both, but would let any peer abort the
process (`accept_options`).

So the fastest senders are ended: subscribers if the loop does not answer, or if memory grows while their frames wait,
which a thread watches (`ending_floods`; pyzmq lets other threads run while libzmq receives); producers while memory
runs out. A client that begins many queues at once sends about as fast as their frames are read, and is not ended.

A peer whose connection was ended would reconnect at once, and continue. So a socket filter on the listeners drops
attempts to connect until all buffered frames have been read. Connected clients are not affected.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from channels_zmq_forwarder.connections import Breaker, Peer, TcpSockets

logger = logging.getLogger("channels_zmq_forwarder")

LOOK_EVERY = 0.1
"""Seconds between two checks of a loop that moves frames, or answers."""
PATIENCE = 0.05
"""Seconds after which a loop that has not answered is behind, and between two checks of it from then on."""
HELD_UP = 3
"""Consecutive checks of a loop that does not answer, after which it is held up: 0.15 s after the first one, unless the
system runs other processes."""
GROWTH = 64 * 2**20
"""Bytes by which the memory may grow while frames of subscribers wait: 50,000 queues that a client begins at once."""
MEASURE = 0.03
"""Seconds between two checks while harm is done."""
FLOOD = 128 * 1024
"""Bytes that arrive at the ports between two checks if a flood continues. Clients send little upstream; one that
reconnects with thousands of groups has sent them before the first check."""
REFUSES_AT_MOST = 10.0
"""Seconds for which no client can connect because of one flood."""

Sender = tuple[int, Peer]
"""A connection: its descriptor, and its peer, since the descriptor may name another one later."""


class Senders:
    """The peers that send to some TCP ports. Works on Linux only, which reports how much each has sent.

    Args:
        ports: The ports.
    """

    def __init__(self, ports: Collection[int]) -> None:
        self.is_measuring = False
        """Whether another call of `look` should follow soon."""
        self.ended = 0
        """Floods that are over: all their frames were read, or clients have been refused for `REFUSES_AT_MOST`."""
        self._sockets, self._breaker = TcpSockets(ports), Breaker()
        self._before: dict[Sender, int] = {}
        self._refuses_until = 0.0

    def look(self, now: float, *, is_harmful: bool, is_behind: bool) -> int:
        """End the fastest connections if harm was done since the last call; refuse new ones until all is read.

        Args:
            now: Monotonic seconds.
            is_harmful: Whether their frames do harm.
            is_behind: Whether buffered frames wait.

        Returns:
            How many connections were ended.
        """
        if self._refuses_until and (not is_behind or now >= self._refuses_until):
            self._sockets.accept()
            self._refuses_until = 0.0
            self.ended += 1
        was_measuring, self.is_measuring = self.is_measuring, is_harmful
        if not is_harmful:
            return 0
        before, self._before = self._before, self._sockets.received()
        sent = {one: received - before.get(one, 0) for one, received in self._before.items()}
        if not was_measuring or sum(sent.values()) < FLOOD:
            return 0
        self._sockets.refuse()
        self._refuses_until = now + REFUSES_AT_MOST
        return sum(self._breaker.end(*one) for one in sent if sent[one] >= max(sent.values()) / 4)

    def close(self) -> None:
        """Close its descriptors."""
        self._breaker.close()


@contextmanager
def ending_floods(
    subscribers: Senders, is_behind: Callable[[], bool], turns: Callable[[], int], resident: Callable[[], int]
) -> Iterator[None]:
    """Watch the running loop from a thread while the block runs, and end the fastest subscribers if they do harm.

    The thread calls all functions.

    Args:
        subscribers: The peers that send to the publishing socket.
        is_behind: Returns whether buffered frames of subscribers wait.
        turns: Returns a number that grows while the loop moves frames.
        resident: Returns the resident bytes of this process.
    """
    watch = _Watch(asyncio.get_running_loop(), subscribers, is_behind, turns, resident)
    thread = threading.Thread(target=watch.run, name="floods", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.is_over.set()
        thread.join()


class _Watch:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        subscribers: Senders,
        is_behind: Callable[[], bool],
        turns: Callable[[], int],
        resident: Callable[[], int],
    ) -> None:
        self.is_over = threading.Event()
        self._loop, self._subscribers = loop, subscribers
        self._is_behind, self._turns, self._resident = is_behind, turns, resident
        self._turns_before = turns()
        self._answered = threading.Event()
        self._answered.set()

    def run(self) -> None:
        unanswered, before = 0, self._resident()
        while not self.is_over.wait(self._pause(unanswered)):
            try:
                moves = self._moves_frames() and not unanswered  # once it has not answered, it has to answer
                unanswered = 0 if moves or self._answers() else unanswered + 1
            except RuntimeError:  # the loop is closed
                return
            is_behind, resident = unanswered > 0 or self._is_behind(), self._resident()
            if not is_behind:
                before = resident
            is_harmful = unanswered >= HELD_UP or resident >= before + GROWTH
            ended = self._subscribers.look(time.monotonic(), is_harmful=is_harmful, is_behind=is_behind)
            if ended:
                line = "ended %d connections of subscribers: they sent faster than the forwarder reads"
                logger.warning(line, ended)

    def _pause(self, unanswered: int) -> float:
        if self._subscribers.is_measuring:
            return MEASURE
        return PATIENCE if unanswered else LOOK_EVERY

    def _moves_frames(self) -> bool:
        """Return whether the loop has ended a turn since the last call."""
        before, self._turns_before = self._turns_before, self._turns()
        return self._turns_before != before

    def _answers(self) -> bool:
        """Ask the loop, if it has answered before; return whether it has answered."""
        if self._answered.is_set():
            self._answered.clear()
            self._loop.call_soon_threadsafe(self._answered.set)
            self._answered.wait(PATIENCE)
        return self._answered.is_set()
