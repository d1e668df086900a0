"""The text of a message that a user types."""

import pytest

from channels_zmq.tools import ToolError
from channels_zmq.tools.messages import parsed, shown


def test_a_json_object_is_a_message() -> None:
    """A JSON object with a type, by which Channels finds the handler, is a valid message."""
    assert parsed('{"type": "chat.message", "n": 1}') == {"type": "chat.message", "n": 1}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"type": chat}', ["line 1 column 10", "chat"]),
        ('{"type": "a",\n "n": }', ["line 2 column 7"]),
        ("", ["line 1 column 1"]),
        ("[1]", ["a JSON object", "[1]"]),
        ('{"text": "hi"}', ['no "type"']),
        ('{"type": 1}', ['no "type"']),
    ],
)
def test_what_is_no_message_is_refused_with_its_place(text: str, parts: list[str]) -> None:
    """Invalid text raises an error with the position of the mistake or the form of a valid message."""
    with pytest.raises(ToolError) as raised:
        parsed(text)
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ({"type": "a.b", "text": "hi"}, '10:00:00  a.b  {"text": "hi"}'),
        ({"type": "a.b"}, "10:00:00  a.b"),
        ({"n": 1}, '10:00:00  (no type)  {"n": 1}'),
    ],
)
def test_a_message_is_one_line_for_people(message: dict[str, object], line: str) -> None:
    """A message is shown on one line, with its time and type first."""
    assert shown(message, "10:00:00") == line
