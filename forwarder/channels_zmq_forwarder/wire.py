"""Frames to bytes and back: the one place that knows the layout of what crosses a socket.

Every arrow of the data-flow diagram that leaves a process carries one ZeroMQ frame of this format. The module is pure:
no sockets, no clock. `docs/wire-protocol.md` describes the same for other languages, with test vectors.

Integers are unsigned and big-endian, durations are milliseconds, names are UTF-8 and never hold a NUL. An *inbox* is 16
lowercase hexadecimal digits and names one client process; an *instance* is 8 bytes and names one run of an exchange.
`Hello` and `Welcome` may have more bytes than we know, so that a later version is still recognised as one.
"""

import struct
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from typing import Generic, NamedTuple, NewType, TypeVar, cast

VERSION = 1
"""Version of this format, said in `Hello` and `Welcome`. A change that old peers would misread takes a new number."""

Topic = NewType("Topic", bytes)
"""What a subscriber subscribes to: kind, name and NUL. The NUL keeps `chat` from matching `chat2`."""

GROUP = ord("G")
INBOX = ord("P")
DIRECT = ord("d")
INBOX_SIZE = 16
SENDER_SIZE = 8
FLAG_FIRST = 1
"""Set on the first frame of a run of sequence numbers: nothing came before it that could have been missed."""
MAX_MILLISECONDS = 2**32 - 1
MAX_OVERHEAD = 4096
"""Bytes that a frame may have beyond its payload. Names are under 100 characters, so far fewer are used."""
MAX_NAME = 400
"""Bytes of the longest name: Channels allows 99 characters, of up to four bytes each."""
NO_INSTANCE = bytes(8)
_HEX_DIGITS = b"0123456789abcdef"

T = TypeVar("T", bound=tuple[object, ...])


class FrameError(ValueError):
    """Bytes that are no frame of this format; the reason is the message. They come from strangers, never from us."""


class Question(IntEnum):
    """What a client wants to know, or be forgotten of, when it says `Ready`."""

    NOTHING = 0
    HANDED = 1
    FORGET = 2
    """This client has closed its window and counts from zero if it ever reads the channel again."""


class State(IntEnum):
    """What an exchange says of itself in `Welcome`."""

    SERVING = 0
    SETTLING = 1


class Status(IntEnum):
    """How an exchange, or the owner of a channel, answers a request."""

    OK = 0
    FULL = 1
    REFUSED = 2
    GONE = 3


class Layout(Generic[T]):
    """How one kind of control frame lies in bytes: head, numbers, then names and payload with NULs between them.

    Args:
        make: The tuple type whose first field is the inbox, followed by the numbers, the names and the payload.
        head: Kind byte, of a frame for an inbox `P` and the sub-kind's byte.
        numbers: `struct` format of the fixed-size fields.
        names: How many names follow; none of them may be empty.
        payload: Whether bytes of any content end the frame.
        grows: Whether a later version may append what this one ignores.
    """

    def __init__(
        self,
        make: Callable[..., T],
        head: bytes,
        numbers: str,
        *,
        names: int = 0,
        payload: bool = False,
        grows: bool = False,
    ) -> None:
        self.kind = head[-1]
        self.make = make
        self.numbers = struct.Struct(numbers)
        self._before, self._behind = head[:1], b"\0" + head[1:] if head[1:] else b""
        self._start = len(head[:1]) + INBOX_SIZE + len(self._behind)
        self._tail = self._start + self.numbers.size
        self.names, self.parts = names, names + payload
        self._grows = grows

    def encode(self, frame: T) -> bytes:
        """Return the bytes of a frame."""
        count = len(frame) - self.parts
        tail = cast(tuple[bytes, ...], frame[count:])
        return b"%b%b%b%b%b" % (
            self._before,
            cast(bytes, frame[0]),
            self._behind,
            self.numbers.pack(*frame[1:count]),
            tail[0] if len(tail) == 1 else b"\0".join(tail),
        )

    def decode(self, data: bytes) -> T:
        """Return the frame that bytes of this kind hold.

        Raises:
            FrameError: They are too short, of another kind, or a name is missing or too long.
        """
        if len(data) < self._tail:
            raise FrameError(f"a frame of kind {chr(self.kind)!r} has at least {self._tail} bytes")
        inbox = data[1 : 1 + INBOX_SIZE]
        if inbox.translate(None, _HEX_DIGITS):
            raise FrameError("no inbox stands behind the kind")
        if data[:1] != self._before or data[1 + INBOX_SIZE : self._start] != self._behind:
            raise FrameError(f"a frame is not of kind {chr(self.kind)!r}")
        numbers = self.numbers.unpack_from(data, self._start)
        if not self.parts:
            if len(data) > self._tail and not self._grows:
                raise FrameError(f"a frame of kind {chr(self.kind)!r} has {self._tail} bytes")
            return self.make(inbox, *numbers)
        tail = data[self._tail :].split(b"\0", self.parts - 1)
        if len(tail) != self.parts:
            raise FrameError(f"a frame of kind {chr(self.kind)!r} lacks a name")
        for label in tail[: self.names]:
            if not 0 < len(label) <= MAX_NAME or b"\0" in label:
                raise FrameError(f"a name has 1 to {MAX_NAME} bytes and no NUL")
        return self.make(inbox, *numbers, *tail)


class Hello(NamedTuple):
    """A client's session begins; `peers` is how many clients the exchange last said that it had."""

    inbox: bytes
    version: int
    session: int
    peers: int


class Sync(NamedTuple):
    """A question that the exchange answers with `Synced` once all earlier subscriptions are in force."""

    inbox: bytes
    n: int


class Ready(NamedTuple):
    """How many jobs of a channel the client accepts in this session (`limit`), and how many of them it has settled."""

    inbox: bytes
    session: int
    limit: int
    settled: int
    answers: int
    ask: int
    channel: bytes


class Received(NamedTuple):
    """How many jobs of a channel this client received in an earlier session; it will never read any others of it."""

    inbox: bytes
    session: int
    received: int
    channel: bytes


class Total(NamedTuple):
    """A question that the exchange answers with `HandedTotal`."""

    inbox: bytes
    session: int


class Back(NamedTuple):
    """A job that found no reader goes back to its old place."""

    inbox: bytes
    number: int
    ttl: int
    channel: bytes
    payload: bytes


class Plain(NamedTuple):
    """A message for a plain channel, to be answered by `Confirm`; `capacity` is the sender's for this channel."""

    inbox: bytes
    n: int
    ttl: int
    capacity: int
    channel: bytes
    payload: bytes


class Member(NamedTuple):
    """A plain channel joins (`add` 1) or leaves (0) a group, `age` ago; `life` 0 is for ever, `n` 0 wants no answer."""

    inbox: bytes
    n: int
    add: int
    age: int
    life: int
    capacity: int
    group: bytes
    channel: bytes


class Echo(NamedTuple):
    """A question down the sending pipe; the answer shows that it reaches the exchange that welcomed us."""

    inbox: bytes
    n: int


class Flush(NamedTuple):
    """Empty everything, here and in every client, within `ttl`."""

    inbox: bytes
    n: int
    ttl: int


class Flushed(NamedTuple):
    """A client has emptied itself and everything it had sent before is behind this frame."""

    inbox: bytes
    n: int


class Ask(NamedTuple):
    """Asks the owner of a process channel to add it to a group (1) or take it out (0) and to answer to `reply`."""

    inbox: bytes
    n: int
    add: int
    reply: bytes
    group: bytes
    channel: bytes


class Confirm(NamedTuple):
    """The answer to `Plain`, `Member`, `Flush` and `Ask`, and with the instance to `Echo`."""

    inbox: bytes
    n: int
    status: int
    instance: bytes


class Welcome(NamedTuple):
    """The answer to `Hello`, sent again when the state, or the number of clients, changes."""

    inbox: bytes
    version: int
    state: int
    instance: bytes
    session: int
    clients: int


class Synced(NamedTuple):
    """The answer to `Sync`."""

    inbox: bytes
    n: int


class Handed(NamedTuple):
    """How many jobs of a channel were handed over in this session; each of them left before this frame."""

    inbox: bytes
    session: int
    handed: int
    channel: bytes


class HandedTotal(NamedTuple):
    """How many jobs of all channels were handed over in this session; each of them left before this frame."""

    inbox: bytes
    session: int
    handed: int


class Query(NamedTuple):
    """Asks how much of a channel is settled now; answer with a `Ready` whose `answers` is this `n`."""

    inbox: bytes
    n: int
    session: int
    channel: bytes


class Job(NamedTuple):
    """One message of a plain channel, for one reader of this process."""

    inbox: bytes
    session: int
    number: int
    ttl: int
    channel: bytes
    payload: bytes


class Removed(NamedTuple):
    """A plain member that this process added has been taken out of its group by somebody."""

    inbox: bytes
    group: bytes
    channel: bytes


class Empty(NamedTuple):
    """Everything is to be emptied; answer with `Flushed` and the same number."""

    inbox: bytes
    n: int


HELLO = Layout(Hello, b"H", ">BII", grows=True)
SYNC = Layout(Sync, b"Y", ">Q")
READY = Layout(Ready, b"R", ">IQQQB", names=1)
RECEIVED = Layout(Received, b"D", ">IQ", names=1)
TOTAL = Layout(Total, b"T", ">I")
BACK = Layout(Back, b"B", ">QI", names=1, payload=True)
PLAIN = Layout(Plain, b"Q", ">QII", names=1, payload=True)
MEMBER = Layout(Member, b"M", ">QBQQI", names=2)
ECHO = Layout(Echo, b"E", ">Q")
FLUSH = Layout(Flush, b"F", ">QI")
FLUSHED = Layout(Flushed, b"f", ">Q")
ASK = Layout(Ask, b"Pa", ">QB", names=3)
CONFIRM = Layout(Confirm, b"Pk", ">QB8s")
WELCOME = Layout(Welcome, b"Pw", ">BB8sII", grows=True)
SYNCED = Layout(Synced, b"Py", ">Q")
HANDED = Layout(Handed, b"Pr", ">IQ", names=1)
HANDED_TOTAL = Layout(HandedTotal, b"Pt", ">IQ")
QUERY = Layout(Query, b"Pq", ">QI", names=1)
JOB = Layout(Job, b"Pj", ">IQI", names=1, payload=True)
REMOVED = Layout(Removed, b"Pm", ">", names=2)
EMPTY = Layout(Empty, b"Pf", ">Q")

CLIENT_LAYOUTS = (HELLO, SYNC, READY, RECEIVED, TOTAL, BACK, PLAIN, MEMBER, ECHO, FLUSH, FLUSHED)
INBOX_LAYOUTS = (ASK, CONFIRM, WELCOME, SYNCED, HANDED, HANDED_TOTAL, QUERY, JOB, REMOVED, EMPTY)
RELAYED = frozenset((DIRECT, ASK.kind, CONFIRM.kind))
"""Sub-kinds of inbox frames that clients may send to each other; the others are the exchange's own."""

SUB_KIND = 1 + INBOX_SIZE + 1
"""Where the sub-kind of a frame for an inbox stands."""

GROUP_BYTE = b"G"
"""What `frame[:1]` of a group message is; loops that cannot afford a call to `is_group` compare with it."""
INBOX_BYTE = b"P"
SUBSCRIBE = b"\1"
UNSUBSCRIBE = b"\0"


def subscription(topic: bytes) -> bytes:
    """Return the frame by which an XSUB subscribes to a topic; the format is ZeroMQ's own."""
    return SUBSCRIBE + topic


def unsubscription(topic: bytes) -> bytes:
    """Return the frame by which an XSUB unsubscribes from a topic."""
    return UNSUBSCRIBE + topic


def subscribed_topic(frame: bytes) -> bytes:
    """Return the topic of a subscription or an unsubscription."""
    return frame[1:]


def is_group(frame: bytes) -> bool:
    """Return whether a frame, or a topic, is a group's."""
    return frame[:1] == GROUP_BYTE


def is_hello(frame: bytes) -> bool:
    """Return whether a frame is a hello; it may still be malformed."""
    return frame[:1] == b"H"


def is_for(inbox: bytes, frame: bytes) -> bool:
    """Return whether a frame is for this inbox; only the first 17 bytes are compared."""
    return frame[1 : 1 + INBOX_SIZE] == inbox and frame[:1] == INBOX_BYTE


def sub_kind(frame: bytes) -> int:
    """Return the sub-kind of a frame for an inbox, -1 if the frame is too short or no frame for an inbox."""
    return frame[SUB_KIND] if frame[:1] == INBOX_BYTE and len(frame) > SUB_KIND else -1


def group_topic(group: str) -> Topic:
    """Return the topic of a group's messages."""
    return Topic(b"G%b\0" % group.encode())


def inbox_topic(inbox: bytes) -> Topic:
    """Return the topic of everything that is meant for one client process."""
    return Topic(b"P%b\0" % inbox)


def group_of(topic: bytes) -> bytes:
    """Return the name of the group whose topic this is; the topic must be a group's."""
    return topic[1:-1]


def group_in(frame: bytes) -> bytes:
    """Return the name of the group that a group message is for.

    Raises:
        FrameError: If no NUL ends the topic.
    """
    return frame[1 : topic_end(frame)]


def inbox_in(frame: bytes) -> bytes:
    """Return the inbox that stands behind the kind of a request or of a frame for an inbox, unchecked."""
    return frame[1 : 1 + INBOX_SIZE]


def inbox_of(topic: bytes) -> bytes:
    """Return the inbox that a topic is of, or nothing if it is no inbox's topic."""
    inbox = topic[1:-1]
    is_one = len(inbox) == INBOX_SIZE and topic == inbox_topic(inbox) and not inbox.translate(None, _HEX_DIGITS)
    return inbox if is_one else b""


@lru_cache(maxsize=16_384)
def direct_prefix(inbox: bytes) -> bytes:
    """Return what every direct message to a process begins with."""
    return b"P%b\0d" % inbox


def direct_body(channel: str, payload: bytes) -> bytes:
    """Return the body of a direct message: the full channel name, a NUL, the payload."""
    return _label(channel) + payload


@lru_cache(maxsize=16_384)
def _label(channel: str) -> bytes:
    return channel.encode() + b"\0"


_ORDER = struct.Struct(">8sQBI")
ORDER_SIZE = _ORDER.size
"""Bytes between the prefix of a group or direct message and its body."""
_ORDER_NUMBERS = struct.Struct(">QBI")


def ordered(prefix: bytes, sender: bytes, number: int, flags: int, ttl: int, body: bytes) -> bytes:
    """Build a group or direct message.

    Args:
        prefix: A group's topic, or `direct_prefix(...)`.
        sender: 8 bytes that name the sending process.
        number: Sequence number of this sender for this prefix.
        flags: `FLAG_FIRST` or 0.
        ttl: Milliseconds that the message has left to live.
        body: The payload of a group message; of a direct one `direct_body(...)`.
    """
    return prefix + _ORDER.pack(sender, number, flags, ttl) + body


Order = tuple[bytes, int, int, int, int]
"""The head of a group or direct message: the key of its run of numbers (prefix and sender), its number, flags, the
milliseconds left to live, and where the body begins."""


def read_order(frame: bytes, at: int) -> Order:
    """Parse the head that begins at `at`, just behind the prefix.

    Raises:
        FrameError: The frame ends before its head does.
    """
    try:
        number, flags, ttl = _ORDER_NUMBERS.unpack_from(frame, at + SENDER_SIZE)
    except struct.error as error:
        raise FrameError("a message ends before its payload") from error
    return frame[: at + SENDER_SIZE], number, flags, ttl, at + _ORDER.size


def read_group(frame: bytes) -> tuple[bytes, bytes, int, int, int, bytes]:
    """Take a group message apart: the group's name, the key of its run, its number, flags, ttl, and the payload.

    The same as `topic_end` and `read_order` in one call, for it is made once for each message.

    Raises:
        FrameError: The frame ends before its payload, or has no topic.
    """
    end = frame.find(b"\0", 1)
    if end < 2:
        raise FrameError("no NUL ends the topic")
    behind = end + 1 + SENDER_SIZE
    try:
        number, flags, ttl = _ORDER_NUMBERS.unpack_from(frame, behind)
    except struct.error as error:
        raise FrameError("a message ends before its payload") from error
    return frame[1:end], frame[:behind], number, flags, ttl, frame[behind + _ORDER_NUMBERS.size :]


def topic_end(frame: bytes) -> int:
    """Return the index of the NUL that ends a frame's topic.

    Raises:
        FrameError: There is none, or no name before it.
    """
    end = frame.find(b"\0", 1)
    if end < 2:
        raise FrameError("no NUL ends the topic")
    return end


def channel_and_payload(frame: bytes, start: int) -> tuple[str, bytes]:
    """Split the body of a direct message.

    Raises:
        FrameError: There is no channel name, or it is not UTF-8.
    """
    end = frame.find(b"\0", start)
    if end <= start:
        raise FrameError("a direct message lacks its channel")
    return name(frame[start:end]), frame[end + 1 :]


def name(data: bytes) -> str:
    """Decode a name.

    Raises:
        FrameError: It is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FrameError("a name is not UTF-8") from error


def milliseconds(seconds: float) -> int:
    """Return a duration as frames carry it: at least 0, at most 49 days."""
    return round(max(0.0, min(float(MAX_MILLISECONDS), seconds * 1000)))
