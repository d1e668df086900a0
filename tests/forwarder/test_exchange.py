"""The exchange: the effect of every frame on queues, members, clients and the frames to publish."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.channel_queue import ENTRY_SIZE
from channels_zmq_forwarder.exchange import (
    ANNOUNCE_AT_ONCE,
    ANNOUNCE_EVERY,
    COPIES_A_STEP,
    ENDED_SESSIONS,
    Exchange,
    Frames,
)
from channels_zmq_forwarder.flushes import MAX_FLUSH, MAX_FLUSHES
from channels_zmq_forwarder.history import SECONDS
from channels_zmq_forwarder.members import KEPT_FOR
from channels_zmq_forwarder.queues import Limits
from channels_zmq_forwarder.wire import Question, State, Status

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
INSTANCE = b"instance"
JOBS = b"jobs"


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Forwarder(Exchange):
    """An exchange as its clients use it."""

    def __init__(self, may_be_flushed: bool = True, history_bytes: int = 2**20, **limits: int) -> None:
        self.clock = Clock()
        super().__init__(
            INSTANCE,
            limits=Limits(**limits),
            may_be_flushed=may_be_flushed,
            history_bytes=history_bytes,
            clock=self.clock,
        )
        self.enter(State.SERVING)

    def connect(self, inbox: bytes, session: int = 1, peers: int = 0, forwarders: bytes = b"") -> Frames:
        self.upstream(wire.subscription(wire.inbox_topic(inbox)))
        answer = self.upstream(wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, session, peers, forwarders)))
        if self.clients.get(inbox) == session:
            self.batching(inbox, session)
        return answer

    def batching(self, inbox: bytes, session: int = 1) -> Frames:
        return self.upstream(wire.BATCHING.encode(wire.Batching(inbox, session)))

    def disconnect(self, inbox: bytes) -> Frames:
        return self.upstream(wire.unsubscription(wire.inbox_topic(inbox)))

    def send(
        self,
        payload: bytes = b"",
        *,
        inbox: bytes = A,
        n: int = 1,
        ttl: int = 60_000,
        capacity: int = 100,
        channel: bytes = JOBS,
    ) -> Frames:
        return self.inbound(wire.ENQUEUE.encode(wire.Enqueue(inbox, n, ttl, capacity, channel, payload)))

    def ready(
        self,
        limit: int,
        settled: int = 0,
        *,
        inbox: bytes = A,
        session: int = 1,
        answers: int = 0,
        ask: Question = Question.NOTHING,
        channel: bytes = JOBS,
    ) -> Frames:
        ready = wire.Ready(inbox, session, limit, settled, answers, ask, channel)
        return self.upstream(wire.READY.encode(ready))

    def back(self, job: wire.Job) -> Frames:
        return self.upstream(wire.BACK.encode(wire.Back(job.inbox, job.number, job.ttl, job.channel, job.payload)))

    def received(self, received: int, *, inbox: bytes = A, session: int = 1, channel: bytes = JOBS) -> Frames:
        return self.upstream(wire.RECEIVED.encode(wire.Received(inbox, session, received, channel)))

    def total(self, *, inbox: bytes = A, session: int = 1) -> Frames:
        return self.upstream(wire.TOTAL.encode(wire.Total(inbox, session)))

    def join(
        self,
        group: bytes = b"room",
        *,
        inbox: bytes = A,
        n: int = 1,
        add: int = 1,
        age: int = 0,
        life: int = 0,
        capacity: int = 100,
        channel: bytes = JOBS,
    ) -> Frames:
        member = wire.Member(inbox, n, add, age, life, capacity, group, channel)
        return self.upstream(wire.MEMBER.encode(member))

    def flush(self, inbox: bytes = A, n: int = 1, ttl: int = 5_000) -> Frames:
        return self.upstream(wire.FLUSH.encode(wire.Flush(inbox, n, ttl)))

    def flushed(self, frame: bytes) -> Frames:
        """Answer as the client to which an `Empty` is addressed."""
        empty = wire.EMPTY.decode(frame)
        return self.inbound(wire.FLUSHED.encode(wire.Flushed(empty.inbox, empty.n)))


@pytest.fixture
def forwarder() -> Forwarder:
    return Forwarder()


def statuses(frames: Iterable[bytes]) -> list[Status]:
    """Return the statuses of the confirmations among frames."""
    return [Status(wire.CONFIRM.decode(f).status) for f in frames if f[wire.SUB_KIND] == wire.CONFIRM.kind]


def jobs(frames: Iterable[bytes]) -> list[wire.Job]:
    return [wire.JOB.decode(f) for f in frames if f[:1] == b"P" and f[wire.SUB_KIND] == wire.JOB.kind]


def payloads(frames: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    return [(job.inbox, job.payload) for job in jobs(frames)]


def listed(*names: str, serves: bool = True) -> bytes:
    """Return the list of forwarders of a hello."""
    return wire.encode_forwarders(
        wire.KnownForwarder(f"{name}:1".encode(), f"{name}:2".encode(), serves) for name in names
    )


def group_frame(payload: bytes = b"hello", group: str = "room", ttl: int = 60_000, number: int = 1) -> bytes:
    return wire.ordered(wire.group_topic(group), b"sender..", number, wire.FLAG_FIRST, ttl, payload)


def direct_frame(inbox: bytes, payload: bytes = b"hello") -> bytes:
    body = wire.direct_body("specific.x!1", payload)
    return wire.ordered(wire.direct_prefix(inbox), b"sender..", 1, wire.FLAG_FIRST, 60_000, body)


# Sessions


def test_a_hello_is_welcomed(forwarder: Forwarder) -> None:
    """The welcome contains the instance, the session that it is for and the number of clients."""
    forwarder.connect(B)
    (frame,) = forwarder.connect(A, session=7)
    assert wire.WELCOME.decode(frame) == wire.Welcome(A, wire.VERSION, State.SERVING, INSTANCE, 7, 2)


def test_what_waited_in_a_client_while_its_connection_broke_begins_no_session(forwarder: Forwarder) -> None:
    """A hello of an ended session, which a new connection delivers first, begins no session.

    No job is handed over in it, and a job that it hands back is not lost.
    """
    forwarder.connect(A)
    forwarder.ready(2)
    _, second, _ = [jobs(forwarder.send(payload, inbox=B)) for payload in (b"1", b"2", b"3")]
    forwarder.disconnect(A)
    assert list(forwarder.connect(A)) == []
    assert [list(forwarder.ready(2)), list(forwarder.back(second[0]))] == [[], []]
    assert forwarder.drops == {"stray": 1}
    forwarder.received(1)
    forwarder.connect(A, session=2)
    assert payloads(forwarder.ready(9, session=2)) == [(A, b"2"), (A, b"3")]


def test_only_the_last_sessions_that_ended_are_remembered(forwarder: Forwarder) -> None:
    """Only the last ended sessions are remembered, so that short-lived clients do not exhaust the memory."""
    for number in range(ENDED_SESSIONS + 2):
        inbox = b"%016x" % number
        forwarder.connect(inbox)
        forwarder.disconnect(inbox)
    assert [len(forwarder.connect(b"%016x" % number)) for number in (0, 1, 2)] == [1, 1, 0]


def test_a_hello_without_a_subscription_is_stray(forwarder: Forwarder) -> None:
    """A hello without a subscription is dropped as stray, since its client would not receive the welcome.

    XPUB reports a subscription before the hello.
    """
    assert list(forwarder.upstream(wire.HELLO.encode(wire.Hello(A, wire.VERSION, 1, 0)))) == []
    assert forwarder.drops == {"stray": 1}
    assert forwarder.clients == {}


def test_a_client_of_another_version_is_sent_ours_and_not_registered(forwarder: Forwarder) -> None:
    """A client of another version is sent our version and not registered.

    It would not understand the frames for clients, and a flush would wait for it.
    """
    forwarder.upstream(wire.subscription(wire.inbox_topic(A)))
    (frame,) = forwarder.upstream(wire.HELLO.encode(wire.Hello(A, wire.VERSION + 1, 1, 0)))
    assert wire.WELCOME.decode(frame).version == wire.VERSION
    assert forwarder.clients == {}
    assert forwarder.drops == {"version_mismatch": 1}


def test_a_change_of_state_is_sent_to_all_clients(forwarder: Forwarder) -> None:
    """A change of state is sent to all clients in a welcome with the session of each."""
    forwarder.connect(A, session=3)
    forwarder.connect(B, session=4)
    welcomes = [wire.WELCOME.decode(frame) for frame in forwarder.enter(State.SETTLING)]
    assert {(w.inbox, w.session, w.state) for w in welcomes} == {(A, 3, State.SETTLING), (B, 4, State.SETTLING)}


def test_a_change_of_the_number_of_clients_is_announced_once(forwarder: Forwarder) -> None:
    """A change of the number of clients is announced once, and a further one only after a while.

    So the first client that connects to a successor reports how many to wait for.
    """
    assert forwarder.announce() == []
    forwarder.connect(A)
    forwarder.connect(B)
    welcomes = [wire.WELCOME.decode(frame) for frame in forwarder.announce()]
    assert [(w.inbox, w.clients) for w in welcomes] == [(A, 2), (B, 2)]
    assert forwarder.announce() == []
    forwarder.disconnect(B)
    assert forwarder.announce() == []
    forwarder.clock.now += ANNOUNCE_EVERY
    assert [wire.WELCOME.decode(frame).clients for frame in forwarder.announce()] == [1]


def test_welcomes_are_announced_in_portions(forwarder: Forwarder) -> None:
    """Welcomes are announced in portions: a thousand processes that connect in turn must not cost a million frames."""
    inboxes = {b"%016x" % number for number in range(2 * ANNOUNCE_AT_ONCE + 1)}
    for inbox in inboxes:
        forwarder.connect(inbox)
    calls = [forwarder.announce() for _ in range(3)]
    assert [len(frames) for frames in calls] == [ANNOUNCE_AT_ONCE, ANNOUNCE_AT_ONCE, 1]
    assert {wire.inbox_in(frame) for frames in calls for frame in frames} == inboxes
    assert forwarder.announce() == []


# Forwarders that clients list


def test_a_welcome_contains_the_forwarders_that_any_client_knows(forwarder: Forwarder) -> None:
    """A welcome contains every forwarder that any client lists.

    So a client that knows one of them learns of the others before its first join returns.
    """
    forwarder.connect(A, forwarders=listed("one"))
    (frame,) = forwarder.connect(B, forwarders=listed("two"))
    assert wire.WELCOME.decode(frame).forwarders == listed("one", "two")


def test_a_client_of_the_first_release_is_sent_no_list(forwarder: Forwarder) -> None:
    """A client of the first release is sent no list, which might be longer than the frames that it accepts."""
    forwarder.connect(A, forwarders=listed("one"))
    (frame,) = forwarder.connect(B)
    assert wire.WELCOME.decode(frame).forwarders == b""


def test_a_repeated_hello_replaces_the_list_and_is_answered_at_once(forwarder: Forwarder) -> None:
    """A repeated hello replaces the client's list and is answered at once.

    The client may send by a new forwarder as soon as the others know of it.
    """
    forwarder.connect(A, forwarders=listed("one"))
    (frame,) = forwarder.connect(A, forwarders=listed("two"))
    assert wire.WELCOME.decode(frame).forwarders == listed("two")


def test_a_list_ends_with_its_client(forwarder: Forwarder) -> None:
    """The list of a disconnected client is removed, so a forwarder in no other list is not passed on."""
    forwarder.connect(A, forwarders=listed("one"))
    forwarder.connect(B, forwarders=listed("two"))
    forwarder.disconnect(A)
    assert forwarder.directory.union == {(b"two:1", b"two:2")}


def test_a_hello_with_a_malformed_list_is_dropped(forwarder: Forwarder) -> None:
    """A hello with a malformed list begins no session; one of another version is answered in any case."""
    assert list(forwarder.connect(A, forwarders=b"?")) == []
    assert forwarder.drops == {"malformed": 1}
    assert forwarder.clients == {}
    hello = wire.Hello(A, wire.VERSION + 1, 1, 0, b"?")
    (frame,) = forwarder.upstream(wire.HELLO.encode(hello))
    assert wire.WELCOME.decode(frame).version == wire.VERSION


def test_a_new_forwarder_is_announced_to_all_clients_once(forwarder: Forwarder) -> None:
    """A new forwarder is announced once, without delay if it is the first news for a while.

    A list that shrinks is not news.
    """
    forwarder.connect(A, forwarders=listed("one"))
    forwarder.connect(B, forwarders=listed("one"))
    assert len(forwarder.announce()) == 2
    forwarder.clock.now += ANNOUNCE_EVERY
    forwarder.connect(A, forwarders=listed("one", "two"))
    welcomes = [wire.WELCOME.decode(frame) for frame in forwarder.announce()]
    assert [(w.inbox, w.forwarders) for w in welcomes] == [(A, listed("one", "two")), (B, listed("one", "two"))]
    forwarder.clock.now += ANNOUNCE_EVERY
    forwarder.connect(A, forwarders=listed("one"))
    assert forwarder.announce() == []
    forwarder.connect(A, forwarders=listed("one", "two"))
    assert len(forwarder.announce()) == 2


def test_forwarders_that_are_learned_one_after_the_other_are_announced_together(forwarder: Forwarder) -> None:
    """New forwarders are announced together: a thousand clients that list others must not cost a million frames."""
    for inbox in (A, B):
        forwarder.connect(inbox, forwarders=listed("one"))
    forwarder.announce()
    for number in range(10):
        forwarder.connect(A, forwarders=listed("one", f"more{number}"))
        assert forwarder.announce() == []
    forwarder.clock.now += ANNOUNCE_EVERY
    assert len(forwarder.announce()) == 2


def test_the_last_unsubscription_ends_a_client(forwarder: Forwarder) -> None:
    """The unsubscription that ZeroMQ reports when a process dies ends its client and its window."""
    forwarder.connect(A)
    forwarder.ready(5)
    forwarder.disconnect(A)
    assert forwarder.clients == {}
    assert forwarder.queues.by_channel == {}
    assert payloads(forwarder.send(b"1")) == []


def test_the_end_of_another_topic_ends_no_client(forwarder: Forwarder) -> None:
    """The end of a group's topic, or of one similar to the inbox's, ends no client."""
    forwarder.connect(A)
    for topic in (b"", b"P", b"P" + A, b"P" + A + b"x", b"G" + A + b"\0"):
        forwarder.upstream(b"\1" + topic)
        forwarder.upstream(b"\0" + topic)
    assert forwarder.clients.keys() == {A}


def test_a_repeated_hello_changes_nothing(forwarder: Forwarder) -> None:
    """A client repeats its hello until it is welcomed, and the jobs of its session still count."""
    forwarder.connect(A)
    forwarder.ready(1)
    assert payloads(forwarder.send(b"1")) == [(A, b"1")]
    assert len(forwarder.connect(A)) == 1
    forwarder.ready(1)
    assert payloads(forwarder.send(b"2")) == []


def test_a_new_session_ends_the_credit_of_the_old_one(forwarder: Forwarder) -> None:
    """A new session ends the credit of the old one, whose frames hand over nothing more.

    ZeroMQ does not report a reconnect that overtakes the death of the old connection.
    """
    forwarder.connect(A, session=1)
    forwarder.ready(5, session=1)
    forwarder.connect(A, session=2)
    assert payloads(forwarder.send(b"1")) == []
    assert payloads(forwarder.ready(1, session=1)) == []
    assert payloads(forwarder.ready(1, session=2)) == [(A, b"1")]


def test_a_hello_of_an_older_session_is_late(forwarder: Forwarder) -> None:
    """A hello of an older session is answered with the later session and changes nothing.

    XPUB may read a frame of the dead connection after a frame of its successor. Or the client has two connections, by
    two addresses: it learns by the welcome of the later session that both lead to one forwarder.
    """
    forwarder.connect(A, session=2)
    (frame,) = forwarder.connect(A, session=1)
    assert wire.WELCOME.decode(frame) == wire.Welcome(A, wire.VERSION, State.SERVING, INSTANCE, 2, 1)
    assert (forwarder.clients, forwarder.drops) == ({A: 2}, {"stray": 1})


def test_the_largest_number_of_peers_is_remembered(forwarder: Forwarder) -> None:
    """The largest number of peers in a hello counts: the exchange settles until that many clients have connected."""
    forwarder.connect(A, peers=5)
    forwarder.connect(B, peers=2)
    assert forwarder.peers_expected == 5


def test_a_sync_is_answered(forwarder: Forwarder) -> None:
    """A sync is answered, which shows that the subscriptions before it are in force."""
    assert list(forwarder.upstream(wire.SYNC.encode(wire.Sync(A, 9)))) == [wire.SYNCED.encode(wire.Synced(A, 9))]


def test_an_echo_is_answered_with_the_instance(forwarder: Forwarder) -> None:
    """An echo is answered with the instance, which the client compares with the one that welcomed it."""
    (frame,) = forwarder.inbound(wire.ECHO.encode(wire.Echo(A, 4)))
    assert wire.CONFIRM.decode(frame) == wire.Confirm(A, 4, Status.OK, INSTANCE)


def test_the_window_of_a_client_is_known_until_it_is_gone(forwarder: Forwarder) -> None:
    """The last window report of a client is kept for the status page until the client disconnects.

    A report of an unknown client is not kept, since nothing would remove it.
    """
    for client in (A, B):
        forwarder.connect(client)
    for report in (wire.Window(A, 5, 0), wire.Window(B, 1, 2), wire.Window(A, 3, 7)):
        assert list(forwarder.inbound(wire.WINDOW.encode(report))) == []
    assert forwarder.windows == {A: wire.Window(A, 3, 7), B: wire.Window(B, 1, 2)}
    forwarder.upstream(b"\0" + wire.inbox_topic(A))
    forwarder.inbound(wire.WINDOW.encode(wire.Window(A, 9, 9)))
    assert (forwarder.windows, forwarder.drops) == ({B: wire.Window(B, 1, 2)}, {"stray": 1})


# Malformed and stray frames


@pytest.mark.parametrize(
    "frame", [b"", b"?", b"\xff" * 40, b"H", b"Q" + A, b"P" + A + b"\0", b"G\0", b"Gname", b"Gname\0x"]
)
def test_malformed_frames_are_counted(forwarder: Forwarder, frame: bytes) -> None:
    """Both ports drop malformed frames and count them."""
    for take in (forwarder.upstream, forwarder.inbound):
        assert list(take(frame)) == []
    assert forwarder.drops == {"malformed": 2}


@pytest.mark.parametrize(
    "layout", [layout for layout in wire.INBOX_LAYOUTS if layout.kind not in wire.RELAYED], ids=lambda x: chr(x.kind)
)
def test_clients_cannot_speak_for_the_exchange(forwarder: Forwarder, layout: wire.Layout[Any]) -> None:
    """The exchange does not relay a forged welcome, job or synced."""
    forwarder.connect(B)
    head = b"P" + B + b"\0" + bytes([layout.kind])
    for take in (forwarder.upstream, forwarder.inbound):
        assert list(take(head + bytes(60))) == []
    assert forwarder.drops == {"malformed": 2}


def test_a_topic_that_is_no_inbox_is_not_relayed(forwarder: Forwarder) -> None:
    """A topic without the NUL behind the inbox is not relayed, since it could match other topics."""
    assert list(forwarder.inbound(b"P" + A[:-1] + b"\0\0d" + bytes(40))) == []
    assert list(forwarder.inbound(b"P" + A + b"xd" + bytes(40))) == []
    assert forwarder.drops == {"malformed": 2}


def test_some_requests_are_only_for_clients(forwarder: Forwarder) -> None:
    """A process without a subscription or a hello cannot flush or add members."""
    assert list(forwarder.flush(A)) == []
    assert list(forwarder.join(inbox=A)) == []
    assert forwarder.drops == {"stray": 2}


# Relayed messages


def test_a_group_message_is_relayed_unchanged(forwarder: Forwarder) -> None:
    """A group message is relayed unchanged, since the exchange does not read the payload."""
    frame = group_frame(b"\0\xff")
    assert list(forwarder.inbound(frame)) == [frame]


def test_messages_are_accepted_at_the_producers_port_only(forwarder: Forwarder) -> None:
    """Messages are accepted only at the producers' port, since frames to the other one may be lost silently."""
    forwarder.connect(A)
    assert list(forwarder.upstream(group_frame())) == []
    assert list(forwarder.upstream(direct_frame(A))) == []


def test_a_direct_message_reaches_its_process(forwarder: Forwarder) -> None:
    """A direct message is relayed to its process, whose inbox is the topic."""
    forwarder.connect(A)
    assert list(forwarder.inbound(direct_frame(A))) == [direct_frame(A)]


def test_a_recognised_direct_message_would_be_relayed_unchanged(forwarder: Forwarder) -> None:
    """A frame is recognised as direct, so that a driver skips `inbound`, only if it would be relayed unchanged."""
    forwarder.connect(A)
    forwarder.upstream(b"\1X" + A + b"\0")
    forwarder.upstream(b"\1Paaa\0aaaaaaaaaaaa\0")
    order = bytes(wire.ORDER_SIZE)
    message = wire.direct_prefix(A) + order
    assert forwarder.is_direct(message)
    assert forwarder.inbound(message) == (message,)
    for other in (
        b"",
        message[:-1],
        wire.direct_prefix(B) + order,
        b"P" + A + b"\0k" + order,
        b"X" + message[1:],
        b"Paaa\0aaaaaaaaaaaa\0d" + order,
    ):
        assert not forwarder.is_direct(other)


def test_a_direct_message_without_a_subscriber_is_counted(forwarder: Forwarder) -> None:
    """A direct message to a process that has died or never existed is dropped and counted."""
    assert list(forwarder.inbound(direct_frame(A))) == []
    assert forwarder.drops == {"unroutable": 1}


def test_a_truncated_frame_is_not_relayed(forwarder: Forwarder) -> None:
    """A truncated frame is dropped as malformed, since a receiver could not decode it."""
    forwarder.connect(A)
    assert list(forwarder.inbound(wire.direct_prefix(A) + bytes(20))) == []
    assert list(forwarder.inbound(b"P" + A + b"\0k" + bytes(16))) == []
    assert list(forwarder.inbound(wire.ASK.encode(wire.Ask(A, 1, 1, b"reply", b"room", b"specific.a!1")))) == []
    assert forwarder.drops == {"malformed": 3}


@pytest.mark.parametrize("way", ["upstream", "inbound"])
def test_a_request_reaches_the_owner_of_a_channel_and_its_answer_the_sender(forwarder: Forwarder, way: str) -> None:
    """A request is relayed to the owner of a channel, and the answer to its sender, at both ports.

    A client of an embedded producer has no PUSH socket.
    """
    forwarder.connect(A)
    forwarder.connect(B)
    ask = wire.ASK.encode(wire.Ask(B, 5, 1, A, b"room", b"specific.b!1"))
    answer = wire.CONFIRM.encode(wire.Confirm(A, 5, Status.OK, wire.NO_INSTANCE))
    take = getattr(forwarder, way)
    assert list(take(ask)) == [ask]
    assert list(take(answer)) == [answer]


def test_a_request_to_a_disconnected_owner_is_answered(forwarder: Forwarder) -> None:
    """The exchange answers a request in place of a disconnected owner."""
    (frame,) = forwarder.inbound(wire.ASK.encode(wire.Ask(B, 5, 1, A, b"room", b"specific.b!1")))
    assert wire.CONFIRM.decode(frame) == wire.Confirm(A, 5, Status.GONE, INSTANCE)


def test_an_owner_that_was_lost_a_moment_ago_may_come_back(forwarder: Forwarder) -> None:
    """A request to an owner that disconnected less than three seconds ago is answered with AWAY, then with GONE.

    The owner may reconnect meanwhile, and then its own answer counts.
    """
    ask = wire.ASK.encode(wire.Ask(B, 5, 1, A, b"room", b"specific.b!1"))
    forwarder.connect(B)
    forwarder.disconnect(B)
    assert statuses(forwarder.inbound(ask)) == [Status.AWAY]
    forwarder.clock.now += 2.9
    assert statuses(forwarder.inbound(ask)) == [Status.AWAY]
    forwarder.clock.now += 0.1
    assert statuses(forwarder.inbound(ask)) == [Status.GONE]
    forwarder.connect(B, session=2)
    assert list(forwarder.inbound(ask)) == [ask]


def test_an_owner_that_was_connected_to_the_last_instance_may_come_back(forwarder: Forwarder) -> None:
    """An unknown owner is AWAY for three seconds if a hello shows that there was another instance before.

    This instance cannot know which clients the other one had.
    """
    ask = wire.ASK.encode(wire.Ask(B, 5, 1, A, b"room", b"specific.b!1"))
    forwarder.connect(A, peers=1)
    forwarder.clock.now += 2.9
    forwarder.connect(C, peers=2)
    assert statuses(forwarder.inbound(ask)) == [Status.AWAY]
    forwarder.clock.now += 0.1
    assert statuses(forwarder.inbound(ask)) == [Status.GONE]


def test_a_client_that_counts_those_of_this_instance_does_not_tell_of_another_one(forwarder: Forwarder) -> None:
    """A client that repeats its hello or reconnects counts peers of this instance, which shows no earlier one."""
    ask = wire.ASK.encode(wire.Ask(B, 5, 1, A, b"room", b"specific.b!1"))
    forwarder.connect(A)
    forwarder.connect(A, peers=1)
    forwarder.disconnect(A)
    forwarder.connect(A, session=2, peers=1)
    assert statuses(forwarder.inbound(ask)) == [Status.GONE]


def test_an_answer_without_a_subscriber_is_counted(forwarder: Forwarder) -> None:
    """An answer to a process that has disconnected meanwhile is dropped and counted."""
    forwarder.inbound(wire.CONFIRM.encode(wire.Confirm(A, 5, Status.OK, wire.NO_INSTANCE)))
    assert forwarder.drops == {"unroutable": 1}


# Normal channels


def test_a_job_waits_for_its_reader(forwarder: Forwarder) -> None:
    """A job waits for its reader, and then has the number of its message and the remaining time to live."""
    assert statuses(forwarder.send(b"hi", ttl=60_000)) == [Status.OK]
    forwarder.connect(A)
    forwarder.clock.now += 10
    (job,) = jobs(forwarder.ready(1))
    assert job == wire.Job(A, 1, 1, job.number, 50_000, JOBS, b"hi")


def test_a_message_is_confirmed_before_it_is_handed_over(forwarder: Forwarder) -> None:
    """A message is confirmed before it is handed over, so that a process that sends to itself learns of that first."""
    forwarder.connect(A)
    forwarder.ready(1)
    confirm, job = forwarder.send(b"hi", n=8)
    assert wire.CONFIRM.decode(confirm) == wire.Confirm(A, 8, Status.OK, INSTANCE)
    assert wire.JOB.decode(job).payload == b"hi"


def test_each_message_goes_to_exactly_one_reader(forwarder: Forwarder) -> None:
    """Each message is handed to exactly one reader; processes with an open window take turns."""
    for inbox in (A, B):
        forwarder.connect(inbox)
        forwarder.ready(2, inbox=inbox)
    got = [payloads(forwarder.send(b"%d" % n)) for n in range(5)]
    assert got == [[(A, b"0")], [(B, b"1")], [(A, b"2")], [(B, b"3")], []]


def test_a_full_queue_answers_full(forwarder: Forwarder) -> None:
    """A full queue answers FULL by the capacity of each send, which is in its sender's configuration."""
    assert statuses(forwarder.send(capacity=1)) == [Status.OK]
    assert statuses(forwarder.send(capacity=1)) == [Status.FULL]
    assert statuses(forwarder.send(capacity=2)) == [Status.OK]
    assert forwarder.drops == {"queue_full": 1}


def test_a_capacity_of_nothing_leaves_nothing_behind(forwarder: Forwarder) -> None:
    """A message that is refused for its capacity of 0 creates no queue."""
    assert statuses(forwarder.send(capacity=0)) == [Status.FULL]
    assert forwarder.queues.by_channel == {}


def test_a_job_handed_back_is_handed_to_the_next_reader_in_its_place(forwarder: Forwarder) -> None:
    """A job that is handed back keeps its place and is handed to the next reader.

    No reader has read it, so delivery is still at most once.
    """
    forwarder.connect(A)
    forwarder.ready(1)
    (job,) = jobs(forwarder.send(b"first"))
    forwarder.send(b"second")
    assert list(forwarder.back(job)) == []
    forwarder.connect(B)
    assert payloads(forwarder.ready(5, inbox=B)) == [(B, b"first"), (B, b"second")]


def test_jobs_of_another_instance_precede_waiting_messages(forwarder: Forwarder) -> None:
    """Jobs of another instance precede all messages of this one, which are younger, and keep their order."""
    forwarder.send(b"third")
    for number, payload in ((900, b"first"), (901, b"second")):
        forwarder.back(wire.Job(A, 1, 1, number, 60_000, JOBS, payload))
    forwarder.send(b"fourth")
    forwarder.connect(A)
    assert [payload for _, payload in payloads(forwarder.ready(9))] == [b"first", b"second", b"third", b"fourth"]


def test_a_waiting_reader_can_query_the_number_of_hand_overs(forwarder: Forwarder) -> None:
    """The number of hand-overs is sent behind every job, so a reader finds out which hand-overs were lost."""
    forwarder.connect(A)
    forwarder.send(b"1")
    job, answer = forwarder.ready(3, ask=Question.HANDED)
    assert payloads([job]) == [(A, b"1")]
    assert wire.HANDED.decode(answer) == wire.Handed(A, 1, 1, JOBS)


def test_a_client_can_be_forgotten_by_a_channel(forwarder: Forwarder) -> None:
    """A process that reads from ever new channels leaves nothing behind; a forgotten reader counts from zero."""
    forwarder.connect(A)
    for number in range(5):
        channel = b"reply-%d" % number
        forwarder.ready(1, channel=channel)
        assert len(jobs(forwarder.send(channel=channel))) == 1
        assert list(forwarder.ready(1, 1, ask=Question.FORGET, channel=channel)) == []
    assert forwarder.queues.by_channel == {}
    forwarder.ready(1, channel=b"reply-0")
    assert len(jobs(forwarder.send(channel=b"reply-0"))) == 1


def test_a_window_that_closes_unused_leaves_nothing_behind(forwarder: Forwarder) -> None:
    """A reader that closes its window before a message arrives leaves no queue behind."""
    forwarder.connect(A)
    forwarder.ready(1)
    forwarder.ready(0)
    assert forwarder.queues.by_channel == {}


def test_expired_messages_are_swept_and_counted(forwarder: Forwarder) -> None:
    """A sweep drops expired messages without a send or a reader."""
    forwarder.send(ttl=1_000)
    forwarder.clock.now += 1
    forwarder.sweep()
    assert forwarder.queues.depth() == 0
    assert forwarder.drops == {"expired": 1}
    assert forwarder.queues.by_channel == {}
    assert forwarder.queues.size == 0


def test_all_queues_together_hold_so_many_bytes(forwarder: Forwarder) -> None:
    """All queues together have a limit of bytes, beyond which a message for any channel is refused."""
    forwarder = Forwarder(queue_bytes=2 * ENTRY_SIZE + 10)
    assert statuses(forwarder.send(bytes(5))) == [Status.OK]
    assert statuses(forwarder.send(bytes(6), channel=b"other")) == [Status.FULL]
    assert statuses(forwarder.send(bytes(5), channel=b"other")) == [Status.OK]
    assert forwarder.drops == {"queue_bytes": 1}
    forwarder.back(wire.Job(A, 1, 1, 1, 60_000, JOBS, b"lost"))
    assert forwarder.drops == {"queue_bytes": 2}


def test_full_queues_do_not_stop_a_channel_whose_reader_waits() -> None:
    """With full queues, a message for a waiting reader still passes through, and is not kept."""
    forwarder = Forwarder(queue_bytes=ENTRY_SIZE)
    forwarder.send(channel=b"nobody-reads-this")
    forwarder.connect(A)
    forwarder.ready(1)
    assert payloads(forwarder.send(b"hi")) == [(A, b"hi")]
    assert statuses(forwarder.send(b"hi")) == [Status.FULL]


def test_there_are_at_most_so_many_queues() -> None:
    """The number of queues is limited, so that channel names cannot exhaust the memory; existing queues still work."""
    forwarder = Forwarder(queue_names=1)
    forwarder.connect(A)
    forwarder.send(channel=b"one")
    assert statuses(forwarder.send(channel=b"two")) == [Status.REFUSED]
    assert list(forwarder.ready(1, channel=b"two")) == []
    forwarder.back(wire.Job(A, 1, 1, 1, 60_000, b"two", b""))
    assert statuses(forwarder.send(channel=b"one")) == [Status.OK]
    assert forwarder.drops == {"queue_names": 3}


def test_ready_counts_only_in_the_session_that_is_on(forwarder: Forwarder) -> None:
    """A report outside the current session is ignored; a client repeats its reports after the welcome."""
    forwarder.send()
    assert list(forwarder.ready(1)) == []
    forwarder.connect(A, session=2)
    assert list(forwarder.ready(1, session=1)) == []


def test_the_wait_of_each_message_is_observed(forwarder: Forwarder) -> None:
    """The time that each message spends in its queue is observed."""
    waits: list[float] = []
    forwarder.queues.observe_wait = waits.append
    forwarder.connect(A)
    forwarder.send()
    forwarder.clock.now += 2
    forwarder.ready(1)
    assert waits == [2]
    Exchange(INSTANCE).queues.observe_wait(1.0)


def test_the_oldest_wait_is_known(forwarder: Forwarder) -> None:
    """The oldest wait is that of the message that waits longest, and 0 if none waits."""
    assert forwarder.queues.oldest_wait() == 0
    forwarder.send()
    forwarder.clock.now += 2
    forwarder.send(channel=b"other")
    assert forwarder.queues.oldest_wait() == 2
    assert forwarder.queues.depth() == 2


def test_jobs_that_died_with_a_connection_are_handed_over_again(forwarder: Forwarder) -> None:
    """Jobs that died with a connection are handed over again.

    The client reports the number of received jobs behind its subscription and before its hello.
    """
    forwarder.connect(A)
    forwarder.ready(2)
    forwarder.send(b"read"), forwarder.send(b"lost")
    forwarder.upstream(wire.subscription(wire.inbox_topic(A)))
    assert list(forwarder.received(1)) == []
    forwarder.connect(A, session=2)
    assert payloads(forwarder.ready(1, session=2)) == [(A, b"lost")]


def test_one_question_covers_all_channels_of_a_client(forwarder: Forwarder) -> None:
    """One question covers all channels of a client: ten thousand idle readers cost one frame a second.

    A question of an ended session gets no answer.
    """
    forwarder.connect(A)
    for channel in (b"one", b"two", b"three"):
        forwarder.ready(1, channel=channel)
        forwarder.send(channel=channel)
    assert list(forwarder.total()) == [wire.HANDED_TOTAL.encode(wire.HandedTotal(A, 1, 3))]
    assert list(forwarder.total(session=2)) == list(forwarder.total(inbox=B)) == []


def test_a_query_may_be_answered_while_its_frames_are_published(forwarder: Forwarder) -> None:
    """A query may be answered while its frames are published, and the order of messages is kept.

    An embedded producer is the exchange's driver and its client at once.
    """
    forwarder.connect(A)
    forwarder.connect(B)
    for inbox in (A, B):
        forwarder.ready(5, inbox=inbox)
    settled: Counter[bytes] = Counter()
    published: list[bytes] = []

    def publish(frames: Iterable[bytes]) -> None:
        for frame in frames:
            published.append(frame)
            if wire.sub_kind(frame) == wire.JOB.kind:
                settled[wire.inbox_in(frame)] += 1
            elif wire.sub_kind(frame) == wire.QUERY.kind:
                query = wire.QUERY.decode(frame)
                publish(forwarder.ready(50, settled[query.inbox], inbox=query.inbox, answers=query.n))

    for number in range(20):
        publish(forwarder.send(b"%d" % number, n=number + 1, capacity=2))
    assert statuses(published) == [Status.OK] * 20
    assert [payload for _, payload in payloads(published)] == [b"%d" % number for number in range(20)]


def test_pending_messages_are_decided_when_a_client_disconnects(forwarder: Forwarder) -> None:
    """A pending message is decided when the queried client disconnects, or after a second without an answer."""
    forwarder.connect(A)
    forwarder.ready(1)
    forwarder.send(capacity=1)
    forwarder.send(n=2, capacity=1)
    assert statuses(forwarder.disconnect(A)) == [Status.FULL]
    forwarder.connect(B)
    forwarder.ready(1, inbox=B, channel=b"other")
    forwarder.send(capacity=1, channel=b"other")
    forwarder.send(n=3, capacity=1, channel=b"other")
    assert forwarder.due() == forwarder.clock.now + 1
    forwarder.clock.now += 1
    assert statuses(forwarder.sweep()) == [Status.FULL]


# Normal channels as members of groups


def test_a_group_message_is_put_into_the_queue_of_each_normal_member(forwarder: Forwarder) -> None:
    """A group message is put into the queue of each normal member, and relayed to subscribers too."""
    forwarder.connect(A)
    assert statuses(forwarder.join()) == [Status.OK]
    forwarder.join(channel=b"other")
    assert not forwarder.relays_unchanged
    assert list(forwarder.inbound(group_frame(b"hi"))) == [group_frame(b"hi")]
    assert payloads(forwarder.ready(9)) == [(A, b"hi")]
    assert payloads(forwarder.ready(9, channel=b"other")) == [(A, b"hi")]
    assert list(forwarder.inbound(group_frame(group="elsewhere"))) == [group_frame(group="elsewhere")]


def test_a_full_normal_member_misses_the_message(forwarder: Forwarder) -> None:
    """A message for a full normal member is dropped and counted; it is still relayed to the subscribers."""
    forwarder.connect(A)
    forwarder.join(capacity=1)
    for number in (1, 2):
        assert len(forwarder.inbound(group_frame(number=number))) == 1
    assert forwarder.queues.depth() == 1
    assert forwarder.drops == {"queue_full": 1}


def test_a_message_that_is_sent_again_is_copied_to_a_normal_member_once(forwarder: Forwarder) -> None:
    """A message that is sent again is relayed, as a subscriber may have missed it, and copied to a member once.

    A message that did not arrive before is copied.
    """
    forwarder.connect(A)
    forwarder.join()
    forwarder.clock.now += 1.0
    first, second = (group_frame(number=number) for number in (1, 2))
    forwarder.inbound(first)
    for frame in (first, second, second):
        repeated = wire.again(frame, 60_000, 10, elsewhere=False, acknowledged=False)
        assert forwarder.inbound(repeated)[0] == repeated
    assert forwarder.queues.depth() == 2


def test_a_message_that_is_sent_again_after_a_flush_is_not_copied_again(forwarder: Forwarder) -> None:
    """A flush does not forget which messages were copied: a reader may have taken the copy before the flush.

    The member returns with the age of its first addition, by a process that has missed the flush.
    """
    forwarder.connect(A)
    forwarder.join()
    forwarder.clock.now += 1.0
    frame = group_frame()
    forwarder.inbound(frame)
    assert payloads(forwarder.ready(1)) == [(A, b"hello")]
    *_, empty = forwarder.flush()
    forwarder.flushed(empty)
    forwarder.join(age=1_000)
    forwarder.inbound(wire.again(frame, 60_000, 10, elsewhere=False, acknowledged=False))
    assert forwarder.queues.depth() == 0


@pytest.mark.parametrize(("elsewhere", "acknowledged"), [(True, False), (False, True)])
def test_a_message_that_an_instance_may_have_copied_is_not_copied(
    forwarder: Forwarder, elsewhere: bool, acknowledged: bool
) -> None:
    """A message that another instance may have copied is not copied again, whatever became of those copies.

    No job is ever done twice. A message that was acknowledged was copied for sure.
    """
    forwarder.connect(A)
    forwarder.join()
    forwarder.clock.now += 1.0
    frame = wire.again(group_frame(), 60_000, 10, elsewhere=elsewhere, acknowledged=acknowledged)
    assert forwarder.inbound(frame) == (frame,)
    forwarder.inbound(wire.again(group_frame(), 60_000, 10, elsewhere=False, acknowledged=False))
    assert forwarder.queues.depth() == 0


def test_a_forged_number_does_not_keep_messages_from_normal_members(forwarder: Forwarder) -> None:
    """A forged high number does not keep later messages of the sender from normal members."""
    forwarder.connect(A)
    forwarder.join()
    for number in (1, 2**64 - 1, 2, 2):
        forwarder.inbound(group_frame(number=number))
    assert forwarder.queues.depth() == 3


def test_a_message_that_is_sent_again_is_not_for_a_normal_member_added_since(forwarder: Forwarder) -> None:
    """A message that is sent again is not copied to a member that was added after its publication.

    Its age shows when it was published.
    """
    forwarder.connect(A)
    forwarder.join()
    forwarder.clock.now += 1.0
    forwarder.inbound(wire.again(group_frame(), 60_000, 1_001, elsewhere=False, acknowledged=False))
    assert forwarder.queues.depth() == 0
    forwarder.inbound(wire.again(group_frame(number=2), 60_000, 999, elsewhere=False, acknowledged=False))
    assert forwarder.queues.depth() == 1


def test_the_processes_that_added_a_normal_member_are_notified_of_its_discard(forwarder: Forwarder) -> None:
    """A discard is reported to the processes that added the member, before it is confirmed.

    Otherwise they would add the member again to the next instance.
    """
    forwarder.connect(A)
    forwarder.connect(B)
    forwarder.connect(C)
    forwarder.join(inbox=A)
    forwarder.join(inbox=B)
    forwarder.disconnect(A)
    told, confirm = forwarder.join(inbox=C, n=6, add=0)
    assert wire.REMOVED.decode(told) == wire.Removed(B, b"room", JOBS)
    assert wire.CONFIRM.decode(confirm) == wire.Confirm(C, 6, Status.OK, INSTANCE)
    assert forwarder.relays_unchanged


def test_a_normal_member_outlives_the_process_that_added_it(forwarder: Forwarder) -> None:
    """A normal member outlives its process, and only a discard or the end of its life removes it."""
    forwarder.connect(A)
    forwarder.join(life=10_000)
    forwarder.disconnect(A)
    forwarder.inbound(group_frame())
    assert forwarder.queues.depth() == 1
    forwarder.clock.now += 10
    forwarder.inbound(group_frame())
    assert forwarder.queues.depth() == 1
    forwarder.sweep()
    assert forwarder.relays_unchanged


def test_there_are_at_most_so_many_normal_members() -> None:
    """The number of normal members is limited to that of queue names."""
    forwarder = Forwarder(queue_names=1)
    forwarder.connect(A)
    assert statuses(forwarder.join()) == [Status.OK]
    assert statuses(forwarder.join(group=b"other")) == [Status.REFUSED]


def test_members_are_repeated_before_the_hello(forwarder: Forwarder) -> None:
    """Members are repeated before the hello, while the exchange settles.

    A repetition is not confirmed, but a later discard is reported.
    """
    forwarder.enter(State.SETTLING)
    forwarder.upstream(wire.subscription(wire.inbox_topic(A)))
    take = forwarder.upstream
    for add, age, group in ((1, 5_000, b"room"), (0, 2_000, b"left"), (1, 5_000, b"left")):
        frames = take(wire.MEMBER.encode(wire.Member(A, 0, add, age, 0, 9, group, JOBS)))
    assert list(frames) == [wire.REMOVED.encode(wire.Removed(A, b"left", JOBS))]
    assert not forwarder.relays_unchanged
    forwarder.connect(B)
    told, confirm = forwarder.join(inbox=B, add=0)
    assert wire.REMOVED.decode(told) == wire.Removed(A, b"room", JOBS)
    assert statuses([confirm]) == [Status.OK]
    told, confirm = forwarder.join(inbox=A, age=1_000)
    assert wire.REMOVED.decode(told).inbox == A
    assert statuses([confirm]) == [Status.OK]


# Flush


def test_a_flush_ends_when_every_client_has_answered(forwarder: Forwarder) -> None:
    """A flush empties queues and members at once, and is confirmed when every client has answered."""
    forwarder.connect(A)
    forwarder.connect(B)
    forwarder.send()
    forwarder.join()
    to_a, to_b = forwarder.flush(A, n=3)
    assert forwarder.queues.depth() == 0
    assert forwarder.queues.size == 0
    assert forwarder.flushed(to_b) == []
    (done,) = forwarder.flushed(to_a)
    assert wire.CONFIRM.decode(done) == wire.Confirm(A, 3, Status.OK, INSTANCE)
    assert forwarder.relays_unchanged


def test_messages_that_arrive_during_a_flush_are_dropped(forwarder: Forwarder) -> None:
    """Messages that arrive during a flush are dropped.

    The sender of a message to a normal channel learns of it, and may send it again.
    """
    forwarder.connect(A)
    forwarder.ready(1)
    (job,) = jobs(forwarder.send())
    (empty,) = forwarder.flush()
    assert list(forwarder.inbound(group_frame())) == []
    assert list(forwarder.inbound(direct_frame(A))) == []
    assert statuses(forwarder.send()) == [Status.FLUSHING]
    assert list(forwarder.back(job)) == []
    assert forwarder.queues.depth() == 0
    assert forwarder.drops == {"flushed": 4}
    forwarder.flushed(empty)
    assert len(forwarder.inbound(group_frame())) == 1


def test_a_flush_does_not_wait_for_a_client_that_disconnects(forwarder: Forwarder) -> None:
    """A flush does not wait for a client that disconnects, whether it has to answer or has requested the flush."""
    forwarder.connect(A)
    forwarder.connect(B)
    to_a, _ = forwarder.flush(A)
    forwarder.flushed(to_a)
    assert statuses(forwarder.disconnect(B)) == [Status.OK]
    forwarder.flush(A)
    forwarder.disconnect(A)
    assert forwarder.relays_unchanged


def test_a_client_that_reconnects_during_a_flush_is_asked_again(forwarder: Forwarder) -> None:
    """A client that reconnects during a flush is sent the request again, since the first may have been lost."""
    forwarder.connect(A)
    forwarder.flush(A)
    welcome, empty = forwarder.connect(A, session=2)
    assert wire.WELCOME.decode(welcome).session == 2
    assert statuses(forwarder.flushed(empty)) == [Status.OK]
    assert len(forwarder.connect(A, session=3)) == 1


def test_two_flushes_are_distinguished(forwarder: Forwarder) -> None:
    """The answer to one flush does not answer another one, although two clients may use the same request numbers."""
    forwarder.connect(A)
    forwarder.connect(B)
    one = forwarder.flush(A, n=1)
    other = forwarder.flush(B, n=1)
    assert [forwarder.flushed(frame) for frame in one[:1]] == [[]]
    (done,) = forwarder.flushed(one[1])
    assert wire.CONFIRM.decode(done).inbox == A
    assert forwarder.flushed(other[0]) == []
    (done,) = forwarder.flushed(other[1])
    assert wire.CONFIRM.decode(done).inbox == B


@pytest.mark.parametrize("ttl, seconds", [(500, 0.5), (2**32 - 1, MAX_FLUSH)])
def test_a_flush_that_is_not_answered_ends(forwarder: Forwarder, ttl: int, seconds: float) -> None:
    """A flush that is not answered ends after a bounded time, and its client learns of it.

    A client that hangs must not stop all others for longer.
    """
    forwarder.connect(A)
    forwarder.flush(ttl=ttl)
    forwarder.clock.now += seconds - 0.1
    assert statuses(forwarder.sweep()) == []
    assert not forwarder.relays_unchanged
    forwarder.clock.now += 0.1
    assert statuses(forwarder.sweep()) == [Status.GONE]
    assert forwarder.relays_unchanged


def test_flushes_can_be_forbidden() -> None:
    """Flushes can be forbidden, since any client that may send could otherwise drop the messages of all others."""
    forwarder = Forwarder(may_be_flushed=False)
    forwarder.connect(A)
    forwarder.send()
    assert statuses(forwarder.flush()) == [Status.REFUSED]
    assert forwarder.queues.depth() == 1


def test_there_are_at_most_so_many_flushes(forwarder: Forwarder) -> None:
    """The number of concurrent flushes is limited, so that memory stays bounded."""
    forwarder.connect(A)
    for number in range(MAX_FLUSHES):
        assert statuses(forwarder.flush(n=number)) == []
    assert statuses(forwarder.flush(n=99)) == [Status.REFUSED]


# Memory


def test_large_messages_are_refused_when_memory_runs_short(forwarder: Forwarder) -> None:
    """When memory runs short, large messages are refused; small messages and requests still pass."""
    forwarder.connect(A)
    forwarder.refuse_above(1_000)
    assert list(forwarder.inbound(group_frame(bytes(1_000)))) == []
    assert list(forwarder.inbound(direct_frame(A, bytes(1_000)))) == []
    assert statuses(forwarder.send(bytes(1_000))) == [Status.MEMORY]
    exactly = group_frame(bytes(1_000 - len(group_frame(b""))))
    assert list(forwarder.inbound(exactly)) == [exactly]
    assert statuses(forwarder.send()) == [Status.OK]
    assert forwarder.drops == {"memory": 3}


def test_all_messages_are_refused_when_memory_is_at_its_end(forwarder: Forwarder) -> None:
    """With no memory left all messages are refused and requests still pass; messages pass once the limit is lifted."""
    forwarder.connect(A)
    forwarder.refuse_above(0)
    assert list(forwarder.inbound(group_frame(b""))) == []
    assert statuses(forwarder.inbound(wire.ECHO.encode(wire.Echo(A, 1)))) == [Status.OK]
    forwarder.refuse_above(None)
    assert forwarder.relays_unchanged
    assert len(forwarder.inbound(group_frame())) == 1


def test_groups_are_listed(forwarder: Forwarder) -> None:
    """A group is listed only while it has a subscriber."""
    forwarder.connect(A)
    forwarder.upstream(wire.subscription(wire.group_topic("Zürich")))
    assert forwarder.groups() == ["Zürich".encode()]
    forwarder.upstream(wire.unsubscription(wire.group_topic("Zürich")))
    assert forwarder.groups() == []


# Batches


BODIES = [b"one", b"two", b"three"]


def batch_frame(number: int = 5, flags: int = wire.FLAG_FIRST, prefix: bytes = wire.group_topic("room")) -> bytes:
    return wire.ordered(prefix, b"sender..", number, flags | wire.FLAG_BATCH, 60_000, wire.batch(BODIES))


def singles(prefix: bytes = wire.group_topic("room")) -> list[bytes]:
    """Return the messages of `batch_frame` as frames of their own."""
    flags = (wire.FLAG_FIRST, 0, 0)
    return [
        wire.ordered(prefix, b"sender..", number, flag, 60_000, body)
        for number, (flag, body) in enumerate(zip(flags, BODIES, strict=True), 5)
    ]


def test_batches_pass_while_every_process_can_read_them(forwarder: Forwarder) -> None:
    """Batches are relayed only while every process has reported that it reads them.

    For one that has not, also before its hello, the messages are published one by one.
    """
    forwarder.connect(A)
    assert list(forwarder.inbound(batch_frame())) == [batch_frame()]
    forwarder.upstream(wire.subscription(wire.inbox_topic(B)))
    assert list(forwarder.inbound(batch_frame())) == singles()
    forwarder.upstream(wire.HELLO.encode(wire.Hello(B, wire.VERSION, 1, 0)))
    assert not forwarder.relays_unchanged
    answer = forwarder.batching(B)
    assert list(answer) == [wire.BATCHING_ACCEPTED.encode(wire.BatchingAccepted(B, 1))]
    assert forwarder.relays_unchanged


def test_a_process_that_cannot_read_batches_matters_no_longer_than_it_is_there(forwarder: Forwarder) -> None:
    """Once a process that cannot read batches disconnects, the others get batches again."""
    forwarder.connect(A)
    forwarder.upstream(wire.subscription(wire.inbox_topic(B)))
    forwarder.disconnect(B)
    assert forwarder.relays_unchanged


def test_a_process_that_says_hello_again_can_still_read_batches(forwarder: Forwarder) -> None:
    """A process that repeats its hello can still read batches, since an inbox belongs to one process."""
    forwarder.connect(A)
    forwarder.upstream(wire.HELLO.encode(wire.Hello(A, wire.VERSION, 2, 0)))
    forwarder.upstream(wire.subscription(wire.inbox_topic(A)))
    assert forwarder.relays_unchanged


@pytest.mark.parametrize("session", [0, 2])
def test_batching_counts_in_the_session_of_the_last_hello(forwarder: Forwarder, session: int) -> None:
    """A report of batching from another session is stray: a late frame of another connection proves nothing."""
    forwarder.upstream(wire.subscription(wire.inbox_topic(A)))
    forwarder.upstream(wire.HELLO.encode(wire.Hello(A, wire.VERSION, 1, 0)))
    assert not forwarder.batching(A, session)
    assert not forwarder.relays_unchanged
    assert forwarder.drops["stray"] == 1


@pytest.mark.parametrize("reads_batches", [True, False])
def test_a_batch_for_one_process_is_treated_like_any_other(forwarder: Forwarder, reads_batches: bool) -> None:
    """A batch for one process is relayed or taken apart, and each message is counted as a drop if that is gone."""
    forwarder.connect(A)
    if not reads_batches:
        forwarder.upstream(wire.subscription(wire.inbox_topic(B)))
    prefix = wire.direct_prefix(A)
    batch = batch_frame(prefix=prefix)
    assert list(forwarder.inbound(batch)) == ([batch] if reads_batches else singles(prefix))
    assert not forwarder.inbound(batch_frame(prefix=wire.direct_prefix(C)))
    assert forwarder.drops["unroutable"] == len(BODIES)


def test_the_messages_of_a_batch_are_copied_to_normal_members_once(forwarder: Forwarder) -> None:
    """Each message of a batch is copied to normal members once, even if it arrived before in a frame of its own."""
    forwarder.connect(A)
    forwarder.join()
    forwarder.inbound(singles()[0])
    forwarder.inbound(batch_frame())
    assert [entry.payload for entry in forwarder.queues.by_channel[JOBS].waiting.values()] == BODIES


def test_messages_of_a_batch_are_refused_one_by_one_when_memory_runs_out(forwarder: Forwarder) -> None:
    """When memory runs out, the messages of a batch are refused one by one, since the limit applies to a message."""
    forwarder.connect(A)
    forwarder.refuse_above(len(singles()[0]))
    assert list(forwarder.inbound(batch_frame())) == singles()[:2]
    assert forwarder.drops["memory"] == 1


@pytest.mark.parametrize("body", [b"", b"\0", b"\1", b"\1\0\0\0\2x", b"\1\0\0\0\1xy", bytes([wire.MAX_BATCH + 1])])
def test_a_malformed_batch_that_is_taken_apart_is_counted(forwarder: Forwarder, body: bytes) -> None:
    """A batch whose lengths do not add up is dropped as malformed when it is taken apart."""
    forwarder.upstream(wire.subscription(wire.inbox_topic(A)))
    frame = wire.ordered(wire.group_topic("room"), b"sender..", 1, wire.FLAG_BATCH, 60_000, body)
    assert not forwarder.inbound(frame)
    assert forwarder.drops["malformed"] == 1


def test_a_flush_drops_the_messages_of_a_batch_that_are_left(crowd: Forwarder) -> None:
    """A flush drops the remaining messages of a batch, which were sent before it."""
    assert list(crowd.inbound(batch_frame())) == singles()[:1]
    crowd.flush()
    assert not crowd.is_unfinished


# Groups with many normal members


@pytest.fixture
def crowd(forwarder: Forwarder) -> Forwarder:
    """Return an exchange with a group of more normal members than one step serves."""
    forwarder.connect(A)
    for number in range(2 * COPIES_A_STEP + 1):
        forwarder.join(channel=b"%d" % number)
    return forwarder


def test_copies_for_many_members_are_made_in_steps(crowd: Forwarder) -> None:
    """Copies for many members are made in steps, so that one message does not stop the exchange for long.

    Meanwhile its driver serves no producer.
    """
    assert list(crowd.inbound(group_frame())) == [group_frame()]
    depths = [crowd.queues.depth()]
    while crowd.is_unfinished:
        crowd.go_on()
        depths.append(crowd.queues.depth())
    assert depths == [COPIES_A_STEP, 2 * COPIES_A_STEP, 2 * COPIES_A_STEP + 1]


def test_copies_of_the_messages_of_a_batch_are_made_in_steps(forwarder: Forwarder) -> None:
    """The copies of a batch are made in one step for each message, if each has few enough members."""
    forwarder.connect(A)
    for number in range(COPIES_A_STEP):
        forwarder.join(channel=b"%d" % number)
    forwarder.inbound(batch_frame())
    assert forwarder.queues.depth() == COPIES_A_STEP
    while forwarder.is_unfinished:
        before = forwarder.queues.depth()
        forwarder.go_on()
        assert forwarder.queues.depth() == before + COPIES_A_STEP


def test_a_flush_drops_the_copies_that_are_left(crowd: Forwarder) -> None:
    """A flush drops the remaining copies of a message, which was sent before it."""
    crowd.inbound(group_frame())
    crowd.flush()
    assert not crowd.is_unfinished
    assert crowd.queues.depth() == 0


def test_members_without_end_are_forgotten_with_their_client(forwarder: Forwarder) -> None:
    """Members without an expiry are removed some time after their client, since nothing else would discard them."""
    forwarder.connect(A)
    forwarder.join()
    forwarder.disconnect(A)
    forwarder.clock.now += KEPT_FOR
    forwarder.sweep()
    assert forwarder.relays_unchanged


# Clients whose connection was cut


def ask_again(forwarder: Forwarder, inbox: bytes = A, session: int = 2) -> list[bytes]:
    """Let a reconnected client request the messages that it missed; return those that it is sent."""
    forwarder.history.end_block()
    hashes = wire.encode_hashes([wire.group_topic("room")])
    out = [*forwarder.upstream(wire.RESUME.encode(wire.Resume(inbox, session, 1000, 0, hashes)))]
    while forwarder.replays.is_due:
        out += forwarder.replays.step()
    answers = [wire.REPLAYED.decode(frame) for frame in out]
    assert {(one.inbox, one.session) for one in answers} <= {(inbox, session)}
    return [message for one in answers for message in wire.decode_messages(one.messages)]


def message(prefix: bytes = wire.group_topic("room"), number: int = 1) -> bytes:
    return wire.ordered(prefix, b"sender..", number, 0, 60_000, b"x\0y")


def test_messages_are_kept_for_clients_whose_connection_is_cut(forwarder: Forwarder) -> None:
    """Messages are kept for clients whose connection is cut, even if nobody receives them at the moment."""
    forwarder.connect(B)
    forwarder.inbound(message())
    forwarder.inbound(message(wire.direct_prefix(A)))
    forwarder.inbound(message(wire.direct_prefix(B)))
    forwarder.connect(A, session=2)
    sent = ask_again(forwarder)
    assert [wire.prefix_of(one) for one in sent] == [wire.group_topic("room"), wire.direct_prefix(A)]
    assert forwarder.drops == {"unroutable": 1}


def test_a_client_that_asks_again_in_its_session_gets_one_replay(forwarder: Forwarder) -> None:
    """A client gets one replay in a session, however often it requests one.

    It repeats its hello, and the frames that follow it, until it has read the welcome behind other messages.
    """
    forwarder.connect(A, session=2)
    forwarder.inbound(message())
    assert [len(ask_again(forwarder)) for _ in range(3)] == [1, 0, 0]
    forwarder.connect(A, session=3)
    assert len(ask_again(forwarder, session=3)) == 1
    forwarder.disconnect(A)
    assert A not in forwarder._resumed


def test_the_messages_of_a_batch_that_is_taken_apart_are_kept_one_by_one(forwarder: Forwarder) -> None:
    """The messages of a batch that is taken apart are kept one by one, as they are published."""
    forwarder.connect(A, session=2)
    forwarder.upstream(wire.subscription(wire.inbox_topic(B)))
    forwarder.inbound(batch_frame())
    assert [wire.read_group(one)[5] for one in ask_again(forwarder)] == BODIES


def test_messages_that_are_refused_are_not_kept(forwarder: Forwarder) -> None:
    """A message that is refused is not kept, so that a client that was cut off gets no more than others."""
    forwarder.connect(A, session=2)
    forwarder.refuse_above(0)
    forwarder.inbound(message())
    forwarder.inbound(message(wire.direct_prefix(A)))
    assert ask_again(forwarder) == []


def test_a_flush_drops_the_messages_that_are_kept(forwarder: Forwarder) -> None:
    """A flush drops the messages that are kept, since they are older than it."""
    forwarder.connect(A, session=2)
    forwarder.inbound(message())
    forwarder.upstream(wire.FLUSH.encode(wire.Flush(A, 1, 1000)))
    assert ask_again(forwarder) == []


def test_messages_are_kept_for_a_while(forwarder: Forwarder) -> None:
    """Messages are kept for a limited time, after which a sweep that is due drops them."""
    forwarder.inbound(message())
    forwarder.history.end_block()
    assert forwarder.due() == forwarder.clock.now + SECONDS
    forwarder.clock.now += SECONDS
    forwarder.sweep()
    assert forwarder.history.size == 0


@pytest.mark.parametrize("session", [1, 3])
def test_a_request_of_another_session_is_stray(forwarder: Forwarder, session: int) -> None:
    """A request of another session is stray: it is from a dead connection, or its hello is missing."""
    forwarder.connect(A, session=2)
    assert ask_again(forwarder, session=session) == []
    assert forwarder.drops["stray"] == 1


def test_an_exchange_that_keeps_nothing_answers_at_once() -> None:
    """An exchange without a history, as in an embedded producer, answers a request at once."""
    forwarder = Forwarder(history_bytes=0)
    forwarder.connect(A, session=2)
    forwarder.inbound(message())
    request = wire.RESUME.encode(wire.Resume(A, 2, 1000, 1))
    assert list(forwarder.upstream(request)) == [wire.REPLAYED.encode(wire.Replayed(A, 2, 1))]
    assert not forwarder.replays.is_due


def test_malformed_topics_are_dropped(forwarder: Forwarder) -> None:
    """A request whose topics are not hashes of four bytes is dropped as malformed."""
    forwarder.connect(A, session=2)
    assert not forwarder.upstream(wire.RESUME.encode(wire.Resume(A, 2, 1000, 0, b"abc")))
    assert (forwarder.drops["malformed"], forwarder.replays.is_due) == (1, False)
