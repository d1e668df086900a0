"""A simulated forwarder: the real exchange, driven as by `server` and `pump`, behind simulated ports."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from simulated_network import Line, Network
from simulated_time import World

from channels_zmq.transports.roster import Forwarder as Addresses
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.inboxes import Inboxes, Verdict
from channels_zmq_forwarder.server import BEAT
from channels_zmq_forwarder.settling import has_settled

SETTLE, SETTLE_AT_MOST = 0.5, 5.0
DRAIN_AT_MOST = 10.0
HEARTBEATS = (3.0, 3.6)
"""Seconds after which the other end of a subscriber's connection notices that a process is frozen."""
FRAMES_A_TURN = 50
HISTORY_BYTES = 2**22
_OF_INBOXES = {layout.kind for layout in wire.UPSTREAM_LAYOUTS}


def _descriptor(line: Line) -> int:
    """Return the line in place of the descriptor of its connection, which is only compared and hashed."""
    return cast(int, line)


class Forwarder:
    """One run of a forwarder.

    Args:
        world: Time and random choices.
        network: The network with its ports.
        addresses: Pairs of PULL and PUB addresses; several pairs lead to the same ports.
        instance: 8 bytes that are unique to this run.
    """

    def __init__(self, world: World, network: Network, addresses: Sequence[Addresses], instance: bytes) -> None:
        self.world, self.network, self.addresses = world, network, addresses
        self.exchange = Exchange(instance, history_bytes=HISTORY_BYTES, clock=world)
        self.is_alive, self.is_frozen, self.is_ending = True, False, False
        self.serves_since: float | None = None
        self.on_thaw: list[Callable[[], None]] = []
        self.returned: list[bytes] = []
        self._freezes = 0
        self.lines: list[Line] = []
        self._begun = world.now
        self._pull: dict[Line, deque[bytes]] = {}
        self._up: deque[tuple[Line, bytes | None]] = deque()
        self._subscribers: dict[bytes, dict[Line, None]] = {}
        self._turn_is_due = False
        self._topics: Counter[bytes] = Counter()
        self._inboxes = Inboxes()
        for _, pub in addresses:
            network.listen(pub, self)
        world.after(BEAT, self._beat)

    @property
    def is_well(self) -> bool:
        """Whether it serves and is neither frozen nor ending."""
        return self.is_alive and self.serves_since is not None and not (self.is_frozen or self.is_ending)

    # Connections

    def accepted(self, line: Line) -> None:
        self.lines.append(line)

    def arrived(self, line: Line, frame: bytes) -> None:
        if not self.is_alive:
            return
        if line.port == "pull":
            self._pull.setdefault(line, deque()).append(frame)
        else:
            self._up.append((line, frame))
        self._turn_soon()

    def closed(self, line: Line) -> None:
        """Notice the end of a connection, whose input is read first."""
        if self.is_alive and line.port == "pub":
            self._up.append((line, None))
            self._turn_soon()
        self.lines.remove(line)

    # Turns

    def _turn_soon(self) -> None:
        if not (self._turn_is_due or self.is_frozen) and self.is_alive:
            self._turn_is_due = True
            self.world.after(self.world.random.uniform(0, 0.001), self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        if self.is_frozen or not self.is_alive:
            return
        replays = self.exchange.replays
        if replays.is_due:
            self._publish(replays.step())
        self._read_producers()
        for _ in range(min(FRAMES_A_TURN, len(self._up))):
            self._take_up(*self._up.popleft())
        if self._up or self._pull or replays.is_due:
            self._turn_soon()
        self._notice_end()

    def _read_producers(self) -> None:
        exchange, choose = self.exchange, self.world.random.choice
        for _ in range(FRAMES_A_TURN):
            if not self._pull:
                break
            line = choose(list(self._pull)) if len(self._pull) > 1 else next(iter(self._pull))
            frames = self._pull[line]
            frame = frames.popleft()
            if not frames:
                del self._pull[line]
            if exchange.relays_unchanged and (frame[:1] == wire.GROUP_BYTE or exchange.is_direct(frame)):
                self._publish((frame,))
                exchange.history.record(frame)
            else:
                self._publish(exchange.inbound(frame))

    def _take_up(self, line: Line, frame: bytes | None) -> None:
        """Process a subscriber's frame, as XPUB does, which reports first subscriptions and last unsubscriptions."""
        if frame is None:
            for topic in sorted(line.topics):
                self._unsubscribe(line, topic)
            self._inboxes.gone(_descriptor(line))
        elif frame[:1] == wire.SUBSCRIBE:
            self._subscribe(line, frame[1:])
        elif frame[:1] == wire.UNSUBSCRIBE:
            if frame[1:] in line.topics:
                self._unsubscribe(line, frame[1:])
        elif frame[:1] == wire.CLAIM_BYTE:
            claim = wire.CLAIM.decode(frame)
            claimed = self._inboxes.claim(claim, _descriptor(line), b"")
            assert claimed is not None
            if claimed.subscribes:
                self._publish(self.exchange.upstream(wire.subscription(wire.inbox_topic(claim.inbox))))
        elif frame[0] in _OF_INBOXES and not self._inboxes.may_use(frame, _descriptor(line)):
            self.exchange.drops["foreign_inbox"] += 1
        else:
            self._publish(self.exchange.upstream(frame))

    def _subscribe(self, line: Line, topic: bytes) -> None:
        if topic not in line.topics:
            line.topics.add(topic)
            self._subscribers.setdefault(topic, {})[line] = None
            inbox = wire.inbox_of(topic)
            counts = not inbox or self._inboxes.subscribe(inbox, _descriptor(line), b"") is Verdict.COUNTS
            if counts and len(self._subscribers[topic]) == 1:
                self._publish(self.exchange.upstream(wire.subscription(topic)))

    def _unsubscribe(self, line: Line, topic: bytes) -> None:
        line.topics.discard(topic)
        del self._subscribers[topic][line]
        if not self._subscribers[topic]:
            del self._subscribers[topic]
            self._publish(self.exchange.upstream(wire.unsubscription(topic)))

    def _publish(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            if wire.sub_kind(frame) == wire.RETURNED.kind:
                self.returned.append(frame)
            for line in self._subscribers.get(frame[: frame.find(b"\0", 1) + 1], ()):
                line.down.send(frame)

    def _beat(self) -> None:
        if not self.is_alive:
            return
        if not self.is_frozen:
            if self.serves_since is None:
                self._settle()
            self.exchange.history.end_block()
            if self.exchange.due() <= self.world.now:
                self._publish(self.exchange.sweep())
            self._publish(self.exchange.announce())
            self._notice_end()
        self.world.after(BEAT, self._beat)

    def _settle(self) -> None:
        if has_settled(self.exchange, self.world.now - self._begun, SETTLE, SETTLE_AT_MOST):
            self.serves_since = self.world.now
            for pull, _ in self.addresses:
                self.network.listen(pull, self)
            self._publish(self.exchange.enter(wire.State.SERVING))

    # The end

    def drain(self) -> None:
        if self.is_ending:
            return
        self.is_ending = True
        if self.serves_since is None:
            self._end()
        else:
            self._publish(self.exchange.drain(self.world.now + DRAIN_AT_MOST))
            self._notice_end()

    def _notice_end(self) -> None:
        if self.is_alive and self.is_ending and self.exchange.is_drained:
            self._end()

    def _end(self) -> None:
        """Close the sockets; frames that were published still arrive."""
        self.exchange.end()
        self._die()
        for line in self.lines:
            line.up.cut(0)
            line.down.at_end(line.near_notices)

    def kill(self) -> None:
        """End at once, and lose the frames in transit."""
        self._die()
        for line in self.lines:
            line.cut(self.world.random.uniform(0.0005, 0.03), None)

    def _die(self) -> None:
        self.is_alive = False
        for pull, pub in self.addresses:
            self.network.stop_listening(pull)
            self.network.stop_listening(pub)
        thawing, self.on_thaw = self.on_thaw, []
        for action in thawing:
            self.world.after(0.001, action)

    def frames_inside(self) -> list[bytes]:
        """Return the frames that have arrived and are not processed yet."""
        return [
            *(frame for frames in self._pull.values() for frame in frames),
            *(frame for _, frame in self._up if frame),
        ]

    def freeze(self, seconds: float) -> None:
        """Freeze; published frames still arrive, and subscribers notice after a while."""
        self.is_frozen = True
        self._freezes += 1
        self.world.after(seconds, self.thaw)
        for line in list(self.lines):
            if line.port == "pub":
                heartbeat = self.world.random.uniform(*HEARTBEATS)
                self.world.after(heartbeat, self._missed_heartbeat, line, self._freezes)

    def _missed_heartbeat(self, line: Line, freeze: int) -> None:
        if self.is_frozen and self._freezes == freeze and self.is_alive and line.is_open:
            line.up.cut(self.world.random.randint(0, len(line.up.under_way)))
            line.near_notices()
            self.on_thaw.append(line.far_notices)

    def thaw(self) -> None:
        if not self.is_frozen:
            return
        self.is_frozen = False
        thawing, self.on_thaw = self.on_thaw, []
        for action in thawing:
            self.world.after(self.world.random.uniform(0, 0.01), action)
        self._turn_soon()
