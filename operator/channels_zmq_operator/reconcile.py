"""One layer, brought to what its resource says: render, apply, prune, status.

Level-triggered: it does not matter what happened, and doing it again changes nothing. What the cluster holds is known
from the watches that `handlers` feeds in here, so that a look costs no request. Of what they show, fingerprints and the
fields that are used are kept: anybody who may make a ConfigMap can put our label on a megabyte.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from channels_zmq_operator import keys as layer_keys
from channels_zmq_operator import naming, status
from channels_zmq_operator.cluster import Cluster, ClusterError, NameTaken
from channels_zmq_operator.models import API_VERSION, KIND, Owner, Spec, SpecError, parse, seconds
from channels_zmq_operator.naming import OWNER_LABEL, Manifest
from channels_zmq_operator.render import Choices, LayerKeys, render
from channels_zmq_operator.workqueue import Key

logger = logging.getLogger("channels_zmq_operator")

Child = tuple[str, str]
"""Kind and name of one of its objects."""
INVALID = 422
"""The HTTP status of an object that the API server refuses, such as one with a change of what cannot change."""
MADE_ANEW = ("Service",)
"""Kinds of which one that is refused is deleted: whether a Service is headless cannot change, and it has no state."""
PRUNED = ("ServiceMonitor", "NetworkPolicy", "PodDisruptionBudget", "Deployment", "Service", "Secret", "ConfigMap")


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
            owners=_owners(child),
            version=_version(child),
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
    secrets: dict[str, Manifest] = field(default_factory=dict)
    """Secrets as we applied them last: one that was edited or deleted is made again with the same keys."""
    rotated_for: str = ""
    """The `rotateNow` that is done: keys before it are revoked."""
    refusal: ClusterError | None = None
    told: str = ""
    """The last problem that an event was made of."""


def layer_of(child: Manifest) -> Key:
    """Return the layer of a child: that of its owner reference, as the label is more easily edited."""
    metadata = child["metadata"]
    return metadata["namespace"], (_owner_names(child) or [metadata["labels"].get(OWNER_LABEL, "")])[0]


class Reconciler:
    """All layers.

    Args:
        cluster: The API server.
        choices: What holds for all layers.
        clock: Aware time.
    """

    def __init__(
        self, cluster: Cluster, choices: Choices, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.layers: dict[Key, Known] = {}
        self.choices = choices
        self._cluster = cluster
        self._clock = clock

    # What the watches tell; True: the layer has to be looked at

    def layer_seen(self, resource: Manifest, *, gone: bool) -> bool:
        """Note a layer as it is now."""
        owner = Owner.of(resource)
        known = self.layers.setdefault(owner.key, Known())
        before = known.resource
        if gone:
            del self.layers[owner.key]
            return False
        if before is not None and before["metadata"]["uid"] != owner.uid:
            known = self.layers[owner.key] = Known()
            before = None
        if before is None:  # its children may have been seen first
            known.children = {name: child for name, child in known.children.items() if owner.uid in child.owners}
        elif before["metadata"]["generation"] == owner.generation:
            known.resource = _kept(resource)
            return False
        known.resource = _kept(resource)
        try:
            spec = parse(resource, ignores_unknown=True)
            if self.choices.limits is not None:
                self.choices.limits.check(spec)
            known.spec, known.problem = spec, ""
        except SpecError as error:
            known.spec, known.problem = None, str(error)[:LONGEST_PROBLEM]
        return True

    def child_seen(self, child: Manifest, *, gone: bool) -> bool:
        """Note an object of a layer as it is now."""
        key = layer_of(child)
        name: Child = child["kind"], child["metadata"]["name"]
        known = self.layers.get(key)
        if gone or not self._owns(known, child):
            if known is None:
                return False
            known.children.pop(name, None)
            if known.resource is None and not known.children:
                del self.layers[key]
            # One of ours that is gone, or that somebody has taken from its owner
            return name in known.applied if not gone else known.applied.pop(name, None) is not None
        known = self.layers.setdefault(key, Known())
        before, seen = known.children.get(name), SeenChild.of(child)
        known.children[name] = seen
        if known.applied.get(name) != seen.fingerprint:
            return True
        return seen.deployment != (before.deployment if before else None)

    def _owns(self, known: Known | None, child: Manifest) -> bool:
        """Return whether a layer owns an object, or one may that has not been seen yet."""
        owners = _owners(child)
        if known is None or known.resource is None:
            return bool(owners)
        return known.resource["metadata"].get("uid", "") in owners

    def has_seen(self, found: Manifest) -> bool:
        """Return whether the watches have shown an object as it is in a list, or later."""
        if found["kind"] == KIND:
            known = self.layers.get(Owner.of(found).key)
            return known is not None and known.resource is not None and _version(known.resource) >= _version(found)
        known = self.layers.get(layer_of(found))
        if not self._owns(known, found):
            return True  # nothing is kept of it
        seen = known.children.get((found["kind"], found["metadata"]["name"])) if known else None
        return seen is not None and seen.version >= _version(found)

    # The work

    async def reconcile(self, key: Key) -> float:
        """Bring one layer to what its resource says.

        Returns:
            Seconds until it has to be looked at again at the latest.

        Raises:
            ClusterError: The cluster refused, or is away; it is in the status, if that could be written.
        """
        known = self.layers.get(key)
        if known is None or known.resource is None:
            return float("inf")
        owner = Owner.of(known.resource)
        spec = known.spec
        if spec is None:
            known.refusal = None
            await self._tell(known, owner, "SpecInvalid", known.problem)
            await self._write_status(known, owner, problem=known.problem)
            return float("inf")
        again = float("inf")
        try:
            keys: LayerKeys | None = None
            if spec.security.curve == "Enabled":
                every = seconds(spec.security.rotate_every)
                keys = await self._keys(known, owner, spec, every)
                again = max(1.0, (layer_keys.due_at(keys, every) - self._clock()).total_seconds())
            manifests = render(owner, spec, keys, self.choices)
            for manifest in manifests:
                await self._apply(known, owner, manifest)
            await self._prune(known, owner, manifests)
            known.refusal = None
            known.rotated_for = keys.rotated_for if keys is not None and not keys.revoke_at else ""
        except ClusterError as error:
            known.refusal = error
            await self._tell(known, owner, error.condition, str(error))
            await self._write_status(known, owner)
            raise
        known.told = ""
        await self._write_status(known, owner)
        return again

    async def _keys(self, known: Known, owner: Owner, spec: Spec, every: float) -> LayerKeys:
        return layer_keys.next_keys(
            await self._secret(known, owner, naming.forwarder_name(owner)),
            await self._secret(known, owner, naming.client_secret_name(owner)),
            every,
            self._clock(),
            rotate_now=spec.security.rotate_now,
            rotate_server_key=spec.security.rotate_server_key,
        )

    async def _secret(self, known: Known, owner: Owner, name: str) -> Manifest | None:
        """Return a Secret; it is read once, and then known from our applies."""
        return known.secrets.get(name) or await self._cluster.get("Secret", owner.namespace, name)

    async def _apply(self, known: Known, owner: Owner, manifest: Manifest) -> None:
        name: Child = manifest["kind"], manifest["metadata"]["name"]
        seen = known.children.get(name)
        if seen is None and name not in known.applied:
            await self._check_name(owner, manifest)
        wanted = _digest(manifest)
        if seen is not None and known.applied.get(name) == seen.fingerprint and seen.applied == wanted:
            return
        manifest["metadata"].setdefault("annotations", {})[APPLIED] = wanted
        answer = SeenChild.of(await self._applied(manifest, seen))
        known.applied[name] = answer.fingerprint
        if manifest["kind"] == "Secret":
            known.secrets[name[1]] = manifest
        seen = known.children.get(name)  # the watch may have been quicker, and may know more than the reply
        if seen is None or answer.version > seen.version:
            known.children[name] = answer

    async def _applied(self, manifest: Manifest, seen: SeenChild | None) -> Manifest:
        """Apply an object; one that cannot become what it should be is made anew."""
        try:
            return await self._cluster.apply(manifest)
        except ClusterError as error:
            if error.status != INVALID or seen is None or manifest["kind"] not in MADE_ANEW:
                raise
        metadata = manifest["metadata"]
        await self._cluster.delete(manifest["kind"], metadata["namespace"], metadata["name"], seen.uid)
        return await self._cluster.apply(manifest)

    async def _check_name(self, owner: Owner, manifest: Manifest) -> None:
        """Check that an object may be made: an apply would take over one that is there, and a user's would go with us.

        Raises:
            NameTaken: If there is one that no layer of this name has owned.
        """
        found = await self._cluster.get(manifest["kind"], owner.namespace, manifest["metadata"]["name"])
        if found is not None and owner.name not in _owner_names(found):
            raise NameTaken(manifest)

    async def _prune(self, known: Known, owner: Owner, manifests: list[Manifest]) -> None:
        wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
        for (kind, name), child in list(known.children.items()):
            if (kind, name) in wanted or owner.uid not in child.owners:
                continue
            await self._cluster.delete(kind, owner.namespace, name, child.uid)
            known.applied.pop((kind, name), None)
            known.children.pop((kind, name), None)
            if kind == "Secret":
                known.secrets.pop(name, None)

    async def _write_status(self, known: Known, owner: Owner, *, problem: str = "") -> None:
        assert known.resource is not None, "its caller has looked"
        before = known.resource.get("status") or {}
        forwarder = known.children.get(("Deployment", naming.forwarder_name(owner)))
        deployment = forwarder.deployment if forwarder is not None else None
        now = self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")
        wanted = known.spec.forwarders if known.spec is not None else 0
        seen = status.Seen(problem, forwarders=wanted, deployment=deployment, rotated_for=known.rotated_for)
        if known.refusal is not None:
            seen = replace(seen, refusal=str(known.refusal), refused_as=known.refusal.condition)
        after = status.status(owner, seen, before, now, self.choices.cluster_domain)
        if not status.differs(before, after):
            return
        manifest = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": owner.name, "namespace": owner.namespace},
            "status": after,
        }
        try:
            answer = await self._cluster.apply(manifest, subresource="status")
        except ClusterError as error:
            if error.status == 404:  # deleted meanwhile
                return
            raise
        known.resource = {**known.resource, "status": answer.get("status", after)}

    async def _tell(self, known: Known, owner: Owner, reason: str, message: str) -> None:
        """Make an event, once for each problem."""
        if known.told == message:
            return
        known.told = message
        logger.warning("%s/%s: %s: %s", owner.namespace, owner.name, reason, message)
        await make_event(self._cluster, owner, reason, message, self._clock())


async def make_event(cluster: Cluster, owner: Owner, reason: str, message: str, now: datetime) -> None:
    """Make a warning that `kubectl describe` shows at the layer; failing at it is only logged."""
    event = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": f"{owner.name}-", "namespace": owner.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{naming.FIELD_MANAGER}.channels-zmq.io",
        "reportingInstance": naming.FIELD_MANAGER,
        "action": "Reconcile",
        "reason": reason,
        "type": "Warning",
        "note": message[:1000],
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": owner.name,
            "namespace": owner.namespace,
            "uid": owner.uid,
        },
    }
    try:
        await cluster.create(event)
    except ClusterError as error:
        logger.warning("no event could be made: %s", error)


APPLIED = "channels-zmq.io/applied"
"""Annotation with the digest of what we applied, by which a change of what is wanted is found."""


LONGEST_PROBLEM = 1024
"""Characters of a condition's message."""
CLUSTERS_OWN = "deployment.kubernetes.io/"
"""Annotations that the cluster itself writes."""


def fingerprint(manifest: Manifest) -> str:
    """Return what stays the same unless somebody changes the object: no status, no bookkeeping."""
    metadata = manifest["metadata"]
    kept = {key: metadata.get(key) for key in ("name", "labels", "annotations", "ownerReferences")}
    annotations = kept["annotations"] or {}
    kept["annotations"] = {key: annotations[key] for key in annotations if not key.startswith(CLUSTERS_OWN)}
    body = {key: value for key, value in manifest.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    return _digest({"metadata": kept, **body})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _owner_names(child: Manifest) -> list[str]:
    """Return the names of the layers that own an object, or have owned it before they were made again."""
    return [one["name"] for one in child["metadata"].get("ownerReferences") or () if one["kind"] == KIND]


def _owners(child: Manifest) -> frozenset[str]:
    """Return the uids of the layers that own an object."""
    return frozenset(one["uid"] for one in child["metadata"].get("ownerReferences") or () if one["kind"] == KIND)


def _kept(resource: Manifest) -> Manifest:
    """Return what is kept of a layer: its spec is parsed, and its annotations are nobody's business."""
    kept = ("name", "namespace", "uid", "generation", "resourceVersion")
    metadata = {key: value for key, value in resource["metadata"].items() if key in kept}
    return {"metadata": metadata, "status": resource.get("status") or {}}


def _version(manifest: Manifest) -> int:
    return int(manifest["metadata"].get("resourceVersion", 0))
