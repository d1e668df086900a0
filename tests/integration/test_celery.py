"""A real Celery worker whose tasks send to the layer and return."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from forwarders import Forwarder

from channels_zmq.core import DedicatedZmqChannelLayer

PATIENCE = 120.0
ENDS_WITHIN = 20.0
SUPPORT = Path(__file__).parents[1] / "support"


@contextmanager
def worker(
    folder: Path, forwarder: Forwarder, channel: str, tasks: int, *flags: str, **variables: str
) -> Iterator[None]:
    """Run a worker until the end of the block, and keep its output in the folder."""
    environment = os.environ | {
        "PYTHONPATH": str(SUPPORT),
        "BROKER_FOLDER": str(folder / "broker"),
        "TASKS": str(tasks),
        "CHANNEL": channel,
        "GROUP": "room",
        "CHANNELS_ZMQ_PULL_SOCKET_ADDRESS": forwarder.pull,
        "CHANNELS_ZMQ_PUB_SOCKET_ADDRESS": forwarder.pub,
        "CHANNELS_ZMQ_LINGER": "20",  # a busy machine may take longer than a second to connect a new process
        **variables,
    }
    (folder / "broker" / "control").mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "celery",
        "--app",
        "celery_tasks",
        "worker",
        "--without-gossip",
        "--without-mingle",
    ]
    command += ["--without-heartbeat", "--loglevel", "info", *flags]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Wait until a worker has ended by itself, or kill it.

    Its pool may wait for ever: for the lock of a queue that a child held when it was ended (`_help_stuff_finish` of
    billiard). The messages of its tasks have arrived by then, so this does not affect the test.
    """
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    try:
        process.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


async def numbers(folder: Path, forwarder: Forwarder, tasks: int, *flags: str, **variables: str) -> list[int]:
    """Return the numbers that a consumer of this process receives, one for each task."""
    found: list[int] = []
    async with DedicatedZmqChannelLayer(**forwarder.config) as layer:
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        with worker(folder, forwarder, channel, tasks, *flags, **variables):
            try:
                async with asyncio.timeout(PATIENCE):
                    while len(found) < tasks + bool(variables):
                        found.append((await layer.receive(channel))["number"])
            except TimeoutError:
                pytest.fail(f"received {sorted(found)}; the worker:\n{(folder / 'worker.log').read_text()}")
    return sorted(found)


PREFORK = ("--pool", "prefork", "--concurrency", "2", "--max-tasks-per-child", "1")


async def test_a_child_that_ends_after_its_task_has_delivered(forwarder: Forwarder, tmp_path: Path) -> None:
    """A child that ends after its task has delivered its message, though `os._exit` runs no exit handler of Python."""
    assert await numbers(tmp_path, forwarder, 2, *PREFORK) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, variables",
    [
        (PREFORK, {}),
        (PREFORK, {"USED_BEFORE_FORK": "1"}),
        (("--pool", "prefork", "--concurrency", "2"), {}),
        (("--pool", "threads", "--concurrency", "2"), {}),
        (("--pool", "solo"), {}),
    ],
    ids=["one-task-a-child", "used-before-the-fork", "long-lived-children", "threads", "solo"],
)
async def test_every_pool_delivers_what_its_tasks_sent(
    forwarder: Forwarder, tmp_path: Path, flags: tuple[str, ...], variables: dict[str, str]
) -> None:
    """With every pool, 20 of 20 messages arrive, however the worker ends its processes."""
    expected = list(range(20)) if not variables else list(range(-1, 20))
    assert await numbers(tmp_path, forwarder, 20, *flags, **variables) == expected
