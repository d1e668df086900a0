"""The messages that go through the layers: 200 bytes as msgpack, numbered, and checked by whoever receives them."""

from .crew import WrongResultError
from .peers import Message

KIND = "bench.message"
PROBE = -1
STOP = -2
# With it a message is 200 bytes of msgpack (numbers above 65,535: 202).
TEXT = "The quick brown fox jumps over the lazy dog. " * 3 + "0123456789" * 3 + "zmq"


def message(number: int) -> Message:
    """The message of that number; `PROBE` and `STOP` are numbers that are not counted."""
    return {"type": KIND, "n": number, "text": TEXT}


def check(got: Message, expected: int, receiver: str) -> None:
    """Compare a received message with the one that must come now.

    Raises:
        WrongResultError: It is another one, or its content was changed.
    """
    if got != message(expected):
        found = got.get("n")
        fault = f"message {found} instead of {expected}" if found != expected else f"wrong content in {expected}"
        raise WrongResultError(f"{receiver}: {fault}")
