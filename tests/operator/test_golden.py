"""The manifests of a layer, compared as a whole with `golden/` and with the schemas of Kubernetes.

After an intended change: `UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/operator/test_golden.py`, then read the
diff.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import NEWEST, OLDEST, Manifest, NoSchema, load, problems

from channels_zmq_operator.models import LONGEST_NAME, Owner, parse
from channels_zmq_operator.naming import LAYER_LABEL, OWNER_LABEL
from channels_zmq_operator.render import Choices, LayerKeys, render

GOLDEN = Path(__file__).parent / "golden"
KEYS = LayerKeys("P" * 40, "S" * 40, "C" * 40, ("A" * 40, "B" * 40), "2026-01-02T03:04:05Z")
EVERYTHING: dict[str, Any] = {
    "forwarders": 3,
    "layer": {
        "capacity": 1000,
        "expiry": 30,
        "groupExpiry": 3600,
        "channelCapacity": {"jobs.*": 10000, "a": 1},
        "maxMessageSize": "1Mi",
    },
    "security": {"rotateEvery": "24h", "encryption": "Enabled"},
    "image": {
        "repository": "registry.example:5000/forwarder",
        "digest": f"sha256:{'d' * 64}",
        "pullPolicy": "Always",
        "pullSecrets": ["registry"],
    },
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
    "podTemplate": {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "preference": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}}
                    ]
                }
            },
            "priorityClassName": "high",
            "containers": [{"name": "forwarder", "env": [{"name": "TZ", "value": "UTC"}]}],
        },
    },
    "forwarder": {"pubHighWaterMark": 20000, "queueBytes": "1Gi", "logLevel": "DEBUG"},
    "clients": {"prefetch": 1, "outboxBytes": "128Mi", "onDisconnect": "layer.down", "onReconnect": "layer.up"},
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    },
    "monitoring": {"labels": {"release": "prometheus"}, "interval": "15s"},
}
MATRIX: dict[str, tuple[dict[str, Any], bool]] = {
    "empty": ({}, False),
    "everything": (EVERYTHING, True),
    "curve-disabled": ({"security": {"curve": "Disabled"}}, False),
    "monitoring": ({}, True),
    "single": ({"forwarders": 1}, False),
    "closed": ({"networkPolicy": {"enabled": False}, "monitoring": {"serviceMonitor": "Disabled"}}, True),
}
"""Each spec, and whether the cluster serves ServiceMonitors."""
by_name = pytest.mark.parametrize("name", MATRIX)


def rendered(name: str, layer: str = "chat") -> list[Manifest]:
    given, monitors = MATRIX[name]
    spec = parse({"spec": given})
    keys = KEYS if spec.security.curve == "Enabled" else None
    owner = Owner(name=layer, namespace="messaging", uid="01234567-89ab-cdef-0123-456789abcdef", generation=3)
    return render(owner, spec, keys, Choices("channels-zmq-forwarder:0.1.0", service_monitors=monitors))


@by_name
def test_it_is_as_it_was(name: str) -> None:
    """Every field of every rendered object equals the golden file of its spec."""
    path = GOLDEN / f"{name}.yaml"
    text = yaml.safe_dump_all(rendered(name), sort_keys=False, width=120)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert load(text) == load(path.read_text(encoding="utf-8"))


def test_no_golden_file_is_left_over() -> None:
    """Every golden file belongs to a spec of the matrix, and every spec has one."""
    assert {path.stem for path in GOLDEN.glob("*")} == set(MATRIX)


@by_name
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_every_object(name: str, version: str) -> None:
    """Every object is strictly valid by the schemas of the oldest and of the newest supported Kubernetes."""
    for manifest in rendered(name):
        try:
            assert problems(manifest, version) == []
        except NoSchema:
            assert manifest["kind"] == "ServiceMonitor"


@by_name
def test_names_fit_with_the_longest_layer(name: str) -> None:
    """Names and label values have at most 63 characters, even for the longest name of a layer."""
    for manifest in rendered(name, "l" * LONGEST_NAME):
        assert len(manifest["metadata"]["name"]) <= 63
        assert all(len(value) <= 63 for value in manifest["metadata"]["labels"].values())


@by_name
def test_everything_belongs_to_the_layer(name: str) -> None:
    """Every object has the label by which it is watched and the owner with which it is garbage-collected.

    No object requests injection.
    """
    for manifest in rendered(name):
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "messaging"
        assert metadata["labels"][OWNER_LABEL] == "chat"
        (owner,) = metadata["ownerReferences"]
        assert owner["uid"] == "01234567-89ab-cdef-0123-456789abcdef"
        assert owner["blockOwnerDeletion"] is False
        template = manifest.get("spec", {}).get("template", {}) if manifest["kind"] == "Deployment" else {}
        assert LAYER_LABEL not in template.get("metadata", {}).get("labels", {})


@by_name
def test_the_forwarders_pod_is_restricted(name: str) -> None:
    """The forwarder's pod meets the restricted Pod Security Standard, without a token and with a read-only root."""
    (deployment,) = [each for each in rendered(name) if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "latest" not in container["image"]


@by_name
def test_selectors_find_the_forwarders_pod(name: str) -> None:
    """The selectors of Service, budget, NetworkPolicy, Deployment and ServiceMonitor match the labels they select."""
    objects = {each["kind"]: each for each in rendered(name)}
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        objects["Service"]["spec"]["selector"],
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        *(
            [objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]]
            if "PodDisruptionBudget" in objects
            else []
        ),
        *([objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]] if "NetworkPolicy" in objects else []),
    ):
        assert selector.items() <= labels
    if "ServiceMonitor" in objects:
        wanted = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
        assert wanted <= objects["Service"]["metadata"]["labels"].items()


@by_name
def test_no_secret_key_stands_outside_of_secrets(name: str) -> None:
    """Only Secrets contain the secret keys of forwarders and applications; the public key may appear elsewhere."""
    for manifest in rendered(name):
        if manifest["kind"] != "Secret":
            text = yaml.safe_dump(manifest)
            assert "S" * 40 not in text
            assert "C" * 40 not in text


@by_name
def test_the_configuration_is_made_last(name: str) -> None:
    """The ConfigMap is applied last, so that pods that wait for it find everything else."""
    assert rendered(name)[-1]["kind"] == "ConfigMap"
