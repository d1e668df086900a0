"""Finds the problem of a forwarder's pod, in the terms of the cluster, and outdated pods of applications. Pure."""

from channels_zmq_operator.naming import INJECTED_ANNOTATION, LAYER_LABEL, Manifest

LONGEST = 300
"""Maximum number of characters of a problem."""
WAITING_FOR_ITS_TURN = ("ContainerCreating", "PodInitializing")
"""Reasons for which a container waits while it starts normally."""


def problem(pod: Manifest) -> str:
    """Return why a pod is not ready, such as `ImagePullBackOff`; empty if it is ready or the cause is unknown."""
    status = pod.get("status") or {}
    conditions = {one.get("type"): one for one in status.get("conditions") or ()}
    if conditions.get("Ready", {}).get("status") == "True" or pod["metadata"].get("deletionTimestamp"):
        return ""
    if status.get("phase") in ("Failed", "Succeeded"):  # such as an evicted pod, which its ReplicaSet has replaced
        return ""
    if conditions.get("PodScheduled", {}).get("status") == "False":
        found = _said(conditions["PodScheduled"].get("reason", ""), conditions["PodScheduled"].get("message"))
    else:
        containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        found = next(filter(None, map(_of_container, containers)), "")
    return f"pod {pod['metadata']['name']}: {found}"[:LONGEST] if found else ""


def is_outdated(pod: Manifest, layer: str, since: str) -> bool:
    """Return whether an application's pod uses a layer and is older than the layer's settings.

    Args:
        pod: The pod; its metadata is enough.
        layer: The name of the layer.
        since: When the settings last changed, in the format of Kubernetes.
    """
    metadata = pod["metadata"]
    injected = (metadata.get("annotations") or {}).get(INJECTED_ANNOTATION, "")
    layers = {one.partition("=")[2] for one in injected.split(",")} | {metadata["labels"].get(LAYER_LABEL)}
    return layer in layers and metadata["creationTimestamp"] < since


def _of_container(container: Manifest) -> str:
    state, before = container.get("state") or {}, container.get("lastState") or {}
    waiting = state.get("waiting") or {}
    ended = before.get("terminated") or state.get("terminated") or {}
    reason = waiting.get("reason", "")
    if ended.get("exitCode"):  # the same text whether it runs again or waits to be restarted
        return f"a container ended with {ended.get('reason', 'Error')}, exit code {ended['exitCode']}"
    return "" if not reason or reason in WAITING_FOR_ITS_TURN else _said(reason, waiting.get("message"))


def _said(reason: str, message: str | None) -> str:
    return ": ".join(filter(None, (reason, message)))
