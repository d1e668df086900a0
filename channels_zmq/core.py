"""The two channel layers: names are checked, messages become bytes, and everything else is the connection's.

This is where the data-flow diagram begins and ends: `group_send` and `send` on one side, `receive` on the other.
"""

import random
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from channels.exceptions import ChannelFull, StopConsumer
from channels.layers import BaseChannelLayer

from channels_zmq import config as configuration
from channels_zmq import names, registry, serializers
from channels_zmq.asking import Options
from channels_zmq.config import DedicatedConfig, EmbeddedConfig, LayerConfig
from channels_zmq.connection import Connection
from channels_zmq.counters import Stats
from channels_zmq.dedicated import DedicatedConnection
from channels_zmq.embedded import EmbeddedConnection
from channels_zmq.errors import MessageTooLarge
from channels_zmq.joining import Defaults
from channels_zmq.keys import ClientKeySource, KeySetting, ServerKeySource
from channels_zmq.mailboxes import Payload
from channels_zmq.serializers import Message
from channels_zmq_forwarder.wire import milliseconds

Config = TypeVar("Config", bound=LayerConfig)


class _ZmqChannelLayer(BaseChannelLayer, Generic[Config]):  # type: ignore[misc] # Channels has no type information
    """What both layers do; see Channels' channel layer specification."""

    extensions: ClassVar[list[str]] = ["groups", "flush"]
    MessageTooLarge = MessageTooLarge
    _model: type[Config]

    def __init__(self, **config: Any) -> None:
        self.config = configuration.parse(self._model, config)
        super().__init__(expiry=self.config.expiry, capacity=self.config.capacity)
        self.channel_capacity = self.compile_capacities(self.config.channel_capacity)
        self.group_expiry = self.config.group_expiry
        self._ttl = milliseconds(self.config.expiry)
        self._drop_rate = self.config.drop_rate
        self._max_message_size = self.config.max_message_size
        self._serializer = serializers.named(self.config.serializer)
        self._known_connection: Connection | None = None

    # Channels

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new channel that only this process can read.

        Raises:
            TypeError: The prefix does not make a valid name.
        """
        return names.new_channel(prefix, self._connection().inbox)

    async def send(self, channel: str, message: Message) -> None:
        """Send a message to a channel. To a plain channel it returns once the message is in its queue.

        Args:
            channel: A name from `new_channel` of any process, or any other name for a plain channel.
            message: A dict of what the serializer carries.

        Raises:
            ChannelFull: As many messages as its capacity wait on the channel, as far as this process can know.
            SerializationError: Something in the message cannot be carried.
            MessageTooLarge: It has more bytes than `max_message_size`.
            ForwarderUnavailable: No confirmation for a plain channel within `connect_timeout`.
        """
        target = names.channel(channel)
        payload = self._pack(message)
        connection = self._connection()
        connection.may_send()
        if self._drop_rate and self._drops():
            return
        capacity = self.get_capacity(channel)
        if target.owner:
            accepted = connection.send_direct(target.owner, channel, payload, self._ttl, capacity)
        else:
            accepted = await connection.send_plain(channel, payload, self._ttl, capacity)
        if not accepted:
            raise ChannelFull(f"{capacity} messages wait on {channel!r} already (capacity)")

    async def receive(self, channel: str) -> Message:
        """Wait for the next message of a channel and return it; each message is returned once.

        Raises:
            StopConsumer: The layer was closed, now or since the channel was made.
            TypeError: It is a channel of another process.
        """
        while True:
            connection = self._known_connection
            payload = connection.take(channel) if connection is not None else None
            if payload is None:
                payload = await self._next(channel)
            message = serializers.unpack(self._serializer, payload)
            if message is not None:
                return message
            self._connection().counters.drop("malformed")

    def _next(self, channel: str) -> Awaitable[Payload]:
        """Check a channel's name and return what waits for its next message."""
        target = names.channel(channel)
        known = self._known_connection
        if known is not None and target.owner == known.inbox and not known.closed:
            return known.receive(channel, self.get_capacity(channel), plain=False)
        if registry.has_ended(target.owner):
            raise StopConsumer
        connection = self._connection()
        if target.owner and target.owner != connection.inbox:
            raise TypeError(f"{channel!r} is a channel of another process: only that one can receive from it")
        return connection.receive(channel, self.get_capacity(channel), plain=not target.owner)

    # Groups

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group; no message sent to the group after this returns is missed.

        Raises:
            ForwarderUnavailable: No confirmation within `connect_timeout`.
        """
        names.topic(group)
        target = names.channel(channel)
        connection = self._connection()
        capacity = self.get_capacity(channel)
        if not target.owner:
            await connection.add_plain(group, channel, capacity, self.group_expiry)
        elif target.owner == connection.inbox:
            await connection.join(group, channel, capacity, self.group_expiry)
        else:
            await connection.change_foreign(target.owner, group, channel, add=True)

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out of a group; it is no error if it is not in it."""
        names.topic(group)
        target = names.channel(channel)
        connection = self._connection()
        if not target.owner:
            await connection.discard_plain(group, channel)
        elif target.owner == connection.inbox:
            connection.leave(group, channel)
        else:
            await connection.change_foreign(target.owner, group, channel, add=False)

    async def group_send(self, group: str, message: Message) -> None:
        """Send a message to every member of a group. Full channels miss it, which is counted and logged.

        Raises:
            SerializationError: Something in the message cannot be carried.
            MessageTooLarge: It has more bytes than `max_message_size`.
        """
        topic = names.topic(group)
        payload = self._pack(message)
        connection = self._connection()
        connection.may_send()
        if not (self._drop_rate and self._drops()):
            connection.group_send(topic, payload, self._ttl)

    # The rest

    async def flush(self) -> None:
        """Drop all messages and groups, of every client of the layer, before this returns.

        Raises:
            ForwarderUnavailable: Some client did not answer within `connect_timeout`.
        """
        connection = self._connection()
        connection.may_send()
        await connection.flush()

    def stats(self) -> Stats:
        """Return counts of what this process sent, received and lost at the layer's address."""
        return self._connection().stats()

    async def close(self) -> None:
        """Close the sockets of this process at the layer's address; consumers that wait end with `StopConsumer`.

        What was sent is delivered within `linger` seconds. Another use of the layer opens them again.
        """
        connection, self._known_connection = self._known_connection, None
        if connection is not None and not connection.closed:
            await registry.close_from_loop(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(pub_socket_address={self.address!r})"

    @property
    def address(self) -> str:
        """Where messages come from."""
        raise NotImplementedError

    def _key(self) -> tuple[object, ...]:
        """Return what a connection is shared by."""
        raise NotImplementedError

    def _client_keys(self) -> tuple[object, ...]:
        settings = self.config
        by_value = settings.curve_server_key, settings.curve_secret_key
        return (*by_value, settings.curve_server_key_file, settings.curve_secret_key_file)

    def _make_connection(self) -> Connection:
        raise NotImplementedError

    def _connection(self) -> Connection:
        connection = self._known_connection
        if connection is None or connection.closed:
            connection = self._known_connection = registry.connection(self._key(), self._make_connection)
            connection.users.add(self)
            connection.defaults = self._defaults()
        return connection

    def _defaults(self) -> Defaults:
        """Return what the connection needs from this layer, without a reference to it."""
        serializer, gone, back = self._serializer, self.config.on_disconnect, self.config.on_reconnect
        capacities, capacity = self.channel_capacity, self.capacity

        def capacity_of(channel: str) -> int:
            return int(next((limit for pattern, limit in capacities if pattern.match(channel)), capacity))

        return Defaults(
            capacity_of,
            self.group_expiry,
            (lambda: serializers.pack(serializer, {"type": gone})) if gone else None,
            (lambda missed: serializers.pack(serializer, {"type": back, "missed": missed})) if back else None,
        )

    def _pack(self, message: Message) -> bytes:
        payload = serializers.pack(self._serializer, message)
        if len(payload) > self._max_message_size:
            raise MessageTooLarge(len(payload), self._max_message_size)
        return payload

    def _drops(self) -> bool:
        """Lose a message on purpose, as the specification's resilience testing mode asks."""
        if random.random() >= self._drop_rate:
            return False
        self._connection().counters.drop("resilience")
        return True

    def _options(
        self, *, outbox_capacity: int = 0, outbox_bytes: int = 0, server_keys: ServerKeySource | None = None
    ) -> Options:
        settings = self.config
        server = KeySetting("curve_server_key", settings.curve_server_key, settings.curve_server_key_file)
        secret = KeySetting("curve_secret_key", settings.curve_secret_key, settings.curve_secret_key_file)
        return Options(
            keys=ClientKeySource(server, secret) if server.is_set else None,
            server_keys=server_keys,
            connect_timeout=settings.connect_timeout,
            expiry=settings.expiry,
            linger=settings.linger,
            max_message_size=settings.max_message_size,
            outbox_capacity=outbox_capacity,
            outbox_bytes=outbox_bytes,
            prefetch=settings.prefetch,
        )


class EmbeddedZmqChannelLayer(_ZmqChannelLayer[EmbeddedConfig]):
    """A channel layer without any other process: one process sends, and any number receive.

    CONFIG: the fields of `channels_zmq.config.EmbeddedConfig`. With the default address all happens in one process.
    """

    _model = EmbeddedConfig

    @property
    def address(self) -> str:
        """Where the sending process publishes."""
        return self.config.pub_socket_address

    def _key(self) -> tuple[object, ...]:
        return ("embedded", self.address, *self._client_keys())

    def _make_connection(self) -> Connection:
        settings = self.config
        secret = KeySetting(
            "curve_server_secret_key", settings.curve_server_secret_key, settings.curve_server_secret_key_file
        )
        keys = ServerKeySource(secret, settings.curve_allowed_keys, settings.curve_allowed_keys_file)
        return EmbeddedConnection(self.address, self._options(server_keys=keys if secret.is_set else None))


class DedicatedZmqChannelLayer(_ZmqChannelLayer[DedicatedConfig]):
    """A channel layer by a forwarder: any number of processes send and receive.

    CONFIG: the fields of `channels_zmq.config.DedicatedConfig`; both addresses are needed.
    """

    _model = DedicatedConfig

    @property
    def address(self) -> str:
        """Where the forwarder publishes."""
        return self.config.pub_socket_address

    def _key(self) -> tuple[object, ...]:
        return ("dedicated", self.config.pull_socket_address, self.address, *self._client_keys())

    def _make_connection(self) -> Connection:
        settings = self.config
        options = self._options(outbox_capacity=settings.outbox_capacity, outbox_bytes=settings.outbox_bytes)
        return DedicatedConnection(settings.pull_socket_address, self.address, options)
