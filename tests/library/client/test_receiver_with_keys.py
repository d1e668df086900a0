"""A client with encryption keys, which decrypts each message or drops and counts it."""

import pytest
from fakes import AnyName, Clock
from pydantic import SecretBytes

from channels_zmq.client.client import Client
from channels_zmq.client.counters import REPORT_EVERY
from channels_zmq.client.mailboxes import Shared
from channels_zmq.client.requests import next_number
from channels_zmq.encryption import Keyring
from channels_zmq_forwarder import wire

SECRET = b"0123456789abcdef"
INBOX = wire.claimable(SECRET)
SENDER, OTHER = b"s" * 8, b"o" * 8
G, H = wire.group_topic("g"), wire.group_topic("h")
TTL = 60_000


def keyring(key: bytes = b"k" * 32) -> Keyring:
    return Keyring([SecretBytes(key)], None)


@pytest.fixture
def ours() -> Keyring:
    return keyring()


@pytest.fixture
def client(clock: Clock) -> Client:
    """Return a client at one exchange, with the channels `a` and `b` in the group `g` and `c` in `h`."""
    client = Client(SECRET, SENDER, opener=keyring(), clock=clock)
    client.receiver.own_names = AnyName()
    client.begin_session(client.attach(), 1, b"instance")
    for channel, topic in (("a", G), ("b", G), ("c", H)):
        join = client.join(topic, channel, 9, None)
        client.join_synced(join, next_number())
    return client


def feed_group(client: Client, number: int, payload: bytes, *, topic: bytes = G) -> None:
    client.feed(wire.ordered(topic, OTHER, number, 0, TTL, payload), client.attachments[0])
    client.gaps.all_is_read()


def feed_direct(client: Client, number: int, payload: bytes, channel: str = "a", sender: bytes = OTHER) -> None:
    body = wire.direct_body(channel, payload)
    client.feed(wire.ordered(wire.direct_prefix(INBOX), sender, number, 0, TTL, body), client.attachments[0])
    client.gaps.all_is_read()


def read(client: Client, channel: str) -> list[bytes]:
    """Return the payloads that wait in a channel."""
    box, found = client.mailboxes.open(channel, 9), []
    while (payload := client.mailboxes.take(box)) is not None:
        found.append(payload.payload if isinstance(payload, Shared) else payload)
    return found


def test_group_and_direct_messages_arrive_opened(client: Client, ours: Keyring) -> None:
    """Group messages and direct messages are delivered decrypted, in the order of their arrival."""
    feed_group(client, 1, ours.seal_for_group(G, b"to all"))
    feed_direct(client, 1, ours.seal_for_channel("a", b"to one"))
    assert [read(client, channel) for channel in "abc"] == [[b"to all", b"to one"], [b"to all"], []]
    assert client.counters.dropped == {}


def test_what_cannot_be_opened_takes_no_memory(client: Client) -> None:
    """A direct message that is dropped as undecryptable makes no mailbox for its channel, which was forgotten."""
    before = set(client.mailboxes.boxes)
    feed_direct(client, 1, b"sealed by nobody", channel="forgotten")
    assert client.counters.dropped == {"undecryptable": 1}
    assert set(client.mailboxes.boxes) == before


def test_a_message_is_opened_once_for_all_members(
    client: Client, ours: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group message is decrypted once, and its members share the result."""
    opened: list[bytes] = []

    def open_one(topic: bytes, sealed: bytes) -> bytes:
        opened.append(topic)
        return b"x"

    monkeypatch.setattr(client.receiver._opener, "open_from_group", open_one)
    feed_group(client, 1, ours.seal_for_group(G, b"x"))
    assert opened == [G]


@pytest.mark.parametrize("flags", [0, wire.FLAG_FIRST, wire.FLAG_AGAIN])
def test_what_was_sealed_with_another_key_is_dropped_and_counted(client: Client, flags: int, clock: Clock) -> None:
    """Messages under another key are dropped and counted, behind a gap or repeated too, with one log line a minute."""
    strange = keyring(b"x" * 32)
    for number in (1, 2, 9):
        frame = wire.ordered(G, OTHER, number, flags & wire.FLAG_FIRST, TTL, strange.seal_for_group(G, b"x"))
        if flags == wire.FLAG_AGAIN:
            frame = wire.again(frame, TTL, 0, elsewhere=False, acknowledged=False)
        client.feed(frame, client.attachments[0])
        client.gaps.all_is_read()
    clock.now += 1
    client.keep(clock.now, 100)
    assert read(client, "a") == []
    assert client.counters.dropped["undecryptable"] == 3
    lines = [report for report in client.counters.reports if "undecryptable" in report.arguments]
    assert len(lines) == 1
    clock.now += REPORT_EVERY
    feed_group(client, 10, b"plain")
    assert len([report for report in client.counters.reports if "undecryptable" in report.arguments]) == 2


@pytest.mark.parametrize("payload", [b"", b"\x80", b"\x81\xa4type\xa1x", b"\1" + bytes(60)])
def test_a_message_that_was_not_sealed_is_dropped(client: Client, payload: bytes) -> None:
    """Plain messages are dropped, group and direct, from another process or with this process as the sender."""
    feed_group(client, 1, payload)
    feed_direct(client, 1, payload)
    feed_direct(client, 1, payload, sender=SENDER)
    feed_direct(client, 2, payload, channel="new")
    assert [read(client, channel) for channel in ("a", "b", "new")] == [[], [], []]
    assert client.counters.dropped == {"undecryptable": 4}


def test_a_sealed_message_cannot_be_moved_to_another_place(client: Client, ours: Keyring) -> None:
    """An encrypted message is dropped elsewhere: another group, another channel, or channel and group swapped."""
    for_group, for_channel = ours.seal_for_group(G, b"x"), ours.seal_for_channel("a", b"x")
    feed_group(client, 1, for_group, topic=H)
    feed_direct(client, 1, for_group)
    feed_direct(client, 2, for_channel, channel="b")
    feed_group(client, 1, for_channel)
    assert [read(client, channel) for channel in "abc"] == [[], [], []]
    assert client.counters.dropped == {"undecryptable": 4}


def test_own_direct_messages_are_opened(client: Client, ours: Keyring) -> None:
    """Direct messages of this process itself are decrypted, for a mailbox that exists and for a new one."""
    assert client.receiver.deliver_own("a", TTL, ours.seal_for_channel("a", b"x"), 9)
    assert client.receiver.deliver_own("new", TTL, ours.seal_for_channel("new", b"y"), 9)
    assert (read(client, "a"), read(client, "new")) == ([b"x"], [b"y"])


def test_a_full_mailbox_still_refuses(client: Client, ours: Keyring) -> None:
    """A full mailbox refuses encrypted messages by the same capacity."""
    accepted = [client.receiver.deliver_own("a", TTL, ours.seal_for_channel("a", b"x"), 2) for _ in range(3)]
    assert accepted == [True, True, False]


def test_a_group_message_without_a_member_here_is_not_opened(
    client: Client, ours: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group message without a member here is not decrypted: at an embedded address, the sender mostly has none."""
    monkeypatch.setattr(client.receiver._opener, "open_from_group", None)
    client.receiver.deliver_group(wire.group_topic("nobody"), TTL, ours.seal_for_group(G, b"x"))
