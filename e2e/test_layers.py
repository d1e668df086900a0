"""A layer's resource: from nothing to Ready, what it refuses, and that it stays what it should be."""

import json
import time
from typing import Any

import pytest
from kube import (
    LAYER_LABEL,
    KubectlError,
    Manifest,
    apply,
    conditions,
    container,
    events,
    get,
    kubectl,
    layer,
    options,
    pod,
    refused,
    rolled_out,
    until,
    wait_ready,
)
from releases import NAMESPACE, OPERATOR, Release

pytestmark = pytest.mark.usefixtures("installed")


def test_an_empty_spec_is_a_working_layer(namespace: str) -> None:
    """Ready within 15 seconds, with everything that belongs to it."""
    began = time.monotonic()
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    took = time.monotonic() - began
    print(f"spec: {{}} to Ready: {took:.1f} s")
    there = kubectl("get", "deploy,svc,cm,secret,pdb,netpol", "-n", namespace, "-o", "name").split()
    assert {
        "deployment.apps/chat-forwarder",
        "service/chat-forwarder",
        "configmap/chat-channels",
        "secret/chat-client",
        "secret/chat-forwarder",
        "poddisruptionbudget.policy/chat-forwarder",
        "networkpolicy.networking.k8s.io/chat-forwarder",
    } <= set(there)
    assert took < 15


def test_the_table_says_what_a_person_wants_to_know(namespace: str) -> None:
    """Ready, forwarders, why; and where they listen in the wide one."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    head, line = kubectl("get", "zcl", "-n", namespace).splitlines()
    assert head.split() == ["NAME", "READY", "FORWARDERS", "REASON", "PROGRESS", "AGE"]
    assert line.split()[:4] == ["chat", "True", "2/2", "ForwardersReady"]
    assert f"chat-forwarder.{namespace}.svc.cluster.local.:5555" in kubectl("get", "zcl", "-n", namespace, "-o", "wide")
    assert "zmqchannellayer" in kubectl("get", "channels", "-n", namespace, "-o", "name")


def test_every_condition_is_there_and_of_this_generation(namespace: str) -> None:
    """Also after a change of the spec."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    apply(layer("chat", layer={"capacity": 7}), namespace=namespace)
    until(
        lambda: (
            conditions("chat", namespace=namespace)["Ready"]["observedGeneration"] == 2
            and {kind: (one["status"], one["reason"]) for kind, one in conditions("chat", namespace=namespace).items()}
            == {
                "Accepted": ("True", "SpecValid"),
                "Ready": ("True", "ForwardersReady"),
                "Progressing": ("False", "Complete"),
                "Degraded": ("False", "AsExpected"),
                "Stalled": ("False", "NotStalled"),
                "AppsOutdated": ("False", "UpToDate"),
            }
        ),
        "every condition, of the second generation",
    )
    assert options("chat", namespace)["capacity"] == 7


def test_kubectl_explains_every_field() -> None:
    """Each has a description."""
    text = kubectl("explain", "zcl.spec", "--recursive")
    for field in ("forwarders", "capacity", "groupExpiry", "rotateEvery", "networkPolicy", "serviceMonitor"):
        assert field in text
    for path in ("zcl.spec.layer.channelCapacity", "zcl.spec.security.curve", "zcl.status.conditions"):
        described = kubectl("explain", path).split("DESCRIPTION:")[1]
        assert "<empty>" not in described


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("a size that is none", {"layer": {"maxMessageSize": "16 megabytes"}}, "a size is a number of bytes or a quantity"),
    ("a size of nothing", {"layer": {"maxMessageSize": 0}}, "a size is from 1 to 2Gi"),
    ("a size beyond", {"layer": {"maxMessageSize": "3Gi"}}, "a size is from 1 to 2Gi"),
    ("keys for a minute", {"security": {"rotateEvery": "1m"}}, "rotateEvery is 1h or longer"),
    ("a capacity of nothing", {"layer": {"capacity": 0}}, "greater than or equal to 1"),
    ("too many forwarders", {"forwarders": 65}, "less than or equal to 64"),
    ("a word that is none", {"security": {"curve": "Maybe"}}, "Unsupported value"),
    ("an unknown field", {"layer": {"capasity": 1}}, "field not declared in schema"),
]


@pytest.mark.parametrize(("spec", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_mistake_is_refused_with_its_reason(namespace: str, spec: dict[str, Any], message: str) -> None:
    """By the API server itself, before anything is made."""
    assert message in refused(layer("chat", **spec), namespace=namespace)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a" * 48, "at most 47 characters"), ("1chat", "begins with a letter"), ("a.b", "only letters")],
)
def test_a_name_that_makes_no_service_is_refused(namespace: str, name: str, message: str) -> None:
    """Since its children would have none."""
    assert message in refused(layer(name), namespace=namespace)


def test_a_spec_that_got_past_the_schema_gets_a_condition_and_one_event(namespace: str) -> None:
    """Whatever a quantity may look like to Kubernetes: the operator says which it takes, and does not try again."""
    apply(layer("chat", layer={"maxMessageSize": "16e3"}), namespace=namespace)
    accepted = until(lambda: conditions("chat", namespace=namespace).get("Accepted"), "a condition")
    assert (accepted["status"], accepted["reason"]) == ("False", "SpecInvalid")
    assert "spec.layer.maxMessageSize" in accepted["message"]
    (event,) = until(lambda: events(namespace, "chat"), "an event")
    assert (event["reason"], event["type"]) == ("SpecInvalid", "Warning")
    assert "maxMessageSize" in event["message"]
    assert "maxMessageSize" in kubectl("describe", "zcl", "chat", "-n", namespace).split("Events:")[1]
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    assert len(events(namespace, "chat")) == 1


def test_a_bad_edit_takes_nothing_from_a_layer_that_runs(namespace: str) -> None:
    """The condition says that the spec is not accepted; what runs stays ready, and is found by its status."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    before = get("zcl", "chat", namespace=namespace)["status"]
    apply(layer("chat", layer={"maxMessageSize": "16e3"}), namespace=namespace)
    until(lambda: conditions("chat", namespace=namespace)["Accepted"]["status"] == "False", "it is not accepted")
    after = get("zcl", "chat", namespace=namespace)["status"]
    assert conditions("chat", namespace=namespace)["Ready"]["status"] == "True"
    for field in ("addresses", "binding", "readyForwarders"):
        assert after[field] == before[field]


def test_what_is_somebody_elses_is_left_alone(namespace: str) -> None:
    """It does not go with the layer, either. Once it is away, the layer is complete."""
    mine: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "chat-channels"},
        "data": {"mine": "1"},
    }
    kubectl("create", "-n", namespace, "-f", "-", given=mine)
    apply(layer("chat"), namespace=namespace)
    until(
        lambda: conditions("chat", namespace=namespace).get("Degraded", {}).get("reason") == "NameTaken",
        "the layer says so",
    )
    assert get("configmap", "chat-channels", namespace=namespace)["data"] == mine["data"]
    kubectl("delete", "zcl", "chat", "-n", namespace)
    until(lambda: not get("deployment", "chat-forwarder", namespace=namespace), "the layer's objects are away")
    assert "ownerReferences" not in get("configmap", "chat-channels", namespace=namespace)["metadata"]
    apply(layer("chat"), namespace=namespace)
    kubectl("delete", "configmap", "chat-channels", "-n", namespace)
    wait_ready(namespace=namespace)
    until(
        lambda: "ownerReferences" in (get("configmap", "chat-channels", namespace=namespace) or mine)["metadata"],
        "it is made",
    )


def test_a_child_that_somebody_edits_is_repaired(namespace: str) -> None:
    """Whatever was changed, in whichever kind."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    address = get("configmap", "chat-channels", namespace=namespace)["data"]["CHANNELS_ZMQ_PULL_SOCKET_ADDRESS"]
    edits = [
        ("configmap/chat-channels", {"data": {"CHANNELS_ZMQ_PULL_SOCKET_ADDRESS": "tcp://elsewhere:1"}}),
        ("service/chat-forwarder", {"spec": {"selector": {"channels-zmq.io/owned-by": "nobody"}}}),
        ("deployment/chat-forwarder", {"spec": {"replicas": 3}}),
        ("networkpolicy/chat-forwarder", {"spec": {"ingress": []}}),
    ]
    for target, patch in edits:
        kubectl("patch", target, "-n", namespace, "--type=merge", "-p", json.dumps(patch))

    def repaired() -> bool:
        return (
            get("configmap", "chat-channels", namespace=namespace)["data"]["CHANNELS_ZMQ_PULL_SOCKET_ADDRESS"]
            == address
            and get("service", "chat-forwarder", namespace=namespace)["spec"]["selector"]["channels-zmq.io/owned-by"]
            == "chat"
            and get("deployment", "chat-forwarder", namespace=namespace)["spec"]["replicas"] == 2
            and len(get("networkpolicy", "chat-forwarder", namespace=namespace)["spec"]["ingress"]) == 2
        )

    until(repaired, "everything is as it was")
    wait_ready(namespace=namespace)


def test_a_child_that_somebody_deletes_comes_back(namespace: str) -> None:
    """Each kind, and with the same keys: clients are refused only after the loss of a key itself."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    data = get("secret", "chat-client", namespace=namespace)["data"]
    children = ["configmap/chat-channels", "service/chat-forwarder", "pdb/chat-forwarder", "deployment/chat-forwarder"]

    def uids() -> set[str]:
        found = [get(*child.split("/"), namespace=namespace) for child in children]
        return {one["metadata"]["uid"] for one in found if one}

    before = uids()
    kubectl("delete", "-n", namespace, *children)
    until(lambda: len(uids()) == len(children) and not uids() & before, "every child is back")
    wait_ready(namespace=namespace)
    rolled_out("chat-forwarder", namespace=namespace)
    assert get("secret", "chat-client", namespace=namespace)["data"] == data


def test_what_is_no_longer_wanted_is_removed(namespace: str) -> None:
    """And comes back when it is wanted again."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    apply(layer("chat", networkPolicy={"enabled": False}, security={"curve": "Disabled"}), namespace=namespace)
    until(lambda: get("networkpolicy", "chat-forwarder", namespace=namespace) is None, "no policy")
    until(lambda: get("secret", "chat-forwarder", namespace=namespace) is None, "no key")
    assert "server-key" not in get("secret", "chat-client", namespace=namespace)["data"]
    apply(layer("chat"), namespace=namespace)
    until(lambda: get("networkpolicy", "chat-forwarder", namespace=namespace), "a policy")
    until(lambda: get("secret", "chat-forwarder", namespace=namespace), "a key")


def test_deleting_a_layer_deletes_what_it_was_made_of(namespace: str) -> None:
    """At once, since nothing holds it."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    kubectl("delete", "zcl", "chat", "-n", namespace, "--timeout=30s")
    kinds = "deploy,svc,cm,secret,pdb,netpol"
    mine = "app.kubernetes.io/managed-by=channels-zmq-operator"
    until(lambda: not kubectl("get", kinds, "-n", namespace, "-l", mine, "-o", "name"), "nothing is left")


def test_deleting_a_namespace_deletes_its_layers_in_silence(namespace: str) -> None:
    """Kubernetes deletes the objects one by one; the operator does not complain that it cannot repair the layer."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    kubectl("delete", "namespace", namespace)
    said = kubectl("logs", f"deployment/{OPERATOR}", "-n", NAMESPACE)
    assert [line for line in said.splitlines() if namespace in line and '"WARNING"' in line] == []


def test_pods_that_run_settings_of_before_are_counted(namespace: str) -> None:
    """Until they are made anew."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    sleeps = container(command=["sleep", "1000"])
    apply(pod("app", sleeps, labels={LAYER_LABEL: "chat"}), namespace=namespace)
    until(lambda: get("pod", "app", namespace=namespace)["status"].get("phase") == "Running", "it runs")

    def outdated() -> str:
        return str(conditions("chat", namespace=namespace)["AppsOutdated"]["status"])

    assert outdated() == "False"
    apply(layer("chat", clients={"prefetch": 1}), namespace=namespace)
    until(lambda: outdated() == "True", "the layer says so")
    assert conditions("chat", namespace=namespace)["AppsOutdated"]["message"].startswith("1 pod of applications")
    kubectl("delete", "pod", "app", "-n", namespace, "--grace-period=0", "--force")
    until(lambda: outdated() == "False", "nobody is left")


def test_a_paused_layer_is_left_alone(namespace: str) -> None:
    """Until it is paused no more."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    apply(layer("chat", paused=True), namespace=namespace)
    until(lambda: conditions("chat", namespace=namespace)["Progressing"]["reason"] == "Paused", "it says so")
    kubectl("delete", "poddisruptionbudget", "chat-forwarder", "-n", namespace)
    apply(layer("other"), namespace=namespace)
    wait_ready("other", namespace=namespace)  # the operator has had the time
    assert get("pdb", "chat-forwarder", namespace=namespace) is None
    apply(layer("chat"), namespace=namespace)
    until(lambda: get("pdb", "chat-forwarder", namespace=namespace), "it is repaired")


def test_kubectl_scales_a_layer(namespace: str) -> None:
    """By the scale subresource, which autoscalers use too."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    kubectl("scale", "zcl/chat", "-n", namespace, "--replicas=3")
    until(lambda: get("zcl", "chat", namespace=namespace)["status"]["ready"] == "3/3", "there are three")
    scale = json.loads(
        kubectl("get", "--raw", f"/apis/channels-zmq.io/v1alpha1/namespaces/{namespace}/zmqchannellayers/chat/scale")
    )
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (3, 3)
    found = get("pods", namespace=namespace, selector=scale["status"]["selector"])
    assert len(found) == 3


def test_what_the_operator_does_not_let_a_layer_choose_is_told(namespace: str) -> None:
    """An image and a label, in all namespaces by default; a forwarder that runs goes on meanwhile."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    chosen = {"image": {"repository": "other"}, "podTemplate": {"metadata": {"labels": {"app": "theirs"}}}}
    apply(layer("chat", **chosen), namespace=namespace)
    until(lambda: conditions("chat", namespace=namespace)["Accepted"]["status"] == "False", "the refusal")
    message = conditions("chat", namespace=namespace)["Accepted"]["message"]
    assert message.startswith("not allowed in this cluster: spec.image.repository")
    assert "spec.podTemplate.metadata.labels.app" in message
    template = get("deployment", "chat-forwarder", namespace=namespace)["spec"]["template"]
    assert "other" not in template["spec"]["containers"][0]["image"]
    assert "app" not in template["metadata"]["labels"]
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)


def test_an_image_that_cannot_be_had_is_told(release: Release, namespace: str) -> None:
    """A layer whose forwarder does not start is not ready, and says so; mending the spec mends the layer."""
    release.ensure({"layers": {"imageOverrides": True}})
    apply(layer("chat", image={"repository": "no-such-image", "pullPolicy": "Never"}), namespace=namespace)
    ready = until(lambda: conditions("chat", namespace=namespace).get("Ready"), "a condition")
    assert (ready["status"], ready["reason"]) == ("False", "ForwardersNotReady")
    with pytest.raises(KubectlError):
        wait_ready(namespace=namespace, patience=3)
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)


def test_the_secret_for_other_tools_says_how_to_connect(namespace: str) -> None:
    """In the form of the Service Binding specification, named in the status."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    name = get("zcl", "chat", namespace=namespace)["status"]["binding"]["name"]
    secret = get("secret", name, namespace=namespace)
    assert secret["type"] == "servicebinding.io/channels-zmq"
    assert {"type", "provider", "pull-address", "pub-address", "server-key"} <= secret["data"].keys()
