"""`channels-zmq-forwarder top`: shows the activity of forwarders from their status pages, every second."""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from channels_zmq_forwarder.commands.arguments import seconds, whole
from channels_zmq_forwarder.commands.target import CommandError
from channels_zmq_forwarder.commands.text import counted, duration, printable, table

ADMIN_PORT, STATUS_PORT = 9600, 9601
"""Where a forwarder serves its status page by default."""
LOCAL = (f"127.0.0.1:{ADMIN_PORT}", f"127.0.0.1:{STATUS_PORT}")
PATIENCE = 2.0
"""Seconds that a status page may take."""
MAX_BYTES = 2**20
"""Bytes of the largest status page that is read; one lists 50 names of each kind."""
LISTED = 15
"""Normal channels that `top` lists, those with the most messages first."""
REACH = (
    "the status page is on a loopback address of the forwarder's host unless --status-address sets another one: "
    "run this command there, or use `kubectl port-forward` or `ssh -L` and give HOST:PORT"
)
_WEB = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Uses no proxy, which would take 127.0.0.1 for its own machine."""
HEADS = ("FORWARDER", "STATE", "UP", "CLIENTS", "IN/s", "OUT/s", "MB/s", "GROUPS", "WAITING", "OLDEST", "DROPS")


def main(arguments: Sequence[str]) -> None:
    """Show the page until Ctrl-C.

    Raises:
        CommandError: If no status page can be reached at the start.
    """
    parser = argparse.ArgumentParser(
        prog="channels-zmq-forwarder top",
        description="Show rates, drops, queues and clients of forwarders, every second until Ctrl-C.",
    )
    parser.add_argument(
        "addresses",
        nargs="*",
        metavar="HOST:PORT",
        help=f"address of a status page ({' or '.join(LOCAL)}), see --status-address",
    )
    parser.add_argument("--interval", type=seconds, default=1.0, help="seconds between two updates (1)")
    parser.add_argument("--count", type=whole(0), default=0, help="exit after this number of updates (0: never)")
    given = parser.parse_args(arguments)
    places = [[one.removeprefix("http://").rstrip("/")] for one in given.addresses] or [[*LOCAL]]
    found = pages(places)
    if not any(page.data for page in found):
        raise CommandError("; ".join(printable(page.problem) for page in found) + f": {REACH}")
    show(places, print, interval=given.interval, count=given.count, on_terminal=sys.stdout.isatty())


@dataclass(frozen=True, slots=True)
class Page:
    """A status page, or the reason why it could not be read.

    Attributes:
        address: HOST:PORT.
        data: The page; empty if it could not be read.
        problem: Why it could not be read.
        at: Monotonic seconds when it was read.
    """

    address: str
    data: dict[str, Any]
    problem: str = ""
    at: float = 0.0

    def number(self, key: str) -> float:
        """Return a number of the page; 0 if it has none by that name, as the page of another version may."""
        found = self.data.get(key, 0)
        return found if isinstance(found, int | float) else 0


def read(address: str) -> Page:
    """Read a status page."""
    try:
        with _WEB.open(f"http://{address}/status.json", timeout=PATIENCE) as answer:
            data = json.loads(answer.read(MAX_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return Page(address, {}, f"{address} answers {error.code} {error.reason}")
    except (OSError, ValueError, HTTPException) as error:
        return Page(address, {}, f"{address}: {getattr(error, 'reason', error)}")
    if not isinstance(data, dict) or not {"instance", "frames_in"} <= data.keys():
        return Page(address, {}, f"{address} is not the status page of a forwarder")
    return Page(address, data, at=time.monotonic())


def pages(places: Sequence[Sequence[str]]) -> list[Page]:
    """Read one page for each forwarder, at the first of its places that has one."""
    out = []
    for candidates in places:
        found = [page for page in map(read, candidates) if page.data]
        out.append(found[0] if found else read(candidates[0]))
    return out


def drops(page: Page) -> dict[str, int]:
    """Return how many frames were dropped for each cause that occurred."""
    found = page.data.get("drops")
    if not isinstance(found, dict):
        return {}
    return {printable(str(cause)): count for cause, count in found.items() if isinstance(count, int) and count}


def queues(found: Sequence[Page]) -> list[str]:
    """Return the normal channels of all forwarders, one line each below a heading."""
    total: dict[str, list[int]] = {}
    for page in found:
        for queue in page.data.get("queues", ()):
            numbers = [int(queue.get(key, 0)) for key in ("waiting", "unsettled", "readers")]
            name = printable(str(queue.get("channel")))
            total[name] = [a + b for a, b in zip(numbers, total.get(name, [0, 0, 0]), strict=True)]
    if not total:
        return []
    longest = sorted(total.items(), key=lambda item: -item[1][0])[:LISTED]
    heads = ("NORMAL CHANNEL", "WAITING", "UNSETTLED", "READERS")
    return table([heads, *((name, *(f"{number:,}" for number in numbers)) for name, numbers in longest)])


def drawn(now: Sequence[Page], before: Sequence[Page]) -> list[str]:
    """Return the lines of `top`.

    Args:
        now: The pages.
        before: Those of the last time, from which rates are computed.
    """
    earlier = {page.data.get("instance"): page for page in before if page.data}
    rows = [HEADS, *(_row(page, earlier.get(page.data["instance"])) for page in now if page.data)]
    lines = table(rows) if len(rows) > 1 else []
    lines += [f"not reachable: {printable(page.problem)}" for page in now if page.problem]
    if not any(page.data for page in now):
        lines.append(REACH)
    longest = queues(now)
    return [*lines, "", *longest] if longest else lines


def _row(page: Page, before: Page | None) -> tuple[str, ...]:
    def rate(*keys: str) -> str:
        if before is None or page.at <= before.at:
            return "-"
        value = sum(page.number(key) - before.number(key) for key in keys) / (page.at - before.at)
        return f"{value / 1e6:,.2f}" if "bytes" in keys[0] else f"{value:,.0f}"

    return (
        page.address,
        printable(str(page.data.get("state"))),
        duration(page.number("uptime")),
        f"{page.number('clients'):,.0f}",
        rate("frames_in"),
        rate("frames_out"),
        rate("bytes_in", "bytes_out"),
        f"{page.number('groups'):,.0f}",
        f"{page.number('waiting'):,.0f}",
        duration(page.number("oldest_wait")) if page.number("waiting") else "-",
        f"{sum(drops(page).values()):,}",
    )


CLEAR = "\x1b[H\x1b[J"
"""Moves the cursor to the first place of a terminal and erases what is behind it."""


def show(
    places: Sequence[Sequence[str]],
    write: Callable[[str], Any],
    *,
    interval: float,
    count: int,
    on_terminal: bool,
    pause: Callable[[float], Any] = time.sleep,
) -> None:
    """Show the pages repeatedly: on a terminal in place, elsewhere one below the other.

    Args:
        places: For each forwarder the addresses where its page may be; see `pages`.
        write: Called with each text, without a newline at its end.
        interval: Seconds between two of them.
        count: How many; 0 for no end.
        on_terminal: Whether the texts are written to a terminal.
        pause: Waits for seconds.
    """
    before: list[Page] = []
    shown = 0
    while True:
        now = pages(places)
        lines = drawn(now, before)
        if on_terminal:
            title = f"{counted(len(now), 'forwarder')} at {time.strftime('%H:%M:%S')}, press Ctrl-C to stop"
            write(f"{CLEAR}{title}\n\n" + "\n".join(lines))
        else:
            write(f"{time.strftime('%H:%M:%S')}\n" + "\n".join(lines))
        shown += 1
        if count and shown >= count:
            return
        before = now
        pause(interval)
