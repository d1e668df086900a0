"""The forwarders of the demo: started, killed when a page asks for it, and started again."""

import asyncio
import os
from typing import Any

from children import Children

from channels_zmq import channel_layers_from_env
from channels_zmq.core import DedicatedZmqChannelLayer

ASKED, PAGES = "forwarders", "counting.pages"
"""The normal channel by which pages ask, and the group that hears how the forwarders are: see chat/counting.py."""
AWAY = 3.0
"""Seconds until a killed forwarder is started again."""


class Forwarders:
    """As many forwarders as there are pairs of ports.

    Args:
        children: Which they belong to.
        ports: Of each PULL, XPUB and the status page.
    """

    def __init__(self, children: Children, ports: list[tuple[int, int, int]]) -> None:
        self._children, self._ports = children, ports
        self.states = ["starting"] * len(ports)
        self._next = 0
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which processes find them."""
        pulls, pubs = (",".join(f"tcp://127.0.0.1:{one[place]}" for one in self._ports) for place in (0, 1))
        return {"CHANNELS_ZMQ_PULL_SOCKET_ADDRESS": pulls, "CHANNELS_ZMQ_PUB_SOCKET_ADDRESS": pubs}

    @property
    def status_pages(self) -> list[str]:
        """Where each has its status page."""
        return [f"http://127.0.0.1:{admin}" for _, _, admin in self._ports]

    async def start(self, index: int) -> None:
        """Start one."""
        pull, pub, admin = self._ports[index]
        addresses = ["--pull-address", f"tcp://127.0.0.1:{pull}", "--pub-address", f"tcp://127.0.0.1:{pub}"]
        admin_address = ["--admin-address", f"127.0.0.1:{admin}"]
        arguments = ["-m", "channels_zmq_forwarder", *addresses, *admin_address]
        await self._children.start(f"forwarder{index + 1}", *arguments, environment={})
        self.states[index] = "running"

    async def obey(self) -> None:
        """Do what pages ask for, and tell them of each change."""
        # As the web processes have it: a serializer or a prefix may be in the environment.
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
