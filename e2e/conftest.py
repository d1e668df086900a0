"""What scenarios share: a cluster, the chart on it, a namespace of their own, and a diagnosis when they fail."""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube
import pytest
import releases
from kube import kubectl
from promtool import PROMTOOL
from recorder import Alerts, Recorder, Unrecorded, start_scraper
from streams import nodes

_failed = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a cluster nothing can be tested: an error. With one, the tests may delete objects in it."""
    if not items:
        return
    context = kube.context()
    if not context:
        raise pytest.UsageError("e2e needs a cluster: set KUBECONFIG, and have kubectl and helm on PATH")
    if context != os.environ.get("E2E_CLUSTER"):
        raise pytest.UsageError(
            f"e2e deletes all layers of a cluster: set E2E_CLUSTER={context} if that of KUBECONFIG is for tests"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out a scenario that would begin after E2E_UNTIL, in seconds since 1970: the whole has to end in time."""
    if time.time() > float(os.environ.get("E2E_UNTIL") or "inf"):
        pytest.skip("no time is left for it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Add a diagnosis to the report of a scenario that failed."""
    report = yield
    namespace = getattr(item, "funcargs", {}).get("namespace")
    if report.failed:
        item.stash[_failed] = True
        for one in filter(None, (namespace, releases.NAMESPACE)):
            report.sections.append((f"namespace {one}", kube.diagnosis(one)))
    return report


@pytest.fixture(scope="session")
def release() -> Iterator[releases.Release]:
    """The release, not installed at first; it is removed at the end unless E2E_KEEP is set."""
    own = releases.Release()
    yield own
    if not os.environ.get("E2E_KEEP"):
        own.remove()


@pytest.fixture(scope="module")
def values() -> releases.Values:
    """The values with which the scenarios of a module want the chart; a module may have its own."""
    return {}


@pytest.fixture
def installed(release: releases.Release, values: releases.Values) -> releases.Release:
    """The chart, installed and ready."""
    release.ensure(values)
    return release


@pytest.fixture(scope="session")
def scraper() -> Iterator[str]:
    """The namespace of a pod from which metrics are read."""
    name = f"e2e-scraper-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kube.until(lambda: kube.get("serviceaccount", "default", namespace=name), "the namespace has its account")
    start_scraper(name, nodes()[0])
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def alerts(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> Iterator[Alerts]:
    """What fires in the states that a scenario holds; nothing is evaluated without promtool."""
    if PROMTOOL is None:
        yield Unrecorded()
        return
    recorder = Recorder(request.getfixturevalue("scraper"), namespace, tmp_path)
    yield recorder
    recorder.close()


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace for this scenario alone."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kube.until(lambda: kube.get("serviceaccount", "default", namespace=name), "the namespace has its account")
    yield name
    if not (os.environ.get("E2E_KEEP") and request.node.stash.get(_failed, False)):
        kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
