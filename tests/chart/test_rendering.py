"""The objects that both Helms render from the chart, for a matrix of values."""

import json
import subprocess
from typing import Any

import pytest
from helm import (
    CHART,
    EVERYTHING,
    KUBERNETES,
    LATEST_ONLY,
    MATRIX,
    RenderError,
    Values,
    helms,
    identity,
    needs_helm,
    notes,
    one,
    render,
)
from jsonschema import Draft202012Validator
from manifests import NEWEST, OLDEST, Manifest, NoSchema, problems

from channels_zmq_operator import crd
from channels_zmq_operator.models import LONGEST_NAME

pytestmark = needs_helm
by_values = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
LONGEST = "a-release-name-that-is-as-long-as-helm-takes-it-53-abc"[:53]
RELEASES = ["channels-zmq", "my", LONGEST, "a.b", "1st"]
FOREIGN_KINDS = {"ServiceMonitor", "PrometheusRule", "Issuer", "Certificate", "ZmqChannelLayer"}


def versions(name: str) -> list[str]:
    return [KUBERNETES, NEWEST] if name in LATEST_ONLY else [OLDEST, KUBERNETES, NEWEST]


@pytest.mark.parametrize("name", MATRIX)
def test_every_object_is_one_that_kubernetes_takes(name: str) -> None:
    """Every object is strictly valid by the schemas of the oldest and of the newest supported Kubernetes."""
    for version in versions(name):
        for manifest in render(MATRIX[name], kube_version=version):
            try:
                assert problems(manifest, version) == []
            except NoSchema:
                assert manifest["kind"] in FOREIGN_KINDS


@by_values
def test_both_helms_render_the_same(values: Values) -> None:
    """Helm 3 and Helm 4 render the same objects."""
    if len(helms()) < 2:
        pytest.skip("needs two Helms: helm and helm3")
    first, second = (sorted(render(values, helm=helm), key=identity) for helm in helms())
    assert first == second


@pytest.mark.parametrize("helm", helms() or [""])
@by_values
def test_lint_passes(values: Values, helm: str) -> None:
    """`helm lint --strict` passes for every set of values."""
    command = [helms()[helm], "lint", "--strict", f"--kube-version={KUBERNETES}", "--values=-", str(CHART)]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("release", RELEASES)
@by_values
def test_names_fit(values: Values, release: str) -> None:
    """Names and labels have at most 63 characters for any release name, and no two objects share a name."""
    manifests = render(values, release=release)
    found = [identity(manifest) for manifest in manifests]
    assert len(set(found)) == len(found)
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        assert len(name) <= 63
        assert not name.endswith("-")
        if manifest["kind"] == "Service":
            assert name[0].isalpha()
            assert "." not in name
        if manifest["kind"] == "ZmqChannelLayer":
            assert len(name) <= LONGEST_NAME
        assert all(len(value) <= 63 for value in manifest["metadata"].get("labels", {}).values())
    for manifest in manifests:  # the operator appends -ca to the name of the authority's Secret
        if manifest["kind"] == "Deployment" and manifest["metadata"]["name"].endswith("-webhook"):
            (volume,) = [
                one for one in manifest["spec"]["template"]["spec"]["volumes"] if one["name"] == "certificates"
            ]
            assert len(volume["secret"]["secretName"] + "-ca") <= 63


def pods(manifests: list[Manifest]) -> list[Manifest]:
    return [each["spec"]["template"]["spec"] for each in manifests if each["kind"] in ("Deployment", "Job")]


@by_values
def test_every_pod_is_restricted(values: Values) -> None:
    """Every pod meets the restricted Pod Security Standard, with a read-only root."""
    found = pods(render(values))
    assert found
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        assert not {"hostPID", "hostIPC"} & pod.keys()
        of_webhook = [container["name"] for container in pod["containers"]] == ["webhook"]
        assert pod.get("hostNetwork", False) is (of_webhook and values.get("webhook", {}).get("hostNetwork", False))
        for volume in pod.get("volumes", ()):
            assert volume.keys() & {"configMap", "secret", "emptyDir"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


@by_values
def test_nothing_is_called_latest(values: Values) -> None:
    """No image is `latest`: each has a tag or a digest, and the default tag is the version of the application."""
    images = [container["image"] for pod in pods(render(values)) for container in pod["containers"]]
    for image in images:
        assert "latest" not in image
        assert "@" in image or ":" in image.rpartition("/")[2]
    if not values:
        assert {image.partition(":")[2] for image in images} == {"0.1.0"}


def test_an_image_has_a_registry_and_a_digest_if_told() -> None:
    """An image has the registry and the digest of the values; a digest wins over a tag.

    The operator gets the forwarder's image in the same form.
    """
    operator = one(render(EVERYTHING), "Deployment", "-operator")
    container = operator["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example:5000/channels-zmq-operator:1.2"
    assert variables(container)["CHANNELS_ZMQ_OPERATOR_FORWARDER_IMAGE"] == f"channels-zmq-forwarder@sha256:{'a' * 64}"


def variables(container: Manifest) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container.get("env", ())}


@by_values
def test_the_definition_is_the_operators(values: Values) -> None:
    """The rendered definition is that of the operator, of which templating changes no character."""
    found = [each for each in render(values) if each["kind"] == "CustomResourceDefinition"]
    assert [each["spec"] for each in found] == (
        [crd.crd()["spec"]] if values.get("crds", {}).get("enabled", True) else []
    )
    for each in found:
        kept = each["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
        assert kept == ("keep" if values.get("crds", {}).get("keep", True) else None)


def test_the_tests_layer_is_one() -> None:
    """The layer that `helm test` creates is valid by the resource's own schema."""
    layer = one(render(), "ZmqChannelLayer")
    schema = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert list(Draft202012Validator(schema).iter_errors(layer)) == []


def test_pods_that_are_selected_have_the_labels() -> None:
    """Every selector of a Service, budget, policy or Deployment selects the pods of exactly one component."""
    manifests = render(EVERYTHING)
    labels = [
        each["spec"]["template"]["metadata"]["labels"] for each in manifests if each["kind"] in ("Deployment", "Job")
    ]
    selectors = []
    for each in manifests:
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            selectors.append(spec["selector"])
        elif each["kind"] in ("Deployment", "PodDisruptionBudget"):
            selectors.append(spec["selector"]["matchLabels"])
        elif each["kind"] == "NetworkPolicy":
            selectors.append(spec["podSelector"]["matchLabels"])
    assert len(selectors) == 8
    for selector in selectors:
        assert len([each for each in labels if selector.items() <= each.items()]) == 1


def test_a_constraint_gets_the_labels_of_its_pods() -> None:
    """A topology constraint without a selector gets the labels of its pods."""
    deployment = one(render(EVERYTHING), "Deployment", "-operator")
    first, second = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert first["labelSelector"] == deployment["spec"]["selector"]
    assert second["labelSelector"] == {"matchLabels": {"own": "one"}}


def test_a_webhook_in_the_network_of_its_node_has_ports_of_its_own() -> None:
    """On the host network, the webhook has ports of its own, which its probes use.

    A node has each port once, so a rollout removes a pod before it starts the next one.
    """
    values: Values = {"webhook": {"hostNetwork": True, "port": 20250, "adminPort": 20080}}
    deployment = one(render(values), "Deployment", "-webhook")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"https": 20250, "metrics": 20080}
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment["CHANNELS_ZMQ_OPERATOR_ADMIN_PORT"] == "20080"
    assert {container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {"metrics"}


def test_monitors_find_their_services() -> None:
    """Every ServiceMonitor selects one Service by its labels and port name, in the namespace of the release."""
    manifests = render(EVERYTHING, namespace="messaging")
    services = [each for each in manifests if each["kind"] == "Service"]
    monitors = [each for each in manifests if each["kind"] == "ServiceMonitor"]
    assert len(monitors) == 2
    for monitor in monitors:
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [each for each in services if selector <= each["metadata"]["labels"].items()]
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": [service["metadata"]["namespace"]]}
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]


def test_a_policy_needs_a_new_cluster() -> None:
    """For an older cluster, Helm refuses the policy with a message before the API server does."""
    with pytest.raises(RenderError, match=r"injection.mode: AdmissionPolicy needs Kubernetes 1.36, this is v1.35.0"):
        render({"injection": {"mode": "AdmissionPolicy"}}, kube_version="1.35.0")


@pytest.mark.parametrize(("watched", "namespace"), [([], "default"), (["a", "default"], "default"), (["a", "b"], "a")])
def test_the_test_runs_where_the_operator_looks(watched: list[str], namespace: str) -> None:
    """`helm test` runs in a watched namespace, and in that of the release if it is watched."""
    hooks = [
        each
        for each in render({"watchNamespaces": watched})
        if "helm.sh/hook" in each["metadata"].get("annotations", {})
    ]
    assert [each["kind"] for each in hooks] == ["Job", "ZmqChannelLayer"]
    assert {each["metadata"]["namespace"] for each in hooks} == {namespace}


def test_the_test_uses_injection_where_there_is_some() -> None:
    """`helm test` uses injection if it is enabled; otherwise it refers to the same ConfigMap and Secret itself.

    It has the label, which the network policy admits, in any case.
    """
    given = {}
    for mode in ("Webhook", "None"):
        manifests = render({"injection": {"mode": mode}})
        pod, layer = one(manifests, "Job")["spec"]["template"], one(manifests, "ZmqChannelLayer")
        assert pod["metadata"]["labels"]["channels-zmq.io/layer"] == layer["metadata"]["name"]
        (container,) = pod["spec"]["containers"]
        assert container["args"] == ["selftest", "--messages=100", "--timeout=175"]
        given[mode] = variables(container)
    assert given["Webhook"] == {}
    assert "CHANNELS_ZMQ_PULL_SOCKET_ADDRESS" in given["None"]


@pytest.mark.skipif("4" not in helms(), reason="needs Helm 4, which needs no cluster for this")
def test_the_notes_warn_of_a_namespace_that_others_use() -> None:
    """The notes warn of the namespace `default`.

    Users who may create pods in the operator's namespace can obtain its permissions.
    """
    assert notes().startswith("WARNING: this release is in the namespace `default`.")
    assert notes(namespace="channels-zmq-system").startswith("The operator of channels-zmq watches all namespaces.")
