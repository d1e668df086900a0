"""`manage.py channels_zmq` of a real project, beside real forwarders."""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forwarders import PATIENCE, Forwarder, free_ports
from projects import Project

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

pytestmark = pytest.mark.slow

DEDICATED = "channels_zmq.core.DedicatedZmqChannelLayer"
EMBEDDED = "channels_zmq.core.EmbeddedZmqChannelLayer"
MEMORY = {"BACKEND": "channels.layers.InMemoryChannelLayer"}


@pytest.fixture
def project(tmp_path: Path, forwarder: Forwarder) -> Project:
    """Make a project with a dedicated layer, an embedded one, and one of another package."""
    dedicated = {"BACKEND": DEDICATED, "CONFIG": forwarder.config}
    return Project(tmp_path, {"default": dedicated, "alone": {"BACKEND": EMBEDDED}, "memory": MEMORY})


@pytest.fixture
def listener(project: Project, listener_of: Any) -> Any:
    """Return a function that starts `listen` in the project, and waits until it has joined."""
    return partial(listener_of, project)


@pytest.fixture
def listener_of() -> Iterator[Any]:
    """Return a function that starts `listen` in a project, and waits until it has joined.

    A process that has not ended is killed at the end.
    """
    started: list[subprocess.Popen[str]] = []

    def listen(project: Project, *arguments: str) -> "subprocess.Popen[str]":
        process = project.start("channels_zmq", "listen", *arguments)
        started.append(process)
        assert process.stderr is not None
        assert "press Ctrl-C to stop" in process.stderr.readline()
        return process

    yield listen
    for process in started:
        process.kill()
        process.communicate()


def test_doctor_examines_every_layer(project: Project, forwarder: Forwarder) -> None:
    """`doctor` checks a reachable layer, an embedded one and a foreign one, and exits with 0 if all are in order."""
    done = project.manage("channels_zmq", "doctor")
    assert done.returncode == 0, done.stderr
    assert f"default: {DEDICATED}" in done.stdout
    assert f"ok     {forwarder.pull} and {forwarder.pub}: serving, wire version 2, without keys" in done.stdout
    assert " ms, 0 clients" in done.stdout
    assert "inproc://channels: a message to a group of this process takes" in done.stdout
    assert "not a layer of channels-zmq" in done.stdout


def test_doctor_ends_with_1_if_anything_is_wrong(tmp_path: Path, forwarder: Forwarder) -> None:
    """`doctor` exits with 1 and names each problem and its remedy: an unreachable forwarder, and mistakes in CONFIG."""
    config = {
        "pull_socket_address": [forwarder.pull, "tcp://127.0.0.1:9"],
        "pub_socket_address": [forwarder.pub, "tcp://127.0.0.1:10"],
    }
    layers = {
        "default": {"BACKEND": DEDICATED, "CONFIG": config},
        "mistaken": {"BACKEND": DEDICATED, "CONFIG": {"pull_adress": "tcp://a:1"}},
        "locked": {"BACKEND": DEDICATED, "CONFIG": {**forwarder.config, "symmetric_encryption_keys_file": "missing"}},
    }
    done = Project(tmp_path, layers).manage("channels_zmq", "doctor", "--timeout", "0.7")
    assert done.returncode == 1
    assert f"ok     {forwarder.pull}" in done.stdout
    assert "WRONG  tcp://127.0.0.1:9 and tcp://127.0.0.1:10: nothing accepts connections" in done.stdout
    assert "Start the forwarder" in done.stdout
    assert "did you mean 'pull_socket_address'" in done.stdout
    assert "CONFIG['symmetric_encryption_keys_file']: missing: No such file" in done.stdout
    assert "3 problems found" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("doctor", "--layer", "defualt"), ["no alias 'defualt'", "'alone', 'default', 'memory'"]),
        (("doctor", "--layer", "memory"), ["no layer of channels-zmq"]),
        (("send", "--group", "room", '{"type": 1', "--layer", "default"), ["invalid JSON", "line 1 column 11"]),
        (("send", "--group", "a room", '{"type": "a"}'), ["Group name"]),
        (("send", "--group", "room", '{"type": "a"}', "--layer", "memory"), ["'memory' is a channels.layers.InMemory"]),
        (("send", "--group", "room", '{"type": "a"}', "--layer", "alone"), ["reaches only its own process"]),
        (("send", '{"type": "a"}'), ["--group", "--channel"]),
        (("listen", "--channel", "specific.abc!def"), ["was not returned by new_channel"]),
        (("listen", "--group", "room", "--layer", "alone"), ["reaches only its own process"]),
        (("stats", "--layer", "alone"), ["no forwarder"]),
        (("top", "--layer", "alone", "--count", "1"), ["no forwarder"]),
        (("from-redis",), ["no layer of channels_redis", "'alone'"]),
        (("from-redis", "--settings-file", "missing.json"), ["missing.json: No such file"]),
    ],
)
def test_what_cannot_be_done_says_why(project: Project, arguments: tuple[str, ...], parts: list[str]) -> None:
    """A call that cannot succeed prints its reason, and no traceback."""
    done = project.manage("channels_zmq", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


def test_listen_shows_what_send_sends(project: Project, listener: Any) -> None:
    """`listen` shows each message that `send` sends to a group: as a line for people, or as one of JSON."""
    people = listener("--group", "room", "--count", "1")
    program = listener("--group", "room", "--json", "--count", "1")
    done = project.manage("channels_zmq", "send", "--group", "room", '{"type": "chat.message", "text": "hi"}')
    assert (done.returncode, done.stdout) == (0, "sent to group 'room'\n"), done.stderr
    line, _ = people.communicate(timeout=PATIENCE)
    assert line.partition("  ")[2] == 'chat.message  {"text": "hi"}\n'
    line, _ = program.communicate(timeout=PATIENCE)
    assert json.loads(line) == {"type": "chat.message", "text": "hi"}


def test_a_message_waits_in_a_normal_channel_for_listen(project: Project) -> None:
    """A message that `send` reads from stdin waits in a normal channel until `listen` reads it."""
    done = project.manage("channels_zmq", "send", "--channel", "jobs", "-", text='{"type": "job", "n": 1}')
    assert done.returncode == 0, done.stderr
    done = project.manage("channels_zmq", "listen", "--channel", "jobs", "--json", "--count", "1")
    assert json.loads(done.stdout) == {"type": "job", "n": 1}
    assert "workers do not get these messages" in done.stderr


async def test_a_shared_embedded_layer_can_be_heard_and_not_sent_to(tmp_path: Path, listener_of: Any) -> None:
    """A shared embedded layer can be listened to, but `send` refuses it and does not replace its only producer."""
    config = {"pub_socket_address": f"ipc://{tmp_path}/pub"}
    project = Project(tmp_path, {"default": {"BACKEND": EMBEDDED, "CONFIG": config}})
    async with EmbeddedZmqChannelLayer(**config) as layer:
        await layer.group_send("nobody", {"type": "first"})  # it is kept for readers that connect within half a second
        process = await asyncio.to_thread(listener_of, project, "--group", "room", "--json", "--count", "1")
        await layer.group_send("room", {"type": "second"})
        out, error = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
        assert json.loads(out) == {"type": "second"}, error
        done = await asyncio.to_thread(project.manage, "channels_zmq", "send", "--group", "room", '{"type": "a"}')
        assert done.returncode == 1
        assert "use DedicatedZmqChannelLayer" in done.stderr
        done = await asyncio.to_thread(project.manage, "channels_zmq", "doctor")
        assert (done.returncode, f"ok     ipc://{tmp_path}/pub: serving" in done.stdout) == (0, True), done.stdout


def test_listen_ends_cleanly_at_ctrl_c(project: Project, listener: Any) -> None:
    """At Ctrl-C, `listen` exits with 0, without output or a traceback."""
    process = listener("--group", "room")
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, error) == (0, "", "")


def test_doctor_has_found_nothing_at_ctrl_c(tmp_path: Path) -> None:
    """At Ctrl-C, `doctor` exits with 130, not with the status of a project in order, and without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        config = {"pull_socket_address": "tcp://127.0.0.1:9", "pub_socket_address": address}
        project = Project(tmp_path, {"default": {"BACKEND": DEDICATED, "CONFIG": config}})
        process = project.start("channels_zmq", "doctor", "--timeout", "2")
        accepted, _ = silent.accept()  # `doctor` is running
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=PATIENCE)
        accepted.close()
    assert (process.returncode, out, error) == (130, "", ""), error


def test_listen_ends_when_nobody_reads_its_output(project: Project, listener: Any) -> None:
    """`listen` exits with 0 and without a traceback when its output is closed, as by `| head -1`."""
    process = listener("--group", "room")
    process.stdout.close()
    for _ in range(2):
        done = project.manage("channels_zmq", "send", "--group", "room", '{"type": "a"}')
        assert done.returncode == 0, done.stderr
    error = process.stderr.read()
    process.wait(PATIENCE)
    process.stdout = None
    assert (process.returncode, error) == (0, "")


def test_a_message_that_no_forwarder_takes_is_an_error(tmp_path: Path) -> None:
    """`send` fails if no forwarder accepts the message, which would be lost with the sending process."""
    pull, pub = free_ports(2)
    config = {"pull_socket_address": f"tcp://127.0.0.1:{pull}", "pub_socket_address": f"tcp://127.0.0.1:{pub}"}
    layers = {"default": {"BACKEND": DEDICATED, "CONFIG": {**config, "connect_timeout": 0.3, "linger": 0}}}
    done = Project(tmp_path, layers).manage("channels_zmq", "send", "--group", "room", '{"type": "a"}')
    assert done.returncode == 1
    assert "no process at" in done.stderr
    assert "doctor" in done.stderr


async def test_stats_and_top_show_the_status_page(project: Project, forwarder: Forwarder) -> None:
    """`stats` and `top` show state, clients and queues of normal channels, or why there is no status page."""
    async with DedicatedZmqChannelLayer(**forwarder.config) as layer:
        await layer.send("jobs", {"type": "job"})
        done = project.manage("channels_zmq", "stats", "--status-address", forwarder.admin)
        assert done.returncode == 0, done.stderr
        assert f"{forwarder.pull} and {forwarder.pub}\n  serving, 1 client, round trip" in done.stdout
        assert "waiting: 1 message, the oldest for" in done.stdout
        assert "jobs" in done.stdout
        done = project.manage("channels_zmq", "stats", "--status-address", "127.0.0.1:9")
        assert (done.returncode, "no status page (127.0.0.1:9: " in done.stdout) == (0, True)
        assert "ssh -L" in done.stdout
        done = project.manage(
            *("channels_zmq", "top", "--status-address", forwarder.admin, "--count", "2", "--interval", "0.1")
        )
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        lines = done.stdout.splitlines()
        assert sum(line.startswith("FORWARDER") for line in lines) == 2
        assert sum(line.startswith(f"{forwarder.admin}  serving") for line in lines) == 2
        assert sum(line.split() == ["jobs", "1", "0", "0"] for line in lines) == 2


def test_top_draws_in_place_on_a_terminal(project: Project, forwarder: Forwarder) -> None:
    """On a terminal, `top` redraws in place until Ctrl-C, which ends it with status 0 and no traceback."""
    outer, inner = os.openpty()
    arguments = ("top", "--status-address", forwarder.admin, "--interval", "0.1")
    process = project.start("channels_zmq", *arguments, stdout=inner, stderr=subprocess.PIPE)
    os.close(inner)
    seen = b""
    try:
        while seen.count(b"\x1b[H\x1b[J1 forwarder at ") < 3:
            seen += os.read(outer, 4096)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=PATIENCE)
    finally:
        os.close(outer)
        process.kill()
        process.communicate()
    assert (process.returncode, error) == (0, "")


def test_from_redis_prints_settings_that_work(tmp_path: Path) -> None:
    """`from-redis` prints the same working module of settings from the project's settings, a file and stdin."""
    redis = {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": ["redis://a"], "capacity": 5}}
    layers = {"default": redis}
    project = Project(tmp_path, layers)
    (tmp_path / "old.json").write_text(json.dumps({"CHANNEL_LAYERS": layers}))
    runs = [
        project.manage("channels_zmq", "from-redis"),
        project.manage("channels_zmq", "from-redis", "--settings-file", "old.json"),
        project.manage("channels_zmq", "from-redis", "--settings-file", "-", text=json.dumps(layers)),
    ]
    assert {done.returncode for done in runs} == {0}
    assert len({done.stdout for done in runs}) == 1
    scope: dict[str, Any] = {}
    exec(runs[0].stdout, scope)
    (layer,) = scope["CHANNEL_LAYERS"].values()
    assert DedicatedZmqChannelLayer(**layer["CONFIG"]).capacity == 5
    assert "hosts     replaced: by pull_socket_address" in runs[0].stdout
