"""Stand-ins for the sockets of a link: a test plays the network and the forwarder, and moves the time."""

from collections.abc import Callable, Iterable
from math import inf
from types import SimpleNamespace
from typing import Any, cast

import pytest
import zmq
from fakes import Clock

from channels_zmq.client.arrivals import SILENT_AFTER
from channels_zmq.client.attachment import Attachment
from channels_zmq.client.client import Client
from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import ClientKeys, KeyWatch
from channels_zmq.options import Options
from channels_zmq.transports import downlink as downlink_module
from channels_zmq.transports import link as link_module
from channels_zmq.transports import push as push_module
from channels_zmq.transports.subscriber import REQUESTS, SUBSCRIPTIONS
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Status

CONNECTED, DISCONNECTED = zmq.Event.HANDSHAKE_SUCCEEDED, zmq.Event.DISCONNECTED
ONE, TWO = b"1" * 8, b"2" * 8
"""Two instances of a forwarder."""
INVALID = "nonsense"
"""An address without a transport, to which no socket can connect."""


def options(**changes: Any) -> Options:
    """Return the options of a link or of a set of links."""
    settings = {
        "connect_timeout": 5.0,
        "expiry": 60.0,
        "linger": 2.0,
        "max_message_size": 2**20,
        "outbox_capacity": 1000,
        "outbox_bytes": 2**20,
    }
    return Options(**settings | changes)


class Push:
    """The producer's side, which records the frames, or refuses them as full."""

    is_full = False
    curve_serverkey: bytes

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.address = ""
        self.linger: int | None = None
        self.options: dict[int, object] = {}

    def set(self, option: zmq.SocketOption, value: int) -> None:
        self.options[option] = value

    def get_monitor_socket(self, events: zmq.Event) -> "Monitor":
        return Monitor()

    def disable_monitor(self) -> None:
        pass

    def connect(self, address: str) -> None:
        if address == INVALID:
            raise zmq.ZMQError(zmq.EINVAL)
        self.address = address

    def send(self, frame: bytes, flags: zmq.Flag) -> None:
        assert self.linger is None, "closed"
        if self.is_full:
            raise zmq.Again
        self.frames.append(frame)

    def close(self, linger: int) -> None:
        self.linger = linger

    def take(self) -> list[bytes]:
        frames, self.frames = self.frames, []
        return frames


class Monitor:
    """A monitor without events: a test calls the link with them."""

    def __init__(self) -> None:
        self.is_closed = False

    def close(self, linger: int) -> None:
        self.is_closed = True


class Context:
    """A context that creates stand-ins and keeps them."""

    def __init__(self) -> None:
        self.pushes: list[Push] = []
        self.subscribers: list[Subscriber] = []
        self.is_destroyed, self.is_terminated = False, False

    def socket(self, kind: zmq.SocketType) -> Push:
        assert kind == zmq.PUSH
        self.pushes.append(Push())
        return self.pushes[-1]

    def destroy(self, linger: int) -> None:
        self.is_destroyed = True

    def term(self) -> None:
        self.is_terminated = True


class Subscriber:
    """The subscriber's side, as a link uses it."""

    def __init__(
        self,
        context: Context,
        address: str,
        options: Options,
        client: Client,
        attachment: Attachment,
        known: Callable[[], bytes],
    ) -> None:
        self.address, self.client, self.attachment, self.known = address, client, attachment, known
        self.session, self.is_connected, self.due = 0, False, inf
        self.welcome: wire.Welcome | None = None
        self.endpoint, self.monitor, self.descriptor = SimpleNamespace(address=address), Monitor(), object()
        self.sent: list[bytes] = []
        self.subscribed: set[wire.Topic] = set()
        self.arriving: list[bytes] = []
        self.greeted: list[list[bytes]] = []
        self.resumes: list[wire.Resume] = []
        self.lists: list[bytes] = []
        self.connected_with: list[ClientKeys | None] = []
        self.ticked: list[float] = []
        self.is_closed = self.is_lost = self.others_come_first = False
        self.probed_at = -inf
        self.keys: ClientKeys | None = None
        context.subscribers.append(self)

    def connect_first(self, keys: KeyWatch) -> bool:
        if not keys.may_connect():
            return False
        return self.connect(keys.current)

    def connect(self, keys: ClientKeys | None) -> bool:
        if self.address == INVALID:
            raise ConfigurationError("pub_socket_address", f"cannot connect to {self.address!r}")
        self.connected_with.append(keys)
        self.keys = keys
        return False

    def subscribe_inbox(self) -> None:
        self.sent.append(wire.subscription(wire.inbox_topic(self.client.inbox)))

    def send(self, frame: bytes) -> bool:
        belongs_later = (self.welcome is None and frame[:1] in REQUESTS) or (
            not self.is_connected and frame[:1] in SUBSCRIPTIONS
        )
        if not belongs_later:
            self.sent.append(frame)
        return False

    def take_sent(self) -> list[bytes]:
        sent, self.sent = self.sent, []
        return sent

    def has_input(self) -> bool:
        return bool(self.arriving)

    def read(self) -> bool:
        if self.arriving:
            feed(self.client, self.arriving.pop(0), self.attachment)
        return bool(self.arriving)

    def probe(self, now: float, since: float) -> None:
        if self.probed_at <= since:
            self.probed_at = now

    def is_behind(self, now: float, since: float) -> bool:
        self.probe(now, since)
        return self.has_input() or (self.others_come_first and self.probed_at + SILENT_AFTER > now)

    def greet(self, before: Callable[[], Iterable[bytes]]) -> None:
        self.client.connected(self.attachment)
        while self.read():  # all at once
            pass
        self.begin_session(before())

    def begin_session(self, before: Iterable[bytes]) -> None:
        groups, frames = set(self.client.memberships.groups), list(before)
        self.sent += [*map(wire.subscription, groups - self.subscribed), *frames]
        self.subscribed = groups
        self.session = self.client.new_session()
        self.welcome, self.is_connected = None, True
        self.greeted.append(frames)
        self.say_hello()

    def say_hello(self) -> None:
        self.lists.append(self.known())
        if self.welcome is None and (frame := self.client.resume(self.attachment, self.session)) is not None:
            self.resumes.append(wire.RESUME.decode(frame))

    def lost(self) -> None:
        self.is_lost |= self.is_connected
        self.welcome, self.is_connected = None, False

    def take(self, welcome: wire.Welcome) -> bool:
        if welcome.session != self.session or not self.is_connected:
            return False
        first, self.welcome = self.welcome is None, welcome
        self.attachment.welcomed(welcome)
        return first

    def tick(self, now: float) -> None:
        self.ticked.append(now)

    def close(self) -> None:
        self.is_closed = True


def feed(client: Client, frame: bytes, attachment: Attachment) -> None:
    """Feed a frame to a client, with all its steps."""
    for _ in client.feed(frame, attachment) or ():
        pass


def replace_sockets(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Let links use stand-ins, at the time of a clock."""
    monkeypatch.setattr(link_module, "Subscriber", Subscriber)
    monkeypatch.setattr(push_module, "plain_send", lambda push: push.send)
    for module in (link_module, downlink_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))


def perform(client: Client, transport: Any) -> None:
    """Perform the actions in a client's output, as its connection does."""
    while client.out.busy:
        todo = client.out.take()
        if todo.emptied:
            transport.drop_held()
        for frame, to in todo.upstream:
            transport.send_upstream(frame, to)
        transport.take_session(todo.session)
        for frame, key, to, ttl in todo.replies:
            if to is not None:
                transport.send_to(to, frame)
            else:
                transport.send_downstream(frame, inf, 0, key, must=ttl is not None)


class Exchange:
    """The answers of a forwarder on one link, at times that a test chooses.

    Args:
        link: The link, made of stand-ins.
        client: The client of the link.
        instance: The instance of the forwarder.
    """

    def __init__(self, link: link_module.Link, client: Client, instance: bytes = ONE) -> None:
        self.link, self.client, self.instance = link, client, instance

    @property
    def subscriber(self) -> Subscriber:
        return cast(Subscriber, self.link._subscriber)

    @property
    def push(self) -> Push:
        """The open PUSH, or None, which only few tests have to expect."""
        return cast(Push, None if self.link._uplink.current is None else self.link._uplink.current._socket)

    def connected(self) -> None:
        self.link._subscriber_event(CONNECTED)

    def disconnected(self) -> None:
        self.link._subscriber_event(DISCONNECTED)

    def push_disconnected(self) -> None:
        self.link._push_event(DISCONNECTED)

    def publish(self, frame: bytes) -> None:
        """Let a frame arrive, and read it."""
        feed(self.client, frame, self.link.attachment)

    def welcome(
        self,
        state: wire.State = wire.State.SERVING,
        *,
        version: int = wire.VERSION,
        session: int | None = None,
        forwarders: bytes = b"",
    ) -> None:
        session = self.subscriber.session if session is None else session
        inbox = self.client.inbox
        self.publish(wire.WELCOME.encode(wire.Welcome(inbox, version, state, self.instance, session, 1, forwarders)))

    def accept_batches(self) -> None:
        accepted = wire.BatchingAccepted(self.client.inbox, self.subscriber.session)
        self.publish(wire.BATCHING_ACCEPTED.encode(accepted))

    def confirm(self, number: int, instance: bytes | None = None) -> None:
        """Answer an echo or a marker."""
        instance = instance or self.instance
        self.publish(wire.CONFIRM.encode(wire.Confirm(self.client.inbox, number, Status.OK, instance)))

    def echoes(self) -> list[int]:
        """Return the numbers of the echoes and markers that were sent to this PUSH."""
        return [wire.ECHO.decode(frame).n for frame in self.push.frames if frame[:1] == b"E"]

    def payloads(self) -> list[bytes]:
        """Remove the sent frames, and return the payloads of the group messages in order, also of those in batches."""
        frames = [one for frame in self.push.take() if frame[:1] == b"G" for one in wire.split(frame)]
        return [wire.read_group(frame)[5] for frame in frames]
