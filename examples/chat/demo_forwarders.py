"""The forwarders of the demo: started, killed when a page requests it, and started again."""

import asyncio
import os
from typing import Any

from children import Children

from channels_zmq import channel_layers_from_env
from channels_zmq.core import DedicatedZmqChannelLayer

ASKED, PAGES = "forwarders", "counting.pages"
"""The normal channel for requests of pages, and the group that gets the forwarders' states: see chat/counting.py."""
AWAY = 3.0
"""Seconds until a killed forwarder is started again."""


class Forwarders:
    """The forwarders, one for each triple of ports.

    Args:
        children: The processes of the demo, which the forwarders join.
        ports: The ports for PULL, XPUB and the status page of each forwarder.
    """

    def __init__(self, children: Children, ports: list[tuple[int, int, int]]) -> None:
        self._children, self._ports = children, ports
        self.states = ["starting"] * len(ports)
        self._next = 0
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with the forwarders' addresses."""
        pulls, pubs = (",".join(f"tcp://127.0.0.1:{one[place]}" for one in self._ports) for place in (0, 1))
        return {"CHANNELS_ZMQ_PULL_SOCKET_ADDRESS": pulls, "CHANNELS_ZMQ_PUB_SOCKET_ADDRESS": pubs}

    @property
    def status_pages(self) -> list[str]:
        """The addresses of the forwarders' status pages."""
        return [f"http://127.0.0.1:{admin}" for _, _, admin in self._ports]

    async def start(self, index: int) -> None:
        """Start the forwarder with this index."""
        pull, pub, admin = self._ports[index]
        addresses = ["--pull-address", f"tcp://127.0.0.1:{pull}", "--pub-address", f"tcp://127.0.0.1:{pub}"]
        admin_address = ["--admin-address", f"127.0.0.1:{admin}"]
        arguments = ["-m", "channels_zmq_forwarder", *addresses, *admin_address]
        await self._children.start(f"forwarder{index + 1}", *arguments, environment={})
        self.states[index] = "running"

    async def obey(self) -> None:
        """Carry out requests of pages, and announce each change of a state to them."""
        # The settings of the web processes: a serializer or a prefix may be in the environment.
        settings = channel_layers_from_env({**os.environ, **self.environment})["default"]
        async with DedicatedZmqChannelLayer(**settings["CONFIG"]) as layer:
            while True:
                wish = await layer.receive(ASKED)
                if wish["type"] == "forwarders.kill" and all(state == "running" for state in self.states):
                    index, self._next = self._next, (self._next + 1) % len(self._ports)
                    await self._children.kill(f"forwarder{index + 1}")
                    self.states[index] = "killed"
                    task = asyncio.create_task(self._start_later(layer, index))
                    self._starting.add(task)
                    task.add_done_callback(self._starting.discard)
                await self._tell(layer)

    async def _start_later(self, layer: Any, index: int) -> None:
        await asyncio.sleep(AWAY)
        await self.start(index)
        await self._tell(layer)

    async def _tell(self, layer: Any) -> None:
        await layer.group_send(PAGES, {"type": "counting.forwarders", "states": self.states})
