"""A process that receives at an embedded address. Its first message promotes it to the producer.

In the data-flow diagram this is process B, and a process A that has not sent anything yet.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import zmq

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.client import Client
from channels_zmq.client.counters import LinkStats
from channels_zmq.client.output import LinkLost, SessionFrame
from channels_zmq.errors import ConfigurationError, WireVersionMismatch
from channels_zmq.housekeeper import Watched
from channels_zmq.keys import KeyWatch
from channels_zmq.options import Options
from channels_zmq.transports.discovery import Lookup
from channels_zmq.transports.embedded_producer import EmbeddedProducer
from channels_zmq.transports.subscriber import FAILURES, READS_FORMER_FOR, REFUSALS, Socket, Subscriber
from channels_zmq_forwarder import wire

LOCAL = "inproc://"
TICK_EVERY = 1.0


def embedded(
    address: str, options: Options, client: Client, call_soon: Callable[[float], None]
) -> "EmbeddedReader | EmbeddedProducer":
    """Return the transport that a process begins with.

    Args:
        address: The `pub_socket_address`; `inproc://` serves this process alone and needs no socket.
        options: Bounds and times.
        client: Takes the frames that arrive.
        call_soon: Arranges for `tick` at a time at the latest.
    """
    if address.startswith(LOCAL):
        return EmbeddedProducer(address, options, client, call_soon, None)
    return EmbeddedReader(address, options, client, call_soon)


class EmbeddedReader:
    """A process that receives from the producer at an embedded address. For the arguments see `embedded`."""

    is_bound = False

    def __init__(self, address: str, options: Options, client: Client, call_soon: Callable[[float], None]) -> None:
        self.address = address
        self.refusal = ""
        self._options, self._client, self._call_soon = options, client, call_soon
        self._context: zmq.Context[Socket] = zmq.Context()
        self._keys = KeyWatch(options.keys)
        self.attachment = client.attach()
        self._lookup = Lookup(self._resolve)
        self._may_be_there = False
        self._is_up = False
        self._was_up = False
        self._is_retired = False
        self._expects_retry = False
        """Whether the next failure means only that ZeroMQ will connect again, which it reports after each loss."""

    def start(self) -> None:
        """Connect to the producer, unless a key file is missing so far.

        Raises:
            ConfigurationError: If the address or a key is invalid.
        """
        self._subscriber = Subscriber(
            self._context, _reachable(self.address), self._options, self._client, self.attachment
        )
        try:
            self._may_be_there = self._subscriber.connect_first(self._keys)
        except ConfigurationError:
            self._context.destroy(linger=0)
            raise
        self._subscriber.subscribe_inbox()

    def producer(self) -> None:
        """Return None: a reader sends nothing before it is promoted."""

    def promote(self) -> EmbeddedProducer:
        """Bind the address and return the producer that takes this reader's place.

        Raises:
            AddressInUse: If the address cannot be bound.
            ConfigurationError: If a key is missing or invalid.
        """
        producer = EmbeddedProducer(self.address, self._options, self._client, self._call_soon, self)
        producer.start()
        return producer

    @property
    def is_connected(self) -> bool:
        """Whether a producer has welcomed this process."""
        return self._is_up

    @property
    def is_alone(self) -> bool:
        """Whether no producer exists: the last attempt to connect has failed, and the requests to it are answered.

        A process that has just started does not know yet. If it assumed that no producer exists, it could miss a
        message of a running producer right after `group_add`.
        """
        return not self._may_be_there

    @property
    def must_confirm(self) -> bool:
        """Whether there may be a producer to ask; a reader without one just waits for it."""
        return self._may_be_there

    @property
    def descriptor(self) -> int:
        """The descriptor that event loops watch for input."""
        return self._subscriber.descriptor

    @property
    def inputs(self) -> Collection[int]:
        """The descriptor of the only socket."""
        return (self._subscriber.descriptor,)

    def send_upstream(self, frame: bytes, to: Attachment | None = None) -> bool:
        """Send a frame by the XSUB; return whether input is there now."""
        return self._subscriber.send(frame)

    def send_downstream(
        self, frame: bytes, deadline: float, number: int, key: bytes = b"", *, must: bool = False
    ) -> bool:
        """Send a request by the XSUB: a reader has no other way up."""
        return self._subscriber.send(frame)

    def send_to(self, to: Attachment, frame: bytes) -> bool:
        """Send a request by the XSUB: a reader has no other way up."""
        return self._subscriber.send(frame)

    def has_input(self) -> bool:
        """Return whether a frame can be read."""
        return self._subscriber.has_input()

    def is_behind(self, now: float, since: float) -> bool:
        """Return whether messages that were published before a time may still arrive, which a probe finds out."""
        return self._subscriber.is_behind(now, since)

    def read(self) -> bool:
        """Feed the client for one turn; return whether more input may be there."""
        has_more = self._subscriber.read()
        if self._client.gaps.beginnings and not has_more:
            self._client.gaps.all_is_read()
        return has_more

    def watched(self) -> Watched:
        """Return the monitor of the socket."""
        return Watched({self._subscriber.monitor: self._event})

    def _event(self, event: int) -> None:
        if self._is_retired:  # it has connected to this process itself; its session would end that of the producer
            return
        if event in REFUSALS:
            self.refusal = REFUSALS[event]
            self._keys.refused()
            self._is_alone_now()
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._may_be_there, self._expects_retry = True, False
            self._went_down()
            self._subscriber.greet(self._before_hello)
            self._call_soon(self._subscriber.due)
        elif event in FAILURES and self._expects_retry:
            self._expects_retry = False
        elif event in FAILURES:
            self._is_alone_now()
        else:
            self._expects_retry = True
            self._subscriber.lost()
            self._went_down()

    def _before_hello(self) -> Iterable[bytes]:
        return self._client.before_hello(self.attachment)

    def _is_alone_now(self) -> None:
        self._may_be_there = False
        self._client.answer_for_nobody()

    def _went_down(self) -> None:
        self._client.became_unreachable(self.attachment)
        self._client.fail_unanswered(self.attachment)
        if self._is_up:
            self._is_up = False
            self._client.counters.report(logging.WARNING, "the producer at %s is unreachable", self.address)
            self._client.out.change(LinkLost())

    def take_session(self, frames: Sequence[tuple[Attachment, SessionFrame]]) -> None:
        """Take welcomes."""
        for _, frame in frames:
            if not isinstance(frame, wire.Welcome):
                continue
            if frame.version != wire.VERSION:
                self._client.fail_requests(WireVersionMismatch(self.address, frame.version, wire.VERSION))
            elif self._subscriber.take(frame):
                self._came_up(frame)

    def _came_up(self, welcome: wire.Welcome) -> None:
        self._is_up = True
        self.refusal = ""
        again, self._was_up = self._was_up, True
        self._client.begin_session(self.attachment, self._subscriber.session, welcome.instance)
        if again:
            self._client.outage_ended()

    def tick(self, now: float) -> float:
        """Repeat an unanswered hello and try changed keys; return when to be called again."""
        self._subscriber.tick(now)
        if not self._is_up and (self._keys.have_changed() or self._subscriber.endpoint.has_changed()):
            try:
                self._subscriber.connect(self._keys.current)
                self._may_be_there = True
            except ConfigurationError as error:
                self._client.counters.report(logging.ERROR, "%s", error)
        return min(now + TICK_EVERY, self._subscriber.due)

    def look_around(self) -> None:
        """Read the keys again, and let the name of the address be resolved."""
        if self._subscriber.is_connected:
            return
        self._keys.look()
        if not self._subscriber.endpoint.is_literal:
            self._lookup.begin()

    def _resolve(self) -> None:
        self._subscriber.endpoint.look()
        self._call_soon(0.0)

    @property
    def was_lost(self) -> bool:
        """Whether the producer was lost, and no other one was reached since."""
        return self._was_up and not self._is_up

    def retire(self) -> None:
        """Read what has arrived and disconnect. The socket stays until `close`: the housekeeper may be watching it."""
        until = time.monotonic() + READS_FORMER_FOR
        while self.read() and time.monotonic() < until:
            pass
        self._is_retired = True
        self._subscriber.disconnect()

    def keep_retired(self) -> None:
        """Let ZeroMQ carry out the disconnection, as it does only when the socket is used."""
        self._subscriber.has_input()

    def close(self) -> None:
        """Close the socket."""
        self._subscriber.close()

    def terminate(self) -> None:
        """Wait until what was sent is delivered, at most the linger time."""
        self._context.term()

    def stats(self) -> list[LinkStats]:
        """Return nothing: there are no forwarders."""
        return []

    def abandon(self) -> None:
        """Do nothing: a forked child has nothing here to release."""


def _reachable(address: str) -> str:
    """Return where to reach a producer that binds all interfaces."""
    for everywhere, here in (("tcp://*:", "127.0.0.1"), ("tcp://0.0.0.0:", "127.0.0.1"), ("tcp://[::]:", "[::1]")):
        if address.startswith(everywhere):
            return f"tcp://{here}:{address.removeprefix(everywhere)}"
    return address
