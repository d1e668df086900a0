"""The dedicated layer in the servers that users run: daphne and uvicorn, a process of each."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from forwarders import PATIENCE, Forwarder, free_ports
from peers import wait_until
from websockets.asyncio.client import ClientConnection, connect

SUPPORT = Path(__file__).parents[1] / "support"
SERVERS = {
    "daphne": ("-m", "daphne", "--bind", "127.0.0.1", "--port"),
    "uvicorn": ("-m", "uvicorn", "--log-level", "error", "--port"),
}


@contextmanager
def server(name: str, port: int, forwarder: Forwarder) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server of the application at a port."""
    addresses = {
        "CHANNELS_ZMQ_PULL_SOCKET_ADDRESS": forwarder.pull,
        "CHANNELS_ZMQ_PUB_SOCKET_ADDRESS": forwarder.pub,
    }
    command = [sys.executable, *SERVERS[name], str(port), "room_application:application"]
    process = subprocess.Popen(
        command,
        cwd=SUPPORT,
        env={**os.environ, **addresses},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    yield process
    process.kill()
    process.communicate()


async def visit(port: int) -> ClientConnection:
    """Connect to a server once it accepts connections."""
    while True:
        try:
            return await connect(f"ws://127.0.0.1:{port}/", proxy=None)
        except OSError:
            await asyncio.sleep(0.01)


def test_people_on_daphne_and_on_uvicorn_are_in_one_room(forwarder: Forwarder) -> None:
    """Users on daphne and uvicorn get each message of the others once and in order, and both servers end in order."""
    ports = dict(zip(SERVERS, free_ports(2), strict=True))

    async def scenario() -> None:
        async with asyncio.timeout(PATIENCE):
            people = [await visit(ports[name]) for name in ("daphne", "uvicorn", "daphne", "uvicorn")]
            for speaker in people:
                for number in range(50):
                    await speaker.send(str(number))
                for hearer in people:
                    assert [await hearer.recv() for _ in range(50)] == [str(number) for number in range(50)]
            await people.pop().close()
            await people[0].send("last")
            assert [await hearer.recv() for hearer in people] == ["last"] * 3
            for person in people:
                await person.close()

    with ExitStack() as running:
        servers = [running.enter_context(server(name, port, forwarder)) for name, port in ports.items()]
        asyncio.run(scenario())
        wait_until(lambda: forwarder.status()["groups"] == 0)  # all users have left
        for process in servers:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=PATIENCE)
            assert b"Traceback" not in errors
            assert process.returncode in (0, -signal.SIGTERM), "uvicorn ends itself by the signal, once it is done"
