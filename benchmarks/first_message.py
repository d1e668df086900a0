"""A program that `start` runs anew each time: it imports a layer and sends itself a message by a group.

It is run by its path and imports nothing of the benchmarks, so that only the imports of the layer count. Its argument
is JSON (`backend`, `config`, `group`, `message`, `loop`), and so is the line that it prints as soon as the message has
arrived.
"""

import asyncio
import importlib
import json
import sys
import time
from typing import Any

AGAIN_AFTER = 0.05
"""Seconds after which a message is sent again; a layer may return from `group_add` before its server knows."""


def main() -> None:
    """Time the imports, then send and receive a message."""
    order = json.loads(sys.argv[1])
    begin = time.perf_counter()
    importlib.import_module("channels.layers")
    channels = time.perf_counter()
    module, _, name = order["backend"].rpartition(".")
    backend = getattr(importlib.import_module(module), name)
    imported = time.perf_counter()
    said = {"channels_import_ms": 1_000 * (channels - begin), "import_ms": 1_000 * (imported - channels)}
    factory = asyncio.new_event_loop
    if order["loop"] == "uvloop":
        import uvloop  # only here: the other runs are without it

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_through(backend(**order["config"]), order["group"], order["message"], said))


async def _through(layer: Any, group: str, message: dict[str, Any], said: dict[str, float]) -> None:
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    read = asyncio.create_task(layer.receive(channel))
    while not read.done():
        await layer.group_send(group, message)
        await asyncio.wait({read}, timeout=AGAIN_AFTER)
    print(json.dumps({"message": read.result(), "figures": said}), flush=True)
    if hasattr(type(layer), "close"):
        await layer.close()


if __name__ == "__main__":
    main()
