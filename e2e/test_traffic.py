"""Messages under way while something happens: what arrives, what is lost and counted, and that nothing comes twice."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kube import (
    LAYER_LABEL,
    apply,
    attempt,
    ended,
    get,
    kubectl,
    layer,
    logs,
    pod,
    program,
    programs,
    until,
    wait_ready,
)
from releases import NAMESPACE, OPERATOR

pytestmark = pytest.mark.usefixtures("installed")

LABELS = {LAYER_LABEL: "chat"}
MAP, VOLUME = programs()
RATE = 500
BOUND = 3 * RATE
"""Messages that a receiver may lose to a forwarder that was replaced; a run without bad luck loses 0 to 20."""
OWNED = "channels-zmq.io/owned-by=chat"
OPERATORS = "app.kubernetes.io/component=operator"


class Traffic:
    """Two senders' steady messages to two receivers, in pods of their own."""

    def __init__(self, namespace: str, seconds: int) -> None:
        self._namespace = namespace
        self._seconds = seconds

    def begin(self) -> None:
        """Return once messages are under way."""
        apply(MAP, *(self._pod(f"receiver-{n}", program("receive", "all")) for n in (1, 2)), namespace=self._namespace)
        for number in (1, 2):
            self._has_said(f"receiver-{number}", "joined")
        sends = program("send", "all", str(self._seconds), str(RATE))
        apply(self._pod("sender", sends), namespace=self._namespace)
        self._has_said("sender", "sending")

    def under_way(self) -> bool:
        """Return whether the sender still sends."""
        return get("pod", "sender", namespace=self._namespace)["status"]["phase"] == "Running"

    def end(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Wait for the end; return what the sender and what the receivers say."""
        patience = self._seconds + 120.0
        said = [
            json.loads(ended(name, namespace=self._namespace, patience=patience).splitlines()[-1])
            for name in ("sender", "receiver-1", "receiver-2")
        ]
        return said[0], said[1:]

    def _pod(self, name: str, container: Any) -> Any:
        return pod(name, container, labels=LABELS, volumes=[VOLUME])

    def _has_said(self, name: str, word: str) -> None:
        until(lambda: word in logs(name, namespace=self._namespace).splitlines(), f"{name} says {word}")


@pytest.fixture
def chat(namespace: str) -> str:
    """A namespace with the layer `chat`."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    return namespace


def lost(sent: dict[str, Any], receivers: list[dict[str, Any]]) -> list[int]:
    """Return how many messages each receiver lacks; nobody may have one twice, or in another order."""
    for one in receivers:
        assert (one["repeated"], one["disordered"]) == (0, 0)
    return [sent["sent"] - sum(one["received"].values()) for one in receivers]


def test_without_an_incident_nothing_is_lost(chat: str) -> None:
    """The measure of all below."""
    traffic = Traffic(chat, 5)
    traffic.begin()
    sent, receivers = traffic.end()
    assert sent["sent"] > RATE
    assert lost(sent, receivers) == [0, 0]


@pytest.mark.parametrize("how", ["rollout", "kill"])
def test_a_forwarder_replaced_under_load_loses_little_which_is_counted_and_repeats_nothing(chat: str, how: str) -> None:
    """What the old one held when it went is lost, and receivers count it; what is sent meanwhile arrives later."""
    traffic = Traffic(chat, 15)
    traffic.begin()
    (old,) = get("pods", namespace=chat, selector=OWNED)
    name = old["metadata"]["name"]
    if how == "rollout":
        kubectl("rollout", "restart", "deploy/chat-forwarder", "-n", chat)
    else:
        kubectl("delete", "pod", name, "-n", chat, "--grace-period=0", "--force")
    until(lambda: get("pod", name, namespace=chat) is None, "the old forwarder is gone")
    wait_ready(namespace=chat)
    assert traffic.under_way()
    sent, receivers = traffic.end()
    print(f"{how}: {sent}, lost: {lost(sent, receivers)}, counted: {[one['dropped'] for one in receivers]}")
    for missing, one in zip(lost(sent, receivers), receivers, strict=True):
        assert missing == one["dropped"].get("missed", 0) + sum(
            sent["dropped"].get(cause, 0) for cause in ("outbox_full", "outbox_expired")
        )
        assert missing < BOUND
        assert one["reconnects"] == 1


@contextmanager
def without_operator() -> Iterator[None]:
    """Have no operator for a while."""
    kubectl("scale", f"deploy/{OPERATOR}", "-n", NAMESPACE, "--replicas=0")
    try:
        until(lambda: not get("pods", namespace=NAMESPACE, selector=OPERATORS), "no operator")
        yield
    finally:
        kubectl("scale", f"deploy/{OPERATOR}", "-n", NAMESPACE, "--replicas=1")


def test_data_goes_on_without_an_operator_which_catches_up(chat: str) -> None:
    """It is no part of a message's way; a forwarder that dies meanwhile is replaced by Kubernetes itself."""
    with without_operator():
        traffic = Traffic(chat, 12)
        traffic.begin()
        (old,) = get("pods", namespace=chat, selector=OWNED)
        kubectl("delete", "pod", old["metadata"]["name"], "-n", chat, "--wait=false")
        kubectl("delete", "networkpolicy", "chat-forwarder", "-n", chat)
        apply(layer("late"), namespace=chat)
        sent, receivers = traffic.end()
        assert all(missing < BOUND for missing in lost(sent, receivers))
        assert get("deployment", "late-forwarder", namespace=chat) is None
    wait_ready("late", namespace=chat)
    until(lambda: get("networkpolicy", "chat-forwarder", namespace=chat), "the policy is back")


def test_keys_rotated_under_load_lose_nothing(chat: str) -> None:
    """Who connected with the old key stays, and who comes is let in, before, between and after."""
    secret = get("secret", "chat-client", namespace=chat)
    before = secret["data"]["CHANNELS_ZMQ_CURVE_SECRET_KEY"]
    traffic = Traffic(chat, 240)
    traffic.begin()
    long_ago = '{"metadata": {"annotations": {"channels-zmq.io/rotated-at": "2020-01-01T00:00:00Z"}}}'
    with without_operator():  # which would put the time back
        kubectl("patch", "secret", "chat-client", "-n", chat, "--type=merge", "-p", long_ago)

    def current() -> str:
        return str(get("secret", "chat-client", namespace=chat)["data"]["CHANNELS_ZMQ_CURVE_SECRET_KEY"])

    until(lambda: "next-client-key" in get("secret", "chat-forwarder", namespace=chat)["data"], "the first step")
    apply(pod("between", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=chat)
    assert "ok default" in ended("between", namespace=chat)
    assert current() == before
    until(lambda: current() != before, "the second step", patience=220)
    apply(pod("after", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=chat)
    assert "ok default" in ended("after", namespace=chat)
    assert traffic.under_way()
    sent, receivers = traffic.end()
    assert lost(sent, receivers) == [0, 0]
    assert [one["reconnects"] for one in receivers] == [0, 0]


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
    return "ForwarderUnavailable" in logs("thief", namespace=namespace).splitlines()[-1]


def test_a_leaked_key_is_withdrawn_and_nobody_else_notices(chat: str) -> None:
    """The runbook of docs/kubernetes.md under load: the status says when, and the forwarder's list follows."""
    steal(chat)
    traffic = Traffic(chat, 500)
    traffic.begin()
    apply(layer("chat", security={"rotateNow": "leak-1"}), namespace=chat)
    done = "jsonpath={.status.keysRotatedFor}=leak-1"
    kubectl("wait", "zcl/chat", "-n", chat, f"--for={done}", "--timeout=420s", patience=440)
    until(lambda: is_refused(chat), "the stolen key is refused", patience=100)
    apply(pod("after", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=chat)
    assert "ok default" in ended("after", namespace=chat)
    assert traffic.under_way()
    sent, receivers = traffic.end()
    assert lost(sent, receivers) == [0, 0]
    assert [one["reconnects"] for one in receivers] == [0, 0]


def test_the_servers_key_is_renewed_and_everybody_comes_back(chat: str) -> None:
    """The forwarder is replaced with a new key, the stolen one is refused, and a pod that runs takes up its files."""
    steal(chat)
    old = get("secret", "chat-client", namespace=chat)["data"]["server-key"]
    asks = program("ask")
    asks["command"] = ["sh", "-c", "while true; do python /programs/ask.py 2>&1 | tail -n 1; done"]
    apply(pod("asks", asks, labels=LABELS, volumes=[VOLUME]), namespace=chat)
    until(lambda: "ok default" in logs("asks", namespace=chat), "the pod uses the layer")
    (before,) = get("pods", namespace=chat, selector=OWNED)
    apply(layer("chat", security={"rotateNow": "leak-1", "rotateServerKey": True}), namespace=chat)
    name = before["metadata"]["name"]
    until(lambda: get("pod", name, namespace=chat) is None, "the former forwarder is gone")
    wait_ready(namespace=chat)
    assert get("secret", "chat-client", namespace=chat)["data"]["server-key"] != old
    until(lambda: is_refused(chat), "the stolen key is refused")
    until(
        lambda: logs("asks", namespace=chat).splitlines()[-1] == "ok default", "the pod has its new keys", patience=120
    )
    assert is_refused(chat)


def test_a_node_can_be_drained_but_not_while_a_forwarder_is_away(chat: str) -> None:
    """The budget lets the forwarder be evicted, and holds the drain until the next one is ready."""
    (old,) = get("pods", namespace=chat, selector=OWNED)
    name = old["metadata"]["name"]
    traffic = Traffic(chat, 12)
    traffic.begin()

    def evict(pod_name: str) -> str:
        path = f"/api/v1/namespaces/{chat}/pods/{pod_name}/eviction"
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod_name, "namespace": chat}}
        done = attempt("create", "--raw", path, "-f", "-", given=body)
        return done.stdout + done.stderr

    assert "Success" in evict(name)
    until(lambda: get("pdb", "chat-forwarder", namespace=chat)["status"]["disruptionsAllowed"] == 0, "a drain is held")
    until(lambda: get("pdb", "chat-forwarder", namespace=chat)["status"]["disruptionsAllowed"] == 1, "the next may go")
    wait_ready(namespace=chat)
    sent, receivers = traffic.end()
    assert all(missing < BOUND for missing in lost(sent, receivers))
