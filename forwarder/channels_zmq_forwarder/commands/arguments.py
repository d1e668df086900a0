"""Numbers and names on command lines, each with its bounds."""

from argparse import ArgumentTypeError
from collections.abc import Callable

from channels_zmq_forwarder import wire

MOST = 2**31 - 1
LONGEST = 86400.0


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers within bounds."""

    def parsed(text: str) -> int:
        try:
            if least <= int(text) <= most:
                return int(text)
        except ValueError:
            pass
        raise ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")

    return parsed


def seconds(text: str) -> float:
    """Return a duration.

    Raises:
        ArgumentTypeError: If it is not a number of seconds above 0 and at most a day.
    """
    try:
        if 0 < float(text) <= LONGEST:
            return float(text)
    except ValueError:
        pass
    raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and at most {LONGEST:.0f}")


def name(text: str) -> str:
    """Return the name of a group or channel.

    Raises:
        ArgumentTypeError: If the forwarder would not accept it.
    """
    if not wire.is_topic(wire.group_topic(text)):
        raise ArgumentTypeError(f"a name has 1 to {wire.MAX_NAME} bytes")
    return text
