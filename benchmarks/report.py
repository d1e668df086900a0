"""The tables for people, and the JSON file for programs."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import zmq

from .comparison import Comparison, more_is_better
from .goals import Verdict
from .measures.base import Measure
from .run import Result

PACKAGES = (
    *("channels-zmq", "channels-zmq-forwarder", "channels", "channels_redis", "redis", "hiredis", "pyzmq", "uvloop"),
    *("asgiref", "Django", "ormsgpack", "msgspec", "msgpack"),
)


def machine() -> dict[str, object]:
    """Return the facts on which the figures depend, without anything that identifies the machine."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        "redis-server": _redis_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def goals_table(verdicts: list[Verdict], titles: dict[str, str]) -> str:
    """Return a row for each goal: measure, ours, the peer's figure, the ratio and its extremes, goal and result."""
    rows = [("measure", "figure", "ours", "peer", "ratio", "goal", "")]
    for one in verdicts:
        goal = one.goal
        state = {True: "met", False: "MISSED", None: "not measured"}[one.met]
        ratio = "-" if one.ratio is None else f"{one.ratio:.2f} ({one.low:.2f}-{one.high:.2f})"
        rows.append(
            (
                titles[one.measure],
                goal.figure,
                f"{goal.ours} {_number(one.ours)}",
                f"{goal.peer} {_number(one.peer)}",
                ratio,
                f"{goal.relation} {goal.factor:.2f}",
                state,
            )
        )
    return table(rows)


def figures_table(measure: Measure, medians: dict[str, dict[str, float]]) -> str:
    """Return all medians of one measure, a row for each figure and a column for each peer."""
    peers = list(medians)
    names = list(dict.fromkeys(name for peer in peers for name in medians[peer]))
    rows = [(measure.name, *peers)]
    rows += [(name, *(_number(medians[peer].get(name)) for peer in peers)) for name in names]
    return table(rows)


def comparison_table(comparisons: list[Comparison]) -> str:
    """Return a row for each figure: ours, the base's, their ratio with its interval, the limit, a verdict."""
    rows = [("measure", "figure", "layer", "ours", "base", "ratio", "95 %", "goal", "")]
    return table(rows + [_compared(one) for one in comparisons])


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return columns of equal width; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join((lines[0], "  ".join("-" * width for width in widths), *lines[1:]))


def write(
    path: Path,
    result: Result,
    measures: list[Measure],
    settings: dict[str, object],
    comparisons: list[Comparison],
) -> None:
    """Write everything as JSON: the machine, medians and single rounds, the goals, the comparisons."""
    figures = {
        measure.name: {
            peer: {
                name: {"median": median, "rounds": list(result.figures[measure.name][peer][name].values())}
                for name, median in medians.items()
            }
            for peer, medians in result.medians(measure.name).items()
        }
        for measure in measures
    }
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": settings,
        "titles": {measure.name: measure.title for measure in measures},
        "measures": figures,
        "goals": [asdict(one) for one in result.verdicts(measures)],
        "comparisons": [asdict(one) for one in comparisons],
        "notes": result.notes,
        "failures": result.failures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def default_path() -> Path:
    """Return `results/<date>.json` beside this module; git ignores that folder."""
    return Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"


def _compared(one: Comparison) -> tuple[str, ...]:
    relation = ">=" if more_is_better(one.figure) else "<="
    verdict = ("met" if one.met else "MISSED") + ("" if one.clear else ", unclear")
    ratio, spread = f"{one.ratio:.3f}", f"{one.low:.3f}-{one.high:.3f}"
    figures = _number(one.ours), _number(one.base)
    return one.measure, one.figure, one.layer, *figures, ratio, spread, f"{relation} {one.limit:.3f}", verdict


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _redis_version() -> str | None:
    program = shutil.which("redis-server")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return next((word[2:] for word in said.split() if word.startswith("v=")), None)
