"""The part of a layer and of its objects that is kept from the watches: fingerprints, and the fields that are used.

Objects are not kept whole, because any user who may create a ConfigMap can set the label on one of a megabyte.
"""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from channels_zmq_operator import status
from channels_zmq_operator.cluster import ClusterError
from channels_zmq_operator.models import KIND, AppSettings, Key, Spec
from channels_zmq_operator.naming import OWNER_LABEL, Manifest

Child = tuple[str, str]
"""Kind and name of one of its objects."""
APPLIED = "channels-zmq.io/applied"
"""Annotation with the digest of what we applied, by which a change of what is wanted is found."""
CLUSTERS_OWN = "deployment.kubernetes.io/"
"""Annotations that the cluster itself writes."""


@dataclass(frozen=True, slots=True)
class SeenChild:
    """What is kept of an object of a layer.

    Args:
        uid: Its own.
        owners: The uids of the layers that own it.
        version: Its resource version.
        fingerprint: Of its content.
        applied: The digest of what we applied, as its annotation says.
        deployment: Generation and status, if it is a Deployment.
    """

    uid: str
    owners: frozenset[str]
    version: int
    fingerprint: str
    applied: str
    deployment: Manifest | None

    @classmethod
    def of(cls, child: Manifest) -> "SeenChild":
        """Return what is kept of an object."""
        metadata = child["metadata"]
        return cls(
            uid=metadata.get("uid", ""),
            owners=owners_of(child),
            version=version_of(child),
            fingerprint=fingerprint(child),
            applied=str((metadata.get("annotations") or {}).get(APPLIED, ""))[:64],
            deployment=status.kept(child) if child["kind"] == "Deployment" else None,
        )


@dataclass(slots=True)
class Known:
    """What is known of one layer.

    Args:
        resource: The layer as it was last seen, without its spec; None before that.
        spec: Its spec; None if that is invalid.
        problem: Why it is invalid.
    """

    resource: Manifest | None = None
    spec: Spec | None = None
    problem: str = ""
    children: dict[Child, SeenChild] = field(default_factory=dict)
    applied: dict[Child, str] = field(default_factory=dict)
    """Fingerprints of what the API server answered to our applies."""
    claimed: set[Child] = field(default_factory=set)
    """Objects that this pass has found to belong to no other owner."""
    secrets: dict[str, Manifest] = field(default_factory=dict)
    """Secrets as we applied them last: one that was edited or deleted is made again with the same keys."""
    rotated_for: str = ""
    """The `rotateNow` that is done: keys before it are revoked."""
    refusal: ClusterError | None = None
    told: set[str] = field(default_factory=set)
    """The problems for which events were recorded, until all problems are solved."""
    pods: dict[str, str] = field(default_factory=dict)
    """Its forwarders' pods by name, and what is wrong with each."""
    found: int = 0
    """The generation that this process has found done by another one; 0 if none, or if that was not done."""
    waits: bool = False
    """Whether its forwarders are replaced only when another layer's are."""
    settings: AppSettings | None = None
    """What its applications are told."""
    outdated: int | None = None
    """How many pods of applications are older than their settings; None if they have not been counted."""
    count_at: datetime | None = None
    """When to look again, if there were some."""


def layer_of(child: Manifest) -> Key:
    """Return the layer of a child: that of its owner reference, as the label is more easily edited."""
    metadata = child["metadata"]
    return metadata["namespace"], (owner_names(child) or [metadata["labels"].get(OWNER_LABEL, "")])[0]


def pod_layer(pod: Manifest) -> Key:
    """Return the layer of a forwarder's pod, by its label: its owner is a ReplicaSet."""
    return pod["metadata"]["namespace"], pod["metadata"]["labels"][OWNER_LABEL]


def fingerprint(manifest: Manifest) -> str:
    """Return the parts that stay the same unless a user changes the object: neither status nor bookkeeping."""
    metadata = manifest["metadata"]
    stays = {key: metadata.get(key) for key in ("name", "labels", "annotations", "ownerReferences")}
    annotations = stays["annotations"] or {}
    stays["annotations"] = {key: annotations[key] for key in annotations if not key.startswith(CLUSTERS_OWN)}
    body = {key: value for key, value in manifest.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    return digest({"metadata": stays, **body})


def digest(value: Any) -> str:
    """Return what stays the same as long as a value does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def owner_names(child: Manifest) -> list[str]:
    """Return the names of the layers that own an object, or have owned it before they were made again."""
    return [one["name"] for one in child["metadata"].get("ownerReferences") or () if one["kind"] == KIND]


def owners_of(child: Manifest) -> frozenset[str]:
    """Return the uids of the layers that own an object."""
    return frozenset(one["uid"] for one in child["metadata"].get("ownerReferences") or () if one["kind"] == KIND)


def kept(resource: Manifest) -> Manifest:
    """Return what is kept of a layer: its spec is parsed, and its annotations are not used."""
    names = ("name", "namespace", "uid", "generation", "resourceVersion")
    metadata = {key: value for key, value in resource["metadata"].items() if key in names}
    return {"metadata": metadata, "status": resource.get("status") or {}}


def version_of(manifest: Manifest) -> int:
    """Return the resource version of an object, which grows."""
    return int(manifest["metadata"].get("resourceVersion", 0))
