"""Join a group, and say at the end what came: run in a pod by the scenarios, with the layer that its environment names.

    python receive.py GROUP

Prints `joined` once nothing can be missed any more, and a line of JSON when a message of the type "end" has come.
"""

import asyncio
import itertools
import json
import sys

import channels_zmq
from channels_zmq.core import DedicatedZmqChannelLayer


async def main(group: str) -> None:
    """Receive until the end."""
    (settings,) = channels_zmq.channel_layers_from_env().values()
    layer = DedicatedZmqChannelLayer(**settings["CONFIG"] | {"capacity": 100_000})
    channel = await layer.new_channel()
    while True:
        try:
            await layer.group_add(group, channel)
            break
        except ConnectionError as error:
            print(error, flush=True)
    print("joined", flush=True)
    numbers: dict[str, list[int]] = {}
    while (message := await layer.receive(channel))["type"] != "end":
        numbers.setdefault(message["sender"], []).append(message["number"])
    repeated = sum(len(each) - len(set(each)) for each in numbers.values())
    disordered = sum(one > other for each in numbers.values() for one, other in itertools.pairwise(each))
    received = {sender: len(set(each)) for sender, each in numbers.items()}
    stats = layer.stats()
    summary = {
        "received": received,
        "repeated": repeated,
        "disordered": disordered,
        "dropped": stats["dropped"],
        "reconnects": stats["reconnects"],
    }
    print(json.dumps(summary), flush=True)
    await layer.close()


asyncio.run(main(*sys.argv[1:]))
