"""A small ASGI application for tests with real servers: each message of a WebSocket is sent to all in the room."""

from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter
from django.conf import settings

import channels_zmq

settings.configure(CHANNEL_LAYERS=channels_zmq.channel_layers_from_env(), INSTALLED_APPS=[], SECRET_KEY="for tests")
django.setup()


class Room(AsyncWebsocketConsumer):  # type: ignore[misc] # Channels has no type information
    """The consumer of one visitor."""

    groups = ("room",)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send("room", {"type": "said", "text": text_data})

    async def said(self, event: dict[str, Any]) -> None:
        await self.send(event["text"])


application = ProtocolTypeRouter({"websocket": Room.as_asgi()})
