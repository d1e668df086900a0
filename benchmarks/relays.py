"""TCP relays between processes and a server: connections that a measure can cut.

The tests have a relay of their own: they are published without the benchmarks.
"""

import asyncio
from contextlib import suppress

from .crew import Line

CHUNK = 65_536


async def relay(line: Line, targets: list[list[int]]) -> None:
    """Run relays, several for each process that a measure cuts off; report their ports, then follow its orders.

    Args:
        line: Receives `("cut", number)` and `("mend", number)` for a process, and `None` for the end.
        targets: For each process the ports to which its relays connect.
    """
    relays = [[_Relay(target) for target in ports] for ports in targets]
    for of_process in relays:
        for one in of_process:
            await one.start()
    line.put([[one.port for one in of_process] for of_process in relays])
    while (order := await line.aget()) is not None:
        verb, number = order
        for one in relays[number]:
            if verb == "cut":
                one.cut()
            else:
                await one.start()
    for of_process in relays:
        for one in of_process:
            await one.end()


class _Relay:
    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._flows: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Accept connections, at the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Close all connections, and accept no new ones."""
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def end(self) -> None:
        self.cut()
        await asyncio.gather(*self._flows)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            flows = {asyncio.create_task(_pass_on(*ends)) for ends in ((reader, far_writer), (far_reader, writer))}
            self._open |= {writer, far_writer}
            self._flows |= flows
            await asyncio.wait(flows)
            self._open -= {writer, far_writer}
            self._flows -= flows
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()
