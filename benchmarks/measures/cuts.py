"""The share of messages that arrive although connections are cut, and while servers are replaced.

One process sends 200 messages a second to a group with a member in each of two others. `cuts`: the connections of these
two are closed and refused for 2 s every 10 s. `replacement`, at the same time and elsewhere: all their servers are
replaced, as in a rollout. Ours: two forwarders, each of which ends when another one is ready, as with our operator.
Redis: the server is ended by SIGTERM and started again at its port, twice, with its data as its defaults keep them.

A figure is the share of the sent messages that the receivers got, from 0 to 1. Late is not lost: a sender waits for a
call as long as it takes, and a receiver has `LATE` for the last message. If `receive` raises, which ends a consumer of
Channels, it is called again; that is counted and noted. Of ours no message may arrive twice or out of order.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import pairwise
from urllib.parse import urlsplit

from benchmarks.crew import Crew, Line, WrongResultError
from benchmarks.goals import Goal
from benchmarks.messages import PROBE, STOP, check, message
from benchmarks.peers import Layer, Peer, close
from benchmarks.relays import relay
from benchmarks.servers import Addresses, forwarder, free_port, redis_server

from .base import Bench, Figures, Measure, fresh

RECEIVERS = 2
A_SECOND = 200
CYCLES, CALM, CUT, RECOVERY = 2, 4, 2, 4
"""The cycles of `cuts`: their number, and the seconds before, of and after each cut."""
REST = 1.0
"""Seconds of traffic before and after each step of a replacement."""
LATE = 15.0
AGAIN_AFTER = 0.1
PROBE_SECONDS = 0.05


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    with ThreadPoolExecutor() as both:
        cut, replaced = (both.submit(part, bench, name) for part in (_cut, _replace))
        return {"cuts_share": cut.result(), "replacement_share": replaced.result()}


def _cut(bench: Bench, name: str) -> float:
    where = bench.addresses
    addresses = (where.redis,) if name.startswith("redis") else (where.forwarder_pull, where.forwarder_pub)
    with bench.crew() as crew:
        relays = crew.start(relay, [[urlsplit(one).port for one in addresses]] * RECEIVERS)
        receivers = [_reached_by(bench, ports).peer(name) for ports in crew.take(relays)]

        def cut_all() -> None:
            for _ in range(bench.size(CYCLES, 1)):
                time.sleep(bench.size(CALM, 1))
                for number in range(RECEIVERS):
                    relays.line.put(("cut", number))
                time.sleep(bench.size(CUT, 1))
                for number in range(RECEIVERS):
                    relays.line.put(("mend", number))
                time.sleep(bench.size(RECOVERY, 2))

        arrived = _share("cuts", bench, crew, bench.peer(name), receivers, cut_all)
        relays.line.put(None)
    return arrived


def _reached_by(bench: Bench, ports: list[int]) -> Bench:
    """Return a bench whose servers are reached through relays."""
    tcp = [f"tcp://127.0.0.1:{port}" for port in ports]
    redis = f"redis://127.0.0.1:{ports[0]}/0"
    return replace(bench, addresses=Addresses(redis=redis, forwarder_pull=tcp[0], forwarder_pub=tcp[-1]))


def _replace(bench: Bench, name: str) -> float:
    with ExitStack() as stack:
        serve = _redis if name.startswith("redis") else _forwarders
        peer, replace_all = serve(stack, bench, name)
        crew = stack.enter_context(bench.crew())
        return _share("replacement", bench, crew, peer, [peer] * RECEIVERS, replace_all)


def _redis(stack: ExitStack, bench: Bench, name: str) -> tuple[Peer, Callable[[], None]]:
    """Start a server with its data on disk, and return a peer and a function that replaces it."""
    port, folder = free_port(), stack.enter_context(tempfile.TemporaryDirectory())
    running = stack.enter_context(ExitStack())
    server = running.enter_context(redis_server(port, folder))

    def replace_all() -> None:
        for _ in range(2):
            time.sleep(REST)
            running.close()
            running.enter_context(redis_server(port, folder))
            time.sleep(REST)

    return replace(bench, addresses=Addresses(redis=server.url)).peer(name), replace_all


def _forwarders(stack: ExitStack, bench: Bench, name: str) -> tuple[Peer, Callable[[], None]]:
    """Start two forwarders, and return a peer and a function that replaces both, the new one first.

    CONFIG has three addresses for the three.
    """
    ports = [(free_port(), free_port()) for _ in range(3)]
    running = [stack.enter_context(ExitStack()) for _ in ports]
    for one, pair in zip(running[:2], ports[:2], strict=True):
        one.enter_context(forwarder(bench.environment(), pair))

    def replace_all() -> None:
        for old, new in ((0, 2), (1, 0)):
            time.sleep(REST)
            running[new].enter_context(forwarder(bench.environment(), ports[new]))
            running[old].close()
            time.sleep(REST)

    pull, pub = ([f"tcp://127.0.0.1:{port}" for port in kind] for kind in zip(*ports, strict=True))
    return bench.peer(name, pull_socket_address=pull, pub_socket_address=pub), replace_all


def _share(
    what: str, bench: Bench, crew: Crew, sender: Peer, receivers: list[Peer], disturb: Callable[[], None]
) -> float:
    """Return the share of messages that arrive while the layer is disturbed."""
    group, links = fresh("group"), [crew.link() for _ in receivers]
    reading = [crew.start(receive, other, peer, group) for peer, (_, other) in zip(receivers, links, strict=True)]
    sending = crew.start(send, [one for one, _ in links], sender, group)
    crew.take(sending)
    disturb()
    sending.line.put("stop")
    sent, raised = crew.take(sending)
    for worker in reading:
        worker.line.put("over")
    seen, ended = zip(*(crew.take(worker) for worker in reading), strict=True)
    for worker in (sending, *reading):
        worker.line.put("end")
    if raised or any(ended):
        bench.notes.append(f"{what}, {sender.name}: group_send raised {raised} times, receive {sum(ended)} times")
    return share(what, bench, sender.name, list(seen), sent)


def share(what: str, bench: Bench, name: str, seen: list[list[int]], sent: int) -> float:
    """Return the share of the sent messages that the receivers saw, from one list for each.

    Raises:
        WrongResultError: If messages of the run arrived twice, out of order, or were never sent.
    """
    strange = sum(not 0 <= number < sent for one in seen for number in one)
    repeats = sum(len(one) - len(set(one)) for one in seen)
    disorder = sum(later < earlier for one in seen for earlier, later in pairwise(one))
    if strange or (not name.startswith("redis") and (repeats or disorder)):
        raise WrongResultError(f"{name}, {what}: {strange} strange, {repeats} twice, {disorder} out of order")
    if repeats or disorder:
        bench.notes.append(f"{what}, {name}: {repeats} messages came twice, {disorder} out of order")
    return sum(len(set(one)) for one in seen) / (sent * len(seen))


async def send(line: Line, links: list[Line], peer: Peer, group: str) -> None:
    """Send at the rate until the harness stops it, then repeat a last message until the harness ends it."""
    logging.disable()
    layer = peer.open()
    unreached = links
    while unreached:
        await layer.group_send(group, message(PROBE))
        unreached = [link for link in unreached if not await link.arrives(PROBE_SECONDS)]
    line.put("reached")
    stop = asyncio.create_task(line.aget())
    number, raised, begin = 0, 0, time.monotonic()
    while not stop.done():
        await asyncio.sleep(max(0.0, begin + number / A_SECOND - time.monotonic()))
        try:
            await layer.group_send(group, message(number))
        except Exception:
            raised += 1
        number += 1
    line.put((number, raised))
    end = asyncio.create_task(line.aget())
    while not end.done():
        with suppress(Exception):
            await layer.group_send(group, message(STOP))
        await asyncio.wait({end}, timeout=AGAIN_AFTER)
    await close(layer)


async def receive(line: Line, link: Line, peer: Peer, group: str) -> None:
    """Read until the last message, or until it is too late; report the numbers, and how many times `receive` raised."""
    logging.disable()
    layer = peer.open()
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    check(await layer.receive(channel), PROBE, "probe")
    link.put("reached")
    reader = _Reader(layer, channel, peer.name)
    reads = asyncio.create_task(reader.read())
    await line.aget()
    await asyncio.wait({reads}, timeout=LATE)
    line.put((reader.seen, reader.raised))
    await line.aget()
    reads.cancel()
    with suppress(asyncio.CancelledError):
        await reads
    await close(layer)


class _Reader:
    def __init__(self, layer: Layer, channel: str, name: str) -> None:
        self.seen: list[int] = []
        self.raised = 0
        self._layer, self._channel, self._name = layer, channel, name

    async def read(self) -> None:
        while True:
            try:
                got = await self._layer.receive(self._channel)
            except Exception:
                self.raised += 1
                await asyncio.sleep(AGAIN_AFTER)
                continue
            number = got["n"]
            if number == STOP:
                return
            check(got, number, f"{self._name}, receiver")
            if number != PROBE:
                self.seen.append(number)


CUTS = Measure(
    "cuts",
    "messages that arrive though connections are cut, and servers replaced",
    ("dedicated", "redis-pubsub", "redis-core"),
    run,
    (Goal("replacement_share", "", ">=", 1, headline="share delivered while all servers are replaced"),),
    at_most=1,
)
