"""The assumptions of the chart about operator, webhook and forwarder, and theirs about the chart."""

import importlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import yaml
from exposed import exposed_samples
from helm import CHART, EVERYTHING, ROOT, Values, needs_helm, one, render
from manifests import NEWEST, OLDEST, Manifest

from channels_zmq_forwarder import wire
from channels_zmq_operator import __version__, crd
from channels_zmq_operator.cluster import KINDS, ClusterError
from channels_zmq_operator.injection import LONGEST_ALIAS, MOST_CONTAINERS, MOST_LAYERS
from channels_zmq_operator.models import GROUP, KIND, LONGEST_NAME, PLURAL
from channels_zmq_operator.naming import ENV_KEYS, LAYER_LABEL, MANAGED_BY, PATHS
from channels_zmq_operator.reconcile import PRUNED, Reconciler
from channels_zmq_operator.render import Choices, Monitors
from channels_zmq_operator.settings import PREFIX, Settings
from channels_zmq_operator.status import REASONS
from channels_zmq_operator.webhook_certificates import WEBHOOK, WebhookCertificates

Right = tuple[str, str, str]
"""The group, the resource and the verb of a permission."""


def container(manifests: list[Manifest], component: str) -> Manifest:
    deployment = one(manifests, "Deployment", f"-{component}")
    return dict(deployment["spec"]["template"]["spec"]["containers"][0])


# Settings


@needs_helm
@pytest.mark.parametrize("component", ["operator", "webhook"])
def test_every_variable_is_a_setting(component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that the chart writes is a setting, which gets the value that the chart means."""
    monitors: dict[str, Any] = {"labels": {"release": "prometheus", "empty": ""}, "interval": "7s"}
    values = {"watchNamespaces": ["a", "b"], "operator": {"replicas": 2}, "monitoring": {"serviceMonitor": monitors}}
    manifests = render(values, namespace="messaging")
    found = container(manifests, component)
    for variable in found["env"]:
        name = variable["name"].removeprefix(PREFIX).lower()
        assert name in Settings.model_fields
        monkeypatch.setenv(variable["name"], variable.get("value", "from the pod"))
    settings = Settings()
    if component == "operator":
        assert settings.watch_namespaces == ["a", "b"]
        assert settings.leader_election
        assert settings.choices.monitors == Monitors(**monitors)
        assert settings.lease_name == names_of_leases(manifests)
        assert settings.webhook_name == one(manifests, "MutatingWebhookConfiguration")["metadata"]["name"]
        assert settings.webhook_service == one(manifests, "Service", "-webhook")["metadata"]["name"]
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    assert ports["metrics"] == settings.admin_port
    if component == "webhook":
        assert ports["https"] == settings.webhook_port
        assert found["volumeMounts"][0]["mountPath"] == settings.certificate_folder


def names_of_leases(manifests: list[Manifest]) -> str:
    """Return the only Lease that the operator may read and renew."""
    ((name,),) = [
        rule["resourceNames"]
        for role in manifests
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        if "leases" in rule["resources"] and "update" in rule["verbs"]
    ]
    return str(name)


@needs_helm
def test_the_chart_says_what_the_settings_would_say_anyway() -> None:
    """The chart and the settings have the same defaults, but for the log's format and the webhook's name."""
    for component in ("operator", "webhook"):
        for variable in container(render(), component)["env"]:
            name = variable["name"].removeprefix(PREFIX).lower()
            if "value" in variable and name not in ("log_format", "webhook_name"):
                default = Settings.model_fields[name].get_default(call_default_factory=True)
                text = ",".join(default) if isinstance(default, list) else str(default)
                assert variable["value"] in (text, text.lower(), text.removesuffix(".0"))


@needs_helm
@pytest.mark.parametrize("component", ["operator", "webhook"])
def test_each_component_runs_a_command(component: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each component runs a command that the program has."""
    (command,) = container(render(), component)["args"]
    with pytest.raises(SystemExit):
        importlib.import_module("channels_zmq_operator.__main__").main([command, "--help"])
    assert f"channels-zmq-operator {command}" in capsys.readouterr().out


def test_the_chart_has_the_version_of_the_program() -> None:
    """Both versions of the chart, and so its default images, are that of the program."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == __version__


# The webhook


@needs_helm
def test_the_configuration_is_the_one_that_the_operator_completes() -> None:
    """The webhook's configuration has the name, path, port and label that the operator and the webhook expect.

    The template contains no authority, which the operator adds.
    """
    manifests = render()
    (webhook,) = one(manifests, "MutatingWebhookConfiguration")["webhooks"]
    assert webhook["name"] == WEBHOOK
    assert webhook["clientConfig"].keys() == {"service"}
    assert webhook["clientConfig"]["service"]["path"] == "/mutate"
    assert webhook["objectSelector"] == {"matchExpressions": [{"key": LAYER_LABEL, "operator": "Exists"}]}
    (value,) = MANAGED_BY.values()
    assert value in webhook["matchConditions"][1]["expression"]
    service = one(manifests, "Service", "-webhook")
    assert webhook["clientConfig"]["service"]["name"] == service["metadata"]["name"]
    assert webhook["clientConfig"]["service"]["port"] in [port["port"] for port in service["spec"]["ports"]]


@needs_helm
def test_only_namespaces_with_layers_are_looked_at() -> None:
    """The webhook is called only for watched namespaces, in addition to the selector of the values."""
    values = {"watchNamespaces": ["a"], "injection": {"namespaceSelector": {"matchLabels": {"x": "y"}}}}
    (webhook,) = one(render(values), "MutatingWebhookConfiguration")["webhooks"]
    named = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a"]}
    assert webhook["namespaceSelector"] == {"matchLabels": {"x": "y"}, "matchExpressions": [named]}


# Permissions


class Recorder:
    """A cluster that accepts everything and records the permissions that are used."""

    def __init__(self) -> None:
        self.rights: set[Right] = set()
        self.objects: dict[tuple[str, str, str], Manifest] = {}

    def _note(self, kind: str, *verbs: str, subresource: str = "") -> None:
        group = KINDS[kind].api_version.rpartition("/")[0]
        resource = KINDS[kind].plural + (f"/{subresource}" if subresource else "")
        self.rights |= {(group, resource, verb) for verb in verbs}

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        self._note(kind, "get")
        return None

    async def apply(self, manifest: Manifest, *, subresource: str = "") -> Manifest:
        kind = manifest["kind"]
        exists = subresource or kind == "MutatingWebhookConfiguration"
        self._note(kind, *(("patch",) if exists else ("patch", "create")), subresource=subresource)
        metadata = {**manifest["metadata"], "uid": "u", "resourceVersion": "1"}
        return {**manifest, "metadata": metadata}

    async def create(self, manifest: Manifest) -> Manifest:
        self._note(manifest["kind"], "create")
        return manifest

    async def replace(self, manifest: Manifest) -> Manifest:
        self._note(manifest["kind"], "update")
        return manifest

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        self._note(kind, "delete")

    async def metadata(
        self, kind: str, namespace: str, label: str = "", *, fields: str = ""
    ) -> AsyncIterator[Manifest]:
        self._note(kind, "list")
        none: tuple[Manifest, ...] = ()
        for nothing in none:
            yield nothing

    async def serves(self, kind: str) -> bool:
        return True


def resource(spec: Any, generation: int = 1) -> Manifest:
    metadata = {"name": "chat", "namespace": "a", "uid": "u", "generation": generation}
    return {"apiVersion": f"{GROUP}/v1alpha1", "kind": KIND, "metadata": metadata, "spec": spec}


async def rights_that_are_used() -> set[Right]:
    """Return the permissions that the operator uses to reconcile, watch, record events and renew certificates."""
    cluster = Recorder()
    reconciler = Reconciler(cluster, Choices("image", service_monitors=True))
    reconciler.layer_seen(resource({}), gone=False)
    await reconciler.reconcile(("a", "chat"))
    reconciler.layer_seen(resource({"layer": {"capacity": 0}}, 2), gone=False)
    await reconciler.reconcile(("a", "chat"))
    try:
        await WebhookCertificates(cluster, Settings(webhook_name="x")).look()
    except ClusterError:
        pytest.fail("the recorder refuses nothing")
    used = set(cluster.rights)
    for kind in (*PRUNED, KIND, "Pod"):
        group = KINDS[kind].api_version.rpartition("/")[0]
        used |= {(group, KINDS[kind].plural, verb) for verb in ("list", "watch")}
        if kind in PRUNED:
            used.add((group, KINDS[kind].plural, "delete"))
    for group, plural in (
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
    ):
        used |= {(group, plural, verb) for verb in ("list", "watch")}
    return used


def rights(roles: list[Manifest]) -> set[Right]:
    return {
        (group, what, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for what in rule["resources"]
        for verb in rule["verbs"]
    }


def roles(values: Values) -> list[Manifest]:
    """Return the operator's own roles, without those for users of the cluster."""
    found = [each for each in render(values, namespace="home") if each["kind"] in ("Role", "ClusterRole")]
    return [each for each in found if each["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"]


LEASE = {("coordination.k8s.io", "leases", verb) for verb in ("get", "update", "create")}


@needs_helm
async def test_every_right_is_used_and_none_is_missing() -> None:
    """The operator has exactly the permissions that it uses; leader election adds those for the Lease."""
    used = await rights_that_are_used()
    assert rights(roles({})) == used
    assert rights(roles({"operator": {"replicas": 2}})) == used | LEASE
    assert ("", "secrets", "get") in used
    assert (GROUP, f"{PLURAL}/status", "patch") in used


@needs_helm
async def test_watched_namespaces_get_roles() -> None:
    """Each watched namespace gets a role with the same permissions.

    In the cluster the operator may access only the webhook's configuration, and not even that without a webhook.
    """
    found = roles({"watchNamespaces": ["a", "b"]})
    (cluster_wide,) = [each for each in found if each["kind"] == "ClusterRole"]
    assert {what for _, what, _ in rights([cluster_wide])} == {"mutatingwebhookconfigurations"}
    used = {right for right in await rights_that_are_used() if right[0] not in cluster_groups()}
    for namespace in ("a", "b"):
        assert rights([each for each in found if each["metadata"].get("namespace") == namespace]) == used
    (own,) = [each for each in found if each["metadata"].get("namespace") == "home"]
    secrets = {("", "secrets", verb) for verb in ("get", "create", "patch", "delete")}
    assert rights([own]) == secrets | {("events.k8s.io", "events", "create")}
    for mode in ({"injection": {"mode": "None"}}, {"certificates": {"mode": "CertManager"}}):
        found = roles({"watchNamespaces": ["a", "b"], **mode})
        assert {(each["kind"], each["metadata"]["namespace"]) for each in found} == {("Role", "a"), ("Role", "b")}


def test_the_page_on_upgrades_names_the_versions() -> None:
    """The page on upgrades names this release, its wire format, and the Kubernetes versions of the checked schemas."""
    page = (ROOT / "docs" / "upgrading.md").read_text(encoding="utf-8")
    version = __version__.rpartition(".")[0]
    oldest, newest = (one.rpartition(".")[0] for one in (OLDEST, NEWEST))
    assert f"| {version} | {version} | {version} (wire format {wire.VERSION}) | {oldest} to {newest}; " in page


@needs_helm
def test_users_of_the_cluster_may_do_with_layers_what_they_may_do_else() -> None:
    """The view role reads layers, the edit role also creates and scales them, and Service Binding tools read them."""
    manifests = render({}, namespace="home")
    users = [
        each for each in manifests if each["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "users"
    ]
    found = {each["metadata"]["name"].rpartition("-")[2]: each for each in users}
    reads = {(GROUP, PLURAL, verb) for verb in ("get", "list", "watch")}
    writes = {(GROUP, PLURAL, verb) for verb in ("create", "delete", "deletecollection", "patch", "update")}
    scales = {(GROUP, f"{PLURAL}/scale", verb) for verb in ("get", "patch", "update")}
    assert {name: rights([role]) for name, role in found.items()} == {
        "view": reads,
        "edit": reads | writes | scales,
        "servicebinding": reads,
    }
    aggregates = "rbac.authorization.k8s.io/aggregate-to-"
    labels = {name: role["metadata"]["labels"].keys() for name, role in found.items()}
    assert f"{aggregates}view" in labels["view"]
    assert {f"{aggregates}edit", f"{aggregates}admin"} <= labels["edit"]
    assert "servicebinding.io/controller" in labels["servicebinding"]
    off = render({"rbac": {"aggregate": False, "serviceBinding": False}}, namespace="home")
    assert len(manifests) - len(off) == len(found)


def cluster_groups() -> set[str]:
    return {"admissionregistration.k8s.io", "apiextensions.k8s.io"}


@needs_helm
def test_what_has_a_name_is_named() -> None:
    """The operator may access only its own definition, webhook configuration and certificate Secrets by name."""
    manifests = render({"watchNamespaces": []}, namespace="home")
    named = {
        what: rule["resourceNames"]
        for role in manifests
        if role["kind"] in ("Role", "ClusterRole")
        for rule in role["rules"]
        if "resourceNames" in rule
        for what in rule["resources"]
    }
    settings = {each["name"]: each.get("value") for each in container(manifests, "operator")["env"]}
    secret = settings[f"{PREFIX}WEBHOOK_SECRET"]
    assert named == {
        "customresourcedefinitions": [crd.NAME],
        "mutatingwebhookconfigurations": [settings[f"{PREFIX}WEBHOOK_NAME"]],
        "secrets": [secret, f"{secret}-ca"],
    }


@needs_helm
def test_every_binding_binds_a_role_to_the_operator() -> None:
    """Every binding binds an existing role to the operator; the webhook has no permissions and no token."""
    manifests = render({"watchNamespaces": ["a"]}, namespace="home")
    account = one(manifests, "ServiceAccount", "-operator")["metadata"]["name"]
    known = {(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in manifests}
    bindings = [each for each in manifests if each["kind"].endswith("RoleBinding") or each["kind"] == "RoleBinding"]
    assert len(bindings) == len(roles({"watchNamespaces": ["a"]}))
    for binding in bindings:
        role = binding["roleRef"]
        assert (role["kind"], binding["metadata"].get("namespace"), role["name"]) in known
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "home"}]
    webhook = one(manifests, "Deployment", "-webhook")["spec"]["template"]["spec"]
    assert webhook["automountServiceAccountToken"] is False
    assert webhook["serviceAccountName"] != account


# Metrics


TARGET = {"namespace", "service", "pod", "endpoint", "job", "instance", "layer_namespace", "layer"}
"""Labels that Prometheus adds, the last two only to the metrics of forwarders."""
METRIC = re.compile(r"\b(channels_zmq_[a-z_]+|process_[a-z_]+)")
GROUPED = re.compile(r"\b(?:by|on|group_left) \(([a-z_, ]*)\)")
SELECTED = re.compile(r"([a-z_]+)\{([^}]*)\}")


def dashboard() -> Iterator[tuple[str, str]]:
    board = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]


def alerts(values: Values | None = None) -> list[dict[str, Any]]:
    (group,) = one(render(values or EVERYTHING), "PrometheusRule")["spec"]["groups"]
    return list(group["rules"])


@needs_helm
async def test_every_metric_that_is_asked_for_exists(unused_tcp_port: int) -> None:
    """Every metric in the dashboard and the alerts exists, with the labels that the expressions use."""
    known = await exposed_samples(unused_tcp_port)
    asked = [*dashboard(), *((alert["alert"], alert["expr"]) for alert in alerts())]
    assert len(asked) > 30
    for title, expression in asked:
        names = METRIC.findall(expression)
        assert names, title
        for name in names:
            assert name in known, f"{title}: {name}"
        labels = set().union(*(known[name] for name in names)) | TARGET | {"le"}
        for listed in GROUPED.findall(expression):
            assert {label.strip() for label in listed.split(",")} <= labels, title
        for name, selection in SELECTED.findall(expression):
            chosen = {part.partition("=")[0].strip().rstrip("!") for part in selection.split(",")}
            assert chosen <= known.get(name, set()) | TARGET, title


async def test_the_dashboard_shows_every_metric(unused_tcp_port: int) -> None:
    """The dashboard shows every metric of ours, but for `channels_zmq_operator_info`, which is incidental."""
    text = " ".join(expression for _, expression in dashboard())
    by_the_way = {"channels_zmq_operator_info"}
    for name in await exposed_samples(unused_tcp_port):
        base = re.sub(r"_(bucket|sum|count|created)$", "", name)
        if name.startswith("channels_zmq") and base not in by_the_way:
            assert base in text, name


def test_the_dashboard_is_laid_out() -> None:
    """No two panels of the dashboard share a place or an id, and each has a description."""
    board = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith(".")
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@needs_helm
def test_every_alert_has_a_page() -> None:
    """Every alert has a heading in monitoring.md, to which its runbook URL leads, and every heading has an alert."""
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*)$", text.partition("\n## Alerts\n")[2].partition("\n## ")[0], re.MULTILINE)
    found = alerts()
    assert [alert["alert"] for alert in found] == headings
    for alert in found:
        assert alert["annotations"]["runbook_url"] == f"docs/monitoring.md#{alert['alert'].lower()}"
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["labels"]["team"] == "a"


@needs_helm
def test_without_a_webhook_nobody_misses_it() -> None:
    """Without a webhook there is neither an alert on it nor any other object of it."""
    values = {**EVERYTHING, "injection": {"mode": "None"}}
    assert not [alert for alert in alerts(values) if "Webhook" in alert["alert"]]
    assert not [each for each in render(values) if each["metadata"]["name"].endswith("-webhook")]


def test_argo_cd_looks_at_what_a_status_has() -> None:
    """The Argo CD example uses only conditions, and a reason, that the status has."""
    (check,) = yaml.safe_load((ROOT / "examples" / "kubernetes" / "argocd.yaml").read_text(encoding="utf-8"))[
        "data"
    ].values()
    named = {name for name in re.findall(r'"(\w+)"', check) if name in REASONS or f'conditions["{name}"]' in check}
    assert named == {"Ready", "Progressing", "Degraded", "Stalled"} <= REASONS.keys()
    assert re.findall(r'reason == "(\w+)"', check) == ["Paused"]
    assert "Paused" in REASONS["Progressing"]


# Injection by the API server


@needs_helm
def test_the_policy_has_the_variables_and_the_bounds_of_the_webhook() -> None:
    """The handwritten policy has the variables and the bounds of the webhook; an API server tests its behaviour."""
    policy = one(render({"injection": {"mode": "AdmissionPolicy"}}), "MutatingAdmissionPolicy")
    written = {each["name"]: each["expression"] for each in policy["spec"]["variables"]}
    assert re.findall(r"'(\w+)'", written["options"]) == list(ENV_KEYS)
    assert dict(re.findall(r"'(\w+)': '([\w-]+)'", written["paths"])) == {
        key: entry for key, (entry, _) in PATHS.items()
    }
    bounds = [int(bound) for bound in re.findall(r"> (?:part.*\+ )?(\d\d+)", written["refusals"])]
    assert bounds == [MOST_LAYERS, MOST_CONTAINERS, LONGEST_ALIAS, LONGEST_NAME + 1]
    for bound in (MOST_LAYERS, MOST_CONTAINERS, LONGEST_ALIAS, LONGEST_NAME):
        assert f"at most {bound} " in written["refusals"]
