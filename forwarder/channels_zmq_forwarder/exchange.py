"""What happens to a frame: bytes in, frames out. The heart of the forwarder, and of the embedded layer.

In the data-flow diagram this is the box between PULL and XPUB. Pure: no sockets, the clock is an argument. Whoever
drives it (`pump`, or the library's embedded connection) publishes what it returns, in order.

- Group and inbox frames leave as they came; their payload is never decoded.
- A message for a plain channel waits in its queue until exactly one reader with credit is handed it.
- A client exists from its hello until its last unsubscription; its credit ends with either, and with a new hello.
- Every frame that does not go where its sender meant it to is counted, by cause.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.flushes import Flushes
from channels_zmq_forwarder.members import PlainMembers
from channels_zmq_forwarder.queues import ENTRY_SIZE, Entry, PlainQueue

Frames = list[bytes] | tuple[bytes, ...]
NOTHING: Frames = ()


class Limits(NamedTuple):
    """What the plain queues of an exchange may hold together."""

    queue_bytes: int = 256 * 2**20
    queue_names: int = 100_000


@dataclass(slots=True)
class Client:
    """A process that said hello; `channels` are the plain channels it holds credit for."""

    session: int
    channels: set[bytes] = field(default_factory=set)


class Exchange:
    """The state of one run of a forwarder.

    Args:
        instance: 8 bytes that no other run has.
        limits: Bounds of the plain queues; the defaults of `Limits` if None.
        clock: Monotonic seconds.
    """

    def __init__(
        self, instance: bytes, *, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.instance = instance
        self.limits = limits or Limits()
        self.state = wire.State.SETTLING
        self.clients: dict[bytes, Client] = {}
        self.topics: set[bytes] = set()
        self.queues: dict[bytes, PlainQueue] = {}
        self.queue_size = 0
        self.peers_expected = 0
        """The largest number of clients that a hello said the last instance had."""
        self.drops: Counter[str] = Counter()
        self.observe_wait: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that each plain message has waited when it is handed over."""
        self._clock = clock
        self._number = 0
        self._members = PlainMembers(self.limits.queue_names)
        self._told_clients = 0
        self._flushes = Flushes(clock)
        self._largest: int | None = None
        self._upstream: dict[int, Callable[[bytes], Frames]] = {
            0: self._unsubscribed,
            1: self._subscribed,
            wire.HELLO.kind: self._hello,
            wire.SYNC.kind: self._sync,
            wire.READY.kind: self._ready,
            wire.BACK.kind: self._back,
            # A reader of an embedded producer has no other way up:
            wire.INBOX: self._relay_request,
            wire.MEMBER.kind: self._member,
            wire.FLUSH.kind: self._flush,
            wire.FLUSHED.kind: self._flushed,
        }
        self._inbound: dict[int, Callable[[bytes], Frames]] = {
            wire.GROUP: self._group,
            wire.INBOX: self._relay,
            wire.PLAIN.kind: self._plain,
            wire.MEMBER.kind: self._member,
            wire.ECHO.kind: self._echo,
            wire.FLUSH.kind: self._flush,
            wire.FLUSHED.kind: self._flushed,
        }
        self.relays_as_they_come = True
        """Whether group and direct messages may be published as they came, so that a driver need not ask."""

    def upstream(self, frame: bytes) -> Frames:
        """Take a frame that came up a subscriber's pipe; return the frames to publish."""
        return self._take(self._upstream, frame)

    def inbound(self, frame: bytes) -> Frames:
        """Take a frame that a producer pushed; return the frames to publish."""
        return self._take(self._inbound, frame)

    def is_direct(self, frame: bytes) -> bool:
        """Return whether a frame is a direct message to a process that is here: `inbound` would return it as it is."""
        return (
            frame[wire.SUB_KIND - 1 : wire.SUB_KIND + 1] == b"\0d"
            and frame[:1] == b"P"
            and frame.find(b"\0") == wire.SUB_KIND - 1
            and frame[: wire.SUB_KIND] in self.topics
            and len(frame) > wire.SUB_KIND + wire.ORDER_SIZE
        )

    def enter(self, state: wire.State) -> list[bytes]:
        """Change the state and return the welcomes that tell every client."""
        self.state = state
        return self._welcomes()

    def news(self) -> list[bytes]:
        """Return the welcomes that tell every client how many there are, if that has changed; once a second is enough.

        A successor waits for as many clients as the first one to come back knows of.
        """
        return self._welcomes() if len(self.clients) != self._told_clients else []

    def _welcomes(self) -> list[bytes]:
        self._told_clients = len(self.clients)
        return [self._welcome(inbox, client.session) for inbox, client in self.clients.items()]

    def refuse_above(self, size: int | None) -> None:
        """Refuse messages of more than `size` bytes, 0 for all of them, because memory runs out; None ends it."""
        self._largest = size
        self._choose_path()

    def sweep(self) -> None:
        """Drop what has expired; to be called about once a second."""
        now = self._clock()
        for channel, queue in [item for item in self.queues.items() if item[1].earliest <= now]:
            queue.expire(now)
            self._settle(channel, queue)
        self._members.expire(now)
        self._flushes.expire()
        self._choose_path()

    def oldest_wait(self) -> float:
        """Return the seconds that the oldest waiting plain message has waited, 0 if none waits."""
        since = min((queue.entries[0].since for queue in self.queues.values() if queue.entries), default=None)
        return 0.0 if since is None else self._clock() - since

    def groups(self) -> list[bytes]:
        """Return the names of the groups that have a member somewhere."""
        return [topic[1:-1] for topic in self.topics if topic[:1] == b"G"]

    def depth(self) -> int:
        """Return how many plain messages wait."""
        return sum(len(queue.entries) for queue in self.queues.values())

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
        self.topics.add(frame[1:])
        return NOTHING

    def _unsubscribed(self, frame: bytes) -> Frames:
        topic = frame[1:]
        self.topics.discard(topic)
        inbox = wire.inbox_of(topic)
        return self._forget(inbox) if inbox else NOTHING

    def _hello(self, frame: bytes) -> Frames:
        hello = wire.HELLO.decode(frame)
        if wire.inbox_topic(hello.inbox) not in self.topics:
            return self._dropped("stray")  # its pipe would have told of the subscription first
        if hello.version != wire.VERSION:
            self.drops["other version"] += 1
            return [self._welcome(hello.inbox, hello.session)]  # says our version; nothing else would be understood
        known = self.clients.get(hello.inbox)
        if known is not None and hello.session < known.session:
            return self._dropped("stray")  # of a connection that died, read after its successor's
        self.peers_expected = max(self.peers_expected, hello.peers)
        if known is None or hello.session != known.session:
            self._take_credit(hello.inbox)
            self.clients[hello.inbox] = Client(hello.session)
        return [self._welcome(hello.inbox, hello.session), *self._flushes.again(hello.inbox)]

    def _welcome(self, inbox: bytes, session: int) -> bytes:
        return wire.WELCOME.encode(
            wire.Welcome(inbox, wire.VERSION, self.state, self.instance, session, len(self.clients))
        )

    def _forget(self, inbox: bytes) -> list[bytes]:
        self._take_credit(inbox)
        self.clients.pop(inbox, None)
        return self._confirm_flushes(self._flushes.gone(inbox))

    def _take_credit(self, inbox: bytes) -> None:
        client = self.clients.get(inbox)
        for channel in client.channels if client else ():
            queue = self.queues[channel]
            queue.forget(inbox)
            self._settle(channel, queue)

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
        members = self._members.of(frame[1:end], self._clock())
        if not members:
            return (frame,)
        payload, out = frame[start:], [frame]
        for channel, member in members:
            out += self._enqueue(channel, payload, ttl, member.capacity)[1]
        return out

    def _relay_request(self, frame: bytes) -> Frames:
        if frame[wire.SUB_KIND : wire.SUB_KIND + 1] == b"d":
            raise wire.FrameError("a message goes the producers' way")
        return self._relay(frame)

    def _relay(self, frame: bytes) -> Frames:
        head = frame[: wire.SUB_KIND + 1]
        if len(head) <= wire.SUB_KIND or head.find(b"\0") != wire.SUB_KIND - 1 or head[-1] not in wire.RELAYED:
            raise wire.FrameError("clients may not send this kind")
        if head[-1] == wire.ASK.kind:
            ask = wire.ASK.decode(frame)
            if not wire.inbox_of(wire.inbox_topic(ask.reply)):
                raise wire.FrameError("nobody could be answered")
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
            return self._dropped("no such process")
        return (frame,)

    # Plain channels

    def _plain(self, frame: bytes) -> list[bytes]:
        send = wire.PLAIN.decode(frame)
        cause = self._refused(frame)
        if cause:
            self._dropped(cause)
            answer = wire.Status.OK if cause == "flushed" else wire.Status.FULL
            return [self._confirm(send.inbox, send.n, answer)]
        status, jobs = self._enqueue(send.channel, send.payload, send.ttl, send.capacity)
        return [self._confirm(send.inbox, send.n, status), *jobs]

    def _enqueue(self, channel: bytes, payload: bytes, ttl: int, capacity: int) -> tuple[wire.Status, list[bytes]]:
        queue = self.queues.get(channel)
        if not (queue and queue.readers) and self._out_of_space(payload):
            return wire.Status.FULL, []
        queue = queue or self._new_queue(channel)
        if queue is None:
            return wire.Status.REFUSED, []
        now = self._clock()
        self._number += 1
        accepted = queue.put(Entry(self._number, now + ttl / 1000, now, payload), capacity, now)
        if not accepted:
            self.drops["queue full"] += 1
        return (wire.Status.OK if accepted else wire.Status.FULL), self._hand_over(channel, queue)

    def _ready(self, frame: bytes) -> Frames:
        ready = wire.READY.decode(frame)
        client = self.clients.get(ready.inbox)
        if client is None or client.session != ready.session:
            return NOTHING  # of a session that has ended; the client says it again after the next welcome
        queue = self._queue(ready.channel)
        if queue is None:
            return NOTHING
        credit = queue.open_window(ready.inbox, ready.session, ready.limit)
        if ready.ask == wire.Question.FORGET:
            queue.forget(ready.inbox)
        if ready.inbox in queue.credits:
            client.channels.add(ready.channel)
        else:
            client.channels.discard(ready.channel)
        out = self._hand_over(ready.channel, queue)
        if ready.ask == wire.Question.HANDED:
            out.append(wire.HANDED.encode(wire.Handed(ready.inbox, ready.session, credit.handed, ready.channel)))
        return out

    def _back(self, frame: bytes) -> Frames:
        back = wire.BACK.decode(frame)
        if self._flushes:
            return self._dropped("flushed")
        queue = None if self._out_of_space(back.payload) else self._queue(back.channel)
        if queue is None:
            return NOTHING
        now = self._clock()
        # A number that was not given here yet comes from another instance: older than all that waits here.
        number = back.number if back.number <= self._number else 0
        queue.put_back(Entry(number, now + back.ttl / 1000, now, back.payload))
        return self._hand_over(back.channel, queue)

    def _out_of_space(self, payload: bytes) -> bool:
        full = self.queue_size + len(payload) + ENTRY_SIZE > self.limits.queue_bytes
        if full:
            self.drops["queue bytes"] += 1
        return full

    def _queue(self, channel: bytes) -> PlainQueue | None:
        return self.queues.get(channel) or self._new_queue(channel)

    def _new_queue(self, channel: bytes) -> PlainQueue | None:
        if len(self.queues) >= self.limits.queue_names:
            self.drops["queue names"] += 1
            return None
        queue = self.queues[channel] = PlainQueue()
        return queue

    def _hand_over(self, channel: bytes, queue: PlainQueue) -> list[bytes]:
        now = self._clock()
        out = []
        for inbox, session, entry in queue.hand_over(now):
            self.observe_wait(now - entry.since)
            left = wire.milliseconds(entry.deadline - now)
            out.append(wire.JOB.encode(wire.Job(inbox, session, entry.number, left, channel, entry.payload)))
        self._settle(channel, queue)
        return out

    def _settle(self, channel: bytes, queue: PlainQueue) -> None:
        self.queue_size += queue.size - queue.counted
        queue.counted = queue.size
        if queue.expired:
            self.drops["expired"] += queue.expired
            queue.expired = 0
        if queue.idle:
            self.queues.pop(channel, None)

    # Plain channels as members of groups

    def _member(self, frame: bytes) -> Frames:
        member = wire.MEMBER.decode(frame)
        if member.inbox not in self.clients:
            return self._dropped("stray")
        status, told = wire.Status.OK, frozenset[bytes]()
        if not member.add:
            told = self._members.leave(member.group, member.channel) & self.clients.keys()
        elif not self._members.join(member, self._clock(), self.clients):
            self.drops["queue names"] += 1
            status = wire.Status.REFUSED
        self._choose_path()
        return [
            *(wire.REMOVED.encode(wire.Removed(adder, member.group, member.channel)) for adder in sorted(told)),
            self._confirm(member.inbox, member.n, status),
        ]

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
        for channel, queue in list(self.queues.items()):
            queue.clear()
            self._settle(channel, queue)
        self._members.clear()
        self._choose_path()
        return out

    def _flushed(self, frame: bytes) -> list[bytes]:
        return self._confirm_flushes(self._flushes.answered(wire.FLUSHED.decode(frame)))

    def _confirm_flushes(self, done: list[wire.Flush]) -> list[bytes]:
        self._choose_path()
        return [self._confirm(request.inbox, request.n, wire.Status.OK) for request in done]

    def _choose_path(self) -> None:
        self.relays_as_they_come = not (self._members.count or self._flushes or self._largest is not None)

    def _refused(self, frame: bytes) -> str:
        if self._flushes:
            return "flushed"
        return "memory" if self._largest is not None and len(frame) > self._largest else ""

    def _confirm(self, inbox: bytes, n: int, status: wire.Status) -> bytes:
        return wire.CONFIRM.encode(wire.Confirm(inbox, n, status, self.instance))

    def _dropped(self, cause: str) -> Frames:
        self.drops[cause] += 1
        return NOTHING
