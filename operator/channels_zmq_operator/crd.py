"""The CustomResourceDefinition: the schema of `models`, as the structural schema that the API server requires."""

from typing import Any

from pydantic import BaseModel

from channels_zmq_operator.models import GROUP, KIND, LONGEST_NAME, PLURAL, VERSION, Spec, Status

NAME = f"{PLURAL}.{GROUP}"
_UNWANTED = ("title", "additionalProperties")

COLUMNS = [
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Forwarders", "type": "string", "jsonPath": ".status.ready"},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
    {"name": "Progress", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Progressing")].reason'},
    {"name": "Addresses", "type": "string", "jsonPath": ".status.addresses", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]
SCALE = {
    "specReplicasPath": ".spec.forwarders",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}
RULES = [
    {
        "rule": f"size(self.metadata.name) <= {LONGEST_NAME}",
        "message": f"the name of a layer has at most {LONGEST_NAME} characters: the names of its children are longer",
        "fieldPath": ".metadata.name",
    },
    {
        "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "message": "the name of a layer begins with a letter and has only letters, digits and hyphens: "
        "it becomes the name of a Service",
        "fieldPath": ".metadata.name",
    },
]
SIZE_RULES = [
    {"rule": "isQuantity(string(self))", "message": "a size is a number of bytes or a quantity such as 16Mi"},
    {
        "rule": "!isQuantity(string(self)) || (quantity(string(self)).compareTo(quantity('1')) >= 0 "
        "&& quantity(string(self)).compareTo(quantity('2Gi')) <= 0)",
        "message": "a size is from 1 to 2Gi",
    },
]
DURATION_RULES = [{"rule": "duration(self) >= duration('1h')", "message": "rotateEvery is 1h or longer"}]


def crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition."""
    spec, status = schema_of(Spec), schema_of(Status)
    del status["required"]  # a status written by an earlier version may lack newer fields
    spec["default"] = whole = Spec().model_dump(by_alias=True)
    for name, part in spec["properties"].items():
        part.setdefault("default", whole[name])
    spec["properties"]["security"]["properties"]["rotateEvery"]["x-kubernetes-validations"] = DURATION_RULES
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["zcl"],
                "categories": ["channels"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}, "scale": SCALE},
                    "additionalPrinterColumns": COLUMNS,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": "A channel layer for Django Channels: forwarders, and how to reach them.",
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
                                "spec": spec,
                                "status": status,
                            },
                            "x-kubernetes-validations": RULES,
                        }
                    },
                }
            ],
        },
    }


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the structural schema of a model."""
    schema = model.model_json_schema(by_alias=True)
    return _translated(schema, schema.pop("$defs", {}))


def _translated(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Inline references and drop the keywords that a structural schema must not contain."""
    if "$ref" in node:
        found = definitions[node["$ref"].rpartition("/")[2]]
        node = {**found, **{key: value for key, value in node.items() if key != "$ref"}}
    if "anyOf" in node and node.get("default", "") is None:  # a status leaves out an unknown value instead of null
        (kind,) = [one for one in node["anyOf"] if one.get("type") != "null"]
        rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        return _translated({**kind, **rest}, definitions)
    out = {key: value for key, value in node.items() if key not in _UNWANTED}
    if node.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out.pop("anyOf", None)
        return {**out, "x-kubernetes-validations": SIZE_RULES}  # every int-or-string field is a size
    if "properties" in node:
        out["properties"] = {key: _translated(value, definitions) for key, value in node["properties"].items()}
    elif isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = _translated(node["additionalProperties"], definitions)
    if "items" in node:
        out["items"] = _translated(node["items"], definitions)
        if out["items"].get("type") == "object" and "properties" not in out["items"]:
            # A free-form object: without this, the API server would prune all its fields.
            out["items"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return out
