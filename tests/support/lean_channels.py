"""A pytest plugin for Channels' own test suite: its tests use our consumers where they name those of Channels."""

from channels.generic import websocket

from channels_zmq import consumers

websocket.AsyncWebsocketConsumer = consumers.AsyncWebsocketConsumer
websocket.AsyncJsonWebsocketConsumer = consumers.AsyncJsonWebsocketConsumer
