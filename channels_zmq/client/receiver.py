"""Group and direct messages that arrive, from the frame to the mailbox.

In the data-flow diagram this is between the client and the mailboxes. A repeated message is dropped; one behind a gap
waits for a moment, since the missing ones may still arrive. The payloads of a layer with encryption keys are opened
here, once for all local members of a group, and wait as plain bytes. Pure.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from channels_zmq.client.attachment import Attachment
from channels_zmq.client.counters import Counters
from channels_zmq.client.defaults import Defaults
from channels_zmq.client.gaps import Gaps
from channels_zmq.client.mailboxes import Mailbox, Mailboxes
from channels_zmq.client.memberships import Group, Memberships
from channels_zmq.client.output import Output
from channels_zmq.client.resumption import ON_THE_WAY
from channels_zmq.client.sequences import BEGINS, REPEATED, Runs
from channels_zmq.names import OwnNames
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import FLAG_AGAIN, FLAG_BATCH, Topic


class Opener(Protocol):
    """Opens payloads; None for one that was not sealed with a known key, or for another place."""

    def open_from_group(self, topic: bytes, sealed: bytes, /) -> bytes | None: ...  # noqa: D102

    def open_from_channel(self, channel: str, sealed: bytes, /) -> bytes | None: ...  # noqa: D102


class Receiver:
    """Receives the group and direct messages of one process.

    Args:
        inbox: Of this process.
        sender: 8 bytes that name it in sequence numbers.
        mailboxes: Take the messages.
        memberships: The groups that its channels belong to.
        gaps: Hold messages behind a gap.
        attachments: The exchanges that messages arrive from: the client's own list, which it changes.
        counters: Count received and dropped messages.
        out: Takes the readers to wake, and the frames that unsubscribe from groups whose last member has just ended.
        clock: Monotonic seconds.
        opener: Opens payloads; None if they are not sealed.
    """

    def __init__(
        self,
        inbox: bytes,
        sender: bytes,
        *,
        mailboxes: Mailboxes[Any],
        memberships: Memberships,
        gaps: Gaps,
        attachments: Sequence[Attachment],
        counters: Counters,
        out: Output,
        clock: Callable[[], float],
        opener: Opener | None,
    ) -> None:
        self.own_names = OwnNames(inbox)
        """The names of the process-specific channels that this process has made."""
        self.now = clock()
        """When the last message was taken."""
        self.own_order = 0
        """The order number of the last message that this process has sent to itself."""
        self._sender, self._mailboxes, self._memberships = sender, mailboxes, memberships
        self._gaps, self._attachments, self._counters, self._out = gaps, attachments, counters, out
        self._clock, self._opener = clock, opener
        self._direct_runs = Runs()
        self.use(Defaults())

    def use(self, defaults: Defaults) -> None:
        """Take the defaults of a layer."""
        self._capacity, self._max_ttl = defaults.capacity, defaults.max_ttl

    def clear(self) -> None:
        """Drop the held messages; a gap that an exchange has made by a flush does not count as a loss."""
        self._gaps.clear()
        self._direct_runs.restart()  # the exchange drops messages until all clients have answered

    # Group messages

    def take_group_batch(
        self, frame: bytes, topic: Topic, sender: bytes, number: int, flags: int, ttl: int, payloads: Iterable[bytes]
    ) -> Iterator[None]:
        """Take the group messages of one frame, one at each step."""
        flags &= ~FLAG_BATCH
        for each, payload in enumerate(payloads, number):
            self.take_group(frame, topic, sender, each, flags, ttl, payload)
            flags &= ~wire.FLAG_FIRST
            yield

    def take_group(
        self, frame: bytes, topic: Topic, sender: bytes, number: int, flags: int, ttl: int, payload: bytes
    ) -> None:
        """Take a group message, whose group may have no member here."""
        group = self._memberships.groups.get(topic)
        if group is None:
            return
        missing = group.runs.see(sender, number, flags)
        if missing or flags >= FLAG_AGAIN:
            self._exceptional(frame, topic, sender, number, flags, missing, ttl, payload)
        else:
            self._deliver_to(group, topic, ttl, payload)
            if self._gaps.frames:
                self._gaps.closed_up(group.runs, sender)

    def deliver_group(self, topic: Topic, ttl: int, payload: bytes, published: float | None = None) -> None:
        """Put a group message into the mailboxes of its members.

        Args:
            topic: Of the group.
            ttl: Milliseconds that it may wait to be read.
            payload: Sealed if the layer has encryption keys.
            published: When a message was first sent that arrives late: members that joined after that do not get it.
                None for one that was sent just now.
        """
        group = self._memberships.groups.get(topic)
        if group is not None:
            self._deliver_to(group, topic, ttl, payload, published)

    def _deliver_to(self, group: Group, topic: Topic, ttl: int, payload: bytes, published: float | None = None) -> None:
        now = self.now = self._clock()
        if now >= self._memberships.ends.next:
            self._out.send_upstream(self._memberships.end_due(now))
            if not group.members:
                return
        if self._opener is not None:
            opened = self._opener.open_from_group(topic, payload)
            if opened is None:
                self._counters.drop("undecryptable")
                return
            payload = opened
        boxes: Collection[Mailbox[Any]] = group.members
        if published is not None:
            boxes = [box for box, membership in group.members.items() if membership.joined <= published]
        if ttl > self._max_ttl:
            ttl = self._max_ttl
        self._mailboxes.deliver_group(boxes, now + ttl / 1000, payload, self._out.wake)
        self._counters.received += 1

    def _exceptional(
        self,
        frame: bytes,
        topic: Topic,
        sender: bytes,
        number: int,
        flags: int,
        missing: int,
        ttl: int,
        payload: bytes,
    ) -> None:
        """Take a group message that is behind a gap, repeated, sent again, or the first one seen of its run.

        Unless it is repeated, it is for the members that had joined when it was sent first, or when it arrived behind a
        gap. The former is known but for the time on the way. In doubt a member gets the message, unless it has most
        likely got it before.
        """
        if missing == REPEATED:
            self._repeated(sender)
            return
        published = self._clock() - wire.age_of(frame) / 1000
        if flags & wire.FLAG_ACKNOWLEDGED:
            published -= ON_THE_WAY
        deliver = partial(self._deliver_group_until, self._deadline(ttl), topic, payload, published)
        runs = self._memberships.groups[topic].runs
        if missing:
            self._out_of_order(runs, sender, number, missing, len(payload), deliver)
        else:
            deliver()
            self._gaps.closed_up(runs, sender)

    def older_than_subscription(self, topic: Topic, number: int) -> None:
        """Ignore an own message that was sent before this process subscribed and is published only now."""
        group = self._memberships.groups.get(topic)
        if group is not None:
            group.floor = number
            group.runs.start_after(self._sender, number)

    # Direct messages

    def take_direct(self, frame: bytes) -> Iterator[None] | None:
        """Take a direct message, or return an iterator that takes those of a batch, one at each step.

        Raises:
            FrameError: If the frame is malformed.
        """
        sender, number, flags, ttl, body = wire.read_direct(frame)
        if flags & FLAG_BATCH:
            return self._take_direct_batch(sender, number, flags, ttl, wire.batch_bodies(body))
        self._take_direct(sender, number, flags, ttl, body)
        return None

    def _take_direct_batch(
        self, sender: bytes, number: int, flags: int, ttl: int, bodies: Iterable[bytes]
    ) -> Iterator[None]:
        for each, body in enumerate(bodies, number):
            try:
                self._take_direct(sender, each, flags, ttl, body)
            except wire.FrameError:
                self._counters.drop("malformed")
            flags &= ~wire.FLAG_FIRST
            yield

    def _take_direct(self, sender: bytes, number: int, flags: int, ttl: int, body: bytes) -> None:
        missing = self._direct_runs.see(sender, number, flags)
        if missing == REPEATED:
            self._repeated(sender)
            return
        channel, payload = wire.channel_and_payload(body)
        if missing:
            deliver = partial(self._deliver_direct_until, self._deadline(ttl), sender, channel, payload)
            self._out_of_order(self._direct_runs, sender, number, missing, len(payload), deliver)
            return
        self._deliver_direct(sender, channel, ttl, payload)
        if self._gaps.frames:
            self._gaps.closed_up(self._direct_runs, sender)

    def _deliver_direct(self, sender: bytes, channel: str, ttl: int, payload: bytes) -> None:
        box = self._mailboxes.boxes.get(channel)
        if box is None:
            if channel not in self.own_names:
                self._counters.drop("unroutable")
                return
        elif box.in_flight and sender == self._sender:
            box.in_flight.popleft()
        self._deliver(channel, box, ttl, payload)

    def _deliver(self, channel: str, box: Mailbox[Any] | None, ttl: int, payload: bytes) -> None:
        if self._opener is not None:
            opened = self._opener.open_from_channel(channel, payload)
            if opened is None:
                self._counters.drop("undecryptable")
                return
            payload = opened
        if box is None:  # not made before: a payload that cannot be opened must not take memory
            box = self._mailboxes.open(channel, self._capacity(channel))
        now = self.now = self._clock()
        if ttl > self._max_ttl:
            ttl = self._max_ttl
        waiter = self._mailboxes.deliver(box, (now + ttl / 1000, payload, None))
        if waiter is not None:
            self._out.wake.append(waiter)
        self._counters.received += 1

    # Direct messages of this process

    def deliver_own(self, channel: str, ttl: int, payload: bytes, capacity: int) -> bool:
        """Put a direct message of this process into a mailbox; return False if it is full."""
        box = self._mailboxes.open(channel, capacity)
        if self._mailboxes.is_full(box):
            return False
        self._deliver(channel, box, ttl, payload)
        return True

    def sent_to_own(self, box: Mailbox[Any]) -> None:
        """Note that a direct message to a channel of this process is in flight."""
        self.own_order += 1
        self._mailboxes.sent(box, self.own_order)

    # Repetitions and gaps; a message ages while it waits behind a gap

    def _deadline(self, ttl: int) -> float:
        return self._clock() + min(ttl, self._max_ttl) / 1000

    def _deliver_group_until(self, deadline: float, topic: Topic, payload: bytes, published: float) -> None:
        self.deliver_group(topic, wire.milliseconds(deadline - self._clock()), payload, published)

    def _deliver_direct_until(self, deadline: float, sender: bytes, channel: str, payload: bytes) -> None:
        self._deliver_direct(sender, channel, wire.milliseconds(deadline - self._clock()), payload)

    def _repeated(self, sender: bytes) -> None:
        """Drop a repeated message."""
        self.now = self._clock()  # a turn has to end, even if it delivers nothing
        if sender != self._sender:  # else this process sent it before it joined
            self._counters.repeated += 1

    def _out_of_order(
        self, runs: Runs, sender: bytes, number: int, missing: int, size: int, deliver: Callable[[], None]
    ) -> None:
        """Hold a message before which others may still arrive.

        Messages missing in a gap may arrive by another exchange. Or the connection was cut a moment ago and this
        process has not noticed it yet: then they are replayed. Messages missing before the first one of a run can
        arrive only by another exchange, or by a replay that was requested already.
        """
        self.now = self._clock()  # a turn has to end, even if it delivers nothing
        has_two_ways = len(self._attachments) > 1
        if missing == BEGINS and not (has_two_ways or self._gaps.awaits_replay or self._gaps.holds(runs, sender)):
            runs.skip_to(sender, number)
            deliver()
        elif not self._gaps.hold(runs, sender, number, size, deliver, begins=missing == BEGINS):
            self._counters.repeated += 1
