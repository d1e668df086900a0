"""A conversation by both layers in interpreters that lack features which some systems do not have."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from forwarders import PATIENCE, config_of

pytestmark = pytest.mark.slow

DAEMONS = ("aiohttp", "prometheus_client", "pydantic_settings", "uvloop")
"""Packages of the forwarder's extra `daemon`, which a web process does not have."""
WINDOWS = "without-what-windows-lacks"
ENVIRONMENTS = {f"without-{package}": f"sys.modules[{package!r}] = None" for package in DAEMONS}
ENVIRONMENTS["without-the-daemons-packages"] = "\n".join(ENVIRONMENTS.values())
# Modules and functions, an event loop that watches descriptors, and a selector with a descriptor of its own.
ENVIRONMENTS[WINDOWS] = """
import asyncio, os, selectors
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("O_CLOEXEC", "O_NOFOLLOW", "fork", "getuid", "pipe", "register_at_fork", "set_blocking"):
    vars(os).pop(name, None)
selectors.DefaultSelector = selectors.SelectSelector
def refuse(*arguments):
    raise NotImplementedError
asyncio.SelectorEventLoop.add_reader = asyncio.SelectorEventLoop.remove_reader = refuse
"""
CONVERSATION = """
import asyncio, json
from asgiref.sync import async_to_sync
from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

config = json.loads(sys.argv[1])
layer = (DedicatedZmqChannelLayer if "pull_socket_address" in config else EmbeddedZmqChannelLayer)(**config)

async def converse():
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.group_send("room", {"n": 1})
    received = [await layer.receive(channel)]
    await layer.send(channel, {"n": 2})
    received.append(await layer.receive(channel))
    waiting = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    await asyncio.to_thread(async_to_sync(layer.send), "jobs", {"n": 3})
    await asyncio.to_thread(async_to_sync(layer.group_send), "room", {"n": 4})
    received += [await layer.receive("jobs"), await waiting]
    await layer.close()
    return [message["n"] for message in received]

print(json.dumps(asyncio.run(converse())))
"""


def converse(environment: str, config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run the conversation with the layer of a CONFIG in a process of its own."""
    program = f"import sys\n{ENVIRONMENTS[environment]}\n{CONVERSATION}"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, json.dumps(config)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_layer_works_without_what_it_does_not_need(make_layer: Callable[..., Any], environment: str) -> None:
    """A layer works without optional packages and system features, in both topologies.

    This holds for groups, process-specific and normal channels, from an event loop and from threads.
    """
    config = config_of(make_layer())
    done = converse(environment, config)
    if environment == WINDOWS and "ipc://" in str(config):
        assert "cannot lock ipc paths, so use tcp://" in done.stderr.splitlines()[-1]
        return
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 2, 3, 4]
