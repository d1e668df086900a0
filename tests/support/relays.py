"""A TCP relay between a process and a forwarder: a network that a test can stall, cut and redirect."""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from forwarders import free_ports, port_of

CHUNK = 65_536


class Relay:
    """A relay that accepts connections at its own port.

    Args:
        port: Its own port, on the loopback.
        target: The target port of future connections.
        delay: Seconds that all data takes, in each direction.
        rate: Bytes a second in each direction; 0 for no limit.
    """

    def __init__(self, port: int, target: int, delay: float = 0.0, rate: float = 0.0) -> None:
        self.port, self.target, self.delay, self.rate = port, target, delay, rate
        self.accepted = 0
        """Number of connections so far."""
        self.answered = 0
        """Bytes that have arrived from the target so far, to be passed on even if it ends."""
        self._server: socket.socket | None = None
        self._flows = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def address(self) -> str:
        """The address at which it accepts connections."""
        return f"tcp://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Accept connections."""
        self._flows.set()
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._run(self._accept, self._server)

    def hold(self) -> None:
        """Stall all data in both directions, while connections stay open and new ones are accepted."""
        self._flows.clear()

    def resume(self) -> None:
        """Pass on the data that has arrived since `hold`, and all data that follows."""
        self._flows.set()

    def cut(self) -> None:
        """Close all present connections."""
        while self._open:
            _close(self._open.pop())

    def end(self) -> None:
        """Close everything; peers cannot connect until the next `start`."""
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
            except OSError:  # the server socket is closed
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            self.accepted += 1
            self._open += [near, far]
            self._run(self._pass_on, near, far)
            self._run(partial(self._pass_on, is_answer=True), far, near)

    def _pass_on(self, source: socket.socket, target: socket.socket, *, is_answer: bool = False) -> None:
        send = self._sender(target)
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self.answered += len(data) * is_answer
                self._flows.wait()  # after `recv`, in which this thread may be when `hold` is called
                if self.rate:
                    time.sleep(len(data) / self.rate)
                send(data)
        self._flows.wait()  # a stalled network does not pass on the end of a connection either
        send(b"")

    def _sender(self, target: socket.socket) -> Callable[[bytes], None]:
        """Return a function that sends data after the delay, and without data closes the connection."""
        if not self.delay:
            return partial(_send, target)
        under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        self._run(partial(_send_late, under_way), target)
        return lambda data: under_way.put((time.monotonic() + self.delay, data))


@contextlib.contextmanager
def relay_to(address: str, rate: float = 0.0) -> Iterator[Relay]:
    """Run a relay to a TCP address of the loopback, at a free port."""
    relay = Relay(free_ports(1)[0], port_of(address), rate=rate)
    relay.start()
    try:
        yield relay
    finally:
        relay.end()


def _send(target: socket.socket, data: bytes) -> None:
    if data:
        target.sendall(data)
    else:
        _close(target)


def _send_late(under_way: "queue.SimpleQueue[tuple[float, bytes]]", target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, data = under_way.get()
            time.sleep(max(0.0, due - time.monotonic()))  # this is the delay
            _send(target, data)
            if not data:
                return


def _close(connection: socket.socket) -> None:
    """Close a socket on which another thread may be waiting."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
