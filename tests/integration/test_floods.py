"""If one peer sends as much as it can, the forwarder keeps serving, and others are not affected."""

import contextlib
import os
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from forwarders import PATIENCE, Forwarder, close_all, free_ports, port_of, until
from strangers import Peer, RawPeer, on_the_wire

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.curve import new_pair

MEBIBYTE = 2**20
AT_MOST = 100 * MEBIBYTE
"""The number of bytes by which a flood may increase the forwarder's memory."""
LIMIT = {"XSUB": "4GiB", "PUSH": "768MiB"}
PING = b"\x04\x07\x04PING\0\0"


class Flood:
    """Connections that send the same frames again and again, and reconnect once they have been ended."""

    def __init__(self, address: str, frames: bytes, kind: str = "XSUB", connections: int = 3) -> None:
        self._port, self._frames, self._kind, self._is_over = port_of(address), frames, kind, threading.Event()
        self.sent = self.ended = 0
        """How many times connections began to send the frames, and how many connections were ended."""
        self._threads = [threading.Thread(target=self._run) for _ in range(connections)]

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                with contextlib.closing(RawPeer(self._port, self._kind)) as peer:
                    while not self._is_over.is_set():
                        self.sent += 1
                        peer.socket.sendall(self._frames)
            except OSError:
                self.ended += 1

    def __enter__(self) -> "Flood":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def memory(forwarder: Forwarder) -> int:
    """Return the resident bytes of a forwarder."""
    pages = Path(f"/proc/{forwarder.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


class IdleFlood:
    """Connections to both ports whose peers send only the given bytes, and reconnect once they have been ended."""

    def __init__(self, forwarder: Forwarder, sent: bytes, connections: int = 400) -> None:
        self._ports, self._sent, self._count = [port_of(forwarder.pull), port_of(forwarder.pub)], sent, connections
        self._is_over, self._selector = threading.Event(), selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run)

    def _connect(self, number: int) -> None:
        peer = socket.create_connection(("127.0.0.1", self._ports[number % 2]), timeout=PATIENCE)
        peer.sendall(self._sent)
        self._selector.register(peer, selectors.EVENT_READ, number)

    def _run(self) -> None:
        while not self._is_over.is_set():
            for key, _ in self._selector.select(0.05):
                peer = key.fileobj
                assert isinstance(peer, socket.socket)
                with contextlib.suppress(ConnectionResetError):
                    if peer.recv(1000):
                        continue
                self._selector.unregister(peer)
                peer.close()
                self._connect(key.data)

    def __enter__(self) -> "IdleFlood":
        for number in range(self._count):
            self._connect(number)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()
        for key in self._selector.get_map().values():
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()


@contextlib.contextmanager
def running(forwarder: Forwarder) -> Iterator[None]:
    """Start a forwarder, and end it after the layers that use it."""
    forwarder.start()
    try:
        yield
    finally:
        close_all()
        forwarder.end()


@pytest.fixture
def forwarder(tmp_path: Path) -> Iterator[Forwarder]:
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    forwarder = Forwarder(pull, pub, log=tmp_path / "log")
    with running(forwarder):
        yield forwarder


def test_a_flood_of_frames_that_are_too_large_stops_nobody_else(run: Any, forwarder: Forwarder) -> None:
    """In a flood of frames that are too large, health checks and messages pass, and the memory is bounded.

    Libzmq refuses such frames by their heads.
    """

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        before = memory(forwarder)
        with Flood(forwarder.pub, on_the_wire(b"?" * MEBIBYTE)) as flood:
            await until(lambda: flood.sent >= 3)
            for number in range(100):
                await layer.group_send("room", {"n": number})
                assert await layer.receive(channel) == {"n": number}
                assert forwarder.is_ready()
                assert memory(forwarder) - before < AT_MOST
        assert layer.stats()["reconnects"] == 0

    run(scenario())


@pytest.mark.parametrize("kind", ["PUSH", "XSUB"])
def test_a_forwarder_outlives_peers_that_end_in_a_flood_of_frames_and_heartbeats(
    forwarder: Forwarder, kind: str
) -> None:
    """A forwarder outlives peers that disconnect amid a flood of frames and heartbeats.

    Libzmq aborts a process that bounds its input if a peer disconnects while that bound is reached.
    """
    data = (on_the_wire(b"?" * 10) * 300 + PING) * 300
    for number in range(40):
        peer = RawPeer(port_of(forwarder.pull if kind == "PUSH" else forwarder.pub), kind)
        peer.socket.sendall(data)
        if number % 2:  # reset the connection
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    assert forwarder.is_ready()


@pytest.mark.slow  # beside two other tests on two cores no peer sends faster than a forwarder reads
@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("kind", ["XSUB", "PUSH"])
def test_who_sends_faster_than_the_forwarder_reads_is_disconnected(
    run: Any, tmp_path: Path, kind: str, size: int
) -> None:
    """A peer that sends faster than the forwarder reads is disconnected, and its memory is freed.

    Otherwise it would block the loop, or fill the memory. Other clients stay connected.
    """
    addresses = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    # Producers are ended at half of the limit; on a busy machine the rest must not fill up before that.
    forwarder = Forwarder(*addresses, flags=("--memory-limit", LIMIT[kind]), log=tmp_path / "log")
    frames = on_the_wire(b"?" * size) * (MEBIBYTE // 2 // size)

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        before = memory(forwarder)
        with Flood(forwarder.pub if kind == "XSUB" else forwarder.pull, frames, kind, connections=4):
            await until(lambda: "they sent faster than" in forwarder.log_text())
            for number in range(20):
                await layer.group_send("room", {"n": number})
                assert await layer.receive(channel) == {"n": number}
                assert forwarder.is_ready()
        await until(lambda: memory(forwarder) < before + AT_MOST)
        assert layer.stats()["reconnects"] == 0

    with running(forwarder):
        run(scenario())


@pytest.mark.parametrize("sent", [b"", b"\xff"])
def test_idle_connections_lock_nobody_out(run: Any, tmp_path: Path, sent: bytes) -> None:
    """With more idle connections than descriptors, clients stay connected, and a new one and a probe are served.

    The forwarder also reads its file of allowed keys.
    """
    server, client, other = (new_pair() for _ in range(3))
    secret, allowed, fresh = (tmp_path / name for name in ("secret", "allowed", "fresh"))
    secret.write_bytes(server[1])
    allowed.write_bytes(client[0])
    forwarder = Forwarder(
        *(f"tcp://127.0.0.1:{port}" for port in free_ports(2)),
        flags=(f"--curve-secret-key-file={secret}", f"--curve-allowed-keys-file={allowed}"),
        log=tmp_path / "log",
        descriptors=200,
    )

    async def scenario() -> None:
        keys = {"curve_server_key": server[0].decode(), "curve_secret_key": client[1].decode()}
        layer = DedicatedZmqChannelLayer(**forwarder.config, **keys)
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        with IdleFlood(forwarder, sent):
            await until(lambda: "descriptors are short" in forwarder.log_text())
            fresh.write_bytes(other[0] + b"\n" + client[0])
            fresh.replace(allowed)
            keys["curve_secret_key"] = other[1].decode()
            await until(lambda: "allowed keys: 2" in forwarder.log_text())
            newcomer = DedicatedZmqChannelLayer(**forwarder.config, **keys)
            await newcomer.group_send("room", {"text": "hello"})
            assert await layer.receive(channel) == {"text": "hello"}
            await until(forwarder.is_ready)
        assert layer.stats()["reconnects"] == 0

    with running(forwarder):
        run(scenario())


def test_a_large_job_that_nobody_reads_goes_back(run: Any, forwarder: Forwarder) -> None:
    """An unread large job is returned by the producers' port, as that of subscribers takes only small ones."""
    text = "x" * 2 * wire.MAX_UPSTREAM

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        await layer.send("jobs", {"text": "small"})
        assert await layer.receive("jobs") == {"text": "small"}  # so the reader has credit for two more
        await layer.send("jobs", {"text": text})
        await until(lambda: forwarder.status()["waiting"] == 1)
        with zmq.Context() as context, Peer(context, forwarder.pull, forwarder.pub) as other:
            other.say(wire.READY.encode(wire.Ready(other.inbox, 1, 1, 0, 0, 0, b"jobs")))
            job = wire.JOB.decode(other.await_kind(wire.JOB))
            assert text.encode() in job.payload
            other.say(wire.READY.encode(wire.Ready(other.inbox, 1, 1, 1, 0, 0, b"jobs")))
            other.sync()
        assert layer.stats()["dropped"] == {}
        assert all(not queue["unsettled"] for queue in forwarder.status()["queues"])

    run(scenario())
