"""From a layer's spec to the objects that make it run. Pure: no cluster, no clock, no randomness; keys are arguments.

Every object carries the layer's label, by which it is watched and pruned, and an owner reference, by which the cluster
removes it with the layer.
"""

import hashlib
import json
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

from channels_zmq_operator.models import API_VERSION, GROUP, KIND, Limits, Monitoring, Owner, Spec, size

Manifest = dict[str, Any]

LAYER_LABEL = f"{GROUP}/layer"
"""On an application's pod: inject this layer."""
OWNER_LABEL = f"{GROUP}/owned-by"
"""On everything that is made for a layer: its name."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "channels-zmq-operator"}
APP_NAME = "channels-zmq-forwarder"
FIELD_MANAGER = "channels-zmq-operator"
PULL_PORT, PUB_PORT, ADMIN_PORT = 5555, 5556, 9600
PORTS = {"pull": (PULL_PORT, "tcp"), "pub": (PUB_PORT, "tcp"), "metrics": (ADMIN_PORT, "http")}
"""The forwarders' ports by name, with their application protocol."""
DRAIN_AT_MOST, GRACE = 10, 30
"""Seconds that a forwarder drains at most, and after which Kubernetes kills it: returned messages take time, too."""
SETTLE_AT_MOST, PROGRESS_DEADLINE = 10, 90
"""Seconds. A forwarder that starts beside others waits up to 60 s for clients that do not answer: no failure."""
MIN_READY = 10
"""Seconds from a forwarder's being ready to the end of the one that it replaces: clients look for it every 5 s."""
NODE_LOST_FOR = 30
"""Seconds after which the forwarders of a node that does not answer are replaced."""
KEY_FILE = "secret-key"
ALLOWED_KEYS, NEXT_KEY = "allowed-keys", "next-client-key"
"""Entries of the forwarders' Secret: who may connect; and the clients' next key, which is mounted nowhere."""
ROTATED_AT, ANNOUNCED_AT = f"{GROUP}/rotated-at", f"{GROUP}/announced-at"
ROTATED_FOR, ANNOUNCED_FOR = f"{GROUP}/rotated-for", f"{GROUP}/announced-for"
"""Annotations with the `rotateNow` that a rotation was made for, or is being made for."""
REVOKE_AT = f"{GROUP}/revoke-at"
ENV = "CHANNELS_ZMQ_"
CLIENT_KEY_ENTRY = f"{ENV}CURVE_SECRET_KEY"
ENV_KEYS = (
    "PULL_SOCKET_ADDRESS",
    "PUB_SOCKET_ADDRESS",
    "CAPACITY",
    "EXPIRY",
    "GROUP_EXPIRY",
    "CHANNEL_CAPACITY",
    "MAX_MESSAGE_SIZE",
)
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


@dataclass(frozen=True, slots=True)
class LayerKeys:
    """The CURVE keys of one layer; none of them is ever shown.

    Args:
        server_public: What clients know of the forwarders.
        server_secret: What only the forwarders have.
        client_secret: What clients have now.
        allowed: Public keys of clients: the present one, the next one if it is announced, and the one before.
        rotated_at: When clients got their present one.
        next_secret: What clients will have next; empty unless it is announced.
        announced_at: When it was.
        rotated_for: The last `rotateNow` that was done.
        announced_for: The `rotateNow` for which the next one is announced; empty if only the time has come.
        revoke_at: When all keys but the present one are revoked; empty if they stay until the next rotation.
    """

    server_public: str
    server_secret: str = field(repr=False)
    client_secret: str = field(repr=False)
    allowed: tuple[str, ...] = field(repr=False)
    rotated_at: str = ""
    next_secret: str = field(default="", repr=False)
    announced_at: str = ""
    rotated_for: str = ""
    announced_for: str = ""
    revoke_at: str = ""


@dataclass(frozen=True, slots=True)
class Monitors:
    """How ServiceMonitors look, unless a layer says otherwise.

    Args:
        labels: By which Prometheus finds them.
        interval: How often it reads.
    """

    labels: dict[str, str] = field(default_factory=dict)
    interval: str = "30s"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator was told for all layers.

    Args:
        forwarder_image: The default image.
        monitors: Of the forwarders.
        service_monitors: Whether the cluster knows that kind.
        limits: What authors of layers may choose; None for everything.
        cluster_domain: With which the names of Services end; empty for names that the pods' resolver completes.
    """

    forwarder_image: str
    monitors: Monitors = Monitors()
    service_monitors: bool = False
    limits: Limits | None = None
    cluster_domain: str = "cluster.local"


def render(owner: Owner, spec: Spec, keys: LayerKeys | None, choices: Choices) -> list[Manifest]:
    """Return every object of a layer, in the order of their making; `keys` is None where CURVE is disabled."""
    objects = [
        _client_secret(owner, spec, keys, choices.cluster_domain),
        _service(owner),
        _deployment(owner, spec, keys, choices),
    ]
    if keys is not None:
        objects.insert(0, _server_secret(owner, keys))
    if spec.forwarders > 1:  # a budget for a single one would either block drains, or say nothing
        objects.append(_budget(owner))
    if spec.network_policy.enabled:
        objects.append(_network_policy(owner, spec.network_policy.metrics_from))
    if choices.service_monitors and spec.monitoring.service_monitor == "Auto":
        objects.append(_service_monitor(owner, spec.monitoring, choices.monitors))
    # Last: a pod that waits for it starts when it is there, and finds everything else then.
    objects.append(_config_map(owner, spec, choices.cluster_domain))
    return objects


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


def _config_map(owner: Owner, spec: Spec, cluster_domain: str) -> Manifest:
    pull, pub = addresses(owner, cluster_domain)
    values = {
        "PULL_SOCKET_ADDRESS": pull,
        "PUB_SOCKET_ADDRESS": pub,
        "CAPACITY": str(spec.layer.capacity),
        "EXPIRY": str(spec.layer.expiry),
        "GROUP_EXPIRY": str(spec.layer.group_expiry),
        "MAX_MESSAGE_SIZE": str(size(spec.layer.max_message_size)),
    }
    if spec.layer.channel_capacity:
        values["CHANNEL_CAPACITY"] = json.dumps(spec.layer.channel_capacity, sort_keys=True)
    data = {ENV + key: value for key, value in values.items()}
    return _object(owner, "v1", "ConfigMap", config_map_name(owner.name), data=data)


def _client_secret(owner: Owner, spec: Spec, keys: LayerKeys | None, cluster_domain: str) -> Manifest:
    """Return what applications get, in the form of the Service Binding specification."""
    pull, pub = addresses(owner, cluster_domain)
    data = {"type": "channels-zmq", "provider": "channels-zmq", "pull-address": pull, "pub-address": pub}
    if keys is not None:
        data |= {SERVER_KEY_ENTRY: keys.server_public, CLIENT_KEY_ENTRY: keys.client_secret}
    for entry, name in PATHS.values():
        is_used = spec.security.encryption == "Enabled" if name == ENCRYPTION_KEYS_FILE else keys is not None
        data[entry] = f"{key_folder(owner.name)}/{name}" if is_used else ""
    manifest = _object(owner, "v1", "Secret", client_secret_name(owner), type=f"servicebinding.io/{data['type']}")
    manifest["data"] = _encoded(data)
    if keys is not None:
        _annotate(manifest, {ROTATED_AT: keys.rotated_at, ROTATED_FOR: keys.rotated_for})
    return manifest


def _server_secret(owner: Owner, keys: LayerKeys) -> Manifest:
    manifest = _object(owner, "v1", "Secret", forwarder_name(owner), type="Opaque")
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


def _service(owner: Owner) -> Manifest:
    spec = {
        "clusterIP": "None",  # clients connect to every forwarder, and know which of them are well
        # A forwarder that starts is ready once its clients are there: they have to find it before.
        "publishNotReadyAddresses": True,
        "selector": selector(owner),
        "ports": [
            {"name": name, "port": port, "targetPort": name, "protocol": "TCP", "appProtocol": protocol}
            for name, (port, protocol) in PORTS.items()
        ],
    }
    return _object(owner, "v1", "Service", forwarder_name(owner), spec=spec)


def _deployment(owner: Owner, spec: Spec, keys: LayerKeys | None, choices: Choices) -> Manifest:
    template = spec.template
    pod: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, keys, choices)],
    }
    if keys is not None:
        items = [{"key": name, "path": name} for name in (KEY_FILE, ALLOWED_KEYS)]
        secret = {"secretName": forwarder_name(owner), "items": items, "defaultMode": 0o440}
        pod["volumes"] = [{"name": "keys", "secret": secret}]
    optional = {
        "imagePullSecrets": [{"name": name} for name in spec.image.pull_secrets],
        "nodeSelector": template.node_selector,
        "tolerations": [*template.tolerations, *_tolerations(template.tolerations)],
        "topologySpreadConstraints": _spread(owner),
        "affinity": template.affinity,
        "priorityClassName": template.priority_class_name,
    }
    pod |= {key: value for key, value in optional.items() if value}
    annotations = dict(template.annotations)
    if keys is not None:  # the forwarder reads its list again, but not its own key
        annotations[f"{GROUP}/server-key-checksum"] = hashlib.sha256(keys.server_public.encode()).hexdigest()[:16]
    labels = {**template.labels, **labels_of(owner)}
    body = {
        "replicas": spec.forwarders,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "minReadySeconds": MIN_READY,
        "progressDeadlineSeconds": PROGRESS_DEADLINE,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": selector(owner)},
        "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod},
    }
    return _object(owner, "apps/v1", "Deployment", forwarder_name(owner), spec=body)


def _tolerations(own: list[Manifest]) -> list[Manifest]:
    """Return how long a forwarder stays on a node that is lost: by default that would be five minutes."""
    own_keys = {one.get("key") for one in own}
    keys = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    return [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_LOST_FOR}
        for key in keys
        if key not in own_keys
    ]


def _spread(owner: Owner) -> list[Manifest]:
    """Return that forwarders are spread over zones and nodes as far as there are any."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(owner)},
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def _container(spec: Spec, keys: LayerKeys | None, choices: Choices) -> Manifest:
    arguments = [
        f"--pull-address=tcp://*:{PULL_PORT}",
        f"--pub-address=tcp://*:{PUB_PORT}",
        f"--admin-address=0.0.0.0:{ADMIN_PORT}",
        f"--max-message-size={size(spec.layer.max_message_size)}",
        f"--settle-at-most={SETTLE_AT_MOST}",  # a client's dial may wait twice for an address that is gone, 2 s each
        f"--drain-at-most={DRAIN_AT_MOST}",
        "--log-format=json",
    ]
    if keys is not None:
        arguments += [f"--curve-secret-key-file=/keys/{KEY_FILE}", f"--curve-allowed-keys-file=/keys/{ALLOWED_KEYS}"]
    container: Manifest = {
        "name": "forwarder",
        "image": _image(spec, choices),
        "imagePullPolicy": spec.image.pull_policy,
        "args": arguments,
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, (port, _) in PORTS.items()],
        "resources": spec.resources,
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "metrics", "scheme": "HTTP"},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
        },
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": "metrics", "scheme": "HTTP"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if keys is not None:
        container["volumeMounts"] = [{"name": "keys", "mountPath": "/keys", "readOnly": True}]
    return container


def _image(spec: Spec, choices: Choices) -> str:
    image = spec.image
    name, at, digest = choices.forwarder_image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # no tag: the colon is that of a port
        repository, colon, tag = name, "", ""
    repository = image.repository or repository
    if image.digest:
        return f"{repository}@{image.digest}"
    if image.tag:
        return f"{repository}:{image.tag}"
    return f"{repository}{colon}{tag}{at}{digest}"


def _budget(owner: Owner) -> Manifest:
    """Return a budget that lets one forwarder be evicted at a time, and at any time one that is not ready."""
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": selector(owner)},
    }
    return _object(owner, "policy/v1", "PodDisruptionBudget", forwarder_name(owner), spec=spec)


def _network_policy(owner: Owner, metrics_from: list[Manifest]) -> Manifest:
    def ports(*numbers: int) -> list[Manifest]:
        return [{"port": number, "protocol": "TCP"} for number in numbers]

    clients = {"matchExpressions": [{"key": LAYER_LABEL, "operator": "Exists"}]}  # of this layer, or another one beside
    spec = {
        "podSelector": {"matchLabels": selector(owner)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [{"podSelector": clients}], "ports": ports(PULL_PORT, PUB_PORT)},
            {"from": metrics_from or [{"namespaceSelector": {}}], "ports": ports(ADMIN_PORT)},
        ],
        "egress": [],  # a forwarder is connected to, and connects to nobody
    }
    return _object(owner, "networking.k8s.io/v1", "NetworkPolicy", forwarder_name(owner), spec=spec)


def _service_monitor(owner: Owner, own: Monitoring, default: Monitors) -> Manifest:
    spec = {
        "selector": {"matchLabels": {OWNER_LABEL: owner.name}},
        "endpoints": [{"port": "metrics", "interval": own.interval or default.interval}],
    }
    manifest = _object(owner, "monitoring.coreos.com/v1", "ServiceMonitor", forwarder_name(owner), spec=spec)
    metadata = manifest["metadata"]
    metadata["labels"] = {**default.labels, **own.labels, **metadata["labels"]}
    return manifest


def _object(owner: Owner, api_version: str, kind: str, name: str, **rest: Any) -> Manifest:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": labels_of(owner),
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        **rest,
    }
