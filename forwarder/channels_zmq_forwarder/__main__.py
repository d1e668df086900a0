"""`channels-zmq-forwarder`: settings, logs, signals and the event loop around `server.serve`; other commands."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from channels_zmq_forwarder import commands
from channels_zmq_forwarder.server import JsonLines, serve
from channels_zmq_forwarder.settings import Settings, SettingsError, parse
from channels_zmq_forwarder.sockets import AddressError

BAD_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a forwarder until SIGTERM or SIGINT, a second of which ends it at once; or another command.

    Returns:
        The exit code: 1 if a command has failed, 2 for invalid settings.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in commands.NAMES:
        return commands.run(given[0], given[1:])
    try:
        settings = parse(given, commands.overview())
        _log(settings)
        _run(settings)
    except (SettingsError, AddressError) as error:
        print(f"channels-zmq-forwarder: {error}", file=sys.stderr)
        return BAD_USAGE
    return 0


def _run(settings: Settings) -> None:
    try:
        import uvloop  # not available on Windows
    except ImportError:
        asyncio.run(_until_signal(settings))
    else:
        uvloop.run(_until_signal(settings))


async def _until_signal(settings: Settings) -> None:
    stop, end = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (end if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await serve(settings, stop, end=end)


def _log(settings: Settings) -> None:
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if settings.log_format == "json" else plain)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
