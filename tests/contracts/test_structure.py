"""The common structure of modules and public names: a test file for each module, and one spelling."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forwarders import close_all
from prometheus_client import Metric

import channels_zmq
import channels_zmq_forwarder
from channels_zmq import metrics
from channels_zmq.client.counters import ADVICE, SILENT, LinkStats
from channels_zmq.core import EmbeddedZmqChannelLayer
from channels_zmq.transports.states import State
from channels_zmq_forwarder.admin import DROP_CAUSES, Admin
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.pump import Traffic

ROOT = Path(__file__).parents[2]
WITHOUT_TESTS = {"__init__", "defaults"}
"""Modules of the client without decisions to test."""
SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LIBRARY, FORWARDER = (Path(str(package.__file__)).parent for package in (channels_zmq, channels_zmq_forwarder))


def test_every_module_of_the_client_has_a_test_file_of_its_own() -> None:
    """Every module of the client has a test file, since a state machine without sockets can be tested part by part."""
    modules = {path.stem for path in (LIBRARY / "client").glob("*.py")} - WITHOUT_TESTS
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "library" / "client").glob("test_*.py")}
    assert len(modules) > 10
    assert modules <= tests


@pytest.mark.parametrize(
    "package, causes", [(LIBRARY, {*ADVICE, *SILENT}), (FORWARDER, {*DROP_CAUSES})], ids=["library", "forwarder"]
)
def test_every_drop_cause_is_known_and_in_snake_case(package: Path, causes: set[str]) -> None:
    """Every drop cause is listed and in snake case.

    Causes are label values, and keys of `stats()` and of the status page.
    """
    in_the_code = set(causes_in(package))
    assert len(in_the_code) > 5
    assert in_the_code <= causes
    assert not_in_snake_case(causes) == []


def causes_in(package: Path) -> Iterator[str]:
    """Yield the first arguments of `drop`, `_drop` or `_dropped`, and the keys of `drops` or `_drops`."""
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and name_of(node.func) in ("drop", "_drop", "_dropped"):
                yield from texts_in(node.args[0])
            elif isinstance(node, ast.Subscript) and name_of(node.value) in ("drops", "_drops"):
                yield from texts_in(node.slice)


def name_of(node: ast.expr) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else None


def texts_in(node: ast.expr) -> list[str]:
    return [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def not_in_snake_case(names: set[str]) -> list[str]:
    return sorted(name for name in names if not SNAKE_CASE.fullmatch(name))


def library_metrics() -> list[Metric]:
    """Return the metrics of a layer that has a link in each state."""
    stats = EmbeddedZmqChannelLayer(pub_socket_address="inproc://structure").stats()
    close_all()
    link = LinkStats(forwarder="", state="", session=0, carries=False, unacknowledged=0, held=0, sent_again=0)
    stats["links"] = [{**link, "state": state.value} for state in State]
    return list(metrics.families({"default": stats}))


def forwarder_metrics() -> list[Metric]:
    """Return the metrics of a forwarder, including those of its process."""
    return list(Admin(Exchange(b"instance"), Traffic()).registry.collect())


FREE = {"version", "le"}
"""Labels whose values are not words."""


@pytest.mark.parametrize("collect", [library_metrics, forwarder_metrics])
def test_metrics_their_labels_and_the_values_of_these_are_in_snake_case(collect: Callable[[], list[Metric]]) -> None:
    """Metrics, their labels and the labels' values are in snake case, as Prometheus's own are."""
    found = collect()
    labels = [sample.labels for metric in found for sample in metric.samples]
    names = {metric.name for metric in found} | {sample.name for metric in found for sample in metric.samples}
    assert len(names) > 10
    assert not_in_snake_case(names | {name for one in labels for name in one}) == []
    values = {value for one in labels for name, value in one.items() if name not in FREE}
    assert values
    assert not_in_snake_case(values) == []
