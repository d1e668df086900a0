"""Links that are as slow as the heartbeats permit: the largest message passes, and all connections remain."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from forwarders import Forwarder, close_all, free_ports, until
from network import Network, missing
from peers import Peer
from relays import relay_to

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.errors import ConnectionLost
from channels_zmq_forwarder.sockets import SLOWEST_LINK

Make = Callable[..., Forwarder]
RATE = SLOWEST_LINK / 8
"""The bytes that the slowest link carries in a second."""
JOBS = 12
"""The number of jobs of 1 MiB, which take 6 s."""
PARTS, PART = 160, 64 * 1024
"""The number of messages that take 5 s together, and the bytes of the text of each."""
EXPIRY = 2.0
PROCESSES = 20
"""The number of processes that share one link, each with the minimum that it needs."""
ENVELOPE = 100
"""The number of bytes of a message beside its text, at most."""


@pytest.fixture
def make_forwarder() -> Iterator[Make]:
    """Return a function that starts a forwarder with a certain maximum message size at a host."""
    started: list[Forwarder] = []

    def make(size: int, host: str = "127.0.0.1") -> Forwarder:
        addresses = (f"tcp://{host}:{port}" for port in free_ports(2))
        forwarder = Forwarder(*addresses, flags=("--max-message-size", str(size)))
        started.append(forwarder)
        forwarder.start()
        return forwarder

    yield make
    for forwarder in started:
        forwarder.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "count", "is_up"),
    [(2**20, 12, True), (2**20, 12, False), (2**23, 2, True)],
    ids=["1 MiB", "1 MiB, coming up", "8 MiB"],
)
def test_a_process_that_gets_more_than_its_link_carries_can_send(
    run: Any, make_forwarder: Make, size: int, count: int, is_up: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that gets more than its link carries can send, and no connection is cut.

    Answers to its messages, or to the echo that proves its link, wait for seconds behind messages for the process.
    """
    forwarder = make_forwarder(size)

    async def scenario() -> None:
        with relay_to(forwarder.pub, RATE) as down, relay_to(forwarder.pull) as up:
            sender = DedicatedZmqChannelLayer(**forwarder.config, max_message_size=size)
            config = {"pull_socket_address": up.address, "pub_socket_address": down.address}
            receiver = DedicatedZmqChannelLayer(**config, max_message_size=size)
            if not is_up:
                up.hold()
            channel = await receiver.new_channel()
            await receiver.group_add("chat", channel)
            if is_up:
                await until(lambda: receiver.stats()["links"][0]["state"] == "up")
            own = await sender.new_channel()
            for number in range(count):
                await sender.group_send("chat", {"n": number, "text": "x" * (size - ENVELOPE)})
            up.resume()
            await receiver.send(own, {"n": 0})
            assert await sender.receive(own) == {"n": 0}
            assert [(await receiver.receive(channel))["n"] for _ in range(count)] == list(range(count))
            await until(lambda: not receiver.stats()["held"])
            stats = receiver.stats()
            assert (stats["reconnects"], stats["sent_again"], stats["dropped"], caplog.messages) == (0, 0, {}, [])
            close_all()

    run(scenario())


@pytest.mark.slow
def test_what_waits_at_the_forwarder_when_a_connection_is_cut_is_replayed(run: Any, forwarder: Forwarder) -> None:
    """If a connection is cut, all messages that wait for it at the forwarder are replayed, however many."""

    async def scenario() -> None:
        with relay_to(forwarder.pub, RATE) as relay:
            sender = DedicatedZmqChannelLayer(**forwarder.config)
            receiver = DedicatedZmqChannelLayer(
                **{**forwarder.config, "pub_socket_address": relay.address}, capacity=PARTS
            )
            channel = await receiver.new_channel()
            await receiver.group_add("chat", channel)
            for number in range(PARTS):
                await sender.group_send("chat", {"n": number, "text": "x" * PART})
            received: list[int] = []
            while len(received) < PARTS:
                received.append((await receiver.receive(channel))["n"])
                if len(received) == PARTS * 2 // 3:
                    relay.cut()
            assert received == list(range(PARTS))
            await until(lambda: receiver.stats()["reconnects"] == 1)  # the replay may arrive before the link is up
            assert receiver.stats()["dropped"] == {}
            close_all()

    run(scenario())


@pytest.mark.slow
def test_what_waits_at_a_forwarder_that_ends_arrives(run: Any, make_forwarder: Make) -> None:
    """Messages that wait at a forwarder that ends arrive in order, though the other one's messages overtake them."""
    first, second = (make_forwarder(2**20) for _ in range(2))

    async def scenario() -> None:
        with relay_to(first.pub, RATE) as slow, relay_to(second.pub, RATE) as other:
            pull = [one.pull for one in (first, second)]
            sender = DedicatedZmqChannelLayer(pull_socket_address=pull, pub_socket_address=[first.pub, second.pub])
            receiver = DedicatedZmqChannelLayer(
                pull_socket_address=pull, pub_socket_address=[slow.address, other.address], capacity=PARTS
            )
            channel = await receiver.new_channel()
            await receiver.group_add("chat", channel)
            await until(lambda: all(link["state"] == "up" for link in sender.stats()["links"]))
            for number in range(PARTS // 2):
                await sender.group_send("chat", {"n": number, "text": "x" * PART})
            received = [
                (await receiver.receive(channel))["n"] for _ in range(PARTS // 4)
            ]  # the sender holds none of it
            carries = max((first, second), key=lambda one: one.status()["frames_in"])
            ending = asyncio.create_task(asyncio.to_thread(carries.end))
            await until(lambda: [link["state"] for link in sender.stats()["links"]].count("up") == 1)
            await sender.group_send("chat", {"n": PARTS // 2})
            received += [(await receiver.receive(channel))["n"] for _ in range(PARTS // 2 + 1 - len(received))]
            assert received == list(range(PARTS // 2 + 1))
            assert receiver.stats()["dropped"] == {}
            await ending
            close_all()

    run(scenario())


@pytest.mark.slow
def test_what_a_slow_link_does_not_carry_in_time_expires(run: Any, forwarder: Forwarder) -> None:
    """Messages that a slow link does not carry in time expire in the outbox, except for some seconds' worth.

    In the socket they would not expire, and would arrive however old.
    """

    async def scenario() -> None:
        with relay_to(forwarder.pull, RATE) as relay:
            sender = DedicatedZmqChannelLayer(
                **{**forwarder.config, "pull_socket_address": relay.address}, expiry=EXPIRY, connect_timeout=20.0
            )
            receiver = DedicatedZmqChannelLayer(**forwarder.config)
            channel = await receiver.new_channel()
            await receiver.group_add("chat", channel)
            received: list[int] = []

            async def read() -> None:
                while True:
                    received.append((await receiver.receive(channel))["n"])

            reading = asyncio.create_task(read())
            for number in range(4 * PARTS):  # they take 20 s
                await sender.group_send("chat", {"n": number, "text": "x" * PART})
            await until(lambda: not sender.stats()["held"])
            expired = sender.stats()["dropped"]["outbox_expired"]
            assert expired > 2 * PARTS
            await until(lambda: len(received) == 4 * PARTS - expired)
            assert received == sorted(received)
            reading.cancel()
            await asyncio.wait([reading])
            close_all()

    run(scenario())


@pytest.mark.slow
def test_large_jobs_by_a_slow_link_all_arrive(run: Any, forwarder: Forwarder) -> None:
    """Large jobs all arrive through a slow link, though each confirmation and acknowledgement takes seconds."""

    async def scenario() -> None:
        with relay_to(forwarder.pull, RATE) as relay:
            sender = DedicatedZmqChannelLayer(
                **{**forwarder.config, "pull_socket_address": relay.address}, connect_timeout=20.0
            )
            channel = await sender.new_channel()
            await sender.group_add("chat", channel)
            text = "x" * (2**20 - ENVELOPE)
            jobs = [asyncio.ensure_future(sender.send("jobs", {"n": n, "text": text})) for n in range(JOBS)]
            while not all(job.done() for job in jobs):
                await sender.group_send("chat", {})
                assert await sender.receive(channel) == {}
            assert await asyncio.gather(*jobs) == [None] * JOBS
            stats = sender.stats()
            assert (stats["reconnects"], stats["sent_again"], stats["dropped"]) == (0, 0, {})
            close_all()

    run(scenario())


@pytest.mark.slow
def test_a_sender_of_jobs_notices_that_its_connection_stands_still(run: Any, forwarder: Forwarder) -> None:
    """A sender of jobs notices a stalled connection although it sends nothing else, and raises before the timeout."""

    async def scenario() -> None:
        with relay_to(forwarder.pull) as relay:
            config = {**forwarder.config, "pull_socket_address": relay.address}
            sender = DedicatedZmqChannelLayer(**config, connect_timeout=20.0)
            await sender.send("jobs", {})
            relay.hold()
            with pytest.raises(ConnectionLost):
                await sender.send("jobs", {})
            close_all()

    run(scenario())


@pytest.mark.parametrize("size", [2**20, pytest.param(2**23, marks=pytest.mark.slow)], ids=["1 MiB", "8 MiB"])
@pytest.mark.parametrize("slow", ["pull_socket_address", "pub_socket_address"], ids=["sending", "receiving"])
def test_the_largest_message_passes_the_slowest_link(run: Any, make_forwarder: Make, slow: str, size: int) -> None:
    """The largest message passes the slowest link without a reconnect.

    Heartbeats and acknowledgements wait behind it for longer than a dead peer would be tolerated.
    """
    forwarder = make_forwarder(size)

    async def scenario() -> None:
        with relay_to(forwarder.config[slow], RATE) as relay:
            config = {**forwarder.config, slow: relay.address}
            layer = DedicatedZmqChannelLayer(**config, max_message_size=size)
            channel = await layer.new_channel()
            await layer.group_add("chat", channel)
            text = "x" * (size - ENVELOPE)
            began = time.monotonic()
            await layer.group_send("chat", {"text": text})
            await layer.group_send("chat", {"text": "behind it"})
            assert await layer.receive(channel) == {"text": text}
            assert time.monotonic() - began > len(text) / RATE, "the link is faster than it should be"
            assert await layer.receive(channel) == {"text": "behind it"}
            stats = layer.stats()
            assert (stats["reconnects"], stats["sent_again"], stats["dropped"]) == (0, 0, {})
            close_all()

    run(scenario())


async def take(layer: DedicatedZmqChannelLayer, channel: str) -> int:
    """Return the length of the next message's text."""
    return len((await layer.receive(channel))["text"])


@pytest.mark.slow
def test_the_largest_message_reaches_20_processes_by_the_slowest_link_for_each(
    run: Any, network: Network, make_forwarder: Make
) -> None:
    """The largest message reaches 20 processes through one link with the minimum for each.

    Heartbeats wait behind it: 8 MiB for all of them at 320 Mbit/s disconnected all, and reached none.
    """
    if lacking := missing("tc"):
        pytest.skip(lacking)
    size = 2**23
    config = {**make_forwarder(size, network.host).config, "max_message_size": size}
    peers = [Peer("asyncio", by=network.prefix) for _ in range(PROCESSES)]
    text = "x" * (size - ENVELOPE)

    async def scenario() -> None:
        sender = DedicatedZmqChannelLayer(**config)
        await until(lambda: sender.stats()["connected"])
        began = time.monotonic()
        await sender.group_send("chat", {"text": text})
        received = [peer.begin_run(take, channel) for peer, channel in zip(peers, channels, strict=True)]
        assert await asyncio.gather(*map(asyncio.wrap_future, received)) == [len(text)] * PROCESSES
        assert time.monotonic() - began > size / RATE, "the link is faster than it should be"

    try:
        for peer in peers:
            peer.ask("open", config)
        channels = [peer.ask("member", "chat") for peer in peers]
        network.limit(8 * RATE * PROCESSES)
        run(scenario())
        for stats in [peer.ask("stats") for peer in peers]:
            assert (stats["reconnects"], stats["dropped"]) == (0, {})
    finally:
        for peer in peers:
            peer.kill()
        close_all()
