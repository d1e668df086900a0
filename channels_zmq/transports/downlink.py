"""The way from one forwarder to a process: a subscriber, and a second one while keys change.

In the data-flow diagram this is the arrow from a forwarder into a process, and the arrow back for subscriptions and
requests. `link` decides when; this is how one subscriber takes over from another.

Theory of operation. The second one connects beside the first one, subscribes to the same topics, and begins the next
session. The forwarder publishes its welcome on both connections, behind everything that was published before. So the
former one is read up to the welcome, and then the current one from its beginning, whose first messages are repeats: no
message is missed or overtaken, even on a slow link. Only one of them is read, and watched by event loops, at any time.
If a former one breaks, or takes too long, the frames that have arrived on it are read, and the forwarder is asked to
replay the rest.
"""

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import zmq

from channels_zmq.client.output import Output
from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import ClientKeys, KeyWatch
from channels_zmq.transports.subscriber import READS_FORMER_FOR, Socket, Subscriber

CHANGE_WITHIN = 10.0
"""Seconds for which a former subscriber is read ahead of the current one, at most."""


class Watcher(Protocol):
    """Lets event loops watch subscribers."""

    def watch(self, subscriber: Subscriber) -> None:
        """Let event loops watch a subscriber."""

    def unwatch(self, subscriber: Subscriber) -> None:
        """Let no event loop watch a subscriber that is not to be read any more."""


class Downlink:
    """The subscribers of a process at one forwarder.

    Args:
        make: Makes a subscriber that is not connected.
        watcher: Lets event loops watch the one that is read.
        out: Is notified that input may be there.
        call_soon: Arranges for a call of `keep` at a time at the latest.
    """

    def __init__(
        self, make: Callable[[], Subscriber], watcher: Watcher, out: Output, call_soon: Callable[[float], None]
    ) -> None:
        self.current = make()
        """The subscriber that has begun the current session."""
        self.next: Subscriber | None = None
        """The one that connects by other keys, if there is one."""
        self._make, self._watcher, self._out, self._call_soon = make, watcher, out, call_soon
        self._reading = self.current
        self.read = self._reading.read
        """Feeds the client for one turn; returns whether more input may be there. It is another function while a former
        subscriber is read, since a method that chooses would be a call for each turn."""
        self._read_out: Subscriber | None = None
        self._change_by = 0.0

    def connect_first(self, keys: KeyWatch) -> None:
        """Connect unless a key file is missing so far.

        Raises:
            ConfigurationError: If an address or a key is invalid; nothing is left open.
        """
        try:
            self.current.connect_first(keys)
        except ConfigurationError:
            self.current.close()
            raise
        self.current.subscribe_inbox()
        self._watcher.watch(self.current)

    def monitors(
        self, current: Callable[[int], None], following: Callable[[int], None]
    ) -> dict[Socket, Callable[[int], None]]:
        """Return the monitors of the sockets, and what to call with their events.

        Args:
            current: Called with those of the current subscriber.
            following: Called with those of the next one.
        """
        monitors = {self.current.monitor: current}
        if self.next is not None:
            monitors[self.next.monitor] = following
        if self._reads_former:
            monitors[self._reading.monitor] = self._former_event
        return monitors

    def close(self) -> None:
        """Close all sockets. Frames that they have taken are still sent, within the linger time."""
        self._watcher.unwatch(self._reading)
        for other in (self.next, self._read_out, self._reading):
            if other is not None and other is not self.current:
                other.close()
        self.current.close()

    # Receiving

    def has_input(self) -> bool:
        """Return whether a frame can be read, or may be readable once a lost former connection is read to its end."""
        return self._reading.has_input() or (self._reads_former and not self._reading.is_connected)

    def is_behind(self, now: float, since: float) -> bool:
        """Return whether messages that were published before a time may still arrive, which a probe finds out."""
        return self._reads_former or self.current.is_behind(now, since)

    def _read_former(self) -> bool:
        has_more = self._reading.read()
        if has_more or self._reading.is_connected:
            return has_more
        self.read_current()  # no frame arrives by the former one any more
        return True

    # Changes

    @property
    def is_changing(self) -> bool:
        """Whether there is a subscriber beside the current one."""
        return self.next is not None or self._reads_former or self._read_out is not None

    @property
    def _reads_former(self) -> bool:
        return self._reading is not self.current

    def begin_change(self, keys: ClientKeys | None) -> None:
        """Connect a second subscriber by other keys.

        Raises:
            ConfigurationError: If the address or a key is invalid; nothing has changed then.
        """
        subscriber = self._make()
        try:
            subscriber.connect(keys)
        except ConfigurationError:
            subscriber.close()
            raise
        self.next = subscriber
        subscriber.subscribe_inbox()

    def give_up_next(self) -> None:
        """Close the next subscriber, which was refused or is not needed any more."""
        if self.next is not None:
            self.next.close()
            self.next = None

    def change(self, before: Callable[[], Iterable[bytes]]) -> None:
        """Begin the next session by the next subscriber, which has connected.

        Args:
            before: Returns the frames that the exchange needs before the hello.
        """
        assert self.next is not None, "called only for a subscriber that has connected"
        self.current.read()  # what has arrived counts as received in the former session
        self.current, self.next, self.read = self.next, None, self._read_former
        self._change_by = time.monotonic() + CHANGE_WITHIN
        self.current.begin_session(before())
        self._call_soon(0.0)

    def read_current(self) -> None:
        """Read the current subscriber from now on; `keep` closes the former one."""
        if self._reads_former:
            self._watcher.unwatch(self._reading)
            self._read_out, self._reading, self.read = self._reading, self.current, self.current.read
            self._watcher.watch(self.current)
            self._out.input_found()
            self._call_soon(0.0)

    def lost(self) -> None:
        """Note that the connection of the current subscriber was lost; a former one is not waited for then."""
        self._end_former()
        self.current.lost()

    def keep(self, now: float) -> None:
        """Do what is due."""
        if self._reads_former and now >= self._change_by:
            if self._reading.is_connected:
                self._give_up_former()
            else:
                self.read_current()
        if self._read_out is not None:
            self._read_out.close()
            self._read_out = None

    def _former_event(self, event: int) -> None:
        if event == zmq.Event.DISCONNECTED and self._reading.is_connected:
            self._give_up_former()

    def _give_up_former(self) -> None:
        self._end_former()
        self.current.say_hello()  # with the request to replay what it has lost

    def _end_former(self) -> None:
        """Expect no more frames from a former subscriber than have arrived."""
        if self._reads_former and self._reading.is_connected:
            self._reading.lost()
            self._change_by = time.monotonic() + READS_FORMER_FOR
            self._out.input_found()
            self._call_soon(0.0)
