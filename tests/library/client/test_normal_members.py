"""Normal channels that a process has added to groups or removed from them."""

import pytest
from fakes import Clock

from channels_zmq.client.normal_members import REMOVALS_KEPT, NormalMembers
from channels_zmq_forwarder import wire

INBOX = b"0123456789abcdef"


@pytest.fixture
def members(clock: Clock) -> NormalMembers:
    return NormalMembers(clock)


def member(channel: bytes = b"jobs", *, add: int = 1, life: int = 0, n: int = 5, group: bytes = b"g") -> wire.Member:
    return wire.Member(INBOX, n, add, 0, life, 9, group, channel)


def repeated(members: NormalMembers) -> list[wire.Member]:
    return [wire.MEMBER.decode(frame) for frame in members.repeat()]


@pytest.mark.parametrize("add", [1, 0])
def test_a_note_is_repeated_with_its_age(members: NormalMembers, clock: Clock, add: int) -> None:
    """A reconnect repeats an addition or a removal with its age and without a request number, since no caller waits."""
    members.changed(member(add=add))
    clock.now += 1.5
    assert repeated(members) == [member(add=add, n=0)._replace(age=1500)]


def test_the_last_note_on_a_pair_counts(members: NormalMembers, clock: Clock) -> None:
    """Only the last note on a pair of group and channel is repeated, so that a removed channel stays removed."""
    members.changed(member())
    clock.now += 1
    members.changed(member(add=0))
    members.changed(member(b"other"))
    assert [(note.channel, note.add, note.age) for note in repeated(members)] == [(b"jobs", 0, 0), (b"other", 1, 0)]
    assert len(members) == 2


@pytest.mark.parametrize("add, left", [(1, 0), (0, 1)])
def test_a_removal_by_another_process_ends_an_addition_only(members: NormalMembers, add: int, left: int) -> None:
    """A removal by another process cancels a noted addition but no noted removal, and accepts an unknown pair."""
    members.changed(member(add=add))
    members.removed(b"g", b"jobs")
    members.removed(b"g", b"unknown")
    assert len(members) == left


@pytest.mark.parametrize(
    "note, seconds",
    [(member(life=10_000), 10.0), (member(add=0), REMOVALS_KEPT), (member(add=0, life=1), REMOVALS_KEPT)],
)
def test_a_note_is_forgotten_when_its_time_is_over(
    members: NormalMembers, clock: Clock, note: wire.Member, seconds: float
) -> None:
    """An addition is forgotten when its membership ends, a removal when every exchange has forgotten the membership."""
    members.changed(note)
    clock.now += seconds - 0.1
    assert len(repeated(members)) == 1
    clock.now += 0.1
    assert repeated(members) == []


def test_an_addition_without_a_life_is_kept(members: NormalMembers, clock: Clock) -> None:
    """An addition without an expiry is repeated for ever."""
    members.changed(member())
    clock.now += 1e6
    assert len(repeated(members)) == 1


def test_a_renewed_addition_lives_anew(members: NormalMembers, clock: Clock) -> None:
    """A renewed addition expires by its new life only."""
    members.changed(member(life=10_000))
    clock.now += 9
    members.changed(member(life=10_000))
    clock.now += 9
    assert len(repeated(members)) == 1


def test_what_comes_and_goes_leaves_nothing(members: NormalMembers, clock: Clock) -> None:
    """Later notes remove the expired ones, so that memory stays bounded without a reconnect."""
    for number in range(10_000):
        clock.now += 1
        members.changed(member(b"%d" % number, life=1000))
    assert len(members) == 1


def test_clearing_leaves_nothing(members: NormalMembers, clock: Clock) -> None:
    """Clearing removes all notes, because a flush has ended all memberships."""
    members.changed(member(life=1000))
    members.clear()
    clock.now += 1
    assert (repeated(members), len(members)) == ([], 0)
