"""Messages to bytes and back.

In the data-flow diagram this is between the layer and the wire. `msgpack` is the default; `json` makes messages
readable on the wire; `register` adds others. The choice of the msgpack library: docs/design/0002.

A reader gets a list for a tuple. With `msgpack` it gets a datetime, date, time or UUID as its ISO text, a Decimal as
text, and a member of an enum (such as Django's `TextChoices`) as its value; `json` refuses all but the last, and bytes.
"""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import ormsgpack

from channels_zmq.client.mailboxes import Payload, Shared
from channels_zmq.errors import ConfigurationError, SerializationError

Message = dict[str, Any]
RESERVED_KEY = "__asgi_channel__"
"""Other layers keep a channel's name under this key and refuse it in messages; a message fits all layers or none."""


class Serializer(NamedTuple):
    """A way to turn a message into bytes and back; both raise TypeError, ValueError or OverflowError if they cannot.

    `dumps` may also return a bytearray, a memoryview or a subclass of bytes.
    """

    dumps: Callable[[Message], bytes | bytearray | memoryview]
    loads: Callable[[bytes], Any]


def _text_of_decimal(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be serialized")


_OPTIONS = ormsgpack.OPT_PASSTHROUGH_DATACLASS


def _dump_msgpack(message: Message) -> bytes:
    return ormsgpack.packb(message, _text_of_decimal, _OPTIONS)  # by keyword it takes 0.13 us longer


def _dump_json(message: Message) -> bytes:
    _refuse_odd_keys(message)
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def _refuse_odd_keys(value: object) -> None:
    """Refuse keys that `json` would silently turn into text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError("keys must be str")
            _refuse_odd_keys(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_odd_keys(inner)


_registry: dict[str, Serializer] = {
    "msgpack": Serializer(_dump_msgpack, ormsgpack.unpackb),
    "json": Serializer(_dump_json, json.loads),
}


def register(name: str, serializer: Serializer) -> None:
    """Register a serializer under a name, for `CONFIG["serializer"]`. All processes of a layer need the same one."""
    _registry[name] = serializer


def named(name: str) -> Serializer:
    """Return a registered serializer.

    Raises:
        ConfigurationError: If no serializer has that name.
    """
    try:
        return _registry[name]
    except KeyError:
        known = ", ".join(sorted(_registry))
        raise ConfigurationError("serializer", f"{name!r} is not registered; registered are {known}") from None


def pack(serializer: Serializer, message: Message) -> bytes:
    """Return the bytes of a message.

    Raises:
        SerializationError: If a value in it cannot be carried (names the path to it), if it holds the reserved key
            `__asgi_channel__`, or if the serializer returns anything but bytes (names the serializer).
    """
    if not isinstance(message, dict):
        raise SerializationError("message", f"a message must be a dict, not {type(message).__name__}")
    if RESERVED_KEY in message:
        raise SerializationError(f"message[{RESERVED_KEY!r}]", "reserved for channel layers: use another key")
    try:
        payload = serializer.dumps(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        path, problem = next(_problems(serializer, message, "message"), ("message", str(error)))
        raise SerializationError(path, problem) from error
    return payload if type(payload) is bytes else _exact_bytes(serializer, payload)


def _exact_bytes(serializer: Serializer, payload: object) -> bytes:
    """Copy the result of a serializer: no object that it still holds may change a message that waits to be sent."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    name = next((repr(name) for name, one in _registry.items() if one is serializer), repr(serializer.dumps))
    raise SerializationError("message", f"the serializer {name} returned {type(payload).__name__} instead of bytes")


MAX_DEPTH = 200


def _problems(
    serializer: Serializer, value: object, path: str, inside: tuple[int, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Walk down to the innermost values that the serializer refuses; only run once it has refused the whole.

    `inside` holds the identities of the containers around the value.
    """
    if id(value) in inside:
        yield path, "contains itself"
    elif len(inside) > MAX_DEPTH:
        yield f"{path[:60]}...", "nested too deep to be serialized"
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield path, f"the key {key!r} is {type(key).__name__}, keys must be str"
            yield from _problems(serializer, inner, f"{path}[{key!r}]", (*inside, id(value)))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _problems(serializer, inner, f"{path}[{index}]", (*inside, id(value)))
    else:
        try:
            serializer.dumps({"value": value})
        except (TypeError, ValueError, OverflowError) as error:
            yield path, f"{_short(value)} of type {type(value).__name__} cannot be serialized ({error})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unpack(serializer: Serializer, payload: Payload) -> Message | None:
    """Return the message that bytes hold, or None if they are malformed: then a foreign program sent them.

    Every reader of a shared payload still gets a separate message: a copy where a shallow one is enough, which
    takes 0.05 us instead of 0.2.
    """
    if isinstance(payload, Shared):
        by, flat = payload.unpacked
        return flat.copy() if by is serializer else _unpack_first(serializer, payload)
    try:
        message = serializer.loads(payload)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _unpack_first(serializer: Serializer, shared: Shared) -> Message | None:
    message = unpack(serializer, shared.payload)
    if message is not None and _is_flat(message):
        shared.unpacked = serializer, message.copy()
    return message


_UNCHANGEABLE = frozenset((str, bytes, int, float, bool, type(None)))


def _is_flat(message: Message) -> bool:
    """Return whether nothing in a message can be changed but the message itself."""
    return _UNCHANGEABLE.issuperset(map(type, message.values()))
