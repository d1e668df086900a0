"""An in-memory cluster with an operator, whose work queue a test runs."""

from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import zmq
from clusters import FakeCluster, Request, feed

from channels_zmq_operator.models import API_VERSION, KIND, Key, Owner, parse
from channels_zmq_operator.naming import Manifest
from channels_zmq_operator.reconcile import Reconciler
from channels_zmq_operator.render import Choices, LayerKeys, render
from channels_zmq_operator.status import NUMBERS

KEY: Key = ("home", "chat")
CHOICES = Choices("image:1", service_monitors=True)
CHILDREN = {
    *((kind, "chat-forwarder") for kind in ("Secret", "Service", "Deployment", "PodDisruptionBudget")),
    *((kind, "chat-forwarder") for kind in ("NetworkPolicy", "ServiceMonitor")),
    ("Secret", "chat-client"),
    ("ConfigMap", "chat-channels"),
}
PODS = ("list", "Pod", "home")
STATUS = ("apply", f"{KIND}/status", "chat")


class World:
    """An in-memory cluster with an operator, whose work queue a test runs."""

    def __init__(self, spec: Any = None) -> None:
        self.cluster = FakeCluster()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        if spec is not None:
            self.make(spec)
        self.start()

    def make(self, spec: Any) -> Manifest:
        metadata = {"name": "chat", "namespace": "home"}
        return self.cluster.put({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec})

    def start(self) -> None:
        """Start an operator in place of the previous one, if there was one."""
        self.due: set[Key] = set()
        self.reconciler = Reconciler(self.cluster, CHOICES, clock=lambda: self.now)
        self.cluster.watchers.clear()
        self.cluster.watch(feed(self.reconciler, self.due.add))

    def wait(self, **time: float) -> None:
        self.now += timedelta(**time)

    async def settle(self, looks: int = 20) -> float:
        """Reconcile until no layer is due, and return the seconds until the next reconciliation."""
        again = float("inf")
        for _ in range(looks):
            if not self.due:
                return again
            key = self.due.pop()
            again = min(again, await self.reconciler.reconcile(key))
        pytest.fail("there is always something to do")

    def asked(self) -> list[Request]:
        """Return the requests since the last call, and reset the log."""
        found, self.cluster.log = self.cluster.log, []
        return found

    def layer(self) -> Manifest:
        found = self.cluster.look(KIND, *KEY)
        assert found is not None
        return found

    def child(self, kind: str, name: str = "chat-forwarder") -> Manifest:
        found = self.cluster.look(kind, "home", name)
        assert found is not None, (kind, name)
        return found

    def children(self) -> set[tuple[str, str]]:
        return {(kind, name) for kind, _, name in self.cluster.objects if kind not in (KIND, "Event")}

    def edit(self, kind: str, change: Callable[[Manifest], Any], name: str = "chat-forwarder") -> None:
        self.cluster.edit(kind, "home", name, change)

    def set_spec(self, spec: Any) -> None:
        self.edit(KIND, lambda found: found.update(spec=spec), "chat")

    def condition(self, kind: str) -> tuple[str, str]:
        (found,) = [one for one in self.layer()["status"]["conditions"] if one["type"] == kind]
        return found["status"], found["reason"]

    def events(self) -> list[Manifest]:
        return [found for (kind, _, _), found in self.cluster.objects.items() if kind == "Event"]

    def secret(self, name: str, entry: str) -> str:
        return b64decode(self.child("Secret", name)["data"][entry]).decode()

    def keys(self) -> tuple[str, str]:
        """Return the secret keys of the forwarders and of the applications."""
        client = self.secret("chat-client", "CHANNELS_ZMQ_CURVE_SECRET_KEY")
        return self.secret("chat-forwarder", "secret-key"), client

    def check(self) -> None:
        """Check that all objects exist as rendered, and that their keys match."""
        layer, (server, client) = self.layer(), self.keys()
        allowed = tuple(self.secret("chat-forwarder", "allowed-keys").split())
        public = zmq.curve_public(server.encode()).decode()
        assert allowed[0] == zmq.curve_public(client.encode()).decode()
        rotated = self.child("Secret", "chat-client")["metadata"]["annotations"]["channels-zmq.io/rotated-at"]
        keys = LayerKeys(public, server, client, allowed, rotated)
        wanted = render(Owner.of(layer), parse(layer), keys, CHOICES)
        assert self.children() == {(one["kind"], one["metadata"]["name"]) for one in wanted}
        for one in wanted:
            assert includes(self.child(one["kind"], one["metadata"]["name"]), one)
        assert layer["status"]["observedGeneration"] == layer["metadata"]["generation"]
        assert self.condition("Accepted") == ("True", "SpecValid")
        assert self.condition("Degraded") == ("False", "AsExpected")


def includes(found: Any, wanted: Any) -> bool:
    """Return whether an object is as rendered, apart from additions by the cluster."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(key in found and includes(found[key], wanted[key]) for key in wanted)
    return bool(found == wanted)


def ready(found: Manifest) -> None:
    """Update a Deployment's status as its controller does when all pods are ready."""
    generation = found["metadata"]["generation"]
    numbers = dict.fromkeys(NUMBERS, found["spec"]["replicas"])
    found["status"] = {**numbers, "observedGeneration": generation}
    found["metadata"].setdefault("annotations", {})["deployment.kubernetes.io/revision"] = "1"
