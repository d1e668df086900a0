"""Several equal forwarders: what a process sends, receives and learns while they start, end and die."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from event_loops import FACTORIES
from forwarders import Forwarder, close_all, free_ports, port_of, until
from relays import Relay

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.errors import ConnectionLost
from channels_zmq.transports import discovery, link
from channels_zmq_forwarder import sockets

Run = Callable[[Awaitable[None]], None]
GROUPS = [f"group-{number}" for number in range(30)]


@pytest.fixture
def forwarders() -> Iterator[list[Forwarder]]:
    """Make three forwarders, of which the third is not started."""
    all_of_them = [
        Forwarder(*(f"tcp://127.0.0.1:{port}" for port in free_ports(2)), settle=0.1, flags=("--settle-at-most", "2"))
        for _ in range(3)
    ]
    for forwarder in all_of_them[:2]:
        forwarder.start()
    yield all_of_them
    close_all()
    for forwarder in all_of_them:
        forwarder.kill()


def layer_of(forwarders: list[Forwarder], **config: Any) -> DedicatedZmqChannelLayer:
    """Return a layer of these forwarders."""
    return DedicatedZmqChannelLayer(
        pull_socket_address=[one.pull for one in forwarders],
        pub_socket_address=[one.pub for one in forwarders],
        capacity=10**6,
        **config,
    )


def states(layer: DedicatedZmqChannelLayer) -> list[str]:
    return [link["state"] for link in layer.stats()["links"]]


async def up(layer: DedicatedZmqChannelLayer, count: int) -> None:
    await until(lambda: sum(link["carries"] for link in layer.stats()["links"]) == count)


def frames_in(forwarder: Forwarder) -> int:
    return int(forwarder.status()["frames_in"])


async def members(layer: DedicatedZmqChannelLayer) -> str:
    """Return a channel that is a member of all groups."""
    channel = await layer.new_channel()
    await asyncio.gather(*(layer.group_add(group, channel) for group in GROUPS))
    return channel


async def publish(layer: DedicatedZmqChannelLayer, number: int) -> None:
    for group in GROUPS:
        await layer.group_send(group, {"group": group, "n": number})


async def numbers(layer: DedicatedZmqChannelLayer, channel: str, count: int) -> dict[str, list[int]]:
    """Return the numbers that arrive for each group, `count` for each on average."""
    found: dict[str, list[int]] = {group: [] for group in GROUPS}
    for _ in range(count * len(GROUPS)):
        message = await layer.receive(channel)
        found[message["group"]].append(message["n"])
    return found


@pytest.mark.parametrize("run", FACTORIES, indirect=True)
def test_topics_are_spread_over_the_forwarders_and_keep_their_order(run: Run, forwarders: list[Forwarder]) -> None:
    """Topics are spread over the forwarders, and all messages of each group arrive in order.

    Each forwarder carries a part of them.
    """

    async def scenario() -> None:
        sender, receiver = layer_of(forwarders[:2]), layer_of(forwarders[:2][::-1])
        channel = await members(receiver)
        await up(sender, 2)
        await up(receiver, 2)
        before = [frames_in(one) for one in forwarders[:2]]
        for number in range(20):
            await publish(sender, number)
        assert await numbers(receiver, channel, 20) == {group: list(range(20)) for group in GROUPS}
        carried = [frames_in(one) - already for one, already in zip(forwarders, before, strict=False)]
        assert min(carried) > 20 * 3
        assert receiver.stats()["dropped"] == {}

    run(scenario())


@pytest.mark.parametrize("how", ["end", "kill"])
def test_a_forwarder_that_goes_takes_no_message_along(run: Run, forwarders: list[Forwarder], how: str) -> None:
    """If one of two forwarders ends or dies, the other carries its topics: all messages arrive once and in order."""

    async def scenario() -> None:
        sender, receiver = layer_of(forwarders[:2]), layer_of(forwarders[:2][::-1])
        channel = await members(receiver)
        await up(sender, 2)
        await up(receiver, 2)
        gone = asyncio.create_task(asyncio.to_thread(getattr(forwarders[0], how)))
        count = 0
        while not gone.done() or count < 50:
            await publish(sender, count)
            count += 1
            await asyncio.sleep(0.001)  # of load
        assert await numbers(receiver, channel, count) == {group: list(range(count)) for group in GROUPS}
        assert (receiver.stats()["dropped"], sender.stats()["dropped"]) == ({}, {})
        assert sender.stats()["reconnects"] == 0

    run(scenario())


@pytest.mark.parametrize("run", FACTORIES, indirect=True)
def test_a_process_that_finds_a_new_forwarder_late_misses_nothing(run: Run, forwarders: list[Forwarder]) -> None:
    """If another process finds the successor of all forwarders first, what it sends there is replayed to this one."""
    former, _, successor = forwarders
    relay = Relay(free_ports(1)[0], port_of(successor.pub))

    async def scenario() -> None:
        sender = layer_of([former, successor])
        receiver = DedicatedZmqChannelLayer(
            pull_socket_address=[former.pull, successor.pull],
            pub_socket_address=[former.pub, relay.address],
            capacity=10**6,
        )
        channel = await members(receiver)
        await up(sender, 1)
        await publish(sender, 0)
        await asyncio.to_thread(former.end)
        await asyncio.to_thread(successor.start)
        for number in range(1, 20):
            await publish(sender, number)
        await until(lambda: sender.stats()["connected"] and not sender.stats()["waiting"])
        assert successor.status()["clients"] == 1
        relay.start()
        await publish(sender, 20)
        assert await numbers(receiver, channel, 21) == {group: list(range(21)) for group in GROUPS}
        assert receiver.stats()["dropped"] == {}

    try:
        run(scenario())
    finally:
        relay.end()


def test_jobs_move_from_a_forwarder_that_ends_to_another(run: Run, forwarders: list[Forwarder]) -> None:
    """A forwarder that ends hands the jobs in its queues to another one, all of them and in order."""

    async def scenario() -> None:
        layer = layer_of(forwarders[:2])
        await up(layer, 2)
        for number in range(600):
            await layer.send("jobs", {"n": number})
        home = next(one for one in forwarders if one.status()["waiting"] == 600)
        await asyncio.to_thread(home.end)
        assert [(await layer.receive("jobs"))["n"] for _ in range(600)] == list(range(600))
        assert layer.stats()["dropped"] == {}

    run(scenario())


def test_jobs_of_the_only_forwarder_wait_in_the_clients_for_its_successor(
    run: Run, forwarders: list[Forwarder]
) -> None:
    """A restart of the only forwarder loses no job: the clients hold them for its successor."""

    async def scenario() -> None:
        layer = layer_of(forwarders[:1])
        for number in range(300):
            await layer.send("jobs", {"n": number})
        await asyncio.to_thread(forwarders[0].end)
        assert layer.stats()["held"] == 300
        await asyncio.to_thread(forwarders[0].start)
        assert [(await layer.receive("jobs"))["n"] for _ in range(300)] == list(range(300))

    run(scenario())


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_forwarder_that_never_existed_changes_nothing(
    run: Run,
    forwarders: list[Forwarder],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_silent: bool,
) -> None:
    """A listed forwarder that never existed delays nothing and is logged once, also if its address accepts peers."""
    monkeypatch.setattr(link, "PATIENCE", 3600.0)  # for a link that has not connected

    async def scenario() -> None:
        layer = layer_of(forwarders)
        channel = await members(layer)
        await up(layer, 2)
        await publish(layer, 0)
        assert await numbers(layer, channel, 1) == {group: [0] for group in GROUPS}
        await layer.send("jobs", {"n": 1})
        assert await layer.receive("jobs") == {"n": 1}
        assert sorted(states(layer)) == ["down", "up", "up"]
        monkeypatch.setattr(link, "REPORTED_AFTER", 0.0)
        await until(lambda: lines() != [])
        await layer.flush()

    def lines() -> list[str]:
        return [text for record in caplog.records if forwarders[2].pub in (text := record.getMessage())]

    with contextlib.ExitStack() as stack:
        for address in (forwarders[2].pull, forwarders[2].pub) if is_silent else ():
            stack.enter_context(socket.create_server(("127.0.0.1", port_of(address))))
        with caplog.at_level(logging.INFO, "channels_zmq"):
            run(scenario())
    (line,) = lines()
    assert line == f"the forwarder at {forwarders[2].pull} and {forwarders[2].pub} cannot be reached; trying again"


@pytest.mark.parametrize("count", [1, 2])
def test_a_confirmed_send_fails_at_once_when_its_forwarder_dies(
    run: Run, forwarders: list[Forwarder], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A confirmed send raises at once when its forwarder dies, and is not sent again, as its outcome is unknown.

    The end of the connection causes this, not silence.
    """
    monkeypatch.setattr(link, "PATIENCE", 3600.0)  # for a link that does not answer

    async def scenario() -> None:
        layer = layer_of(forwarders[:count], connect_timeout=3600.0)
        await up(layer, count)
        for forwarder in forwarders[:count]:
            await asyncio.to_thread(forwarder.freeze)
        sending = asyncio.create_task(layer.send("jobs", {"n": 1}))
        await asyncio.sleep(0)
        for forwarder in forwarders[:count]:
            await asyncio.to_thread(forwarder.kill)
        with pytest.raises(ConnectionLost, match=r"send\('jobs'\).*outcome is unknown"):
            await sending

    run(scenario())


def test_a_forwarder_that_is_killed_takes_along_the_jobs_that_waited_in_it(
    run: Run, forwarders: list[Forwarder]
) -> None:
    """A killed forwarder loses exactly the jobs that waited in it; those read before or sent later are done once."""

    async def scenario() -> None:
        layer = layer_of(forwarders[:2])
        await up(layer, 2)
        for number in range(100):
            await layer.send("jobs", {"n": number})
        done = [(await layer.receive("jobs"))["n"] for _ in range(30)]
        home = max(forwarders[:2], key=lambda one: int(one.status()["waiting"]))
        await until(lambda: home.status()["waiting"] == 70)  # jobs that were fetched ahead of their reader are returned
        await asyncio.to_thread(home.kill)
        await up(layer, 1)
        for number in range(100, 110):
            await layer.send("jobs", {"n": number})
        done += [(await layer.receive("jobs"))["n"] for _ in range(10)]
        assert sorted(done) == [*range(30), *range(100, 110)]

    run(scenario())


def test_a_process_with_an_old_list_learns_of_the_others(
    run: Run, forwarders: list[Forwarder], caplog: pytest.LogCaptureFixture
) -> None:
    """A process with an old list of forwarders learns of the others before its first `group_add` returns.

    It therefore misses nothing that is sent by a forwarder that it did not know.
    """

    async def scenario() -> None:
        sender = layer_of(forwarders[:2])
        await up(sender, 2)
        receiver = layer_of(forwarders[:1])
        channel = await members(receiver)
        for number in range(10):
            await publish(sender, number)
        assert await numbers(receiver, channel, 10) == {group: list(range(10)) for group in GROUPS}
        await up(receiver, 2)

    run(scenario())


def test_lists_that_differ_are_logged_once_with_both(
    run: Run, forwarders: list[Forwarder], caplog: pytest.LogCaptureFixture
) -> None:
    """A process whose list lacks a forwarder that others use logs one line with both lists."""

    def lines() -> list[str]:
        return [one.getMessage() for one in caplog.records if "different forwarders" in one.getMessage()]

    async def scenario() -> None:
        await asyncio.to_thread(forwarders[2].start)
        complete, lacking = layer_of(forwarders), layer_of(forwarders[:2])
        await up(complete, 3)
        await up(lacking, 3)
        await until(lambda: bool(lines()))  # another thread writes it

    with caplog.at_level(logging.WARNING, "channels_zmq"):
        run(scenario())
    (line,) = lines()
    assert all(one.pub in line.partition("elsewhere")[0] for one in forwarders[:2])
    assert forwarders[2].pub in line.partition("elsewhere")[2]


def test_a_name_stands_for_all_forwarders_that_it_resolves_to(
    run: Run, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name stands for all forwarders that it resolves to, also for one that is added later.

    The name is resolved again every `resolve_every` seconds. A waiting worker gets jobs of every forwarder.
    """
    pull, pub = free_ports(2)
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    alike = [Forwarder(f"tcp://{host}:{pull}", f"tcp://{host}:{pub}", settle=0.1) for host in hosts]
    known = hosts[:2]

    def resolve(address: str) -> list[str]:
        return [address.replace("forwarders", host) for host in known]

    for module in (discovery, sockets):
        monkeypatch.setattr(module, "resolve", resolve)

    async def scenario() -> None:
        for one in alike[:2]:
            await asyncio.to_thread(one.start)
        layer = DedicatedZmqChannelLayer(
            pull_socket_address=f"tcp://forwarders:{pull}",
            pub_socket_address=f"tcp://forwarders:{pub}",
            resolve_every=0.1,
        )
        working = asyncio.create_task(layer.receive("jobs"))  # before any name is resolved
        await asyncio.sleep(0)
        await up(layer, 2)
        await layer.send("jobs", {"n": 1})
        assert await working == {"n": 1}
        working = asyncio.create_task(layer.receive("jobs"))
        await asyncio.sleep(0)
        await asyncio.to_thread(alike[2].start)
        known.append(hosts[2])
        await up(layer, 3)
        other = DedicatedZmqChannelLayer(
            pull_socket_address=f"tcp://{hosts[2]}:{pull}", pub_socket_address=f"tcp://{hosts[2]}:{pub}"
        )
        await other.send("jobs", {"n": 2})
        assert await working == {"n": 2}
        del known[0]
        await asyncio.to_thread(alike[0].end)
        await until(lambda: states(layer).count("up") == 2)

    try:
        run(scenario())
    finally:
        close_all()
        for one in alike:
            one.kill()
