"""The command line `channels-zmq-operator`: `run`, `webhook`, `render -f FILE` and `crd`."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError
from pythonjsonlogger.json import JsonFormatter

from channels_zmq_operator import __version__, crd
from channels_zmq_operator.models import KIND, Owner, SpecError, parse
from channels_zmq_operator.render import LayerKeys, render
from channels_zmq_operator.settings import Settings

FAILED, BAD_USAGE = 1, 2
EXAMPLE_KEY = "0" * 40
"""Stands for each key in the output of `render`: a CURVE key has 40 characters in Z85."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="channels-zmq-operator", description="The operator of channels-zmq.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="run the operator")
    commands.add_parser("webhook", help="run the webhook that injects layers into pods")
    commands.add_parser("crd", help="print the CustomResourceDefinition")
    rendering = commands.add_parser("render", help="print the objects of a layer; keys are shown as zeros")
    rendering.add_argument("-f", "--file", required=True, help="YAML of a ZmqChannelLayer, - for standard input")
    given = parser.parse_args(arguments)
    if given.command == "crd":
        print(yaml.safe_dump(crd.crd(), sort_keys=False), end="")
        return 0
    if given.command == "render":
        return _render(given.file)
    settings = Settings()
    _log(settings)
    try:
        if given.command == "webhook":
            from channels_zmq_operator.webhook import serve

            _run(lambda stop: serve(settings, stop))
        else:
            from channels_zmq_operator.manager import run  # importing kopf and the client takes half a second

            _run(lambda stop: run(settings, stop))
    except Exception as error:
        logging.getLogger("channels_zmq_operator").critical("stopped by an error: %s", error, exc_info=True)
        return FAILED
    return 0


def _render(path: str) -> int:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        resource = yaml.safe_load(text)
        if not isinstance(resource, dict) or resource.get("kind") != KIND:
            raise SpecError(f"not a {KIND}")
        metadata = resource.get("metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
            raise SpecError("metadata.name is missing")
        owner, spec = Owner.of(resource), parse(resource)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, SpecError) as error:
        print(f"channels-zmq-operator render: {path}: {error}", file=sys.stderr)
        return BAD_USAGE
    keys = LayerKeys(EXAMPLE_KEY, EXAMPLE_KEY, EXAMPLE_KEY, (EXAMPLE_KEY,))
    enabled = spec.security.curve == "Enabled"
    manifests = render(owner, spec, keys if enabled else None, Settings().choices)
    print(yaml.safe_dump_all(manifests, sort_keys=False), end="")
    return 0


def _run(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    try:
        import uvloop  # unavailable on Windows
    except ImportError:
        asyncio.run(_until_signal(work))
    else:
        uvloop.run(_until_signal(work))


async def _until_signal(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await work(stop)


def _log(settings: Settings) -> None:
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(json_lines() if settings.log_format == "json" else plain)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)


def json_lines() -> logging.Formatter:
    """Return a formatter that writes each record as a JSON object, with the traceback of an exception."""
    return JsonFormatter(
        "%(asctime)s %(levelname)s %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "exception"},
    )


if __name__ == "__main__":
    sys.exit(main())
