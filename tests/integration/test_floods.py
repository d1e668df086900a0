"""One subscriber sends as much as it can: the forwarder goes on, and others notice nothing."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from forwarders import Forwarder, close_all, free_ports, port_of, until
from strangers import Peer, RawSubscriber, on_the_wire

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq_forwarder import wire

Frames = Callable[[bytes], list[bytes]]

MEBIBYTE = 2**20
AT_MOST = 300 * MEBIBYTE
"""What a flood may add to the forwarder's memory: without bounds it was 1 to 2 GiB in three seconds."""
LIST = wire.encode_forwarders(
    wire.KnownForwarder(b"tcp://127.0.0.1:%d" % number, b"tcp://127.0.0.2:%d" % number, serves=True)
    for number in range(1, wire.MAX_FORWARDERS)
)


def malformed(size: int) -> Frames:
    return lambda inbox: [b"?" * size]


def hellos(inbox: bytes) -> list[bytes]:
    return [wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, 1, 0, LIST))]


def readers(inbox: bytes) -> list[bytes]:
    return [
        wire.READY.encode(wire.Ready(inbox, 1, number, 0, 0, 0, b"%b-%d" % (inbox, number))) for number in range(1000)
    ]


def topics(inbox: bytes) -> list[bytes]:
    return [wire.subscription(wire.group_topic(f"{inbox.decode()}-{number}")) for number in range(200_000)]


class Flood:
    """Connections that send the same frames again and again, each time anew once they have been ended."""

    def __init__(self, forwarder: Forwarder, frames: Frames, connections: int = 3) -> None:
        self._port, self._frames, self._is_over = port_of(forwarder.pub), frames, threading.Event()
        self.sent = 0
        """How often a connection has sent all frames."""
        self._threads = [threading.Thread(target=self._run) for _ in range(connections)]

    def _run(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(OSError):  # the connection is ended, or nobody reads it
                self._flood(RawSubscriber(self._port))

    def _flood(self, peer: RawSubscriber) -> None:
        inbox = os.urandom(8).hex().encode()
        data = on_the_wire(*self._frames(inbox))
        data *= max(1, MEBIBYTE // len(data))
        try:
            peer.subscribe(wire.inbox_topic(inbox))
            peer.send(wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, 1, 0)))
            while not self._is_over.is_set():
                peer.socket.sendall(data)
                self.sent += 1
        finally:
            peer.close()

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
    assert forwarder._process is not None
    pages = Path(f"/proc/{forwarder._process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


@pytest.fixture
def forwarder(tmp_path: Path) -> Iterator[Forwarder]:
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    forwarder = Forwarder(pull, pub, log=tmp_path / "log", flags=("--queue-names", "10000"))
    forwarder.start()
    yield forwarder
    close_all()
    forwarder.end()


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(malformed(1), id="small frames"),
        pytest.param(malformed(wire.MAX_UPSTREAM), id="large frames"),
        pytest.param(malformed(MEBIBYTE), id="frames that are too large"),
        pytest.param(hellos, id="long hellos"),
        pytest.param(readers, id="readers"),
        pytest.param(topics, id="topics", marks=pytest.mark.slow),
    ],
)
def test_a_flood_stops_nobody_else_and_takes_little_memory(run: Any, forwarder: Forwarder, frames: Frames) -> None:
    """Health checks are answered, messages pass, and the memory is bounded."""

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        before = memory(forwarder)
        with Flood(forwarder, frames) as flood:
            await until(lambda: flood.sent >= 3)
            for number in range(100):
                await layer.group_send("room", {"n": number})
                assert await layer.receive(channel) == {"n": number}
                assert forwarder.is_ready()
                assert memory(forwarder) - before < AT_MOST
        assert layer.stats()["reconnects"] == 0

    run(scenario())


def test_a_forwarder_outlives_connections_that_end_in_a_flood(forwarder: Forwarder) -> None:
    """Libzmq can abort a process that bounds what it takes in and sends heartbeats, if a peer leaves in between."""
    data = on_the_wire(b"?" * 4_500) * 200
    for _ in range(100):
        peer = RawSubscriber(port_of(forwarder.pub))
        peer.socket.sendall(data)
        peer.close()
    assert forwarder.is_ready()


def test_a_large_job_that_nobody_reads_goes_back(run: Any, forwarder: Forwarder) -> None:
    """By the producers' way, since that of subscribers takes small frames only."""
    text = "x" * 2 * wire.MAX_UPSTREAM

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        await layer.send("jobs", {"text": "small"})
        assert await layer.receive("jobs") == {"text": "small"}  # so there is room for two more
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
