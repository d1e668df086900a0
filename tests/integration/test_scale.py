"""Many consumers, many groups, and frozen processes: no state remains, and others stay connected."""

import signal
from collections.abc import Callable, Iterator

import pytest
from forwarders import PATIENCE, Forwarder
from peers import Peer, Read, wait_until

pytestmark = pytest.mark.slow

MANY = 10_000
BLOCK = 1000
"""Messages in flight at most: well below half of the forwarder's high-water mark (docs/operations.md)."""

StartPeer = Callable[..., Peer]


@pytest.fixture
def start_peer(forwarder: Forwarder) -> Iterator[StartPeer]:
    """Return a function that starts a connected process; the processes are ended after the test."""
    started: list[Peer] = []

    def start_peer(loop: str = "asyncio") -> Peer:
        peer = Peer(loop, **forwarder.config, capacity=10**6)
        started.append(peer)
        peer.ask("until_connected", True)
        return peer

    yield start_peer
    for peer in started:
        peer.end()


def numbers_of(read: Read) -> list[int]:
    return [number for _, number in read]


@pytest.mark.parametrize("topology", ["embedded", "dedicated"])
def test_ten_thousand_consumers_that_come_and_go_leave_nothing(forwarder: Forwarder, topology: str) -> None:
    """10,000 consumers that have ended leave no mailbox, group, descriptor or thread.

    Memory stays bounded once a first round has warmed it up.
    """
    config = forwarder.config if topology == "dedicated" else {"pub_socket_address": "inproc://channels"}
    peer = Peer("asyncio", **config)
    rounds: list[dict[str, int]] = []
    for _ in range(5):
        peer.ask("visit", MANY, patience=3 * PATIENCE)
        rounds.append(peer.ask("sizes"))
    peer.end()
    assert [(sizes["channels"], sizes["groups"]) for sizes in rounds] == [(0, 0)] * 5
    assert len({(sizes["descriptors"], sizes["threads"]) for sizes in rounds}) == 1
    growth = rounds[-1]["memory"] - rounds[1]["memory"]
    assert growth < MANY * 1000, "what is left by each of 30,000 consumers would be more, an empty mailbox alone"


def test_every_one_of_ten_thousand_subscriptions_survives_a_reconnect(
    start_peer: StartPeer, forwarder: Forwarder
) -> None:
    """Each of 10,000 groups delivers exactly once after the forwarder was killed and started again."""
    reader, sender = start_peer(), start_peer()
    channels = reader.ask("members", "room", MANY, patience=3 * PATIENCE)
    forwarder.kill()
    forwarder.start()
    for peer in (reader, sender):
        peer.ask("until_counted", "reconnects", 1)
    for first in range(0, MANY, BLOCK):
        sender.ask("send_each", "room", first, BLOCK)
        reader.ask("until_counted", "received", first + BLOCK)
    assert numbers_of(reader.ask("receive_each", channels)) == list(range(MANY))
    stats = reader.ask("stats")
    assert (stats["dropped"], stats["repeated"], stats["waiting"], stats["groups"]) == ({}, 0, 0, MANY)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_process_that_does_not_read_for_ten_seconds_is_not_cut_off(start_peer: StartPeer, loop: str) -> None:
    """A process that does not read for ten seconds is not disconnected, and loses nothing.

    Neither its loop nor its housekeeper runs, under a flood of five times the forwarder's mark and with heartbeats on.
    ZeroMQ's own threads continue: they answer the heartbeats and read the input.
    """
    sender, beside, still = start_peer(), start_peer(), start_peer(loop)
    beside.ask("member", "chat")
    still.ask("collect", still.ask("member", "chat"))
    stands_still = still.begin("stand_still", 10)
    sent = 0
    while sent < 50_000:
        sender.ask("send", "group:chat", "flood", sent, BLOCK)
        sent += BLOCK
        beside.ask("until_counted", "received", sent)
    assert not stands_still.done(), "the flood came while it stood still"
    stands_still.result(PATIENCE)
    still.ask("until_counted", "received", sent)
    sender.ask("send", "group:chat", "flood", sent, BLOCK)
    still.ask("until_counted", "received", sent + BLOCK)
    stats = still.ask("stats")
    assert (stats["dropped"], stats["repeated"], stats["reconnects"]) == ({}, 0, 0)


def test_a_frozen_process_goes_on_receiving_when_it_thaws(start_peer: StartPeer, forwarder: Forwarder) -> None:
    """A process that was frozen by SIGSTOP continues to receive when it thaws, and counts each message that it missed.

    The forwarder takes it for dead, so it begins a new session, in which it gets the messages published within the last
    seconds; older ones may be missing.
    """
    sender, beside, frozen = start_peer(), start_peer(), start_peer()
    chat = {peer: peer.ask("member", "chat") for peer in (beside, frozen)}
    for peer, channel in chat.items():
        peer.ask("collect", channel)
    sender.ask("send", "group:chat", "a", 0, 100)
    frozen.ask("until_counted", "received", 100)
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        sender.ask("send", "group:chat", "a", 100, 100)
        wait_until(lambda: forwarder.status()["clients"] == 2)
        sender.ask("send", "group:chat", "a", 200, 100)
        beside.ask("until_counted", "received", 300)
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    frozen.ask("until_counted", "reconnects", 1)
    sender.ask("send", "group:chat", "a", 300, 100)
    read = numbers_of(frozen.ask("until_collected", chat[frozen], "a", 399))
    assert read == sorted(set(read))
    assert set(read) >= {*range(100), *range(200, 400)}
    assert frozen.ask("stats")["dropped"].get("missed", 0) == 400 - len(read)
    assert numbers_of(beside.ask("until_collected", chat[beside], "a", 399)) == list(range(400))
