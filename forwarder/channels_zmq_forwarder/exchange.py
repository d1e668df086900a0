"""The exchange: takes a frame and returns the frames to publish. The core of the forwarder and of the embedded layer.

In the data-flow diagram this is the box between PULL and XPUB. Pure: no sockets, the clock is an argument. Its driver
(`pump`, or the library's embedded connection) publishes the frames that it returns, in order. It may call back with an
answer to one of them before it has published the others, since each call leaves the exchange in order.

- Group and inbox frames are relayed unchanged; their payload is never decoded.
- A message for a normal channel waits in its queue until it is handed to exactly one reader with credit.
- A client exists from its hello until its last unsubscription; its credit ends with either, and with a new hello.
- Every frame that does not reach its destination is counted, by cause.
"""

import time
from collections import Counter
from collections.abc import Callable
from math import inf

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.flushes import Flushes
from channels_zmq_forwarder.members import NormalMembers
from channels_zmq_forwarder.queues import ChannelQueues, Limits

Frames = list[bytes] | tuple[bytes, ...]
NOTHING: Frames = ()
ANNOUNCE_EVERY = 1.0
"""Seconds between two rounds of welcomes that report how many clients there are."""
ANNOUNCE_AT_ONCE = 1000
_DIRECT = b"\0" + bytes([wire.DIRECT])


class Exchange:
    """The state of one run of a forwarder.

    Args:
        instance: 8 bytes that no other run has.
        limits: Bounds of the queues of normal channels; the defaults of `Limits` if None.
        clock: Monotonic seconds.
    """

    def __init__(
        self, instance: bytes, *, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.instance = instance
        limits = limits or Limits()
        self.state = wire.State.SETTLING
        self.clients: dict[bytes, int] = {}
        """The session of each client, by its inbox."""
        self.topics: set[bytes] = set()
        self.peers_expected = 0
        """The largest `peers` of a hello: how many clients the last instance had."""
        self.drops: Counter[str] = Counter()
        self.queues = ChannelQueues(instance, limits, clock, self.drops)
        self._clock = clock
        self._members = NormalMembers(limits.queue_names)
        self._announced = 0
        self._to_inform: list[bytes] = []
        self._next_round = -inf
        self._flushes = Flushes(clock)
        self._largest: int | None = None
        self._published = inf
        self._upstream: dict[int, Callable[[bytes], Frames]] = {
            0: self._unsubscribed,
            1: self._subscribed,
            wire.HELLO.kind: self._hello,
            wire.SYNC.kind: self._sync,
            wire.READY.kind: self._ready,
            wire.RECEIVED.kind: self._received,
            wire.TOTAL.kind: self._total,
            wire.BACK.kind: self._back,
            # A client of an embedded producer has no PUSH:
            wire.INBOX: self._relay_request,
            wire.MEMBER.kind: self._member,
            wire.FLUSH.kind: self._flush,
            wire.FLUSHED.kind: self._flushed,
        }
        self._inbound: dict[int, Callable[[bytes], Frames]] = {
            wire.GROUP: self._group,
            wire.INBOX: self._relay,
            wire.ENQUEUE.kind: self._enqueue,
            wire.MEMBER.kind: self._member,
            wire.ECHO.kind: self._echo,
            wire.FLUSH.kind: self._flush,
            wire.FLUSHED.kind: self._flushed,
        }
        self.relays_unchanged = True
        """Whether group and direct messages may be relayed unchanged without a call to `inbound`."""

    def upstream(self, frame: bytes) -> Frames:
        """Process a frame that a subscriber sent; return the frames to publish."""
        return self._take(self._upstream, frame)

    def inbound(self, frame: bytes) -> Frames:
        """Process a frame that a producer sent; return the frames to publish."""
        return self._take(self._inbound, frame)

    def late(self, frame: bytes, published: float) -> Frames:
        """Take a message that its producer has held since `published`; normal members added later do not get it."""
        self._published = published
        try:
            return self.inbound(frame)
        finally:
            self._published = inf

    def is_direct(self, frame: bytes) -> bool:
        """Return whether a frame is a direct message to a living process: `inbound` would return it unchanged."""
        return (
            frame[wire.SUB_KIND - 1 : wire.SUB_KIND + 1] == _DIRECT
            and frame[:1] == wire.INBOX_BYTE
            and frame.find(b"\0") == wire.SUB_KIND - 1
            and frame[: wire.SUB_KIND] in self.topics
            and len(frame) > wire.SUB_KIND + wire.ORDER_SIZE
        )

    def enter(self, state: wire.State) -> list[bytes]:
        """Change the state; return the welcomes that report it to every client."""
        self.state = state
        self._announced = len(self.clients)
        return [self._welcome(inbox, session) for inbox, session in self.clients.items()]

    def announce(self) -> list[bytes]:
        """Return welcomes that report the number of clients if it has changed; to be called several times a second.

        A successor waits for as many clients as its first client knows of. A round over all clients begins once in
        `ANNOUNCE_EVERY` at most, and a call returns `ANNOUNCE_AT_ONCE` welcomes at most.
        """
        now = self._clock()
        if not self._to_inform:
            if len(self.clients) == self._announced or now < self._next_round:
                return []
            self._announced, self._next_round = len(self.clients), now + ANNOUNCE_EVERY
            self._to_inform = list(self.clients)
        inboxes = self._to_inform[-ANNOUNCE_AT_ONCE:]
        del self._to_inform[-ANNOUNCE_AT_ONCE:]
        return [self._welcome(inbox, self.clients[inbox]) for inbox in inboxes if inbox in self.clients]

    def refuse_above(self, size: int | None) -> None:
        """Refuse messages of more than `size` bytes because memory runs out; 0 refuses all, None lifts the limit."""
        self._largest = size
        self._choose_path()

    def due(self) -> float:
        """Return when `sweep` may have something to do."""
        return min(self.queues.due(), self._members.due(), self._flushes.due())

    def sweep(self) -> list[bytes]:
        """Expire and decide what is due, at a cost that follows what is due; return the frames to publish."""
        out = self.queues.sweep()
        self._members.expire(self._clock())
        self._flushes.expire()
        self._choose_path()
        return out

    def groups(self) -> list[bytes]:
        """Return the names of the groups that have a subscriber."""
        return [wire.group_of(topic) for topic in self.topics if wire.is_group(topic)]

    def _take(self, handlers: dict[int, Callable[[bytes], Frames]], frame: bytes) -> Frames:
        handler = handlers.get(frame[0]) if frame else None
        if handler is None:
            self.drops["malformed"] += 1
            return NOTHING
        try:
            return handler(frame)
        except wire.FrameError:
            self.drops["malformed"] += 1
            return NOTHING

    # Subscribers

    def _subscribed(self, frame: bytes) -> Frames:
        self.topics.add(wire.subscribed_topic(frame))
        return NOTHING

    def _unsubscribed(self, frame: bytes) -> Frames:
        topic = wire.subscribed_topic(frame)
        self.topics.discard(topic)
        inbox = wire.inbox_of(topic)
        return self._forget(inbox) if inbox else NOTHING

    def _hello(self, frame: bytes) -> Frames:
        hello = wire.HELLO.decode(frame)
        if wire.inbox_topic(hello.inbox) not in self.topics:
            # XPUB reports subscriptions in the order of the pipe, so nobody would receive a welcome.
            return self._dropped("stray")
        if hello.version != wire.VERSION:
            self.drops["version_mismatch"] += 1
            # A welcome reports our version; the client would understand nothing else.
            return [self._welcome(hello.inbox, hello.session)]
        known = self.clients.get(hello.inbox)
        if known is not None and hello.session < known:
            # XPUB reads its pipes in turns, so that frames of a dead connection may follow those of its successor.
            return self._dropped("stray")
        self.peers_expected = max(self.peers_expected, hello.peers)
        out = []
        if hello.session != known:
            out = self.queues.begin(hello.inbox, hello.session)
            self.clients[hello.inbox] = hello.session
        return [self._welcome(hello.inbox, hello.session), *self._flushes.again(hello.inbox), *out]

    def _welcome(self, inbox: bytes, session: int) -> bytes:
        return wire.WELCOME.encode(
            wire.Welcome(inbox, wire.VERSION, self.state, self.instance, session, len(self.clients))
        )

    def _forget(self, inbox: bytes) -> list[bytes]:
        self.clients.pop(inbox, None)
        return self.queues.end(inbox) + self._confirm_flushes(self._flushes.gone(inbox))

    def _sync(self, frame: bytes) -> list[bytes]:
        sync = wire.SYNC.decode(frame)
        return [wire.SYNCED.encode(wire.Synced(sync.inbox, sync.n))]

    # Messages that are relayed

    def _group(self, frame: bytes) -> Frames:
        end = wire.topic_end(frame)
        _, _, _, ttl, start = wire.read_order(frame, end + 1)
        cause = self._refused(frame)
        if cause:
            return self._dropped(cause)
        members = self._members.of(frame[1:end], self._clock(), self._published)
        if not members:
            return (frame,)
        payload, out = frame[start:], [frame]
        for channel, member in members:
            out += self.queues.put(wire.Enqueue(b"", 0, ttl, member.capacity, channel, payload))
        return out

    def _relay_request(self, frame: bytes) -> Frames:
        if wire.sub_kind(frame) == wire.DIRECT:
            raise wire.FrameError("messages are sent to the producers' port")
        return self._relay(frame)

    def _relay(self, frame: bytes) -> Frames:
        head = frame[: wire.SUB_KIND + 1]
        if len(head) <= wire.SUB_KIND or head.find(b"\0") != wire.SUB_KIND - 1 or head[-1] not in wire.RELAYED:
            raise wire.FrameError("clients may not send this kind")
        if head[-1] == wire.ASK.kind:
            # An owner that is gone cannot answer, so the exchange does.
            ask = wire.ASK.decode(frame)
            if not wire.inbox_of(wire.inbox_topic(ask.reply)):
                raise wire.FrameError("the inbox for the reply is invalid")
            return (frame,) if ask.inbox in self.clients else (self._confirm(ask.reply, ask.n, wire.Status.GONE),)
        if head[-1] == wire.CONFIRM.kind:
            wire.CONFIRM.decode(frame)
        else:
            if len(frame) < len(head) + wire.ORDER_SIZE:
                raise wire.FrameError("a message ends before its payload")
            cause = self._refused(frame)
            if cause:
                return self._dropped(cause)
        if head[:-1] not in self.topics:
            return self._dropped("unroutable")
        return (frame,)

    # Normal channels

    def _enqueue(self, frame: bytes) -> list[bytes]:
        send = wire.ENQUEUE.decode(frame)
        cause = self._refused(frame)
        if cause:
            self._dropped(cause)
            answer = wire.Status.OK if cause == "flushed" else wire.Status.FULL
            return [self._confirm(send.inbox, send.n, answer)]
        return self.queues.put(send)

    def _ready(self, frame: bytes) -> list[bytes]:
        return self.queues.ready(wire.READY.decode(frame))

    def _received(self, frame: bytes) -> list[bytes]:
        return self.queues.received(wire.RECEIVED.decode(frame))

    def _total(self, frame: bytes) -> Frames:
        question = wire.TOTAL.decode(frame)
        handed = self.queues.total(question.inbox, question.session)
        if handed is None:
            return NOTHING
        return [wire.HANDED_TOTAL.encode(wire.HandedTotal(question.inbox, question.session, handed))]

    def _back(self, frame: bytes) -> Frames:
        back = wire.BACK.decode(frame)
        return self._dropped("flushed") if self._flushes else self.queues.put_back(back)

    # Normal channels as members of groups

    def _member(self, frame: bytes) -> Frames:
        member = wire.MEMBER.decode(frame)
        if not self._is_living(member.inbox):
            return self._dropped("stray")
        status, notified = wire.Status.OK, set[bytes]()
        if not member.add:
            notified = {inbox for inbox in self._members.leave(member, self._clock()) if self._is_living(inbox)}
        else:
            joined = self._members.join(member, self._clock(), self._is_living)
            if joined is None:  # it has been discarded since
                notified = {member.inbox}
            elif joined is wire.Status.REFUSED:
                self.drops["queue_names"] += 1
                status = joined
        self._choose_path()
        out = [wire.REMOVED.encode(wire.Removed(inbox, member.group, member.channel)) for inbox in sorted(notified)]
        return [*out, self._confirm(member.inbox, member.n, status)] if member.n else out

    def _is_living(self, inbox: bytes) -> bool:
        """Return whether a process is connected: subscribed to its inbox, with or without a hello."""
        return wire.inbox_topic(inbox) in self.topics

    # Requests about the exchange itself

    def _echo(self, frame: bytes) -> list[bytes]:
        echo = wire.ECHO.decode(frame)
        return [self._confirm(echo.inbox, echo.n, wire.Status.OK)]

    def _flush(self, frame: bytes) -> Frames:
        request = wire.FLUSH.decode(frame)
        if request.inbox not in self.clients:
            return self._dropped("stray")
        out = self._flushes.begin(request, self.clients)
        if out is None:
            return [self._confirm(request.inbox, request.n, wire.Status.REFUSED)]
        self._members.clear()
        self._choose_path()
        return [*self.queues.clear(), *out]

    def _flushed(self, frame: bytes) -> list[bytes]:
        return self._confirm_flushes(self._flushes.answered(wire.FLUSHED.decode(frame)))

    def _confirm_flushes(self, done: list[wire.Flush]) -> list[bytes]:
        self._choose_path()
        return [self._confirm(request.inbox, request.n, wire.Status.OK) for request in done]

    def _choose_path(self) -> None:
        # Messages bypass `inbound` only while it would do nothing with them: no copies for normal members, no flush
        # that drops them, no limit on their size.
        self.relays_unchanged = not (self._members.count or self._flushes or self._largest is not None)

    def _refused(self, frame: bytes) -> str:
        if self._flushes:
            return "flushed"
        return "memory" if self._largest is not None and len(frame) > self._largest else ""

    def _confirm(self, inbox: bytes, n: int, status: wire.Status) -> bytes:
        return wire.CONFIRM.encode(wire.Confirm(inbox, n, status, self.instance))

    def _dropped(self, cause: str) -> Frames:
        self.drops[cause] += 1
        return NOTHING
