"""Use a layer in each way once, and say how it went: run in a pod by the scenarios.

    python ask.py [ALIAS...]

For each alias: a group message, a direct one and one on a normal channel, from this process to itself through the
forwarder. The names are those of this process alone, since other pods may do the same at the same time. Prints
`ok ALIAS` for each; ends with an error and its text if one does not work.
"""

import asyncio
import sys
import uuid
from typing import Any

from django.utils.module_loading import import_string

import channels_zmq

TRIES = 4


async def main(aliases: list[str]) -> None:
    """Try every alias."""
    layers = channels_zmq.channel_layers_from_env()
    for alias in aliases or ["default"]:
        layer = import_string(layers[alias]["BACKEND"])(**layers[alias]["CONFIG"])
        channel, own = await layer.new_channel(), uuid.uuid4().hex
        group, jobs = f"asked-{own}", f"jobs-{own}"
        await _joined(layer, group, channel)
        await layer.group_send(group, {"type": "group", "alias": alias})
        await layer.send(channel, {"type": "direct"})
        await layer.send(jobs, {"type": "job"})
        came = {(await layer.receive(each))["type"] for each in (channel, channel, jobs)}
        if came != {"group", "direct", "job"}:
            sys.exit(f"{alias}: {came}")
        print("ok", alias, flush=True)
        await layer.close()


async def _joined(layer: Any, group: str, channel: str) -> None:
    """Join a group, also if the forwarders are still starting: a pod may be there before them."""
    for _ in range(TRIES - 1):
        try:
            await layer.group_add(group, channel)
        except ConnectionError as error:
            print(error, flush=True)
        else:
            return
    await layer.group_add(group, channel)


asyncio.run(asyncio.wait_for(main(sys.argv[1:]), 60))
