"""A client of one forwarder, as docs/wire-protocol.md describes one: PUSH to send, XSUB to subscribe.

It blocks, has one request in flight at a time, and omits the parts that prevent losses: windows, sending again, and
other forwarders.
"""

import secrets
import time
from types import TracebackType
from typing import Self

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.commands.target import CommandError, Target
from channels_zmq_forwarder.sockets import heartbeats, use_ipv6

ASK_AGAIN = 1.0
"""Seconds until a request is repeated: a forwarder that starts may have received it too early."""
LIFE = 60_000
"""Milliseconds that a message lives."""


class Client:
    """A client, which begins its session by `hello`.

    Args:
        context: Of its sockets.
        target: The forwarder.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", target: Target) -> None:
        self.target = target
        secret = secrets.token_bytes(wire.SECRET_SIZE)
        self.inbox = wire.claimable(secret)
        self._claim = wire.CLAIM.encode(wire.Claim(self.inbox, secret))
        self._sender = secrets.token_bytes(wire.SENDER_SIZE)
        self._numbers: dict[bytes, int] = {}
        self._asked = 0
        self.push, self.sub = self._connected(context, zmq.PUSH), self._connected(context, zmq.XSUB)
        self.sub.send(wire.subscription(wire.inbox_topic(self.inbox)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets; what was sent is still delivered, within a second."""
        self.push.close()
        self.sub.close()

    def hello(self, deadline: float) -> wire.Welcome:
        """Begin a session, and return the welcome of the forwarder.

        Args:
            deadline: Monotonic seconds.

        Raises:
            CommandError: If it does not answer, or speaks another version.
        """
        hello = wire.HELLO.encode(wire.Hello(self.inbox, wire.VERSION, 1, 0))
        welcome = wire.WELCOME.decode(self._answer(self.sub, hello, wire.WELCOME.kind, deadline))
        if welcome.version != wire.VERSION:
            raise CommandError(
                f"{self.target}: it uses version {welcome.version} of the wire format, this program version "
                f"{wire.VERSION}"
            )
        # Otherwise the forwarder would split the batches of other processes meanwhile.
        self.sub.send(wire.BATCHING.encode(wire.Batching(self.inbox, 1)))
        return welcome

    def sync(self, deadline: float) -> None:
        """Wait until all subscriptions are in force: from then on no message is missed.

        Raises:
            CommandError: If the forwarder does not answer by the deadline, in monotonic seconds.
        """
        self._asked += 1
        self._answer(self.sub, wire.SYNC.encode(wire.Sync(self.inbox, self._asked)), wire.SYNCED.kind, deadline)

    def echo(self, deadline: float) -> None:
        """Wait until an echo that was sent to the producers' port has been answered.

        Raises:
            CommandError: If the forwarder does not answer by the deadline, in monotonic seconds.
        """
        self._asked += 1
        self._answer(self.push, wire.ECHO.encode(wire.Echo(self.inbox, self._asked)), wire.CONFIRM.kind, deadline)

    def subscribe(self, group: str) -> None:
        """Subscribe to a group; `sync` waits until that is in force. Some messages arrive in batches (`wire.split`)."""
        self.sub.send(wire.subscription(wire.group_topic(group)))

    def leave(self) -> None:
        """Stop being a client: a flush would wait for its answer, and other clients until it is at every forwarder."""
        self.sub.send(wire.unsubscription(wire.inbox_topic(self.inbox)))

    def group_send(self, group: str, payload: bytes) -> None:
        """Send a message to a group."""
        topic = wire.group_topic(group)
        self._send_ordered(topic, payload)

    def send_direct(self, owner: bytes, channel: str, payload: bytes) -> None:
        """Send a message to a channel of the process with this inbox."""
        self._send_ordered(wire.direct_prefix(owner), wire.direct_body(channel, payload))

    def enqueue(self, channel: str, payload: bytes, capacity: int, deadline: float) -> wire.Status:
        """Send a message to a normal channel; return the status that the forwarder answers.

        Raises:
            CommandError: If it does not answer by the deadline, in monotonic seconds; the message may be in the queue.
        """
        self._asked += 1
        request = wire.Enqueue(self.inbox, self._asked, LIFE, capacity, channel.encode(), payload)
        answer = self._answer(self.push, wire.ENQUEUE.encode(request), wire.CONFIRM.kind, deadline, repeats=False)
        return wire.Status(wire.CONFIRM.decode(answer).status)

    def receive(self, deadline: float) -> bytes | None:
        """Return the next frame, or None if it does not arrive by the deadline, in monotonic seconds.

        A flush of the layer is answered at once: it waits for all clients, and this one holds nothing.
        """
        while self.sub.poll(max(0, round((deadline - time.monotonic()) * 1000))):
            frame = self.sub.recv()
            if wire.sub_kind(frame) != wire.EMPTY.kind:
                return frame
            self.sub.send(wire.FLUSHED.encode(wire.Flushed(self.inbox, wire.EMPTY.decode(frame).n)))
        return None

    def rest(self, seconds: float) -> None:
        """Only answer flushes for a while; drop all other frames that arrive meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.receive(end)

    def _send_ordered(self, prefix: bytes, body: bytes) -> None:
        number = self._numbers[prefix] = self._numbers.get(prefix, 0) + 1
        flags = wire.FLAG_FIRST if number == 1 else 0
        self.push.send(wire.ordered(prefix, self._sender, number, flags, LIFE, body))

    def _answer(
        self, socket: "zmq.Socket[bytes]", question: bytes, kind: int, deadline: float, *, repeats: bool = True
    ) -> bytes:
        """Repeat a request until its answer arrives; answers to earlier requests of the same kind do not count."""
        asked_at = float("-inf")
        while (now := time.monotonic()) < deadline:
            if now >= asked_at + ASK_AGAIN and (repeats or asked_at == float("-inf")):
                if socket is self.sub:
                    self.sub.send(self._claim)  # each time: libzmq may have connected again, which claims nothing
                socket.send(question)
                asked_at = now
            frame = self.receive(min(deadline, now + ASK_AGAIN))
            if frame is not None and wire.sub_kind(frame) == kind and self._is_latest(frame, kind):
                return frame
        raise CommandError(f"{self.target}: no answer to {question[:1]!r}: is it ready, and can this process reach it?")

    def _is_latest(self, frame: bytes, kind: int) -> bool:
        if kind == wire.CONFIRM.kind:
            return wire.CONFIRM.decode(frame).n == self._asked
        return kind != wire.SYNCED.kind or wire.SYNCED.decode(frame).n == self._asked

    def _connected(self, context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
        socket = context.socket(kind)
        address = self.target.pull if kind == zmq.PUSH else self.target.pub
        socket.rcvhwm = 0
        socket.sndtimeo = 10_000
        socket.linger = 1000
        use_ipv6(socket, address)
        if kind == zmq.XSUB:
            for option, value in heartbeats(2**20 + wire.MAX_OVERHEAD).items():
                socket.set(option, value)
        if self.target.keys:
            socket.curve_serverkey, socket.curve_secretkey = self.target.keys
            socket.curve_publickey = zmq.curve_public(self.target.keys[1])
        socket.connect(address)
        return socket
