"""The status of a layer: every condition, with every reason."""

from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from channels_zmq_operator import __version__, crd
from channels_zmq_operator.models import AppSettings, Owner, Status
from channels_zmq_operator.status import REASONS, Seen, differs, kept, status

OWNER = Owner(name="chat", namespace="home", uid="u", generation=3)
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def deployment(
    ready: int = 2,
    *,
    there: int = 2,
    updated: int = 2,
    available: int | None = None,
    generation: int = 2,
    **conditions: tuple[str, str],
) -> dict[str, Any]:
    """Return a Deployment of two forwarders as it is kept; its controller has observed generation 2."""
    observed = {
        "observedGeneration": 2,
        "replicas": there,
        "updatedReplicas": updated,
        "readyReplicas": ready,
        "availableReplicas": ready if available is None else available,
        "conditions": [
            {"type": kind, "status": value, "message": message} for kind, (value, message) in conditions.items()
        ],
    }
    return kept({"metadata": {"generation": generation}, "spec": {"replicas": 2}, "status": observed})


def said(seen: Seen, before: dict[str, Any] | None = None, now: str = NOW, owner: Owner = OWNER) -> dict[str, Any]:
    return status(owner, seen, before or {}, now, "cluster.local")


STUCK = deployment(0, Progressing=("False", "deadline exceeded"))
CASES: dict[str, tuple[Seen, str]] = {
    "nothing is there yet": (
        Seen(),
        "T/SpecValid F/ForwardersNotReady T/RollingOut F/AsExpected F/NotStalled F/UpToDate",
    ),
    "nothing is known of the Deployment yet": (
        Seen(deployment=kept({"metadata": {"generation": 1}, "spec": {"replicas": 2}})),
        "T/SpecValid F/ForwardersNotReady T/RollingOut F/AsExpected F/NotStalled F/UpToDate",
    ),
    "they are starting": (
        Seen(deployment=deployment(0)),
        "T/SpecValid F/ForwardersNotReady T/RollingOut F/AsExpected F/NotStalled F/UpToDate",
    ),
    "one is ready": (
        Seen(deployment=deployment(1)),
        "T/SpecValid F/ForwardersNotReady T/RollingOut F/AsExpected F/NotStalled F/UpToDate",
    ),
    "they are ready": (
        Seen(deployment=deployment()),
        "T/SpecValid T/ForwardersReady F/Complete F/AsExpected F/NotStalled F/UpToDate",
    ),
    "they are ready, but not for long": (
        Seen(deployment=deployment(available=1)),
        "T/SpecValid T/ForwardersReady T/RollingOut F/AsExpected F/NotStalled F/UpToDate",
    ),
    "they are ready, as far as is known of the version before": (
        Seen(deployment=deployment(generation=3)),
        "T/SpecValid T/ForwardersReady T/RollingOut F/AsExpected F/NotStalled F/UpToDate",
    ),
    "one of them is of the version before": (
        Seen(deployment=deployment(updated=1)),
        "T/SpecValid T/ForwardersReady T/RollingOut F/AsExpected F/NotStalled F/UpToDate",
    ),
    "a third one is not gone yet": (
        Seen(deployment=deployment(3, there=3)),
        "T/SpecValid T/ForwardersReady T/RollingOut F/AsExpected F/NotStalled F/UpToDate",
    ),
    "it does not start in time": (
        Seen(deployment=STUCK),
        "T/SpecValid F/ForwardersNotReady T/RollingOut T/ForwarderFailing T/ForwarderFailing F/UpToDate",
    ),
    "no pod may be made": (
        Seen(deployment=deployment(0, ReplicaFailure=("True", "exceeded quota"))),
        "T/SpecValid F/ForwardersNotReady T/RollingOut T/ForwarderFailing F/NotStalled F/UpToDate",
    ),
    "a pod does not start": (
        Seen(deployment=deployment(1), pods=("pod a: CrashLoopBackOff",)),
        "T/SpecValid F/ForwardersNotReady T/RollingOut T/ForwarderFailing F/NotStalled F/UpToDate",
    ),
    "a pod does not start, and the others serve": (
        Seen(deployment=deployment(updated=1, there=3), pods=("pod a: ImagePullBackOff",)),
        "T/SpecValid T/ForwardersReady T/RollingOut T/ForwarderFailing F/NotStalled F/UpToDate",
    ),
    "a pod that is gone without a word": (
        Seen(deployment=deployment(), pods=("pod a: ErrImagePull",)),
        "T/SpecValid T/ForwardersReady F/Complete F/AsExpected F/NotStalled F/UpToDate",
    ),
    "it is paused": (
        Seen(deployment=deployment(), paused=True),
        "T/SpecValid T/ForwardersReady F/Paused F/AsExpected F/NotStalled F/UpToDate",
    ),
    "its upgrade waits": (
        Seen(deployment=deployment(), waits=True),
        "T/SpecValid T/ForwardersReady T/UpgradeWaits F/AsExpected F/NotStalled F/UpToDate",
    ),
    "applications are outdated": (
        Seen(deployment=deployment(), outdated=3),
        "T/SpecValid T/ForwardersReady F/Complete F/AsExpected F/NotStalled T/RestartNeeded",
    ),
    "conditions that say that all is well": (
        Seen(deployment=deployment(Progressing=("True", ""), Available=("True", ""), ReplicaFailure=("False", ""))),
        "T/SpecValid T/ForwardersReady F/Complete F/AsExpected F/NotStalled F/UpToDate",
    ),
    "the cluster refuses": (
        Seen(refusal="quota"),
        "T/SpecValid F/ClusterRefused T/ClusterRefused T/ClusterRefused F/NotStalled F/UpToDate",
    ),
    "a name is taken": (
        Seen(refusal="it exists and does not belong to this layer", refused_as="NameTaken"),
        "T/SpecValid F/NameTaken T/NameTaken T/NameTaken T/NameTaken F/UpToDate",
    ),
    "the cluster refuses a change": (
        Seen(refusal="quota", deployment=deployment()),
        "T/SpecValid T/ForwardersReady T/ClusterRefused T/ClusterRefused F/NotStalled F/UpToDate",
    ),
    "the cluster refuses, and it does not start": (
        Seen(refusal="quota", deployment=STUCK),
        "T/SpecValid F/ClusterRefused T/ClusterRefused T/ClusterRefused T/ForwarderFailing F/UpToDate",
    ),
    "the spec is invalid": (
        Seen(problem="spec.x"),
        "F/SpecInvalid F/SpecInvalid F/SpecInvalid F/AsExpected T/SpecInvalid F/UpToDate",
    ),
    "the spec has become invalid": (
        Seen(problem="spec.x", deployment=deployment()),
        "F/SpecInvalid T/ForwardersReady F/SpecInvalid F/AsExpected T/SpecInvalid F/UpToDate",
    ),
    "the spec has become invalid before it was ready": (
        Seen(problem="spec.x", deployment=STUCK),
        "F/SpecInvalid F/ForwardersNotReady F/SpecInvalid T/ForwarderFailing T/SpecInvalid F/UpToDate",
    ),
}
by_case = pytest.mark.parametrize("case", CASES)


def conditions(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["type"]: one for one in found["conditions"]}


@by_case
def test_conditions_and_reasons(case: str) -> None:
    """Each case has its status and reason for Accepted, Ready, Progressing, Degraded, Stalled and AppsOutdated."""
    seen, expected = CASES[case]
    found = said(seen)
    assert " ".join(f"{one['status'][0]}/{one['reason']}" for one in found["conditions"]) == expected
    assert [one["type"] for one in found["conditions"]] == list(REASONS)


@by_case
def test_the_definition_takes_every_status(case: str) -> None:
    """The definition's schema accepts every status and knows all of its fields."""
    found = said(CASES[case][0])
    schema = crd.schema_of(Status)
    assert list(Draft202012Validator(schema).iter_errors(found)) == []
    assert found.keys() <= schema["properties"].keys()
    for one in found["conditions"]:
        assert one.keys() == schema["properties"]["conditions"]["items"]["properties"].keys()
        assert one["observedGeneration"] == 3
        assert one["message"]


def test_every_reason_occurs() -> None:
    """The cases cover every reason of the table, and no other reason occurs."""
    found = {(one["type"], one["reason"]) for seen, _ in CASES.values() for one in said(seen)["conditions"]}
    assert found == {(kind, reason) for kind, reasons in REASONS.items() for reason in reasons}


def test_messages_say_what_others_said() -> None:
    """A message quotes the spec's problem, the cluster's refusal or the Deployment, up to 1024 characters."""
    found = conditions(said(Seen(problem="spec.x: bad")))
    assert found["Accepted"]["message"] == found["Ready"]["message"] == "spec.x: bad"
    found = conditions(said(Seen(refusal="exceeded quota", deployment=STUCK)))
    assert found["Ready"]["message"] == found["Degraded"]["message"] == "exceeded quota"
    found = conditions(said(Seen(deployment=STUCK)))
    assert found["Degraded"]["message"] == "deadline exceeded"
    assert found["Ready"]["message"] == "0 of 2 forwarders are ready: deadline exceeded"
    found = conditions(said(Seen(refusal="x" * 5000)))
    assert len(found["Degraded"]["message"]) == 1024


def test_times_are_kept_until_a_condition_turns() -> None:
    """A transition time changes only with the status of its condition, not with its reason or message."""
    starting = said(Seen())
    failing = said(Seen(deployment=STUCK), starting, LATER)
    times = {kind: one["lastTransitionTime"] for kind, one in conditions(failing).items()}
    assert times == {
        "Accepted": NOW,
        "Ready": NOW,
        "Progressing": NOW,
        "Degraded": LATER,
        "Stalled": LATER,
        "AppsOutdated": NOW,
    }
    ready = said(Seen(deployment=deployment()), starting, LATER)
    times = {kind: one["lastTransitionTime"] for kind, one in conditions(ready).items()}
    assert times == {
        "Accepted": NOW,
        "Ready": LATER,
        "Progressing": LATER,
        "Degraded": NOW,
        "Stalled": NOW,
        "AppsOutdated": NOW,
    }


def test_numbers_and_addresses() -> None:
    """The status has the numbers of the table and the scale subresource, the addresses and the Service Binding."""
    found = said(Seen(deployment=deployment(1, there=3)))
    assert (found["replicas"], found["forwarders"], found["readyForwarders"], found["ready"]) == (3, 2, 1, "1/2")
    host = "chat-forwarder.home.svc.cluster.local."
    assert found["addresses"] == [f"tcp://{host}:5555", f"tcp://{host}:5556"]
    assert found["binding"] == {"name": "chat-client"}
    assert found["selector"] == "app.kubernetes.io/name=channels-zmq-forwarder,channels-zmq.io/owned-by=chat"
    assert found["observedGeneration"] == 3


def test_the_version_is_that_of_who_made_the_pods() -> None:
    """The version is that of the operator that created the pods, and absent before there are any.

    A layer that is not changed keeps the version of its status.
    """
    assert "version" not in said(Seen())
    assert said(Seen(deployment=deployment()))["version"] == __version__
    for kept_as_it_is in (Seen(problem="x"), Seen(refusal="x"), Seen(paused=True), Seen(waits=True)):
        seen = replace(kept_as_it_is, deployment=deployment())
        assert said(seen, {"version": "0.0.1"})["version"] == "0.0.1"
        assert "version" not in said(seen)


def test_what_nobody_has_counted_stays_as_it_was() -> None:
    """AppsOutdated stays as it was until pods are counted, for example after a start of the operator."""
    before = said(Seen(deployment=deployment(), outdated=3))
    assert conditions(said(Seen(paused=True), before))["AppsOutdated"] == conditions(before)["AppsOutdated"]


def test_settings_stand_there_with_their_time() -> None:
    """The status records the applications' settings and their time, from which a restarted operator knows them."""
    settings = AppSettings(digest="d", since=NOW)
    assert said(Seen(settings=settings))["settings"] == {"digest": "d", "since": NOW}


def test_the_deployment_counts_as_long_as_a_new_number_is_not_applied() -> None:
    """The number of forwarders is the Deployment's, or the spec's before there is a Deployment."""
    assert said(Seen(forwarders=5))["ready"] == "0/5"
    assert said(Seen(forwarders=5, deployment=deployment()))["ready"] == "2/2"


def test_an_invalid_spec_has_no_addresses() -> None:
    """The status of an invalid spec has no addresses, no binding and no ready forwarders."""
    found = said(Seen(problem="x"))
    assert found["ready"] == "0/0"
    assert not {"addresses", "binding", "keysRotatedFor"} & found.keys()


def test_a_bad_edit_takes_nothing_from_a_layer_that_runs() -> None:
    """A bad edit changes no more than conditions, so that applications still find the running layer by its status."""
    before = said(Seen(deployment=deployment(), rotated_for="today"))
    after = said(Seen(problem="x", deployment=deployment(), rotated_for="today"), before, LATER)
    assert {**after, "conditions": []} == {**before, "conditions": []}
    assert conditions(after)["Ready"] == conditions(before)["Ready"]


def test_only_times_do_not_count_as_a_difference() -> None:
    """Two statuses that differ only in times are equal, so that a status is written only if its content changes."""
    one = said(Seen())
    assert not differs(one, said(Seen(), now=LATER))
    assert differs(one, said(Seen(deployment=deployment()), one))
    assert differs(one, said(Seen(), one, owner=OWNER.model_copy(update={"generation": 4})))
    assert differs({}, one)
