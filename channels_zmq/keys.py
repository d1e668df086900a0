"""The CURVE keys that CONFIG gives, by value or by file.

A file is read again while there is no connection, so that a key can change without a restart. No error, log line or
repr holds a key.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from channels_zmq.errors import ConfigurationError
from channels_zmq_forwarder import curve
from channels_zmq_forwarder.curve import AllowedKeys, CurveKeyError

LOOK_EVERY = 0.05


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What it takes to connect: the public key of the side that binds, and an own secret key."""

    server: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySetting:
    """One key as CONFIG gives it.

    Args:
        name: The key of CONFIG for the value; with `_file` behind it that for the file.
        value: The key itself.
        path: Or where it stands.
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
            ConfigurationError: It is none, or the file cannot be read; names the setting.
        """
        try:
            if self.value is not None:
                return curve.key(self.value.get_secret_value())
            assert self.path is not None, "asked only for what is set"
            return curve.key_in(self.path)
        except CurveKeyError as error:
            suffix = "_file" if self.value is None else ""
            raise ConfigurationError(f"CONFIG['{self.name}{suffix}']", str(error)) from None

    def wait(self, deadline: float) -> None:
        """Wait for the file to appear: in a container it may be mounted a moment after the start."""
        while self.path is not None and not Path(self.path).exists() and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)


class ClientKeySource:
    """Where the keys of the side that connects come from.

    Args:
        server: The public key of the other side.
        secret: The own secret key; without one each process makes itself a key, which no list of allowed keys has.
    """

    def __init__(self, server: KeySetting, secret: KeySetting) -> None:
        self._server, self._secret = server, secret
        self._own = b"" if secret.is_set else curve.new_pair()[1]

    def read(self) -> ClientKeys:
        """Return the keys as they are now.

        Raises:
            ConfigurationError: One is missing, or is none.
        """
        return ClientKeys(self._server.read(), self._own or self._secret.read())

    def wait_and_read(self, timeout: float) -> ClientKeys:
        """Return the keys; wait that many seconds for files that are not there yet."""
        deadline = time.monotonic() + timeout
        self._server.wait(deadline)
        self._secret.wait(deadline)
        return self.read()


class ServerKeySource:
    """Where the keys of the side that binds come from: the producer of an embedded layer.

    Args:
        secret: Its secret key.
        allowed: Public keys that may connect, and the file with more of them; everybody with the public key if None.
    """

    def __init__(self, secret: KeySetting, allowed: tuple[str, ...] | None, allowed_file: str | None) -> None:
        self._secret = secret
        self._allowed, self._allowed_file = allowed, allowed_file

    def read(self) -> tuple[bytes, AllowedKeys | None]:
        """Return the secret key and the list.

        Raises:
            ConfigurationError: A key is missing, or is none.
        """
        secret = self._secret.read()
        if self._allowed is None and self._allowed_file is None:
            return secret, None
        setting = "curve_allowed_keys"
        try:
            keys = [curve.key(text) for text in self._allowed or ()]
            setting = "curve_allowed_keys_file"
            return secret, AllowedKeys(keys, self._allowed_file)
        except CurveKeyError as error:
            raise ConfigurationError(f"CONFIG[{setting!r}]", str(error)) from None
