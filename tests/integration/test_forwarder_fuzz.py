"""Random frames against a real forwarder: it neither fails, nor grows, nor serves other clients worse."""

import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families
from strangers import Peer, mutated, no_zeromq, oversized, well_formed

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Status

MAX_MESSAGE = 65_536
QUEUE_BYTES = 32 * 2**20
RSS_BOUND = QUEUE_BYTES + 100 * 2**20
"""How many bytes the forwarder may grow: its queues, and a generous bound for names, subscriptions and buffers."""
BATCH = 500
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def forwarder(log: Path, ports: list[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a forwarder in a process of its own, and wait until it accepts producers."""
    pull, pub, admin = (f"127.0.0.1:{port}" for port in ports)
    command = [sys.executable, "-m", "channels_zmq_forwarder", "--settle", "0", "--admin-address", admin]
    command += ["--pull-address", f"tcp://{pull}", "--pub-address", f"tcp://{pub}"]
    command += ["--max-message-size", str(MAX_MESSAGE), "--queue-bytes", str(QUEUE_BYTES)]
    with log.open("w") as err, subprocess.Popen(command, stderr=err) as process:
        try:
            while "accepting producers on" not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            yield process
        finally:
            process.terminate()


def strike(
    context: zmq.Context[zmq.Socket[bytes]], pull: str, pub: str, count: int, rng: random.Random, *, flushing: bool
) -> None:
    """Send `count` frames, half of them to each port, some in parts, and never far ahead of the forwarder."""
    with Peer(context, pull, pub) as peer:
        frames = mutated(rng, well_formed(peer.inbox), flushing)
        for _ in range(count // (2 * BATCH)):
            for _ in range(BATCH):
                peer.say(next(frames))
            left = BATCH
            while left:
                parts = [next(frames) for _ in range(min(left, rng.choice((1, 1, 1, 1, 1, 1, 1, 3))))]
                peer.push.send_multipart(parts)
                left -= len(parts)
            # Its own frames may have disconnected the peer: an unsubscription, a hello of a later session.
            peer.say(b"\1" + wire.inbox_topic(peer.inbox))
            peer.sync()
            peer.echo()


def metrics(admin: int) -> dict[tuple[str, ...], float]:
    with DIRECTLY.open(f"http://127.0.0.1:{admin}/metrics", timeout=5) as response:
        text = response.read().decode()
    return {
        (sample.name.removeprefix("channels_zmq_forwarder_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def is_served(context: zmq.Context[zmq.Socket[bytes]], pull: str, pub: str) -> None:
    """Check the answer to each kind of request that a client makes."""
    with Peer(context, pull, pub) as peer:
        peer.say(b"\1" + wire.group_topic("fresh"))
        peer.sync()
        peer.echo()
        message = wire.ordered(wire.group_topic("fresh"), b"sender..", 1, wire.FLAG_FIRST, 9_000, b"hello")
        peer.push.send(message)
        while wire.is_for(peer.inbox, frame := peer.xsub.recv()):  # a welcome arrives whenever other clients have left
            pass
        assert frame == message
        peer.say(wire.READY.encode(wire.Ready(peer.inbox, 1, 1, 0, 0, 0, b"fresh-jobs")))
        peer.sync()
        peer.push.send(wire.ENQUEUE.encode(wire.Enqueue(peer.inbox, 5, 9_000, 10, b"fresh-jobs", b"work")))
        confirm = wire.CONFIRM.decode(peer.await_kind(wire.CONFIRM))
        assert (confirm.n, confirm.status) == (5, Status.OK)
        job = wire.JOB.decode(peer.await_kind(wire.JOB))
        assert (job.channel, job.payload) == (b"fresh-jobs", b"work")


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_flood_of_broken_frames_harms_nobody(
    count: int,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
    record_property: Callable[[str, object], None],
) -> None:
    """After a flood of broken frames, the forwarder is ready, answers correctly and stays within its bounds.

    It logs no error, and counts the frames that it drops.
    """
    rng = random.Random(count)
    ports = pull_port, pub_port, admin = [unused_tcp_port_factory() for _ in range(3)]
    pull, pub = f"tcp://127.0.0.1:{pull_port}", f"tcp://127.0.0.1:{pub_port}"
    log = tmp_path / "log"
    with zmq.Context() as context, forwarder(log, ports) as process:
        before = psutil.Process(process.pid).memory_info().rss
        begun = time.monotonic()
        strikes = max(2, count // 100_000)
        for turn in range(strikes):
            strike(context, pull, pub, count // strikes, rng, flushing=turn % 2 == 0)
            for _ in range(5):
                oversized(context, zmq.PUSH, pull, MAX_MESSAGE)
                oversized(context, zmq.XSUB, pub, MAX_MESSAGE)
                no_zeromq(ports[:2], rng)
        seconds = time.monotonic() - begun
        is_served(context, pull, pub)
        for path in ("livez", "readyz"):
            with DIRECTLY.open(f"http://127.0.0.1:{admin}/{path}", timeout=5) as response:
                assert response.status == 200
        grown = psutil.Process(process.pid).memory_info().rss - before
        while (counted := metrics(admin))["clients",]:
            time.sleep(0.01)  # ZeroMQ reports the end of a connection on its own time
        figures = {
            "frames per second": round(count / seconds),
            "malformed": int(counted["drops_total", "malformed"]),
            "stray": int(counted["drops_total", "stray"]),
            "queues of normal channels": int(counted["queues",]),
            "MB grown": round(grown / 2**20),
        }
        record_property("figures", figures)
        print(figures)
        assert process.poll() is None
    assert grown < RSS_BOUND
    assert counted["frames_received_total",] >= count // 2
    assert counted["drops_total", "malformed"] > count // 10
    assert counted["queue_bytes",] <= QUEUE_BYTES
    assert counted["subscriptions",] == 0, "what strangers subscribed to ended with their connections"
    assert "Traceback" not in log.read_text()
    assert "ERROR" not in log.read_text()
