"""The exchange: takes a frame and returns the frames to publish. The core of the forwarder and of the embedded layer.

In the data-flow diagram this is the box between PULL and XPUB. Pure: no sockets, the clock is an argument. Its driver
(`pump`, or the library's embedded connection) publishes the frames that it returns, in order. It may call back with an
answer to one of them before it has published the others, since each call leaves the exchange in order.

- Group and inbox frames are relayed unchanged; their payload is never decoded. A batch is split only while a client is
  connected that cannot read it, or while the exchange has to process each message.
- A message for a normal channel waits in its queue until it is handed to exactly one reader with credit.
- Messages of the last seconds are kept for clients that miss them (`replays.py`).
- A client exists from its hello until no connection is subscribed to its inbox. Then its credit ends, and with the
  hello of a new session.
- Before an exchange ends, it drains: clients send through others, and take back the waiting messages.
- Every frame that does not reach its destination is counted, by cause.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.directory import Address, Directory
from channels_zmq_forwarder.drain import RETURNS_WITHIN, Drain, Outcome, Way
from channels_zmq_forwarder.flushes import Flushes
from channels_zmq_forwarder.history import History
from channels_zmq_forwarder.members import NormalMembers
from channels_zmq_forwarder.queues import ChannelQueues, Limits
from channels_zmq_forwarder.replays import Replays

Frames = list[bytes] | tuple[bytes, ...]
NOTHING: Frames = ()
ANNOUNCE_EVERY = 1.0
"""Seconds between two rounds of welcomes that report how many clients there are and which forwarders they know."""
ANNOUNCE_AT_ONCE = 1000
ENDED_SESSIONS = 10_000
"""Disconnected clients whose last session is remembered."""
COPIES_A_STEP = 200
"""Copies of a group message for normal members that are made at once: they take about 3 ms."""
# Of a direct message, for `is_direct`, which is called for each frame:
_INBOX_TOPIC = slice(wire.SUB_KIND)
_NUL_AT = wire.SUB_KIND - 1
_DIRECT_AT = slice(_NUL_AT, wire.SUB_KIND + 1)
_DIRECT = b"\0" + bytes([wire.DIRECT])
_LEAST_DIRECT = wire.SUB_KIND + 1 + wire.ORDER_SIZE


class _Ended(NamedTuple):
    """The last session of a disconnected client, and when it was lost."""

    session: int
    at: float


_NEVER = _Ended(0, -inf)


class Exchange:
    """The state of one run of a forwarder.

    Args:
        instance: 8 bytes that no other run has.
        limits: Bounds of the queues of normal channels; the defaults of `Limits` if None.
        may_be_flushed: Whether clients may flush.
        history_bytes: Memory for the messages of the last seconds, to replay them to clients that have missed them.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        instance: bytes,
        *,
        limits: Limits | None = None,
        may_be_flushed: bool = True,
        history_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instance = instance
        limits = limits or Limits()
        self.state = wire.State.SETTLING
        self.clients: dict[bytes, int] = {}
        """The session of each client, by its inbox."""
        self.windows: dict[bytes, wire.Window] = {}
        """The last report of each client about its send window, by its inbox."""
        self._ended: OrderedDict[bytes, _Ended] = OrderedDict()
        self._resumed: dict[bytes, int] = {}  # the session in which each client has asked for a replay last
        self.topics: set[bytes] = set()
        self._without_batches: set[bytes] = set()  # inboxes of connected processes that may not be able to read batches
        self.peers_expected = 0
        """The largest `peers` of a hello: how many clients the last instance had, as far as one of them knows."""
        self._follows_at = -inf  # when a client of the last instance was seen first
        self.drops: Counter[str] = Counter()
        self.queues = ChannelQueues(instance, limits, clock, self.drops)
        self._clock = clock
        self.directory = Directory(self.drops)
        self.history = History(history_bytes, clock)
        self.replays = Replays(self.history, clock)
        self._drain = Drain(self.queues, self.replays, clock, self.drops)
        self._members = NormalMembers(limits.queue_names, limits.names_per_client)
        self._copies: list[wire.Enqueue] = []  # of a group message, that are left to be made; the last one first
        self._copied = 0  # copies made so far
        self._messages: list[bytes] = []  # of a batch, that are left to be taken; the last one first
        self._announced = 0
        self._announced_news: frozenset[tuple[Address, bool]] = frozenset()
        self._to_inform: list[bytes] = []
        self._next_round = -inf
        self._flushes = Flushes(clock)
        self._may_be_flushed = may_be_flushed
        self._largest: int | None = None
        self._published = inf
        self._upstream: dict[int, Callable[[bytes], Frames]] = {
            0: self._unsubscribed,
            1: self._subscribed,
            wire.CLAIM.kind: lambda frame: NOTHING,  # `Subscribers` has checked it
            wire.HELLO.kind: self._hello,
            wire.BATCHING.kind: self._batching,
            wire.RESUME.kind: self._resume,
            wire.SYNC.kind: self._sync,
            wire.READY.kind: self._ready,
            wire.RECEIVED.kind: self._received,
            wire.TOTAL.kind: self._total,
            wire.BACK.kind: self._back,
            wire.TAKEN.kind: self._taken,
            wire.DETACH.kind: lambda frame: self._detach(frame, Way.UPSTREAM),
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
            wire.ECHO.kind: self._echo,
            wire.WINDOW.kind: self._window,
            wire.FLUSHED.kind: self._flushed,
            wire.BACK.kind: self._back,
            wire.DETACH.kind: lambda frame: self._detach(frame, Way.INBOUND),
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
        """Return whether a frame is a direct message to a connected process: `inbound` would return it unchanged."""
        return (
            frame[_DIRECT_AT] == _DIRECT
            and frame[:1] == wire.INBOX_BYTE
            and frame.find(b"\0") == _NUL_AT
            and frame[_INBOX_TOPIC] in self.topics
            and len(frame) >= _LEAST_DIRECT
        )

    def enter(self, state: wire.State) -> list[bytes]:
        """Change the state; return the welcomes that report it to every client."""
        self.state = state
        self._announced, self._announced_news = len(self.clients), self.directory.news
        return [self._welcome(inbox, session) for inbox, session in self.clients.items()]

    def drain(self, until: float) -> list[bytes]:
        """Begin to end, until a time of the clock at the latest; return the welcomes that report it, and what follows.

        Frames are taken as before. The clients that take part detach, and take over the waiting messages (`drain.py`).
        """
        self._next_round = self._clock() + ANNOUNCE_EVERY
        return [*self._drain.begin(until), *self.enter(wire.State.DRAINING), *self._drain.step()]

    @property
    def is_drained(self) -> bool:
        """Whether `drain` has done all that it can do, or its time is over."""
        return self._drain.is_over

    @property
    def participants(self) -> int:
        """How many clients take part in a drain."""
        return self._drain.participants

    def count_returning(self) -> int:
        """Return how many clients may return whose connection was lost: the end of a drain waits for them."""
        return self._drain.count_returning()

    def end(self) -> Outcome:
        """Count the messages that wait as lost, because the exchange ends; return how its drain went."""
        return self._drain.end()

    def announce(self) -> list[bytes]:
        """Return welcomes if the number of clients has changed, or if they know more forwarders than before.

        To be called several times a second. A successor waits for the number of clients that its clients report. A
        round over all clients begins once in `ANNOUNCE_EVERY` at most; a call returns `ANNOUNCE_AT_ONCE` welcomes at
        most. Rounds continue while clients are expected to detach, since a welcome may have been lost.
        """
        now = self._clock()
        if not self._to_inform:
            news = self.directory.news
            self._announced_news &= news  # one that is listed again is news
            is_known = len(self.clients) == self._announced and news == self._announced_news
            if (is_known and not self._drain.is_expecting) or now < self._next_round:
                return []
            self._announced, self._announced_news, self._next_round = len(self.clients), news, now + ANNOUNCE_EVERY
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
        parts = self.queues.due(), self._members.due(), self._flushes.due(), self._drain.due()
        return min(*parts, self.history.due)

    def sweep(self) -> list[bytes]:
        """Expire and decide all that is due, at a cost that grows with it; return the frames to publish."""
        out = self.queues.sweep()
        self._members.expire(self._clock())
        self.history.forget()
        out += [self._confirm(late.inbox, late.n, wire.Status.GONE) for late in self._flushes.expire()]
        self._choose_path()
        return out + self._drain.step() if self._drain.has_begun else out

    def groups(self) -> list[bytes]:
        """Return the names of the groups that have a subscriber."""
        return [wire.group_of(topic) for topic in self.topics if wire.is_group(topic)]

    def _take(self, handlers: dict[int, Callable[[bytes], Frames]], frame: bytes) -> Frames:
        handler = handlers.get(frame[0]) if frame else None
        if handler is None:
            self.drops["malformed"] += 1
            return NOTHING
        try:
            out = handler(frame)
        except wire.FrameError:
            self.drops["malformed"] += 1
            return NOTHING
        # Any frame may have ended a client or put a message into a queue.
        return [*out, *self._drain.step()] if self._drain.has_begun else out

    # Subscribers

    def _subscribed(self, frame: bytes) -> Frames:
        topic = wire.subscribed_topic(frame)
        if topic not in self.topics:
            self.topics.add(topic)
            if inbox := wire.inbox_of(topic):
                self._without_batches.add(inbox)
                self._choose_path()
        return NOTHING

    def _unsubscribed(self, frame: bytes) -> Frames:
        topic = wire.subscribed_topic(frame)
        self.topics.discard(topic)
        inbox = wire.inbox_of(topic)
        return self._forget(inbox) if inbox else NOTHING

    def _hello(self, frame: bytes) -> Frames:
        hello = wire.HELLO.decode(frame)
        if wire.inbox_topic(hello.inbox) not in self.topics:
            # XPUB reports subscriptions in the order of the pipe, so no client would receive a welcome.
            return self._dropped("stray")
        if hello.version != wire.VERSION:
            self.drops["version_mismatch"] += 1
            # A welcome reports our version; the client would understand nothing else.
            return [self._welcome(hello.inbox, hello.session)]
        forwarders = wire.decode_forwarders(hello.forwarders)
        known = self.clients.get(hello.inbox)
        last = self._ended.get(hello.inbox, _NEVER).session
        is_stale = hello.session < known if known is not None else hello.session <= last
        if is_stale:
            # XPUB reads its pipes in turns, so that frames of a dead connection may follow those of its successor. And
            # frames that a client sends while its connection breaks wait in its socket for the next one. If such a
            # hello began the session anew, the client would report jobs as received that it has never seen.
            self.drops["stray"] += 1
            # A client with two connections learns by this welcome that both lead here, by two addresses.
            return NOTHING if known is None else [self._welcome(hello.inbox, known)]
        if hello.peers and not self.peers_expected and known is None and hello.inbox not in self._ended:
            self._follows_at = self._clock()
        self.peers_expected = max(self.peers_expected, hello.peers)
        out = []
        if hello.session != known:
            out = self.queues.begin(hello.inbox, hello.session)
            self.clients[hello.inbox] = hello.session
        self.directory.update(hello.inbox, forwarders)
        if forwarders:
            self._drain.join(hello.inbox, hello.session)
        else:  # it does not know how to detach
            self._drain.leave(hello.inbox)
        return [self._welcome(hello.inbox, hello.session), *self._flushes.again(hello.inbox), *out]

    def _batching(self, frame: bytes) -> Frames:
        batching = wire.BATCHING.decode(frame)
        if self.clients.get(batching.inbox) != batching.session:
            return self._dropped("stray")
        self._without_batches.discard(batching.inbox)
        self._choose_path()
        return [wire.BATCHING_ACCEPTED.encode(wire.BatchingAccepted(batching.inbox, batching.session))]

    def _resume(self, frame: bytes) -> Frames:
        resume = wire.RESUME.decode(frame)
        if self.clients.get(resume.inbox) != resume.session:
            return self._dropped("stray")
        if self._resumed.get(resume.inbox) == resume.session:
            return NOTHING  # asked again with another hello: it is behind, and a second replay would keep it so
        self._resumed[resume.inbox] = resume.session
        if not self.history.max_bytes:
            return [wire.REPLAYED.encode(wire.Replayed(resume.inbox, resume.session, last=1))]
        self.replays.ask(resume)
        return NOTHING

    def _welcome(self, inbox: bytes, session: int) -> bytes:
        forwarders = self.directory.encoded if inbox in self.directory else b""
        return wire.WELCOME.encode(
            wire.Welcome(inbox, wire.VERSION, self.state, self.instance, session, len(self.clients), forwarders)
        )

    def _forget(self, inbox: bytes) -> list[bytes]:
        session = self.clients.pop(inbox, None)
        self.windows.pop(inbox, None)
        self._resumed.pop(inbox, None)
        if session is not None:
            self._ended[inbox] = _Ended(session, self._clock())
            self._ended.move_to_end(inbox)
            if len(self._ended) > ENDED_SESSIONS:
                self._ended.popitem(last=False)
        self._without_batches.discard(inbox)
        self.directory.remove(inbox)
        self._members.gone(inbox, self._clock(), self._is_living)
        self._drain.connection_lost(inbox)
        return self.queues.end(inbox) + self._confirm_flushes(self._flushes.gone(inbox))

    def _sync(self, frame: bytes) -> list[bytes]:
        sync = wire.SYNC.decode(frame)
        return [wire.SYNCED.encode(wire.Synced(sync.inbox, sync.n))]

    # Messages that are relayed

    def _group(self, frame: bytes) -> Frames:
        end = wire.topic_end(frame)
        run, number, flags, ttl, start = wire.read_order(frame, end + 1)
        if flags & wire.FLAG_BATCH and not self.relays_unchanged:
            return self._batch(frame)
        cause = self._refused(frame)
        if cause:
            return self._dropped(cause)
        self.history.record(frame)
        now = self._clock()
        published = now - wire.age_of(frame) / 1000 if flags & wire.FLAG_AGAIN else self._published
        members = self._members.of(frame[1:end], now, published)
        if not members or not self._members.is_new(run, number, flags):
            return (frame,)
        payload = frame[start:]
        self._copies = [wire.Enqueue(b"", 0, ttl, member.capacity, channel, payload) for channel, member in members]
        self._copies.reverse()
        return [frame, *self._copy()]

    def _copy(self) -> list[bytes]:
        """Make some copies of a group message for its normal members."""
        out, copies = [], self._copies[-COPIES_A_STEP:]
        del self._copies[-COPIES_A_STEP:]
        self._copied += len(copies)
        for copy in reversed(copies):
            out += self.queues.put(copy)
        return out

    def _batch(self, frame: bytes) -> list[bytes]:
        """Take the messages of a batch one by one."""
        self._messages = wire.split(frame)
        self._messages.reverse()
        return self.go_on()

    @property
    def is_unfinished(self) -> bool:
        """Whether `go_on` is to be called before the next frame is taken."""
        return bool(self._copies or self._messages)

    def go_on(self) -> list[bytes]:
        """Continue with the last frame of a producer, for a bounded time; return the frames to publish."""
        enough = self._copied + COPIES_A_STEP
        out = self._copy() if self._copies else []
        while self._messages and not self._copies and self._copied < enough:
            out += self.inbound(self._messages.pop())
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
            ask = wire.ASK.decode(frame)
            if not wire.inbox_of(wire.inbox_topic(ask.reply)):
                raise wire.FrameError("the inbox for the reply is invalid")
            return (frame,) if ask.inbox in self.clients else (self._answer_for(ask),)
        if head[-1] == wire.CONFIRM.kind:
            wire.CONFIRM.decode(frame)
        else:
            if len(frame) < len(head) + wire.ORDER_SIZE:
                raise wire.FrameError("a message ends before its payload")
            if wire.is_batch(frame) and not (self.relays_unchanged and head[:-1] in self.topics):
                return self._batch(frame)
            cause = self._refused(frame)
            if cause:
                return self._dropped(cause)
            self.history.record(frame)
        if head[:-1] not in self.topics:
            return self._dropped("unroutable")
        return (frame,)

    def _answer_for(self, ask: wire.Ask) -> bytes:
        """Answer a request to an owner that is not connected."""
        seen_at = max(self._ended.get(ask.inbox, _NEVER).at, self._follows_at)
        may_return = self._clock() < seen_at + RETURNS_WITHIN
        return self._confirm(ask.reply, ask.n, wire.Status.AWAY if may_return else wire.Status.GONE)

    # Normal channels

    def _enqueue(self, frame: bytes) -> list[bytes]:
        send = wire.ENQUEUE.decode(frame)
        cause = self._refused(frame)
        if cause:
            self._dropped(cause)
            answer = wire.Status.FLUSHING if cause == "flushed" else wire.Status.MEMORY
            return [self._confirm(send.inbox, send.n, answer)]
        return self.queues.put(send)

    def _ready(self, frame: bytes) -> list[bytes]:
        ready = wire.READY.decode(frame)
        return self.queues.ready(ready._replace(limit=0) if self._drain.gets_no_jobs(ready.inbox) else ready)

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

    def _taken(self, frame: bytes) -> Frames:
        self._drain.take(wire.TAKEN.decode(frame))
        return NOTHING

    def _detach(self, frame: bytes, way: Way) -> Frames:
        self._drain.detach(wire.DETACH.decode(frame), way)
        return NOTHING

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

    def _window(self, frame: bytes) -> Frames:
        window = wire.WINDOW.decode(frame)
        if window.inbox not in self.clients:
            return self._dropped("stray")
        self.windows[window.inbox] = window
        return NOTHING

    def _flush(self, frame: bytes) -> Frames:
        request = wire.FLUSH.decode(frame)
        if request.inbox not in self.clients:
            return self._dropped("stray")
        out = self._flushes.begin(request, self.clients) if self._may_be_flushed else None
        if out is None:
            return [self._confirm(request.inbox, request.n, wire.Status.REFUSED)]
        self._members.clear()
        self._copies.clear()
        self._messages.clear()
        self.replays.clear()
        self._choose_path()
        return [*self.queues.clear(), *out]

    def _flushed(self, frame: bytes) -> list[bytes]:
        return self._confirm_flushes(self._flushes.answered(wire.FLUSHED.decode(frame)))

    def _confirm_flushes(self, done: list[wire.Flush]) -> list[bytes]:
        self._choose_path()
        return [self._confirm(request.inbox, request.n, wire.Status.OK) for request in done]

    def _choose_path(self) -> None:
        # Messages bypass `inbound` only while it would do nothing with them: no copies for normal members, no flush
        # that drops them, no limit on their size, no client that needs the messages of a batch one by one.
        does_something = self._members.count or self._flushes or self._largest is not None or self._without_batches
        self.relays_unchanged = not does_something

    def _refused(self, frame: bytes) -> str:
        if self._flushes:
            return "flushed"
        return "memory" if self._largest is not None and len(frame) > self._largest else ""

    def _confirm(self, inbox: bytes, n: int, status: wire.Status) -> bytes:
        return wire.CONFIRM.encode(wire.Confirm(inbox, n, status, self.instance))

    def _dropped(self, cause: str) -> Frames:
        self.drops[cause] += 1
        return NOTHING
