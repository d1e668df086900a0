"""The servers of a run: redis-server, our forwarder, and libzmq's own proxy in C, each in a process of its own.

All listen on the loopback interface only, on ports that were free a moment before, and all are ended by their pid.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import zmq

# Frames that a socket may hold, for the proxy as for the forwarder.
HIGH_WATER_MARK = 10_000
START_TIMEOUT = 20.0
STOP_TIMEOUT = 15.0


class ServerError(Exception):
    """A server did not start; the text names it and contains its output."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the servers of this run listen; an empty string for a server that was not requested."""

    redis: str = ""
    redis_pid: int = 0
    forwarder_pull: str = ""
    forwarder_pub: str = ""
    forwarder_pid: int = 0
    forwarder_admin: str = ""
    proxy_pull: str = ""
    proxy_pub: str = ""
    proxy_pid: int = 0


class Redis(NamedTuple):
    """A running redis-server."""

    url: str = ""
    pid: int = 0


class Running(NamedTuple):
    """A running forwarder."""

    pull: str = ""
    pub: str = ""
    pid: int = 0
    admin: str = ""


@contextmanager
def servers(peers: set[str], environment: Mapping[str, str] | None = None) -> Iterator[Addresses]:
    """Start the servers that these peers need, and stop them at the end.

    Args:
        peers: Names of peers, as in `benchmarks.peers.peer`, and `raw`.
        environment: Further variables for the forwarder.

    Raises:
        ServerError: If one of them does not start.
    """
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server()) if peers & {"redis-pubsub", "redis-core"} else Redis()
        ours = Running()
        if peers & {"dedicated", "encrypted"}:
            ours = stack.enter_context(forwarder(environment or {}))
        raw = stack.enter_context(c_proxy()) if peers & {"raw", "raw-asyncio"} else ("", "", 0)
        yield Addresses(redis.url, redis.pid, ours.pull, ours.pub, ours.pid, ours.admin, *raw)


def groups_at(addresses: Addresses, peer: str) -> int:
    """Return the number of groups that the server of a peer has: subscriptions, or keys of Redis core."""
    if not peer.startswith("redis"):
        with urllib.request.urlopen(f"http://{addresses.forwarder_admin}/status.json", timeout=START_TIMEOUT) as answer:
            return int(json.load(answer)["groups"])
    import redis  # only here: most processes of a run do not need it

    with redis.Redis.from_url(addresses.redis) as client:
        names = client.keys("*group*") if peer == "redis-core" else client.pubsub_channels("*group*")
        return len(names)


_given_ports: set[int] = set()


def free_port() -> int:
    """Return a TCP port of the loopback interface that is not bound at the moment, and was not returned before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given_ports:
            _given_ports.add(port)
            return port


@contextmanager
def redis_server(port: int = 0, keeps_in: str = "") -> Iterator[Redis]:
    """Start a redis-server that drops no slow subscriber.

    Args:
        port: Where it listens; 0: anywhere.
        keeps_in: The folder in which it keeps its data, as it does by default, so that a successor has them. Without
            one it keeps nothing.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise ServerError("redis-server is not installed, and the Redis peers need it")
    port = port or free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", keeps_in or folder]
        command += ["--client-output-buffer-limit", "pubsub 0 0 0"]
        if not keeps_in:
            command += ["--save", "", "--appendonly", "no"]
        with _process(command, Path(folder), lambda: _redis_answers(port)) as pid:
            yield Redis(f"redis://127.0.0.1:{port}/0", pid)


@contextmanager
def forwarder(environment: Mapping[str, str], ports: tuple[int, int] = (0, 0)) -> Iterator[Running]:
    """Start our forwarder with its default settings, queues and metrics on.

    Args:
        environment: Further variables.
        ports: The ports of producers and of subscribers; 0: any.
    """
    pull, pub = (f"tcp://127.0.0.1:{port or free_port()}" for port in ports)
    admin = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "channels_zmq_forwarder"]
    command += ["--pull-address", pull, "--pub-address", pub, "--admin-address", admin]
    with tempfile.TemporaryDirectory() as folder:
        ready_url = f"http://{admin}/readyz"
        with _process(command, Path(folder), lambda: _answers_200(ready_url), environment) as pid:
            yield Running(pull, pub, pid, admin)


@contextmanager
def c_proxy() -> Iterator[tuple[str, str, int]]:
    """Run raw libzmq: PULL to PUB by `zmq_proxy`, which is C; yields its addresses and its pid.

    It uses PUB, because XPUB would receive subscriptions that the proxy cannot forward to PULL: it then never sleeps
    again, and keeps one core busy, which disturbs every measure on the same machine.
    """
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_proxy, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_TIMEOUT):
            raise ServerError("the proxy in C did not start in time")
        pull, pub = ours.recv()
        yield pull, pub, process.pid or 0
    finally:
        ours.close()  # which ends the proxy
        process.join(STOP_TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()


def _proxy(line: Connection) -> None:
    context = zmq.Context()
    pull, pub = context.socket(zmq.PULL), context.socket(zmq.PUB)
    for one in (pull, pub):
        one.setsockopt(zmq.LINGER, 0)
        one.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        one.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        one.bind("tcp://127.0.0.1:*")
    line.send(tuple(one.getsockopt_string(zmq.LAST_ENDPOINT) for one in (pull, pub)))

    def end_with_the_parent() -> None:
        line.poll(None)  # True only when the other end was closed: nothing is ever sent on it
        context.term()  # lets zmq.proxy return, and waits until the sockets are closed

    threading.Thread(target=end_with_the_parent).start()
    try:
        zmq.proxy(pull, pub)
    except zmq.ContextTerminated:
        pass
    finally:
        pull.close()
        pub.close()


@contextmanager
def _process(
    command: list[str], folder: Path, ready: Callable[[], bool], variables: Mapping[str, str] | None = None
) -> Iterator[int]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CHANNELS_ZMQ")}
    output = folder / "output.log"
    with output.open("wb") as log:  # in its folder: `-m` imports from the working directory first
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment | dict(variables or {}), cwd=folder)
    try:
        _await_ready(process, output, ready)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes], output: Path, ready: Callable[[], bool]) -> None:
    pause = 0.02
    for _ in range(int(START_TIMEOUT / pause)):
        if ready():
            return
        try:  # the pause between two questions, which also notices a server that ended
            process.wait(pause)
        except subprocess.TimeoutExpired:
            continue
        break
    said = output.read_text(errors="replace")[-2_000:]
    raise ServerError(f"{' '.join(process.args if isinstance(process.args, list) else [])} did not start:\n{said}")


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _answers_200(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
