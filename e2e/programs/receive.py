"""Join groups, work on jobs, and say at the end what came: run in a pod by the scenarios.

    python receive.py GROUPS

The layer is the one of its variables. Prints `joined` once nothing can be missed any more, and a line of JSON when
messages of the type "end" have come from all groups, and no job for a while.
"""

import asyncio
import itertools
import json
import sys
import time

import channels_zmq
from channels_zmq.core import DedicatedZmqChannelLayer

QUIET = 2.0
"""Seconds without a job after which all jobs have been received."""


async def main(groups: str) -> None:
    """Receive until the end."""
    (settings,) = channels_zmq.channel_layers_from_env().values()
    layer = DedicatedZmqChannelLayer(**settings["CONFIG"] | {"capacity": 100_000})
    channel = await layer.new_channel()
    for number in range(int(groups)):
        while True:
            try:
                await layer.group_add(f"group-{number}", channel)
                break
            except ConnectionError as error:
                print(error, flush=True)
    print("joined", flush=True)
    jobs: list[int] = []
    ended = asyncio.Event()
    work = asyncio.create_task(_work(layer, jobs, ended))
    streams: dict[tuple[str, int], list[int]] = {}
    last: dict[tuple[str, int], float] = {}
    silence, open_groups = 0.0, int(groups)
    while open_groups:
        message = await layer.receive(channel)
        if message["type"] == "end":
            open_groups -= 1
            continue
        sender, number, now = message["sender"], message["number"], time.monotonic()
        stream = sender, number % int(groups)
        silence, last[stream] = max(silence, now - last.get(stream, now)), now
        streams.setdefault(stream, []).append(number)
    ended.set()
    await work
    repeated = sum(len(each) - len(set(each)) for each in streams.values())
    disordered = sum(one > other for each in streams.values() for one, other in itertools.pairwise(each))
    received = sum(len(set(each)) for each in streams.values())
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
    """Take jobs until the end, and until all jobs have been received."""
    while True:
        try:
            jobs.append((await asyncio.wait_for(layer.receive("jobs"), QUIET))["number"])
        except TimeoutError:
            if ended.is_set():
                return


asyncio.run(main(*sys.argv[1:]))
