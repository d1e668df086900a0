"""The limit of `round_trip`: raw libzmq, without a serializer, by the C proxy.

One PUSH and one SUB socket on each side, 200 bytes behind the topic. `raw` receives by blocking in libzmq, with no
event loop at all: nothing that serves asyncio can be as fast. `raw-asyncio` reads the SUB socket through its FD on
an event loop, as any layer for asyncio must.
"""

import asyncio
import time

import zmq

from benchmarks.crew import Line, WrongResultError
from benchmarks.messages import PROBE, STOP

from .base import Bench, Figures, fresh, percentile

PROBE_SECONDS = 0.05
RAW_PAYLOAD = b"x" * 196  # and four bytes of number


def run_raw(bench: Bench, name: str) -> Figures:
    """Measure `raw` or `raw-asyncio` once; the figures of channel and group are the same."""
    count, addresses = bench.size(2_000, 50), bench.addresses
    ends = addresses.proxy_pull, addresses.proxy_pub
    topics = f"{fresh('a')}\0".encode(), f"{fresh('b')}\0".encode()
    roles = (raw_ask, raw_answer) if name == "raw" else (raw_asyncio_ask, raw_asyncio_answer)
    with bench.crew() as crew:
        asking = crew.start(roles[0], *ends, *topics, count)
        answering = crew.start(roles[1], *ends, *topics[::-1], count)
        times = crew.take(asking)
        crew.take(answering)
    p50, p99 = percentile(times, 50), percentile(times, 99)
    return {f"{way}_{key}": value for way in ("channel", "group") for key, value in (("p50_us", p50), ("p99_us", p99))}


def raw_ask(line: Line, pull: str, pub: str, own: bytes, other: bytes, count: int) -> None:
    """Run role A on raw sockets that block."""
    with zmq.Context() as context:
        push, sub = _sockets(context, pull, pub, own)
        push.send(other + _frame(PROBE))
        while not sub.poll(int(PROBE_SECONDS * 1_000)):
            push.send(other + _frame(PROBE))
        times = []
        for number in range(count):
            start = time.perf_counter_ns()
            push.send(other + _frame(number))
            got = sub.recv()
            while got == own + _frame(PROBE):
                got = sub.recv()
            times.append(time.perf_counter_ns() - start)
            _check_raw(got, own, number)
        push.send(other + _frame(STOP))
        line.put(times)
        context.destroy(linger=1_000)


def raw_answer(line: Line, pull: str, pub: str, own: bytes, other: bytes, count: int) -> None:
    """Run role B on raw sockets that block."""
    with zmq.Context() as context:
        push, sub = _sockets(context, pull, pub, own)
        expected = 0
        while (got := sub.recv()) != own + _frame(STOP):
            if got != own + _frame(PROBE):
                _check_raw(got, own, expected)
                expected += 1
            push.send(other + got[len(own) :])
        if expected != count:
            raise WrongResultError(f"raw, answering: {expected} messages instead of {count}")
        line.put("done")
        context.destroy(linger=0)


async def raw_asyncio_ask(line: Line, pull: str, pub: str, own: bytes, other: bytes, count: int) -> None:
    """Run role A on raw sockets, and read the SUB socket through its FD."""
    with zmq.Context() as context:
        push, sub = _sockets(context, pull, pub, own)
        reader = _Reader(sub)
        back = asyncio.create_task(reader.receive())
        while not back.done():
            push.send(other + _frame(PROBE))
            await asyncio.wait({back}, timeout=PROBE_SECONDS)
        times = []
        for number in range(count):
            start = time.perf_counter_ns()
            push.send(other + _frame(number))
            got = await reader.receive()
            while got == own + _frame(PROBE):
                got = await reader.receive()
            times.append(time.perf_counter_ns() - start)
            _check_raw(got, own, number)
        push.send(other + _frame(STOP))
        line.put(times)
        reader.close()
        context.destroy(linger=1_000)


async def raw_asyncio_answer(line: Line, pull: str, pub: str, own: bytes, other: bytes, count: int) -> None:
    """Run role B on raw sockets, and read the SUB socket through its FD."""
    with zmq.Context() as context:
        push, sub = _sockets(context, pull, pub, own)
        reader = _Reader(sub)
        expected = 0
        while (got := await reader.receive()) != own + _frame(STOP):
            if got != own + _frame(PROBE):
                _check_raw(got, own, expected)
                expected += 1
            push.send(other + got[len(own) :])
        if expected != count:
            raise WrongResultError(f"raw-asyncio, answering: {expected} messages instead of {count}")
        line.put("done")
        reader.close()
        context.destroy(linger=0)


class _Reader:
    """A reader of one socket on the running loop; its FD is edge-triggered, so every wake-up drains it."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._fd = int(socket.getsockopt(zmq.FD))
        self._frames: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._drain)
        self._loop.call_soon(self._drain)

    async def receive(self) -> bytes:
        while not self._frames:
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._frames.pop(0)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)

    def _drain(self) -> None:
        try:
            self._frames.append(self._socket.recv(zmq.NOBLOCK))
            while (
                int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
            ):  # the exception costs a round trip 60 us in all
                self._frames.append(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            pass
        if self._frames and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _sockets(
    context: "zmq.Context[zmq.Socket[bytes]]", pull: str, pub: str, topic: bytes
) -> tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]:
    push, sub = context.socket(zmq.PUSH), context.socket(zmq.SUB)
    push.connect(pull)
    sub.setsockopt(zmq.SUBSCRIBE, topic)
    sub.connect(pub)
    return push, sub


def _frame(number: int) -> bytes:
    return number.to_bytes(4, "big", signed=True) + RAW_PAYLOAD


def _check_raw(got: bytes, topic: bytes, expected: int) -> None:
    if got != topic + _frame(expected):
        raise WrongResultError(f"raw: not the frame {expected}, but {got[:24]!r}")
