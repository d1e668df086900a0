"""Access to the API server for the rest of the operator: a few calls on plain dicts.

Only this module uses the Kubernetes client. Paths come from a table, so it neither discovers nor caches API kinds.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.dynamic import DynamicClient

from channels_zmq_operator.models import API_VERSION, KIND, PLURAL
from channels_zmq_operator.naming import FIELD_MANAGER, Manifest

TIMEOUT = 30.0
"""Seconds after which a request fails."""


PAGE = 50
"""Objects in one page of a list."""
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""Media type of a list without the contents of its objects: one object may have a megabyte."""


class Kind(NamedTuple):
    """The API version, the plural and the scope of a kind: together they make up the path of its objects."""

    api_version: str
    plural: str
    namespaced: bool = True


KINDS: dict[str, Kind] = {
    KIND: Kind(API_VERSION, PLURAL),
    "ConfigMap": Kind("v1", "configmaps"),
    "Secret": Kind("v1", "secrets"),
    "Service": Kind("v1", "services"),
    "Deployment": Kind("apps/v1", "deployments"),
    "PodDisruptionBudget": Kind("policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": Kind("networking.k8s.io/v1", "networkpolicies"),
    "ServiceMonitor": Kind("monitoring.coreos.com/v1", "servicemonitors"),
    "Pod": Kind("v1", "pods"),
    "SecurityContextConstraints": Kind("security.openshift.io/v1", "securitycontextconstraints", namespaced=False),
    "Event": Kind("events.k8s.io/v1", "events"),
    "Lease": Kind("coordination.k8s.io/v1", "leases"),
    "MutatingWebhookConfiguration": Kind(
        "admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", namespaced=False
    ),
}


class ClusterError(Exception):
    """The API server refused a request, or is unavailable.

    Attributes:
        status: HTTP status; 0 if the failure has none, such as a timeout.
        reason: Reason in one word: that of the API server, or else the name of the failure.
    """

    condition = "ClusterRefused"
    """Reason that a layer's conditions show for an error of this class."""

    def __init__(self, what: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"{what}: {message or reason}" + (f" ({status} {reason})" if status else f" ({reason})"))
        self.status, self.reason = status, reason


class NameTaken(ClusterError):
    """An object of that name exists and does not belong to the layer."""

    condition = "NameTaken"

    def __init__(self, kind: str, namespace: str, name: str) -> None:
        what = f"{kind} {namespace}/{name}"
        super().__init__(what, 0, self.condition, "it exists and does not belong to this layer: rename or delete it")


class NamespaceEnding(ClusterError):
    """The namespace is being deleted with all its objects, so the API server refuses to create more of them."""


class Cluster(Protocol):
    """The requests that the operator makes to an API server. Each raises `ClusterError` if it fails."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return an object, or None if it does not exist."""

    def metadata(self, kind: str, namespace: str, label: str = "", *, fields: str = "") -> AsyncIterator[Manifest]:
        """Yield the metadata of a kind's objects that match a label selector and a field selector.

        An empty namespace stands for all namespaces.
        """

    async def apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:
        """Create or change an object by a server-side apply; return the resulting object."""

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object; fail if it exists."""

    async def replace(self, manifest: Manifest) -> Manifest:
        """Replace an object; fail if it has changed since it was read."""

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete an object if it exists and still has this uid."""

    async def serves(self, kind: str) -> bool:
        """Return whether the cluster serves a kind."""


class CountingCluster(Cluster, Protocol):
    """A cluster that counts the requests made to it."""

    @property
    def requests(self) -> int:
        """Number of requests so far."""


class RealCluster:
    """A cluster that is accessed through the Kubernetes client."""

    def __init__(self, api: client.ApiClient) -> None:
        self._dynamic = DynamicClient(api)  # type: ignore[no-untyped-call] # not awaited: that would discover all kinds
        self.requests = 0

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:  # noqa: D102
        try:
            return await self._call("get", _path(kind, namespace, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def metadata(  # noqa: D102
        self, kind: str, namespace: str, label: str = "", *, fields: str = ""
    ) -> AsyncIterator[Manifest]:
        options: dict[str, Any] = {
            "label_selector": label or None,
            "field_selector": fields or None,
            "limit": PAGE,
            "header_params": {"Accept": METADATA_ONLY},
        }
        token = ""
        while True:
            found = await self._call("get", _path(kind, namespace, ""), **options, _continue=token or None)
            for one in found.get("items") or ():  # null if a list of metadata is empty
                yield {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": one["metadata"]}
            token = (found.get("metadata") or {}).get("continue", "")
            if not token:
                return

    async def apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:  # noqa: D102
        return await self._call(
            "patch",
            _path_of(manifest) + (f"/{subresource}" if subresource else ""),
            manifest,
            content_type="application/apply-patch+yaml",
            field_manager=FIELD_MANAGER,
            force_conflicts=True,
        )

    async def create(self, manifest: Manifest) -> Manifest:  # noqa: D102
        path = _path(manifest["kind"], manifest["metadata"].get("namespace", ""), "")
        return await self._call("post", path, manifest, field_manager=FIELD_MANAGER)

    async def replace(self, manifest: Manifest) -> Manifest:  # noqa: D102
        return await self._call("put", _path_of(manifest), manifest, field_manager=FIELD_MANAGER)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:  # noqa: D102
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._call("delete", _path(kind, namespace, name), body)
        except ClusterError as error:
            if error.status not in (404, 409):  # it is gone, or the name belongs to another object by now
                raise

    async def serves(self, kind: str) -> bool:  # noqa: D102
        version = KINDS[kind].api_version
        try:
            found = await self._call("get", f"/apis/{version}")
        except ClusterError as error:
            if error.status in (403, 404):
                return False
            raise
        return any(one["name"] == KINDS[kind].plural for one in found.get("resources", ()))

    async def _call(self, method: str, path: str, body: Manifest | None = None, **options: Any) -> Manifest:
        self.requests += 1
        what = f"{method.upper()} {path}"
        try:
            answer = await self._dynamic.request(
                method, path, body=body, serialize=False, _request_timeout=TIMEOUT, **options
            )
            found = json.loads(await answer.read())
        except ApiException as error:
            raise _refusal(what, error) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(what, 0, type(error).__name__, str(error)) from error
        except ValueError as error:
            raise ClusterError(what, 0, "NoJSON", str(error)) from error
        if not isinstance(found, dict):
            raise ClusterError(what, 0, "NoJSON", "the response is not an object")
        return found


def _refusal(what: str, error: ApiException) -> ClusterError:
    try:
        status = json.loads(error.body or "")
        causes = (status.get("details") or {}).get("causes") or ()
        is_ending = any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
        kind = NamespaceEnding if is_ending else ClusterError
        return kind(what, error.status, status.get("reason", error.reason), status.get("message", ""))
    except (TypeError, ValueError, AttributeError):  # the body is not a Status object
        return ClusterError(what, error.status or 0, str(error.reason), "")


def _path_of(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return _path(manifest["kind"], metadata.get("namespace", ""), metadata["name"])


def _path(kind: str, namespace: str, name: str) -> str:
    where = KINDS[kind]
    root = "/api/" if "/" not in where.api_version else "/apis/"
    scope = f"/namespaces/{namespace}" if where.namespaced and namespace else ""
    return f"{root}{where.api_version}{scope}/{where.plural}" + (f"/{name}" if name else "")


@asynccontextmanager
async def connected() -> AsyncIterator[RealCluster]:
    """Connect with the service account of the pod, or outside of a cluster with the current kubeconfig."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config()  # type: ignore[no-untyped-call]
    async with client.ApiClient() as api:
        yield RealCluster(api)
