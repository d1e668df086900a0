"""The settings of an operator process."""

import re

import pytest
from pydantic import ValidationError

from channels_zmq_operator.models import Limits
from channels_zmq_operator.render import Monitors
from channels_zmq_operator.settings import PREFIX, Settings


def test_defaults_need_no_variable() -> None:
    """Without any variable, the operator watches all namespaces as one replica and without a webhook."""
    settings = Settings()
    assert settings.watch_namespaces == []
    assert not settings.leader_election
    assert settings.webhook_name == ""


@pytest.mark.parametrize(
    "text, expected", [("", []), ("a", ["a"]), ("a,b", ["a", "b"]), (" a , b ,", ["a", "b"]), (",", [])]
)
def test_namespaces_are_separated_by_commas(text: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces are separated by commas as in a Helm value, and blanks are ignored."""
    monkeypatch.setenv(f"{PREFIX}WATCH_NAMESPACES", text)
    assert Settings().watch_namespaces == expected


@pytest.mark.parametrize(
    "name, value",
    [
        ("WEBHOOK_PORT", "0"),
        ("ADMIN_PORT", "65536"),
        ("RESYNC", "0"),
        ("WORKERS", "0"),
        ("CERTIFICATES", "operator"),
        ("LOG_FORMAT", "xml"),
        ("LEADER_ELECTION", "perhaps"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid value is refused with an error that names its setting."""
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(ValidationError, match=re.compile(name, re.IGNORECASE)):
        Settings()


@pytest.mark.parametrize(
    "namespaces, restrict, limited",
    [
        ("", "Auto", True),
        ("a", "Auto", False),
        ("a", "Always", True),
        ("", "Never", False),
    ],
)
def test_layers_are_restricted_where_the_operator_watches_all_namespaces(
    namespaces: str, restrict: str, limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator of all namespaces allows layers no choice by default, unless the setting determines otherwise."""
    monkeypatch.setenv(f"{PREFIX}WATCH_NAMESPACES", namespaces)
    monkeypatch.setenv(f"{PREFIX}RESTRICT_LAYERS", restrict)
    assert Settings().limits == (Limits() if limited else None)


def test_what_layers_may_choose_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allowed prefixes are separated by commas; an empty one would allow everything, and is ignored."""
    monkeypatch.setenv(f"{PREFIX}IMAGE_OVERRIDES", "true")
    monkeypatch.setenv(f"{PREFIX}ALLOWED_LABELS", "a/, b.example/,")
    monkeypatch.setenv(f"{PREFIX}ALLOWED_ANNOTATIONS", "")
    assert Settings().limits == Limits(image_overrides=True, labels=("a/", "b.example/"), annotations=())


def test_service_monitors_of_forwarders_look_as_the_chart_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels and the interval of ServiceMonitors are settings.

    A label's value may be empty, and contain an equals sign.
    """
    assert Settings().choices.monitors == Monitors({}, "30s")
    monkeypatch.setenv(f"{PREFIX}SERVICE_MONITOR_LABELS", "release=prometheus, a/b=,c=d=e")
    monkeypatch.setenv(f"{PREFIX}SERVICE_MONITOR_INTERVAL", "7s")
    assert Settings().choices.monitors == Monitors({"release": "prometheus", "a/b": "", "c": "d=e"}, "7s")


@pytest.mark.parametrize("labels", ["release", "=prometheus", "a=b,c"])
def test_what_is_no_label_is_refused(labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid label is refused with an error that shows a valid one."""
    monkeypatch.setenv(f"{PREFIX}SERVICE_MONITOR_LABELS", labels)
    with pytest.raises(ValidationError, match="is not a label such as release=prometheus"):
        Settings()


def test_every_setting_is_described() -> None:
    """Every setting has a description, for the table of the documentation."""
    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith("."), name


def test_settings_do_not_change() -> None:
    """Settings are frozen, since they are read once."""
    with pytest.raises(ValidationError):
        Settings().workers = 2  # type: ignore[misc]
