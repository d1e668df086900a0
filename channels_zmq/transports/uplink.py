"""The way from a process to one forwarder: a PUSH, and a second one while keys change.

In the data-flow diagram this is the arrow out of the process. `link` decides when a connection is opened, and which
messages it sends again.
"""

import logging
from collections.abc import Callable
from math import inf

import zmq

from channels_zmq.client.counters import Counters
from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import ClientKeys
from channels_zmq.transports.push import Push
from channels_zmq.transports.subscriber import Socket

OPEN_EVERY = 0.2
"""Seconds between two attempts to open a connection."""
RETIRE_AFTER = 2.0
"""Seconds for which a PUSH by former keys stays open to deliver the frames under way."""


class Uplink:
    """The PUSH sockets of a process at one forwarder.

    Args:
        context: Makes the sockets.
        address: Where the forwarder receives messages.
        linger: Seconds for which frames are still delivered once a socket is closed.
        counters: Report an address or a key that is invalid.
    """

    def __init__(self, context: "zmq.Context[Socket]", address: str, linger: float, counters: Counters) -> None:
        self.current: Push | None = None
        self.send: Callable[[bytes, int], object] = _refuse
        """Sends a frame; raises `zmq.Again` if it cannot be sent now."""
        self.opens_at = 0.0
        """When the next attempt to open a connection is due."""
        self._context, self._address, self._linger, self._counters = context, address, linger, counters
        self._is_stale = False
        self._former: Push | None = None
        self._retire_at = inf
        self._reported_error = ""

    @property
    def works(self) -> bool:
        """Whether a connection is open that has not failed."""
        return self.current is not None and not self._is_stale

    @property
    def is_changing(self) -> bool:
        """Whether a former connection is still open."""
        return self._former is not None

    def monitors(self, handle: Callable[[int], None]) -> dict[Socket, Callable[[int], None]]:
        """Return the monitor of the current socket, and what to call with its events."""
        return {} if self.current is None else {self.current.monitor: handle}

    def open(self, keys: ClientKeys | None, now: float) -> bool:
        """Open a connection by which to send from now on; the one before is closed a moment later.

        Returns:
            Whether it is open; if it is not, the reason is logged.
        """
        self.opens_at = now + OPEN_EVERY
        try:
            push = Push(self._context, self._address, keys)
        except ConfigurationError as error:
            if str(error) != self._reported_error:
                self._reported_error = str(error)
                self._counters.report(logging.ERROR, "%s", error)
            return False
        if self.current is not None:
            assert self._former is None, "keys change again only when the former connection is closed"
            self._former, self._retire_at = self.current, now + RETIRE_AFTER
        self.current, self.send, self._is_stale = push, push.send, False
        return True

    def give_up(self) -> None:
        """Let `keep` close the current connection, which has failed."""
        self._is_stale = True

    def keep(self, now: float) -> float:
        """Close connections that have failed or are not used any more; return when to be called next.

        After `open` it has to be called within `RETIRE_AFTER`.
        """
        if self._is_stale:
            self._is_stale = False
            self._close_current(0)
        if now >= self._retire_at:
            self._retire()
        return self._retire_at

    def close(self) -> None:
        """Close the sockets. Frames that they have taken are still delivered, within the linger time."""
        self._retire()
        self._close_current(self._linger)

    def _close_current(self, linger: float) -> None:
        push, self.current, self.send = self.current, None, _refuse
        if push is not None:
            push.close(linger)

    def _retire(self) -> None:
        push, self._former, self._retire_at = self._former, None, inf
        if push is not None:
            push.close(self._linger)


def _refuse(frame: bytes, flags: int) -> object:
    """Stand in for the `send` of a socket that is not open."""
    raise zmq.Again
