"""Rounds: every round measures every peer in turn, in another order each time; a figure is the median over rounds.

Slow changes of the machine (heat, neighbours) thus meet all peers alike.
"""

import statistics
import sys
import time
from dataclasses import dataclass, field

from .crew import CrewError, WrongResultError
from .goals import Verdict, judge
from .measures.base import Bench, Measure
from .measures.fan_out import FAN_OUT
from .measures.forwarder import FORWARDER
from .measures.jobs import JOBS
from .measures.round_trip import ROUND_TRIP
from .measures.sync_send import SYNC_SEND
from .measures.throughput import THROUGHPUT
from .servers import servers

MEASURES = (ROUND_TRIP, THROUGHPUT, FAN_OUT, SYNC_SEND, JOBS, FORWARDER)


@dataclass(slots=True)
class Result:
    """All that a run found.

    Args:
        figures: measure -> peer -> figure -> one value a round.
        failures: What was wrong, each with the measure and the peer that it names.
        notes: Known defects of peers that were seen and counted.
    """

    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def medians(self, measure: str) -> dict[str, dict[str, float]]:
        """Of one measure: peer -> figure -> median over rounds."""
        return {
            peer: {name: statistics.median(values) for name, values in figures.items()}
            for peer, figures in self.figures.get(measure, {}).items()
        }

    def verdicts(self, measures: list[Measure]) -> list[Verdict]:
        """Every goal of these measures, judged."""
        return [judge(one.name, goal, self.medians(one.name)) for one in measures for goal in one.goals]


def run(measures: list[Measure], rounds: int, loop: str, quick: bool, skip: set[str]) -> Result:
    """Measure.

    Args:
        measures: What to measure.
        rounds: How often.
        loop: `asyncio` or `uvloop`, for every process of every layer.
        quick: Small sizes, whose figures mean nothing.
        skip: Peers to leave out.
    """
    result = Result()
    wanted = {peer for measure in measures for peer in measure.peers} - skip
    with servers(wanted) as addresses:
        bench = Bench(addresses, loop, quick, result.notes)
        for measure in measures:
            peers = [peer for peer in measure.peers if peer not in skip]
            for turn in range(rounds):
                start = turn % len(peers)
                for peer in peers[start:] + peers[:start]:
                    _measure_once(measure, peer, turn, bench, result)
    return result


def _measure_once(measure: Measure, peer: str, turn: int, bench: Bench, result: Result) -> None:
    began = time.monotonic()
    try:
        figures = measure.run(bench, peer)
    except (WrongResultError, CrewError) as failure:
        kind = "WRONG" if isinstance(failure, WrongResultError) else "FAILED"
        result.failures.append(f"{kind}: {measure.name}, {peer}, round {turn + 1}: {failure}")
        _say(result.failures[-1])
        return
    for name, value in figures.items():
        result.figures.setdefault(measure.name, {}).setdefault(peer, {}).setdefault(name, []).append(value)
    _say(f"{measure.name}, {peer}, round {turn + 1}: {time.monotonic() - began:.1f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
