"""Messages of a busy sender travel in batches, and arrive as they would one by one."""

import asyncio
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest
import zmq
from asgiref.sync import async_to_sync
from forwarders import config_of, until
from strangers import Peer as RawPeer

from channels_zmq.client import batch
from channels_zmq_forwarder import wire

Make = Callable[..., Any]
Run = Callable[..., Any]

COUNT = 500


@pytest.fixture(autouse=True)
def _busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each sender count as busy from its first message on, however slow this machine is."""
    monkeypatch.setattr(batch, "RUN", 0)
    monkeypatch.setattr(batch, "WITHIN", inf)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


def numbered(number: int) -> dict[str, Any]:
    return {"type": "numbered", "from": "me", "n": number}


def only(address: Any) -> Any:
    """Return the address of the only forwarder of a CONFIG."""
    return address[0] if isinstance(address, tuple) else address


async def connected(layer: Any) -> None:
    """Wait until messages leave; an embedded layer binds with its first message."""
    await layer.group_send("none", numbered(0))
    await until(lambda: layer.stats()["connected"] and not layer.stats()["held"])


async def peer_in_room(layer: Any, open_peer: Make) -> tuple[Any, str]:
    """Return another process, and its channel in the group to which this process sends.

    The other process has reported that it reads batches before it joins.
    """
    await connected(layer)
    peer = open_peer(**config_of(layer), capacity=2 * COUNT)
    await asyncio.to_thread(peer.ask, "until_connected", True)
    return peer, await asyncio.to_thread(peer.ask, "member", "room")


@pytest.mark.parametrize("reads_batches", [True, False])
def test_all_messages_arrive_in_order_by_fewer_frames(
    make_shared_layer: Make,
    run: Run,
    open_peer: Make,
    context: zmq.Context[zmq.Socket[bytes]],
    reads_batches: bool,
) -> None:
    """All messages arrive in order, in at most a tenth as many frames if every process reads batches.

    Beside a process of an older version, which cannot read batches, each message has a frame of its own.
    """

    async def scenario() -> None:
        layer = make_shared_layer(capacity=2 * COUNT)
        config = config_of(layer)
        peer, channel = await peer_in_room(layer, open_peer)
        with RawPeer(context, only(config.get("pull_socket_address")), only(config["pub_socket_address"])) as raw:
            if reads_batches:
                raw.say(wire.BATCHING.encode(wire.Batching(raw.inbox, 1)))
            raw.say(wire.subscription(wire.group_topic("room")))
            await asyncio.to_thread(raw.sync)
            for number in range(COUNT):
                await layer.group_send("room", numbered(number))
                if number % 100 == 99:
                    await layer.send(channel, numbered(-number))
            await asyncio.to_thread(check_frames, raw, reads_batches)
        read = await asyncio.to_thread(peer.ask, "receive", channel, COUNT + COUNT // 100)
        sent = [each for number in range(COUNT) for each in ([number, -number] if number % 100 == 99 else [number])]
        assert [number for _, number in read] == sent
        stats = await asyncio.to_thread(peer.ask, "stats")
        assert (stats["dropped"], stats["repeated"]) == ({}, 0)

    run(scenario())


def check_frames(raw: RawPeer, reads_batches: bool) -> None:
    """Check at a raw socket that no message is missing, and that batches arrive only if it reads them."""
    frames: list[bytes] = []
    while sum(len(wire.split(frame)) for frame in frames) < COUNT:
        frame = raw.xsub.recv()
        if wire.is_group(frame):
            frames.append(frame)
    numbers = [wire.read_group(one)[2] for frame in frames for one in wire.split(frame)]
    assert numbers == list(range(numbers[0], numbers[0] + COUNT))
    if reads_batches:
        assert len(frames) <= COUNT // 10
    else:
        assert not any(map(wire.is_batch, frames))


def test_a_handler_that_goes_on_to_compute_does_not_keep_its_messages_back(
    make_shared_layer: Make, run: Run, open_peer: Make
) -> None:
    """Messages leave although the turn of the event loop does not end: this one blocks until they have arrived."""

    async def scenario() -> None:
        layer = make_shared_layer()
        peer, channel = await peer_in_room(layer, open_peer)
        for number in range(3):
            await layer.group_send("room", numbered(number))
        assert peer.ask("receive", channel, 3) == [["me", number] for number in range(3)]
        for number in range(3):
            await layer.send(channel, numbered(number))
        assert peer.ask("receive", channel, 3) == [["me", number] for number in range(3)]

    run(scenario())


def test_messages_of_synchronous_code_arrive_in_order(make_shared_layer: Make, run: Run, open_peer: Make) -> None:
    """Messages of synchronous code arrive in order, although each call has a short-lived event loop of its own."""
    layer = make_shared_layer()
    peer, channel = run(peer_in_room(layer, open_peer))
    for number in range(20):
        async_to_sync(layer.group_send)("room", numbered(number))
    assert peer.ask("receive", channel, 20) == [["me", number] for number in range(20)]


def test_the_last_messages_of_a_layer_that_is_closed_arrive(make_shared_layer: Make, run: Run, open_peer: Make) -> None:
    """Closing a layer sends the messages that wait for others to fill their batch."""

    async def scenario() -> None:
        layer = make_shared_layer()
        peer, channel = await peer_in_room(layer, open_peer)
        for number in range(3):
            await layer.group_send("room", numbered(number))
        await layer.close()
        read = await asyncio.to_thread(peer.ask, "receive", channel, 3)
        assert read == [["me", number] for number in range(3)]

    run(scenario())


def test_a_member_that_joins_does_not_get_what_its_process_sent_before(make_shared_layer: Make, run: Run) -> None:
    """A new member does not receive earlier messages of its own process, even if they have not left yet."""

    async def scenario() -> None:
        layer = make_shared_layer()
        await connected(layer)
        channel = await layer.new_channel()
        await layer.group_send("room", numbered(0))
        await layer.group_send("room", numbered(1))
        await layer.group_add("room", channel)
        await layer.group_send("room", numbered(2))
        assert (await layer.receive(channel))["n"] == 2

    run(scenario())
