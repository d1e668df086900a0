"""The layers of this project in `CHANNEL_LAYERS`: which of them are of this package, and their faults.

Creates layers, which does not open connections.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer
from channels_zmq.encryption import Keyring
from channels_zmq.environment import DEDICATED, EMBEDDED
from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import client_keys, server_keys
from channels_zmq.tools import ToolError

Layer = DedicatedZmqChannelLayer | EmbeddedZmqChannelLayer
LOCAL = "inproc://"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in the configuration of a layer.

    Attributes:
        alias: Of the layer.
        problem: The fault; names the key.
        advice: What to change.
        code: `BACKEND` or `CONFIG`: where it is.
    """

    alias: str
    problem: str
    advice: str
    code: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One alias of `CHANNEL_LAYERS`.

    Attributes:
        alias: Of the layer.
        backend: Its class, as the settings name it.
        layer: A layer of this package, not in use yet; None for another backend, or if it cannot be created.
        fault: Why it cannot be made, or why its keys cannot be used.
        missing_file: A file of keys that does not exist; it may be mounted later.
    """

    alias: str
    backend: str
    layer: Layer | None = None
    fault: Fault | None = None
    missing_file: str = ""


def configured() -> dict[str, Any]:
    """Return `CHANNEL_LAYERS` of the settings, or an empty dict if it is not set."""
    return dict(getattr(settings, "CHANNEL_LAYERS", {}))


def entries(layers: Mapping[str, Any]) -> list[Entry]:
    """Return every alias, with its layer or with the fault that prevents the layer."""
    return [_entry(alias, layers[alias]) for alias in layers]


def _entry(alias: str, given: Any) -> Entry:
    backend = given.get("BACKEND", "") if isinstance(given, Mapping) else ""
    try:
        made = import_string(backend)
    except ImportError:
        fault = _unknown_backend(alias, backend) if str(backend).startswith("channels_zmq.") else None
        return Entry(alias, str(backend), fault=fault)
    if not (isinstance(made, type) and issubclass(made, DedicatedZmqChannelLayer | EmbeddedZmqChannelLayer)):
        return Entry(alias, backend)
    config = given.get("CONFIG", {})
    if not isinstance(config, Mapping):
        problem = f"CONFIG must be a dict, not {type(config).__name__}"
        return Entry(alias, backend, fault=Fault(alias, problem, "Use a dict, or omit CONFIG.", "CONFIG"))
    try:
        layer = made(**config)
        missing = _read_keys(layer)
    except (ConfigurationError, TypeError) as error:
        return Entry(alias, backend, fault=Fault(alias, str(error), _advice(error), "CONFIG"))
    return Entry(alias, backend, layer, missing_file=missing)


def _unknown_backend(alias: str, backend: str) -> Fault:
    near = difflib.get_close_matches(backend, (EMBEDDED, DEDICATED), n=1, cutoff=0.0)
    return Fault(alias, f"{backend} does not exist", f"Did you mean {near[0]!r}?", "BACKEND")


def _advice(error: Exception) -> str:
    setting = getattr(error, "setting", "")
    return f"Change {setting or 'CONFIG'} of this layer; docs/configuration.md lists all keys."


def _read_keys(layer: Layer) -> str:
    """Read all keys; return the file of a CURVE key that does not exist, if there is one.

    Raises:
        ConfigurationError: If a key is invalid.
    """
    settings = layer.config
    clients = client_keys(settings)
    if clients is not None:
        missing = clients.missing_file()
        if missing:
            return missing
        clients.read()
    servers = server_keys(settings)
    if servers is not None:
        servers.read()
    if settings.encrypts:
        Keyring(settings.symmetric_encryption_keys, settings.symmetric_encryption_keys_file)
    return ""


def layer(alias: str) -> Layer:
    """Return a new layer of this package for an alias.

    Raises:
        ToolError: If the alias is unknown, if its layer is of another package, or if its configuration is invalid.
    """
    layers = configured()
    if alias not in layers:
        known = ", ".join(sorted(map(repr, layers))) or "none"
        raise ToolError(f"CHANNEL_LAYERS has no alias {alias!r}; the aliases are {known} (--layer)")
    entry = _entry(alias, layers[alias])
    if entry.fault is not None:
        raise ToolError(f"layer {alias!r}: {entry.fault.problem}. {entry.fault.advice}")
    if entry.layer is None:
        raise ToolError(f"layer {alias!r} is a {entry.backend or 'layer without BACKEND'}, not a layer of channels-zmq")
    return entry.layer


def is_alone(layer: Layer) -> bool:
    """Return whether a layer reaches only its own process."""
    return isinstance(layer, EmbeddedZmqChannelLayer) and layer.address.startswith(LOCAL)
