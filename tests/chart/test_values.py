"""`values.yaml`, its schema and the README's table have one source, and every value has an effect."""

import json
from typing import Any

import pytest
from helm import (
    CHART,
    EVERYTHING,
    KUBERNETES,
    RenderError,
    Values,
    default_values,
    generator,
    helms,
    needs_helm,
    render,
    rendered,
    with_value,
)
from jsonschema import Draft7Validator

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
LEAVES = list(generator()._leaves(generator().values()))
PATHS = [leaf.path for leaf in LEAVES]

CERT_MANAGER = {"certificates": {"mode": "CertManager"}}
EXISTING = {"certificates": {"mode": "ExistingSecret", "secretName": "mine"}}
WHERE: dict[str, Values] = {
    "certificates.caBundle": EXISTING,
    "certificates.secretName": EXISTING,
    "certificates.certManager.issuerRef": CERT_MANAGER,
    "certificates.certManager.duration": CERT_MANAGER,
    "certificates.certManager.renewBefore": CERT_MANAGER,
}
"""The other values without which a value has no effect."""
NAMED: list[dict[str, Any]] = [{"name": "x", "value": "y"}]
OTHER: dict[str, Any] = {
    "image.digest": f"sha256:{'b' * 64}",
    "forwarderImage.digest": f"sha256:{'b' * 64}",
    "imagePullSecrets": [{"name": "other"}],
    "watchNamespaces": ["other"],
    "operator.extraVolumeMounts": [{"name": "own", "mountPath": "/elsewhere"}],
    "webhook.extraVolumeMounts": [{"name": "own", "mountPath": "/elsewhere"}],
    "certificates.mode": "CertManager",
    "certificates.certManager.issuerRef": {"name": "x"},
    "monitoring.serviceMonitor.interval": "7s",
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}],
    "rbac.create": False,
}
"""Values other than the defaults, where the type alone does not suggest one."""


def test_the_generated_files_are_up_to_date() -> None:
    """The generated files are up to date, so `make generate` would change nothing."""
    assert (CHART / "values.schema.json").read_text(encoding="utf-8") == generator().schema()
    assert (CHART / "templates" / "crd.yaml").read_text(encoding="utf-8") == generator().definition()
    assert "\n".join(generator().table()) in (CHART / "README.md").read_text(encoding="utf-8")


def test_schema_table_and_values_name_the_same() -> None:
    """The schema and the table have each value once, with its description.

    The schema refuses unknown values at every level of ours.
    """
    table = (CHART / "README.md").read_text(encoding="utf-8")

    def known(schema: dict[str, Any], values: dict[str, Any], above: tuple[str, ...]) -> list[tuple[str, ...]]:
        assert schema["additionalProperties"] is False
        assert set(schema["properties"]) - {"global"} == set(values)
        found = []
        for name, part in schema["properties"].items():
            if "properties" in part:
                found += known(part, values[name], (*above, name))
            elif name != "global":
                assert part["description"].endswith(".")
                assert part["default"] == values[name]
                assert table.count(f"\n| `{'.'.join((*above, name))}` | ") == 1
                found.append((*above, name))
        return found

    assert known(SCHEMA, default_values(), ()) == PATHS


def test_the_schema_is_one_and_takes_the_defaults() -> None:
    """The schema is valid by draft 7 of JSON Schema, which Helm reads, and accepts the defaults."""
    Draft7Validator.check_schema(SCHEMA)
    assert list(Draft7Validator(SCHEMA).iter_errors(default_values())) == []


def other(path: str, leaf: Any, present: Any) -> Any:
    """Return a value that is neither the default nor the present one."""
    if path in OTHER:
        return OTHER[path]
    kind, schema = type(leaf.default), leaf.schema
    if "enum" in schema:
        return next(choice for choice in schema["enum"] if choice != present)
    if kind is bool:
        return not present
    if kind is int:
        return (present if isinstance(present, int) else 1) + 1
    if kind is str:
        return f"{present}m" if present else "other"
    if kind is list:
        return ["other"] if schema.get("items", {}).get("type") == "string" else NAMED
    return {"mutated": "yes"}


def present_value(values: Values, path: tuple[str, ...], default: Any) -> Any:
    for name in path:
        values = values.get(name, {}) if isinstance(values, dict) else {}
    return values if values != {} else default


@needs_helm
@pytest.mark.parametrize("leaf", LEAVES, ids=[".".join(path) for path in PATHS])
def test_every_value_changes_what_is_rendered(leaf: Any) -> None:
    """Every value changes the rendered objects when all parts of the chart are enabled."""
    path = ".".join(leaf.path)
    base = {**EVERYTHING, **WHERE.get(path, {})}
    if path.endswith(".serviceAccount.create"):
        base = {key: value for key, value in base.items() if key != leaf.path[0]}
    if path == "forwarderImage.tag":  # the digest wins
        base = {**base, "forwarderImage": {}}
    changed = with_value(base, leaf.path, other(path, leaf, present_value(base, leaf.path, leaf.default)))
    before, after = (rendered(max(helms()), "channels-zmq", json.dumps(values), ()) for values in (base, changed))
    assert before != after


BAD: dict[str, tuple[Values, str]] = {
    "a value that does not exist": ({"operater": {}}, "operater"),
    "one that does not exist, further down": ({"operator": {"replica": 1}}, "replica"),
    "a text for a number": ({"operator": {"replicas": "two"}}, "operator.replicas|operator/replicas"),
    "a number out of range": (
        {"injection": {"timeoutSeconds": 31}},
        "injection.timeoutSeconds|injection/timeoutSeconds",
    ),
    "a choice that is none": ({"injection": {"mode": "webhook"}}, "Webhook"),
    "a text for a switch": ({"crds": {"enabled": "yes"}}, "crds.enabled|crds/enabled"),
    "a text for a list": ({"watchNamespaces": "a,b"}, "watchNamespaces"),
    "the same namespace twice": ({"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
    "a number for an annotation": ({"operator": {"podAnnotations": {"a": 1}}}, "podAnnotations"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "digest"),
    "an empty image": ({"image": {"repository": ""}}, "repository"),
    "an existing certificate without a name": (
        {"certificates": {"mode": "ExistingSecret"}},
        "certificates.secretName: set the name of the Secret with tls.crt and tls.key",
    ),
}


@needs_helm
@pytest.mark.parametrize(("values", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_value_is_refused_by_name(values: Values, words: str) -> None:
    """Both Helms refuse an invalid value with an error that names it."""
    for helm in helms():
        with pytest.raises(RenderError) as caught:
            render(values, helm=helm)
        assert any(word in str(caught.value) for word in words.split("|")), str(caught.value)


@needs_helm
def test_an_old_cluster_is_refused() -> None:
    """The chart's own metadata refuses a cluster that is too old."""
    with pytest.raises(RenderError, match=r"1\.30"):
        render(kube_version="1.29.0")
    assert render(kube_version="1.30.0-eks-1")
    assert render(kube_version=KUBERNETES)
