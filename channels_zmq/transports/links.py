"""All forwarders of a layer as one transport: connected to all, subscribed at all, reading from all.

In the data-flow diagram this is the fan of arrows between a process and its forwarders. Each topic is sent by its home
(`homes`). When a link fails, the next homes send its unacknowledged messages again, with the same numbers and before
anything newer. While no link is up, messages wait in the lobby. For the rules and measurements see docs/design/0007.

One descriptor stands for all links: that of a selector which watches their sockets.
"""

import logging
import selectors
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import zmq

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.batch import Batch
from channels_zmq.client.client import Client
from channels_zmq.client.counters import LinkStats
from channels_zmq.client.output import LinkLost, SessionFrame
from channels_zmq.errors import ConfigurationError, OutboxFull, WireVersionMismatch
from channels_zmq.housekeeper import Watched
from channels_zmq.options import Options
from channels_zmq.transports.discovery import Bootstrap, Lookup
from channels_zmq.transports.homes import ROTATE_EVERY, Homes
from channels_zmq.transports.link import Link
from channels_zmq.transports.outbox import Held, Kind, Ledger, Outbox
from channels_zmq.transports.roster import Forwarder, Roster
from channels_zmq.transports.states import State
from channels_zmq.transports.subscriber import Socket, Subscriber
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import KnownForwarder, Topic

REACHED_WITHIN = 10.0
"""Seconds after which a forwarder is used although others have more clients, since some may be unable to reach it."""


@dataclass(slots=True)
class _Outage:
    """The time when the last link went down, and the number of messages lost until then."""

    since: float
    lost_before: int


class Links:
    """One process at all forwarders of a layer.

    Args:
        forwarders: As CONFIG gives them.
        options: Bounds and times.
        client: Takes the frames that arrive.
        call_soon: Arranges for `tick` at a time at the latest.
    """

    must_confirm = True
    is_alone = False
    is_bound = False

    def __init__(
        self,
        forwarders: Sequence[Forwarder],
        options: Options,
        client: Client,
        call_soon: Callable[[float], None],
    ) -> None:
        self.address = ", ".join(map(str, forwarders))
        self.holds_back = False
        self._options, self._client, self._call_soon = options, client, call_soon
        self._bootstrap = Bootstrap(forwarders, options.resolve_every)
        self._lookup = Lookup(self._resolve)
        self._has_resolved = False
        self._context: zmq.Context[Socket] = zmq.Context()
        self._selector = selectors.DefaultSelector()
        self._inputs: set[int] = set()  # the descriptors of all subscribers
        self._links: dict[Forwarder, Link] = {}
        self._by_attachment: dict[Attachment, Link] = {}
        self._homes: Homes[Link] = Homes(self._was_used)
        self._ledger = Ledger(options.outbox_capacity, options.outbox_bytes)
        self._lobby = Outbox(self._ledger)
        self._batch = Batch(time.monotonic)
        self._outage: _Outage | None = None
        self._own_prefix = wire.direct_prefix(client.inbox)
        self._rotate_at = 0.0
        self._rotated = 0.0, 0  # when homes were forgotten last, and the order of the last message held until then
        self._roster = Roster(self._bootstrap)
        self._doubles: list[tuple[Link, Link]] = []  # of two links to one forwarder the one to remove, and the other
        self._list_told = b""
        self._has_news = False  # whether the set of forwarders may have changed
        self._has_reported_problem = False

    # Opening and closing

    def start(self) -> None:
        """Connect to all forwarders whose addresses need not be resolved.

        Raises:
            ConfigurationError: If an address or a key is invalid.
        """
        try:
            for forwarder in self._bootstrap.literal:
                self._add(forwarder)
        except ConfigurationError:
            self._context.destroy(linger=0)
            raise

    def _add(self, forwarder: Forwarder) -> None:
        link = Link(
            forwarder,
            self._context,
            self._options,
            self._client,
            self._ledger,
            self,
            self._call_soon,
            self._known_to_hello,
        )
        try:
            link.start()
        except ConfigurationError:
            self._client.detach(link.attachment)
            raise
        self._links[forwarder] = self._by_attachment[link.attachment] = link

    def _remove(self, link: Link) -> None:
        del self._links[link.forwarder], self._by_attachment[link.attachment]
        if link.state is State.UP:
            self.went_down(link)
        link.close()
        self._client.detach(link.attachment)
        self._has_news = True

    def watch(self, subscriber: Subscriber) -> None:
        """Let event loops watch a subscriber."""
        self._selector.register(subscriber.descriptor, selectors.EVENT_READ)
        self._inputs.add(subscriber.descriptor)

    def unwatch(self, subscriber: Subscriber) -> None:
        """Let no event loop watch a subscriber that is about to be closed."""
        self._selector.unregister(subscriber.descriptor)
        self._inputs.remove(subscriber.descriptor)

    @property
    def is_connected(self) -> bool:
        """Whether messages are sent now rather than held."""
        return bool(self._homes.serving)

    @property
    def refusal(self) -> str:
        """Why a forwarder has not accepted this process, or was not found, as far as is known."""
        return self._bootstrap.problem or next((one.refusal for one in list(self._links.values()) if one.refusal), "")

    @property
    def descriptor(self) -> int | None:
        """The descriptor that event loops watch for input; None on Windows, whose selectors have none."""
        return self._selector.fileno() if hasattr(self._selector, "fileno") else None

    @property
    def inputs(self) -> Collection[int]:
        """The descriptors of the sockets that input arrives by."""
        return tuple(self._inputs)

    @property
    def held(self) -> int:
        """How many messages wait to be sent, or to be acknowledged, jobs that go back by PUSH included."""
        return len(self._batch.bodies) + len(self._lobby) + sum(link.held for link in list(self._links.values()))

    def stats(self) -> list[LinkStats]:
        """Return the state of each link."""
        return [link.stats(carries=link in self._homes.serving) for link in list(self._links.values())]

    def producer(self) -> "Links":
        """Return this transport: every client of a forwarder may send."""
        return self

    promote = producer

    def watched(self) -> Watched:
        """Return the monitors of all sockets."""
        monitors = {}
        for link in self._links.values():
            monitors.update(link.monitors())
        return Watched(monitors)

    def close(self) -> None:
        """Send held messages as far as possible, and close the sockets."""
        self.send_batch()
        for link in self._links.values():
            link.say_goodbye()
            link.close()
        self._selector.close()

    def terminate(self) -> None:
        """Wait until what was sent is delivered, at most the linger time."""
        self._context.term()

    def abandon(self) -> None:
        """Do nothing: a forked child has nothing here to release."""

    # Sending

    def publish_group(self, topic: bytes, payload: bytes, ttl: int) -> bool:
        """Send a group message, hold it, or add it to a batch; return whether it begins a batch.

        Raises:
            OutboxFull: If no more messages are held.
        """
        batch = self._batch
        if batch.bodies:
            if batch.add(topic, payload, ttl):
                return False
            self.send_batch()
        link = self._homes.only or self._homes.of(topic)
        if link is not None and (link.passes or link.make_room()):
            batch.alone -= 1
            if batch.alone < 0 and link.takes_batches and batch.begin(topic, payload, ttl):
                return True
            if link.publish(topic, payload, ttl):
                return False
        now = time.monotonic()
        self._hold(link, Held(now + ttl / 1000, topic, payload), now)
        return False

    def publish_direct(self, owner: bytes, channel: str, payload: bytes, ttl: int) -> bool:
        """Send a direct message, hold it, or add it to a batch; return whether it begins a batch.

        Raises:
            OutboxFull: If no more messages are held.
        """
        return self.publish_group(wire.direct_prefix(owner), wire.direct_body(channel, payload), ttl)

    def send_batch(self) -> None:
        """Send the messages that wait for the end of the turn, or hold them, even beyond the bounds of the outbox."""
        batch = self._batch
        if not batch.bodies:
            return
        topic, bodies, ttl = batch.prefix, batch.take(), batch.ttl
        link = self._homes.only or self._homes.of(topic)
        is_sent = (
            link is not None
            and link.takes_batches
            and (link.passes or link.make_room())
            and link.publish(topic, wire.batch(bodies), ttl, len(bodies), wire.FLAG_BATCH) > 0
        )
        if not is_sent:
            now = time.monotonic()
            for body in bodies:
                self._hold(link, Held(now + ttl / 1000, topic, body), now, must=True)

    def publish_own(self, channel: str, payload: bytes, ttl: int, capacity: int) -> bool | None:
        """Send a message to a channel of this process by a forwarder, so that it keeps its place among others.

        Returns:
            False if the channel is full. None if this is unknown until the messages in flight have arrived.

        Raises:
            OutboxFull: If no more messages are held.
        """
        client = self._client
        box = client.mailboxes.open(channel, capacity)
        if client.mailboxes.is_full(box):
            return False
        if box.in_flight and len(box.mail) + len(box.in_flight) >= capacity:
            return None if self.is_connected else False
        self.publish_group(self._own_prefix, wire.direct_body(channel, payload), ttl)
        self.send_batch()
        client.receiver.sent_to_own(box)
        return True

    def send_upstream(self, frame: bytes, to: Attachment | None = None) -> bool:
        """Send a frame by the XSUB of one link, or of all; return whether input is there now."""
        self.send_batch()
        if to is None:
            return sum([link.send_upstream(frame) for link in self._links.values()]) > 0
        link = self._by_attachment.get(to)
        return link is not None and link.is_connected and link.send_upstream(frame)

    def send_downstream(
        self,
        frame: bytes,
        deadline: float,
        number: int,
        key: bytes = b"",
        *,
        must: bool = False,
    ) -> bool:
        """Send a frame by the PUSH of the home of a key, or hold it; see `Transport`."""
        self.send_batch()
        link = self._homes.of(key)
        if link is None and number:
            self._check_versions()
        if link is None or not link.send_request(frame, number):
            now = time.monotonic()
            self._hold(link, Held(deadline, key, frame, Kind.REQUEST, number, published=now), now, must=must)
        return False

    def send_to(self, to: Attachment, frame: bytes) -> bool:
        """Send a frame to one forwarder behind everything that was sent to it; return whether input is there now.

        If PUSH has no connection, no frame is on its way by it any more, and the XSUB sends.
        """
        self.send_batch()
        link = self._by_attachment.get(to)
        if link is None or (link.state is State.UP and link.send(frame)):
            return False
        return link.send_upstream(frame)

    def _check_versions(self) -> None:
        for link in self._links.values():
            if link.other_version is not None:
                raise WireVersionMismatch(link.address, link.other_version, wire.VERSION)

    # Holding

    def _hold(self, link: Link | None, held: Held, now: float, *, must: bool = False) -> None:
        """Hold a message at its link, or in the lobby.

        Raises:
            OutboxFull: If no more messages are held.
        """
        outbox = self._lobby if link is None else link
        if not outbox.hold(held, now, must=must):
            raise OutboxFull(self.address, self._ledger.count, self._ledger.full_by(held.body))

    def subscribed(self, topic: Topic) -> None:
        """Note that messages held now are older than the subscription to their topic."""
        self._ledger.subscribed(topic)

    def withdraw(self, number: int) -> None:
        """Drop a held request."""
        if not self._ledger.count:
            return
        holders: tuple[Outbox | Link, ...] = (self._lobby, *self._links.values())
        for holder in holders:
            if holder.withdraw(number):
                return

    def drop_held(self) -> None:
        """Drop all held messages."""
        self._batch.take()
        self._lobby.clear()
        for link in self._links.values():
            link.drop_held()

    def mark_now(self) -> None:
        """Request the acknowledgement of all frames now."""
        self.send_batch()
        for link in self._links.values():
            link.mark_now()

    # Receiving

    def has_input(self) -> bool:
        """Return whether a frame can be read, or may be there to be read."""
        return any(link.has_input() for link in self._links.values())

    def is_behind(self, now: float, since: float) -> bool:
        """Return whether messages that were published before a time may still arrive, which probes find out."""
        return sum([link.is_behind(now, since) for link in self._links.values()]) > 0  # each one sends its probe

    def read(self) -> bool:
        """Feed the client for one turn of each link; return whether more input may be there."""
        if self._batch.bodies:
            self.send_batch()
        has_more = False
        for link in self._links.values():
            if link.downlink.read():
                has_more = True
        if self._client.gaps.beginnings and not has_more:
            # A welcome of this turn may list another forwarder, which earlier messages may still arrive from.
            has_more = self.has_input() or bool(self._client.out.session)
            if not has_more:
                self._client.gaps.all_is_read()
        return has_more

    # Changes of links

    def take_session(self, frames: Sequence[tuple[Attachment, SessionFrame]]) -> None:
        """Take welcomes, and the answers to echoes and markers."""
        for attachment, frame in frames:
            link = self._by_attachment.get(attachment)
            if link is None:
                continue
            if isinstance(frame, wire.Welcome) and frame.session != link.session:
                self._drop_double(link, [one for one in self._links.values() if one.session == frame.session])
            link.take_session(frame)

    def may_be_used(self, link: Link) -> bool:
        """Return whether other clients may send by a forwarder that this process has not reached yet.

        They do not if a forwarder that has welcomed this process does not list it: then no client is connected to it,
        and those that connect wait until this process is connected, too (`_serve`).
        """
        others = [one for one in self._links.values() if one is not link and one.welcome is not None]
        return not others or any(_lists(one, link) for one in others)

    def came_up(self, link: Link) -> None:
        """Send by a link from now on, unless other clients have yet to reach its forwarder."""
        self._has_news = True
        self._serve()
        self._flush()

    def went_down(self, link: Link) -> None:
        """Stop sending by a link. Its messages that may be lost are sent again, first and in order."""
        self._has_news = True
        self._serve()
        if not self.is_connected and self._outage is None:
            self._outage = _Outage(time.monotonic(), self._client.counters.lost())
            self._client.out.change(LinkLost())
        if self.is_connected:
            self._flush()
        self._bootstrap.hurry()

    def _serve(self) -> None:
        """Update the homes. When a link ceases to be one, the next homes send its messages again that may be lost."""
        before = self._homes.serving
        self._homes.serve(self._suitable_homes(before, time.monotonic()))
        for link in before:
            if link not in self._homes.serving:
                self._move(link.take())
        if self.is_connected:
            self._move(self._lobby.take())
            if self._outage is not None:
                self._end_outage(self._outage)

    def _suitable_homes(self, before: list[Link], now: float) -> list[Link]:
        """Return the links that are up, and whose forwarders all other clients have reached.

        The other forwarders must list it: a process that has just started may know only one of them, learns of this one
        by its first welcome, and subscribes there before its first `group_add` returns. And it must have at least the
        clients of each other one: running clients have to learn of it, too, within `REACHED_WITHIN`. So no home is
        chosen while a link is about to come up, for its forwarder may be the one that has the clients.

        If there is none, the former homes remain that are up, or one that is up becomes the only home.

        Args:
            before: The present homes.
            now: Monotonic seconds.
        """
        links = [one for one in self._links.values() if not self._roster.ignores(one.forwarder)]
        up = [one for one in links if one.state is State.UP]
        is_settled = not any(one.is_coming(now) for one in links)
        for link in up:
            others = [one for one in links if one is not link and one.welcome is not None]
            counts = [one.welcome.clients for one in others if one.welcome is not None]
            has_clients = link.attachment.clients >= max(counts, default=0)
            is_reached = is_settled and has_clients and all(_lists(one, link) for one in others)
            if is_reached or now >= link.up_since + REACHED_WITHIN:
                link.is_reached = True
        homes = [link for link in up if link.is_reached] or [link for link in before if link in up]
        return homes or (up[:1] if is_settled else [])

    def _end_outage(self, outage: _Outage) -> None:
        """Announce that a forwarder can be reached again. Held messages follow the announcement."""
        self._outage = None
        self._client.outage_ended(self._client.counters.lost() - outage.lost_before or None)
        self.holds_back = True
        self._call_soon(0.0)  # `tick` sends the held messages

    def _move(self, messages: list[Held]) -> None:
        """Hold messages at their next homes."""
        now = time.monotonic()
        for held in messages:
            self._hold(self._homes.of(held.key), held, now, must=True)

    def _flush(self) -> None:
        for link in self._links.values():
            if not link.passes:
                link.flush()

    def _was_used(self, key: bytes) -> bool:
        # A held message may have no number yet.
        return self._ledger.count > 0 or not key.endswith((b"\0", b"\0d")) or self._client.numbers.last(key) > 0

    # Discovery

    def welcomed(self, link: Link, welcome: wire.Welcome) -> None:
        """Learn of forwarders that other processes know."""
        self._has_news = True
        try:
            known = wire.decode_forwarders(welcome.forwarders)
            listed = {Forwarder(one.pull.decode(), one.pub.decode()): one.instance.decode() for one in known}
        except (wire.FrameError, UnicodeDecodeError):
            self._client.counters.drop("malformed")
            listed = {}
        link.listed = listed or None
        same = [one for one in self._links.values() if one is not link and _instance(one) == welcome.instance]
        self._drop_double(link, same)
        self._read_lists(time.monotonic())
        self._connect_to_all()
        if link.state is State.UP:
            self._serve()

    def _read_lists(self, now: float) -> None:
        """Learn from the last welcomes which forwarders others know; log once if their CONFIG lists different ones."""
        links = self._links.values()
        # A listed address may be another one of a forwarder that has not reported its instance yet.
        instances = None if any(one.is_greeting(now) for one in links) else {_instance(one).hex() for one in links}
        for link in links:
            if link.welcome is not None and link.listed is not None:
                self._roster.learn(link.listed, self._links, instances, now)
        if others := self._roster.differing():
            self._client.counters.report(
                logging.WARNING,
                "processes of this layer list different forwarders: here %s; elsewhere also %s",
                ", ".join(map(str, self._bootstrap.literal)),
                ", ".join(map(str, others)),
            )

    def _drop_double(self, link: Link, same: list[Link]) -> None:
        """Ignore a link or one of those to the same forwarder, which is known by several addresses.

        A forwarder has one session for this process, that of the later hello, and answers both links with its welcome.
        `tick` removes the link that is ignored, and begins a new session by the other one if its own was the earlier.
        """
        for other in same:
            if self._roster.ignores(link.forwarder) or self._roster.ignores(other.forwarder):
                continue
            ignored = self._roster.ignore_double(link.forwarder, other.forwarder, time.monotonic())
            self._doubles.append((link, other) if link.forwarder == ignored else (other, link))
            self._serve()
            self._call_soon(0.0)
            return

    def _connect_to_all(self) -> None:
        """Connect to all forwarders that CONFIG or another process lists."""
        for forwarder in self._roster.wanted():
            if forwarder in self._links or len(self._links) >= wire.MAX_FORWARDERS:
                continue
            try:
                self._add(forwarder)
            except ConfigurationError as error:
                self._roster.ignore(forwarder, time.monotonic())
                self._client.counters.report(logging.ERROR, "%s", error)

    def _known_to_hello(self) -> bytes:
        """Return the list for a hello: the forwarders that this process is connected to."""
        known = (
            KnownForwarder(
                link.forwarder.pull.encode(),
                link.forwarder.pub.encode(),
                link.state is State.UP,
                _instance(link).hex().encode(),
            )
            for link in self._links.values()
            if link.is_connected and not self._roster.ignores(link.forwarder)
        )
        return wire.encode_forwarders(wire.listed(known))

    def _tell_others(self) -> None:
        """Repeat the hello at every forwarder if the list that it carries has changed."""
        known = self._known_to_hello()
        if known != self._list_told:
            self._list_told = known
            for link in self._links.values():
                if link.welcome is not None and link.state is not State.DRAINING:
                    link.say_hello()

    def _forget(self, now: float) -> None:
        """Remove links to unreachable forwarders that no process lists."""
        self._read_lists(now)
        self._roster.forget(now)
        for link in list(self._links.values()):
            if link.state is State.DOWN and link.forwarder not in self._roster:
                self._remove(link)

    def _remove_doubles(self) -> None:
        while self._doubles:
            double, kept = self._doubles.pop(0)
            self._remove(double)
            if kept.forwarder in self._links and kept.is_connected and kept.session < double.session:
                kept.greet()

    # Housekeeping

    def tick(self, now: float) -> float:
        """Do what is due at every link; return when to be called again."""
        self.holds_back = False
        self._remove_doubles()
        if self._has_resolved:
            self._take_resolved()
        if now >= self._rotate_at:
            self._rotate_homes(now)
            self._forget(now)
            self._serve()
            self._has_news = True
        elif not self.is_connected:
            self._serve()
        if self._has_news:
            self._connect_to_all()
        due = min((link.tick(now) for link in list(self._links.values())), default=now + ROTATE_EVERY)
        self._client.counters.drop("outbox_expired", self._lobby.expire(now))
        if self._has_news:
            self._has_news = False
            self._tell_others()
        return min(due, self._rotate_at)

    def _rotate_homes(self, now: float) -> None:
        before, order = self._rotated
        self._homes.rotate([link for link in self._links.values() if link.is_busy_since(before, order)])
        self._rotated, self._rotate_at = (now, self._ledger.order), now + ROTATE_EVERY

    def look_around(self) -> None:
        """Read keys again, and let names be resolved where that is due."""
        for link in list(self._links.values()):
            link.look_around()
        if not self.is_connected:  # a successor may be there at any moment
            self._bootstrap.hurry()
        if self._bootstrap.is_due:
            self._lookup.begin()

    def _resolve(self) -> None:
        self._bootstrap.look()
        self._has_resolved = True
        self._call_soon(0.0)

    def _take_resolved(self) -> None:
        """Take the addresses that names resolve to now, and log once that a name cannot be resolved."""
        self._has_resolved = False
        problem = self._bootstrap.problem
        if problem and not self._has_reported_problem:
            self._client.counters.report(logging.WARNING, "%s", problem)
        self._has_reported_problem = bool(problem)
        self._has_news |= any(one not in self._links for one in self._bootstrap.known)


def _instance(link: Link) -> bytes:
    return link.welcome.instance if link.welcome is not None else b""


def _lists(link: Link, other: Link) -> bool:
    """Return whether a forwarder lists another one; one of an older release has no list, and counts as if it did."""
    return link.listed is None or other.forwarder in link.listed
