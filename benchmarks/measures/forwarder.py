"""The forwarder alone, as raw frames with 200 bytes of payload. Figures: frames/s, and its CPU time in us a frame.

A raw PUSH socket sends, a raw SUB socket receives, each in a process of its own; between them our forwarder with its
default settings (queues and metrics on), or the C proxy with the same frames. On a machine with few cores frames/s is
shared with the sender and the receiver; the CPU time is the forwarder's own. Nothing may be lost, so the sender keeps
to a window, as in `throughput`.
"""

import time

import zmq

from benchmarks.crew import Line, WrongResultError
from benchmarks.goals import Goal
from benchmarks.servers import HIGH_WATER_MARK

from .base import Bench, Figures, Measure, cpu_seconds, fresh
from .throughput import ACKNOWLEDGE_EVERY, WINDOW

PROBE_MS = 50
SENDER = b"benchmrk"
FLAGS = b"\0"
TTL_MS = (60_000).to_bytes(4, "big")
PAYLOAD = b"\x81\xa4text\xd9\xc0" + b"x" * 192


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    count, where = bench.size(200_000, 500), bench.addresses
    if name == "dedicated":
        pull, pub, pid = where.forwarder_pull, where.forwarder_pub, where.forwarder_pid
    else:
        pull, pub, pid = where.proxy_pull, where.proxy_pub, where.proxy_pid
    topic = f"G{fresh('frames')}\0".encode()
    with bench.crew() as crew:
        one, other = crew.link()
        receiver = crew.start(receive, other, pub, topic, count)
        sender = crew.start(send, one, pull, topic, count)
        crew.take(sender)
        used = cpu_seconds(pid)
        sender.line.put("go")
        start, end = crew.take(sender), crew.take(receiver)
        used = cpu_seconds(pid) - used
    return {"frames_per_s": count / (end - start) * 1e9, "cpu_us_per_frame": used / count * 1e6}


def send(line: Line, link: Line, pull: str, topic: bytes, count: int) -> None:
    """Send all frames, never more than `WINDOW` ahead of the receiver."""
    with zmq.Context() as context:
        push = context.socket(zmq.PUSH)
        push.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        push.connect(pull)
        push.send(_frame(topic, 0))
        while not link.poll(PROBE_MS / 1_000):
            push.send(_frame(topic, 0))
        link.get()
        line.put("reached")
        line.get()
        received = 0
        start = time.monotonic_ns()
        for number in range(1, count + 1):
            while number - received > WINDOW:
                received = link.get()
            push.send(_frame(topic, number))
        line.put(start)
        while received < count:
            received = link.get()
        push.close()


def receive(line: Line, link: Line, pub: str, topic: bytes, count: int) -> None:
    """Read and check all frames."""
    with zmq.Context() as context:
        sub = context.socket(zmq.SUB)
        sub.setsockopt(zmq.RCVHWM, 0)
        sub.setsockopt(zmq.SUBSCRIBE, topic)
        sub.connect(pub)
        probe = _frame(topic, 0)
        if sub.recv() != probe:
            raise WrongResultError("forwarder: the first frame was changed")
        link.put("reached")
        expected = 1
        while expected <= count:
            got = sub.recv()
            if got == probe:
                continue
            if got != _frame(topic, expected):
                raise WrongResultError(f"forwarder: not the frame {expected}, but {got[:64]!r}")
            if expected % ACKNOWLEDGE_EVERY == 0 or expected == count:
                end = time.monotonic_ns()
                link.put(expected)
            expected += 1
        line.put(end)
        sub.close()


def _frame(topic: bytes, number: int) -> bytes:
    return b"".join((topic, SENDER, number.to_bytes(8, "big"), FLAGS, TTL_MS, PAYLOAD))


FORWARDER = Measure(
    "forwarder",
    "the forwarder alone",
    ("dedicated", "raw"),
    run,
    (Goal("frames_per_s", "raw", ">=", 0.6, headline="the forwarder alone, frames"),),
)
