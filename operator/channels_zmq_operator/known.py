"""The state that the operator keeps of layers and their objects: fingerprints, and the fields that are used.

Whole objects are not kept, because any user who may create a ConfigMap can set the label on one of a megabyte.
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
"""Kind and name of an object of a layer."""
APPLIED = "channels-zmq.io/applied"
"""Annotation with the digest of the manifest that we applied: a rendered manifest with another digest has changed."""
CLUSTERS_OWN = "deployment.kubernetes.io/"
"""Prefix of annotations that the cluster itself writes."""


@dataclass(frozen=True, slots=True)
class SeenChild:
    """The state that is kept of an object of a layer.

    Args:
        uid: The uid of the object.
        owners: The uids of the layers that own it.
        version: Its resource version.
        fingerprint: The digest of its content, see `fingerprint`.
        applied: The digest of the manifest that we applied, from its annotation.
        deployment: The parts that a status depends on, if it is a Deployment.
    """

    uid: str
    owners: frozenset[str]
    version: int
    fingerprint: str
    applied: str
    deployment: Manifest | None

    @classmethod
    def of(cls, child: Manifest) -> "SeenChild":
        """Return the state to keep of an object."""
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
    """The state that is kept of a layer.

    Args:
        resource: The layer as it was last seen, without its spec; None before that.
        spec: Its parsed spec; None if that is invalid.
        problem: Why the spec is invalid.
    """

    resource: Manifest | None = None
    spec: Spec | None = None
    problem: str = ""
    children: dict[Child, SeenChild] = field(default_factory=dict)
    applied: dict[Child, str] = field(default_factory=dict)
    """Fingerprints of the objects that the API server returned for our applies."""
    claimed: set[Child] = field(default_factory=set)
    """Objects that were found to belong to no other owner, and that have not been applied since."""
    secrets: dict[str, Manifest] = field(default_factory=dict)
    """Secrets as we last applied them: one that was edited or deleted is restored with the same keys."""
    rotated_for: str = ""
    """The last completed `rotateNow`: earlier keys are revoked."""
    refusal: ClusterError | None = None
    told: set[str] = field(default_factory=set)
    """Messages of the problems for which events were created, until all problems are solved."""
    pods: dict[str, str] = field(default_factory=dict)
    """Problems of its forwarders' pods, by name of the pod."""
    found: int = 0
    """The generation at the first report, if another process has reconciled it; 0 otherwise."""
    waits: bool = False
    """Whether its upgrade waits until that of another layer is complete."""
    settings: AppSettings | None = None
    """Digest of the settings that its applications read at their start, and when these changed."""
    outdated: int | None = None
    """Number of the applications' pods that are older than their settings; None if not counted yet."""
    count_at: datetime | None = None
    """When to count them again; None for at once."""


def layer_of(child: Manifest) -> Key:
    """Return the layer of a child, preferably from its owner reference: the label is more easily edited."""
    metadata = child["metadata"]
    return metadata["namespace"], (owner_names(child) or [metadata["labels"].get(OWNER_LABEL, "")])[0]


def pod_layer(pod: Manifest) -> Key:
    """Return the layer of a forwarder's pod, from its label: its owner is a ReplicaSet."""
    return pod["metadata"]["namespace"], pod["metadata"]["labels"][OWNER_LABEL]


def fingerprint(manifest: Manifest) -> str:
    """Return a digest of the parts that only an edit or an apply changes, without status and bookkeeping."""
    metadata = manifest["metadata"]
    stays = {key: metadata.get(key) for key in ("name", "labels", "annotations", "ownerReferences")}
    annotations = stays["annotations"] or {}
    stays["annotations"] = {key: annotations[key] for key in annotations if not key.startswith(CLUSTERS_OWN)}
    body = {key: value for key, value in manifest.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    return digest({"metadata": stays, **body})


def digest(value: Any) -> str:
    """Return a digest of a value: 32 hexadecimal digits of the SHA-256 of its JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def owner_names(child: Manifest) -> list[str]:
    """Return the names of the layers that own an object, or owned it before they were deleted and created again."""
    return [one["name"] for one in child["metadata"].get("ownerReferences") or () if one["kind"] == KIND]


def owners_of(child: Manifest) -> frozenset[str]:
    """Return the uids of the layers that own an object."""
    return frozenset(one["uid"] for one in child["metadata"].get("ownerReferences") or () if one["kind"] == KIND)


def kept(resource: Manifest) -> Manifest:
    """Return the state to keep of a layer: its spec is kept parsed, and its annotations are not used."""
    names = ("name", "namespace", "uid", "generation", "resourceVersion")
    metadata = {key: value for key, value in resource["metadata"].items() if key in names}
    return {"metadata": metadata, "status": resource.get("status") or {}}


def version_of(manifest: Manifest) -> int:
    """Return the resource version of an object, which grows with each change."""
    return int(manifest["metadata"].get("resourceVersion", 0))
