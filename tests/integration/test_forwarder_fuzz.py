"""Strangers' frames against a real forwarder: it neither falls, nor grows, nor serves anybody else worse."""

import random
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress

import psutil
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import Status

MAX_MESSAGE = 65_536
QUEUE_BYTES = 32 * 2**20
RSS_BOUND = QUEUE_BYTES + 100 * 2**20
"""What the forwarder may grow by: its plain queues and, by far too much, names, subscriptions and buffers."""
BATCH = 500
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PATIENCE = 20_000


@contextmanager
def forwarder(log, ports):
    """A forwarder of its own process that lets producers in."""
    pull, pub, admin = (f"127.0.0.1:{port}" for port in ports)
    command = [sys.executable, "-m", "channels_zmq_forwarder", "--settle", "0", "--admin-address", admin]
    command += ["--pull-address", f"tcp://{pull}", "--pub-address", f"tcp://{pub}"]
    command += ["--max-message-size", str(MAX_MESSAGE), "--queue-bytes", str(QUEUE_BYTES)]
    with log.open("w") as err, subprocess.Popen(command, stderr=err) as process:
        try:
            while "producers are welcome" not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            yield process
        finally:
            process.terminate()


class Peer:
    """Raw sockets of one client process."""

    def __init__(self, context, pull, pub, inbox=None):
        self.inbox = inbox or secrets.token_hex(8).encode()
        self.push, self.xsub = context.socket(zmq.PUSH), context.socket(zmq.XSUB)
        for option, value in ((zmq.SNDHWM, 0), (zmq.RCVHWM, 0), (zmq.RCVTIMEO, PATIENCE), (zmq.LINGER, 0)):
            self.xsub.set(option, value)
        self.push.set(zmq.LINGER, 0)
        self.push.set(zmq.SNDTIMEO, PATIENCE)
        self.push.connect(pull)
        self.xsub.connect(pub)
        self.number = 0

    def __enter__(self):
        self.say(b"\1" + wire.inbox_topic(self.inbox))
        self.say(wire.HELLO.encode(wire.Hello(self.inbox, wire.VERSION, 1, 0)))
        try:
            assert wire.WELCOME.decode(self.await_kind(wire.WELCOME)).session == 1
        except BaseException:
            self.__exit__()
            raise
        return self

    def say(self, frame):
        self.xsub.send(frame)

    def await_kind(self, layout):
        """Read until a frame of this kind comes to the inbox."""
        while True:
            frame = self.xsub.recv()
            if frame.startswith(wire.inbox_topic(self.inbox)) and frame[wire.SUB_KIND] == layout.kind:
                return frame

    def sync(self):
        """Wait until everything sent upstream was read."""
        self.number += 1
        self.say(wire.SYNC.encode(wire.Sync(self.inbox, 2**63 + self.number)))
        while wire.SYNCED.decode(self.await_kind(wire.SYNCED)).n != 2**63 + self.number:
            pass

    def echo(self):
        """Wait until everything pushed was read."""
        self.number += 1
        self.push.send(wire.ECHO.encode(wire.Echo(self.inbox, 2**63 + self.number)))
        while wire.CONFIRM.decode(self.await_kind(wire.CONFIRM)).n != 2**63 + self.number:
            pass

    def __exit__(self, *error):
        self.push.close()
        self.xsub.close()


def well_formed(inbox):
    """One frame of each kind, for a client that is there."""
    return [
        wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, 1, 3)),
        wire.SYNC.encode(wire.Sync(inbox, 1)),
        wire.READY.encode(wire.Ready(inbox, 1, 3, 1, b"jobs")),
        wire.BACK.encode(wire.Back(inbox, 7, 9_000, b"jobs", b"payload")),
        wire.PLAIN.encode(wire.Plain(inbox, 1, 9_000, 50, b"jobs", b"payload")),
        wire.MEMBER.encode(wire.Member(inbox, 1, 1, 0, 9_000, 50, b"room", b"jobs")),
        wire.MEMBER.encode(wire.Member(inbox, 1, 0, 0, 9_000, 50, b"room", b"jobs")),
        wire.ECHO.encode(wire.Echo(inbox, 1)),
        wire.FLUSH.encode(wire.Flush(inbox, 1, 1)),
        wire.FLUSHED.encode(wire.Flushed(inbox, 1)),
        wire.ASK.encode(wire.Ask(inbox, 1, 1, inbox, b"room", b"specific.x!1")),
        wire.CONFIRM.encode(wire.Confirm(inbox, 1, 0, b"instance")),
        wire.WELCOME.encode(wire.Welcome(inbox, wire.VERSION, 0, b"instance", 1, 1)),
        wire.JOB.encode(wire.Job(inbox, 1, 1, 9_000, b"jobs", b"payload")),
        wire.HANDED.encode(wire.Handed(inbox, 1, 99, b"jobs")),
        wire.EMPTY.encode(wire.Empty(inbox, 1)),
        wire.ordered(wire.group_topic("room"), b"sender..", 1, 1, 9_000, b"payload"),
        wire.ordered(wire.direct_prefix(inbox), b"sender..", 1, 1, 9_000, wire.direct_body("specific.x!1", b"payload")),
        b"\1" + wire.group_topic("room"),
        b"\0" + wire.group_topic("room"),
    ]


def mutated(rng, frames, flushing):
    """Yield frames without end: broken in one of several ways, and now and then whole.

    A flush empties everything and drops messages until it is over, so there are times without.
    """
    kinds = b"HYRBQMEfGP\0\1"
    frames = [frame for frame in frames if flushing or frame[:1] != b"F"]
    while True:
        raw = bytearray(rng.choice(frames))
        way = rng.random()
        if way < 0.45:  # a few bits, anywhere
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif way < 0.6:  # cut short
            del raw[rng.randrange(len(raw)) :]
        elif way < 0.7:  # bytes too many, or missing in the middle
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(9))
        elif way < 0.8:  # a foreign inbox
            raw[1 : 1 + wire.INBOX_SIZE] = rng.randbytes(8).hex().encode()
        elif way < 0.88:  # another kind
            raw[0] = rng.choice(kinds)
        elif way < 0.96:  # noise
            raw = bytearray(rng.randbytes(rng.randrange(60)))
        elif way < 0.97:  # a long name
            raw = raw[:1] + bytearray(b"n" * rng.randrange(2_000))
        yield bytes(raw)


def strike(context, pull, pub, count, rng, *, flushing):
    """Send `count` frames, half of them to each port, some in parts; no more ahead than the forwarder reads."""
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
            # The peer may have been told to go by its own frames: an unsubscription, a hello of a later session.
            peer.say(b"\1" + wire.inbox_topic(peer.inbox))
            peer.sync()
            peer.echo()


def oversized(context, pull, pub):
    """Send what is too large, each frame on a connection of its own, for it is cut."""
    for kind, address in ((zmq.PUSH, pull), (zmq.XSUB, pub)):
        with context.socket(kind) as one:
            one.connect(address)
            one.send(b"G" + bytes(MAX_MESSAGE + wire.MAX_OVERHEAD))
            one.close(linger=1_000)


def no_zeromq(ports, rng):
    """Speak to both ports what is not even ZeroMQ."""
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger, suppress(OSError):
            stranger.sendall(rng.choice((b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(200), b"\xff" + bytes(9) + b"\x7f")))


def metrics(admin):
    with DIRECTLY.open(f"http://127.0.0.1:{admin}/metrics", timeout=5) as response:
        text = response.read().decode()
    return {
        (sample.name.removeprefix("channels_zmq_forwarder_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def is_served(context, pull, pub):
    """Do once everything that clients do, and check every answer."""
    with Peer(context, pull, pub) as peer:
        peer.say(b"\1" + wire.group_topic("fresh"))
        peer.sync()
        peer.echo()
        message = wire.ordered(wire.group_topic("fresh"), b"sender..", 1, wire.FLAG_FIRST, 9_000, b"hello")
        peer.push.send(message)
        assert peer.xsub.recv() == message
        peer.say(wire.READY.encode(wire.Ready(peer.inbox, 1, 1, 0, b"fresh-jobs")))
        peer.sync()
        peer.push.send(wire.PLAIN.encode(wire.Plain(peer.inbox, 5, 9_000, 10, b"fresh-jobs", b"work")))
        confirm = wire.CONFIRM.decode(peer.xsub.recv())
        assert (confirm.n, confirm.status) == (5, Status.OK)
        job = wire.JOB.decode(peer.xsub.recv())
        assert (job.channel, job.payload) == (b"fresh-jobs", b"work")


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_flood_of_broken_frames_harms_nobody(count, tmp_path, unused_tcp_port_factory, record_property):
    """Alive, ready, answering correctly, no larger than its bounds, nothing logged as an error, everything counted."""
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
                oversized(context, pull, pub)
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
            "plain queues": int(counted["plain_queues",]),
            "MB grown": round(grown / 2**20),
        }
        record_property("figures", figures)
        print(figures)
        assert process.poll() is None
    assert grown < RSS_BOUND
    assert counted["frames_received_total",] >= count // 2
    assert counted["drops_total", "malformed"] > count // 10
    assert counted["plain_queue_bytes",] <= QUEUE_BYTES
    assert counted["subscriptions",] == 0, "what strangers subscribed to ended with their connections"
    assert "Traceback" not in log.read_text()
    assert "ERROR" not in log.read_text()
