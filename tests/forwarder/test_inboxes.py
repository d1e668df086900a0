"""The table of connections that may use an inbox; `test_subscribers` has the sockets."""

import pytest

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.inboxes import CLAIMED_WITHIN, Claimed, Inboxes, Verdict

SECRET, OTHER_SECRET = b"a" * 16, b"b" * 16
INBOX, OTHER = wire.claimable(SECRET), wire.claimable(OTHER_SECRET)
CLAIM, OTHER_CLAIM = wire.Claim(INBOX, SECRET), wire.Claim(OTHER, OTHER_SECRET)
HELLO, OTHER_HELLO = (wire.HELLO.encode(wire.Hello(inbox, wire.VERSION, 1, 0)) for inbox in (INBOX, OTHER))
ONE, TWO, THREE = 11, 12, 13
KEY, OTHER_KEY = b"key", b"other key"


@pytest.fixture
def inboxes() -> Inboxes:
    return Inboxes()


def test_a_secret_has_one_inbox() -> None:
    """A secret has exactly one inbox, since all sides must derive the same one."""
    assert INBOX == b"0c0beacef8877bbf"
    assert wire.claimable(SECRET) != wire.claimable(b"a" * 15 + b"b")


@pytest.mark.parametrize("key", [b"", KEY])
def test_a_subscription_waits_for_the_claim_of_its_connection(inboxes: Inboxes, key: bytes) -> None:
    """A subscription waits for its connection's claim, however often it is repeated; behind the claim it counts."""
    assert [inboxes.subscribe(INBOX, ONE, key) for _ in range(2)] == [Verdict.WAITS] * 2
    assert not inboxes.may_use(HELLO, ONE)
    assert inboxes.claim(CLAIM, ONE, key) == Claimed(True, [])
    assert inboxes.may_use(HELLO, ONE)
    assert inboxes.claim(CLAIM, ONE, key) == Claimed(False, [])
    assert inboxes.subscribe(INBOX, ONE, key) is Verdict.COUNTS


def test_a_claim_may_come_first(inboxes: Inboxes) -> None:
    """A claim may precede its subscription, as on a new socket."""
    assert inboxes.claim(CLAIM, ONE, KEY) == Claimed(False, [])
    assert inboxes.subscribe(INBOX, ONE, KEY) is Verdict.COUNTS


def test_without_the_secret_there_is_no_claim(inboxes: Inboxes) -> None:
    """A claim without the secret fails, and does not end the claim of another connection."""
    inboxes.claim(CLAIM, ONE, KEY)
    assert inboxes.claim(wire.Claim(INBOX, OTHER_SECRET), TWO, OTHER_KEY) is None
    assert not inboxes.may_use(HELLO, TWO)
    assert inboxes.may_use(HELLO, ONE)


def test_a_connection_uses_one_inbox(inboxes: Inboxes) -> None:
    """A connection may use one inbox, since a client has only one."""
    inboxes.claim(CLAIM, ONE, KEY)
    assert inboxes.claim(OTHER_CLAIM, ONE, KEY) is None
    assert inboxes.subscribe(OTHER, ONE, KEY) is Verdict.REFUSED
    inboxes.subscribe(OTHER, TWO, KEY)
    assert inboxes.subscribe(INBOX, TWO, KEY) is Verdict.REFUSED


@pytest.mark.parametrize("is_known", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("last", ["subscription", "claim", "both"])
def test_late_frames_of_a_connection_do_not_count_against_the_next_one_of_its_descriptor(
    inboxes: Inboxes, is_known: bool, last: str
) -> None:
    """Late frames of a connection do not count for the next connection with its descriptor.

    They may be read before the new connection is known, or after that.
    """
    inboxes.came(ONE)
    inboxes.claim(CLAIM, ONE, KEY)
    inboxes.gone(ONE)
    if is_known:
        inboxes.came(ONE)
    if last != "claim":
        assert inboxes.subscribe(INBOX, ONE, KEY) is Verdict.WAITS
    if last != "subscription":
        assert inboxes.claim(CLAIM, ONE, KEY) is not None
    if not is_known:
        inboxes.came(ONE)
    assert inboxes.subscribe(OTHER, ONE, OTHER_KEY) is Verdict.WAITS
    assert inboxes.claim(OTHER_CLAIM, ONE, OTHER_KEY) == Claimed(True, [])
    assert inboxes.may_use(OTHER_HELLO, ONE)
    assert not inboxes.may_use(HELLO, ONE)
    if last != "subscription":
        assert inboxes.claim(CLAIM, ONE, KEY) is None
    inboxes.gone(ONE)
    for _ in range(2):
        inboxes.forget(0.0)
    assert vars(inboxes) == vars(Inboxes())


def test_a_claim_does_not_make_the_subscription_to_another_inbox_count(inboxes: Inboxes) -> None:
    """A claim does not make a waiting subscription to another inbox count."""
    inboxes.subscribe(OTHER, ONE, KEY)
    assert inboxes.claim(CLAIM, ONE, KEY) == Claimed(False, [])
    assert not inboxes.may_use(OTHER_HELLO, ONE)


@pytest.mark.parametrize(("key", "verdict"), [(KEY, Verdict.WAITS), (OTHER_KEY, Verdict.REFUSED)])
def test_an_inbox_that_is_in_use_is_only_for_its_key(inboxes: Inboxes, key: bytes, verdict: Verdict) -> None:
    """A subscription to a used inbox waits if it has the same key, and is refused otherwise.

    The same key may belong to the same client, whose former connection has broken.
    """
    inboxes.claim(CLAIM, ONE, KEY)
    assert inboxes.subscribe(INBOX, TWO, key) is verdict


def test_a_claim_by_a_new_key_adds_it(inboxes: Inboxes) -> None:
    """A claim by a new key adds it, since both connections are in use while a client changes its key."""
    inboxes.claim(CLAIM, ONE, KEY)
    inboxes.claim(CLAIM, TWO, OTHER_KEY)
    assert inboxes.subscribe(INBOX, TWO, OTHER_KEY) is Verdict.COUNTS
    assert inboxes.may_use(HELLO, ONE)
    assert [inboxes.subscribe(INBOX, THREE, key) for key in (b"third", OTHER_KEY)] == [Verdict.REFUSED, Verdict.WAITS]


def test_a_claim_names_the_connections_with_other_keys_that_wait(inboxes: Inboxes) -> None:
    """A claim returns the waiting connections with other keys, which subscribed while the client was away."""
    inboxes.subscribe(INBOX, ONE, OTHER_KEY)
    inboxes.subscribe(INBOX, TWO, KEY)
    assert inboxes.claim(CLAIM, THREE, KEY) == Claimed(False, [ONE])


def test_nothing_is_left_of_connections_that_have_ended(inboxes: Inboxes) -> None:
    """Nothing is kept of ended connections, whose descriptors belong to others from then on."""
    inboxes.claim(CLAIM, ONE, KEY)
    inboxes.subscribe(INBOX, TWO, KEY)
    inboxes.subscribe(OTHER, ONE, KEY)
    for descriptor in (ONE, TWO, THREE):
        inboxes.gone(descriptor)
    assert not inboxes.may_use(HELLO, ONE)
    assert inboxes.subscribe(INBOX, ONE, OTHER_KEY) is Verdict.WAITS
    inboxes.gone(ONE)
    for _ in range(2):
        inboxes.forget(0.0)
    assert vars(inboxes) == vars(Inboxes())


@pytest.mark.parametrize("kind", ["R", "B", "K", "X"])
def test_a_client_that_leaves_is_heard_for_a_while(inboxes: Inboxes, kind: str) -> None:
    """The last frames of an ended connection count for a while, since they may be read after its end is known.

    Frames of other connections or inboxes never count.
    """
    frame = kind.encode() + INBOX
    inboxes.claim(CLAIM, ONE, KEY)
    inboxes.gone(ONE)
    inboxes.forget(0.0)
    assert inboxes.may_use(frame, ONE)
    assert not inboxes.may_use(frame, TWO)
    assert not inboxes.may_use(kind.encode() + OTHER, ONE)
    assert not inboxes.may_use(HELLO, ONE)
    inboxes.forget(0.0)
    assert not inboxes.may_use(frame, ONE)


def test_who_does_not_claim_the_inbox_that_it_has_subscribed_to_is_ended(inboxes: Inboxes) -> None:
    """While such a connection is there, libzmq would not report the end of the client that the inbox belongs to."""
    inboxes.subscribe(INBOX, ONE, KEY)
    inboxes.subscribe(OTHER, TWO, KEY)
    assert inboxes.forget(100.0) == []
    inboxes.claim(CLAIM, ONE, KEY)
    assert inboxes.forget(100.0 + CLAIMED_WITHIN - 0.1) == []
    assert inboxes.forget(100.0 + CLAIMED_WITHIN) == [TWO]
    inboxes.gone(TWO)
    assert inboxes.forget(100.0 + 2 * CLAIMED_WITHIN) == []
