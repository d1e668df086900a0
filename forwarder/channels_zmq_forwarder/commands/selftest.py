"""`channels-zmq-forwarder selftest`: sends messages through every forwarder of a layer, and checks that they arrive."""

import argparse
import os
import time
from collections.abc import Sequence

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.commands import target
from channels_zmq_forwarder.commands.arguments import whole
from channels_zmq_forwarder.commands.client import Client
from channels_zmq_forwarder.commands.target import CommandError

GROUP = "channels-zmq-selftest"
TWICE = 0.5
"""Seconds within which the duplicate of a message would arrive."""


def main(arguments: Sequence[str]) -> None:
    """Send messages through every forwarder of a layer, and check that all of them arrive, once and in order.

    Raises:
        CommandError: If one of the forwarders fails.
    """
    parser = argparse.ArgumentParser(
        prog="channels-zmq-forwarder selftest",
        description="Send messages through every forwarder of a layer, and check that each arrives once, unchanged and "
        "in order.",
    )
    parser.add_argument("--messages", type=whole(1), default=100, help="number of messages for each forwarder (100)")
    target.add_arguments(parser, timeout=30.0)
    given = parser.parse_args(arguments)
    deadline = time.monotonic() + given.timeout
    targets = target.find(given, os.environ, deadline)
    with zmq.Context() as context:
        for number, one in enumerate(targets, 1):
            print(f"forwarder {number} of {len(targets)}: {one}", flush=True)
            with Client(context, one) as client:
                _exchange(client, given.messages, deadline)
            security = "with CURVE" if one.keys else "without CURVE"
            print(f"{given.messages} messages arrived, unchanged and in order, {security}")


def _exchange(client: Client, messages: int, deadline: float) -> None:
    """Subscribe, send a hello, publish, compare. The group has a unique name: several selftests may run at once."""
    group = f"{GROUP}-{client.inbox.decode()}"
    client.subscribe(group)
    client.hello(deadline)
    client.sync(deadline)
    payloads = [f"message {number}".encode() for number in range(messages)]
    for payload in payloads:
        client.group_send(group, payload)
    received: list[bytes] = []
    while len(received) < messages:
        frame = client.receive(deadline)
        if frame is None:
            raise CommandError(f"{client.target}: {len(received)} of {messages} messages arrived")
        if wire.is_group(frame):
            received.append(wire.read_group(frame)[-1])
    if received != payloads:
        raise CommandError(f"{client.target}: messages arrived changed or in another order")
    end = time.monotonic() + TWICE
    while (frame := client.receive(end)) is not None:
        if wire.is_group(frame):
            raise CommandError(f"{client.target}: a message arrived twice")
