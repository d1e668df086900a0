"""One run of the operator: kopf watches, workers reconcile, and a server reports health and metrics."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from channels_zmq_operator import __version__, handlers
from channels_zmq_operator.cluster import ClusterError, CountingCluster, connected
from channels_zmq_operator.leader_election import LeaderElection
from channels_zmq_operator.models import KIND, Key
from channels_zmq_operator.naming import OWNER_LABEL
from channels_zmq_operator.reconcile import PRUNED, Reconciler
from channels_zmq_operator.settings import Settings
from channels_zmq_operator.webhook_certificates import WebhookCertificates
from channels_zmq_operator.workqueue import WorkQueue

logger = logging.getLogger("channels_zmq_operator")

PREFIX = "channels_zmq_operator"
WAIT_FOR_KIND = 2.0
"""Seconds between two checks of whether the cluster serves our kind."""
SHOWN_WITHIN = 30.0
"""Seconds within which a watch reports a change that a list shows."""
SERVED_WITHIN = 3.0
"""Seconds within which the API server serves a kind after a change of its definition."""
STUCK_AFTER = 300.0
"""Seconds for which layers may be due without any reconciliation ending, before the probes fail to cause a restart."""


class ManagerError(Exception):
    """A part of the operator has failed, so the process must be restarted."""


async def run(
    settings: Settings,
    stop: asyncio.Event,
    *,
    connect: Callable[[], AbstractAsyncContextManager[CountingCluster]] = connected,
    watch: Callable[[Settings, handlers.Registry, asyncio.Event], Awaitable[None]] = handlers.watch,
) -> None:
    """Run the operator until `stop` is set. With leader election, wait for the Lease first.

    Raises:
        ManagerError: If another replica took over the Lease, or if a task ended that must run until the operator stops.
    """
    async with connect() as cluster:
        reconciler = Reconciler(cluster, settings.choices)

        async def look(key: Key) -> float:
            with DURATION.time():
                return await reconciler.reconcile(key)

        queue = WorkQueue(look)
        election = None
        if settings.leader_election:
            election = LeaderElection(cluster, settings.namespace, settings.lease_name, settings.identity)
        async with serving(settings.admin_port, reconciler, queue, cluster, election):
            if election is None:
                await _work(settings, stop, cluster, reconciler, queue, watch)
                return
            if not await election.acquire(stop):
                return
            try:
                await _work(settings, stop, cluster, reconciler, queue, watch, election.keep)
            finally:
                await election.release()


async def _work(
    settings: Settings,
    stop: asyncio.Event,
    cluster: CountingCluster,
    reconciler: Reconciler,
    queue: WorkQueue,
    watch: Callable[[Settings, handlers.Registry, asyncio.Event], Awaitable[None]],
    *beside: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Watch and reconcile until `stop` is set; run `beside` concurrently, none of which may end before."""
    background = [asyncio.create_task(one()) for one in beside]
    waiting = asyncio.create_task(_wait_for_kind(cluster, stop))
    try:
        await _first([waiting, *background], waiting)
        if stop.is_set():
            return
        monitors, assigns_users = waiting.result()
        reconciler.choices = replace(reconciler.choices, service_monitors=monitors, assigns_users=assigns_users)
        kinds = [kind for kind in PRUNED if monitors or kind != "ServiceMonitor"]
        changed, deleted = asyncio.Event(), asyncio.Event()

        def definition_seen(is_gone: bool) -> None:
            (deleted if is_gone else changed).set()

        makes_certificates = settings.webhook_name and settings.certificates == "Operator"
        certificates = WebhookCertificates(cluster, settings) if makes_certificates else None
        working = [
            asyncio.create_task(queue.run(settings.workers)),
            asyncio.create_task(_resync(settings, cluster, reconciler, queue, kinds, changed)),
            asyncio.create_task(_end_without_definition(deleted)),
            *([asyncio.create_task(certificates.keep())] if certificates is not None else []),
        ]
        logger.info("watching %s", ", ".join(settings.watch_namespaces) or "all namespaces")
        sees_definition = None if settings.watch_namespaces else definition_seen
        registry = handlers.registry(reconciler, queue, kinds, certificates, sees_definition)
        watching = asyncio.create_task(_awaited(watch(settings, registry, stop)))
        try:
            await _first([watching, *working, *background], watching)
        finally:
            # First cancel the tasks that write: another replica may begin soon, and kopf takes seconds to stop.
            await _cancelled(working)
            stop.set()
            await watching
    finally:
        await _cancelled([waiting, *background])


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _first(tasks: "list[asyncio.Task[Any]]", wanted: "asyncio.Task[Any]") -> None:
    """Wait until the task `wanted` ends.

    Raises:
        ManagerError: If another task has ended; its error is the cause.
    """
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done - {wanted}:
        raise ManagerError("another replica is the leader, or a task of the operator has ended") from task.exception()
    wanted.result()


async def _cancelled(tasks: "list[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_for_kind(cluster: CountingCluster, stop: asyncio.Event) -> tuple[bool, bool]:
    """Wait until the cluster serves our kind, which may be defined after the operator has started.

    Returns:
        Whether it serves ServiceMonitors, and whether it assigns users to pods, as OpenShift does.
    """
    told = ""
    while not stop.is_set():
        try:
            if await cluster.serves(KIND):
                return await cluster.serves("ServiceMonitor"), await cluster.serves("SecurityContextConstraints")
            problem = f"the cluster has no kind {KIND}: is its CustomResourceDefinition installed?"
        except ClusterError as error:
            problem = str(error)
        if problem != told:
            told = problem
            logger.warning("waiting: %s", problem)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), WAIT_FOR_KIND)
    return False, False


async def _end_without_definition(deleted: asyncio.Event) -> None:
    """Wait until the definition of our kind is deleted, and end the process.

    The next process waits for the definition, and starts its watches then. If the kind is defined again, the kopf of
    this process may look for it before the API server serves it, and would never watch it again.

    Raises:
        ManagerError: If the definition is deleted.
    """
    await deleted.wait()
    raise ManagerError(f"the CustomResourceDefinition of {KIND} was deleted, and watches begin with the process")


async def _resync(
    settings: Settings,
    cluster: CountingCluster,
    reconciler: Reconciler,
    queue: WorkQueue,
    kinds: list[str],
    changed: asyncio.Event,
) -> None:
    """Check the watches and enqueue all layers, periodically and after a change of the definition of our kind."""
    pause = settings.resync
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), pause)
            await asyncio.sleep(SERVED_WITHIN)  # only after a change: a timeout leaves the block
        changed.clear()
        pause = settings.resync
        try:
            await _check_kinds(cluster, reconciler)
            await _check_watches(settings, cluster, reconciler, kinds)
        except ClusterError as error:
            pause = min(pause, SHOWN_WITHIN)
            logger.warning("the watches could not be checked: %s", error)
        for key in list(reconciler.layers):
            queue.add(key)


async def _check_kinds(cluster: CountingCluster, reconciler: Reconciler) -> None:
    """Check that the cluster serves the same kinds as at the start: only these are watched.

    Raises:
        ManagerError: If the cluster has begun or ceased to serve ServiceMonitors.
        ClusterError: If the cluster refuses the request, or is unavailable.
    """

    async def has_changed() -> bool:
        return await cluster.serves("ServiceMonitor") != reconciler.choices.service_monitors

    if not await has_changed():
        return
    await asyncio.sleep(SHOWN_WITHIN)  # an API server that is starting may not serve every kind yet
    if await has_changed():
        has = "no longer serves" if reconciler.choices.service_monitors else "serves"
        raise ManagerError(f"the cluster {has} the kind ServiceMonitor, and watches begin with the process")


async def _check_watches(
    settings: Settings, cluster: CountingCluster, reconciler: Reconciler, kinds: list[str]
) -> None:
    """Compare the state from the watches with lists.

    A watch can fail silently (kopf issue 1276), and one that restarts does not report objects deleted meanwhile.

    Raises:
        ManagerError: If a watch has not reported an unchanged object, or its deletion, for `SHOWN_WITHIN` seconds.
        ClusterError: If the cluster refuses a request, or is unavailable.
    """

    async def unseen() -> dict[tuple[str, str], str]:
        """Return the objects that a watch has not reported, by uid and resource version (empty for a deletion)."""
        known = {uid: name for uid, kind, name in reconciler.objects() if kind in (KIND, *kinds)}
        missing = {}
        for kind in (KIND, *kinds):
            for namespace in settings.watch_namespaces or [""]:
                async for found in cluster.metadata(kind, namespace, "" if kind == KIND else OWNER_LABEL):
                    metadata = found["metadata"]
                    known.pop(metadata["uid"], None)
                    if not reconciler.has_seen(found):
                        name = f"{kind} {metadata['namespace']}/{metadata['name']}"
                        missing[metadata["uid"], metadata["resourceVersion"]] = name
        return missing | {(uid, ""): f"the deletion of {name}" for uid, name in known.items()}

    if before := await unseen():
        await asyncio.sleep(SHOWN_WITHIN)  # a watch may lag behind a list
        after = await unseen()
        if still := sorted(name for version, name in after.items() if version in before):
            raise ManagerError(f"a watch has stopped: it has not reported {still[0]} for {SHOWN_WITHIN:g} s")


DURATION = Histogram(
    f"{PREFIX}_reconcile_duration_seconds",
    "Duration of one reconciliation.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30),
    registry=None,
)


class _State(Collector):
    def __init__(
        self, reconciler: Reconciler, queue: WorkQueue, cluster: CountingCluster, election: LeaderElection | None
    ) -> None:
        self._reconciler, self._queue, self._cluster, self._election = reconciler, queue, cluster, election

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(f"{PREFIX}_info", "Always 1; the label is the version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        leads = self._election is None or self._election.leads
        yield GaugeMetricFamily(f"{PREFIX}_leads", "1 if this replica is the leader, else 0.", value=leads)
        yield CounterMetricFamily(f"{PREFIX}_reconciles", "Successful reconciliations.", value=self._queue.done)
        yield CounterMetricFamily(f"{PREFIX}_reconcile_errors", "Failed reconciliations.", value=self._queue.failed)
        yield CounterMetricFamily(f"{PREFIX}_api_requests", "Requests to the API server.", value=self._cluster.requests)
        yield GaugeMetricFamily(f"{PREFIX}_queue_length", "Layers in the work queue.", value=len(self._queue))
        conditions = GaugeMetricFamily(
            f"{PREFIX}_layer_condition",
            "Whether a condition of a layer holds: 1 or 0.",
            labels=["layer_namespace", "layer", "condition", "reason"],
        )
        for key, known in sorted(self._reconciler.layers.items()):
            for one in ((known.resource or {}).get("status") or {}).get("conditions", ()):
                conditions.add_metric([*key, one["type"], one["reason"]], one["status"] == "True")
        yield conditions


@asynccontextmanager
async def serving(
    port: int,
    reconciler: Reconciler,
    queue: WorkQueue,
    cluster: CountingCluster,
    election: LeaderElection | None = None,
) -> AsyncIterator[None]:
    """Serve `/livez`, `/readyz` and `/metrics` while the block runs."""
    registry = CollectorRegistry()
    registry.register(_State(reconciler, queue, cluster, election))
    registry.register(DURATION)
    ProcessCollector(registry=registry)

    async def livez(request: web.Request) -> web.Response:
        if (stuck := queue.stuck_for()) > STUCK_AFTER:
            return web.Response(status=500, text=f"no layer was reconciled for {stuck:.0f} s\n")
        return web.Response(text="ok\n")

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", livez), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    try:
        yield
    finally:
        await runner.cleanup()
