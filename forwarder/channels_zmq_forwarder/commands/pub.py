"""`channels-zmq-forwarder pub`: send a message to a group or a channel, as an application does."""

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import suppress

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.commands import payloads, target
from channels_zmq_forwarder.commands.arguments import name, seconds, whole
from channels_zmq_forwarder.commands.client import Client
from channels_zmq_forwarder.commands.target import CommandError, Target

_PROBLEMS = {
    wire.Status.FULL: "the channel is full (--capacity)",
    wire.Status.REFUSED: "the forwarder has no room for another queue (--queue-names)",
    wire.Status.MEMORY: "the forwarder is short of memory",
    wire.Status.FLUSHING: "the layer is being flushed",
}


def main(arguments: Sequence[str]) -> None:
    """Send a message.

    Raises:
        CommandError: If the message is invalid, or if no forwarder accepts it.
    """
    parser = argparse.ArgumentParser(
        prog="channels-zmq-forwarder pub",
        description="Send a message to every member of a group, or with --channel to a channel. A message to a group "
        "without members is dropped without an error.",
    )
    parser.add_argument(
        "name", type=name, help="name of the group or channel, with the layer's prefix if it has one: stage:chat"
    )
    parser.add_argument("message", help='a JSON object: {"type": "chat.message", "text": "hello"}')
    parser.add_argument("--channel", action="store_true", help="send to a channel instead of a group")
    parser.add_argument("--count", type=whole(1), default=1, help="number of times the message is sent (1)")
    parser.add_argument("--every", type=seconds, default=0.0, help="seconds between two messages (0)")
    parser.add_argument("--capacity", type=whole(1), default=100, help="capacity of the normal channel (100)")
    parser.add_argument(
        "--serializer", choices=payloads.SERIALIZERS, default="msgpack", help="serializer of the layer (msgpack)"
    )
    target.add_arguments(parser)
    given = parser.parse_args(arguments)
    payload = payloads.encode(given.message, given.serializer)
    targets = target.find(given, os.environ, time.monotonic() + given.timeout)
    with zmq.Context() as context, _client(context, targets, given.timeout) as client:
        for number in range(given.count):
            if number:
                client.rest(given.every)
            _send(client, given, payload)
        client.echo(time.monotonic() + given.timeout)  # its answer proves that all messages have arrived


def _client(context: "zmq.Context[zmq.Socket[bytes]]", targets: Sequence[Target], timeout: float) -> Client:
    """Return a client of the first forwarder that answers a hello."""
    *others, last = targets
    for one in others:
        with suppress(CommandError, wire.FrameError):  # it has ended, or another program uses its port
            return _greeted(context, one, timeout)
    return _greeted(context, last, timeout)


def _greeted(context: "zmq.Context[zmq.Socket[bytes]]", one: Target, timeout: float) -> Client:
    client = Client(context, one)
    try:
        client.hello(time.monotonic() + timeout)
    except BaseException:
        client.close()
        raise
    return client


def _send(client: Client, given: argparse.Namespace, payload: bytes) -> None:
    if not given.channel:
        client.group_send(given.name, payload)
        return
    head, bang, _ = given.name.partition("!")
    if bang:
        inbox = head.rpartition(".")[2].encode()
        if not wire.inbox_of(b"P" + inbox + b"\0"):
            raise CommandError(f"{given.name!r} is not a channel name that new_channel() returned")
        client.send_direct(inbox, given.name, payload)
        return
    status = client.enqueue(given.name, payload, given.capacity, time.monotonic() + given.timeout)
    if status is not wire.Status.OK:
        raise CommandError(f"{given.name}: {_PROBLEMS.get(status, status.name.lower())}")
