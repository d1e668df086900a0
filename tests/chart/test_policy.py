"""The MutatingAdmissionPolicy has the same effect as the webhook, tested on a real API server.

Needs KUBECONFIG, kubectl, and Kubernetes 1.36 or newer. Pods are only created as a dry run.
"""

import copy
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helm import Values, needs_helm, render
from manifests import Manifest

from channels_zmq_operator.injection import LONGEST_ALIAS, MOST_CONTAINERS, MOST_LAYERS, InjectionError, patch
from channels_zmq_operator.models import LONGEST_NAME

pytestmark = [
    needs_helm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (os.environ.get("KUBECONFIG") and shutil.which("kubectl")), reason="needs KUBECONFIG and kubectl"
    ),
]
NAMESPACE = "channels-zmq-policy-test"


def kubectl(*arguments: str, given: Any = None) -> subprocess.CompletedProcess[str]:
    text = None if given is None else json.dumps(given)
    return subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def policy() -> Iterator[None]:
    """Apply the policy for one namespace, and wait until it is in force."""
    served = kubectl("get", "--raw", "/apis/admissionregistration.k8s.io/v1")
    if "mutatingadmissionpolicies" not in served.stdout:
        pytest.skip("the cluster serves no MutatingAdmissionPolicy v1")
    values: Values = {"injection": {"mode": "AdmissionPolicy"}, "watchNamespaces": [NAMESPACE]}
    objects = [
        each for each in render(values, release="policy-test") if each["kind"].startswith("MutatingAdmissionPolicy")
    ]
    everything = {"apiVersion": "v1", "kind": "List", "items": objects}
    kubectl("create", "namespace", NAMESPACE)
    try:
        done = kubectl("apply", "-f", "-", given=everything)
        assert done.returncode == 0, done.stderr
        until_in_force()
        yield
    finally:
        kubectl("delete", "--ignore-not-found", "-f", "-", given=everything)
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def until_in_force() -> None:
    """Wait until the policy is in force, which takes a moment; a new namespace has no service account at first."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if "CHANNELS_ZMQ_" in create(pod({}, [{"name": "a"}])).stdout:
            return
        time.sleep(0.2)
    pytest.fail("the policy is not in force")


def pod(annotations: dict[str, str], containers: list[Manifest], **spec: Any) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": NAMESPACE,
            "labels": {"channels-zmq.io/layer": "chat"},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {"containers": [{"image": "x:1", **each} for each in containers], **spec},
    }


def create(manifest: Manifest) -> subprocess.CompletedProcess[str]:
    return kubectl("create", "--dry-run=server", "-o", "yaml", "-f", "-", given=manifest)


def injected(manifest: Manifest) -> Manifest:
    """Return a pod as the webhook patches it."""
    out = copy.deepcopy(manifest)
    for operation in json.loads("".join(patch(manifest) or ["[]"])):
        assert operation["op"] == "add"
        *path, last = [part.replace("~1", "/") for part in operation["path"].split("/")[1:]]
        node: Any = out
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if last == "-":
            node.append(operation["value"])
        else:
            node[last] = operation["value"]
    return out


def ours(manifest: Manifest) -> Any:
    """Return the injected parts, in an order that does not matter, without the API server's own additions."""
    spec = manifest["spec"]

    def listed(entries: Any) -> list[str]:
        kept = [each for each in entries or () if "kube-api-access" not in each["name"]]
        return sorted(json.dumps(without_false(each), sort_keys=True) for each in kept)

    containers = {
        f"{kind}/{each['name']}": (listed(each.get("env")), listed(each.get("volumeMounts")))
        for kind in ("initContainers", "containers")
        for each in spec.get(kind, ())
    }
    annotations = {
        key: value for key, value in manifest["metadata"].get("annotations", {}).items() if "channels-zmq" in key
    }
    return containers, listed(spec.get("volumes")), annotations


def without_false(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_false(inner) for key, inner in value.items() if inner is not False}
    return [without_false(inner) for inner in value] if isinstance(value, list) else value


def unlabelled(annotations: dict[str, str]) -> Manifest:
    """Return a pod whose label has no value."""
    manifest = pod(annotations, [{"name": "a"}])
    manifest["metadata"]["labels"]["channels-zmq.io/layer"] = ""
    return manifest


def layers(count: int) -> dict[str, str]:
    """Return the annotation for this number of layers, one of which is that of the label."""
    return {"channels-zmq.io/layers": ",".join(f"a{number}=b{number}" for number in range(10, 9 + count))}


def containers(count: int) -> list[Manifest]:
    return [{"name": f"c{number}"} for number in range(count)]


FOLDER = "/var/run/secrets/channels-zmq.io/chat"
PODS: dict[str, Manifest] = {
    "the simplest": pod({}, [{"name": "a"}]),
    "several containers": pod(
        {}, [{"name": "a"}, {"name": "b"}], initContainers=[{"name": "i", "image": "x:1", "restartPolicy": "Always"}]
    ),
    "another alias": pod({"channels-zmq.io/alias": "jobs_2"}, [{"name": "a"}]),
    "several layers": pod({"channels-zmq.io/layers": "jobs=work, other=chat"}, [{"name": "a"}]),
    "some containers": pod({"channels-zmq.io/containers": "b, i"}, [{"name": "a"}, {"name": "b"}, {"name": "i"}]),
    "no container": pod({"channels-zmq.io/containers": ""}, [{"name": "a"}]),
    "variables of its own": pod(
        {"note": "x"}, [{"name": "a", "env": [{"name": "CHANNELS_ZMQ_CAPACITY", "value": "7"}]}]
    ),
    "a mount of its own": pod(
        {},
        [{"name": "a", "volumeMounts": [{"name": "own", "mountPath": FOLDER}]}],
        volumes=[{"name": "own", "emptyDir": {}}],
    ),
    "as many as cost the API server something": pod(
        {"channels-zmq.io/layers": "b=b,c=c,d=d"}, [{"name": f"c{number}"} for number in range(20)]
    ),
    "as many layers as a pod may have": pod(layers(MOST_LAYERS), containers(70)),
    "as many containers as a pod may have": pod(layers(7), containers(MOST_CONTAINERS)),
    "blanks": pod({"channels-zmq.io/layers": " jobs = work ,, "}, [{"name": "a"}]),
    "a layer that is named twice": pod({"channels-zmq.io/layers": "default=chat"}, [{"name": "a"}]),
    "a label without a value": unlabelled({}),
    "the annotation alone": unlabelled({"channels-zmq.io/layers": "default=chat"}),
    "the longest names": pod(
        {"channels-zmq.io/layers": f"{'a' * LONGEST_ALIAS}={'b' * LONGEST_NAME}"}, [{"name": "a"}]
    ),
    "without a token": pod({}, [{"name": "a"}], automountServiceAccountToken=False),
    "once more": injected(pod({"channels-zmq.io/layers": "jobs=work"}, [{"name": "a"}])),
}
BAD: dict[str, tuple[Manifest, str]] = {
    "no alias": (pod({"channels-zmq.io/layers": "work"}, [{"name": "a"}]), "work is not ALIAS=LAYER"),
    "a bad alias": (pod({"channels-zmq.io/alias": "Jobs"}, [{"name": "a"}]), "Jobs=chat is not ALIAS=LAYER"),
    "a bad layer": (pod({"channels-zmq.io/layers": "jobs=Work"}, [{"name": "a"}]), "jobs=Work is not ALIAS=LAYER"),
    "a long alias": (
        pod({"channels-zmq.io/alias": "a" * (LONGEST_ALIAS + 1)}, [{"name": "a"}]),
        f"an alias has at most {LONGEST_ALIAS} characters",
    ),
    "a long layer": (
        pod({"channels-zmq.io/layers": f"a={'b' * (LONGEST_NAME + 1)}"}, [{"name": "a"}]),
        f"a layer has at most {LONGEST_NAME} characters",
    ),
    "two layers of one alias": (
        pod({"channels-zmq.io/layers": "default=other"}, [{"name": "a"}]),
        "default=chat is not the only layer of its alias",
    ),
    "a container that is not there": (
        pod({"channels-zmq.io/containers": "z"}, [{"name": "a"}]),
        "the pod has no container z",
    ),
    "many layers": (pod(layers(MOST_LAYERS + 1), [{"name": "a"}]), f"a pod has at most {MOST_LAYERS} layers"),
    "very many layers": (pod(layers(3000), [{"name": "a"}]), f"a pod has at most {MOST_LAYERS} layers"),
    "many containers": (
        pod({}, containers(MOST_CONTAINERS), initContainers=[{"name": "i", "image": "x:1"}]),
        f"a pod with a layer has at most {MOST_CONTAINERS} containers",
    ),
    "very many containers": (
        pod(layers(MOST_LAYERS), containers(1000)),
        f"a pod with a layer has at most {MOST_CONTAINERS} containers",
    ),
}


@pytest.mark.parametrize("manifest", PODS.values(), ids=PODS.keys())
def test_the_policy_does_what_the_webhook_does(policy: None, manifest: Manifest) -> None:
    """The policy adds the same variables, mounts, volumes and annotation as the webhook."""
    done = create(manifest)
    assert done.returncode == 0, done.stderr
    assert ours(yaml.safe_load(done.stdout)) == ours(injected(manifest))


@pytest.mark.parametrize("manifest, said", BAD.values(), ids=BAD.keys())
def test_the_policy_refuses_what_the_webhook_refuses(policy: None, manifest: Manifest, said: str) -> None:
    """The policy refuses each pod that the webhook refuses, with a message that states the reason."""
    with pytest.raises(InjectionError):
        patch(manifest)
    done = create(manifest)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_operators_own_pods_are_left_alone(policy: None) -> None:
    """The policy leaves a forwarder's pod unchanged, whatever labels its template has."""
    manifest = pod({}, [{"name": "a"}])
    manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "channels-zmq-operator"
    assert "CHANNELS_ZMQ_" not in create(manifest).stdout


def test_a_pod_without_the_label_is_left_alone(policy: None) -> None:
    """The policy leaves a pod without the label unchanged, even if it has annotations."""
    manifest = pod({"channels-zmq.io/layers": "jobs=work"}, [{"name": "a"}])
    del manifest["metadata"]["labels"]
    assert "CHANNELS_ZMQ_" not in create(manifest).stdout
