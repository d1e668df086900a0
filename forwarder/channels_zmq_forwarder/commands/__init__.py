"""The commands of `channels-zmq-forwarder` besides running a forwarder; they use a layer as a client does.

`target` finds the forwarders and keys of a layer, `client` is the client, and each command is a module with a `main`.
"""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.commands.target import CommandError

NAMES = {
    "ping": "check that each forwarder of a layer answers, and measure the round trip",
    "pub": "send a message to a group or a channel",
    "sub": "show the messages of groups",
    "top": "show the activity of forwarders",
    "bench": "measure throughput and latency",
    "selftest": "send messages through every forwarder and check that they arrive",
    "keygen": "generate a CURVE key pair",
}


def overview() -> str:
    """Return a line for each command, for `--help`."""
    lines = (f"  {name:10}{text}" for name, text in NAMES.items())
    return "\n".join(("commands, each with its own --help:", *lines))


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command; return its exit code, 1 if it has failed."""
    # The first process of a container ignores SIGTERM otherwise.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        import_module(f"{__name__}.{name}").main(arguments)
    except (CommandError, zmq.ZMQError) as error:
        print(f"channels-zmq-forwarder {name}: {error}", file=sys.stderr)
        return 1
    except wire.FrameError as error:
        print(f"channels-zmq-forwarder {name}: does another program use this port? {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has exited: discard the rest, which Python would flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0
