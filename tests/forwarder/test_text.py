"""Text for terminals: durations, names, messages and tables."""

import json
from typing import Any

import pytest

from channels_zmq_forwarder.commands.text import as_json, counted, duration, printable, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00007, "0.07 ms"), (0.5, "500.00 ms"), (3.21, "3.2 s"), (61, "0:01:01"), (90061, "1 d 1:01:01")],
)
def test_durations_have_a_unit_that_fits(seconds: float, text: str) -> None:
    """A duration has a suitable unit, from a round trip to an uptime."""
    assert duration(seconds) == text


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb", "a\u009b2Jb", "a\u202eb", "\x07", "a\u00a0b", "\ud800"])
def test_no_name_controls_the_terminal(text: str) -> None:
    """A name is printable, alone and in a message, since any client that may connect can choose one."""
    assert printable(text).isprintable()
    shown = as_json({text: [text, text.encode(errors="replace")]})
    assert shown.isprintable()
    assert json.loads(shown)[text][0] == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"type": "é"}, '{"type": "é"}'),
        ({"b": b"hi"}, '{"b": "hi"}'),
        ({"b": b"\xff"}, '{"b": "\\\\xff"}'),
    ],
)
def test_a_message_is_one_line_of_json(value: Any, text: str) -> None:
    """A message is printed as one line of JSON, with bytes as text."""
    assert as_json(value) == text


def test_columns_are_aligned() -> None:
    """The first column is aligned to the left, and numbers to the right."""
    assert table([("NAME", "N"), ("a", "10"), ("long name", "1")]) == [
        "NAME        N",
        "a          10",
        "long name   1",
    ]


@pytest.mark.parametrize(("number", "text"), [(0, "0 clients"), (1, "1 client"), (2000, "2,000 clients")])
def test_a_noun_agrees_with_its_number(number: int, text: str) -> None:
    """A noun is singular after 1 and plural after every other number."""
    assert counted(number, "client") == text
