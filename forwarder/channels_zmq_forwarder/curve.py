"""CURVE keys: their form, the files that hold them, and the list of keys that may connect.

A key is 40 characters of Z85, 32 bytes. The side that binds has a secret key. The side that connects has the matching
public key and its own key pair; if the side that binds has a list, it must contain the public key of that pair. Errors
and log lines never contain a key.
"""

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import zmq
from zmq.utils import z85

logger = logging.getLogger("channels_zmq_forwarder")

KEY_LENGTH = 40


class CurveKeyError(ValueError):
    """A key is invalid, or a file does not contain valid keys; the message never contains the key."""


def key(text: str) -> bytes:
    """Return a key as ZeroMQ takes it.

    Raises:
        CurveKeyError: If the text is not a key.
    """
    text = text.strip()
    try:
        if len(text) == KEY_LENGTH and len(z85.decode(text)) == KEY_LENGTH * 4 // 5:
            return text.encode("ascii")
    except (KeyError, ValueError, UnicodeError, OverflowError, zmq.ZMQError):
        pass
    raise CurveKeyError(f"a key has {KEY_LENGTH} characters of Z85, this text has {len(text)} characters")


def key_in(path: str | Path) -> bytes:
    """Return the key that a file contains.

    Raises:
        CurveKeyError: If the file cannot be read or does not contain a key; the message names the file.
    """
    try:
        return key(_text(path))
    except CurveKeyError as error:
        raise CurveKeyError(f"{path}: {error}") from None


def public_key(secret: bytes) -> bytes:
    """Return the public key of a secret key."""
    return zmq.curve_public(secret)


def new_pair() -> tuple[bytes, bytes]:
    """Return a new public key and its secret key."""
    return zmq.curve_keypair()


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError as error:
        raise CurveKeyError(error.strerror or "cannot be read") from None
    except UnicodeError:
        raise CurveKeyError("not ASCII text") from None


class AllowedKeys:
    """The public keys that may connect, from values and a file that is read again when it has changed.

    Args:
        keys: Keys that are always allowed.
        path: A file with one key a line; empty lines, and lines that begin with `# `, are ignored.
        log: Called with the level of each line to log, the line and its arguments.

    Raises:
        CurveKeyError: If the file cannot be read, or if a line does not contain a key.
    """

    def __init__(
        self, keys: Iterable[bytes] = (), path: str | Path | None = None, log: Callable[..., None] = logger.log
    ) -> None:
        self._fixed = frozenset(keys)
        self._path, self._log = path, log
        self._state: tuple[int, int, int] | None = None
        self.keys = self._fixed
        self._last_error = ""
        if path is not None:
            self._state = self._stat()
            self.keys = self._fixed | self._read(path)

    def refresh(self) -> frozenset[bytes]:
        """Read the file again if it has changed; return the keys that are no longer allowed.

        If the file cannot be read, has an invalid line or no key any more, the list stays as it is, and the error is
        logged: an empty file is probably being written, and is not a request to refuse all clients.
        """
        if self._path is None:
            return frozenset()
        try:
            state = self._stat()
            if state == self._state:
                return frozenset()
            found = self._read(self._path)
            if not found and self.keys - self._fixed:
                raise CurveKeyError(f"{self._path}: contains no key")
            keys = self._fixed | found
        except CurveKeyError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._log(logging.ERROR, "keeping the previous list of allowed keys: %s", error)
            return frozenset()
        self._last_error = ""
        revoked, added = self.keys - keys, keys - self.keys
        self._state, self.keys = state, keys
        self._log(logging.INFO, "allowed keys: %d, %d added, %d revoked", len(keys), len(added), len(revoked))
        return revoked

    def _stat(self) -> tuple[int, int, int]:
        assert self._path is not None, "only called if there is a file"
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise CurveKeyError(f"{self._path}: {error.strerror}") from None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self, path: str | Path) -> frozenset[bytes]:
        try:
            lines = [line.strip() for line in _text(path).splitlines()]
        except CurveKeyError as error:
            raise CurveKeyError(f"{path}: {error}") from None
        keys = set()
        for number, line in enumerate(lines, 1):
            if not line or line == "#" or line.startswith("# "):
                continue
            try:
                keys.add(key(line))
            except CurveKeyError as error:
                raise CurveKeyError(f"{path}, line {number}: {error}") from None
        return frozenset(keys)


def secure_client(socket: "zmq.Socket[bytes]", server_key: bytes, secret_key: bytes) -> None:
    """Make a socket connect with CURVE; this affects connections that are made afterwards."""
    socket.curve_serverkey = server_key
    socket.curve_publickey = public_key(secret_key)
    socket.curve_secretkey = secret_key
