"""Strangers: raw sockets that speak the protocol, malformed frames, and bytes that are not even ZeroMQ."""

import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import zmq

from channels_zmq_forwarder import wire

PATIENCE = 20_000


class Peer:
    """Raw sockets of one client process; only one at an embedded producer, which has no port for producers."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], pull: str | None, pub: str, secret: bytes | None = None
    ) -> None:
        self.secret = secret or secrets.token_bytes(wire.SECRET_SIZE)
        self.inbox = wire.claimable(self.secret)
        self.push, self.xsub = context.socket(zmq.PUSH), context.socket(zmq.XSUB)
        for option, value in ((zmq.SNDHWM, 0), (zmq.RCVHWM, 0), (zmq.RCVTIMEO, PATIENCE), (zmq.LINGER, 0)):
            self.xsub.set(option, value)
        self.push.set(zmq.LINGER, 0)
        self.push.set(zmq.SNDTIMEO, PATIENCE)
        if pull is not None:
            self.push.connect(pull)
        self.xsub.connect(pub)
        self.number = 0

    def __enter__(self) -> "Peer":
        for frame in opening(self.secret):
            self.say(frame)
        self.say(wire.HELLO.encode(wire.Hello(self.inbox, wire.VERSION, 1, 0)))
        try:
            assert wire.WELCOME.decode(self.await_kind(wire.WELCOME)).session == 1
        except BaseException:
            self.__exit__()
            raise
        return self

    def say(self, frame: bytes) -> None:
        self.xsub.send(frame)

    def await_kind(self, layout: wire.Layout[Any]) -> bytes:
        """Read until a frame of this kind arrives at the inbox."""
        while True:
            frame = self.xsub.recv()
            if frame.startswith(wire.inbox_topic(self.inbox)) and frame[wire.SUB_KIND] == layout.kind:
                return frame

    def sync(self) -> None:
        """Wait until everything sent upstream was read."""
        self.number += 1
        self.say(wire.SYNC.encode(wire.Sync(self.inbox, 2**63 + self.number)))
        while wire.SYNCED.decode(self.await_kind(wire.SYNCED)).n != 2**63 + self.number:
            pass

    def echo(self) -> None:
        """Wait until everything pushed was read."""
        self.number += 1
        self.push.send(wire.ECHO.encode(wire.Echo(self.inbox, 2**63 + self.number)))
        while wire.CONFIRM.decode(self.await_kind(wire.CONFIRM)).n != 2**63 + self.number:
            pass

    def close(self) -> None:
        self.push.close()
        self.xsub.close()

    def __exit__(self, *error: Any) -> None:
        self.close()


def opening(secret: bytes) -> list[bytes]:
    """Return the first frames of a client on a new socket: it claims its inbox and subscribes to it."""
    inbox = wire.claimable(secret)
    return [wire.CLAIM.encode(wire.Claim(inbox, secret)), wire.subscription(wire.inbox_topic(inbox))]


class RawPeer:
    """A peer without ZeroMQ, which sends only the frames that it is given, and receives nothing."""

    def __init__(self, port: int, kind: str = "XSUB") -> None:
        """Connect.

        Raises:
            OSError: If the connection ends meanwhile.
        """
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE / 1000)
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
        metadata = b"\x0bSocket-Type" + (4).to_bytes(4) + kind.encode()
        try:
            self.socket.sendall(greeting + b"\x04%c\x05READY%b" % (6 + len(metadata), metadata))
            self._receive(len(greeting))  # frames must not precede the end of the other side's handshake
            self._receive(self._receive(2)[1])
        except OSError:
            self.close()
            raise

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += (more := self.socket.recv(size - len(data)))
            if not more:
                raise ConnectionResetError
        return data

    def send(self, *frames: bytes) -> None:
        """Send frames.

        Raises:
            OSError: If the connection has ended.
        """
        self.socket.sendall(on_the_wire(*frames))

    def subscribe(self, topic: bytes) -> None:
        self.send(wire.subscription(topic))

    def close(self) -> None:
        self.socket.close()


def on_the_wire(*frames: bytes) -> bytes:
    """Return the bytes of frames that follow the handshake."""
    heads = (b"\0%c" % len(frame) if len(frame) < 256 else b"\2" + len(frame).to_bytes(8) for frame in frames)
    return b"".join(part for both in zip(heads, frames, strict=True) for part in both)


def well_formed(inbox: bytes, session: int = 1) -> list[bytes]:
    """Return one frame of each kind, for a connected client."""
    return [
        wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, session, 3)),
        wire.BATCHING.encode(wire.Batching(inbox, session)),
        wire.SYNC.encode(wire.Sync(inbox, 1)),
        wire.READY.encode(wire.Ready(inbox, session, 3, 0, 0, 1, b"jobs")),
        wire.BACK.encode(wire.Back(inbox, 7, 9_000, b"jobs", b"payload")),
        wire.ENQUEUE.encode(wire.Enqueue(inbox, 1, 9_000, 50, b"jobs", b"payload")),
        wire.MEMBER.encode(wire.Member(inbox, 1, 1, 0, 9_000, 50, b"room", b"jobs")),
        wire.MEMBER.encode(wire.Member(inbox, 1, 0, 0, 9_000, 50, b"room", b"jobs")),
        wire.ECHO.encode(wire.Echo(inbox, 1)),
        wire.FLUSH.encode(wire.Flush(inbox, 1, 1)),
        wire.FLUSHED.encode(wire.Flushed(inbox, 1)),
        wire.ASK.encode(wire.Ask(inbox, 1, 1, inbox, b"room", b"specific.x!1")),
        wire.CONFIRM.encode(wire.Confirm(inbox, 1, 0, b"instance")),
        wire.WELCOME.encode(wire.Welcome(inbox, wire.VERSION, 0, b"instance", session, 1)),
        wire.JOB.encode(wire.Job(inbox, session, 1, 1, 9_000, b"jobs", b"payload")),
        wire.HANDED.encode(wire.Handed(inbox, session, 99, b"jobs")),
        wire.EMPTY.encode(wire.Empty(inbox, 1)),
        wire.SYNCED.encode(wire.Synced(inbox, 1)),
        wire.REMOVED.encode(wire.Removed(inbox, b"room", b"jobs")),
        wire.ordered(wire.group_topic("room"), b"sender..", 1, 1, 9_000, b"payload"),
        wire.ordered(wire.group_topic("room"), b"sender..", 2, wire.FLAG_BATCH, 9_000, wire.batch([b"one", b"two"])),
        wire.ordered(wire.direct_prefix(inbox), b"sender..", 1, 1, 9_000, wire.direct_body("specific.x!1", b"payload")),
        wire.subscription(wire.group_topic("room")),
        wire.unsubscription(wire.group_topic("room")),
    ]


def mutated(rng: Random, frames: list[bytes], flushing: bool) -> Iterator[bytes]:
    """Yield frames without end: most are broken in one of several ways, and some are whole.

    A flush empties everything and drops messages until it is over, so frames may be requested without one. Frames for
    which an exchange ends the connection are left out.
    """
    kinds = b"HYRBQMEfGP\0\1"
    frames = [frame for frame in frames if flushing or frame[:1] != b"F"]
    while True:
        raw = bytearray(rng.choice(frames))
        way = rng.random()
        if way < 0.45:  # a few bits, anywhere
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif way < 0.6:  # cut short
            del raw[rng.randrange(len(raw)) :]
        elif way < 0.7:  # surplus bytes, or missing ones in the middle
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(9))
        elif way < 0.8:  # a foreign inbox
            raw[1 : 1 + wire.INBOX_SIZE] = rng.randbytes(8).hex().encode()
        elif way < 0.88:  # another kind
            raw[0] = rng.choice(kinds)
        elif way < 0.96:  # noise
            raw = bytearray(rng.randbytes(rng.randrange(60)))
        elif way < 0.97:  # a long name
            raw = raw[:1] + bytearray(b"n" * rng.randrange(2_000))
        frame = bytes(raw)
        is_subscription = frame[:1] == wire.SUBSCRIBE
        if wire.is_topic(frame[1:]) if is_subscription else frame[:1] != b"H" or rng.random() < 0.02:
            yield frame


def oversized(context: zmq.Context[zmq.Socket[bytes]], kind: zmq.SocketType, address: str, size: int) -> None:
    """Send a message that is too large, on a separate connection, because the other side cuts it."""
    with context.socket(kind) as one:
        one.connect(address)
        one.send(b"G" + bytes(size + wire.MAX_OVERHEAD))
        one.close(linger=1_000)


def no_zeromq(ports: list[int], rng: Random) -> None:
    """Send bytes that are not even ZeroMQ to each port."""
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger, suppress(OSError):
            stranger.sendall(rng.choice((b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(200), b"\xff" + bytes(9) + b"\x7f")))
