"""`channels-zmq-forwarder bench`: measures the throughput and latency of each forwarder of a layer from this host."""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.commands import target
from channels_zmq_forwarder.commands.arguments import whole
from channels_zmq_forwarder.commands.client import Client
from channels_zmq_forwarder.commands.target import CommandError
from channels_zmq_forwarder.commands.text import progress

GROUP = "channels-zmq-bench"
WINDOW = 1000
"""Messages under way at a time: far fewer than the forwarder's mark for each subscriber."""
ROUND_TRIPS = 1000
MAX_SIZE = 2**26
"""Bytes; a thousand messages of it are under way at a time."""


def main(arguments: Sequence[str]) -> None:
    """Measure each forwarder, and print the results.

    Raises:
        CommandError: If a forwarder does not answer, or if messages are lost.
    """
    parser = argparse.ArgumentParser(
        prog="channels-zmq-forwarder bench",
        description="Measure messages per second and the round trip of a message through each forwarder of a layer. "
        "One Python process sends and receives: applications with several processes have a higher throughput.",
    )
    parser.add_argument(
        "--messages", type=whole(1), default=100_000, help="number of messages for each forwarder (100000)"
    )
    parser.add_argument("--size", type=whole(0, MAX_SIZE), default=200, help="size of a message in bytes (200)")
    target.add_arguments(parser, timeout=10.0)
    given = parser.parse_args(arguments)
    targets = target.find(given, os.environ, time.monotonic() + given.timeout)
    with zmq.Context() as context:
        for one in targets:
            with Client(context, one) as client:
                group = f"{GROUP}-{client.inbox.decode()}"  # of its own: several may run at once
                client.subscribe(group)
                client.hello(time.monotonic() + given.timeout)
                client.sync(time.monotonic() + given.timeout)
                with progress(given.messages) as advance:
                    rate = _rate(client, group, given.messages, bytes(given.size), given.timeout, advance)
                trips = _round_trips(client, group, min(ROUND_TRIPS, given.messages), bytes(given.size), given.timeout)
            cuts = statistics.quantiles(trips, n=100) if len(trips) > 1 else trips * 99
            print(
                f"{one}: {rate:,.0f} messages/s of {given.size} bytes, {rate * given.size / 2**20:,.1f} MiB/s;", end=" "
            )
            print(f"round trip p50 {cuts[49] * 1e6:,.0f} us, p99 {cuts[98] * 1e6:,.0f} us", flush=True)


def _rate(
    client: Client, group: str, messages: int, payload: bytes, timeout: float, advance: Callable[[int], None]
) -> float:
    sent = received = 0
    begin = time.perf_counter()
    while received < messages:
        while sent < messages and sent - received < WINDOW:
            client.group_send(group, payload)
            sent += 1
        before = received
        received += _next(client, timeout)
        while (frame := client.receive(0.0)) is not None:
            received += wire.is_group(frame)
        advance(received - before)
    return messages / (time.perf_counter() - begin)


def _round_trips(client: Client, group: str, count: int, payload: bytes, timeout: float) -> list[float]:
    trips = []
    for _ in range(count):
        begin = time.perf_counter()
        client.group_send(group, payload)
        while not _next(client, timeout):
            pass
        trips.append(time.perf_counter() - begin)
    return trips


def _next(client: Client, timeout: float) -> bool:
    """Return whether the next frame is a message."""
    frame = client.receive(time.monotonic() + timeout)
    if frame is None:
        raise CommandError(f"{client.target}: no message arrived within {timeout:g} s")
    return wire.is_group(frame)
