"""The two Secrets of a layer: one for its applications, and one for its forwarders."""

from base64 import b64encode

from channels_zmq_operator.models import Owner, Spec
from channels_zmq_operator.naming import (
    ALLOWED_KEYS,
    ANNOUNCED_AT,
    ANNOUNCED_FOR,
    CLIENT_KEY_ENTRY,
    ENCRYPTION_KEYS_FILE,
    KEY_FILE,
    NEXT_KEY,
    PATHS,
    REVOKE_AT,
    ROTATED_AT,
    ROTATED_FOR,
    SERVER_KEY_ENTRY,
    Manifest,
    addresses,
    client_secret_name,
    forwarder_name,
    key_folder,
)
from channels_zmq_operator.render.child import child
from channels_zmq_operator.render.inputs import LayerKeys


def for_clients(owner: Owner, spec: Spec, keys: LayerKeys | None, cluster_domain: str) -> Manifest:
    """Return the applications' Secret, in the form of the Service Binding specification."""
    pull, pub = addresses(owner, cluster_domain)
    data = {"type": "channels-zmq", "provider": "channels-zmq", "pull-address": pull, "pub-address": pub}
    if keys is not None:
        data |= {SERVER_KEY_ENTRY: keys.server_public, CLIENT_KEY_ENTRY: keys.client_secret}
    for entry, name in PATHS.values():
        is_used = spec.security.encryption == "Enabled" if name == ENCRYPTION_KEYS_FILE else keys is not None
        data[entry] = f"{key_folder(owner.name)}/{name}" if is_used else ""
    manifest = child(owner, "v1", "Secret", client_secret_name(owner), type=f"servicebinding.io/{data['type']}")
    manifest["data"] = _encoded(data)
    if keys is not None:
        _annotate(manifest, {ROTATED_AT: keys.rotated_at, ROTATED_FOR: keys.rotated_for})
    return manifest


def for_forwarders(owner: Owner, keys: LayerKeys) -> Manifest:
    """Return the forwarders' Secret: their secret key, the clients' allowed public keys, and the clients' next key."""
    manifest = child(owner, "v1", "Secret", forwarder_name(owner), type="Opaque")
    data = {KEY_FILE: keys.server_secret, ALLOWED_KEYS: "\n".join(keys.allowed) + "\n"}
    if keys.next_secret:
        data[NEXT_KEY] = keys.next_secret
    _annotate(
        manifest,
        {ANNOUNCED_AT: keys.announced_at, ANNOUNCED_FOR: keys.announced_for, REVOKE_AT: keys.revoke_at},
    )
    manifest["data"] = _encoded(data)
    return manifest


def _annotate(manifest: Manifest, annotations: dict[str, str]) -> None:
    if given := {name: value for name, value in annotations.items() if value}:
        manifest["metadata"]["annotations"] = given


def _encoded(data: dict[str, str]) -> dict[str, str]:
    return {key: b64encode(value.encode()).decode() for key, value in data.items()}
