"""The findings of a probe at real forwarders, embedded producers, and other programs."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from forwarders import Forwarder, close_all, free_ports, port_of, until
from relays import Relay, relay_to

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer
from channels_zmq.tools.layers import Layer
from channels_zmq.tools.probe import Finding, probe
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.curve import new_pair

pytestmark = pytest.mark.slow

SERVER, CLIENT, STRANGER = (tuple(key.decode() for key in new_pair()) for _ in range(3))


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close_all()


def found(layer: Layer, timeout: float = 5.0, **options: Any) -> Finding:
    """Return the finding of a probe at the only exchange of a layer."""
    (finding,) = probe(layer, timeout, **options)
    return finding


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Forwarder]:
    """Start a forwarder to which only CLIENT may connect."""
    pull, pub = free_ports(2)
    flags = (f"--curve-secret-key={SERVER[1]}", f"--curve-allowed-keys={CLIENT[0]}")
    own = Forwarder(f"tcp://127.0.0.1:{pull}", f"tcp://127.0.0.1:{pub}", flags=flags)
    own.start()
    yield own
    own.end()


def test_a_forwarder_that_serves_is_described(forwarder: Forwarder) -> None:
    """A probe reports a forwarder's state, version, instance and clients, and how long an answer takes."""
    finding = found(DedicatedZmqChannelLayer(**forwarder.config), sends_largest=True)
    assert (finding.problem, finding.state, finding.version) == ("", "serving", wire.VERSION)
    assert finding.instance == forwarder.status()["instance"]
    assert (finding.clients, finding.has_keys) == (0, False)
    assert 0 < finding.round_trip < 5


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"curve_server_key": SERVER[0], "curve_secret_key": CLIENT[1]}, ""),
        ({"curve_server_key": SERVER[0], "curve_secret_key": STRANGER[1]}, "is not allowed"),
        ({"curve_server_key": STRANGER[0], "curve_secret_key": CLIENT[1]}, "another server"),
        ({}, "only one side has CURVE keys"),
    ],
)
def test_keys_are_accepted_or_refused_for_a_reason(guarded: Forwarder, keys: Any, part: str) -> None:
    """A probe reports accepted keys, or at once a lasting problem with the reason of the refusal."""
    begun = time.monotonic()
    finding = found(DedicatedZmqChannelLayer(**guarded.config, **keys), 20.0)
    assert time.monotonic() - begun < 10
    assert part in finding.problem
    assert (finding.is_lasting, bool(finding.advice), finding.has_keys) == (bool(part), bool(part), bool(keys))


async def test_a_probe_leaves_nothing_behind(forwarder: Forwarder) -> None:
    """A probe takes no message, and the forwarder no longer counts it afterwards."""
    async with DedicatedZmqChannelLayer(**forwarder.config) as layer:
        await layer.send("jobs", {"type": "job"})
        assert found(layer, sends_largest=True).clients == 1
        await until(lambda: forwarder.status()["clients"] == 1)
        assert forwarder.status()["waiting"] == 1
        assert await layer.receive("jobs") == {"type": "job"}


async def test_a_flush_does_not_wait_for_a_probe(forwarder: Forwarder) -> None:
    """A flush succeeds beside a probe, which answers it as every client has to."""
    async with DedicatedZmqChannelLayer(**forwarder.config) as layer:
        await layer.group_add("room", await layer.new_channel())
        stop = threading.Event()

        def probe_again() -> None:
            while not stop.is_set():
                assert not found(layer).problem

        thread = threading.Thread(target=probe_again)
        thread.start()
        try:
            for _ in range(5):
                await layer.flush()
        finally:
            stop.set()
            thread.join()


def test_a_message_that_does_not_fit_is_found(forwarder: Forwarder) -> None:
    """A probe reports that the forwarder does not accept the largest message of the layer.

    It would cut the connection of the first process that sends one.
    """
    layer = DedicatedZmqChannelLayer(**forwarder.config, max_message_size=3 * 2**20)
    finding = found(layer, 20.0, sends_largest=True)
    assert "3145728 bytes (max_message_size) is not accepted" in finding.problem
    assert "--max-message-size" in finding.advice


def answering(frames: Callable[[wire.Hello], list[bytes]]) -> "tuple[str, Callable[[], None]]":
    """Bind an XPUB that answers each hello with frames, and return its address and a function that ends it."""
    context, stop = zmq.Context(), threading.Event()
    xpub = context.socket(zmq.XPUB)
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    xpub.bind(address)

    def serve() -> None:
        while not stop.is_set():
            if xpub.poll(20) and (frame := xpub.recv()).startswith(wire.HELLO_BYTE):
                for answer in frames(wire.HELLO.decode(frame)):
                    xpub.send(answer)
        xpub.close(linger=0)

    thread = threading.Thread(target=serve)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()
        context.term()

    return address, end


@pytest.mark.parametrize("answer", [b"w?", b"w"])
def test_an_invalid_frame_as_the_answer_is_a_problem(answer: bytes) -> None:
    """An invalid frame as the answer is a problem, because another program may publish at that address."""
    address, end = answering(lambda hello: [wire.inbox_topic(hello.inbox) + part for part in (b"", answer)])
    try:
        layer = DedicatedZmqChannelLayer(pull_socket_address="tcp://127.0.0.1:9", pub_socket_address=address)
        finding = found(layer, 20.0)
    finally:
        end()
    assert "answers with an invalid frame" in finding.problem
    assert finding.advice


def test_a_probe_whose_connection_was_cut_claims_its_inbox_again(forwarder: Forwarder) -> None:
    """A probe whose connection was cut claims its inbox again, as the forwarder would not answer it otherwise."""
    relay: Relay

    def cut(hello: wire.Hello) -> list[bytes]:
        relay.target = port_of(forwarder.pub)
        relay.cut()
        return []

    address, end = answering(cut)
    try:
        with relay_to(address) as relay:
            finding = found(DedicatedZmqChannelLayer(**forwarder.config | {"pub_socket_address": relay.address}), 20.0)
    finally:
        end()
    assert (finding.problem, finding.state) == ("", "serving")


def test_what_a_probe_has_not_foreseen_is_no_success(forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen error of a probe is raised to its caller, although it occurs in a thread of its own."""

    def fail(self: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("channels_zmq.tools.probe._Probe._reach", fail)
    with pytest.raises(RuntimeError, match="unforeseen"):
        probe(DedicatedZmqChannelLayer(**forwarder.config), 1.0)


@pytest.mark.parametrize(
    ("version", "state", "part", "is_lasting"),
    [
        (wire.VERSION + 1, wire.State.SERVING, f"uses version {wire.VERSION + 1} of the wire format", True),
        (wire.VERSION, wire.State.SETTLING, "is settling and accepts no messages", False),
        (wire.VERSION, wire.State.DRAINING, "is draining and accepts no messages", False),
    ],
)
def test_what_a_welcome_says_is_understood(version: int, state: wire.State, part: str, is_lasting: bool) -> None:
    """A welcome with a foreign version is a lasting problem, and a state that accepts no messages a passing one."""

    def welcome(hello: wire.Hello) -> list[bytes]:
        return [wire.WELCOME.encode(wire.Welcome(hello.inbox, version, state, bytes(8), hello.session, 1))]

    address, end = answering(welcome)
    try:
        layer = DedicatedZmqChannelLayer(pull_socket_address="tcp://127.0.0.1:9", pub_socket_address=address)
        finding = found(layer, 2.0)
    finally:
        end()
    assert part in finding.problem
    assert (finding.is_lasting, finding.version) == (is_lasting, version)


def test_addresses_of_two_forwarders_are_told_apart(forwarder: Forwarder) -> None:
    """A probe reports addresses of two different forwarders, as a load balancer in front of several gives them.

    Messages would be held until one of two connections is lost.
    """
    pull, pub = free_ports(2)
    other = Forwarder(f"tcp://127.0.0.1:{pull}", f"tcp://127.0.0.1:{pub}")
    other.start()
    try:
        finding = found(DedicatedZmqChannelLayer(pull_socket_address=other.pull, pub_socket_address=forwarder.pub), 2.0)
    finally:
        other.end()
    assert f"frames to {other.pull} are not answered" in finding.problem
    assert "load balancer" in finding.advice


@pytest.mark.parametrize(
    ("pull", "pub", "part"),
    [
        ("tcp://127.0.0.1:9", "{pub}", "nothing accepts connections at tcp://127.0.0.1:9"),
        ("{pull}", "tcp://127.0.0.1:9", "nothing accepts connections at tcp://127.0.0.1:9"),
        ("ipc:///nowhere/pull", "ipc:///nowhere/pub", "nothing accepts connections at ipc:///nowhere/pub"),
        ("{pull}", "{silent}", "does not use ZeroMQ"),
        ("{silent}", "{pub}", "does not use ZeroMQ"),
        ("tcp://name.invalid:1", "tcp://name.invalid:2", "cannot resolve name.invalid"),
    ],
)
def test_an_address_that_does_not_answer_is_named(forwarder: Forwarder, pull: str, pub: str, part: str) -> None:
    """A probe reports an address that does not answer with the reason, as a problem that may pass."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        known = {"pull": forwarder.pull, "pub": forwarder.pub, "silent": silent}
        config = {"pull_socket_address": pull.format(**known), "pub_socket_address": pub.format(**known)}
        finding = found(DedicatedZmqChannelLayer(**config), 2.0)
    assert part in finding.problem
    assert (finding.is_lasting, bool(finding.advice)) == (False, True)


@pytest.mark.parametrize("address", ["ipc://{folder}/pub", "tcp://127.0.0.1:{port}", "tcp://*:{port}"])
async def test_the_producer_of_an_embedded_layer_is_reached(tmp_path: Path, address: str) -> None:
    """A probe reaches the producer of an embedded layer once there is one, and does not become it.

    No socket can connect to an address that binds all interfaces, and the probe reaches its producer all the same.
    """
    layer = EmbeddedZmqChannelLayer(pub_socket_address=address.format(folder=tmp_path, port=free_ports(1)[0]))
    assert not found(layer, 0.3).listens
    async with layer:
        await layer.group_send("room", {"type": "a"})
        finding = found(layer)
    assert (finding.problem, finding.state, finding.version) == ("", "serving", wire.VERSION)


def test_every_address_of_a_name_is_probed(forwarder: Forwarder) -> None:
    """A probe resolves names as a layer does, so that localhost is one forwarder here."""
    config = {key: value.replace("127.0.0.1", "localhost") for key, value in forwarder.config.items()}
    finding = found(DedicatedZmqChannelLayer(**config))
    assert (finding.problem, finding.pull) == ("", forwarder.pull)


def test_a_name_that_nobody_knows_is_a_problem_of_an_embedded_layer_too() -> None:
    """A name that cannot be resolved is a problem of an embedded layer, too, though that needs no listener."""
    (finding,) = probe(EmbeddedZmqChannelLayer(pub_socket_address="tcp://name.invalid:1"), 5.0)
    assert not finding.is_resolved
    assert "cannot resolve name.invalid" in finding.problem
    assert finding.advice == "Correct pub_socket_address or the name service."
