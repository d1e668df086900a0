"""The wire format: encodes frames to bytes and decodes them. No other module knows the layout of a frame.

Every arrow of the data-flow diagram that leaves a process carries one ZeroMQ frame of this format. The module is pure:
no sockets, no clock. `docs/wire-protocol.md` describes the format for other languages, with test vectors.

Integers are unsigned and big-endian, durations are milliseconds, names are UTF-8 and never contain a NUL. An *inbox* is
16 lowercase hexadecimal digits and names one client process; an *instance* is 8 bytes and names one run of an exchange.
`Hello` and `Welcome` end with bytes of any kind, so that later versions are still recognised.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any, Generic, NamedTuple, NewType, TypeVar, cast

VERSION = 2
"""Version of this format, sent in `Hello` and `Welcome`. A change that old peers would misread takes a new number."""

Topic = NewType("Topic", bytes)
"""A ZeroMQ subscription: kind, name and NUL. The NUL keeps `chat` from matching `chat2`."""

GROUP = ord("G")
INBOX = ord("P")
DIRECT = ord("d")
INBOX_SIZE = 16
SECRET_SIZE = 16
SENDER_SIZE = 8
FLAG_FIRST = 1
"""Set on the first frame of a run of sequence numbers: no earlier frame of the run can have been missed."""
FLAG_AGAIN = 2
"""Set on a frame that was sent before: its age follows the head."""
FLAG_ELSEWHERE = 4
"""Set beside it if another instance of an exchange may have received the frame."""
FLAG_ACKNOWLEDGED = 8
"""Set beside it if an exchange has acknowledged the frame: it has most likely reached its receivers."""
FLAG_BATCH = 16
"""Set on a frame that carries several messages: its body is a list of bodies, which have consecutive numbers."""
MAX_BATCH = 64
"""Messages of the largest batch."""
MAX_JUMP = 2**24
"""Numbers that a sender may skip in a run: more than it sends in minutes, and than it ever sends again."""
MAX_NUMBER = 2**64 - 1
MAX_MILLISECONDS = 2**32 - 1
MAX_OVERHEAD = 5 * 1024
"""Bytes that a frame may have beyond its payload. The longest list of forwarders needs most of it."""
MAX_UPSTREAM = 4608
"""Bytes of the largest frame that a client sends to a forwarder by its XSUB. Larger ones are sent by PUSH."""
MAX_HASHES = 1024
"""Groups that a client names in `Resume`; one with more asks for all."""
MAX_NAME = 400
"""Bytes of the longest name: Channels allows 99 characters, of up to four bytes each."""
MAX_FORWARDERS = 64
"""Entries of the longest list of forwarders in `Hello` and `Welcome`."""
MAX_LIST = 4352
"""Bytes of the longest list."""
MAX_ADDRESS = 512
"""Bytes of the longest address in such a list."""
NO_INSTANCE = bytes(8)
INSTANCE_DIGITS = 16
_HEX_DIGITS = b"0123456789abcdef"

T = TypeVar("T", bound=tuple[object, ...])


class FrameError(ValueError):
    """Bytes that are not a valid frame; the message gives the reason. Our own processes never send such bytes."""


class Question(IntEnum):
    """What a client requests with `Ready`, beside its new window."""

    NOTHING = 0
    HANDED = 1
    FORGET = 2
    """Forget this client on this channel: it has closed its window, and both sides count from zero afterwards."""


class State(IntEnum):
    """The state that an exchange reports in `Welcome`."""

    SERVING = 0
    SETTLING = 1
    DRAINING = 2
    """It is about to end: clients send by other exchanges, and take over the messages that wait here."""


class Status(IntEnum):
    """The result of a request, in `Confirm`."""

    OK = 0
    FULL = 1
    REFUSED = 2
    GONE = 3
    MEMORY = 4
    """The exchange is short of memory."""
    FLUSHING = 5
    """The exchange is being flushed: it drops the message."""
    AWAY = 6
    """The connection of the channel's owner was lost a moment ago; a repeated request may reach it."""


class Layout(Generic[T]):
    """The layout of one kind of control frame: head, numbers, then names and tail, separated by NULs.

    Args:
        make: The tuple type of the frame: the inbox, then the numbers, the names and the tail.
        head: The kind's byte; for a frame to an inbox `P` and the byte of the sub-kind.
        numbers: `struct` format of the fixed-size fields.
        names: The number of names; none of them may be empty.
        tail: Whether the rest of the frame, any bytes or none, is the last field: a payload or a list.
    """

    def __init__(
        self,
        make: Callable[..., T],
        head: bytes,
        numbers: str,
        *,
        names: int = 0,
        tail: bool = False,
    ) -> None:
        self.kind = head[-1]
        self.make = make
        self.numbers = struct.Struct(numbers)
        self._before, self._behind = head[:1], b"\0" + head[1:] if head[1:] else b""
        self._start = len(head[:1]) + INBOX_SIZE + len(self._behind)
        self._tail = self._start + self.numbers.size
        self.names, self.parts = names, names + tail

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
        """Decode a frame of this kind.

        Raises:
            FrameError: If the bytes have a wrong length, kind or inbox, or if a name is missing, empty or too long.
        """
        if len(data) < self._tail:
            raise FrameError(f"a frame of kind {chr(self.kind)!r} has at least {self._tail} bytes")
        inbox = data[1 : 1 + INBOX_SIZE]
        if inbox.translate(None, _HEX_DIGITS):
            raise FrameError("an invalid inbox follows the kind")
        if data[:1] != self._before or data[1 + INBOX_SIZE : self._start] != self._behind:
            raise FrameError(f"a frame is not of kind {chr(self.kind)!r}")
        numbers = self.numbers.unpack_from(data, self._start)
        if not self.parts:
            if len(data) > self._tail:
                raise FrameError(f"a frame of kind {chr(self.kind)!r} has {self._tail} bytes")
            return self.make(inbox, *numbers)
        tail = data[self._tail :].split(b"\0", self.parts - 1)
        if len(tail) != self.parts:
            raise FrameError(f"a frame of kind {chr(self.kind)!r} lacks a name")
        for label in tail[: self.names]:
            if not 0 < len(label) <= MAX_NAME or b"\0" in label:
                raise FrameError(f"a name has 1 to {MAX_NAME} bytes and no NUL")
        return self.make(inbox, *numbers, *tail)


class Claim(NamedTuple):
    """Proves that an inbox belongs to this client, which alone knows the `secret` whose hash it is: see `claimable`."""

    inbox: bytes
    secret: bytes


class Hello(NamedTuple):
    """Begins a client's session, or reports another list of forwarders in the same session.

    `peers` is the number of clients in the last `Welcome` of an exchange that did not settle. `forwarders` lists the
    exchanges that the client knows, this one included; without it the client takes no part in draining.
    """

    inbox: bytes
    version: int
    session: int
    peers: int
    forwarders: bytes = b""


class Batching(NamedTuple):
    """Reports that the client can read batches; follows each hello. An exchange of an older version drops it."""

    inbox: bytes
    session: int


class Resume(NamedTuple):
    """Requests what was published in the last `age` milliseconds, while this client may not have been connected.

    Follows the hellos of the first session, and of one after a lost connection; answered by `Replayed`, and dropped by
    an exchange of an older version. `topics` are the hashes of the groups that this client has joined (`topic_hash`, 4
    bytes each), `every` 1 means all.
    """

    inbox: bytes
    session: int
    age: int
    every: int
    topics: bytes = b""


class Sync(NamedTuple):
    """Answered by `Synced`, once all earlier subscriptions of this client are in force."""

    inbox: bytes
    n: int


class Ready(NamedTuple):
    """How many jobs of a channel the client accepts in this session (`limit`), and how many of them are settled."""

    inbox: bytes
    session: int
    limit: int
    settled: int
    answers: int
    ask: int
    channel: bytes


class Received(NamedTuple):
    """How many jobs of a channel a client received in an earlier session; it will never read others of that session."""

    inbox: bytes
    session: int
    received: int
    channel: bytes


class Total(NamedTuple):
    """Answered by `HandedTotal`."""

    inbox: bytes
    session: int


class Detach(NamedTuple):
    """A client's last frame of this session on a way, sent on both: nothing of it is under way there any more."""

    inbox: bytes
    session: int


class Taken(NamedTuple):
    """The client has taken responsibility for all messages of this session that were `Returned` up to `ordinal`."""

    inbox: bytes
    session: int
    ordinal: int


class Back(NamedTuple):
    """Hands back a job that no reader took; it returns to its old place in the queue.

    Sent by PUSH, it passes on a message that another exchange has `Returned`, which goes before all that was sent here.
    """

    inbox: bytes
    number: int
    ttl: int
    channel: bytes
    payload: bytes


class Enqueue(NamedTuple):
    """A message for a normal channel, answered by `Confirm`; `capacity` is what the sender has configured for it."""

    inbox: bytes
    n: int
    ttl: int
    capacity: int
    channel: bytes
    payload: bytes


class Member(NamedTuple):
    """Adds a normal channel to a group (`add` 1) or discards it (0), as of `age` ago; `life` 0 means for ever."""

    inbox: bytes
    n: int
    add: int
    age: int
    life: int
    capacity: int
    group: bytes
    channel: bytes


class Echo(NamedTuple):
    """Sent by PUSH; the answer proves that PUSH reaches the exchange that welcomed this client."""

    inbox: bytes
    n: int


class Window(NamedTuple):
    """Reports how many frames of a client are unacknowledged, and how many it has sent again, for the status page.

    Sent by PUSH to an exchange that reads batches, once a second at most, when the numbers have changed.
    """

    inbox: bytes
    unacknowledged: int
    sent_again: int


class Flush(NamedTuple):
    """Empties the exchange and every client, within `ttl`."""

    inbox: bytes
    n: int
    ttl: int


class Flushed(NamedTuple):
    """A client has emptied itself; everything that it sent before by the same way precedes this frame."""

    inbox: bytes
    n: int


class Ask(NamedTuple):
    """Requests that a channel's owner adds it to a group (`add` 1) or discards it (0), and confirms to `reply`."""

    inbox: bytes
    n: int
    add: int
    reply: bytes
    group: bytes
    channel: bytes


class Confirm(NamedTuple):
    """Answers `Enqueue`, `Member`, `Flush`, `Ask` and `Echo`. An owner that answers `Ask` gives no instance (zeros)."""

    inbox: bytes
    n: int
    status: int
    instance: bytes


class Welcome(NamedTuple):
    """Answers `Hello`; sent again when the state or the number of clients changes, or when `forwarders` grows.

    `forwarders` lists the exchanges that any client of this one knows; a client that lists none gets no list.
    """

    inbox: bytes
    version: int
    state: int
    instance: bytes
    session: int
    clients: int
    forwarders: bytes = b""


class BatchingAccepted(NamedTuple):
    """Answers `Batching`: in this session the client may send batches, too."""

    inbox: bytes
    session: int


class Replayed(NamedTuple):
    """Answers `Resume`, in one frame or several, of which the last one has `last` 1.

    `messages` are group and direct messages, in the order in which they were published and with the flag *again*, each
    behind its length (4 bytes).
    """

    inbox: bytes
    session: int
    last: int
    messages: bytes = b""


class Synced(NamedTuple):
    """Answers `Sync`."""

    inbox: bytes
    n: int


class Handed(NamedTuple):
    """How many jobs of a channel were handed over in this session; all of them precede this frame."""

    inbox: bytes
    session: int
    handed: int
    channel: bytes


class HandedTotal(NamedTuple):
    """How many jobs of all channels were handed over in this session; all of them precede this frame."""

    inbox: bytes
    session: int
    handed: int


class Query(NamedTuple):
    """Requests the number of settled jobs of a channel, to be answered at once by a `Ready` whose `answers` is `n`."""

    inbox: bytes
    n: int
    session: int
    channel: bytes


class Job(NamedTuple):
    """A message of a normal channel for one reader in this process.

    `ordinal` counts the jobs of this channel and session from 1: a gap shows that the jobs before it were lost.
    """

    inbox: bytes
    session: int
    ordinal: int
    number: int
    ttl: int
    channel: bytes
    payload: bytes


class Returned(NamedTuple):
    """A waiting message of a normal channel that a draining exchange gives to a client, which sends it elsewhere.

    The client passes it on by `Back` and reports it by `Taken`. `ordinal` counts the messages that were returned to
    this client in this session from 1: a gap shows that the messages before it were lost.
    """

    inbox: bytes
    session: int
    ordinal: int
    number: int
    ttl: int
    channel: bytes
    payload: bytes


class Removed(NamedTuple):
    """A normal member that this process added has been discarded."""

    inbox: bytes
    group: bytes
    channel: bytes


class Empty(NamedTuple):
    """Requests that the client empties itself and answers by `Flushed` with the same number."""

    inbox: bytes
    n: int


CLAIM = Layout(Claim, b"C", ">16s")
HELLO = Layout(Hello, b"H", ">BII", tail=True)
BATCHING = Layout(Batching, b"U", ">I")
RESUME = Layout(Resume, b"S", ">IIB", tail=True)
SYNC = Layout(Sync, b"Y", ">Q")
READY = Layout(Ready, b"R", ">IQQQB", names=1)
RECEIVED = Layout(Received, b"D", ">IQ", names=1)
TOTAL = Layout(Total, b"T", ">I")
DETACH = Layout(Detach, b"X", ">I")
TAKEN = Layout(Taken, b"K", ">IQ")
BACK = Layout(Back, b"B", ">QI", names=1, tail=True)
ENQUEUE = Layout(Enqueue, b"Q", ">QII", names=1, tail=True)
MEMBER = Layout(Member, b"M", ">QBQQI", names=2)
ECHO = Layout(Echo, b"E", ">Q")
WINDOW = Layout(Window, b"W", ">IQ")
FLUSH = Layout(Flush, b"F", ">QI")
FLUSHED = Layout(Flushed, b"f", ">Q")
ASK = Layout(Ask, b"Pa", ">QB", names=3)
CONFIRM = Layout(Confirm, b"Pk", ">QB8s")
WELCOME = Layout(Welcome, b"Pw", ">BB8sII", tail=True)
BATCHING_ACCEPTED = Layout(BatchingAccepted, b"Pu", ">I")
REPLAYED = Layout(Replayed, b"Ps", ">IB", tail=True)
SYNCED = Layout(Synced, b"Py", ">Q")
HANDED = Layout(Handed, b"Pr", ">IQ", names=1)
HANDED_TOTAL = Layout(HandedTotal, b"Pt", ">IQ")
QUERY = Layout(Query, b"Pq", ">QI", names=1)
JOB = Layout(Job, b"Pj", ">IQQI", names=1, tail=True)
RETURNED = Layout(Returned, b"Pb", ">IQQI", names=1, tail=True)
REMOVED = Layout(Removed, b"Pm", ">", names=2)
EMPTY = Layout(Empty, b"Pf", ">Q")

UPSTREAM_LAYOUTS = (
    CLAIM,
    HELLO,
    BATCHING,
    RESUME,
    SYNC,
    READY,
    RECEIVED,
    TOTAL,
    DETACH,
    TAKEN,
    BACK,
    MEMBER,
    FLUSH,
    FLUSHED,
)
"""Frames of clients that arrive by the subscribers' way, some of them by the producers' way as well."""
CLIENT_LAYOUTS = (*UPSTREAM_LAYOUTS, ENQUEUE, ECHO, WINDOW)
INBOX_LAYOUTS = (
    ASK,
    CONFIRM,
    WELCOME,
    BATCHING_ACCEPTED,
    REPLAYED,
    SYNCED,
    HANDED,
    HANDED_TOTAL,
    QUERY,
    JOB,
    RETURNED,
    REMOVED,
    EMPTY,
)
RELAYED = frozenset((DIRECT, ASK.kind, CONFIRM.kind))
"""Sub-kinds of inbox frames that clients may send to each other; only the exchange sends the others."""

SUB_KIND = 1 + INBOX_SIZE + 1
"""Index of the sub-kind in a frame for an inbox."""

GROUP_BYTE = b"G"
"""The value of `frame[:1]` of a group message; loops that cannot afford a call to `is_group` compare with it."""
INBOX_BYTE = b"P"
HELLO_BYTE = b"H"
CLAIM_BYTE = b"C"
BACK_BYTE = b"B"
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
    """Return the topic of all frames for one client process."""
    return Topic(b"P%b\0" % inbox)


def claimable(secret: bytes) -> bytes:
    """Return the inbox that belongs to the client with this secret of `SECRET_SIZE` bytes."""
    return hashlib.sha256(secret).hexdigest()[:INBOX_SIZE].encode()


def is_topic(topic: bytes) -> bool:
    """Return whether this is the topic of a group or of an inbox."""
    if is_group(topic):
        return topic.find(b"\0") == len(topic) - 1 and 0 < len(topic) - 2 <= MAX_NAME
    return bool(inbox_of(topic))


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
    """Return the inbox of a request or of a frame for an inbox, without validating it."""
    return frame[1 : 1 + INBOX_SIZE]


def inbox_of(topic: bytes) -> bytes:
    """Return the inbox whose topic this is, or no bytes if it is not the topic of an inbox."""
    inbox = topic[1:-1]
    is_one = len(inbox) == INBOX_SIZE and topic == inbox_topic(inbox) and not inbox.translate(None, _HEX_DIGITS)
    return inbox if is_one else b""


@lru_cache(maxsize=16_384)
def direct_prefix(inbox: bytes) -> bytes:
    """Return the bytes with which every direct message to a process begins."""
    return b"P%b\0d" % inbox


def direct_body(channel: str, payload: bytes) -> bytes:
    """Return the body of a direct message: the full channel name, a NUL, the payload."""
    return _label(channel) + payload


@lru_cache(maxsize=16_384)
def _label(channel: str) -> bytes:
    return channel.encode() + b"\0"


_ORDER = struct.Struct(">8sQBI")
_FLAGS_AT = 16
ORDER_SIZE = _ORDER.size
"""Bytes between the prefix of a group or direct message and its body."""
_ORDER_NUMBERS = struct.Struct(">QBI")
_AGE = struct.Struct(">I")


def ordered(prefix: bytes, sender: bytes, number: int, flags: int, ttl: int, body: bytes) -> bytes:
    """Build a group or direct message.

    Args:
        prefix: A group's topic, or `direct_prefix(...)`.
        sender: 8 bytes that name the sending process.
        number: Sequence number of this sender for this prefix.
        flags: `FLAG_FIRST`, `FLAG_BATCH`, or none; `again` sets the others.
        ttl: Milliseconds that the message has left to live.
        body: The payload of a group message; of a direct one `direct_body(...)`; with `FLAG_BATCH` a `batch` of these.
    """
    return prefix + _ORDER.pack(sender, number, flags, ttl) + body


_LENGTHS = tuple(struct.Struct(f">B{count}I") for count in range(MAX_BATCH + 1))


def batch(bodies: Sequence[bytes]) -> bytes:
    """Return the body of a frame with `FLAG_BATCH`: how many messages, the length of each, then their bodies.

    Args:
        bodies: 1 to `MAX_BATCH`; the first one has the number of the frame, each other one the next number.
    """
    count = len(bodies)
    return _LENGTHS[count].pack(count, *map(len, bodies)) + b"".join(bodies)


def batch_bodies(body: bytes) -> list[bytes]:
    """Decode the body of a frame with `FLAG_BATCH`.

    Raises:
        FrameError: If the lengths do not add up, or if there are no messages or too many.
    """
    count = body[0] if body else 0
    if not 0 < count <= MAX_BATCH:
        raise FrameError(f"a batch has 1 to {MAX_BATCH} messages")
    layout = _LENGTHS[count]
    if len(body) < layout.size:
        raise FrameError("a batch ends before its lengths")
    _, *lengths = layout.unpack_from(body)
    if layout.size + sum(lengths) != len(body):
        raise FrameError("the lengths of a batch do not add up")
    bodies, at = [], layout.size
    for length in lengths:
        bodies.append(body[at : at + length])
        at += length
    return bodies


def is_batch(frame: bytes) -> bool:
    """Return whether a group or direct message is a batch; False for one that ends before its flags."""
    at = _head_at(frame)
    return len(frame) > at + _FLAGS_AT and at > 0 and bool(frame[at + _FLAGS_AT] & FLAG_BATCH)


def messages_in(frame: bytes) -> int:
    """Return how many messages a group or direct message carries: 1, unless it is a batch."""
    if not is_batch(frame):
        return 1
    at = _head_at(frame)
    return frame[_body_at(at, frame[at + _FLAGS_AT])]


def split(frame: bytes) -> list[bytes]:
    """Return the messages of a batch as frames of their own, with all its other flags; any other message as it is.

    Raises:
        FrameError: If the batch is malformed.
    """
    if not is_batch(frame):
        return [frame]
    at = _head_at(frame)
    if len(frame) < at + ORDER_SIZE:
        raise FrameError("a message ends before its payload")
    sender, number, flags, ttl = _ORDER.unpack_from(frame, at)
    start = _body_at(at, flags)
    prefix, age, bodies = frame[:at], frame[at + ORDER_SIZE : start], batch_bodies(frame[start:])
    if number + len(bodies) - 1 > MAX_NUMBER:
        raise FrameError("the numbers of a batch are too high")
    frames, flags = [], flags & ~FLAG_BATCH
    for each, body in enumerate(bodies, number):
        frames.append(prefix + _ORDER.pack(sender, each, flags, ttl) + age + body)
        flags &= ~FLAG_FIRST
    return frames


def merged(frames: Iterable[bytes], max_bytes: int) -> list[bytes]:
    """Return group and direct messages in few frames: in batches, where they follow each other in their run.

    Only messages of different runs change places. Batches, and messages that were sent again, stay as they are.

    Args:
        frames: As they were sent.
        max_bytes: Of the bodies of a batch.
    """
    batches: list[_Mergeable] = []
    last: dict[bytes, _Mergeable] = {}  # by prefix
    for frame in frames:
        at = _head_at(frame)
        prefix = frame[:at]
        _, number, flags, ttl = _ORDER.unpack_from(frame, at)
        size = len(frame) - at - ORDER_SIZE
        one = last.get(prefix)
        if one is None or flags or not one.takes(number, ttl, size):  # one with other flags than FIRST has no room
            one = last[prefix] = _Mergeable(at, number, ttl, max_bytes if flags <= FLAG_FIRST else 0)
            batches.append(one)
        one.add(frame, size)
    return [one.frame() for one in batches]


class _Mergeable:
    """Messages that may become a batch.

    Args:
        at: Where their heads begin.
        number: Of the first one.
        ttl: Of each.
        room: How many bytes their bodies may have.
    """

    __slots__ = ("_at", "_following", "_frames", "_room", "_ttl")

    def __init__(self, at: int, number: int, ttl: int, room: int) -> None:
        self._frames: list[bytes] = []
        self._at, self._following, self._ttl, self._room = at, number, ttl, room

    def takes(self, number: int, ttl: int, size: int) -> bool:
        return number == self._following and ttl == self._ttl and size <= self._room and len(self._frames) < MAX_BATCH

    def add(self, frame: bytes, size: int) -> None:
        self._frames.append(frame)
        self._following += 1
        self._room -= size

    def frame(self) -> bytes:
        """Return the frame that carries them all."""
        first, at = self._frames[0], self._at
        if len(self._frames) == 1:
            return first
        sender, number, flags, ttl = _ORDER.unpack_from(first, at)
        bodies = [frame[at + ORDER_SIZE :] for frame in self._frames]
        return ordered(first[:at], sender, number, flags | FLAG_BATCH, ttl, batch(bodies))


Order = tuple[bytes, int, int, int, int]
"""The head of a group or direct message: the key of its run of numbers (prefix and sender), its number, its flags, the
milliseconds that it has left to live, and the index of its body."""


def is_repeated(number: int, last: int) -> bool:
    """Return whether a frame has arrived before, where `last` was the last number of its run.

    A number that is lower by more than a sender ever sends again begins the run anew: a forged one must not make all
    that follow it repetitions.
    """
    return last - MAX_JUMP < number <= last


def read_order(frame: bytes, at: int) -> Order:
    """Decode the head that begins at `at`, behind the prefix.

    Raises:
        FrameError: If the frame ends before its head does.
    """
    try:
        number, flags, ttl = _ORDER_NUMBERS.unpack_from(frame, at + SENDER_SIZE)
    except struct.error as error:
        raise FrameError("a message ends before its payload") from error
    return frame[: at + SENDER_SIZE], number, flags, ttl, _body_at(at, flags)


def read_group(frame: bytes) -> tuple[Topic, bytes, int, int, int, bytes]:
    """Parse a group message: topic, sender, number, flags, milliseconds left to live, payload.

    One call instead of `topic_end` and `read_order`, since it is made once for each message.

    Raises:
        FrameError: If the frame ends before its payload, or has no topic.
    """
    behind = frame.find(b"\0", 1) + 1
    if behind < 3:
        raise FrameError("no NUL ends the topic")
    try:
        sender, number, flags, ttl = _ORDER.unpack_from(frame, behind)
    except struct.error as error:
        raise FrameError("a message ends before its payload") from error
    start = behind + ORDER_SIZE if flags < FLAG_AGAIN else _body_at(behind, flags)
    topic: Any = frame[:behind]  # `cast` would be a call for each message
    return topic, sender, number, flags, ttl, frame[start:]


def read_direct(frame: bytes) -> tuple[bytes, int, int, int, bytes]:
    """Parse a direct message: sender, number, flags, milliseconds left to live, body; see `channel_and_payload`.

    Raises:
        FrameError: If the frame ends before its body.
    """
    try:
        sender, number, flags, ttl = _ORDER.unpack_from(frame, SUB_KIND + 1)
    except struct.error as error:
        raise FrameError("a message ends before its payload") from error
    start = SUB_KIND + 1 + ORDER_SIZE if flags < FLAG_AGAIN else _body_at(SUB_KIND + 1, flags)
    return sender, number, flags, ttl, frame[start:]


def prefix_of(frame: bytes) -> bytes:
    """Return the prefix of a group or direct message, no bytes if a group message has no topic."""
    return frame[: _head_at(frame)]


def ttl_of(frame: bytes) -> int:
    """Return the milliseconds that a group or direct message had left to live when it was built."""
    return cast(int, _ORDER.unpack_from(frame, _head_at(frame))[3])


def age_of(frame: bytes) -> int:
    """Return the milliseconds since a group or direct message was sent for the first time, 0 if this is that time.

    Raises:
        FrameError: If the frame ends before its age does.
    """
    at = _head_at(frame)
    if not _ORDER.unpack_from(frame, at)[2] & FLAG_AGAIN:
        return 0
    if len(frame) < at + ORDER_SIZE + _AGE.size:
        raise FrameError("a message that is sent again ends before its age")
    return cast(int, _AGE.unpack_from(frame, at + ORDER_SIZE)[0])


def aged(frame: bytes, milliseconds: int) -> bytes:
    """Return a frame that its sender has held: a message has less time left to live.

    Args:
        frame: A group or direct message, or an `Enqueue` or a `Back`, whose layouts begin alike. Others are returned as
            they are.
        milliseconds: For which it was held.
    """
    if is_group(frame) or sub_kind(frame) == DIRECT:
        at = _head_at(frame)
        sender, number, flags, ttl = _ORDER.unpack_from(frame, at)
        return frame[:at] + _ORDER.pack(sender, number, flags, max(0, ttl - milliseconds)) + frame[at + ORDER_SIZE :]
    if frame[:1] not in (BACK_BYTE, b"Q"):
        return frame
    at = 1 + INBOX_SIZE
    number, ttl = BACK.numbers.unpack_from(frame, at)
    return frame[:at] + BACK.numbers.pack(number, max(0, ttl - milliseconds)) + frame[at + BACK.numbers.size :]


def again(frame: bytes, ttl: int, age: int, *, elsewhere: bool, acknowledged: bool) -> bytes:
    """Return a group or direct message to be sent again, with the same number.

    Args:
        frame: As it was sent before.
        ttl: Milliseconds that it has left to live.
        age: Milliseconds since it was sent for the first time.
        elsewhere: Whether another instance of an exchange may have received it.
        acknowledged: Whether an exchange has acknowledged it.
    """
    at = _head_at(frame)
    sender, number, flags, _ = _ORDER.unpack_from(frame, at)
    body = frame[_body_at(at, flags) :]
    flags |= FLAG_AGAIN | (FLAG_ELSEWHERE if elsewhere else 0) | (FLAG_ACKNOWLEDGED if acknowledged else 0)
    return frame[:at] + _ORDER.pack(sender, number, flags, ttl) + _AGE.pack(min(age, MAX_MILLISECONDS)) + body


def for_replay(frame: bytes, waited: int) -> bytes | None:
    """Return a group or direct message for `Replayed`; None if it has expired meanwhile, or is malformed.

    Args:
        frame: As the exchange has relayed it.
        waited: Milliseconds since then.
    """
    at = _head_at(frame)
    if not at or len(frame) < at + ORDER_SIZE:
        return None
    _, _, flags, ttl = _ORDER.unpack_from(frame, at)
    if ttl <= waited or len(frame) < _body_at(at, flags):
        return None
    return again(frame, ttl - waited, age_of(frame) + waited, elsewhere=False, acknowledged=False)


def topic_hash(topic: bytes) -> int:
    """Return the hash by which `Resume` names the topic of a group: its CRC-32."""
    return zlib.crc32(topic)


def encode_hashes(topics: Iterable[bytes]) -> bytes:
    """Return the hashes of topics as `Resume` carries them."""
    hashes = [topic_hash(topic) for topic in topics]
    return struct.pack(f">{len(hashes)}I", *hashes)


def decode_hashes(data: bytes) -> frozenset[int]:
    """Decode the hashes of a `Resume`.

    Raises:
        FrameError: If the last one is cut off.
    """
    if len(data) % _LENGTH.size:
        raise FrameError("the hashes of topics have 4 bytes each")
    return frozenset(struct.unpack(f">{len(data) // _LENGTH.size}I", data))


_LENGTH = struct.Struct(">I")


def encode_messages(frames: Iterable[bytes]) -> bytes:
    """Return group and direct messages as `Replayed` carries them."""
    return b"".join([part for frame in frames for part in (_LENGTH.pack(len(frame)), frame)])


def decode_messages(data: bytes) -> list[bytes]:
    """Decode the messages of a `Replayed`.

    Raises:
        FrameError: If the last one is cut off.
    """
    frames, at = [], 0
    while at < len(data):
        start = at + _LENGTH.size
        if start > len(data):
            raise FrameError("a list of messages ends within a length")
        at = start + _LENGTH.unpack_from(data, start - _LENGTH.size)[0]
        if at > len(data):
            raise FrameError("a list of messages ends within a message")
        frames.append(data[start:at])
    return frames


def _head_at(frame: bytes) -> int:
    return frame.find(b"\0", 1) + 1 if frame[:1] == GROUP_BYTE else SUB_KIND + 1


def _body_at(at: int, flags: int) -> int:
    return at + ORDER_SIZE + (_AGE.size if flags & FLAG_AGAIN else 0)


class KnownForwarder(NamedTuple):
    """An exchange in the list of a `Hello` or a `Welcome`.

    `serves`: in a hello, whether the client's link to it is up; in a welcome, whether any client's is. `instance`: in
    hexadecimal, empty if it is not known. By it a client recognises an exchange that it reaches by other addresses.
    """

    pull: bytes
    pub: bytes
    serves: bool
    instance: bytes = b""


def listed(forwarders: Iterable[KnownForwarder]) -> list[KnownForwarder]:
    """Return the first forwarders, up to the bounds of a list."""
    fitting: list[KnownForwarder] = []
    size = 0
    for each in forwarders:
        size += len(_encode_forwarder(each)) + 1
        if size > MAX_LIST or len(fitting) == MAX_FORWARDERS:
            break
        fitting.append(each)
    return fitting


def encode_forwarders(forwarders: Iterable[KnownForwarder]) -> bytes:
    """Return the list that ends a `Hello` or a `Welcome`.

    Raises:
        FrameError: If the list is too long (see `listed`), or if an address is empty, too long, or contains a NUL.
    """
    data = b"\0".join(map(_encode_forwarder, forwarders))
    decode_forwarders(data)
    return data


def _encode_forwarder(forwarder: KnownForwarder) -> bytes:
    pull, pub, serves, instance = forwarder
    return b"%d%b\0%b\0%b" % (serves, pull, pub, instance)


def decode_forwarders(data: bytes) -> tuple[KnownForwarder, ...]:
    """Decode the list that ends a `Hello` or a `Welcome`: a digit 0 or 1 and PULL's address, XPUB's, and the instance.

    Raises:
        FrameError: If the list is malformed or too long.
    """
    if not data:
        return ()
    if len(data) > MAX_LIST:
        raise FrameError(f"a list of forwarders has {MAX_LIST} bytes at most")
    parts = data.split(b"\0", 3 * MAX_FORWARDERS)
    if len(parts) % 3:
        raise FrameError(f"a list of forwarders has two addresses and an instance each, {MAX_FORWARDERS} at most")
    known = []
    for first, pub, instance in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        serves, pull = first[:1], first[1:]
        if serves not in (b"0", b"1") or not 0 < len(pull) <= MAX_ADDRESS or not 0 < len(pub) <= MAX_ADDRESS:
            raise FrameError(f"an address of a forwarder has 1 to {MAX_ADDRESS} bytes, the first behind a 0 or 1")
        if len(instance) not in (0, INSTANCE_DIGITS) or instance.translate(None, _HEX_DIGITS):
            raise FrameError(f"an instance in a list has {INSTANCE_DIGITS} lowercase hexadecimal digits, or none")
        known.append(KnownForwarder(pull, pub, serves == b"1", instance))
    return tuple(known)


def topic_end(frame: bytes) -> int:
    """Return the index of the NUL that ends a frame's topic.

    Raises:
        FrameError: If the NUL or the name before it is missing.
    """
    end = frame.find(b"\0", 1)
    if end < 2:
        raise FrameError("a topic is not ended by a NUL")
    return end


def channel_and_payload(body: bytes) -> tuple[str, bytes]:
    """Split the body of a direct message.

    Raises:
        FrameError: If the channel name is missing or not UTF-8.
    """
    end = body.find(b"\0")
    if end < 1:
        raise FrameError("a direct message lacks its channel")
    return name(body[:end]), body[end + 1 :]


def name(data: bytes) -> str:
    """Decode a name.

    Raises:
        FrameError: If it is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FrameError("a name is not UTF-8") from error


def milliseconds(seconds: float) -> int:
    """Return a duration as frames carry it, clamped to 0 and 49 days."""
    return round(max(0.0, min(float(MAX_MILLISECONDS), seconds * 1000)))
