"""Reconciles one layer with its resource: render, apply, prune, status.

Reconciliation is level-triggered and idempotent. `handlers` passes in the state of the cluster from the watches, so a
reconciliation without a change makes no request.
"""

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from channels_zmq_operator import __version__, naming, status
from channels_zmq_operator import keys as layer_keys
from channels_zmq_operator.cluster import Cluster, ClusterError, NamespaceEnding, NameTaken
from channels_zmq_operator.events import make_event
from channels_zmq_operator.known import (
    APPLIED,
    Child,
    Known,
    SeenChild,
    digest,
    kept,
    layer_of,
    owner_names,
    owners_of,
    pod_layer,
    version_of,
)
from channels_zmq_operator.models import API_VERSION, KIND, AppSettings, Key, Owner, Spec, SpecError, parse, seconds
from channels_zmq_operator.naming import LAYER_LABEL, Manifest
from channels_zmq_operator.pods import is_outdated, problem
from channels_zmq_operator.render import Choices, LayerKeys, render
from channels_zmq_operator.upgrades import Upgrades

logger = logging.getLogger("channels_zmq_operator")

INVALID = 422
"""HTTP status with which the API server refuses an invalid object, such as one with a change of an immutable field."""
MADE_ANEW = ("Service",)
"""Kinds whose object is deleted and created again if the API server refuses a change.

A Service cannot become headless, and it holds no state.
"""
WAIT = 5.0
"""Seconds after which a layer is reconciled again that waits for the turn of its upgrade."""
COUNT_EVERY = 30.0
"""Seconds between two counts of the pods that are older than their settings, while such pods exist."""
MOST_TOLD = 10
"""Maximum number of a layer's problems whose events are remembered: some alternate, such as those of an image."""
MOST_PODS = 100
"""Maximum number of a layer's pods whose problems are kept."""
PRUNED = ("ServiceMonitor", "NetworkPolicy", "PodDisruptionBudget", "Deployment", "Service", "Secret", "ConfigMap")
"""Kinds of the objects that layers own: they are watched, and pruned if a layer no longer wants them."""


class Reconciler:
    """Reconciles all layers.

    Args:
        cluster: The API server.
        choices: Settings for all layers.
        clock: Returns the current time, with a time zone.
    """

    def __init__(
        self, cluster: Cluster, choices: Choices, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.layers: dict[Key, Known] = {}
        self.choices = choices
        self._cluster = cluster
        self._clock = clock
        self._upgrades = Upgrades()

    # Reports of the watches; True: the layer must be reconciled

    def layer_seen(self, resource: Manifest, *, gone: bool) -> bool:
        """Record the current state of a layer."""
        owner = Owner.of(resource)
        known = self.layers.setdefault(owner.key, Known())
        before = known.resource
        if gone:
            del self.layers[owner.key]
            self._upgrades.end(owner.key)
            return False
        if before is not None and before["metadata"]["uid"] != owner.uid:  # deleted and created again
            known = self.layers[owner.key] = Known()
            before = None
        if before is None:  # the first report; the watches of its children may have been faster
            found = resource.get("status") or {}
            known.found = owner.generation if found.get("observedGeneration", 0) == owner.generation else 0
            known.settings = (
                AppSettings.model_validate(found["settings"], extra="ignore") if "settings" in found else None
            )
            known.rotated_for = found.get("keysRotatedFor", "")
            known.children = {name: child for name, child in known.children.items() if owner.uid in child.owners}
        elif before["metadata"]["generation"] == owner.generation:  # only metadata or the status changed
            known.resource = kept(resource)
            return False
        known.resource = kept(resource)
        try:
            spec = parse(resource, ignores_unknown=True)
            if self.choices.limits is not None:
                self.choices.limits.check(spec)
            known.spec, known.problem = spec, ""
        except SpecError as error:
            known.spec, known.problem = None, str(error)[: status.LONGEST_MESSAGE]
        return True

    def child_seen(self, child: Manifest, *, gone: bool) -> bool:
        """Record the current state of an object of a layer."""
        key = layer_of(child)
        name: Child = child["kind"], child["metadata"]["name"]
        known = self.layers.get(key)
        if gone or not self._owns(known, child):
            if known is None:
                return False
            known.children.pop(name, None)
            self._forget_if_empty(key)
            # An object that we applied was deleted, or lost its owner reference.
            return name in known.applied if not gone else known.applied.pop(name, None) is not None
        known = self.layers.setdefault(key, Known())
        before, seen = known.children.get(name), SeenChild.of(child)
        known.children[name] = seen
        if known.applied.get(name) != seen.fingerprint:  # not the echo of our apply
            return True
        return seen.deployment != (before.deployment if before else None)

    def pod_seen(self, pod: Manifest, *, gone: bool) -> bool:
        """Record the current state of a forwarder's pod."""
        metadata = pod["metadata"]
        is_forwarder = metadata["labels"].get("app.kubernetes.io/name") == naming.APP_NAME
        # Any pod may carry our labels; a forwarder's pod also belongs to a ReplicaSet.
        if not is_forwarder or "ReplicaSet" not in {one["kind"] for one in metadata.get("ownerReferences") or ()}:
            return False
        key, name = pod_layer(pod), metadata["name"]
        known = self.layers.get(key) or Known()
        before = known.pods.pop(name, "")
        now = "" if gone else problem(pod)
        if now and len(known.pods) < MOST_PODS:
            self.layers[key] = known
            known.pods[name] = now
        self._forget_if_empty(key)
        return known.resource is not None and before != now

    def _forget_if_empty(self, key: Key) -> None:
        """Forget a layer without a resource, children and pods: any object may name any layer in its label."""
        known = self.layers.get(key)
        if known is not None and known.resource is None and not known.children and not known.pods:
            del self.layers[key]

    def _owns(self, known: Known | None, child: Manifest) -> bool:
        """Return whether a layer owns an object; before the layer has been seen, whether any layer does."""
        owners = owners_of(child)
        if known is None or known.resource is None:
            return bool(owners)
        return known.resource["metadata"].get("uid", "") in owners

    def has_seen(self, found: Manifest) -> bool:
        """Return whether the watches have reported an object of a list in this version or a later one."""
        if found["kind"] == KIND:
            known = self.layers.get(Owner.of(found).key)
            return known is not None and known.resource is not None and version_of(known.resource) >= version_of(found)
        known = self.layers.get(layer_of(found))
        if not self._owns(known, found):
            return True  # the objects of other owners are not kept
        seen = known.children.get((found["kind"], found["metadata"]["name"])) if known else None
        return seen is not None and seen.version >= version_of(found)

    def objects(self) -> Iterator[tuple[str, str, str]]:
        """Yield uid, kind and name of each known object: layers and their children."""
        for (namespace, layer), known in self.layers.items():
            if known.resource is not None:
                yield known.resource["metadata"]["uid"], KIND, f"{KIND} {namespace}/{layer}"
            for (kind, name), child in known.children.items():
                yield child.uid, kind, f"{kind} {namespace}/{name}"

    # Reconciliation

    async def reconcile(self, key: Key) -> float:
        """Reconcile one layer with its resource.

        Returns:
            Seconds until it must be reconciled again at the latest; infinity if it need not.

        Raises:
            ClusterError: If the API server refuses a request, or is unavailable. The status shows the error, unless
                writing it fails as well.
        """
        known = self.layers.get(key)
        if known is None or known.resource is None:
            return float("inf")
        owner = Owner.of(known.resource)
        spec, again = known.spec, float("inf")
        if spec is None:
            await self._tell(known, owner, "SpecInvalid", known.problem)
        try:
            if spec is not None and not spec.paused:
                again = await self._bring(known, owner, spec)
            again = min(again, await self._count_outdated(known, owner))
            known.refusal = None
        except NamespaceEnding:
            return float("inf")  # the layer is deleted with its namespace
        except ClusterError as error:
            known.refusal = error
            await self._tell(known, owner, error.condition, str(error))
            await self._write_status(known, owner)
            raise
        await self._write_status(known, owner)
        return again

    async def _bring(self, known: Known, owner: Owner, spec: Spec) -> float:
        """Apply a layer's objects, prune the others, and return seconds until the next reconciliation at the latest."""
        again = float("inf")
        keys: LayerKeys | None = None
        rotated_at = ""
        if spec.security.curve == "Enabled":
            every = seconds(spec.security.rotate_every)
            client = await self._secret(known, owner, naming.client_secret_name(owner))
            rotated_at = layer_keys.rotated_at(client)
            keys = layer_keys.next_keys(
                await self._secret(known, owner, naming.forwarder_name(owner)),
                client,
                every,
                self._clock(),
                rotate_now=spec.security.rotate_now,
                rotate_server_key=spec.security.rotate_server_key,
            )
            again = max(1.0, (layer_keys.due_at(keys, every) - self._clock()).total_seconds())
        manifests = render(owner, spec, keys, self.choices)
        known.waits = False
        for manifest in manifests:
            await self._apply(known, owner, manifest)
        await self._prune(known, owner, manifests)
        # A rotation is complete only once the former keys are revoked.
        known.rotated_for = keys.rotated_for if keys is not None and not keys.revoke_at else ""
        if keys is not None and rotated_at and keys.rotated_at != rotated_at:
            await self._note(owner, "KeysRotated", "the applications' key was rotated")
        self._note_settings(known, spec)
        return min(again, WAIT) if known.waits else again

    def _note_settings(self, known: Known, spec: Spec) -> None:
        """Record the settings that applications read at their start, and when these have changed."""
        told = digest(spec.told_to_applications)
        if known.settings is None or told != known.settings.digest:
            # At first no pod has older settings: pods wait for the ConfigMap.
            since = naming.timestamp(self._clock()) if known.settings is not None else ""
            known.settings, known.outdated, known.count_at = AppSettings(digest=told, since=since), None, None

    async def _count_outdated(self, known: Known, owner: Owner) -> float:
        """Count the pods of applications that are older than their current settings, until the count is 0.

        Returns:
            Seconds until the next count at the latest.
        """
        now, settings = self._clock(), known.settings
        if settings is None or not settings.since:
            known.outdated = 0
        elif known.outdated != 0 and (known.count_at is None or now >= known.count_at):
            known.count_at = now + timedelta(seconds=COUNT_EVERY)
            pods = self._cluster.metadata("Pod", owner.namespace, LAYER_LABEL, fields="status.phase=Running")
            known.outdated = sum([is_outdated(pod, owner.name, settings.since) async for pod in pods])
        return COUNT_EVERY if known.outdated else float("inf")

    async def _secret(self, known: Known, owner: Owner, name: str) -> Manifest | None:
        """Return a Secret: the one that we applied last, or else the one in the cluster."""
        return known.secrets.get(name) or await self._claim(known, owner, "Secret", name)

    async def _apply(self, known: Known, owner: Owner, manifest: Manifest) -> None:
        """Apply an object, unless the cluster has it already or its upgrade waits for the turn."""
        name: Child = manifest["kind"], manifest["metadata"]["name"]
        seen = known.children.get(name)
        if seen is None and name not in known.applied and name not in known.claimed:
            found = await self._claim(known, owner, *name)
            if found is not None and owner.uid in owners_of(found):  # its watch lags behind that of the layers
                seen = known.children.setdefault(name, SeenChild.of(found))
        wanted = digest(manifest)
        if seen is not None and known.applied.get(name) == seen.fingerprint and seen.applied == wanted:
            return
        if manifest["kind"] == "Deployment" and seen is not None and seen.applied != wanted:
            # An upgrade: another process has reconciled this generation, and this one renders it differently. Upgrades
            # take turns. An incomplete layer is applied without one: it could keep the turn for ever.
            is_upgrade = name not in known.applied and known.found == owner.generation
            if is_upgrade and _is_complete(seen) and not self._upgrades.begin(owner.key):
                known.waits = True
                return
        manifest["metadata"].setdefault("annotations", {})[APPLIED] = wanted
        known.claimed.discard(name)  # if this fails, another owner may create it before the next attempt
        answer = SeenChild.of(await self._applied(manifest, seen))
        known.applied[name] = answer.fingerprint
        if manifest["kind"] == "Secret":
            known.secrets[name[1]] = manifest
        seen = known.children.get(name)  # the watch may have reported a later version than the reply
        if seen is None or answer.version > seen.version:
            known.children[name] = answer

    async def _applied(self, manifest: Manifest, seen: SeenChild | None) -> Manifest:
        """Apply an object. If a change of a kind in `MADE_ANEW` is refused, delete the object and create it again."""
        try:
            return await self._cluster.apply(manifest)
        except ClusterError as error:
            if error.status != INVALID or seen is None or manifest["kind"] not in MADE_ANEW:
                raise
        metadata = manifest["metadata"]
        await self._cluster.delete(manifest["kind"], metadata["namespace"], metadata["name"], seen.uid)
        return await self._cluster.apply(manifest)

    async def _claim(self, known: Known, owner: Owner, kind: str, name: str) -> Manifest | None:
        """Check that a layer may use the name of an object, and return the object if it exists.

        An apply would take over an existing object, and a user's own object would be deleted with the layer.

        Raises:
            NameTaken: If an object exists that no layer of this name has owned.
        """
        found = await self._cluster.get(kind, owner.namespace, name)
        if found is not None and owner.name not in owner_names(found):
            raise NameTaken(kind, owner.namespace, name)
        known.claimed.add((kind, name))
        return found

    async def _prune(self, known: Known, owner: Owner, manifests: list[Manifest]) -> None:
        """Delete the objects that a layer owns and no longer wants."""
        wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
        for (kind, name), child in list(known.children.items()):
            if (kind, name) in wanted or owner.uid not in child.owners:
                continue
            await self._cluster.delete(kind, owner.namespace, name, child.uid)
            known.applied.pop((kind, name), None)
            known.children.pop((kind, name), None)
            if kind == "Secret":
                known.secrets.pop(name, None)

    async def _write_status(self, known: Known, owner: Owner) -> None:
        """Write the status of a layer if it has changed, and create the events that it calls for."""
        assert known.resource is not None, "its caller has looked"
        before = known.resource["status"]
        forwarder = known.children.get(("Deployment", naming.forwarder_name(owner)))
        seen = status.Seen(
            problem=known.problem,
            refusal=str(known.refusal or ""),
            refused_as=known.refusal.condition if known.refusal is not None else "",
            forwarders=known.spec.forwarders if known.spec is not None else 0,
            deployment=forwarder.deployment if forwarder is not None else None,
            pods=tuple(known.pods[name] for name in sorted(known.pods)),
            paused=known.spec is not None and known.spec.paused,
            waits=known.waits,
            settings=known.settings,
            outdated=known.outdated,
            rotated_for=known.rotated_for,
        )
        after = status.status(owner, seen, before, naming.timestamp(self._clock()), self.choices.cluster_domain)
        progress, progress_before = (status.condition(one, "Progressing") for one in (after, before))
        if progress["reason"] != "RollingOut":  # only a rollout keeps the turn of an upgrade
            self._upgrades.end(owner.key)
        degraded = status.condition(after, "Degraded")
        if degraded["reason"] == "ForwarderFailing":
            await self._tell(known, owner, degraded["reason"], degraded["message"])
        elif degraded["status"] == "False" and not known.problem:
            known.told.clear()
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
            if error.reason != "NotFound":  # an API server that is starting also answers 404, with another reason
                raise
            if self.layers.get(owner.key) is known:  # it was deleted, and its watch may never report that
                self.layer_seen(known.resource, gone=True)
            # This reconciliation may have taken the turn after the watch reported the deletion.
            self._upgrades.end(owner.key)
            return
        known.resource = {**known.resource, "status": answer.get("status", after)}
        if progress["reason"] == "Complete" and progress_before.get("reason") == "RollingOut":
            await self._note(
                owner, "RolledOut", f"{status.condition(after, 'Ready')['message']}, version {__version__}"
            )

    async def _tell(self, known: Known, owner: Owner, reason: str, message: str) -> None:
        """Log a problem and create a Warning event, once for each message."""
        if message in known.told:
            return
        if len(known.told) >= MOST_TOLD:
            known.told.clear()
        known.told.add(message)
        logger.warning("%s/%s: %s: %s", owner.namespace, owner.name, reason, message)
        await make_event(self._cluster, owner.reference, "Warning", reason, message, self._clock())

    async def _note(self, owner: Owner, reason: str, message: str) -> None:
        """Log a success and create a Normal event."""
        logger.info("%s/%s: %s: %s", owner.namespace, owner.name, reason, message)
        await make_event(self._cluster, owner.reference, "Normal", reason, message, self._clock())


def _is_complete(deployment: SeenChild) -> bool:
    """Return whether all forwarders of a Deployment are up to date and available."""
    return status.Rollout.of(status.Seen(deployment=deployment.deployment)).complete
