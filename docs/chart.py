"""What is written of the chart: its CustomResourceDefinition, the schema of its values, and the table of its README.

`values.yaml` is the one source of the latter two: the comment above a value is its description, its default gives its
type, and a comment line `schema: {...}` adds to its schema. A mapping with values of its own has these and no others.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from channels_zmq_operator.crd import crd

CHART = Path(__file__).resolve().parent.parent / "charts" / "channels-zmq"
Schema = dict[str, Any]

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
CRD_HEAD = """\
{{{{- /* Written by docs/generate.py from the operator's models. */ -}}}}
{{{{- if .Values.crds.enabled }}}}
{{{{- $keep := .Values.crds.keep | ternary (dict "helm.sh/resource-policy" "keep") dict }}}}
apiVersion: {apiVersion}
kind: {kind}
metadata:
  name: {metadata[name]}
  {{{{- include "channels-zmq.metadata" (list . "crd" $keep) | nindent 2 }}}}
"""
CRD_END = "{{- end }}\n"


def definition() -> str:
    """Return the template of the CustomResourceDefinition."""
    whole = crd()
    text = yaml.dump({"spec": whole["spec"]}, Dumper=_Plain, sort_keys=False, width=120)
    text = text.replace("{{", '{{ "{{" }}')  # what reads as a template is meant as it stands
    return CRD_HEAD.format_map(whole) + text + CRD_END


class _Plain(yaml.SafeDumper):
    """Writes the same thing twice rather than by a reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Value(NamedTuple):
    """One entry of `values.yaml`.

    Args:
        path: Its keys, from the outermost.
        text: The comment above it, without schemas.
        schema: What the comment adds to its schema.
        default: What stands there.
        parts: The entries below it, if the chart knows them.
    """

    path: tuple[str, ...]
    text: str
    schema: Schema
    default: Any
    parts: tuple["Value", ...]


def values() -> tuple[Value, ...]:
    """Return the entries of `values.yaml`.

    Raises:
        SystemExit: One of them has no sentence above it, or a mapping is described beside its entries.
    """
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return tuple(_entries(root, yaml.safe_load(text), text.splitlines(), ()))


def _entries(node: Any, defaults: dict[str, Any], lines: list[str], above: tuple[str, ...]) -> Iterator[Value]:
    for key, _ in node.value:
        path = (*above, key.value)
        text, schema = _comment(lines, key.start_mark.line)
        child, default = next(value for name, value in node.value if name is key), defaults[key.value]
        parts: tuple[Value, ...] = ()
        if not text:
            if not isinstance(default, dict) or not default:
                raise SystemExit(f"values.yaml: no sentence stands above {'.'.join(path)}")
            parts = tuple(_entries(child, default, lines, path))
        elif not text.endswith("."):
            raise SystemExit(f"values.yaml: what stands above {'.'.join(path)} is no sentence")
        yield Value(path, text, schema, default, parts)


def _comment(lines: list[str], line: int) -> tuple[str, Schema]:
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    words, schema = [], {}
    for comment in lines[first:line]:
        said = comment.strip().removeprefix("#").strip()
        if said.startswith("schema: "):
            schema = yaml.safe_load(said)["schema"]
        else:
            words.append(said)
    return " ".join(words), schema


def schema() -> str:
    """Return `values.schema.json`."""
    whole = {
        "$schema": "https://json-schema.org/draft-07/schema#",
        "title": "Values of the chart channels-zmq",
        **_object(values()),
    }
    whole["properties"]["global"] = {"type": "object", "description": "What a chart above this one sets for all."}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _object(parts: tuple[Value, ...]) -> Schema:
    properties = {part.path[-1]: _property(part) for part in parts}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(value: Value) -> Schema:
    if value.parts:
        return _object(value.parts)
    kind = TYPES[type(value.default)]
    return {"description": value.text, "type": kind, "default": value.default, **value.schema}


def table() -> Iterator[str]:
    """Return the table of values."""
    yield "| value | default | |"
    yield "|---|---|---|"
    for value in _leaves(values()):
        default = json.dumps(value.default, ensure_ascii=False)
        choices = f" One of {', '.join(f'`{one}`' for one in value.schema['enum'])}." if "enum" in value.schema else ""
        yield f"| `{'.'.join(value.path)}` | `{default}` | {value.text}{choices} |".replace("||", "\\|\\|")


def _leaves(parts: tuple[Value, ...]) -> Iterator[Value]:
    for part in parts:
        if part.parts:
            yield from _leaves(part.parts)
        else:
            yield part
