"""`make chaos`: faults under load, exact counts, and a table of the figures.

Prints a progress line for each scenario and, at the end, the table of docs/operations.md and the scenarios that were
left out. The status is 0 if all others met their goals, else 1; then the logs of the processes are kept in a temporary
folder, whose path is printed.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

from report import figures_table, memory_table, pace_line
from scenarios import SCENARIOS, run
from stage import Options

NAMES = [scenario.name for scenario in SCENARIOS]
LONG = "soak"


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags, run the scenarios, and print the figures."""
    flags = _parser().parse_args(arguments)
    options = Options(
        senders=flags.senders,
        receivers=flags.receivers,
        rate=flags.rate,
        row=flags.row,
        job_rate=flags.job_rate,
        loop=flags.loop,
        seed=flags.seed,
        short=flags.short,
        minutes=flags.minutes,
    )
    chosen = [one for one in SCENARIOS if (one.name in flags.only if flags.only else one.name != LONG)]
    folder = Path(tempfile.mkdtemp(prefix="channels-zmq-chaos-"))
    left_out = {one.name: lacks for one in chosen if (lacks := one.missing())}
    chosen = [one for one in chosen if one.name not in left_out]
    outcomes = []
    try:
        for scenario in chosen:
            outcome = run(scenario, options, folder / scenario.name)
            outcomes.append(outcome)
            print(outcome.line(), flush=True)
            if outcome.log:
                print(outcome.log, file=sys.stderr, flush=True)
    finally:
        met = len(outcomes) == len(chosen) and not any(outcome.shortfalls for outcome in outcomes)
        if met:
            shutil.rmtree(folder)
        else:
            print(f"logs are in {folder}", file=sys.stderr, flush=True)
    if flags.json:
        flags.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    print(f"\n{options.caption}\n{pace_line(outcomes)}\n\n{figures_table(outcomes)}")
    for name, lacks in left_out.items():
        print(f"\nLeft out: {name}, which {lacks}")
    if memory := memory_table(outcomes):
        print(f"\n{memory}")
    print()
    for outcome in outcomes:
        if notes := outcome.notes():
            print(f"- {outcome.scenario}: {'; '.join(notes)}")
    return 0 if met else 1


def _parser() -> argparse.ArgumentParser:
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="tests/chaos", description="Faults under load, with exact counts; all scenarios but soak by default."
    )
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help=f"{', '.join(NAMES)}; repeatable"
    )
    parser.add_argument("--short", action="store_true", help="few repetitions, and lax limits for a busy machine")
    parser.add_argument("--senders", type=int, choices=(1, 4), default=defaults.senders, help="processes that send")
    parser.add_argument(
        "--receivers",
        type=int,
        choices=range(2, 9),
        default=defaults.receivers,
        help="processes that receive (default: 2)",
    )
    parser.add_argument(
        "--rate", type=float, default=defaults.rate, help="group and direct messages per second in all (default: 5000)"
    )
    parser.add_argument(
        "--row",
        type=int,
        default=defaults.row,
        help="messages in a row to one topic; a busy sender makes batches of them (default: 1)",
    )
    parser.add_argument("--job-rate", type=float, default=defaults.job_rate, help="jobs per second (default: 200)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default=defaults.loop, help="event loop of clients")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the choice of victims (default: 1)")
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="duration of soak (default: 20)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures to this file")
    return parser


def _end_in_order(*_: object) -> None:
    sys.exit(143)  # which ends the processes of the scenario on the way out


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end_in_order)
    sys.exit(main())
