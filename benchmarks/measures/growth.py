"""Costs that increase as the layer grows: by idle consumers and groups, clients, forwarders, and message size.

The size is a part of a figure's name. `p50_us`: from before `group_send` until the one member, in another process, has
the message. `client_cpu_percent` and `server_cpu_percent`: percent of a core that the process of the consumers and the
server (all forwarders together) use while nothing happens, over `REST`.

- `consumers`: the number that wait in the member's process, each in a group of its own. Fewer for Redis core, whose
  receive loops take long to begin.
- `clients`: processes that are connected to a forwarder, simulated by raw sockets that send a hello as one does.
- `forwarders`: the number that serve both processes.
- `bytes`: of the message.
"""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import zmq

from benchmarks.crew import Crew, Line, Worker
from benchmarks.messages import PROBE, check, message, text_for
from benchmarks.peers import Layer, Peer, close
from benchmarks.servers import forwarder
from channels_zmq_forwarder.commands.client import Client
from channels_zmq_forwarder.commands.target import Target

from .base import Bench, Figures, Measure, cpu_seconds, fresh, percentile
from .idle import Consumers

CONSUMERS = (1, 1_000, 100_000)
CONSUMERS_OF_CORE = (1, 1_000, 10_000)
CLIENTS = (1, 10, 100, 1_000)
FORWARDERS = (1, 2, 4, 8)
BYTES = (100, 1_000, 10_000, 100_000, 1_000_000)
SENDS = 200
REST = 2
"""Seconds for which processes at rest are measured."""
HELLO_WITHIN = 30.0
PROBE_SECONDS = 0.05


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once, on servers of its own."""
    figures = _by_consumers(bench, name) | _by_bytes(bench, name)
    if name == "dedicated":
        figures |= _by_forwarders(bench, name)
        if not bench.path:  # the raw sockets use the protocol of this tree
            figures |= _by_clients(bench, name)
    return figures


def _by_consumers(bench: Bench, name: str) -> Figures:
    sizes = CONSUMERS_OF_CORE if name == "redis-core" else CONSUMERS
    figures: Figures = {}
    with bench.alone(name) as own, own.crew() as crew, _pair(crew, own.peer(name)) as pair:
        for size in sizes[: bench.size(len(sizes), 2)]:
            pair.grow(size)
            figures |= _at_rest(f"consumers_{size}", bench, pair, [own.server(name)])
            figures[f"consumers_{size}_p50_us"] = pair.p50(bench.size(SENDS, 5))
    return figures


def _by_bytes(bench: Bench, name: str) -> Figures:
    with bench.crew() as crew, _pair(crew, bench.peer(name)) as pair:
        return {f"bytes_{size}_p50_us": pair.p50(bench.size(SENDS, 5), size) for size in BYTES}


def _by_forwarders(bench: Bench, name: str) -> Figures:
    figures: Figures = {}
    sizes = FORWARDERS[: bench.size(len(FORWARDERS), 2)]
    with ExitStack() as stack:
        running = [stack.enter_context(forwarder(bench.environment())) for _ in range(max(sizes))]
        for size in sizes:
            used = running[:size]
            peer = bench.peer(
                name,
                pull_socket_address=[one.pull for one in used],
                pub_socket_address=[one.pub for one in used],
            )
            with bench.crew() as crew, _pair(crew, peer) as pair:
                figures[f"forwarders_{size}_p50_us"] = pair.p50(bench.size(SENDS, 5))
                figures |= _at_rest(f"forwarders_{size}", bench, pair, [one.pid for one in used])
    return figures


def _by_clients(bench: Bench, name: str) -> Figures:
    figures: Figures = {}
    with bench.alone(name) as own, own.crew() as crew, _pair(crew, own.peer(name)) as pair:
        where = own.addresses
        clients = crew.start(be_clients, where.forwarder_pull, where.forwarder_pub)
        for size in CLIENTS[: bench.size(len(CLIENTS), 2)]:
            clients.line.put(size)
            crew.take(clients)
            figures |= _at_rest(f"clients_{size}", bench, pair, [where.forwarder_pid])
            figures[f"clients_{size}_p50_us"] = pair.p50(bench.size(SENDS, 5))
        clients.line.put(0)
    return figures


def _at_rest(prefix: str, bench: Bench, pair: "_Pair", servers: list[int]) -> Figures:
    """Return the percentage of a core that each side uses while nothing happens."""
    groups = {"client": [pair.member.pid], "server": servers}
    before = {side: sum(map(cpu_seconds, pids)) for side, pids in groups.items()}
    began = time.monotonic()
    time.sleep(bench.size(REST * 10, 1) / 10)
    took = time.monotonic() - began
    return {
        f"{prefix}_{side}_cpu_percent": (sum(map(cpu_seconds, pids)) - before[side]) / took * 100
        for side, pids in groups.items()
    }


class _Pair:
    """A process that sends to a group, and another one with its member and with idle consumers."""

    def __init__(self, crew: Crew, sender: Worker, member: Worker) -> None:
        self.member = member
        self._crew, self._sender = crew, sender

    def grow(self, consumers: int) -> None:
        """Add idle consumers until there are this many."""
        self.member.line.put(("grow", consumers))
        self._crew.take(self.member)

    def p50(self, count: int, size: int = 200) -> float:
        """Return the median time of messages of that size, in us."""
        self.member.line.put(("read", count, size))
        self._sender.line.put((count, size))
        times: list[int] = self._crew.take(self._sender)
        self._crew.take(self.member)
        return percentile(times, 50)


@contextmanager
def _pair(crew: Crew, peer: Peer) -> Iterator[_Pair]:
    one, other = crew.link()
    group = fresh("growth")
    member, sender = crew.start(wait, other, peer, group), crew.start(send, one, peer, group)
    crew.take(sender)
    yield _Pair(crew, sender, member)
    for worker in (sender, member):
        worker.line.put(None)


async def send(line: Line, link: Line, peer: Peer, group: str) -> None:
    """Send as many messages of a size as the harness requests, each when the member has the one before."""
    layer = peer.open()
    await layer.group_send(group, message(PROBE))
    while not await link.arrives(PROBE_SECONDS):
        await layer.group_send(group, message(PROBE))
    line.put("reached")
    while (order := await line.aget()) is not None:
        count, size = order
        times, text = [], text_for(size)
        for number in range(count):
            start = time.monotonic_ns()
            await layer.group_send(group, message(number, text))
            times.append(await link.aget() - start)
        line.put(times)
    await close(layer)


async def wait(line: Line, link: Line, peer: Peer, group: str) -> None:
    """Run the member of the group, which reads messages or adds idle consumers as the harness requests."""
    layer = peer.open()
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    check(await layer.receive(channel), PROBE, "probe")
    link.put("reached")
    idle = Consumers(layer)
    while (order := await line.aget()) is not None:
        match order:
            case ("grow", count):
                await idle.add(count - len(idle.channels))
                await idle.join((f"{group}-{number}", channel) for number, channel in enumerate(idle.channels))
            case ("read", count, size):
                await _read(layer, channel, link, count, text_for(size), peer.name)
        line.put("done")
    await close(layer)
    os._exit(0)  # the loop would cancel all readers first, which takes Redis pub/sub longer than the measure


async def _read(layer: Layer, channel: str, link: Line, count: int, text: str, who: str) -> None:
    for number in range(count):
        got = await layer.receive(channel)
        while got["n"] == PROBE:
            got = await layer.receive(channel)
        link.put(time.monotonic_ns())
        check(got, number, f"{who}, member", text)


def be_clients(line: Line, pull: str, pub: str) -> None:
    """Connect as many clients to a forwarder as the harness requests."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with zmq.Context() as context, ExitStack() as clients:
        context.set(zmq.MAX_SOCKETS, 3 * max(CLIENTS))
        connected = 0
        while count := line.get():
            for _ in range(count - connected):
                clients.enter_context(Client(context, Target(pull, pub, None))).hello(time.monotonic() + HELLO_WITHIN)
            connected = count
            line.put("connected")


GROWTH = Measure(
    "growth",
    "what becomes dearer as the layer grows",
    ("dedicated", "redis-pubsub", "redis-core"),
    run,
    (),
    at_most=1,
)
