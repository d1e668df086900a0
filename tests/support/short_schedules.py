"""Short random schedules, frame by frame: a process sends to another through two exchanges, which fail.

A schedule checks that no message is doubled, overtaken, or lost without being counted. Windows, homes, sequence
numbers, gaps, histories and replays are the library's own; the parts of a process that connect them are replaced by the
few lines here, so that a schedule takes a millisecond. `simulation` runs whole processes, some per second. Only that
one covers what is simplified here: the end of a connection is noticed at once, replays reach back to the beginning of a
schedule, messages do not expire, and the home of a topic changes only with its link.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import inf
from random import Random
from typing import NamedTuple

from fakes import Clock

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.client import Client
from channels_zmq.client.mailboxes import Shared
from channels_zmq.client.requests import next_number
from channels_zmq.client.resumption import ON_THE_WAY
from channels_zmq.client.sequences import Numbers
from channels_zmq.client.window import BLOCK_SECONDS, Window
from channels_zmq.transports.homes import Homes
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.history import History
from channels_zmq_forwarder.replays import Replays

TTL = 600_000
SENDER = b"sender.."
CAPACITY = 10_000
STEPS = 40
BATCH_BYTES = 140
"""Size of a repeated batch: four direct messages."""
HISTORY_BYTES = 2**16
JUST_JOINED = ON_THE_WAY + BLOCK_SECONDS
"""Seconds after a join in which a repeated message may count as one from before it."""
STARTS_WITHIN = 0.5
"""Seconds until an exchange that was killed is available again, which is after the other one has repeated its frames.

Otherwise its empty answer to a request for a replay would mean that nothing more arrives.
"""
QUICK, SLOW = (0.0, 0.001, 0.004), (0.001, 0.1, 0.6)
"""Seconds that pass at once. A quick schedule takes less than 0.2 s and may lose no message: one exchange lives on."""


class _Message(NamedTuple):
    """A message that waits to be sent, or to be sent again.

    Attributes:
        prefix: The prefix of its frame.
        body: Its payload, or the frame if it is sent again.
        published: Time of its first sending; None before that.
        is_acknowledged: Whether an exchange has read it.
    """

    prefix: bytes
    body: bytes
    published: float | None = None
    is_acknowledged: bool = False


class _Exchange:
    """An exchange, the sender's link to it, and the receiver's connection."""

    def __init__(self, name: str, clock: Clock, window: Window, attachment: Attachment) -> None:
        self.name, self._clock, self.window, self.attachment = name, clock, window, attachment
        self.pipes: list[deque[bytes]] = []
        """The frames in its connections to the sender, the open one last; the exchange reads them in turns."""
        self.held: deque[_Message] = deque()
        """Messages for which the window has no room."""
        self.answers: deque[int] = deque()
        self.requests: deque[wire.Resume] = deque()
        self.down: deque[tuple[float, bytes]] = deque()
        """The frames that it has published to the receiver, with their times."""
        self.is_up = self.is_subscribed = False
        self.complete_until = clock.now
        """Time until which all published frames have arrived."""
        self.begin()

    def begin(self) -> None:
        """Begin as a new instance."""
        self.is_alive, self.ended_at = True, inf
        self.history = History(HISTORY_BYTES, self._clock)
        self.replays = Replays(self.history, self._clock)

    def end(self) -> None:
        self.is_alive, self.ended_at = False, self._clock.now
        for way in (self.pipes, self.answers, self.requests):
            way.clear()

    def relay(self, pipe: deque[bytes]) -> None:
        """Read one frame."""
        frame = pipe.popleft()
        if frame[0] == wire.ECHO.kind:
            self.answers.append(wire.ECHO.decode(frame).n)
            return
        self.history.record(frame)
        self.publish([frame])

    @property
    def is_moving(self) -> bool:
        """Whether any frame is in transit."""
        return any(self.pipes) or any((self.answers, self.requests, self.down, self.replays.is_due))

    def publish(self, frames: Iterable[bytes]) -> None:
        if self.is_subscribed:
            self.down += [(self._clock.now, frame) for frame in frames]


class Schedule:
    """One schedule.

    Args:
        seed: Seed of all choices.
        pauses: `QUICK` or `SLOW`.
        write: Called with each step, to show the course of a schedule.
    """

    def __init__(self, seed: int, pauses: tuple[float, ...], write: Callable[[str], object] | None = None) -> None:
        self._random, self._pauses, self._write = Random(seed), pauses, write
        self._clock = clock = Clock()
        self._sent, self._received = Counter[str](), Counter[str]()  # the last number on each channel
        self.lost = 0
        self._client = Client(bytes(16), b"receiver", clock=clock)
        self._numbers = Numbers(lambda: int(clock.now * 1e9))
        frames = self._random.choice((4, 8, 4096))  # a window is marked after half of them
        self._exchanges = [
            _Exchange(name, clock, Window(frames, 2**20, clock), self._client.attach()) for name in ("one", "other")
        ]
        self._homes: Homes[_Exchange] = Homes(self._was_used)
        self._lobby: list[_Message] = []
        inbox = f"specific.{self._client.inbox.decode()}!inbox"
        self._in_use = self._client.mailboxes.open(inbox, CAPACITY).in_use
        self._direct = wire.direct_body(inbox, b"")
        self._channels = {wire.direct_prefix(self._client.inbox): inbox}
        """The channel for each prefix of frames."""
        for group in ("red", "blue"):
            channel = f"specific.{self._client.inbox.decode()}!{group}"
            join = self._client.join(wire.group_topic(group), channel, CAPACITY, None)
            self._client.join_synced(join, next_number())
            self._channels[join.group.topic] = channel
        for exchange in self._exchanges:
            self._connect(exchange)
            self._subscribe(exchange)
        clock.now += JUST_JOINED

    def go(self) -> None:
        """Run the random steps, repair everything, and check the messages that have arrived."""
        if self._pauses is SLOW:  # an uncounted loss at the beginning of a run is possible: begin all runs
            for prefix in self._channels:
                self._send(prefix)
            self._mend()
        steps, weights = zip(*self._steps(), strict=True)
        for step in self._random.choices(steps, weights, k=STEPS):
            if self._write is not None:
                names = [getattr(one, "name", one) for one in step.args]
                self._write(f"{self._clock.now - 1000:7.3f} {step.func.__name__} {names}")
            step()
        self._mend()
        self._pass(STARTS_WITHIN)
        self._mend()
        for prefix in self._channels:  # reveals a gap before it
            self._send(prefix)
        self._mend()
        missed = self._client.counters.dropped["missed"]
        assert self._sent == self._received, "something at the end of a run is lost"
        assert self.lost == missed, f"{self.lost} messages are lost, {missed} counted"
        assert not self.lost or self._pauses is SLOW, f"{self.lost} messages are lost"

    # The steps

    def _steps(self) -> Iterator[tuple["partial[None]", float]]:
        """Yield all possible steps, each with its weight; a step that is impossible at the moment does nothing."""
        for prefix in self._channels:
            yield partial(self._send, prefix), 8
        for seconds in self._pauses:
            yield partial(self._pass, seconds), 2
        for each in self._exchanges:
            for traffic, weight in (
                (self._relay, 8),
                (self._take, 8),
                (self._answer, 4),
                (self._mark, 2),
                (self._replay, 4),
            ):
                yield partial(traffic, each), weight
            for fault in (self._kill, self._cut_push, self._give_up, self._cut_sub):
                yield partial(fault, each), 1
            for mending in (self._begin, self._connect, self._subscribe):
                yield partial(mending, each), 3

    def _pass(self, seconds: float) -> None:
        for each in self._exchanges:
            each.history.end_block()
        self._clock.now += seconds
        gaps = self._client.gaps
        if gaps.frames:
            gaps.expire(self._clock.now, self._is_behind)
            self._read()

    def _is_behind(self, now: float, since: float) -> bool:
        return any(published <= since for each in self._exchanges for published, _ in each.down)

    def _mend(self) -> None:
        """Connect everything again, and let all frames arrive, as far as exchanges are alive."""
        for each in self._exchanges:
            for mend in (self._begin, self._connect, self._subscribe):
                mend(each)
        has_moved = True
        while has_moved:
            has_moved = False
            for each in self._exchanges:
                self._mark(each)
                while each.is_moving:
                    has_moved = True
                    for step in (self._replay, self._relay, self._answer, self._take):
                        step(each)
        while self._client.gaps.frames:
            self._pass(0.1)

    # The sender

    def _send(self, prefix: bytes) -> None:
        channel = self._channels[prefix]
        self._sent[channel] += 1
        payload = b"%d" % self._sent[channel]
        self._hold(_Message(prefix, payload if wire.is_group(prefix) else self._direct + payload))
        self._flush()

    def _hold(self, message: _Message) -> None:
        home = self._homes.of(message.prefix)
        (self._lobby if home is None else home.held).append(message)

    def _was_used(self, prefix: bytes) -> bool:
        return any(each.held for each in self._exchanges) or self._numbers.last(prefix) > 0

    def _flush(self) -> None:
        for each in self._exchanges:
            while each.is_up and each.held and not each.window.is_full:
                self._put(each, each.held.popleft())

    def _put(self, exchange: _Exchange, message: _Message) -> None:
        if message.published is None:
            number, flags = self._numbers.next(message.prefix)
            frame = wire.ordered(message.prefix, SENDER, number, flags, TTL, message.body)
        else:
            age = wire.milliseconds(self._clock.now - message.published)
            frame = wire.again(message.body, TTL, age, elsewhere=True, acknowledged=message.is_acknowledged)
        exchange.pipes[-1].append(frame)
        exchange.window.append(frame)
        if exchange.window.marker_due <= self._clock.now:
            self._mark(exchange)

    def _mark(self, exchange: _Exchange) -> None:
        if exchange.is_up and len(exchange.window):
            number = next_number()
            exchange.pipes[-1].append(wire.ECHO.encode(wire.Echo(self._client.inbox, number)))
            exchange.window.marked(number)

    def _answer(self, exchange: _Exchange) -> None:
        if exchange.answers:
            exchange.window.acknowledge(exchange.answers.popleft())
            self._flush()

    def _connect(self, exchange: _Exchange) -> None:
        if exchange.is_up or not exchange.is_alive:
            return
        exchange.pipes = [*filter(None, exchange.pipes), deque()]
        exchange.is_up = True
        self._homes.serve(each for each in self._exchanges if each.is_up)
        waiting, self._lobby = self._lobby, []
        for message in waiting:
            self._hold(message)
        self._flush()

    def _give_up(self, exchange: _Exchange) -> None:
        """Send by other links, as this one is silent or its exchange drains; frames in transit may still be read."""
        if not exchange.is_up:
            return
        exchange.is_up = False
        self._homes.serve(each for each in self._exchanges if each.is_up)
        waiting, exchange.held = exchange.held, deque()
        for since, until, frames, is_acknowledged in exchange.window.take():
            for frame in wire.merged(frames, BATCH_BYTES):
                published = (since if is_acknowledged else until) - wire.age_of(frame) / 1000
                self._hold(_Message(wire.prefix_of(frame), frame, published, is_acknowledged))
        for message in waiting:
            self._hold(message)
        self._flush()

    def _cut_push(self, exchange: _Exchange) -> None:
        if exchange.is_up:
            self._lose_end(exchange.pipes[-1])
            self._give_up(exchange)

    # The exchanges

    def _begin(self, exchange: _Exchange) -> None:
        if self._clock.now >= exchange.ended_at + STARTS_WITHIN:
            exchange.begin()

    def _kill(self, exchange: _Exchange) -> None:
        living = [each for each in self._exchanges if each.is_alive]
        if exchange in living and (len(living) > 1 or self._pauses is SLOW):
            exchange.end()
            self._give_up(exchange)
            self._cut_sub(exchange)

    def _replay(self, exchange: _Exchange) -> None:
        """Let an exchange read a request, or continue a replay."""
        if exchange.requests:
            exchange.replays.ask(exchange.requests.popleft())
        elif exchange.replays.is_due:
            exchange.publish(exchange.replays.step())

    def _relay(self, exchange: _Exchange) -> None:
        """Let an exchange read one frame."""
        pipes = [pipe for pipe in exchange.pipes if pipe]
        if pipes:
            exchange.relay(self._random.choice(pipes))

    # The receiver

    def _subscribe(self, exchange: _Exchange) -> None:
        if exchange.is_subscribed or not exchange.is_alive:
            return
        exchange.is_subscribed = True
        request = self._client.resume(exchange.attachment, self._client.new_session())
        if request is not None:
            exchange.requests.append(wire.RESUME.decode(request))

    def _cut_sub(self, exchange: _Exchange) -> None:
        if exchange.is_subscribed:
            self._lose_end(exchange.down)
            exchange.requests.clear()
            exchange.is_subscribed = False
            self._client.connection_lost(exchange.attachment, exchange.complete_until)

    def _lose_end(self, way: deque[bytes] | deque[tuple[float, bytes]]) -> None:
        for _ in range(self._random.randint(0, len(way))):
            way.pop()

    def _take(self, exchange: _Exchange) -> None:
        if not exchange.down:
            return
        published, frame = exchange.down.popleft()
        for _ in self._client.feed(frame, exchange.attachment) or ():
            pass
        exchange.complete_until = published
        if self._client.gaps.beginnings and not any(each.down for each in self._exchanges):
            self._client.gaps.all_is_read()
        self._read()

    def _read(self) -> None:
        for box in list(self._in_use):
            for _, payload, _ in box.mail:
                number = int(payload.payload if isinstance(payload, Shared) else payload)
                last = self._received[box.name]
                assert number > last, f"{'twice' if number == last else 'out of order'}: {number} behind {last}"
                self.lost += number - last - 1
                self._received[box.name] = number
            box.clear()
