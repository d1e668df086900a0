"""Encrypted payloads: where they decrypt, where they do not, and that no counter is used twice."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretBytes

from channels_zmq import encryption
from channels_zmq.encryption import MIN_KEY, Keyring
from channels_zmq.errors import ConfigurationError
from channels_zmq_forwarder import wire

OLD, NEW = b"an old key of some length", b"a new key of some length, too"
G, H = wire.group_topic("g"), wire.group_topic("h")
CHANNEL = "specific.0123456789abcdef!x"
TEXT = b"a message that nobody else may read"


def keyring(*keys: bytes) -> Keyring:
    return Keyring([SecretBytes(key) for key in keys or (OLD,)], None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(OLD + b"\n")
    return path


def replace(file: Path, content: bytes) -> None:
    """Replace a file atomically, as a mounted volume does."""
    fresh = file.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(file)


def places(ring: Keyring, sealed: bytes) -> set[str]:
    """Return where a payload decrypts: the groups `g` and `h`, two channels, and the normal channel `jobs`."""
    opened = {
        "g": ring.open_from_group(G, sealed),
        "h": ring.open_from_group(H, sealed),
        "channel": ring.open_from_channel(CHANNEL, sealed),
        "other": ring.open_from_channel(f"{CHANNEL}y", sealed),
        "jobs": ring.open_job("jobs", sealed),
    }
    assert set(opened.values()) <= {None, TEXT}
    return {place for place, payload in opened.items() if payload is not None}


# Places


def test_a_group_message_opens_in_its_group_and_in_normal_channels() -> None:
    """A group message decrypts in its group and in any normal channel, whose readers do not know its groups."""
    assert places(keyring(), keyring().seal_for_group(G, TEXT)) == {"g", "jobs"}


def test_a_direct_message_opens_in_its_channel_only() -> None:
    """A message to a process-specific channel decrypts there only: in no other channel, in no group, not as a job."""
    assert places(keyring(), keyring().seal_for_channel(CHANNEL, TEXT)) == {"channel"}


def test_a_job_opens_in_its_normal_channel_only() -> None:
    """A message to a normal channel decrypts in that channel only, and not in another normal channel."""
    sealed = keyring().seal_for_channel("jobs", TEXT)
    assert places(keyring(), sealed) == {"jobs"}
    assert keyring().open_job("others", sealed) is None


def test_a_channel_with_the_name_of_a_group_is_another_place() -> None:
    """A channel differs from a group of the same name, even if the channel's name is the group's topic."""
    ring = keyring()
    sealed = ring.seal_for_channel("g", TEXT)
    assert ring.open_from_group(G, sealed) is None
    sealed = ring.seal_for_group(G, TEXT)
    assert ring.open_from_channel("g", sealed) is None
    assert ring.open_from_channel(G.decode(), sealed) is None


def test_the_longest_name_of_a_group_fits() -> None:
    """The longest group name can be encrypted: Channels allows 99 characters, which may have four bytes each."""
    topic = wire.group_topic("\U0001d7d8" * 99)
    assert keyring().open_from_group(topic, keyring().seal_for_group(topic, TEXT)) == TEXT


def test_an_empty_payload_and_a_large_one_can_be_sealed() -> None:
    """Any payload can be encrypted, also an empty one and one of a mebibyte."""
    for payload in (b"", os.urandom(2**20)):
        assert keyring().open_from_group(G, keyring().seal_for_group(G, payload)) == payload


# Secrecy


def test_a_sealed_payload_shows_nothing_of_the_message_but_its_length() -> None:
    """An encrypted payload reveals only the length of the message; two messages with the same content differ."""
    ring = keyring()
    one, other = (ring.seal_for_channel(CHANNEL, TEXT) for _ in range(2))
    assert TEXT not in one
    assert one != other
    assert len(one) == len(TEXT) + 39


def test_only_the_keys_of_the_list_open() -> None:
    """The first key of the list encrypts, and each key of the list decrypts."""
    sealed = keyring(NEW, OLD).seal_for_group(G, TEXT)
    assert places(keyring(OLD), sealed) == set()
    assert places(keyring(NEW), sealed) == {"g", "jobs"}
    assert places(keyring(OLD, NEW), sealed) == {"g", "jobs"}


def test_the_format_is_that_of_the_design() -> None:
    """The format is that of the design, HKDF with SHA-256 and AES-256-GCM, as computed by independent code."""
    sealed = keyring().seal_for_group(G, TEXT)
    salt, counter, size = sealed[1:17], sealed[17:21], len(G)
    assert (sealed[0], counter, sealed[21:23], sealed[23 : 23 + size]) == (1, bytes(4), bytes([0, size]), G)
    key = HKDF(SHA256(), 32, salt=b"channels-zmq payload encryption", info=salt).derive(OLD)
    assert AESGCM(key).decrypt(bytes(12), sealed[23 + size :], sealed[: 23 + size]) == TEXT
    sealed = keyring().seal_for_channel("jobs", TEXT)
    key = HKDF(SHA256(), 32, salt=b"channels-zmq payload encryption", info=sealed[1:17]).derive(OLD)
    assert AESGCM(key).decrypt(bytes(12), sealed[23:], sealed[:23] + b"Cjobs") == TEXT


def test_threads_never_use_a_counter_twice() -> None:
    """Threads never use the same counter twice, which would reveal both messages."""
    ring = keyring()
    with ThreadPoolExecutor(8) as pool:
        sealed = list(pool.map(lambda _: ring.seal_for_group(G, TEXT), range(4_000)))
    assert len({one[1:21] for one in sealed}) == 4_000


def test_two_keyrings_have_different_salts() -> None:
    """Each keyring has its own salt, so that each process and each child of a fork may count from 0."""
    assert keyring().seal_for_group(G, TEXT)[1:17] != keyring().seal_for_group(G, TEXT)[1:17]


def test_a_salt_is_replaced_before_its_counter_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyring replaces its salt before the counter repeats, and payloads with either salt decrypt."""
    monkeypatch.setattr(encryption, "MESSAGES", 3)
    ring, reader = keyring(), keyring()
    sealed = [ring.seal_for_group(G, TEXT) for _ in range(7)]
    assert len({one[1:17] for one in sealed}) == 3
    assert len({one[1:21] for one in sealed}) == 7
    assert [reader.open_from_group(G, one) for one in sealed] == [TEXT] * 7


# Strangers


@pytest.mark.parametrize("seal", ["group", "channel", "job"])
def test_whatever_byte_is_changed_or_missing_nothing_opens(seal: str) -> None:
    """Head, topic, ciphertext and tag are authenticated, whether or not the reader knows the sender."""
    ring = keyring()
    sealed = {
        "group": ring.seal_for_group(G, TEXT),
        "channel": ring.seal_for_channel(CHANNEL, TEXT),
        "job": ring.seal_for_channel("jobs", TEXT),
    }[seal]
    knows = keyring()
    assert places(knows, sealed)
    for reader in (knows, keyring()):
        for position in range(len(sealed)):
            changed = bytearray(sealed)
            changed[position] ^= 1 << position % 8
            assert not places(reader, bytes(changed)), position
            assert not places(reader, sealed[:position]), position
        assert not places(reader, sealed + b"\0")
        assert not places(reader, sealed + sealed)


@given(st.binary(max_size=200))
def test_strangers_bytes_open_nowhere(stranger: bytes) -> None:
    """Arbitrary bytes decrypt nowhere and raise nothing."""
    assert not places(READER, stranger)
    assert not places(READER, b"\1" + stranger)


READER = keyring(OLD, NEW)


def test_strangers_do_not_displace_known_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only senders with a valid key are remembered, and their number is bounded."""
    monkeypatch.setattr(encryption, "KNOWN_SENDERS", 2)
    reader, senders = keyring(), [keyring() for _ in range(4)]
    for sender in senders * 2:
        assert reader.open_from_group(G, sender.seal_for_group(G, TEXT)) == TEXT
        assert reader.open_from_group(G, keyring(NEW).seal_for_group(G, TEXT)) is None
        assert len(reader._known) <= 2


# Keys


@pytest.mark.parametrize("key", [b"", b"short", b" " * 40, b"x" * (MIN_KEY - 1)])
def test_a_short_key_is_an_error_that_does_not_contain_it(file: Path, key: bytes) -> None:
    """A key that is too short, by value or in a file, raises an error that does not contain it."""
    with pytest.raises(ValueError, match="at least 16 random characters") as caught:
        keyring(key)
    assert not key.strip() or key.decode() not in str(caught.value)
    file.write_bytes(OLD + b"\n" + (key.strip() or b"y") + b"\n")
    with pytest.raises(ConfigurationError, match="line 2: a key has at least") as caught:
        Keyring([], str(file))
    assert "CONFIG['symmetric_encryption_keys_file']" in str(caught.value)
    assert OLD.decode() not in str(caught.value)


def test_a_key_has_any_length_and_white_space_around_it_is_ignored() -> None:
    """A key may have any length from the minimum on, and surrounding white space, such as a line break, is ignored."""
    sealed = keyring(b" " + NEW * 50 + b"\n").seal_for_group(G, TEXT)
    assert keyring(NEW * 50).open_from_group(G, sealed) == TEXT


def test_no_representation_shows_a_key() -> None:
    """The representation of a keyring shows no key."""
    assert OLD.decode() not in repr(keyring()) + str(keyring())


def test_a_file_has_one_key_a_line(file: Path) -> None:
    """A file has one key a line, of which the first encrypts; comments and empty lines are ignored."""
    replace(file, b"# from the vault\n\n  " + NEW + b"\n" + OLD + b"\r\n#\n")
    ring = Keyring([], str(file))
    assert keyring(NEW).open_from_group(G, ring.seal_for_group(G, TEXT)) == TEXT
    assert ring.open_from_group(G, keyring(OLD).seal_for_group(G, TEXT)) == TEXT


@pytest.mark.parametrize("content, problem", [(b"", "no key"), (b"# none\n", "no key"), (None, "No such file")])
def test_a_file_without_keys_is_an_error(file: Path, content: bytes | None, problem: str) -> None:
    """A file that is missing or has no key raises an error with the setting and the path."""
    if content is None:
        file.unlink()
    else:
        replace(file, content)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        Keyring([], str(file))
    assert "CONFIG['symmetric_encryption_keys_file']" in str(caught.value)
    assert str(file) in str(caught.value)


def refreshed(ring: Keyring) -> str:
    """Read the file again, and return the log line that reports the change."""
    report = ring.refresh()
    assert report is not None
    return report[1]


def test_a_changed_file_is_read_again(file: Path) -> None:
    """After a change of the file its new keys apply: a removed key decrypts nothing, also for known senders."""
    ring, sender = Keyring([], str(file)), keyring(OLD)
    assert ring.refresh() is None
    assert ring.open_from_group(G, sender.seal_for_group(G, TEXT)) == TEXT
    replace(file, NEW + b"\n")
    assert "1" in refreshed(ring)
    assert ring.refresh() is None
    assert ring.open_from_group(G, sender.seal_for_group(G, TEXT)) is None
    assert keyring(NEW).open_from_group(G, ring.seal_for_group(G, TEXT)) == TEXT


@pytest.mark.parametrize("content", [b"", b"short\n", None])
def test_a_changed_file_without_valid_keys_changes_nothing(file: Path, content: bytes | None) -> None:
    """If the changed file has no valid key, the previous keys stay; this is reported once, without the content."""
    ring = Keyring([], str(file))
    if content is None:
        file.unlink()
    else:
        replace(file, content)
    line = refreshed(ring)
    assert line.startswith("keeping the previous encryption keys: ")
    assert "short" not in line
    assert ring.refresh() is None
    assert keyring(OLD).open_from_group(G, ring.seal_for_group(G, TEXT)) == TEXT
    replace(file, NEW + b"\n")
    assert refreshed(ring) == "reloaded the encryption keys: 1"


# The package


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_without_the_package_keys_are_an_error_that_names_what_to_install() -> None:
    """Without the package cryptography, keys raise an error when the layer is made, and the error names the package."""
    done = python(
        "import sys; sys.modules['cryptography'] = None\n"
        "from channels_zmq.core import EmbeddedZmqChannelLayer\n"
        "EmbeddedZmqChannelLayer(symmetric_encryption_keys=[])\n"
        "EmbeddedZmqChannelLayer(symmetric_encryption_keys=['k' * 40])\n"
    )
    assert "CONFIG['symmetric_encryption_keys']: needs the package cryptography" in done.stderr
    assert "pip install 'cryptography>=42'" in done.stderr
    assert "k" * 40 not in done.stderr.splitlines()[-1]


def test_without_keys_the_package_is_not_imported() -> None:
    """Without keys the package cryptography is not imported, because the import takes time and memory."""
    done = python(
        "import asyncio, sys\n"
        "from channels_zmq.core import EmbeddedZmqChannelLayer\n"
        "asyncio.run(EmbeddedZmqChannelLayer().group_send('g', {}))\n"
        "print('cryptography' in sys.modules)\n"
    )
    assert done.stdout == "False\n"
