"""Send numbered messages to a group at a steady rate: run in a pod by the scenarios.

    python send.py GROUP SECONDS RATE

Prints `sending` at the start and a line of JSON at the end. The sender is called as its pod is. The last message, of
the type "end", is sent when the forwarder is there and has taken all others.
"""

import asyncio
import json
import os
import sys
import time

import channels_zmq
from channels_zmq.core import DedicatedZmqChannelLayer


async def main(group: str, seconds: str, rate: str) -> None:
    """Send for so long."""
    (settings,) = channels_zmq.channel_layers_from_env().values()
    layer = DedicatedZmqChannelLayer(**settings["CONFIG"])
    sender, pause = os.environ["HOSTNAME"], 1 / float(rate)
    await _settled(layer)
    print("sending", flush=True)
    began = time.monotonic()
    sent = 0
    while (now := time.monotonic()) < began + float(seconds):
        while sent * pause <= now - began:
            await layer.group_send(group, {"type": "number", "sender": sender, "number": sent})
            sent += 1
        await asyncio.sleep(pause)
    await _settled(layer)
    await layer.group_send(group, {"type": "end"})
    stats = layer.stats()
    print(json.dumps({"sent": sent, "dropped": stats["dropped"], "reconnects": stats["reconnects"]}), flush=True)
    await layer.close()


async def _settled(layer: DedicatedZmqChannelLayer) -> None:
    """Wait for the forwarder, and until nothing waits in this process any more."""
    while not layer.stats()["connected"] or layer.stats()["waiting"]:
        await asyncio.sleep(0.05)


asyncio.run(main(*sys.argv[1:]))
