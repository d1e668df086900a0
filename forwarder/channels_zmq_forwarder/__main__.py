"""`channels-zmq-forwarder`: settings, logs, signals and the event loop around `server.serve`; `keygen`, `selftest`."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from channels_zmq_forwarder import selftest
from channels_zmq_forwarder.curve import new_pair
from channels_zmq_forwarder.server import JsonLines, serve
from channels_zmq_forwarder.settings import Settings, SettingsError, parse
from channels_zmq_forwarder.sockets import AddressError

BAD_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a forwarder until SIGTERM or SIGINT, a second of which ends it at once.

    Returns:
        The exit code, 2 for invalid settings.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["keygen"]:
        return keygen(given[1:])
    if given[:1] == ["selftest"]:
        return selftest.main(given[1:])
    try:
        settings = parse(given)
        _log(settings)
        _run(settings)
    except (SettingsError, AddressError) as error:
        print(f"channels-zmq-forwarder: {error}", file=sys.stderr)
        return BAD_USAGE
    return 0


def keygen(arguments: Sequence[str]) -> int:
    """Generate a CURVE key pair, as two files or on standard output; only the owner can read the secret key's file."""
    parser = argparse.ArgumentParser(prog="channels-zmq-forwarder keygen", description=keygen.__doc__)
    parser.add_argument(
        "name", nargs="?", help="path of the two files, without their endings; the keys are printed if it is omitted"
    )
    name = parser.parse_args(arguments).name
    public, secret = (key.decode() for key in new_pair())
    if name is None:
        print(f"public {public}\nsecret {secret}")
        return 0
    try:
        for ending, key, mode in (("secret", secret, 0o600), ("public", public, 0o644)):
            descriptor = os.open(f"{name}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(f"{key}\n")
    except OSError as error:
        print(f"channels-zmq-forwarder keygen: {error.filename}: {error.strerror}", file=sys.stderr)
        return BAD_USAGE
    print(f"{name}.public {name}.secret")
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
