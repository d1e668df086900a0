"""Sends group messages through the forwarder of a layer, and checks that all of them come back; run by `helm test`.

It is a client as docs/wire-protocol.md describes one: PUSH to send, XSUB to subscribe, CURVE if the layer has it.
"""

import os
import secrets
import sys
import time
from pathlib import Path

import zmq

from channels_zmq_forwarder import wire

COUNT = int(os.environ["MESSAGES"])
DEADLINE = time.monotonic() + float(os.environ["SECONDS_LEFT"])
ENV = "CHANNELS_ZMQ_"
GROUP = "helm-test"
LIFE = 60_000


def main() -> None:
    """Say hello, subscribe, publish, compare."""
    context = zmq.Context()
    context.linger = 1000
    push, sub = _connected(context, zmq.PUSH, "PULL"), _connected(context, zmq.XSUB, "PUB")
    secret, topic = secrets.token_bytes(wire.SECRET_SIZE), wire.group_topic(GROUP)
    inbox = wire.claimable(secret)
    sub.send(wire.CLAIM.encode(wire.Claim(inbox, secret)))
    sub.send(b"\1" + wire.inbox_topic(inbox))
    sub.send(b"\1" + topic)
    welcome = wire.WELCOME.decode(_answer(sub, wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, 1, 0)), b"w"))
    if welcome.version != wire.VERSION:
        sys.exit(f"the forwarder speaks version {welcome.version} of the protocol, this test {wire.VERSION}")
    _answer(sub, wire.SYNC.encode(wire.Sync(inbox, 1)), b"y")  # from here on no message is missed
    sender, payloads = secrets.token_bytes(8), [f"message {number}".encode() for number in range(COUNT)]
    for number, payload in enumerate(payloads, 1):
        flags = wire.FLAG_FIRST if number == 1 else 0
        push.send(wire.ordered(topic, sender, number, flags, LIFE, payload))
    received = []
    while len(received) < COUNT:
        frame = _received(sub, 10.0, f"{len(received)} of {COUNT} messages came back")
        if frame.startswith(topic):
            received.append(frame[wire.read_order(frame, len(topic))[-1] :])
    if received != payloads:
        sys.exit("messages came back changed or in another order")
    sub.poll(500)
    while sub.poll(0):
        if sub.recv().startswith(topic):
            sys.exit("a message came back twice")
    print(f"{COUNT} messages came back, unchanged and in order")


def _connected(context: "zmq.Context[zmq.Socket[bytes]]", kind: int, name: str) -> "zmq.Socket[bytes]":
    socket = context.socket(kind)
    socket.sndtimeo = 10_000
    server_file, secret_file = (os.environ.get(f"{ENV}CURVE_{key}_KEY_FILE") for key in ("SERVER", "SECRET"))
    if server_file and secret_file:
        secret = _key(Path(secret_file))
        socket.curve_serverkey, socket.curve_secretkey = _key(Path(server_file)), secret
        socket.curve_publickey = zmq.curve_public(secret)
    address = os.environ[f"{ENV}{name}_SOCKET_ADDRESS"]
    print(f"{name.lower()}: {address}, {'with' if server_file else 'without'} CURVE", flush=True)
    socket.connect(address)
    return socket


def _key(path: Path) -> bytes:
    """Return the key; its file may come a moment after the start."""
    while not path.exists():
        if time.monotonic() > DEADLINE:
            sys.exit(f"there is no {path}")
        time.sleep(0.2)
    return path.read_bytes().strip()


def _answer(sub: "zmq.Socket[bytes]", question: bytes, kind: bytes) -> bytes:
    """Ask every second until the answer comes; a forwarder that starts may be asked too early."""
    while time.monotonic() < DEADLINE:
        sub.send(question)
        while sub.poll(1000):
            frame = sub.recv()
            if frame[:1] == b"P" and frame[wire.SUB_KIND : wire.SUB_KIND + 1] == kind:
                return frame
    sys.exit(f"no answer to {question[:1]!r}: is the layer ready, and may this pod reach its forwarder?")


def _received(sub: "zmq.Socket[bytes]", seconds: float, problem: str) -> bytes:
    if not sub.poll(round(seconds * 1000)):
        sys.exit(problem)
    return sub.recv()


if __name__ == "__main__":
    main()
