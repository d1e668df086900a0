"""Kopf's part of the operator: what it watches and how, and the effect of each event."""

import asyncio
import gc
import json
import logging
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import kopf
import pytest
import yaml
from aiohttp import web
from clusters import FakeCluster

from channels_zmq_operator import handlers
from channels_zmq_operator.cluster import KINDS, Kind
from channels_zmq_operator.models import API_VERSION, GROUP, KIND, PLURAL, VERSION, Key
from channels_zmq_operator.naming import OWNER_LABEL, Manifest
from channels_zmq_operator.reconcile import PRUNED, Reconciler
from channels_zmq_operator.render import Choices
from channels_zmq_operator.settings import Settings

LAYER = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "chat", "namespace": "home"}, "spec": {}}


class Told:
    """A work queue and a WebhookCertificates that record the calls to them."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.configurations: list[Manifest] = []

    def add(self, key: Key) -> None:
        self.keys.append(key)

    def configuration_seen(self, configuration: Manifest) -> None:
        self.configurations.append(configuration)


class World:
    """A registry of handlers, and a cluster whose events pass through it."""

    def __init__(self, *, trust: bool = True) -> None:
        self.told, self.cluster = Told(), FakeCluster()
        self.reconciler = Reconciler(self.cluster, Choices("image"))
        self.registry = handlers.registry(
            self.reconciler,
            self.told,  # type: ignore[arg-type] # as much of a queue as is asked for
            PRUNED,
            self.told if trust else None,  # type: ignore[arg-type]
        )
        self.handlers = self.registry._watching.get_all_handlers()

    async def tell(self, event: str | None, found: Manifest) -> None:
        """Call the handlers of an object's kind, as kopf does."""
        where = KINDS[found["kind"]]
        group, _, version = where.api_version.rpartition("/")
        for handler in self.handlers:
            selector: Any = handler.selector
            if (selector.group, selector.version, selector.any_name) == (group, version, where.plural):
                handle: Any = handler.fn
                body = kopf.Body(cast(Any, found))
                outcome = await handle(event={"type": event, "object": found}, body=body, logger=logging.getLogger())
                assert outcome is None


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Restore the levels of the loggers, which kopf's settings change for the whole process."""
    names = ("kopf.objects", "kopf.activities", "kopf._core", "aiohttp.access")
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_every_kind_is_watched_once() -> None:
    """Layers, pods and each kind of child are watched once, as is the webhook's configuration where it is managed."""
    found = [(one.selector.group, one.selector.version, one.selector.any_name) for one in World().handlers]  # type: ignore[union-attr]
    expected = {(*_group(kind), KINDS[kind].plural) for kind in (KIND, *PRUNED, "Pod", "MutatingWebhookConfiguration")}
    assert len(found) == len(set(found)) == len(expected)
    assert set(found) == expected
    assert len(World(trust=False).handlers) == len(found) - 1


def _group(kind: str) -> tuple[str, str]:
    group, _, version = KINDS[kind].api_version.rpartition("/")
    return group, version


def test_no_handler_makes_kopf_write() -> None:
    """Kopf only watches and can log in; no handler makes it add a finalizer or an annotation."""
    registry = World().registry
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._indexing.get_all_handlers()
    assert not registry._webhooks.get_all_handlers()
    assert len(registry._activities.get_all_handlers()) == 1


async def test_a_layer_is_looked_at_when_its_spec_is_new() -> None:
    """A layer is enqueued when it is listed or created or its spec changes, not at a new status or a deletion."""
    world = World()
    made = world.cluster.put(LAYER)
    await world.tell(None, made)
    assert world.told.keys == [("home", "chat")]
    status = world.cluster.edit(KIND, "home", "chat", lambda found: found.update(status={"ready": "1/1"}))
    await world.tell("MODIFIED", status)
    assert len(world.told.keys) == 1
    spec = world.cluster.edit(KIND, "home", "chat", lambda found: found.update(spec={"forwarders": 1}))
    await world.tell("MODIFIED", spec)
    assert len(world.told.keys) == 2
    await world.tell("DELETED", spec)
    assert len(world.told.keys) == 2
    assert world.reconciler.layers == {}


@pytest.mark.parametrize("kind", PRUNED)
async def test_a_child_that_changes_makes_its_layer_be_looked_at(kind: str) -> None:
    """A child that changes enqueues its owner, also before the layer is seen.

    A child with only the label belongs to another owner and enqueues nothing.
    """
    world = World()
    owner = {"kind": KIND, "name": "chat", "uid": "u"}
    metadata = {"name": "x", "namespace": "home", "labels": {OWNER_LABEL: "other"}, "ownerReferences": [owner]}
    child = {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata, "spec": {}}
    await world.tell("ADDED", child)
    assert world.told.keys == [("home", "chat")]
    del metadata["ownerReferences"]
    await world.tell("ADDED", child)
    assert world.told.keys[1:] == []


async def test_the_webhooks_configuration_is_told_to_its_keeper() -> None:
    """Every event of the webhook's configuration passes it unchanged to WebhookCertificates."""
    world = World()
    await world.tell("MODIFIED", {"kind": "MutatingWebhookConfiguration", "metadata": {"name": "x"}, "webhooks": []})
    assert world.told.configurations == [
        {"kind": "MutatingWebhookConfiguration", "metadata": {"name": "x"}, "webhooks": []}
    ]


def test_only_what_is_ours_is_watched() -> None:
    """The API server sends only children with our label, the one webhook configuration and the one definition."""
    found = handlers.settings(Settings(webhook_name="hook"))
    for kind in PRUNED:
        assert found.watching.label_selectors[(*_group(kind), KINDS[kind].plural)] == OWNER_LABEL
    hooks = "admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations"
    assert found.watching.field_selectors[hooks] == "metadata.name=hook"
    crds = "apiextensions.k8s.io", "v1", "customresourcedefinitions"
    assert found.watching.field_selectors[crds] == f"metadata.name={PLURAL}.{GROUP}"
    assert not found.scanning.disabled


def test_with_namespaces_nothing_is_scanned() -> None:
    """An operator with a list of namespaces does not scan the cluster, since it has no permission to."""
    found = handlers.settings(Settings(watch_namespaces="a,b"))
    assert found.scanning.disabled


def test_waits_are_bounded_and_nothing_is_posted() -> None:
    """A watch ends before its client's timeout, requests have a timeout, and kopf posts no events and logs little."""
    found = handlers.settings(Settings())
    assert not found.posting.enabled
    assert found.watching.server_timeout is not None
    assert found.watching.client_timeout is not None
    assert 0 < found.watching.server_timeout < found.watching.client_timeout
    assert found.watching.connect_timeout
    assert found.networking.request_timeout
    assert found.queueing.worker_limit is None
    assert logging.getLogger("kopf.objects").level == logging.WARNING


@pytest.mark.parametrize("namespaces", [[], ["a", "b"]])
async def test_kopf_is_run_as_this_operator_alone(namespaces: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kopf runs without peering, under the replica's identity and in the namespaces of the settings."""
    given = SimpleNamespace()

    async def operator(**options: Any) -> None:
        vars(given).update(options)

    monkeypatch.setattr(kopf, "operator", operator)
    stop, registry = asyncio.Event(), World().registry
    own = Settings(identity="pod-1", watch_namespaces=",".join(namespaces))
    await handlers.watch(own, registry, stop)
    assert given.standalone
    assert given.identity == "pod-1"
    assert given.registry is registry
    assert given.stop_flag is stop
    assert given.clusterwide is (not namespaces)
    assert given.namespaces == namespaces


def test_the_version_of_the_resource_is_the_one_that_is_watched() -> None:
    """The client uses the group and version of the layers' model, so that both are defined in one place."""
    assert KINDS[KIND].api_version == f"{GROUP}/{VERSION}" == API_VERSION


# The content that is kept of watched objects


class BigServer:
    """An API server whose namespace has many large ConfigMaps with our label, created when they are requested.

    Args:
        owners: Their owner references.
    """

    def __init__(self, owners: list[Manifest]) -> None:
        self.owners = owners
        self.served = {kind: KINDS[kind] for kind in (KIND, *PRUNED)}
        self.served["Namespace"] = Kind("v1", "namespaces", namespaced=False)  # kopf waits for these two kinds
        self.served["CustomResourceDefinition"] = Kind(
            "apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False
        )
        self.limits: set[str] = set()
        self.listed = 0
        self.all_listed, self.released = asyncio.Event(), asyncio.Event()

    async def groups(self, request: web.Request) -> web.Response:
        found = {where.api_version for where in self.served.values()} - {"v1"}
        versions = [(group, {"version": version}) for group, version in (each.split("/") for each in found)]
        return web.json_response(
            {"groups": [{"name": group, "versions": [each], "preferredVersion": each} for group, each in versions]}
        )

    async def old_versions(self, request: web.Request) -> web.Response:
        return web.json_response({"versions": ["v1"]})

    async def resources(self, request: web.Request) -> web.Response:
        version = request.path.removeprefix("/apis/").removeprefix("/api/")
        verbs = ["list", "watch", "get", "patch"]
        found = [
            {"name": where.plural, "kind": kind, "singularName": kind.lower(), "namespaced": True, "verbs": verbs}
            for kind, where in self.served.items()
            if where.api_version == version
        ]
        return web.json_response({"resources": found})

    async def objects(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            await self.released.wait()
            return web.Response()
        metadata: Manifest = {"resourceVersion": "1"}
        items: list[Manifest] = []
        if request.match_info["plural"] == "configmaps":
            self.limits.add(request.query["limit"])
            begin = int(request.query.get("continue") or 0)
            end = min(BIG_OBJECTS, begin + int(request.query["limit"]))
            items = [self.big(number) for number in range(begin, end)]
            self.listed = end
            metadata["continue"] = str(end) if end < BIG_OBJECTS else ""
        if not metadata.get("continue") and items:
            self.all_listed.set()
        return web.json_response({"metadata": metadata, "items": items})

    def big(self, number: int) -> Manifest:
        metadata = {
            "name": f"big-{number}",
            "namespace": "home",
            "uid": f"uid-{number}",
            "resourceVersion": "1",
            "labels": {OWNER_LABEL: "chat"},
            "ownerReferences": self.owners,
        }
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": "x" * BIG}}


BIG, BIG_OBJECTS = 2**20 - 2**12, 300


@pytest.fixture
async def big_server(
    unused_tcp_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owners: list[Manifest]
) -> AsyncIterator[BigServer]:
    found = BigServer(owners)
    app = web.Application()
    app.add_routes(
        [
            web.get("/api", found.old_versions),
            web.get("/apis", found.groups),
            web.get("/api/{version}", found.resources),
            web.get("/apis/{group}/{version}", found.resources),
            web.get("/{base:api.*}/namespaces/home/{plural}", found.objects),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    path = tmp_path / "config"
    cluster = {"name": "it", "cluster": {"server": f"http://127.0.0.1:{unused_tcp_port}"}}
    context = {"name": "it", "context": {"cluster": "it", "user": "me", "namespace": "home"}}
    user = {"name": "me", "user": {"token": "secret"}}
    config = {"current-context": "it", "contexts": [context], "clusters": [cluster], "users": [user]}
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **config}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    yield found
    found.released.set()
    await runner.cleanup()


OWNED = [{"apiVersion": API_VERSION, "kind": KIND, "name": "chat", "uid": "uid-of-a-layer"}]


@pytest.mark.parametrize("owners", [[], OWNED], ids=["owned by nobody", "owned by a layer"])
async def test_large_objects_with_our_label_take_little_memory(big_server: BigServer, owners: list[Manifest]) -> None:
    """Kopf reads 300 ConfigMaps of a megabyte page by page, and none of their content stays in memory."""
    reconciler, told, stop = Reconciler(FakeCluster(), Choices("image")), Told(), asyncio.Event()
    handled = handlers.registry(reconciler, told, PRUNED, None)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        settings = Settings(watch_namespaces="home")
        watching = asyncio.create_task(handlers.watch(settings, handled, stop))
        async with asyncio.timeout(60):
            await big_server.all_listed.wait()
            while owners and len(told.keys) < BIG_OBJECTS:
                await asyncio.sleep(0.01)
        _, peak = tracemalloc.get_traced_memory()
        big_server.released.set()
        stop.set()
        await watching
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        big_server.released.set()
        stop.set()
        await watching
    assert big_server.listed == BIG_OBJECTS
    assert big_server.limits == {str(handlers.CHUNK)}
    assert peak - before < 150 * 2**20  # measured: 89 MiB, with the server's part
    assert after - before < 10 * 2**20  # measured: under 1 MiB
    kept = reconciler.layers.get(("home", "chat"))
    assert kept is None if not owners else (kept is not None and len(kept.children) == BIG_OBJECTS)
    assert len(json.dumps(repr(reconciler.layers))) < 1000 * BIG_OBJECTS
