"""The settings that `CONFIG` may hold, for both layers. Parsed once, at the edge; no I/O."""

import difflib
import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretBytes,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from channels_zmq.encryption import check_key
from channels_zmq.errors import ConfigurationError

MAX_CAPACITY = 2**31 - 1
"""Capacities travel as 32-bit numbers."""
MIN_SECONDS = 0.001
"""Durations travel as whole milliseconds: a shorter one would round to nothing."""
MAX_SECONDS = 4_000_000
"""46 days: durations travel as 32-bit milliseconds."""
MAX_GROUP_SECONDS = 10**10
"""Over 300 years: memberships travel as 64-bit milliseconds."""
_TCP = re.compile(r"tcp://(?P<host>\[[^\[\]\s]*\]|[^:/\[\]\s]+):(?P<port>[0-9]+)")


def _one_address(value: Any) -> Any:
    """Accept a list of one address for an address: an embedded layer has one producer."""
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise ValueError(f"one address is needed, this is a list of {len(value)}: {list(value)!r}")
        return value[0]
    return value


def _check_transport(value: str, transports: tuple[str, ...]) -> str:
    if not value.startswith(transports):
        raise ValueError(f"{value!r} does not begin with {' or '.join(transports)}")
    if value.startswith("tcp://"):
        _check_tcp(value)
    path = value.removeprefix("ipc://")
    if path != value and not 0 < len(path.encode()) < 100:
        raise ValueError(f"{value!r}: the path after ipc:// has 1 to 99 bytes")
    return value


def _check_tcp(value: str) -> None:
    match = _TCP.fullmatch(value)
    if match is None:
        host, _, port = value.removeprefix("tcp://").rpartition(":")
        bare = host.strip("[]")
        if _is_ipv6(bare):
            raise ValueError(f"{value!r}: put brackets around an IPv6 address: tcp://[{bare}]:{port}")
        raise ValueError(f"{value!r} is not tcp://HOST:PORT (an IPv6 address in brackets: tcp://[::1]:5555)")
    host, port = match["host"], match["port"]
    if host.startswith("[") and not _is_ipv6(host[1:-1]):
        raise ValueError(f"{value!r}: {host[1:-1]!r} is not an IPv6 address, and brackets are only for these")
    if not 0 < int(port) < 65536:
        raise ValueError(f"{value!r}: a port is a number from 1 to 65535")


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _listed(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _addresses(value: Any) -> Any:
    """Accept one address, several with commas between them, or a list."""
    parts = tuple(part.strip(" ") for part in value.split(",")) if isinstance(value, str) else value
    if isinstance(parts, (list, tuple)) and not all(parts):
        raise ValueError(f"{value!r} contains an empty address")
    if not parts:
        raise ValueError("at least one address is needed")
    return parts


Address = Annotated[str, BeforeValidator(_one_address)]
Addresses = Annotated[tuple[str, ...], BeforeValidator(_addresses), Field(max_length=64)]
Capacity = Annotated[int, Field(ge=1, le=MAX_CAPACITY)]
Seconds = Annotated[float, Field(ge=MIN_SECONDS, le=MAX_SECONDS)]
GroupSeconds = Annotated[float, Field(ge=MIN_SECONDS, le=MAX_GROUP_SECONDS)]


class LayerConfig(BaseModel):
    """The settings of both layers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True, defer_build=True
    )

    capacity: Capacity = Field(
        100, description="Maximum number of messages that wait on one channel; a full channel refuses further messages."
    )
    channel_capacity: dict[str | re.Pattern[str], Capacity] = Field(
        default_factory=dict,
        description="Capacities by glob or compiled pattern; the first pattern that matches applies.",
    )
    expiry: Seconds = Field(60.0, description="Seconds after which a waiting message expires.")
    group_expiry: GroupSeconds | None = Field(
        86400.0, description="Seconds without `group_add` or `receive` after which a member leaves; None: never."
    )
    max_message_size: int = Field(
        2**20, ge=1, le=2**31, description="Maximum size of a serialized message in bytes; equal in all processes."
    )
    serializer: str = Field("msgpack", description="`msgpack`, `json` or a registered name; equal in all processes.")
    prefix: str = Field(
        "",
        max_length=50,
        pattern=r"^[A-Za-z0-9._:-]*$",
        description="Prefix of the names of groups and normal channels: layers with different prefixes are separate.",
    )
    connect_timeout: Seconds = Field(
        5.0, description="Seconds that `group_add`, `flush` and `send` to a normal channel wait for an answer."
    )
    linger: float = Field(
        1.0,
        ge=0,
        le=60,
        description="Seconds that closing, or the interpreter's exit, may spend on delivering sent messages.",
    )
    prefetch: int = Field(
        4, ge=0, le=1000, description="Messages of a normal channel that a process fetches ahead of its readers."
    )
    on_disconnect: str | None = Field(
        None,
        min_length=1,
        description="Type of the message that every local consumer gets when the layer becomes unreachable.",
    )
    on_reconnect: str | None = Field(
        None,
        min_length=1,
        description="Type of the message that every local consumer gets when the layer is reachable again; it has "
        "`missed`.",
    )
    drop_rate: float = Field(
        0.0, ge=0, le=1, description="Share of messages to drop at random, to test how an application handles loss."
    )
    curve_server_key: SecretStr | None = Field(
        None, description="Public key of the side that binds (the forwarder or the sending process); enables CURVE."
    )
    curve_server_key_file: str | None = Field(
        None, min_length=1, description="File that holds that key; read again every second."
    )
    curve_secret_key: SecretStr | None = Field(
        None, description="Secret key of the side that connects; without it each process generates its own."
    )
    curve_secret_key_file: str | None = Field(
        None, min_length=1, description="File that holds that key; read again every second."
    )

    symmetric_encryption_keys: tuple[SecretBytes, ...] = Field(
        (),
        description="Keys that encrypt payloads from process to process: the first encrypts, all decrypt.",
    )
    symmetric_encryption_keys_file: str | None = Field(
        None, min_length=1, description="File that holds such keys, one per line; read again when it changes."
    )

    @field_validator("symmetric_encryption_keys", mode="before")
    @classmethod
    def _a_list(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise ValueError("a list of keys is needed: the first encrypts, all decrypt")
        return value

    @field_validator("symmetric_encryption_keys")
    @classmethod
    def _long_enough(cls, value: tuple[SecretBytes, ...]) -> tuple[SecretBytes, ...]:
        for key in value:
            check_key(key.get_secret_value())
        return value

    @property
    def encrypts(self) -> bool:
        """Whether payloads are encrypted."""
        return bool(self.symmetric_encryption_keys or self.symmetric_encryption_keys_file)

    @model_validator(mode="after")
    def _one_of_each_key(self) -> Self:
        if self.symmetric_encryption_keys and self.symmetric_encryption_keys_file:
            raise ValueError(
                "symmetric_encryption_keys and symmetric_encryption_keys_file are both given: one is enough"
            )
        for name in ("curve_server_key", "curve_secret_key", "curve_server_secret_key"):
            if getattr(self, name, None) is not None and getattr(self, f"{name}_file", None) is not None:
                raise ValueError(f"{name} and {name}_file are both given: one is enough")
        own = self.curve_secret_key or self.curve_secret_key_file
        if own and not (self.curve_server_key or self.curve_server_key_file):
            raise ValueError("curve_secret_key also needs curve_server_key or curve_server_key_file")
        return self

    @field_validator("channel_capacity", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        try:
            return dict(value)
        except (TypeError, ValueError) as error:
            raise ValueError("expected a dict, or pairs of a pattern and a number") from error


class EmbeddedConfig(LayerConfig):
    """CONFIG of `EmbeddedZmqChannelLayer`."""

    pub_socket_address: Address = Field(
        "inproc://channels",
        description="Address at which the one sending process publishes; `inproc://` reaches only itself.",
    )
    subscriber_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Bytes by which another process may be behind; beyond that its connection is ended. 0 means no "
        "limit; nor is there one for `ipc://`, and except on Linux.",
    )
    curve_server_secret_key: SecretStr | None = Field(
        None, description="Secret key of `curve_server_key`; required in the sending process."
    )
    curve_server_secret_key_file: str | None = Field(None, min_length=1, description="File that holds that key.")
    curve_allowed_keys: Annotated[tuple[str, ...], BeforeValidator(_listed)] | None = Field(
        None, description="Public keys that may connect; without a list, every client that has `curve_server_key` may."
    )
    curve_allowed_keys_file: str | None = Field(
        None, min_length=1, description="File that holds such keys, one per line; read again when it changes."
    )

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        server = self.curve_server_key or self.curve_server_key_file
        server_secret = self.curve_server_secret_key or self.curve_server_secret_key_file
        allowed = self.curve_allowed_keys is not None or self.curve_allowed_keys_file is not None
        if self.pub_socket_address.startswith("inproc://") and (server or server_secret or allowed):
            raise ValueError(f"{self.pub_socket_address!r} reaches only this process, so it takes no curve_ settings")
        if server_secret and not server:
            raise ValueError("curve_server_secret_key also needs curve_server_key or curve_server_key_file")
        if allowed and not server_secret:
            raise ValueError("a list of allowed keys needs curve_server_secret_key or curve_server_secret_key_file")
        return self

    @field_validator("pub_socket_address")
    @classmethod
    def _transport(cls, value: str) -> str:
        return _check_transport(value, ("tcp://", "ipc://", "inproc://"))


class DedicatedConfig(LayerConfig):
    """CONFIG of `DedicatedZmqChannelLayer`."""

    pull_socket_address: Addresses = Field(
        description="The `--pull-address` of each forwarder, to which messages are sent: one address, a list, or one "
        "name that resolves to several."
    )
    pub_socket_address: Addresses = Field(
        description="The `--pub-address` of each forwarder, from which messages are received, in the same order."
    )
    outbox_capacity: int = Field(
        10_000, ge=0, description="Maximum number of messages held while no forwarder accepts them."
    )
    outbox_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Maximum total bytes of these messages, and of those that a forwarder has not acknowledged.",
    )
    window: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Maximum number of frames (one message or batch each) that one forwarder has not acknowledged; "
        "further "
        "ones are held.",
    )
    resolve_every: Seconds = Field(5.0, description="Seconds after which names of forwarders are resolved again.")

    @property
    def forwarders(self) -> list[tuple[str, str]]:
        """The `pull_socket_address` and `pub_socket_address` of each forwarder."""
        return list(zip(self.pull_socket_address, self.pub_socket_address, strict=True))

    @field_validator("pull_socket_address", "pub_socket_address")
    @classmethod
    def _transport(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value.startswith("inproc://"):
                raise ValueError(f"{value!r}: a forwarder is a process of its own; use EmbeddedZmqChannelLayer instead")
            _check_transport(value, ("tcp://", "ipc://"))
        return values

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        pull, pub = self.pull_socket_address, self.pub_socket_address
        if len(pull) != len(pub):
            raise ValueError(
                f"pull_socket_address has {len(pull)} addresses and pub_socket_address {len(pub)}: "
                "each forwarder has one of each"
            )
        addresses = [*pull, *pub]
        twice = next((one for one in addresses if addresses.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is given twice; each forwarder has two ports of its own")
        return self


Config = TypeVar("Config", bound=LayerConfig)


def parse(model: type[Config], config: Mapping[str, Any]) -> Config:
    """Return the settings that CONFIG gives.

    Raises:
        ConfigurationError: If a key is unknown or missing, or if a value is invalid; names the key, and for an unknown
            one the nearest known key.
    """
    for key in config:
        if key not in model.model_fields:
            near = nearest(key, model)
            hint = f"did you mean {near!r}?" if near else f"the keys are {', '.join(sorted(model.model_fields))}"
            raise ConfigurationError(f"CONFIG[{key!r}]", f"unknown key; {hint}")
    try:
        return model(**config)
    except ValidationError as error:
        problem = first_problem(error)
        raise ConfigurationError(f"CONFIG{problem.place}", problem.text) from None


def nearest(key: str, model: type[LayerConfig]) -> str | None:
    """Return the known key that an unknown one most resembles, or None if it resembles none."""
    return next(iter(difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.5)), None)


class Problem(NamedTuple):
    """The first fault that validation found in CONFIG.

    Args:
        key: The key with the fault; empty if the fault is in how several keys fit together.
        place: The subscripts that lead to the value, such as `['capacity']`.
        text: The fault and, unless it is a secret, the value.
    """

    key: str
    place: str
    text: str


def first_problem(error: ValidationError) -> Problem:
    """Return the first fault that a validation error reports."""
    detail = error.errors()[0]
    path = [part for part in detail["loc"] if part != "[key]"]
    key = str(path[0]) if path else ""
    message = detail["msg"].removeprefix("Value error, ")
    hidden = detail["type"] in ("missing", "value_error") or "curve" in key or "encryption" in key
    shown = "" if hidden else f" (it is {detail['input']!r})"
    return Problem(key, "".join(f"[{part!r}]" for part in path), f"{message}{shown}")
