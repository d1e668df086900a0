"""Rounds: each one measures every peer in turn, in another order each time; a figure is the median over rounds.

Slow changes of the machine (heat, neighbours) thus affect all peers alike. The base of a comparison is measured
directly before or after ours.
"""

import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from .comparison import Comparison, compare
from .crew import CrewError, WrongResultError
from .goals import Verdict, judge
from .measures.base import Bench, Measure
from .measures.cuts import CUTS
from .measures.encryption import ENCRYPTION
from .measures.fan_out import FAN_OUT
from .measures.forwarder import FORWARDER
from .measures.growth import GROWTH
from .measures.jobs import JOBS
from .measures.joins import JOINS
from .measures.large_beside_small import LARGE_BESIDE_SMALL
from .measures.memory import MEMORY
from .measures.round_trip import ROUND_TRIP
from .measures.start import START
from .measures.stream import STREAM
from .measures.sync_send import SYNC_SEND
from .measures.throughput import THROUGHPUT
from .measures.two_forwarders import TWO_FORWARDERS
from .measures.websockets import WEBSOCKETS
from .peers import LEAN
from .servers import servers
from .trees import checked_out

MEASURES = (
    *(ROUND_TRIP, THROUGHPUT, FAN_OUT, SYNC_SEND, JOBS, FORWARDER, TWO_FORWARDERS, ENCRYPTION),
    *(WEBSOCKETS, STREAM, JOINS, MEMORY, LARGE_BESIDE_SMALL, CUTS, START, GROWTH),
)


OURS = ("dedicated", "embedded", "embedded-local")
BASE = "base-"
"""The prefix of the name of a peer of ours that runs the tree of another commit."""


@dataclass(slots=True)
class Result:
    """The results of a run.

    Args:
        figures: measure -> peer -> figure -> round -> value.
        failures: Wrong results and failed processes, each with its measure and peer.
        notes: Known defects of peers that were seen and counted.
    """

    figures: dict[str, dict[str, dict[str, dict[int, float]]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def medians(self, measure: str) -> dict[str, dict[str, float]]:
        """Return the medians over rounds of one measure: peer -> figure -> median."""
        return {
            peer: {name: statistics.median(values.values()) for name, values in figures.items()}
            for peer, figures in self.figures.get(measure, {}).items()
        }

    def verdicts(self, measures: list[Measure]) -> list[Verdict]:
        """Return a verdict on every goal of these measures."""
        return [judge(one.name, goal, self.figures.get(one.name, {})) for one in measures for goal in one.goals]

    def comparisons(self, tolerance: float) -> list[Comparison]:
        """Return every figure of ours beside that of the base."""
        return [
            comparison
            for measure, peers in self.figures.items()
            for layer in OURS
            if layer in peers and BASE + layer in peers
            for comparison in compare(measure, layer, peers[layer], peers[BASE + layer], tolerance)
        ]


@dataclass(frozen=True, slots=True)
class Entry:
    """A peer to measure, and its bench."""

    label: str
    peer: str
    bench: Bench


def run(
    measures: list[Measure], rounds: int | None, loop: str, quick: bool, skip: set[str], base: str | None = None
) -> Result:
    """Run the measures, and return their results.

    Args:
        measures: The measures to run.
        rounds: The number of rounds; the default of each measure if None.
        loop: `asyncio` or `uvloop`, for every process of every layer.
        quick: Small sizes, whose figures mean nothing.
        skip: Peers to leave out.
        base: A commit whose library and forwarder run beside ours.

    Raises:
        ServerError: If a server does not start, or if the commit cannot be run.
    """
    result = Result()
    wanted = {peer.removesuffix(LEAN) for measure in measures for peer in measure.peers if peer not in skip}
    with ExitStack() as stack:
        bench = Bench(stack.enter_context(servers(wanted)), loop, quick, result.notes)
        base_bench = None
        if base is not None:
            tree = stack.enter_context(checked_out(base))
            addresses = stack.enter_context(servers(wanted & {"dedicated"}, tree.environment()))
            base_bench = Bench(addresses, loop, quick, result.notes, tree.path)
        for measure in measures:
            pairs = [_entries(peer, bench, base_bench) for peer in measure.peers if peer not in skip]
            for turn in range(measure.rounds(rounds)):
                for entries in _order(pairs, turn):
                    _measure_once(measure, entries, turn, result)
    return result


def _entries(peer: str, bench: Bench, base: Bench | None) -> list[Entry]:
    """Return a peer, and that of the base of the same kind, to be measured directly after each other."""
    entries = [Entry(peer, peer, bench)]
    if base is not None and peer in OURS:
        entries.append(Entry(BASE + peer, peer, base))
    return entries


def _order(pairs: list[list[Entry]], turn: int) -> list[list[Entry]]:
    """Return the order of a round: each begins with another peer, and every other one has the base first."""
    start = turn % len(pairs) if pairs else 0
    return [pair[::-1] if turn % 2 else pair for pair in pairs[start:] + pairs[:start]]


def _measure_once(measure: Measure, entries: list[Entry], turn: int, result: Result) -> None:
    """Measure a peer, and that of the base if there is one: side by side if the measure can, else in this order."""
    for group in [entries] if measure.in_turns else [[entry] for entry in entries]:
        began, labels = time.monotonic(), " and ".join(entry.label for entry in group)
        try:
            figures = measure.measured([entry.bench for entry in group], group[0].peer)
        except (WrongResultError, CrewError) as failure:
            kind = "WRONG" if isinstance(failure, WrongResultError) else "FAILED"
            result.failures.append(f"{kind}: {measure.name}, {labels}, round {turn + 1}: {failure}")
            _say(result.failures[-1])
            continue
        for entry, values in zip(group, figures, strict=True):
            taken = result.figures.setdefault(measure.name, {}).setdefault(entry.label, {})
            for name, value in values.items():
                taken.setdefault(name, {})[turn] = value
        _say(f"{measure.name}, {labels}, round {turn + 1}: {time.monotonic() - began:.1f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
