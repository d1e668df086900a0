"""The settings of a forwarder, from flags and environment variables; parsed once, at the edge.

Every flag `--pull-address` has a variable `CHANNELS_ZMQ_FORWARDER_PULL_ADDRESS`; the flag takes precedence.
"""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import ByteSize, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, NoDecode, SettingsConfigDict

from channels_zmq_forwarder import curve
from channels_zmq_forwarder.curve import AllowedKeys, CurveKeyError
from channels_zmq_forwarder.sockets import TCP, is_local

PROGRAM = "channels-zmq-forwarder"
PREFIX = "CHANNELS_ZMQ_FORWARDER_"
KEYS = "--curve-allowed-keys"
Addresses = Annotated[list[str], NoDecode]
OWN_STATUS_ADDRESS = "127.0.0.1:9601"
"""Where the status page is if the admin address can be reached from other machines."""


class SettingsError(ValueError):
    """A flag or variable is invalid; the message names it and the reason, but never a key."""


class Settings(BaseSettings):
    """Settings of one forwarder."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        cli_kebab_case=True,
        cli_prog_name=PROGRAM,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
    )

    pull_address: Addresses = Field(
        ["tcp://127.0.0.1:5555"],
        description="Addresses that producers connect to. Repeat the flag, or separate them by commas.",
    )
    pub_address: Addresses = Field(
        ["tcp://127.0.0.1:5556"],
        description="Addresses that subscribers connect to. Repeat the flag, or separate them by commas.",
    )
    admin_address: str = Field(
        "127.0.0.1:9600",
        description="HOST:PORT of health and metrics; host * is all interfaces, empty disables them.",
    )
    status_address: str | None = Field(
        None,
        description="HOST:PORT of the status page, which names groups and channels; empty disables it. Without it the "
        f"page is at --admin-address if that is a loopback address, and at {OWN_STATUS_ADDRESS} otherwise.",
    )
    pub_high_water_mark: int = Field(
        100_000,
        gt=0,
        lt=2**31,
        description="Maximum number of frames buffered for each subscriber; further ones are dropped. Only half of it "
        "is "
        "guaranteed in a burst.",
    )
    max_message_size: ByteSize = Field(
        ByteSize(2**20),
        gt=0,
        le=2**40,
        description="Maximum size of a payload, e.g. 4MiB; a larger frame disconnects its sender.",
    )
    subscriber_bytes: ByteSize = Field(
        ByteSize(64 * 2**20),
        ge=0,
        description="Bytes by which a subscriber may be behind, at most a quarter of the memory limit, and less if the "
        "process itself already uses much of it; beyond that its connection is ended. 0 means that only the memory "
        "limit bounds it. There is no bound for ipc://, and except on Linux.",
    )
    topic_bytes: ByteSize = Field(
        ByteSize(32 * 2**20),
        gt=0,
        description="Maximum total bytes of the names of all groups with members, each counted once; one process may "
        "use "
        "a quarter of it. The names take up to 50 times as much memory. Beyond the limit, the connection of the "
        "process with the most names is ended.",
    )
    queue_bytes: ByteSize = Field(
        ByteSize(256 * 2**20),
        gt=0,
        description="Maximum memory of all queues of normal channels together, at most 40 % of the memory limit.",
    )
    queue_names: int = Field(
        100_000,
        gt=0,
        description="Maximum number of queues of normal channels, and of normal members of groups; one process may use "
        "a "
        "quarter of it.",
    )
    history_bytes: ByteSize = Field(
        ByteSize(16 * 2**20),
        ge=0,
        description="Memory for the group and direct messages of the last 20 seconds, at most a sixteenth of the "
        "memory limit; they are replayed to clients that have missed them. 0 keeps none.",
    )
    max_ttl: float = Field(
        86_400.0, gt=0, le=4_294_967, description="Maximum seconds that a message waits in a queue of a normal channel."
    )
    flush: bool = Field(True, description="Whether clients may flush the layer: drop all messages and memberships.")
    curve_secret_key: SecretStr | None = Field(
        None, description="Secret key for CURVE on both ports. Prefer the file: other users can see flags."
    )
    curve_secret_key_file: str | None = Field(None, min_length=1, description="File with the secret key.")
    curve_allowed_keys: str | None = Field(  # a list of flags would be read as JSON: keys begin with braces, too
        None, description="Public keys that may connect, separated by commas; without a list, every key may."
    )
    curve_allowed_keys_file: str | None = Field(
        None,
        min_length=1,
        description="File with public keys that may connect, one per line; reloaded when it changes.",
    )
    memory_limit: ByteSize = Field(
        ByteSize(0),
        ge=0,
        description="Memory limit. Above 70 % of it large messages are refused, above 90 % all. 0 uses the cgroup's "
        "limit.",
    )
    settle: float = Field(
        0.5,
        ge=0,
        le=3600,
        description="Minimum seconds between accepting subscribers and accepting producers; half of it when as many "
        "clients are back as one of them knows of, unless history-bytes is 0.",
    )
    settle_at_most: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="Seconds after which producers are accepted even if earlier subscribers are missing.",
    )
    drain_at_most: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="Maximum seconds that clients may take, after SIGTERM, to switch to other forwarders and take over "
        "waiting messages; 0 waits for nothing.",
    )
    log_format: Literal["plain", "json"] = Field("plain", description="Format of log lines.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Minimum level of log lines.")

    @field_validator("pull_address", "pub_address", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        parts = [value] if isinstance(value, str) else value
        return [address.strip() for part in parts for address in part.split(",") if address.strip()]

    @field_validator("pull_address", "pub_address")
    @classmethod
    def _known_transport(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("at least one address is needed")
        for address in value:
            if not address.startswith(("tcp://", "ipc://")):
                raise ValueError(f"{address!r} is neither tcp://HOST:PORT nor ipc://PATH")
        return value

    @field_validator("admin_address", "status_address")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is None:
            return None
        host, colon, port = value.rpartition(":")
        is_ipv6 = host.startswith("[") and host.endswith("]")
        if value and not (host and colon and port.isdecimal() and int(port) < 65536 and (is_ipv6 or ":" not in host)):
            raise ValueError(f"{value!r} is not HOST:PORT; write an IPv6 address in brackets, as in [::1]:9600")
        return value

    @property
    def status_page_address(self) -> str:
        """The address of the status page; empty if it is disabled."""
        if self.status_address is not None:
            return self.status_address
        is_private = not self.admin_address or is_local(TCP + self.admin_address)
        return self.admin_address if is_private else OWN_STATUS_ADDRESS

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @property
    def allowed_keys(self) -> list[str]:
        """The public keys that may connect, as far as they are given by value."""
        return [part.strip() for part in (self.curve_allowed_keys or "").split(",") if part.strip()]

    @model_validator(mode="after")
    def _one_secret_key(self) -> Self:
        if self.curve_secret_key is not None and self.curve_secret_key_file is not None:
            raise ValueError("curve-secret-key and curve-secret-key-file are both given: one is enough")
        has_list = self.curve_allowed_keys is not None or self.curve_allowed_keys_file is not None
        if has_list and self.curve_secret_key is None and self.curve_secret_key_file is None:
            raise ValueError("a list of allowed keys needs curve-secret-key or curve-secret-key-file")
        return self

    @model_validator(mode="after")
    def _settles_in_order(self) -> Self:
        if self.settle_at_most < self.settle:
            raise ValueError(f"settle-at-most ({self.settle_at_most}) is less than settle ({self.settle})")
        return self


_DESCRIPTION = """Run a forwarder, or another command.

Each flag has a variable, for example CHANNELS_ZMQ_FORWARDER_PULL_ADDRESS; the flag takes precedence. Sizes are
bytes, or have a unit (16MiB)."""


def parse(arguments: Sequence[str], more_help: str = "") -> Settings:
    """Parse flags and environment; `--help` prints all settings, and more help behind them, and exits.

    Raises:
        SettingsError: If a flag is unknown, or a setting is invalid.
    """
    _check_flags(arguments)
    try:
        parser = argparse.ArgumentParser(
            prog=PROGRAM,
            description=_DESCRIPTION,
            epilog=more_help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        source: CliSettingsSource[Any] = CliSettingsSource(Settings, cli_parse_args=list(arguments), root_parser=parser)
        return Settings(_cli_settings_source=source)
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(problem) for problem in error.errors())) from None


def _check_flags(arguments: Sequence[str]) -> None:
    """Refuse unknown flags, without their values: one of them may be a mistyped flag of a secret key."""
    fields = {name.replace("_", "-"): field for name, field in Settings.model_fields.items()}
    switches = [f"--{no}{name}" for name, field in fields.items() if field.annotation is bool for no in ("", "no-")]
    known = [f"--{name}" for name in fields] + switches
    seen, is_value = set[str](), False
    for position, argument in enumerate(arguments, 1):
        flag, equals, _ = argument.partition("=")
        if is_value or argument in ("-h", "--help"):
            is_value = False
        elif not flag.startswith("--"):
            raise SettingsError(f"argument {position} is not a flag; flags and commands are listed by --help")
        elif flag not in known:
            near = get_close_matches(flag, known, 1)
            hint = f"did you mean {near[0]}?" if near else "flags and commands are listed by --help"
            raise SettingsError(f"{flag} is not a flag; {hint}")
        elif flag == KEYS and flag in seen:  # other flags add up, as addresses do, or the last one counts
            raise SettingsError(f"{flag} is given twice: separate the keys by commas")
        else:
            seen.add(flag)
            is_value = not equals and flag not in switches


def curve_keys(settings: Settings) -> tuple[bytes, AllowedKeys | None] | None:
    """Return the secret key and the keys that may connect, or None if CURVE is not configured.

    Raises:
        SettingsError: If a key or a file is invalid; the message names the setting, never the key.
    """
    try:
        setting = "curve-secret-key"
        if settings.curve_secret_key is not None:
            secret = curve.key(settings.curve_secret_key.get_secret_value())
        elif settings.curve_secret_key_file is not None:
            setting = "curve-secret-key-file"
            secret = curve.key_in(settings.curve_secret_key_file)
        else:
            return None
        if settings.curve_allowed_keys is None and settings.curve_allowed_keys_file is None:
            return secret, None
        setting = "curve-allowed-keys"
        keys = [curve.key(text) for text in settings.allowed_keys]
        setting = "curve-allowed-keys-file"
        return secret, AllowedKeys(keys, settings.curve_allowed_keys_file)
    except CurveKeyError as error:
        raise SettingsError(_of(setting, str(error))) from None


def _sentence(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(message)
    field = str(problem["loc"][0])
    return _of(field.replace("_", "-"), message)


def _of(flag: str, message: str) -> str:
    return f"--{flag} ({PREFIX}{flag.replace('-', '_').upper()}): {message}"
