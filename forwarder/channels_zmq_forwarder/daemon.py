"""The daemon: settings, logs, signals and the event loop around `server.serve`."""

import asyncio
import logging
import signal
from collections.abc import Coroutine, Sequence
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from channels_zmq_forwarder.server import serve
from channels_zmq_forwarder.settings import Settings, parse


def run_daemon(arguments: Sequence[str], more_help: str = "") -> None:
    """Run a forwarder until SIGTERM or SIGINT, a second of which ends it at once; `--help` prints more help, too.

    Raises:
        AddressError: If an address cannot be bound.
        SettingsError: If a flag is unknown, or a setting is invalid.
    """
    settings = parse(arguments, more_help)
    _log(settings)
    _run(_until_signal(settings))


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # it makes the daemon faster, and has no wheel for each system
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


async def _until_signal(settings: Settings) -> None:
    stop, end = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (end if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))  # see `__main__`
    await serve(settings, stop, end=end)


def _log(settings: Settings) -> None:
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(json_lines() if settings.log_format == "json" else plain)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def json_lines() -> logging.Formatter:
    """Return a formatter that makes a JSON object of each record, with the traceback if there is one."""
    return JsonFormatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "exception"},
    )
