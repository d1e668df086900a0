"""`channels-zmq-forwarder`: the daemon, for which the extra `daemon` has to be installed; and other commands."""

import signal
import sys
from collections.abc import Sequence

from channels_zmq_forwarder import commands
from channels_zmq_forwarder.sockets import AddressError

BAD_USAGE = 2
ENDING = (signal.SIGTERM, signal.SIGINT)
"""The signals that end the daemon."""
EXTRA = ("aiohttp", "prometheus_client", "pydantic", "pydantic_settings", "pythonjsonlogger")
"""The packages that the extra `daemon` installs, and the daemon requires."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until a signal ends it, or another command.

    Returns:
        The exit code: 1 if a command has failed, 2 for invalid settings, and where the daemon cannot run.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in commands.NAMES:
        return commands.run(given[0], given[1:])
    return daemon(given)


def daemon(arguments: Sequence[str]) -> int:
    """Run the daemon, on the system that it needs; a signal that ends it takes effect once it has started.

    The kernel discards a signal that has no handler yet for the first process of a container: it would start,
    although it was to end, and would be killed with full queues at the end of its grace period.
    """
    if sys.platform != "linux":
        return _refuse(
            "the daemon runs on Linux only: use WSL or a container. Applications on other systems can connect to it; "
            "the embedded layer needs no daemon"
        )
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        return _daemon(arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _daemon(arguments: Sequence[str]) -> int:
    """Run the daemon, whose modules need packages that the library does without."""
    try:
        from channels_zmq_forwarder.daemon import run_daemon
        from channels_zmq_forwarder.settings import SettingsError
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        return _refuse(
            f"the daemon needs the package {package}: install channels-zmq-forwarder with its extra daemon, "
            "in a clone by pip install './forwarder[daemon]'"
        )
    try:
        run_daemon(arguments, commands.overview())
    except (SettingsError, AddressError) as error:
        return _refuse(str(error))
    return 0


def _refuse(reason: str) -> int:
    print(f"channels-zmq-forwarder: {reason}", file=sys.stderr)
    return BAD_USAGE


if __name__ == "__main__":
    sys.exit(main())
