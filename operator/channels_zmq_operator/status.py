"""What a layer's status says, from what the cluster shows. Pure."""

from dataclasses import dataclass
from typing import Any

from channels_zmq_operator import render
from channels_zmq_operator.models import Owner
from channels_zmq_operator.render import Manifest

REASONS = {
    "Accepted": ("SpecValid", "SpecInvalid"),
    "Ready": ("ForwardersReady", "ForwardersNotReady", "SpecInvalid", "ClusterRefused", "NameTaken"),
    "Progressing": ("RollingOut", "Complete", "SpecInvalid"),
    "Degraded": ("AsExpected", "ForwarderFailing", "ClusterRefused", "NameTaken"),
}
"""The conditions and the words that stand in them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a layer.

    Args:
        problem: Why its spec cannot be served; empty if it can.
        refusal: What could not be done last; empty if everything was.
        refused_as: The word for it.
        deployment: The forwarder's Deployment.
        rotated_for: The `rotateNow` that is done.
    """

    problem: str = ""
    refusal: str = ""
    refused_as: str = "ClusterRefused"
    deployment: Manifest | None = None
    rotated_for: str = ""


def status(owner: Owner, seen: Seen, before: dict[str, Any], now: str) -> dict[str, Any]:
    """Return the status of a layer.

    Args:
        owner: The layer.
        seen: What is known of it.
        before: Its status so far: conditions that stay as they are keep their time.
        now: The time, as Kubernetes writes it.
    """
    ready = _ready(seen.deployment)
    runs = seen.deployment is not None  # by a spec that was valid
    observed = (seen.deployment or {}).get("status", {})
    failing = _failure(observed)
    conditions = [
        ("Accepted", not seen.problem, *_accepted(seen)),
        ("Ready", ready == 1, *_ready_reason(seen, ready, failing)),
        ("Progressing", not seen.problem and ready < 1, *_progress(seen, ready)),
        ("Degraded", bool(seen.refusal or failing), *_degraded(seen, failing)),
    ]
    out: dict[str, Any] = {
        "observedGeneration": owner.generation,
        "conditions": [_condition(owner, before, now, *condition) for condition in conditions],
        "forwarders": 1,
        "readyForwarders": ready,
        "ready": f"{ready}/1",
        "selector": ",".join(f"{key}={value}" for key, value in sorted(render.selector(owner).items())),
    }
    if runs or not seen.problem:
        out["addresses"] = list(render.addresses(owner))
        if rotated_for := seen.rotated_for or (seen.problem and before.get("keysRotatedFor")):
            out["keysRotatedFor"] = rotated_for
        out["binding"] = {"name": render.client_secret_name(owner)}
    return out


def kept(deployment: Manifest) -> Manifest:
    """Return the parts of a Deployment from which a status is made."""
    observed = deployment.get("status") or {}
    conditions = [
        {key: str(one.get(key, ""))[:1024] for key in ("type", "status", "reason", "message")}
        for one in observed.get("conditions") or ()
        if one["type"] in ("Progressing", "ReplicaFailure")
    ]
    numbers = {key: observed.get(key, 0) for key in ("observedGeneration", "updatedReplicas", "readyReplicas")}
    return {
        "metadata": {"generation": deployment["metadata"].get("generation", 0)},
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


def _ready(deployment: Manifest | None) -> int:
    if deployment is None:
        return 0
    observed = deployment.get("status", {})
    if observed.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return 0
    updated = observed.get("updatedReplicas", 0) >= 1
    return int(updated and observed.get("readyReplicas", 0) >= 1)


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


def _ready_reason(seen: Seen, ready: int, failing: str) -> tuple[str, str]:
    if ready:
        return "ForwardersReady", "1 of 1 forwarders is ready"
    if seen.problem and seen.deployment is None:
        return "SpecInvalid", seen.problem
    if seen.refusal:
        return seen.refused_as, seen.refusal
    return "ForwardersNotReady", failing or "0 of 1 forwarders are ready"


def _progress(seen: Seen, ready: int) -> tuple[str, str]:
    if seen.problem:
        return "SpecInvalid", "nothing is done until the spec is valid"
    return ("Complete", "nothing is to be done") if ready else ("RollingOut", "the forwarder is starting")


def _degraded(seen: Seen, failing: str) -> tuple[str, str]:
    if seen.refusal:
        return seen.refused_as, seen.refusal
    return ("ForwarderFailing", failing) if failing else ("AsExpected", "everything is as it should be")


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
