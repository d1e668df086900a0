"""The chart's modes: some namespaces only, injection by the API server itself, and none."""

from typing import Any

import pytest
from kube import (
    LAYER_LABEL,
    Manifest,
    apply,
    container,
    ended,
    get,
    kubectl,
    layer,
    pod,
    program,
    programs,
    until,
    wait_ready,
)
from releases import Release

MAP, VOLUME = programs()
LABELS = {LAYER_LABEL: "chat"}


def asks(**rest: Any) -> Manifest:
    """Return a pod that uses the layer once."""
    return pod("asks", program("ask"), labels=LABELS, volumes=[VOLUME], **rest)


def test_with_some_namespaces_others_are_left_alone(release: Release, namespace: str) -> None:
    """Neither layers nor pods elsewhere are touched, and the operator holds no right there."""
    release.ensure({"watchNamespaces": [namespace]})
    apply(MAP, layer("chat"), asks(), namespace=namespace)
    wait_ready(namespace=namespace)
    assert "ok default" in ended("asks", namespace=namespace)
    account = "system:serviceaccount:default:channels-zmq-operator"
    assert kubectl("auth", "can-i", "patch", "deployments", "-n", namespace, "--as", account).strip() == "yes"
    assert (
        kubectl("auth", "can-i", "patch", "deployments", "-n", "default", "--as", account, check=False).strip() == "no"
    )
    apply(layer("elsewhere"), pod("elsewhere", container(command=["true"]), labels=LABELS), namespace="default")
    try:
        ended("elsewhere", namespace="default")
        assert "env" not in get("pod", "elsewhere", namespace="default")["spec"]["containers"][0]
        assert "status" not in get("zcl", "elsewhere", namespace="default")
    finally:
        kubectl("delete", "zcl/elsewhere", "pod/elsewhere", "-n", "default")
        release.remove()  # before the namespace with its roles goes


def test_without_injection_the_config_map_and_the_keys_are_enough(release: Release, namespace: str) -> None:
    """As docs/kubernetes.md describes it."""
    release.ensure({"injection": {"mode": "None"}})
    assert get("deployment", "channels-zmq-webhook", namespace="default") is None
    mount = {"name": "channels-zmq", "mountPath": "/channels-zmq", "readOnly": True}
    one = program(
        "ask",
        envFrom=[{"configMapRef": {"name": "chat-channels"}}],
        env=[
            {"name": f"CHANNELS_ZMQ_CURVE_{key.upper()}_KEY_FILE", "value": f"/channels-zmq/{key}-key"}
            for key in ("server", "secret")
        ],
    )
    one["volumeMounts"].append(mount)
    items = [
        {"key": "server-key", "path": "server-key"},
        {"key": "CHANNELS_ZMQ_CURVE_SECRET_KEY", "path": "secret-key"},
    ]
    key = {"name": "channels-zmq", "secret": {"secretName": "chat-client", "items": items}}
    apply(MAP, layer("chat"), pod("asks", one, labels=LABELS, volumes=[VOLUME, key]), namespace=namespace)
    assert "ok default" in ended("asks", namespace=namespace)


def test_the_api_server_injects_by_itself(release: Release, namespace: str) -> None:
    """With a MutatingAdmissionPolicy in place of the webhook, where the cluster serves it."""
    if "mutatingadmissionpolicies" not in kubectl("get", "--raw", "/apis/admissionregistration.k8s.io/v1"):
        pytest.skip("the cluster serves no MutatingAdmissionPolicy v1")
    release.ensure({"injection": {"mode": "AdmissionPolicy"}})
    apply(MAP, layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)

    def injected() -> bool:
        kubectl("delete", "pod", "asks", "-n", namespace, "--ignore-not-found", "--grace-period=0", "--force")
        apply(asks(), namespace=namespace)
        return "channels-zmq.io/injected" in get("pod", "asks", namespace=namespace)["metadata"]["annotations"]

    until(injected, "the policy is in force")
    assert "ok default" in ended("asks", namespace=namespace)
