"""Send to a normal channel without readers, until it is full, and then on: run in a pod by the scenarios.

    python overfill.py SECONDS

Prints `full` when messages were refused for so many seconds. SIGTERM ends it, once it has read what there is.
"""

import asyncio
import signal
import sys
import time

from channels.exceptions import ChannelFull

import channels_zmq
from channels_zmq.core import DedicatedZmqChannelLayer

CHANNEL = "unread"


async def main(seconds: float) -> None:
    """Send until told to end."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    (settings,) = channels_zmq.channel_layers_from_env().values()
    layer = DedicatedZmqChannelLayer(**settings["CONFIG"])
    since = told = 0.0
    while not stop.is_set():
        try:
            await layer.send(CHANNEL, {"type": "job"})
        except ChannelFull:
            since = since or time.monotonic()
            if not told and time.monotonic() > since + seconds:
                told = time.monotonic()
                print("full", flush=True)
        await asyncio.sleep(0.02)
    while True:
        try:
            await asyncio.wait_for(layer.receive(CHANNEL), 2)
        except TimeoutError:
            break
    await layer.close()


asyncio.run(main(float(sys.argv[1])))
