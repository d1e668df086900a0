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
    "ping": "whether each forwarder of a layer answers, and how fast",
    "pub": "send a message to a group or a channel",
    "sub": "show the messages of groups",
    "top": "what forwarders are doing, live",
    "bench": "measure messages a second, and the time of one",
    "selftest": "messages through every forwarder, which have to come back",
    "keygen": "make a pair of CURVE keys",
}


def overview() -> str:
    """Return a line for each command, for `--help`."""
    lines = (f"  {name:10}{text}" for name, text in NAMES.items())
    return "\n".join(("commands, each with a --help of its own:", *lines))


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
        print(f"channels-zmq-forwarder {name}: another program has this port? {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has exited: discard the rest, which Python would flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0
