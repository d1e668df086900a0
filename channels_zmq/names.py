"""Names of channels: which are valid, which process reads each, and how new ones are made.

Pure. A *process-specific channel* is one that `new_channel` made; its name holds the inbox of the process that reads
it. A *normal channel* has no `!` in its name; it is a queue in the exchange. A name with a `!` that `new_channel` did
not make is valid, but no process reads it. The *prefix* of a layer is put before the names of its groups and normal
channels, separated by a colon, which names never contain. Names that `new_channel` made are unique without it.
"""

import hashlib
import secrets
from functools import lru_cache
from typing import Any, NamedTuple

from channels.layers import BaseChannelLayer

from channels_zmq_forwarder.wire import INBOX_SIZE, Topic, group_topic

_RANDOM_PART, _CODE = 12, 10
"""Hexadecimal digits behind the `!` of a name."""
_HEX = frozenset("0123456789abcdef")
_base: Any = BaseChannelLayer()
MAX_PREFIX = 99 - INBOX_SIZE - _RANDOM_PART - _CODE - 2


class Channel(NamedTuple):
    """A valid channel name.

    Attributes:
        name: The name; that of a normal channel begins with the layer's prefix.
        owner: The inbox of the process that reads a process-specific channel, else empty.
        is_normal: Whether any process may read it.
    """

    name: str
    owner: bytes
    is_normal: bool


@lru_cache(maxsize=16_384)
def _channel(name: str, prefix: str) -> Channel:
    if name.endswith("!"):
        raise TypeError(
            f"{name!r} stands for all channels of a process; receive from a full name that new_channel() returned"
        )
    _base.require_valid_channel_name(name)
    head, bang, _ = name.partition("!")
    inbox = head.rpartition(".")[2]
    owned = bang and "." in head and len(inbox) == INBOX_SIZE and _HEX.issuperset(inbox)
    return Channel(name if bang else prefixed(name, prefix), inbox.encode() if owned else b"", not bang)


def prefixed(name: str, prefix: str) -> str:
    """Return the name of a group or normal channel with a layer's prefix."""
    return f"{prefix}:{name}" if prefix else name


def channel(name: object, prefix: str = "") -> Channel:
    """Validate a channel name, for a layer with a prefix.

    Raises:
        TypeError: If the name is invalid; the message describes a valid one.
    """
    if not isinstance(name, str):
        raise TypeError(f"a channel name must be a str, not {type(name).__name__}")
    return _channel(name, prefix)


@lru_cache(maxsize=16_384)
def _topic(name: str, prefix: str) -> Topic:
    _base.require_valid_group_name(name)
    return group_topic(prefixed(name, prefix))


def topic(name: object, prefix: str = "") -> Topic:
    """Validate a group name and return the topic of its messages, for a layer with a prefix.

    Raises:
        TypeError: If the name is invalid; the message describes a valid one.
    """
    if not isinstance(name, str):
        raise TypeError(f"a group name must be a str, not {type(name).__name__}")
    return _topic(name, prefix)


class OwnNames:
    """Makes the names of the process-specific channels of one process, and recognizes them later.

    A name ends with a random part and a code of it that only this process can make. So no other process can make this
    process keep messages for a channel that it never had, and it need not remember the names.

    Args:
        inbox: Of the process.
    """

    def __init__(self, inbox: bytes) -> None:
        self._inbox = inbox.decode()
        self._secret = secrets.token_bytes(16)

    def new(self, prefix: str) -> str:
        """Make the name of a new channel.

        Raises:
            TypeError: If the prefix does not make a valid name.
        """
        if not isinstance(prefix, str) or not 0 < len(prefix) <= MAX_PREFIX or "!" in prefix:
            raise TypeError(f"the prefix {prefix!r} must have 1 to {MAX_PREFIX} characters without an exclamation mark")
        head = f"{prefix}.{self._inbox}!{secrets.token_hex(_RANDOM_PART // 2)}"
        name = head + self._code(head)
        _base.require_valid_channel_name(name)
        return name

    def __contains__(self, name: str) -> bool:
        """Return whether `new` made a name."""
        head, code = name[:-_CODE], name[-_CODE:]
        return secrets.compare_digest(code.encode(), self._code(head).encode())

    def _code(self, head: str) -> str:
        return hashlib.blake2b(head.encode(), key=self._secret, digest_size=_CODE // 2).hexdigest()
