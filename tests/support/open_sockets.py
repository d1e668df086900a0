"""Sockets that a test opens and need not close."""

from typing import Any, Generic, TypeVar

import zmq

Socket = TypeVar("Socket", bound="zmq.Socket[Any]")


class Sockets(Generic[Socket]):
    """Opens sockets; the fixture closes them with their context when the test is over."""

    def __init__(self, context: zmq.Context[Socket]) -> None:
        self.context = context
        self._opened: list[Socket] = []

    def open(self, kind: int, address: str | None = None) -> Socket:
        socket = self.context.socket(kind)
        self._opened.append(socket)
        if address is not None:
            socket.connect(address)
        return socket
