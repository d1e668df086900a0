"""The operator itself: killed at any moment, refused, at work on many layers, and idle."""

import json
import random
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nodes
import pytest
from kube import Manifest, apply, conditions, events, forwarded, get, kubectl, layer, until, wait_ready
from proxies import operator_process
from releases import NAMESPACE, OPERATOR, OPERATORS, Release
from streams import is_complete, is_ready

LAYERS = 200
KILLS = 20
KINDS = ("deployment", "service", "configmap", "secret", "poddisruptionbudget", "networkpolicy")
VOLATILE = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")


def children(namespace: str) -> dict[str, Any]:
    """Return all children of the layers of a namespace, without what differs from one making to the next."""
    found = {}
    for kind in KINDS:
        for one in get(kind, namespace=namespace, selector="app.kubernetes.io/managed-by=channels-zmq-operator"):
            for name in VOLATILE:
                one["metadata"].pop(name, None)
            for name in [name for name in one["metadata"].get("annotations", ()) if name.startswith("deployment.")]:
                del one["metadata"]["annotations"][name]
            one.pop("status", None)
            one.get("spec", {}).pop("clusterIP", None)
            one.get("spec", {}).pop("clusterIPs", None)
            found[f"{kind}/{one['metadata']['name']}"] = one
    return found


@pytest.fixture
def away(installed: Release) -> Iterator[None]:
    """The chart without its operator."""
    kubectl("scale", "deployment", OPERATOR, "-n", NAMESPACE, "--replicas=0")
    until(lambda: not get("pods", namespace=NAMESPACE, selector=OPERATORS), "it is away")
    yield
    kubectl("scale", "deployment", OPERATOR, "-n", NAMESPACE, "--replicas=1")
    installed.wait()


@pytest.mark.usefixtures("away")
def test_killed_at_random_moments_it_always_converges_to_the_same(namespace: str, tmp_path: Path) -> None:
    """Twenty times, while it creates deleted objects again; the keys do not change."""
    environment = {"CHANNELS_ZMQ_OPERATOR_ADMIN_PORT": "18080", "CHANNELS_ZMQ_OPERATOR_WATCH_NAMESPACES": namespace}
    apply(*(layer(f"layer-{number}") for number in range(3)), namespace=namespace)
    moments = random.Random(4)
    with operator_process(tmp_path, environment):
        for number in range(3):
            wait_ready(f"layer-{number}", namespace=namespace)
        reference = children(namespace)
    assert len(reference) == 3 * 7
    deleted = "deployment,service,configmap,poddisruptionbudget,networkpolicy"
    for _ in range(KILLS):
        kubectl(
            "delete",
            deleted,
            "-n",
            namespace,
            "-l",
            "app.kubernetes.io/managed-by=channels-zmq-operator",
            "--wait=false",
        )
        with operator_process(tmp_path, environment) as (process, _):
            time.sleep(moments.uniform(0.8, 3.0))  # the moment is what this is about
            process.kill()
            process.wait()
    with operator_process(tmp_path, environment):
        until(lambda: children(namespace).keys() == reference.keys(), "everything is back")
        for number in range(3):
            wait_ready(f"layer-{number}", namespace=namespace)
    assert children(namespace) == reference


@pytest.mark.usefixtures("installed")
def test_a_refused_permission_is_told_and_survived(namespace: str) -> None:
    """A condition, one event, growing pauses; and everything is made once it is allowed, without a restart."""
    role = get("clusterrole", OPERATOR)
    less = json.loads(json.dumps(role))
    for rule in less["rules"]:
        if "deployments" in rule["resources"]:
            rule["verbs"] = ["list", "watch"]
    less["metadata"] = {"name": OPERATOR}
    full = {**role, "metadata": {key: role["metadata"][key] for key in ("name", "labels", "annotations")}}
    kubectl("replace", "-f", "-", given=less)
    try:
        apply(layer("chat"), namespace=namespace)
        until(lambda: conditions("chat", namespace=namespace).get("Degraded", {}).get("status") == "True", "Degraded")
        found = conditions("chat", namespace=namespace)
        assert found["Degraded"]["reason"] == found["Ready"]["reason"] == "ClusterRefused"
        assert "deployments" in found["Degraded"]["message"]
        assert "forbidden" in found["Degraded"]["message"]
        (event,) = until(lambda: events(namespace, "chat"), "an event")
        assert event["reason"] == "ClusterRefused"
    finally:
        kubectl("replace", "-f", "-", given=full)
    wait_ready(namespace=namespace)
    assert conditions("chat", namespace=namespace)["Degraded"]["reason"] == "AsExpected"
    (pod,) = get("pods", namespace=NAMESPACE, selector=OPERATORS)
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def metric(port: int, name: str) -> float:
    """Return a figure of the operator's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


@pytest.mark.usefixtures("installed")
def test_many_layers_and_then_nothing_to_do(namespace: str) -> None:
    """200 layers to Ready, with its time, requests and memory; afterwards next to no requests.

    Their forwarders are said to run on a node without a kubelet: 200 real ones do not fit onto a test machine.
    """
    template = {"spec": {"nodeSelector": nodes.LABEL, "tolerations": [nodes.TOLERATION]}}
    layers = [layer(f"layer-{number:03}", podTemplate=template) for number in range(LAYERS)]
    with nodes.standin(), forwarded(f"deployment/{OPERATOR}", 8080, namespace=NAMESPACE) as port:
        before = metric(port, "channels_zmq_operator_api_requests_total")
        began = time.monotonic()
        kubectl("create", "-n", namespace, "-f", "-", given=layers)
        created = time.monotonic() - began

        def are(wanted: Callable[[Manifest], bool]) -> bool:
            found = get("zcl", namespace=namespace)
            print(len(found), sum(map(wanted, found)))
            return len(found) == LAYERS and all(map(wanted, found))

        until(lambda: are(is_ready), "all are ready", patience=900, every=1.0)
        took = time.monotonic() - began
        requests = metric(port, "channels_zmq_operator_api_requests_total") - before
        memory = metric(port, "process_resident_memory_bytes") / 2**20
        assert (
            len(kubectl("get", "deploy,svc,cm,secret,pdb,netpol", "-n", namespace, "-o", "name").split()) >= 7 * LAYERS
        )
        until(lambda: are(is_complete), "their status changes no more", patience=300, every=1.0)
        settled = metric(port, "channels_zmq_operator_api_requests_total")
        time.sleep(60)  # a minute of nothing to do
        idle = metric(port, "channels_zmq_operator_api_requests_total") - settled
        print(
            f"{LAYERS} layers: created in {created:.1f} s, all Ready after {took:.1f} s, "
            f"{requests / LAYERS:.1f} requests a layer, {memory:.0f} MiB; idle: {idle:.0f} requests a minute"
        )
        assert requests / LAYERS < 20
        # Once in ten minutes 36 requests compare the watches with lists, of fifty objects a page; three a minute look
        # after the webhook's certificates.
        assert idle <= 36 + 2 * 3
        kubectl("delete", "zcl", "--all", "-n", namespace)
        until(lambda: not get("deployment", namespace=namespace), "their children are gone", patience=300)
