"""kopf's part: what is watched and how, and what comes of an event."""

import asyncio
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import kopf
import pytest
from clusters import FakeCluster

from channels_zmq_operator import handlers
from channels_zmq_operator.cluster import KINDS
from channels_zmq_operator.models import API_VERSION, GROUP, KIND, PLURAL, VERSION
from channels_zmq_operator.queues import Key
from channels_zmq_operator.reconcile import PRUNED, Reconciler
from channels_zmq_operator.render import OWNER_LABEL, Choices, Manifest
from channels_zmq_operator.settings import Settings

LAYER = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "chat", "namespace": "home"}, "spec": {}}


class Told:
    """What a queue and a Trust were told."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.configurations: list[Manifest] = []

    def add(self, key: Key) -> None:
        self.keys.append(key)

    def configuration_seen(self, configuration: Manifest) -> None:
        self.configurations.append(configuration)


class World:
    """A registry of handlers, and a cluster whose events go through it."""

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
                outcome = await handler.fn(  # type: ignore[call-arg]
                    event={"type": event, "object": found}, body=kopf.Body(found), logger=logging.getLogger()
                )
                assert outcome is None


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Give loggers back their levels, which are kopf's settings for a whole process."""
    names = ("kopf.objects", "kopf.activities", "kopf._core", "aiohttp.access")
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_every_kind_is_watched_once() -> None:
    """Layers, each kind of child, and the webhook's configuration where there is one to keep."""
    found = [(one.selector.group, one.selector.version, one.selector.any_name) for one in World().handlers]  # type: ignore[union-attr]
    expected = {(*_group(kind), KINDS[kind].plural) for kind in (KIND, *PRUNED, "MutatingWebhookConfiguration")}
    assert len(found) == len(set(found)) == len(expected)
    assert set(found) == expected
    assert len(World(trust=False).handlers) == len(found) - 1


def _group(kind: str) -> tuple[str, str]:
    group, _, version = KINDS[kind].api_version.rpartition("/")
    return group, version


def test_no_handler_makes_kopf_write() -> None:
    """No finalizer, no annotation: it only watches, and it can log in."""
    registry = World().registry
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._indexing.get_all_handlers()
    assert not registry._webhooks.get_all_handlers()
    assert len(registry._activities.get_all_handlers()) == 1


async def test_a_layer_is_looked_at_when_its_spec_is_new() -> None:
    """When it is listed, made or changed; not at its status, and not when it goes."""
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
    """Found by its owner; and no longer when it is as we know it."""
    world = World()
    owner = {"kind": KIND, "name": "chat", "uid": "u"}
    metadata = {"name": "x", "namespace": "home", "labels": {OWNER_LABEL: "other"}, "ownerReferences": [owner]}
    child = {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata}
    await world.tell("ADDED", child)
    assert world.told.keys == [("home", "chat")]
    del metadata["ownerReferences"]
    await world.tell("ADDED", child)
    assert world.told.keys[1:] == [("home", "other")]


async def test_the_webhooks_configuration_is_told_to_its_keeper() -> None:
    """Whatever happened to it."""
    world = World()
    await world.tell("MODIFIED", {"kind": "MutatingWebhookConfiguration", "metadata": {"name": "x"}, "webhooks": []})
    assert world.told.configurations == [
        {"kind": "MutatingWebhookConfiguration", "metadata": {"name": "x"}, "webhooks": []}
    ]


def test_only_what_is_ours_is_watched() -> None:
    """The server sends children with our label, the one configuration, and the one definition."""
    found = handlers.settings(Settings(webhook_name="hook"))
    for kind in PRUNED:
        assert found.watching.label_selectors[(*_group(kind), KINDS[kind].plural)] == OWNER_LABEL
    hooks = "admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations"
    assert found.watching.field_selectors[hooks] == "metadata.name=hook"
    crds = "apiextensions.k8s.io", "v1", "customresourcedefinitions"
    assert found.watching.field_selectors[crds] == f"metadata.name={PLURAL}.{GROUP}"
    assert not found.scanning.disabled


def test_with_namespaces_nothing_is_scanned() -> None:
    """There is no right to."""
    found = handlers.settings(Settings(watch_namespaces="a,b"))  # type: ignore[arg-type]
    assert found.scanning.disabled


def test_waits_are_bounded_and_nothing_is_posted() -> None:
    """A watch ends by itself before a client would give it up; kopf makes no events, and is quiet."""
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
    """Without peering, with an identity, and in the namespaces of the settings."""
    given = SimpleNamespace()

    async def operator(**options: Any) -> None:
        vars(given).update(options)

    monkeypatch.setattr(kopf, "operator", operator)
    stop, registry = asyncio.Event(), World().registry
    own = Settings(identity="pod-1", watch_namespaces=",".join(namespaces))  # type: ignore[arg-type]
    await handlers.watch(own, registry, stop)
    assert given.standalone
    assert given.identity == "pod-1"
    assert given.registry is registry
    assert given.stop_flag is stop
    assert given.clusterwide is (not namespaces)
    assert given.namespaces == namespaces


def test_the_version_of_the_resource_is_the_one_that_is_watched() -> None:
    """One place says what it is."""
    assert KINDS[KIND].api_version == f"{GROUP}/{VERSION}" == API_VERSION
