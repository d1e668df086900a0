"""The definition's CEL rules, evaluated without an API server: the values that each accepts and refuses.

The library implements CEL itself; Kubernetes' quantities are added here, as its documentation describes them.
"""

import re
from decimal import Decimal
from typing import Any

import cel
import pytest

from channels_zmq_operator import crd

PREFIXES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
POWERS = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]|[KMGTPE]i|)|[eE]([+-]?\d+))")


def quantity(text: str) -> Decimal:
    """Return the value of a quantity."""
    match = QUANTITY.fullmatch(text)
    assert match is not None, text
    number, suffix, exponent = match.groups()
    if exponent is not None:
        return Decimal(number) * Decimal(10) ** int(exponent)
    return Decimal(number) * (2 ** POWERS[suffix] if suffix in POWERS else Decimal(10) ** PREFIXES[suffix or ""])


def holds(rule: str, value: Any) -> bool:
    """Return whether a rule accepts a value."""
    context = cel.Context()
    context.add_function("isQuantity", lambda text: QUANTITY.fullmatch(text) is not None)
    context.add_function("quantity", lambda text: text)  # compared as they are written
    context.add_function(
        "compareTo", lambda one, other: int((quantity(one) > quantity(other)) - (quantity(one) < quantity(other)))
    )
    context.add_variable("self", value)
    found = cel.evaluate(rule, context)
    assert isinstance(found, bool), rule
    return found


def refusals(rules: list[dict[str, Any]], value: Any) -> list[str]:
    """Return the messages of the rules that refuse a value."""
    return [rule["message"] for rule in rules if not holds(rule["rule"], value)]


def every_rule() -> list[dict[str, Any]]:
    """Return the rules of the whole definition, at any depth."""
    found: list[dict[str, Any]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.extend(node.get("x-kubernetes-validations", ()))
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(crd.crd())
    return found


@pytest.mark.parametrize("value", ["16Mi", 16777216, "1", "2Gi", 2**31, "16e3", "1.5Mi", "2048Mi", "1k"])
def test_a_size_within_bounds_passes(value: Any) -> None:
    """A size within the bounds is accepted as a number and in every notation of Kubernetes' quantities."""
    assert refusals(crd.SIZE_RULES, value) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("16 Mi", "a size is a number of bytes or a quantity such as 16Mi"),
        ("16MB", "a size is a number of bytes or a quantity such as 16Mi"),
        ("", "a size is a number of bytes or a quantity such as 16Mi"),
        ("0", "a size is from 1 to 2Gi"),
        (0, "a size is from 1 to 2Gi"),
        (-1, "a size is from 1 to 2Gi"),
        ("999m", "a size is from 1 to 2Gi"),
        ("2049Mi", "a size is from 1 to 2Gi"),
        (2**31 + 1, "a size is from 1 to 2Gi"),
        ("1e10", "a size is from 1 to 2Gi"),
    ],
)
def test_another_size_gets_one_message(value: Any, message: str) -> None:
    """Any other size gets one message: an invalid quantity is not also reported as out of bounds."""
    assert refusals(crd.SIZE_RULES, value) == [message]


@pytest.mark.parametrize(
    ("value", "passes"),
    [("1h", True), ("720h", True), ("60m", True), ("3600s", True), ("59m", False), ("1s", False)],
)
def test_keys_live_for_an_hour_at_least(value: str, passes: bool) -> None:
    """A rotation interval below one hour is refused, in every unit."""
    assert (refusals(crd.DURATION_RULES, value) == []) is passes


@pytest.mark.parametrize("name", ["chat", "a", "a-1", "a" * 47])
def test_a_name_that_makes_a_service_passes(name: str) -> None:
    """A name is accepted if its children's longer names are valid and have at most 63 characters."""
    assert refusals(crd.RULES, {"metadata": {"name": name}}) == []


@pytest.mark.parametrize("name", ["a" * 48, "1a", "a.b", "a-", "-a", "A"])
def test_another_name_is_refused(name: str) -> None:
    """Any other name is refused by exactly one rule."""
    assert len(refusals(crd.RULES, {"metadata": {"name": name}})) == 1


def test_these_are_all_rules_that_there_are() -> None:
    """The definition has only the rules that are tested here, so a new one needs a table here."""
    assert {rule["rule"] for rule in every_rule()} == {
        rule["rule"] for rules in (crd.SIZE_RULES, crd.DURATION_RULES, crd.RULES) for rule in rules
    }
