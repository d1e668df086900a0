"""Names of channels and groups: which are valid, and which process receives from a channel."""

from collections.abc import Callable
from typing import Any

import pytest

from channels_zmq.names import MAX_PREFIX, Channel, OwnNames, channel, topic

INBOX = b"0123456789abcdef"
ACCEPTED = ["a", "a-b_c.d", "a..b", ".a", "a\n", "\u0661\u0662", "x" * 99]
REFUSED = ["", "a b", "\u00e9", "a/b", "x" * 100, "a\nb"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_name_that_channels_accepts_is_a_normal_channel(name: str) -> None:
    """Each name that Channels accepts is a normal channel, also with a trailing newline, Unicode digits, or `..`."""
    assert channel(name) == Channel(name, b"", True)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_name_that_channels_accepts_is_a_group(name: str) -> None:
    """The topic of a group ends with a NUL, so that no group's topic is a prefix of another."""
    assert topic(name) == b"G" + name.encode() + b"\0"


@pytest.mark.parametrize("name", [*REFUSED, "a!b!c"])
def test_a_name_that_channels_refuses_is_an_invalid_channel(name: str) -> None:
    """A name that Channels refuses raises a TypeError that describes a valid channel name."""
    with pytest.raises(TypeError, match=r"Channel name must be .* length < 100"):
        channel(name)


@pytest.mark.parametrize("name", [*REFUSED, "a!b"])
def test_a_name_that_channels_refuses_is_an_invalid_group(name: str) -> None:
    """A name that Channels refuses is an invalid group name, as is one with a mark, because no process owns a group."""
    with pytest.raises(TypeError, match=r"Group name must be .* length < 100"):
        topic(name)


@pytest.mark.parametrize("check, what", [(channel, "channel"), (topic, "group")])
@pytest.mark.parametrize("name", [None, 5, b"a", ["a"]])
def test_a_name_is_text(check: Callable[..., Any], what: str, name: int | bytes | list[str] | None) -> None:
    """A name that is not a string raises a TypeError that names its type, also if the value is unhashable."""
    with pytest.raises(TypeError, match=f"a {what} name must be a str, not {type(name).__name__}"):
        check(name)


@pytest.mark.parametrize("name", ["x!", "!", "specific.0123456789abcdef!"])
def test_a_name_that_ends_with_the_mark_is_refused(name: str) -> None:
    """A name that ends with the mark stands for all channels of a process, so the error refers to `new_channel()`."""
    with pytest.raises(TypeError, match=r"new_channel\(\)"):
        channel(name)


@pytest.fixture
def own_names() -> OwnNames:
    return OwnNames(INBOX)


def test_a_new_channel_belongs_to_the_process_that_made_it(own_names: OwnNames) -> None:
    """The name of a new channel begins with the prefix and contains the inbox of the process."""
    name = own_names.new("specific")
    assert name.startswith("specific.")
    assert channel(name) == Channel(name, INBOX, False)


@pytest.mark.parametrize("prefix", ["a", "a.b", "x" * MAX_PREFIX])
def test_every_new_name_is_valid(own_names: OwnNames, prefix: str) -> None:
    """Every new name is valid, also with the longest prefix, which results in a name of 99 characters."""
    assert channel(own_names.new(prefix)).owner == INBOX
    assert len(own_names.new("x" * MAX_PREFIX)) == 99


def test_no_two_new_names_are_alike(own_names: OwnNames) -> None:
    """A process never makes the same name twice, even with the same prefix."""
    assert len({own_names.new("a") for _ in range(1000)}) == 1000


def test_only_names_that_were_made_here_are_recognized(own_names: OwnNames) -> None:
    """A process recognizes only its own names: none of another process with the same inbox, and no altered one."""
    name = own_names.new("a")
    assert name in own_names
    assert name not in OwnNames(INBOX)
    changed = (name[:at] + ("1" if name[at] != "1" else "2") + name[at + 1 :] for at in range(len(name)))
    assert not [one for one in (*changed, name[:-1], name + "0", "", "a", "é" * 20) if one in own_names]


@pytest.mark.parametrize("prefix", ["", "x" * (MAX_PREFIX + 1), "a!", "a b", "\u00e9", None, 5, b"a"])
def test_a_prefix_that_makes_no_valid_name_is_refused(own_names: OwnNames, prefix: Any) -> None:
    """A prefix that would make an invalid name raises a TypeError, because no method would accept the name."""
    with pytest.raises(TypeError):
        own_names.new(prefix)


def test_the_error_of_a_prefix_that_is_too_long_names_the_limit(own_names: OwnNames) -> None:
    """The error for a prefix that is too long names the limit in characters."""
    with pytest.raises(TypeError, match=f"1 to {MAX_PREFIX} characters"):
        own_names.new("x" * (MAX_PREFIX + 1))


@pytest.mark.parametrize(
    "name",
    ["a!b", "0123456789abcdef!b", "a.0123456789abcde!b", "a.0123456789ABCDEF!b", "a.0123456789abcdeg!b"],
)
def test_a_name_with_a_mark_that_new_channel_did_not_make_is_read_by_nobody(name: str) -> None:
    """A name with a mark that `new_channel` did not make is neither normal nor owned: a mark alone names none."""
    assert channel(name) == Channel(name, b"", False)


def test_an_inbox_without_a_mark_makes_a_normal_channel() -> None:
    """An inbox without a mark makes a normal channel, because only the part before a mark names a process."""
    assert channel("a.0123456789abcdef") == Channel("a.0123456789abcdef", b"", True)
