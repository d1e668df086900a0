"""The settings of an operator process."""

import re

import pytest
from pydantic import ValidationError

from channels_zmq_operator.settings import PREFIX, Settings


def test_defaults_need_no_variable() -> None:
    """All namespaces, one replica, no webhook."""
    settings = Settings()
    assert settings.watch_namespaces == []
    assert not settings.leader_election
    assert settings.webhook_name == ""


@pytest.mark.parametrize(
    "text, expected", [("", []), ("a", ["a"]), ("a,b", ["a", "b"]), (" a , b ,", ["a", "b"]), (",", [])]
)
def test_namespaces_are_separated_by_commas(text: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a Helm value; blanks do not matter."""
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
    """By the name of the setting."""
    monkeypatch.setenv(f"{PREFIX}{name}", value)
    with pytest.raises(ValidationError, match=re.compile(name, re.IGNORECASE)):
        Settings()


def test_every_setting_is_described() -> None:
    """For the table of the documentation."""
    for name, field in Settings.model_fields.items():
        assert (field.description or "").endswith("."), name


def test_settings_do_not_change() -> None:
    """They are read once."""
    with pytest.raises(ValidationError):
        Settings().workers = 2  # type: ignore[misc]
