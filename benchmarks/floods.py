"""`python -m benchmarks.floods`: what one peer can do to a forwarder and its clients by sending as fast as it can.

For each port and size of frames a process floods a forwarder for a few seconds, by several connections that it makes
anew whenever they are ended. Meanwhile a layer sends group messages to itself. Prints the longest time that a message
took, the largest resident memory of the forwarder, and how much the flood has sent.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

from channels_zmq.core import DedicatedZmqChannelLayer

from .report import table
from .servers import START_TIMEOUT, forwarder

MEBIBYTE = 2**20
LIMIT = "512MiB"
SIZES = (1, 30, 1000, 4600)
CONNECTIONS = 3
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
"""The greeting of ZMTP 3.0 without keys (ZeroMQ RFC 23)."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.floods", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each flood")
    parser.add_argument("--flood", nargs=3, metavar=("PORT", "KIND", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flood is not None:
        port, kind, size = arguments.flood
        print(_flood(int(port), kind, int(size), arguments.seconds))
        return
    rows = [("port", "bytes a frame", "longest message", "largest memory", "sent")]
    for port, kind in (("of subscribers", "XSUB"), ("of producers", "PUSH")):
        for size in SIZES:
            print(f"{len(rows)} of {2 * len(SIZES)}: frames of {size} bytes to the port {port}", file=sys.stderr)
            longest, memory, sent = asyncio.run(_measure(kind, size, arguments.seconds))
            rows.append((port, str(size), f"{longest:.2f} s", f"{memory:.0f} MiB", f"{sent:.0f} MiB"))
    print(table(rows))


async def _measure(kind: str, size: int, seconds: float) -> tuple[float, float, float]:
    with forwarder({"CHANNELS_ZMQ_FORWARDER_MEMORY_LIMIT": LIMIT}) as running:
        layer = DedicatedZmqChannelLayer(pull_socket_address=running.pull, pub_socket_address=running.pub)
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        port = (running.pub if kind == "XSUB" else running.pull).rpartition(":")[2]
        command = [sys.executable, "-m", "benchmarks.floods", f"--seconds={seconds}"]
        command += ["--flood", port, kind, str(size)]
        flood = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        longest, memory, end = 0.0, 0.0, time.monotonic() + seconds + 2.0
        while time.monotonic() < end:
            begun = time.monotonic()
            await layer.group_send("room", {"at": begun})
            await layer.receive(channel)
            longest = max(longest, time.monotonic() - begun)
            memory = max(memory, _resident(running.pid))
            await asyncio.sleep(0.01)
        sent, _ = flood.communicate(timeout=START_TIMEOUT)
        await layer.close()
    return longest, memory, float(sent)


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / MEBIBYTE


def _flood(port: int, kind: str, size: int, seconds: float) -> float:
    """Send by several connections, and return the MiB that they have taken."""
    end, sent = time.monotonic() + seconds, [0.0] * CONNECTIONS

    def send(number: int) -> None:
        while time.monotonic() < end:
            with suppress(OSError), closing(_connect(port, kind)) as peer:
                while time.monotonic() < end:
                    peer.sendall(frames)
                    sent[number] += len(frames) / MEBIBYTE

    head = b"\0%c" % size if size < 256 else b"\2" + size.to_bytes(8)
    frames = (head + b"?" * size) * (MEBIBYTE // 2 // (size + len(head)))
    threads = [threading.Thread(target=send, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(sent)


def _connect(port: int, kind: str) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT)
    ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4) + kind.encode()
    peer.sendall(GREETING + b"\x04%c%b" % (len(ready), ready))
    greeting = b""
    while len(greeting) < len(GREETING):
        more = peer.recv(len(GREETING) - len(greeting))
        if not more:
            raise ConnectionResetError
        greeting += more
    return peer


if __name__ == "__main__":
    main()
