"""The pump, which moves frames between sockets and the exchange."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import zmq
from open_sockets import Sockets
from strangers import opening

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.connections import TcpSockets
from channels_zmq_forwarder.exchange import COPIES_A_STEP, Exchange
from channels_zmq_forwarder.history import BLOCK_BYTES, SEPARATOR
from channels_zmq_forwarder.pump import BYTES_A_TURN, FRAMES_A_TURN, LOOKS, SECONDS_A_TURN, Pump
from channels_zmq_forwarder.sockets import AddressError, Marks
from channels_zmq_forwarder.wire import State

SECRET = b"a" * 16
A = wire.claimable(SECRET)
WAIT = 5_000


class Rig:
    """A pump whose turns a test runs, with a producer and a subscriber."""

    def __init__(self, sockets: Sockets[zmq.Socket[bytes]], address: str, **options: Any) -> None:
        self.exchange = Exchange(b"instance", history_bytes=2**20)
        self.exchange.enter(State.SERVING)
        self.pump = Pump(sockets.context, self.exchange, Marks(), **options)
        (self.pub,) = self.pump.bind_publisher([address.format("pub")])
        (self.pull,) = self.pump.bind_pull([address.format("pull")])
        self.push, self.xsub = sockets.open(zmq.PUSH), sockets.open(zmq.XSUB, self.pub)
        self.push.set(zmq.SNDHWM, 0)
        self.push.connect(self.pull)

    def turn_until(self, condition: Callable[[], object]) -> None:
        """Run turns until a condition holds; libzmq delivers in its own threads."""
        for _ in range(WAIT // 5):
            self.pump.turn()
            if condition():
                return
            self.push.poll(5, zmq.POLLIN)
        raise AssertionError("it did not happen")

    def connect(self) -> None:
        for frame in opening(SECRET):
            self.xsub.send(frame)
        self.xsub.send(wire.HELLO.encode(wire.Hello(A, wire.VERSION, 1, 0)))
        self.xsub.send(wire.BATCHING.encode(wire.Batching(A, 1)))
        self.turn_until(lambda: A in self.exchange.clients)
        assert wire.WELCOME.decode(self.receive()).session == 1
        assert wire.BATCHING_ACCEPTED.decode(self.receive()).session == 1

    def add(self, *channels: bytes) -> None:
        """Add normal channels to a group."""
        for channel in channels:
            self.xsub.send(wire.MEMBER.encode(wire.Member(A, 0, 1, 0, 0, 10, b"room", channel)))
        self.xsub.send(wire.MEMBER.encode(wire.Member(A, 1, 1, 0, 0, 10, b"room", channels[-1])))
        self.turn_until(lambda: self.xsub.poll(0))
        assert wire.CONFIRM.decode(self.xsub.recv()).n == 1

    def receive(self) -> bytes:
        self.turn_until(lambda: self.xsub.poll(0))
        return self.xsub.recv()


@pytest.fixture(params=["inproc://{}", "tcp://127.0.0.1:*"])
def rig(request: pytest.FixtureRequest, sockets: Sockets[zmq.Socket[bytes]]) -> Iterator[Rig]:
    rig = Rig(sockets, request.param)
    yield rig
    rig.pump.close()


def frame(payload: bytes, group: str = "room", ttl: int = 0) -> bytes:
    return wire.ordered(wire.group_topic(group), b"sender..", 1, 0, ttl, payload)


def test_a_group_message_passes(rig: Rig) -> None:
    """Subscribers of a group receive its messages unchanged, and none of a group whose name is longer."""
    rig.connect()
    rig.xsub.send(wire.subscription(wire.group_topic("room")))
    rig.turn_until(rig.exchange.groups)
    rig.push.send(frame(b"to others", group="room2"))
    rig.push.send(frame(b"hi"))
    assert rig.receive() == frame(b"hi")


def test_a_batch_passes_as_it_is(rig: Rig) -> None:
    """A batch is relayed unchanged if every client can read it."""
    rig.connect()
    rig.xsub.send(wire.subscription(wire.group_topic("room")))
    rig.turn_until(rig.exchange.groups)
    batch = wire.ordered(wire.group_topic("room"), b"sender..", 1, wire.FLAG_BATCH, 0, wire.batch([b"hi", b"there"]))
    rig.push.send(batch)
    assert rig.receive() == batch


def test_a_batch_is_taken_apart_for_normal_members(rig: Rig) -> None:
    """Each message of a batch is copied to normal members, and producers wait until all copies are made."""
    rig.connect()
    rig.add(*(b"%d" % number for number in range(2 * COPIES_A_STEP)))
    bodies = [b"first", b"second", b"third"]
    rig.push.send(wire.ordered(wire.group_topic("room"), b"sender..", 1, wire.FLAG_BATCH, 60_000, wire.batch(bodies)))
    rig.turn_until(lambda: rig.exchange.is_unfinished)
    assert rig.exchange.queues.depth() == COPIES_A_STEP
    rig.turn_until(lambda: rig.exchange.queues.depth() == 6 * COPIES_A_STEP)
    assert not rig.exchange.is_unfinished
    for queue in rig.exchange.queues.by_channel.values():
        assert [entry.payload for entry in queue.waiting.values()] == bodies


def test_a_request_is_answered(rig: Rig) -> None:
    """The answer to a request is published to the inbox of its client."""
    rig.connect()
    rig.push.send(wire.ECHO.encode(wire.Echo(A, 4)))
    assert wire.CONFIRM.decode(rig.receive()).n == 4


def test_a_group_with_a_normal_member_reaches_its_queue(rig: Rig) -> None:
    """Group messages pass through `inbound` from the frame on that adds the first normal member."""
    rig.connect()
    rig.push.send(frame(b"before"))
    rig.turn_until(lambda: rig.pump.traffic.frames_in)
    rig.add(b"jobs")
    rig.push.send(frame(b"after"))
    rig.turn_until(rig.exchange.queues.depth)
    assert [entry.payload for entry in rig.exchange.queues.by_channel[b"jobs"].waiting.values()] == [b"after"]


def test_traffic_is_counted(rig: Rig) -> None:
    """The pump counts frames and bytes in both directions."""
    rig.connect()
    out = rig.pump.traffic.frames_out, rig.pump.traffic.bytes_out
    echo = wire.ECHO.encode(wire.Echo(A, 4))
    for each in (frame(b"hi"), b"?", echo):
        rig.push.send(each)
    answer = rig.receive()
    traffic = rig.pump.traffic
    assert (traffic.frames_in, traffic.bytes_in) == (3, len(frame(b"hi")) + 1 + len(echo))
    assert (traffic.frames_out - out[0], traffic.bytes_out - out[1]) == (2, len(frame(b"hi")) + len(answer))


def test_what_is_kept_for_replays_is_known_in_bytes_after_each_block(rig: Rig) -> None:
    """The bytes of the history are known after each block without a beat, which may be late under load.

    So the bound of its memory holds.
    """
    messages = [frame(bytes(BLOCK_BYTES // 4)) for _ in range(4)]
    for message in messages:
        rig.push.send(message)
    rig.turn_until(lambda: rig.pump.traffic.frames_in == len(messages))
    assert rig.exchange.history.size >= BLOCK_BYTES
    rig.push.send(frame(b"of the next block"))
    rig.turn_until(lambda: rig.pump.traffic.frames_in > len(messages))
    assert rig.exchange.history.size == sum(len(message) + len(SEPARATOR) for message in messages) - len(SEPARATOR)


def test_every_part_of_a_multipart_message_is_a_frame(rig: Rig) -> None:
    """Each part of a multipart message counts as a frame; our messages have one part, and others do no harm."""
    rig.connect()
    rig.push.send_multipart([b"?", b"", wire.ECHO.encode(wire.Echo(A, 4))])
    assert wire.CONFIRM.decode(rig.receive()).n == 4
    assert rig.exchange.drops == {"malformed": 2}


def test_a_turn_takes_a_bounded_number_of_frames(sockets: Sockets[zmq.Socket[bytes]]) -> None:
    """A turn takes a bounded number of frames, however fast, so that health checks and subscriptions are served."""
    rig = Rig(sockets, "inproc://{}", clock=lambda: 0.0)
    for _ in range(FRAMES_A_TURN + 1):
        rig.push.send(frame(b""))
    assert rig.pump.turn()
    assert rig.pump.traffic.frames_in == FRAMES_A_TURN
    rig.turn_until(lambda: rig.pump.traffic.frames_in == FRAMES_A_TURN + 1)
    assert not rig.pump.turn()
    for _ in range(FRAMES_A_TURN + 1):
        rig.xsub.send(b"?")
    assert rig.pump.turn()
    rig.turn_until(lambda: rig.exchange.drops["malformed"] == FRAMES_A_TURN + 1)
    rig.pump.close()


def test_a_large_frame_ends_a_turn(sockets: Sockets[zmq.Socket[bytes]]) -> None:
    """A large frame ends a turn, so that other producers are served between two large messages of one."""
    rig = Rig(sockets, "inproc://{}", clock=lambda: 0.0)  # otherwise a busy machine may end a turn by its time
    for _ in range(3):
        rig.push.send(frame(bytes(BYTES_A_TURN)))
        rig.push.send(frame(b""))
    for taken in (1, 3, 5):
        assert rig.pump.turn()
        assert rig.pump.traffic.frames_in == taken
    rig.exchange.refuse_above(0)  # the same for frames that are not relayed unchanged
    rig.push.send(frame(bytes(BYTES_A_TURN)))
    rig.push.send(frame(b""))
    assert rig.pump.turn()
    assert rig.pump.traffic.frames_in == 7
    rig.pump.close()


def test_a_turn_ends_when_its_time_is_over(sockets: Sockets[zmq.Socket[bytes]]) -> None:
    """A turn ends when its time is over: each direction has half of it, and ends with the frame that exceeds it."""
    now = [0.0]
    rig = Rig(sockets, "inproc://{}", clock=lambda: now[0])
    taken = []

    def slow(frame: bytes) -> tuple[Any, ...]:
        taken.append(frame)
        now[0] += SECONDS_A_TURN / 4
        return ()

    rig.exchange.relays_unchanged = False
    rig.exchange.inbound = rig.exchange.upstream = slow
    for _ in range(10):
        rig.push.send(b"down")
        rig.xsub.send(b"up")
    assert rig.pump.turn()
    assert taken == [b"down"] * 3 + [b"up"] * 3
    rig.pump.close()


def test_a_turn_of_relayed_frames_ends_when_its_time_is_over(sockets: Sockets[zmq.Socket[bytes]]) -> None:
    """A turn of relayed frames ends when the clock is next read after its time is over.

    The clock is read once in many frames, because reading it for each would cost too much.
    """
    ticks = count(step=SECONDS_A_TURN / 4)
    rig = Rig(sockets, "inproc://{}", clock=lambda: next(ticks))
    for _ in range(2 * LOOKS[2][-1]):
        rig.push.send(frame(b""))
    assert rig.pump.turn()
    assert rig.pump.traffic.frames_out == LOOKS[2][-1] == 64
    rig.pump.close()


@pytest.mark.parametrize("is_of_producers", [True, False])
def test_a_backlog_is_one_that_no_turn_has_emptied(sockets: Sockets[zmq.Socket[bytes]], is_of_producers: bool) -> None:
    """A socket is behind if no turn since the last call has emptied it."""
    rig = Rig(sockets, "inproc://{}", clock=lambda: 0.0)
    socket = rig.push if is_of_producers else rig.xsub
    for _ in range(2 * FRAMES_A_TURN + 1):
        socket.send(b"?")
    backlogs = []
    for _ in range(3):
        rig.pump.turn()
        backlogs.append(rig.pump.was_behind())
    of_one = (is_of_producers, not is_of_producers)
    assert backlogs == [of_one, of_one, (False, False)]
    rig.pump.close()


def test_a_turn_without_input_is_not_followed_by_another(rig: Rig) -> None:
    """A turn without input needs no other; it checks both sockets, as their descriptors are edge-triggered."""
    assert not rig.pump.turn()
    assert all(descriptor >= 0 for descriptor in rig.pump.descriptors())


def test_an_ipc_address_is_bound_only_once(sockets: Sockets[zmq.Socket[bytes]], tmp_path: Path) -> None:
    """An ipc address that another pump has bound is refused, since ZeroMQ would let it be stolen silently."""
    address = f"ipc://{tmp_path}/pub"
    one, other = (Pump(sockets.context, Exchange(b"instance"), Marks()) for _ in range(2))
    one.bind_publisher([address])
    with pytest.raises(AddressError, match="another process uses it"):
        other.bind_publisher([address])
    one.close()
    assert other.bind_publisher([address]) == [address]
    other.close()


def test_producers_wait_while_copies_for_many_members_are_made(rig: Rig) -> None:
    """Producers wait while copies for many members are made, and each queue keeps the order of messages.

    Subscribers and health checks do not wait.
    """
    rig.connect()
    rig.add(*(b"%d" % number for number in range(2 * COPIES_A_STEP)))
    for number, payload in ((1, b"first"), (2, b"second")):
        rig.push.send(wire.ordered(wire.group_topic("room"), b"sender..", number, 0, 60_000, payload))
    rig.turn_until(lambda: rig.exchange.is_unfinished)
    assert rig.exchange.queues.depth() == COPIES_A_STEP
    rig.turn_until(lambda: rig.exchange.queues.depth() == 4 * COPIES_A_STEP)
    assert not rig.exchange.is_unfinished
    for queue in rig.exchange.queues.by_channel.values():
        assert [entry.payload for entry in queue.waiting.values()] == [b"first", b"second"]


FLOOD = """
import sys, threading, time
from strangers import RawPeer, on_the_wire
peers = [RawPeer(int(sys.argv[1])) for _ in range(4)]
peers[0].send(b"?")
input()
end, frames = time.monotonic() + 10, on_the_wire(b"?" * 1000) * 500
def flood(peer):
    while time.monotonic() < end:
        peer.socket.sendall(frames)
for peer in peers:
    threading.Thread(target=flood, args=[peer]).start()
"""


def test_other_threads_run_while_a_peer_floods_the_publisher(
    sockets: Sockets[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads run while libzmq takes in a flood, so that the thread that ends floods can act.

    Libzmq takes in all frames at once, whichever function is called.
    """
    rig = Rig(sockets, "tcp://127.0.0.1:*", clock=lambda: 0.0)
    port = int(rig.pub.rpartition(":")[2])
    environment = {"PYTHONPATH": str(Path(opening.__code__.co_filename).parent)}
    flood = subprocess.Popen([sys.executable, "-c", FLOOD, str(port)], stdin=subprocess.PIPE, env=environment)
    recv, stdin, has_begun = rig.pump.subscribers.recv, flood.stdin, threading.Event()
    assert stdin is not None

    def end() -> None:
        has_begun.wait()
        flood.terminate()

    threading.Thread(target=end, daemon=True).start()

    def begin_behind_the_first_frame(flags: int) -> bytes | None:
        frame = recv(flags)
        if not has_begun.is_set():
            stdin.write(b"\n")
            stdin.close()
            while sum(TcpSockets({port}).received().values()) < 2**26:
                assert flood.poll() is None
            has_begun.set()
        return frame

    monkeypatch.setattr(rig.pump.subscribers, "recv", begin_behind_the_first_frame)
    rig.turn_until(has_begun.is_set)
    assert flood.wait(20) == -signal.SIGTERM
    rig.pump.close()


def test_a_client_whose_connection_was_cut_gets_what_it_has_missed(rig: Rig) -> None:
    """A client whose connection was cut receives the messages that it missed.

    They may have been relayed unchanged or passed through the exchange.
    """
    rig.push.send(frame(b"forwarded", ttl=60_000))
    rig.turn_until(lambda: rig.pump.traffic.frames_in == 1)
    assert rig.exchange.relays_unchanged
    rig.connect()
    rig.add(b"jobs")
    rig.push.send(frame(b"looked at", ttl=60_000))
    rig.turn_until(lambda: rig.pump.traffic.frames_in == 2)
    hashes = wire.encode_hashes([wire.group_topic("room")])
    rig.xsub.send(wire.RESUME.encode(wire.Resume(A, 1, 60_000, 0, hashes)))
    replayed = wire.REPLAYED.decode(rig.receive())
    payloads = [wire.read_group(message)[5] for message in wire.decode_messages(replayed.messages)]
    assert (payloads, replayed.last) == ([b"forwarded", b"looked at"], 1)
    rig.turn_until(lambda: not rig.exchange.replays.is_due)
