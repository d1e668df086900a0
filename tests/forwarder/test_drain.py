"""The drain of an exchange: it returns its messages to clients before it ends."""

import random
from collections import Counter, deque
from collections.abc import Iterable

import pytest
from fakes import Clock

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.drain import RETURNS_WITHIN, WINDOW, Outcome
from channels_zmq_forwarder.exchange import ANNOUNCE_EVERY, Exchange, Frames
from channels_zmq_forwarder.wire import KnownForwarder, State, Status

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
LIST = wire.encode_forwarders([KnownForwarder(b"tcp://one:1", b"tcp://one:2", False)])
SECONDS = 10.0


class Draining(Exchange):
    """An exchange as its clients use it."""

    def __init__(self, clock: Clock, instance: bytes = b"instance") -> None:
        super().__init__(instance, history_bytes=10_000, clock=clock)
        self.clock = clock
        self.enter(State.SERVING)

    def connect(self, inbox: bytes, session: int = 1, forwarders: bytes = LIST) -> Frames:
        self.upstream(wire.subscription(wire.inbox_topic(inbox)))
        return self.upstream(wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, session, 0, forwarders)))

    def disconnect(self, inbox: bytes) -> Frames:
        return self.upstream(wire.unsubscription(wire.inbox_topic(inbox)))

    def send(self, *payloads: bytes, channel: bytes = b"jobs", ttl: int = 60_000) -> None:
        for payload in payloads:
            self.inbound(wire.ENQUEUE.encode(wire.Enqueue(A, 1, ttl, 10**6, channel, payload)))

    def begin(self) -> Frames:
        return self.drain(self.clock() + SECONDS)

    def detach(self, inbox: bytes, session: int = 1) -> list[bytes]:
        frame = wire.DETACH.encode(wire.Detach(inbox, session))
        return [*self.inbound(frame), *self.upstream(frame)]

    def taken(self, inbox: bytes, ordinal: int, session: int = 1) -> Frames:
        return self.upstream(wire.TAKEN.encode(wire.Taken(inbox, session, ordinal)))


@pytest.fixture
def exchange(clock: Clock) -> Draining:
    return Draining(clock)


class Process:
    """A client of two exchanges, of which the first drains; the frames that it sends are in flight until `deliver`."""

    def __init__(self, inbox: bytes, one: Draining, other: Draining) -> None:
        self.inbox, self.one, self.other = inbox, one, other
        self.push: deque[bytes] = deque()
        self.xsub: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.elsewhere: deque[bytes] = deque()
        self.jobs: list[wire.Job] = []
        self.has_detached = False
        self.sends = iter(range(100))
        one.connect(inbox)
        self.xsub.append(wire.READY.encode(wire.Ready(inbox, 1, 2, 0, 0, 0, b"0")))

    def send(self) -> None:
        """Send a message for a normal channel, to the first exchange until that drains."""
        number = next(self.sends, None)
        if number is not None:
            payload = b"%b %d" % (self.inbox, number)
            frame = wire.ENQUEUE.encode(wire.Enqueue(self.inbox, 1, 60_000, 10**6, b"%d" % (number % 7), payload))
            (self.elsewhere if self.has_detached else self.push).append(frame)

    def receive(self) -> None:
        if not self.down:
            return
        frame = self.down.popleft()
        if wire.sub_kind(frame) == wire.JOB.kind:
            self.jobs.append(wire.JOB.decode(frame))
        elif wire.sub_kind(frame) == wire.WELCOME.kind and wire.WELCOME.decode(frame).state == State.DRAINING:
            for job in self.jobs:
                back = wire.Back(self.inbox, job.number, job.ttl, job.channel, job.payload)
                self.xsub.append(wire.BACK.encode(back))
            self.has_detached = True
            for way in (self.push, self.xsub):
                way.append(wire.DETACH.encode(wire.Detach(self.inbox, 1)))
        elif wire.sub_kind(frame) == wire.RETURNED.kind:
            message = wire.RETURNED.decode(frame)
            back = wire.Back(self.inbox, message.number, message.ttl, message.channel, message.payload)
            self.elsewhere.append(wire.BACK.encode(back))
            self.xsub.append(wire.TAKEN.encode(wire.Taken(self.inbox, 1, message.ordinal)))

    def deliver(self, way: deque[bytes]) -> Frames:
        """Let a frame arrive; return the frames that the first exchange publishes."""
        if not way:
            return ()
        if way is self.elsewhere:
            self.other.inbound(way.popleft())
            return ()
        return (self.one.upstream if way is self.xsub else self.one.inbound)(way.popleft())

    @property
    def is_quiet(self) -> bool:
        return not (self.push or self.xsub or self.down or self.elsewhere)


def returned(frames: Iterable[bytes]) -> list[wire.Returned]:
    """Return the returned messages among frames."""
    return [wire.RETURNED.decode(frame) for frame in frames if wire.sub_kind(frame) == wire.RETURNED.kind]


def payloads(frames: Iterable[bytes], inbox: bytes = A) -> list[bytes]:
    return [message.payload for message in returned(frames) if message.inbox == inbox]


def test_draining_is_reported_to_all_clients(exchange: Draining) -> None:
    """Draining is reported to all clients; a client that connects later learns it from its welcome."""
    exchange.connect(A)
    assert [wire.WELCOME.decode(frame).state for frame in exchange.begin()] == [State.DRAINING]
    assert wire.WELCOME.decode(exchange.connect(B)[0]).state == State.DRAINING


def test_draining_is_reported_again_while_a_client_has_not_detached(exchange: Draining, clock: Clock) -> None:
    """Draining is reported again while a client has not detached: a welcome may be lost at XPUB's high-water mark."""
    exchange.connect(A)
    exchange.announce()
    exchange.begin()
    assert exchange.announce() == []
    clock.now += ANNOUNCE_EVERY
    assert [wire.WELCOME.decode(frame).state for frame in exchange.announce()] == [State.DRAINING]
    exchange.detach(A)
    clock.now += ANNOUNCE_EVERY
    assert exchange.announce() == []


def test_without_a_client_that_takes_part_it_is_over_at_once(exchange: Draining) -> None:
    """Without a client that takes part the drain is over at once: one that lists no forwarders would never detach."""
    exchange.connect(A, forwarders=b"")
    exchange.send(b"1")
    assert not exchange.is_drained
    assert returned(exchange.begin()) == []
    assert exchange.is_drained
    assert exchange.end() == Outcome(0, 0, 1)
    assert exchange.drops == {"not_returned": 1}


def test_messages_are_returned_once_all_clients_have_detached_both_ways(exchange: Draining) -> None:
    """Messages are returned once all clients have detached from both ports.

    Until then messages and jobs may arrive that belong before others.
    """
    exchange.connect(A)
    exchange.connect(B)
    exchange.send(b"1")
    exchange.begin()
    assert returned(exchange.detach(A)) == []
    assert returned(exchange.inbound(wire.DETACH.encode(wire.Detach(B, 1)))) == []
    assert len(returned(exchange.upstream(wire.DETACH.encode(wire.Detach(B, 1))))) == 1


def test_a_client_that_disconnects_does_not_delay_the_return_of_messages(exchange: Draining) -> None:
    """Messages are returned at once when a client disconnects, since it never detaches in this session."""
    exchange.connect(A)
    exchange.connect(B)
    exchange.send(b"1")
    exchange.begin()
    exchange.detach(A)
    assert payloads(exchange.disconnect(B)) == [b"1"]


@pytest.mark.parametrize("cut", ["before", "attached", "detached"])
def test_the_end_waits_for_a_client_that_may_return(exchange: Draining, clock: Clock, cut: str) -> None:
    """A client whose connection is lost before or during the drain may return for `RETURNS_WITHIN`, and not longer."""
    exchange.connect(A)
    exchange.connect(B)
    if cut == "before":
        exchange.disconnect(B)
    exchange.begin()
    exchange.detach(A)
    if cut == "detached":
        exchange.detach(B)
    if cut != "before":
        exchange.disconnect(B)
    clock.now += RETURNS_WITHIN - 0.01
    assert not exchange.is_drained
    clock.now += 0.02
    assert exchange.is_drained


def test_the_end_waits_for_all_clients_that_may_return(exchange: Draining, clock: Clock) -> None:
    """The client that was lost last decides, and one that was lost long ago is forgotten."""
    for inbox in (A, B, C):
        exchange.connect(inbox)
    exchange.disconnect(A)
    clock.now += 2.0
    exchange.disconnect(B)
    clock.now += 2.0
    assert exchange.count_returning() == 1
    exchange.begin()
    exchange.detach(C)
    assert not exchange.is_drained
    clock.now += 1.01
    assert exchange.is_drained


def test_the_end_waits_for_the_replay_to_a_client_that_has_returned(exchange: Draining, clock: Clock) -> None:
    """A client that has returned is sent what it has missed before the exchange ends."""
    exchange.connect(A)
    exchange.disconnect(A)
    exchange.begin()
    exchange.inbound(wire.ordered(wire.direct_prefix(A), b"s" * 8, 1, 0, 60_000, wire.direct_body("c", b"1")))
    exchange.connect(A, session=2)
    exchange.upstream(wire.RESUME.encode(wire.Resume(A, 2, 1000, 0)))
    exchange.detach(A, session=2)
    assert not exchange.is_drained
    frames: list[bytes] = []
    while exchange.replays.is_due:
        frames += exchange.replays.step()
    assert exchange.is_drained
    assert len(wire.decode_messages(wire.REPLAYED.decode(frames[0]).messages)) == 1


@pytest.mark.parametrize("detaches", [False, True])
def test_the_end_waits_for_a_client_that_has_returned_until_it_detaches(exchange: Draining, detaches: bool) -> None:
    """A client that has returned is one that may detach, even if it had detached before."""
    exchange.connect(A)
    exchange.begin()
    if detaches:
        exchange.detach(A)
    exchange.disconnect(A)
    exchange.connect(A, session=2)
    assert exchange.count_returning() == 0
    assert not exchange.is_drained
    exchange.detach(A, session=2)
    assert exchange.is_drained


def test_the_end_does_not_wait_for_a_client_that_has_said_goodbye(exchange: Draining) -> None:
    """A client that detaches before the drain, if only upstream, disconnects for good."""
    exchange.connect(A)
    exchange.upstream(wire.DETACH.encode(wire.Detach(A, 1)))
    exchange.disconnect(A)
    exchange.begin()
    assert exchange.count_returning() == 0
    assert exchange.is_drained


def test_clients_that_may_return_delay_the_end_for_half_of_the_time(exchange: Draining, clock: Clock) -> None:
    """Processes that begin and are killed one after the other do not make a drain take all of its time."""
    exchange.begin()
    for session in (1, 2, 3):
        exchange.connect(A, session)
        exchange.disconnect(A)
        clock.now += SECONDS / 6 - 0.01
        assert not exchange.is_drained
    clock.now += 0.04
    assert exchange.count_returning() == 1
    assert exchange.is_drained


def test_a_client_that_does_not_detach_delays_this_for_half_of_the_time(exchange: Draining, clock: Clock) -> None:
    """A client that does not detach delays the return of messages for half of the time.

    One process with a broken connection must not cost all messages that wait.
    """
    exchange.connect(A)
    exchange.connect(B)
    exchange.send(b"1")
    exchange.begin()
    exchange.detach(A)
    assert exchange.due() == clock.now + SECONDS / 2
    clock.now += SECONDS / 2
    assert payloads(exchange.sweep()) == [b"1"]
    exchange.taken(A, 1)
    assert not exchange.is_drained


def test_it_is_over_when_everything_has_been_taken(exchange: Draining) -> None:
    """The drain is over when every returned message has been taken."""
    exchange.connect(A)
    exchange.send(b"1", b"2")
    exchange.begin()
    frames = exchange.detach(A)
    assert [(m.session, m.ordinal, m.ttl, m.channel, m.payload) for m in returned(frames)] == [
        (1, 1, 60_000, b"jobs", b"1"),
        (1, 2, 60_000, b"jobs", b"2"),
    ]
    exchange.taken(A, 1)
    assert not exchange.is_drained
    exchange.taken(A, 2)
    assert exchange.is_drained
    assert exchange.end() == Outcome(2, 0, 0)


def test_it_is_over_when_its_time_is_over(exchange: Draining, clock: Clock) -> None:
    """The drain is over when its time is, and the messages that still wait are counted."""
    exchange.connect(A)
    exchange.send(b"1")
    exchange.begin()
    clock.now += SECONDS
    assert exchange.is_drained
    assert exchange.end().left == 1
    assert exchange.drops == {"not_returned": 1}


def test_a_channel_goes_to_one_client_in_order_and_channels_go_to_all_in_turns(exchange: Draining) -> None:
    """The messages of a channel are returned in order to one client, and channels to all clients in turn."""
    for inbox in (A, B):
        exchange.connect(inbox)
    for channel in (b"one", b"two", b"three"):
        exchange.send(channel + b"1", channel + b"2", channel=channel)
    exchange.begin()
    frames = [*exchange.detach(A), *exchange.detach(B)]
    assert payloads(frames, A) == [b"one1", b"one2", b"three1", b"three2"]
    assert payloads(frames, B) == [b"two1", b"two2"]


def test_a_client_is_returned_a_bounded_number_of_messages_that_it_has_not_taken(exchange: Draining) -> None:
    """A client has a bounded number of untaken messages, and gets more of the same channel as it takes them."""
    for inbox in (A, B):
        exchange.connect(inbox)
    numbers = [b"%d" % number for number in range(WINDOW + 10)]
    exchange.send(*numbers)
    exchange.begin()
    assert payloads([*exchange.detach(B), *exchange.detach(A)], B) == numbers[:WINDOW]
    assert payloads(exchange.taken(B, 3), B) == numbers[WINDOW : WINDOW + 3]
    assert payloads(exchange.taken(B, WINDOW + 3), B) == numbers[WINDOW + 3 :]
    exchange.taken(B, WINDOW + 10)
    assert exchange.is_drained


def test_a_channel_whose_client_is_busy_does_not_hold_up_the_others(exchange: Draining) -> None:
    """A channel whose client is busy does not delay others, which are returned to clients with free capacity."""
    for inbox in (A, B):
        exchange.connect(inbox)
    exchange.send(*[b"x"] * (WINDOW + 1), channel=b"long")
    exchange.send(b"1", channel=b"short")
    exchange.send(b"2", channel=b"other")
    exchange.begin()
    frames = [*exchange.detach(A), *exchange.detach(B)]
    assert payloads(frames, A) == [b"x"] * WINDOW
    assert payloads(frames, B) == [b"1", b"2"]


def test_who_does_not_know_its_session_cannot_detach_a_client(exchange: Draining) -> None:
    """A detach of another session is ignored, since any client could send the inbox to the PULL port."""
    exchange.connect(A)
    exchange.send(b"1")
    exchange.begin()
    assert exchange.detach(A, session=2) == []
    assert payloads(exchange.detach(A), A) == [b"1"]


@pytest.mark.parametrize("ordinal, session", [(2, 1), (0, 1), (1, 2)])
def test_what_was_not_returned_cannot_be_taken(exchange: Draining, ordinal: int, session: int) -> None:
    """A report beyond the returned messages, a late one or one of another session is ignored."""
    exchange.connect(A)
    exchange.send(b"1")
    exchange.begin()
    exchange.detach(A)
    exchange.taken(A, ordinal, session)
    assert not exchange.is_drained


def test_taking_again_does_no_harm(exchange: Draining) -> None:
    """Reports of taken messages are cumulative, so that a client may repeat them."""
    exchange.connect(A)
    exchange.send(b"1", b"2")
    exchange.begin()
    exchange.detach(A)
    for ordinal in (1, 1, 2, 1):
        exchange.taken(A, ordinal)
    assert exchange.is_drained


@pytest.mark.parametrize("event", ["end", "new session"])
def test_messages_that_a_client_has_not_taken_are_lost_with_its_session(
    exchange: Draining, clock: Clock, event: str
) -> None:
    """Messages that a client has not taken are lost with its session.

    It is unknown whether they arrived, and messages must not be delivered twice.
    """
    for inbox in (A, B):
        exchange.connect(inbox)
    numbers = [b"%d" % number for number in range(WINDOW + 1)]
    exchange.send(*numbers)
    exchange.begin()
    exchange.detach(A)
    exchange.detach(B)
    exchange.taken(A, 1)
    frames = exchange.disconnect(A) if event == "end" else exchange.connect(A, session=2)
    assert exchange.drops == {"lost_delivery": WINDOW}
    if event == "new session":
        exchange.detach(A, session=1)
        assert not exchange.is_drained
        exchange.detach(A, session=2)
    else:
        clock.now += RETURNS_WITHIN
    assert frames is not None
    assert exchange.is_drained


def test_the_rest_of_a_channel_goes_to_another_client_if_its_client_ends(exchange: Draining) -> None:
    """The messages of a channel that were not yet returned go to another client, in order, if their client ends."""
    for inbox in (A, B):
        exchange.connect(inbox)
    exchange.send(*[b"%d" % number for number in range(WINDOW + 2)])
    exchange.begin()
    exchange.detach(A)
    exchange.detach(B)
    assert payloads(exchange.disconnect(A), B) == [b"%d" % WINDOW, b"%d" % (WINDOW + 1)]
    assert exchange.drops == {"lost_delivery": WINDOW}


def test_what_is_put_into_a_queue_late_is_returned_too(exchange: Draining) -> None:
    """A job that is handed back late, and a message of a client that is not aware of the drain, are returned too."""
    exchange.connect(A)
    exchange.begin()
    exchange.detach(A)
    back = wire.BACK.encode(wire.Back(A, 7, 60_000, b"jobs", b"back"))
    assert payloads(exchange.inbound(back)) == [b"back"]
    enqueue = wire.ENQUEUE.encode(wire.Enqueue(A, 1, 60_000, 100, b"jobs", b"late"))
    frames = exchange.inbound(enqueue)
    assert payloads(frames) == [b"late"]
    assert wire.CONFIRM.decode(frames[0]).status == Status.OK


def test_a_message_that_has_expired_is_not_returned(exchange: Draining, clock: Clock) -> None:
    """A message that expires before it is returned is dropped and counted as expired."""
    exchange.connect(A)
    exchange.send(b"1", ttl=1_000)
    exchange.send(b"2")
    exchange.begin()
    clock.now += 1
    assert payloads(exchange.detach(A)) == [b"2"]
    assert exchange.drops == {"expired": 1}


def test_all_jobs_precede_the_welcome(exchange: Draining) -> None:
    """No job is handed to a client after the welcome that reports draining.

    So a client that hands its jobs back and then detaches has none left. Later messages wait to be returned.
    """
    exchange.connect(A)
    for limit in (1, 10):
        exchange.upstream(wire.READY.encode(wire.Ready(A, 1, limit, 0, 0, 0, b"jobs")))
        exchange.send(b"%d" % limit)
    exchange.begin()
    exchange.upstream(wire.READY.encode(wire.Ready(A, 1, 20, 0, 0, 0, b"jobs")))
    exchange.send(b"3")
    assert (exchange.queues.depth(), exchange.queues.unsettled) == (1, 2)
    exchange.upstream(wire.READY.encode(wire.Ready(A, 1, 20, 2, 0, 0, b"jobs")))
    assert exchange.queues.unsettled == 0
    assert payloads(exchange.detach(A)) == [b"3"]


def test_a_client_of_the_first_release_is_handed_jobs_as_always(exchange: Draining) -> None:
    """A client of the first release is handed jobs while the exchange drains, since it would wait for them."""
    exchange.connect(A)
    exchange.connect(B, forwarders=b"")
    for inbox in (A, B):
        exchange.upstream(wire.READY.encode(wire.Ready(inbox, 1, 10, 0, 0, 0, b"jobs")))
    exchange.begin()
    exchange.send(b"1", b"2")
    assert (exchange.queues.depth(), exchange.queues.unsettled) == (0, 2)
    assert exchange.queues.by_channel[b"jobs"].holders == {B}


def test_messages_are_relayed_and_queued_as_always(exchange: Draining) -> None:
    """A draining exchange relays and queues messages, since clients change to other forwarders one by one."""
    exchange.connect(A)
    exchange.begin()
    message = wire.ordered(wire.group_topic("room"), b"sender..", 1, 0, 60_000, b"")
    assert list(exchange.inbound(message)) == [message]
    exchange.send(b"1")
    assert exchange.queues.depth() == 1


def test_a_client_that_connects_while_it_drains_detaches_as_well(exchange: Draining) -> None:
    """A client that connects during the drain must detach too: it may have sent something before its welcome."""
    exchange.connect(A)
    exchange.begin()
    exchange.connect(B)
    exchange.detach(A)
    assert not exchange.is_drained
    exchange.detach(B)
    assert exchange.is_drained


def test_a_repeated_hello_changes_nothing(exchange: Draining) -> None:
    """A client that has detached stays detached if it repeats its hello to report another list."""
    exchange.connect(A)
    exchange.begin()
    exchange.detach(A)
    exchange.connect(A)
    assert exchange.is_drained


def test_a_client_may_detach_before_draining_begins(exchange: Draining) -> None:
    """A client that ends may detach before the drain begins, while its last frames are in flight."""
    exchange.connect(A)
    exchange.detach(A)
    exchange.begin()
    assert exchange.is_drained


def test_all_messages_are_returned_once_whatever_the_order_of_events(exchange: Draining, clock: Clock) -> None:
    """All messages of many channels are returned once and in order to many clients, whose windows fill up."""
    inboxes = [b"%016x" % number for number in range(5)]
    sent: Counter[bytes] = Counter()
    for inbox in inboxes:
        exchange.connect(inbox)
    for number in range(4_000):
        channel = b"channel%d" % (number**2 % 37)
        exchange.send(b"%d" % number, channel=channel)
        sent[channel] += 1
    exchange.begin()
    frames = [frame for inbox in inboxes for frame in exchange.detach(inbox)]
    got = []
    owners: dict[bytes, bytes] = {}
    while frames:
        messages, frames = returned(frames), []
        for message in messages:
            assert owners.setdefault(message.channel, message.inbox) == message.inbox
            got.append((message.channel, int(message.payload)))
        for inbox, ordinal in {message.inbox: message.ordinal for message in messages}.items():
            frames += exchange.taken(inbox, ordinal)
    assert exchange.is_drained
    assert Counter(channel for channel, _ in got) == sent
    for channel in sent:
        numbers = [number for name, number in got if name == channel]
        assert numbers == sorted(numbers)
    assert set(owners.values()) == set(inboxes)


@pytest.mark.parametrize("seed", range(20))
def test_every_message_is_at_another_exchange_once_whatever_arrives_first(clock: Clock, seed: int) -> None:
    """Every message is delivered to another exchange exactly once, in whatever order the frames arrive.

    Frames of several clients, among them unread jobs, are in flight while the exchange drains.
    """
    chance = random.Random(seed)
    one, other = Draining(clock), Draining(clock, b"another!")
    processes = {inbox: Process(inbox, one, other) for inbox in (A, B, C)}

    def publish(frames: Iterable[bytes]) -> None:
        for frame in frames:
            if frame[:1] == wire.INBOX_BYTE:
                processes[wire.inbox_in(frame)].down.append(frame)

    begins_at = chance.randrange(1_000)
    for turn in range(3_000):
        if turn == begins_at:
            publish(one.begin())
        process = chance.choice(list(processes.values()))
        match chance.randrange(5):
            case 0:
                process.send()
            case 1:
                process.receive()
            case number:
                publish(process.deliver((process.push, process.xsub, process.elsewhere)[number - 2]))
    while not one.is_drained or not all(process.is_quiet for process in processes.values()):
        for process in processes.values():
            process.send()
            process.receive()
            for way in (process.push, process.xsub, process.elsewhere):
                publish(process.deliver(way))
    assert one.end().left == one.queues.unsettled == 0
    got: Counter[bytes] = Counter()
    while other.queues.waiting:
        entries, _ = other.queues.withdraw(next(iter(other.queues.waiting)), 10**6)
        got.update(entry.payload for entry in entries)
    assert got == {b"%b %d" % (inbox, number): 1 for inbox in processes for number in range(100)}
