"""`manage.py channels_zmq from-redis`: `CHANNEL_LAYERS` of channels_redis, translated key by key.

Pure: the settings are an argument, the result is text, which never contains secrets.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from channels_zmq.config import DedicatedConfig, parse
from channels_zmq.encryption import MIN_KEY
from channels_zmq.environment import DEDICATED
from channels_zmq.errors import ConfigurationError
from channels_zmq.tools import ToolError
from channels_zmq_forwarder.commands.text import printable

CORE = "channels_redis.core.RedisChannelLayer"
PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"
_SERIALIZERS = ("msgpack", "json")


@dataclass(frozen=True, slots=True)
class Line:
    """The fate of one key: `taken over`, `renamed`, `replaced`, `left out` or `new`, and why."""

    key: str
    fate: str
    why: str


@dataclass(frozen=True, slots=True)
class Translation:
    """One layer in our settings.

    Attributes:
        alias: Of the layer.
        backend: Of channels_redis.
        config: Our CONFIG; encryption keys are `Expression`s.
        lines: The fate of each key, in the order of the keys.
    """

    alias: str
    backend: str
    config: dict[str, Any]
    lines: list[Line]


class Expression(str):
    """A piece of Python for the settings, which stands for a value that is not shown."""

    __slots__ = ()


def translate(layers: Mapping[str, Any], pull: str, pub: str) -> list[Translation]:
    """Translate every layer of channels_redis.

    Args:
        layers: `CHANNEL_LAYERS`.
        pull: The `pull_socket_address` of the forwarder.
        pub: Its `pub_socket_address`.

    Raises:
        ToolError: If the settings contain no layer of channels_redis, if an entry is invalid, or if the addresses are.
    """
    found = [
        _translated(alias, given["BACKEND"], given.get("CONFIG") or {}, pull, pub)
        for alias, given in layers.items()
        if isinstance(given, Mapping) and given.get("BACKEND") in (CORE, PUBSUB)
    ]
    if not found:
        backends = ", ".join(
            f"{alias!r} is {given.get('BACKEND') if isinstance(given, Mapping) else type(given).__name__}"
            for alias, given in layers.items()
        )
        raise ToolError(f"no layer of channels_redis ({CORE}, {PUBSUB}): {backends or 'CHANNEL_LAYERS is empty'}")
    return found


def _translated(alias: str, backend: str, given: Any, pull: str, pub: str) -> Translation:
    if not isinstance(given, Mapping):
        raise ToolError(f"layer {alias!r}: CONFIG must be a dict, not {type(given).__name__}")
    config: dict[str, Any] = {"pull_socket_address": pull, "pub_socket_address": pub}
    try:
        parse(DedicatedConfig, config)
    except ConfigurationError as error:
        raise ToolError(f"the addresses of the forwarder: {error} (--pull-address, --pub-address)") from None
    lines = []
    if "hosts" not in given:
        lines.append(_hosts(None, config))
    for key, value in given.items():
        lines.append(_KEYS[key](value, config) if key in _KEYS else _unknown(key))
    if backend == PUBSUB:
        lines += _only_here(given)
    return Translation(alias, backend, config, lines)


def _hosts(value: Any, config: dict[str, Any]) -> Line:
    several = isinstance(value, list | tuple) and len(value) > 1
    shards = " Several Redis hosts share the load; one forwarder is usually enough, and a second one provides failover."
    return Line(
        "hosts",
        "replaced",
        "by pull_socket_address and pub_socket_address: a forwarder has two ports. Start channels-zmq-forwarder with "
        f"--pull-address {config['pull_socket_address']} --pub-address {config['pub_socket_address']}."
        f"{shards if several else ''}",
    )


def _same(key: str, why: str) -> Callable[[Any, dict[str, Any]], Line]:
    """Return a function that takes over a key whose values mean the same."""

    def take(value: Any, config: dict[str, Any]) -> Line:
        try:
            parse(DedicatedConfig, {**_addresses(config), key: value})
        except ConfigurationError as error:
            return Line(key, "left out", f"{error}: choose another value.")
        config[key] = value
        return Line(key, "taken over", why)

    return take


def _addresses(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key.endswith("_socket_address")}


def _encryption(value: Any, config: dict[str, Any]) -> Line:
    key = "symmetric_encryption_keys"
    keys = [value] if isinstance(value, str | bytes) else list(value or ())
    if not keys:
        return Line(key, "left out", "the list is empty.")
    short = [one for one in keys if len(one if isinstance(one, bytes) else str(one).encode()) < MIN_KEY]
    variables = [f"CHANNELS_KEY_{number}" for number in range(1, len(keys) + 1)]
    config[key] = [Expression(f'os.environ["{variable}"]') for variable in variables]
    why = f"the values are not shown: put them into {', '.join(variables)}. It needs the package cryptography."
    if short:
        why += f" {len(short)} of them are shorter than {MIN_KEY} bytes and are refused: generate new ones."
    return Line(key, "taken over", why)


def _serializer(value: Any, config: dict[str, Any]) -> Line:
    key = "serializer_format"
    if value in _SERIALIZERS:
        config["serializer"] = value
        return Line(key, "renamed", "to serializer.")
    return Line(
        key, "left out", f"{value!r}: register it by channels_zmq.serializers.register and set serializer to its name."
    )


def _random_prefix(value: Any, config: dict[str, Any]) -> Line:
    return Line(
        "random_prefix_length", "left out", "it distinguishes messages in Redis; here messages have sequence numbers."
    )


def _channel_layer(value: Any, config: dict[str, Any]) -> Line:
    return Line("channel_layer", "left out", "it is internal to channels_redis.")


def _unknown(key: str) -> Line:
    return Line(key, "left out", "channels_redis does not have this key either.")


_EVENT = "it is the type of a message to every consumer; each consumer needs a handler for it."
_KEYS: dict[str, Callable[[Any, dict[str, Any]], Line]] = {
    "hosts": _hosts,
    "prefix": _same("prefix", "layers with different prefixes share forwarders and are separate."),
    "expiry": _same("expiry", "seconds after which a waiting message expires."),
    "group_expiry": _same(
        "group_expiry", "it counts from the last group_add or receive, so active members do not expire."
    ),
    "capacity": _same("capacity", "it applies to each full channel name."),
    "channel_capacity": _same("channel_capacity", "the first pattern that matches applies."),
    "symmetric_encryption_keys": _encryption,
    "random_prefix_length": _random_prefix,
    "serializer_format": _serializer,
    "on_disconnect": _same("on_disconnect", _EVENT),
    "on_reconnect": _same("on_reconnect", f"{_EVENT} The message has `missed`."),
    "channel_layer": _channel_layer,
}


def _only_here(given: Mapping[str, Any]) -> Iterator[Line]:
    """Yield lines about features that the pub/sub layer does not have."""
    if "capacity" not in given:
        yield Line("capacity", "new", "100 by default; the pub/sub layer has no limit. Raise it if bursts are larger.")
    yield Line("normal channels", "new", "send() to one reaches one reader; in the pub/sub layer it reached all.")


def report(translations: list[Translation]) -> Iterator[str]:
    """Yield the fate of each key, as comments for the settings."""
    for one in translations:
        yield printable(f"# {one.alias}: {one.backend}")
        width = max(len(line.key) for line in one.lines)
        for line in one.lines:
            yield printable(f"#   {line.key.ljust(width)}  {line.fate}: {line.why}")


def snippet(layers: Mapping[str, Any], translations: list[Translation]) -> Iterator[str]:
    """Yield the lines of `CHANNEL_LAYERS` for a settings module."""
    by_alias = {one.alias: one.config for one in translations}
    body = ["CHANNEL_LAYERS = {"]
    for alias in layers:
        if alias not in by_alias:
            body.append(f"    # {alias!r}: as before")
            continue
        body += [f"    {_python(alias)}: {{", f"        {_python('BACKEND')}: {_python(DEDICATED)},"]
        body.append(f"        {_python('CONFIG')}: {{")
        body += [f"            {_python(key)}: {_python(value)}," for key, value in by_alias[alias].items()]
        body += ["        },", "    },"]
    body.append("}")
    text = "\n".join(body)
    imports = [f"import {name}" for name in ("os", "re") if re.search(rf"\b{name}\.(environ|compile)", text)]
    yield from [*imports, "", *body] if imports else body


def _python(value: Any) -> str:
    """Return a value as Python."""
    if isinstance(value, Expression):
        return str(value)
    if isinstance(value, str) and value.isprintable():
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, re.Pattern):
        flags = value.flags & ~re.UNICODE
        return f"re.compile({value.pattern!r}{f', {flags}' if flags else ''})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_python(key)}: {_python(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_python, value)) + "]"
    return repr(value)
