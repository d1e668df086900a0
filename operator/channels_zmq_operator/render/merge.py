"""Merges two descriptions of a pod, as a server-side apply does: maps by keys, lists by the key of their items."""

from typing import Any

IDENTITIES = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
}
"""Lists that are merged, and the key that identifies their items. Any other list is one value."""


def merged(theirs: Any, ours: Any, field: str = "") -> Any:
    """Return `theirs` with `ours` merged into it; where both have a value, that of `ours` takes precedence."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        both = {key: merged(theirs[key], ours[key], key) for key in ours if key in theirs}
        return {**theirs, **ours, **both}
    identity = IDENTITIES.get(field)
    if identity is not None and isinstance(theirs, list) and isinstance(ours, list):
        rest = list(theirs)
        own = []
        for one in ours:
            same = [each for each in rest if isinstance(each, dict) and each.get(identity) == one[identity]]
            own.append(merged(same[0], one) if same else one)
            rest = [each for each in rest if each not in same]
        return own + rest
    return ours
