"""WebSocket consumers that use less CPU time for each message than those of Channels. They work with any channel layer.

Replace the import and nothing else:

    from channels_zmq.consumers import AsyncWebsocketConsumer  # instead of channels.generic.websocket

Theory of operation. For each message, Channels closes old database connections in another thread, creates a task for
the next message, and waits for the tasks of both sources. These consumers skip the thread while no database connection
is open, and use one task per source for the lifetime of the consumer. Applications see the same behaviour: handlers run
one at a time and in one context, and an exception in a handler ends the consumer.
"""

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from channels.consumer import get_handler_name
from channels.db import aclose_old_connections
from channels.exceptions import StopConsumer
from channels.generic import websocket
from channels.layers import get_channel_layer

from channels_zmq import databases

Message = dict[str, Any]
Source = Callable[[], Awaitable[Message]]


class LeanDispatch:
    """A mixin that receives and dispatches messages; list it before an asynchronous consumer class.

    `SyncConsumer` cannot use it, and would gain nothing: its handlers run in threads.
    """

    channel_layer_alias: str
    scope: Any
    channel_layer: Any
    channel_name: str
    channel_receive: Source
    base_send: Callable[[Message], Awaitable[None]]

    async def __call__(self, scope: Any, receive: Source, send: Callable[[Message], Awaitable[None]]) -> None:
        """Serve one connection, as an ASGI application."""
        self.scope, self.base_send = scope, send
        self.channel_layer = get_channel_layer(self.channel_layer_alias)
        sources = [receive]
        if self.channel_layer is not None:
            self.channel_name = await self.channel_layer.new_channel()
            self.channel_receive = functools.partial(self.channel_layer.receive, self.channel_name)
            sources.append(self.channel_receive)
        turn, context = asyncio.Lock(), contextvars.copy_context()
        tasks = [asyncio.create_task(self._dispatch_all(source, turn), context=context) for source in sources]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if not isinstance(end, asyncio.CancelledError | StopConsumer):
                raise end

    async def _dispatch_all(self, source: Source, turn: asyncio.Lock) -> NoReturn:
        """Dispatch the messages of a source until something raises; that keeps the turn, so no handler follows."""
        while True:
            try:
                message = await source()
            except Exception:
                await turn.acquire()  # a handler that is running finishes first
                raise
            await turn.acquire()
            await self.dispatch(message)
            turn.release()

    async def dispatch(self, message: Message) -> None:
        """Call the handler for a message.

        Raises:
            ValueError: If the consumer lacks a handler for its type.
        """
        handler = getattr(self, get_handler_name(message), None)
        if handler is None:
            raise ValueError(f"No handler for message type {message['type']}")
        if databases.has_open_connection():
            await aclose_old_connections()
        await handler(message)


class AsyncWebsocketConsumer(LeanDispatch, websocket.AsyncWebsocketConsumer):  # type: ignore[misc] # no type information
    """Channels' class of the same name, with `LeanDispatch`."""


class AsyncJsonWebsocketConsumer(LeanDispatch, websocket.AsyncJsonWebsocketConsumer):  # type: ignore[misc] # as above
    """Channels' class of the same name, with `LeanDispatch`."""
