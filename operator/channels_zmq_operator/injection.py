"""The JSON patch that injects a layer into a pod. Pure: it depends only on the pod.

It injects only references: variables that the kubelet reads from the layer's ConfigMap and from its Secret, and a
volume with the keys in that Secret and the encryption keys in a Secret that users create. So a pod may be created
before its layer, and then waits for it. Values that the pod's author has set take precedence.

The patch is text, made in parts: for sixteen layers in two hundred containers it has three megabytes of nearly equal
entries. Each entry is serialized once, and each part is made when the webhook is about to send it.
"""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from channels_zmq_operator.models import GROUP, LONGEST_NAME
from channels_zmq_operator.naming import (
    ENCRYPTION_KEYS_ENTRY,
    ENCRYPTION_KEYS_FILE,
    ENV,
    ENV_KEYS,
    INJECTED_ANNOTATION,
    KEY_FILES,
    LAYER_LABEL,
    PATHS,
    Manifest,
    config_map_name,
    encryption_secret_name,
    key_folder,
)

LAYERS_ANNOTATION = f"{GROUP}/layers"
ALIAS_ANNOTATION = f"{GROUP}/alias"
CONTAINERS_ANNOTATION = f"{GROUP}/containers"
MOST_LAYERS, MOST_CONTAINERS, LONGEST_ALIAS = 16, 200, 40
"""Limits on what a pod may request: they bound the patch, and so the cost of a review."""
_ALIAS = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LAYER = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


class InjectionError(ValueError):
    """An invalid label or annotation, or a pod that requests too much; the message says which, and what is valid."""


class Wish(NamedTuple):
    """The request of a pod: layers by alias, and the containers to inject them into; all if None."""

    layers: dict[str, str]
    containers: frozenset[str] | None


def wish(pod: Manifest) -> Wish:
    """Return the request in a pod's label and annotations.

    Raises:
        InjectionError: If one of them is invalid.
    """
    labels, annotations = _texts(pod, "labels"), _texts(pod, "annotations")
    layers: dict[str, str] = {}
    if labels.get(LAYER_LABEL):
        layers[annotations.get(ALIAS_ANNOTATION, "default")] = labels[LAYER_LABEL]
    parts = [part.strip() for part in annotations.get(LAYERS_ANNOTATION, "").split(",")]
    parts = [part for part in parts if part]
    if len(layers) + len(parts) > MOST_LAYERS:
        raise InjectionError(
            f"{LAYERS_ANNOTATION}: a pod has at most {MOST_LAYERS} layers, this one has {len(layers) + len(parts)}"
        )
    for part in parts:
        alias, equals, layer = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InjectionError(f"{LAYERS_ANNOTATION}: {part!r} is not ALIAS=LAYER")
        if layers.setdefault(alias, layer) != layer:
            raise InjectionError(f"{LAYERS_ANNOTATION}: alias {alias} has two layers, {layers[alias]!r} and {layer!r}")
    for alias, layer in layers.items():
        if not _ALIAS.fullmatch(alias) or len(alias) > LONGEST_ALIAS:
            raise InjectionError(
                f"{alias!r} is not a valid alias: at most {LONGEST_ALIAS} lower-case letters, digits and single "
                "underscores"
            )
        if not _LAYER.fullmatch(layer) or len(layer) > LONGEST_NAME:
            raise InjectionError(
                f"{layer!r} is not a valid layer name: at most {LONGEST_NAME} letters, digits and hyphens"
            )
    return Wish(layers, _named_containers(pod, annotations) if layers else None)


def _named_containers(pod: Manifest, annotations: dict[str, str]) -> frozenset[str] | None:
    named = annotations.get(CONTAINERS_ANNOTATION)
    if named is None:
        return None
    containers = frozenset(part.strip() for part in named.split(",") if part.strip())
    missing = containers - {str(one.get("name")) for kind in _KINDS for one in _objects(_spec(pod), kind)}
    if missing:
        raise InjectionError(f"{CONTAINERS_ANNOTATION}: the pod has no container {', '.join(sorted(missing))}")
    return containers


def patch(pod: Manifest) -> Iterator[str] | None:
    """Return the JSON patch that injects the layers of a pod, as parts of its text; None if nothing is to be added.

    The pod is validated before the first part is made, so the iteration raises nothing.

    Raises:
        InjectionError: If the pod, its label or its annotations are invalid, or if it requests too much.
    """
    wanted = wish(pod)
    if not wanted.layers or wanted.containers == frozenset():
        return None
    spec = _spec(pod)
    present = {kind: _objects(spec, kind) for kind in _KINDS}
    if (count := sum(map(len, present.values()))) > MOST_CONTAINERS:
        raise InjectionError(f"a pod with a layer has at most {MOST_CONTAINERS} containers, not {count}")
    fields = [("/spec/volumes", _objects(spec, "volumes"), _encoded(_volumes(wanted.layers), "name"), "name")]
    variables = _encoded(_variables(wanted.layers), "name")
    mounts = _encoded(_mounts(wanted.layers), "mountPath")
    for kind, containers in present.items():
        for index, container in enumerate(containers):
            if wanted.containers is None or str(container.get("name")) in wanted.containers:
                path = f"/spec/{kind}/{index}"
                fields.append((f"{path}/env", _objects(container, "env"), variables, "name"))
                fields.append((f"{path}/volumeMounts", _objects(container, "volumeMounts"), mounts, "mountPath"))
    note = _noted(pod, wanted.layers)
    if not note and not any(_missing(present, wanted, identity) for _, present, wanted, identity in fields):
        return None
    return _parts(fields, note)


_KINDS = ("initContainers", "containers")


def _texts(pod: Manifest, field: str) -> dict[str, str]:
    """Return the labels or annotations, of which only those of our group are validated."""
    metadata = pod.get("metadata") or {}
    found = (metadata.get(field) if isinstance(metadata, dict) else metadata) or {}
    if not isinstance(found, dict):
        raise InjectionError(f"metadata.{field} is not a map")
    for key, value in found.items():
        if str(key).startswith(f"{GROUP}/") and not isinstance(value, str):
            raise InjectionError(f"metadata.{field}: {key} is not a string")
    return found


def _spec(pod: Manifest) -> Manifest:
    spec = pod.get("spec")
    if not isinstance(spec, dict):
        raise InjectionError("the pod has no spec")
    return spec


def _objects(parent: Manifest, field: str) -> list[Manifest]:
    found = parent.get(field) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InjectionError(f"{field} of the pod is not a list of objects")
    return found


def _variables(layers: dict[str, str]) -> list[Manifest]:
    out = []
    for alias, layer in layers.items():
        prefix = ENV if alias == "default" else f"{ENV}_{alias.upper()}__"
        for key in ENV_KEYS:
            reference: Manifest = {"name": config_map_name(layer), "key": ENV + key}
            out.append({"name": prefix + key, "valueFrom": {"configMapKeyRef": reference}})
        for key, (entry, _) in PATHS.items():  # not optional: a pod without them would use no keys
            reference = {"name": f"{layer}-client", "key": entry}
            out.append({"name": prefix + key, "valueFrom": {"secretKeyRef": reference}})
    return out


def _mounts(layers: dict[str, str]) -> list[Manifest]:
    return [
        {"name": f"channels-zmq-{layer}", "mountPath": key_folder(layer), "readOnly": True}
        for layer in dict.fromkeys(layers.values())
    ]


def _volumes(layers: dict[str, str]) -> list[Manifest]:
    """Return the volumes of the keys: readable by all, as a pod may run as any user; optional, to avoid long waits.

    It is unknown here whether a layer encrypts, and that may change: its Secret of encryption keys is always mounted.
    """
    return [
        {
            "name": f"channels-zmq-{layer}",
            "projected": {
                "sources": [
                    _source(f"{layer}-client", KEY_FILES),
                    _source(encryption_secret_name(layer), {ENCRYPTION_KEYS_ENTRY: ENCRYPTION_KEYS_FILE}),
                ],
                "defaultMode": 0o444,
            },
        }
        for layer in dict.fromkeys(layers.values())
    ]


def _source(secret: str, files: dict[str, str]) -> Manifest:
    items = [{"key": entry, "path": path} for entry, path in files.items()]
    return {"secret": {"name": secret, "items": items, "optional": True}}


Field = tuple[str, list[Manifest], dict[str, str], str]
"""Path of a list, its items, the wanted items as JSON by identity, and the key that holds an item's identity."""


def _encoded(wanted: list[Manifest], identity: str) -> dict[str, str]:
    return {one[identity]: json.dumps(one, separators=(",", ":")) for one in wanted}


def _missing(present: list[Manifest], wanted: dict[str, str], identity: str) -> list[str]:
    taken = {name for one in present if isinstance(name := one.get(identity), str)}
    return [text for name, text in wanted.items() if name not in taken]


def _parts(fields: list[Field], note: str) -> Iterator[str]:
    between = "["
    for path, present, wanted, identity in fields:
        if missing := _missing(present, wanted, identity):
            yield between + _added(path, missing, is_first=not present)
            between = ","
    if note:
        yield between + note
    yield "]"


def _added(path: str, missing: list[str], *, is_first: bool) -> str:
    if is_first:  # the list is missing or empty
        return f'{{"op":"add","path":"{path}","value":[{",".join(missing)}]}}'
    head = f'{{"op":"add","path":"{path}/-","value":'
    return head + ("}," + head).join(missing) + "}"


def _noted(pod: Manifest, layers: dict[str, str]) -> str:
    """Return the operation that annotates the pod with the injected layers; empty if the annotation is present."""
    text = ",".join(f"{alias}={layer}" for alias, layer in sorted(layers.items()))
    annotations = _texts(pod, "annotations")
    if annotations.get(INJECTED_ANNOTATION) == text:
        return ""
    if not annotations:
        return json.dumps({"op": "add", "path": "/metadata/annotations", "value": {INJECTED_ANNOTATION: text}})
    escaped = INJECTED_ANNOTATION.replace("~", "~0").replace("/", "~1")
    return json.dumps({"op": "add", "path": f"/metadata/annotations/{escaped}", "value": text})
