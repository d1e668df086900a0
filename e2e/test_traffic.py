"""Messages under way while something happens: what arrives, what is lost and counted, and that nothing comes twice."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from kube import (
    apply,
    attempt,
    conditions,
    ended,
    events,
    get,
    kubectl,
    last_line,
    layer,
    logs,
    pod,
    program,
    rolled_out,
    until,
    wait,
    wait_ready,
)
from recorder import QUEUE_AGE, Alerts
from releases import NAMESPACE, OPERATOR, OPERATORS, ROOT, Release
from streams import (
    LABELS,
    MAP,
    OWNED,
    PAUSE,
    VOLUME,
    Traffic,
    complete,
    forwarders,
    is_ready,
    kill_one,
    nodes,
    reachable,
    replaced,
)

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture
def chat(namespace: str) -> str:
    """A namespace with the layer `chat`."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    return namespace


def test_without_an_incident_nothing_is_lost(chat: str) -> None:
    """The measure of all below."""
    traffic = Traffic(chat)
    traffic.begin()
    time.sleep(5)  # it is what this is about
    assert traffic.end().nothing_lost


def roll_out(namespace: str) -> None:
    """Replace all forwarders one after the other."""
    before = forwarders(namespace)
    kubectl("rollout", "restart", "deploy/chat-forwarder", "-n", namespace)
    until(lambda: not set(before) & set(forwarders(namespace)), "all forwarders are new")
    complete(namespace)


def drain(namespace: str) -> None:
    """Evict the forwarders of each node in turn, as before its upgrade."""
    for node in nodes():
        try:
            wait("drain", node, "--ignore-daemonsets", f"--pod-selector={OWNED}", patience=180)
        finally:
            kubectl("uncordon", node)
    complete(namespace)


def scale(namespace: str) -> None:
    """Have four forwarders, and then one."""
    for number in (4, 1):
        kubectl("scale", "zcl/chat", "-n", namespace, f"--replicas={number}")
        complete(namespace)


@pytest.mark.parametrize("incident", [roll_out, drain, scale], ids=lambda each: each.__name__)
def test_what_is_planned_loses_nothing(chat: str, incident: Callable[[str], None]) -> None:
    """Neither messages nor jobs, none comes twice, and their order is kept."""
    traffic = Traffic(chat)
    traffic.begin()
    incident(chat)
    assert traffic.end().nothing_lost


def test_a_forwarder_that_is_killed_loses_no_message(chat: str) -> None:
    """Jobs that waited in it are gone, and those that were being sent fail; the other forwarder carries on."""
    traffic = Traffic(chat)
    traffic.begin()
    replaced(kill_one(chat), chat)
    found = traffic.end()
    assert found.lost == [0, 0]
    assert found.silence < PAUSE


def test_the_only_forwarder_is_killed(chat: str) -> None:
    """Applications hold what they send, if they may hold enough, until there is another: an outage that is printed."""
    apply(layer("chat", forwarders=1, clients={"outboxCapacity": 100_000}), namespace=chat)
    complete(chat)
    traffic = Traffic(chat)
    traffic.begin()
    replaced(kill_one(chat), chat)
    assert traffic.end().lost == [0, 0]


def test_an_image_that_is_not_there_stops_a_rollout_and_nothing_else(
    release: Release, namespace: str, alerts: Alerts
) -> None:
    """The status says so at once, with the pod and its reason; mending the spec mends the layer. Nothing is lost."""
    release.ensure({"layers": {"imageOverrides": True}})
    apply(layer("chat"), namespace=namespace)
    complete(namespace)
    traffic = Traffic(namespace)
    traffic.begin()
    alerts.hold()
    apply(layer("chat", image={"tag": "no-such-tag", "pullPolicy": "Never"}), namespace=namespace)
    degraded = until(
        lambda: (found := conditions("chat", namespace=namespace)["Degraded"])["status"] == "True" and found,
        "the layer is degraded",
    )
    assert degraded["reason"] == "ForwarderFailing"
    assert "pod chat-forwarder-" in degraded["message"]
    assert "ErrImageNeverPull" in degraded["message"]
    found = conditions("chat", namespace=namespace)
    assert (found["Ready"]["status"], found["Progressing"]["reason"]) == ("True", "RollingOut")
    assert "ForwarderFailing" in {one["reason"] for one in events(namespace, "chat")}
    alerts.hold("LayerDegraded")
    apply(layer("chat"), namespace=namespace)
    complete(namespace)
    until(lambda: conditions("chat", namespace=namespace)["Degraded"]["status"] == "False", "it is mended")
    alerts.hold()
    assert traffic.end().nothing_lost
    alerts.evaluate()


def test_a_forwarder_that_ends_again_and_again_is_told_and_holds_no_drain(
    release: Release, namespace: str, alerts: Alerts
) -> None:
    """With how it ended; a budget counts only those that are ready."""
    release.ensure({"layers": {"imageOverrides": True}})
    alerts.hold()
    apply(layer("chat", image={"repository": "channels-zmq-chat"}), namespace=namespace)
    degraded = until(
        lambda: (
            found
            if (found := conditions("chat", namespace=namespace).get("Degraded", {})).get("status") == "True"
            else None
        ),
        "the layer is degraded",
    )
    assert "a container ended with" in degraded["message"]
    assert conditions("chat", namespace=namespace)["Ready"]["status"] == "False"
    until(lambda: reachable(namespace), "its address is known")
    alerts.hold("ForwarderDown", "LayerDegraded", "LayerNotReady")
    for name in forwarders(namespace):
        assert "Success" in evict(name, namespace)
    apply(layer("chat"), namespace=namespace)
    complete(namespace)
    alerts.hold()
    alerts.evaluate()


def test_a_queue_without_readers_is_told(chat: str, alerts: Alerts) -> None:
    """As soon as it is full and its messages are old; no more when they are read."""
    alerts.hold()
    apply(MAP, pod("overfills", program("overfill", str(QUEUE_AGE)), labels=LABELS, volumes=[VOLUME]), namespace=chat)
    until(lambda: "full" in logs("overfills", namespace=chat), "the queue is full")
    alerts.hold("ForwarderDrops", "QueueAge")
    kubectl("exec", "overfills", "-n", chat, "--", "sh", "-c", "kill 1")
    ended("overfills", namespace=chat)
    alerts.hold()
    alerts.evaluate()


def test_an_autoscaler_changes_the_number_of_forwarders(chat: str) -> None:
    """That of docs/kubernetes.md, by the CPU that messages cost; more and fewer under load, and nothing is lost."""
    if attempt("get", "--raw", "/apis/metrics.k8s.io/v1beta1").returncode:
        pytest.skip("the cluster has no metrics-server")
    text = (ROOT / "examples" / "kubernetes" / "autoscaling.yaml").read_text(encoding="utf-8")
    kubectl("apply", "-n", chat, "-f", "-", given=text)
    apply(layer("chat", resources={"requests": {"cpu": "20m", "memory": "64Mi"}}), namespace=chat)
    fast = '{"spec": {"maxReplicas": 3, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}}'
    kubectl("patch", "hpa", "chat-forwarder", "-n", chat, "--type=merge", "-p", fast)
    complete(chat)
    traffic = Traffic(chat)
    traffic.begin()

    def replicas() -> int:
        return int(get("zcl", "chat", namespace=chat)["spec"]["forwarders"])

    until(lambda: replicas() == 3, "there are more", patience=240)
    complete(chat)
    idle = '[{"op": "replace", "path": "/spec/metrics/0/resource/target/averageUtilization", "value": 100000}]'
    kubectl("patch", "hpa", "chat-forwarder", "-n", chat, "--type=json", "-p", idle)
    until(lambda: replicas() == 2, "there are fewer", patience=240)
    complete(chat)
    assert traffic.end().nothing_lost


@contextmanager
def without_operator() -> Iterator[None]:
    """Have no operator for a while."""
    kubectl("scale", f"deploy/{OPERATOR}", "-n", NAMESPACE, "--replicas=0")
    try:
        until(lambda: not get("pods", namespace=NAMESPACE, selector=OPERATORS), "no operator")
        yield
    finally:
        kubectl("scale", f"deploy/{OPERATOR}", "-n", NAMESPACE, "--replicas=1")


def only_ready_ones(namespace: str) -> bool:
    """Return whether the layer `chat` has two forwarders, both ready, and its name resolves to no others."""
    found = get("pods", namespace=namespace, selector=OWNED)
    there = {one["status"].get("podIP") for one in found if is_ready(one)}
    return len(found) == len(there) == 2 and reachable(namespace) == there


def test_data_goes_on_without_an_operator_which_catches_up(chat: str, alerts: Alerts) -> None:
    """Messages do not pass through it; Kubernetes itself replaces a forwarder that fails meanwhile."""
    alerts.hold()
    with without_operator():
        traffic = Traffic(chat)
        traffic.begin()
        kubectl("delete", "pod", forwarders(chat)[0], "-n", chat, "--wait=false")
        kubectl("delete", "networkpolicy", "chat-forwarder", "-n", chat)
        apply(layer("late"), namespace=chat)
        rolled_out("chat-forwarder", namespace=chat)
        assert traffic.end().nothing_lost
        assert get("deployment", "late-forwarder", namespace=chat) is None
        until(lambda: only_ready_ones(chat), "nothing is left of the other forwarder")
        alerts.hold("OperatorDown")
    wait_ready("late", namespace=chat)
    until(lambda: get("networkpolicy", "chat-forwarder", namespace=chat), "the policy is back")
    alerts.hold()
    alerts.evaluate()


@pytest.mark.long
def test_keys_rotated_twice_under_load_lose_nothing(chat: str) -> None:
    """Who connected with the first key stays, and who comes is let in, before, between and after."""
    traffic = Traffic(chat)
    traffic.begin()
    long_ago = '{"metadata": {"annotations": {"channels-zmq.io/rotated-at": "2020-01-01T00:00:00Z"}}}'

    def current() -> str:
        return str(get("secret", "chat-client", namespace=chat)["data"]["CHANNELS_ZMQ_CURVE_SECRET_KEY"])

    def has_changed(before: str) -> bool:
        return current() != before

    for turn in ("first", "second"):
        before = current()
        with without_operator():  # which would put the time back
            kubectl("patch", "secret", "chat-client", "-n", chat, "--type=merge", "-p", long_ago)
        until(lambda: "next-client-key" in get("secret", "chat-forwarder", namespace=chat)["data"], "the first step")
        apply(pod(f"between-{turn}", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=chat)
        assert "ok default" in ended(f"between-{turn}", namespace=chat)
        assert current() == before
        until(partial(has_changed, before), "the second step", patience=220)
        apply(pod(f"after-{turn}", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=chat)
        assert "ok default" in ended(f"after-{turn}", namespace=chat)
    assert {"KeysRotated"} <= {one["reason"] for one in events(chat, "chat")}
    found = traffic.end()
    assert found.nothing_lost
    assert found.reconnects == [0, 0]


def steal(namespace: str) -> None:
    """Start a pod with a copy of the layer's keys as they are now; it uses the layer again and again."""
    data = get("secret", "chat-client", namespace=namespace)["data"]
    files = {"server": data["server-key"], "secret": data["CHANNELS_ZMQ_CURVE_SECRET_KEY"]}
    copied = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "stolen"}, "data": files}
    env = [{"name": f"CHANNELS_ZMQ_CURVE_{key.upper()}_KEY_FILE", "value": f"/stolen/{key}"} for key in files]
    asks = program("ask", env=[*env, {"name": "CHANNELS_ZMQ_CONNECT_TIMEOUT", "value": "3"}])
    asks["command"] = ["sh", "-c", "while true; do python /programs/ask.py 2>&1 | tail -n 1; done"]
    asks["volumeMounts"].append({"name": "stolen", "mountPath": "/stolen", "readOnly": True})
    volumes = [VOLUME, {"name": "stolen", "secret": {"secretName": "stolen"}}]
    apply(MAP, copied, pod("thief", asks, labels=LABELS, volumes=volumes), namespace=namespace)
    until(lambda: "ok default" in logs("thief", namespace=namespace), "the stolen key opens the layer")


def is_refused(namespace: str) -> bool:
    """Return whether the stolen key was of no use the last time."""
    return "ForwarderUnavailable" in last_line("thief", namespace=namespace)


@pytest.mark.long
def test_a_leaked_key_is_withdrawn_and_nobody_else_notices(chat: str) -> None:
    """The runbook of docs/kubernetes.md under load: the status says when, and the forwarder's list follows."""
    steal(chat)
    traffic = Traffic(chat)
    traffic.begin()
    apply(layer("chat", security={"rotateNow": "leak-1"}), namespace=chat)
    done = "jsonpath={.status.keysRotatedFor}=leak-1"
    wait("wait", "zcl/chat", "-n", chat, f"--for={done}", patience=420)
    until(lambda: is_refused(chat), "the stolen key is refused", patience=100)
    apply(pod("after", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=chat)
    assert "ok default" in ended("after", namespace=chat)
    found = traffic.end()
    assert found.nothing_lost
    assert found.reconnects == [0, 0]


def renew(namespace: str) -> None:
    """Renew the server's key, as after a leak."""
    apply(layer("chat", security={"rotateNow": "leak-1", "rotateServerKey": True}), namespace=namespace)


def make_anew(namespace: str) -> None:
    """Delete the layer, and apply it again."""
    kubectl("delete", "zcl", "chat", "-n", namespace)
    until(lambda: get("deployment", "chat-forwarder", namespace=namespace) is None, "nothing is left of it")
    apply(layer("chat"), namespace=namespace)


@pytest.mark.parametrize("change", [renew, make_anew], ids=lambda each: each.__name__)
def test_pods_that_run_take_up_new_keys_of_the_server(chat: str, change: Callable[[str], None]) -> None:
    """The forwarders are replaced with a new key, a stolen one is refused, and a pod that runs takes up its files."""
    steal(chat)
    old = get("secret", "chat-client", namespace=chat)["data"]["server-key"]
    asks = program("ask")
    asks["command"] = ["sh", "-c", "while true; do python /programs/ask.py 2>&1 | tail -n 1; done"]
    apply(pod("asks", asks, labels=LABELS, volumes=[VOLUME]), namespace=chat)
    until(lambda: "ok default" in logs("asks", namespace=chat), "the pod uses the layer")
    before = forwarders(chat)
    change(chat)
    until(lambda: (now := forwarders(chat)) and not set(before) & set(now), "the former forwarders are gone")
    wait_ready(namespace=chat)
    assert get("secret", "chat-client", namespace=chat)["data"]["server-key"] != old
    until(lambda: is_refused(chat), "the stolen key is refused")
    until(lambda: last_line("asks", namespace=chat) == "ok default", "the pod has its new keys")
    assert is_refused(chat)


def evict(name: str, namespace: str) -> str:
    """Ask for an eviction, as a drain of a node does; return the answer."""
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    done = attempt("create", "--raw", path, "-f", "-", given=body)
    return done.stdout + done.stderr


def test_one_forwarder_is_evicted_at_a_time(chat: str) -> None:
    """The next one when another is there instead; no budget for a single one, which would hold a drain for ever."""
    first, second = forwarders(chat)

    def allowed() -> int:
        return int(get("pdb", "chat-forwarder", namespace=chat)["status"]["disruptionsAllowed"])

    until(lambda: allowed() == 1, "one may go")
    assert "Success" in evict(first, chat)
    assert "disruption budget" in evict(second, chat)
    until(lambda: "Success" in evict(second, chat), "the next may go")
    complete(chat)
    apply(layer("chat", forwarders=1), namespace=chat)
    until(lambda: get("pdb", "chat-forwarder", namespace=chat) is None, "no budget")
    complete(chat)
    (only,) = forwarders(chat)
    assert "Success" in evict(only, chat)
