"""Processes that use the layer on a test's commands: one JSON command a line, one answer a line.

`Peer` is the test's end, `Program` the process's. The messages of a peer are numbered, so that a test can check for
each one whether it arrived, how often and in which order.
"""

import asyncio
import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import psutil
from channels.exceptions import ChannelFull
from event_loops import FACTORIES
from forwarders import PATIENCE

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer
from channels_zmq.errors import ForwarderUnavailable

Read = list[tuple[str, int]]
"""Messages in the order of reading, each as its sender and its number."""

BLOCK = 5
"""Messages that a flood sends before it yields to other tasks."""
PAUSE = 0.005
"""Seconds between two blocks of a flood, whose pace is constant."""


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, for the patience of a test at most."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class PeerError(Exception):
    """A command raised in the peer; the text has the type and message of the error."""


class Peer:
    """A process with one event loop and one layer.

    Args:
        loop: The key of one of `FACTORIES`.
        by: Prefix of its command, to run it elsewhere.
        config: CONFIG of its layer; without it the first command has to be `open`.
    """

    def __init__(self, loop: str, *, by: Sequence[str] = (), **config: Any) -> None:
        command = [*by, sys.executable, "-W", "error", __file__, loop]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._asked: dict[int, Future[Any]] = {}
        self._count = 0
        threading.Thread(target=self._listen, daemon=True).start()
        if config:
            self.ask("open", config)

    def begin(self, verb: str, *arguments: Any) -> "Future[Any]":
        """Start a method of `Program` in the process, which runs several at a time."""
        self._count += 1
        answer = self._asked[self._count] = Future()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([self._count, verb, arguments]) + "\n")
        self.process.stdin.flush()
        return answer

    def ask(self, verb: str, *arguments: Any, patience: float = PATIENCE) -> Any:
        """Return the result of a method of `Program`."""
        return self.begin(verb, *arguments).result(patience)

    def begin_run(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Start a coroutine function of a test module in the process; it gets the layer and the arguments."""
        return self.begin("run", function.__code__.co_filename, function.__name__, arguments)

    def run(self, function: Callable[..., Any], *arguments: Any, patience: float = PATIENCE) -> Any:
        """Return the result of a coroutine function of a test module, run in the process."""
        return self.begin_run(function, *arguments).result(patience)

    def end(self) -> None:
        """End the process as a program ends after its last line."""
        self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self.process.kill()
        self.process.communicate()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            number, result, error = json.loads(line)
            if error is None:
                self._asked.pop(number).set_result(result)
            else:
                self._asked.pop(number).set_exception(PeerError(error))


class Flood:
    """Messages that are sent until the flood is stopped, a few at a time.

    Args:
        program: The program whose layer sends them.
        target: The target, as for `Program.send`.
        sender: The name in the messages.
    """

    def __init__(self, program: "Program", target: str, sender: str) -> None:
        self._program, self._target, self._sender = program, target, sender
        self._stopped = False
        self.count = 0
        self._away: list[int] = []
        self._unknown: list[int] = []
        self._task = asyncio.create_task(self._send())

    async def stop(self) -> dict[str, Any]:
        """Stop, and return the count of messages, those sent without a forwarder, and those without a confirmation."""
        self._stopped = True
        await self._task
        return {"count": self.count, "away": self._away, "unknown": self._unknown}

    async def _send(self) -> None:
        while not self._stopped:
            for _ in range(BLOCK):
                away = not self._program.layer.stats()["connected"]
                try:
                    await self._program.send(self._target, self._sender, self.count, 1)
                except ForwarderUnavailable:
                    self._unknown.append(self.count)
                else:
                    if away:
                        self._away.append(self.count)
                self.count += 1
            await asyncio.sleep(PAUSE)


class Program:
    """The commands that a peer executes."""

    layer: DedicatedZmqChannelLayer | EmbeddedZmqChannelLayer

    def __init__(self) -> None:
        self._collected: dict[str, Read] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._floods: dict[str, Flood] = {}

    async def open(self, config: dict[str, Any]) -> None:
        """Make a layer, a dedicated one if CONFIG has a pull address."""
        dedicated = "pull_socket_address" in config
        self.layer = DedicatedZmqChannelLayer(**config) if dedicated else EmbeddedZmqChannelLayer(**config)

    async def close(self) -> None:
        """Close the layer, and with it the connection and its counts."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        self._collected.clear()
        await self.layer.close()

    async def run(self, path: str, name: str, arguments: list[Any]) -> Any:
        """Return the result of a coroutine function of a module, called with the layer and the arguments."""
        spec = importlib.util.spec_from_file_location("scenarios", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return await getattr(module, name)(self.layer, *arguments)

    async def flush(self) -> None:
        """Flush the layer for all its clients."""
        await self.layer.flush()

    async def channel(self) -> str:
        """Return the name of a new channel."""
        return await self.layer.new_channel()

    async def member(self, group: str) -> str:
        """Return the name of a new channel in a group."""
        channel = await self.layer.new_channel()
        await self.layer.group_add(group, channel)
        return channel

    async def add(self, group: str, channel: str) -> None:
        """Add a channel to a group."""
        await self.layer.group_add(group, channel)

    async def discard(self, group: str, channel: str) -> None:
        """Discard a channel from a group."""
        await self.layer.group_discard(group, channel)

    async def members(self, stem: str, count: int) -> list[str]:
        """Return the names of new channels, each in its own group, which is the stem and a number."""
        channels: list[str] = []
        while len(channels) < count:
            channels += await asyncio.gather(*(self.member(f"{stem}{len(channels) + more}") for more in range(100)))
        return channels

    async def send(self, target: str, sender: str, first: int, count: int) -> None:
        """Send messages with numbers from `first` to a channel, or to a group if the target begins with `group:`."""
        group = target.removeprefix("group:")
        for number in range(first, first + count):
            message = {"type": "numbered", "from": sender, "n": number}
            if group == target:
                await self.layer.send(target, message)
            else:
                await self.layer.group_send(group, message)

    async def send_each(self, stem: str, first: int, count: int) -> None:
        """Send one message to each group that `members` made, with the group's number."""
        for number in range(first, first + count):
            await self.send(f"group:{stem}{number}", "each", number, 1)

    async def offer(self, channel: str, sender: str, count: int) -> int:
        """Send messages to a channel, and return how many it accepted; the others raised ChannelFull."""
        taken = 0
        for number in range(count):
            try:
                await self.send(channel, sender, number, 1)
            except ChannelFull:
                continue
            taken += 1
        return taken

    async def receive(self, channel: str, count: int) -> Read:
        """Return the next messages of a channel."""
        return [await self._next(channel) for _ in range(count)]

    async def receive_each(self, channels: list[str]) -> Read:
        """Return the next message of each channel."""
        return [await self._next(channel) for channel in channels]

    async def collect(self, channel: str) -> None:
        """Start to read a channel."""
        read = self._collected[channel] = []
        self._tasks[channel] = asyncio.create_task(self._collect(channel, read))

    async def collected(self, channel: str) -> Read:
        """Return the messages that were read so far."""
        return self._collected[channel]

    async def until_collected(self, channel: str, sender: str, last: int) -> Read:
        """Wait for a message, and return those that were read so far."""
        while (sender, last) not in self._collected[channel]:
            await asyncio.sleep(0.005)
        return self._collected[channel]

    async def flood(self, target: str, sender: str) -> None:
        """Start to send without end."""
        self._floods[target] = Flood(self, target, sender)

    async def until_flooded(self, target: str, more: int) -> int:
        """Wait until a flood has sent this many more messages, and return their total."""
        until = self._floods[target].count + more
        while self._floods[target].count < until:
            await asyncio.sleep(0.005)
        return self._floods[target].count

    async def end_flood(self, target: str) -> dict[str, Any]:
        """Stop a flood, and return the result of `Flood.stop`."""
        return await self._floods.pop(target).stop()

    async def until_counted(self, key: str, count: int) -> None:
        """Wait until a count of the layer is this high; `received`, for example, includes unread messages."""
        while self.layer.stats()[key] < count:  # type: ignore[literal-required] # the test knows which keys there are
            await asyncio.sleep(0.005)

    async def until_connected(self, connected: bool) -> None:
        """Wait until the forwarder is connected, or until it is not."""
        while self.layer.stats()["connected"] is not connected:
            await asyncio.sleep(0.005)

    async def stand_still(self, seconds: int) -> None:
        """Block every Python thread for a while, event loop and housekeeper alike; ZeroMQ's own threads continue."""
        ctypes.PyDLL(None).sleep(seconds)  # unlike time.sleep it keeps the GIL

    async def visit(self, count: int) -> None:
        """Let consumers join, read one message to all of them, and leave."""
        joined: list[str] = []
        read: list[str] = []

        async def consume(number: int) -> None:
            channel = await self.layer.new_channel()
            groups = ["everybody", f"room{number % 100}"]
            for group in groups:
                await self.layer.group_add(group, channel)
            joined.append(channel)
            try:
                while True:
                    await self._next(channel)
                    read.append(channel)
            finally:
                for group in groups:
                    await self.layer.group_discard(group, channel)

        consumers = [asyncio.create_task(consume(number)) for number in range(count)]
        while len(joined) < count:
            await asyncio.sleep(0.005)
        await self.send("group:everybody", "host", 0, 1)
        while len(read) < count:
            await asyncio.sleep(0.005)
        for consumer in consumers:
            consumer.cancel()
        await asyncio.gather(*consumers, return_exceptions=True)

    async def sizes(self) -> dict[str, int]:
        """Return the numbers of this process's resources, and its memory in bytes."""
        gc.collect()
        me, stats = psutil.Process(), self.layer.stats()
        return {
            "descriptors": me.num_fds(),
            "threads": me.num_threads(),
            "channels": stats["channels"],
            "groups": stats["groups"],
            "memory": me.memory_info().rss,
        }

    async def stats(self) -> Any:
        """Return the layer's counts."""
        return self.layer.stats()

    async def _collect(self, channel: str, read: Read) -> None:
        while True:
            read.append(await self._next(channel))

    async def _next(self, channel: str) -> tuple[str, int]:
        message = await self.layer.receive(channel)
        return message["from"], message["n"]


async def _obey() -> None:
    """Execute the commands from standard input, several at a time, until it ends."""
    program, lines = Program(), asyncio.StreamReader(limit=2**24)
    protocol = asyncio.StreamReaderProtocol(lines)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    while line := await lines.readline():
        task = asyncio.create_task(_answer(program, *json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    transport.close()
    await asyncio.sleep(0)  # uvloop closes the transport one turn later


async def _answer(program: Program, number: int, verb: str, arguments: list[Any]) -> None:
    result, error = None, None
    try:
        result = await getattr(program, verb)(*arguments)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    os.write(sys.stdout.fileno(), json.dumps([number, result, error]).encode() + b"\n")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=FACTORIES[sys.argv[1]]) as runner:
        runner.run(_obey())
