"""The kopf handlers: they watch layers and their objects, and feed the reconciler's queue. They write nothing."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import kopf

from channels_zmq_operator import crd
from channels_zmq_operator.cluster import KINDS
from channels_zmq_operator.known import layer_of, pod_layer
from channels_zmq_operator.models import GROUP, PLURAL, VERSION
from channels_zmq_operator.naming import OWNER_LABEL
from channels_zmq_operator.reconcile import PRUNED, Reconciler
from channels_zmq_operator.settings import Settings
from channels_zmq_operator.webhook_certificates import WEBHOOKS, WebhookCertificates
from channels_zmq_operator.workqueue import WorkQueue

logger = logging.getLogger("channels_zmq_operator")


CHUNK = 10
"""Objects in one page of a list: each may have more than a megabyte, and all kinds are listed concurrently."""
IDLE = 0.1
"""Seconds for which kopf keeps an object in memory after its last event."""
Registry = kopf.OperatorRegistry
DEFINITIONS = "apiextensions.k8s.io", "v1", "customresourcedefinitions"


def registry(
    reconciler: Reconciler,
    queue: WorkQueue,
    kinds: Iterable[str],
    certificates: WebhookCertificates | None,
    definition_seen: Callable[[bool], None] | None = None,
) -> kopf.OperatorRegistry:
    """Return kopf's handlers.

    Args:
        reconciler: Records the objects that the watches report.
        queue: Receives the layers to reconcile.
        kinds: Kinds of children that the cluster serves.
        certificates: Receives the webhook's configuration when it changes; None if the operator issues none.
        definition_seen: Called when the definition of our kind changes, with whether it was deleted, because kopf may
            look for the kind before the API server serves it; None if the operator may not watch definitions.
    """
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def layer(event: Any, body: Any, **_: Any) -> None:
        resource = _plain(body)
        if reconciler.layer_seen(resource, gone=event["type"] == "DELETED"):
            queue.add((resource["metadata"]["namespace"], resource["metadata"]["name"]))

    async def child(event: Any, body: Any, **_: Any) -> None:
        found = _plain(body)
        if reconciler.child_seen(found, gone=event["type"] == "DELETED"):
            queue.add(layer_of(found))

    @kopf.on.event("", "v1", "pods", registry=handlers, labels={OWNER_LABEL: kopf.PRESENT})
    async def pod(event: Any, body: Any, **_: Any) -> None:
        found = _plain(body)
        if reconciler.pod_seen(found, gone=event["type"] == "DELETED"):
            queue.add(pod_layer(found))

    for kind in kinds:
        group, _, version = KINDS[kind].api_version.rpartition("/")
        kopf.on.event(
            group, version, KINDS[kind].plural, registry=handlers, labels={OWNER_LABEL: kopf.PRESENT}, id=kind
        )(child)
    if definition_seen is not None:

        @kopf.on.event(*DEFINITIONS, registry=handlers)
        async def definition(event: Any, **_: Any) -> None:
            definition_seen(event["type"] == "DELETED")

    if certificates is not None:
        group, _, version = KINDS[WEBHOOKS].api_version.rpartition("/")

        @kopf.on.event(group, version, KINDS[WEBHOOKS].plural, registry=handlers)
        async def configuration(body: Any, **_: Any) -> None:
            certificates.configuration_seen({**body})

    return handlers


def settings(own: Settings) -> kopf.OperatorSettings:
    """Return kopf's settings: few log lines, bounded waits, and no writes to any resource."""
    out = kopf.OperatorSettings()
    out.posting.enabled = False
    out.watching.server_timeout = 300
    out.watching.client_timeout = 310
    out.watching.connect_timeout = 10
    out.watching.chunk_size = CHUNK
    out.queueing.idle_timeout = IDLE
    out.networking.request_timeout = 30
    out.networking.error_backoffs = [0.5, 1, 2, 5, 10]
    for kind in (*PRUNED, "Pod"):
        group, _, version = KINDS[kind].api_version.rpartition("/")
        out.watching.label_selectors[group, version, KINDS[kind].plural] = OWNER_LABEL
    group, _, version = KINDS[WEBHOOKS].api_version.rpartition("/")
    out.watching.field_selectors[group, version, KINDS[WEBHOOKS].plural] = f"metadata.name={own.webhook_name}"
    if own.watch_namespaces:
        out.scanning.disabled = True
    else:
        out.watching.field_selectors[DEFINITIONS] = f"metadata.name={crd.NAME}"
    for name in ("kopf.objects", "kopf.activities", "kopf._core", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return out


def _plain(body: Any) -> dict[str, Any]:
    """Return an object as a plain dict. Kopf has added the kind, which the items of a list lack."""
    return {**body}


async def watch(own: Settings, handlers: kopf.OperatorRegistry, stop: asyncio.Event) -> None:
    """Run kopf's watches until `stop` is set."""
    await kopf.operator(
        registry=handlers,
        settings=settings(own),
        standalone=True,
        identity=own.identity,  # type: ignore[arg-type] # else kopf looks up the user's name, which may not exist
        clusterwide=not own.watch_namespaces,
        namespaces=own.watch_namespaces,
        stop_flag=stop,
    )
