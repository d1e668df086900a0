"""A stand-in for a forwarder, with which a test decides which frames a client receives, and when."""

import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from channels_zmq_forwarder import wire

PATIENCE = 20.0


class StandIn:
    """A forwarder inside the test: it answers by the wire protocol, and publishes any frame that it is given.

    Every client is subscribed to everything, so that no frame is dropped for lack of a subscription.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], pull: str, pub: str) -> None:
        self.config = {"pull_socket_address": pull, "pub_socket_address": pub}
        self.client, self.session = b"", 0
        self._instance, self._inbox = secrets.token_bytes(8), secrets.token_hex(8).encode()
        self.confirmed: list[int] = []
        self._numbers = itertools.count(1)
        self._pull, self._xpub = context.socket(zmq.PULL), context.socket(zmq.XPUB)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
            self._pull.set(option, 0)
            self._xpub.set(option, 0)
        self._xpub.set(zmq.XPUB_MANUAL, 1)
        _bind(self._pull, pull)
        _bind(self._xpub, pub)
        self.holds_syncs = False
        """Whether syncs are kept, oldest first, instead of being answered."""
        self.held: list[bytes] = []
        self._poller = zmq.Poller()
        self._poller.register(self._pull, zmq.POLLIN)
        self._poller.register(self._xpub, zmq.POLLIN)

    def close(self) -> None:
        self._pull.close()
        self._xpub.close()

    def publish(self, frame: bytes) -> None:
        self._xpub.send(frame)

    def answer_sync(self, frame: bytes) -> None:
        sync = wire.SYNC.decode(frame)
        self.publish(wire.SYNCED.encode(wire.Synced(sync.inbox, sync.n)))

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer in a thread during the block."""
        done = threading.Event()
        thread = threading.Thread(target=self._serve, args=(done.is_set,))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def await_client(self) -> None:
        """Wait until the client has read everything that was published."""
        number = self.ask(0, b"none", b"none")
        self.serve_until(lambda: number in self.confirmed)

    def ask(self, add: int, group: bytes, channel: bytes) -> int:
        """Ask the client to add a channel to a group or to discard it; its answer will be in `confirmed`."""
        number = next(self._numbers)
        self.publish(wire.ASK.encode(wire.Ask(self.client, number, add, self._inbox, group, channel)))
        return number

    def serve_until(self, condition: Callable[[], object]) -> None:
        """Answer until a condition holds."""
        end = time.monotonic() + PATIENCE
        self._serve(lambda: condition() or time.monotonic() > end)
        assert condition(), "the client is silent"

    def _serve(self, done: Callable[[], object]) -> None:
        while not done():
            for one, _ in self._poller.poll(5):
                self._take(one.recv())

    def _take(self, frame: bytes) -> None:
        inbox = frame[1 : 1 + wire.INBOX_SIZE]
        if frame[:1] == b"\1":
            self._xpub.set(zmq.SUBSCRIBE, b"")
        elif frame[:1] == b"H":
            self.client, self.session = inbox, wire.HELLO.decode(frame).session
            welcome = wire.Welcome(inbox, wire.VERSION, wire.State.SERVING, self._instance, self.session, 1)
            self.publish(wire.WELCOME.encode(welcome))
        elif frame[:1] == b"Y" and self.holds_syncs:
            if frame not in self.held:  # a sync is repeated until it is answered
                self.held.append(frame)
        elif frame[:1] == b"Y":
            self.answer_sync(frame)
        elif frame[:1] in (b"E", b"Q", b"M"):
            (number,) = wire.ECHO.numbers.unpack_from(frame, 1 + wire.INBOX_SIZE)
            self.publish(wire.CONFIRM.encode(wire.Confirm(inbox, number, wire.Status.OK, self._instance)))
        elif frame.startswith(wire.inbox_topic(self._inbox)):
            self.confirmed.append(wire.CONFIRM.decode(frame).n)
        elif frame[:1] in (b"G", b"P"):
            self.publish(frame)


def _bind(socket: zmq.Socket[bytes], address: str) -> None:
    """Bind an address that another socket may have just released, since ZeroMQ closes sockets asynchronously."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.bind(address)
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > end:
                raise
            time.sleep(0.001)
