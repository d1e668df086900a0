"""The messages that are published once more for clients whose connection was cut."""

from collections.abc import Iterable

import pytest
from fakes import Clock

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.history import History
from channels_zmq_forwarder.replays import (
    ANSWERED_WITHIN,
    CLIENTS,
    FRAME_BYTES,
    FRAMES,
    STEP_BYTES,
    STEP_SECONDS,
    Replays,
)

A, B = b"a" * 16, b"b" * 16
SENDER = b"sender.."
TTL = 60_000


class Rig:
    """A history, and the replays of it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.history = History(16 * 2**20, clock)
        self.replays = Replays(self.history, clock)
        self.numbers = 0

    def relay(self, prefix: bytes, body: bytes = b"x", ttl: int = TTL) -> bytes:
        self.numbers += 1
        return self.record(wire.ordered(prefix, SENDER, self.numbers, 0, ttl, body))

    def record(self, frame: bytes) -> bytes:
        self.history.record(frame)
        self.history.end_block()
        return frame

    def ask(self, inbox: bytes, *groups: str, age: int = 5000, every: int = 0, session: int = 2) -> None:
        hashes = wire.encode_hashes(map(wire.group_topic, groups))
        self.replays.ask(wire.Resume(inbox, session, age, every, hashes))

    def step(self) -> list[wire.Replayed]:
        return [wire.REPLAYED.decode(frame) for frame in self.replays.step()]

    def answers(self) -> list[wire.Replayed]:
        answers = []
        while self.replays.is_due:
            answers += self.step()
        return answers

    def messages(self, inbox: bytes = A) -> list[bytes]:
        """Return the messages that a client is sent; its answer has to end once."""
        answers = [one for one in self.answers() if one.inbox == inbox]
        assert [one.last for one in answers] == [0] * (len(answers) - 1) + [1]
        return list(contents(answers))


def contents(answers: Iterable[wire.Replayed]) -> Iterable[bytes]:
    for one in answers:
        yield from wire.decode_messages(one.messages)


def again(frame: bytes, age: int = 0, ttl: int = TTL) -> bytes:
    return wire.again(frame, ttl - age, age, elsewhere=False, acknowledged=False)


@pytest.fixture
def rig(clock: Clock) -> Rig:
    return Rig(clock)


def test_a_client_is_sent_the_messages_of_its_groups_in_order(rig: Rig) -> None:
    """A client is sent the messages of its groups and its inbox in order of publication, and no others."""
    one = rig.relay(wire.group_topic("one"))
    rig.relay(wire.group_topic("two"))
    direct = rig.relay(wire.direct_prefix(A))
    rig.relay(wire.direct_prefix(B))
    other = rig.relay(wire.group_topic("one"))
    rig.ask(A, "one")
    assert rig.messages() == [again(one), again(direct), again(other)]
    assert rig.replays.messages == 3


def test_a_client_with_many_groups_is_sent_all_messages(rig: Rig) -> None:
    """A client with too many groups is sent the messages of all groups, but not those for other clients alone."""
    one, other = rig.relay(wire.group_topic("one")), rig.relay(wire.group_topic("two"))
    rig.relay(wire.direct_prefix(B))
    rig.ask(A, every=1)
    assert rig.messages() == [again(one), again(other)]


def test_an_answer_comes_also_if_there_is_nothing(rig: Rig) -> None:
    """A client gets an answer even if there is no message, so that it does not wait."""
    rig.ask(A, "one", session=9)
    assert rig.answers() == [wire.Replayed(A, 9, 1)]


def test_what_is_older_than_asked_for_is_not_sent(rig: Rig) -> None:
    """Messages that are older than requested are not sent, since the client has them already."""
    rig.relay(wire.group_topic("one"))
    rig.clock.now += 1.0
    rig.relay(wire.group_topic("one"))
    rig.clock.now += 1.0
    late = rig.relay(wire.group_topic("one"))
    rig.ask(A, "one", age=900)
    assert rig.messages() == [again(late)]


def test_a_message_has_its_age_and_what_it_has_left_to_live(rig: Rig) -> None:
    """A replayed message has its age and its remaining time to live; a sender that sent it again adds to the age."""
    new = rig.relay(wire.group_topic("one"))
    old = rig.record(wire.again(new, TTL - 500, 500, elsewhere=True, acknowledged=False))
    rig.relay(wire.group_topic("one"), ttl=1200)
    rig.history.since(0.0)
    rig.clock.now += 1.2
    rig.ask(A, "one")
    assert rig.messages() == [again(new, 1200), wire.again(old, TTL - 1700, 1700, elsewhere=True, acknowledged=False)]


@pytest.mark.parametrize("frame", [b"G", b"Gone", b"Gone\0", b"Gone\0" + bytes(20), b"G\0"])
def test_what_is_malformed_is_not_sent_again(rig: Rig, frame: bytes) -> None:
    """A malformed message is not replayed, although the hot loop recorded it by its first byte alone."""
    rig.record(frame)
    rig.ask(A, every=1)
    assert rig.messages() == []


def test_messages_share_frames_that_every_client_can_take(rig: Rig) -> None:
    """Messages share frames that every client can accept, whatever its largest payload is."""
    frames = [rig.relay(wire.group_topic("one"), b"x" * 500) for _ in range(20)]
    large = rig.relay(wire.group_topic("one"), b"x" * 2 * FRAME_BYTES)
    rig.ask(A, "one")
    answers = rig.answers()
    assert list(contents(answers)) == [*map(again, frames), again(large)]
    assert len(answers) == 4
    for answer in answers:
        assert len(wire.REPLAYED.encode(answer)) <= wire.MAX_OVERHEAD or len(wire.decode_messages(answer.messages)) == 1


def test_whoever_asks_meanwhile_is_served_by_the_next_replay(rig: Rig) -> None:
    """A request during a replay is served by the next replay, which serves all earlier requests at once."""
    frames = [rig.relay(wire.group_topic("one"), b"x" * 1000) for _ in range(2 * STEP_BYTES // 1000)]
    rig.ask(A, "one")
    first = rig.step()
    rig.ask(B, "one")
    rest = rig.answers()
    for inbox in (A, B):
        answers = [one for one in (*first, *rest) if one.inbox == inbox]
        assert list(contents(answers)) == [*map(again, frames)]


def test_a_replay_is_made_in_short_steps(rig: Rig) -> None:
    """A replay is made in short steps, so that the forwarder does other work between them."""
    for _ in range(2 * STEP_BYTES // 1000):
        rig.relay(wire.group_topic("one"), b"x" * 1000)
    for inbox in (A, B):
        rig.ask(inbox, "one")
    steps = []
    while rig.replays.is_due:
        steps.append(sum(map(len, contents(rig.step()))))
    assert len([one for one in steps if one]) > 2
    assert max(steps) < 2 * STEP_BYTES


def test_replays_are_bounded_in_bytes(rig: Rig) -> None:
    """Replays are bounded in bytes: of many clients that reconnect at once, the last get only the end of an answer."""
    frame = rig.relay(wire.group_topic("one"), b"x" * 2**20)
    for number in range(40):
        rig.ask(b"%016d" % number, "one")
    answers = rig.answers()
    sent = list(contents(answers))
    assert sum(map(len, sent)) <= 32 * 2**20 < sum(map(len, sent)) + len(frame) + 100
    assert sum(one.last for one in answers) == 40
    rig.clock.now += 0.5
    rig.ask(A, "one")
    assert rig.messages() == [again(frame, 500)]


def test_one_client_leaves_something_to_the_next_one(rig: Rig) -> None:
    """A client that requests much leaves some of the bytes to the next one."""
    for _ in range(15):
        rig.relay(wire.group_topic("one"), b"x" * 2**20)
    counts = []
    for inbox in (A, B, A):
        rig.ask(inbox, "one")
        counts.append(len(rig.messages(inbox)))
    assert counts == [15, 8, 4]


def test_large_messages_to_many_clients_leave_one_after_the_other(rig: Rig) -> None:
    """Copies of a large message for many clients are published in separate steps, since each client gets its own."""
    rig.relay(wire.group_topic("one"), b"x" * 2**20)
    for number in range(20):
        rig.ask(b"%016d" % number, "one")
    steps = []
    while rig.replays.is_due:
        steps.append(sum(map(len, contents(rig.step()))))
    assert max(steps) < 2 * 2**20


def test_a_replay_serves_so_many_clients(rig: Rig) -> None:
    """A replay serves a bounded number of clients, and the next one serves the others."""
    frame = rig.relay(wire.group_topic("one"))
    inboxes = [b"%016d" % number for number in range(CLIENTS + 1)]
    for inbox in inboxes:
        rig.ask(inbox, "one")
    assert [one.inbox for one in rig.step()] == inboxes[:CLIENTS]
    assert [(one.inbox, list(contents([one]))) for one in rig.answers()] == [(inboxes[-1], [again(frame)])]


def test_a_client_that_does_not_wait_any_more_gets_nothing_more(rig: Rig) -> None:
    """A client whose time to wait is over gets only the end of its answer; a later request is answered in full."""
    frames = [rig.relay(wire.group_topic("one"), b"x" * 1000) for _ in range(4 * STEP_BYTES // 1000)]
    rig.ask(A, "one")
    rig.clock.now += ANSWERED_WITHIN
    rig.ask(B, "one")
    first = rig.step()
    rig.clock.now += 2 * STEP_SECONDS
    answers = [*first, *rig.answers()]
    sent = {inbox: len(list(contents(one for one in answers if one.inbox == inbox))) for inbox in (A, B)}
    assert 0 < sent[A] < len(frames) == sent[B]
    assert sum(one.last for one in answers) == 2


def test_one_client_gets_so_many_frames(rig: Rig) -> None:
    """A client gets a bounded number of frames, since XPUB would drop more, and those of others with them."""
    for _ in range(FRAMES + 10):
        rig.relay(wire.group_topic("one"), b"x" * (FRAME_BYTES // 2))
    rig.ask(A, "one")
    assert FRAMES <= len(rig.answers()) <= FRAMES + 1


def test_the_age_of_a_message_is_that_of_its_step(rig: Rig) -> None:
    """A message has its age at its own step, and does not wait for later steps."""
    frames = [rig.relay(wire.group_topic("one"), b"x" * 1000) for _ in range(2 * STEP_BYTES // 1000)]
    rig.ask(A, "one")
    sent = []
    while rig.replays.is_due:
        sent.append([wire.age_of(message) for message in contents(rig.step())])
        rig.clock.now += 0.1
    steps = [set(ages) for ages in sent if ages]
    assert len(steps) > 1
    assert steps == [{100 * number} for number in range(len(steps))]
    assert sum(map(len, sent)) == len(frames)


def test_a_flush_ends_a_replay(rig: Rig) -> None:
    """A flush ends a replay, so that no earlier message is published, and the clients get the end of their answer."""
    for _ in range(2 * STEP_BYTES // 1000):
        rig.relay(wire.group_topic("one"), b"x" * 1000)
    rig.ask(A, "one")
    assert list(contents(rig.step()))
    rig.ask(B, "one")
    rig.replays.clear()
    assert sorted(rig.answers()) == [wire.Replayed(A, 2, 1), wire.Replayed(B, 2, 1)]
