"""The chart's alerts, evaluated by promtool: which of them fire in each incident, and which do not.

Every case begins with ten healthy minutes: two replicas of the operator, two of the webhook, and the layer `chat` in
the namespace `shop` with two forwarders. Then some series change, for longer than any alert waits.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from exposed import exposed_samples
from helm import Values, default_values, needs_helm, one, render
from manifests import Manifest
from promtool import check, evaluate, firing, needs_promtool
from scrapes import Labels, forwarders_monitor, series, target_labels

from channels_zmq_operator.models import Layer

pytestmark = [needs_helm, pytest.mark.slow]  # promtool runs for each case

NAMESPACE = "messaging"
VALUES: Values = {
    "operator": {"replicas": 2},
    "monitoring": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
}
STEP = 30
"""The seconds between two scrapes, and between two evaluations."""
BEFORE, AFTER = 20, 150
"""The number of samples of each series before the incident, and from its beginning on."""
START = 1_767_225_600
DAY = 86_400

Changes = dict[str, str]
"""Maps a shortened series to its samples from the beginning of the incident on, or to a constant one, for promtool."""
GONE = "stale"
"""The series is missing in a successful scrape, or the scrape failed, or its target no longer exists."""


def condition(kind: str, reason: str, layer: str = "chat") -> str:
    return f'layer_condition{{layer_namespace="shop",layer="{layer}",condition="{kind}",reason="{reason}"}}'


READY, AS_EXPECTED = condition("Ready", "ForwardersReady"), condition("Degraded", "AsExpected")
FORWARDER: Changes = {
    "up": "1",
    'info{version="1"}': "1",
    "ready": "1",
    'drops_total{cause="queue_full"}': "7",
    'drops_total{cause="expired"}': "0",
    "queue_age_seconds": "0",
    "refused_handshakes_total": "3",
}
OPERATOR: Changes = {"up": "1", 'info{version="1"}': "1", "reconcile_errors_total": "2"}
WEBHOOK: Changes = {"up": "1", "certificate_expiry_timestamp_seconds": str(START + 80 * DAY)}
HEALTHY: dict[str, Changes] = {
    "forwarder-1": FORWARDER,
    "forwarder-2": FORWARDER,
    "operator-1": {**OPERATOR, "leads": "1", READY: "1", AS_EXPECTED: "0"},
    "operator-2": {**OPERATOR, "leads": "0"},
    "webhook-1": WEBHOOK,
    "webhook-2": WEBHOOK,
}
NO_TARGET: dict[str, Changes] = {pod: dict.fromkeys(found, GONE) for pod, found in HEALTHY.items()}
DOWN: dict[str, Changes] = {pod: {**found, "up": "0"} for pod, found in NO_TARGET.items()}
LACKS: Changes = {READY: GONE, condition("Ready", "ForwardersNotReady"): "0"}
FAILS: Changes = {AS_EXPECTED: GONE, condition("Degraded", "ForwarderFailing"): "1"}


def pods(changes: dict[str, Changes], *names: str) -> dict[str, Changes]:
    return {name: changes[name] for name in names}


@dataclass(frozen=True)
class Case:
    """The behaviour of an alert in an incident.

    Args:
        alert: The name of the alert.
        what: The incident.
        changes: The new samples of series, by pod.
        fires: The alert's labels, without those of its target; None if it does not fire at any time.
        target: The pod whose labels the alert has.
        summary: The alert's description of the incident.
        beside: The other alerts that fire in the end.
    """

    alert: str
    what: str
    changes: dict[str, Changes]
    fires: Labels | None = None
    target: str = ""
    summary: str = ""
    beside: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"{self.alert}: {self.what}"


LAYER: Labels = {"layer_namespace": "shop", "layer": "chat"}
SERVICE: Labels = {"namespace": "shop", "service": "chat-forwarder"}
TAKES_NONE = "A forwarder in shop accepts no messages."
CASES = [
    Case(
        "ForwarderDown",
        "a forwarder does not answer, and its layer lacks it",
        {**pods(DOWN, "forwarder-1"), "operator-1": LACKS},
        {},
        "forwarder-1",
        TAKES_NONE,
        {"LayerNotReady"},
    ),
    Case(
        "ForwarderDown",
        "a forwarder neither begins nor ends",
        {"forwarder-2": {"ready": "0"}, "operator-1": LACKS},
        {},
        "forwarder-2",
        TAKES_NONE,
        {"LayerNotReady"},
    ),
    Case(
        "ForwarderDown",
        "the only forwarder of a new layer has never run",
        {
            "forwarder-1@new": {"up": "0"},
            "operator-1": {condition("Ready", "ForwardersNotReady", "new"): "0"},
        },
        {},
        "forwarder-1@new",
        TAKES_NONE,
        {"LayerNotReady"},
    ),
    Case(
        "ForwarderDown",
        "a forwarder does not answer while there is no operator",
        {**pods(DOWN, "forwarder-1"), **pods(NO_TARGET, "operator-1", "operator-2")},
        {},
        "forwarder-1",
        TAKES_NONE,
        {"OperatorDown"},
    ),
    Case(
        "ForwarderDown",
        "a forwarder on a lost node is replaced, though its pod is still listed",
        {**pods(DOWN, "forwarder-1"), "operator-1": {condition("Ready", "ForwardersNotReady"): GONE, READY: "1"}},
    ),
    Case(
        "ForwarderDown",
        "a rollout waits for an image, and all forwarders of before serve",
        pods(DOWN, "forwarder-1"),
    ),
    Case(
        "ForwarderDown",
        "a forwarder is away for 50 seconds",
        {
            "forwarder-1": {"up": "0 0 1x150", "ready": "stale _ 1x150"},
            "operator-1": {READY: "stale _ 1x150", condition("Ready", "ForwardersNotReady"): "0 0 stale"},
        },
    ),
    Case(
        "ForwarderDown",
        "the layer is deleted",
        {**pods(NO_TARGET, "forwarder-1", "forwarder-2"), "operator-1": {READY: GONE, AS_EXPECTED: GONE}},
    ),
    Case(
        "ForwarderDrops",
        "a queue is full, and messages go on coming",
        {"forwarder-1": {'drops_total{cause="queue_full"}': "8+10x150"}},
        {**SERVICE, "cause": "queue_full"},
        summary="The forwarder chat-forwarder in shop drops frames (queue_full).",
    ),
    Case(
        "ForwarderDrops",
        "a process ends, and what it had is dropped at once",
        {"forwarder-1": {'drops_total{cause="queue_full"}': "90"}},
    ),
    Case(
        "QueueAge",
        "a channel has no readers, and its messages expire after the 60 s of the defaults",
        {"forwarder-1": {"queue_age_seconds": "60", 'drops_total{cause="expired"}': "1+30x150"}},
        {},
        "forwarder-1",
        "A message of a normal channel in shop has waited for 60 s.",
        {"ForwarderDrops"},
    ),
    Case(
        "QueueAge",
        "readers are slow",
        {"forwarder-1": {"queue_age_seconds": "20"}},
    ),
    Case(
        "QueueAge",
        "the workers are replaced within a minute",
        {"forwarder-1": {"queue_age_seconds": "40 60 0x150"}},
    ),
    Case(
        "RefusedHandshakes",
        "a client has an old key, and connects again and again",
        {"forwarder-2": {"refused_handshakes_total": "4+1x150"}},
        SERVICE,
        summary="The forwarder chat-forwarder in shop refuses clients because of their key.",
    ),
    Case(
        "RefusedHandshakes",
        "a client has taken up its new key at the second attempt",
        {"forwarder-2": {"refused_handshakes_total": "4"}},
    ),
    Case(
        "LayerNotReady",
        "a forwarder finds no node",
        {"operator-1": LACKS | FAILS},
        LAYER,
        summary="The layer chat in shop has fewer ready forwarders than desired.",
        beside={"LayerDegraded"},
    ),
    Case(
        "LayerNotReady",
        "a new layer is ready after two minutes, beside one that is",
        {
            "operator-1": {
                condition("Ready", "ForwardersNotReady", "new"): "0 0 0 0 stale",
                condition("Ready", "ForwardersReady", "new"): "_ _ _ _ 1x150",
            }
        },
    ),
    Case(
        "LayerDegraded",
        "an image cannot be pulled in a rollout",
        {"operator-1": FAILS, **pods(DOWN, "forwarder-1")},
        {**LAYER, "reason": "ForwarderFailing"},
        summary="The layer chat in shop is degraded (ForwarderFailing).",
    ),
    Case(
        "LayerDegraded",
        "an image is pulled at the third attempt",
        {"operator-1": {AS_EXPECTED: "stale _x20 0x150", condition("Degraded", "ForwarderFailing"): "1x20 stale"}},
    ),
    Case(
        "ReconcileErrors",
        "the operator lacks a right, and tries again every minute",
        {
            "operator-1": {"reconcile_errors_total": " ".join(str(3 + step // 2) for step in range(AFTER))}
            | {AS_EXPECTED: GONE, condition("Degraded", "ClusterRefused"): "1"},
        },
        {"namespace": NAMESPACE},
        summary="The operator fails to reconcile layers.",
        beside={"LayerDegraded"},
    ),
    Case(
        "ReconcileErrors",
        "the API server is away for three minutes",
        {"operator-1": {"reconcile_errors_total": "3 4 5 6 7 8 8x150"}},
    ),
    Case(
        "OperatorDown",
        "there is no operator, but one of another release",
        {
            **pods(NO_TARGET, "operator-1", "operator-2"),
            "operator-1@another": {"up": "1", 'info{version="1"}': "1", "leads": "1"},
        },
        {"namespace": NAMESPACE},
        summary="No operator is running; existing forwarders keep running.",
    ),
    Case(
        "OperatorDown",
        "the nodes of both replicas are off",
        pods(DOWN, "operator-1", "operator-2"),
        {"namespace": NAMESPACE},
        summary="No operator is running; existing forwarders keep running.",
    ),
    Case(
        "OperatorDown",
        "the operator is replaced",
        {
            **pods(NO_TARGET, "operator-1"),
            "operator-2": {"up": "0x8 1x150", 'info{version="1"}': "stale _x8 1x150", "leads": "stale _x8 1x150"},
        },
    ),
    Case(
        "OperatorDown",
        "one of two replicas is left, and leads",
        {
            **pods(DOWN, "operator-1"),
            "operator-2": {"leads": "1", READY: "1", AS_EXPECTED: "0"},
        },
    ),
    Case(
        "NobodyLeads",
        "both replicas wait for the Lease",
        {"operator-1": {"leads": "0", READY: GONE, AS_EXPECTED: GONE}},
        {"namespace": NAMESPACE},
        summary="No replica of the operator is the leader; existing forwarders keep running.",
    ),
    Case(
        "NobodyLeads",
        "the replica that leads ends, and the other one begins a minute later",
        {**pods(DOWN, "operator-1"), "operator-2": {"leads": "0 0 1x150", READY: "_ _ 1x150"}},
    ),
    Case(
        "WebhookDown",
        "there is no webhook",
        pods(NO_TARGET, "webhook-1", "webhook-2"),
        {},
        summary="No webhook is available; pods with the label channels-zmq.io/layer are not created.",
    ),
    Case(
        "WebhookDown",
        "the certificate has expired",
        {pod: {"certificate_expiry_timestamp_seconds": str(START)} for pod in ("webhook-1", "webhook-2")},
        {},
        summary="No webhook is available; pods with the label channels-zmq.io/layer are not created.",
        beside={"WebhookCertificate"},
    ),
    Case(
        "WebhookDown",
        "one of two is left",
        pods(DOWN, "webhook-1"),
    ),
    Case(
        "WebhookDown",
        "both are replaced at once",
        {
            pod: {"up": "0x8 1x150", "certificate_expiry_timestamp_seconds": f"stale _x8 {START + 80 * DAY}x150"}
            for pod in ("webhook-1", "webhook-2")
        },
    ),
    Case(
        "WebhookCertificate",
        "the certificate was not renewed, two weeks before its end",
        {"webhook-1": {"certificate_expiry_timestamp_seconds": str(START + 14 * DAY)}},
        {},
        "webhook-1",
        "The webhook's certificate was not renewed and expires soon.",
    ),
    Case(
        "WebhookCertificate",
        "the certificate is due, which is a month before its end",
        {pod: {"certificate_expiry_timestamp_seconds": str(START + 30 * DAY)} for pod in ("webhook-1", "webhook-2")},
    ),
    Case(
        "WebhookCertificate",
        "an old certificate is served for half an hour",
        {"webhook-1": {"certificate_expiry_timestamp_seconds": f"{START + 9 * DAY}x60 {START + 80 * DAY}x150"}},
    ),
]


def rule() -> Manifest:
    return one(render(VALUES, namespace=NAMESPACE), "PrometheusRule")


def alerts() -> dict[str, Manifest]:
    (group,) = rule()["spec"]["groups"]
    return {alert["alert"].removeprefix("ChannelsZmq"): alert for alert in group["rules"]}


def target(pod: str) -> Labels:
    """Return the labels of a pod's target; `@` in its name is followed by an unusual layer or namespace."""
    kind, number, where = re.findall(r"(\w+)-(\d)@?(\w*)", pod)[0]
    if kind == "forwarder":
        layer = where or "chat"
        monitor, namespace, service = forwarders_monitor(layer, "shop"), "shop", f"{layer}-forwarder"
    else:
        manifests = render(VALUES, namespace=where or NAMESPACE)
        monitor, found = one(manifests, "ServiceMonitor", f"-{kind}"), one(manifests, "Service", f"-{kind}")
        namespace, service = found["metadata"]["namespace"], found["metadata"]["name"]
    names = {"namespace": namespace, "service": service, "pod": f"{service}-{number}", "container": kind}
    return target_labels(monitor, **names, address=f"10.0.0.{number}:8080")


def named(pod: str, short: str) -> tuple[str, Labels]:
    """Return the name and the own labels of a shortened series."""
    name, _, labels = short.partition("{")
    kind = pod.partition("-")[0]
    return "up" if name == "up" else f"channels_zmq_{kind}_{name}", dict(re.findall(r'(\w+)="([^"]*)"', labels))


def samples(before: str | None, after: str) -> str:
    """Return a series in promtool's notation."""
    then = f"{before}x{BEFORE - 1}" if before is not None else f"_x{BEFORE}"
    return f"{then} {after if re.search('[ x]', after) or after == GONE else f'{after}x{AFTER}'}"


def input_series(changes: dict[str, Changes]) -> list[dict[str, str]]:
    found = []
    for pod in {**HEALTHY, **changes}:
        healthy, changed = HEALTHY.get(pod, {}), changes.get(pod, {})
        for short in {**healthy, **changed}:
            name, labels = named(pod, short)
            before = healthy.get(short)
            values = samples(before, changed.get(short, before or ""))
            found.append({"series": series(name, target(pod) | labels), "values": values})
    return found


def expectations(case: Case) -> dict[str, Any]:
    begin, end = BEFORE * STEP, (BEFORE + AFTER - 1) * STEP
    alert = alerts()[case.alert]
    nothing_before = firing(set(), begin - STEP, begin)
    if case.fires is None:
        never = firing(set(), end, end, f'alertname="{alert["alert"]}"')
        return {"promql_expr_test": [nothing_before, never, firing(case.beside, end)]}
    (minutes,) = re.findall(r"^(\d+)m$", alert["for"].replace("1h", "60m"))
    fires_at = begin + int(minutes) * 60
    summary = {"summary": case.summary, "runbook_url": alert["annotations"]["runbook_url"]}
    labels = {**(target(case.target) if case.target else {}), **case.fires, **alert["labels"]}
    name, expected = alert["alert"], {"exp_labels": labels, "exp_annotations": summary}
    return {
        "promql_expr_test": [nothing_before, firing({case.alert, *case.beside}, end)],
        "alert_rule_test": [
            {"eval_time": f"{fires_at - STEP}s", "alertname": name},
            {
                "eval_time": f"{fires_at}s",
                "alertname": name,
                "exp_alerts": [expected],
            },
        ],
    }


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_alert_fires_when_it_should(case: Case, tmp_path: Path) -> None:
    """An alert fires after its time and not before, with its labels and text; unnamed alerts do not fire."""
    given = {"interval": f"{STEP}s", "start_timestamp": str(START), "input_series": input_series(case.changes)}
    problem = evaluate(rule(), given | expectations(case), tmp_path)
    assert not problem, problem


def test_every_alert_has_cases() -> None:
    """Every alert has at least one case in which it fires, and one in which it does not."""
    fires = {case.alert for case in CASES if case.fires is not None}
    assert fires == {case.alert for case in CASES if case.fires is None} == alerts().keys()


async def test_the_series_are_those_of_the_programs(unused_tcp_port: int) -> None:
    """Every series of the cases has exactly the labels that its program exposes."""
    known = await exposed_samples(unused_tcp_port) | {"up": set()}
    for changes in (HEALTHY, *(case.changes for case in CASES)):
        for pod, found in changes.items():
            for short in found:
                name, labels = named(pod, short)
                assert labels.keys() == known[name], name


def test_a_queue_without_readers_is_told_before_its_messages_expire() -> None:
    """By default the alert on the age of a queue fires before messages expire and leave the queue."""
    assert default_values()["monitoring"]["prometheusRule"]["queueAgeSeconds"] < Layer().expiry


@needs_promtool
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    """`promtool check` accepts the rules."""
    problem = check(rule(), tmp_path)
    assert not problem, problem
