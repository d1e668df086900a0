"""The webhook's certificates, if the operator creates them: an authority, and a leaf that it signs.

The authority is valid for ten years and the leaf for ninety days. So nearly every renewal replaces a leaf, signed by an
authority that the API server already trusts: pods may load the new leaf whenever the kubelet has updated their files.
Once in six years a new authority is created. It is added to the bundle beside the old one, and signs the next leaf that
is due at least `SETTLE` later; the old authority stays in the bundle until it expires. So at any time an authority in
the bundle has signed the leaf that a pod serves, old or new, and no client has to wait until all pods serve the new
leaf. `webhook_certificates` applies the bundle before the leaf.
"""

from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from channels_zmq_operator.naming import MANAGED_BY, Manifest

AUTHORITY_DAYS = 3650
LEAF_DAYS = 90
RENEW_AT = 2 / 3
SETTLE = timedelta(hours=1)
"""Time for which a new authority is in the bundle before it signs leaves, if an older authority can sign."""
_SLACK = timedelta(minutes=10)
"""Time by which validity begins before the creation, because clocks differ."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that signs others, and its key."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Certificates:
    """The certificates and keys for the webhook's TLS.

    Args:
        authorities: The newest first; one of them has signed the leaf.
        leaf: The serving certificate; empty if it is missing or invalid.
        key: The key of the leaf.
    """

    authorities: tuple[Authority, ...]
    leaf: bytes
    key: bytes = field(repr=False)

    @property
    def bundle(self) -> bytes:
        """The certificates of all authorities, which the API server trusts."""
        return b"".join(authority.certificate for authority in self.authorities)


def renewed(before: Certificates | None, names: list[str], now: datetime) -> Certificates:
    """Return the certificates, with those renewed that are due, and with nothing else changed.

    Args:
        before: The present certificates; None if there are none.
        names: DNS names of the webhook's Service.
        now: The current time, with a time zone.
    """
    authorities = [one for one in (before.authorities if before else ()) if not _has_expired(one.certificate, now)]
    if not authorities or _is_due(authorities[0].certificate, now):
        authorities.insert(0, _new_authority(now))
    if before is not None and _is_good(before.leaf, authorities, names, now):
        return Certificates(tuple(authorities), before.leaf, before.key)
    signing = authorities[0]
    if len(authorities) > 1 and not _is_settled(signing.certificate, now):
        signing = authorities[1]  # the newest may not be trusted yet
    return Certificates(tuple(authorities), *_new_leaf(signing, names, now))


def expiry(certificate: bytes) -> float:
    """Return when a PEM certificate expires, in seconds since the epoch.

    Raises:
        ValueError: If the certificate is invalid.
    """
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


def from_secrets(leaf: Manifest | None, authority: Manifest | None) -> Certificates | None:
    """Return the certificates in two Secrets, or None without valid authorities; an invalid leaf is left out."""
    try:
        data = (authority or {})["data"]
        certificates = x509.load_pem_x509_certificates(b64decode(data["ca.crt"]))
        keys = b64decode(data["ca.key"]).decode().split(_BETWEEN)
        authorities = tuple(
            Authority(one.public_bytes(serialization.Encoding.PEM), _checked(key.encode(), one))
            for one, key in zip(certificates, keys, strict=True)
        )
    except (KeyError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    try:
        data = (leaf or {})["data"]
        certificate = b64decode(data["tls.crt"])
        key = _checked(b64decode(data["tls.key"]), x509.load_pem_x509_certificate(certificate))
    except (KeyError, ValueError, TypeError, UnsupportedAlgorithm):
        return Certificates(authorities, b"", b"")
    return Certificates(authorities, certificate, key)


def _checked(key: bytes, certificate: x509.Certificate) -> bytes:
    """Return a private key after checking that it belongs to a certificate.

    Raises:
        ValueError: If it is invalid, or belongs to another certificate.
    """
    found = serialization.load_pem_private_key(key, None)
    if found.public_key() != certificate.public_key():
        raise ValueError("the key is that of another certificate")
    return key


_BETWEEN = "\n\n"


def to_secrets(certificates: Certificates, namespace: str, name: str) -> list[Manifest]:
    """Return the Secret that the webhook's pods mount, and the Secret that only the operator reads."""
    keys = _BETWEEN.join(authority.key.decode() for authority in certificates.authorities)
    contents = {
        name: {"tls.crt": certificates.leaf, "tls.key": certificates.key, "ca.crt": certificates.bundle},
        f"{name}-ca": {"ca.crt": certificates.bundle, "ca.key": keys.encode()},
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": secret, "namespace": namespace, "labels": dict(MANAGED_BY)},
            "type": "kubernetes.io/tls" if secret == name else "Opaque",
            "data": {key: b64encode(value).decode() for key, value in data.items()},
        }
        for secret, data in contents.items()
    ]


def _new_authority(now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"channels-zmq webhook {now:%Y-%m-%d}")])
    builder = _builder(name, name, key, now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Authority(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), _pem(key))


def _new_leaf(authority: Authority, names: list[str], now: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    signing = serialization.load_pem_private_key(authority.key, None)
    if not isinstance(signing, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is of another kind")
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    builder = _builder(subject, issuer.subject, key, now, LEAF_DAYS)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
    )
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), _pem(key)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return the key usage, which strict clients such as Python from 3.13 on require (RFC 5280, 4.2.1.3)."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False),
        **dict.fromkeys(("encipher_only", "decipher_only"), False),
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + timedelta(days=days))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).strip()


def _is_due(pem: bytes, now: datetime) -> bool:
    certificate = x509.load_pem_x509_certificate(pem)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begin + (end - begin) * RENEW_AT


def _has_expired(pem: bytes, now: datetime) -> bool:
    return now >= x509.load_pem_x509_certificate(pem).not_valid_after_utc


def _is_settled(pem: bytes, now: datetime) -> bool:
    return now >= x509.load_pem_x509_certificate(pem).not_valid_before_utc + _SLACK + SETTLE


def _is_good(leaf: bytes, authorities: list[Authority], names: list[str], now: datetime) -> bool:
    """Return whether a leaf can stay: it is not due, has exactly these names, and one of the authorities signed it."""
    if not leaf or _is_due(leaf, now):
        return False
    certificate = x509.load_pem_x509_certificate(leaf)
    try:
        present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    if sorted(present.get_values_for_type(x509.DNSName)) != sorted(names):
        return False
    return any(_has_signed(x509.load_pem_x509_certificate(one.certificate), certificate) for one in authorities)


def _has_signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def now() -> datetime:
    """Return the current time, in UTC."""
    return datetime.now(UTC)
