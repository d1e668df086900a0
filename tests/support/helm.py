"""The chart, rendered by each installed Helm."""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from manifests import Manifest, load

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "channels-zmq"
KUBERNETES = "1.36.0"
Values = dict[str, Any]


class RenderError(Exception):
    """Helm refused to render; the text is its error output."""


@functools.cache
def helms() -> dict[str, str]:
    """Return the paths of the installed Helms, by their major version."""
    home = Path(os.environ.get("CLUSTER_HOME") or Path.home() / ".cache" / "channels-zmq-cluster") / "bin"
    found: dict[str, str] = {}
    for name in ("helm", "helm3"):
        path = shutil.which(name) or shutil.which(name, path=home)
        if path:
            said = subprocess.run([path, "version", "--short"], capture_output=True, text=True, check=True).stdout
            found.setdefault(said.strip().removeprefix("v").split(".")[0], path)
    return dict(sorted(found.items()))


needs_helm = pytest.mark.skipif(not helms(), reason="needs helm on PATH or in $CLUSTER_HOME/bin")


def render(
    values: Values | None = None, *, helm: str = "", release: str = "channels-zmq", **options: str
) -> list[Manifest]:
    """Return the objects of the chart with some values, by default from the newest Helm.

    Raises:
        RenderError: If Helm refuses.
    """
    return load(rendered(helm or max(helms()), release, json.dumps(values or {}), tuple(sorted(options.items()))))


@functools.cache
def rendered(helm: str, release: str, values: str, options: tuple[tuple[str, str], ...]) -> str:
    given = {"namespace": "default", "kube_version": KUBERNETES} | dict(options)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    command = [helms()[helm], "template", release, str(CHART), "--values=-", *flags]
    done = subprocess.run(command, input=values, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderError(done.stderr)
    return done.stdout


def notes(values: Values | None = None, *, namespace: str = "default") -> str:
    """Return the notes of Helm 4 after an installation; Helm 3 prints none without a cluster."""
    flags = [f"--namespace={namespace}", "--dry-run=client", "--values=-"]
    command = [helms()["4"], "install", "channels-zmq", str(CHART), *flags]
    given = json.dumps(values or {})
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.partition("\nNOTES:\n")[2]


def identity(manifest: Manifest) -> tuple[str, str, str]:
    """Return kind, namespace and name."""
    return manifest["kind"], manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def one(manifests: list[Manifest], kind: str, ending: str = "") -> Manifest:
    """Return the only object of a kind whose name has this ending."""
    (found,) = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].endswith(ending)]
    return found


def default_values() -> Values:
    """Return the content of `values.yaml`."""
    return dict(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")))


def with_value(values: Values, path: tuple[str, ...], value: Any) -> Values:
    """Return values with one of them changed."""
    first, *rest = path
    inner = with_value(values.get(first) or {}, tuple(rest), value) if rest else value
    return {**values, first: inner}


@functools.cache
def generator() -> ModuleType:
    """Return `docs/chart.py`, which writes the generated parts."""
    spec = importlib.util.spec_from_file_location("docs_chart", ROOT / "docs" / "chart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


EVERYTHING: Values = {
    "commonLabels": {"team": "a"},
    "commonAnnotations": {"note": "b"},
    "imagePullSecrets": [{"name": "registry"}],
    "image": {"registry": "registry.example:5000", "tag": "1.2", "pullPolicy": "Always"},
    "forwarderImage": {"digest": f"sha256:{'a' * 64}"},
    "operator": {
        "replicas": 2,
        "podLabels": {"x": "y"},
        "podAnnotations": {"x": "y"},
        "serviceAccount": {"annotations": {"role": "z"}},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
            {
                "maxSkew": 1,
                "topologyKey": "rack",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"own": "one"}},
            },
        ],
        "priorityClassName": "high",
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "proxy"}],
        "extraVolumes": [{"name": "own", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "own", "mountPath": "/own"}],
        "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
    },
    "webhook": {
        "replicas": 3,
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "extraVolumes": [{"name": "own", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "own", "mountPath": "/own"}],
    },
    "service": {"ipFamilyPolicy": "PreferDualStack"},
    "injection": {"namespaceSelector": {"matchLabels": {"inject": "yes"}}},
    "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"prometheus": "main"}},
        "prometheusRule": {"enabled": True, "alertLabels": {"team": "a"}},
        "dashboard": {"enabled": True, "annotations": {"folder": "messaging"}},
    },
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"of": "{{ .Release.Name }}"}},
        'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: text}\ndata: {of: "{{ .Release.Name }}"}\n',
    ],
}
MATRIX: dict[str, Values] = {
    "defaults": {},
    "everything": EVERYTHING,
    "a policy in place of the webhook": {"injection": {"mode": "AdmissionPolicy"}},
    "no injection": {"injection": {"mode": "None"}, "crds": {"keep": False}},
    "cert-manager": {"certificates": {"mode": "CertManager"}},
    "cert-manager with an issuer": {
        "certificates": {"mode": "CertManager", "certManager": {"issuerRef": {"name": "ours", "kind": "ClusterIssuer"}}}
    },
    "an existing certificate": {
        "certificates": {"mode": "ExistingSecret", "secretName": "mine", "caBundle": "Y2VydGlmaWNhdGU="}
    },
    "some namespaces": {"watchNamespaces": ["a", "b"], **EVERYTHING},
    "some namespaces without a webhook": {"watchNamespaces": ["a", "default"], "injection": {"mode": "None"}},
    "the least": {
        "crds": {"enabled": False},
        "rbac": {"create": False},
        "operator": {"serviceAccount": {"create": False}, "replicas": 0},
        "webhook": {"serviceAccount": {"create": False}, "podDisruptionBudget": {"enabled": False}},
        "networkPolicy": {"enabled": False},
        "test": {"enabled": False},
    },
    "long names": {"fullnameOverride": "a.name-nobody-would-give-to-anything-but-that-helm-takes-all-the-same-70"},
    "another name": {"nameOverride": "a.name-nobody-would-give-to-anything-but-that-helm-takes-all-the-same-70"},
    "the node's network": {"webhook": {"hostNetwork": True, "port": 9443}},
}
LATEST_ONLY = {"a policy in place of the webhook"}
"""Cases that need an API which Kubernetes serves since 1.36."""
