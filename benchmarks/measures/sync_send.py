"""`async_to_sync(layer.group_send)` from a plain thread that has no event loop. Figure: p50 of a call in us.

This is a WSGI view, a Celery task or a management command: every call makes a new event loop. The group has one
member: in another process where the layer reaches one, else in the same process (`inmemory`, `embedded-local`). It
reads and checks all messages afterwards in either case: a reader that is busy meanwhile would take the caller's time
on a machine with few cores, and only from the layers that reach another process. `floor` is `async_to_sync` of a
coroutine that does nothing.
"""

import threading
import time

from asgiref.sync import async_to_sync

from benchmarks.crew import Line
from benchmarks.goals import Goal
from benchmarks.messages import PROBE, check, message
from benchmarks.peers import Layer, Message, Peer, close

from .base import Bench, Figures, Measure, fresh, percentile

PROBE_SECONDS = 0.05
LOCAL = ("inmemory", "embedded-local")


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    count = bench.size(1_000, 30) if not name.startswith("redis") else bench.size(300, 10)
    with bench.crew() as crew:
        group = fresh("view")
        if name == "floor":
            caller = crew.start(call_nothing, count)
        elif name in LOCAL:
            caller = crew.start(call_locally, bench.peer(name), group, count)
        else:
            peer = bench.peer(name)
            one, other = crew.link()
            caller = crew.start(call, one, peer, group, count)
            crew.take(crew.start(receive, other, peer, group, count))
        times = crew.take(caller)
    return {"p50_us": percentile(times, 50)}


def call(line: Line, link: Line, peer: Peer, group: str, count: int) -> None:
    """Call from a thread, with the member in another process."""
    layer = peer.open()
    send = async_to_sync(layer.group_send)
    send(group, message(PROBE))
    while not link.poll(PROBE_SECONDS):
        send(group, message(PROBE))
    link.get()
    line.put(_time_in_a_thread(layer, group, count))
    link.put("read")
    link.get()
    async_to_sync(close)(layer)


def call_locally(line: Line, peer: Peer, group: str, count: int) -> None:
    """Call from a thread, with the member in this process; its messages are read at the end."""
    layer = peer.open()
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)(group, channel)
    line.put(_time_in_a_thread(layer, group, count))
    async_to_sync(_read_all)(layer, channel, count, peer.name)
    async_to_sync(close)(layer)


def call_nothing(line: Line, count: int) -> None:
    """Call a coroutine that does nothing."""
    line.put(_time_in_a_thread(None, "", count))


async def receive(line: Line, link: Line, peer: Peer, group: str, count: int) -> None:
    """Run the member of the group in another process."""
    layer = peer.open()
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    check(await layer.receive(channel), PROBE, "probe")
    link.put("reached")
    link.get()  # the loop is blocked until everything is sent
    await _read_all(layer, channel, count, peer.name)
    link.put("done")
    line.put("done")
    await close(layer)


async def _read_all(layer: Layer, channel: str, count: int, name: str) -> None:
    expected = 0
    while expected < count:
        got = await layer.receive(channel)
        if got["n"] != PROBE:
            check(got, expected, f"{name}, member of the group")
            expected += 1


async def _nothing(group: str, content: Message) -> None:
    """Do nothing, as the call that `floor` measures."""


def _time_in_a_thread(layer: Layer | None, group: str, count: int) -> list[int]:
    times: list[int] = []

    def calls() -> None:
        send = async_to_sync(layer.group_send if layer is not None else _nothing)
        for number in range(count):
            content = message(number)
            start = time.perf_counter_ns()
            send(group, content)
            times.append(time.perf_counter_ns() - start)

    thread = threading.Thread(target=calls)
    thread.start()
    thread.join()
    return times


SYNC_SEND = Measure(
    "sync_send",
    "async_to_sync(group_send) from a plain thread",
    ("dedicated", "embedded", "embedded-local", "redis-pubsub", "redis-core", "inmemory", "floor"),
    run,
    (
        Goal("p50_us", "inmemory", "<=", 1.15, headline="`async_to_sync(group_send)` from a thread, p50"),
        Goal("p50_us", "inmemory", "<=", 1.15, ours="embedded-local"),
    ),
)
