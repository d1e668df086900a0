"""Serialization of messages to bytes and back, and the messages that are refused."""

import json
import tracemalloc
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from channels_zmq import serializers
from channels_zmq.client.mailboxes import Shared
from channels_zmq.errors import ConfigurationError, MessageError, SerializationError
from channels_zmq.serializers import Serializer, named, pack, register, unpack

BOTH = ["msgpack", "json"]
MEBIBYTE = 2**20
MOMENT = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


class Colour(Enum):
    """A type that no serializer supports."""

    RED = 1


def there_and_back(name: str, message: dict[str, Any]) -> dict[str, Any] | None:
    return unpack(named(name), pack(named(name), message))


def refusal(name: str, message: Any) -> SerializationError:
    with pytest.raises(SerializationError) as caught:
        pack(named(name), message)
    return caught.value


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, -(2**63), 2**63 - 1, 1.5, "", "\u00e9\u20ac\U0001f600", [], [1, [2]], {}, {"b": {"c": 1}}],
)
def test_a_plain_value_comes_back_as_it_was(name: str, value: object) -> None:
    """Each plain value survives serialization with its type, as Channels requires of a layer."""
    back = there_and_back(name, {"type": "t", "a": value})
    assert back == {"type": "t", "a": value}
    assert type(back["a"]) is type(value)


def test_bytes_come_back_as_bytes() -> None:
    """The msgpack serializer preserves bytes of any value."""
    assert there_and_back("msgpack", {"a": bytes(range(256))}) == {"a": bytes(range(256))}


@pytest.mark.parametrize("name", BOTH)
def test_a_tuple_comes_back_as_a_list(name: str) -> None:
    """A tuple becomes a list, because neither format has tuples."""
    assert there_and_back(name, {"a": (1, (2,))}) == {"a": [1, [2]]}


@pytest.mark.parametrize(
    "value, text",
    [
        (MOMENT, "2020-01-02T03:04:05+00:00"),
        (date(2020, 1, 2), "2020-01-02"),
        (time(3, 4, 5), "03:04:05"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
    ],
)
def test_msgpack_brings_times_uuids_and_decimals_back_as_text(value: UUID | Decimal | time | date, text: str) -> None:
    """The msgpack serializer converts times and UUIDs to their standard text, and a Decimal to text with all digits."""
    assert there_and_back("msgpack", {"a": value}) == {"a": text}


@pytest.mark.parametrize("value", [MOMENT, MOMENT.date(), MOMENT.time(), UUID(int=1), Decimal("1.10"), b"x"])
def test_json_refuses_what_it_has_no_form_for(value: object) -> None:
    """JSON refuses a value that it cannot represent, with an error that names the path and the type."""
    error = refusal("json", {"a": {"b": [0, value]}})
    assert error.path == "message['a']['b'][1]"
    assert f"of type {type(value).__name__} cannot be serialized" in str(error)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("key", [1, None, True, 1.5, (1, 2)])
def test_a_key_that_is_no_text_is_refused(name: str, key: float | tuple[int, int] | None) -> None:
    """A key that is not a string is refused, rather than converted to a string or lost."""
    error = refusal(name, {"a": [{key: 2}]})
    assert error.path == "message['a'][0]"
    assert f"the key {key!r} is {type(key).__name__}" in str(error)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("value", [{1, 2}, object(), "\ud800", 1j])
def test_what_no_serializer_can_carry_is_refused(name: str, value: object) -> None:
    """A value that no serializer can carry is refused when the message is sent, with an error that names its path."""
    assert refusal(name, {"fine": {"b": [1]}, "a": [0, value]}).path == "message['a'][1]"


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_a_number_beyond_64_bits_is_refused(number: int) -> None:
    """The msgpack serializer refuses an integer beyond 64 bits, because the format cannot represent it."""
    assert refusal("msgpack", {"a": number}).path == "message['a']"


@pytest.mark.parametrize("name", BOTH)
def test_a_message_inside_itself_is_refused(name: str) -> None:
    """A message that contains itself is refused with the layer's own error and not with a RecursionError."""
    message: dict[str, Any] = {}
    message["a"] = [message]
    problem = refusal(name, message)
    assert "contains itself" in str(problem)
    assert problem.path == "message['a'][0]"


@pytest.mark.parametrize("name", BOTH)
def test_a_message_that_is_nested_too_deep_is_refused(name: str) -> None:
    """A message that is nested too deep is refused with the layer's own error."""
    value: list[Any] = []
    for _ in range(20_000):
        value = [value]
    assert "too deep" in str(refusal(name, {"a": value}))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("message", [None, "text", [1], 5, b"x"])
def test_a_message_is_a_dict(name: str, message: int | bytes | str | list[int] | None) -> None:
    """A message that is not a dict is refused with an error that names its type."""
    error = refusal(name, message)
    assert str(error) == f"message: a message must be a dict, not {type(message).__name__}"


def test_a_long_value_is_shortened_in_the_error() -> None:
    """The error shortens a long value, so that a log line stays readable."""
    assert len(str(refusal("msgpack", {"a": set(range(1000))}))) < 200


def test_a_refusal_is_an_error_of_the_usual_kinds() -> None:
    """A refusal is a ValueError and a TypeError too, so that code for the errors of other layers still works."""
    error = refusal("msgpack", {"a": object()})
    assert isinstance(error, MessageError)
    assert isinstance(error, ValueError)
    assert isinstance(error, TypeError)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"\xc1",
        b"GET / HTTP/1.1",
        b"[1]",
        b"\x91\x01",
        b"5",
        b"\x81\x01\x02",
        b"[" * 100_000,
        b"\x91" * 100_000,
    ],
)
def test_the_bytes_of_a_stranger_give_none(name: str, payload: bytes) -> None:
    """Malformed bytes, whatever their content, unpack to None and raise nothing that would end a reader."""
    assert unpack(named(name), payload) is None


@pytest.mark.parametrize("name, other", [("msgpack", "json"), ("json", "msgpack")])
def test_the_bytes_of_another_serializer_give_none(name: str, other: str) -> None:
    """The bytes of another serializer unpack to None, as for two processes whose configurations differ."""
    assert unpack(named(other), pack(named(name), {"type": "t", "a": 1})) is None


def test_every_reader_decodes_a_copy_of_its_own() -> None:
    """Each reader decodes its own copy, so that none sees a change that another makes to its message."""
    payload = pack(named("msgpack"), {"a": []})
    message = unpack(named("msgpack"), payload)
    assert message is not None
    message["a"].append(1)
    assert unpack(named("msgpack"), payload) == {"a": []}


@pytest.mark.parametrize("value", [1, "text", b"bytes", None, [1, [2]], {"b": {"c": 1}}])
def test_readers_of_a_shared_payload_get_messages_of_their_own(value: Any) -> None:
    """Readers of a shared payload get independent messages: a change at any depth reaches no other reader."""
    message = {"type": "t", "a": value}
    shared = Shared(pack(named("msgpack"), message))
    readers = [unpack(named("msgpack"), shared) for _ in range(4)]
    assert readers == [message] * 4
    for number, own in enumerate(readers):
        assert own is not None
        own["type"] = number
        if isinstance(value, list):
            own["a"][1].append(number)
        elif isinstance(value, dict):
            own["a"]["b"]["c"] = number + 2
        assert readers[number + 1 :] == [message] * (3 - number)
    assert unpack(named("msgpack"), shared) == message


def test_a_shared_payload_is_unpacked_by_the_readers_own_serializer() -> None:
    """Two layers of a process may use different serializers, so a shared payload can be invalid for one of them."""
    shared = Shared(pack(named("msgpack"), {"a": 1}))
    assert unpack(named("msgpack"), shared) == {"a": 1}
    assert unpack(named("json"), shared) is None
    assert unpack(named("msgpack"), shared) == {"a": 1}


def test_a_registered_serializer_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered serializer is found by its name and used in the same way as the built-in ones."""
    monkeypatch.setattr(serializers, "_registry", dict(serializers._registry))
    register("mine", Serializer(lambda message: b"!" + json.dumps(message).encode(), lambda data: json.loads(data[1:])))
    assert pack(named("mine"), {"a": 1})[:1] == b"!"
    assert there_and_back("mine", {"a": 1}) == {"a": 1}


def test_an_unknown_serializer_is_told_the_known_ones() -> None:
    """The error for an unknown serializer names the setting and lists the registered serializers."""
    with pytest.raises(ConfigurationError, match="'pickle' is not registered; registered are json, msgpack") as caught:
        named("pickle")
    assert caught.value.setting == "serializer"


@pytest.mark.parametrize("name", BOTH)
def test_the_reserved_key_is_refused(name: str) -> None:
    """A message with the reserved key is refused, as other layers do too; nested dicts may contain the key."""
    error = refusal(name, {"type": "t", "__asgi_channel__": "a"})
    assert error.path == "message['__asgi_channel__']"
    assert "reserved" in str(error)
    assert there_and_back(name, {"a": {"__asgi_channel__": 1}}) == {"a": {"__asgi_channel__": 1}}


class Tagged(bytes):
    """A subclass of bytes, which may have further attributes."""


@pytest.mark.parametrize("kind", [Tagged, bytearray, memoryview])
def test_what_a_serializer_returns_becomes_exact_bytes(kind: type[bytearray | memoryview | Tagged]) -> None:
    """Whatever bytes-like object a serializer returns, the payload is exact bytes, which nothing can change later."""
    payload = pack(Serializer(lambda message: kind(b"{}"), json.loads), {"a": 1})
    assert payload == b"{}"
    assert type(payload) is bytes


@pytest.mark.parametrize("result", [None, "{}", 5, [1]])
def test_a_serializer_that_returns_no_bytes_is_named(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    """A serializer that returns no bytes raises an error that names the serializer, because the message is valid."""
    monkeypatch.setattr(serializers, "_registry", dict(serializers._registry))
    register("mine", Serializer(lambda message: result, json.loads))
    error = refusal("mine", {"a": 1})
    assert str(error) == f"message: the serializer 'mine' returned {type(result).__name__} instead of bytes"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [("msgpack", b"\x81\xa1a" + b"\x91" * MEBIBYTE), ("json", b'{"a":' + b"[" * MEBIBYTE)],
)
def test_a_message_that_is_nested_too_deeply_is_dropped(kind: str, payload: bytes) -> None:
    """A payload that is nested too deeply unpacks to None: it neither ends the process nor raises in a consumer."""
    assert unpack(named(kind), payload) is None


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("msgpack", b"\x81\xa1a\xdd" + (MEBIBYTE - 8).to_bytes(4) + b"\x80" * (MEBIBYTE - 8)),
        ("json", b'{"a":[{}' + b",{}" * (MEBIBYTE // 3 - 4) + b"]}"),
    ],
)
def test_a_message_takes_a_bounded_multiple_of_its_size(kind: str, payload: bytes) -> None:
    """Unpacking takes under 100 times the payload; the worst case is an empty map, with 64 bytes and 8 in its list."""
    tracemalloc.start()
    try:
        assert unpack(named(kind), payload) is not None
        assert tracemalloc.get_traced_memory()[1] < 100 * MEBIBYTE
    finally:
        tracemalloc.stop()
