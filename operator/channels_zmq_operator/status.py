"""Computes a layer's status from the state of the cluster. Pure."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from channels_zmq_operator import __version__, naming
from channels_zmq_operator.models import AppSettings, Binding, Condition, Owner, Status
from channels_zmq_operator.naming import Manifest

REASONS = {
    "Accepted": ("SpecValid", "SpecInvalid"),
    "Ready": ("ForwardersReady", "ForwardersNotReady", "SpecInvalid", "ClusterRefused", "NameTaken"),
    "Progressing": ("RollingOut", "Complete", "SpecInvalid", "Paused", "UpgradeWaits", "ClusterRefused", "NameTaken"),
    "Degraded": ("AsExpected", "ForwarderFailing", "ClusterRefused", "NameTaken"),
    "Stalled": ("NotStalled", "SpecInvalid", "NameTaken", "ForwarderFailing"),
    "AppsOutdated": ("UpToDate", "RestartNeeded"),
}
"""The conditions and the words that stand in them."""
LONGEST_MESSAGE = 1024
"""Characters of a condition's message."""
NUMBERS = ("observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
"""What is used of a Deployment's status."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a layer.

    Args:
        problem: Why its spec cannot be served; empty if it can.
        refusal: What could not be done last; empty if everything was.
        refused_as: The word for it.
        forwarders: How many there should be; counts if the Deployment does not exist yet.
        deployment: That of the forwarders, as `kept` returns it.
        pods: What is wrong with their pods.
        paused: Whether nothing is to be changed.
        waits: Whether the upgrade of another layer has to be complete first.
        settings: What applications are told, and since when.
        outdated: How many of their pods are older than that; None if they have not been counted yet.
        rotated_for: The `rotateNow` that is done.
    """

    problem: str = ""
    refusal: str = ""
    refused_as: str = "ClusterRefused"
    forwarders: int = 0
    deployment: Manifest | None = None
    pods: tuple[str, ...] = ()
    paused: bool = False
    waits: bool = False
    settings: AppSettings | None = None
    outdated: int | None = None
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
        given_up: Whether Kubernetes says that this takes too long.
    """

    wanted: int
    there: int = 0
    ready: int = 0
    complete: bool = False
    failing: str = ""
    given_up: bool = False

    @classmethod
    def of(cls, seen: Seen) -> "Rollout":
        """Return what is seen."""
        if seen.deployment is None:
            return cls(seen.forwarders)
        wanted, observed = seen.deployment["spec"]["replicas"], seen.deployment["status"]
        if seen.refusal:  # the Deployment may be as it was before the spec changed
            wanted = max(wanted, seen.forwarders)
        generation, there, updated, ready, available = (observed[name] for name in NUMBERS)
        is_current = generation >= seen.deployment["metadata"]["generation"]
        complete = is_current and there == updated == available == wanted
        given_up, refused = (
            _said_by(seen.deployment, "Progressing", "False"),
            _said_by(seen.deployment, "ReplicaFailure", "True"),
        )
        pods = "; ".join(seen.pods) if not complete else ""  # such as of one that is gone without a word
        return cls(wanted, there, ready, complete, pods or given_up or refused, bool(given_up))

    @property
    def serves(self) -> bool:
        """Whether as many are ready as there should be, of whichever version."""
        return 0 < self.wanted <= self.ready

    @property
    def counted(self) -> str:
        """How many are ready, for people."""
        return f"{self.ready} of {self.wanted} forwarders {'is' if self.wanted == 1 else 'are'} ready"


class Said(NamedTuple):
    """What a condition says, before it has a time."""

    holds: bool
    reason: str
    message: str


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
    conditions = {
        "Accepted": _accepted(seen),
        "Ready": _ready(seen, rollout),
        "Progressing": _progressing(seen, rollout),
        "Degraded": _degraded(seen, rollout),
        "Stalled": _stalled(seen, rollout),
        "AppsOutdated": _apps_outdated(seen, before),
    }
    out = Status(
        observed_generation=owner.generation,
        conditions=[_condition(owner, before, now, kind, said) for kind, said in conditions.items()],
        replicas=rollout.there,
        forwarders=rollout.wanted,
        ready_forwarders=rollout.ready,
        ready=f"{rollout.ready}/{rollout.wanted}",
        selector=",".join(f"{key}={value}" for key, value in sorted(naming.selector(owner).items())),
        settings=seen.settings,
    )
    if seen.deployment is not None or not seen.problem:  # what runs was made by a spec that was valid
        out.addresses = list(naming.addresses(owner, cluster_domain))
        out.keys_rotated_for = seen.rotated_for or None
        out.binding = Binding(name=naming.client_secret_name(owner))
    if seen.deployment is not None:
        is_as_before = seen.problem or seen.refusal or seen.paused or seen.waits
        out.version = before.get("version") if is_as_before else __version__
    return out.model_dump(by_alias=True, exclude_none=True)


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


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition of a status; empty if it has none."""
    return next((one for one in found.get("conditions", ()) if one["type"] == kind), {})


def differs(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two statuses say different things; times do not count."""
    return _timeless(one) != _timeless(other)


def _timeless(status: dict[str, Any]) -> dict[str, Any]:
    conditions = [
        {key: value for key, value in condition.items() if key != "lastTransitionTime"}
        for condition in status.get("conditions", ())
    ]
    return {**status, "conditions": conditions}


def _said_by(deployment: Manifest, kind: str, value: str) -> str:
    """Return what a Deployment's condition says, if it has a value."""
    found = condition(deployment["status"], kind)
    return str(found.get("message") or found.get("reason", "")) if found.get("status") == value else ""


def _accepted(seen: Seen) -> Said:
    if seen.problem:
        return Said(False, "SpecInvalid", seen.problem)
    return Said(True, "SpecValid", "the spec is valid")


def _ready(seen: Seen, rollout: Rollout) -> Said:
    if rollout.serves:
        return Said(True, "ForwardersReady", rollout.counted)
    if seen.problem and seen.deployment is None:
        return Said(False, "SpecInvalid", seen.problem)
    if seen.refusal:
        return Said(False, seen.refused_as, seen.refusal)
    return Said(False, "ForwardersNotReady", ": ".join(filter(None, (rollout.counted, rollout.failing))))


def _progressing(seen: Seen, rollout: Rollout) -> Said:
    if seen.problem:
        return Said(False, "SpecInvalid", "no changes are made until the spec is valid")
    if seen.paused:
        return Said(False, "Paused", "no changes are made while spec.paused is true")
    if seen.waits:
        return Said(True, "UpgradeWaits", "the forwarders are replaced after another layer's upgrade is complete")
    if seen.refusal:
        return Said(True, seen.refused_as, seen.refusal)
    if rollout.complete:
        return Said(False, "Complete", "all forwarders match the spec")
    return Said(True, "RollingOut", "forwarders are starting or terminating")


def _degraded(seen: Seen, rollout: Rollout) -> Said:
    if seen.refusal:
        return Said(True, seen.refused_as, seen.refusal)
    if rollout.failing:
        return Said(True, "ForwarderFailing", rollout.failing)
    return Said(False, "AsExpected", "no problem was found")


def _stalled(seen: Seen, rollout: Rollout) -> Said:
    """Return whether intervention is necessary: the condition that kstatus, and so Flux and others, evaluate."""
    if seen.problem:
        return Said(True, "SpecInvalid", seen.problem)
    if seen.refusal and seen.refused_as == "NameTaken":
        return Said(True, "NameTaken", seen.refusal)
    if rollout.given_up:
        return Said(True, "ForwarderFailing", rollout.failing)
    return Said(False, "NotStalled", "no intervention is necessary")


def _apps_outdated(seen: Seen, before: dict[str, Any]) -> Said:
    if seen.outdated is None and (known := condition(before, "AppsOutdated")):
        return Said(known["status"] == "True", known["reason"], known["message"])
    if seen.outdated:
        pods = "1 pod" if seen.outdated == 1 else f"{seen.outdated} pods"
        return Said(
            True, "RestartNeeded", f"{pods} of applications started before the settings changed: restart required"
        )
    return Said(False, "UpToDate", "all pods of applications have the current settings")


def _condition(owner: Owner, before: dict[str, Any], now: str, kind: str, said: Said) -> Condition:
    value: Literal["True", "False"] = "True" if said.holds else "False"
    known = condition(before, kind)
    return Condition(
        type=kind,
        status=value,
        reason=said.reason,
        message=said.message[:LONGEST_MESSAGE],
        observed_generation=owner.generation,
        last_transition_time=known["lastTransitionTime"] if known.get("status") == value else now,
    )
