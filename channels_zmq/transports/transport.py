"""The interface of a connection to its transport.

Methods run under the connection's lock and never wait, unless they state otherwise. Properties and `stats` are read
without the lock, too.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.counters import LinkStats
from channels_zmq.client.output import SessionFrame
from channels_zmq.housekeeper import Watched
from channels_zmq_forwarder.wire import Topic


class Transport(Protocol):
    """The sockets of one process at one address.

    Attributes:
        address: For messages to people.
    """

    address: str

    @property
    def refusal(self) -> str:
        """Why the other side did not accept this process the last time, as far as is known."""

    @property
    def is_connected(self) -> bool:
        """Whether messages are sent now rather than held."""

    @property
    def must_confirm(self) -> bool:
        """Whether a subscription is in force only once a sync was answered."""

    @property
    def is_alone(self) -> bool:
        """Whether no exchange exists: a reader of an embedded layer whose producer has not started."""

    @property
    def is_bound(self) -> bool:
        """Whether it has bound an address, which another transport can bind only once this one is closed."""

    @property
    def descriptor(self) -> int | None:
        """The descriptor that event loops watch for input; None if nothing can arrive, or if none covers all inputs."""

    @property
    def inputs(self) -> Collection[int]:
        """The descriptors of the sockets that input arrives by; none if nothing can arrive."""

    def start(self) -> None:
        """Open the sockets that receive.

        Raises:
            ConfigurationError: If an address or a key is invalid.
        """

    def producer(self) -> "Producer | None":
        """Return this transport if it can send messages."""

    def promote(self) -> "Producer":
        """Return the transport that can send messages, which may be a new one in the place of this one.

        Raises:
            AddressInUse: If another process is the producer at this address.
            ConfigurationError: If a key is missing or invalid.
        """

    def send_upstream(self, frame: bytes, to: Attachment | None = None) -> bool:
        """Send a frame the subscribers' way to one exchange, or to all; return whether input is there now.

        The frame may be lost.
        """

    def send_downstream(
        self, frame: bytes, deadline: float, number: int, key: bytes = b"", *, must: bool = False
    ) -> bool:
        """Send a frame the producers' way to one exchange, or hold it; return whether input is there now.

        Args:
            frame: A request, or a frame that is not answered.
            deadline: Monotonic seconds until which it is held.
            number: Of the request; 0 if the frame is not answered.
            key: Chooses the exchange: frames with the same key keep their order.
            must: Whether it is held even if the outbox is full.

        Raises:
            OutboxFull: If no more messages are held.
            WireVersionMismatch: If the other side speaks another version of the wire format.
        """

    def send_to(self, to: Attachment, frame: bytes) -> bool:
        """Send a frame to one exchange behind everything that was sent to it; return whether input is there now."""

    def take_session(self, frames: Sequence[tuple[Attachment, SessionFrame]]) -> None:
        """Take frames about the session: welcomes, and confirmations that no request waits for."""

    def has_input(self) -> bool:
        """Return whether a frame can be read. If so, the end of this step reads it."""

    def is_behind(self, now: float, since: float) -> bool:
        """Return whether messages that were published before a time may still arrive; both in monotonic seconds."""

    def read(self) -> bool:
        """Feed the client for one turn; return whether more input may be there."""

    def watched(self) -> Watched:
        """Return the monitors and other sockets to watch. Their callbacks run under the lock."""

    def tick(self, now: float) -> float:
        """Do what is due; return when to call again at the latest."""

    def look_around(self) -> None:
        """Read names and keys again, which may block, or begin to. Called once a second, without the lock."""

    def close(self) -> None:
        """Close the sockets. What was sent is still delivered, within the linger time."""

    def terminate(self) -> None:
        """Wait until what was sent is delivered, at most the linger time. Called without the lock, after `close`."""

    def stats(self) -> list[LinkStats]:
        """Return the state of each link to a forwarder."""

    def abandon(self) -> None:
        """Release the resources that a forked child has inherited, without touching a ZeroMQ socket."""


class Producer(Transport, Protocol):
    """A transport that can send messages."""

    @property
    def held(self) -> int:
        """How many messages wait to be sent, or to be acknowledged."""

    def mark_now(self) -> None:
        """Request the acknowledgement of all frames now."""

    def publish_group(self, topic: Topic, payload: bytes, ttl: int) -> bool:
        """Send or hold a group message; `ttl` is in milliseconds.

        Returns:
            Whether it is the first one that waits for `send_batch`.

        Raises:
            OutboxFull: If no more messages are held.
        """

    def publish_direct(self, owner: bytes, channel: str, payload: bytes, ttl: int) -> bool:
        """Send or hold a message to a channel of another process.

        Returns:
            Whether it is the first one that waits for `send_batch`.

        Raises:
            OutboxFull: If no more messages are held.
        """

    def send_batch(self) -> None:
        """Send the messages that wait for others to the same destination. All other methods that send do that first."""

    def publish_own(self, channel: str, payload: bytes, ttl: int, capacity: int) -> bool | None:
        """Send a message to a channel of this process.

        Returns:
            False if the channel is full. None if this is unknown until the messages in flight have arrived.

        Raises:
            OutboxFull: If no more messages are held.
        """

    def subscribed(self, topic: Topic) -> None:
        """Note that messages of this process which are held now are older than its subscription to their topic."""

    def withdraw(self, number: int) -> None:
        """Drop a held request."""

    def drop_held(self) -> None:
        """Drop all held messages."""
