"""System checks of `CHANNEL_LAYERS`: `manage.py check`, and with a network `manage.py check --deploy`.

The tag of all is `channels_zmq`.

E001, E002    a CONFIG, or a BACKEND, that cannot be used; found without a connection
W003          aliases that are accidentally one layer
E004, W004    a forwarder that refuses this process, or that cannot be reached (only with --deploy)
W005          a layer that reaches only its own process, without DEBUG (only with --deploy)
W006          a file of keys that does not exist (only with --deploy)
"""

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.core import checks as django

from channels_zmq.tools.layers import Entry, Fault, configured, entries, is_alone
from channels_zmq.tools.probe import Finding, probe

TAG = "channels_zmq"
PATIENCE = 3.0
"""Seconds that reaching all forwarders of a layer may take."""
_ERRORS = {"CONFIG": "E001", "BACKEND": "E002"}


def register() -> None:
    """Register the checks with Django."""
    django.register(check_configuration, TAG)
    django.register(check_deployment, TAG, deploy=True)


def check_configuration(**given: Any) -> list[django.CheckMessage]:
    """Find mistakes in CONFIG without a connection."""
    found = entries(configured())
    return [*(_fault(one.fault) for one in found if one.fault), *_shared(found)]


def check_deployment(**given: Any) -> list[django.CheckMessage]:
    """Reach the forwarders, and find settings that are right for development only."""
    out: list[django.CheckMessage] = []
    for entry in entries(configured()):
        if entry.missing_file:
            hint = "It may be mounted later; no connection is made until it exists."
            out.append(_warning("W006", f"Layer {entry.alias!r}: {entry.missing_file} does not exist.", hint))
        elif entry.layer is not None and is_alone(entry.layer):
            out += _alone(entry.alias, entry.layer.address)
        elif entry.layer is not None:
            # An embedded address without a listener is not a fault: the producer binds with its first message.
            findings = [one for one in probe(entry.layer, PATIENCE) if one.pull or one.listens or not one.is_resolved]
            out += [_finding(entry.alias, one) for one in findings if one.problem]
    return out


def _fault(fault: Fault) -> django.CheckMessage:
    text = f"Layer {fault.alias!r}: {fault.problem}"
    return django.Error(text if text.endswith("?") else f"{text}.", fault.advice, id=f"{TAG}.{_ERRORS[fault.code]}")


def _shared(found: Iterable[Entry]) -> list[django.CheckMessage]:
    """Warn of aliases that share the default address, and so receive each other's messages."""
    alike: dict[str, list[str]] = {}
    for entry in found:
        if entry.layer is not None and "pub_socket_address" not in entry.layer.config.model_fields_set:
            alike.setdefault(entry.layer.config.prefix, []).append(entry.alias)
    return [
        _warning(
            "W003",
            f"Layers {', '.join(map(repr, aliases))} have no pub_socket_address, so they share one address: a group of "
            "one "
            "gets the messages for groups of the same name in the others.",
            "Give each a separate address, such as inproc://other, or a prefix.",
        )
        for aliases in alike.values()
        if len(aliases) > 1
    ]


def _alone(alias: str, address: str) -> list[django.CheckMessage]:
    if settings.DEBUG:
        return []
    text = (
        f"Layer {alias!r}: an embedded layer at {address} reaches only its own process. With several processes, "
        "users of one do not get the messages of the others."
    )
    hint = "Use DedicatedZmqChannelLayer and a forwarder. With one process, add channels_zmq.W005 to "
    return [_warning("W005", text, f"{hint}SILENCED_SYSTEM_CHECKS.")]


def _finding(alias: str, finding: Finding) -> django.CheckMessage:
    text = f"Layer {alias!r}: {finding.problem}."
    if finding.is_lasting:
        return django.Error(text, finding.advice, id=f"{TAG}.E004")
    return _warning("W004", text, finding.advice)


def _warning(code: str, text: str, hint: str) -> django.CheckMessage:
    return django.Warning(text, hint, id=f"{TAG}.{code}")
