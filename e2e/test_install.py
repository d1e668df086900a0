"""The chart's life with each Helm: install, test, upgrade with living layers, uninstall."""

import time
from typing import Any

import pytest
from kube import apply, get, kubectl, layer, options, pod, program, programs, until, wait_ready
from releases import CHART, CRD, NAME, NAMESPACE, OPERATOR, OPERATORS, Release, helm, leftovers
from releases import programs as helms

MAP, VOLUME = programs()


@pytest.fixture(params=["helm", "helm3"])
def program_name(request: pytest.FixtureRequest, release: Release) -> Any:
    """Each Helm that is there, on a cluster without a release."""
    if request.param not in helms():
        pytest.skip(f"{request.param} is not on PATH")
    release.remove()
    yield request.param
    release.forget()


def uids(namespace: str) -> dict[str, str]:
    """Return what may not be replaced by an upgrade of the operator."""
    kinds = ("deployment", "service", "secret", "configmap")
    selector = "channels-zmq.io/owned-by=chat"
    found = [one for kind in kinds for one in get(kind, namespace=namespace, selector=selector)]
    pods = get("pods", namespace=namespace, selector=selector)
    return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"]["uid"] for one in [*found, *pods]}


def test_the_life_of_a_release(program_name: str, release: Release, namespace: str) -> None:
    """With default values and no namespace flag: ready within a minute, tested, upgraded, and gone without a trace."""
    began = time.monotonic()
    helm("install", NAME, CHART, program=program_name)
    release.wait()
    took = time.monotonic() - began
    print(f"{program_name}: installed and ready after {took:.1f} s")
    assert took < 60

    assert "Succeeded" in helm("test", NAME, program=program_name)

    apply(layer("chat"), namespace=namespace)
    wait_ready(namespace=namespace)
    before = uids(namespace)
    upgraded = {"operator": {"podAnnotations": {"again": "1"}}, "webhook": {"podAnnotations": {"again": "1"}}}
    helm("upgrade", NAME, CHART, program=program_name, values=upgraded)
    release.wait()
    assert get("deployment", OPERATOR, namespace=NAMESPACE)["metadata"]["generation"] == 2
    apply(layer("chat", layer={"capacity": 9}), namespace=namespace)
    until(
        lambda: options("chat", namespace)["capacity"] == 9,
        "the upgraded operator works",
    )
    asks = pod("asks", program("ask"), labels={"channels-zmq.io/layer": "chat"}, volumes=[VOLUME])
    apply(MAP, asks, namespace=namespace)
    until(lambda: get("pod", "asks", namespace=namespace)["status"]["phase"] == "Succeeded", "injection still works")
    assert uids(namespace) == before

    helm("rollback", NAME, "1", program=program_name)
    release.wait()
    assert uids(namespace) == before

    helm("uninstall", NAME, program=program_name)
    until(lambda: not leftovers_of_the_release(), lambda: f"these are left: {leftovers_of_the_release()}")
    assert get("crd", CRD), "crds.keep keeps the definition, and with it the layers"
    assert uids(namespace) == before
    kubectl("delete", "zcl", "-A", "--all")
    until(lambda: not uids(namespace), "the layers' children went with them")
    kubectl("delete", "crd", CRD)


def leftovers_of_the_release() -> list[str]:
    """Return what there is beside living layers."""
    return [
        one for one in leftovers() if one.partition("/")[2] not in ("chat-channels", "chat-client", "chat-forwarder")
    ]


def test_without_keeping_its_definition_nothing_is_left(program_name: str, release: Release, namespace: str) -> None:
    """Layers, their children, and the definition go with the release; nothing holds them."""
    helm("install", NAME, CHART, program=program_name, values={"crds": {"keep": False}})
    release.wait()
    apply(*(layer(f"layer-{number}") for number in range(5)), namespace=namespace)
    for number in range(5):
        wait_ready(f"layer-{number}", namespace=namespace)
    began = time.monotonic()
    helm("uninstall", NAME, program=program_name)
    until(lambda: not leftovers(), lambda: f"these are left: {leftovers()}")
    until(lambda: get("crd", CRD) is None, "the definition is gone")
    print(f"{program_name}: 5 layers and the release gone after {time.monotonic() - began:.1f} s")


def test_an_operator_without_a_definition_says_so_and_begins_when_it_is_there(release: Release, namespace: str) -> None:
    """And when it is deleted and made again: at once, or after a restart where kopf looked a moment too early."""

    def is_applied() -> bool:
        apply(layer("chat"), namespace=namespace)
        return True

    release.remove()
    try:
        helm("install", NAME, CHART, values={"crds": {"enabled": False}})
        until(
            lambda: "is its CustomResourceDefinition installed" in log_of(OPERATOR), "the operator says what is missing"
        )
        definition = helm("template", NAME, CHART, "--show-only", "templates/crd.yaml")
        for turn in ("first", "second"):
            kubectl("apply", "--server-side", "-f", "-", given=definition)
            kubectl("wait", f"crd/{CRD}", "--for=condition=Established")
            until(is_applied, "the kind is known")
            wait_ready(namespace=namespace, patience=180)
            if turn == "first":
                assert restarts() == 0
            kubectl("delete", "zcl", "-A", "--all")
            until(lambda: not uids(namespace), "the layers' children went with them")
            kubectl("delete", "crd", CRD)
    finally:
        release.forget()


def log_of(deployment: str) -> str:
    """Return what the pods of a Deployment have printed."""
    return kubectl("logs", f"deployment/{deployment}", "-n", NAMESPACE, check=False)


def restarts() -> int:
    """Return how often the operator's container was started again."""
    (operator,) = get("pods", namespace=NAMESPACE, selector=OPERATORS)
    return int(operator["status"]["containerStatuses"][0]["restartCount"])
