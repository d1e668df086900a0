"""The msgpack libraries on messages as Channels carries them. Figures: us to encode and to decode, and the size.

A channel layer must refuse a dict whose keys are not str, because no library reads such a message back by default.
ormsgpack refuses it when encoding. msgspec and msgpack encode it; to refuse it with them costs a walk over the message
in Python, which is measured as `+ keys` beside the library alone. The table below shows how each library handles other
values.
"""

import datetime as dt
import decimal
import importlib
import statistics
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import ormsgpack

from .peers import Message
from .report import table

MESSAGES: dict[str, Message] = {
    "chat, 5 keys": {"type": "chat.message", "room": "lobby", "user": 4711, "text": "Hello, world!", "seen": False},
    "text, 1 kB": {"type": "chat.message", "text": "The quick brown fox jumps over the lazy dog. " * 22},
    "100 dicts": {
        "type": "table.rows",
        "rows": [{"id": n, "name": f"row {n}", "score": n / 7, "tags": ["a", "b"], "open": True} for n in range(100)],
    },
    "bytes, 64 kB": {"type": "websocket.send", "bytes": bytes(range(256)) * 256},
}
ODD_VALUES: dict[str, object] = {
    "int key": {"rows": {1: "one"}},
    "tuple": {"pair": (1, 2)},
    "datetime": {"at": dt.datetime(2024, 2, 29, tzinfo=dt.UTC)},
    "UUID": {"id": uuid.UUID(int=7)},
    "Decimal": {"price": decimal.Decimal("1.50")},
    "2**63": {"n": 2**63},
    "2**64": {"n": 2**64},
    "lone surrogate": {"text": "\ud800"},
    "NUL text": {"text": "\0"},
    "str subclass": {"text": type("Name", (str,), {})("x")},
    "set": {"tags": {1}},
}

Codec = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]


def report(quick: bool = False) -> str:
    """Measure, and return the tables."""
    rounds, seconds = (3, 0.002) if quick else (9, 0.05)
    rows: list[tuple[str, ...]] = [
        ("message", "library", "bytes", "encode us", "decode us", "both us", "ratio to ormsgpack")
    ]
    for name, content in MESSAGES.items():
        rows += _rows(name, content, rounds, seconds)
    return table(rows) + "\n\n" + table(_odd_values())


def codecs() -> dict[str, Codec]:
    """Return the libraries as a layer would use them; `+ keys` refuses keys that are not str before encoding."""
    msgpack = importlib.import_module("msgpack")  # it ships no type information
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()
    packer = msgpack.Packer(autoreset=True)
    return {
        "ormsgpack": (ormsgpack.packb, ormsgpack.unpackb),
        "msgspec": (encoder.encode, decoder.decode),
        "msgspec + keys": (_refusing(encoder.encode), decoder.decode),
        "msgpack": (packer.pack, msgpack.unpackb),
        "msgpack + keys": (_refusing(packer.pack), msgpack.unpackb),
    }


def refuse_other_keys(value: object) -> None:
    """Walk over a message and refuse dict keys that are not str.

    Raises:
        TypeError: If there is such a key.
    """
    if type(value) is dict:
        for key, inner in value.items():
            if type(key) is not str:
                raise TypeError(f"a key must be str, not {type(key).__name__}")
            if type(inner) is dict or type(inner) is list:
                refuse_other_keys(inner)
    elif type(value) is list:
        for inner in value:
            if type(inner) is dict or type(inner) is list:
                refuse_other_keys(inner)


def _refusing(encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def checked(value: object) -> bytes:
        refuse_other_keys(value)
        return encode(value)

    return checked


def _rows(name: str, content: Message, rounds: int, seconds: float) -> list[tuple[str, ...]]:
    found: dict[str, tuple[int, list[float], list[float]]] = {}
    for turn in range(rounds):
        order = list(codecs().items())
        for library, (encode, decode) in order[turn % len(order) :] + order[: turn % len(order)]:
            data = encode(content)
            if decode(data) != content:
                raise AssertionError(f"{library} changed the message {name!r}")
            _, encodes, decodes = found.setdefault(library, (len(data), [], []))
            encodes.append(_time(encode, content, seconds))
            decodes.append(_time(decode, data, seconds))
    medians = {
        library: (size, statistics.median(encodes), statistics.median(decodes))
        for library, (size, encodes, decodes) in found.items()
    }
    base = sum(medians["ormsgpack"][1:])
    return [
        (name, one, str(size), f"{enc:.2f}", f"{dec:.2f}", f"{enc + dec:.2f}", f"{(enc + dec) / base:.2f}")
        for one in codecs()
        for size, enc, dec in [medians[one]]
    ]


def _time(call: Callable[[Any], object], value: object, seconds: float) -> float:
    """Return the microseconds for a call, from as many calls as fit into about that time."""
    start = time.perf_counter()
    call(value)
    once = max(time.perf_counter() - start, 1e-7)
    times = max(1, int(seconds / once))
    start = time.perf_counter()
    for _ in range(times):
        call(value)
    return (time.perf_counter() - start) / times * 1e6


def _odd_values() -> list[tuple[str, ...]]:
    libraries = {name: codec for name, codec in codecs().items() if "+" not in name}
    rows: list[tuple[str, ...]] = [("value", *libraries)]
    for name, value in ODD_VALUES.items():
        rows.append((name, *(_outcome(codec, value) for codec in libraries.values())))
    return rows


def _outcome(codec: Codec, value: object) -> str:
    encode, decode = codec
    try:
        data = encode(value)
    except Exception as error:
        return f"encode: {type(error).__name__}"
    try:
        got = decode(data)
    except Exception as error:
        return f"decode: {type(error).__name__}"
    return "same" if got == value else f"as {next(iter(got.values()))!r}"
