"""`channels-zmq-forwarder keygen`: make a pair of CURVE keys."""

import argparse
import os
from collections.abc import Sequence

from channels_zmq_forwarder.commands.target import CommandError
from channels_zmq_forwarder.curve import new_pair


def main(arguments: Sequence[str]) -> None:
    """Make the pair.

    Raises:
        CommandError: If a file cannot be written, or exists already.
    """
    parser = argparse.ArgumentParser(
        prog="channels-zmq-forwarder keygen",
        description="Generate a CURVE key pair, as two files or on standard output; only the owner can read the secret "
        "key's file.",
    )
    parser.add_argument(
        "name", nargs="?", help="path of the two files without their extensions; if it is omitted, the keys are printed"
    )
    name = parser.parse_args(arguments).name
    public, secret = (key.decode() for key in new_pair())
    if name is None:
        print(f"public {public}\nsecret {secret}")
        return
    try:
        for ending, key, mode in (("secret", secret, 0o600), ("public", public, 0o644)):
            descriptor = os.open(f"{name}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(f"{key}\n")
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from None
    print(f"{name}.public {name}.secret")
