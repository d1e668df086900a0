"""The two channel layers: validate names, serialize messages, delegate everything else to the connection.

This is where the data-flow diagram begins and ends: `group_send` and `send` on one side, `receive` on the other.

Modules that only one of the layers needs are imported when its first connection is made: most projects use one layer.
"""

import os
import random
import secrets
from collections.abc import Awaitable
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from channels.exceptions import ChannelFull, StopConsumer
from channels.layers import BaseChannelLayer

from channels_zmq import config as configuration
from channels_zmq import connections, names, serializers
from channels_zmq.client.client import Client
from channels_zmq.client.counters import Stats
from channels_zmq.client.defaults import Defaults
from channels_zmq.client.mailboxes import Payload
from channels_zmq.client.output import LinkChange, LinkLost
from channels_zmq.config import DedicatedConfig, EmbeddedConfig, LayerConfig
from channels_zmq.connection import Connection
from channels_zmq.encryption import Keyring, package
from channels_zmq.errors import ConnectionClosed, MessageTooLarge, RequestRefused
from channels_zmq.keys import client_keys, server_keys
from channels_zmq.options import Options
from channels_zmq.serializers import Message, Serializer
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.sockets import longest_transfer

SESSION_BITS = 31
"""Random bits of the number at which sessions begin; its field has room for 2**31 more sessions."""

Config = TypeVar("Config", bound=LayerConfig)


class _ZmqChannelLayer(BaseChannelLayer, Generic[Config]):  # type: ignore[misc] # Channels has no type information
    """The common part of both layers; see Channels' channel layer specification."""

    MessageTooLarge = MessageTooLarge
    _model: type[Config]

    @property
    def extensions(self) -> list[str]:
        """The optional extensions of the specification that this layer has."""
        return ["groups"] if self._prefix else ["groups", "flush"]

    def __init__(self, **config: Any) -> None:
        self.config = configuration.parse(self._model, config)
        super().__init__(expiry=self.config.expiry, capacity=self.config.capacity)
        self.channel_capacity = self.compile_capacities(self.config.channel_capacity)
        self.group_expiry = self.config.group_expiry
        self._prefix = self.config.prefix
        self._ttl = wire.milliseconds(self.config.expiry)
        self._drop_rate = self.config.drop_rate
        self._max_message_size = self.config.max_message_size
        self._serializer = serializers.named(self.config.serializer)
        self._encrypts = self.config.encrypts
        if self._encrypts:
            package()  # a missing one is an error of the configuration, not of the first message
        self._known_connection: Connection | None = None

    # Channels

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new channel that only this process can read.

        Raises:
            TypeError: If the prefix does not make a valid name.
        """
        return self._connection().client.receiver.own_names.new(prefix)

    async def send(self, channel: str, message: Message) -> None:
        """Send a message to a channel. To a normal channel it returns once the message is in its queue.

        Args:
            channel: A name from `new_channel` of any process, or any name without `!` for a normal channel.
            message: A dict of values that the serializer carries.

        Raises:
            ChannelFull: If `capacity` messages wait on the channel, as far as this process can know, or if all queues
                together are full.
            SerializationError: If the serializer cannot carry a value of the message.
            MessageTooLarge: If the message has more bytes than `max_message_size`.
            ForwarderUnavailable: If a normal channel does not confirm within `connect_timeout`, or if the connection
                was lost before.
            RequestRefused: If the forwarder has no room for another normal channel.
            AddressInUse: If another process produces on the address of an embedded layer.
            TypeError: If the name is invalid.
        """
        target = names.channel(channel, self._prefix)
        payload = self._pack(message)
        if self._encrypts:
            payload = self._keyring().seal_for_channel(target.name, payload)
        if self._drop_rate and self._drops():
            return
        capacity = self.get_capacity(channel)
        while True:
            connection = self._connection()
            try:
                if target.owner:
                    accepted = connection.send_direct(target.owner, channel, payload, self._ttl, capacity)
                    if accepted is None:
                        accepted = await connection.send_after_echo(channel, payload, self._ttl, capacity)
                elif target.is_normal:
                    accepted = await connection.send_normal(target.name, payload, self._ttl, capacity)
                else:
                    connection.drop_unroutable()
                    accepted = True
            except ConnectionClosed as error:
                if target.is_normal and error.may_be_sent:
                    raise  # a second copy could be read as well
                continue
            break
        if not accepted:
            or_all = ", or all queues together are full (--queue-bytes of a forwarder)" if target.is_normal else ""
            raise ChannelFull(f"{channel!r} is full: {capacity} messages wait (capacity){or_all}")

    async def receive(self, channel: str) -> Message:
        """Wait for the next message of a channel and return it; each message is returned once.

        Raises:
            StopConsumer: If the layer was closed, now or since the channel was made.
            TypeError: If the name is invalid, or if the channel belongs to another process, or to none.
        """
        name = names.channel(channel, self._prefix).name if self._prefix else channel
        while True:
            connection = self._known_connection
            payload = connection.take(name) if connection is not None else None
            if payload is None:
                payload = await self._next(channel)
            if self._encrypts and "!" not in channel and isinstance(payload, bytes):
                payload = self._keyring().open_job(name, payload)
                if payload is None:
                    self._connection().client.counters.drop("undecryptable")
                    continue
            message = serializers.unpack(self._serializer, payload)
            if message is not None:
                return message
            self._connection().client.counters.drop("malformed")

    def _next(self, channel: str) -> Awaitable[Payload]:
        """Validate a channel's name and return an awaitable of its next message."""
        target = names.channel(channel, self._prefix)
        known = self._known_connection
        if known is not None and target.owner == known.inbox and not known.closed:
            return known.receive(channel, self.get_capacity(channel), normal=False)
        if connections.has_ended(target.owner):
            raise StopConsumer
        connection = self._connection()
        if not target.is_normal and target.owner != connection.inbox:
            whose = "belongs to another process" if target.owner else "was not returned by new_channel()"
            raise TypeError(f"{channel!r} {whose}: this process cannot receive from it")
        return connection.receive(target.name, self.get_capacity(channel), normal=target.is_normal)

    # Groups

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group. Once this returns, the channel receives every message published afterwards.

        Raises:
            ForwarderUnavailable: If no confirmation arrives within `connect_timeout`, or if the process that owns the
                channel lost its connection and does not return in time.
            RequestRefused: If the forwarder has no room for another normal channel in a group.
            TypeError: If a name is invalid.
        """
        topic = names.topic(group, self._prefix)
        target = names.channel(channel, self._prefix)
        if connections.has_ended(target.owner):
            return  # nothing arrives for the channel any more
        connection = self._connection()
        capacity = self.get_capacity(channel)
        group = names.prefixed(group, self._prefix)
        if target.is_normal:
            await connection.add_normal(group, target.name, capacity, self.group_expiry)
        elif target.owner == connection.inbox:
            await connection.join(topic, group, channel, capacity, self.group_expiry)
        elif target.owner:
            await connection.change_foreign(target.owner, group, channel, add=True)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group; it is not an error if it does not belong to it.

        Raises:
            ForwarderUnavailable: If no confirmation arrives within `connect_timeout`, or if the process that owns the
                channel lost its connection and does not return in time.
            TypeError: If a name is invalid.
        """
        topic = names.topic(group, self._prefix)
        target = names.channel(channel, self._prefix)
        if connections.has_ended(target.owner):
            return  # it has left all groups
        connection = self._connection()
        group = names.prefixed(group, self._prefix)
        if target.is_normal:
            await connection.discard_normal(group, target.name)
        elif target.owner == connection.inbox:
            connection.leave(topic, channel)
        elif target.owner:
            await connection.change_foreign(target.owner, group, channel, add=False)

    async def group_send(self, group: str, message: Message) -> None:
        """Send a message to every member of a group. Full channels miss it, which is counted and logged.

        Raises:
            SerializationError: If the serializer cannot carry a value of the message.
            MessageTooLarge: If the message has more bytes than `max_message_size`.
            AddressInUse: If another process produces on the address of an embedded layer.
            TypeError: If the name is invalid.
        """
        topic = names.topic(group, self._prefix)
        payload = self._pack(message)
        if self._encrypts:
            payload = self._keyring().seal_for_group(topic, payload)
        if self._drop_rate and self._drops():
            return None
        while True:
            try:
                return self._connection().group_send(topic, payload, self._ttl)
            except ConnectionClosed:  # by another thread, just now: the next use opens it again
                continue

    # The rest

    async def flush(self) -> None:
        """Drop all messages and groups, of every client of the layer, before this returns.

        Raises:
            ForwarderUnavailable: If the forwarder did not answer within `connect_timeout`, or some client within
                1 s, or `connect_timeout` if that is less.
            RequestRefused: If the layer has a prefix, or the forwarder does not permit it.
        """
        if self._prefix:
            raise RequestRefused(
                "flush(): not allowed with a `prefix`: it would also flush the other layers at this address"
            )
        await self._connection().flush()

    def stats(self) -> Stats:
        """Return counts of what this process sent, received and lost at the layer's address."""
        return self._connection().stats()

    def stats_if_used(self) -> Stats | None:
        """Return the same as `stats`, or None if this process has not used the layer; opens no connection."""
        connection = self._known_connection
        return None if connection is None or connection.closed else connection.stats()

    async def close(self) -> None:
        """Close the sockets of this process at the layer's address; consumers that wait end with `StopConsumer`.

        Sent messages are still delivered, within `linger` seconds. The next use of the layer opens the sockets again.
        """
        connection, self._known_connection = self._known_connection, None
        if connection is not None and not connection.closed:
            await connections.close_from_loop(connection)

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
        """The address that messages arrive from."""
        raise NotImplementedError

    def _key(self) -> tuple[object, ...]:
        """Return the key of a connection: layers with an equal key share it."""
        raise NotImplementedError

    def _make_connection(self) -> Connection:
        raise NotImplementedError

    def _client_keys(self) -> tuple[object, ...]:
        settings = self.config
        by_value = settings.curve_server_key, settings.curve_secret_key, settings.symmetric_encryption_keys
        files = settings.curve_server_key_file, settings.curve_secret_key_file, settings.symmetric_encryption_keys_file
        return (*by_value, *files)

    def _keyring(self) -> Keyring:
        keyring = self._connection().keyring
        assert keyring is not None, "only asked for by a layer that encrypts, whose connections have one"
        return keyring

    def _connection(self) -> Connection:
        connection = self._known_connection
        if connection is None or connection.closed:
            announcer = partial(_announce, self._serializer, self.config.on_disconnect, self.config.on_reconnect)
            connection = self._known_connection = connections.connection(
                self._key(), self._make_connection, self, self._defaults(), announcer
            )
        return connection

    def _defaults(self) -> Defaults:
        """Return the settings that the connection needs from this layer, without a reference to it."""
        capacities, capacity = self.channel_capacity, self.capacity

        def capacity_of(channel: str) -> int:
            return int(next((limit for pattern, limit in capacities if pattern.match(channel)), capacity))

        return Defaults(capacity_of, self.group_expiry, self._ttl)

    def _pack(self, message: Message) -> bytes:
        payload = serializers.pack(self._serializer, message)
        if len(payload) > self._max_message_size:
            raise MessageTooLarge(len(payload), self._max_message_size)
        return payload

    def _drops(self) -> bool:
        """Lose a message on purpose, as the specification's resilience testing mode asks."""
        if random.random() >= self._drop_rate:
            return False
        self._connection().client.counters.drop("drop_rate")
        return True

    def _client(self, keyring: Keyring | None, window: int = 0, window_bytes: int = 0) -> Client:
        return Client(
            os.urandom(wire.SECRET_SIZE),
            os.urandom(wire.SENDER_SIZE),
            prefetch=self.config.prefetch,
            idle=self.config.expiry,
            window=window,
            window_bytes=window_bytes,
            longest=longest_transfer(self._max_message_size + wire.MAX_OVERHEAD),
            session=secrets.randbits(SESSION_BITS),
            opener=keyring,
        )

    def _options(
        self,
        *,
        outbox_capacity: int = 0,
        outbox_bytes: int = 0,
        resolve_every: float = 5.0,
        subscriber_bytes: int = 0,
    ) -> Options:
        settings = self.config
        return Options(
            keys=client_keys(settings),
            server_keys=server_keys(settings),
            connect_timeout=settings.connect_timeout,
            expiry=settings.expiry,
            linger=settings.linger,
            max_message_size=settings.max_message_size,
            outbox_capacity=outbox_capacity,
            outbox_bytes=outbox_bytes,
            resolve_every=resolve_every,
            subscriber_bytes=subscriber_bytes,
            keyring=Keyring(settings.symmetric_encryption_keys, settings.symmetric_encryption_keys_file)
            if settings.encrypts
            else None,
        )


class EmbeddedZmqChannelLayer(_ZmqChannelLayer[EmbeddedConfig]):
    """A channel layer without a forwarder: one process sends, and any number receive.

    CONFIG: the fields of `channels_zmq.config.EmbeddedConfig`. The default address reaches one process only.
    """

    _model = EmbeddedConfig

    @property
    def address(self) -> str:
        """The address at which the sending process publishes."""
        return self.config.pub_socket_address

    def _key(self) -> tuple[object, ...]:
        return ("embedded", self.address, *self._client_keys())

    def _make_connection(self) -> Connection:
        from channels_zmq.transports.embedded_reader import embedded

        settings = self.config
        options = self._options(subscriber_bytes=settings.subscriber_bytes)
        client = self._client(options.keyring)
        return Connection(options, client, partial(embedded, self.address, options, client))


class DedicatedZmqChannelLayer(_ZmqChannelLayer[DedicatedConfig]):
    """A channel layer by one or several forwarders: any number of processes send and receive.

    CONFIG: the fields of `channels_zmq.config.DedicatedConfig`; both addresses are needed.
    """

    _model = DedicatedConfig

    @property
    def address(self) -> str:
        """The addresses at which the forwarders publish."""
        return ", ".join(self.config.pub_socket_address)

    def _key(self) -> tuple[object, ...]:
        return ("dedicated", *self.config.forwarders, *self._client_keys())

    def _make_connection(self) -> Connection:
        from channels_zmq.transports.links import Links
        from channels_zmq.transports.roster import Forwarder

        settings = self.config
        options = self._options(
            outbox_capacity=settings.outbox_capacity,
            outbox_bytes=settings.outbox_bytes,
            resolve_every=settings.resolve_every,
        )
        client = self._client(options.keyring, settings.window, settings.outbox_bytes)
        forwarders = [Forwarder(pull, pub) for pull, pub in settings.forwarders]
        return Connection(options, client, partial(Links, forwarders, options, client))


def _announce(serializer: Serializer, lost: str | None, restored: str | None, change: LinkChange) -> bytes | None:
    """Return the message that announces a change of the link to consumers, None if no hook is configured."""
    if isinstance(change, LinkLost):
        return serializers.pack(serializer, {"type": lost}) if lost else None
    return serializers.pack(serializer, {"type": restored, "missed": change.missed}) if restored else None
