"""Text for terminals: tables, durations, and names of strangers that must not control the terminal."""

import json
from collections.abc import Sequence
from typing import Any


def printable(text: str) -> str:
    """Return a text with every character escaped that is not printable: it may come from anybody."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def as_json(value: Any) -> str:
    """Return a message as one line of JSON; bytes become their text, with what is not UTF-8 escaped."""
    return printable(json.dumps(value, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def duration(seconds: float) -> str:
    """Return a duration as people read it: `0.07 ms`, `3.2 s`, `3:12:01`, `4 d 3:12:01`."""
    if seconds < 1:
        return f"{seconds * 1000:.2f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hours}:{minutes:02}:{rest:02}"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, with an `s` unless it is one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns are aligned; the first column to the left, others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
