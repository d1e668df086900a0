"""Random frames against the library's sockets: it neither fails, nor grows, nor serves its consumers worse.

They arrive from above, from a stand-in for a forwarder that publishes anything to every client, and from below, at the
port of an embedded producer.
"""

import gc
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import psutil
import pytest
import zmq
from actors import Actor
from forwarders import free_ports
from standins import StandIn
from strangers import Peer, mutated, no_zeromq, oversized, well_formed

from channels_zmq_forwarder import wire

MAX_MESSAGE = 65_536
BATCH = 500
STRIKES = 10
RSS_BOUND = 100 * 2**20
"""How many bytes the process may grow: mailboxes, members and queues from the valid ones among the frames."""
COUNTS = [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)]


def processes_are_well(actor: Actor, before: int) -> int:
    """Check that there is no exception, the housekeeper lives and memory is bounded; return the megabytes grown."""
    assert [line for line in actor.errors() if "Traceback" in line][:1] == []
    keepers = [thread for thread in threading.enumerate() if thread.name == "channels-zmq housekeeper"]
    assert [keeper.is_alive() for keeper in keepers] == [True]
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    assert grown < RSS_BOUND
    return round(grown / 2**20)


def messages_pass(actor: Actor, lane: int) -> None:
    """Check that a group message and a direct one pass, to a reader that waits and to one that begins later."""
    channel = actor.call(lane, "new_channel")
    actor.call(lane, "group_add", "fresh", channel)
    reader = actor.begin(lane, "receive", channel)
    actor.call(lane, "group_send", "fresh", {"n": 1})
    assert actor.finish(reader) == {"n": 1}
    actor.call(lane, "send", channel, {"n": 2})
    assert actor.call(lane, "receive", channel) == {"n": 2}


@pytest.fixture
def actor() -> Iterator[Actor]:
    actor = Actor()
    yield actor
    actor.close()
    actor.end()


@pytest.mark.parametrize("count", COUNTS)
def test_a_forwarder_that_sends_broken_frames_harms_no_consumer(
    count: int, actor: Actor, record_property: Callable[[str, object], None]
) -> None:
    """A forwarder that sends broken frames ends no reader: they are counted, and later messages still pass.

    In a new session requests pass, too.
    """
    rng = random.Random(count)
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    config = {"pull_socket_address": pull, "pub_socket_address": pub, "max_message_size": MAX_MESSAGE}
    with zmq.Context() as context:
        with closing(StandIn(context, pull, pub)) as stand_in:
            actor.open("DedicatedZmqChannelLayer", config)
            with stand_in.serving():
                channel = actor.call(0, "new_channel")
                actor.call(0, "group_add", "room", channel)
                actor.call(0, "send", "jobs", {})  # is answered once the layer is connected both ways
                readers = [actor.begin(0, "receive", channel), actor.begin(1, "receive", "jobs")]
            before = psutil.Process().memory_info().rss
            begun = time.monotonic()
            for strike in range(STRIKES):
                whole = well_formed(stand_in.client, stand_in.session)
                down = [frame for frame in whole if frame[:1] in (b"G", b"P")]
                frames = mutated(rng, whole + 3 * down, flushing=strike % 2 == 0)
                for _ in range(count // (STRIKES * BATCH)):
                    for frame in itertools.islice(frames, BATCH):
                        stand_in.publish(frame)
                    stand_in.await_client()
            seconds = time.monotonic() - begun
            for reader in readers:
                actor.finish(reader, cancel=True)
            with stand_in.serving():
                messages_pass(actor, 0)
        with closing(StandIn(context, pull, pub)) as stand_in:
            stand_in.serve_until(lambda: stand_in.session and actor.stats()["connected"])
            with stand_in.serving():
                messages_pass(actor, 1)
                actor.call(0, "send", "jobs", {"n": 3})
        stats = actor.stats()
        figures = {
            "frames per second": round(count / seconds),
            "malformed": stats["dropped"]["malformed"],
            "channels": stats["channels"],
            "MB grown": processes_are_well(actor, before),
        }
        record_property("figures", figures)
        print(figures)
    assert stats["dropped"]["malformed"] > count // 10


@pytest.mark.parametrize("count", COUNTS)
def test_peers_that_send_broken_frames_up_harm_no_embedded_producer(
    count: int, actor: Actor, record_property: Callable[[str, object], None]
) -> None:
    """Peers that send broken frames to an embedded producer end no reader, and it still serves all processes."""
    rng = random.Random(count)
    (port,) = free_ports(1)
    pub = f"tcp://127.0.0.1:{port}"
    actor.open("EmbeddedZmqChannelLayer", {"pub_socket_address": pub, "max_message_size": MAX_MESSAGE})
    actor.call(0, "group_send", "nobody", {})  # makes it the producer
    channel = actor.call(0, "new_channel")
    actor.call(0, "group_add", "room", channel)
    readers = [actor.begin(0, "receive", channel), actor.begin(1, "receive", "jobs")]
    inbox = channel.partition("!")[0].rpartition(".")[2].encode()
    with zmq.Context() as context:
        before = psutil.Process().memory_info().rss
        begun = time.monotonic()
        for strike in range(STRIKES):
            with Peer(context, None, pub) as peer:
                whole = well_formed(peer.inbox) + [frame for frame in well_formed(inbox) if frame[:1] == b"P"]
                frames = mutated(rng, whole, flushing=strike % 2 == 0)
                for _ in range(count // (STRIKES * BATCH)):
                    for frame in itertools.islice(frames, BATCH):
                        peer.say(frame)
                    # The peer's own frames may have disconnected it.
                    peer.say(b"\1" + wire.inbox_topic(peer.inbox))
                    peer.sync()
            oversized(context, zmq.XSUB, pub, MAX_MESSAGE)
            no_zeromq([port], rng)
        seconds = time.monotonic() - begun
        for reader in readers:
            actor.finish(reader, cancel=True)
        messages_pass(actor, 0)
        with Peer(context, None, pub) as peer:
            peer.say(b"\1" + wire.group_topic("fresh"))
            peer.sync()
            actor.call(1, "group_send", "fresh", {"n": 3})
            assert peer.xsub.recv().startswith(wire.group_topic("fresh"))
        actor.call(0, "send", "fresh-jobs", {"n": 4})
        assert actor.call(1, "receive", "fresh-jobs") == {"n": 4}
        figures = {
            "frames per second": round(count / seconds),
            "dropped": actor.stats()["dropped"],
            "channels": actor.stats()["channels"],
            "MB grown": processes_are_well(actor, before),
        }
        record_property("figures", figures)
        print(figures)
