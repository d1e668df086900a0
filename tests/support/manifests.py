"""Kubernetes objects for tests, which are validated strictly against each supported version."""

import functools
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

Manifest = dict[str, Any]
OLDEST, NEWEST = "1.30.0", "1.37.0"
"""The oldest version that the chart accepts, and the newest one whose schemas are installed."""


class NoSchema(Exception):
    """The version of Kubernetes has no schema for the kind, which is no built-in one."""


def problems(manifest: Manifest, version: str) -> list[str]:
    """Return the parts of an object that a version of Kubernetes would refuse or drop.

    Raises:
        NoSchema: If the version has no schema for the kind.
    """
    found = _validator(manifest["apiVersion"], manifest["kind"], version).iter_errors(manifest)
    return [f"{manifest['kind']} {error.json_path}: {error.message}" for error in found] + list(_nothings(manifest))


def _nothings(value: Any, path: str = "$") -> Iterator[str]:
    """Yield the paths of null values: the schemas accept them, but they are never intended."""
    if value is None:
        yield f"{path}: null"
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from _nothings(inner, f"{path}.{key}")


@functools.cache
def _validator(api_version: str, kind: str, version: str) -> Draft202012Validator:
    group, slash, number = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.partition('.')[0]}{'-' if slash else ''}{number}.json"
    try:
        schema = _schema(version, name)
    except FileNotFoundError:
        raise NoSchema(f"{api_version} {kind} in {version}") from None
    return Draft202012Validator(schema, registry=_registry(version))


@functools.cache
def _registry(version: str) -> Registry[Any]:
    return Resource.from_contents(_schema(version, "_definitions.json")) @ Registry()


def _schema(version: str, name: str) -> Any:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}-local-strict"
    return json.loads((folder / name).read_text(encoding="utf-8"))


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # the fast one, where it is built
    """A loader that refuses a duplicate key, of which YAML readers keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def load(text: str) -> list[Manifest]:
    """Return the objects of a YAML stream, each of which must have a version, a kind and metadata."""
    found = [one for one in yaml.load_all(text, Loader=Loader) if one]
    for one in found:
        assert {"apiVersion", "kind", "metadata"} <= one.keys(), one
    return found
