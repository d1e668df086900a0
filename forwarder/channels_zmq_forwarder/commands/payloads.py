"""Converts messages as JSON text to payloads and back.

The forwarder never decodes a payload. Its commands support the library's two serializers; `ormsgpack` is in the extra
`cli`.
"""

import json
from typing import Any, Literal

from channels_zmq_forwarder.commands.target import CommandError

Serializer = Literal["msgpack", "json"]
SERIALIZERS: tuple[Serializer, ...] = ("msgpack", "json")


def encode(text: str, serializer: Serializer) -> bytes:
    """Return the payload for a message that is typed as a JSON object.

    Raises:
        CommandError: If the text is not a JSON object, the serializer refuses it, or `ormsgpack` is not installed.
    """
    try:
        message = json.loads(text)
    except ValueError as error:
        raise CommandError(f"the message is not valid JSON: {error}") from None
    if not isinstance(message, dict):
        raise CommandError('a message must be a JSON object, such as {"type": "chat.message", "text": "hello"}')
    try:
        if serializer == "json":
            return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
        return _msgpack().packb(message)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:  # a number of more than 64 bits, half of a surrogate pair
        raise CommandError(f"the message cannot be serialized by {serializer}: {error}") from None


def decode(payload: bytes, serializer: Serializer) -> Any:
    """Return the message in a payload; None if it is of another serializer, or encrypted.

    Raises:
        CommandError: If `ormsgpack` is not installed.
    """
    loads = json.loads if serializer == "json" else _msgpack().unpackb
    try:
        message = loads(payload)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _msgpack() -> Any:
    try:
        import ormsgpack  # only in the extra
    except ImportError:
        raise CommandError(
            "msgpack needs the package ormsgpack: install the extra channels-zmq-forwarder[cli]; "
            "for layers with `serializer: json`, use --serializer json"
        ) from None
    return ormsgpack
