"""`CHANNEL_LAYERS` from environment variables.

Sorts the variables by alias and key; `config` validates and converts the values. Pure: the variables are an argument.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import SecretBytes, SecretStr, ValidationError

from channels_zmq.config import DedicatedConfig, EmbeddedConfig, LayerConfig, first_problem, nearest
from channels_zmq.errors import ConfigurationError

logger = logging.getLogger(__name__)

EMBEDDED = "channels_zmq.core.EmbeddedZmqChannelLayer"
DEDICATED = "channels_zmq.core.DedicatedZmqChannelLayer"
ENV_PREFIX = "CHANNELS_ZMQ_"
OPTIONS = "options"
_NO_OPTION = re.compile("curve_|symmetric_|socket_address")
"""Keys that `OPTIONS` may not have: its writer need not be trusted to choose the server."""
_NOT_OURS = re.compile(r"CHANNELS_ZMQ_(FORWARDER_|([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT|PORT(_[0-9]|$)))")
"""The forwarder's own variables, and those that Kubernetes derives from a Service whose name begins with our prefix."""


def channel_layers_from_env(environ: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return a value for Django's `CHANNEL_LAYERS`, made from environment variables.

    `CHANNELS_ZMQ_<KEY>` sets a key of CONFIG for the alias `default`, `CHANNELS_ZMQ__<ALIAS>__<KEY>` for another one.
    A layer with `PULL_SOCKET_ADDRESS` is dedicated, any other embedded; without any variable `default` is the
    embedded layer on an address that only this process can reach. `CHANNEL_CAPACITY` is a JSON object; `GROUP_EXPIRY`
    may be `none`; an empty value counts as not set. `OPTIONS` is a JSON object with further keys of CONFIG, as
    the operator on Kubernetes writes it; a variable has precedence, and what this version does not know is logged.

    Args:
        environ: The variables to read; those of the process if None.

    Raises:
        ConfigurationError: If a variable is unknown or missing, or if its value is invalid; names the variable.
    """
    variables = os.environ if environ is None else environ
    layers: dict[str, dict[str, str]] = {"default": {}}
    for variable, value in sorted(variables.items()):
        if variable.startswith(ENV_PREFIX) and not _NOT_OURS.match(variable) and value:
            alias, key = _alias_and_key(variable)
            layers.setdefault(alias, {})[key] = value
    return {alias: _layer(alias, values) for alias, values in layers.items()}


def _alias_and_key(variable: str) -> tuple[str, str]:
    rest = variable.removeprefix(ENV_PREFIX)
    if not rest.startswith("_"):
        return "default", rest.lower()
    alias, _, key = rest[1:].partition("__")
    if not alias or not key:
        raise ConfigurationError(variable, "a variable for an alias has the form CHANNELS_ZMQ__<ALIAS>__<KEY>")
    return alias.lower(), key.lower()


def _layer(alias: str, values: dict[str, str]) -> dict[str, Any]:
    model: type[LayerConfig]
    backend, model = (DEDICATED, DedicatedConfig) if "pull_socket_address" in values else (EMBEDDED, EmbeddedConfig)
    options = _options(_variable(alias, OPTIONS), values.pop(OPTIONS, "{}"), model)
    for key in values:
        if key in model.model_fields:
            continue
        pull = _variable(alias, "pull_socket_address")
        if key in DedicatedConfig.model_fields:
            raise ConfigurationError(_variable(alias, key), f"setting of the dedicated layer, which needs {pull}")
        if key in EmbeddedConfig.model_fields:
            raise ConfigurationError(_variable(alias, key), f"setting of the embedded layer, which excludes {pull}")
        near = nearest(key, DedicatedConfig)
        hint = f"; did you mean {_variable(alias, near)}?" if near else ""
        raise ConfigurationError(_variable(alias, key), f"unknown setting of {backend.rpartition('.')[2]}{hint}")
    given = options | {key: _prepared(_variable(alias, key), key, value) for key, value in values.items()}
    try:
        parsed = model(**given)
    except ValidationError as error:
        problem = first_problem(error)
        is_option = problem.key in options and problem.key not in values
        setting = f"{_variable(alias, OPTIONS)}{problem.place}" if is_option else _variable(alias, problem.key or "*")
        raise ConfigurationError(setting, problem.text) from None
    return {"BACKEND": backend, "CONFIG": {key: _plain(getattr(parsed, key)) for key in given}}


def _options(variable: str, text: str, model: type[LayerConfig]) -> dict[str, Any]:
    """Return the options that this version knows: the operator that wrote them may be newer."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(variable, f"invalid JSON object: {error}") from None
    if not isinstance(options, dict):
        raise ConfigurationError(variable, f"must be a JSON object, not {text}")
    for key in options:
        if _NO_OPTION.search(key):
            raise ConfigurationError(f"{variable}[{key!r}]", "addresses and keys have separate variables")
        if key not in model.model_fields:
            logger.warning("ignoring %s[%r], which this version does not know", variable, key)
    return {key: value for key, value in options.items() if key in model.model_fields}


def _variable(alias: str, key: str) -> str:
    prefix = ENV_PREFIX if alias == "default" else f"{ENV_PREFIX}_{alias.upper()}__"
    return prefix + key.upper()


def _prepared(variable: str, key: str, value: str) -> Any:
    """Return the value for the model from a variable's text; the model converts numbers itself."""
    if key == "group_expiry" and value.lower() == "none":
        return None
    if key == "channel_capacity":
        try:
            return json.loads(value)
        except ValueError as error:
            raise ConfigurationError(variable, f"invalid JSON object: {error}") from None
    if key == "symmetric_encryption_keys":
        keys = [part.strip() for part in value.split(",") if part.strip()]
        if not keys:
            raise ConfigurationError(variable, "it is set but has no key; unset it to send messages unencrypted")
        return keys
    return value


def _plain(value: Any) -> Any:
    """Return a setting as people write it into CONFIG."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple) and value and isinstance(value[0], SecretBytes):
        return [key.get_secret_value().decode() for key in value]
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value
