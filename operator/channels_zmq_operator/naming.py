"""Names that several modules share: labels, annotations, ports, entries of objects, and a layer's objects."""

from datetime import datetime
from typing import Any

from channels_zmq_operator.models import GROUP, Owner

Manifest = dict[str, Any]

LAYER_LABEL = f"{GROUP}/layer"
"""On an application's pod: inject this layer."""
INJECTED_ANNOTATION = f"{GROUP}/injected"
"""On an application's pod: what was injected."""
OWNER_LABEL = f"{GROUP}/owned-by"
"""On everything that is made for a layer: its name."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "channels-zmq-operator"}
APP_NAME = "channels-zmq-forwarder"
FIELD_MANAGER = "channels-zmq-operator"
PULL_PORT, PUB_PORT, ADMIN_PORT = 5555, 5556, 9600
PORTS = {"pull": (PULL_PORT, "tcp"), "pub": (PUB_PORT, "tcp"), "metrics": (ADMIN_PORT, "http")}
"""The forwarders' ports by name, with their application protocol."""
KEY_FILE = "secret-key"
ALLOWED_KEYS, NEXT_KEY = "allowed-keys", "next-client-key"
"""Entries of the forwarders' Secret: who may connect; and the clients' next key, which is mounted nowhere."""
ROTATED_AT, ANNOUNCED_AT = f"{GROUP}/rotated-at", f"{GROUP}/announced-at"
ROTATED_FOR, ANNOUNCED_FOR = f"{GROUP}/rotated-for", f"{GROUP}/announced-for"
"""Annotations with the `rotateNow` that a rotation was made for, or is being made for."""
REVOKE_AT = f"{GROUP}/revoke-at"
ENV = "CHANNELS_ZMQ_"
CLIENT_KEY_ENTRY = f"{ENV}CURVE_SECRET_KEY"
ENV_KEYS = ("PULL_SOCKET_ADDRESS", "PUB_SOCKET_ADDRESS", "OPTIONS")
"""Keys of the ConfigMap without their prefix, which is also what is injected."""
SERVER_KEY_ENTRY = "server-key"
KEY_FILES = {SERVER_KEY_ENTRY: SERVER_KEY_ENTRY, CLIENT_KEY_ENTRY: KEY_FILE}
"""Entries of the applications' Secret that the webhook mounts, and the names of their files."""
ENCRYPTION_KEYS_ENTRY, ENCRYPTION_KEYS_FILE = "keys", "encryption-keys"
"""The entry of the Secret `<layer>-encryption`, and the name of its file: its users' keys, which nothing here reads."""
PATHS = {
    "CURVE_SERVER_KEY_FILE": ("server-key-file", SERVER_KEY_ENTRY),
    "CURVE_SECRET_KEY_FILE": ("secret-key-file", KEY_FILE),
    "SYMMETRIC_ENCRYPTION_KEYS_FILE": ("encryption-keys-file", ENCRYPTION_KEYS_FILE),
}
"""Variables; entries of the applications' Secret with the paths of files, empty if a layer has no use for one; files.

They do not come from the ConfigMap, as more people may edit that: it could name another server, or none with keys.
"""


def timestamp(time: datetime) -> str:
    """Return a time as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def forwarder_name(owner: Owner) -> str:
    """Return the name of a layer's Deployment and Service."""
    return f"{owner.name}-forwarder"


def client_secret_name(owner: Owner) -> str:
    """Return the name of the Secret for applications."""
    return f"{owner.name}-client"


def addresses(owner: Owner, cluster_domain: str) -> tuple[str, str]:
    """Return where producers send to, and where consumers subscribe.

    The name resolves to the addresses of all forwarders. It ends with a dot, so that no other domain is searched.
    """
    host = f"{forwarder_name(owner)}.{owner.namespace}.svc"
    if cluster_domain:
        host += f".{cluster_domain}."
    return f"tcp://{host}:{PULL_PORT}", f"tcp://{host}:{PUB_PORT}"


def selector(owner: Owner) -> dict[str, str]:
    """Return the labels of a layer's forwarder pods."""
    return {"app.kubernetes.io/name": APP_NAME, OWNER_LABEL: owner.name}


def labels_of(owner: Owner) -> dict[str, str]:
    """Return the labels of everything that is made for a layer."""
    return {
        **selector(owner),
        **MANAGED_BY,
        "app.kubernetes.io/instance": owner.name,
        "app.kubernetes.io/component": "forwarder",
        "app.kubernetes.io/part-of": "channels-zmq",
    }


def config_map_name(layer: str) -> str:
    """Return the name of the ConfigMap with addresses and options."""
    return f"{layer}-channels"


def encryption_secret_name(layer: str) -> str:
    """Return the name of the Secret with the keys that encrypt payloads."""
    return f"{layer}-encryption"


def key_folder(layer: str) -> str:
    """Return where the webhook mounts the keys of a layer."""
    return f"/var/run/secrets/{GROUP}/{layer}"
