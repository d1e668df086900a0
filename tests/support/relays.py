"""A TCP relay between a process and a forwarder: a network that a test can stop, cut and turn elsewhere."""

import contextlib
import select
import socket
import threading
import time
from collections import deque

CHUNK = 65_536


class Relay:
    """Passes on what comes to a port of its own.

    Args:
        port: Its own, on the loopback.
        target: Where connections go that are made from now on.
        delay: Seconds that everything takes, in each direction.
    """

    def __init__(self, port: int, target: int, delay: float = 0.0) -> None:
        self.port, self.target, self.delay = port, target, delay
        self.accepted = 0
        """Connections so far."""
        self._server: socket.socket | None = None
        self._flows = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Accept connections."""
        self._flows.set()
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._run(self._accept, self._server)

    def hold(self) -> None:
        """Take nothing more from those who connected, while the connections stay."""
        self._flows.clear()

    def cut(self) -> None:
        """Close all connections that there are."""
        while self._open:
            _close(self._open.pop())

    def end(self) -> None:
        """Close everything; nobody can connect until the next `start`."""
        if self._server is not None:
            _close(self._server)
        self.cut()
        self._flows.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self, work: object, *sockets: socket.socket) -> None:
        thread = threading.Thread(target=work, args=sockets, daemon=True)  # type: ignore[arg-type] # a method
        self._threads.append(thread)
        thread.start()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:  # closed
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            self.accepted += 1
            self._open += [near, far]
            self._run(self._pass_on, near, far)
            self._run(self._pass_back, far, near)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._carry(near, far, self._flows)
        _close(far)

    def _pass_back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._carry(far, near, None)
        _close(near)

    def _carry(self, source: socket.socket, target: socket.socket, flows: threading.Event | None) -> None:
        under_way: deque[tuple[float, bytes]] = deque()
        while True:
            if flows is not None:
                flows.wait()
            pause = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            if select.select([source], [], [], pause)[0]:
                data = source.recv(CHUNK)
                if not data:
                    return
                under_way.append((time.monotonic() + self.delay, data))
            while under_way and under_way[0][0] <= time.monotonic():
                target.sendall(under_way.popleft()[1])


def _close(connection: socket.socket) -> None:
    """Close a socket that another thread may be waiting on."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
