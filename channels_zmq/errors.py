"""The errors of the library, as a tree. Every message names what to change.

ChannelsZmqError
├── ConfigurationError          a wrong CONFIG key or value, or environment variable (also ImproperlyConfigured)
├── MessageError                a message that cannot be carried (also ValueError)
│   ├── SerializationError      names the path inside the message (also TypeError)
│   └── MessageTooLarge         larger than max_message_size
├── OutboxFull                  the forwarder is unreachable, or slow, and the outbox is full (also ChannelFull)
├── ForwarderUnavailable        no answer within connect_timeout (also ConnectionError)
│   ├── OwnerUnavailable        the process that owns a channel lost its connection and did not return in time
│   ├── ConnectionLost          the connection was lost before the answer: the outcome is unknown
│   ├── FlushIncomplete         a process of the layer did not answer in time
│   └── WireVersionMismatch     the forwarder speaks another version of the wire format
├── RequestRefused              the forwarder is at one of its limits, or does not permit the request
├── ConnectionClosed            the layer was closed while it was in use
└── AddressInUse                another process produces on this address (also OSError)
"""

from channels.exceptions import ChannelFull
from channels.exceptions import MessageTooLarge as ChannelsMessageTooLarge
from django.core.exceptions import ImproperlyConfigured


class ChannelsZmqError(Exception):
    """Base of all errors of this library."""


class ConfigurationError(ChannelsZmqError, ImproperlyConfigured):  # type: ignore[misc] # Django has no type information
    """A key of CONFIG, or an environment variable, is invalid.

    Attributes:
        setting: The key or variable.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting = setting


class MessageError(ChannelsZmqError, ValueError):
    """A message that the layer cannot carry; nothing was sent."""


class SerializationError(MessageError, TypeError):
    """A value inside a message that the serializer cannot carry.

    Attributes:
        path: Of the value, as an expression on the message.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class MessageTooLarge(MessageError, ChannelsMessageTooLarge):  # type: ignore[misc] # Channels has no type information
    """A message of more bytes than `max_message_size`; nothing was sent.

    Attributes:
        size: Bytes of the serialized message.
        limit: Bytes allowed.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the message has {size} bytes, max_message_size is {limit}: send a smaller message or raise "
            "max_message_size"
        )
        self.size, self.limit = size, limit


class OutboxFull(ChannelsZmqError, ChannelFull):  # type: ignore[misc] # Channels has no type information
    """The forwarder is unreachable, or slow, and the outbox is full; nothing was sent.

    Attributes:
        address: Of the forwarder.
        frames: How many messages the outbox holds.
        option: The one that bounds it; empty for an embedded layer, whose bounds are fixed.
    """

    def __init__(self, address: str, frames: int, option: str = "") -> None:
        advice = f"raise {option} to hold more" if option else "send again later"
        super().__init__(f"{address} is unreachable or slow, and the outbox holds {frames} messages: {advice}")
        self.address, self.frames, self.option = address, frames, option


class ForwarderUnavailable(ChannelsZmqError, ConnectionError):
    """The forwarder did not answer in time.

    Attributes:
        address: Of the forwarder.
        timeout: Seconds after which the library gave up.
    """

    def __init__(self, address: str, timeout: float, what: str, guess: str = "") -> None:
        super().__init__(
            f"{what}: no answer from the forwarder at {address} within {timeout:g} s (connect_timeout): "
            f"{guess or 'is it running, and is the address correct?'}"
        )
        self.address, self.timeout = address, timeout


class OwnerUnavailable(ForwarderUnavailable):
    """The process that owns a channel lost its connection a moment ago: it was not asked to change the group."""

    def __init__(self, address: str, timeout: float, what: str) -> None:
        ChannelsZmqError.__init__(
            self,
            f"{what}: the process that owns the channel lost its connection to {address}, and was not back within "
            f"{timeout:g} s (connect_timeout)",
        )
        self.address, self.timeout = address, timeout


class ConnectionLost(ForwarderUnavailable):
    """The connection was lost after a request was sent and before it was answered: its outcome is unknown.

    The library does not repeat it. Whether to do so is the application's decision.
    """

    def __init__(self, address: str, what: str) -> None:
        ChannelsZmqError.__init__(
            self,
            f"{what}: the connection to the forwarder at {address} was lost before it answered; the outcome is unknown",
        )
        self.address, self.timeout = address, 0.0


class FlushIncomplete(ForwarderUnavailable):
    """A process of the layer did not answer a flush in time. It drops its messages once it reads again."""

    def __init__(self, address: str, timeout: float) -> None:
        ChannelsZmqError.__init__(
            self,
            f"flush(): a process at {address} did not answer within {timeout:g} s; it drops its messages later",
        )
        self.address, self.timeout = address, timeout


class WireVersionMismatch(ForwarderUnavailable):
    """The forwarder speaks another version of the wire format.

    Attributes:
        theirs: The forwarder's version.
        ours: This library's version.
    """

    def __init__(self, address: str, theirs: int, ours: int) -> None:
        ChannelsZmqError.__init__(
            self,
            f"the forwarder at {address} uses version {theirs} of the wire format, this library version {ours}: "
            "install channels-zmq and channels-zmq-forwarder of one release",
        )
        self.address, self.theirs, self.ours = address, theirs, ours


class RequestRefused(ChannelsZmqError):
    """The forwarder is at a limit, such as `--queue-names`, or does not permit the request; nothing was done."""


class ConnectionClosed(ChannelsZmqError):
    """The connection was closed by another thread, or by another layer, while it was used.

    Attributes:
        address: Of the connection.
        may_be_sent: Whether a request had begun: it is unknown whether it was carried out. Otherwise nothing was sent.
    """

    def __init__(self, address: str, *, may_be_sent: bool = False) -> None:
        super().__init__(f"the connection to {address} was closed while it was in use")
        self.address, self.may_be_sent = address, may_be_sent


class AddressInUse(ChannelsZmqError, OSError):
    """The embedded layer cannot produce here, since its address cannot be bound.

    Attributes:
        address: The `pub_socket_address`.
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(
            f"pub_socket_address {address}: {reason}. With the embedded layer one process sends and the others only "
            "receive; for several senders use DedicatedZmqChannelLayer and a forwarder"
        )
        self.address = address
