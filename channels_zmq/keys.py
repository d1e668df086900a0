"""The CURVE keys that CONFIG gives, by value or by file.

A file is read again while the connection is down, so that a key can change without a restart. Errors, log lines and
reprs never contain a key.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from channels_zmq.config import EmbeddedConfig, LayerConfig
from channels_zmq.errors import ConfigurationError
from channels_zmq_forwarder import curve
from channels_zmq_forwarder.curve import AllowedKeys, CurveKeyError

logger = logging.getLogger("channels_zmq")


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """The keys that a connection takes: the public key of the side that binds, and an own secret key."""

    server: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySetting:
    """One key as CONFIG gives it.

    Args:
        name: The key of CONFIG for the value; with the suffix `_file`, the one for the file.
        value: The key itself.
        path: Or the file that holds it.
    """

    name: str
    value: SecretStr | None
    path: str | None

    @property
    def is_set(self) -> bool:
        """Whether there is a value or a file."""
        return self.value is not None or self.path is not None

    def read(self) -> bytes:
        """Return the key.

        Raises:
            ConfigurationError: If the key is invalid, or its file cannot be read; names the setting.
        """
        try:
            if self.value is not None:
                return curve.key(self.value.get_secret_value())
            assert self.path is not None, "called only for keys that are set"
            return curve.key_in(self.path)
        except CurveKeyError as error:
            suffix = "_file" if self.value is None else ""
            raise ConfigurationError(f"CONFIG['{self.name}{suffix}']", str(error)) from None

    @property
    def is_missing(self) -> bool:
        """Whether the file does not exist: in a container it may be mounted a moment after the start."""
        return self.path is not None and not Path(self.path).exists()


class ClientKeySource:
    """Reads the keys of the side that connects.

    Args:
        server: The public key of the other side.
        secret: The own secret key; without one each process generates its own, which no list of allowed keys contains.
    """

    def __init__(self, server: KeySetting, secret: KeySetting) -> None:
        self._server, self._secret = server, secret
        self._own = b"" if secret.is_set else curve.new_pair()[1]

    def read(self) -> ClientKeys:
        """Return the keys as they are now.

        Raises:
            ConfigurationError: If one is missing or invalid.
        """
        return ClientKeys(self._server.read(), self._own or self._secret.read())

    def missing_file(self) -> str:
        """Return the path of a key file that does not exist, or an empty text."""
        return next((str(one.path) for one in (self._server, self._secret) if one.is_missing), "")


class KeyWatch:
    """The keys that a transport connects with, and whether it should connect anew.

    Args:
        source: Reads them; None for a transport without CURVE.
    """

    def __init__(self, source: ClientKeySource | None) -> None:
        self.current: ClientKeys | None = None
        """The keys that were read last."""
        self.problem = ""
        """Why they could not be read; empty if they were."""
        self._source = source
        self._found: ClientKeys | None = None
        self._has_looked = False
        self._refused = False

    def may_connect(self) -> bool:
        """Read the keys for the first time; return False if a file does not exist yet.

        Raises:
            ConfigurationError: If a key is invalid; names the setting.
        """
        if self._source is None:
            return True
        missing = self._source.missing_file()
        if missing:
            self.problem = f"{missing} does not exist"
            return False
        self.current = self._source.read()
        return True

    def refused(self) -> None:
        """Note that the other side has refused the keys, or their absence.

        It may accept them later, but ZeroMQ does not try again.
        """
        self._refused = True

    def look(self) -> None:
        """Read the keys again. Keys that cannot be read change nothing."""
        try:
            self._found = self._source.read() if self._source is not None else None
        except ConfigurationError as error:
            self.problem = str(error)
        else:
            self.problem = ""
            self._has_looked = True

    def have_changed(self) -> bool:
        """Return whether `look` has found keys to connect with since the last call: new ones, or refused ones."""
        has_looked, self._has_looked = self._has_looked, False
        if not has_looked or (self._found == self.current and not self._refused):
            return False
        self.current, self._refused = self._found, False
        return True


class ServerKeySource:
    """Reads the keys of the side that binds: the producer of an embedded layer.

    Args:
        secret: Its secret key.
        allowed: Public keys that may connect.
        allowed_file: The file with more of them. If both are None, every client that has the public key may connect.
    """

    def __init__(self, secret: KeySetting, allowed: tuple[str, ...] | None, allowed_file: str | None) -> None:
        self._secret = secret
        self._allowed, self._allowed_file = allowed, allowed_file

    def read(self, log: Callable[..., None] = logger.log) -> tuple[bytes, AllowedKeys | None]:
        """Return the secret key and the list.

        Args:
            log: Called by the list with the level of each line to log, the line and its arguments.

        Raises:
            ConfigurationError: If a key is missing or invalid.
        """
        secret = self._secret.read()
        if self._allowed is None and self._allowed_file is None:
            return secret, None
        setting = "curve_allowed_keys"
        try:
            keys = [curve.key(text) for text in self._allowed or ()]
            setting = "curve_allowed_keys_file"
            return secret, AllowedKeys(keys, self._allowed_file, log)
        except CurveKeyError as error:
            raise ConfigurationError(f"CONFIG[{setting!r}]", str(error)) from None


def client_keys(settings: LayerConfig) -> ClientKeySource | None:
    """Return the source of the keys of the side that connects; None if CONFIG has none."""
    server = KeySetting("curve_server_key", settings.curve_server_key, settings.curve_server_key_file)
    secret = KeySetting("curve_secret_key", settings.curve_secret_key, settings.curve_secret_key_file)
    return ClientKeySource(server, secret) if server.is_set else None


def server_keys(settings: LayerConfig) -> ServerKeySource | None:
    """Return the source of the keys of an embedded producer; None if CONFIG has none."""
    if not isinstance(settings, EmbeddedConfig):
        return None
    secret = KeySetting(
        "curve_server_secret_key", settings.curve_server_secret_key, settings.curve_server_secret_key_file
    )
    keys = ServerKeySource(secret, settings.curve_allowed_keys, settings.curve_allowed_keys_file)
    return keys if secret.is_set else None
