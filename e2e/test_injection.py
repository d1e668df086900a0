"""Pods get their layer by a label, however they are created."""

import copy
import os
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from kube import (
    LAYER_LABEL,
    Manifest,
    apply,
    attempt,
    container,
    ended,
    events,
    get,
    kubectl,
    layer,
    logs,
    pod,
    pod_spec,
    program,
    programs,
    until,
    wait_ready,
)

pytestmark = pytest.mark.usefixtures("installed")

MAP, VOLUME = programs()
ENV = "CHANNELS_ZMQ_"
LABELS = {LAYER_LABEL: "chat"}


@pytest.fixture
def chat(namespace: str) -> str:
    """A namespace with the layer `chat`, and the programs."""
    apply(MAP, layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    return namespace


def workload(kind: str) -> Manifest:
    """Return a workload whose pods use the layer once, and then wait or end as its kind demands."""
    once = kind in ("Job", "CronJob")
    asks = program("ask")
    if not once:
        asks["command"] = ["sh", "-c", "python /programs/ask.py && exec tail -f /dev/null"]
    spec = pod_spec(
        asks, volumes=[VOLUME], restartPolicy="Never" if once else "Always", terminationGracePeriodSeconds=0
    )
    template = {"metadata": {"labels": {**LABELS, "app": "asks"}}, "spec": spec}
    body: Manifest = {"template": template}
    if not once:
        body |= {"selector": {"matchLabels": {"app": "asks"}}, "replicas": 1}
    if kind == "StatefulSet":
        body |= {"serviceName": "asks"}
    if kind == "CronJob":
        body = {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": body}}
    version = "batch/v1" if once else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "asks"}, "spec": body}


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"])
def test_the_pods_of_every_workload_get_their_layer(chat: str, kind: str) -> None:
    """And messages pass in each of the three ways."""
    manifest = workload(kind)
    if kind == "DaemonSet":
        del manifest["spec"]["replicas"]
    apply(manifest, namespace=chat)
    if kind == "CronJob":
        kubectl("create", "job", "now", "--from=cronjob/asks", "-n", chat)
    found = until(lambda: get("pods", namespace=chat, selector="app=asks"), "a pod")
    name = found[0]["metadata"]["name"]
    until(lambda: "ok default" in logs(name, namespace=chat), f"the answer of {name}")


def test_a_bare_pod_gets_its_layer(chat: str) -> None:
    """References only: the pod's spec holds no value and no key."""
    apply(pod("asks", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=chat)
    assert "ok default" in ended("asks", namespace=chat)
    found = get("pod", "asks", namespace=chat)
    injected = [one for one in found["spec"]["containers"][0]["env"] if one["name"].startswith(ENV)]
    assert len(injected) == 6
    assert all("value" not in one for one in injected)
    assert {source for one in injected for source in one["valueFrom"]} == {"configMapKeyRef", "secretKeyRef"}
    assert found["metadata"]["annotations"]["channels-zmq.io/injected"] == "default=chat"


def test_a_pod_of_a_layer_that_encrypts_gets_the_keys_of_its_users(namespace: str) -> None:
    """As a file, where the variable says; the operator has not made the Secret."""
    keys = "k" * 44
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "chat-encryption"},
        "stringData": {"keys": keys},
    }
    shows = container(
        command=["python", "-c", f"import os; print(open(os.environ['{ENV}SYMMETRIC_ENCRYPTION_KEYS_FILE']).read())"]
    )
    apply(secret, layer(security={"encryption": "Enabled"}), pod("shows", shows, labels=LABELS), namespace=namespace)
    assert ended("shows", namespace=namespace).strip() == keys


def test_every_container_gets_it_and_a_chosen_few_if_the_pod_says_so(chat: str) -> None:
    """Init containers and sidecars too."""
    sidecar = {**program("ask", container="sidecar"), "restartPolicy": "Always"}
    sidecar["command"] = ["sh", "-c", "python /programs/ask.py && exec tail -f /dev/null"]
    first = program("ask", container="first")
    everything = pod(
        "all", program("ask"), program("ask", container="other"), labels=LABELS, volumes=[VOLUME],
        initContainers=[first, sidecar],
    )  # fmt: skip
    few = copy.deepcopy(everything)
    few["metadata"] |= {"name": "few", "annotations": {"channels-zmq.io/containers": "first, main"}}
    shows = container(
        "other", ["python", "-c", "import os; print([k for k in os.environ if k.startswith('CHANNELS_')])"]
    )
    few["spec"]["containers"][1] = shows
    few["spec"]["initContainers"] = [first]
    apply(everything, few, namespace=chat)
    ended("all", namespace=chat)
    for each in ("first", "main", "other", "sidecar"):
        assert "ok default" in logs("all", namespace=chat, container=each)
    until(lambda: get("pod", "few", namespace=chat)["status"]["phase"] == "Succeeded", "the end of pod few")
    assert "ok default" in logs("few", namespace=chat, container="main")
    assert logs("few", namespace=chat, container="other").strip() == "[]"


def test_what_the_pod_sets_itself_stays(chat: str) -> None:
    """Its own capacity wins; everything else is injected."""
    own = program("ask", env=[{"name": f"{ENV}CAPACITY", "value": "3"}])
    apply(pod("asks", own, labels=LABELS, volumes=[VOLUME]), namespace=chat)
    ended("asks", namespace=chat)
    env = {one["name"]: one for one in get("pod", "asks", namespace=chat)["spec"]["containers"][0]["env"]}
    assert env[f"{ENV}CAPACITY"]["value"] == "3"
    assert len(env) == 7


def test_a_pod_without_the_label_is_left_alone(chat: str) -> None:
    """The webhook is not even asked."""
    apply(pod("plain", container(command=["true"])), namespace=chat)
    ended("plain", namespace=chat)
    found = get("pod", "plain", namespace=chat)
    assert "env" not in found["spec"]["containers"][0]
    assert "channels-zmq" not in str(found["spec"]["volumes"])


def test_several_layers_by_alias(chat: str) -> None:
    """The annotation names them beside the label's."""
    apply(layer("jobs"), namespace=chat)
    wait_ready("jobs", namespace=chat)
    annotations = {"channels-zmq.io/layers": "background=jobs"}
    asks = program("ask", "default", "background")
    apply(pod("asks", asks, labels=LABELS, annotations=annotations, volumes=[VOLUME]), namespace=chat)
    said = ended("asks", namespace=chat).splitlines()
    assert [line for line in said if line.startswith("ok")] == ["ok default", "ok background"]


def test_a_pod_made_before_its_layer_waits_and_then_starts(namespace: str) -> None:
    """It says what it waits for, by name."""
    apply(MAP, pod("early", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=namespace)

    def complaint() -> bool:
        return any('configmap "chat-channels" not found' in one["message"] for one in events(namespace, "early"))

    until(complaint, "an event that names the missing layer")
    until(
        lambda: "CreateContainerConfigError" in kubectl("get", "pod", "early", "-n", namespace),
        "a status that says that something is missing",
    )
    apply(layer("chat"), namespace=namespace)
    assert "ok default" in ended("early", namespace=namespace)


WRONG: list[tuple[str, dict[str, str], dict[str, str], str]] = [
    ("no name", {LAYER_LABEL: "Chat"}, {}, "is not a valid layer name"),
    ("no alias", LABELS, {"channels-zmq.io/alias": "a-b"}, "is not a valid alias"),
    ("no pair", LABELS, {"channels-zmq.io/layers": "jobs"}, "is not ALIAS=LAYER"),
    ("no such container", LABELS, {"channels-zmq.io/containers": "web"}, "the pod has no container web"),
]


@pytest.mark.parametrize(("labels", "annotations", "reason"), [each[1:] for each in WRONG], ids=[w[0] for w in WRONG])
def test_a_wish_that_cannot_be_understood_is_refused(
    namespace: str, labels: dict[str, str], annotations: dict[str, Any], reason: str
) -> None:
    """With the reason, to the client that creates the pod."""
    done = attempt(
        "apply", "-n", namespace, "-f", "-", given=pod("asks", container(), labels=labels, annotations=annotations)
    )
    assert done.returncode
    assert reason in done.stderr


def test_in_the_strictest_namespace_everything_runs(namespace: str) -> None:
    """Forwarder and injected pods meet the restricted Pod Security Standard."""
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    apply(MAP, layer("chat"), pod("asks", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=namespace)
    wait_ready(namespace=namespace)
    assert "ok default" in ended("asks", namespace=namespace)


def refusal(forwarder: str, namespace: str) -> str:
    """Return the log of a forwarder that has refused a key; an empty text if it has not."""
    log = logs(forwarder, namespace=namespace)
    return log if "was refused: its key is not allowed" in log else ""


def test_a_wrong_key_gets_nothing(chat: str) -> None:
    """A pod that knows the addresses, and the server's key, but has a key of its own."""
    own = program(
        "ask",
        env=[{"name": f"{ENV}CURVE_SECRET_KEY_FILE", "value": ""}, {"name": f"{ENV}CONNECT_TIMEOUT", "value": "3"}],
    )
    apply(pod("stranger", own, labels=LABELS, volumes=[VOLUME]), namespace=chat)
    until(lambda: get("pod", "stranger", namespace=chat)["status"].get("phase") == "Failed", "the stranger's end")
    said = logs("stranger", namespace=chat)
    assert "ok" not in said.split("\n")
    assert "ForwarderUnavailable" in said
    for forwarder in get("pods", namespace=chat, selector="channels-zmq.io/owned-by=chat"):
        log = until(partial(refusal, forwarder["metadata"]["name"], chat), "the forwarder has refused its key")
        for secret in ("chat-client", "chat-forwarder"):
            for value in filter(None, get("secret", secret, namespace=chat)["data"].values()):
                assert value not in log


@pytest.mark.skipif(
    not os.environ.get("E2E_NETWORK_POLICIES"), reason="E2E_NETWORK_POLICIES says not that they are enforced"
)
@pytest.mark.parametrize(
    ("labels", "elsewhere", "port", "expected"),
    [
        (LABELS, False, 5555, "reached"),
        (LABELS, False, 5556, "reached"),
        ({}, False, 5555, "not reached"),
        (LABELS, True, 5555, "not reached"),
        (LABELS, True, 5556, "not reached"),
        ({}, True, 9600, "reached"),
    ],
)
def test_only_pods_of_the_layer_reach_its_forwarders(
    chat: str, other: str, labels: dict[str, str], elsewhere: bool, port: int, expected: str
) -> None:
    """Neither a pod without the label nor one of another namespace does; metrics are for all by default."""
    forwarder = get("pods", namespace=chat, selector="channels-zmq.io/owned-by=chat")[0]["status"]["podIP"]
    home = other if elsewhere else chat
    reaches = program("reach", forwarder, str(port), "8")
    no_layer = {"channels-zmq.io/containers": ""}  # the label alone decides
    apply(MAP, pod("reaches", reaches, labels=labels, annotations=no_layer, volumes=[VOLUME]), namespace=home)
    assert ended("reaches", namespace=home).strip() == expected


@pytest.fixture
def other() -> Iterator[str]:
    """Another namespace."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    until(lambda: get("serviceaccount", "default", namespace=name), "the namespace has its account")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
