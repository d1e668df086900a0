"""The messages that are sent through the layers: 200 bytes as msgpack, numbered, and checked by each receiver.

If another size is measured, the text has another length (`text_for`).
"""

import ormsgpack

from .crew import WrongResultError
from .peers import Message

KIND = "bench.message"
PROBE = -1
STOP = -2
# With it a message is 200 bytes of msgpack (numbers above 65,535: 202).
TEXT = "The quick brown fox jumps over the lazy dog. " * 3 + "0123456789" * 3 + "zmq"


def message(number: int, text: str = TEXT) -> Message:
    """Return the message of that number; `PROBE` and `STOP` are numbers that are not counted."""
    return {"type": KIND, "n": number, "text": text}


def text_for(size: int) -> str:
    """Return the text with which a message has that size as msgpack, within a few bytes for its number."""
    length = size - len(ormsgpack.packb(message(0, "")))
    return (TEXT * (length // len(TEXT) + 1))[:length]


def check(got: Message, expected: int, receiver: str, text: str = TEXT) -> None:
    """Compare a received message with the one that must arrive now.

    Raises:
        WrongResultError: If it is another one, or its content was changed.
    """
    if got != message(expected, text):
        found = got.get("n")
        fault = f"message {found} instead of {expected}" if found != expected else f"wrong content in {expected}"
        raise WrongResultError(f"{receiver}: {fault}")
