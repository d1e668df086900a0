"""A pytest plugin for Channels' own test suite, which replaces Channels' consumers with those of this package."""

from channels.generic import websocket

from channels_zmq import consumers

websocket.AsyncWebsocketConsumer = consumers.AsyncWebsocketConsumer
websocket.AsyncJsonWebsocketConsumer = consumers.AsyncJsonWebsocketConsumer
