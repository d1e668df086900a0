"""The encoding and decoding of frames."""

import re
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import FrameError, KnownForwarder, Layout

INBOX = b"0123456789abcdef"
LAYOUTS: tuple[Layout[Any], ...] = (*wire.CLIENT_LAYOUTS, *wire.INBOX_LAYOUTS)
NUMBERS: dict[str, st.SearchStrategy[int] | st.SearchStrategy[bytes]] = {
    code: st.integers(0, 2**bits - 1) for code, bits in (("B", 8), ("I", 32), ("Q", 64))
}
NUMBERS |= {f"{size}s": st.binary(min_size=size, max_size=size) for size in (8, 16)}

inboxes = st.binary(min_size=8, max_size=8).map(lambda raw: raw.hex().encode())
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=99).map(
    str.encode
)


addresses = st.binary(min_size=1, max_size=wire.MAX_ADDRESS).filter(lambda address: b"\0" not in address)


@st.composite
def frames(draw: st.DrawFn) -> tuple[Layout[Any], Any]:
    """Draw a layout and a frame that fits it."""
    layout: Layout[Any] = draw(st.sampled_from(LAYOUTS))
    codes = re.findall(r"\d*\w", layout.numbers.format)
    numbers = [draw(NUMBERS[code]) for code in codes]
    texts = [draw(names) for _ in range(layout.names)]
    payload = [draw(st.binary(max_size=200))] if layout.parts > layout.names else []
    return layout, layout.make(draw(inboxes), *numbers, *texts, *payload)


@given(frames())
def test_what_is_encoded_is_decoded_again(case: tuple[Layout[Any], Any]) -> None:
    """Decoding inverts encoding for every kind, with any payload and names."""
    layout, frame = case
    assert layout.decode(layout.encode(frame)) == frame


@given(frames(), st.data())
def test_mutated_frames_are_refused_or_read_and_never_anything_else(
    case: tuple[Layout[Any], Any], data: st.DataObject
) -> None:
    """Decoding any bytes returns a frame or raises FrameError, and never another exception."""
    layout, frame = case
    raw = bytearray(layout.encode(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "end"])):
            case "flip" if raw:
                raw[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                raw[at:at] = data.draw(st.binary(max_size=20))
            case _:
                del raw[at:]
    other: Layout[Any] = data.draw(st.sampled_from(LAYOUTS))
    for reader in (layout, other):
        try:
            again = reader.decode(bytes(raw))
        except FrameError:
            continue
        assert reader.decode(reader.encode(again)) == again


@given(st.binary(max_size=80), st.integers(0, 90))
def test_any_bytes_are_a_message_or_refused(raw: bytes, at: int) -> None:
    """Reading the head or the topic of any bytes succeeds or raises FrameError."""
    for read in (partial(wire.read_order, raw, at), partial(wire.channel_and_payload, raw), partial(wire.split, raw)):
        with suppress(FrameError):
            read()
    with suppress(FrameError):
        assert raw[wire.topic_end(raw)] == 0


def test_a_frame_begins_with_its_kind_and_inbox() -> None:
    """A frame begins with its kind and inbox, by which ZeroMQ matches subscriptions and the exchange routes."""
    assert wire.SYNC.encode(wire.Sync(INBOX, 7)) == b"Y" + INBOX + bytes(7) + b"\7"
    assert wire.SYNCED.encode(wire.Synced(INBOX, 7)) == b"P" + INBOX + b"\0y" + bytes(7) + b"\7"


def test_every_kind_is_its_own() -> None:
    """No two frames of the same direction share a kind byte."""
    assert len({layout.kind for layout in wire.CLIENT_LAYOUTS}) == len(wire.CLIENT_LAYOUTS)
    assert len({layout.kind for layout in wire.INBOX_LAYOUTS} | {wire.DIRECT}) == len(wire.INBOX_LAYOUTS) + 1


def test_a_frame_of_another_kind_is_refused() -> None:
    """A layout decodes only its own kind, even if another one has the same length."""
    with pytest.raises(FrameError, match="not of kind 'E'"):
        wire.ECHO.decode(wire.SYNC.encode(wire.Sync(INBOX, 1)))
    with pytest.raises(FrameError, match="not of kind 'f'"):
        wire.EMPTY.decode(wire.SYNCED.encode(wire.Synced(INBOX, 1)))


@pytest.mark.parametrize("inbox", [b"0123456789ABCDEF", b"0123456789abcde\0", b"0123456789abcdeg", b"0123456789 abcde"])
def test_an_inbox_is_sixteen_lowercase_hexadecimal_digits(inbox: bytes) -> None:
    """An inbox that is not 16 lowercase hexadecimal digits is invalid."""
    with pytest.raises(FrameError, match="invalid inbox"):
        wire.SYNC.decode(b"Y" + inbox + bytes(8))
    assert wire.inbox_of(b"P" + inbox + b"\0") == b""


def test_the_inbox_of_a_topic_is_read_only_from_an_inbox_topic() -> None:
    """The inbox is read only from an inbox topic; a similar topic does not name a process."""
    assert wire.inbox_of(wire.inbox_topic(INBOX)) == INBOX
    for other in (b"", b"P", b"P" + INBOX, b"P" + INBOX + b"x", b"G" + INBOX + b"\0", b"P" + INBOX + b"\0\0"):
        assert wire.inbox_of(other) == b""


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: chr(layout.kind))
def test_a_frame_that_ends_within_its_numbers_is_refused(layout: Layout[Any]) -> None:
    """A frame that ends within its numbers is refused with its kind and the least number of bytes."""
    with pytest.raises(FrameError, match=f"kind {chr(layout.kind)!r} has at least"):
        layout.decode(
            layout._before + INBOX + layout._behind + bytes(layout.numbers.size - 1) if layout.numbers.size else b""
        )


@pytest.mark.parametrize("tail", [b"", b"\0", b"jobs", b"\0payload", b"j" * 401 + b"\0payload"])
def test_a_name_that_is_missing_empty_or_too_long_is_refused(tail: bytes) -> None:
    """A missing, empty or overlong name is refused, since a job without a channel cannot be delivered."""
    with pytest.raises(FrameError, match="name"):
        wire.ENQUEUE.decode(b"Q" + INBOX + bytes(16) + tail)


def test_a_name_never_holds_a_nul() -> None:
    """A name that contains a NUL is refused, even one that ends the frame."""
    with pytest.raises(FrameError, match="no NUL"):
        wire.READY.decode(b"R" + INBOX + bytes(29) + b"jo\0bs")


def test_the_longest_name_of_channels_fits() -> None:
    """The longest name of Channels fits: it has 99 characters, which are up to four bytes each in a frame."""
    longest = ("\U0001d7d8" * 99).encode()
    assert wire.REMOVED.decode(wire.REMOVED.encode(wire.Removed(INBOX, longest, longest))).channel == longest


def test_a_hello_and_a_welcome_of_version_1_are_read() -> None:
    """A hello and a welcome of version 1 are decoded, so that the version is known.

    They end where the list of forwarders begins, which decodes as an empty list.
    """
    hello = wire.HELLO.decode(b"H" + INBOX + b"\x01\0\0\0\x02\0\0\0\x03")
    assert hello == wire.Hello(INBOX, 1, 2, 3, b"")
    welcome = wire.WELCOME.decode(b"P" + INBOX + b"\0w\x01\0instance\0\0\0\x02\0\0\0\x03")
    assert welcome == wire.Welcome(INBOX, 1, wire.State.SERVING, b"instance", 2, 3, b"")
    assert wire.decode_forwarders(hello.forwarders) == ()


def test_a_hello_of_a_later_version_is_read() -> None:
    """A hello of a later version is decoded, with its version number and the appended bytes."""
    hello = wire.Hello(INBOX, wire.VERSION + 1, 1, 0)
    assert wire.HELLO.decode(wire.HELLO.encode(hello) + b"and more") == hello._replace(forwarders=b"and more")
    with pytest.raises(FrameError, match="has 25 bytes"):
        wire.ECHO.decode(wire.ECHO.encode(wire.Echo(INBOX, 1)) + b"and more")


def test_a_group_message_is_read_back() -> None:
    """The head of a group message contains the key of the run, the number, flags and time to live."""
    topic = wire.group_topic("Zürich")
    frame = wire.ordered(topic, b"sender..", 5, wire.FLAG_FIRST, 60_000, b"\0\1payload")
    end = wire.topic_end(frame)
    key, number, flags, ttl, start = wire.read_order(frame, end + 1)
    assert wire.name(frame[1:end]) == "Zürich"
    assert (key, number, flags, ttl) == (topic + b"sender..", 5, wire.FLAG_FIRST, 60_000)
    assert frame[start:] == b"\0\1payload"


def test_a_direct_message_is_read_back() -> None:
    """A direct message contains the full name of its channel, since several channels of a process share an inbox."""
    body = wire.direct_body("specific.é!1", b"\0payload")
    frame = wire.ordered(wire.direct_prefix(INBOX), b"sender..", 1, 0, 0, body)
    *_, start = wire.read_order(frame, wire.SUB_KIND + 1)
    assert frame[wire.SUB_KIND] == wire.DIRECT
    assert wire.channel_and_payload(frame[start:]) == ("specific.é!1", b"\0payload")


def test_a_message_that_ends_within_its_head_is_refused() -> None:
    """A truncated head is invalid; the head alone is a message without payload."""
    frame = wire.ordered(wire.group_topic("a"), b"sender..", 1, 0, 0, b"")
    assert wire.read_order(frame, 3)[-1] == len(frame)
    with pytest.raises(FrameError, match="ends before its payload"):
        wire.read_order(frame[:-1], 3)


instances = st.sampled_from([b"", b"0" * wire.INSTANCE_DIGITS, b"0123456789abcdef"])
known_forwarders = st.builds(wire.KnownForwarder, addresses, addresses, st.booleans(), instances)


@given(st.lists(known_forwarders, max_size=wire.MAX_FORWARDERS + 1))
def test_a_list_of_forwarders_is_read_back(known: list[KnownForwarder | wire.KnownForwarder]) -> None:
    """A list of forwarders is decoded as it was encoded, up to the number and bytes that may be listed.

    An address may contain anything but a NUL: a path of ipc may contain spaces.
    """
    listed = wire.listed(known)
    assert wire.decode_forwarders(wire.encode_forwarders(listed)) == tuple(listed) == tuple(known[: len(listed)])
    if len(listed) < min(len(known), wire.MAX_FORWARDERS):
        with pytest.raises(FrameError, match="15360 bytes at most"):
            wire.encode_forwarders(known[: len(listed) + 1])


@given(st.binary(max_size=80))
def test_any_bytes_are_a_list_of_forwarders_or_refused(raw: bytes) -> None:
    """Any bytes that decode as a list of forwarders encode to the same bytes; others raise FrameError."""
    with suppress(FrameError):
        assert wire.encode_forwarders(wire.decode_forwarders(raw)) == raw


@pytest.mark.parametrize("address", [b"", b"a\0b", b"x" * (wire.MAX_ADDRESS + 1)])
def test_an_invalid_address_of_a_forwarder_is_never_sent(address: bytes) -> None:
    """An invalid address of a forwarder is not encoded, since its hello would be dropped as malformed."""
    with pytest.raises(FrameError, match="forwarder"):
        wire.encode_forwarders([wire.KnownForwarder(b"pull", address, True)])


@pytest.mark.parametrize("instance", [b"0", b"A" * 16, b"g" * 16, b"0" * 15, b"0" * 17])
def test_an_invalid_instance_in_a_list_is_refused(instance: bytes) -> None:
    """An instance in a list is the hexadecimal form of the eight bytes in a welcome, and is refused otherwise."""
    with pytest.raises(FrameError, match="16 lowercase hexadecimal digits"):
        wire.encode_forwarders([wire.KnownForwarder(b"pull", b"pub", True, instance)])


def test_the_longest_list_of_forwarders_fits_into_a_frame() -> None:
    """The longest list of forwarders fits into a frame.

    A frame that is larger than the overhead beside the smallest payload would close its connection.
    """
    longest = b"x" * wire.MAX_ADDRESS
    known = [wire.KnownForwarder(longest, longest, True, b"0" * wire.INSTANCE_DIGITS)] * wire.MAX_FORWARDERS
    welcome = wire.Welcome(INBOX, 1, 0, bytes(8), 1, 1, wire.encode_forwarders(wire.listed(known)))
    assert len(wire.WELCOME.encode(welcome)) < wire.MAX_OVERHEAD
    short = [wire.KnownForwarder(b"a", b"b", True)] * wire.MAX_FORWARDERS
    assert wire.listed([*short, short[0]]) == short
    with pytest.raises(FrameError, match="64 at most"):
        wire.encode_forwarders([*short, short[0]])


@pytest.mark.parametrize("frame", [b"", b"G", b"G\0", b"Gname", b"\0\0"])
def test_a_topic_has_a_name_and_a_nul(frame: bytes) -> None:
    """A topic without a name or a NUL is refused, since a prefix match would reach the wrong subscribers."""
    with pytest.raises(FrameError, match="NUL"):
        wire.topic_end(frame)


@pytest.mark.parametrize("body, reason", [(b"", "lacks"), (b"\0p", "lacks"), (b"name", "lacks"), (b"\xff\0p", "UTF-8")])
def test_a_direct_message_without_a_readable_channel_is_refused(body: bytes, reason: str) -> None:
    """A direct message without a readable channel is refused, since it could not be delivered."""
    with pytest.raises(FrameError, match=reason):
        wire.channel_and_payload(body)


@pytest.mark.parametrize(
    "seconds, expected",
    [(0, 0), (-1, 0), (0.0014, 1), (60, 60_000), (1e12, 2**32 - 1), (float("inf"), 2**32 - 1)],
)
def test_durations_are_bounded(seconds: float, expected: int) -> None:
    """Durations have 32 bits of milliseconds and are clamped to 49 days."""
    assert wire.milliseconds(seconds) == expected


def test_a_group_message_is_parsed_in_one_call() -> None:
    """One call reads the topic, sender, number, flags, milliseconds to live and payload of a group message."""
    frame = wire.ordered(wire.group_topic("chat"), b"sender!!", 7, wire.FLAG_FIRST, 60_000, b"payload")
    assert wire.read_group(frame) == (wire.group_topic("chat"), b"sender!!", 7, wire.FLAG_FIRST, 60_000, b"payload")


def test_a_direct_message_is_parsed_in_one_call() -> None:
    """One call reads the sender, number, flags, milliseconds to live and body of a direct message.

    The body is the channel and the payload.
    """
    inbox = b"0123456789abcdef"
    frame = wire.ordered(wire.direct_prefix(inbox), b"sender!!", 7, 0, 60_000, wire.direct_body("a!b", b"payload"))
    assert wire.read_direct(frame) == (b"sender!!", 7, 0, 60_000, b"a!b\0payload")


@pytest.mark.parametrize(
    "frame", [b"G", b"Gchat", b"G\0", b"Gchat\0", b"Gchat\0sender!!", b"Gchat\0sender!!" + bytes(12)]
)
def test_a_group_message_that_ends_early_is_none(frame: bytes) -> None:
    """A group message that ends early or lacks a topic raises FrameError."""
    with pytest.raises(wire.FrameError):
        wire.read_group(frame)


bodies = st.lists(st.binary(max_size=20), min_size=1, max_size=wire.MAX_BATCH)


@given(bodies)
def test_the_bodies_of_a_batch_are_read_back(bodies: list[bytes]) -> None:
    """A batch of up to the maximum number of bodies, of any length, is decoded as it was encoded."""
    assert wire.batch_bodies(wire.batch(bodies)) == bodies


@given(st.binary(max_size=40))
def test_any_bytes_are_bodies_of_a_batch_or_refused(raw: bytes) -> None:
    """Any bytes that decode as a batch encode to the same bytes; others raise FrameError."""
    with suppress(FrameError):
        assert wire.batch(wire.batch_bodies(raw)) == raw


@pytest.mark.parametrize("prefix", [wire.group_topic("room"), wire.direct_prefix(INBOX)])
@pytest.mark.parametrize("is_again", [False, True])
def test_a_batch_is_split_into_messages_with_consecutive_numbers(prefix: bytes, is_again: bool) -> None:
    """The messages of a batch have consecutive numbers and its other fields; only the first may begin a run."""
    batch = wire.ordered(prefix, b"sender..", 7, wire.FLAG_FIRST | wire.FLAG_BATCH, 60_000, wire.batch([b"a", b"b"]))
    alone = [wire.ordered(prefix, b"sender..", 7 + at, 1 - at, 60_000, body) for at, body in enumerate((b"a", b"b"))]
    if is_again:
        batch, *alone = (wire.again(one, 500, 30, elsewhere=True, acknowledged=False) for one in (batch, *alone))
    assert wire.is_batch(batch)
    assert not any(map(wire.is_batch, alone))
    assert wire.split(batch) == alone
    assert wire.split(alone[0]) == [alone[0]]
    assert {wire.age_of(batch), *map(wire.age_of, alone)} == {30 if is_again else 0}


JOB = {"channel": b"work", "payload": b"x"}


@pytest.mark.parametrize(
    "layout, frame",
    [
        (wire.ENQUEUE, wire.Enqueue(INBOX, 5, 1000, 9, **JOB)),
        (wire.BACK, wire.Back(INBOX, 5, 1000, **JOB)),
    ],
)
@pytest.mark.parametrize("waited, left", [(0, 1000), (400, 600), (2000, 0)])
def test_a_message_for_a_normal_channel_has_less_time_left_after_it_was_held(
    layout: Layout[Any], frame: Any, waited: int, left: int
) -> None:
    """Only the time to live changes, and it is never negative."""
    assert layout.decode(wire.aged(layout.encode(frame), waited)) == frame._replace(ttl=left)


def test_a_frame_without_a_time_to_live_is_held_as_it_is() -> None:
    """Other requests do not expire."""
    echo = wire.ECHO.encode(wire.Echo(INBOX, 5))
    assert wire.aged(echo, 400) == echo


def message(topic: str, number: int, body: bytes = b"x", *, flags: int = 0, ttl: int = 1000) -> bytes:
    return wire.ordered(wire.group_topic(topic), b"sender..", number, flags, ttl, body)


@pytest.mark.parametrize(
    ("frames", "counts"),
    [
        pytest.param([message("a", 1), message("a", 2), message("a", 3)], [3], id="one run"),
        pytest.param([message("a", 1), message("b", 7), message("a", 2), message("b", 8)], [2, 2], id="two runs"),
        pytest.param([message("a", 1, flags=wire.FLAG_FIRST), message("a", 2)], [2], id="a run that begins"),
        pytest.param([message("a", 1), message("a", 9, flags=wire.FLAG_FIRST)], [1, 1], id="a run that begins anew"),
        pytest.param([message("a", 1), message("a", 3)], [1, 1], id="a gap"),
        pytest.param([message("a", 1), message("a", 2, ttl=999)], [1, 1], id="other time to live"),
        pytest.param([message("a", 1, bytes(60)), message("a", 2, bytes(40)), message("a", 3)], [2, 1], id="bytes"),
        pytest.param([message("a", 1, bytes(101)), message("a", 2)], [1, 1], id="too large"),
        pytest.param([message("a", number) for number in range(65)], [64, 1], id="count"),
        pytest.param([message("a", 1, wire.batch([b"x"] * 2), flags=wire.FLAG_BATCH), message("a", 3)], [2, 1]),
        pytest.param(
            [wire.again(message("a", 1), 9, 1, elsewhere=False, acknowledged=False), message("a", 2, ttl=9)], [1, 1]
        ),
    ],
)
def test_messages_that_follow_each_other_are_merged(frames: list[bytes], counts: list[int]) -> None:
    """Consecutive messages of a run are merged into batches, which split into the same messages.

    Only messages of different runs change places.
    """
    merged = wire.merged(frames, 100)
    assert [len(wire.split(frame)) for frame in merged] == [wire.messages_in(frame) for frame in merged] == counts
    before = [one for frame in frames for one in wire.split(frame)]
    assert [one for frame in merged for one in wire.split(frame)] == sorted(before, key=wire.prefix_of)


def test_numbers_beyond_the_last_one_are_refused() -> None:
    """A forged batch whose numbers exceed the last one raises FrameError, and nothing else."""
    frame = wire.ordered(b"Ga\0", b"sender..", wire.MAX_NUMBER, wire.FLAG_BATCH, 0, wire.batch([b"a", b"b"]))
    with pytest.raises(FrameError, match="too high"):
        wire.split(frame)


def test_frames_are_distinguished_without_being_decoded() -> None:
    """The first bytes distinguish frames, so loops that relay them need not decode them."""
    room, inbox = wire.group_topic("room"), wire.inbox_topic(INBOX)
    message, direct = wire.ordered(room, bytes(8), 1, 0, 0, b""), wire.direct_prefix(INBOX) + bytes(30)
    assert wire.subscribed_topic(wire.subscription(room)) == room
    assert wire.subscribed_topic(wire.unsubscription(inbox)) == inbox
    assert [wire.is_group(frame) for frame in (message, room, direct, b"")] == [True, True, False, False]
    assert (wire.group_of(room), wire.group_in(message)) == (b"room", b"room")
    assert [wire.is_for(INBOX, frame) for frame in (direct, b"G" + direct[1:], inbox[:9])] == [True, False, False]
    assert [wire.sub_kind(frame) for frame in (direct, inbox, message + bytes(20))] == [wire.DIRECT, -1, -1]
    hello = wire.HELLO.encode(wire.Hello(INBOX, wire.VERSION, 1, 0))
    assert wire.inbox_in(hello) == wire.inbox_in(direct) == INBOX


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_a_list_of_messages_is_read_back(messages: list[bytes]) -> None:
    """A list of any messages, even an empty one, is decoded as it was encoded."""
    assert wire.decode_messages(wire.encode_messages(messages)) == messages


@given(st.binary(max_size=60))
def test_any_bytes_are_a_list_of_messages_or_refused(raw: bytes) -> None:
    """Any bytes that decode as a list of messages encode to the same bytes; others raise FrameError."""
    try:
        messages = wire.decode_messages(raw)
    except wire.FrameError:
        return
    assert wire.encode_messages(messages) == raw


def test_the_hashes_of_topics_are_read_back() -> None:
    """The hashes of topics are decoded as a set, without their order; other lengths than 4 bytes each are refused."""
    topics = [wire.group_topic(f"g{number}") for number in range(wire.MAX_HASHES)]
    assert wire.decode_hashes(wire.encode_hashes(topics)) == {wire.topic_hash(topic) for topic in topics}
    with pytest.raises(wire.FrameError, match="4 bytes each"):
        wire.decode_hashes(b"12345")


def test_what_has_expired_is_not_replayed() -> None:
    """A message whose age reaches its time to live is not replayed; a younger one has the remaining milliseconds."""
    frame = wire.ordered(wire.group_topic("room"), b"s" * 8, 7, wire.FLAG_FIRST, 1000, b"x")
    again = wire.for_replay(frame, 999)
    assert again is not None
    assert wire.read_group(again) == (wire.group_topic("room"), b"s" * 8, 7, wire.FLAG_FIRST | wire.FLAG_AGAIN, 1, b"x")
    assert wire.age_of(again) == 999
    assert wire.for_replay(frame, 1000) is None
