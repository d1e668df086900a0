"""`channels-zmq-forwarder selftest`: messages through every forwarder of a layer, which have to come back.

It is a client as docs/wire-protocol.md describes one: PUSH to send, XSUB to subscribe, CURVE if the layer has it. It
finds the layer by the variables that applications have.
"""

import argparse
import os
import secrets
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import zmq
from zmq.utils import z85

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.sockets import resolve_pairs

ENV = "CHANNELS_ZMQ_"
GROUP = "channels-zmq-selftest"
KEY_SIZE = 32
"""Bytes of a CURVE key."""
LIFE = 60_000
"""Milliseconds that a message lives."""


class SelftestError(Exception):
    """A forwarder does not do what it should; the message says what to look at."""


def main(arguments: Sequence[str]) -> int:
    """Send messages through every forwarder of a layer, and check that all of them come back, once and in order."""
    parser = argparse.ArgumentParser(
        prog="channels-zmq-forwarder selftest",
        description=f"{main.__doc__} The layer is that of the variables {ENV}PULL_SOCKET_ADDRESS, "
        f"{ENV}PUB_SOCKET_ADDRESS, {ENV}CURVE_SERVER_KEY_FILE and {ENV}CURVE_SECRET_KEY_FILE.",
    )
    parser.add_argument("--messages", type=int, default=100, help="for each forwarder (100)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that all of it may take (30)")
    given = parser.parse_args(arguments)
    try:
        run(os.environ, given.messages, time.monotonic() + given.timeout)
    except (SelftestError, zmq.ZMQError) as error:
        print(f"channels-zmq-forwarder selftest: {error}", file=sys.stderr)
        return 1
    return 0


def run(environment: Mapping[str, str], messages: int, deadline: float) -> None:
    """Test every forwarder, and print what comes of it.

    Args:
        environment: The variables.
        messages: For each forwarder.
        deadline: Monotonic seconds.

    Raises:
        SelftestError: If one of them fails.
    """
    names = [f"{ENV}PULL_SOCKET_ADDRESS", f"{ENV}PUB_SOCKET_ADDRESS"]
    if missing := [name for name in names if name not in environment]:
        raise SelftestError(f"{missing[0]} is not set: has the pod the label of a layer?")
    pairs = _resolved(environment[names[0]], environment[names[1]], deadline)
    files = [environment.get(f"{ENV}CURVE_{key}_KEY_FILE", "") for key in ("SERVER", "SECRET")]
    if any(files) and not all(files):
        raise SelftestError(
            f"{ENV}CURVE_SERVER_KEY_FILE and {ENV}CURVE_SECRET_KEY_FILE are needed both, or none of them"
        )
    keys = [_key(Path(file), deadline) for file in files if file]
    with zmq.Context() as context:
        context.linger = 1000
        for number, (pull, pub) in enumerate(pairs, 1):
            print(f"forwarder {number} of {len(pairs)}: {pull} and {pub}", flush=True)
            push, sub = _connected(context, zmq.PUSH, pull, keys), _connected(context, zmq.XSUB, pub, keys)
            with push, sub:
                _exchange(push, sub, messages, deadline)
            print(f"{messages} messages came back, unchanged and in order, {'with' if keys else 'without'} CURVE")


def _resolved(pull: str, pub: str, deadline: float) -> list[tuple[str, str]]:
    """Return the addresses of every forwarder, once their name is known."""
    while True:
        try:
            if pairs := resolve_pairs(pull, pub):
                return pairs
            problem = "no address"
        except OSError as error:
            problem = str(error.strerror)
        if time.monotonic() > deadline:
            raise SelftestError(f"cannot resolve {pull}: {problem}")
        time.sleep(0.2)


def _key(path: Path, deadline: float) -> bytes:
    """Return the key; its file may come a moment after the start."""
    while not path.exists():
        if time.monotonic() > deadline:
            raise SelftestError(f"there is no {path}")
        time.sleep(0.2)
    key = path.read_bytes().strip()
    try:
        if len(z85.decode(key)) == KEY_SIZE:
            return key
    except (ValueError, KeyError, struct.error):
        pass
    raise SelftestError(f"{path} holds no key")


def _connected(
    context: "zmq.Context[zmq.Socket[bytes]]", kind: int, address: str, keys: list[bytes]
) -> "zmq.Socket[bytes]":
    socket = context.socket(kind)
    socket.rcvhwm = 0
    socket.sndtimeo = 10_000
    socket.ipv6 = address.startswith("tcp://[")
    if keys:
        socket.curve_serverkey, socket.curve_secretkey = keys
        socket.curve_publickey = zmq.curve_public(keys[1])
    socket.connect(address)
    return socket


def _exchange(push: "zmq.Socket[bytes]", sub: "zmq.Socket[bytes]", messages: int, deadline: float) -> None:
    """Say hello, subscribe, publish, compare."""
    secret, topic = secrets.token_bytes(wire.SECRET_SIZE), wire.group_topic(GROUP)
    inbox = wire.claimable(secret)
    sub.send(wire.CLAIM.encode(wire.Claim(inbox, secret)))
    sub.send(b"\1" + wire.inbox_topic(inbox))
    sub.send(b"\1" + topic)
    hello = wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, 1, 0))
    welcome = wire.WELCOME.decode(_answer(sub, hello, b"w", deadline))
    if welcome.version != wire.VERSION:
        raise SelftestError(f"the forwarder speaks version {welcome.version} of the protocol, this one {wire.VERSION}")
    _answer(sub, wire.SYNC.encode(wire.Sync(inbox, 1)), b"y", deadline)  # from here on no message is missed
    sender, payloads = secrets.token_bytes(8), [f"message {number}".encode() for number in range(messages)]
    for number, payload in enumerate(payloads, 1):
        flags = wire.FLAG_FIRST if number == 1 else 0
        push.send(wire.ordered(topic, sender, number, flags, LIFE, payload))
    received: list[bytes] = []
    while len(received) < messages:
        if not sub.poll(max(0, round((deadline - time.monotonic()) * 1000))):
            raise SelftestError(f"{len(received)} of {messages} messages came back")
        frame = sub.recv()
        if frame.startswith(topic):
            received.append(frame[wire.read_order(frame, len(topic))[-1] :])
    if received != payloads:
        raise SelftestError("messages came back changed or in another order")
    while sub.poll(500):
        if sub.recv().startswith(topic):
            raise SelftestError("a message came back twice")


def _answer(sub: "zmq.Socket[bytes]", question: bytes, kind: bytes, deadline: float) -> bytes:
    """Ask every second until the answer comes; a forwarder that starts may be asked too early."""
    while time.monotonic() < deadline:
        sub.send(question)
        while sub.poll(1000):
            frame = sub.recv()
            if frame[:1] == b"P" and frame[wire.SUB_KIND : wire.SUB_KIND + 1] == kind:
                return frame
    raise SelftestError(f"no answer to {question[:1]!r}: is the layer ready, and may this process reach its forwarder?")
