"""Join a group, work on jobs, and say at the end what came: run in a pod by the scenarios.

    python receive.py GROUP

The layer is the one of its variables. Prints `joined` once nothing can be missed any more, and a line of JSON when a
message of the type "end" has come, and no job for a while.
"""

import asyncio
import itertools
import json
import sys
import time

import channels_zmq
from channels_zmq.core import DedicatedZmqChannelLayer

QUIET = 2.0
"""Seconds without a job after which there is none any more."""


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
    jobs: list[int] = []
    ended = asyncio.Event()
    work = asyncio.create_task(_work(layer, jobs, ended))
    numbers: dict[str, list[int]] = {}
    silence, last = 0.0, time.monotonic()
    while (message := await layer.receive(channel))["type"] != "end":
        numbers.setdefault(message["sender"], []).append(message["number"])
        now = time.monotonic()
        silence, last = max(silence, now - last if len(numbers[message["sender"]]) > 1 else 0.0), now
    ended.set()
    await work
    repeated = sum(len(each) - len(set(each)) for each in numbers.values())
    disordered = sum(one > other for each in numbers.values() for one, other in itertools.pairwise(each))
    received = {sender: len(set(each)) for sender, each in numbers.items()}
    stats = layer.stats()
    summary = {
        "received": received,
        "repeated": repeated,
        "disordered": disordered,
        "silence": round(silence, 3),
        "jobs": jobs,
        "dropped": stats["dropped"],
        "reconnects": stats["reconnects"],
    }
    print(json.dumps(summary), flush=True)
    await layer.close()


async def _work(layer: DedicatedZmqChannelLayer, jobs: list[int], ended: asyncio.Event) -> None:
    """Take jobs until the end, and until there is none any more."""
    while True:
        try:
            jobs.append((await asyncio.wait_for(layer.receive("jobs"), QUIET))["number"])
        except TimeoutError:
            if ended.is_set():
                return


asyncio.run(main(*sys.argv[1:]))
