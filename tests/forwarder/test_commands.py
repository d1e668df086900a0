"""The commands beside the daemon, run against real forwarders as a person or `helm test` runs them."""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from forwarders import PATIENCE, Forwarder, free_ports, port_of
from relays import relay_to

from channels_zmq.client import batch
from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.errors import FlushIncomplete
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.commands import target
from channels_zmq_forwarder.commands.client import Client


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "channels_zmq_forwarder", *arguments]


def environment(variables: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("CHANNELS_ZMQ")} | variables


def call(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(variables), capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def listening(layer: dict[str, str], *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """Run `sub` for a group once it listens to every forwarder, and kill it at the end if it still runs."""
    forwarders = len(layer["CHANNELS_ZMQ_PUB_SOCKET_ADDRESS"].split(","))
    with subprocess.Popen(
        command("sub", "chat", *arguments),
        env=environment(layer),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as shown:
        try:
            assert shown.stderr is not None
            assert f"listening to {forwarders} forwarder" in shown.stderr.readline()
            yield shown
        finally:
            shown.kill()


async def lines(shown: "subprocess.Popen[str]") -> list[Any]:
    """Return the JSON lines that a program has printed, once it ends by itself."""
    output, problems = await asyncio.to_thread(shown.communicate, timeout=60)
    assert (shown.returncode, problems) == (0, "")
    return [json.loads(line) for line in output.splitlines()]


def run(variables: dict[str, str], *, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    return call(variables, "selftest", f"--timeout={seconds}")


def addresses() -> tuple[str, str]:
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    return pull, pub


def variables(pull: str, pub: str, **more: str) -> dict[str, str]:
    return {
        f"CHANNELS_ZMQ_{key}": value
        for key, value in {"PULL_SOCKET_ADDRESS": pull, "PUB_SOCKET_ADDRESS": pub, **more}.items()
    }


def test_messages_come_back() -> None:
    """`selftest` waits for a forwarder that starts after it, and receives every message back in order."""
    pull, pub = addresses()
    forwarder = Forwarder(pull, pub)
    try:
        forwarder.start(wait=False)
        done = run(variables(pull, pub))
    finally:
        forwarder.kill()
    assert done.returncode == 0, done.stderr
    assert "100 messages arrived, unchanged and in order" in done.stdout
    assert "without CURVE" in done.stdout


@pytest.mark.slow
def test_messages_come_back_with_curve(tmp_path: Path) -> None:
    """`selftest` works with the keys of the layer's ConfigMap and Secrets; a foreign key gets no answer and fails."""
    (server_public, server_secret), (public, secret), (_, foreign) = (zmq.curve_keypair() for _ in range(3))
    for name, content in (
        ("server.public", server_public),
        ("server", server_secret),
        ("allowed", public),
        ("client", secret),
        ("foreign", foreign),
    ):
        (tmp_path / name).write_bytes(content + b"\n")
        (tmp_path / name).chmod(0o600)
    pull, pub = addresses()
    flags = (
        "--curve-secret-key-file",
        str(tmp_path / "server"),
        "--curve-allowed-keys-file",
        str(tmp_path / "allowed"),
    )
    forwarder = Forwarder(pull, pub, flags=flags)
    try:
        forwarder.start()
        files = {"SERVER": "server.public", "SECRET": "client"}
        keys = {f"CURVE_{key}_KEY_FILE": str(tmp_path / name) for key, name in files.items()}
        done = run(variables(pull, pub, **keys))
        stranger = run(variables(pull, pub, **{**keys, "CURVE_SECRET_KEY_FILE": str(tmp_path / "foreign")}), seconds=3)
    finally:
        forwarder.kill()
    assert done.returncode == 0, done.stderr
    assert "with CURVE" in done.stdout
    assert stranger.returncode == 1
    assert "no answer to b'H'" in stranger.stderr


@pytest.mark.slow
def test_nobody_there_is_a_failure() -> None:
    """Without a forwarder `selftest` fails, and suggests what to check."""
    done = run(variables(*addresses()), seconds=1)
    assert done.returncode == 1
    assert "is it ready" in done.stderr


@pytest.mark.slow
def test_a_key_that_never_comes_is_a_failure(tmp_path: Path) -> None:
    """A missing key file fails `selftest`: its volume is optional, so a pod starts without it."""
    missing, server = tmp_path / "secret-key", tmp_path / "server-key"
    server.write_bytes(zmq.curve_keypair()[0])
    keys = {"CURVE_SERVER_KEY_FILE": str(server), "CURVE_SECRET_KEY_FILE": str(missing)}
    done = run(variables(*addresses(), **keys), seconds=1)
    assert done.returncode == 1
    assert f"{missing} does not exist" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "secret", "problem"),
    [
        ("", "k" * 40, "CHANNELS_ZMQ_CURVE_SERVER_KEY_FILE is required"),
        ("short", "k" * 40, "a key has 40 characters"),
        ("\x00" * 40, "k" * 40, "a key has 40 characters"),
    ],
)
def test_what_is_no_pair_of_keys_is_a_failure(tmp_path: Path, server: str, secret: str, problem: str) -> None:
    """An invalid or incomplete pair of keys fails with an error that states the reason."""
    given = {}
    for key, content in (("SERVER", server), ("SECRET", secret)):
        if content:
            (tmp_path / key).write_text(content)
            given[f"CURVE_{key}_KEY_FILE"] = str(tmp_path / key)
    done = run(variables(*addresses(), **given), seconds=1)
    assert done.returncode == 1
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_the_variables_it_says_which_one_is_missing() -> None:
    """Without variables the error names the missing one, and the label that injects it into a pod."""
    done = call({}, "ping", "--timeout=0.1")
    assert done.returncode == 1
    assert "CHANNELS_ZMQ_PULL_SOCKET_ADDRESS is not set (does the pod have the label of a layer?)" in done.stderr


@pytest.mark.slow
def test_a_name_that_is_not_known_is_a_failure() -> None:
    """A host name that cannot be resolved within the timeout is a failure."""
    done = run(variables("tcp://no.such.host.invalid:1", "tcp://no.such.host.invalid:2"), seconds=1)
    assert done.returncode == 1
    assert "cannot resolve tcp://no.such.host.invalid:1" in done.stderr


@contextmanager
def running(count: int) -> Iterator[list[Forwarder]]:
    forwarders = [Forwarder(*addresses()) for _ in range(count)]
    try:
        for each in forwarders:
            each.start()
        yield forwarders
    finally:
        for each in forwarders:
            each.kill()


@pytest.fixture(scope="module")
def forwarders() -> Iterator[list[Forwarder]]:
    """Run two forwarders of one layer, which all tests of this module share."""
    with running(2) as pair:
        yield pair


def layer_of(forwarders: list[Forwarder]) -> dict[str, str]:
    """Return the variables of the layer of these forwarders."""
    return variables(*(",".join(each) for each in zip(*((one.pull, one.pub) for one in forwarders), strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["selftest", "ping", "bench"])
def test_every_forwarder_is_asked(forwarders: list[Forwarder], name: str) -> None:
    """Each command checks every forwarder by itself, and a missing one is a failure.

    A message that is sent by one forwarder does not return by another.
    """
    flags = {"selftest": ["--messages=10"], "ping": [], "bench": ["--messages=2000", "--size=50"]}[name]
    done = call(layer_of(forwarders), name, *flags)
    assert done.returncode == 0, done.stderr
    assert all(one.pull in done.stdout for one in forwarders)
    missing = Forwarder(*addresses())
    done = call(layer_of([forwarders[0], missing]), name, *flags, "--timeout=5")
    assert done.returncode == 1
    assert forwarders[0].pull in done.stdout
    assert f"{missing.pull} and {missing.pub}: no answer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_keys_are_found_as_layers_find_them(tmp_path: Path) -> None:
    """Keys are found by value or by file as layers find them, and an error does not show the key.

    Without a secret key each process generates one.
    """
    (server, _), (_, secret) = zmq.curve_keypair(), zmq.curve_keypair()
    (tmp_path / "server").write_bytes(server)
    by_value = {"CURVE_SERVER_KEY": server.decode(), "CURVE_SECRET_KEY": secret.decode()}
    given = argparse.Namespace(
        pull_address=None, pub_address=None, curve_server_key_file=None, curve_secret_key_file=None
    )
    assert target.find(given, variables(*addresses(), **by_value), 0.0)[0].keys == (server, secret)
    by_file = variables(*addresses(), CURVE_SERVER_KEY_FILE=str(tmp_path / "server"))
    first, second = (target.find(given, by_file, 0.0)[0].keys for _ in range(2))
    assert first is not None
    assert second is not None
    assert first[0] == second[0] == server
    assert first[1] != second[1]
    with pytest.raises(target.CommandError, match="CHANNELS_ZMQ_CURVE_SERVER_KEY: ") as caught:
        target.find(given, variables(*addresses(), CURVE_SERVER_KEY="secret"), 0.0)
    assert "'secret'" not in str(caught.value)


def test_every_forwarder_of_a_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to several forwarders results in a target for each, all with the same keys."""
    pairs = [addresses(), addresses()]
    monkeypatch.setattr(target, "resolve_pairs", lambda pull, pub: pairs)
    given = argparse.Namespace(
        pull_address="tcp://layer:1", pub_address="tcp://layer:2", curve_server_key_file="", curve_secret_key_file=""
    )
    assert target.find(given, {}, 0.0) == [(*pair, None) for pair in pairs]


def test_ping_says_what_a_forwarder_is(forwarders: list[Forwarder]) -> None:
    """`ping` describes a forwarder; one that settles accepts no messages yet, which is a failure."""
    one, settling = forwarders[0], Forwarder(*addresses(), settle=60, flags=("--settle-at-most=60",))
    done = call(variables(one.pull, one.pub), "ping", "--count=3")
    assert re.search(
        r"serves 0 other clients, without CURVE, wire format \d; round trip [\d.]+ ms \(of 3:", done.stdout
    )
    try:
        settling.start(wait=False)
        done = call(variables(settling.pull, settling.pub), "ping", "--timeout=20")
    finally:
        settling.kill()
    assert done.returncode == 1
    assert "it is settling" in done.stderr


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
async def test_what_is_published_arrives_and_what_arrives_is_shown(
    forwarders: list[Forwarder], serializer: str
) -> None:
    """`pub` publishes to every kind of name of a layer, and `sub` prints the messages of a layer's groups."""
    layer, jobs = layer_of(forwarders), f"jobs-{serializer}"
    ours = DedicatedZmqChannelLayer(
        pull_socket_address=[one.pull for one in forwarders],
        pub_socket_address=[one.pub for one in forwarders],
        serializer=serializer,
    )
    flag = f"--serializer={serializer}"
    channel = await ours.new_channel()
    await ours.group_add("chat", channel)
    message = {"type": "chat.message", "text": "hö", "list": [1, None, {"a": 2.5}]}
    for name, *more in (("chat",), (channel, "--channel"), (jobs, "--channel", "--count=2")):
        done = await asyncio.to_thread(call, layer, "pub", name, json.dumps(message), flag, *more)
        assert done.returncode == 0, done.stderr
    assert [await ours.receive(name) for name in (channel, channel, jobs, jobs)] == [message] * 4

    with listening(layer, "news", "--json", "--count=3", flag) as sub:
        for group in ("chat", "other", "news", "chat"):
            await ours.group_send(group, {"to": group})
        shown = await lines(sub)
    assert sorted((line["group"], line["message"]["to"]) for line in shown) == [
        ("chat", "chat"),
        ("chat", "chat"),
        ("news", "news"),
    ]
    await ours.close()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sub_ends_at_a_signal(forwarders: list[Forwarder], number: int) -> None:
    """A signal ends `sub` with exit code 130 and no message on standard error."""
    one = forwarders[0]
    with listening(variables(one.pull, one.pub)) as sub:
        sub.send_signal(number)
        _, problems = sub.communicate(timeout=20)
        assert (sub.returncode, problems) == (130, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["pub", "chat", "{"], "not valid JSON"),
        (["pub", "chat", "[1]"], "a message must be a JSON object"),
        (["pub", "specific.x!y", "{}", "--channel"], "is not a channel name that new_channel() returned"),
        (["sub", "specific.x!y"], "only messages of groups"),
        (["pub", "chat", '{"a": 18446744073709551616}'], "cannot be serialized by msgpack"),
        (["pub", "chat", '{"a": "\\ud800"}', "--serializer=json"], "cannot be serialized by json"),
        (["ping", "--pull-address=tcp://127.0.0.1:1,tcp://127.0.0.1:3"], "one address of each kind"),
        (["top", "127.0.0.1:1"], "127.0.0.1:1: "),
    ],
)
def test_bad_input_is_told(forwarders: list[Forwarder], arguments: list[str], problem: str) -> None:
    """Invalid input fails with a one-line error that begins with the command."""
    one = forwarders[0]
    done = call(variables(one.pull, one.pub), *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"channels-zmq-forwarder {arguments[0]}: ")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["bench", "--messages=0"], "'0' is not a whole number from 1"),
        (["bench", "--size=-1"], "'-1' is not a whole number from 0"),
        (["ping", "--count=0"], "'0' is not a whole number from 1"),
        (["selftest", "--messages=many"], "'many' is not a whole number from 1"),
        (["sub", "chat", "--count=-1"], "'-1' is not a whole number from 0"),
        (["sub", "chat", ""], "a name has 1 to 400 bytes"),
        (["pub", "x" * 401, "{}"], "a name has 1 to 400 bytes"),
        (["pub", "jobs", "{}", "--capacity=-1"], "'-1' is not a whole number from 1"),
        (["pub", "chat", "{}", "--every=-1"], "'-1' is not a number of seconds"),
        (["ping", "--timeout=nan"], "'nan' is not a number of seconds"),
        (["top", "--interval=soon"], "'soon' is not a number of seconds"),
    ],
)
def test_a_number_or_name_out_of_bounds_is_bad_usage(arguments: list[str], problem: str) -> None:
    """A number or name out of bounds exits with 2, and the error names the argument and the bound."""
    done = call(variables(*addresses()), *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"channels-zmq-forwarder {arguments[0]}: error: argument ")
    assert problem in done.stderr


def test_a_full_queue_is_told(forwarders: list[Forwarder]) -> None:
    """`pub` fails with an error if the channel is full."""
    one = forwarders[0]
    done = call(variables(one.pull, one.pub), "pub", "full", "{}", "--channel", "--count=3", "--capacity=2")
    assert done.returncode == 1
    assert "the channel is full" in done.stderr


async def is_flushed(layer: DedicatedZmqChannelLayer) -> bool:
    """Flush a layer; return whether all clients answered in time."""
    try:
        await layer.flush()
    except FlushIncomplete:
        return False
    return True


@pytest.mark.slow
async def test_a_flush_does_not_wait_for_sub(forwarders: list[Forwarder]) -> None:
    """A flush does not wait for `sub`, which is not a client while it prints messages.

    A flush needs an answer from each client.
    """
    one = forwarders[0]
    async with DedicatedZmqChannelLayer(**one.config) as layer:
        await layer.group_add("chat", await layer.new_channel())
        with listening(variables(one.pull, one.pub), "--count=1", "--json") as sub:
            async with asyncio.timeout(PATIENCE):
                while not await is_flushed(layer):  # the machine may pause for longer than a flush waits
                    pass
            await layer.group_send("chat", {"type": "a"})
            assert [line["message"] for line in await lines(sub)] == [{"type": "a"}]


@pytest.mark.slow
def test_a_flush_does_not_wait_for_a_client_that_rests(forwarders: list[Forwarder]) -> None:
    """A client that rests, such as `pub` between two messages, answers a flush, since it has nothing to drop."""
    one = target.Target(forwarders[0].pull, forwarders[0].pub, None)
    ended = threading.Event()

    def rest() -> None:
        while not ended.is_set():
            resting.rest(0.01)

    with zmq.Context() as context, Client(context, one) as resting, Client(context, one) as flushing:
        for client in (resting, flushing):
            client.hello(time.monotonic() + PATIENCE)
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(rest)
            try:
                flushing._asked = 1
                flush = wire.FLUSH.encode(wire.Flush(flushing.inbox, 1, round(PATIENCE * 1000)))
                answer = flushing._answer(flushing.sub, flush, wire.CONFIRM.kind, time.monotonic() + PATIENCE)
            finally:
                ended.set()
            done.result()
    assert wire.CONFIRM.decode(answer).status == wire.Status.OK


@pytest.mark.slow
def test_sub_goes_on_after_a_malformed_message(forwarders: list[Forwarder]) -> None:
    """`sub` reports a malformed message and continues: a forwarder relays group messages without reading them."""
    one = forwarders[0]
    layer = variables(one.pull, one.pub)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push, listening(layer, "--count=1") as sub:
        push.connect(one.pull)
        push.send(wire.group_topic("chat") + b"oops")
        assert call(layer, "pub", "chat", "{}").returncode == 0
        assert sub.wait(20) == 0
        assert sub.stderr is not None
        assert "a malformed message of 10 bytes" in sub.stderr.read()


def test_pub_uses_the_first_forwarder_that_answers(forwarders: list[Forwarder]) -> None:
    """`pub` uses the first forwarder that answers, as one of several may be missing; without any it fails."""
    missing = Forwarder(*addresses())
    assert call(layer_of([missing, forwarders[0]]), "pub", "chat", "{}", "--timeout=5").returncode == 0
    done = call(layer_of([missing]), "pub", "chat", "{}", "--timeout=0.1")
    assert (done.returncode, "no answer" in done.stderr) == (1, True)


@pytest.mark.slow
def test_several_selftests_at_once_do_not_meet(forwarders: list[Forwarder]) -> None:
    """Concurrent selftests both succeed, since each uses a group of its own."""
    layer = layer_of(forwarders[:1])
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(call, layer, "selftest", "--messages=3000") for _ in range(2)]
    assert [one.result().returncode for one in both] == [0, 0]


@pytest.mark.slow
async def test_sub_shows_each_message_of_a_batch(forwarders: list[Forwarder], monkeypatch: pytest.MonkeyPatch) -> None:
    """`sub` prints each message of a batch, which a busy sender puts into one frame.

    This sender counts as busy from the first message on.
    """
    monkeypatch.setattr(batch, "RUN", 0)
    monkeypatch.setattr(batch, "WITHIN", float("inf"))
    one = forwarders[0]
    async with DedicatedZmqChannelLayer(**one.config) as layer:
        await layer.group_add("chat", await layer.new_channel())
        with listening(variables(one.pull, one.pub), "--count=3", "--json") as sub:
            for number in range(3):
                await layer.group_send("chat", {"type": "a", "n": number})
            assert [line["message"]["n"] for line in await lines(sub)] == [0, 1, 2]


@pytest.mark.slow
def test_sub_ends_when_nobody_reads_its_output(forwarders: list[Forwarder]) -> None:
    """`sub` ends without a traceback when its output is closed, as in a pipe to `head -1`."""
    one = forwarders[0]
    layer = variables(one.pull, one.pub)
    with listening(layer) as sub:
        assert sub.stdout is not None
        assert sub.stderr is not None
        sub.stdout.close()
        assert call(layer, "pub", "chat", "{}").returncode == 0
        problems = sub.stderr.read()
        assert (sub.wait(20), problems) == (0, "")


@pytest.mark.slow
def test_a_client_whose_connection_was_cut_claims_its_inbox_again(forwarders: list[Forwarder]) -> None:
    """A client subscribes to its inbox again after a cut, as the forwarder would not answer it otherwise."""
    one = forwarders[0]
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        other = stack.enter_context(context.socket(zmq.XPUB))
        other.bind("tcp://127.0.0.1:*")
        relay = stack.enter_context(relay_to(other.get_string(zmq.LAST_ENDPOINT)))
        client = stack.enter_context(Client(context, target.Target(one.pull, relay.address, None)))
        thread = stack.enter_context(ThreadPoolExecutor(1))
        welcome = thread.submit(client.hello, time.monotonic() + 20)
        assert other.poll(20_000)
        while not other.recv().startswith(wire.HELLO_BYTE):
            pass
        relay.target = port_of(one.pub)
        relay.cut()
        assert welcome.result().state == wire.State.SERVING


@pytest.mark.slow
def test_another_program_on_a_port_is_told() -> None:
    """If another program uses the port, the error suggests that, without a traceback."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as other, ThreadPoolExecutor(1) as thread:
        pull, pub = addresses()
        other.bind(pub)
        done = thread.submit(call, variables(pull, pub), "ping")
        assert other.poll(20_000)
        topic = other.recv()[1:]
        other.send(topic)
        other.send(topic + b"w")
        assert done.result().returncode == 1
    assert done.result().stderr.startswith("channels-zmq-forwarder ping: does another program use this port?")


@pytest.mark.slow
def test_top_asks_no_proxy(forwarders: list[Forwarder]) -> None:
    """`top` ignores proxy variables, since a proxy would connect to its own 127.0.0.1."""
    done = call({"http_proxy": "http://127.0.0.1:1", "no_proxy": ""}, "top", "--count=1", forwarders[0].admin)
    assert done.returncode == 0, done.stderr


def test_top_shows_forwarders_and_queues(forwarders: list[Forwarder]) -> None:
    """`top` prints the state of every forwarder and the waiting messages of queues, once per interval."""
    one = forwarders[0]
    assert call(variables(one.pull, one.pub), "pub", "long", "{}", "--channel", "--count=7").returncode == 0
    done = call({}, "top", "--interval=0.1", "--count=2", *(f"http://{each.admin}" for each in forwarders))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows if "serving" in row] == [[each.admin, "serving"] for each in forwarders] * 2
    assert rows.count(["long", "7", "0", "0"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("by", ["file", "value"])
def test_inside_a_forwarders_container_its_own_variables_and_key_are_enough(tmp_path: Path, by: str) -> None:
    """In a forwarder's container `ping` works with the forwarder's own variables and key, which no list allows."""
    secret = tmp_path / "server"
    secret.write_bytes(zmq.curve_keypair()[1])
    allowed = tmp_path / "allowed"
    allowed.write_bytes(zmq.curve_keypair()[0])
    pull, pub = (f"tcp://*:{port}" for port in free_ports(2))
    flags = ("--curve-secret-key-file", str(secret), "--curve-allowed-keys-file", str(allowed))
    forwarder = Forwarder(pull, pub, flags=flags)
    key = {"CURVE_SECRET_KEY_FILE": str(secret)} if by == "file" else {"CURVE_SECRET_KEY": secret.read_text()}
    own = {"PULL_ADDRESS": pull, "PUB_ADDRESS": pub, **key}
    try:
        forwarder.start()
        done = call({f"CHANNELS_ZMQ_FORWARDER_{key}": value for key, value in own.items()}, "ping")
    finally:
        forwarder.kill()
    assert done.returncode == 0, done.stderr
    assert "with CURVE" in done.stdout
