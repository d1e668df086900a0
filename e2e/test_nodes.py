"""A node that loses its power, or its network. Needs three nodes, and a command that makes one fail.

`E2E_NODE` names it: `COMMAND stop NODE --power-off`, `COMMAND stop NODE --cut-network`, `COMMAND start NODE`.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import pytest
from kube import apply, get, kubectl, layer, until, wait_ready
from recorder import Alerts
from releases import NAMESPACE, OPERATOR, Release
from streams import OWNED, PAUSE, Traffic, complete, homes, nodes

COMMAND = os.environ.get("E2E_NODE")
pytestmark = pytest.mark.skipif(not COMMAND, reason="E2E_NODE names no command that makes a node fail")
BACK_WITHIN = 90.0
"""Seconds from the failure of a node until a layer has all its forwarders again."""
LEASE = "channels-zmq-operator"


class Nodes:
    """The nodes; those that were stopped are started again at the end."""

    def __init__(self) -> None:
        self.stopped: set[str] = set()

    def stop(self, node: str, how: str) -> None:
        """Let a node fail."""
        self.stopped.add(node)
        self._run("stop", node, f"--{how}")

    def start(self) -> None:
        """Have all nodes back."""
        for node in sorted(self.stopped):
            self._run("start", node)
        self.stopped.clear()

    def _run(self, *arguments: str) -> None:
        assert COMMAND is not None
        subprocess.run([COMMAND, *arguments], check=True, timeout=180)


@pytest.fixture
def machines() -> Iterator[Nodes]:
    """The nodes of the cluster, of which there are three."""
    if len(nodes()) < 3:
        pytest.skip("the cluster has fewer than three nodes")
    found = Nodes()
    yield found
    found.start()


def ready(namespace: str) -> str:
    """Return how many forwarders of how many are ready, as kubectl shows it."""
    return str(get("zcl", "chat", namespace=namespace)["status"]["ready"])


@pytest.mark.parametrize("how", ["power-off", "cut-network"])
@pytest.mark.parametrize("number", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_node_fails(machines: Nodes, release: Release, namespace: str, alerts: Alerts, how: str, number: int) -> None:
    """With two forwarders nothing is lost, and there is no outage that is worth the name; with one it is printed.

    The operator runs elsewhere: one alone would say nothing until it is replaced, too.
    """
    if (how, number) == ("cut-network", 1):
        pytest.skip("as with the power off")
    release.ensure({"operator": {"nodeSelector": {"kubernetes.io/hostname": nodes()[0]}}})
    first = {"key": "metadata.name", "operator": "NotIn", "values": nodes()[:1]}  # which cannot be stopped
    terms = {"nodeSelectorTerms": [{"matchFields": [first]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    template = {"spec": {"affinity": affinity} if number == 1 else {}}
    apply(layer("chat", forwarders=number, podTemplate=template), namespace=namespace)
    complete(namespace)
    there = set(homes(OWNED, namespace).values())
    assert len(there) == number, "they are spread over the nodes"
    victim = max(there)
    traffic = Traffic(namespace)
    traffic.begin()
    alerts.hold()
    began = time.monotonic()
    machines.stop(victim, how)
    until(lambda: ready(namespace) == f"{number - 1}/{number}", "the layer says that one is missing", patience=100)
    noticed = time.monotonic() - began
    alerts.hold("ForwarderDown", "LayerNotReady")
    until(lambda: ready(namespace) == f"{number}/{number}", "the layer has all forwarders again", patience=100)
    took = time.monotonic() - began
    alerts.hold()  # though the pod on the node that is off is still there
    machines.start()
    complete(namespace)
    alerts.hold()
    found = traffic.end()
    print(f"{how}, {number} forwarders: said so after {noticed:.0f} s, ready again after {took:.0f} s")
    assert took < BACK_WITHIN + 10 * (number == 1)
    if number > 1:
        assert found.lost == [0, 0]
        assert found.silence < PAUSE
    alerts.evaluate()


def test_the_operator_that_leads_loses_its_node(
    machines: Nodes, release: Release, namespace: str, alerts: Alerts
) -> None:
    """The other replica works on."""
    release.ensure({"operator": {"replicas": 2}})

    def leader() -> str:
        lease = get("lease", LEASE, namespace=NAMESPACE)
        holder = str((lease["spec"].get("holderIdentity") or "") if lease else "")
        return holder.partition("_")[0]  # the pod; what follows tells one process from the next

    def another_leads(than: str) -> bool:
        return leader() not in ("", than)

    def where() -> str:
        return homes("app.kubernetes.io/component=operator", NAMESPACE).get(leader(), "")

    first = nodes()[0]
    for _ in range(5):  # one that runs beside the control plane cannot be stopped
        if until(where, "one leads") != first:
            break
        before = leader()
        kubectl("delete", "pod", before, "-n", NAMESPACE)
        until(partial(another_leads, before), "another one leads")
    victim, before = where(), leader()
    assert victim != first
    kubectl("rollout", "status", f"deployment/{OPERATOR}", "-n", NAMESPACE, "--timeout=120s")
    alerts.hold()
    machines.stop(victim, "power-off")
    began = time.monotonic()
    apply(layer("chat"), namespace=namespace)
    until(lambda: leader() not in ("", before), "another one leads")
    wait_ready(namespace=namespace)
    print(f"a layer that was made while the leader's node was off: ready after {time.monotonic() - began:.0f} s")
    alerts.hold()
    alerts.evaluate()
