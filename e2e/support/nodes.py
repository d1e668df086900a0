"""A node that has no kubelet: pods that are sent there are said to run. For counts of pods that no test machine has."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

NAME = "e2e-standin"
TAINT = {"key": "channels-zmq.io/e2e-standin", "value": "yes", "effect": "NoSchedule"}
TOLERATION = {"key": TAINT["key"], "operator": "Exists"}
LABEL = {"channels-zmq.io/e2e-standin": "yes"}
ROOM = {"cpu": "1000", "memory": "1000Gi", "pods": "1000"}


@contextmanager
def standin() -> Iterator[None]:
    """Have the node, and let its pods run and end."""
    config.load_kube_config()  # type: ignore[no-untyped-call] # the client's own stubs leave it out
    api = client.CoreV1Api()
    node: Any = {"metadata": {"name": NAME, "labels": LABEL}, "spec": {"taints": [TAINT]}}
    _quietly(api.delete_node, NAME)
    api.create_node(node)
    stop = threading.Event()
    threads = [threading.Thread(target=play, args=(stop,), daemon=True) for play in (_beat, _play)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        _quietly(api.delete_node, NAME)


def _beat(stop: threading.Event) -> None:
    """Say that the node is well, however many pods there are: else all of them would be evicted."""
    api = client.CoreV1Api(client.ApiClient())
    while True:
        ready = _condition("Ready", "True")
        api.patch_node_status(NAME, {"status": {"capacity": ROOM, "allocatable": ROOM, "conditions": [ready]}})
        taints = {"spec": {"taints": [TAINT]}}  # without what the node had for not being ready
        api.patch_node(NAME, taints)
        if stop.wait(5.0):
            return


def _play(stop: threading.Event) -> None:
    api = client.CoreV1Api(client.ApiClient())
    number = 0
    while not stop.wait(0.2):
        pods: list[Any] = api.list_pod_for_all_namespaces(field_selector=f"spec.nodeName={NAME}").items
        for pod in pods:
            where = pod.metadata.name, pod.metadata.namespace
            if pod.metadata.deletion_timestamp:
                _quietly(api.delete_namespaced_pod, *where, grace_period_seconds=0)
            elif pod.status.phase == "Pending":
                number += 1
                _quietly(api.patch_namespaced_pod_status, *where, {"status": _running(pod, number)})


def _running(pod: Any, number: int) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    address = f"10.99.{number // 250}.{number % 250 + 1}"
    states = [
        {"name": each.name, "image": each.image, "imageID": "", "ready": True, "restartCount": 0, "started": True,
         "state": {"running": {"startedAt": now}}}
        for each in pod.spec.containers
    ]  # fmt: skip
    conditions = [_condition(kind, "True") for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")]
    return {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": now,
            "conditions": conditions, "containerStatuses": states}  # fmt: skip


def _condition(kind: str, status: str) -> dict[str, str]:
    now = datetime.now(UTC).isoformat()
    return {"type": kind, "status": status, "lastTransitionTime": now, "lastHeartbeatTime": now, "reason": "Standin"}


def _quietly(call: Any, *arguments: Any, **options: Any) -> None:
    try:
        call(*arguments, **options)
    except ApiException as error:
        if error.status not in (404, 409):
            raise
