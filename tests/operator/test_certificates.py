"""The webhook's certificates: what is renewed when, and that a leaf is trusted at every moment."""

import ssl
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509 import DNSName
from cryptography.x509.verification import PolicyBuilder, Store
from manifests import NEWEST, OLDEST, Manifest, problems

from channels_zmq_operator import certificates
from channels_zmq_operator.certificates import (
    AUTHORITY_DAYS,
    LEAF_DAYS,
    Certificates,
    from_secrets,
    renewed,
    to_secrets,
)

NAMES = ["webhook.home.svc", "webhook.home.svc.cluster.local"]
START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def trusts(bundle: bytes, leaf: bytes, now: datetime) -> bool:
    """Return whether a client that has this bundle would accept this leaf, by the rules of the web."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    verifier = PolicyBuilder().store(store).time(now).build_server_verifier(DNSName(NAMES[0]))
    try:
        verifier.verify(x509.load_pem_x509_certificate(leaf), [])
    except x509.verification.VerificationError:
        return False
    return True


def secrets(found: Certificates) -> tuple[Manifest, Manifest]:
    leaf, authority = to_secrets(found, "home", "webhook")
    return leaf, authority


def changed(secret: Manifest, key: str, value: bytes) -> Manifest:
    return {**secret, "data": {**secret["data"], key: b64encode(value).decode()}}


def test_the_first_ones_are_valid_for_every_name() -> None:
    """One authority and a leaf by it, with a key that fits; valid already for a clock that is late."""
    found = renewed(None, NAMES, START)
    assert len(found.authorities) == 1
    assert trusts(found.bundle, found.leaf, START)
    assert trusts(found.bundle, found.leaf, START - timedelta(minutes=5))
    names = x509.load_pem_x509_certificate(found.leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == NAMES
    assert certificates.expiry(found.leaf) == (START + LEAF_DAYS * DAY).timestamp()


def test_nothing_changes_until_something_is_due() -> None:
    """The very same certificates, for two thirds of the leaf's life."""
    first = renewed(None, NAMES, START)
    assert renewed(first, NAMES, START + 59 * DAY) is not first
    assert renewed(first, NAMES, START + 59 * DAY) == first
    later = renewed(first, NAMES, START + 61 * DAY)
    assert later.authorities == first.authorities
    assert later.leaf != first.leaf
    assert later.key != first.key


def test_other_names_need_another_leaf() -> None:
    """By the same authority."""
    first = renewed(None, ["old.home.svc"], START)
    second = renewed(first, NAMES, START)
    assert second.authorities == first.authorities
    assert trusts(first.bundle, second.leaf, START)


def test_a_new_authority_stands_beside_the_old_one_before_it_signs() -> None:
    """Both are in the bundle; a leaf that is due meanwhile is signed by the old one, later ones by the new one."""
    first = renewed(None, NAMES, START)
    due = START + AUTHORITY_DAYS * DAY * 2 / 3 + DAY
    second = renewed(first, NAMES, due)
    assert len(second.authorities) == 2
    assert second.authorities[1] == first.authorities[0]
    assert trusts(first.bundle, second.leaf, due)
    third = renewed(second, NAMES, due + 61 * DAY)
    assert third.authorities == second.authorities
    assert not trusts(first.bundle, third.leaf, due + 61 * DAY)
    assert trusts(second.bundle, third.leaf, due + 61 * DAY)


def test_an_expired_authority_leaves_the_bundle() -> None:
    """And everything is made anew where nothing else is left."""
    first = renewed(None, NAMES, START)
    after = renewed(first, NAMES, START + (AUTHORITY_DAYS + 1) * DAY)
    assert len(after.authorities) == 1
    assert after.authorities != first.authorities
    assert trusts(after.bundle, after.leaf, START + (AUTHORITY_DAYS + 1) * DAY)


@pytest.mark.parametrize("every", [1, 7, 29])
def test_for_twelve_years_what_pods_serve_is_trusted(every: int) -> None:
    """Day by day, with an operator that looks every so many days: by the bundle of now and by that of the look before.

    Pods take up a leaf up to one look late: the leaf before is trusted still. And by the bundle before too, as an API
    server may not have the new one yet.
    """
    now, before = START, renewed(None, NAMES, START)
    leaves, authorities = {before.leaf}, set(before.authorities)
    for _ in range(12 * 365 // every):
        now += every * DAY
        after = renewed(from_secrets(*secrets(before)), NAMES, now)
        for bundle in (before.bundle, after.bundle):
            assert trusts(bundle, after.leaf, now)
        assert trusts(after.bundle, before.leaf, now)
        assert len(after.authorities) <= 2
        leaves.add(after.leaf)
        authorities |= set(after.authorities)
        before = after
    assert len(authorities) == 2
    assert 12 * 365 // LEAF_DAYS < len(leaves) < 12 * 365 // 58


def test_secrets_give_back_what_was_put_into_them() -> None:
    """One or several authorities; and Kubernetes takes them."""
    first = renewed(None, NAMES, START)
    second = renewed(first, NAMES, START + 2500 * DAY)
    assert len(second.authorities) == 2
    for found in (first, second):
        leaf, authority = secrets(found)
        assert from_secrets(leaf, authority) == found
        for version in (OLDEST, NEWEST):
            assert problems(leaf, version) == problems(authority, version) == []
    assert leaf["type"] == "kubernetes.io/tls"
    assert leaf["data"].keys() == {"tls.crt", "tls.key", "ca.crt"}
    assert "ca.key" in authority["data"]


def test_the_pair_is_one_that_python_serves(tmp_path: Any) -> None:
    """The formats are those of files."""
    found = renewed(None, NAMES, START)
    (tmp_path / "tls.crt").write_bytes(found.leaf)
    (tmp_path / "tls.key").write_bytes(found.key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    ssl.create_default_context(cadata=found.bundle.decode())


other = renewed(None, NAMES, START)


@pytest.mark.parametrize(
    "key, value",
    [
        ("tls.crt", b"nonsense"),
        ("tls.crt", b""),
        ("tls.key", b"nonsense"),
        ("tls.key", other.key),
        ("tls.crt", other.leaf),
    ],
)
def test_a_leaf_that_was_tampered_with_is_made_anew_by_the_same_authority(key: str, value: bytes) -> None:
    """So that what pods still serve stays trusted."""
    first = renewed(None, NAMES, START)
    leaf, authority = secrets(first)
    found = from_secrets(changed(leaf, key, value), authority)
    assert found is not None
    after = renewed(found, NAMES, START)
    assert after.authorities == first.authorities
    assert trusts(first.bundle, after.leaf, START)
    assert from_secrets(*secrets(after)) == after


@pytest.mark.parametrize("leaf", [None, {}, {"data": None}, {"data": {"tls.crt": "?"}}])
def test_a_lost_leaf_is_made_anew_by_the_same_authority(leaf: Any) -> None:
    """As if it were due."""
    first = renewed(None, NAMES, START)
    found = from_secrets(leaf, secrets(first)[1])
    assert found == Certificates(first.authorities, b"", b"")
    assert renewed(found, NAMES, START).authorities == first.authorities


def test_a_leaf_of_another_authority_is_made_anew() -> None:
    """Also one that says it is of the same."""
    first = renewed(None, NAMES, START)
    after = renewed(Certificates(first.authorities, other.leaf, other.key), NAMES, START)
    assert after.leaf != other.leaf
    assert trusts(first.bundle, after.leaf, START)


@pytest.mark.parametrize(
    "key, value",
    [("ca.crt", b"nonsense"), ("ca.key", b"nonsense"), ("ca.key", other.authorities[0].key), ("ca.key", b"")],
)
def test_an_authority_that_was_tampered_with_is_none(key: str, value: bytes) -> None:
    """Nothing can be signed by it: everything is made anew."""
    leaf, authority = secrets(renewed(None, NAMES, START))
    assert from_secrets(leaf, changed(authority, key, value)) is None
    assert from_secrets(leaf, None) is None
    assert from_secrets(None, None) is None


def test_an_own_leaf_without_names_is_replaced() -> None:
    """A foreign certificate in the operator's Secret does not cause a failure."""
    first = renewed(None, NAMES, START)
    authority = first.authorities[0]
    found = Certificates(first.authorities, authority.certificate, authority.key)
    assert trusts(first.bundle, renewed(found, NAMES, START).leaf, START)


def test_keys_are_not_shown() -> None:
    """Neither by accident nor in a log."""
    first = renewed(None, NAMES, START)
    assert "PRIVATE" not in repr(first)
    assert b64decode(secrets(first)[0]["data"]["tls.key"]) == first.key
