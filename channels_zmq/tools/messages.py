"""`manage.py channels_zmq send` and `listen`: sends one message, and prints all that arrive.

Both use a layer as an application does, and close it.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from channels.exceptions import ChannelFull, StopConsumer

from channels_zmq.errors import ChannelsZmqError
from channels_zmq.serializers import Message
from channels_zmq.tools import ToolError
from channels_zmq.tools.layers import Layer, is_alone
from channels_zmq_forwarder.commands.text import as_json, printable

LOOK_EVERY = 0.01
"""Seconds between two checks whether a forwarder has taken a message."""


def parsed(text: str) -> Message:
    """Return the message that a text of JSON describes.

    Raises:
        ToolError: If it is not a JSON object with a type; names the place of invalid JSON.
    """
    try:
        message = json.loads(text)
    except json.JSONDecodeError as error:
        shown = printable(text[max(0, error.pos - 20) : error.pos + 20])
        place = f"line {error.lineno} column {error.colno}"
        raise ToolError(f"the message is invalid JSON: {error.msg} at {place}, near {shown!r}") from None
    if not isinstance(message, dict):
        raise ToolError(f'a message must be a JSON object such as {{"type": "chat.message"}}, not {printable(text)}')
    if not isinstance(message.get("type"), str):
        raise ToolError('the message has no "type", which selects the handler of a consumer')
    return message


async def send(layer: Layer, message: Message, *, group: str = "", channel: str = "") -> None:
    """Send a message, and wait until a forwarder has it.

    Raises:
        ToolError: If it cannot be sent; states why.
    """
    _refuse_alone(layer, "send to")
    try:
        async with layer:
            if group:
                await layer.group_send(group, message)
            else:
                await layer.send(channel, message)
            await _taken(layer)
    except (ChannelsZmqError, ChannelFull, TypeError) as error:
        raise ToolError(str(error)) from error


async def _taken(layer: Layer) -> None:
    """Wait until nothing is held in this process."""
    timeout = layer.config.connect_timeout
    until = time.monotonic() + timeout
    while (stats := layer.stats())["held"] or not stats["connected"]:
        if time.monotonic() > until:
            problem = f"no process at {layer.address} has accepted the message within {timeout:g} s (connect_timeout)"
            raise ToolError(f"{problem}: run `manage.py channels_zmq doctor`")
        await asyncio.sleep(LOOK_EVERY)


async def listen(
    layer: Layer,
    took: Callable[[Message], Any],
    joined: Callable[[str], Any] = lambda text: None,
    *,
    group: str = "",
    channel: str = "",
    count: int = 0,
) -> None:
    """Receive messages until `count` have arrived.

    Args:
        layer: Closed at the end.
        took: Called with each message.
        joined: Called with a text once no message is missed any more.
        group: To which a channel of this process is added.
        channel: Or a normal channel, whose messages are taken away from its other readers.
        count: Of the messages; 0 for no end.

    Raises:
        ToolError: If the group or channel cannot be received from; states why.
    """
    _refuse_alone(layer, "receive from")
    try:
        async with layer:
            if group:
                name = await layer.new_channel("listen")
                await layer.group_add(group, name)
                joined(f"listening to group {group!r}; press Ctrl-C to stop")
            else:
                name, note = channel, "workers do not get these messages; press Ctrl-C to stop"
                joined(f"reading channel {channel!r}: {note}")
            received = 0
            while not count or received < count:
                took(await layer.receive(name))
                received += 1
    except (ChannelsZmqError, TypeError) as error:
        raise ToolError(str(error)) from error
    except StopConsumer:
        pass  # it was closed: there is nothing more to receive


def _refuse_alone(layer: Layer, what: str) -> None:
    if is_alone(layer):
        raise ToolError(
            f"the embedded layer at {layer.address} reaches only its own process, so this command has no process to "
            f"{what}: use a tcp:// or ipc:// address, or DedicatedZmqChannelLayer"
        )


def shown(message: Message, clock: str) -> str:
    """Return a message as one line for people: time, type, the rest as JSON."""
    rest = {key: value for key, value in message.items() if key != "type"}
    kind = printable(str(message.get("type", "(no type)")))
    return f"{clock}  {kind}  {as_json(rest)}" if rest else f"{clock}  {kind}"
