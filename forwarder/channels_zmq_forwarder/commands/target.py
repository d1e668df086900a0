"""The forwarders that a command uses: from flags, from the variables of applications, or from those of a forwarder.

The last is for `kubectl exec` into a forwarder: it connects to itself, and its own key may always connect.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from channels_zmq_forwarder.commands.arguments import seconds
from channels_zmq_forwarder.curve import CurveKeyError, key, key_in, new_pair, public_key
from channels_zmq_forwarder.sockets import EVERYWHERE, resolve_pairs

APPLICATION, OWN = "CHANNELS_ZMQ_", "CHANNELS_ZMQ_FORWARDER_"
DEFAULTS = {"pull": "tcp://127.0.0.1:5555", "pub": "tcp://127.0.0.1:5556"}
RETRY = 0.2
"""Seconds between two attempts to resolve a name or to find a file."""


class CommandError(Exception):
    """A command cannot be carried out; the message states why."""


class Target(NamedTuple):
    """One forwarder.

    Attributes:
        pull: Where it takes messages.
        pub: Where it publishes.
        keys: Its public key and the secret key to connect with; None without CURVE.
    """

    pull: str
    pub: str
    keys: tuple[bytes, bytes] | None

    def __str__(self) -> str:
        return f"{self.pull} and {self.pub}"


def add_arguments(parser: argparse.ArgumentParser, *, timeout: float = 5.0) -> None:
    """Add the flags that name a layer, and how long it may take to answer."""
    parser.add_argument(
        "--pull-address", help=f"address of the forwarder's pull port (${APPLICATION}PULL_SOCKET_ADDRESS)"
    )
    parser.add_argument("--pub-address", help=f"address of the forwarder's pub port (${APPLICATION}PUB_SOCKET_ADDRESS)")
    parser.add_argument("--curve-server-key-file", help=f"the forwarder's public key (${APPLICATION}...)")
    parser.add_argument("--curve-secret-key-file", help=f"the secret key of this client (${APPLICATION}...)")
    parser.add_argument("--timeout", type=seconds, default=timeout, help=f"seconds to wait for an answer ({timeout:g})")


def find(given: argparse.Namespace, environment: Mapping[str, str], deadline: float) -> list[Target]:
    """Return all forwarders of the layer; wait for names that cannot be resolved yet, and for files that do not exist.

    Args:
        given: The parsed flags of `add_arguments`.
        environment: The variables, used for flags that are not given.
        deadline: Monotonic seconds.

    Raises:
        CommandError: If the addresses are not in pairs, a name cannot be resolved, or a key is missing or invalid.
    """
    pull, pub = (_address(given, environment, way) for way in ("pull", "pub"))
    keys = _keys(given, environment, deadline)
    pulls, pubs = pull.split(","), pub.split(",")
    if len(pulls) != len(pubs):
        raise CommandError(f"{pull} and {pub}: give one address of each kind for each forwarder")
    pairs = [pair for one in zip(pulls, pubs, strict=True) for pair in _resolved(*one, deadline)]
    return [Target(*pair, keys) for pair in pairs]


def _address(given: argparse.Namespace, environment: Mapping[str, str], way: str) -> str:
    own = environment.get(f"{OWN}{way.upper()}_ADDRESS", "").replace(EVERYWHERE, "tcp://127.0.0.1:").split(",")[0]
    flag: str | None = getattr(given, f"{way}_address")
    variable = f"{APPLICATION}{way.upper()}_SOCKET_ADDRESS"
    if address := flag or environment.get(variable) or own:
        return address
    print(f"{variable} is not set (does the pod have the label of a layer?): using {DEFAULTS[way]}", file=sys.stderr)
    return DEFAULTS[way]


def _resolved(pull: str, pub: str, deadline: float) -> list[tuple[str, str]]:
    while True:
        try:
            if pairs := resolve_pairs(pull, pub):
                return pairs
            problem = "it has no address"
        except OSError as error:
            problem = str(error.strerror)
        if time.monotonic() > deadline:
            raise CommandError(f"cannot resolve {pull}: {problem}")
        time.sleep(RETRY)


def _keys(given: argparse.Namespace, environment: Mapping[str, str], deadline: float) -> tuple[bytes, bytes] | None:
    server, secret = (_applications_key(given, environment, side, deadline) for side in ("server", "secret"))
    if server:
        return server, secret or new_pair()[1]  # as a layer does
    if secret:
        raise CommandError(f"{APPLICATION}CURVE_SERVER_KEY_FILE is required with a secret key")
    if own := _key_of(environment, f"{OWN}CURVE_SECRET_KEY", deadline):
        return public_key(own), own
    return None


def _applications_key(
    given: argparse.Namespace, environment: Mapping[str, str], side: str, deadline: float
) -> bytes | None:
    flag: str | None = getattr(given, f"curve_{side}_key_file")
    return _key(flag, deadline) if flag else _key_of(environment, f"{APPLICATION}CURVE_{side.upper()}_KEY", deadline)


def _key_of(environment: Mapping[str, str], variable: str, deadline: float) -> bytes | None:
    """Return the key that a variable has, or the file that it names with `_FILE`; None if neither is set."""
    if path := environment.get(f"{variable}_FILE"):
        return _key(path, deadline)
    try:
        return key(text) if (text := environment.get(variable)) else None
    except CurveKeyError as error:
        raise CommandError(f"{variable}: {error}") from None


def _key(path: str, deadline: float) -> bytes:
    """Return the key in a file, which may appear a moment after the start."""
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise CommandError(f"{path} does not exist")
        time.sleep(RETRY)
    try:
        return key_in(path)
    except CurveKeyError as error:
        raise CommandError(str(error)) from None
