"""CURVE on real sockets, in both topologies: only clients with the right keys are served."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from forwarders import Forwarder, close_all, free_ports, until

from channels_zmq import channel_layers_from_env, serializers
from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer
from channels_zmq.errors import ConfigurationError, ForwarderUnavailable
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.curve import new_pair, secure_client


class Keys:
    """The key pairs of a server and two clients, as files; both clients are allowed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pairs = {name: [key.decode() for key in new_pair()] for name in ("server", "one", "two", "stranger")}
        for name, (public, secret) in self.pairs.items():
            (folder / f"{name}.public").write_text(f"{public}\n", encoding="ascii")
            (folder / f"{name}.secret").write_text(f"{secret}\n", encoding="ascii")
        self.allow("one", "two")

    def public(self, name: str) -> str:
        return self.pairs[name][0]

    def secret(self, name: str) -> str:
        return self.pairs[name][1]

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def allow(self, *names: str) -> None:
        """Replace the file of allowed keys in one step, as a mounted volume does."""
        fresh = self.folder / "allowed.new"
        lines = ["# who may connect", "", *(self.public(name) for name in names)]
        fresh.write_text("\n".join(lines) + "\n", encoding="ascii")
        fresh.replace(self.folder / "allowed")

    def client(self, name: str) -> dict[str, Any]:
        return {"curve_server_key": self.public("server"), "curve_secret_key": self.secret(name)}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
def guarded(keys: Keys, tmp_path: Path) -> Iterator[Forwarder]:
    """Start a forwarder with CURVE and a file of allowed keys."""
    pull, pub = free_ports(2)
    own = Forwarder(
        f"tcp://127.0.0.1:{pull}",
        f"tcp://127.0.0.1:{pub}",
        flags=(
            f"--curve-secret-key-file={keys.file('server.secret')}",
            f"--curve-allowed-keys-file={keys.file('allowed')}",
        ),
        log=tmp_path / "forwarder.log",
    )
    own.start()
    yield own
    own.end()


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close_all()


async def passes(layer: Any, text: str = "hello") -> None:
    """Check that a message passes through a group, and another one through a normal channel."""
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    await layer.group_send("chat", {"text": text})
    assert (await layer.receive(channel))["text"] == text
    await layer.send("jobs", {"text": text})
    assert (await layer.receive("jobs"))["text"] == text
    await layer.group_discard("chat", channel)


def test_a_forwarder_serves_who_has_an_allowed_key(run: Any, guarded: Forwarder, keys: Keys) -> None:
    """A forwarder serves each client that has an allowed key, given by value or by file."""
    by_file = {"curve_server_key_file": keys.file("server.public"), "curve_secret_key_file": keys.file("two.secret")}

    async def scenario() -> None:
        await passes(DedicatedZmqChannelLayer(**guarded.config, **keys.client("one")))
        await passes(DedicatedZmqChannelLayer(**guarded.config, **by_file))

    run(scenario())


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("stranger", "is not allowed"),
        ("wrong server", "another server"),
        ("no keys", "only one side has CURVE keys"),
    ],
)
def test_who_has_not_gets_nothing_and_is_logged(
    run: Any, guarded: Forwarder, keys: Keys, who: str, reason: str
) -> None:
    """A client without an allowed key gets no connection, and an error with the reason, as far as CURVE reveals it.

    The log has its address, at a limited rate and without a key.
    """
    given = {
        "stranger": keys.client("stranger"),
        "wrong server": {**keys.client("one"), "curve_server_key": keys.public("stranger")},
        "no keys": {},
    }[who]

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**guarded.config, **given, connect_timeout=2)
        with pytest.raises(ForwarderUnavailable) as caught:
            await layer.group_add("chat", await layer.new_channel())
        assert reason in str(caught.value)
        assert not layer.stats()["connected"]
        # It tries once a second; sometimes the address is gone before the forwarder can query it.
        await until(lambda: "127.0.0.1 was refused" in guarded.log_text())

    run(scenario())
    log = guarded.log_text()
    assert log.count("127.0.0.1 was refused") <= 2
    for name in keys.pairs:
        assert keys.secret(name) not in log
        assert keys.public(name) not in log
    assert "refused_handshakes_total 0.0" not in guarded.metrics()


def test_a_key_that_is_added_works_at_once_and_a_revoked_one_no_more(run: Any, guarded: Forwarder, keys: Keys) -> None:
    """An added key works at once, and a revoked one no longer, also if its client is connected; others lose nothing."""

    async def scenario() -> None:
        one = DedicatedZmqChannelLayer(**guarded.config, **keys.client("one"))
        channel = await one.new_channel()
        await one.group_add("chat", channel)
        two = DedicatedZmqChannelLayer(**guarded.config, **keys.client("two"), connect_timeout=4)
        revoked = await two.new_channel()
        await two.group_add("chat", revoked)
        keys.allow("one", "stranger")
        new = DedicatedZmqChannelLayer(**guarded.config, **keys.client("stranger"))
        await passes(new)
        await until(lambda: not two.stats()["connected"])
        await until(lambda: one.stats()["connected"])
        await one.group_send("chat", {"n": 1})
        assert (await one.receive(channel))["text"] == "hello"
        assert (await one.receive(channel))["n"] == 1
        with pytest.raises(ForwarderUnavailable):
            await two.send("jobs", {"n": 2})
        assert not two.stats()["waiting"]

    run(scenario())


def test_a_revoked_key_neither_reads_nor_writes_whatever_it_did_before(
    run: Any, guarded: Forwarder, keys: Keys
) -> None:
    """A revoked key neither reads nor writes, also by raw sockets that subscribed to groups and sent no hello.

    Other clients are not affected.
    """

    async def scenario(reader: Any, writer: Any) -> None:
        one = DedicatedZmqChannelLayer(**guarded.config, **keys.client("one"))
        channel = await one.new_channel()
        await one.group_add("chat", channel)
        reader.send(b"\1Gchat\0")
        while not reader.poll(0):
            await one.group_send("chat", {})
            await one.receive(channel)
        writer.send(enqueue("before"))
        assert (await one.receive("jobs"))["text"] == "before"
        keys.allow("one")
        await until(lambda: "1 connections with revoked keys" in guarded.log_text())
        while reader.poll(0):  # messages from before the end
            reader.recv()
        writer.send(enqueue("injected"))
        await until(lambda: 'drops_total{cause="revoked_key"} 1.0' in guarded.metrics())
        for number in range(20):
            await one.group_send("chat", {"n": number})
        assert [(await one.receive(channel))["n"] for _ in range(20)] == list(range(20))
        assert not reader.poll(0)
        await one.send("jobs", {"text": "after"})
        assert (await one.receive("jobs"))["text"] == "after"
        stats = one.stats()
        assert (stats["reconnects"], stats["dropped"], stats["repeated"]) == (0, {}, 0)

    with zmq.Context() as context, context.socket(zmq.XSUB) as reader, context.socket(zmq.PUSH) as writer:
        for socket, address in ((reader, guarded.pub), (writer, guarded.pull)):
            socket.set(zmq.LINGER, 0)
            secure_client(socket, keys.public("server").encode(), keys.secret("two").encode())
            socket.connect(address)
        run(scenario(reader, writer))


def enqueue(text: str) -> bytes:
    """Return the frame that sends a job."""
    payload = serializers.pack(serializers.named("msgpack"), {"text": text})
    return wire.ENQUEUE.encode(wire.Enqueue(b"0123456789abcdef", 1, 60_000, 100, b"jobs", payload))


def test_removing_a_key_that_nobody_uses_disturbs_nobody(run: Any, guarded: Forwarder, keys: Keys) -> None:
    """Removing an unused key, the last step of a rotation, neither cuts a connection nor loses a message."""

    async def scenario() -> None:
        one = DedicatedZmqChannelLayer(**guarded.config, **keys.client("one"))
        channel = await one.new_channel()
        await one.group_add("chat", channel)
        two = DedicatedZmqChannelLayer(**guarded.config, **keys.client("two"))
        await passes(two)
        assert (await one.receive(channel))["text"] == "hello"
        await two.close()
        await until(lambda: "clients 1.0" in guarded.metrics())
        keys.allow("one")
        await until(lambda: "1 revoked" in guarded.log_text())
        await one.group_send("chat", {"n": 1})
        assert (await one.receive(channel))["n"] == 1
        stats = one.stats()
        assert (stats["reconnects"], stats["dropped"]) == (0, {})

    run(scenario())


def test_a_client_takes_up_a_new_key_from_its_file(run: Any, guarded: Forwarder, keys: Keys) -> None:
    """Once its old key is refused, a client reads the new one from its file; messages sent meanwhile arrive."""
    mine = Path(keys.file("mine.secret"))
    mine.write_text(keys.secret("one"), encoding="ascii")

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(
            **guarded.config, curve_server_key=keys.public("server"), curve_secret_key_file=str(mine)
        )
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        keys.allow("two")
        await until(lambda: not layer.stats()["connected"])
        await layer.group_send("chat", {"n": 1})
        mine.write_text(keys.secret("two"), encoding="ascii")
        assert (await layer.receive(channel))["n"] == 1

    run(scenario())


def test_a_key_file_that_comes_late_is_waited_for(run: Any, guarded: Forwarder, keys: Keys) -> None:
    """A client waits for a key file that appears late, as one that a container mounts just after the start."""
    late = Path(keys.file("late.secret"))
    write = f"import time, pathlib; time.sleep(0.3); pathlib.Path({str(late)!r}).write_text({keys.secret('one')!r})"

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(
            **guarded.config, curve_server_key=keys.public("server"), curve_secret_key_file=str(late)
        )
        with subprocess.Popen([sys.executable, "-c", write]):
            await passes(layer)

    run(scenario())


EMBEDDED_READER = """
import asyncio, json, sys
from channels_zmq.core import EmbeddedZmqChannelLayer
from channels_zmq.errors import ForwarderUnavailable

async def main():
    layer = EmbeddedZmqChannelLayer(**json.loads(sys.argv[1]))
    channel = await layer.new_channel()
    await layer.group_add("chat", channel)
    while not layer.stats()["connected"]:
        await asyncio.sleep(0.01)
    await layer.group_add("connected", channel)
    print(channel, flush=True)
    print((await layer.receive(channel))["text"], flush=True)

asyncio.run(main())
"""


def test_an_embedded_producer_serves_who_has_an_allowed_key(run: Any, keys: Keys, caplog: Any) -> None:
    """An embedded producer serves a reader with an allowed key of its own, and refuses one with another key."""
    import json

    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    serving = {
        "pub_socket_address": address,
        **keys.client("one"),
        "curve_server_secret_key_file": keys.file("server.secret"),
        "curve_allowed_keys": [keys.public("one"), keys.public("two")],
    }

    def reader(name: str) -> "subprocess.Popen[str]":
        config = json.dumps({"pub_socket_address": address, **keys.client(name)})
        return subprocess.Popen([sys.executable, "-c", EMBEDDED_READER, config], stdout=subprocess.PIPE, text=True)

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(**serving)
        with caplog.at_level(logging.WARNING, logger="channels_zmq_forwarder"):
            await layer.send("warm-up", {})  # makes it the producer
            allowed, stranger = reader("two"), reader("stranger")
            assert allowed.stdout is not None
            await asyncio.to_thread(allowed.stdout.readline)
            await until(lambda: "127.0.0.1 was refused" in caplog.text)
            await layer.group_send("chat", {"text": "hello"})
            assert (await asyncio.to_thread(allowed.stdout.readline)).strip() == "hello"
            assert stranger.poll() is None
            stranger.kill()
            assert stranger.communicate()[0] == ""
            allowed.wait()
            allowed.stdout.close()

    run(scenario())


def test_an_embedded_producer_ends_the_connections_of_a_revoked_key(
    run: Any, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """An embedded producer ends the connections of a revoked key, also those with subscriptions.

    Another reader loses nothing. The library's log thread writes the line about it.
    """
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    config = {
        "pub_socket_address": address,
        **keys.client("one"),
        "curve_server_secret_key_file": keys.file("server.secret"),
        "curve_allowed_keys_file": keys.file("allowed"),
    }

    def lines() -> list[logging.LogRecord]:
        return [one for one in caplog.records if one.getMessage() == "allowed keys: 1, 0 added, 1 revoked"]

    async def scenario(kept: Any, revoked: Any) -> None:
        layer = EmbeddedZmqChannelLayer(**config)
        await layer.group_send("chat", {})  # makes it the producer
        for reader in (kept, revoked):
            reader.send(b"\1Gchat\0")
            while not reader.poll(0):
                await layer.group_send("chat", {})
                await asyncio.sleep(0.005)
        with revoked.get_monitor_socket(zmq.Event.DISCONNECTED) as ended:
            keys.allow("one")
            await until(lambda: ended.poll(0) > 0)
            revoked.disable_monitor()
        for reader in (kept, revoked):
            while reader.poll(0):
                reader.recv()
        for number in range(20):
            await layer.group_send("chat", {"n": number})
        for _ in range(20):
            await asyncio.to_thread(kept.recv)
        assert not revoked.poll(0)
        await until(lambda: bool(lines()))
        await layer.close()

    with zmq.Context() as context, context.socket(zmq.XSUB) as kept, context.socket(zmq.XSUB) as revoked:
        for socket, name in ((kept, "one"), (revoked, "two")):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RCVTIMEO, 10_000)
            secure_client(socket, keys.public("server").encode(), keys.secret(name).encode())
            socket.connect(address)
        with caplog.at_level(logging.INFO, "channels_zmq"):
            run(scenario(kept, revoked))
    (line,) = lines()
    assert line.threadName == "channels-zmq log"


def test_a_process_without_the_servers_secret_key_cannot_produce(run: Any, keys: Keys) -> None:
    """A process without the server's secret key cannot produce, and the error names the missing setting."""

    async def scenario() -> None:
        layer = EmbeddedZmqChannelLayer(pub_socket_address=f"tcp://127.0.0.1:{free_ports(1)[0]}", **keys.client("one"))
        with pytest.raises(ConfigurationError, match="curve_server_secret_key"):
            await layer.group_send("chat", {})

    run(scenario())


def test_keys_from_the_environment(run: Any, guarded: Forwarder, keys: Keys) -> None:
    """A layer can take its keys from the environment."""
    layers = channel_layers_from_env(
        {
            "CHANNELS_ZMQ_PULL_SOCKET_ADDRESS": guarded.pull,
            "CHANNELS_ZMQ_PUB_SOCKET_ADDRESS": guarded.pub,
            "CHANNELS_ZMQ_CURVE_SERVER_KEY": keys.public("server"),
            "CHANNELS_ZMQ_CURVE_SECRET_KEY_FILE": keys.file("one.secret"),
        }
    )
    run(passes(DedicatedZmqChannelLayer(**layers["default"]["CONFIG"])))


@pytest.mark.parametrize("setting", ["curve_server_key", "curve_secret_key"])
def test_no_error_shows_a_key(run: Any, keys: Keys, setting: str) -> None:
    """No error and no repr shows a key, neither an invalid one nor the others beside it."""
    broken = keys.secret("one")[:-1] + "~"
    config = {**keys.client("two"), setting: broken}
    addresses = {"pull_socket_address": "tcp://127.0.0.1:9", "pub_socket_address": "tcp://127.0.0.1:10"}

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**addresses, **config)
        with pytest.raises(ConfigurationError, match=setting) as caught:
            await layer.group_send("chat", {})
        with pytest.raises(ConfigurationError) as misspelt:
            DedicatedZmqChannelLayer(**addresses, **config, capacity=-1)
        for text in (str(caught.value), str(misspelt.value), repr(layer), repr(layer.config)):
            assert broken not in text
            assert keys.secret("two") not in text

    run(scenario())


def test_a_key_file_that_is_missing_holds_up_nothing_and_is_read_once_it_is_there(
    run: Any, guarded: Forwarder, keys: Keys
) -> None:
    """A missing key file delays neither making nor using the layer, and is read once it exists.

    The loop is not blocked, and other layers of the process work meanwhile.
    """
    late = keys.folder / "late.secret"
    patience = 3.0
    config = {"curve_server_key": keys.public("server"), "curve_secret_key_file": str(late)}

    async def scenario() -> None:
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        began = time.monotonic()
        layer = DedicatedZmqChannelLayer(**guarded.config, **config, connect_timeout=patience)
        channel = await layer.new_channel()
        await layer.group_send("chat", {"text": "held"})
        assert time.monotonic() - began < patience
        join = asyncio.create_task(layer.group_add("chat", channel))
        await passes(DedicatedZmqChannelLayer(**guarded.config, **keys.client("one")), "beside")
        await passes(EmbeddedZmqChannelLayer(), "beside")
        with pytest.raises(ForwarderUnavailable):
            await join
        assert turns > 20
        late.write_text(keys.secret("two"), encoding="ascii")
        await until(lambda: layer.stats()["connected"])
        await passes(layer)
        ticker.cancel()

    run(scenario())
