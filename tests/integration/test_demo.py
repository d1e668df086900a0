"""`make demo` and `make demo-embedded`, run with their own commands."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from forwarders import PATIENCE, Forwarder, port_of
from websockets.exceptions import InvalidStatus

from channels_zmq.core import DedicatedZmqChannelLayer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "chat"))

from children import Children
from conversation import converse
from demo_forwarders import Forwarders

DEMO = Path(__file__).parents[2] / "examples" / "chat" / "demo.py"
LATENCY = re.compile(r"^40 messages from page to page: p50 (\d+\.\d\d) ms, p99 (\d+\.\d\d) ms$", re.MULTILINE)

WAITS = re.compile(
    r"^the forwarder at \S+ and \S+ (cannot be reached; trying again|is reachable after .*)\n", re.MULTILINE
)
"""Lines of a process that waits for a forwarder, which takes more than 3 s to start on a busy machine."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(DEMO), *arguments, "--messages", "40", "--port", "0"]


def test_the_embedded_demo_talks_to_itself_and_prints_the_latency() -> None:
    """In the embedded demo one process serves two users, who see each other's messages, and it exits with 0."""
    demo = subprocess.run(command("embedded", "--once"), capture_output=True, text=True, timeout=60, check=False)

    assert demo.stderr == ""
    assert demo.returncode == 0
    assert re.search(r"^The chat is at http://127\.0\.0\.1:\d+/", demo.stdout, re.MULTILINE)
    latency = LATENCY.search(demo.stdout)
    assert latency is not None, demo.stdout
    assert 0 < float(latency[1]) <= float(latency[2])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_embedded_demo_without_a_traceback(number: signal.Signals) -> None:
    """Ctrl-C, or the signal of a supervisor, ends the embedded demo with code 0 and nothing on stderr."""
    with subprocess.Popen(command("embedded"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any("Ctrl-C" in line for line in demo.stdout)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=20)

    assert errors == ""
    assert demo.returncode == 0


@pytest.mark.slow
def test_the_dedicated_demo_talks_between_two_web_processes() -> None:
    """The dedicated demo starts forwarders, two web processes and a worker, lets two users talk, and stops in order."""
    demo = subprocess.run(command("dedicated", "--once"), capture_output=True, text=True, timeout=120, check=False)

    assert WAITS.sub("", demo.stderr) == ""
    assert demo.returncode == 0, demo.stdout
    assert "Traceback" not in demo.stdout
    assert LATENCY.search(demo.stdout), demo.stdout
    assert re.search(r"^The forwarders' status is at http://127\.0\.0\.1:\d+/ and http", demo.stdout, re.MULTILINE)


@pytest.mark.slow
def test_a_killed_child_ends_the_dedicated_demo_with_its_name() -> None:
    """If a process of the demo dies, the demo names it, stops the others and exits with 1."""
    with subprocess.Popen(command("dedicated"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        pid = next(int(found[1]) for line in demo.stdout if (found := re.match(r"web2 .*process \[(\d+)\]", line)))
        assert any("Ctrl-C" in line for line in demo.stdout)
        os.kill(pid, signal.SIGKILL)
        _, errors = demo.communicate(timeout=30)

    assert errors.splitlines()[-1] == "web2 ended with code -9"  # before it, a busy machine may print that it waits
    assert demo.returncode == 1


def hosts() -> str:
    """Return the hosts that the chat's manifest for Kubernetes allows."""
    for one in yaml.safe_load_all((DEMO.parent / "kubernetes.yaml").read_text()):
        if (one["kind"], one["metadata"]["name"]) == ("Deployment", "chat-web"):
            (container,) = one["spec"]["template"]["spec"]["containers"]
            return str(next(each["value"] for each in container["env"] if each["name"] == "CHAT_ALLOWED_HOSTS"))
    raise AssertionError("there is no chat-web")


def test_a_page_of_another_site_opens_no_socket_of_the_chat_on_kubernetes() -> None:
    """Only pages of the hosts in the manifest for Kubernetes can open a WebSocket; any other origin gets a 403.

    These hosts are the Service, which the pod with the conversation uses, and a port-forward.
    """
    environment = {**os.environ, "CHAT_ALLOWED_HOSTS": hosts()}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command("embedded"), env=environment, text=True, **pipes) as demo:
        assert demo.stdout is not None
        site = next(found[1] for line in demo.stdout if (found := re.match(r"The chat is at (http://[^/]*)/", line)))
        assert any("Ctrl-C" in line for line in demo.stdout)
        for page in ("http://chat-web:8000", "http://localhost:8000", "http://127.0.0.1:8000"):
            asyncio.run(converse(site, site, 5, page=page))
        for page in ("http://evil.example", "http://10.0.0.7:8000"):
            with pytest.raises(InvalidStatus, match="403"):
                asyncio.run(converse(site, site, 5, page=page))
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=20)


async def test_pages_reach_who_kills_forwarders_whatever_the_environment_sets(
    forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page's request to kill a forwarder arrives although the environment sets a serializer and a prefix.

    A layer with settings other than those of the web processes would receive nothing.
    """
    for key, value in (("SERIALIZER", "json"), ("PREFIX", "demo")):
        monkeypatch.setenv(f"CHANNELS_ZMQ_{key}", value)
    killed: asyncio.Queue[str] = asyncio.Queue()

    class Killer(Children):
        async def kill(self, name: str) -> None:
            killed.put_nowait(name)

    forwarders = Forwarders(Killer(Path()), [(port_of(forwarder.pull), port_of(forwarder.pub), 0)])
    forwarders.states[0] = "running"
    obeying = asyncio.create_task(forwarders.obey())
    try:
        async with DedicatedZmqChannelLayer(**forwarder.config, serializer="json", prefix="demo") as layer:
            await layer.send("forwarders", {"type": "forwarders.kill"})
            assert await asyncio.wait_for(killed.get(), PATIENCE) == "forwarder1"
    finally:
        obeying.cancel()
        await asyncio.gather(obeying, return_exceptions=True)
