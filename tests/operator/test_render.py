"""Details of the rendered objects that the golden files do not show."""

import json
from base64 import b64decode, b64encode
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from channels_zmq.config import DedicatedConfig
from channels_zmq.environment import channel_layers_from_env
from channels_zmq_forwarder.settings import Settings as ForwarderSettings
from channels_zmq_operator.injection import patch
from channels_zmq_operator.models import Forwarder as ForwarderPart
from channels_zmq_operator.models import Owner, parse, size
from channels_zmq_operator.naming import (
    ENV,
    KEY_FILE,
    LAYER_LABEL,
    OWNER_LABEL,
    Manifest,
    addresses,
    key_folder,
    labels_of,
)
from channels_zmq_operator.render import Choices, LayerKeys, Monitors, render

OWNER = Owner(name="chat", namespace="home", uid="u")
KEYS = LayerKeys("P" * 40, "S" * 40, "C" * 40, ("A" * 40, "B" * 40), "2026-01-02T03:04:05Z")


def objects(
    spec: Any = None, image: str = "forwarder:1", keys: LayerKeys | None = KEYS
) -> dict[tuple[str, str], Manifest]:
    found = render(OWNER, parse({"spec": spec}), keys, Choices(image))
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def container(**given: Any) -> Manifest:
    deployment = objects(**given)["Deployment", "chat-forwarder"]
    return dict(deployment["spec"]["template"]["spec"]["containers"][0])


@pytest.mark.parametrize(
    "default, image, expected",
    [
        ("forwarder:1", {}, "forwarder:1"),
        ("r:5000/forwarder", {}, "r:5000/forwarder"),
        ("forwarder@sha256:0", {}, "forwarder@sha256:0"),
        ("forwarder:1", {"tag": "2"}, "forwarder:2"),
        ("r:5000/forwarder", {"tag": "2"}, "r:5000/forwarder:2"),
        ("r:5000/forwarder:1@sha256:0", {"tag": "2"}, "r:5000/forwarder:2"),
        ("r:5000/forwarder:1", {"repository": "mine"}, "mine:1"),
        ("r:5000/forwarder", {"repository": "mine"}, "mine"),
        ("forwarder@sha256:0", {"repository": "mine"}, "mine@sha256:0"),
        ("forwarder:1@sha256:0", {"repository": "mine"}, "mine:1@sha256:0"),
        ("forwarder@sha256:0", {"repository": "mine", "tag": "2"}, "mine:2"),
        ("forwarder:1", {"repository": "r:5000/mine", "tag": "2"}, "r:5000/mine:2"),
        ("forwarder:1", {"digest": "sha256:1"}, "forwarder@sha256:1"),
        ("forwarder:1", {"repository": "mine", "tag": "2", "digest": "sha256:1"}, "mine@sha256:1"),
    ],
)
def test_a_layer_may_change_parts_of_the_image(default: str, image: dict[str, str], expected: str) -> None:
    """An image inherits the omitted parts of the default, whose digest a mirror also has; a digest wins over a tag."""
    assert container(spec={"image": image}, image=default)["image"] == expected


def test_the_forwarder_takes_its_arguments() -> None:
    """Every argument of the container is a flag that the forwarder has."""
    fields = {"--" + name.replace("_", "-") for name in ForwarderSettings.model_fields}
    for argument in container()["args"]:
        assert argument.partition("=")[0] in fields


def patched(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the patch of a pod that requests a layer."""
    return list(json.loads("".join(patch(pod) or ())))


def environment(spec: dict[str, Any], *, curve: bool = True) -> dict[str, str]:
    """Return the variables of a pod with the layer, as the kubelet resolves them."""
    found, out = objects(spec, keys=KEYS if curve else None), {}
    pod = {"metadata": {"labels": {LAYER_LABEL: "chat"}}, "spec": {"containers": [{"name": "web"}]}}
    for one in next(each["value"] for each in patched(pod) if each["path"].endswith("/env")):
        if "configMapKeyRef" in one["valueFrom"]:
            reference, kind = one["valueFrom"]["configMapKeyRef"], "ConfigMap"
        else:
            reference, kind = one["valueFrom"]["secretKeyRef"], "Secret"
        data = found[kind, reference["name"]]["data"]
        if reference["key"] in data or not reference.get("optional"):
            value = data[reference["key"]]
            out[one["name"]] = b64decode(value).decode() if kind == "Secret" else value
    return out


def test_the_library_takes_what_is_injected() -> None:
    """The library configures the layer that the spec describes from every entry that is injected into a pod."""
    spec = {
        "layer": {
            "capacity": 7,
            "channelCapacity": {"jobs.*": 9},
            "maxMessageSize": "1Mi",
            "groupExpiry": 8,
            "expiry": 5,
        },
        "clients": {"prefetch": 3, "outboxBytes": "1Ki", "onReconnect": "app.back"},
    }
    data = objects(spec)["ConfigMap", "chat-channels"]["data"]
    variables = environment(spec)
    assert len(variables) == len(data) + 3
    config = channel_layers_from_env(variables)["default"]["CONFIG"]
    assert (
        config.items()
        >= {
            "capacity": 7,
            "channel_capacity": {"jobs.*": 9},
            "max_message_size": 2**20,
            "group_expiry": 8,
            "expiry": 5,
            "prefetch": 3,
            "outbox_bytes": 1024,
            "on_reconnect": "app.back",
        }.items()
    )
    assert "on_disconnect" not in config
    assert config["curve_secret_key_file"] == f"{key_folder('chat')}/{KEY_FILE}"
    assert config["curve_server_key_file"] == f"{key_folder('chat')}/server-key"


def test_without_curve_the_library_is_told_of_no_key() -> None:
    """Without CURVE the entries of the keys exist, so that a pod can wait for them, and are empty."""
    config = channel_layers_from_env(environment({"security": {"curve": "Disabled"}}, curve=False))["default"]["CONFIG"]
    assert not [name for name in config if name.startswith("curve")]


def files(secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the files of a pod with the layer, as the kubelet mounts entries of Secrets."""
    pod = {"metadata": {"labels": {LAYER_LABEL: "chat"}}, "spec": {"containers": [{"name": "web"}]}}
    (mount,) = next(one["value"] for one in patched(pod) if one["path"].endswith("/volumeMounts"))
    (volume,) = next(one["value"] for one in patched(pod) if one["path"] == "/spec/volumes")
    return {
        f"{mount['mountPath']}/{item['path']}": b64decode(secrets[source["secret"]["name"]][item["key"]]).decode()
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
        if item["key"] in secrets.get(source["secret"]["name"], {}) or not source["secret"]["optional"]
    }


def test_the_keys_are_where_their_secret_says() -> None:
    """The webhook mounts the keys at the paths that their Secret states."""
    variables, found = environment({}), files({"chat-client": objects()["Secret", "chat-client"]["data"]})
    for name, key in (("SERVER", KEYS.server_public), ("SECRET", KEYS.client_secret)):
        assert found[variables[f"{ENV}CURVE_{name}_KEY_FILE"]] == key


@pytest.mark.parametrize("curve", [True, False])
def test_a_layer_that_encrypts_takes_its_keys_from_a_secret_of_its_users(curve: bool) -> None:
    """A layer with encryption reads its keys from a Secret of its users, which the operator does not create.

    Without it there is a path and no file, which the library refuses.
    """
    spec = {"security": {"encryption": "Enabled"}}
    config = channel_layers_from_env(environment(spec, curve=curve))["default"]["CONFIG"]
    path = config["symmetric_encryption_keys_file"]
    own = {"keys": b64encode(b"k" * 44).decode(), "other": ""}
    assert files({"chat-encryption": own})[path] == "k" * 44
    rendered = objects(spec, keys=KEYS if curve else None)
    assert ("Secret", "chat-encryption") not in rendered
    assert path not in files({name: one["data"] for (kind, name), one in rendered.items() if kind == "Secret"})


def test_a_layer_does_not_encrypt_unless_its_spec_says_so() -> None:
    """A layer does not encrypt unless its spec enables it, even if a Secret of that name exists for later use."""
    for spec in ({}, {"security": {"encryption": "Disabled"}}):
        assert "symmetric_encryption_keys_file" not in channel_layers_from_env(environment(spec))["default"]["CONFIG"]


def template(**pod_template: Any) -> Manifest:
    deployment = objects({"podTemplate": pod_template})["Deployment", "chat-forwarder"]
    assert (
        deployment["spec"]["selector"]["matchLabels"].items()
        <= deployment["spec"]["template"]["metadata"]["labels"].items()
    )
    return dict(deployment["spec"]["template"])


def test_own_labels_of_pods_do_not_break_the_selector() -> None:
    """The operator's labels take precedence over those of the template, so that the selector matches."""
    found = template(metadata={"labels": {OWNER_LABEL: "x", "app.kubernetes.io/name": "x", "team": "a"}})
    assert found["metadata"]["labels"]["team"] == "a"


def test_a_template_adds_to_the_pod_and_to_its_container() -> None:
    """A template's lists are merged by name where their items have one, and the operator's fields stay as they are."""
    plain = template()["spec"]
    env, volume = {"name": "TZ", "value": "UTC"}, {"name": "data", "emptyDir": {}}
    mounts = [{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/keys"}]
    container = {"name": "forwarder", "image": "evil", "args": ["x"], "env": [env], "volumeMounts": mounts}
    sidecar = {"name": "sidecar", "image": "sidecar:1"}
    found = template(
        spec={
            "containers": [sidecar, container],
            "volumes": [volume],
            "automountServiceAccountToken": True,
            "dnsPolicy": "None",
        }
    )["spec"]
    (mine,) = plain["containers"]
    assert found["containers"] == [{**mine, "env": [env], "volumeMounts": [*mine["volumeMounts"], mounts[0]]}, sidecar]
    assert found["volumes"] == [*plain["volumes"], volume]
    assert found["dnsPolicy"] == "None"
    assert found["automountServiceAccountToken"] is False


def test_a_template_says_where_pods_run_and_for_how_long() -> None:
    """A template's placement and grace period replace the defaults.

    A default toleration stays if the template has none with its key.
    """
    plain = template()["spec"]
    keys = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
    assert [(one["key"], one["tolerationSeconds"]) for one in plain["tolerations"]] == [(key, 25) for key in keys]
    assert [one["topologyKey"] for one in plain["topologySpreadConstraints"]] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]
    own = {"key": keys[1], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
    spread = [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]
    found = template(
        spec={"tolerations": [own], "topologySpreadConstraints": spread, "terminationGracePeriodSeconds": 99}
    )["spec"]
    assert found["tolerations"] == [own, plain["tolerations"][0]]
    assert found["topologySpreadConstraints"] == spread
    assert found["terminationGracePeriodSeconds"] == 99


@pytest.mark.parametrize(
    ("own", "added"),
    [
        ({"operator": "Exists"}, 0),
        ({"operator": "Exists", "effect": "NoExecute"}, 0),
        ({"operator": "Exists", "effect": "NoSchedule"}, 2),
        ({"key": "node.kubernetes.io/not-ready", "operator": "Exists"}, 1),
        ({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"}, 2),
        ({"key": "dedicated", "operator": "Exists"}, 2),
    ],
)
def test_a_toleration_of_its_author_is_not_shortened(own: Manifest, added: int) -> None:
    """A default toleration that an author's covers is omitted: Kubernetes takes the shortest of those that match."""
    assert len(template(spec={"tolerations": [own]})["spec"]["tolerations"]) == 1 + added


def test_a_cluster_that_assigns_users_is_told_of_none() -> None:
    """In a cluster that assigns users, the pod names none: OpenShift refuses others than those of the namespace."""
    found = render(OWNER, parse({}), KEYS, Choices("i", assigns_users=True))
    (deployment,) = [one for one in found if one["kind"] == "Deployment"]
    security = deployment["spec"]["template"]["spec"]["securityContext"]
    assert security == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_what_forwarders_are_not_told_is_their_own_default() -> None:
    """A forwarder gets no flag for a default, which is its own as well: another release may not know all flags."""
    own = ForwarderSettings(_cli_parse_args=False)
    for name, value in ForwarderPart().model_dump().items():
        assert getattr(own, name) == (size(value) if name.endswith("_bytes") else value)
        assert not [one for one in container()["args"] if one.startswith(f"--{name.replace('_', '-')}=")]


@pytest.mark.parametrize("name", sorted(ForwarderPart.model_fields))
def test_forwarders_are_told_what_a_layer_sets(name: str) -> None:
    """A forwarder gets one flag for each setting of the layer, with sizes in bytes."""
    value, told = {"log_level": ("DEBUG", "DEBUG")}.get(name, ("4Ki", "4096") if name.endswith("_bytes") else (4, "4"))
    given = container(spec={"forwarder": {to_camel(name): value}})["args"]
    assert set(given) - set(container()["args"]) == {f"--{name.replace('_', '-')}={told}"}


def test_what_applications_are_told_by_default_is_their_own_default() -> None:
    """The spec's defaults for clients equal those of the library, and no hooks are set."""
    config = channel_layers_from_env(environment({}))["default"]["CONFIG"]
    own = DedicatedConfig(pull_socket_address=("tcp://a:1",), pub_socket_address=("tcp://a:2",))
    for name in ("prefetch", "outbox_capacity", "outbox_bytes", "connect_timeout", "linger"):
        assert config[name] == getattr(own, name)
    assert not {"on_disconnect", "on_reconnect"} & config.keys()


def test_a_new_server_key_restarts_the_forwarder_and_a_rotation_does_not() -> None:
    """A new server key changes the pod's template and a rotation does not, since a forwarder rereads only its list."""

    def pod(keys: LayerKeys) -> Any:
        return objects(keys=keys)["Deployment", "chat-forwarder"]["spec"]["template"]

    rotated = LayerKeys("P" * 40, "S" * 40, "D" * 40, ("D" * 40, "A" * 40), "2026-02-02T03:04:05Z", "E" * 40, "x")
    assert pod(rotated) == pod(KEYS)
    assert pod(LayerKeys("Q" * 40, "T" * 40, "C" * 40, KEYS.allowed)) != pod(KEYS)


def test_an_empty_template_annotation_is_no_null() -> None:
    """Without keys and annotations, the annotations are an empty map, and there is no volume and no CURVE flag."""
    deployment = objects({"security": {"curve": "Disabled"}}, keys=None)["Deployment", "chat-forwarder"]
    assert deployment["spec"]["template"]["metadata"]["annotations"] == {}
    assert "volumes" not in deployment["spec"]["template"]["spec"]
    assert not [one for one in container(keys=None)["args"] if "curve" in one]


@pytest.mark.parametrize(
    ("domain", "ending"), [("cluster.local", ".cluster.local."), ("k8s.corp", ".k8s.corp."), ("", "")]
)
def test_addresses_are_those_of_the_service(domain: str, ending: str) -> None:
    """The addresses have the Service's name, namespace and ports.

    They are fully qualified unless the cluster's domain is unknown.
    """
    service = objects()["Service", "chat-forwarder"]
    ports = {one["name"]: one["port"] for one in service["spec"]["ports"]}
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc{ending}"
    assert addresses(OWNER, domain) == (f"tcp://{host}:{ports['pull']}", f"tcp://{host}:{ports['pub']}")


def test_rendering_twice_gives_the_same() -> None:
    """Changing a rendered object does not affect the next rendering."""
    untouched, changed = (render(OWNER, parse({}), KEYS, Choices("i")) for _ in range(2))
    for one in changed:
        one["metadata"]["labels"].clear()
        one.get("spec", {}).clear()
    assert untouched != changed
    assert render(OWNER, parse({}), KEYS, Choices("i")) == untouched


@pytest.mark.parametrize(
    ("own", "labels", "interval"),
    [
        ({}, {"release": "all", "team": "all"}, "7s"),
        ({"labels": {"team": "mine"}, "interval": "1m"}, {"release": "all", "team": "mine"}, "1m"),
    ],
)
def test_a_service_monitor_has_the_labels_by_which_prometheus_finds_it(
    own: dict[str, Any], labels: dict[str, str], interval: str
) -> None:
    """A layer's labels and interval win over the operator's, but none replaces the labels used for watching."""
    monitors = Monitors({"release": "all", "team": "all", OWNER_LABEL: "other"}, "7s")
    choices = Choices("i", monitors, service_monitors=True)
    found = render(OWNER, parse({"spec": {"monitoring": own}}), KEYS, choices)
    (monitor,) = [one for one in found if one["kind"] == "ServiceMonitor"]
    assert monitor["metadata"]["labels"] == {**labels_of(OWNER), **labels}
    assert [endpoint["interval"] for endpoint in monitor["spec"]["endpoints"]] == [interval]
