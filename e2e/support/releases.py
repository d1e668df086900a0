"""The chart, installed by Helm as a user would, and brought to what a scenario needs."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from kube import LAYER_LABEL, container, get, kubectl, pod, rolled_out, until

ROOT = Path(__file__).parents[2]
CHART = "charts/channels-zmq"
NAME = "channels-zmq"
NAMESPACE = "default"
"""Where a new user's `helm install` without a namespace flag puts it."""
DOCUMENTED = "channels-zmq-system"
"""Where the documentation puts it."""
CRD = "zmqchannellayers.channels-zmq.io"
OPERATOR, WEBHOOK = f"{NAME}-operator", f"{NAME}-webhook"
OPERATORS, WEBHOOKS = (f"app.kubernetes.io/component={each}" for each in ("operator", "webhook"))
"""Select the pods of the operator, and those of the webhook."""
PART = "app.kubernetes.io/part-of=channels-zmq"
"""Selects what belongs to the release."""
Values = dict[str, Any]


def helm(*arguments: str, program: str = "helm", values: Values | None = None, patience: float = 300.0) -> str:
    """Run Helm at the root of the repository; its errors are errors here."""
    command = [program, *arguments, *(["--values=-"] if values else [])]
    done = subprocess.run(
        command, input=json.dumps(values or {}), capture_output=True, text=True, timeout=patience, check=False, cwd=ROOT
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return done.stdout


def programs() -> list[str]:
    """Return the Helms that are on PATH: `helm`, and `helm3` where both are."""
    return [name for name in ("helm", "helm3") if shutil.which(name)]


class Release:
    """The one release on the cluster; what it was installed with last."""

    def __init__(self) -> None:
        self._values: Values | None = None
        self.remove()

    def ensure(self, values: Values | None = None) -> None:
        """Have the chart installed with these values, and ready."""
        wanted = _adjusted(values or {})
        if self._values != wanted:
            if self._values is not None:
                self.remove()
            self.forget()  # until it is installed
            helm("install", NAME, CHART, "-n", NAMESPACE, values=wanted)
            self._values = wanted
        self.wait()

    def wait(self) -> None:
        """Wait until operator and webhook are ready, and the API server reaches the webhook by its Service."""
        there = [name for name in (OPERATOR, WEBHOOK) if get("deployment", name, namespace=NAMESPACE)]
        for name in there:
            rolled_out(name, namespace=NAMESPACE)
        until(lambda: not ending_pods(), "the pods of before have ended")
        if WEBHOOK in there:
            (namespace, *_) = (self._values or {}).get("watchNamespaces") or [NAMESPACE]
            asks = pod("asks-the-webhook", container(), labels={LAYER_LABEL: "chat"})
            until(
                lambda: (
                    "injected"
                    in kubectl("create", "-n", namespace, "--dry-run=server", "-o", "yaml", "-f", "-", given=asks)
                ),
                "the webhook answers",
            )

    def forget(self) -> None:
        """Note that a scenario has changed the release by itself: the next one installs it anew."""
        self._values = {"changed": True}

    def remove(self, program: str = "helm") -> None:
        """Uninstall it, and delete the layers and the definition that it keeps.

        The layers go first: for half a minute after a definition is new the garbage collector does not know its kind.
        """
        self.forget()  # until everything is removed
        for namespace in (NAMESPACE, DOCUMENTED):
            helm("uninstall", NAME, "-n", namespace, "--ignore-not-found", program=program)
        if get("crd", CRD):
            kubectl("delete", "zmqchannellayers", "-A", "--all")
        for namespace in (NAMESPACE, DOCUMENTED):  # of a test that failed
            kubectl("delete", "jobs,configmaps", "-n", namespace, "-l", "app.kubernetes.io/component=test")
        until(lambda: not leftovers(), lambda: f"these are left: {leftovers()}")
        until(lambda: not get("pods", namespace=NAMESPACE, selector=PART), "its pods have ended")
        kubectl("delete", "crd", CRD, "--ignore-not-found")
        self._values = None


def ending_pods() -> list[str]:
    """Return the pods of the release that were deleted and have not ended yet."""
    found = get("pods", namespace=NAMESPACE, selector=PART)
    return [one["metadata"]["name"] for one in found if "deletionTimestamp" in one["metadata"]]


def leftovers() -> list[str]:
    """Return what there is of a release and its layers, as kind/name."""
    kinds = (
        "deployments,services,serviceaccounts,configmaps,secrets,roles,rolebindings,poddisruptionbudgets,"
        "networkpolicies,leases"
    )
    cluster_wide = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations"
    found: list[str] = []
    for arguments in (
        ("get", kinds, "-A", "-l", PART),
        ("get", kinds, "-A", "-l", "app.kubernetes.io/managed-by=channels-zmq-operator"),
        ("get", cluster_wide, "-l", PART),
    ):
        found += kubectl(*arguments, "-o", "name").split()
    return found


def _adjusted(values: Values) -> Values:
    """Return the values, with the registry E2E_REGISTRY for images; it is not set if the nodes have the images."""
    registry = os.environ.get("E2E_REGISTRY")
    if not registry:
        return values
    images = {key: {**values.get(key, {}), "registry": registry} for key in ("image", "forwarderImage")}
    return {**values, **images}
