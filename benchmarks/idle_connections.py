"""`python -m benchmarks.idle_connections`: many connections that say little, to a forwarder with few descriptors.

Peers connect to both ports, again as fast as they are ended. For each thing that they send at once, and never go on
from, prints how much of a core the forwarder uses, how many of the requests for `/livez` it answers, and how long a new
layer takes to send itself a message.
"""

import argparse
import asyncio
import resource
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

from channels_zmq.core import DedicatedZmqChannelLayer

from .floods import GREETING
from .measures.base import cpu_seconds
from .report import table
from .servers import START_TIMEOUT, Running, forwarder

DESCRIPTORS = 1024
"""The hard limit of each process."""
PROCESSES, PEERS = 3, 500
SENT = {
    "nothing": b"",
    "one byte": GREETING[:1],
    "a greeting and a part of a command": GREETING + b"\x04\x19\x05READY",
}
ASK_EVERY, ASK_TIMEOUT = 0.1, 1.0


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.idle_connections", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for which the peers connect")
    parser.add_argument("--peers", nargs=3, metavar=("PULL", "PUB", "SENT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peers is not None:
        pull, pub, sent = arguments.peers
        asyncio.run(_connect([_port(pull), _port(pub)], SENT[sent], arguments.seconds))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    rows = [("each peer sends", "processor", "/livez answered", "new client in after")]
    for sent in SENT:
        print(f"{len(rows)} of {len(SENT)}: {sent}", file=sys.stderr)
        with forwarder({}) as running:
            rows.append((sent, *asyncio.run(_measure(running, sent, arguments.seconds))))
    print(f"{PROCESSES * PEERS} peers, {DESCRIPTORS} descriptors")
    print(table(rows))


async def _measure(running: Running, sent: str, seconds: float) -> tuple[str, str, str]:
    command = [sys.executable, "-m", "benchmarks.idle_connections", f"--seconds={seconds}"]
    peers = [subprocess.Popen([*command, "--peers", running.pull, running.pub, sent]) for _ in range(PROCESSES)]
    await asyncio.sleep(seconds / 4)  # until the descriptors have been short for a while
    newcomer = asyncio.create_task(_new_client(running))
    begun, used, answers = time.monotonic(), cpu_seconds(running.pid), list[bool]()
    while time.monotonic() < begun + seconds / 2:
        answers.append(await asyncio.to_thread(_lives, running.admin))
        await asyncio.sleep(ASK_EVERY)
    share = (cpu_seconds(running.pid) - used) / (time.monotonic() - begun)
    is_in = newcomer.done()
    for peer in peers:
        await asyncio.to_thread(peer.wait, seconds + START_TIMEOUT)
    took = await newcomer
    return f"{share:.0%}", f"{sum(answers)} of {len(answers)}", f"{took:.1f} s" if is_in else "when it was over"


async def _new_client(running: Running) -> float:
    begun = time.monotonic()
    layer = DedicatedZmqChannelLayer(
        pull_socket_address=running.pull, pub_socket_address=running.pub, connect_timeout=START_TIMEOUT
    )
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "hello"})
    await layer.group_add("room", channel)
    await layer.receive(channel)
    took = time.monotonic() - begun
    await layer.close()
    return took


def _lives(admin: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://{admin}/livez", timeout=ASK_TIMEOUT) as answer:
        return bool(answer.status == 200)
    return False


async def _connect(ports: list[int], sent: bytes, seconds: float) -> None:
    end = time.monotonic() + seconds

    async def stay(port: int) -> None:
        while time.monotonic() < end:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                with suppress(TimeoutError):
                    async with asyncio.timeout(end - time.monotonic()):
                        await reader.read(-1)
                writer.close()

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(stay(ports[number % 2]) for number in range(PEERS)))


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


if __name__ == "__main__":
    main()
