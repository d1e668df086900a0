"""The injection into pods, and the fields that it leaves as they are."""

import copy
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import NEWEST, OLDEST, Manifest, problems

from channels_zmq_operator.injection import (
    ALIAS_ANNOTATION,
    CONTAINERS_ANNOTATION,
    LAYERS_ANNOTATION,
    LONGEST_ALIAS,
    MOST_CONTAINERS,
    MOST_LAYERS,
    InjectionError,
    patch,
    wish,
)
from channels_zmq_operator.models import LONGEST_NAME
from channels_zmq_operator.naming import ENV, ENV_KEYS, INJECTED_ANNOTATION, LAYER_LABEL, PATHS

VARIABLES = {ENV + key for key in (*ENV_KEYS, *PATHS)}
FOLDER = "/var/run/secrets/channels-zmq.io"


def pod(label: str | None = "chat", annotations: dict[str, str] | None = None, **spec: Any) -> Manifest:
    metadata: Manifest = {"name": "web"}
    if label is not None:
        metadata["labels"] = {LAYER_LABEL: label}
    if annotations is not None:
        metadata["annotations"] = annotations
    spec = {"containers": [{"name": "web", "image": "web"}]} | spec
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def operations(pod: Manifest) -> list[dict[str, Any]]:
    """Return the parsed patch; it is empty if there is nothing to inject."""
    parts = patch(pod)
    return [] if parts is None else list(json.loads("".join(parts)))


def injected(before: Manifest) -> Manifest:
    """Return the pod as the API server stores it after the patch, checked; the argument is not changed."""
    untouched = copy.deepcopy(before)
    after: Manifest = jsonpatch.apply_patch(before, operations(before))
    assert before == untouched
    for version in (OLDEST, NEWEST):
        assert problems(after, version) == []
    assert patch(after) is None
    return after


def variables(container: Manifest) -> dict[str, Manifest]:
    found = {one["name"]: one for one in container.get("env", ())}
    assert len(found) == len(container.get("env", ()))
    return found


def test_a_pod_without_the_label_is_left_alone() -> None:
    """A pod without the label, or with an empty one, is not changed."""
    assert patch(pod(None)) is None
    assert patch(pod("")) is None


def test_variables_refer_to_the_layers_config_map() -> None:
    """The variables refer to the layer's ConfigMap, for which a pod waits, and copy no value."""
    (container,) = injected(pod())["spec"]["containers"]
    found = variables(container)
    assert found.keys() == VARIABLES
    for name, one in found.items():
        if name.removeprefix(ENV) not in PATHS:
            assert one["valueFrom"] == {"configMapKeyRef": one["valueFrom"]["configMapKeyRef"]}
            reference = one["valueFrom"]["configMapKeyRef"]
            assert (reference["name"], reference["key"]) == ("chat-channels", name)
            assert "optional" not in reference


def test_whether_there_are_keys_does_not_depend_on_the_config_map() -> None:
    """The layer's Secret, for which a pod waits, determines the paths of the keys, and not its ConfigMap.

    Otherwise an editor of the ConfigMap could name another server, or a layer without keys.
    """
    (container,) = injected(pod())["spec"]["containers"]
    found = {name: one["valueFrom"] for name, one in variables(container).items() if name.endswith("_FILE")}
    assert found == {
        f"{ENV}CURVE_SERVER_KEY_FILE": {"secretKeyRef": {"name": "chat-client", "key": "server-key-file"}},
        f"{ENV}CURVE_SECRET_KEY_FILE": {"secretKeyRef": {"name": "chat-client", "key": "secret-key-file"}},
        f"{ENV}SYMMETRIC_ENCRYPTION_KEYS_FILE": {
            "secretKeyRef": {"name": "chat-client", "key": "encryption-keys-file"}
        },
    }


def test_the_keys_are_a_volume_that_anybody_can_read_and_that_may_come_later() -> None:
    """The keys are mounted read-only from a volume that every user can read and whose Secrets are optional.

    It contains only the two keys of the layer's Secret and those of the users' Secret, at the paths of the variables.
    """
    after = injected(pod())
    (volume,) = after["spec"]["volumes"]
    curve = [
        {"key": "server-key", "path": "server-key"},
        {"key": "CHANNELS_ZMQ_CURVE_SECRET_KEY", "path": "secret-key"},
    ]
    encryption = [{"key": "keys", "path": "encryption-keys"}]
    assert volume["projected"] == {
        "sources": [
            {"secret": {"name": "chat-client", "items": curve, "optional": True}},
            {"secret": {"name": "chat-encryption", "items": encryption, "optional": True}},
        ],
        "defaultMode": 0o444,
    }
    (mount,) = after["spec"]["containers"][0]["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": f"{FOLDER}/chat", "readOnly": True}


def test_own_variables_win() -> None:
    """A variable that the pod's author set keeps its value and position; only missing variables are appended."""
    own = [{"name": "FIRST", "value": "1"}, {"name": f"{ENV}OPTIONS", "value": "{}"}]
    (container,) = injected(pod(containers=[{"name": "web", "env": own}]))["spec"]["containers"]
    assert container["env"][:2] == own
    assert variables(container).keys() == VARIABLES | {"FIRST"}


def test_own_volumes_and_mounts_win() -> None:
    """An existing volume or mount takes precedence over one with its name or path, so that none occurs twice."""
    volumes = [{"name": "data", "emptyDir": {}}, {"name": "channels-zmq-chat", "emptyDir": {}}]
    mounts = [{"name": "data", "mountPath": f"{FOLDER}/chat"}]
    containers = [{"name": "web", "volumeMounts": mounts}, {"name": "side", "volumeMounts": []}]
    spec = injected(pod(volumes=volumes, containers=containers))["spec"]
    assert spec["volumes"] == volumes
    assert spec["containers"][0]["volumeMounts"] == mounts
    assert [one["name"] for one in spec["containers"][1]["volumeMounts"]] == ["channels-zmq-chat"]


def test_a_volume_is_added_behind_others() -> None:
    """The volume of a layer is appended after the volumes of the pod's author."""
    spec = injected(pod(volumes=[{"name": "data", "emptyDir": {}}]))["spec"]
    assert [one["name"] for one in spec["volumes"]] == ["data", "channels-zmq-chat"]


def test_init_and_sidecar_containers_get_the_layer_too() -> None:
    """Every init container and sidecar gets the layer; ephemeral containers are not changed."""
    sidecar = {"name": "proxy", "restartPolicy": "Always"}
    ephemeral = [{"name": "debug", "image": "busybox"}]
    before = pod(initContainers=[{"name": "migrate"}, sidecar], ephemeralContainers=ephemeral)
    spec = injected(before)["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        assert variables(container).keys() == VARIABLES
        assert len(container["volumeMounts"]) == 1
    assert spec["ephemeralContainers"] == ephemeral


def test_the_annotation_chooses_containers() -> None:
    """The annotation selects containers and init containers by name, and the others are not changed."""
    before = pod(
        annotations={CONTAINERS_ANNOTATION: " worker, migrate ,"},
        containers=[{"name": "web"}, {"name": "worker"}],
        initContainers=[{"name": "wait"}, {"name": "migrate"}],
    )
    spec = injected(before)["spec"]
    assert spec["containers"][0] == {"name": "web"}
    assert spec["initContainers"][0] == {"name": "wait"}
    assert variables(spec["containers"][1]).keys() == VARIABLES
    assert variables(spec["initContainers"][1]).keys() == VARIABLES


def test_no_chosen_container_means_no_change() -> None:
    """An empty list of containers opts the pod out, although it has the label."""
    assert patch(pod(annotations={CONTAINERS_ANNOTATION: ""})) is None


def test_another_alias_has_its_name_in_the_variables() -> None:
    """An alias is part of the variables' names, as `channel_layers_from_env` reads them.

    The keys of the ConfigMap are the same.
    """
    (container,) = injected(pod(annotations={ALIAS_ANNOTATION: "big_jobs"}))["spec"]["containers"]
    found = variables(container)
    assert found.keys() == {name.replace(ENV, f"{ENV}_BIG_JOBS__", 1) for name in VARIABLES}
    assert found[f"{ENV}_BIG_JOBS__OPTIONS"]["valueFrom"]["configMapKeyRef"]["key"] == f"{ENV}OPTIONS"


def test_several_layers_come_by_annotation() -> None:
    """The annotation adds several layers, each with its variables and keys; two aliases of one layer share a volume."""
    before = pod(annotations={LAYERS_ANNOTATION: "default=chat, jobs = work ,again=work,"})
    after = injected(before)
    (container,) = after["spec"]["containers"]
    assert len(variables(container)) == 3 * len(VARIABLES)
    secrets = [[each["secret"]["name"] for each in one["projected"]["sources"]] for one in after["spec"]["volumes"]]
    assert secrets == [["chat-client", "chat-encryption"], ["work-client", "work-encryption"]]
    assert [one["mountPath"] for one in container["volumeMounts"]] == [f"{FOLDER}/chat", f"{FOLDER}/work"]
    assert after["metadata"]["annotations"][INJECTED_ANNOTATION] == "again=work,default=chat,jobs=work"


def test_the_annotation_alone_suffices() -> None:
    """The annotation requests a layer even if the label has no value."""
    assert wish(pod("", {LAYERS_ANNOTATION: "default=chat"})).layers == {"default": "chat"}


def test_what_was_done_is_written_down() -> None:
    """The injected layers are recorded in an annotation, which replaces a stale one and keeps all others."""
    assert injected(pod())["metadata"]["annotations"] == {INJECTED_ANNOTATION: "default=chat"}
    found = injected(pod(annotations={"a": "b"}))["metadata"]["annotations"]
    assert found == {"a": "b", INJECTED_ANNOTATION: "default=chat"}
    stale = injected(pod(annotations={INJECTED_ANNOTATION: "old"}))["metadata"]["annotations"]
    assert stale == {INJECTED_ANNOTATION: "default=chat"}


def test_a_container_that_came_after_the_first_injection_gets_its_share() -> None:
    """A container that another webhook adds after the first injection is injected, and the first ones do not change."""
    after = injected(pod())
    first = copy.deepcopy(after["spec"]["containers"][0])
    after["spec"]["containers"].append({"name": "late"})
    containers = injected(after)["spec"]["containers"]
    assert containers[0] == first
    assert variables(containers[1]).keys() == VARIABLES


@pytest.mark.parametrize(
    "label, annotations, said",
    [
        ("Chat", {}, "'Chat' is not a valid layer name"),
        ("1chat", {}, "'1chat' is not a valid layer name"),
        ("c" * (LONGEST_NAME + 1), {}, f"at most {LONGEST_NAME}"),
        ("chat", {ALIAS_ANNOTATION: "a__b"}, "'a__b' is not a valid alias"),
        ("chat", {ALIAS_ANNOTATION: "A"}, "'A' is not a valid alias"),
        ("chat", {ALIAS_ANNOTATION: ""}, "'' is not a valid alias"),
        ("chat", {ALIAS_ANNOTATION: "a" * (LONGEST_ALIAS + 1)}, f"at most {LONGEST_ALIAS} lower-case letters"),
        ("chat", {LAYERS_ANNOTATION: "jobs"}, "channels-zmq.io/layers: 'jobs' is not ALIAS=LAYER"),
        ("chat", {LAYERS_ANNOTATION: "jobs="}, "'' is not a valid layer name"),
        ("chat", {LAYERS_ANNOTATION: "jobs=a=b"}, "'a=b' is not a valid layer name"),
        ("chat", {LAYERS_ANNOTATION: "default=other"}, "alias default has two layers, 'chat' and 'other'"),
        ("", {LAYERS_ANNOTATION: "a=x,a=y"}, "alias a has two layers, 'x' and 'y'"),
        ("chat", {CONTAINERS_ANNOTATION: "web,wbe,x"}, "channels-zmq.io/containers: the pod has no container wbe, x"),
    ],
)
def test_what_cannot_be_understood_is_named(label: str, annotations: dict[str, str], said: str) -> None:
    """The error names the label or annotation that is invalid, and the reason."""
    with pytest.raises(InjectionError, match=said):
        patch(pod(label, annotations))


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("spec", None, "the pod has no spec"),
        ("spec", [], "the pod has no spec"),
        ("spec", {"containers": {}, "volumes": 5}, "volumes of the pod is not a list of objects"),
        ("spec", {"containers": "web"}, "containers of the pod is not a list of objects"),
        ("spec", {"containers": [None]}, "containers of the pod is not a list of objects"),
        ("spec", {"containers": [{"env": ["a"]}]}, "env of the pod is not a list of objects"),
        ("spec", {"containers": [{"volumeMounts": {"a": 1}}]}, "volumeMounts of the pod is not a list of objects"),
        ("metadata", "x", "metadata.labels is not a map"),
        ("metadata", {"labels": {LAYER_LABEL: 5}}, "metadata.labels: channels-zmq.io/layer is not a string"),
        ("metadata", {"labels": {LAYER_LABEL: "a"}, "annotations": [1]}, "metadata.annotations is not a map"),
    ],
)
def test_what_is_no_pod_is_refused(field: str, value: Any, said: str) -> None:
    """An object that is not a pod raises InjectionError with the field's name, not one of Python's own exceptions."""
    with pytest.raises(InjectionError, match=said):
        patch({**pod(), field: value})


def test_a_container_with_a_strange_name_is_none_that_was_chosen() -> None:
    """A container whose name is not a string is not selected, and is left for the API server to refuse."""
    spec = {"containers": [{"name": ["web"]}, {"name": "web"}]}
    found = operations({**pod(annotations={CONTAINERS_ANNOTATION: "web"}), "spec": spec})
    assert not [one for one in found if one["path"].startswith("/spec/containers/0")]


@pytest.mark.parametrize("name", ["c", "c" * LONGEST_NAME, "a-b-1"])
def test_every_name_of_a_layer_is_taken(name: str) -> None:
    """A layer of any valid name is injected, as even the longest one makes a valid name of a volume."""
    (volume,) = injected(pod(name))["spec"]["volumes"]
    assert len(volume["name"]) <= 63


def test_sixteen_layers_in_two_hundred_containers_are_injected() -> None:
    """A pod with the most layers and the most containers is injected; init containers count as containers."""
    more = ",".join(f"a{number}=b{number}" for number in range(MOST_LAYERS - 1))
    init = [{"name": f"i{number}"} for number in range(50)]
    containers = [{"name": f"c{number}", "env": [{"name": "OWN"}]} for number in range(MOST_CONTAINERS - 50)]
    before = pod(annotations={LAYERS_ANNOTATION: more}, containers=containers, initContainers=init)
    after = jsonpatch.apply_patch(before, operations(before))
    for container in (*after["spec"]["containers"], *after["spec"]["initContainers"]):
        assert len(variables(container).keys() - {"OWN"}) == MOST_LAYERS * len(VARIABLES)
        assert len(container["volumeMounts"]) == MOST_LAYERS
    assert patch(after) is None


def test_more_layers_are_refused() -> None:
    """A pod with more layers is refused; those of the annotation and the label count, also if an alias occurs twice."""
    more = ",".join(f"a{number}=b" for number in range(MOST_LAYERS))
    with pytest.raises(InjectionError, match=f"a pod has at most {MOST_LAYERS} layers"):
        patch(pod(annotations={LAYERS_ANNOTATION: more}))
    patch(pod("", annotations={LAYERS_ANNOTATION: more}))
    with pytest.raises(InjectionError, match=f"a pod has at most {MOST_LAYERS} layers"):
        patch(pod("", annotations={LAYERS_ANNOTATION: f"{more},a0=b"}))


def test_more_containers_are_refused() -> None:
    """A pod with more containers and init containers together is refused, unless it requests no layer."""
    containers = [{"name": f"c{number}"} for number in range(MOST_CONTAINERS)]
    patch(pod(containers=containers))
    too_many: dict[str, Any] = {"containers": containers, "initContainers": [{"name": "init"}]}
    with pytest.raises(InjectionError, match=f"at most {MOST_CONTAINERS} containers, not {MOST_CONTAINERS + 1}"):
        patch(pod(**too_many))
    assert patch(pod(None, **too_many)) is None


names = st.sampled_from(["web", "side", "chat", "channels-zmq-chat", "", f"{ENV}CAPACITY"])
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | names,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "env", "x"]), inner),
    max_leaves=4,
)
texts = st.sampled_from(["chat", "default=chat", "a=b,c=d", "web", "web,side", "", ",", "=", "A", "a=chat,,a=chat"])
annotations = st.dictionaries(
    st.sampled_from([LAYERS_ANNOTATION, ALIAS_ANNOTATION, CONTAINERS_ANNOTATION, INJECTED_ANNOTATION, "own"]),
    texts | junk,
    max_size=3,
)


def fields(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of objects in which any field may be absent or junk."""
    return st.fixed_dictionaries({}, optional={name: part | junk for name, part in parts.items()})


containers = st.lists(
    fields(
        name=names,
        env=st.lists(fields(name=names, value=names), max_size=2),
        volumeMounts=st.lists(fields(name=names, mountPath=st.just(f"{FOLDER}/chat")), max_size=2),
    ),
    max_size=3,
)
pods = fields(
    metadata=fields(labels=st.dictionaries(st.just(LAYER_LABEL), texts | junk), annotations=annotations),
    spec=fields(containers=containers, initContainers=containers, volumes=st.lists(fields(name=names), max_size=2)),
)


@given(pods)
def test_any_pod_is_patched_or_refused(before: Manifest) -> None:
    """Any pod is either refused or gets a patch that fits; a second patch is empty, and no new problem arises."""
    try:
        found = operations(before)
    except InjectionError:
        return
    after = jsonpatch.apply_patch(before, found)
    assert patch(after) is None
    identified = {"apiVersion": "v1", "kind": "Pod"}
    for version in (OLDEST, NEWEST):
        had = set(problems({**before, **identified}, version))
        new = [one for one in problems({**after, **identified}, version) if one not in had]
        assert not [one for one in new if "channels-zmq" in one.lower().replace("_", "-")], new


good = st.builds(
    pod,
    st.sampled_from(["chat", "", None]),
    st.none() | st.dictionaries(st.sampled_from([LAYERS_ANNOTATION, "own"]), st.sampled_from(["a=b", "c=d,e=b", ""])),
    containers=st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(["web", "side"])},
            optional={
                "env": st.lists(
                    st.fixed_dictionaries({"name": st.sampled_from([*VARIABLES, "X"])}), unique_by=str, max_size=3
                ),
                "volumeMounts": st.just([{"name": "own", "mountPath": f"{FOLDER}/chat"}]),
            },
        ),
        min_size=1,
        max_size=3,
    ),
)


@given(good)
def test_any_valid_pod_stays_valid(before: Manifest) -> None:
    """A valid pod stays valid by every supported Kubernetes, and keeps the variables that its author set."""
    after = injected(before)
    for old, new in zip(before["spec"]["containers"], after["spec"]["containers"], strict=True):
        own = old.get("env", [])
        assert new.get("env", [])[: len(own)] == own
        variables(new)
