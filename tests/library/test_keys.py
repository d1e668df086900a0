"""The CURVE keys in CONFIG, and when to connect again because they changed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from pydantic import SecretStr

from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import ClientKeys, ClientKeySource, KeySetting, KeyWatch, ServerKeySource

SERVER, SECRET = zmq.curve_keypair()
OTHER, OTHER_SECRET = zmq.curve_keypair()


def setting(name: str, value: str | None = None, path: str | Path | None = None) -> KeySetting:
    return KeySetting(name, None if value is None else SecretStr(value), None if path is None else str(path))


def by_value(server: bytes = SERVER, secret: bytes | None = SECRET) -> ClientKeySource:
    return ClientKeySource(
        setting("curve_server_key", server.decode()), setting("curve_secret_key", secret.decode() if secret else None)
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file that holds the server's key."""
    path = tmp_path / "server.key"
    path.write_text(f"{SERVER.decode()}\n")
    return path


@pytest.fixture
def watch(file: Path) -> KeyWatch:
    """Return a watch that has read its keys once, one of them from the file."""
    source = ClientKeySource(setting("curve_server_key", path=file), setting("curve_secret_key", SECRET.decode()))
    watch = KeyWatch(source)
    assert watch.may_connect()
    return watch


# Settings


@pytest.mark.parametrize("given, is_set", [({}, False), ({"value": "x"}, True), ({"path": "x"}, True)])
def test_a_setting_is_set_by_a_value_or_a_file(given: dict[str, str], is_set: bool) -> None:
    """A setting counts as set if it has a value or a file, and as unset if it has neither."""
    assert setting("k", **given).is_set == is_set


def test_a_key_is_read_from_its_value_or_its_file(file: Path) -> None:
    """A key is read from its value or from its file, without the surrounding white space."""
    assert setting("k", f" {SERVER.decode()} ").read() == setting("k", path=file).read() == SERVER


@pytest.mark.parametrize("text", ["", "short", "x" * 39, " " * 40, "é" * 40])
@pytest.mark.parametrize("is_file", [False, True])
def test_an_invalid_key_is_an_error_that_names_the_setting_but_not_the_key(
    file: Path, text: str, is_file: bool
) -> None:
    """An invalid key, by value or by file, raises an error that names the setting and does not show the key."""
    file.write_text(text)
    bad = setting("curve_secret_key", path=file) if is_file else setting("curve_secret_key", text)
    with pytest.raises(ConfigurationError) as caught:
        bad.read()
    assert f"CONFIG['curve_secret_key{'_file' * is_file}']" in str(caught.value)
    assert not text.strip() or text not in str(caught.value)


def test_a_missing_file_is_noticed(tmp_path: Path, file: Path) -> None:
    """A missing file is reported with its path and prevents reading; a key that is given by value needs no file."""
    missing = setting("curve_server_key", path=tmp_path / "none")
    assert [one.is_missing for one in (missing, setting("k", path=file), setting("k", "x"))] == [True, False, False]
    source = ClientKeySource(missing, setting("curve_secret_key", SECRET.decode()))
    assert source.missing_file() == str(tmp_path / "none")
    assert by_value().missing_file() == ""
    with pytest.raises(ConfigurationError, match="curve_server_key_file"):
        source.read()


def test_no_representation_has_the_secret_key() -> None:
    """Neither the keys nor a setting show the secret key in their representation."""
    keys = by_value().read()
    assert keys == ClientKeys(SERVER, SECRET)
    assert SECRET.decode() not in repr(keys) + repr(setting("k", SECRET.decode()))


def test_without_a_secret_key_a_process_makes_itself_one() -> None:
    """A process without a configured secret key generates one and keeps it; another process generates another."""
    source = by_value(secret=None)
    assert source.read() == source.read()
    assert source.read().secret != by_value(secret=None).read().secret


# The watch


def changed(watch: KeyWatch) -> bool:
    """Check the files again, and return whether there are new keys to connect with."""
    watch.look()
    return watch.have_changed()


def test_without_curve_there_is_nothing_to_watch() -> None:
    """Without CURVE there is nothing to watch: the transport may connect at once, and never has to connect again."""
    watch = KeyWatch(None)
    assert watch.may_connect()
    assert not changed(watch)
    assert watch.current is None


def test_a_process_without_keys_that_was_refused_tries_again() -> None:
    """After a refusal, each look permits a process without keys one attempt, because the other side may drop CURVE."""
    watch = KeyWatch(None)
    watch.refused()
    assert [watch.have_changed(), changed(watch), changed(watch)] == [False, True, False]


def test_keys_by_value_never_change() -> None:
    """Keys by value are read once, when the transport connects, and never change."""
    watch = KeyWatch(by_value())
    assert watch.may_connect()
    assert watch.current == ClientKeys(SERVER, SECRET)
    assert not changed(watch)


def test_a_file_that_does_not_exist_yet_is_waited_for(file: Path) -> None:
    """The watch waits for a file that does not exist yet: a container may mount it a moment after the start."""
    file.unlink()
    watch = KeyWatch(ClientKeySource(setting("curve_server_key", path=file), setting("curve_secret_key")))
    assert not watch.may_connect()
    assert watch.problem == f"{file} does not exist"
    assert not changed(watch)
    file.write_text(SERVER.decode())
    assert changed(watch)
    assert watch.current is not None
    assert watch.current.server == SERVER
    assert watch.problem == ""
    assert not changed(watch)


def test_an_invalid_key_at_the_start_is_an_error(file: Path) -> None:
    """A key that is invalid at the start raises an error, because waiting would not help."""
    file.write_text("x")
    with pytest.raises(ConfigurationError, match="curve_server_key_file"):
        KeyWatch(ClientKeySource(setting("curve_server_key", path=file), setting("curve_secret_key"))).may_connect()


def test_a_changed_file_is_noticed_once(watch: KeyWatch, file: Path) -> None:
    """The watch reports a changed file once, so that the transport connects with the new key once."""
    assert not changed(watch)
    file.write_text(OTHER.decode())
    assert changed(watch)
    assert watch.current == ClientKeys(OTHER, SECRET)
    assert not changed(watch)


def test_refused_keys_are_tried_again_once_for_each_refusal(watch: KeyWatch) -> None:
    """Each refusal permits one attempt with the same keys: ZeroMQ stops, but the other side may accept them later."""
    for _ in range(2):
        watch.refused()
        assert not watch.have_changed()  # so that a refusal is followed by one attempt a look
        assert changed(watch)
        assert not changed(watch)


@pytest.mark.parametrize("break_it", [lambda file: file.write_text("x"), lambda file: file.unlink()])
def test_a_file_that_becomes_invalid_keeps_the_former_keys(
    watch: KeyWatch, file: Path, break_it: Callable[..., int | None]
) -> None:
    """While a file is invalid or missing, the watch keeps the former keys; it acts on an earlier refusal afterwards."""
    watch.refused()
    break_it(file)
    assert not changed(watch)
    assert "curve_server_key_file" in watch.problem
    assert watch.current == ClientKeys(SERVER, SECRET)
    file.write_text(SERVER.decode())
    assert changed(watch)
    assert watch.problem == ""


# The side that binds


def server_source(
    allowed: tuple[str, ...] | None = None, file: str | None = None, secret: bytes = SECRET
) -> ServerKeySource:
    return ServerKeySource(setting("curve_secret_key", secret.decode()), allowed, file)


def test_without_a_list_everybody_with_the_public_key_may_connect() -> None:
    """Without a list of allowed keys, every client with the server's public key may connect."""
    assert server_source().read() == (SECRET, None)


@pytest.mark.parametrize("has_file", [False, True])
@pytest.mark.parametrize("allowed", [(), (OTHER.decode(),)])
def test_a_list_may_be_empty_and_may_have_a_file(file: Path, allowed: tuple[str, ...], has_file: bool) -> None:
    """The allowed keys are those of the list, which may be empty and then allows no client, and those of the file."""
    secret, keys = server_source(allowed, str(file) if has_file else None).read()
    assert secret == SECRET
    assert keys is not None
    assert keys.keys == {*(key.encode() for key in allowed), *([SERVER] if has_file else [])}


@pytest.mark.parametrize(
    "allowed, text, named", [(("x",), None, "curve_allowed_keys"), (None, "x", "curve_allowed_keys_file")]
)
def test_an_invalid_list_is_an_error_that_names_the_setting(
    file: Path, allowed: tuple[str] | None, text: str | None, named: str
) -> None:
    """An invalid list of allowed keys, by value or in a file, raises an error that names the setting."""
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        server_source(allowed, str(file) if text is not None else None).read()
    assert f"CONFIG[{named!r}]" in str(caught.value)
