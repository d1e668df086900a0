"""The CustomResourceDefinition, rendered from `models`: what pydantic says, in the dialect of the API server."""

from typing import Any

from channels_zmq_operator.models import GROUP, KIND, LONGEST_NAME, PLURAL, VERSION, Spec

NAME = f"{PLURAL}.{GROUP}"
_UNWANTED = ("title", "additionalProperties")

CONDITION = {
    "type": "object",
    "description": "One aspect of the state.",
    "required": ["type", "status", "reason", "message", "lastTransitionTime"],
    "properties": {
        "type": {"type": "string", "description": "Accepted, Ready, Progressing or Degraded."},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it is so."},
        "reason": {"type": "string", "description": "Why, in one word."},
        "message": {"type": "string", "description": "Why, for people."},
        "observedGeneration": {"type": "integer", "format": "int64", "description": "Of which version of the spec."},
        "lastTransitionTime": {"type": "string", "format": "date-time", "description": "Since when."},
    },
}
STATUS = {
    "type": "object",
    "description": "What the layer is.",
    "properties": {
        "observedGeneration": {
            "type": "integer",
            "format": "int64",
            "description": "The version of the spec that this tells of.",
        },
        "conditions": {
            "type": "array",
            "description": "Accepted, Ready, Progressing and Degraded.",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": CONDITION,
        },
        "replicas": {"type": "integer", "description": "How many pods of forwarders there are."},
        "forwarders": {"type": "integer", "description": "How many forwarders there should be."},
        "readyForwarders": {"type": "integer", "description": "How many of them are ready."},
        "ready": {"type": "string", "description": "Ready forwarders of how many, for the table."},
        "selector": {"type": "string", "description": "Labels of the forwarders' pods."},
        "addresses": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Where the forwarders listen: for producers, and for consumers.",
        },
        "keysRotatedFor": {
            "type": "string",
            "description": "The rotateNow that is done: keys from before are on no list of allowed keys any more.",
        },
        "binding": {
            "type": "object",
            "description": "The Secret that tells other tools how to connect (servicebinding.io).",
            "properties": {"name": {"type": "string", "description": "Its name, in the layer's namespace."}},
        },
    },
}
COLUMNS = [
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Forwarders", "type": "string", "jsonPath": ".status.ready"},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
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
        "message": f"the name of a layer has {LONGEST_NAME} characters at most, for its children's names are longer",
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
DURATION_RULES = [{"rule": "duration(self) >= duration('1h')", "message": "keys are rotated every 1h at the most"}]


def crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition."""
    schema = Spec.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    spec = _translated(schema, definitions)
    spec["default"] = whole = Spec().model_dump(by_alias=True)
    for name, part in spec["properties"].items():
        part.setdefault("default", whole[name])
    spec["properties"]["layer"]["properties"]["maxMessageSize"]["x-kubernetes-validations"] = SIZE_RULES
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
                                "status": STATUS,
                            },
                            "x-kubernetes-validations": RULES,
                        }
                    },
                }
            ],
        },
    }


def _translated(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Inline references and drop what a structural schema may not have."""
    if "$ref" in node:
        found = definitions[node["$ref"].rpartition("/")[2]]
        node = {**found, **{key: value for key, value in node.items() if key != "$ref"}}
    out = {key: value for key, value in node.items() if key not in _UNWANTED}
    if node.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out.pop("anyOf", None)
        return out
    if "properties" in node:
        out["properties"] = {key: _translated(value, definitions) for key, value in node["properties"].items()}
    elif isinstance(node.get("additionalProperties"), dict):
        out["additionalProperties"] = _translated(node["additionalProperties"], definitions)
    if "items" in node:
        out["items"] = _translated(node["items"], definitions)
        if out["items"].get("type") == "object":
            out["items"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return out
