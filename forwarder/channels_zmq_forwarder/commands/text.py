"""Text for terminals: tables, durations, progress, and untrusted names, which must not control the terminal."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def printable(text: str) -> str:
    """Return a text with every character escaped that is not printable: the text may come from any client."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def as_json(value: Any) -> str:
    """Return a message as one line of JSON; bytes become their text, with what is not UTF-8 escaped."""
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)  # as JSON escapes it


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


BAR = 30
"""Characters of a whole progress bar."""
DRAW_EVERY = 0.1


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error, if that is a terminal; erase it at the end.

    Args:
        total: Steps to be done.

    Yields:
        A function to call with the number of further steps.
    """
    done, drawn_at, begin = 0, 0.0, time.monotonic()

    def advance(steps: int) -> None:
        nonlocal done, drawn_at
        done += steps
        now = time.monotonic()
        if sys.stderr.isatty() and now >= drawn_at + DRAW_EVERY:
            drawn_at = now
            full = BAR * done // total
            rate = done / max(now - begin, 1e-9)
            bar = "#" * full + "." * (BAR - full)
            print(f"\r[{bar}] {done:,} of {total:,}, {rate:,.0f}/s\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if drawn_at:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
