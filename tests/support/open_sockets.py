"""Sockets that a test opens and does not have to close."""

from typing import Any, Generic, TypeVar

import zmq

Socket = TypeVar("Socket", bound="zmq.Socket[Any]")


class Sockets(Generic[Socket]):
    """A factory of sockets, which the fixture closes with their context after the test."""

    def __init__(self, context: zmq.Context[Socket]) -> None:
        self.context = context
        self._opened: list[Socket] = []

    def open(self, kind: int, address: str | None = None) -> Socket:
        socket = self.context.socket(kind)
        self._opened.append(socket)
        if address is not None:
            socket.connect(address)
        return socket
