"""`manage.py channels_zmq SUBCOMMAND`: parses arguments, calls `channels_zmq.tools` and prints."""

import asyncio
import json
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError

from channels_zmq.serializers import Message
from channels_zmq.tools import ToolError, doctor, from_redis, layers, messages, status
from channels_zmq_forwarder.commands.arguments import seconds, whole
from channels_zmq_forwarder.commands.text import as_json, counted
from channels_zmq_forwarder.commands.top import show as show_pages

ENDLESS = ("listen", "top")
"""Subcommands that Ctrl-C ends without an error; any other one is then incomplete."""


class Command(BaseCommand):  # type: ignore[misc] # Django has no type information
    """`manage.py channels_zmq`; each method named after a subcommand runs it."""

    help = "Check, use and monitor the channel layers of channels-zmq."
    requires_system_checks: ClassVar[list[str]] = []
    """Empty: `doctor` reports their findings, and more."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the subcommands and their arguments."""
        commands = parser.add_subparsers(title="subcommands", dest="subcommand", required=True)

        def add(name: str, run: Callable[..., None], text: str) -> ArgumentParser:
            added: ArgumentParser = commands.add_parser(name, help=text, description=text)
            added.set_defaults(run=run)
            return added

        one = add(
            "doctor", self.doctor, "Check every layer and forwarder; report problems and remedies (exit status 1)."
        )
        one.add_argument("--layer", metavar="ALIAS", help="only this alias of CHANNEL_LAYERS")
        one.add_argument(
            "--timeout", type=seconds, default=5.0, help="seconds to wait for the forwarders of a layer (5)"
        )

        one = add("send", self.send, "Send one message to a group or a channel.")
        _add_target(one)
        one.add_argument("message", help='a JSON object such as {"type": "chat.message"}; - reads it from stdin')

        one = add("listen", self.listen, "Print the messages of a group or a normal channel, until Ctrl-C.")
        _add_target(one)
        one.add_argument("--json", action="store_true", help="print only the messages, each as one line of JSON")
        one.add_argument("--count", type=whole(1), default=0, help="exit after this number of messages")

        one = add("stats", self.stats, "Show the state of the forwarders of a layer.")
        _add_layer(one)
        _add_pages(one)
        one.add_argument("--timeout", type=seconds, default=5.0, help="seconds to wait for the forwarders (5)")

        one = add("top", self.top, "Show the activity of the forwarders of a layer, every second, until Ctrl-C.")
        _add_layer(one)
        _add_pages(one)
        one.add_argument("--interval", type=seconds, default=1.0, help="seconds between two updates (1)")
        one.add_argument("--count", type=whole(1), default=0, help="exit after this number of updates")

        one = add(
            "from-redis", self.from_redis, "Translate CHANNEL_LAYERS of channels_redis and print the new settings."
        )
        one.add_argument(
            "--settings-file",
            metavar="PATH",
            help="file with CHANNEL_LAYERS as JSON, instead of this project's settings; - for stdin",
        )
        one.add_argument(
            "--pull-address", default="tcp://127.0.0.1:5555", help="pull address of the forwarder (%(default)s)"
        )
        one.add_argument(
            "--pub-address", default="tcp://127.0.0.1:5556", help="pub address of the forwarder (%(default)s)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the subcommand."""
        try:
            options["run"](**options)
        except ToolError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            if options["subcommand"] not in ENDLESS:
                self.stdout.flush()
                os._exit(130)  # nothing is cleaned up: threads may be using their sockets
        except BrokenPipeError:  # `| head` has exited: discard the rest, which Python would flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def doctor(self, layer: str | None, timeout: float, **options: Any) -> None:
        """Examine layers."""
        found = layers.configured()
        if layer is not None:
            if layer not in found:
                layers.layer(layer)
            found = {layer: found[layer]}
        entries = layers.entries(found)
        if not any(entry.layer or entry.fault for entry in entries):
            raise CommandError("CHANNEL_LAYERS contains no layer of channels-zmq")
        problems = 0
        for report in doctor.examine(entries, timeout):
            self._print(report.heading, *map(str, report.lines))
            problems += report.problems
        if problems:
            raise CommandError(f"{counted(problems, 'problem')} found")
        self._print("no problems found")

    def send(self, layer: str, group: str, channel: str, message: str, **options: Any) -> None:
        """Send one message."""
        parsed = messages.parsed(sys.stdin.read() if message == "-" else message)
        asyncio.run(messages.send(layers.layer(layer), parsed, group=group, channel=channel))
        self._print(f"sent to group {group!r}" if group else f"sent to channel {channel!r}")

    def listen(self, layer: str, group: str, channel: str, count: int, **options: Any) -> None:
        """Print messages."""

        def took(message: Message) -> None:
            self._print(as_json(message) if options["json"] else messages.shown(message, time.strftime("%H:%M:%S")))

        asyncio.run(messages.listen(layers.layer(layer), took, self._note, group=group, channel=channel, count=count))

    def stats(self, layer: str, status_address: list[str], timeout: float, **options: Any) -> None:
        """Show the state of forwarders."""
        self._print(*status.stats(layers.layer(layer), status_address, timeout))

    def top(self, layer: str, status_address: list[str], interval: float, count: int, **options: Any) -> None:
        """Show the activity of forwarders repeatedly."""
        places = status.addresses(layers.layer(layer), status_address)
        on_terminal = bool(self.stdout.isatty())
        show_pages(places, self._print, interval=interval, count=count, on_terminal=on_terminal)

    def from_redis(self, settings_file: str | None, pull_address: str, pub_address: str, **options: Any) -> None:
        """Translate settings."""
        found = layers.configured() if settings_file is None else _read(settings_file)
        translations = from_redis.translate(found, pull_address, pub_address)
        self._print(*from_redis.report(translations), "", *from_redis.snippet(found, translations))

    def _note(self, text: str) -> None:
        self.stderr.write(text, lambda line: line)  # in the colour of the terminal: it is not an error
        self.stderr.flush()

    def _print(self, *lines: str) -> None:
        for line in lines:
            self.stdout.write(line)
        self.stdout.flush()


def _add_layer(parser: ArgumentParser) -> None:
    parser.add_argument("--layer", metavar="ALIAS", default="default", help="alias of CHANNEL_LAYERS (default)")


def _add_target(parser: ArgumentParser) -> None:
    _add_layer(parser)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--group", default="", help="name of a group")
    target.add_argument("--channel", default="", help="name of a channel")


def _add_pages(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--status-address",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="address of a forwarder's status page; may be repeated (default: port 9600 of its host)",
    )


def _read(path: str) -> dict[str, Any]:
    """Return the JSON object in a file, or in stdin.

    Raises:
        ToolError: If it cannot be read, or does not contain a JSON object; names the file.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        found = json.loads(text)
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror} (--settings-file)") from None
    except ValueError as error:
        raise ToolError(f"{path} is not valid JSON: {error} (--settings-file)") from None
    if not isinstance(found, dict):
        raise ToolError(f"{path} must contain a JSON object of layers by alias (--settings-file)")
    return dict(found.get("CHANNEL_LAYERS", found))
