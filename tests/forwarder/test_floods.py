"""Senders that are ended because they send too fast, and the port that refuses meanwhile.

Integration tests have whole forwarders.
"""

import asyncio
import itertools
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from descriptors import none_left

from channels_zmq_forwarder.connections import Peer, TcpSockets
from channels_zmq_forwarder.floods import FLOOD, GROWTH, HELD_UP, PATIENCE, REFUSES_AT_MOST, Senders, ending_floods

WAIT = 10.0


class Port:
    """A port of this process, and connections to it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.number = self.listener.getsockname()[1]
        self.opened = [self.listener]

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new connection: the peer's and ours."""
        peer = socket.create_connection(("127.0.0.1", self.number), timeout=WAIT)
        ours, _ = self.listener.accept()
        self.opened += [peer, ours]
        return peer, ours

    def attempt(self) -> socket.socket:
        """Return a socket whose connection attempt continues in the background."""
        peer = socket.socket()
        peer.setblocking(False)
        peer.connect_ex(("127.0.0.1", self.number))
        self.opened.append(peer)
        return peer

    def send(self, pair: tuple[socket.socket, socket.socket], count: int) -> None:
        """Send bytes and let them arrive."""
        peer, ours = pair
        for _ in range(count // 1024):
            peer.sendall(bytes(1024))
            ours.recv(1024, socket.MSG_WAITALL)


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    for one in port.opened:
        one.close()


@pytest.fixture
def senders(port: Port) -> Iterator[Senders]:
    senders = Senders({port.number})
    yield senders
    senders.close()


def is_connected(peer: socket.socket, seconds: float) -> bool:
    return bool(select.select([], [peer], [], seconds)[1])


def is_ended(peer: socket.socket) -> bool:
    peer.settimeout(0)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_what_each_peer_has_sent_is_measured(port: Port) -> None:
    """The bytes of each peer are measured only for connections to the port, not for this process's own ones to it."""
    pair, other = port.connect(), port.connect()
    port.send(pair, 3 * 1024)
    found = TcpSockets({port.number}).received()
    assert found == {
        (ours.fileno(), Peer("127.0.0.1", peer.getsockname()[1])): count
        for (peer, ours), count in ((pair, 3 * 1024), (other, 0))
    }
    assert TcpSockets({port.number + 1}).received() == {}


def test_nobody_can_connect_while_the_port_refuses(port: Port) -> None:
    """While the port refuses, nobody can connect, and existing connections stay.

    The peer's system repeats an attempt, so it succeeds afterwards.
    """
    pair, sockets = port.connect(), TcpSockets({port.number})
    sockets.refuse()
    peer = port.attempt()
    assert not is_connected(peer, 0.1)
    port.send(pair, 1024)
    sockets.accept()
    assert is_connected(peer, WAIT)


def test_the_fastest_senders_are_ended(port: Port, senders: Senders) -> None:
    """Senders of at least a quarter of the fastest one's bytes are ended; slower ones stay connected."""
    fast, half, slow = (port.connect() for _ in range(3))
    assert senders.look(0.0, is_harmful=True, is_behind=True) == 0
    assert senders.is_measuring
    for pair, count in ((fast, FLOOD), (half, FLOOD // 2), (slow, FLOOD // 8)):
        port.send(pair, count)
    assert senders.look(0.1, is_harmful=True, is_behind=True) == 2
    assert [is_ended(pair[0]) for pair in (fast, half, slow)] == [True, True, False]


def test_a_fast_sender_is_ended_when_no_descriptor_is_left(port: Port, senders: Senders) -> None:
    """A fast sender is ended even without a free descriptor, since a flood of connections may accompany it."""
    pair = port.connect()
    with none_left():
        assert senders.look(0.0, is_harmful=True, is_behind=True) == 0
        port.send(pair, FLOOD)
        assert senders.look(0.1, is_harmful=True, is_behind=True) == 1
    assert is_ended(pair[0])
    senders.look(0.2, is_harmful=False, is_behind=False)


@pytest.mark.parametrize(
    ("is_harmful", "count"), [(False, FLOOD), (True, FLOOD // 2)], ids=["much without harm", "little"]
)
def test_nobody_is_ended_without_need(port: Port, senders: Senders, is_harmful: bool, count: int) -> None:
    """No sender is ended for sending much without harm, or for harm while it sends little.

    A loop may be delayed by something else.
    """
    pair = port.connect()
    for moment in range(3):
        assert senders.look(moment, is_harmful=is_harmful, is_behind=True) == 0
        port.send(pair, count if moment == 1 else 0)
    assert not is_ended(pair[0])
    assert is_connected(port.attempt(), WAIT)


def test_what_was_sent_before_the_first_look_does_not_count(port: Port, senders: Senders) -> None:
    """Bytes from before the first look do not count: a client that reconnects sends its many groups at once."""
    pair = port.connect()
    port.send(pair, FLOOD)
    assert [senders.look(moment, is_harmful=True, is_behind=True) for moment in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(("is_behind", "seconds"), [(False, 1.0), (True, REFUSES_AT_MOST)])
def test_the_port_refuses_until_all_is_read(port: Port, senders: Senders, is_behind: bool, seconds: float) -> None:
    """After a flood the port refuses connections until everything is read, or for a limited time."""
    pair = port.connect()
    senders.look(0.0, is_harmful=True, is_behind=True)
    port.send(pair, FLOOD)
    assert senders.look(0.0, is_harmful=True, is_behind=True) == 1
    peer = port.attempt()
    assert not is_connected(peer, 0.1)
    assert senders.ended == 0
    senders.look(seconds, is_harmful=False, is_behind=is_behind)
    assert senders.ended == 1
    assert is_connected(peer, WAIT)


class Sending:
    """A peer that sends without end, from a thread, until it is ended."""

    def __init__(self, port: Port) -> None:
        self.was_ended = threading.Event()
        self._port, self._pair, self._is_over = port, port.connect(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                self._port.send(self._pair, FLOOD)
        except OSError:
            self.was_ended.set()

    def __enter__(self) -> "Sending":
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._is_over.set()
        self._thread.join()


@pytest.mark.parametrize("does", ["holds up the loop", "holds up each turn", "fills the memory"])
async def test_a_sender_that_does_harm_is_ended(port: Port, senders: Senders, does: str) -> None:
    """A sender that delays the loop or fills the memory is ended.

    A delayed loop harms other clients, and a full memory the forwarder.
    """
    resident = itertools.count(0, GROWTH if does == "fills the memory" else 0)
    turns = 0
    with Sending(port) as peer, ending_floods(senders, lambda: True, lambda: turns, resident.__next__):
        end = time.monotonic() + WAIT
        while not peer.was_ended.is_set() and time.monotonic() < end:
            if does == "holds up the loop":
                peer.was_ended.wait(2 * HELD_UP * PATIENCE)
            elif does == "holds up each turn":
                peer.was_ended.wait((HELD_UP + 0.6) * PATIENCE)
                turns += 1
            await asyncio.sleep(0)
        assert peer.was_ended.is_set()


@pytest.mark.parametrize("is_behind", [True, False], ids=["the memory grows little", "all is read"])
async def test_a_sender_that_does_no_harm_goes_on(port: Port, senders: Senders, is_behind: bool) -> None:
    """A sender stays connected if it only keeps a responsive forwarder behind, or if others fill its memory."""
    looks = 0

    def resident() -> int:
        nonlocal looks
        looks += 1
        return min(looks - 1, 1) * (GROWTH - 1) if is_behind else looks * GROWTH

    with Sending(port) as peer, ending_floods(senders, lambda: is_behind, lambda: 0, resident):
        while looks < 20:
            await asyncio.sleep(0.001)
        assert not peer.was_ended.is_set()


async def test_a_loop_that_moves_frames_is_not_asked(senders: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that moves frames is not probed, since each answer would delay a frame; an idle one is probed again."""
    turns, asked = itertools.count(), 0
    loop = asyncio.get_running_loop()

    def ask(*answer: Any) -> asyncio.Handle:
        nonlocal asked
        asked += 1
        return call(*answer)

    call = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", ask)
    asked_at_each_look: list[int] = []

    def resident() -> int:
        asked_at_each_look.append(asked)
        return 0

    with ending_floods(senders, lambda: False, lambda: min(next(turns), 5), resident):
        while not asked:
            await asyncio.sleep(0.001)
    assert asked_at_each_look[:6] == [0] * 6
