"""The CustomResourceDefinition, as far as it can be checked without an API server."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from manifests import NEWEST, OLDEST, problems

from channels_zmq_operator import crd
from channels_zmq_operator.models import LONGEST_NAME, Spec, SpecError, parse

DEFINITION = crd.crd()
(VERSION,) = DEFINITION["spec"]["versions"]
ROOT = VERSION["schema"]["openAPIV3Schema"]
SPEC = ROOT["properties"]["spec"]
Schema = dict[str, Any]


def nodes(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield a schema and every schema inside it, each with its path."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            yield from nodes(schema[word], f"{path}[]")


NODES = dict(nodes(ROOT, "resource"))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_the_definition(version: str) -> None:
    """The definition is strictly valid by Kubernetes' own schema of CustomResourceDefinitions."""
    assert problems(DEFINITION, version) == []


def test_the_schema_is_structural() -> None:
    """The schema is structural, as apiextensions demands.

    It has a type everywhere, no references, and no `additionalProperties` beside `properties`.
    """
    for path, node in NODES.items():
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not {"$ref", "$defs", "title", "const", "oneOf", "definitions", "patternProperties"} & node.keys(), path
        assert not ({"properties", "additionalProperties"} <= node.keys()), path
        assert not (node.get("x-kubernetes-int-or-string") and "type" in node), path
        if node.get("type") == "array":
            assert "items" in node, path
            assert not node.get("uniqueItems"), path
        assert node.get("default", 0) is not None, path


def test_every_field_is_described() -> None:
    """Every field of spec and status has a description for `kubectl explain`; Kubernetes describes the others."""
    for path, node in NODES.items():
        if not path.endswith("[]") and path.startswith(("resource.spec", "resource.status")):
            assert node.get("description", "").endswith("."), path


def test_every_default_is_valid() -> None:
    """Every default is valid by its own schema, and the defaults of an empty spec equal those of pydantic."""
    for path, node in NODES.items():
        if "default" in node:
            assert list(Draft202012Validator(strict(node)).iter_errors(node["default"])) == [], path
    whole = Spec().model_dump(by_alias=True)
    assert SPEC["default"] == whole
    assert defaulted({}, SPEC) == whole
    part = {"layer": {"capacity": 5}}
    assert parse({"spec": defaulted(part, SPEC)}).model_dump(by_alias=True)["layer"] == {
        **whole["layer"],
        "capacity": 5,
    }


def defaulted(value: Any, schema: Schema) -> Any:
    """Return a value as the API server stores it, with the schema's defaults."""
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    out = dict(value)
    for name, part in schema["properties"].items():
        if name not in out and "default" in part:
            out[name] = copy.deepcopy(part["default"])
        if name in out:
            out[name] = defaulted(out[name], part)
    return out


def test_columns_show_what_is_there() -> None:
    """The path of every printer column leads to a scalar or list field of the schema."""
    for column in VERSION["additionalPrinterColumns"]:
        node: Schema = ROOT
        path, chosen = re.subn(r'\[\?\(@\.type=="(Ready|Progressing)"\)\]', "[]", column["jsonPath"])
        assert chosen == path.count("[")
        if path.startswith(".metadata"):
            continue
        for name in path.strip(".").split("."):
            node = node["properties"][name.removesuffix("[]")]
            node = node["items"] if name.endswith("[]") else node
        assert node["type"] in ("string", "integer", "array")


def test_conditions_are_a_map() -> None:
    """The conditions are a map list keyed by type, so that each can be applied by itself."""
    conditions = ROOT["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_rules_have_messages() -> None:
    """Every CEL rule has a static message, since computed messages cost too much, and the first limits the name."""
    rules = [rule for node in NODES.values() for rule in node.get("x-kubernetes-validations", ())]
    assert rules
    for rule in rules:
        assert rule["message"]
        assert "messageExpression" not in rule
    assert f"<= {LONGEST_NAME}" in rules[0]["rule"]


def test_rules_point_at_fields_that_the_schema_has() -> None:
    """Every `fieldPath` leads to a field, also within `metadata`: the API server refuses a definition otherwise."""
    for node in NODES.values():
        for rule in node.get("x-kubernetes-validations", ()):
            inner = node
            for name in rule.get("fieldPath", "").strip(".").split("."):
                assert not name or name in inner.get("properties", {}), rule["fieldPath"]
                inner = inner["properties"][name] if name else inner


# The schema and pydantic


def strict(schema: Schema) -> Schema:
    """Return a schema that refuses unknown fields, as kubectl does, and distinguishes a number from a string."""
    out = dict(schema)
    if schema.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    if "properties" in schema:
        out["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        out["additionalProperties"] = False
    return out


VALIDATOR = Draft202012Validator(strict(SPEC))


def schema_takes(spec: Any) -> bool:
    return bool(VALIDATOR.is_valid(spec))


def pydantic_takes(spec: Any) -> bool:
    try:
        parse({"spec": spec})
    except SpecError:
        return False
    return True


GOOD: dict[str, Any] = {
    "nothing": {},
    "one forwarder": {"forwarders": 1},
    "an empty part": {"layer": {}},
    "a size as a number": {"layer": {"maxMessageSize": 16777216}},
    "a size as a text": {"layer": {"maxMessageSize": "1Gi"}},
    "the smallest size": {"layer": {"maxMessageSize": 1}},
    "the largest size": {"layer": {"maxMessageSize": "2Gi"}},
    "capacities": {"layer": {"channelCapacity": {"jobs.*": 10000, "a": 1}}},
    "a long expiry of groups": {"layer": {"groupExpiry": 10**10}},
    "no keys": {"security": {"curve": "Disabled"}},
    "hours": {"security": {"rotateEvery": "1h"}},
    "seconds": {"security": {"rotateEvery": "3600s"}},
    "minutes": {"security": {"rotateEvery": "90m"}},
    "an image": {"image": {"repository": "a/b", "tag": "1", "digest": "sha256:0", "pullPolicy": "Never"}},
    "credentials": {"image": {"pullSecrets": ["a", "b"]}},
    "resources": {"resources": {"limits": {"example.com/gpu": 1}}},
    "no resources": {"resources": {}},
    "a template": {
        "podTemplate": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"tolerations": [{"key": "a"}], "affinity": {"podAffinity": {}}, "containers": [{"name": "x"}]},
        }
    },
    "closed": {"networkPolicy": {"enabled": False}, "monitoring": {"serviceMonitor": "Disabled"}},
}
BAD: dict[str, tuple[Any, str]] = {
    "too many forwarders": ({"forwarders": 65}, "spec.forwarders"),
    "no forwarder": ({"forwarders": 0}, "spec.forwarders"),
    "an unknown field": ({"forwarder": 1}, "spec.forwarder"),
    "an unknown field further down": ({"layer": {"capacities": 1}}, "spec.layer.capacities"),
    "snake case": ({"layer": {"group_expiry_": 1}}, "spec.layer.group_expiry_"),
    "no capacity": ({"layer": {"capacity": 0}}, "spec.layer.capacity"),
    "too much capacity": ({"layer": {"capacity": 10**6 + 1}}, "spec.layer.capacity"),
    "no expiry": ({"layer": {"expiry": 0}}, "spec.layer.expiry"),
    "too long an expiry": ({"layer": {"expiry": 4_000_001}}, "spec.layer.expiry"),
    "a broken number": ({"layer": {"expiry": 1.5}}, "spec.layer.expiry"),
    "a word for a number": ({"layer": {"expiry": "soon"}}, "spec.layer.expiry"),
    "a channel without capacity": ({"layer": {"channelCapacity": {"a": 0}}}, "spec.layer.channelCapacity.a"),
    "too many channels": (
        {"layer": {"channelCapacity": {str(n): 1 for n in range(101)}}},
        "spec.layer.channelCapacity",
    ),
    "a size that is a list": ({"layer": {"maxMessageSize": [1]}}, "spec.layer.maxMessageSize"),
    "a choice that is none": ({"security": {"curve": "enabled"}}, "spec.security.curve"),
    "a duration without unit": ({"security": {"rotateEvery": "3600"}}, "spec.security.rotateEvery"),
    "a broken duration": ({"security": {"rotateEvery": "1.5h"}}, "spec.security.rotateEvery"),
    "days": ({"security": {"rotateEvery": "30d"}}, "spec.security.rotateEvery"),
    "a duration that is long to write": ({"security": {"rotateEvery": "1" * 10 + "h"}}, "spec.security.rotateEvery"),
    "a tag that is too long": ({"image": {"tag": "t" * 129}}, "spec.image.tag"),
    "a number for a label": ({"podTemplate": {"metadata": {"labels": {"a": 1}}}}, "spec.podTemplate.metadata.labels.a"),
    "a pod that is a text": ({"podTemplate": {"spec": "a"}}, "spec.podTemplate.spec"),
    "no log level": ({"forwarder": {"logLevel": "TRACE"}}, "spec.forwarder.logLevel"),
    "much prefetch": ({"clients": {"prefetch": 1001}}, "spec.clients.prefetch"),
    "a text for a part": ({"layer": "big"}, "spec.layer"),
    "resources that are a list": ({"resources": []}, "spec.resources"),
}
BY_RULE: dict[str, tuple[Any, str]] = {
    "a size of nothing": ({"layer": {"maxMessageSize": 0}}, "spec.layer.maxMessageSize"),
    "too large a size": ({"layer": {"maxMessageSize": "3Gi"}}, "spec.layer.maxMessageSize"),
    "a size that is a word": ({"layer": {"maxMessageSize": "large"}}, "spec.layer.maxMessageSize"),
    "too short a rotation": ({"security": {"rotateEvery": "59m"}}, "spec.security.rotateEvery"),
}
"""Specs that only the CEL rules refuse; only a cluster evaluates those."""


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD.keys())
def test_both_take_a_good_spec(spec: Any) -> None:
    """The schema and pydantic both accept a good spec, with the API server's defaults and without them."""
    assert schema_takes(spec)
    assert parse({"spec": spec}) == parse({"spec": defaulted(spec, SPEC)})
    assert schema_takes(defaulted(spec, SPEC))


@pytest.mark.parametrize(("spec", "where"), BAD.values(), ids=BAD.keys())
def test_both_refuse_a_bad_spec(spec: Any, where: str) -> None:
    """The schema and pydantic both refuse a bad spec, since a definition may be older than its operator.

    The error of pydantic names the field.
    """
    assert not schema_takes(spec)
    with pytest.raises(SpecError) as caught:
        parse({"spec": spec})
    assert where in str(caught.value)


@pytest.mark.parametrize(("spec", "where"), BY_RULE.values(), ids=BY_RULE.keys())
def test_what_rules_refuse_pydantic_refuses_too(spec: Any, where: str) -> None:
    """Pydantic refuses a spec that the schema accepts and only a CEL rule of the field refuses."""
    assert schema_takes(spec)
    node: Schema = SPEC
    for name in where.split(".")[1:]:
        node = node["properties"][name]
    assert node["x-kubernetes-validations"]
    with pytest.raises(SpecError, match=where.replace(".", r"\.")):
        parse({"spec": spec})


JUNK = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.floats(allow_nan=False), st.text(max_size=3))
SIZES = st.one_of(st.integers(1, 2**31), st.sampled_from(["1", "10k", "16Mi", "2Gi", "1G"]))


def values(schema: Schema) -> st.SearchStrategy[Any]:
    """Return a strategy of values for a schema, most of them valid."""
    return st.one_of(good(schema), good(schema), good(schema), JUNK)


def good(schema: Schema) -> st.SearchStrategy[Any]:
    kind = schema.get("type")
    if schema.get("x-kubernetes-int-or-string"):
        return SIZES
    if "properties" in schema:
        return st.fixed_dictionaries({}, optional={name: values(part) for name, part in schema["properties"].items()})
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "pattern" in schema:
        return st.sampled_from(["1h", "720h", "60m", "3600s", "100000s"])
    if kind == "integer":
        low, high = schema["minimum"], schema["maximum"]
        return st.one_of(st.integers(low, high), st.sampled_from([low - 1, low, high, high + 1]))
    if kind == "string":
        return st.text(max_size=5)
    if kind == "boolean":
        return st.booleans()
    if kind == "array":
        return st.lists(values(schema["items"]), max_size=2)
    inner = schema.get("additionalProperties")
    return st.dictionaries(st.text(min_size=1, max_size=3), values(inner) if inner else st.integers(), max_size=2)


@given(good(SPEC))
def test_what_the_cluster_stores_can_be_served(spec: Any) -> None:
    """Pydantic accepts every spec that the schema and its rules accept, and no other spec reaches the operator."""
    spec = without_nothings(spec)
    if schema_takes(spec) and not breaks_a_rule(spec):
        assert pydantic_takes(spec)


def breaks_a_rule(value: Any, schema: Schema = SPEC) -> bool:
    """Return whether the value contains a junk size, which only a CEL rule refuses."""
    if schema.get("x-kubernetes-int-or-string"):
        return (isinstance(value, str) and value not in ("1", "10k", "16Mi", "2Gi", "1G")) or value in (-2, -1, 0)
    known = schema.get("properties", {})
    return isinstance(value, dict) and any(breaks_a_rule(value[name], known[name]) for name in value if name in known)


def without_nothings(value: Any) -> Any:
    """Return a value as the API server reads it: it drops a null from a field with a default."""
    if isinstance(value, dict):
        return {key: without_nothings(inner) for key, inner in value.items() if inner is not None}
    return [without_nothings(inner) for inner in value] if isinstance(value, list) else value
