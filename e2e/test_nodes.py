"""A node that loses its power, or its network. Needs three nodes, and a command that makes one fail.

`E2E_NODE` names it: `COMMAND stop NODE --power-off`, `COMMAND stop NODE --cut-network`, `COMMAND start NODE`.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import pytest
from kube import Manifest, apply, get, kubectl, layer, rolled_out, until, wait_ready
from recorder import Alerts
from releases import NAMESPACE, OPERATOR, OPERATORS, Release
from streams import OWNED, Traffic, complete, homes, nodes

COMMAND = os.environ.get("E2E_NODE")
pytestmark = pytest.mark.skipif(not COMMAND, reason="E2E_NODE names no command that makes a node fail")
NOTICED_WITHIN = 150.0
"""Seconds from the failure of a node until Kubernetes marks it, which took 47 to 58. The operator has no part in it."""
BACK_WITHIN = 90.0
"""Seconds from then until a layer has all its forwarders again: 25 of a toleration, and a start with its settling."""
PAUSE = 10.0
"""Seconds without a message that the failure of a node may cost: clients give up a silent forwarder after 2.75."""
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
        subprocess.run([COMMAND, *arguments], check=True, timeout=300)


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


def elsewhere(than: str) -> Manifest:
    """Return a layer's `podTemplate` that keeps its forwarders off a node."""
    others = {"key": "metadata.name", "operator": "NotIn", "values": [than]}
    terms = {"nodeSelectorTerms": [{"matchFields": [others]}]}
    return {"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}}


@pytest.mark.parametrize("how", ["power-off", "cut-network"])
@pytest.mark.parametrize("number", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_node_fails(machines: Nodes, release: Release, namespace: str, alerts: Alerts, how: str, number: int) -> None:
    """With two forwarders nothing is lost, and the pause is short; with one forwarder it is printed.

    The operator runs elsewhere: one alone would say nothing until it is replaced, too.
    """
    if (how, number) == ("cut-network", 1):
        pytest.skip("as with the power off")
    first = nodes()[0]  # which cannot be stopped
    release.ensure({"operator": {"nodeSelector": {"kubernetes.io/hostname": first}}})
    template = {"podTemplate": elsewhere(first)} if number == 1 else {}
    apply(layer("chat", forwarders=number, **template), namespace=namespace)
    complete(namespace)
    there = set(homes(OWNED, namespace).values())
    assert len(there) == number, "they are spread over the nodes"
    victim = max(there)
    traffic = Traffic(namespace)
    traffic.begin()
    alerts.hold()
    began = time.monotonic()
    machines.stop(victim, how)
    missing = f"{number - 1}/{number}"
    until(lambda: ready(namespace) == missing, "the layer says that one is missing", patience=NOTICED_WITHIN)
    noticed = time.monotonic() - began
    alerts.hold("ForwarderDown", "LayerNotReady")
    until(lambda: ready(namespace) == f"{number}/{number}", "it has all forwarders again", patience=BACK_WITHIN)
    took = time.monotonic() - began
    alerts.hold()  # though the pod on the node that is off is still there
    machines.start()
    complete(namespace)
    alerts.hold()
    found = traffic.end()
    print(f"{how}, {number} forwarders: said so after {noticed:.0f} s, ready again after {took:.0f} s")
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
        return homes(OPERATORS, NAMESPACE).get(leader(), "")

    first = nodes()[0]
    for _ in range(5):  # one that runs beside the control plane cannot be stopped
        if until(where, "one leads") != first:
            break
        before = leader()
        kubectl("delete", "pod", before, "-n", NAMESPACE)
        until(partial(another_leads, before), "another one leads")
        rolled_out(OPERATOR, namespace=NAMESPACE)
    victim, before = where(), leader()
    assert victim != first
    assert len(set(homes(OPERATORS, NAMESPACE).values())) == 2, "the replicas are spread over the nodes"
    alerts.hold()
    machines.stop(victim, "power-off")
    began = time.monotonic()
    # Kubernetes takes a minute to learn that the node is off, and would send a forwarder there until then.
    apply(layer("chat", podTemplate=elsewhere(victim)), namespace=namespace)
    until(lambda: leader() not in ("", before), "another one leads")
    wait_ready(namespace=namespace)
    print(f"a layer that was made while the leader's node was off: ready after {time.monotonic() - began:.0f} s")
    alerts.hold()
    alerts.evaluate()
