"""The published test vectors match the frames that our code writes and reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from channels_zmq_forwarder import wire

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "wire-vectors.json").read_text(encoding="utf-8"))
FORMER = json.loads((Path(__file__).parent / "former-wire-vectors.json").read_text(encoding="utf-8"))
"""Frames of processes from before several forwarders acknowledged frames, written by their own code."""
Vector = dict[str, Any]
HEXADECIMAL = ("instance", "messages", "payload", "secret", "sender", "topics")
LAYOUTS = {name.lower(): layout for name, layout in vars(wire).items() if isinstance(layout, wire.Layout)}


def named(vectors: list[Vector]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


def value(field: str, shown: Any) -> Any:
    """Return the value in our code of a field that the vectors show."""
    if field in HEXADECIMAL:
        return bytes.fromhex(shown)
    return shown.encode() if isinstance(shown, str) else shown


@named(VECTORS["frames"])
def test_a_frame_is_written_and_read_as_published(vector: Vector) -> None:
    """A frame is encoded and decoded as published, field by field."""
    layout, data = LAYOUTS[vector["kind"]], bytes.fromhex(vector["hex"])
    frame = layout.make(**{field: value(field, shown) for field, shown in vector["fields"].items()})
    assert layout.encode(frame) == data
    assert layout.decode(data) == frame


@named(VECTORS["messages"])
def test_a_message_is_written_and_read_as_published(vector: Vector) -> None:
    """A message is encoded and decoded as published, with prefix, head and body."""
    data = bytes.fromhex(vector["hex"])
    fields = {field: value(field, shown) for field, shown in vector["fields"].items()}
    if vector["kind"] == "group":
        prefix: bytes = wire.group_topic(vector["fields"]["group"])
        body = fields["payload"]
    else:
        prefix = wire.direct_prefix(fields["inbox"])
        body = wire.direct_body(vector["fields"]["channel"], fields["payload"])
    flags = fields["flags"] & ~(wire.FLAG_AGAIN | wire.FLAG_ELSEWHERE | wire.FLAG_ACKNOWLEDGED)
    frame = wire.ordered(prefix, fields["sender"], fields["number"], flags, fields["ttl"], body)
    if "age" in fields:
        elsewhere, acknowledged = (bool(fields["flags"] & flag) for flag in (4, 8))
        frame = wire.again(frame, fields["ttl"], fields["age"], elsewhere=elsewhere, acknowledged=acknowledged)
    assert frame == data
    assert wire.age_of(data) == fields.get("age", 0)
    key, number, flags, ttl, start = wire.read_order(data, len(prefix))
    assert (key, number, flags, ttl) == (prefix + fields["sender"], fields["number"], fields["flags"], fields["ttl"])
    assert data[start:] == body
    if vector["kind"] == "direct":
        assert wire.channel_and_payload(data[start:]) == (vector["fields"]["channel"], fields["payload"])


@named(VECTORS["batches"])
def test_a_batch_is_written_and_split_as_published(vector: Vector) -> None:
    """A batch is encoded from its bodies, and split into its messages, as published."""
    data, fields = bytes.fromhex(vector["hex"]), vector["fields"]
    prefix = wire.group_topic(fields["group"]) if "group" in fields else wire.direct_prefix(fields["inbox"].encode())
    bodies = [bytes.fromhex(body) for body in fields["bodies"]]
    sender, number, flags, ttl = bytes.fromhex(fields["sender"]), fields["number"], fields["flags"], fields["ttl"]
    frame = wire.ordered(prefix, sender, number, flags & ~wire.FLAG_AGAIN, ttl, wire.batch(bodies))
    if "age" in fields:
        frame = wire.again(frame, ttl, fields["age"], elsewhere=False, acknowledged=False)
    assert frame == data
    assert [one.hex() for one in wire.split(data)] == vector["messages"]


@named(VECTORS["forwarders"])
def test_a_list_of_forwarders_is_written_and_read_as_published(vector: Vector) -> None:
    """A list of forwarders is encoded and decoded as published, entry by entry."""
    data = bytes.fromhex(vector["hex"])
    known = tuple(
        wire.KnownForwarder(each["pull"].encode(), each["pub"].encode(), each["serves"], each["instance"].encode())
        for each in vector["forwarders"]
    )
    assert wire.encode_forwarders(known) == data
    assert wire.decode_forwarders(data) == known


@named(VECTORS["malformed"])
def test_what_is_published_as_malformed_is_refused(vector: Vector) -> None:
    """The decoder of the claimed kind refuses every frame that is published as malformed."""
    data = bytes.fromhex(vector["hex"])
    with pytest.raises(wire.FrameError):
        read(vector["kind"], data)


@named(FORMER["frames"])
def test_a_frame_of_an_older_process_is_read_as_it_was_meant(vector: Vector) -> None:
    """A frame of an older process is decoded with its meaning; the fields that it has keep their values."""
    frame = LAYOUTS[vector["kind"]].decode(bytes.fromhex(vector["hex"]))
    assert {field: getattr(frame, field) for field in vector["fields"]} == {
        field: value(field, shown) for field, shown in vector["fields"].items()
    }


@named([vector for vector in FORMER["messages"] if vector["fields"]["flags"] <= wire.FLAG_FIRST])
def test_a_message_of_an_older_process_is_read_as_it_was_meant(vector: Vector) -> None:
    """A message of an older process is decoded with its meaning, for a group or for a process."""
    data, fields = bytes.fromhex(vector["hex"]), vector["fields"]
    if vector["kind"] == "group":
        topic, sender, number, flags, ttl, payload = wire.read_group(data)
        assert topic == wire.group_topic(fields["group"])
    else:
        sender, number, flags, ttl, body = wire.read_direct(data)
        channel, payload = wire.channel_and_payload(body)
        assert (wire.inbox_in(data), channel) == (fields["inbox"].encode(), fields["channel"])
    assert (sender.hex(), number, flags, ttl, payload.hex()) == (
        fields["sender"],
        fields["number"],
        fields["flags"],
        fields["ttl"],
        fields["payload"],
    )


def read(kind: str, data: bytes) -> None:
    """Read a frame of this kind to its end."""
    if kind == "group":
        wire.read_order(data, wire.topic_end(data) + 1)
    elif kind == "direct":
        *_, start = wire.read_order(data, wire.SUB_KIND + 1)
        wire.channel_and_payload(data[start:])
    elif kind == "batch":
        wire.split(data)
    elif kind == "forwarders":
        wire.decode_forwarders(data)
    else:
        LAYOUTS[kind].decode(data)


def test_every_kind_of_frame_has_vectors() -> None:
    """Every kind of frame has at least three good and three bad vectors, in this version and with unique names."""
    assert VECTORS["version"] == wire.VERSION
    for good in (VECTORS["frames"], VECTORS["malformed"]):
        kinds = [vector["kind"] for vector in good]
        assert all(kinds.count(name) >= 3 for name in LAYOUTS)
    assert {vector["kind"] for vector in VECTORS["messages"]} == {"group", "direct"}
    names = [
        vector["name"]
        for part in ("frames", "messages", "batches", "forwarders", "malformed")
        for vector in VECTORS[part]
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("vector", VECTORS["hashes"], ids=[vector["topic"][:20] for vector in VECTORS["hashes"]])
def test_a_topic_has_the_published_hash(vector: Vector) -> None:
    """A topic has the published hash, by which a client names its groups when it reconnects."""
    assert wire.topic_hash(bytes.fromhex(vector["topic"])) == vector["hash"]
