"""The Deployment of a layer's forwarders."""

import hashlib

from channels_zmq_operator.models import GROUP, Forwarder, Owner, Spec, size
from channels_zmq_operator.naming import (
    ADMIN_PORT,
    ALLOWED_KEYS,
    KEY_FILE,
    PORTS,
    PUB_PORT,
    PULL_PORT,
    Manifest,
    forwarder_name,
    labels_of,
    selector,
)
from channels_zmq_operator.render.child import child
from channels_zmq_operator.render.inputs import Choices, LayerKeys
from channels_zmq_operator.render.merge import merged

DRAIN_AT_MOST, GRACE = 10, 30
"""Maximum seconds for which a forwarder drains, and after which Kubernetes kills it: returning messages takes time."""
SETTLE_AT_MOST, PROGRESS_DEADLINE = 10, 90
"""Seconds. The deadline exceeds the 60 s that a forwarder that starts beside others waits for silent clients."""
MIN_READY = 10
"""Seconds for which a forwarder is ready before the one that it replaces ends: clients look for it every 5 s."""
USER = 65532
"""User and group of the image; left out if the cluster assigns users."""
NODE_LOST_FOR = 25
"""Seconds after which the forwarders of a node that does not answer are replaced."""


def render(owner: Owner, spec: Spec, keys: LayerKeys | None, choices: Choices) -> Manifest:
    """Return the Deployment."""
    template = spec.pod_template
    security: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if not choices.assigns_users:
        security |= dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), USER)
    pod: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security,
        "containers": [_container(spec, keys, choices)],
        "tolerations": _tolerations(template.spec.get("tolerations", [])),
    }
    if spec.image.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.image.pull_secrets]
    if keys is not None:
        items = [{"key": name, "path": name} for name in (KEY_FILE, ALLOWED_KEYS)]
        secret = {"secretName": forwarder_name(owner), "items": items, "defaultMode": 0o440}
        pod["volumes"] = [{"name": "keys", "secret": secret}]
    annotations = dict(template.metadata.annotations)
    if keys is not None:  # a new key must restart forwarders: they reload only the list
        annotations[f"{GROUP}/server-key-checksum"] = hashlib.sha256(keys.server_public.encode()).hexdigest()[:16]
    labels = {**template.metadata.labels, **labels_of(owner)}
    defaults = {"terminationGracePeriodSeconds": GRACE, "topologySpreadConstraints": _spread(owner)}
    body = {
        "replicas": spec.forwarders,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "minReadySeconds": MIN_READY,
        "progressDeadlineSeconds": PROGRESS_DEADLINE,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": selector(owner)},
        "template": {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": {**defaults, **merged(template.spec, pod)},
        },
    }
    return child(owner, "apps/v1", "Deployment", forwarder_name(owner), spec=body)


def _tolerations(own: list[Manifest]) -> list[Manifest]:
    """Return tolerations that keep a forwarder on a lost node for `NODE_LOST_FOR`: the default is five minutes."""
    decided = {one.get("key", "") for one in own if one.get("effect", "") in ("", "NoExecute")}
    keys = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    return own + [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_LOST_FOR}
        for key in keys
        if not decided & {key, ""}  # the shortest of those that match counts, and an empty key matches all
    ]


def _spread(owner: Owner) -> list[Manifest]:
    """Return constraints that spread forwarders over zones and nodes as far as possible."""
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


def _changed(forwarder: Forwarder) -> list[str]:
    """Return the flags that differ from a forwarder's defaults: an image of another release may not know the others."""
    return [
        f"--{name.replace('_', '-')}={size(value) if name.endswith('_bytes') else value}"
        for name, value in forwarder.model_dump(exclude_defaults=True).items()
    ]


def _container(spec: Spec, keys: LayerKeys | None, choices: Choices) -> Manifest:
    arguments = [
        f"--pull-address=tcp://*:{PULL_PORT}",
        f"--pub-address=tcp://*:{PUB_PORT}",
        f"--admin-address=*:{ADMIN_PORT}",
        f"--max-message-size={size(spec.layer.max_message_size)}",
        f"--settle-at-most={SETTLE_AT_MOST}",  # a client may try an address that is gone twice, for 2 s each
        f"--drain-at-most={DRAIN_AT_MOST}",
        "--log-format=json",
        *_changed(spec.forwarder),
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
