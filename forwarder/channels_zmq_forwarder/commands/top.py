"""`channels-zmq-forwarder top`: what forwarders are doing, on a terminal, renewed every second."""

import argparse
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from channels_zmq_forwarder.commands.target import CommandError

URLS = ("http://127.0.0.1:9600", "http://127.0.0.1:9601")
"""Where the status page is by default, where all can reach health and metrics, and where only this machine can."""
PIPE_WIDTH = 200
"""Columns of the page where there is no terminal."""
Status = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Show the page until Ctrl-C, or once where there is no terminal.

    Raises:
        CommandError: If a status page cannot be reached, or `rich` is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="channels-zmq-forwarder top",
        description="Show rates, drops, queues and clients of forwarders, renewed until Ctrl-C. In a pipe it prints "
        "one page, with the rates of one period.",
    )
    parser.add_argument(
        "urls", nargs="*", metavar="url", help=f"of status pages, see --status-address ({' or '.join(URLS)})"
    )
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks (1)")
    given = parser.parse_args(arguments)
    show([*given.urls] or [_default()], given.every)


def show(urls: Sequence[str], every: float) -> None:
    """Show the page of these forwarders until Ctrl-C, or once where there is no terminal.

    Raises:
        CommandError: If one cannot be reached at the start, or `rich` is not installed.
    """
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise CommandError("top needs the package rich, of the extra channels-zmq-forwarder[cli]") from None
    before, console = {url: _status(url) for url in urls}, Console()
    if not console.is_terminal:
        time.sleep(every)
        Console(width=PIPE_WIDTH).print(page(before, {url: _status(url) for url in urls}, every))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            begin = time.monotonic()
            time.sleep(every)
            now = {url: _status_or_problem(url) for url in urls}
            live.update(page(before, now, time.monotonic() - begin), refresh=True)
            before = now


def page(before: dict[str, Status], now: dict[str, Status], seconds: float) -> Any:
    """Return what `rich` shows: a row for each forwarder, and the longest queues of all.

    Args:
        before: The status by address, or `{"problem": ...}`.
        now: The same, a little later.
        seconds: How much later.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    forwarders = Table(title="channels-zmq forwarders", box=SIMPLE_HEAD)
    for name in ("forwarder", "state", "clients", "groups", "in/s", "out/s", "drops/s", "waiting", "oldest"):
        forwarders.add_column(name, justify="left" if name in ("forwarder", "state") else "right", no_wrap=True)
    queues: dict[str, list[int]] = {}
    for url, status in now.items():
        if "problem" in status:
            forwarders.add_row(url, status["problem"])
            continue
        forwarders.add_row(
            url,
            status["state"] if status["refuses"] == "nothing" else f"{status['state']}, refuses {status['refuses']}",
            f"{status['clients']:,}",
            f"{status['groups']:,}",
            _rate(before[url], status, "frames_in", seconds),
            _rate(before[url], status, "frames_out", seconds),
            _rate(before[url], status, "drops", seconds),
            f"{status['waiting']:,}",
            f"{status['oldest_wait']:.1f} s",
        )
        for queue in status["queues"]:
            sums = queues.setdefault(queue["channel"], [0, 0, 0])
            for index, key in enumerate(("waiting", "unsettled", "readers")):
                sums[index] += queue[key]
    longest = Table(title="longest queues of normal channels", box=SIMPLE_HEAD)
    for name in ("channel", "waiting", "handed out", "readers"):
        longest.add_column(name, justify="left" if name == "channel" else "right", no_wrap=True)
    for channel, sums in sorted(queues.items(), key=lambda item: -item[1][0])[:10]:
        longest.add_row(channel, *(f"{count:,}" for count in sums))
    return Group(forwarders, longest) if queues else forwarders


def _rate(before: Status, now: Status, key: str, seconds: float) -> str:
    if before.get("instance") != now["instance"]:
        return ""  # it was not there, or another one was
    first, last = (sum(one[key].values()) if isinstance(one[key], dict) else one[key] for one in (before, now))
    return f"{(last - first) / seconds:,.0f}"


def _default() -> str:
    for url in URLS:
        if "problem" not in _status_or_problem(url):
            return url
    raise CommandError(
        f"no status page at {' or '.join(URLS)}: name its address (--status-address of the forwarder), "
        "or run this where the forwarder runs"
    )


def _status_or_problem(url: str) -> Status:
    try:
        return _status(url)
    except CommandError as error:
        return {"problem": str(error).removeprefix(f"{url}: ")}


def _status(url: str) -> Status:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/status.json", timeout=5) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise CommandError(f"{url}: {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"{url}: {getattr(error, 'reason', error)}") from None
