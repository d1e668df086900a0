"""`python -m benchmarks`: measure our layers beside their peers and print the ratios.

`--base COMMIT` also measures the library and the forwarder of that commit, in the same rounds, and compares every
figure.

`python -m benchmarks serializers` compares the msgpack libraries instead. The status is 0 if all received messages were
right, also when goals were missed; 1 if a receiver found a wrong count, order or content, or a process failed; 2 for a
wrong flag or a server that did not start.
"""

import argparse
import signal
import sys
from pathlib import Path

from . import serializers
from .report import comparison_table, default_path, figures_table, goals_table, write
from .run import MEASURES, OURS, run
from .servers import ServerError


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags, measure, print, and write the JSON file."""
    flags = _parser().parse_args(arguments)
    if flags.what == "serializers":
        print(serializers.report(quick=flags.quick))
        return 0
    measures = [one for one in MEASURES if not flags.only or one.name in flags.only]
    rounds = 1 if flags.quick and flags.rounds is None else flags.rounds
    settings = {"rounds": rounds, "loop": flags.loop, "quick": flags.quick, "base": flags.base}
    skip = set(flags.skip)
    if flags.no_peers:
        skip |= {peer for one in measures for peer in one.peers} - set(OURS)
    try:
        result = run(measures, rounds, flags.loop, flags.quick, skip, flags.base)
    except ServerError as failure:
        print(failure, file=sys.stderr)
        return 2
    path = flags.json or default_path()
    comparisons = result.comparisons(flags.tolerance)
    write(path, result, measures, settings, comparisons)
    for measure in measures:
        print(f"\n{measure.title}, medians of {measure.rounds(rounds)} rounds\n")
        print(figures_table(measure, result.medians(measure.name)))
    if not flags.no_peers:
        print("\ngoals: ratio = ours / peer\n")
        print(goals_table(result.verdicts(measures), {one.name: one.title for one in measures}))
    if flags.base:
        print(f"\nours beside {flags.base}: no figure more than {flags.tolerance:g} % worse; ratio = ours / base, the")
        print("median of the ratios of the rounds (unclear: its interval holds the limit, or too few --rounds)\n")
        print(comparison_table(comparisons))
    print(*[f"\nnote: {note}" for note in result.notes], *[f"\n{failure}" for failure in result.failures], sep="")
    print(f"\nwritten to {path}")
    return 1 if result.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios against peers, in one run.")
    parser.add_argument("what", nargs="?", choices=("layers", "serializers"), default="layers")
    parser.add_argument(
        "--rounds", type=int, help="how often each peer is measured (default: 5, or fewer if it is long)"
    )
    names = [one.name for one in MEASURES]
    parser.add_argument("--only", action="append", choices=names, help="measure only this (repeatable)")
    parser.add_argument("--skip", action="append", default=[], metavar="PEER", help="leave this peer out (repeatable)")
    parser.add_argument("--no-peers", action="store_true", help="measure only our layers, and those of --base")
    parser.add_argument("--base", metavar="COMMIT", help="also measure the library and the forwarder of this commit")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=3.0,
        metavar="PERCENT",
        help="by how much a figure may be worse than that of --base (default: 3)",
    )
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="event loop of all layers")
    parser.add_argument("--quick", action="store_true", help="small sizes: a smoke test, its figures mean nothing")
    parser.add_argument(
        "--json", type=Path, help="where to write the figures (default: benchmarks/results/<date>.json)"
    )
    return parser


def _end_in_order(*_: object) -> None:
    sys.exit(143)  # so that the servers and processes of the run are ended on the way out


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end_in_order)
    sys.exit(main())
