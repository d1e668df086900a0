"""Names that several modules share: labels, annotations, ports, entries of Secrets, and the objects of a layer."""

from datetime import datetime
from typing import Any

from channels_zmq_operator.models import GROUP, Owner

Manifest = dict[str, Any]

LAYER_LABEL = f"{GROUP}/layer"
"""Label of an application's pod: the layer to inject."""
INJECTED_ANNOTATION = f"{GROUP}/injected"
"""Annotation of an application's pod: the injected layers, as `ALIAS=LAYER,...`."""
OWNER_LABEL = f"{GROUP}/owned-by"
"""Label of every object of a layer, and of its forwarders' pods: the name of the layer."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "channels-zmq-operator"}
APP_NAME = "channels-zmq-forwarder"
FIELD_MANAGER = "channels-zmq-operator"
PULL_PORT, PUB_PORT, ADMIN_PORT = 5555, 5556, 9600
PORTS = {"pull": (PULL_PORT, "tcp"), "pub": (PUB_PORT, "tcp"), "metrics": (ADMIN_PORT, "http")}
"""The forwarders' ports by name, each with its application protocol."""
KEY_FILE = "secret-key"
ALLOWED_KEYS, NEXT_KEY = "allowed-keys", "next-client-key"
"""Entries of the forwarders' Secret: the public keys that may connect; the clients' next key, which no pod mounts."""
ROTATED_AT, ANNOUNCED_AT = f"{GROUP}/rotated-at", f"{GROUP}/announced-at"
"""Annotations with the times at which clients got their current key, and at which their next key was announced."""
ROTATED_FOR, ANNOUNCED_FOR = f"{GROUP}/rotated-for", f"{GROUP}/announced-for"
"""Annotations with the `rotateNow` of the last rotation, and with that of the announced one."""
REVOKE_AT = f"{GROUP}/revoke-at"
"""Annotation with the time at which the clients' former keys are revoked."""
ENV = "CHANNELS_ZMQ_"
CLIENT_KEY_ENTRY = f"{ENV}CURVE_SECRET_KEY"
ENV_KEYS = ("PULL_SOCKET_ADDRESS", "PUB_SOCKET_ADDRESS", "OPTIONS")
"""Keys of the ConfigMap, without the prefix `ENV`; the webhook injects each as an environment variable."""
SERVER_KEY_ENTRY = "server-key"
KEY_FILES = {SERVER_KEY_ENTRY: SERVER_KEY_ENTRY, CLIENT_KEY_ENTRY: KEY_FILE}
"""Entries of the applications' Secret that the webhook mounts, and the names of their files."""
ENCRYPTION_KEYS_ENTRY, ENCRYPTION_KEYS_FILE = "keys", "encryption-keys"
"""The entry of the Secret `<layer>-encryption`, and its file's name. Users create it; the operator never reads it."""
PATHS = {
    "CURVE_SERVER_KEY_FILE": ("server-key-file", SERVER_KEY_ENTRY),
    "CURVE_SECRET_KEY_FILE": ("secret-key-file", KEY_FILE),
    "SYMMETRIC_ENCRYPTION_KEYS_FILE": ("encryption-keys-file", ENCRYPTION_KEYS_FILE),
}
"""For each variable: the entry of the applications' Secret that holds the path of a file, and the file's name.

An entry is empty if the layer does not use the file. The paths are not in the ConfigMap, because more people may edit
that: an edit could name another server, or turn the keys off.
"""


def timestamp(time: datetime) -> str:
    """Return a UTC time in the format of Kubernetes."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def forwarder_name(owner: Owner) -> str:
    """Return the name of a layer's Deployment and Service."""
    return f"{owner.name}-forwarder"


def client_secret_name(owner: Owner) -> str:
    """Return the name of the Secret for applications."""
    return f"{owner.name}-client"


def addresses(owner: Owner, cluster_domain: str) -> tuple[str, str]:
    """Return the address that producers send to, and the address that consumers subscribe to.

    The host name resolves to all forwarders. It ends with a dot after the cluster's domain, so that a resolver does not
    try its search domains.
    """
    host = f"{forwarder_name(owner)}.{owner.namespace}.svc"
    if cluster_domain:
        host += f".{cluster_domain}."
    return f"tcp://{host}:{PULL_PORT}", f"tcp://{host}:{PUB_PORT}"


def selector(owner: Owner) -> dict[str, str]:
    """Return the labels of a layer's forwarder pods."""
    return {"app.kubernetes.io/name": APP_NAME, OWNER_LABEL: owner.name}


def labels_of(owner: Owner) -> dict[str, str]:
    """Return the labels of every object of a layer."""
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
    """Return the directory in which the webhook mounts the keys of a layer."""
    return f"/var/run/secrets/{GROUP}/{layer}"
