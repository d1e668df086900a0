"""One layer in a cluster: created, maintained, repaired and cleaned up, whatever happens in between."""

import asyncio
import copy
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any

import pytest
import zmq
from clusters import FakeCluster, Killed, Name, Request, feed, refused
from worlds import CHILDREN, CHOICES, KEY, PODS, STATUS, World, ready

from channels_zmq_operator import __version__
from channels_zmq_operator.cluster import KINDS, ClusterError, NamespaceEnding
from channels_zmq_operator.events import make_event
from channels_zmq_operator.known import APPLIED, fingerprint
from channels_zmq_operator.models import API_VERSION, KIND, Key, Limits
from channels_zmq_operator.naming import OWNER_LABEL, Manifest
from channels_zmq_operator.reconcile import Reconciler
from channels_zmq_operator.workqueue import WorkQueue


async def test_a_new_layer_gets_everything() -> None:
    """A new layer gets every object, its keys and its status.

    The ConfigMap for which pods wait is applied last.
    """
    world = World({})
    again = await world.settle()
    world.check()
    assert world.children() == CHILDREN
    applied = [request for request in world.asked() if request[0] == "apply"]
    assert applied[:2] == [("apply", "Secret", "chat-forwarder"), ("apply", "Secret", "chat-client")]
    assert applied[-2:] == [("apply", "ConfigMap", "chat-channels"), STATUS]
    assert world.condition("Ready") == ("False", "ForwardersNotReady")
    assert again == 720 * 3600


async def test_a_layer_costs_few_requests() -> None:
    """A new layer costs two requests for each object and one for the status.

    The watch events of its own writes cost none.
    """
    world = World({})
    await world.settle()
    assert len(world.asked()) == 2 * len(CHILDREN) + 1


async def test_a_look_without_a_change_makes_no_request() -> None:
    """Reconciling an unchanged layer makes no request, however often it happens."""
    world = World({})
    await world.settle()
    world.asked()
    for _ in range(3):
        await world.reconciler.reconcile(KEY)
    assert world.asked() == []


@pytest.mark.parametrize("holds", [False, True])
async def test_echoes_of_our_own_cost_nothing(holds: bool) -> None:
    """Watch events of our own writes cause no request, whether they arrive before the reply or long afterwards."""
    world = World()
    world.cluster.holds_events = holds
    world.make({})
    world.cluster.deliver()
    await world.settle()
    world.asked()
    world.cluster.deliver()
    await world.settle()
    assert world.asked() == []
    world.set_spec({"layer": {"capacity": 5}})
    world.cluster.deliver()
    await world.settle()
    world.cluster.deliver()
    await world.settle()
    assert world.asked() == [("apply", "ConfigMap", "chat-channels"), PODS, STATUS]


async def test_the_forwarder_that_becomes_ready_is_told() -> None:
    """Forwarders that become ready cause one write of the status and an event, and no other request."""
    world = World({})
    await world.settle()
    world.asked()
    world.edit("Deployment", ready)
    await world.settle()
    assert world.asked() == [STATUS, ("create", "Event", "")]
    (event,) = world.events()
    assert (event["type"], event["reason"]) == ("Normal", "RolledOut")
    assert event["note"] == f"2 of 2 forwarders are ready, version {__version__}"
    assert world.condition("Ready") == ("True", "ForwardersReady")
    assert world.layer()["status"]["ready"] == "2/2"
    world.check()


async def test_a_service_that_cannot_become_headless_is_made_anew() -> None:
    """A Service that cannot become headless, as one of an older release, is deleted and created anew.

    No other object is ever deleted because the cluster refuses it.
    """
    world = World({})
    await world.settle()
    before = world.child("Service")["metadata"]["uid"]

    def immutable(request: Request) -> ClusterError | None:
        is_old = world.cluster.look("Service", "home", "chat-forwarder") is not None
        return refused(422, "Invalid") if request[:2] == ("apply", "Service") and is_old else None

    world.cluster.refusal = immutable
    world.edit("Service", lambda found: found["spec"].update(clusterIP="10.0.0.1"))
    world.asked()
    await world.settle()
    service = "Service", "chat-forwarder"
    assert world.asked() == [("apply", *service), ("delete", *service), ("apply", *service)]
    assert world.child("Service")["metadata"]["uid"] != before
    world.check()
    world.cluster.refusal = lambda request: refused(422, "Invalid") if request[1] == "Deployment" else None
    world.edit("Deployment", lambda found: found["spec"].update(replicas=5))
    with pytest.raises(ClusterError):
        await world.settle()
    assert not [request for request in world.asked() if request[0] == "delete"]


async def test_a_name_that_is_taken_between_two_attempts_is_left_alone() -> None:
    """A name that was free at the first attempt, which failed, and is taken at the second, is left to its object."""
    world = World({})
    world.cluster.refusal = lambda request: refused(403, "Forbidden") if request[1] == "ConfigMap" else None
    with pytest.raises(ClusterError):
        await world.settle()
    metadata = {"name": "chat-channels", "namespace": "home"}
    mine = world.cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mine": "1"}})
    world.cluster.refusal = lambda request: None
    world.due.add(KEY)
    with pytest.raises(ClusterError, match="it exists and does not belong to this layer"):
        await world.settle()
    assert world.child("ConfigMap", "chat-channels") == mine


async def test_a_changed_spec_changes_what_depends_on_it() -> None:
    """A changed spec causes only the objects that depend on it to be applied, and the keys stay."""
    world = World({})
    await world.settle()
    keys = world.keys()
    world.asked()
    world.set_spec({"layer": {"maxMessageSize": "2Mi"}})
    await world.settle()
    applied = [("apply", "Deployment", "chat-forwarder"), ("apply", "ConfigMap", "chat-channels")]
    assert world.asked() == [*applied, PODS, STATUS]
    world.check()
    assert world.keys() == keys


async def test_what_is_no_longer_wanted_is_pruned() -> None:
    """An object that the spec disables is pruned, also by a restarted operator, and is created again when enabled."""
    world = World({})
    await world.settle()
    closed = {"networkPolicy": {"enabled": False}, "monitoring": {"serviceMonitor": "Disabled"}}
    world.set_spec(closed)
    await world.settle()
    assert world.children() == CHILDREN - {("NetworkPolicy", "chat-forwarder"), ("ServiceMonitor", "chat-forwarder")}
    world.check()
    world.set_spec({})
    await world.settle()
    assert world.children() == CHILDREN
    world.set_spec(closed)
    world.start()
    await world.settle()
    assert ("NetworkPolicy", "chat-forwarder") not in world.children()


async def test_without_curve_there_are_no_keys() -> None:
    """Disabling CURVE prunes the forwarders' Secret and leaves applications only the addresses.

    Enabling it again creates new keys.
    """
    world = World({})
    await world.settle()
    keys = world.keys()
    world.set_spec({"security": {"curve": "Disabled"}})
    assert await world.settle() == float("inf")
    assert world.children() == CHILDREN - {("Secret", "chat-forwarder")}
    assert "CHANNELS_ZMQ_CURVE_SECRET_KEY" not in world.child("Secret", "chat-client")["data"]
    assert world.condition("Degraded") == ("False", "AsExpected")
    world.set_spec({})
    await world.settle()
    world.check()
    assert not set(world.keys()) & set(keys)


async def test_others_objects_are_left_alone() -> None:
    """A foreign object is not pruned even if it has our label, as long as the layer is not its owner."""
    world = World({})
    foreign = {"name": "theirs", "namespace": "home", "labels": {OWNER_LABEL: "chat"}}
    world.cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": foreign, "data": {}})
    await world.settle()
    assert world.children() == CHILDREN | {("ConfigMap", "theirs")}


async def test_what_the_operator_does_not_allow_is_refused_like_an_invalid_spec() -> None:
    """A spec beyond the operator's limits is refused by a condition and an event; the forwarders run on unchanged."""
    world = World()
    world.reconciler.choices = replace(CHOICES, limits=Limits())
    world.make({})
    await world.settle()
    world.asked()
    world.set_spec({"image": {"repository": "evil"}})
    await world.settle()
    assert world.asked() == [("create", "Event", ""), STATUS]
    assert world.condition("Accepted") == ("False", "SpecInvalid")
    (message,) = {one["message"] for one in world.layer()["status"]["conditions"] if one["type"] == "Accepted"}
    assert message.startswith("not allowed in this cluster: spec.image.repository")
    assert world.child("Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == "image:1"
    world.set_spec({})
    await world.settle()
    world.check()


async def test_nothing_is_kept_of_what_no_layer_owns() -> None:
    """An object with only our label is not kept, and no watch counts as dead for not having reported it."""
    world = World({})
    await world.settle()
    for layer in ("chat", "none"):
        metadata = {"name": f"for-{layer}", "namespace": "home", "labels": {OWNER_LABEL: layer}}
        found = world.cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": "y"}})
        assert world.reconciler.has_seen(found)
    assert world.due == set()
    assert world.reconciler.layers.keys() == {KEY}
    assert world.reconciler.layers[KEY].children.keys() == CHILDREN


async def test_of_what_is_seen_only_what_is_used_is_kept() -> None:
    """The operator keeps only the fields that it uses, whatever a layer, its objects or their status contain."""
    world = World({})
    await world.settle()
    marks = "somebody's megabyte"
    world.edit("ConfigMap", lambda found: found["data"].update(more=marks), "chat-channels")
    world.edit("Secret", lambda found: found["data"].update(more=marks))
    world.edit("Deployment", lambda found: found["metadata"].setdefault("annotations", {}).update(more=marks))
    world.edit("Deployment", lambda found: found["status"].update(more=marks))
    world.edit(KIND, lambda found: found["metadata"].update(annotations={"more": marks}), "chat")
    await world.settle()
    assert marks not in repr(world.reconciler.layers)
    world.check()


async def test_an_object_that_lost_its_owner_is_taken_back() -> None:
    """An object whose owner reference was removed is applied again by the next reconciliation."""
    world = World({})
    await world.settle()
    world.edit("ConfigMap", lambda found: found["metadata"].update(ownerReferences=[]), "chat-channels")
    await world.settle()
    world.check()


EDITS: dict[str, tuple[str, str, Callable[[Manifest], Any]]] = {
    "replicas": ("Deployment", "chat-forwarder", lambda found: found["spec"].update(replicas=0)),
    "an image": (
        "Deployment",
        "chat-forwarder",
        lambda found: found["spec"]["template"]["spec"]["containers"][0].update(image="evil"),
    ),
    "an address": (
        "ConfigMap",
        "chat-channels",
        lambda found: found["data"].update(CHANNELS_ZMQ_PULL_SOCKET_ADDRESS="x"),
    ),
    "the label": ("Service", "chat-forwarder", lambda found: found["metadata"]["labels"].update({OWNER_LABEL: "x"})),
    "the owner": ("Service", "chat-forwarder", lambda found: found["metadata"].pop("ownerReferences")),
    "our digest": ("Service", "chat-forwarder", lambda found: found["metadata"]["annotations"].pop(APPLIED)),
    "the forwarders' key": ("Secret", "chat-forwarder", lambda found: found["data"].update({"secret-key": "eA=="})),
    "the list of keys": ("Secret", "chat-forwarder", lambda found: found["data"].update({"allowed-keys": ""})),
    "the applications' key": (
        "Secret",
        "chat-client",
        lambda found: found["data"].pop("CHANNELS_ZMQ_CURVE_SECRET_KEY"),
    ),
    "the time of the rotation": ("Secret", "chat-client", lambda found: found["metadata"].pop("annotations")),
}


@pytest.mark.parametrize("what", EDITS)
async def test_a_child_that_was_edited_is_repaired(what: str) -> None:
    """An edited child, even one with keys, is restored to its former content by one request."""
    world = World({})
    await world.settle()
    kind, name, change = EDITS[what]
    before, keys = fingerprint(world.child(kind, name)), world.keys()
    world.asked()
    world.edit(kind, change, name)
    assert fingerprint(world.child(kind, name)) != before
    await world.settle()
    assert world.asked() == [("apply", kind, name)]
    world.check()
    assert fingerprint(world.child(kind, name)) == before
    assert world.keys() == keys


@pytest.mark.parametrize("kind, name", sorted(CHILDREN))
async def test_a_child_that_was_deleted_is_made_again(kind: str, name: str) -> None:
    """A deleted child is created again as it was, with the same keys."""
    world = World({})
    await world.settle()
    keys = world.keys()
    world.asked()
    world.cluster.remove(kind, "home", name)
    await world.settle()
    assert ("apply", kind, name) in world.asked()
    world.check()
    assert world.keys() == keys


async def test_an_edit_between_an_apply_and_its_reply_is_repaired() -> None:
    """An edit that the watch reports before the older reply to an apply arrives is repaired."""
    world = World({})
    await world.settle()
    raced = False
    act = world.cluster._apply

    def applied(manifest: Manifest, subresource: str) -> Manifest:
        nonlocal raced
        answer = copy.deepcopy(act(manifest, subresource))
        if manifest["kind"] == "Deployment" and not raced:
            raced = True
            world.edit("Deployment", lambda found: found["spec"].update(replicas=7))
        return answer

    world.cluster._apply = applied
    world.set_spec({"layer": {"maxMessageSize": "2Mi"}})
    await world.settle()
    assert raced
    world.check()


async def test_a_layer_that_goes_is_forgotten() -> None:
    """Of a deleted layer nothing is kept.

    The cluster's garbage collection deletes its children, and they are not created again.
    """
    world = World({})
    await world.settle()
    world.cluster.remove(KIND, *KEY)
    await world.settle()
    world.cluster.collect()
    await world.settle()
    assert world.children() == set()
    assert world.reconciler.layers == {}


@pytest.mark.parametrize("collected", ["before", "after", "never"])
async def test_a_layer_that_was_made_again_under_its_name_is_a_new_one(collected: str) -> None:
    """A layer that is created again under its name owns new children, whenever garbage collection runs."""
    world = World({})
    await world.settle()
    world.cluster.remove(KIND, *KEY)
    if collected == "before":
        world.cluster.collect()
    world.make({"networkPolicy": {"enabled": False}})
    await world.settle()
    if collected == "after":
        world.cluster.collect()
        await world.settle()
    if collected != "never":
        world.check()
    uid = world.layer()["metadata"]["uid"]
    owners = world.child("Deployment")["metadata"]["ownerReferences"]
    assert [one["uid"] for one in owners] == [uid]


async def test_a_deletion_that_no_watch_has_reported_is_noticed_by_the_status() -> None:
    """A layer whose deletion no watch reported is noticed by its status and forgotten.

    Otherwise its objects would be created again for ever, and collected each time, as their owner is gone.
    """
    world = World({})
    await world.settle()
    world.cluster.edit("Deployment", *KEY[:1], "chat-forwarder", ready)
    await world.settle()
    watchers = list(world.cluster.watchers)
    world.cluster.watchers.clear()
    world.cluster.remove(KIND, *KEY)
    world.cluster.watchers.extend(watchers)
    for _ in range(2):
        world.cluster.collect()
        await world.settle()
    assert (world.children(), world.reconciler.layers) == (set(), {})


async def test_a_layer_that_was_exchanged_while_nobody_watched_is_a_new_one() -> None:
    """A layer whose uid changes without a reported deletion is new, so nothing that was known of it is used."""
    world = World({})
    await world.settle()
    world.cluster.watchers.clear()
    world.cluster.remove(KIND, *KEY)
    world.make({})
    assert world.reconciler.layer_seen(world.layer(), gone=False)
    await world.reconciler.reconcile(KEY)
    world.check()


def test_only_a_new_spec_is_a_reason_to_look() -> None:
    """Only a new spec enqueues a layer, not a status, which is our own, nor a label."""
    world = World({})
    for change in (
        lambda found: found.update(status={"ready": "x"}),
        lambda found: found["metadata"].update(labels={}),
    ):
        world.due.clear()
        world.edit(KIND, change, "chat")
        assert not world.due
    world.set_spec({"forwarders": 1})
    assert world.due == {KEY}


async def test_a_layer_that_goes_during_a_look_is_no_failure() -> None:
    """A layer that is deleted during its reconciliation is not a failure, although its status cannot be written."""
    world = World({})

    def vanish(request: Request) -> None:
        if request[:2] == ("apply", "ConfigMap"):
            world.cluster.remove(KIND, *KEY)

    world.cluster.refusal = vanish
    await world.settle()
    world.cluster.collect()
    await world.settle()
    assert world.children() == set()


async def test_an_invalid_spec_is_told_once_and_nothing_is_tried() -> None:
    """An invalid spec causes a condition and one event, and no further reconciliation until it changes."""
    world = World({"layer": {"capacity": 0}})
    assert await world.settle() == float("inf")
    assert world.asked() == [("create", "Event", ""), STATUS]
    assert world.condition("Accepted") == ("False", "SpecInvalid")
    (event,) = world.events()
    assert event["reason"] == "SpecInvalid"
    assert event["note"].startswith("spec.layer.capacity: ")
    assert event["regarding"]["uid"] == world.layer()["metadata"]["uid"]
    await world.reconciler.reconcile(KEY)
    assert world.asked() == []
    assert world.children() == set()
    world.set_spec({})
    await world.settle()
    world.check()
    world.set_spec({"layer": {"capacity": 0}})
    await world.settle()
    assert len(world.events()) == 2


async def test_a_spec_that_became_invalid_leaves_the_forwarder_running() -> None:
    """A spec that becomes invalid leaves all children in place, and an earlier refusal is no longer reported."""
    world = World({})
    await world.settle()
    world.cluster.refusal = lambda request: refused(403, "Forbidden") if request[1] == "Deployment" else None
    world.set_spec({"layer": {"maxMessageSize": "2Mi"}})
    with pytest.raises(ClusterError):
        await world.settle()
    world.set_spec({"layer": {"capacity": 0}})
    await world.settle()
    assert world.children() == CHILDREN
    assert world.condition("Accepted") == ("False", "SpecInvalid")
    assert world.condition("Degraded") == ("False", "AsExpected")


async def test_fields_of_a_newer_definition_are_ignored() -> None:
    """Unknown fields of a newer definition are ignored.

    An upgrade installs the definition first, and the operator that still runs must not refuse every layer for its
    defaults.
    """
    world = World({"newer": {"enabled": True}, "layer": {"newer": 1, "capacity": 7}})
    await world.settle()
    assert world.children() == CHILDREN
    assert world.condition("Accepted") == ("True", "SpecValid")


@pytest.mark.parametrize("labels", [{}, {OWNER_LABEL: "chat"}], ids=["a stranger", "with our label"])
@pytest.mark.parametrize("kind, name", sorted(CHILDREN))
async def test_what_is_not_ours_is_left_alone(kind: str, name: str, labels: dict[str, str]) -> None:
    """A foreign object with a child's name is left alone, as it would otherwise be deleted with the layer.

    The condition names it. Once it is gone, the layer is created.
    """
    world = World()
    metadata = {"name": name, "namespace": "home", "labels": labels}
    world.cluster.put({"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata, "spec": {"mine": 1}})
    before = world.child(kind, name)
    world.make({})
    with pytest.raises(ClusterError, match=f"{kind} home/{name}: it exists and does not belong to this layer"):
        await world.settle()
    assert world.child(kind, name) == before
    assert world.condition("Degraded") == ("True", "NameTaken")
    (event,) = world.events()
    assert event["reason"] == "NameTaken"
    world.cluster.remove(kind, "home", name)
    await world.reconciler.reconcile(KEY)
    await world.settle()
    assert world.condition("Degraded") == ("False", "AsExpected")
    world.check()


@pytest.mark.parametrize("status, reason", [(403, "Forbidden"), (409, "Conflict"), (500, ""), (422, "Invalid")])
async def test_a_refusal_is_told_and_tried_again(status: int, reason: str) -> None:
    """A refusal causes a condition and one event, however often it is retried, and the other objects are applied.

    Once the cluster accepts, the layer recovers by itself.
    """
    world = World({})
    world.cluster.refusal = lambda request: refused(status, reason) if request[1] == "NetworkPolicy" else None
    for _ in range(3):
        with pytest.raises(ClusterError):
            await world.reconciler.reconcile(KEY)
    assert world.condition("Degraded") == ("True", "ClusterRefused")
    assert world.condition("Ready") == ("False", "ClusterRefused")
    (event,) = world.events()
    assert event["reason"] == "ClusterRefused"
    assert ("Deployment", "chat-forwarder") in world.children()
    world.cluster.refusal = lambda request: None
    await world.reconciler.reconcile(KEY)
    world.check()


async def test_a_namespace_that_is_being_deleted_is_left_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """A layer in a terminating namespace is not retried, and nothing is logged.

    Its layers and their events are deleted with it, so nobody would read of a failure.
    """
    world = World({})
    await world.settle()
    world.edit("Deployment", lambda found: found["spec"].update(replicas=5))
    world.cluster.refusal = lambda request: NamespaceEnding("a request", 403, "Forbidden", "it is being terminated")
    caplog.clear()
    assert await world.reconciler.reconcile(KEY) == inf
    await make_event(world.cluster, {"name": "chat", "namespace": "home"}, "Normal", "x", "x", datetime.now(UTC))
    assert caplog.messages == []


async def test_no_event_can_be_made() -> None:
    """An event that cannot be created does not fail the reconciliation."""
    world = World({"layer": {"capacity": 0}})
    world.cluster.refusal = lambda request: refused(403, "Forbidden") if request[0] == "create" else None
    await world.settle()
    assert world.condition("Accepted") == ("False", "SpecInvalid")


async def test_a_cluster_that_is_away_for_a_while_changes_nothing() -> None:
    """A layer is complete after an outage in which every request fails at some time."""
    world = World({})
    count = 0

    def flaky(request: Request) -> ClusterError | None:
        nonlocal count
        count += 1
        return refused(0, "ServerDisconnectedError") if count % 3 else None

    world.cluster.refusal = flaky
    for _ in range(100):
        try:
            await world.reconciler.reconcile(KEY)
            break
        except ClusterError:
            continue
    world.cluster.refusal = lambda request: None
    await world.settle()
    world.check()


CHANGES: dict[str, Callable[[World], Any]] = {
    "a new layer": lambda world: world.make({}),
    "another spec": lambda world: world.set_spec(
        {"layer": {"maxMessageSize": "2Mi"}, "networkPolicy": {"enabled": False}}
    ),
    "an edited child": lambda world: world.edit("Deployment", lambda found: found["spec"].update(replicas=3)),
    "a rotation that is due": lambda world: world.wait(hours=720),
    "a rotation that was announced": lambda world: world.wait(hours=720),
}


async def changed(change: str) -> World:
    """Return a world in which a change has just happened."""
    world = World(None if change == "a new layer" else {})
    await world.settle()
    world.asked()
    CHANGES[change](world)
    if change == "a rotation that was announced":
        await world.reconciler.reconcile(KEY)
        world.asked()
        world.wait(seconds=180)
    return world


@pytest.mark.parametrize("before", [True, False], ids=["before it", "after it"])
@pytest.mark.parametrize("change", CHANGES)
async def test_wherever_an_operator_dies_the_next_one_completes_it(change: str, before: bool) -> None:
    """An operator that dies at any request is completed by the next one, with the same objects and the existing keys.

    That holds before and after the effect of every single request.
    """
    whole = await changed(change)
    await whole.reconciler.reconcile(KEY)
    length = len(whole.asked())
    assert length
    deaths = 0
    for request in range(1, length + 1):
        world = await changed(change)
        world.cluster.kill_at, world.cluster.kill_before = request, before
        with pytest.raises(Killed):
            await world.reconciler.reconcile(KEY)
        deaths += 1
        world.cluster.kill_at = None
        there = {name: one for name, one in world.cluster.objects.items() if name[0] == "Secret"}
        world.start()
        await world.settle()
        await world.reconciler.reconcile(KEY)
        world.check()
        kept(there, world, rotates=change.startswith("a rotation"))
        world.asked()
        await world.settle()
        assert world.asked() == []
    assert deaths == length


def kept(before: dict[Name, Manifest], world: World, *, rotates: bool) -> None:
    """Check that the forwarders' key is the previous one, and that the applications' previous key stays allowed."""
    for (_, _, name), secret in before.items():
        entry = "secret-key" if name == "chat-forwarder" else "CHANNELS_ZMQ_CURVE_SECRET_KEY"
        old = b64decode(secret["data"][entry]).decode()
        if name == "chat-forwarder" or not rotates:
            assert world.secret(name, entry) == old
        else:
            allowed = world.secret("chat-forwarder", "allowed-keys").split()
            assert zmq.curve_public(old.encode()).decode() in allowed


async def test_keys_rotate_in_two_steps() -> None:
    """A rotation changes the list first and the applications' key three minutes later.

    Each reconciliation returns when the next one is due.
    """
    world = World({"security": {"rotateEvery": "1h"}})
    assert await world.settle() == 3600
    world.asked()
    world.wait(hours=1)
    assert await world.reconciler.reconcile(KEY) == 180
    assert world.asked() == [("apply", "Secret", "chat-forwarder")]
    world.wait(seconds=180)
    assert await world.reconciler.reconcile(KEY) == 3600
    secrets = [("apply", "Secret", "chat-forwarder"), ("apply", "Secret", "chat-client")]
    assert world.asked() == [*secrets, ("create", "Event", "")]
    assert world.events()[-1]["reason"] == "KeysRotated"
    world.check()


def rotates(world: World, text: str, **more: bool) -> None:
    world.set_spec({"security": {"rotateNow": text, **more}})


async def test_a_leaked_key_is_withdrawn_in_three_steps() -> None:
    """A requested rotation removes the leaked key from the list in the third step, and the status then confirms it."""
    world = World({})
    await world.settle()
    _, leaked = world.keys()
    public = zmq.curve_public(leaked.encode()).decode()
    world.asked()
    rotates(world, "the laptop of Ada")
    assert await world.settle() == 180
    assert world.asked() == [("apply", "Secret", "chat-forwarder"), STATUS]
    world.wait(seconds=180)
    assert await world.reconciler.reconcile(KEY) == 180
    assert world.keys()[1] != leaked
    assert public in world.secret("chat-forwarder", "allowed-keys")
    assert "keysRotatedFor" not in world.layer()["status"]
    world.wait(seconds=180)
    await world.reconciler.reconcile(KEY)
    assert public not in world.secret("chat-forwarder", "allowed-keys")
    assert world.layer()["status"]["keysRotatedFor"] == "the laptop of Ada"
    world.asked()
    world.start()
    await world.settle()
    assert world.layer()["status"]["keysRotatedFor"] == "the laptop of Ada"


async def test_the_servers_key_is_renewed_by_replacing_the_forwarder() -> None:
    """A new server key is written to the Secrets first and to the Deployment after them.

    Applications get both keys in one write.
    """
    world = World({})
    await world.settle()
    before = world.keys()
    world.asked()
    rotates(world, "1", rotateServerKey=True)
    await world.settle()
    assert world.asked() == [
        ("apply", "Secret", "chat-forwarder"),
        ("apply", "Secret", "chat-client"),
        ("apply", "Deployment", "chat-forwarder"),
        STATUS,
    ]
    assert not set(world.keys()) & set(before)
    assert world.secret("chat-client", "server-key") == zmq.curve_public(world.keys()[0].encode()).decode()
    assert world.secret("chat-forwarder", "allowed-keys").split() == [
        zmq.curve_public(world.keys()[1].encode()).decode()
    ]
    assert world.layer()["status"]["keysRotatedFor"] == "1"
    after = world.keys()
    world.start()
    await world.settle()
    assert world.keys() == after


async def test_a_restart_makes_nothing_new() -> None:
    """An operator that restarts applies everything once, which changes nothing."""
    world = World({})
    await world.settle()
    before = copy.deepcopy(world.cluster.objects)
    for _ in range(3):
        world.start()
        await world.settle()
        assert world.cluster.objects == before


async def test_children_that_are_seen_before_their_layer_cost_nothing() -> None:
    """Children that are seen before their layer change nothing, since kopf's watches report in any order."""
    world = World({})
    await world.settle()
    before, keys = copy.deepcopy(world.cluster.objects), world.keys()
    world.due.clear()
    world.reconciler = Reconciler(world.cluster, CHOICES, clock=lambda: world.now)
    tell = feed(world.reconciler, world.due.add)
    for one in sorted(before.values(), key=lambda one: one["kind"] == KIND):
        tell("", one)
    await world.settle()
    assert world.cluster.objects == before
    assert world.keys() == keys


def scale(replicas: int, deployment: Manifest) -> None:
    deployment["spec"]["replicas"] = replicas


async def test_a_queue_of_layers_settles() -> None:
    """Four workers reconcile twenty layers that are edited meanwhile, and never one layer twice at once."""
    cluster = FakeCluster()
    running: set[Key] = set()
    reconciler = Reconciler(cluster, CHOICES)

    async def look(key: Key) -> float:
        assert key not in running
        running.add(key)
        try:
            return await reconciler.reconcile(key)
        finally:
            running.discard(key)

    queue = WorkQueue(look)
    cluster.watch(feed(reconciler, queue.add))
    task = asyncio.create_task(queue.run(4))
    for number in range(20):
        metadata = {"name": f"l{number}", "namespace": "home"}
        cluster.put({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {}})
    edits = list(range(52, 2, -1))
    async with asyncio.timeout(30):
        while any(due <= queue._clock() for due in queue._due.values()) or queue._running or edits:
            deployments = [name for name in cluster.objects if name[0] == "Deployment"]
            if deployments and edits:
                replicas = edits.pop()
                cluster.edit(*deployments[replicas % len(deployments)], partial(scale, replicas))
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert queue.failed == 0
    assert len(cluster.objects) == 20 * (len(CHILDREN) + 1)
    assert {one["spec"]["replicas"] for name, one in cluster.objects.items() if name[0] == "Deployment"} == {2}
