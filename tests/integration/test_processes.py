"""Four processes at one forwarder: which messages each gets, in which order, and how many wait unread."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from event_loops import FACTORIES
from forwarders import Forwarder, free_ports
from peers import Peer, Read, wait_until

Open = Callable[..., list[Peer]]

SENT = 400
"""The number of messages of one sender.

Those of all four together stay below half of the forwarder's high-water mark (docs/operations.md).
"""
CAPACITY = 30


@pytest.fixture(scope="module", params=["tcp", "ipc"])
def shared_forwarder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forwarder]:
    """Start a forwarder for all tests of this module."""
    if request.param == "tcp":
        pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    else:
        folder: Path = tmp_path_factory.mktemp("sockets")
        pull, pub = f"ipc://{folder}/pull", f"ipc://{folder}/pub"
    own = Forwarder(pull, pub)
    own.start()
    yield own
    own.end()


@pytest.fixture(scope="module", params=FACTORIES)
def processes(request: pytest.FixtureRequest) -> Iterator[list[Peer]]:
    """Start four processes for all tests of this module."""
    peers = [Peer(request.param) for _ in range(4)]
    yield peers
    for peer in peers:
        peer.end()


@pytest.fixture
def open_layers(processes: list[Peer], shared_forwarder: Forwarder) -> Iterator[Open]:
    """Return a function that opens a layer in each of the four processes; the layers are closed after the test."""

    def open_layers(**config: Any) -> list[Peer]:
        for peer in processes:
            peer.ask("open", {**shared_forwarder.config, **config})
            peer.ask("until_connected", True)  # because the test, not the layer, hands names to other processes
        return processes

    yield open_layers
    for peer in processes:
        peer.ask("close")


@pytest.fixture
def name() -> str:
    """Return a name that no other test uses at the forwarder."""
    return f"name-{os.urandom(4).hex()}"


def in_order(senders: int) -> dict[str, list[int]]:
    """Return the numbers that a reader reads of each sender if none is lost, repeated or out of order."""
    return {str(sender): list(range(SENT)) for sender in range(senders)}


def by_sender(read: Read) -> dict[str, list[int]]:
    """Return the numbers that were read, by sender, in the order in which they were read."""
    numbers: dict[str, list[int]] = {}
    for sender, number in read:
        numbers.setdefault(sender, []).append(number)
    return numbers


def expect_no_more(peers: list[Peer], channels: dict[str, Peer]) -> None:
    """Check that process-specific channels are empty, and that no message was lost or arrived twice."""
    for channel, peer in channels.items():
        peer.ask("send", channel, "mark", 0, 1)
        assert peer.ask("receive", channel, 1) == [["mark", 0]]
    for peer in peers:
        stats = peer.ask("stats")
        assert (stats["dropped"], stats["repeated"], stats["waiting"]) == ({}, 0, 0)


def test_every_member_gets_each_message_of_each_sender_once_and_in_order(open_layers: Open, name: str) -> None:
    """If each of four processes sends to a group, each of eight members gets each message once and in order."""
    peers = open_layers(capacity=10_000)
    members = {peer.ask("member", name): peer for peer in peers for _ in range(2)}
    reads = [peer.begin("receive", channel, 4 * SENT) for channel, peer in members.items()]
    sends = [peer.begin("send", f"group:{name}", str(sender), 0, SENT) for sender, peer in enumerate(peers)]
    for send in sends:
        send.result(20)
    for read in reads:
        assert by_sender(read.result(20)) == in_order(senders=4)
    expect_no_more(peers, members)


def test_direct_messages_of_each_sender_arrive_once_and_in_order(open_layers: Open) -> None:
    """If each of four processes sends to a channel of each, its own included, all messages arrive once and in order."""
    peers = open_layers(capacity=10_000)
    channels = {peer.ask("channel"): peer for peer in peers}
    reads = [peer.begin("receive", channel, 4 * SENT) for channel, peer in channels.items()]
    sends = [
        peer.begin("send", channel, str(sender), 0, SENT) for sender, peer in enumerate(peers) for channel in channels
    ]
    for send in sends:
        send.result(20)
    for read in reads:
        assert by_sender(read.result(20)) == in_order(senders=4)
    expect_no_more(peers, channels)


def collected(workers: list[Peer], name: str, count: int) -> list[Read]:
    """Wait until the workers have read so many messages in all, and return those of each."""
    wait_until(lambda: sum(len(worker.ask("collected", name)) for worker in workers) >= count)
    return [worker.ask("collected", name) for worker in workers]


@pytest.mark.parametrize("prefetch", [0, 4])
def test_each_job_is_done_once_over_all_workers_and_in_order_as_each_sees_it(
    open_layers: Open, name: str, prefetch: int
) -> None:
    """Two processes send jobs, two others compete for them, and each job is done once, in each sender's order.

    A last job proves that no job before it was delivered twice; further ones follow until both workers have taken
    their turns, however late one begins. The order is certain only without `prefetch`: a job
    that was fetched ahead of a slow reader may be returned, and lose its place.
    """
    peers = open_layers(capacity=10_000, prefetch=prefetch)
    workers = peers[2:]
    for worker in workers:
        worker.ask("collect", name)
    sends = [peer.begin("send", name, str(sender), 0, SENT) for sender, peer in enumerate(peers[:2])]
    for send in sends:
        send.result(20)
    collected(workers, name, 2 * SENT)
    for marks in range(1, SENT + 1):
        peers[0].ask("send", name, "mark", marks, 1)
        done = collected(workers, name, 2 * SENT + marks)
        if min(map(len, done)) > 1:
            break
    times = Counter((sender, number) for read in done for sender, number in read)
    assert times == {("mark", number): 1 for number in range(1, marks + 1)} | {
        (str(sender), number): 1 for sender in range(2) for number in range(SENT)
    }
    for read in done:
        assert len(read) > 1, "both take their turns"
        for numbers in by_sender(read).values():
            assert numbers == sorted(numbers) or prefetch
    assert [peer.ask("stats")["dropped"] for peer in peers] == [{}] * 4


def test_a_normal_channel_takes_exactly_its_capacity_from_all_senders_together(open_layers: Open, name: str) -> None:
    """Three processes that send at once fill a normal channel to exactly its capacity, and reads make room again."""
    peers = open_layers(capacity=CAPACITY, prefetch=0)  # with it, some would wait in a reader's process too
    offers = [peer.begin("offer", name, str(sender), CAPACITY) for sender, peer in enumerate(peers[:3])]
    assert sum(offer.result(20) for offer in offers) == CAPACITY
    assert [peer.ask("offer", name, "late", 1) for peer in peers] == [0] * 4
    assert len(peers[3].ask("receive", name, CAPACITY)) == CAPACITY
    assert peers[0].ask("offer", name, "next", CAPACITY + 1) == CAPACITY
    assert by_sender(peers[3].ask("receive", name, CAPACITY)) == {"next": list(range(CAPACITY))}


def test_an_unread_member_keeps_exactly_its_capacity_and_the_rest_is_counted(open_layers: Open, name: str) -> None:
    """An unread member keeps the oldest messages up to its capacity, and its process counts the others as lost.

    The sender gets no error, and a member that reads gets every message.
    """
    peers = open_layers(capacity=CAPACITY)
    unread, beside = peers[1].ask("member", name), peers[2].ask("member", name)
    peers[2].ask("collect", beside)
    for number in range(3 * CAPACITY):
        peers[0].ask("send", f"group:{name}", "0", number, 1)
        peers[2].ask("until_counted", "received", number + 1)
    peers[1].ask("until_counted", "received", 3 * CAPACITY)
    assert peers[1].ask("stats")["waiting"] == CAPACITY
    assert peers[1].ask("stats")["dropped"] == {"mailbox_full": 2 * CAPACITY}
    assert by_sender(peers[1].ask("receive", unread, CAPACITY)) == {"0": list(range(CAPACITY))}
    assert by_sender(peers[2].ask("until_collected", beside, "0", 3 * CAPACITY - 1)) == {"0": list(range(3 * CAPACITY))}
    assert [peers[index].ask("stats")["dropped"] for index in (0, 2)] == [{}, {}]


def test_an_unread_channel_of_another_process_keeps_exactly_its_capacity(open_layers: Open) -> None:
    """An unread channel keeps exactly its capacity, and its process counts the others as lost.

    Only that process can know that the channel is full, so a sender in another process gets no error.
    """
    peers = open_layers(capacity=CAPACITY)
    unread = peers[1].ask("channel")
    assert peers[0].ask("offer", unread, "0", 3 * CAPACITY) == 3 * CAPACITY
    peers[1].ask("until_counted", "received", 3 * CAPACITY)
    assert peers[1].ask("stats")["dropped"] == {"mailbox_full": 2 * CAPACITY}
    assert by_sender(peers[1].ask("receive", unread, CAPACITY)) == {"0": list(range(CAPACITY))}
    peers[0].ask("send", unread, "next", 0, 1)
    assert peers[1].ask("receive", unread, 1) == [["next", 0]]


def test_a_normal_member_of_a_group_takes_exactly_its_capacity(open_layers: Open, name: str) -> None:
    """The queue of a normal member keeps exactly its capacity, the oldest messages, and `group_send` does not raise."""
    peers = open_layers(capacity=CAPACITY, prefetch=0)
    jobs = f"jobs-{name}"
    peers[0].ask("add", name, jobs)
    peers[1].ask("send", f"group:{name}", "1", 0, 3 * CAPACITY)
    assert peers[1].ask("offer", jobs, "1", 1) == 0  # behind all of them, so all have been put into the queue
    assert by_sender(peers[3].ask("receive", jobs, CAPACITY)) == {"1": list(range(CAPACITY))}
    assert peers[1].ask("offer", jobs, "next", 1) == 1
    assert peers[3].ask("receive", jobs, 1) == [["next", 0]]
    peers[0].ask("discard", name, jobs)
