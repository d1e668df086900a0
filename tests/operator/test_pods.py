"""The problem that keeps a pod from becoming ready, and which pods of applications are outdated."""

from typing import Any

import pytest

from channels_zmq_operator.pods import LONGEST, is_outdated, problem


def pod(status: Any, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a", **metadata}, "status": status}


def waiting(reason: str, message: str = "", **last: Any) -> dict[str, Any]:
    container = {"state": {"waiting": {"reason": reason, "message": message}}, "lastState": last}
    return {"phase": "Pending", "containerStatuses": [container]}


CASES: dict[str, tuple[Any, str]] = {
    "nothing is known yet": (None, ""),
    "it is being made": (waiting("ContainerCreating"), ""),
    "it runs, and is not ready yet": (
        {
            "phase": "Running",
            "containerStatuses": [{"state": {"running": {}}}],
            "conditions": [{"type": "Ready", "status": "False"}],
        },
        "",
    ),
    "it is ready, and has failed before": (
        {
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}}],
        },
        "",
    ),
    "there is no image": (waiting("ErrImagePull", "not found"), "pod a: ErrImagePull: not found"),
    "it may not be pulled again": (waiting("ImagePullBackOff", "Back-off"), "pod a: ImagePullBackOff: Back-off"),
    "a Secret is missing": (
        waiting("CreateContainerConfigError", 'secret "x" not found'),
        'pod a: CreateContainerConfigError: secret "x" not found',
    ),
    "it ends again and again": (
        waiting("CrashLoopBackOff", "back-off 20s", terminated={"exitCode": 2, "reason": "Error"}),
        "pod a: a container ended with Error, exit code 2",
    ),
    "it was out of memory, and runs again": (
        {
            "containerStatuses": [
                {"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
            ]
        },
        "pod a: a container ended with OOMKilled, exit code 137",
    ),
    "it has just ended": (
        {"containerStatuses": [{"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]},
        "pod a: a container ended with Error, exit code 1",
    ),
    "an init container waits": (
        {"initContainerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]},
        "pod a: ErrImagePull",
    ),
    "there is no room": (
        {
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
            ]
        },
        "pod a: Unschedulable: 0/3 nodes",
    ),
    "it was evicted: another one is in its place": (
        {"phase": "Failed", "reason": "Evicted", "message": "disk"},
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_keeps_it_from_being_ready(case: str) -> None:
    """A pod's problem quotes the cluster, and is empty as long as the pod may become ready by itself."""
    status, expected = CASES[case]
    assert problem(pod(status)) == expected


def test_one_that_is_ending_has_no_problem() -> None:
    """A pod that is being deleted has no problem, since nothing waits for it."""
    assert problem(pod(waiting("ErrImagePull"), deletionTimestamp="now")) == ""


def test_a_long_message_is_cut() -> None:
    """A problem is cut at its longest length, since a registry's message may be long."""
    assert len(problem(pod(waiting("ErrImagePull", "x" * 10_000)))) == LONGEST


@pytest.mark.parametrize(
    ("created", "label", "injected", "expected"),
    [
        ("2026-01-01T00:00:00Z", "chat", "", True),
        ("2026-01-03T00:00:00Z", "chat", "", False),
        ("2026-01-01T00:00:00Z", "other", "", False),
        ("2026-01-01T00:00:00Z", "other", "default=other,jobs=chat", True),
        ("2026-01-01T00:00:00Z", "other", "chat=other", False),
    ],
)
def test_a_pod_is_outdated_that_uses_the_layer_and_is_older(
    created: str, label: str, injected: str, expected: bool
) -> None:
    """A pod is outdated if it is older than the settings and uses the layer.

    The webhook's annotation, or else the label, states which layers it uses.
    """
    annotations = {"channels-zmq.io/injected": injected} if injected else None
    metadata = {"creationTimestamp": created, "labels": {"channels-zmq.io/layer": label}, "annotations": annotations}
    assert is_outdated({"metadata": metadata}, "chat", "2026-01-02T00:00:00Z") is expected
