"""What a layer's status says, from what the cluster shows. Pure."""

from dataclasses import dataclass
from typing import Any

from channels_zmq_operator import naming
from channels_zmq_operator.models import Owner
from channels_zmq_operator.naming import Manifest

REASONS = {
    "Accepted": ("SpecValid", "SpecInvalid"),
    "Ready": ("ForwardersReady", "ForwardersNotReady", "SpecInvalid", "ClusterRefused", "NameTaken"),
    "Progressing": ("RollingOut", "Complete", "SpecInvalid"),
    "Degraded": ("AsExpected", "ForwarderFailing", "ClusterRefused", "NameTaken"),
}
"""The conditions and the words that stand in them."""
NUMBERS = ("observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
"""What is used of a Deployment's status."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a layer.

    Args:
        problem: Why its spec cannot be served; empty if it can.
        refusal: What could not be done last; empty if everything was.
        refused_as: The word for it.
        forwarders: How many there should be; counts if there is no Deployment yet.
        deployment: That of the forwarders, as `kept` returns it.
        rotated_for: The `rotateNow` that is done.
    """

    problem: str = ""
    refusal: str = ""
    refused_as: str = "ClusterRefused"
    forwarders: int = 0
    deployment: Manifest | None = None
    rotated_for: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The forwarders as their Deployment shows them.

    Args:
        wanted: How many there should be.
        there: How many pods there are.
        ready: How many of them serve.
        complete: Whether all are as they should be, and no other ones are there.
        failing: Why they do not start, where the cluster says so.
    """

    wanted: int
    there: int = 0
    ready: int = 0
    complete: bool = False
    failing: str = ""

    @classmethod
    def of(cls, seen: Seen) -> "Rollout":
        """Return what is seen."""
        if seen.deployment is None:
            return cls(seen.forwarders)
        wanted, observed = seen.deployment["spec"]["replicas"], seen.deployment["status"]
        generation, there, updated, ready, available = (observed[name] for name in NUMBERS)
        is_current = generation >= seen.deployment["metadata"]["generation"]
        complete = is_current and there == updated == available == wanted
        return cls(wanted, there, ready, complete, _failure(observed))

    @property
    def serves(self) -> bool:
        """Whether as many are ready as there should be, of whichever version."""
        return 0 < self.wanted <= self.ready

    @property
    def counted(self) -> str:
        """How many are ready, for people."""
        return f"{self.ready} of {self.wanted} forwarders {'is' if self.wanted == 1 else 'are'} ready"


def status(owner: Owner, seen: Seen, before: dict[str, Any], now: str, cluster_domain: str) -> dict[str, Any]:
    """Return the status of a layer.

    Args:
        owner: The layer.
        seen: What is known of it.
        before: Its status so far: conditions that stay as they are keep their time.
        now: The time, as Kubernetes writes it.
        cluster_domain: With which the names of Services end.
    """
    rollout = Rollout.of(seen)
    conditions = [
        ("Accepted", not seen.problem, *_accepted(seen)),
        ("Ready", rollout.serves, *_ready(seen, rollout)),
        ("Progressing", not seen.problem and not rollout.complete, *_progress(seen, rollout)),
        ("Degraded", bool(seen.refusal or rollout.failing), *_degraded(seen, rollout)),
    ]
    out: dict[str, Any] = {
        "observedGeneration": owner.generation,
        "conditions": [_condition(owner, before, now, *condition) for condition in conditions],
        "replicas": rollout.there,
        "forwarders": rollout.wanted,
        "readyForwarders": rollout.ready,
        "ready": f"{rollout.ready}/{rollout.wanted}",
        "selector": ",".join(f"{key}={value}" for key, value in sorted(naming.selector(owner).items())),
    }
    if seen.deployment is not None or not seen.problem:  # what runs was made by a spec that was valid
        out["addresses"] = list(naming.addresses(owner, cluster_domain))
        if rotated_for := seen.rotated_for or (seen.problem and before.get("keysRotatedFor")):
            out["keysRotatedFor"] = rotated_for
        out["binding"] = {"name": naming.client_secret_name(owner)}
    return out


def kept(deployment: Manifest) -> Manifest:
    """Return the parts of a Deployment from which a status is made."""
    observed = deployment.get("status") or {}
    conditions = [
        {key: str(one.get(key, ""))[:1024] for key in ("type", "status", "reason", "message")}
        for one in observed.get("conditions") or ()
        if one["type"] in ("Progressing", "ReplicaFailure")
    ]
    numbers = {key: observed.get(key, 0) for key in NUMBERS}
    return {
        "metadata": {"generation": deployment["metadata"].get("generation", 0)},
        "spec": {"replicas": deployment["spec"].get("replicas", 1)},
        "status": {**numbers, "conditions": conditions},
    }


def differs(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two statuses say different things; times do not count."""
    return _timeless(one) != _timeless(other)


def _timeless(status: dict[str, Any]) -> dict[str, Any]:
    conditions = [
        {key: value for key, value in condition.items() if key != "lastTransitionTime"}
        for condition in status.get("conditions", ())
    ]
    return {**status, "conditions": conditions}


def _failure(observed: dict[str, Any]) -> str:
    """Return why the forwarder does not start, where the cluster says so."""
    for condition in observed.get("conditions", ()):
        stuck = condition["type"] == "Progressing" and condition["status"] == "False"
        refused = condition["type"] == "ReplicaFailure" and condition["status"] == "True"
        if stuck or refused:
            return str(condition.get("message") or condition.get("reason", ""))
    return ""


def _accepted(seen: Seen) -> tuple[str, str]:
    return ("SpecInvalid", seen.problem) if seen.problem else ("SpecValid", "the spec is valid")


def _ready(seen: Seen, rollout: Rollout) -> tuple[str, str]:
    if rollout.serves:
        return "ForwardersReady", rollout.counted
    if seen.problem and seen.deployment is None:
        return "SpecInvalid", seen.problem
    if seen.refusal:
        return seen.refused_as, seen.refusal
    return "ForwardersNotReady", rollout.counted + (f": {rollout.failing}" if rollout.failing else "")


def _progress(seen: Seen, rollout: Rollout) -> tuple[str, str]:
    if seen.problem:
        return "SpecInvalid", "nothing is done until the spec is valid"
    if rollout.complete:
        return "Complete", "all forwarders are as the spec says"
    return "RollingOut", "forwarders are starting or ending"


def _degraded(seen: Seen, rollout: Rollout) -> tuple[str, str]:
    if seen.refusal:
        return seen.refused_as, seen.refusal
    if rollout.failing:
        return "ForwarderFailing", rollout.failing
    return "AsExpected", "everything is as it should be"


def _condition(
    owner: Owner, before: dict[str, Any], now: str, kind: str, holds: bool, reason: str, message: str
) -> dict[str, Any]:
    value = "True" if holds else "False"
    known = next((one for one in before.get("conditions", ()) if one["type"] == kind), None)
    same = known is not None and known["status"] == value
    return {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message[:1024],
        "observedGeneration": owner.generation,
        "lastTransitionTime": known["lastTransitionTime"] if known is not None and same else now,
    }
