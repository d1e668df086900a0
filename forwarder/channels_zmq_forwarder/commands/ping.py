"""`channels-zmq-forwarder ping`: whether each forwarder of a layer answers, and how fast."""

import argparse
import os
import statistics
import time
from collections.abc import Sequence

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.commands import target
from channels_zmq_forwarder.commands.arguments import whole
from channels_zmq_forwarder.commands.client import Client
from channels_zmq_forwarder.commands.target import CommandError, Target
from channels_zmq_forwarder.commands.text import counted


def main(arguments: Sequence[str]) -> None:
    """Send requests to each forwarder, and print its state and the round trips.

    Raises:
        CommandError: If one of them does not answer, or accepts no messages.
    """
    parser = argparse.ArgumentParser(
        prog="channels-zmq-forwarder ping",
        description="Check that each forwarder of a layer answers, and measure the round trip.",
    )
    parser.add_argument("--count", type=whole(1), default=5, help="round trips to measure (5)")
    target.add_arguments(parser)
    given = parser.parse_args(arguments)
    targets = target.find(given, os.environ, time.monotonic() + given.timeout)
    problems = []
    with zmq.Context() as context:
        for one in targets:
            try:
                print(f"{one}: {_asked(context, one, given.count, given.timeout)}", flush=True)
            except CommandError as error:
                problems.append(str(error))
    if problems:
        raise CommandError("\n".join(problems))


def _asked(context: "zmq.Context[zmq.Socket[bytes]]", one: Target, count: int, timeout: float) -> str:
    with Client(context, one) as client:
        welcome = client.hello(time.monotonic() + timeout)
        state = wire.State(welcome.state)
        if state is not wire.State.SERVING:
            raise CommandError(f"{one}: it is {state.name.lower()} and accepts no messages")
        trips = []
        for _ in range(count):
            begin = time.perf_counter()
            client.echo(time.monotonic() + timeout)
            trips.append((time.perf_counter() - begin) * 1000)
    security = "with CURVE" if one.keys else "without CURVE"
    others = counted(welcome.clients - 1, "other client")  # without this one
    times = f"round trip {statistics.median(trips):.2f} ms (of {count}: {min(trips):.2f} to {max(trips):.2f})"
    return f"serves {others}, {security}, wire format {wire.VERSION}; {times}"
