"""Another version of the operator: its forwarders reach one layer after the other, broken ones no second layer."""

import os
from typing import Any

import pytest
from kube import apply, conditions_of, get, kubectl, layer, until, wait_ready
from releases import CHART, NAME, NAMESPACE, Release, helm
from streams import Traffic, complete

LAYERS = ("chat", "jobs", "news")


@pytest.fixture
def layers(release: Release, namespace: str) -> str:
    """A namespace with three layers, all complete."""
    release.ensure()
    apply(*map(layer, LAYERS), namespace=namespace)
    for name in LAYERS:
        complete(namespace, name)
    return namespace


def upgrade(release: Release, image: dict[str, str]) -> None:
    """Upgrade the release to another image of the forwarders."""
    helm("upgrade", NAME, CHART, "-n", NAMESPACE, values={"forwarderImage": image})
    release.forget()


def state(namespace: str) -> dict[str, dict[str, Any]]:
    """Return the conditions of each layer, all of the same moment."""
    return {one["metadata"]["name"]: conditions_of(one) for one in get("zcl", namespace=namespace)}


def images(namespace: str) -> dict[str, str]:
    """Return the image that each layer's Deployment has."""
    return {
        name: get("deployment", f"{name}-forwarder", namespace=namespace)["spec"]["template"]["spec"]["containers"][0][
            "image"
        ]
        for name in LAYERS
    }


@pytest.mark.skipif("E2E_REGISTRY" in os.environ, reason="the image has no second name in another registry")
def test_an_upgrade_replaces_the_forwarders_of_one_layer_after_the_other(release: Release, layers: str) -> None:
    """Under load, which loses nothing."""
    traffic = Traffic(layers)
    traffic.begin()
    same = "library/channels-zmq-forwarder"  # which is what a name without a folder means
    upgrade(release, {"repository": same})
    seen: set[str] = set()

    def done() -> bool:
        progress = {name: found["Progressing"]["reason"] for name, found in state(layers).items()}
        seen.update(progress.values())
        assert list(progress.values()).count("RollingOut") <= 1, progress
        return all(same in image for image in images(layers).values()) and set(progress.values()) == {"Complete"}

    until(done, "all layers are upgraded", patience=480)
    assert "UpgradeWaits" in seen
    assert traffic.end().nothing_lost


def test_an_upgrade_that_fails_reaches_one_layer_which_serves_on(release: Release, layers: str) -> None:
    """The others wait as they are, until it is mended."""
    traffic = Traffic(layers)
    traffic.begin()
    upgrade(release, {"tag": "no-such-tag"})

    def failed() -> list[str]:
        return [name for name, found in state(layers).items() if found["Degraded"]["status"] == "True"]

    until(failed, "a layer is degraded")
    found = state(layers)
    assert len(failed()) == 1
    assert {each["Ready"]["status"] for each in found.values()} == {"True"}
    assert [each["Progressing"]["reason"] for each in found.values()].count("UpgradeWaits") == 2
    assert [image.endswith("no-such-tag") for image in images(layers).values()].count(True) == 1
    upgrade(release, {})
    for name in LAYERS:
        complete(layers, name)
    until(lambda: not failed(), "nothing is degraded")
    assert traffic.end().nothing_lost


BEFORE = os.environ.get("E2E_BEFORE", "")


@pytest.mark.skipif(not BEFORE, reason="E2E_BEFORE names no chart of before, whose images have the tag `before`")
def test_an_upgrade_from_before_several_forwarders(release: Release, namespace: str) -> None:
    """Applications of before go on, with a Service that is made anew, and then with two forwarders: nothing is lost."""
    release.remove()
    old = {"image": {"tag": "before"}, "forwarderImage": {"tag": "before"}}
    helm("install", NAME, BEFORE, "-n", NAMESPACE, values=old)
    release.forget()
    release.wait()
    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    traffic = Traffic(namespace, image="channels-zmq-chat:before")
    traffic.begin()
    helm("upgrade", NAME, CHART, "-n", NAMESPACE, "--reset-values")
    until(lambda: "version" in get("zcl", "chat", namespace=namespace)["status"], "the new operator has seen the layer")
    complete(namespace)
    assert get("service", "chat-forwarder", namespace=namespace)["spec"]["clusterIP"] == "None"
    kubectl("scale", "zcl/chat", "-n", namespace, "--replicas=2")
    complete(namespace)
    assert traffic.end().nothing_lost
