"""The operator's permissions are the minimum: each is used, and each that is needed is present."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube import Manifest, apply, get, kubectl, layer, until, wait_ready
from proxies import Proxy, Request, operator_process
from recorder import Alerts
from releases import NAMESPACE, OPERATOR, OPERATORS, Release

VALUES = {"operator": {"replicas": 2}}  # a Lease is needed then
MONITORS: Manifest = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "servicemonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {"kind": "ServiceMonitor", "listKind": "ServiceMonitorList", "plural": "servicemonitors"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
"""As far as it matters here; a cluster with Prometheus has the whole."""


@pytest.fixture
def environment(release: Release) -> Iterator[dict[str, str]]:
    """The chart with its operator away, and the environment that the operator had."""
    there = get("crd", MONITORS["metadata"]["name"])
    if not there:
        kubectl("apply", "-f", "-", given=MONITORS)
    release.ensure(VALUES)
    found = get("deployment", OPERATOR, namespace=NAMESPACE)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    kubectl("scale", "deployment", OPERATOR, "-n", NAMESPACE, "--replicas=0")
    until(lambda: not get("pods", namespace=NAMESPACE, selector=OPERATORS), "it is away")
    # A namespace that ends refuses new objects by 403, as if a right were missing.
    until(lambda: not kubectl("get", "zcl", "-A", "-o", "name").strip(), "the layers of other scenarios are gone")
    kubectl("delete", "secret", "channels-zmq-webhook", "channels-zmq-webhook-ca", "-n", NAMESPACE)
    kubectl("delete", "lease", OPERATOR, "-n", NAMESPACE)
    yield {
        **{one["name"]: one["value"] for one in container["env"] if "value" in one},
        "CHANNELS_ZMQ_OPERATOR_NAMESPACE": NAMESPACE,
        "CHANNELS_ZMQ_OPERATOR_ADMIN_PORT": "18080",
        "CHANNELS_ZMQ_OPERATOR_LOG_FORMAT": "plain",
    }
    kubectl("delete", "lease", OPERATOR, "-n", NAMESPACE, "--ignore-not-found")  # the operator's, not the release's
    release.remove()
    if not there:
        kubectl("delete", "crd", MONITORS["metadata"]["name"])


def test_without_the_right_to_its_lease_no_replica_works(release: Release, namespace: str, alerts: Alerts) -> None:
    """Both run, and wait until they may have it; the layers run on."""
    release.ensure(VALUES)
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    alerts.hold()
    role = get("role", f"{OPERATOR}-own", namespace=NAMESPACE)
    metadata = {key: role["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
    full = {**role, "metadata": metadata}
    less = {**full, "rules": [rule for rule in role["rules"] if "leases" not in rule["resources"]]}

    def states() -> list[Manifest]:
        found = get("pods", namespace=NAMESPACE, selector=OPERATORS)
        return [state for one in found for state in one["status"]["containerStatuses"]]

    def restarts() -> int:
        return sum(state["restartCount"] for state in states())

    before = restarts()
    kubectl("replace", "-f", "-", given=less)
    try:
        until(
            lambda: restarts() > before and all(state["ready"] for state in states()),
            "the replica that led begins anew, and waits",
        )
        alerts.hold("NobodyLeads")
    finally:
        kubectl("replace", "-f", "-", given=full)
    kubectl("delete", "configmap", "chat-channels", "-n", namespace)
    until(lambda: get("configmap", "chat-channels", namespace=namespace), "one works again")
    alerts.hold()
    alerts.evaluate()


def granted() -> set[tuple[str, str, str, str]]:
    """Return what the chart's roles grant, as verb, group, resource and the one name, if only that."""
    found = set()
    roles = [get("clusterrole", OPERATOR), get("role", f"{OPERATOR}-own", namespace=NAMESPACE)]
    for rule in [rule for role in roles for rule in role["rules"]]:
        for verb in rule["verbs"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for name in rule.get("resourceNames", [""]):
                        found.add((verb, group, resource, name))
    return found


def uses(request: Request, right: tuple[str, str, str, str]) -> bool:
    """Return whether a request needed a right; an apply that makes an object needs the one to create it too."""
    verb, group, resource, name = right
    verbs = {request.verb, "create"} if request.verb == "patch" and request.status == 201 else {request.verb}
    fits = (group, resource) == (request.group, request.resource) and name in ("", request.name)
    return verb in verbs and fits and request.status not in (401, 403)


def stray(kind: str, version: str, owner: Manifest, spec: Any) -> Manifest:
    """Return an object that a former version of the operator might have made for a layer."""
    metadata = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": "chat", "uid": metadata["uid"]}
    labels = {"channels-zmq.io/owned-by": "chat"}
    body = {"spec": spec} if spec is not None else {}
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "stray", "labels": labels, "ownerReferences": [reference]},
        **body,
    }


def test_every_right_is_used_and_none_is_missing(environment: dict[str, str], namespace: str, tmp_path: Path) -> None:
    """The operator runs under exactly the chart's rules, and does all that it ever does."""
    proxy = Proxy((NAMESPACE, OPERATOR))
    proxy.open()
    selector = {"matchLabels": {"app": "stray"}}
    pod = {"metadata": {"labels": {"app": "stray"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}}
    try:
        with operator_process(tmp_path, environment, proxy):
            apply(layer("chat"), namespace=namespace)
            wait_ready(namespace=namespace)
            owner = get("zcl", "chat", namespace=namespace)
            strays = [
                stray("ConfigMap", "v1", owner, None),
                stray("Secret", "v1", owner, None),
                stray("Service", "v1", owner, {"ports": [{"port": 1}]}),
                stray("Deployment", "apps/v1", owner, {"replicas": 0, "selector": selector, "template": pod}),
                stray("PodDisruptionBudget", "policy/v1", owner, {"selector": selector}),
                stray("NetworkPolicy", "networking.k8s.io/v1", owner, {"podSelector": {}}),
                stray("ServiceMonitor", "monitoring.coreos.com/v1", owner, {}),
            ]
            apply(*strays, namespace=namespace)
            kinds = "cm,secret,svc,deploy,pdb,netpol,servicemonitor"
            until(lambda: "/stray" not in kubectl("get", kinds, "-n", namespace, "-o", "name"), "strays are removed")
            apply(layer("wrong", layer={"maxMessageSize": "16e3"}), namespace=namespace)
            until(lambda: get("zcl", "wrong", namespace=namespace).get("status"), "a wrong layer is told so")
            webhook = "mutatingwebhookconfiguration/channels-zmq"
            until(lambda: "caBundle" in json.dumps(get(*webhook.split("/"))), "the webhook is trusted")
            unused = until(lambda: _all_used(proxy), lambda: f"not used: {sorted(_unused(proxy))}", patience=60)
            assert unused
    finally:
        proxy.shut()
    refused = [one for one in proxy.requests if one.status in (401, 403)]
    assert refused == []
    print(f"{len(proxy.requests)} requests, {len(granted())} rights, each used")


def _unused(proxy: Proxy) -> set[tuple[str, str, str, str]]:
    return {right for right in granted() if not any(uses(request, right) for request in list(proxy.requests))}


def _all_used(proxy: Proxy) -> bool:
    return not _unused(proxy)


def test_an_api_server_that_is_away_is_waited_for(environment: dict[str, str], namespace: str, tmp_path: Path) -> None:
    """With clear lines in the log; what was changed meanwhile is done afterwards, without a restart."""
    proxy = Proxy((NAMESPACE, OPERATOR))
    proxy.open()
    with operator_process(tmp_path, environment | {"CHANNELS_ZMQ_OPERATOR_LEADER_ELECTION": "False"}, proxy) as (
        process,
        log,
    ):
        apply(layer("chat"), namespace=namespace)
        wait_ready(namespace=namespace)
        proxy.shut()
        kubectl("delete", "configmap", "chat-channels", "-n", namespace)
        apply(layer("late"), namespace=namespace)
        until(
            lambda: "Cannot connect" in log.read_text() or "connect" in log.read_text().lower(), "it says what it lacks"
        )
        proxy.open()
        wait_ready("late", namespace=namespace)
        until(lambda: get("configmap", "chat-channels", namespace=namespace), "the ConfigMap is back")
        assert process.poll() is None
        assert "Traceback" not in log.read_text()
        proxy.shut()
