"""Two people in a room, over real WebSockets: the conversation of the demo, and how long a message takes.

As a program it takes the address of a site, `python conversation.py http://chat-web:8000`, and lets the first two
processes behind that name talk to each other.
"""

import asyncio
import json
import secrets
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect

PATIENCE = 60.0  # seconds for one message: a worker or a forwarder may still be starting


@dataclass(frozen=True, slots=True)
class Latency:
    """The seconds that each message took from one page's socket to another's."""

    samples: list[float]

    def __str__(self) -> str:
        p50, p99 = (statistics.quantiles(self.samples, n=100)[rank - 1] * 1000 for rank in (50, 99))
        return f"{len(self.samples)} messages from page to page: p50 {p50:.2f} ms, p99 {p99:.2f} ms"


async def converse(first: str, second: str, messages: int = 200, *, page: str = "") -> Latency:
    """Let two people talk in the lobby, then measure the time of more messages in another room.

    Args:
        first: Address of the web process that serves the first person, "http://127.0.0.1:8000".
        second: The same of the second person.
        messages: How many to measure.
        page: The address that their browsers show, if it is not that of the process.
    """
    async with Person(first, "lobby", "Ada", page) as ada, Person(second, "lobby", "Bo", page) as bo:
        await bo.sees(await ada.says(f"Hello! I am served by {ada.process}."))
        await ada.sees(await bo.says(f"And I am served by {bo.process}. Shall we roll for the dishes?"))
        roll = await ada.says("/roll 2d6")
        await bo.sees(roll, finished=True)
        await ada.sees(roll, finished=True)
    async with Person(first, "latency", "Ada", page) as ada, Person(second, "latency", "Bo", page) as bo:
        await _exchange(ada, bo, 20)  # warm
        return Latency(await _exchange(ada, bo, messages))


async def _exchange(ada: "Person", bo: "Person", messages: int) -> list[float]:
    samples = []
    for number in range(messages):
        speaker, listener = (ada, bo) if number % 2 == 0 else (bo, ada)
        begin = time.perf_counter()
        await listener.sees(await speaker.says(f"message {number}"))
        samples.append(time.perf_counter() - begin)
    return samples


class Person:
    """A person's page in a room, without a browser."""

    def __init__(self, site: str, room: str, name: str, page: str = "") -> None:
        self.name = name
        self.process = ""
        self._page = page or site
        self._address = f"ws{site.removeprefix('http')}/ws/room/{quote(room)}/?{urlencode({'name': name})}"
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        self._socket = await connect(self._address, origin=self._page, proxy=None)
        welcome = await self._until(lambda message: message["type"] == "welcome")
        self.process = welcome["process"]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()

    @property
    def socket(self) -> ClientConnection:
        assert self._socket is not None, "not in the room yet"
        return self._socket

    async def says(self, text: str) -> str:
        """Send a message, and return its key."""
        key = secrets.token_hex(12)
        await self.socket.send(json.dumps({"type": "say", "key": key, "text": text}))
        return key

    async def sees(self, key: str, *, finished: bool = False) -> None:
        """Wait until the entry has arrived; `finished`: until its job is done."""

        def wanted(message: dict[str, Any]) -> bool:
            entries = message["entries"] if message["type"] == "entries" else []
            return any(entry["id"] == key and (entry["done"] >= 1 or not finished) for entry in entries)

        await self._until(wanted)

    async def learns_of_the_layer(self, *, up: bool) -> None:
        """Wait for the announcement that the layer is away, or back."""
        await self._until(lambda message: message["type"] == "layer" and message["up"] is up)

    async def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            while True:
                message = json.loads(await self.socket.recv())
                if wanted(message):
                    return message


def processes(site: str) -> list[str]:
    """Return the addresses behind the name of a site, each as a site of its own."""
    parts = urlsplit(site)
    port = parts.port or 80
    found = socket.getaddrinfo(parts.hostname, port, socket.AF_INET, socket.SOCK_STREAM)
    return [f"http://{host}:{port}" for host in sorted({str(address[0]) for *_, address in found})]


if __name__ == "__main__":
    first, *others = processes(sys.argv[1])
    print(asyncio.run(converse(first, (others or [first])[0], page=sys.argv[1])))
