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
"""The types of conditions, and the reasons that each can have."""
LONGEST_MESSAGE = 1024
"""Maximum number of characters of a condition's message."""
NUMBERS = ("observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
"""The numbers of a Deployment's status that are used."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The observed state of a layer.

    Args:
        problem: Why its spec is invalid; empty if it is valid.
        refusal: The error of the last reconciliation; empty if that succeeded.
        refused_as: The reason in one word for `refusal`.
        forwarders: Desired number of forwarders; used if the Deployment does not exist yet or could not be changed.
        deployment: The forwarders' Deployment, as `kept` returns it; None if it does not exist.
        pods: Problems of the forwarders' pods.
        paused: Whether the layer is paused.
        waits: Whether its upgrade waits for that of another layer.
        settings: Digest of the settings that applications read at their start, and when these changed.
        outdated: Number of the applications' pods that are older than their settings; None if not counted yet.
        rotated_for: The last completed `rotateNow`.
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
    """The state of the forwarders, as their Deployment shows it.

    Args:
        wanted: Desired number of forwarders.
        there: Number of pods.
        ready: Number of ready pods.
        complete: Whether all pods are up to date and available, and no others exist.
        failing: Why pods do not become ready, if the cluster reports a cause.
        given_up: Whether the progress deadline of the Deployment has passed.
    """

    wanted: int
    there: int = 0
    ready: int = 0
    complete: bool = False
    failing: str = ""
    given_up: bool = False

    @classmethod
    def of(cls, seen: Seen) -> "Rollout":
        """Return the state of the forwarders of a layer."""
        if seen.deployment is None:
            return cls(seen.forwarders)
        wanted, observed = seen.deployment["spec"]["replicas"], seen.deployment["status"]
        if seen.refusal:  # the Deployment may still have the number of an earlier spec
            wanted = max(wanted, seen.forwarders)
        generation, there, updated, ready, available = (observed[name] for name in NUMBERS)
        is_current = generation >= seen.deployment["metadata"]["generation"]
        complete = is_current and there == updated == available == wanted
        given_up, refused = (
            _said_by(seen.deployment, "Progressing", "False"),
            _said_by(seen.deployment, "ReplicaFailure", "True"),
        )
        pods = "; ".join(seen.pods) if not complete else ""  # they may be gone: deletions can go unreported
        return cls(wanted, there, ready, complete, pods or given_up or refused, bool(given_up))

    @property
    def serves(self) -> bool:
        """Whether enough pods are ready, of whichever version."""
        return 0 < self.wanted <= self.ready

    @property
    def counted(self) -> str:
        """Ready and desired forwarders, as text."""
        return f"{self.ready} of {self.wanted} forwarders {'is' if self.wanted == 1 else 'are'} ready"


class Said(NamedTuple):
    """The status, reason and message of a condition, without its time."""

    holds: bool
    reason: str
    message: str


def status(owner: Owner, seen: Seen, before: dict[str, Any], now: str, cluster_domain: str) -> dict[str, Any]:
    """Return the status of a layer.

    Args:
        owner: The layer.
        seen: Its observed state.
        before: Its previous status: conditions that do not change keep their time.
        now: The current time, in the format of Kubernetes.
        cluster_domain: The DNS domain of the cluster's Services.
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
    if seen.deployment is not None or not seen.problem:  # existing forwarders come from an earlier spec that was valid
        out.addresses = list(naming.addresses(owner, cluster_domain))
        out.keys_rotated_for = seen.rotated_for or None
        out.binding = Binding(name=naming.client_secret_name(owner))
    if seen.deployment is not None:
        # In these states this version has not applied the Deployment.
        is_as_before = seen.problem or seen.refusal or seen.paused or seen.waits
        out.version = before.get("version") if is_as_before else __version__
    return out.model_dump(by_alias=True, exclude_none=True)


def kept(deployment: Manifest) -> Manifest:
    """Return the parts of a Deployment that a status depends on."""
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
    """Return the condition of a type in a status; empty if it has none."""
    return next((one for one in found.get("conditions", ()) if one["type"] == kind), {})


def differs(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two statuses differ in more than times."""
    return _timeless(one) != _timeless(other)


def _timeless(status: dict[str, Any]) -> dict[str, Any]:
    conditions = [
        {key: value for key, value in condition.items() if key != "lastTransitionTime"}
        for condition in status.get("conditions", ())
    ]
    return {**status, "conditions": conditions}


def _said_by(deployment: Manifest, kind: str, value: str) -> str:
    """Return the message of a Deployment's condition if its status is `value`, else an empty text."""
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
    """Return whether intervention is necessary: kstatus evaluates this condition, and so do Flux and others."""
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
