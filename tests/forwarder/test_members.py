"""The table of normal channels that are members of groups."""

from math import inf

import pytest

from channels_zmq_forwarder.members import KEPT_FOR, NormalMembers
from channels_zmq_forwarder.wire import Member, Status

A, B = b"a" * 16, b"b" * 16


def member(
    inbox: bytes = A,
    *,
    age: int = 0,
    life: int = 0,
    capacity: int = 10,
    group: bytes = b"room",
    channel: bytes = b"jobs",
) -> Member:
    return Member(inbox, 1, 1, age, life, capacity, group, channel)


def channels(members: NormalMembers, now: float = 0.0, group: bytes = b"room") -> list[bytes]:
    return [name for name, _ in members.of(group, now)]


def test_a_member_belongs_to_its_group_until_it_leaves() -> None:
    """A member belongs to its own group only, until it leaves; an empty group is removed."""
    members = NormalMembers(10, per_client=100)
    assert members.join(member(), 0, {A}.__contains__) is Status.OK
    assert channels(members) == [b"jobs"]
    assert channels(members, group=b"other") == []
    assert members.leave(member(), 0) == {A}
    assert channels(members) == []
    assert members.count == 0
    assert members._groups == {}, "an empty group would stay in memory for ever"


def test_leaving_a_group_twice_does_nothing() -> None:
    """A repeated discard changes nothing and notifies nobody."""
    members = NormalMembers(10, per_client=100)
    members.join(member(channel=b"other"), 0, {A}.__contains__)
    assert members.leave(member(), 0) == frozenset()
    assert members.leave(member(group=b"nowhere"), 0) == frozenset()
    assert members.count == 1


def test_a_member_ends_with_its_life() -> None:
    """A member expires at the end of its life, which its age shortens.

    It may have been added to another instance long ago.
    """
    members = NormalMembers(10, per_client=100)
    members.join(member(age=4_000, life=10_000), 0, {A}.__contains__)
    assert channels(members, now=5.9) == [b"jobs"]
    assert channels(members, now=6) == []
    members.expire(5.9)
    assert members.count == 1
    members.expire(6)
    assert members.count == 0


def test_without_an_end_of_life_a_member_stays() -> None:
    """A member with a life of 0 never expires."""
    members = NormalMembers(10, per_client=100)
    members.join(member(life=0), 0, {A}.__contains__)
    assert channels(members, now=1e12) == [b"jobs"]


def test_adding_again_lengthens_the_life_and_never_shortens_it() -> None:
    """Adding a member again lengthens its life and never shortens it.

    A process that repeats an old add does not undo a later one.
    """
    members = NormalMembers(10, per_client=100)
    members.join(member(life=10_000), 0, {A}.__contains__)
    members.join(member(age=9_000, life=10_000), 0, {A}.__contains__)
    assert channels(members, now=9) == [b"jobs"]
    members.join(member(life=20_000, capacity=3), 5, {A}.__contains__)
    assert members.of(b"room", 24)[0][1].capacity == 3


def test_living_adders_are_remembered() -> None:
    """A discard returns the adders that are still connected; a process that has died is not notified."""
    members = NormalMembers(10, per_client=100)
    members.join(member(A), 0, {A}.__contains__)
    members.join(member(B), 0, {A, B}.__contains__)
    assert members.leave(member(), 0) == {A, B}
    members.join(member(A), 0, {A}.__contains__)
    members.join(member(B), 0, {B}.__contains__)
    assert members.leave(member(), 0) == {B}


def test_there_is_a_limit() -> None:
    """Members beyond the limit are refused; existing members can be added again, and a flush makes room."""
    members = NormalMembers(2, per_client=100)
    assert members.join(member(), 0, {A}.__contains__) is Status.OK
    assert members.join(member(group=b"other"), 0, {A}.__contains__) is Status.OK
    assert members.join(member(group=b"third"), 0, {A}.__contains__) is Status.REFUSED
    assert members.join(member(), 0, {A}.__contains__) is Status.OK
    members.clear()
    assert members.count == 0
    assert channels(members) == []
    assert members.join(member(group=b"third"), 0, {A}.__contains__) is Status.OK


@pytest.mark.parametrize(
    "add_age, discard_age, order, is_member",
    [
        (5_000, 4_000, "add discard", False),
        (5_000, 4_000, "discard add", False),
        (4_000, 5_000, "add discard", True),
        (4_000, 5_000, "discard add", True),
        (4_000, 4_000, "discard add", True),
    ],
)
def test_of_an_add_and_a_discard_the_later_one_wins(
    add_age: int, discard_age: int, order: str, is_member: bool
) -> None:
    """Of an add and a discard the later one wins, and the add if both have the same age.

    The order of arrival does not matter, since every client repeats its own to a new instance.
    """
    members = NormalMembers(10, per_client=100)
    for step in order.split():
        if step == "add":
            members.join(member(age=add_age), 100, {A}.__contains__)
        else:
            members.leave(member(B, age=discard_age), 100)
    assert channels(members, 100) == ([b"jobs"] if is_member else [])
    assert members.count == is_member


def test_an_add_older_than_a_known_discard_is_reported() -> None:
    """An add that is older than a known discard is reported, so that its sender does not repeat it again.

    That holds even if another process has added the channel since.
    """
    members = NormalMembers(10, per_client=100)
    members.leave(member(age=1_000), 100)
    assert members.join(member(age=2_000, life=0), 100, {A}.__contains__) is None
    assert members.join(member(B, life=5_000), 100, {A, B}.__contains__) is Status.OK
    assert members.join(member(age=2_000, life=0), 100, {A}.__contains__) is None
    assert channels(members, 104) == [b"jobs"]
    assert channels(members, 105) == []


def test_an_older_add_does_not_change_the_capacity() -> None:
    """The capacity of the latest add counts, and an older add does not change it."""
    members = NormalMembers(10, per_client=100)
    members.join(member(capacity=3), 100, {A}.__contains__)
    members.join(member(B, age=5_000, capacity=7), 100, {A, B}.__contains__)
    assert members.of(b"room", 100)[0][1].capacity == 3
    assert members.leave(member(), 100) == {A, B}


def test_discards_are_remembered_up_to_the_limit() -> None:
    """Only the latest discards are kept, up to the limit; a flush drops all of them."""
    members = NormalMembers(2, per_client=100)
    for channel in (b"one", b"two", b"one", b"three"):
        members.leave(member(channel=channel), 100)
    old = [members.join(member(age=1_000, channel=name), 100, {A}.__contains__) for name in (b"one", b"two", b"three")]
    assert old == [None, Status.OK, None]
    members.clear()
    assert members.join(member(age=1_000, channel=b"one"), 100, {A}.__contains__) is Status.OK


def test_expiry_touches_only_what_is_due() -> None:
    """Lengthening a life many times leaves no stale deadlines behind, and a member expires at its last one."""
    members = NormalMembers(10, per_client=100)
    for second in range(5_000):
        members.join(member(life=10_000), second, {A}.__contains__)
    assert len(members._expiry) <= 1_002
    members.expire(members.due())
    members.expire(5_008.9)
    assert members.count == 1
    members.expire(5_009)
    assert members.count == 0
    assert members.due() == inf


def test_a_held_message_reaches_a_member_that_was_added_again_meanwhile() -> None:
    """A held message reaches a member that was added before its publication and again since.

    The time that counts is since when the channel has belonged to the group without a break.
    """
    members = NormalMembers(10, per_client=100)
    for now in (1, 3):
        members.join(member(), now, {A}.__contains__)
    assert [name for name, _ in members.of(b"room", 4, published=2)] == [b"jobs"]
    assert members.of(b"room", 4, published=0.5) == []


def test_one_client_adds_so_many_members_and_no_more() -> None:
    """A client adds a bounded number of members; others still can, and so can it once some have left."""
    members = NormalMembers(10, per_client=2)
    for name in (b"one", b"two"):
        assert members.join(member(channel=name), 0, {A, B}.__contains__) is Status.OK
    assert members.join(member(channel=b"three"), 0, {A, B}.__contains__) is Status.REFUSED
    assert members.join(member(channel=b"two"), 0, {A, B}.__contains__) is Status.OK, "it is there already"
    assert members.join(member(B, channel=b"three"), 0, {A, B}.__contains__) is Status.OK
    members.leave(member(channel=b"one"), 1)
    assert members.join(member(channel=b"four"), 2, {A, B}.__contains__) is Status.OK


def test_a_member_without_end_ends_with_the_last_client_that_added_it() -> None:
    """A member without an expiry ends some time after the last client that added it disconnects.

    The client may reconnect, and adds it again then.
    """
    members, living = NormalMembers(10, per_client=100), {A, B}
    for inbox in (A, B):
        members.join(member(inbox), 0, living.__contains__)
    for inbox, until in ((A, inf), (B, 5 + KEPT_FOR)):
        living.remove(inbox)
        members.gone(inbox, 5, living.__contains__)
        assert members.due() == until
    assert channels(members, now=4 + KEPT_FOR) == [b"jobs"]
    living.add(A)
    members.join(member(), 6, living.__contains__)
    members.expire(5 + KEPT_FOR)
    assert channels(members, now=1e9) == [b"jobs"]
    living.clear()
    members.gone(A, 10, living.__contains__)
    members.expire(10 + KEPT_FOR)
    assert (members.count, members._added) == (0, {})


def test_a_member_with_an_end_outlives_its_client() -> None:
    """A member with an expiry outlives its client, since it is not kept for ever in any case."""
    members = NormalMembers(10, per_client=100)
    members.join(member(life=1_000_000), 0, {A}.__contains__)
    members.gone(A, 5, set().__contains__)
    assert channels(members, now=900) == [b"jobs"]
