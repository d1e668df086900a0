"""The program of a client process: a sender or a receiver, controlled by lines of JSON.

Each line of standard input is a command, `[verb, arguments]`, and one line of standard output answers it,
`[result, error]`. When standard input ends, the process closes its layer and exits.
"""

import asyncio
import itertools
import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from channels.exceptions import ChannelFull
from counting import JOB, Sent, Tally

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.errors import ForwarderUnavailable, RequestRefused

logger = logging.getLogger("chaos")

TICK = 0.004
"""Seconds between two bursts of a sender."""
BURST = 100
"""Messages that a late sender sends before it yields to other tasks."""


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one sender.

    Args:
        rate: Group and direct messages per second.
        row: How many of these in a row go to one topic.
        job_rate: Jobs per second.
        groups: Groups; these are the first topics.
        channels: Process-specific channels of receivers; these are the other topics.
        jobs: Normal channels for jobs.
        padding: Further bytes in each message.
    """

    rate: float
    row: int
    job_rate: float
    groups: list[str]
    channels: list[str]
    jobs: list[str]
    padding: int


class Sender:
    """Sends numbered messages and jobs at a steady pace.

    Args:
        layer: Its layer.
        index: Its number in the messages.
    """

    def __init__(self, layer: DedicatedZmqChannelLayer, index: int) -> None:
        self._layer, self._index = layer, index
        self._stopped = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._refused = 0
        self._finished_jobs = 0

    async def stats(self) -> Any:
        """Return the layer's counts."""
        return self._layer.stats()

    async def begin(self, load: dict[str, Any]) -> None:
        """Start to send a `Load`."""
        self._load = Load(**load)
        self._sent = [0] * (len(self._load.groups) + len(self._load.channels))
        self._sent_jobs = [0] * len(self._load.jobs)
        self._unknown: list[tuple[int, int]] = []
        self._began = time.monotonic()
        sending = [self._send_jobs(), *([self._send_messages()] if self._sent else [])]
        self._tasks = [asyncio.create_task(one) for one in sending]

    async def jobs(self) -> tuple[int, int]:
        """Return how many sends of jobs have begun, and how many have returned or raised."""
        return sum(self._sent_jobs), self._finished_jobs

    async def stop(self) -> dict[str, Any]:
        """Stop, and return how many messages and jobs were sent to each topic and channel, and the unknown jobs."""
        self._stopped.set()
        seconds = time.monotonic() - self._began
        await asyncio.gather(*self._tasks)
        return {
            "sent": self._sent,
            "jobs": self._sent_jobs,
            "unknown": self._unknown,
            "refused": self._refused,
            "seconds": seconds,
        }

    async def _send_messages(self) -> None:
        each = itertools.cycle(range(len(self._sent)))
        topics = (topic for first in each for topic in itertools.repeat(first, self._load.row))
        count = 0
        while not self._stopped.is_set():
            due = int((time.monotonic() - self._began) * self._load.rate)
            for _ in range(min(due - count, BURST)):
                await self._send_message(next(topics))
                count += 1
            await asyncio.sleep(TICK if count >= due else 0)

    async def _send_message(self, topic: int) -> None:
        message = {"type": "load", "s": self._index, "t": topic, "n": self._sent[topic], "at": time.monotonic()}
        if self._load.padding:
            message["padding"] = bytes(self._load.padding)
        groups = self._load.groups
        try:
            if topic < len(groups):
                await self._layer.group_send(groups[topic], message)
            else:
                await self._layer.send(self._load.channels[topic - len(groups)], message)
        except ChannelFull:  # nothing was sent: the next message takes the number
            self._refused += 1
        else:
            self._sent[topic] += 1

    async def _send_jobs(self) -> None:
        """Start a `send` for each job when it is due, also while earlier ones wait for their confirmation."""
        channels = itertools.cycle(range(len(self._sent_jobs)))
        count = 0
        async with asyncio.TaskGroup() as sending:
            while not self._stopped.is_set():
                due = int((time.monotonic() - self._began) * self._load.job_rate)
                for _ in range(due - count):
                    sending.create_task(self._send_job(next(channels)))
                count = due
                await asyncio.sleep(TICK)

    async def _send_job(self, channel: int) -> None:
        number = self._sent_jobs[channel]
        self._sent_jobs[channel] += 1
        job = {"type": "job", "s": self._index, "j": channel, "n": number}
        try:
            await self._layer.send(self._load.jobs[channel], job)
        except ForwarderUnavailable:
            self._unknown.append((channel, number))
        except (ChannelFull, RequestRefused):
            self._unknown.append((channel, number))
            self._refused += 1
        self._finished_jobs += 1


class Receiver:
    """Receives and counts group and direct messages, and logs the jobs that it does.

    Args:
        layer: Its layer.
        log: Path of the log of jobs.
    """

    def __init__(self, layer: DedicatedZmqChannelLayer, log: Path) -> None:
        self._layer = layer
        self._tally = Tally()
        self._pause = 0.0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._tasks: list[asyncio.Task[None]] = []

    async def stats(self) -> Any:
        """Return the layer's counts."""
        return self._layer.stats()

    async def join(self, groups: list[str]) -> str:
        """Join groups, start to receive, and return the name of a channel for direct messages."""
        member, own = await self._layer.new_channel(), await self._layer.new_channel()
        await asyncio.gather(*(self._layer.group_add(group, member) for group in groups))
        self._tasks += [asyncio.create_task(self._receive(channel)) for channel in (member, own)]
        return own

    async def work(self, channels: list[str]) -> None:
        """Start to do jobs, with one reader for each channel."""
        self._tasks += [asyncio.create_task(self._work(channel)) for channel in channels]

    async def slow_down(self, pause: float) -> None:
        """Let the readers of messages sleep for this number of seconds after each message."""
        self._pause = pause

    async def begin(self) -> None:
        """Start to measure silence."""
        self._tally.gaps.begin()

    async def end(self) -> None:
        """Stop measuring silence."""
        self._tally.gaps.end()

    async def forget_lag(self) -> None:
        """Let only later messages count for the lag."""
        self._tally.forget_lag()

    async def lag(self) -> float:
        """Return `Tally.lag`; raises the error of a failed reader."""
        self._check()
        return self._tally.lag

    async def progress(self, sent: list[list[int]], topics: list[int]) -> list[int]:
        """Return how many messages have arrived and how many are missing; raises the error of a failed reader."""
        self._check()
        return [self._tally.received, self._tally.lost(_by_sender(sent), topics)]

    async def counts(self, sent: list[list[int]], topics: list[int]) -> dict[str, Any]:
        """Return the counts.

        Args:
            sent: For each sender, how many numbers it has sent of each topic.
            topics: Topics of this receiver.
        """
        tally, by_sender = self._tally, _by_sender(sent)
        return {
            "lost": tally.lost(by_sender, topics),
            "twice": tally.twice,
            "disorder": tally.disorder,
            "silence": tally.gaps.longest,
            "lateness": tally.lateness,
            "examples": tally.examples(by_sender, topics),
        }

    def _check(self) -> None:
        for task in self._tasks:
            if task.done():  # readers never return: this one failed
                task.result()

    async def _receive(self, channel: str) -> None:
        receive, take = self._layer.receive, self._tally.take
        while True:
            message = await receive(channel)
            take(message["s"], message["t"], message["n"], message["at"])
            if self._pause:
                await asyncio.sleep(self._pause)  # as a handler that takes long

    async def _work(self, channel: str) -> None:
        while True:
            job = await self._layer.receive(channel)
            os.write(self._log, JOB.pack(job["s"], job["j"], job["n"]))  # at once, since a kill may follow


def _by_sender(sent: list[list[int]]) -> Sent:
    return dict(enumerate(sent))


async def obey(client: Sender | Receiver) -> None:
    """Carry out the commands of standard input until it ends."""
    lines = asyncio.StreamReader(limit=2**24)
    protocol = asyncio.StreamReaderProtocol(lines)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while line := await lines.readline():
        verb, arguments = json.loads(line)
        result, error = None, None
        try:
            result = await getattr(client, verb)(*arguments)
        except Exception as raised:
            logger.exception("%s failed", verb)
            error = f"{type(raised).__name__}: {raised}"
        os.write(sys.stdout.fileno(), json.dumps([result, error]).encode() + b"\n")
    transport.close()
    await asyncio.sleep(0)  # uvloop closes it one turn later


async def main(role: str, config: dict[str, Any], argument: str) -> None:
    """Run a sender or a receiver until standard input ends.

    Args:
        role: `sender` or `receiver`.
        config: CONFIG of the layer.
        argument: The sender's number, or the path of the receiver's log of jobs.
    """
    async with DedicatedZmqChannelLayer(**config) as layer:
        await obey(Sender(layer, int(argument)) if role == "sender" else Receiver(layer, Path(argument)))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    loop, role, config, argument = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(main(role, json.loads(config), argument))
