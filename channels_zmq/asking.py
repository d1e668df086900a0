"""What a process asks an exchange, or another process, and waits for.

A question is a frame with a number; its answer is a frame with the same number to this process's inbox. Frames go two
ways: with the subscriptions, or with the messages; the topologies fill in how. Nothing under the lock waits.
"""

import asyncio
import logging
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from channels_zmq.counters import Counters
from channels_zmq.errors import ChannelsZmqError, ConfigurationError, ForwarderUnavailable
from channels_zmq.keys import ClientKeys, ClientKeySource, ServerKeySource
from channels_zmq.loops import Loops, Waiter, running_here
from channels_zmq.outbox import Outbox
from channels_zmq.requests import REPEAT_EVERY, Request, Requests
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Status

logger = logging.getLogger("channels_zmq")


@dataclass(frozen=True, slots=True)
class Options:
    """What a connection needs to know from CONFIG; seconds and bytes."""

    connect_timeout: float
    expiry: float
    linger: float
    max_message_size: int
    outbox_capacity: int
    outbox_bytes: int
    prefetch: int
    keys: ClientKeySource | None = None
    server_keys: ServerKeySource | None = None


class Asking(ABC):
    """The part of a connection that asks; what begins with an underscore is called under the lock."""

    def __init__(self, address: str, options: Options) -> None:
        self.address = address
        self.options = options
        self.inbox = secrets.token_hex(wire.INBOX_SIZE // 2).encode()
        self.session = 0
        self.closed = False
        self.counters = Counters()
        self._lock = threading.RLock()
        self._outbox = Outbox(options.outbox_capacity, options.outbox_bytes)
        self._requests = Requests()
        self._loops = Loops(self.drain, self._lock)
        self._keys: ClientKeys | None = None
        self._refusal = ""
        """Why the other side would not have us the last time, as far as can be known."""
        self._gave_up = False

    # The seam between the topologies

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether messages go out now."""

    @abstractmethod
    def drain(self) -> None:
        """Read what has arrived; called by a watching loop, the keeper, or after an operation that left input."""

    @abstractmethod
    def call_soon(self, when: float) -> None:
        """Let the keeper call `tick` at a time at the latest."""

    @abstractmethod
    def _upstream(self, frame: bytes) -> None:
        """Send a frame the subscribers' way; it may get lost."""

    @abstractmethod
    def _downstream(self, frame: bytes, deadline: float, number: int) -> None:
        """Send a frame the producers' way, or hold it until its deadline; raises OutboxFull."""

    # Asking

    async def _ask(self, number: int, frame: bytes, what: str, *, upstream: bool = False, repeat: bool = True) -> int:
        """Send a request and wait for the status that answers it."""
        loop = asyncio.get_running_loop()
        timeout = self.options.connect_timeout
        waiter = Waiter(loop)
        with self._lock:
            now = time.monotonic()
            answer = partial(_answer, waiter)
            self._requests.begin(number, Request(answer, frame, upstream, repeat, now + REPEAT_EVERY))
            self._loops.enter(loop, attach=False)
        try:
            with self._lock:
                if upstream:
                    self._upstream(frame)
                else:
                    self._downstream(frame, now + timeout, number)
            if waiter.future.done():
                return int(waiter.future.result())
            async with asyncio.timeout(timeout):
                return int(await waiter.future)
        except TimeoutError:
            raise self._silence(timeout, what) from None
        finally:
            with self._lock:
                self._requests.end(number)
                self._outbox.withdraw(number)
                self._loops.leave(loop)

    def was_refused(self, reason: str) -> None:
        """Note why the other side does not let this process in; ZeroMQ gives up then, the next `tick` does not."""
        self._refusal, self._gave_up = reason, True

    def _keys_to_try(self) -> ClientKeys | None:
        """Return keys to connect anew with: others than the last ones, or the same if they were refused."""
        if self.options.keys is None:
            return None
        try:
            keys = self.options.keys.read()
        except ConfigurationError as error:
            logger.error("the keys stay as they were: %s", error)
            return None
        if keys == self._keys and not self._gave_up:
            return None
        self._keys, self._gave_up = keys, False
        return keys

    def _silence(self, timeout: float, what: str) -> ForwarderUnavailable:
        return ForwarderUnavailable(self.address, timeout, what, self._refusal)

    def _reply(self, frame: bytes, number: int = 0) -> None:
        """Send a frame for which nobody waits in this process; what cannot go is counted."""
        try:
            self._downstream(frame, time.monotonic() + self.options.connect_timeout, number)
        except ChannelsZmqError:
            self.counters.drop("outbox")

    def _send_upstream(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self._upstream(frame)

    def _repeat_requests(self, now: float) -> None:
        for number, request in self._requests.to_repeat(now) if self.connected else ():
            if request.upstream:
                self._upstream(request.frame)
            else:
                self._reply(request.frame, number)

    def _confirmed(self, frame: bytes) -> None:
        confirm = wire.CONFIRM.decode(frame)
        self._requests.answered(confirm.n, confirm.status)

    def _synced(self, frame: bytes) -> None:
        self._requests.answered(wire.SYNCED.decode(frame).n, Status.OK)


def _answer(waiter: Waiter, status: int | Exception) -> None:
    waiter.wake(status, here=running_here())
