"""Messages under way while something happens: what arrives, what is lost and counted, and that nothing comes twice."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kube import (
    FORWARDER,
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
    rolled_out,
    until,
    wait_ready,
)
from releases import NAMESPACE, OPERATOR

pytestmark = pytest.mark.usefixtures("installed")

LABELS = {LAYER_LABEL: "chat"}
MAP, VOLUME = programs()
RATE = 2000
"""Messages a second to the group; a hundredth of it are jobs besides."""
PAUSE = 3.5
"""Seconds without a message that a forwarder which is killed or cut off may cost."""
OWNED = f"{FORWARDER},channels-zmq.io/owned-by=chat"
OPERATORS = "app.kubernetes.io/component=operator"


class Traffic:
    """A sender's steady messages and jobs to two receivers, in pods of their own, all on the first node."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        names = sorted(one["metadata"]["labels"]["kubernetes.io/hostname"] for one in get("nodes"))
        self._node = {"kubernetes.io/hostname": names[0]}

    def begin(self) -> None:
        """Return once messages are under way."""
        apply(MAP, *(self._pod(f"receiver-{n}", program("receive", "all")) for n in (1, 2)), namespace=self._namespace)
        for number in (1, 2):
            self._has_said(f"receiver-{number}", "joined")
        sends = program("send", "all", str(RATE))
        apply(self._pod("sender", sends), namespace=self._namespace)
        self._has_said("sender", "sending")

    def end(self) -> "Outcome":
        """End the sending, and return what came of it."""
        kubectl("exec", "sender", "-n", self._namespace, "--", "sh", "-c", "kill 1")
        said = [
            json.loads(ended(name, namespace=self._namespace).splitlines()[-1])
            for name in ("sender", "receiver-1", "receiver-2")
        ]
        return Outcome(said[0], said[1:])

    def _pod(self, name: str, container: Any) -> Any:
        return pod(name, container, labels=LABELS, volumes=[VOLUME], nodeSelector=self._node)

    def _has_said(self, name: str, word: str) -> None:
        until(lambda: word in logs(name, namespace=self._namespace).splitlines(), f"{name} says {word}")


class Outcome:
    """What a sender and its receivers say at the end; no message may have come twice, or in another order.

    Attributes:
        lost: How many messages each receiver lacks.
        lost_jobs: How many jobs that were taken nobody got.
        unknown: How many jobs failed when they were sent, so that nobody knows.
        silence: Seconds for which a receiver had no message at most.
        reconnects: Of each receiver.
    """

    def __init__(self, sent: dict[str, Any], receivers: list[dict[str, Any]]) -> None:
        assert sent["sent"] > RATE
        for one in receivers:
            assert (one["repeated"], one["disordered"]) == (0, 0), one
        jobs = [number for one in receivers for number in one["jobs"]]
        assert len(jobs) == len(set(jobs))
        assert set(jobs) <= {*sent["jobs"], *sent["unknown"]}
        self.lost = [sent["sent"] - sum(one["received"].values()) for one in receivers]
        self.lost_jobs = len(set(sent["jobs"]) - set(jobs))
        self.unknown = len(sent["unknown"])
        self.silence = max(one["silence"] for one in receivers)
        self.reconnects = [one["reconnects"] for one in receivers]
        print(
            f"{sent['sent']} messages, lost {self.lost}; {len(sent['jobs'])} jobs, lost {self.lost_jobs}, "
            f"unknown {self.unknown}; longest silence {self.silence:.2f} s; dropped {sent['dropped']}, "
            f"{[one['dropped'] for one in receivers]}"
        )

    @property
    def nothing_lost(self) -> bool:
        """Whether every message and every job came."""
        return self.lost == [0, 0] and self.lost_jobs == self.unknown == 0


@pytest.fixture
def chat(namespace: str) -> str:
    """A namespace with the layer `chat`."""
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    return namespace


def forwarders(namespace: str) -> list[str]:
    """Return the pods of the layer's forwarders that are not ending."""
    found = get("pods", namespace=namespace, selector=OWNED)
    return [one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"]]


def complete(namespace: str) -> None:
    """Wait until the layer is as its spec says, and nothing changes any more."""

    def settled() -> bool:
        status = get("zcl", "chat", namespace=namespace)["status"]
        found = {one["type"]: one for one in status["conditions"]}
        wanted = get("zcl", "chat", namespace=namespace)
        return bool(
            found["Ready"]["status"] == "True"
            and found["Progressing"]["status"] == "False"
            and status["observedGeneration"] == wanted["metadata"]["generation"]
            and status["replicas"] == wanted["spec"]["forwarders"]
        )

    until(settled, "the layer is complete")


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


def kill_one(namespace: str) -> None:
    """Delete a forwarder without giving it time to drain."""
    name = forwarders(namespace)[0]
    kubectl("delete", "pod", name, "-n", namespace, "--grace-period=0", "--force")
    complete(namespace)


def drain(namespace: str) -> None:
    """Evict the forwarders of each node in turn, as before its upgrade."""
    for node in sorted(one["metadata"]["name"] for one in get("nodes")):
        kubectl("drain", node, "--ignore-daemonsets", f"--pod-selector={OWNED}", "--timeout=100s")
        kubectl("uncordon", node)
    complete(namespace)


def scale(namespace: str) -> None:
    """Have four forwarders, and then one."""
    for number in (4, 1):
        kubectl("scale", "zcl/chat", "-n", namespace, f"--replicas={number}")
        complete(namespace)


def break_and_mend(namespace: str) -> None:
    """Name an image that is not there, in the middle of a rollout, and then the right one again."""
    kubectl("rollout", "restart", "deploy/chat-forwarder", "-n", namespace)
    apply(layer("chat", image={"tag": "no-such-tag", "pullPolicy": "Never"}), namespace=namespace)


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
    kill_one(chat)
    found = traffic.end()
    assert found.lost == [0, 0]
    assert found.silence < PAUSE


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
        traffic = Traffic(chat)
        traffic.begin()
        kubectl("delete", "pod", forwarders(chat)[0], "-n", chat, "--wait=false")
        kubectl("delete", "networkpolicy", "chat-forwarder", "-n", chat)
        apply(layer("late"), namespace=chat)
        rolled_out("chat-forwarder", namespace=chat)
        assert traffic.end().nothing_lost
        assert get("deployment", "late-forwarder", namespace=chat) is None
    wait_ready("late", namespace=chat)
    until(lambda: get("networkpolicy", "chat-forwarder", namespace=chat), "the policy is back")


def test_keys_rotated_under_load_lose_nothing(chat: str) -> None:
    """Who connected with the old key stays, and who comes is let in, before, between and after."""
    secret = get("secret", "chat-client", namespace=chat)
    before = secret["data"]["CHANNELS_ZMQ_CURVE_SECRET_KEY"]
    traffic = Traffic(chat)
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
    return "ForwarderUnavailable" in logs("thief", namespace=namespace).splitlines()[-1]


def test_a_leaked_key_is_withdrawn_and_nobody_else_notices(chat: str) -> None:
    """The runbook of docs/kubernetes.md under load: the status says when, and the forwarder's list follows."""
    steal(chat)
    traffic = Traffic(chat)
    traffic.begin()
    apply(layer("chat", security={"rotateNow": "leak-1"}), namespace=chat)
    done = "jsonpath={.status.keysRotatedFor}=leak-1"
    kubectl("wait", "zcl/chat", "-n", chat, f"--for={done}", "--timeout=420s", patience=440)
    until(lambda: is_refused(chat), "the stolen key is refused", patience=100)
    apply(pod("after", program("ask"), labels=LABELS, volumes=[VOLUME]), namespace=chat)
    assert "ok default" in ended("after", namespace=chat)
    found = traffic.end()
    assert found.nothing_lost
    assert found.reconnects == [0, 0]


def test_the_servers_key_is_renewed_and_everybody_comes_back(chat: str) -> None:
    """The forwarder is replaced with a new key, the stolen one is refused, and a pod that runs takes up its files."""
    steal(chat)
    old = get("secret", "chat-client", namespace=chat)["data"]["server-key"]
    asks = program("ask")
    asks["command"] = ["sh", "-c", "while true; do python /programs/ask.py 2>&1 | tail -n 1; done"]
    apply(pod("asks", asks, labels=LABELS, volumes=[VOLUME]), namespace=chat)
    until(lambda: "ok default" in logs("asks", namespace=chat), "the pod uses the layer")
    before = forwarders(chat)
    apply(layer("chat", security={"rotateNow": "leak-1", "rotateServerKey": True}), namespace=chat)
    until(lambda: not set(before) & set(forwarders(chat)), "the former forwarders are gone")
    wait_ready(namespace=chat)
    assert get("secret", "chat-client", namespace=chat)["data"]["server-key"] != old
    until(lambda: is_refused(chat), "the stolen key is refused")
    until(
        lambda: logs("asks", namespace=chat).splitlines()[-1] == "ok default", "the pod has its new keys", patience=120
    )
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
    assert "Success" in evict(*forwarders(chat), chat)
