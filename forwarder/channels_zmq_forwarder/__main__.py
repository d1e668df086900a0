"""`channels-zmq-forwarder`: settings, logs, signals and the event loop around `server.serve`."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from channels_zmq_forwarder.pump import AddressError
from channels_zmq_forwarder.server import JsonLines, serve
from channels_zmq_forwarder.settings import Settings, SettingsError, parse

BAD_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a forwarder until SIGTERM or SIGINT; return the exit code, 2 for settings that cannot be used."""
    try:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
        _log(settings)
        _run(settings)
    except (SettingsError, AddressError) as error:
        print(f"channels-zmq-forwarder: {error}", file=sys.stderr)
        return BAD_USAGE
    return 0


def _run(settings: Settings) -> None:
    try:
        import uvloop  # not there on Windows
    except ImportError:
        asyncio.run(_until_signal(settings))
    else:
        uvloop.run(_until_signal(settings))


async def _until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(settings, stop)


def _log(settings: Settings) -> None:
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if settings.log_format == "json" else plain)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
