"""One run of the operator, from its start to its stop; the test plays the part of kopf."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import aiohttp
import pytest
from clusters import FakeCluster, feed, refused
from fakes import Clock

from channels_zmq_operator import manager as module
from channels_zmq_operator.leader_election import LeaderElection
from channels_zmq_operator.manager import STUCK_AFTER, ManagerError, run, serving
from channels_zmq_operator.models import API_VERSION, KIND
from channels_zmq_operator.reconcile import Reconciler
from channels_zmq_operator.render import Choices
from channels_zmq_operator.settings import Settings
from channels_zmq_operator.workqueue import WorkQueue


class Run:
    """An operator that runs in an in-memory cluster."""

    def __init__(self, cluster: FakeCluster, port: int, **settings: Any) -> None:
        self.cluster, self.port, self.stop = cluster, port, asyncio.Event()
        self.settings = Settings(namespace="home", admin_port=port, **settings)
        self.watching = False
        self.watched: set[str] = set()
        self.handlers: dict[str, Any] = {}
        self.watch_ends: BaseException | None = None
        self.tasks = set(asyncio.all_tasks())
        self.task = asyncio.create_task(run(self.settings, self.stop, connect=self._connect, watch=self._watch))

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Any]:
        yield self.cluster

    async def _watch(self, settings: Settings, registry: Any, stop: asyncio.Event) -> None:
        self.watching = True
        self.handlers = {handler.id: handler.fn for handler in registry._watching.get_all_handlers()}
        self.watched = set(self.handlers)
        await stop.wait()
        self.watching = False
        if self.watch_ends is not None:
            raise self.watch_ends

    async def page(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}/{path}") as answer,
        ):
            return answer.status, await answer.text()

    async def answers(self) -> None:
        """Wait until the operator answers probes."""
        async with asyncio.timeout(10):
            while True:
                with suppress(aiohttp.ClientConnectionError):
                    await self.page("livez")
                    return

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.001)

    async def end(self, *, alone: bool = True) -> None:
        """Stop the operator, and check that it leaves no task running."""
        self.stop.set()
        async with asyncio.timeout(10):
            await self.task
        if not alone:
            return
        left = asyncio.all_tasks() - self.tasks - {asyncio.current_task()}
        assert not [task for task in left if "aiohttp" not in repr(task)], left


@asynccontextmanager
async def running(cluster: FakeCluster, port: int, **settings: Any) -> AsyncIterator[Run]:
    run = Run(cluster, port, **settings)
    try:
        yield run
        await run.end()
    finally:
        run.task.cancel()
        await asyncio.gather(run.task, return_exceptions=True)


def layer(cluster: FakeCluster) -> None:
    metadata = {"name": "chat", "namespace": "home"}
    cluster.put({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {}})


async def test_it_watches_until_it_is_told_to_stop(unused_tcp_port: int) -> None:
    """The operator watches, is ready and serves metrics until its stop, and leaves no task running."""
    async with running(FakeCluster(), unused_tcp_port) as run:
        await run.until(lambda: run.watching)
        assert (await run.page("readyz"))[0] == 200
        status, text = await run.page("metrics")
        assert status == 200
        assert "channels_zmq_operator_api_requests_total 3.0" in text
        assert "channels_zmq_operator_leads 1.0" in text
    assert not run.watching
    with pytest.raises(aiohttp.ClientConnectionError):
        await run.page("livez")


@pytest.mark.parametrize("served", [True, False])
async def test_monitors_are_watched_where_the_cluster_knows_them(served: bool, unused_tcp_port: int) -> None:
    """ServiceMonitors are watched only in a cluster that serves them, since kopf would wait for an unknown kind."""
    cluster = FakeCluster(served=(KIND, "ServiceMonitor") if served else (KIND,))
    async with running(cluster, unused_tcp_port) as run:
        await run.until(lambda: run.watching)
        assert ("ServiceMonitor" in run.watched) is served
        assert {"Deployment", "Secret", "ConfigMap"} <= run.watched


@pytest.mark.parametrize("namespaces", ["", "home"])
async def test_the_definition_is_watched_where_it_may_be(namespaces: str, unused_tcp_port: int) -> None:
    """The definition is watched unless namespaces are listed, since the operator then has no permission to."""
    async with running(FakeCluster(), unused_tcp_port, watch_namespaces=namespaces) as run:
        await run.until(lambda: run.watching)
        assert any("definition" in name for name in run.watched) is (not namespaces)


async def test_the_end_of_the_definition_is_that_of_the_operator(unused_tcp_port: int) -> None:
    """The deletion of the definition ends the operator, so that the next process waits for a new one.

    Kopf may look up a definition that is created again before it is served.
    """
    run = Run(FakeCluster(), unused_tcp_port)
    await run.until(lambda: run.watching)
    (definition,) = (function for name, function in run.handlers.items() if "definition" in name)
    for kind in (None, "ADDED", "MODIFIED"):
        await definition(event={"type": kind})
    await asyncio.sleep(0)
    assert run.watching
    await definition(event={"type": "DELETED"})
    with pytest.raises(ManagerError) as caught:
        await run.end()
    assert "was deleted" in str(caught.value.__cause__)


async def test_it_lives_while_its_kind_is_not_there_yet(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its kind, the operator answers probes, logs the reason once, and starts once the kind is served."""
    monkeypatch.setattr(module, "WAIT_FOR_KIND", 0.01)
    cluster = FakeCluster(served=())
    cluster.refusal = lambda request: refused(0, "ClientConnectorError") if len(cluster.log) < 5 else None
    async with running(cluster, unused_tcp_port) as run:
        await run.until(lambda: len(cluster.log) > 10)
        assert (await run.page("livez"))[0] == 200
        assert not run.watching
        cluster.served = (KIND,)
        await run.until(lambda: run.watching)
    assert caplog.text.count("is its CustomResourceDefinition installed?") == 1
    assert caplog.text.count("waiting: a request: ClientConnectorError") == 1


async def test_it_can_be_stopped_while_it_waits(unused_tcp_port: int) -> None:
    """An operator that waits for its kind stops without having watched anything."""
    cluster = FakeCluster(served=())
    async with running(cluster, unused_tcp_port) as run:
        await run.until(lambda: bool(cluster.log))
    assert run.watched == set()


def has_looked(cluster: FakeCluster, than: int) -> bool:
    return len(cluster.log) > than


async def test_the_webhooks_certificate_is_kept_where_there_is_a_webhook(unused_tcp_port: int) -> None:
    """The certificate is managed only if there is a webhook whose certificates the operator creates."""
    for settings, kept in (
        ({"webhook_name": "hook"}, True),
        ({"webhook_name": "hook", "certificates": "External"}, False),
        ({}, False),
    ):
        cluster = FakeCluster()
        async with running(cluster, unused_tcp_port, **settings) as run:
            await run.until(partial(getattr, run, "watching"))
            await run.until(partial(has_looked, cluster, 3 if kept else -1))
            assert any(request[1] == "Secret" for request in cluster.log) is kept
            assert any("configuration" in name for name in run.watched) is kept


async def test_a_part_that_ends_ends_everything(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that fails ends the whole operator, so that the process restarts and does not continue in part."""

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "_resync", broken)
    run = Run(FakeCluster(), unused_tcp_port)
    async with asyncio.timeout(10):
        with pytest.raises(ManagerError) as caught:
            await run.task
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not run.watching


async def test_an_error_of_the_watch_is_one_of_the_operator(unused_tcp_port: int) -> None:
    """An error with which kopf ends also ends the operator."""
    run = Run(FakeCluster(), unused_tcp_port)
    run.watch_ends = PermissionError("no")
    await run.until(lambda: run.watching)
    run.stop.set()
    with pytest.raises(PermissionError):
        await run.task


class Resync:
    """The resync of an operator whose watches a test may silence."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "SHOWN_WITHIN", 0.01)
        monkeypatch.setattr(module, "SERVED_WITHIN", 0.0)
        self.cluster = FakeCluster()
        self.reconciler = Reconciler(self.cluster, Choices("image", service_monitors=True))
        self.looked = asyncio.Event()
        self.changed = asyncio.Event()
        self.queue = WorkQueue(self._look)
        self.watched()

    def watched(self) -> None:
        self.cluster.watch(feed(self.reconciler, self.queue.add))

    async def _look(self, key: Any) -> float:
        self.looked.set()
        return float("inf")

    def run(self, every: float = 0.01) -> "asyncio.Task[None]":
        settings = Settings(resync=every)
        return asyncio.create_task(
            module._resync(settings, self.cluster, self.reconciler, self.queue, ["Deployment"], self.changed)
        )


def deployment(cluster: FakeCluster) -> None:
    labels = {"channels-zmq.io/owned-by": "chat"}
    owner = {"kind": KIND, "name": "chat", "uid": "uid-1"}
    metadata = {"name": "chat-forwarder", "namespace": "home", "labels": labels, "ownerReferences": [owner]}
    cluster.put({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {}})


async def test_layers_are_looked_at_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every known layer is reconciled periodically without a change.

    One list of each kind shows that the watches are alive.
    """
    resync = Resync(monkeypatch)
    layer(resync.cluster)
    deployment(resync.cluster)
    tasks = [asyncio.create_task(resync.queue.run(1)), resync.run()]
    async with asyncio.timeout(5):
        for _ in range(3):
            await resync.looked.wait()
            resync.looked.clear()
    await module._cancelled(tasks)
    listed = {("list", KIND, ""), ("list", "Deployment", "")}
    assert set(resync.cluster.log) == {*listed, ("serves", "ServiceMonitor", "")}


@pytest.mark.parametrize(("begins", "message"), [(True, "no longer serves"), (False, "the cluster serves")])
async def test_the_operator_begins_anew_when_service_monitors_are_defined_or_not_any_more(
    monkeypatch: pytest.MonkeyPatch, begins: bool, message: str
) -> None:
    """The operator restarts when the cluster starts or stops serving ServiceMonitors, as the watches are set up once.

    Otherwise a layer whose ServiceMonitor is refused would be stuck.
    """
    resync = Resync(monkeypatch)
    resync.reconciler.choices = Choices("image", service_monitors=begins)
    resync.cluster.served = (KIND,) if begins else (KIND, "ServiceMonitor")
    async with asyncio.timeout(5):
        with pytest.raises(ManagerError, match=f"{message} the kind ServiceMonitor"):
            await resync.run()


@pytest.mark.parametrize("make", [layer, deployment])
async def test_a_watch_that_has_died_silently_ends_the_operator(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[FakeCluster], None]
) -> None:
    """A watch that misses an object ends the operator, which then restarts with new watches."""
    resync = Resync(monkeypatch)
    resync.cluster.watchers.clear()
    make(resync.cluster)
    async with asyncio.timeout(5):
        with pytest.raises(ManagerError, match=r"has not reported .* home/chat"):
            await resync.run()


@pytest.mark.parametrize(("kind", "name"), [(KIND, "chat"), ("Deployment", "chat-forwarder")])
async def test_a_deletion_that_no_watch_reports_ends_the_operator(
    monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """A deletion that no watch reports ends the operator.

    After an outage of the API server, kopf lists again, which does not show what was deleted meanwhile.
    """
    resync = Resync(monkeypatch)
    layer(resync.cluster)
    deployment(resync.cluster)
    resync.cluster.watchers.clear()
    resync.cluster.remove(kind, "home", name)
    async with asyncio.timeout(5):
        with pytest.raises(ManagerError, match=f"has not reported the deletion of {kind} home/{name}"):
            await resync.run()


async def test_a_definition_that_changes_has_the_watches_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the definition starts a check of the watches at once.

    Kopf may have looked up the kind in the moment before it was served, and would not repeat that.
    """
    resync = Resync(monkeypatch)
    resync.cluster.watchers.clear()
    layer(resync.cluster)
    task = resync.run(every=3600.0)
    resync.changed.set()
    async with asyncio.timeout(5):
        with pytest.raises(ManagerError, match="a watch has stopped"):
            await task


async def test_a_watch_that_is_late_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that reports an object within its time, or whose object is gone by then, is alive."""
    resync = Resync(monkeypatch)
    resync.cluster.watchers.clear()
    layer(resync.cluster)
    deployment(resync.cluster)
    task = resync.run()
    async with asyncio.timeout(5):
        while len(resync.cluster.log) < 2:
            await asyncio.sleep(0)
        resync.watched()
        resync.cluster.edit(KIND, "home", "chat", lambda found: found["spec"].update(forwarders=1))
        resync.cluster.remove("Deployment", "home", "chat-forwarder")
        while len(resync.cluster.log) < 12:
            await asyncio.sleep(0.001)
    assert not task.done()
    await module._cancelled([task])


async def test_a_cluster_that_is_away_is_no_dead_watch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A check of the watches that the cluster refuses is logged and repeated soon, and does not end the operator."""
    resync = Resync(monkeypatch)
    resync.cluster.refusal = lambda request: refused(0, "Away")
    task = resync.run(every=3600.0)
    resync.changed.set()
    async with asyncio.timeout(5):
        while len(resync.cluster.log) < 3:
            await asyncio.sleep(0.001)
    await module._cancelled([task])
    assert "the watches could not be checked" in caplog.text


async def test_without_progress_it_is_not_alive(unused_tcp_port: int) -> None:
    """The liveness probe fails once no due reconciliation ends for a while, but not for an idle operator."""
    clock = Clock()

    async def look(key: Any) -> float:
        return 0.0

    queue = WorkQueue(look, clock=clock)
    reconciler = Reconciler(FakeCluster(), Choices("image"))
    async with serving(unused_tcp_port, reconciler, queue, FakeCluster()), aiohttp.ClientSession() as session:

        async def livez() -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{unused_tcp_port}/livez") as answer:
                return answer.status, await answer.text()

        clock.now += 10 * STUCK_AFTER
        assert (await livez())[0] == 200
        queue.add(("home", "chat"))
        assert (await livez())[0] == 200
        clock.now += STUCK_AFTER + 1
        assert await livez() == (500, "no layer was reconciled for 301 s\n")


# Several replicas


async def test_of_two_replicas_one_works(unused_tcp_port_factory: Callable[[], int]) -> None:
    """Of two replicas one watches; the other is alive and ready, and takes over at once when the first one ends."""
    cluster = FakeCluster()
    one = Run(cluster, unused_tcp_port_factory(), leader_election=True, identity="one")
    await one.until(lambda: one.watching)
    async with running(cluster, unused_tcp_port_factory(), leader_election=True, identity="two") as two:
        await two.answers()
        assert (await two.page("readyz"))[0] == (await two.page("livez"))[0] == 200
        assert not two.watching
        await one.end(alone=False)
        await two.until(lambda: two.watching)
        found = cluster.look("Lease", "home", "channels-zmq-operator")
        assert found is not None
        assert found["spec"]["holderIdentity"].startswith("two_")


async def test_a_replica_that_waits_can_be_stopped(unused_tcp_port: int) -> None:
    """A replica that waits for the Lease can be stopped, and leaves the Lease to its holder."""
    cluster = FakeCluster()
    other = LeaderElection(cluster, "home", "channels-zmq-operator", "other")
    assert await other.attempt()
    async with running(cluster, unused_tcp_port, leader_election=True) as run:
        await run.until(lambda: len(cluster.log) > 2)
        assert "channels_zmq_operator_leads 0.0" in (await run.page("metrics"))[1]
    assert run.watched == set()
    assert other.leads
    assert await other.attempt()


async def test_a_replica_that_loses_the_lease_ends(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that loses the Lease ends, and leaves the Lease to the new leader."""
    monkeypatch.setattr(module, "LeaderElection", lambda *given: LeaderElection(*given, duration=0.3))
    cluster = FakeCluster()
    run = Run(cluster, unused_tcp_port, leader_election=True)
    await run.until(lambda: run.watching)
    cluster.edit("Lease", "home", "channels-zmq-operator", lambda found: found["spec"].update(holderIdentity="thief"))
    async with asyncio.timeout(10):
        with pytest.raises(ManagerError, match="another replica is the leader"):
            await run.task
    found = cluster.look("Lease", "home", "channels-zmq-operator")
    assert found is not None
    assert found["spec"]["holderIdentity"] == "thief"
