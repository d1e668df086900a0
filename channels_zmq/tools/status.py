"""`manage.py channels_zmq stats` and `top`: what forwarders tell of themselves.

A forwarder answers every client by the wire protocol (`probe`); more is in its status page, which is on a loopback
address unless its `--status-address` is another one.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.tools import ToolError
from channels_zmq.tools.layers import Layer
from channels_zmq.tools.probe import Finding, probe
from channels_zmq.tools.text import counted, duration, printable, table
from channels_zmq_forwarder.sockets import host_of, is_local

ADMIN_PORT, STATUS_PORT = 9600, 9601
"""Where a forwarder has its status page if nobody gives it an address."""
PATIENCE = 2.0
"""Seconds that a status page may take."""
MAX_BYTES = 2**20
"""Bytes of the largest status page that is read; one lists 50 names of each kind."""
LISTED = 15
"""Normal channels that `top` lists, those with the most messages first."""
REACH = (
    "it is on a loopback address of the forwarder's machine unless its --status-address is another one: run this "
    "there, or use `kubectl port-forward` or `ssh -L`, and give --status-address HOST:PORT here"
)
HEADS = ("FORWARDER", "STATE", "UP", "CLIENTS", "IN/s", "OUT/s", "MB/s", "GROUPS", "WAITING", "OLDEST", "DROPS")


@dataclass(frozen=True, slots=True)
class Page:
    """A status page, or why there is none.

    Attributes:
        address: HOST:PORT.
        data: The page; empty if it could not be read.
        problem: Why.
        at: Monotonic seconds when it was read.
    """

    address: str
    data: dict[str, Any]
    problem: str = ""
    at: float = 0.0

    def number(self, key: str) -> float:
        """Return a number of the page; 0 if it has none by that name, as that of another version."""
        found = self.data.get(key, 0)
        return found if isinstance(found, int | float) else 0


def read(address: str) -> Page:
    """Read a status page."""
    try:
        with urllib.request.urlopen(f"http://{address}/status.json", timeout=PATIENCE) as answer:
            data = json.loads(answer.read(MAX_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return Page(address, {}, f"{address} answers {error.code} {error.reason}")
    except (OSError, ValueError, HTTPException) as error:
        return Page(address, {}, f"{address}: {getattr(error, 'reason', error)}")
    if not isinstance(data, dict) or "frames_in" not in data:
        return Page(address, {}, f"{address} is not the status page of a forwarder")
    return Page(address, data, at=time.monotonic())


def addresses(layer: Layer, given: Sequence[str]) -> list[list[str]]:
    """Return where the status page of each forwarder may be: one list for each, the likeliest first.

    Raises:
        ToolError: If the layer has no forwarder.
    """
    if given:
        return [[one.removeprefix("http://").rstrip("/")] for one in given]
    if not isinstance(layer, DedicatedZmqChannelLayer):
        raise ToolError(
            "an embedded layer has no forwarder and so no status page; `layer.stats()` and the metrics of the process "
            "that uses it have its counts"
        )
    return [_guessed(pull) for pull, _ in layer.config.forwarders]


def _guessed(pull: str) -> list[str]:
    if is_local(pull):
        return [f"127.0.0.1:{ADMIN_PORT}", f"127.0.0.1:{STATUS_PORT}"]
    return [f"{host_of(pull)}:{ADMIN_PORT}"]


def pages(places: Sequence[Sequence[str]]) -> list[Page]:
    """Read one page for each forwarder, at the first of its places that has one."""
    out = []
    for candidates in places:
        found = [page for page in map(read, candidates) if page.data]
        out.append(found[0] if found else read(candidates[0]))
    return out


def stats(layer: Layer, given: Sequence[str], timeout: float) -> Iterator[str]:
    """Yield lines on each forwarder of a layer.

    Raises:
        ToolError: If the layer has no forwarder.
    """
    places = addresses(layer, given)
    findings = probe(layer, timeout)
    found = pages(places)
    by_instance = {page.data.get("instance"): page for page in found if page.data}
    for finding in findings:
        yield finding.where
        if finding.problem:
            yield f"  {finding.problem}. {finding.advice}"
        else:
            speed = duration(finding.round_trip)
            yield f"  {finding.state}, {counted(finding.clients, 'client')}, round trip {speed}"
        page = by_instance.pop(finding.instance, None)
        yield from (f"  {line}" for line in (_details(page) if page is not None else _missing(found, finding)))


def _missing(found: Sequence[Page], finding: Finding) -> list[str]:
    """Return why there is nothing more to be said about a forwarder."""
    if finding.problem:
        return []
    tried = "; ".join(page.problem or f"{page.address} is that of another forwarder" for page in found)
    return [f"no status page ({printable(tried)}):", f"  {REACH}"]


def _details(page: Page) -> list[str]:
    data = page.data
    frames = f"{page.number('frames_in'):,.0f} frames in, {page.number('frames_out'):,.0f} out"
    lines = [f"up {duration(page.number('uptime'))}, version {printable(str(data.get('version')))}, {frames}"]
    lines += [f"{counted(int(page.number('groups')), 'group')}, {counted(int(page.number('queue_count')), 'queue')}"]
    if waiting := int(page.number("waiting")):
        lines.append(f"waiting: {counted(waiting, 'message')}, the oldest for {duration(page.number('oldest_wait'))}")
    lines += [f"  {line}" for line in _queues([page])]
    if drops := _drops(page):
        lines.append("drops: " + ", ".join(f"{cause} {count:,}" for cause, count in drops.items()))
    return lines


def _drops(page: Page) -> dict[str, int]:
    drops = page.data.get("drops")
    if not isinstance(drops, dict):
        return {}
    return {printable(str(cause)): count for cause, count in drops.items() if isinstance(count, int) and count}


def _queues(found: Sequence[Page]) -> list[str]:
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
    queues = _queues(now)
    return [*lines, "", *queues] if queues else lines


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
        f"{sum(_drops(page).values()):,}",
    )


CLEAR = "\x1b[H\x1b[J"
"""Moves the cursor to the first place of a terminal and erases what is behind it."""


def top(
    places: Sequence[Sequence[str]],
    write: Callable[[str], Any],
    *,
    interval: float,
    count: int,
    on_terminal: bool,
    pause: Callable[[float], Any] = time.sleep,
) -> None:
    """Show the pages again and again: on a terminal in place, elsewhere one below the other.

    Args:
        places: See `addresses`.
        write: Called with each text, whose last line has no end.
        interval: Seconds between two of them.
        count: How many; 0 for no end.
        on_terminal: Whether the texts go to a terminal.
        pause: Waits for seconds.
    """
    before: list[Page] = []
    shown = 0
    while True:
        now = pages(places)
        lines = drawn(now, before)
        if on_terminal:
            title = f"{counted(len(now), 'forwarder')} at {time.strftime('%H:%M:%S')}, Ctrl-C ends it"
            write(f"{CLEAR}{title}\n\n" + "\n".join(lines))
        else:
            write(f"{time.strftime('%H:%M:%S')}\n" + "\n".join(lines))
        shown += 1
        if count and shown >= count:
            return
        before = now
        pause(interval)
