"""Send numbered messages at a steady rate, to groups and as jobs: run in a pod by the scenarios.

    python send.py GROUPS RATE

RATE messages a second go to so many groups in turn, and a hundredth as many jobs to the channel "jobs", until SIGTERM.
Prints `sending` at the start and a line of JSON at the end. The sender is called as its pod is. The last messages, of
the type "end", are sent when forwarders are there and have taken all others.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator

from channels.exceptions import ChannelFull

import channels_zmq
from channels_zmq.core import DedicatedZmqChannelLayer

SENDER = os.environ["HOSTNAME"]


async def main(groups: str, rate: str) -> None:
    """Send until told to end."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    (settings,) = channels_zmq.channel_layers_from_env().values()
    layer = DedicatedZmqChannelLayer(**settings["CONFIG"])
    await _settled(layer)
    print("sending", flush=True)
    jobs = asyncio.create_task(_send_jobs(layer, 100 / float(rate), stop))
    sent = 0
    async for sent in _steadily(1 / float(rate), stop):
        await layer.group_send(f"group-{sent % int(groups)}", {"type": "number", "sender": SENDER, "number": sent})
    sent += 1
    confirmed, unknown = await jobs
    await _settled(layer)
    for number in range(int(groups)):
        await layer.group_send(f"group-{number}", {"type": "end"})
    stats = layer.stats()
    summary = {
        "sent": sent,
        "jobs": confirmed,
        "unknown": unknown,
        "dropped": stats["dropped"],
        "reconnects": stats["reconnects"],
    }
    print(json.dumps(summary), flush=True)
    await layer.close()


async def _send_jobs(layer: DedicatedZmqChannelLayer, pause: float, stop: asyncio.Event) -> tuple[list[int], list[int]]:
    """Return the numbers of the jobs that were taken, and of those that failed."""
    confirmed, unknown = [], []
    async for number in _steadily(pause, stop):
        try:
            await layer.send("jobs", {"type": "job", "sender": SENDER, "number": number})
            confirmed.append(number)
        except (ConnectionError, ChannelFull):
            unknown.append(number)
    return confirmed, unknown


async def _steadily(pause: float, stop: asyncio.Event) -> AsyncIterator[int]:
    began = time.monotonic()
    number = 0
    while not stop.is_set():
        while number * pause <= time.monotonic() - began:
            yield number
            number += 1
        await asyncio.sleep(pause)


async def _settled(layer: DedicatedZmqChannelLayer) -> None:
    """Wait for a forwarder, and until nothing waits in this process any more."""
    while not layer.stats()["connected"] or layer.stats()["waiting"]:
        await asyncio.sleep(0.05)


asyncio.run(main(*sys.argv[1:]))
