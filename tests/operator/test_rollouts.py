"""The status of a layer's pods and of its applications' pods, and how upgrades of the operator reach layers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from clusters import Request, refused
from worlds import CHOICES, KEY, World, ready

from channels_zmq_operator.cluster import ClusterError
from channels_zmq_operator.models import API_VERSION, KIND, Key
from channels_zmq_operator.naming import APP_NAME, OWNER_LABEL, Manifest
from channels_zmq_operator.reconcile import COUNT_EVERY, WAIT, Reconciler

OTHERS = ("a", "b", "c")


def pod(name: str = "chat-forwarder-x", reason: str = "", **labels: str) -> Manifest:
    """Return a pod of a forwarder, or another one with labels, that waits for a reason."""
    waiting = {"state": {"waiting": {"reason": reason}}} if reason else {"state": {"running": {}}}
    labels = {"app.kubernetes.io/name": APP_NAME, **(labels or {OWNER_LABEL: "chat"})}
    owner = {"kind": "ReplicaSet", "name": "chat-forwarder", "uid": "of a ReplicaSet"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "home", "labels": labels, "ownerReferences": [owner]},
        "status": {"containerStatuses": [waiting]},
    }


async def test_why_a_pod_does_not_start_is_told() -> None:
    """The reason why a pod does not start is a condition while it lasts, and is reported once as an event."""
    world = World({})
    await world.settle()
    world.cluster.put(pod(reason="ImagePullBackOff"))
    await world.settle()
    assert world.condition("Degraded") == ("True", "ForwarderFailing")
    (event,) = world.events()
    assert (event["type"], event["reason"]) == ("Warning", "ForwarderFailing")
    assert event["note"] == "pod chat-forwarder-x: ImagePullBackOff"
    assert await world.settle() == float("inf")
    world.edit("Pod", lambda found: found.update(pod()), "chat-forwarder-x")
    world.edit("Deployment", ready)
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    assert [one["reason"] for one in world.events()] == ["ForwarderFailing", "RolledOut"]


def fails(status: Manifest, found: Manifest) -> None:
    found["status"] = status


async def test_the_same_problems_are_told_once() -> None:
    """A problem is reported once, whichever pod was seen last, and even if an image's problems alternate."""
    world = World({})
    names = ("chat-forwarder-x", "chat-forwarder-y")
    for name in names:
        world.cluster.put(pod(name, "ErrImagePull"))
    await world.settle()
    for turn in range(6):
        reason = ("ImagePullBackOff", "ErrImagePull")[turn % 2]
        for name in names:
            world.edit("Pod", partial(fails, pod(reason=reason)["status"]), name)
            await world.settle()
    assert len(world.events()) == len({one["note"] for one in world.events()}) <= 4


@pytest.mark.parametrize("lacks", ["ownerReferences", "labels"])
async def test_only_pods_of_forwarders_count(lacks: str) -> None:
    """Only pods of forwarders count for the status, since any user may put our label on a pod."""
    world = World({})
    other = pod(reason="ErrImagePull")
    del other["metadata"][lacks]
    other["metadata"].setdefault("labels", {OWNER_LABEL: "chat"})
    world.cluster.put(other)
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_a_pod_that_is_gone_has_no_problem() -> None:
    """A deleted pod does not degrade its layer, since another one may be in its place."""
    world = World({})
    world.cluster.put(pod(reason="CrashLoopBackOff"))
    await world.settle()
    assert world.condition("Degraded") == ("True", "ForwarderFailing")
    world.cluster.remove("Pod", "home", "chat-forwarder-x")
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_pods_may_be_seen_before_their_layer() -> None:
    """A pod that is seen before its layer counts, and nothing is kept of a deleted pod without a layer."""
    world = World()
    world.cluster.put(pod(reason="ErrImagePull"))
    world.cluster.put(pod("stray", "ErrImagePull", **{OWNER_LABEL: "none"}))
    assert world.due == set()
    world.make({})
    await world.settle()
    assert world.condition("Degraded") == ("True", "ForwarderFailing")
    world.cluster.remove("Pod", "home", "stray")
    assert world.reconciler.layers.keys() == {KEY}


async def test_a_paused_layer_is_left_as_it_is() -> None:
    """A paused layer is not changed, whatever is edited, deleted or upgraded, until it is resumed."""
    world = World({})
    await world.settle()
    world.edit("Deployment", ready)
    world.set_spec({"paused": True})
    await world.settle()
    assert world.condition("Progressing") == ("False", "Paused")
    assert world.condition("Ready") == ("True", "ForwardersReady")
    world.cluster.remove("Service", "home", "chat-forwarder")
    world.start()
    world.reconciler.choices = replace(CHOICES, forwarder_image="image:2")
    world.wait(hours=1000)
    await world.settle()
    assert ("Service", "chat-forwarder") not in world.children()
    assert image(world) == "image:1"
    world.set_spec({})
    await world.settle()
    assert ("Service", "chat-forwarder") in world.children()
    assert image(world) == "image:2"


def image(world: World, name: str = "chat") -> str:
    spec = world.child("Deployment", f"{name}-forwarder")["spec"]["template"]["spec"]
    return str(spec["containers"][0]["image"])


class Upgraded(World):
    """Three layers whose forwarders serve, and an operator that has just been upgraded."""

    def make_layers(self) -> None:
        for name in OTHERS:
            metadata = {"name": name, "namespace": "home"}
            self.cluster.put({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {}})

    async def upgrade(self, image: str = "image:2") -> None:
        """Start another operator, and let it reconcile every layer."""
        self.start()
        self.reconciler.choices = replace(CHOICES, forwarder_image=image)
        await self.look()

    async def look(self) -> None:
        """Reconcile every layer, as is due after a while."""
        for name in OTHERS:
            self.due.add(("home", name))
        await self.settle(50)

    def serve(self, name: str) -> None:
        self.cluster.edit("Deployment", "home", f"{name}-forwarder", ready)

    def upgraded(self) -> list[str]:
        return [name for name in OTHERS if image(self, name) == "image:2"]

    def progress(self, name: str) -> str:
        found = self.cluster.look(KIND, "home", name)
        assert found is not None
        (condition,) = [one for one in found["status"]["conditions"] if one["type"] == "Progressing"]
        return str(condition["reason"])


@pytest.fixture
async def world() -> Upgraded:
    world = Upgraded()
    world.make_layers()
    await world.settle(50)
    for name in OTHERS:
        world.serve(name)
    await world.settle(50)
    return world


async def test_an_upgrade_reaches_one_layer_after_the_other(world: Upgraded) -> None:
    """The upgrade of a layer begins once the forwarders of the previous one are replaced."""
    await world.upgrade()
    done: list[str] = []
    while len(done) < len(OTHERS):
        (new,) = set(world.upgraded()) - set(done)
        assert world.progress(new) == "RollingOut"
        assert {world.progress(name) for name in OTHERS if name not in (*done, new)} <= {"UpgradeWaits"}
        await world.look()
        assert set(world.upgraded()) == {*done, new}, "it is not complete yet"
        world.serve(new)
        done.append(new)
        await world.settle(50)
        assert world.progress(new) == "Complete"
        await world.look()
    assert world.upgraded() == list(OTHERS)


async def test_who_waits_looks_again_soon(world: Upgraded) -> None:
    """A layer that waits for its upgrade is reconciled again soon, since no event announces its turn."""
    await world.upgrade()
    (first,) = world.upgraded()
    waiting: Key = ("home", next(name for name in OTHERS if name != first))
    assert await world.reconciler.reconcile(waiting) == WAIT


async def test_it_waits_for_its_turn_also_where_its_watch_is_slow(world: Upgraded) -> None:
    """Only one layer is upgraded even if no Deployment is known yet, since kopf lists kinds side by side."""
    world.reconciler = Reconciler(world.cluster, replace(CHOICES, forwarder_image="image:2"), clock=lambda: world.now)
    world.cluster.watchers.clear()
    for name in OTHERS:
        layer = world.cluster.look(KIND, "home", name)
        assert layer is not None
        world.reconciler.layer_seen(layer, gone=False)
    for name in OTHERS:
        await world.reconciler.reconcile(("home", name))
    assert len(world.upgraded()) == 1


async def test_a_layer_that_is_deleted_during_its_turn_gives_it_back(world: Upgraded) -> None:
    """A layer whose deletion is reported during its reconciliation gives up its turn to the next one."""

    def deleted(request: Request) -> ClusterError | None:
        if request[:2] == ("apply", f"{KIND}/status"):
            return refused(404, "NotFound")
        if request[:2] == ("apply", "Deployment") and request[2] == "a-forwarder":
            world.reconciler.layer_seen(before, gone=True)
        return None

    layer = world.cluster.look(KIND, "home", "a")
    assert layer is not None
    before: Manifest = layer
    world.start()
    world.reconciler.choices = replace(CHOICES, forwarder_image="image:2")
    world.cluster.refusal = deleted
    await world.reconciler.reconcile(("home", "a"))
    world.cluster.refusal = lambda request: None
    await world.reconciler.reconcile(("home", "b"))
    assert image(world, "b") == "image:2"


async def test_an_upgrade_that_fails_goes_one_layer_further_after_a_restart(world: Upgraded) -> None:
    """A failing upgrade reaches one more layer after a restart, since a new process does not know of the first.

    The last layer is not upgraded while the second one is incomplete, even once the first one is ready.
    """
    await world.upgrade()
    (first,) = world.upgraded()
    await world.upgrade()
    await world.look()
    assert len(world.upgraded()) == 2, "a new process knows nothing of the first, and tries one more"
    world.serve(first)
    await world.look()
    assert len(world.upgraded()) == 2


END: dict[str, Callable[[Upgraded, str], Any]] = {
    "deleted": lambda world, name: world.cluster.remove(KIND, "home", name),
    "paused": lambda world, name: world.edit(KIND, lambda found: found.update(spec={"paused": True}), name),
}


@pytest.mark.parametrize("how", END)
async def test_a_layer_that_holds_the_others_up_can_be_taken_out(world: Upgraded, how: str) -> None:
    """A layer that is deleted or paused gives up its turn."""
    await world.upgrade()
    (first,) = world.upgraded()
    END[how](world, first)
    await world.settle(50)
    await world.look()
    assert len([name for name in world.upgraded() if name != first]) == 1


async def test_what_its_own_author_changes_waits_for_nobody(world: Upgraded) -> None:
    """A change by the layer's author is applied without waiting for a turn.

    A layer that was incomplete before does not wait either: it could delay all others for ever.
    """
    await world.upgrade()
    (first,) = world.upgraded()
    second, third = (name for name in OTHERS if name != first)
    world.edit(KIND, lambda found: found.update(spec={"forwarders": 3}), second)
    world.edit("Deployment", lambda found: found["status"].update(availableReplicas=1), f"{third}-forwarder")
    await world.settle(50)
    await world.look()
    assert world.upgraded() == list(OTHERS)


async def test_a_restart_without_a_change_replaces_nothing(world: Upgraded) -> None:
    """A restart with the same image replaces no forwarder, so no layer waits."""
    before = world.asked()
    await world.upgrade("image:1")
    assert before
    assert world.upgraded() == []
    assert {world.progress(name) for name in OTHERS} == {"Complete"}


def application(name: str, created: str, **labels: str) -> Manifest:
    made = pod(name, **(labels or {"channels-zmq.io/layer": "chat"}))
    made["metadata"]["creationTimestamp"] = created
    return made


async def test_pods_that_are_older_than_their_settings_are_counted() -> None:
    """Pods that are older than the layer's settings are counted periodically until they are gone.

    A new layer has none, though pods may wait for it.
    """
    world = World({})
    world.cluster.put(application("old", "2025-12-31T00:00:00Z"))
    await world.settle()
    assert world.condition("AppsOutdated") == ("False", "UpToDate")
    world.wait(hours=1)
    world.set_spec({"layer": {"capacity": 5}})
    assert await world.settle() == COUNT_EVERY
    assert world.condition("AppsOutdated") == ("True", "RestartNeeded")
    world.cluster.put(application("new", "2026-01-01T02:00:00Z"))
    world.cluster.put(application("another's", "2025-12-31T00:00:00Z", **{"channels-zmq.io/layer": "news"}))
    world.start()
    assert await world.settle() == COUNT_EVERY
    assert world.condition("AppsOutdated") == ("True", "RestartNeeded")
    world.cluster.remove("Pod", "home", "old")
    world.asked()
    await world.reconciler.reconcile(KEY)
    assert world.asked() == [], "it has just looked"
    world.wait(seconds=COUNT_EVERY)
    await world.reconciler.reconcile(KEY)
    assert world.condition("AppsOutdated") == ("False", "UpToDate")
    world.asked()
    await world.reconciler.reconcile(KEY)
    assert world.asked() == []


async def test_settings_survive_a_restart_into_trouble() -> None:
    """The settings' time survives a restart in which a refusal or a pause precedes the next count of pods."""
    world = World({})
    world.cluster.put(application("old", "2025-12-31T00:00:00Z"))
    await world.settle()
    world.wait(hours=1)
    world.set_spec({"layer": {"capacity": 5}, "security": {"rotateNow": "now", "rotateServerKey": True}})
    await world.settle()
    before = world.layer()["status"]
    assert before["keysRotatedFor"] == "now"
    world.start()
    world.cluster.refusal = lambda request: refused(403, "Forbidden") if request[1] == "Service" else None
    with pytest.raises(ClusterError):
        await world.settle()
    assert world.condition("Degraded") == ("True", "ClusterRefused")
    world.cluster.refusal = lambda request: None
    world.start()
    world.set_spec({"layer": {"capacity": 5}, "paused": True})
    await world.settle()
    after = world.layer()["status"]
    assert (after["settings"], after["keysRotatedFor"]) == (before["settings"], "now")
    assert world.condition("AppsOutdated") == ("True", "RestartNeeded")


@pytest.mark.parametrize("spec", [{"paused": True}, {"forwarders": -1}])
async def test_outdated_pods_are_counted_also_while_nothing_is_changed(spec: dict[str, Any]) -> None:
    """Outdated pods are counted although the layer is paused or its spec invalid, as pods are replaced all the same."""
    world = World({})
    world.cluster.put(application("old", "2025-12-31T00:00:00Z"))
    await world.settle()
    world.wait(hours=1)
    world.set_spec({"layer": {"capacity": 5}})
    await world.settle()
    world.set_spec({"layer": {"capacity": 5}} | spec)
    assert await world.settle() == COUNT_EVERY
    assert world.condition("AppsOutdated") == ("True", "RestartNeeded")
    world.cluster.remove("Pod", "home", "old")
    world.wait(seconds=COUNT_EVERY)
    assert await world.reconciler.reconcile(KEY) == float("inf")
    assert world.condition("AppsOutdated") == ("False", "UpToDate")


async def test_a_paused_layer_is_not_degraded_by_what_was_refused_before() -> None:
    """A pause clears an earlier refusal: without further requests, nobody would notice that its cause is gone."""
    world = World({})
    world.cluster.refusal = lambda request: refused(403, "Forbidden") if request[1] == "Service" else None
    with pytest.raises(ClusterError):
        await world.settle()
    assert world.condition("Degraded") == ("True", "ClusterRefused")
    world.set_spec({"paused": True})
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_a_layer_is_not_ready_with_fewer_forwarders_than_its_spec_has() -> None:
    """A layer is not ready with fewer ready forwarders than its spec has, if the Deployment could not be changed."""
    world = World({})
    await world.settle()
    world.edit("Deployment", ready)
    await world.settle()
    assert world.condition("Ready") == ("True", "ForwardersReady")
    world.cluster.refusal = lambda request: (
        refused(403, "Forbidden") if request[:2] == ("apply", "Deployment") else None
    )
    world.set_spec({"forwarders": 4})
    with pytest.raises(ClusterError):
        await world.settle()
    assert (world.condition("Ready"), world.layer()["status"]["ready"]) == (("False", "ClusterRefused"), "2/4")
    world.set_spec({"forwarders": 1})
    with pytest.raises(ClusterError):
        await world.settle()
    assert (world.condition("Ready"), world.layer()["status"]["ready"]) == (("True", "ForwardersReady"), "2/2")


@pytest.mark.parametrize(
    "change",
    [
        {"layer": {"expiry": 5}},
        {"clients": {"onDisconnect": "layer.down"}},
        {"security": {"encryption": "Enabled"}},
        {"security": {"curve": "Disabled"}},
    ],
)
async def test_what_applications_learn_at_their_start_makes_them_outdated(change: dict[str, Any]) -> None:
    """A change of settings that applications read at their start makes them outdated, in any part of the spec."""
    world = World({})
    world.cluster.put(application("old", "2025-12-31T00:00:00Z"))
    await world.settle()
    world.wait(hours=1)
    world.set_spec(change)
    await world.settle()
    assert world.condition("AppsOutdated") == ("True", "RestartNeeded")


async def test_what_applications_do_not_learn_at_their_start_makes_none_outdated() -> None:
    """A change that does not affect the settings of applications, such as new keys, makes none outdated."""
    world = World({})
    world.cluster.put(application("old", "2025-12-31T00:00:00Z"))
    await world.settle()
    world.wait(hours=1)
    world.set_spec({"forwarders": 3, "security": {"rotateNow": "today", "rotateServerKey": True}})
    await world.settle()
    assert world.condition("AppsOutdated") == ("False", "UpToDate")
