"""Encrypts payloads, so that only processes with a key can read or create them (`symmetric_encryption_keys`).

In the data-flow diagram this is after the serializer for outgoing messages. For incoming messages it is before the
mailboxes, or before the serializer for messages of normal channels. The design and its cost: docs/design/0008.

- AES-256-GCM. The key of a sender is derived from the first of `symmetric_encryption_keys` and a random salt of its own
  (HKDF with SHA-256), so that a counter is a nonce which never repeats.
- A sealed payload is `version | salt | counter | length of the group's topic | topic | ciphertext and tag`. The fields
  before the ciphertext are authenticated. A message to a channel has no topic: the channel's name is authenticated.
- A forked process opens its own connection, and so has a keyring with another salt.
"""

import hmac
import logging
import os
import struct
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from pydantic import SecretBytes

from channels_zmq.errors import ConfigurationError

SETTING = "symmetric_encryption_keys"
MIN_KEY = 16
"""Bytes of the shortest key. It bounds a mistake, not an attack: a key has to be random."""
MESSAGES = 2**32
"""Messages that are sealed with one salt."""
KNOWN_SENDERS = 4096
"""Salts whose derived key is kept: a process has one for each connection."""
_VERSION = 1
_HEAD = struct.Struct(">B16s4sH")
_ZEROS = bytes(8)
_EXTRACT = b"channels-zmq payload encryption"


class _Cipher(Protocol):
    """The part of `cryptography` that is used; it is imported only if there are keys."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes: ...


class _Package(NamedTuple):
    cipher: Callable[[bytes], _Cipher]
    invalid: type[Exception]


def package() -> _Package:
    """Return the parts of `cryptography` that are used.

    Raises:
        ConfigurationError: If the package is not installed.
    """
    try:
        from cryptography.exceptions import InvalidTag  # optional: without keys nothing needs it
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigurationError(
            f"CONFIG[{SETTING!r}]", "needs the package cryptography: pip install 'cryptography>=42'"
        ) from None
    return _Package(AESGCM, InvalidTag)


def check_key(key: bytes) -> bytes:
    """Return a key without white space around it.

    Raises:
        ValueError: If it is too short; the message does not contain it.
    """
    stripped = key.strip()
    if len(stripped) < MIN_KEY:
        raise ValueError(
            f"a key has at least {MIN_KEY} random characters, such as the output of `openssl rand -base64 32`"
        )
    return stripped


class Keyring:
    """The keys of one connection: the first seals, all open.

    Args:
        keys: From CONFIG.
        path: The file with the keys, one a line, if CONFIG has none; it is read again when it changes.

    Raises:
        ConfigurationError: If the file cannot be read, has no key or an invalid one, or if `cryptography` is not
            installed.
    """

    def __init__(self, keys: Sequence[SecretBytes], path: str | None) -> None:
        self._make, self._invalid = package()
        self._path = path
        self._lock = threading.Lock()  # a counter that is used twice would reveal both messages
        self._seen: tuple[int, int, int] | None = None
        self._last_problem = ""
        texts = [check_key(key.get_secret_value()) for key in keys]
        if path is not None:
            try:
                self._seen = _state_of(path)
                texts = _keys_in(path)
            except ValueError as error:
                raise ConfigurationError(f"CONFIG['{SETTING}_file']", str(error)) from None
        self._use(texts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._roots)} keys)"

    # Sealing

    def seal_for_group(self, topic: bytes, payload: bytes) -> bytes:
        """Return a payload for the members of the group with this topic."""
        return self._seal(topic, b"", payload)

    def seal_for_channel(self, channel: str, payload: bytes) -> bytes:
        """Return a payload for the readers of a channel."""
        return self._seal(b"", _of_channel(channel), payload)

    def _seal(self, topic: bytes, place: bytes, payload: bytes) -> bytes:
        with self._lock:
            if self._count == MESSAGES:
                self._renew_sender()
            cipher, salt, count = self._cipher, self._salt, self._count
            self._count += 1
        counter = count.to_bytes(4)
        head = _HEAD.pack(_VERSION, salt, counter, len(topic)) + topic
        return head + cipher.encrypt(_ZEROS + counter, payload, head + place)

    # Opening; all return None if the payload was sealed with another key, for another place, or not sealed

    def open_from_group(self, topic: bytes, sealed: bytes) -> bytes | None:
        """Return the payload of a message that has arrived by this topic."""
        return self._open(topic, sealed)

    def open_from_channel(self, channel: str, sealed: bytes) -> bytes | None:
        """Return the payload of a message that was sent to this channel."""
        return self._open(_of_channel(channel), sealed)

    def open_job(self, channel: str, sealed: bytes) -> bytes | None:
        """Return the payload of a message of a normal channel: sent to it, or to some group, of which it is a copy.

        A reader cannot know the groups of a normal channel: the exchange does.
        """
        return self._open(_of_channel(channel), sealed, may_be_a_copy=True)

    def _open(self, place: bytes, sealed: bytes, *, may_be_a_copy: bool = False) -> bytes | None:
        try:
            version, salt, counter, size = _HEAD.unpack_from(sealed)
        except struct.error:
            return None
        start = _HEAD.size + size
        topic, context = sealed[_HEAD.size : start], sealed[:start]
        if not topic:
            context += place  # a group's topic as `place` fails: a payload for a group has its topic in the head
        elif topic != place and not may_be_a_copy:
            return None
        if version != _VERSION:
            return None
        nonce, ciphertext = _ZEROS + counter, sealed[start:]
        known = self._known  # before the keys: see `_use`
        cipher = known.get(salt)
        if cipher is not None:
            return self._decrypt(cipher, nonce, ciphertext, context)
        for root in self._roots:
            cipher = self._make(_derived(root, salt))
            payload = self._decrypt(cipher, nonce, ciphertext, context)
            if payload is not None:
                self._remember(known, salt, cipher)  # only for senders that have a key
                return payload
        return None

    def _decrypt(self, cipher: _Cipher, nonce: bytes, ciphertext: bytes, context: bytes) -> bytes | None:
        try:
            return cipher.decrypt(nonce, ciphertext, context)
        except self._invalid:
            return None

    def _remember(self, known: dict[bytes, _Cipher], salt: bytes, cipher: _Cipher) -> None:
        with self._lock:
            if len(known) >= KNOWN_SENDERS:
                del known[next(iter(known))]
            known[salt] = cipher

    # Keys

    def refresh(self) -> tuple[int, str] | None:
        """Read the file again if it has changed; return the level and the text of a line to log, if there is one.

        A file that cannot be read, has no key or an invalid one, changes nothing.
        """
        if self._path is None:
            return None
        try:
            state = _state_of(self._path)
            if state == self._seen:
                return None
            texts = _keys_in(self._path)
        except ValueError as error:
            problem = str(error)
            if problem == self._last_problem:
                return None
            self._last_problem = problem
            return logging.ERROR, f"keeping the previous encryption keys: {problem}"
        self._seen, self._last_problem = state, ""
        with self._lock:
            self._use(texts)
        return logging.INFO, f"reloaded the encryption keys: {len(texts)}"

    def _use(self, texts: Sequence[bytes]) -> None:
        # The table of derived keys is replaced last: a reader that finds the new table finds the new keys, too.
        self._roots = [hmac.digest(_EXTRACT, text, "sha256") for text in texts]
        self._renew_sender()
        self._known: dict[bytes, _Cipher] = {}

    def _renew_sender(self) -> None:
        self._salt, self._count = os.urandom(16), 0
        self._cipher = self._make(_derived(self._roots[0], self._salt))


def _derived(root: bytes, salt: bytes) -> bytes:
    """Return the key of one sender: the second half of HKDF (RFC 5869), of one block."""
    return hmac.digest(root, salt + b"\x01", "sha256")


def _of_channel(channel: str) -> bytes:
    return b"C" + channel.encode()  # topics of groups begin with G


def _state_of(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _keys_in(path: str) -> list[bytes]:
    """Return the keys in a file, one a line; ignore empty lines, `#` alone, and lines that begin with `# `."""
    try:
        with open(path, "rb") as file:
            lines = [line.strip() for line in file.read().splitlines()]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if line and line != b"#" and not line.startswith(b"# "):
            try:
                keys.append(check_key(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not keys:
        raise ValueError(f"{path}: contains no key")
    return keys
