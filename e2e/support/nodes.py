"""A node that has no kubelet: pods that are sent there are said to run. For counts of pods that no test machine has."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

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
    """Report that the node is ready, however many pods there are: else all of them would be evicted."""
    api = client.CoreV1Api(client.ApiClient())
    while True:
        ready = _condition("Ready", "True")
        status = {"status": {"capacity": ROOM, "allocatable": ROOM, "conditions": [ready]}}
        _quietly(api.patch_node_status, NAME, status)
        taints = {"spec": {"taints": [TAINT]}}  # without what the node had for not being ready
        _quietly(api.patch_node, NAME, taints)
        if stop.wait(5.0):
            return


def _play(stop: threading.Event) -> None:
    """Let pods run and end as soon as they should: after 90 s their Deployment exceeds its progress deadline."""
    api = client.CoreV1Api(client.ApiClient())
    numbers = itertools.count(1)

    def answer(pod: Any) -> None:
        where = pod.metadata.name, pod.metadata.namespace
        if pod.metadata.deletion_timestamp:
            _quietly(api.delete_namespaced_pod, *where, grace_period_seconds=0)
        elif pod.status.phase == "Pending":
            _quietly(api.patch_namespaced_pod_status, *where, {"status": _running(pod, next(numbers))})

    with ThreadPoolExecutor(8) as threads:
        while not stop.wait(0.2):
            found: Any = _quietly(api.list_pod_for_all_namespaces, field_selector=f"spec.nodeName={NAME}")
            list(threads.map(answer, found.items if found else ()))


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


def _quietly(call: Any, *arguments: Any, **options: Any) -> Any:
    """Return the result of a request, or None if it fails: what is still to be done is tried again soon."""
    try:
        return call(*arguments, **options)
    except (ApiException, HTTPError) as error:
        if getattr(error, "status", 0) not in (404, 409):
            print(f"{NAME}: {error}")
        return None
