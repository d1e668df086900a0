"""An in-memory API server, with the requests of the operator and the changes by users and controllers.

It imitates the parts of the real one that matter here: versions, generations, uids, server-side apply with owners of
fields, garbage collection by owner references, and watches. Its events are delivered before the reply, as mostly in
practice, or when a test delivers them. A test may let any request fail, or kill the operator at one.
"""

import asyncio
import copy
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from channels_zmq_operator.cluster import ClusterError
from channels_zmq_operator.known import layer_of, pod_layer
from channels_zmq_operator.models import KIND, Key
from channels_zmq_operator.naming import OWNER_LABEL, Manifest
from channels_zmq_operator.reconcile import PRUNED, Reconciler

Name = tuple[str, str, str]
"""Kind, namespace and name."""
Answer = TypeVar("Answer")
Request = tuple[str, str, str]
"""Verb, kind (with its subresource) and name."""
Refusal = Callable[[Request], ClusterError | None]
KEYS_OF_LISTS = {"ownerReferences": "uid", "conditions": "type", "webhooks": "name"}
"""Lists that are merged by a key; all others are replaced as a whole."""
DEFAULTS: dict[str, Manifest] = {
    "Deployment": {"progressDeadlineSeconds": 600},
    "Service": {"clusterIP": "10.0.0.1", "type": "ClusterIP"},
}
"""Defaults that the cluster adds to a spec."""
MUST_EXIST = ("MutatingWebhookConfiguration",)
"""Kinds that an apply cannot create, because it contains too little."""


class Killed(BaseException):
    """The operator's process ends here."""


def refused(status: int, reason: str) -> ClusterError:
    return ClusterError("a request", status, reason, "")


class FakeCluster:
    """Objects, and a log of all requests."""

    def __init__(self, *, served: tuple[str, ...] = ("ServiceMonitor", KIND)) -> None:
        self.objects: dict[Name, Manifest] = {}
        self.log: list[Request] = []
        self.refusal: Refusal = lambda request: None
        self.kill_at: int | None = None
        """Number of the request, from 1, at which the process ends."""
        self.kill_before = False
        """Whether that request takes no effect; otherwise it takes effect, and only the reply is lost."""
        self.watchers: list[Callable[[str, Manifest], None]] = []
        self.holds_events = False
        """Whether events wait until a test delivers them."""
        self.served = served
        self._events: deque[tuple[str, Manifest]] = deque()
        self._applied: dict[Name, Manifest] = {}
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    @property
    def requests(self) -> int:
        """The number of requests, as the real cluster client counts them."""
        return len(self.log)

    # The requests of the operator

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        return await self._served(("get", kind, name), lambda: self.look(kind, namespace, name))

    async def metadata(
        self, kind: str, namespace: str, label: str = "", *, fields: str = ""
    ) -> AsyncIterator[Manifest]:
        def listed() -> list[Manifest]:
            found = [one for (each, _, _), one in self.objects.items() if each == kind]
            found = [one for one in found if namespace in ("", one["metadata"]["namespace"])]
            return [one for one in found if not label or label in one["metadata"].get("labels", {})]

        for one in await self._served(("list", kind, namespace), listed):
            yield {key: one[key] for key in ("apiVersion", "kind", "metadata")}

    async def apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        request = "apply", kind + (f"/{subresource}" if subresource else ""), name
        return await self._served(request, lambda: self._apply(copy.deepcopy(manifest), subresource))

    async def create(self, manifest: Manifest) -> Manifest:
        return await self._served(("create", manifest["kind"], ""), lambda: self.put(manifest))

    async def replace(self, manifest: Manifest) -> Manifest:
        name = _name(manifest)

        def replaced() -> Manifest:
            if name not in self.objects:
                raise refused(404, "NotFound")
            if manifest["metadata"].get("resourceVersion") != self.objects[name]["metadata"]["resourceVersion"]:
                raise refused(409, "Conflict")
            return self._store(copy.deepcopy(manifest))

        return await self._served(("replace", name[0], name[2]), replaced)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        def deleted() -> None:
            found = self.look(kind, namespace, name)
            if found is not None and found["metadata"]["uid"] == uid:
                self.remove(kind, namespace, name)

        await self._served(("delete", kind, name), deleted)

    async def serves(self, kind: str) -> bool:
        return await self._served(("serves", kind, ""), lambda: kind in self.served)

    async def _served(self, request: Request, act: Callable[[], Answer]) -> Answer:
        await asyncio.sleep(0)
        self.log.append(request)
        dies = self.kill_at == len(self.log)
        if dies and self.kill_before:
            raise Killed
        error = self.refusal(request)
        if error is not None:
            raise error
        answer = copy.deepcopy(act())
        if dies:
            raise Killed
        await asyncio.sleep(0)
        return answer

    # The actions of others

    def look(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return an object, without a request."""
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    def put(self, manifest: Manifest) -> Manifest:
        """Create an object.

        Raises:
            ClusterError: If the object exists.
        """
        manifest = copy.deepcopy(manifest)
        metadata = manifest["metadata"]
        if "generateName" in metadata:
            metadata["name"] = metadata["generateName"] + str(next(self._uids))
        if _name(manifest) in self.objects:
            raise refused(409, "AlreadyExists")
        return self._store(manifest)

    def edit(self, kind: str, namespace: str, name: str, change: Callable[[Manifest], None]) -> Manifest:
        """Change an object as a user or a controller does."""
        found = self.look(kind, namespace, name)
        assert found is not None
        change(found)
        return self._store(found)

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object; its dependents stay until `collect`."""
        found = self.objects.pop((kind, namespace, name))
        self._applied.pop((kind, namespace, name), None)
        self._tell("DELETED", {**found, "metadata": {**found["metadata"], "resourceVersion": self._version()}})

    def collect(self) -> None:
        """Delete all objects whose owners are deleted."""
        living = {one["metadata"]["uid"] for one in self.objects.values()}
        for kind, namespace, name in list(self.objects):
            owners = self.objects[kind, namespace, name]["metadata"].get("ownerReferences")
            if owners and not any(owner["uid"] in living for owner in owners):
                self.remove(kind, namespace, name)

    def deliver(self) -> None:
        """Deliver the pending events to the watchers."""
        while self._events:
            event = self._events.popleft()
            for watcher in self.watchers:
                watcher(*copy.deepcopy(event))

    def watch(self, watcher: Callable[[str, Manifest], None]) -> None:
        """Pass all present objects to a watcher, and every later change."""
        for one in list(self.objects.values()):
            watcher("", copy.deepcopy(one))
        self.watchers.append(watcher)

    def _apply(self, manifest: Manifest, subresource: str) -> Manifest:
        name = _name(manifest)
        found = self.look(*name)
        if subresource:
            if found is None:
                raise refused(404, "NotFound")
            return self._store({**found, subresource: manifest[subresource]})
        if found is None and name[0] in MUST_EXIST:
            raise refused(422, "Invalid")
        before = self._applied.get(name, {})
        self._applied[name] = copy.deepcopy(manifest)
        return self._store(_merged(found or {}, before, manifest))

    def _store(self, manifest: Manifest) -> Manifest:
        name = _name(manifest)
        before = self.objects.get(name)
        metadata = manifest["metadata"]
        if name[0] in DEFAULTS:
            manifest["spec"] = {**DEFAULTS[name[0]], **manifest["spec"]}
        if before is None:
            metadata |= {"uid": f"uid-{next(self._uids)}", "generation": 1}
            if name[0] == "Deployment":
                manifest.setdefault("status", {})
        else:
            old = before["metadata"]
            metadata |= {key: old[key] for key in ("uid", "generation", "resourceVersion")}
            if manifest == before:
                return manifest
            if _without_status(manifest) != _without_status(before):
                metadata["generation"] += 1
        metadata["resourceVersion"] = self._version()
        self.objects[name] = copy.deepcopy(manifest)
        self._tell("ADDED" if before is None else "MODIFIED", self.objects[name])
        return manifest

    def _version(self) -> str:
        return str(next(self._versions))

    def _tell(self, what: str, manifest: Manifest) -> None:
        self._events.append((what, copy.deepcopy(manifest)))
        if not self.holds_events:
            self.deliver()


def _name(manifest: Manifest) -> Name:
    return manifest["kind"], manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def _without_status(manifest: Manifest) -> Manifest:
    return {key: value for key, value in manifest.items() if key not in ("status", "metadata")}


def _merged(found: Any, before: Any, wanted: Any, field: str = "") -> Any:
    """Return an object with the applied fields, and without those that were applied before and are absent now."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        before = before if isinstance(before, dict) else {}
        out = {key: value for key, value in found.items() if key in wanted or key not in before}
        for key, value in wanted.items():
            out[key] = _merged(found.get(key), before.get(key), value, key)
        return out
    if field in KEYS_OF_LISTS and isinstance(found, list):
        key = KEYS_OF_LISTS[field]
        olds, mine = ({one[key]: one for one in each or ()} for each in (found, before))
        kept = [one for one in found if one[key] not in mine and one[key] not in {each[key] for each in wanted}]
        return kept + [_merged(olds.get(one[key], {}), mine.get(one[key]), one) for one in wanted]
    return copy.deepcopy(wanted)


def feed(reconciler: Reconciler, add: Callable[[Key], None]) -> Callable[[str, Manifest], None]:
    """Return a watcher that passes events to a reconciler as `handlers` does."""

    def watcher(event: str, found: Manifest) -> None:
        metadata, gone = found["metadata"], event == "DELETED"
        if found["kind"] == "Pod":
            if OWNER_LABEL in metadata.get("labels", {}) and reconciler.pod_seen(found, gone=gone):
                add(pod_layer(found))
        elif found["kind"] == KIND:
            if reconciler.layer_seen(found, gone=gone):
                add((metadata["namespace"], metadata["name"]))
        elif (
            found["kind"] in PRUNED
            and OWNER_LABEL in metadata.get("labels", {})
            and reconciler.child_seen(found, gone=gone)
        ):
            add(layer_of(found))

    return watcher
