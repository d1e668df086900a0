"""CURVE keys and lists of allowed keys."""

import logging
import os
import stat
from pathlib import Path

import pytest

from channels_zmq_forwarder import curve
from channels_zmq_forwarder.__main__ import main
from channels_zmq_forwarder.curve import AllowedKeys, CurveKeyError, new_pair

ONE, TWO = (new_pair()[0] for _ in range(2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "allowed"


def write(path: Path, *keys: bytes) -> None:
    """Replace the file atomically."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(b"\n".join(keys) + b"\n")
    fresh.replace(path)


def test_a_key_may_have_space_around_it() -> None:
    """A key may have white space around it, since a key file ends with a newline."""
    assert curve.key(f" {ONE.decode()}\n") == ONE


@pytest.mark.parametrize("text", ["", "short", "x" * 41, "~" * 40, "é" * 40, " " * 40])
def test_an_invalid_key_is_refused_without_being_shown(text: str) -> None:
    """The error for an invalid key does not show it, since a mistyped key still contains most of the key."""
    with pytest.raises(CurveKeyError, match="40 characters of Z85") as caught:
        curve.key(text)
    assert not text.strip() or text not in str(caught.value)


def test_a_public_key_follows_from_its_secret_key() -> None:
    """The public key is derived from the secret key, so only the latter has to be configured."""
    public, secret = new_pair()
    assert curve.public_key(secret) == public


def test_a_file_without_a_key_is_named(path: Path) -> None:
    """A missing or unreadable key file raises CurveKeyError with its name and the reason."""
    with pytest.raises(CurveKeyError, match=f"{path}: No such file"):
        curve.key_in(path)
    path.write_bytes(b"\xff")
    with pytest.raises(CurveKeyError, match=f"{path}: not ASCII"):
        curve.key_in(path)


def test_a_list_holds_values_and_the_lines_of_a_file(path: Path) -> None:
    """A list contains its values and the lines of its file, without comments and empty lines."""
    write(path, b"# the web servers", TWO, b"", b"#")
    assert AllowedKeys([ONE], path).keys == {ONE, TWO}


def test_a_broken_line_is_named_but_not_shown(path: Path) -> None:
    """An invalid line is an error at the start, which names the line and does not show it."""
    write(path, ONE, TWO[:-1])
    with pytest.raises(CurveKeyError, match=f"{path}, line 2") as caught:
        AllowedKeys([], path)
    assert TWO[:-1].decode() not in str(caught.value)


def test_a_changed_file_is_read_again(path: Path) -> None:
    """A refresh rereads a changed file and returns the revoked keys; configured keys stay."""
    write(path, ONE, TWO)
    allowed = AllowedKeys([ONE], path)
    assert allowed.refresh() == set()
    write(path, ONE)
    assert allowed.refresh() == {TWO}
    assert allowed.keys == {ONE}
    assert allowed.refresh() == set()


@pytest.mark.parametrize("damage", ["missing", "broken", "empty"])
def test_a_file_that_cannot_be_used_any_more_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """A file that becomes invalid leaves the list as it is and is logged once; a valid file is read again."""
    write(path, ONE)
    allowed = AllowedKeys([], path)
    path.unlink()
    if damage == "broken":
        write(path, ONE[:-1])
    elif damage == "empty":
        write(path, b"# being written")
    with caplog.at_level(logging.ERROR):
        assert [allowed.refresh(), allowed.refresh()] == [set(), set()]
    assert len(caplog.records) == 1
    assert allowed.keys == {ONE}
    write(path, ONE, TWO)
    assert allowed.refresh() == set()
    assert allowed.keys == {ONE, TWO}


def test_a_list_without_a_file_never_changes() -> None:
    """A list without a file has nothing to reread, so a refresh revokes no key."""
    assert AllowedKeys([ONE]).refresh() == set()


def test_keygen_writes_a_pair_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`keygen` writes a secret key that only its owner can read, and overwrites no file."""
    name = str(tmp_path / "web")
    assert main(["keygen", name]) == 0
    secret = tmp_path / "web.secret"
    assert stat.S_IMODE(os.stat(secret).st_mode) == 0o600
    assert curve.public_key(curve.key_in(secret)) == curve.key_in(tmp_path / "web.public")
    assert main(["keygen", name]) == 1
    assert "File exists" in capsys.readouterr().err


def test_keygen_prints_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    """`keygen` without a name prints the pair of keys."""
    assert main(["keygen"]) == 0
    words = capsys.readouterr().out.split()
    assert words[::2] == ["public", "secret"]
    assert curve.public_key(curve.key(words[3])) == curve.key(words[1])
