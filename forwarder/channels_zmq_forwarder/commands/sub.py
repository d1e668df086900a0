"""`channels-zmq-forwarder sub`: shows the messages of groups as they arrive."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.commands import payloads, target
from channels_zmq_forwarder.commands.arguments import name, whole
from channels_zmq_forwarder.commands.client import Client
from channels_zmq_forwarder.commands.target import CommandError
from channels_zmq_forwarder.commands.text import as_json, counted, printable

MOST_SENDERS = 10_000
"""Senders of groups whose last number is remembered; then it begins anew, and a message may be shown twice."""


def main(arguments: Sequence[str]) -> None:
    """Show messages until `--count` have arrived, or until Ctrl-C.

    Raises:
        CommandError: If a forwarder does not answer at the start.
    """
    parser = argparse.ArgumentParser(
        prog="channels-zmq-forwarder sub",
        description="Show the messages of groups as they arrive, until Ctrl-C. The members of the groups still receive "
        "them. Uses the forwarders that exist at the start.",
    )
    parser.add_argument(
        "groups",
        nargs="+",
        type=name,
        metavar="group",
        help="name of a group, with the layer's prefix if it has one: stage:chat",
    )
    parser.add_argument("--count", type=whole(0), default=0, help="exit after this number of messages (0: never)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line: time, group, message")
    parser.add_argument(
        "--serializer", choices=payloads.SERIALIZERS, default="msgpack", help="serializer of the layer (msgpack)"
    )
    target.add_arguments(parser)
    given = parser.parse_args(arguments)
    payloads.decode(b"", given.serializer)  # a missing package is reported now
    if any("!" in group for group in given.groups):
        raise CommandError("only messages of groups can be shown: a message of a channel goes to one reader")
    deadline = time.monotonic() + given.timeout
    targets = target.find(given, os.environ, deadline)
    with zmq.Context() as context, ExitStack() as stack:
        clients = [stack.enter_context(Client(context, one)) for one in targets]
        for client in clients:
            for group in given.groups:
                client.subscribe(group)
            client.hello(deadline)
            client.sync(deadline)
            client.leave()
        print(f"listening to {counted(len(clients), 'forwarder')}", file=sys.stderr, flush=True)
        _show(clients, given.serializer, json_lines=given.json, count=given.count)


def _show(clients: list[Client], serializer: payloads.Serializer, *, json_lines: bool, count: int) -> None:
    poller = zmq.Poller()
    for client in clients:
        poller.register(client.sub, zmq.POLLIN)
    shown: dict[tuple[bytes, bytes], int] = {}
    left = count
    while True:
        for socket, _ in poller.poll():
            frame = socket.recv()
            if not wire.is_group(frame):
                continue
            try:
                messages = [wire.read_group(message) for message in wire.split(frame)]
            except wire.FrameError as error:
                print(f"a malformed message of {len(frame)} bytes: {error}", file=sys.stderr, flush=True)
                continue
            for topic, sender, number, flags, _, payload in messages:
                if flags & wire.FLAG_AGAIN and number <= shown.get((topic, sender), 0):
                    continue  # another forwarder has delivered it already
                if len(shown) >= MOST_SENDERS:
                    shown.clear()
                shown[topic, sender] = number
                print(_line(wire.group_of(topic).decode(), payload, serializer, json_lines=json_lines), flush=True)
                left -= 1
                if not left:
                    return


def _line(group: str, payload: bytes, serializer: payloads.Serializer, *, json_lines: bool) -> str:
    now, message = datetime.now().astimezone(), payloads.decode(payload, serializer)
    if json_lines:
        return as_json({"time": now.isoformat(), "group": group, "message": message})
    unreadable = f"{len(payload)} bytes, encrypted or not {serializer}"
    text = unreadable if message is None else as_json(message)
    return f"{now:%H:%M:%S.%f} {printable(group)} {text}"
