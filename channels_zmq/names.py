"""Names of channels: which there are, where each goes, and how new ones are made.

Pure. A *process channel* is one that `new_channel` made; its name holds the inbox of the process that reads it. Every
other name is a *plain channel*, a queue in the exchange, also one with a `!` that somebody made up.
"""

import secrets
from functools import lru_cache
from typing import Any, NamedTuple

from channels.layers import BaseChannelLayer

from channels_zmq_forwarder.wire import INBOX_SIZE, Topic, group_topic

_LOCAL_PART = 12
_HEX = frozenset("0123456789abcdef")
_base: Any = BaseChannelLayer()
MAX_PREFIX = 99 - INBOX_SIZE - _LOCAL_PART - 2


class Channel(NamedTuple):
    """A checked channel name; `owner` is the inbox of the process that reads it, empty for a plain channel."""

    name: str
    owner: bytes


@lru_cache(maxsize=16_384)
def _channel(name: str) -> Channel:
    if name.endswith("!"):
        raise TypeError(f"{name!r} names all channels of a process; receive from a full name that new_channel() made")
    _base.require_valid_channel_name(name)
    head, bang, _ = name.partition("!")
    inbox = head.rpartition(".")[2]
    owned = bang and "." in head and len(inbox) == INBOX_SIZE and _HEX.issuperset(inbox)
    return Channel(name, inbox.encode() if owned else b"")


def channel(name: object) -> Channel:
    """Check a channel name.

    Raises:
        TypeError: It is none; says what one looks like.
    """
    if not isinstance(name, str):
        raise TypeError(f"a channel name is a str, not {type(name).__name__}")
    return _channel(name)


@lru_cache(maxsize=16_384)
def _topic(name: str) -> Topic:
    _base.require_valid_group_name(name)
    return group_topic(name)


def topic(name: object) -> Topic:
    """Check a group name and return the topic of its messages.

    Raises:
        TypeError: It is none; says what one looks like.
    """
    if not isinstance(name, str):
        raise TypeError(f"a group name is a str, not {type(name).__name__}")
    return _topic(name)


def new_channel(prefix: str, inbox: bytes) -> str:
    """Make the name of a new process channel of the process with this inbox.

    Raises:
        TypeError: The prefix does not make a valid name.
    """
    if not isinstance(prefix, str) or not 0 < len(prefix) <= MAX_PREFIX or "!" in prefix:
        raise TypeError(f"the prefix {prefix!r} is no name of 1 to {MAX_PREFIX} characters without an exclamation mark")
    name = f"{prefix}.{inbox.decode()}!{secrets.token_hex(_LOCAL_PART // 2)}"
    _base.require_valid_channel_name(name)
    return name
