"""What a pod needs to use a layer, as a JSON patch. Pure: it depends on the pod alone.

Only references go in: variables that the kubelet reads from the layer's ConfigMap, and the Secret with the client's key
as a volume. So a pod may be made before its layer, and then waits for it. What the pod's author has set stays.
"""

import re
from typing import Any, NamedTuple

from channels_zmq_operator.models import GROUP, LONGEST_NAME
from channels_zmq_operator.render import (
    ENV,
    ENV_KEYS,
    KEY_FILE,
    KEY_FILE_ENTRY,
    LAYER_LABEL,
    Manifest,
    key_folder,
)

LAYERS_ANNOTATION = f"{GROUP}/layers"
ALIAS_ANNOTATION = f"{GROUP}/alias"
CONTAINERS_ANNOTATION = f"{GROUP}/containers"
INJECTED_ANNOTATION = f"{GROUP}/injected"
NEEDED = ("PULL_SOCKET_ADDRESS", "PUB_SOCKET_ADDRESS")
"""Keys that every layer's ConfigMap has; a pod waits for these, the others are optional."""
_ALIAS = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LAYER = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
Patch = list[dict[str, Any]]


class InjectionError(ValueError):
    """A label or annotation that cannot be understood; the message names it and says what it looks like."""


class Wish(NamedTuple):
    """What a pod asks for: layers by alias, and in which containers; all if None."""

    layers: dict[str, str]
    containers: frozenset[str] | None


def wish(pod: Manifest) -> Wish:
    """Return what a pod's label and annotations ask for.

    Raises:
        InjectionError: One of them cannot be understood.
    """
    metadata = pod.get("metadata") or {}
    annotations = metadata.get("annotations") or {}
    layers: dict[str, str] = {}
    label = (metadata.get("labels") or {}).get(LAYER_LABEL, "")
    if label:
        layers[annotations.get(ALIAS_ANNOTATION, "default")] = label
    for part in filter(None, (part.strip() for part in annotations.get(LAYERS_ANNOTATION, "").split(","))):
        alias, equals, layer = part.partition("=")
        if not equals:
            raise InjectionError(f"{LAYERS_ANNOTATION}: {part!r} is not ALIAS=LAYER")
        layers[alias.strip()] = layer.strip()
    for alias, layer in layers.items():
        if not _ALIAS.fullmatch(alias):
            raise InjectionError(f"{alias!r} is no alias: lower-case letters, digits and single underscores")
        if not _LAYER.fullmatch(layer) or len(layer) > LONGEST_NAME:
            raise InjectionError(f"{layer!r} is no name of a layer: at most {LONGEST_NAME} letters, digits and hyphens")
    named = annotations.get(CONTAINERS_ANNOTATION)
    containers = None if named is None else frozenset(part.strip() for part in named.split(",") if part.strip())
    known = {one.get("name") for kind in _KINDS for one in _containers(pod, kind)}
    if containers is not None and not containers <= known:
        missing = ", ".join(sorted(containers - known))
        raise InjectionError(f"{CONTAINERS_ANNOTATION}: the pod has no container {missing}")
    return Wish(layers, containers)


def patch(pod: Manifest) -> Patch:
    """Return the JSON patch that injects what a pod asks for; empty if there is nothing to do.

    Raises:
        InjectionError: Its label or annotations cannot be understood.
    """
    wanted = wish(pod)
    if not wanted.layers:
        return []
    out: Patch = []
    for kind in _KINDS:
        for index, container in enumerate(_containers(pod, kind)):
            if wanted.containers is None or container.get("name") in wanted.containers:
                path = f"/spec/{kind}/{index}"
                out += _added(f"{path}/env", container.get("env"), _variables(wanted.layers), "name")
                out += _added(
                    f"{path}/volumeMounts", container.get("volumeMounts"), _mounts(wanted.layers), "mountPath"
                )
    out += _added("/spec/volumes", (pod.get("spec") or {}).get("volumes"), _volumes(wanted.layers), "name")
    return out + _noted(pod, wanted.layers)


_KINDS = ("initContainers", "containers")


def _containers(pod: Manifest, kind: str) -> list[Manifest]:
    return list((pod.get("spec") or {}).get(kind) or ())


def _variables(layers: dict[str, str]) -> list[Manifest]:
    out = []
    for alias, layer in layers.items():
        prefix = ENV if alias == "default" else f"{ENV}_{alias.upper()}__"
        out += [_reference(prefix + key, layer, ENV + key, optional=key not in NEEDED) for key in ENV_KEYS]
        out.append(_reference(f"{prefix}CURVE_SECRET_KEY_FILE", layer, KEY_FILE_ENTRY, optional=True))
    return out


def _reference(variable: str, config_map: str, key: str, *, optional: bool) -> Manifest:
    reference: Manifest = {"name": config_map, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": variable, "valueFrom": {"configMapKeyRef": reference}}


def _mounts(layers: dict[str, str]) -> list[Manifest]:
    return [
        {"name": f"channels-zmq-{layer}", "mountPath": key_folder(layer), "readOnly": True}
        for layer in dict.fromkeys(layers.values())
    ]


def _volumes(layers: dict[str, str]) -> list[Manifest]:
    """Return the volumes of the keys: readable by all, as a pod may run as any user; optional, lest it wait long."""
    items = [{"key": f"{ENV}CURVE_SECRET_KEY", "path": KEY_FILE}]
    return [
        {
            "name": f"channels-zmq-{layer}",
            "secret": {"secretName": f"{layer}-client", "items": items, "defaultMode": 0o444, "optional": True},
        }
        for layer in dict.fromkeys(layers.values())
    ]


def _added(path: str, present: list[Manifest] | None, wanted: list[Manifest], identity: str) -> Patch:
    taken = {one.get(identity) for one in present or ()}
    missing = [one for one in wanted if one[identity] not in taken]
    if missing and not present:
        return [{"op": "add", "path": path, "value": missing}]
    return [{"op": "add", "path": f"{path}/-", "value": one} for one in missing]


def _noted(pod: Manifest, layers: dict[str, str]) -> Patch:
    text = ",".join(f"{alias}={layer}" for alias, layer in sorted(layers.items()))
    annotations = (pod.get("metadata") or {}).get("annotations")
    if (annotations or {}).get(INJECTED_ANNOTATION) == text:
        return []
    if not annotations:
        return [{"op": "add", "path": "/metadata/annotations", "value": {INJECTED_ANNOTATION: text}}]
    escaped = INJECTED_ANNOTATION.replace("~", "~0").replace("/", "~1")
    return [{"op": "add", "path": f"/metadata/annotations/{escaped}", "value": text}]
