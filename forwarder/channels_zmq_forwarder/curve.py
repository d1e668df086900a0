"""CURVE: keys, who may connect, and who was refused. Used by every side that binds, and for the form of a key by all.

A key is 40 characters of Z85, 32 bytes. Who binds has a secret key; who connects knows the public key to it and has a
pair of its own, whose public key must be on the list of the one who binds, if there is a list. Keys are never shown: no
error and no log line holds one.
"""

import logging
import os
import socket as sockets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

logger = logging.getLogger("channels_zmq_forwarder")

KEY_LENGTH = 40
TELL_EVERY = 10.0
"""Seconds between two log lines about refusals of one address."""
TELL_ADDRESSES = 1000
ZAP = "inproc://zeromq.zap.01"
_WATCHED = (
    zmq.Event.ACCEPTED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)
_FAILED = (zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)


class CurveKeyError(ValueError):
    """Something is no key, or a file that should hold keys does not; the message never holds the text itself."""


def key(text: str) -> bytes:
    """Return a key as ZeroMQ takes it.

    Raises:
        CurveKeyError: The text is none.
    """
    text = text.strip()
    try:
        if len(text) == KEY_LENGTH and len(z85.decode(text)) == KEY_LENGTH * 4 // 5:
            return text.encode("ascii")
    except (KeyError, ValueError, UnicodeError, OverflowError, zmq.ZMQError):
        pass
    raise CurveKeyError(f"a key is {KEY_LENGTH} characters of Z85, this text has {len(text)} characters")


def key_in(path: str | Path) -> bytes:
    """Return the key that a file holds.

    Raises:
        CurveKeyError: The file cannot be read, or holds no key; names the file.
    """
    try:
        return key(_text(path))
    except CurveKeyError as error:
        raise CurveKeyError(f"{path}: {error}") from None


def public_key(secret: bytes) -> bytes:
    """Return the public key of a secret one."""
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
        path: A file with one key a line; empty lines, and lines that begin with `# `, say nothing.

    Raises:
        CurveKeyError: The file cannot be read, or a line holds no key.
    """

    def __init__(self, keys: Iterable[bytes] = (), path: str | Path | None = None) -> None:
        self._fixed = frozenset(keys)
        self._path = path
        self._state: tuple[int, int, int] | None = None
        self.keys = self._fixed
        self._complained = ""
        if path is not None:
            self._state = self._look()
            self.keys = self._fixed | self._read(path)

    def refresh(self) -> frozenset[bytes]:
        """Read the file again if it has changed; return the keys that are no longer allowed.

        A file that cannot be read leaves the list as it is, which is logged.
        """
        if self._path is None:
            return frozenset()
        try:
            state = self._look()
            if state == self._state:
                return frozenset()
            keys = self._fixed | self._read(self._path)
        except CurveKeyError as error:
            if str(error) != self._complained:
                self._complained = str(error)
                logger.error("the list of allowed keys stays as it was: %s", error)
            return frozenset()
        self._complained = ""
        revoked, added = self.keys - keys, keys - self.keys
        self._state, self.keys = state, keys
        logger.info("allowed keys: %d, of these %d new; %d revoked", len(keys), len(added), len(revoked))
        return revoked

    def _look(self) -> tuple[int, int, int]:
        assert self._path is not None, "only asked where there is a file"
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
    """Let a socket connect with CURVE; has effect on connections that are made from now on."""
    socket.curve_serverkey = server_key
    socket.curve_publickey = public_key(secret_key)
    socket.curve_secretkey = secret_key


class Gate:
    """Decides who may connect to the CURVE sockets of a context, and tells of those who may not.

    Args:
        context: Of the sockets; it can have one gate.
        secret_key: Of the side that binds.
        allowed: Who may connect; everybody who knows the public key if None.
        clock: Monotonic seconds, for the rate of log lines.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        secret_key: bytes,
        allowed: AllowedKeys | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.allowed = allowed
        self.refused = 0
        """Handshakes that failed."""
        self._secret_key = secret_key
        self._clock = clock
        self._zap = context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(ZAP)
        self._guarded: dict[zmq.Socket[bytes], tuple[zmq.Socket[bytes], _Arrivals]] = {}  # and its monitor
        self._told_at: dict[str, float] = {}
        self._untold = 0

    @property
    def sockets(self) -> "list[zmq.Socket[bytes]]":
        """What to watch: `turn` is due when one of them can be read."""
        return [self._zap, *(monitor for monitor, _ in self._guarded.values())]

    def guard(self, socket: "zmq.Socket[bytes]") -> None:
        """Let only those connect to a socket who may; to be called before it is bound."""
        socket.curve_secretkey = self._secret_key
        socket.curve_server = True
        socket.zap_domain = b"channels-zmq"
        self._guarded[socket] = socket.get_monitor_socket(_WATCHED), _Arrivals()

    def release(self, socket: "zmq.Socket[bytes]") -> None:
        """Watch a socket no more, because it is about to be closed."""
        monitor, _ = self._guarded.pop(socket)
        socket.disable_monitor()
        monitor.close(linger=0)

    def turn(self) -> None:
        """Answer who asks, and read what happened, until nothing is left. Never blocks."""
        while self._answer():
            pass
        for monitor, arrivals in self._guarded.values():
            with suppress(zmq.Again):
                while True:
                    event = recv_monitor_message(monitor, zmq.DONTWAIT)
                    peer = arrivals.refused(event["event"], event["value"])
                    if peer is not None:
                        self._tell(peer, "it has no key, or the key of another server")

    def close(self) -> None:
        """Close its own sockets, once the guarded ones are closed."""
        for monitor, _ in self._guarded.values():
            monitor.close(linger=0)
        self._zap.close()

    def _answer(self) -> bool:
        try:
            version, request, _, address, _, mechanism, *credentials = self._zap.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        public = z85.encode(credentials[0]) if mechanism == b"CURVE" and credentials else b""
        allowed = bool(public) and (self.allowed is None or public in self.allowed.keys)
        if not allowed:
            self._tell(address.decode(errors="replace") or "a local socket", "its key is not allowed")
        code, text = (b"200", b"OK") if allowed else (b"400", b"not allowed")
        self._zap.send_multipart([version, request, code, text, public if allowed else b"", b""])
        return True

    def _tell(self, peer: str, reason: str) -> None:
        self.refused += 1
        now = self._clock()
        if now - self._told_at.get(peer, -TELL_EVERY) < TELL_EVERY:
            self._untold += 1
            return
        if len(self._told_at) >= TELL_ADDRESSES:
            self._told_at.clear()
        self._told_at[peer] = now
        more = f" ({self._untold} more refusals were not logged)" if self._untold else ""
        self._untold = 0
        logger.warning("%s was refused: %s%s", peer, reason, more)


class _Arrivals:
    """Finds out who it was whose handshake failed: an event with the descriptor comes before, and one after."""

    def __init__(self) -> None:
        self._peers: dict[int, str] = {}
        self._failed = False

    def refused(self, event: int, descriptor: int) -> str | None:
        """Take an event; return the address of a peer that was refused by it."""
        if event == zmq.Event.ACCEPTED:
            self._peers[descriptor] = _peer(descriptor)
        elif event in _FAILED:
            self._failed = True
        elif event == zmq.Event.DISCONNECTED:
            failed, self._failed = self._failed, False
            peer = self._peers.pop(descriptor, "an unknown address")
            return peer if failed else None
        return None


def _peer(descriptor: int) -> str:
    try:
        with sockets.socket(fileno=os.dup(descriptor)) as copy:
            name = copy.getpeername()
    except OSError:
        return "an address that is gone already"
    return str(name[0]) if isinstance(name, tuple) else "a local socket"
