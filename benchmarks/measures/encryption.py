"""The cost of encryption: the dedicated layer with a key beside the one without, in turns.

Figures: those of `throughput` and of `round_trip`, where each message is sealed and opened once, and is 200 bytes.
"""

from benchmarks.goals import Goal

from . import round_trip, throughput
from .base import Bench, Figures, Measure


def run(bench: Bench, name: str) -> Figures:
    """Measure once, with a key or without."""
    return throughput.run(bench, name) | round_trip.run(bench, name)


ENCRYPTION = Measure(
    "encryption",
    "what encryption costs",
    ("encrypted", "dedicated"),
    run,
    tuple(
        goal
        for way in ("channel", "group")
        for goal in (
            Goal(f"{way}_messages_per_s", "dedicated", ">=", 0.6, ours="encrypted"),
            Goal(f"{way}_p50_us", "dedicated", "<=", 1.3, ours="encrypted"),
        )
    ),
    at_most=3,
)
