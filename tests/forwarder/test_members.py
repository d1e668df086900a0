"""Plain channels as members of groups."""

from channels_zmq_forwarder.members import PlainMembers
from channels_zmq_forwarder.wire import Member

A, B = b"a" * 16, b"b" * 16


def member(inbox=A, *, age=0, life=0, capacity=10, group=b"room", channel=b"jobs"):
    return Member(inbox, 1, 1, age, life, capacity, group, channel)


def channels(members, now=0.0, group=b"room"):
    return [name for name, _ in members.of(group, now)]


def test_a_member_belongs_to_its_group_until_it_leaves():
    """Other groups have nothing of it."""
    members = PlainMembers(10)
    assert members.join(member(), 0, {A})
    assert channels(members) == [b"jobs"]
    assert channels(members, group=b"other") == []
    assert members.leave(b"room", b"jobs") == {A}
    assert channels(members) == []
    assert members.count == 0
    assert members._groups == {}, "an empty group would stay in memory for ever"


def test_leaving_a_group_twice_does_nothing():
    """A repeated discard finds nobody to tell."""
    members = PlainMembers(10)
    members.join(member(channel=b"other"), 0, {A})
    assert members.leave(b"room", b"jobs") == frozenset()
    assert members.leave(b"nowhere", b"jobs") == frozenset()
    assert members.count == 1


def test_a_member_ends_with_its_life():
    """Its age when it was said counts: it may have been added to another instance long ago."""
    members = PlainMembers(10)
    members.join(member(age=4_000, life=10_000), 0, {A})
    assert channels(members, now=5.9) == [b"jobs"]
    assert channels(members, now=6) == []
    members.expire(5.9)
    assert members.count == 1
    members.expire(6)
    assert members.count == 0


def test_without_an_end_of_life_a_member_stays():
    """A life of 0 is for ever."""
    members = PlainMembers(10)
    members.join(member(life=0), 0, {A})
    assert channels(members, now=1e12) == [b"jobs"]


def test_adding_again_lengthens_the_life_and_never_shortens_it():
    """A process that repeats an old addition does not undo a younger one."""
    members = PlainMembers(10)
    members.join(member(life=10_000), 0, {A})
    members.join(member(age=9_000, life=10_000), 0, {A})
    assert channels(members, now=9) == [b"jobs"]
    members.join(member(life=20_000, capacity=3), 5, {A})
    assert members.of(b"room", 24)[0][1].capacity == 3


def test_whoever_added_and_still_lives_is_remembered():
    """A process that is gone needs no telling."""
    members = PlainMembers(10)
    members.join(member(A), 0, {A})
    members.join(member(B), 0, {A, B})
    assert members.leave(b"room", b"jobs") == {A, B}
    members.join(member(A), 0, {A})
    members.join(member(B), 0, {B})
    assert members.leave(b"room", b"jobs") == {B}


def test_there_is_a_limit():
    """Further channels are refused; those that are in may say so again."""
    members = PlainMembers(2)
    assert members.join(member(), 0, {A})
    assert members.join(member(group=b"other"), 0, {A})
    assert not members.join(member(group=b"third"), 0, {A})
    assert members.join(member(), 0, {A})
    members.clear()
    assert members.count == 0
    assert channels(members) == []
    assert members.join(member(group=b"third"), 0, {A})
