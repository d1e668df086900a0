"""The system checks, none of which opens a connection."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq
from django.conf import settings
from django.test import override_settings

from channels_zmq.checks import check_configuration, check_deployment
from channels_zmq.core import EmbeddedZmqChannelLayer

EMBEDDED = "channels_zmq.core.EmbeddedZmqChannelLayer"
DEDICATED = "channels_zmq.core.DedicatedZmqChannelLayer"
ADDRESSES = {"pull_socket_address": "tcp://forwarder:5555", "pub_socket_address": "tcp://forwarder:5556"}
PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())


@pytest.fixture(scope="module", autouse=True)
def django_settings() -> None:
    if not settings.configured:
        settings.configure()


def found(check: Any, *layers: Any, debug: bool = False) -> list[tuple[str, str, str]]:
    """Return the id, text and hint of each message that a check reports for the layers `a`, `b` and so on."""
    with override_settings(CHANNEL_LAYERS=dict(zip("abc", layers, strict=False)), DEBUG=debug):
        return [(one.id, one.msg, one.hint) for one in check(app_configs=None)]


class OwnLayer(EmbeddedZmqChannelLayer):
    """A layer that an application derives from one of this package."""


OWN = f"{__name__}.OwnLayer"


@pytest.mark.parametrize(
    ("layer", "code", "parts"),
    [
        ({"BACKEND": DEDICATED, "CONFIG": {**ADDRESSES, "capacitty": 1}}, "E001", ["capacitty", "did you mean"]),
        ({"BACKEND": DEDICATED}, "E001", ["pull_socket_address"]),
        ({"BACKEND": DEDICATED, "CONFIG": {**ADDRESSES, "expiry": 0}}, "E001", ["CONFIG['expiry']", "0.001"]),
        ({"BACKEND": DEDICATED, "CONFIG": "tcp://a:1"}, "E001", ["CONFIG must be a dict"]),
        ({"BACKEND": EMBEDDED, "CONFIG": {"serializer": "pickle"}}, "E001", ["pickle", "msgpack"]),
        ({"BACKEND": EMBEDDED, "CONFIG": {"pub_socket_address": "a:1"}}, "E001", ["tcp://"]),
        (
            {"BACKEND": DEDICATED, "CONFIG": {**ADDRESSES, "curve_server_key": "x"}},
            "E001",
            ["curve_server_key", "40 characters"],
        ),
        (
            {
                "BACKEND": EMBEDDED,
                "CONFIG": {
                    "pub_socket_address": "tcp://127.0.0.1:1",
                    "curve_server_key": PUBLIC,
                    "curve_server_secret_key": SECRET,
                    "curve_allowed_keys": ["short"],
                },
            },
            "E001",
            ["curve_allowed_keys"],
        ),
        ({"BACKEND": "channels_zmq.core.EmbeddedChannelLayer"}, "E002", ["does not exist", EMBEDDED]),
        ({"BACKEND": "channels_zmq.DedicatedZmqChannelLayer"}, "E002", ["does not exist", DEDICATED]),
    ],
)
def test_a_mistake_is_found_without_a_connection(layer: Any, code: str, parts: list[str]) -> None:
    """The check reports a mistake in CONFIG or BACKEND with the alias, the wrong part, and a hint with the remedy."""
    ((found_code, text, hint),) = found(check_configuration, layer)
    assert found_code == f"channels_zmq.{code}"
    assert text.startswith("Layer 'a': ")
    for part in parts:
        assert part in f"{text} {hint}"
    assert hint


@pytest.mark.parametrize(
    "layer",
    [
        {"BACKEND": EMBEDDED},
        {"BACKEND": DEDICATED, "CONFIG": ADDRESSES},
        {"BACKEND": OWN, "CONFIG": {"capacity": 5}},
        {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacitty": 1}},
        {"BACKEND": "nowhere.Layer"},
        {},
        None,
    ],
)
def test_valid_layers_and_those_of_others_are_left_alone(layer: Any) -> None:
    """The check accepts valid layers and ignores other backends: Channels reports a BACKEND that does not exist."""
    assert found(check_configuration, layer) == []


def test_a_derived_layer_is_one_of_ours() -> None:
    """The check also validates the CONFIG of a layer that an application derives from one of this package."""
    ((code, text, _),) = found(check_configuration, {"BACKEND": OWN, "CONFIG": {"capacity": 0}})
    assert (code, "capacity" in text) == ("channels_zmq.E001", True)


def test_no_secret_is_shown() -> None:
    """A message names the key of CONFIG and never shows its secret value."""
    secret = f"{SECRET}x"
    layer = {"BACKEND": DEDICATED, "CONFIG": {**ADDRESSES, "curve_server_key": PUBLIC, "curve_secret_key": secret}}
    ((_, text, hint),) = found(check_configuration, layer)
    assert "curve_secret_key" in text
    assert secret not in text + hint


@pytest.mark.parametrize(
    ("first", "second", "warns"),
    [
        ({}, {}, True),
        ({}, {"capacity": 3}, True),
        ({}, {"pub_socket_address": "inproc://other"}, False),
        ({}, {"prefix": "other."}, False),
        ({"prefix": "same."}, {"prefix": "same."}, True),
        ({"pub_socket_address": "inproc://channels"}, {"pub_socket_address": "inproc://channels"}, False),
    ],
)
def test_two_layers_by_default_address_are_one(first: Any, second: Any, warns: bool) -> None:
    """Two layers that share a default address cause a warning; an address that both state explicitly is intended."""
    layers = [{"BACKEND": EMBEDDED, "CONFIG": config} for config in (first, second)]
    codes = [(code, "'a', 'b'" in text) for code, text, _ in found(check_configuration, *layers)]
    assert codes == ([("channels_zmq.W003", True)] if warns else [])


@pytest.mark.parametrize(("debug", "codes"), [(True, []), (False, ["channels_zmq.W005"])])
def test_a_layer_of_one_process_is_worth_a_warning_in_production(debug: bool, codes: list[str]) -> None:
    """A layer for a single process causes a warning with `--deploy`, unless DEBUG is on."""
    layer = {"BACKEND": EMBEDDED}
    assert [code for code, _, _ in found(check_deployment, layer, debug=debug)] == codes


def test_a_missing_file_of_keys_is_named(tmp_path: Path) -> None:
    """A missing file of keys is a warning of `--deploy` only, because it may be mounted later; nothing connects."""
    path = str(tmp_path / "server.public")
    layer = {"BACKEND": DEDICATED, "CONFIG": {**ADDRESSES, "curve_server_key_file": path}}
    assert found(check_configuration, layer) == []
    ((code, text, _),) = found(check_deployment, layer)
    assert (code, path in text) == ("channels_zmq.W006", True)


def test_the_package_imports_neither_djangos_applications_nor_pydantic() -> None:
    """Importing the package loads neither Django's applications, pydantic nor zmq: pytest imports it in every run."""
    program = (
        "import sys, channels_zmq; "
        "assert not {'django.apps', 'pydantic', 'zmq'} & set(sys.modules), sorted(sys.modules); "
        "assert channels_zmq.channel_layers_from_env({})['default']['CONFIG'] == {}"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=20)
