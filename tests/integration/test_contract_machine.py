"""A layer beside a model of its contract: any calls in any order, from several event loops and processes.

The model knows only what must be true. A message is *sure* if some reader must get it; otherwise it may have been
refused at a full channel, or have arrived while its receiver joined or left. Of two messages one *precedes* the other
if one process sent both in this order, or if the exchange is known to have published the first before the second was
sent.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any, cast

import pytest
from actors import FRESH, LANES, PATIENCE, Actor, Outcome, RemoteActor
from forwarders import Forwarder, free_ports
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from relays import Relay

TOPOLOGIES = ["embedded-inproc", "embedded-tcp", "dedicated"]
QUICK = settings(max_examples=12, stateful_step_count=40, suppress_health_check=list(HealthCheck))
THOROUGH = settings(QUICK, max_examples=40, stateful_step_count=60)
MAX_READERS = 3
NORMAL = ["jobs", "a-b", ".a..b", "line\n", "d\u0663_1", "x.0123456789abcdef"]
"""Names of normal channels; Channels accepts each of them behind a prefix."""
EDGES: list[Any] = [0, -1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63), 0.0, -0.0, 5e-324, 1.7976931348623157e308]
EDGES += ["", "\0", "\U0001f600\u0301", "a\0b", b"", b"\0\xff", b"x" * 300, [], {}, None, True, False]
scalars = st.one_of(
    st.sampled_from(EDGES),
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.integers(0, 100_000).map(bytes),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def batched(items: list[Any]) -> list[list[Any]]:
    """Return the items in pairs."""
    return [items[at : at + 2] for at in range(0, len(items), 2)]


CALLS = ["join", "join and cancel", "join twice", "renew", "renew and cancel", "discard", "send"]
"""The calls that may begin while all connections are cut."""
actors = groups = st.integers(0, 1)
lanes = st.sampled_from(LANES)
loops = st.sampled_from([lane for lane in LANES if lane != FRESH])
channels = st.integers(0, 4)
turns = st.integers(0, 3)


DOUBT = 1.0
"""Seconds of doubt about the age of a replayed message on a busy machine."""


@dataclass
class Sent:
    """A message that may wait in a channel."""

    number: int
    shown: str
    actor: int
    lane: int
    step: int
    group: int | None
    members: frozenset[int] = frozenset()
    """The members of the group when the message was sent."""
    sure: bool = True
    passed: float = inf
    """The step at which the exchange is known to have published the message."""
    arrived: bool = False

    def precedes(self, other: "Sent") -> bool:
        """Return whether this message must be read before the other one."""
        if self.actor == other.actor and (self.step != other.step or self.lane == other.lane):
            return self.number < other.number
        return self.passed <= other.step


@dataclass
class Channel:
    """A channel and the messages that may wait in it; `owner` is the actor that reads it, None for a normal channel."""

    name: str
    owner: int | None
    waiting: list[Sent]
    readers: int = 0
    doubtful: set[int] = field(default_factory=set)
    """Messages from just before it joined, which a replay may bring: their publishing times are not known exactly."""
    replayed: set[int] = field(default_factory=set)
    """The doubtful messages that the last replay may have put into the mailbox, where they use capacity."""
    replay_ended: float = 0
    """The step at which that replay ended, infinite if it has not ended yet."""

    @property
    def least(self) -> int:
        """How many messages certainly count against the capacity."""
        return sum(sent.sure for sent in self.waiting) - self.readers

    @property
    def most(self) -> int:
        """How many messages may count against the capacity."""
        return len(self.waiting) + len(self.replayed)

    def add(self, sent: Sent) -> None:
        self.waiting.append(sent)
        self.waiting.sort(key=lambda sent: sent.number)

    def take(self, message: Any) -> None:
        """Check a message that was read, and forget it."""
        found = next((sent for sent in self.waiting if sent.number == message["n"]), None)
        if found is None and message["n"] in self.doubtful:
            self.doubtful.remove(message["n"])
            self.replayed.discard(message["n"])
            return
        assert found is not None, f"{message} was read before, or never sent to {self}"
        assert repr(message["value"]) == found.shown
        if self.owner is not None:
            before = [sent for sent in self.waiting if sent.precedes(found)]
            assert sum(sent.sure for sent in before) <= self.readers, f"{found} was read before {before}"
            if not self.readers:
                self.waiting = [sent for sent in self.waiting if sent not in before]
        if found.step > self.replay_ended:
            self.replayed.clear()
        self.waiting.remove(found)


class World:
    """The processes of one topology, in which each example has its own addresses or names."""

    def __init__(self, topology: str) -> None:
        self.topology = topology
        self.actors: list[Any] = [Actor()] if topology == "embedded-inproc" else [Actor(), RemoteActor()]
        self.senders = range(len(self.actors) if topology == "dedicated" else 1)
        self.examples = itertools.count()
        self.relays: list[Relay] = []
        if topology == "dedicated":
            ports = free_ports(4)
            self.forwarder = Forwarder(*(f"tcp://127.0.0.1:{port}" for port in ports[:2]))
            self.forwarder.start()
            self.relays = [Relay(near, far) for near, far in zip(ports[2:], ports[:2], strict=True)]
            for relay in self.relays:
                relay.start()

    def open(self, **config: Any) -> str:
        """Open a layer in every actor, and return the prefix of all names of this example."""
        prefix = f"e{next(self.examples)}."
        if self.topology == "dedicated":
            settings = ("pull_socket_address", "pub_socket_address")
            config |= dict(zip(settings, (relay.address for relay in self.relays), strict=True))
        elif self.topology == "embedded-tcp":
            config["pub_socket_address"] = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        else:
            config["pub_socket_address"] = f"inproc://{prefix}"
        for actor in self.actors:
            actor.errors()  # of an example that failed
            actor.open(f"{self.topology.partition('-')[0].title()}ZmqChannelLayer", config)
            if actor is self.actors[0]:
                actor.call(FRESH, "group_send", "nobody", {})  # becomes the producer of an embedded layer
            self.connected(actor)
        return prefix

    def connected(self, actor: Any, connected: bool = True) -> None:
        """Wait until an actor is connected, or has noticed that it is not."""
        self._until(lambda: actor.stats()["connected"] is connected, f"connected is not {connected}")

    def cut(self, *, noticed: bool) -> list[int]:
        """Cut all connections while every message is acknowledged, and let no process connect.

        Args:
            noticed: Whether to wait until all actors have noticed the cut.

        Returns:
            How many times each actor had reconnected before.
        """
        for actor in self.actors:
            self._until(lambda: not actor.stats()["held"], "it does not get acknowledged")  # noqa: B023 # called at once
        before = [actor.stats()["reconnects"] for actor in self.actors]
        for relay in self.relays:
            relay.end()
        if noticed:
            for actor in self.actors:
                self.connected(actor, False)
        return before

    def restore(self, before: list[int]) -> None:
        """Let all actors reconnect, and wait until they have."""
        for relay in self.relays:
            relay.start()
        for actor, count in zip(self.actors, before, strict=True):
            self._until(lambda: actor.stats()["reconnects"] > count, "it does not notice the outage")  # noqa: B023 # see above
            self.connected(actor)

    def _until(self, condition: Callable[[], bool], fault: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, fault
            time.sleep(0.001)

    def end(self) -> None:
        for actor in self.actors:
            actor.end()
        for relay in self.relays:
            relay.end()
        if self.topology == "dedicated":
            self.forwarder.end()


class Contract(RuleBasedStateMachine):
    """At most two actors, two groups, three process-specific channels, and two normal ones."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.step = self.number = 0
        self.readers: list[tuple[Channel, int, int]] = []
        self.blocked: tuple[int, int] | None = None
        """The actor and the index of its loop that is blocked."""
        self.logged: dict[int, int] = {}
        """The number of the last log line that arrived from each process."""
        self.channels: list[Channel] = []

    @initialize(
        capacity=st.sampled_from([1, 2, 5, 30]), prefetch=st.sampled_from([0, 1, 4]), normal=st.permutations(NORMAL)
    )
    def open(self, capacity: int, prefetch: int, normal: list[str]) -> None:
        self.capacity, self.prefetch = capacity, prefetch
        lines = {"*.log.*!*": 1000}  # the log's own channel takes all of them
        prefix = self.world.open(capacity=capacity, prefetch=prefetch, connect_timeout=15.0, channel_capacity=lines)
        self.groups = [prefix + "g", prefix + "g."]
        self.members: list[set[int]] = [set(), set()]
        self.under_way: list[Sent] = []
        self.lately: list[tuple[float, Sent]] = []  # messages to groups, where connections are cut
        for owner, actor in enumerate(self.world.actors):
            self.channels += [Channel(actor.call(0, "new_channel"), owner, []) for _ in range(2 - owner)]
        self.channels += [Channel(prefix + name, None, []) for name in normal[:2]]
        self.private = [actor.call(0, "new_channel", prefix + "private") for actor in self.world.actors]
        self.log_group = prefix + "log"
        self.log = self.world.actors[0].call(0, "new_channel", self.log_group)
        self._call(0, 0, "group_add", self.log_group, self.log)
        for sender in self.world.senders:
            self.world.actors[sender].send_the_log(self.log_group)

    # Groups

    @rule(group=groups, channel=channels, by=actors, then=actors, lane=lanes)
    def group_add(self, group: int, channel: int, by: int, then: int, lane: int) -> None:
        """A new member must receive every message sent afterwards, and may receive those in flight."""
        index = channel % len(self.channels)
        target, then = self.channels[index], then % len(self.world.senders)
        members = [self.channels[other] for other in sorted(self.members[group] | {index})]
        self._see_how_full(members)
        self._joins(group, index)
        sent = self._new(None, then, lane, group)
        calls = [
            ("group_add", self.groups[group], target.name),
            ("group_send", self.groups[group], self._message(sent, None)),
        ]
        if by == then:
            assert self._call(by, lane, "burst", calls) == [None, None]
        else:
            sent.step += 1
            self._call(by, lane, *calls[0])
            self._call(then, lane, *calls[1])
        self._sent_to_group(sent, members)

    @rule(group=groups, channel=channels, by=actors, then=actors, lane=lanes)
    def group_discard(self, group: int, channel: int, by: int, then: int, lane: int) -> None:
        """A discarded member must not receive a message sent afterwards, and may receive those in flight."""
        index = channel % len(self.channels)
        self._call(by, lane, "group_discard", self.groups[group], self.channels[index].name)
        self.members[group].discard(index)
        for sent in self.channels[index].waiting:
            sent.sure = sent.sure and (sent.arrived or sent.group != group)
        self.group_send(group, None, then, lane)

    @rule(group=groups, value=values, by=actors, lane=lanes)
    def group_send(self, group: int, value: Any, by: int, lane: int) -> None:
        """A `group_send` never raises, and each member with room gets the message."""
        by %= len(self.world.senders)
        members = [self.channels[index] for index in sorted(self.members[group])]
        self._see_how_full(members)
        sent = self._new(value, by, lane, group)
        assert self._call(by, lane, "group_send", self.groups[group], self._message(sent, value)) is None
        self._sent_to_group(sent, members)

    @rule(group=groups, values=st.lists(values, min_size=2, max_size=4), by=actors, lane=lanes)
    def group_send_by_both(self, group: int, values: list[Any], by: int, lane: int) -> None:
        """Messages of one batch that layers with different settings send all arrive in order."""
        by %= len(self.world.senders)
        members = [self.channels[index] for index in sorted(self.members[group])]
        if any(one.most + len(values) > self.capacity for one in members):
            return
        sent = [self._new(value, by, lane, group) for value in values]
        calls = [
            ("group_send", self.groups[group], self._message(one, value))
            for one, value in zip(sent, values, strict=True)
        ]
        assert self._call(by, lane, "burst_by_both", calls) == [None] * len(values)
        for one in sent:
            self._sent_to_group(one, members)

    def _sent_to_group(self, sent: Sent, members: list[Channel]) -> None:
        self.under_way.append(sent)
        if self.world.relays:
            self.lately.append((time.monotonic(), sent))
        for channel in members:
            self._will_arrive(sent, channel)

    def _will_arrive(self, sent: Sent, channel: Channel) -> None:
        """Note a message that is refused if the channel is full when it arrives."""
        if channel.least >= self.capacity:
            self._settle()  # so that it arrives, and is refused, before a reader makes room
        else:
            channel.add(replace(sent, sure=channel.most < self.capacity))

    # Channels

    @rule(channel=channels, value=values, by=actors, lane=lanes)
    def send(self, channel: int, value: Any, by: int, lane: int) -> None:
        """A `send` raises `ChannelFull` if the sender knows that the channel is full, and only if it may be."""
        by %= len(self.world.senders)
        target = self.channels[channel % len(self.channels)]
        self._see_how_full([target])
        sent = self._new(value, by, lane)
        result = self._call(by, lane, "send", target.name, self._message(sent, value))
        self._sent(sent, target, result)

    def _sent(self, sent: Sent, target: Channel, result: Any) -> None:
        knows = target.owner in (None, sent.actor)
        least, most = target.least, target.most
        assert result in (None, Outcome.FULL)
        if result is Outcome.FULL:
            assert knows, "nobody can know of another process's mailbox"
            assert most >= self.capacity
        elif knows:
            assert least < self.capacity
            target.add(sent)
        else:
            self._will_arrive(sent, target)
        if target.owner is None:
            self._passed(sent.actor)

    @rule(channel=channels, by=actors, lane=lanes)
    def receive(self, channel: int, by: int, lane: int) -> None:
        """A `receive` returns a message that waits in the channel."""
        target, by = self._readable(channel, by)
        if sum(sent.sure for sent in target.waiting) > target.readers:
            target.take(self._call(by, lane, "receive", target.name))

    @rule(channel=channels, by=actors, loop=loops)
    def begin_reading(self, channel: int, by: int, loop: int) -> None:
        """A reader waits, or gets a message before its result is queried."""
        target, by = self._readable(channel, by)
        if len(self.readers) < MAX_READERS:
            self.step += 1
            self.readers.append((target, by, self.world.actors[by].begin(loop, "receive", target.name)))
            target.readers += 1

    @rule(which=st.integers(0, MAX_READERS - 1), cancel=st.booleans())
    def end_reading(self, which: int, cancel: bool) -> None:
        """A cancelled reader returns its message or leaves it to the next reader; any other one waits for a message."""
        if self.readers:
            target, _, _ = self.readers[which % len(self.readers)]
            sure = sum(sent.sure for sent in target.waiting)
            self._end_reading(which % len(self.readers), cancel=cancel or sure < target.readers)

    def _end_reading(self, which: int, *, cancel: bool) -> None:
        target, by, handle = self.readers.pop(which)
        self.step += 1
        message = self.world.actors[by].finish(handle, cancel=cancel)
        target.readers -= 1
        if message is not Outcome.CANCELLED:
            target.take(message)

    @rule(channel=channels, value=values, by=actors, loop=loops, before=turns, after=turns)
    def race(self, channel: int, value: Any, by: int, loop: int, before: int, after: int) -> None:
        """A reader that is cancelled while its message arrives loses nothing: the next reader gets it."""
        target, by = self._readable(channel, by)
        if by not in self.world.senders:
            return
        self._see_how_full([target])
        sent = self._new(value, by, loop)
        target.readers += 2
        arguments = loop, target.name, self._message(sent, value), before, after
        result, message, handle = self._call(by, loop, "race", *arguments)
        self._sent(sent, target, result)
        target.readers -= 1
        if message is not Outcome.CANCELLED:
            target.take(message)
        self.readers.append((target, by, handle))
        self.end_reading(-1, cancel=False)

    @rule(group=groups, channel=channels, values=st.lists(values, min_size=8, max_size=8))
    def send_at_once(self, group: int, channel: int, values: list[Any]) -> None:
        """Two loops of every sending process send at once: each loop keeps its order, and nothing is lost."""
        target = self.channels[channel % len(self.channels)]
        members = [self.channels[index] for index in sorted(self.members[group])]
        if any(one.most + len(values) > self.capacity for one in (target, *members)):
            return
        bursts = []
        for (by, loop), pair in zip(itertools.product(self.world.senders, (0, 1)), batched(values), strict=False):
            first, second = (self._new(value, by, loop, to) for value, to in zip(pair, (group, None), strict=True))
            calls = [
                ("group_send", self.groups[group], self._message(first, pair[0])),
                ("send", target.name, self._message(second, pair[1])),
            ]
            bursts.append((by, first, second, self.world.actors[by].begin(loop, "burst", calls)))
        self.step += 1
        for by, first, second, handle in bursts:
            assert self.world.actors[by].finish(handle) == [None, None]
            self._sent_to_group(first, members)
            target.add(second)

    @rule(group=groups, by=actors, lane=lanes)
    def flush(self, group: int, by: int, lane: int) -> None:
        """After a `flush` no message remains except those that a reader has already taken."""
        by %= len(self.world.senders)
        self._call(by, lane, "flush")
        self.members = [set(), set()]
        self.under_way.clear()
        for channel in self.channels:
            channel.waiting = [replace(sent, sure=False) for sent in channel.waiting] if channel.readers else []
            channel.replayed.clear()
        self._call(0, 0, "group_add", self.log_group, self.log)
        self.group_send(group, None, by, lane)

    @rule()
    def settle(self) -> None:
        """When everything has arrived, the forwarder knows exactly the groups that have members."""
        self._settle()
        self._read_log()
        self._see_subscriptions()

    @rule(group=groups, channel=channels, loop=loops, turns=turns, by=actors)
    def join_twice(self, group: int, channel: int, loop: int, turns: int, by: int) -> None:
        """If one of two joins of a channel to a group is cancelled, the channel becomes a member all the same."""
        index = channel % len(self.channels)
        target = self.channels[index]
        owner = by if target.owner is None else target.owner
        self._see_how_full([target])
        assert self._call(owner, loop, "join_twice", self.groups[group], target.name, turns) is None
        self._joins(group, index)
        self.group_send(group, None, owner, loop)

    @rule(
        group=groups,
        channel=channels,
        value=values,
        by=actors,
        loop=loops,
        then=actors,
        lane=lanes,
        reads=st.booleans(),
    )
    def block(
        self, group: int, channel: int, value: Any, by: int, loop: int, then: int, lane: int, reads: bool
    ) -> None:
        """While a loop is blocked all others continue, and its readers find afterwards what was sent meanwhile."""
        by, then = by % len(self.world.actors), then % len(self.world.senders)
        lane = 1 - loop if (then, lane) == (by, loop) else lane
        own = [index for index, one in enumerate(self.channels) if one.owner == by]
        index = own[channel % len(own)]
        self.group_add(group, index, by, then, lane)
        if reads := reads and len(self.readers) < MAX_READERS:
            self._settle()
            self._read_what_is_there(self.channels[index], by)
            self.begin_reading(index, by, loop)
        self.world.actors[by].block(loop)
        self.blocked = by, loop
        try:
            self.group_send(group, value, then, lane)
            self.send(index, value, then, lane)
            self._settle()
        finally:
            self.world.actors[by].release()
            self.blocked = None
        if reads:
            self.end_reading(-1, cancel=False)

    @precondition(lambda self: self.world.relays)
    @rule(
        noticed=st.booleans(),
        calls=st.lists(st.tuples(st.sampled_from(CALLS), groups, channels, actors, loops), min_size=2, max_size=6),
    )
    def outage(self, noticed: bool, calls: list[tuple[str, int, int, int, int]]) -> None:
        """If all connections are cut while nothing is in flight, nothing is lost and memberships remain.

        Calls that begin meanwhile have their usual results: a cancelled one undoes only its own effects, and messages
        arrive once and in order.
        """
        self._settle()
        receiving = [channel for channel in self.channels if channel.owner is not None]
        for channel in receiving:
            channel.replayed, channel.replay_ended = set(channel.doubtful), inf
        before = self.world.cut(noticed=noticed)
        outage = Outage(self)
        for call in calls:
            outage.begin(*call)
        self.world.restore(before)
        outage.end()
        for channel in receiving:
            channel.replay_ended = self.step
        for group in range(len(self.groups)):
            self.group_send(group, None, 0, 0)
        self._see_subscriptions()

    # Helpers of the rules

    def _see_subscriptions(self) -> None:
        """Compare the number of groups that have a process-specific member with the forwarder's topics."""
        if self.world.relays:
            has_member = [any(self.channels[index].owner is not None for index in members) for members in self.members]
            wanted = sum(has_member) + 1  # that of the log
            end = time.monotonic() + PATIENCE
            while (found := self.world.forwarder.status()["groups"]) != wanted:
                assert time.monotonic() < end, f"{found} groups are subscribed to, {wanted} have members"

    def _call(self, by: int, lane: int, name: str, *arguments: Any) -> Any:
        self.step += 1
        return self.world.actors[by % len(self.world.actors)].call(lane, name, *arguments)

    def _new(self, value: Any, by: int, lane: int, group: int | None = None) -> Sent:
        self.number += 1
        members = frozenset() if group is None else frozenset(self.members[group])
        return Sent(self.number, repr(value), by, lane, self.step + 1, group, members)

    def _message(self, sent: Sent, value: Any) -> dict[str, Any]:
        return {"n": sent.number, "value": value}

    def _joins(self, group: int, index: int) -> None:
        """Note a new member: messages in flight to its group may arrive, and fill it before later ones."""
        if index in self.members[group]:
            return
        self.members[group].add(index)
        channel = self.channels[index]
        for sent in self.under_way:
            if sent.group == group and index not in sent.members:
                channel.add(replace(sent, sure=False))
        self.lately = [(at, sent) for at, sent in self.lately if at > time.monotonic() - DOUBT]
        channel.doubtful |= {
            sent.number for _, sent in self.lately if sent.group == group and index not in sent.members
        }
        if channel.replay_ended == inf:
            channel.replayed |= channel.doubtful
        for sent in channel.waiting[max(self.capacity - len(channel.replayed), 0) :]:
            sent.sure = sent.sure and sent.arrived

    def _readable(self, channel: int, by: int) -> tuple[Channel, int]:
        """Return a channel, and an actor that may read it."""
        target = self.channels[channel % len(self.channels)]
        if target.owner is not None:
            return target, target.owner
        return target, by % len(self.world.actors)

    def _see_how_full(self, targets: list[Channel]) -> None:
        if any(target.most >= self.capacity for target in targets):
            self._settle()

    def _settle(self) -> None:
        """Let everything arrive: a message between actors arrives after all that its sender has sent before."""
        for by in self.world.senders:
            for to, name in enumerate(self.private):
                self._call(by, self._going(by, 0), "send", name, {"from": by})
                assert self._call(to, self._going(to, 1), "receive", name) == {"from": by}
            self._passed(by)
        for channel in self.channels:
            for sent in channel.waiting:
                sent.arrived = True
        self.under_way.clear()

    def _going(self, actor: int, loop: int) -> int:
        """Return a loop of an actor that is not blocked, the given one if possible."""
        return 1 - loop if self.blocked == (actor, loop) else loop

    def _passed(self, by: int) -> None:
        """Note that the exchange has published all messages that an actor has sent."""
        for sent in itertools.chain(self.under_way, *(channel.waiting for channel in self.channels)):
            if sent.actor == by:
                sent.passed = min(sent.passed, self.step)

    def _read_everything(self) -> None:
        """Check that every message that must arrive does, and no other one."""
        while self.readers:
            self._end_reading(0, cancel=True)
        self._settle()
        self._read_log()
        for sender in self.world.senders:
            self.world.actors[sender].log("the end")
            assert self._read_log(wait=True)[-1] == "the end"
        for index, channel in enumerate(self.channels):
            target, by = self._readable(index, 0)
            while any(sent.sure for sent in channel.waiting):
                target.take(self._call(by, 0, "receive", channel.name))
            if channel.owner is None:
                self._read_to_the_mark(channel)
            else:
                self._read_what_is_there(target, by)
        for actor in self.world.actors:
            dropped = actor.stats()["dropped"]
            # A forwarder counts what its queues refuse; with the embedded layer a process does so itself.
            expected = {"mailbox_full"} if self.world.topology == "dedicated" else {"mailbox_full", "queue_full"}
            assert dropped.keys() <= expected, dropped

    def _read_log(self, *, wait: bool = False) -> list[str]:
        """Read the lines of the log handlers, and check that each arrives once, in the order of its process.

        Args:
            wait: Whether to wait for the last line, "the end".
        """
        lines: list[str] = []
        while not wait or "the end" not in lines:
            message = self._call(0, 1, "receive" if wait else "peek", self.log)
            if message is Outcome.CANCELLED:
                break
            assert message["n"] > self.logged.get(message["from"], 0), message
            self.logged[message["from"]] = message["n"]
            lines.append(message["line"])
        return lines

    def _read_what_is_there(self, channel: Channel, by: int) -> None:
        while (message := self._call(by, 1, "peek", channel.name)) is not Outcome.CANCELLED:
            channel.take(message)

    def _read_to_the_mark(self, channel: Channel) -> None:
        mark = {"n": 0, "value": None}
        while self._call(0, 0, "send", channel.name, mark) is Outcome.FULL:
            channel.take(self._call(0, 0, "receive", channel.name))
        while (message := self._call(0, 0, "receive", channel.name)) != mark:
            channel.take(message)

    def teardown(self) -> None:
        """Read everything, and close the layers."""
        try:
            if self.channels:
                self._read_everything()
        finally:
            for actor in self.world.actors:
                actor.close()
            errors = [line for actor in self.world.actors for line in actor.errors()]
        assert not errors, "\n".join(errors)


class Outage:
    """The calls that begin while all connections are cut, at most one for each group and channel.

    Args:
        contract: The machine whose connections are cut.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._actors, self._channels, self._members = contract.world.actors, contract.channels, contract.members
        self._changed: set[tuple[int, int]] = set()
        self._may_get: list[set[int]] = [set(), set()]
        """Channels that are leaving each group, so that they may or may not get a message to it."""
        self._begun: list[tuple[int, int]] = []
        self._joining: list[tuple[int, int]] = []
        self._unknown: list[tuple[int, int]] = []

    def begin(self, call: str, group: int, channel: int, by: int, loop: int) -> None:
        """Begin one of `CALLS`."""
        index, by = channel % len(self._channels), by % len(self._actors)
        if call in ("renew", "renew and cancel", "discard") and (members := sorted(self._members[group])):
            index = members[channel % len(members)]
        if call == "send":
            self._send(group, by, loop)
        elif (group, index) not in self._changed:
            self._changed.add((group, index))
            owner = self._channels[index].owner
            if call in ("join", "renew"):
                self._begin_join(group, index, by, loop)
            elif call == "discard":
                self._discard(group, index, by, loop)
            elif call in ("join and cancel", "renew and cancel"):
                self._join_and_cancel(group, index, by if owner is None else owner, loop)
            else:
                self._begin_join(group, index, by if owner is None else owner, loop, twice=True)

    def end(self) -> None:
        """Wait until all calls that were begun have ended."""
        for by, handle in self._begun:
            assert self._actors[by].finish(handle) is None
        for group, index in self._joining:
            self._contract._joins(group, index)
        for group, index in self._unknown:
            self._contract._call(0, 0, "group_discard", self._contract.groups[group], self._channels[index].name)

    def _begin(self, by: int, loop: int, name: str, group: int, index: int, *more: Any) -> int:
        self._contract.step += 1
        arguments = self._contract.groups[group], self._channels[index].name, *more
        return int(self._actors[by].begin(loop, name, *arguments))

    def _begin_join(self, group: int, index: int, by: int, loop: int, *, twice: bool = False) -> None:
        """Add a member, or renew a membership, which remains valid meanwhile."""
        handle = self._begin(by, loop, *(("join_twice", group, index, 1) if twice else ("group_add", group, index)))
        self._begun.append((by, handle))
        self._joining.append((group, index))

    def _join_and_cancel(self, group: int, index: int, by: int, loop: int) -> None:
        """Begin to add a member, and cancel that: an existing membership remains, and no new one results.

        For a normal channel, it is unknown whether the request reaches the forwarder.
        """
        handle = self._begin(by, loop, "group_add", group, index)
        if self._actors[by].finish(handle, cancel=True) is None:
            self._contract._joins(group, index)
        elif self._channels[index].owner is None and index not in self._members[group]:
            self._unknown.append((group, index))
            self._may_get[group].add(index)

    def _discard(self, group: int, index: int, by: int, loop: int) -> None:
        """Remove a member: its own process does it at once, others when the connections are restored."""
        handle = self._begin(by, loop, "group_discard", group, index)
        if self._channels[index].owner == by:
            assert self._actors[by].finish(handle) is None
        else:
            self._begun.append((by, handle))
            self._may_get[group] |= self._members[group] & {index}
        self._members[group].discard(index)
        for sent in self._channels[index].waiting:
            sent.sure = sent.sure and (sent.arrived or sent.group != group)

    def _send(self, group: int, by: int, loop: int) -> None:
        """Send to a group if all of its members certainly have room."""
        contract, by = self._contract, by % len(self._contract.world.senders)
        members = [self._channels[index] for index in sorted(self._members[group])]
        others = [self._channels[index] for index in sorted(self._may_get[group])]
        if any(one.most >= contract.capacity for one in (*members, *others)):
            return
        sent = contract._new(None, by, loop, group)
        assert contract._call(by, loop, "group_send", contract.groups[group], contract._message(sent, None)) is None
        contract._sent_to_group(sent, members)
        for channel in others:
            channel.add(replace(sent, sure=False))


@pytest.fixture(params=TOPOLOGIES)
def world(request: pytest.FixtureRequest) -> Any:
    """Start the processes of a topology."""
    world = World(request.param)
    yield world
    world.end()


@pytest.mark.parametrize(
    "effort", [pytest.param(QUICK, id="quick"), pytest.param(THOROUGH, id="thorough", marks=pytest.mark.slow)]
)
def test_the_layer_keeps_the_contract(world: World, effort: settings) -> None:
    """The layer keeps its contract, whichever calls come in whichever order from whichever loop and process."""
    run_state_machine_as_test(cast(type[Contract], partial(Contract, world)), settings=effort)
