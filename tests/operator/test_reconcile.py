"""One layer in a cluster: made, kept, repaired and cleaned up, whatever happens in between."""

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
    """Every object, its keys and its status; the ConfigMap that pods wait for comes last."""
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
    """Two for each object and one for the status; its echoes cost none."""
    world = World({})
    await world.settle()
    assert len(world.asked()) == 2 * len(CHILDREN) + 1


async def test_a_look_without_a_change_makes_no_request() -> None:
    """However often."""
    world = World({})
    await world.settle()
    world.asked()
    for _ in range(3):
        await world.reconciler.reconcile(KEY)
    assert world.asked() == []


@pytest.mark.parametrize("holds", [False, True])
async def test_echoes_of_our_own_cost_nothing(holds: bool) -> None:
    """Whether they come before the reply or long after the look."""
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
    """By one write of the status and an event, and nothing else is touched."""
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
    """As one of before several forwarders; nothing else is ever deleted because it is refused."""
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
    """It was free at the first, which failed."""
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
    """And only that; the keys stay."""
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
    """Also what is seen only later; and it comes back."""
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
    """The forwarders' Secret goes, and what applications have is only the addresses; back again there are new keys."""
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
    """Even with our label, as long as the layer is not their owner."""
    world = World({})
    foreign = {"name": "theirs", "namespace": "home", "labels": {OWNER_LABEL: "chat"}}
    world.cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": foreign, "data": {}})
    await world.settle()
    assert world.children() == CHILDREN | {("ConfigMap", "theirs")}


async def test_what_the_operator_does_not_allow_is_refused_like_an_invalid_spec() -> None:
    """By a condition and an event; what runs goes on as it was."""
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
    """Our label alone makes no object ours, and no watch looks dead for not having shown it."""
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
    """Whatever a layer, its objects or their status contain."""
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
    """After the owner reference was removed, the next reconciliation applies it again."""
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
    """By one request, to what it was; the keys too."""
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
    """As it was, with the same keys."""
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
    """The watch shows it before the reply comes, which is older."""
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
    """The cluster's garbage collection deletes its children, and they are not created again."""
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
    """Whenever the garbage collection comes."""
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
    """The objects of the layer were made again for ever, and collected again each time, as their owner is gone."""
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
    """The watch shows another uid under the same name, and no deletion: nothing is known of it."""
    world = World({})
    await world.settle()
    world.cluster.watchers.clear()
    world.cluster.remove(KIND, *KEY)
    world.make({})
    assert world.reconciler.layer_seen(world.layer(), gone=False)
    await world.reconciler.reconcile(KEY)
    world.check()


def test_only_a_new_spec_is_a_reason_to_look() -> None:
    """Not a status, which is our own, nor a label."""
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
    """Its status cannot be written any more."""
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
    """A condition, an event, and no look until it changes."""
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
    """And an old refusal is not told beside it."""
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
    """An upgrade installs it first: the operator that still runs must not refuse every layer for its defaults."""
    world = World({"newer": {"enabled": True}, "layer": {"newer": 1, "capacity": 7}})
    await world.settle()
    assert world.children() == CHILDREN
    assert world.condition("Accepted") == ("True", "SpecValid")


@pytest.mark.parametrize("labels", [{}, {OWNER_LABEL: "chat"}], ids=["a stranger", "with our label"])
@pytest.mark.parametrize("kind, name", sorted(CHILDREN))
async def test_what_is_not_ours_is_left_alone(kind: str, name: str, labels: dict[str, str]) -> None:
    """Else it would go with the layer. The condition names it; once it is away, the layer is made."""
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
    """A condition, one event however often it is tried, and what is possible is done; then it recovers by itself."""
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
    """Its layers and their events are deleted with it, so nobody would read of a failure."""
    world = World({})
    await world.settle()
    world.edit("Deployment", lambda found: found["spec"].update(replicas=5))
    world.cluster.refusal = lambda request: NamespaceEnding("a request", 403, "Forbidden", "it is being terminated")
    caplog.clear()
    assert await world.reconciler.reconcile(KEY) == inf
    await make_event(world.cluster, {"name": "chat", "namespace": "home"}, "Normal", "x", "x", datetime.now(UTC))
    assert caplog.messages == []


async def test_no_event_can_be_made() -> None:
    """This is not a separate failure."""
    world = World({"layer": {"capacity": 0}})
    world.cluster.refusal = lambda request: refused(403, "Forbidden") if request[0] == "create" else None
    await world.settle()
    assert world.condition("Accepted") == ("False", "SpecInvalid")


async def test_a_cluster_that_is_away_for_a_while_changes_nothing() -> None:
    """Every request fails at some time, and in the end everything is as it should be."""
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
    """Return a world in which something has just happened."""
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
    """At every single request, before or after its effect: the same objects, and keys that were there stay."""
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
    """Check that the forwarders' key is the one that was there, and that the applications' stays allowed."""
    for (_, _, name), secret in before.items():
        entry = "secret-key" if name == "chat-forwarder" else "CHANNELS_ZMQ_CURVE_SECRET_KEY"
        old = b64decode(secret["data"][entry]).decode()
        if name == "chat-forwarder" or not rotates:
            assert world.secret(name, entry) == old
        else:
            allowed = world.secret("chat-forwarder", "allowed-keys").split()
            assert zmq.curve_public(old.encode()).decode() in allowed


async def test_keys_rotate_in_two_steps() -> None:
    """The list first, the applications' key three minutes later, and the next look is told for when it is due."""
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
    """The status says when the former key is on no list any more."""
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
    """Secrets first, the Deployment after them; applications have both keys in one write."""
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
    """The next operator applies everything once, which changes nothing."""
    world = World({})
    await world.settle()
    before = copy.deepcopy(world.cluster.objects)
    for _ in range(3):
        world.start()
        await world.settle()
        assert world.cluster.objects == before


async def test_children_that_are_seen_before_their_layer_cost_nothing() -> None:
    """The watches of kopf come in any order."""
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
    """Twenty layers by four workers, with edits meanwhile: no layer is looked at twice at once."""
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
