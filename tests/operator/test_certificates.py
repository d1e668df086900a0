"""The webhook's certificates: when each is renewed, and that clients trust the leaf at every moment."""

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
    """Return whether a client with this bundle accepts this leaf, by the rules of the Web PKI."""
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
    """The first leaf is signed by the one authority and valid for every name, even if a client's clock is late."""
    found = renewed(None, NAMES, START)
    assert len(found.authorities) == 1
    assert trusts(found.bundle, found.leaf, START)
    assert trusts(found.bundle, found.leaf, START - timedelta(minutes=5))
    names = x509.load_pem_x509_certificate(found.leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == NAMES
    assert certificates.expiry(found.leaf) == (START + LEAF_DAYS * DAY).timestamp()


def test_nothing_changes_until_something_is_due() -> None:
    """The certificates stay equal for two thirds of the leaf's life; then the leaf and its key are renewed."""
    first = renewed(None, NAMES, START)
    assert renewed(first, NAMES, START + 59 * DAY) is not first
    assert renewed(first, NAMES, START + 59 * DAY) == first
    later = renewed(first, NAMES, START + 61 * DAY)
    assert later.authorities == first.authorities
    assert later.leaf != first.leaf
    assert later.key != first.key


def test_other_names_need_another_leaf() -> None:
    """A leaf with outdated names is replaced by one that the same authority signs."""
    first = renewed(None, ["old.home.svc"], START)
    second = renewed(first, NAMES, START)
    assert second.authorities == first.authorities
    assert trusts(first.bundle, second.leaf, START)


def test_a_new_authority_stands_beside_the_old_one_before_it_signs() -> None:
    """A new authority is in the bundle, beside the old one, before it signs a leaf.

    A leaf that is due meanwhile is signed by the old authority, later ones by the new one.
    """
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
    """An expired authority is dropped from the bundle; if none is left, a new one is created."""
    first = renewed(None, NAMES, START)
    after = renewed(first, NAMES, START + (AUTHORITY_DAYS + 1) * DAY)
    assert len(after.authorities) == 1
    assert after.authorities != first.authorities
    assert trusts(after.bundle, after.leaf, START + (AUTHORITY_DAYS + 1) * DAY)


@pytest.mark.parametrize("every", [1, 7, 29])
def test_for_twelve_years_what_pods_serve_is_trusted(every: int) -> None:
    """For twelve years, at each interval between reconciliations, clients trust the leaf that pods serve.

    They trust it by the current bundle and by the previous one, since an API server may not have the new bundle yet.
    The current bundle also trusts the previous leaf, since pods load a leaf up to one reconciliation late.
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
    """Certificates survive the round trip through their Secrets, which are valid in every supported Kubernetes."""
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
    """Python's TLS server loads the leaf and its key from files, and a client loads the bundle."""
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
    """A damaged leaf or key is replaced by the same authority, so that clients still trust the leaf that pods serve."""
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
    """A missing or unreadable leaf Secret keeps the authority, which signs a new leaf as if one were due."""
    first = renewed(None, NAMES, START)
    found = from_secrets(leaf, secrets(first)[1])
    assert found == Certificates(first.authorities, b"", b"")
    assert renewed(found, NAMES, START).authorities == first.authorities


def test_a_leaf_of_another_authority_is_made_anew() -> None:
    """A leaf that another authority signed is replaced, even though its issuer has the same name."""
    first = renewed(None, NAMES, START)
    after = renewed(Certificates(first.authorities, other.leaf, other.key), NAMES, START)
    assert after.leaf != other.leaf
    assert trusts(first.bundle, after.leaf, START)


@pytest.mark.parametrize(
    "key, value",
    [("ca.crt", b"nonsense"), ("ca.key", b"nonsense"), ("ca.key", other.authorities[0].key), ("ca.key", b"")],
)
def test_an_authority_that_was_tampered_with_is_none(key: str, value: bytes) -> None:
    """A damaged or missing authority can sign nothing, so its Secrets count as absent and all are created again."""
    leaf, authority = secrets(renewed(None, NAMES, START))
    assert from_secrets(leaf, changed(authority, key, value)) is None
    assert from_secrets(leaf, None) is None
    assert from_secrets(None, None) is None


def test_an_own_leaf_without_names_is_replaced() -> None:
    """A certificate without names in the operator's Secret is replaced and does not cause a failure."""
    first = renewed(None, NAMES, START)
    authority = first.authorities[0]
    found = Certificates(first.authorities, authority.certificate, authority.key)
    assert trusts(first.bundle, renewed(found, NAMES, START).leaf, START)


def test_keys_are_not_shown() -> None:
    """The repr of certificates omits the private keys, so that no log leaks them; the Secret contains the key."""
    first = renewed(None, NAMES, START)
    assert "PRIVATE" not in repr(first)
    assert b64decode(secrets(first)[0]["data"]["tls.key"]) == first.key
