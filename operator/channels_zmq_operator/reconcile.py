"""One layer, brought to what its resource says: render, apply, prune, status.

Level-triggered: it does not matter what happened, and doing it again changes nothing. What the cluster holds is known
from the watches that `handlers` feeds in here, so that a look costs no request.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from channels_zmq_operator import keys as layer_keys
from channels_zmq_operator import render, status
from channels_zmq_operator.cluster import Cluster, ClusterError
from channels_zmq_operator.models import API_VERSION, KIND, Owner, SpecError, parse, seconds
from channels_zmq_operator.queues import Key
from channels_zmq_operator.render import OWNER_LABEL, Choices, LayerKeys, Manifest

logger = logging.getLogger("channels_zmq_operator")

Child = tuple[str, str]
"""Kind and name of one of its objects."""
PRUNED = ("ServiceMonitor", "NetworkPolicy", "PodDisruptionBudget", "Deployment", "Service", "Secret", "ConfigMap")


@dataclass(slots=True)
class Known:
    """What is known of one layer.

    Args:
        resource: The layer as it was last seen; None once it is gone.
    """

    resource: Manifest | None = None
    children: dict[Child, Manifest] = field(default_factory=dict)
    applied: dict[Child, str] = field(default_factory=dict)
    """Fingerprints of what the API server answered to our applies."""
    secrets: dict[str, Manifest] = field(default_factory=dict)
    """Secrets as we applied them last: one that was edited or deleted is made again with the same keys."""
    refusal: str = ""
    told: str = ""
    """The last problem that an event was made of."""


def layer_of(child: Manifest) -> Key:
    """Return the layer of a child: that of its owner reference, as the label is more easily edited."""
    metadata = child["metadata"]
    owners = [one["name"] for one in metadata.get("ownerReferences") or () if one["kind"] == KIND]
    return metadata["namespace"], (owners or [metadata["labels"].get(OWNER_LABEL, "")])[0]


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
        known.resource = resource
        return before is None or before["metadata"]["generation"] != owner.generation

    def child_seen(self, child: Manifest, *, gone: bool) -> bool:
        """Note an object of a layer as it is now."""
        key = layer_of(child)
        name: Child = child["kind"], child["metadata"]["name"]
        known = self.layers.setdefault(key, Known())
        if gone:
            known.children.pop(name, None)
            if known.resource is None and not known.children:
                del self.layers[key]
            return known.applied.pop(name, None) is not None
        before = known.children.get(name)
        known.children[name] = child
        if known.applied.get(name) != fingerprint(child):
            return True
        return child["kind"] == "Deployment" and (before or {}).get("status") != child.get("status")

    def has_seen(self, found: Manifest) -> bool:
        """Return whether the watches have shown an object as it is in a list, or later."""
        if found["kind"] == KIND:
            known = self.layers.get(Owner.of(found).key)
            seen = known.resource if known else None
        else:
            known = self.layers.get(layer_of(found))
            seen = known.children.get((found["kind"], found["metadata"]["name"])) if known else None
        return seen is not None and _version(seen) >= _version(found)

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
        try:
            spec = parse(known.resource)
        except SpecError as error:
            known.refusal = ""
            await self._tell(known, owner, "SpecInvalid", str(error))
            await self._write_status(known, owner, problem=str(error))
            return float("inf")
        again = float("inf")
        try:
            keys: LayerKeys | None = None
            if spec.security.curve == "Enabled":
                every = seconds(spec.security.rotate_every)
                keys = await self._keys(known, owner, every)
                again = max(1.0, (layer_keys.due_at(keys, every) - self._clock()).total_seconds())
            manifests = render.render(owner, spec, keys, self.choices)
            for manifest in manifests:
                await self._apply(known, manifest)
            await self._prune(known, owner, manifests)
            known.refusal = ""
        except ClusterError as error:
            known.refusal = str(error)
            await self._tell(known, owner, "ClusterRefused", str(error))
            await self._write_status(known, owner)
            raise
        known.told = ""
        await self._write_status(known, owner)
        return again

    async def _keys(self, known: Known, owner: Owner, every: float) -> LayerKeys:
        server, client = render.forwarder_name(owner), render.client_secret_name(owner)
        return layer_keys.next_keys(
            await self._secret(known, owner, server), await self._secret(known, owner, client), every, self._clock()
        )

    async def _secret(self, known: Known, owner: Owner, name: str) -> Manifest | None:
        """Return a Secret: one that the watch has not shown may be there all the same, and new keys break everybody."""
        found = known.secrets.get(name) or known.children.get(("Secret", name))
        return found or await self._cluster.get("Secret", owner.namespace, name)

    async def _apply(self, known: Known, manifest: Manifest) -> None:
        name: Child = manifest["kind"], manifest["metadata"]["name"]
        seen = known.children.get(name)
        wanted = _digest(manifest)
        if seen is not None and known.applied.get(name) == fingerprint(seen) and _annotated(seen) == wanted:
            return
        manifest["metadata"].setdefault("annotations", {})[APPLIED] = wanted
        answer = await self._cluster.apply(manifest)
        known.applied[name] = fingerprint(answer)
        if manifest["kind"] == "Secret":
            known.secrets[name[1]] = answer
        seen = known.children.get(name)  # the watch may have been quicker, and may know more than the reply
        if seen is None or _version(answer) > _version(seen):
            known.children[name] = answer

    async def _prune(self, known: Known, owner: Owner, manifests: list[Manifest]) -> None:
        wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
        for (kind, name), child in list(known.children.items()):
            owners = child["metadata"].get("ownerReferences") or ()
            if (kind, name) in wanted or not any(reference["uid"] == owner.uid for reference in owners):
                continue
            await self._cluster.delete(kind, owner.namespace, name, child["metadata"]["uid"])
            known.applied.pop((kind, name), None)
            known.children.pop((kind, name), None)
            if kind == "Secret":
                known.secrets.pop(name, None)

    async def _write_status(self, known: Known, owner: Owner, *, problem: str = "") -> None:
        assert known.resource is not None, "its caller has looked"
        before = known.resource.get("status") or {}
        deployment = known.children.get(("Deployment", render.forwarder_name(owner)))
        now = self._clock().strftime("%Y-%m-%dT%H:%M:%SZ")
        after = status.status(owner, status.Seen(problem, known.refusal, deployment), before, now)
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
        "reportingController": f"{render.FIELD_MANAGER}.channels-zmq.io",
        "reportingInstance": render.FIELD_MANAGER,
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


def _annotated(manifest: Manifest) -> str:
    return str((manifest["metadata"].get("annotations") or {}).get(APPLIED, ""))


def _version(manifest: Manifest) -> int:
    return int(manifest["metadata"].get("resourceVersion", 0))
