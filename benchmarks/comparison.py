"""Ours beside the same layer of another commit: one ratio for each round, and a verdict on their median.

A round measures both directly after each other, in turns in either order, so that a change of the machine's speed meets
both. Their ratio therefore scatters less than the figures do.
"""

import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

DRAWS = 2_000
CONFIDENCE = 0.95
CLEAR_FROM = 5
"""The number of rounds; all values of fewer lie on one side of the true median in more than 6 of 100 runs."""

Rounds = Mapping[int, float]
"""The value of a figure by round; a round in which the measure failed is missing."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of ours beside that of the base.

    Args:
        measure: The name of the measure.
        figure: The name of the figure, which ends with its unit.
        layer: The layer of both.
        ours: Our median.
        base: The base's median.
        ratio: The median of ours / base over the rounds.
        low, high: The bootstrap interval of that median (95 %).
        limit: The highest permitted ratio, or the lowest one where more is better.
        met: Whether the ratio keeps to the limit.
        clear: Whether there were enough rounds, and the whole interval lies on the same side of the limit.
    """

    measure: str
    figure: str
    layer: str
    ours: float
    base: float
    ratio: float
    low: float
    high: float
    limit: float
    met: bool
    clear: bool


def compare(
    measure: str, layer: str, ours: Mapping[str, Rounds], base: Mapping[str, Rounds], tolerance: float
) -> list[Comparison]:
    """Compare every figure that both have, by the rounds that both have; a base of zero has no ratio.

    Args:
        measure: The name of the measure.
        layer: The layer of both.
        ours: Our figures by name.
        base: The figures of the base by name.
        tolerance: By how many percent a figure of ours may be worse.
    """
    return [
        _compare(measure, layer, figure, rounds, base[figure], tolerance)
        for figure, rounds in ours.items()
        if _comparable(rounds, base.get(figure, {}))
    ]


def more_is_better(figure: str) -> bool:
    """Return whether a figure counts things per second, or is a share of a maximum; all others are costs."""
    return figure.endswith(("_per_s", "_share"))


def interval(values: list[float]) -> tuple[float, float]:
    """Return the bootstrap interval of the median; the same values always give the same interval."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(DRAWS))
    outside = round(DRAWS * (1 - CONFIDENCE) / 2)
    return medians[outside], medians[-1 - outside]


def _compare(measure: str, layer: str, figure: str, ours: Rounds, base: Rounds, tolerance: float) -> Comparison:
    common = _comparable(ours, base)
    ratios = [ours[turn] / base[turn] for turn in common]
    ratio = statistics.median(ratios)
    low, high = interval(ratios)
    if more_is_better(figure):
        limit = 1 - tolerance / 100
        met, clear = ratio >= limit, low >= limit or high < limit
    else:
        limit = 1 + tolerance / 100
        met, clear = ratio <= limit, high <= limit or low > limit
    ours_median, base_median = (statistics.median(one[turn] for turn in common) for one in (ours, base))
    clear = clear and len(common) >= CLEAR_FROM
    return Comparison(measure, figure, layer, ours_median, base_median, ratio, low, high, limit, met, clear)


def _comparable(ours: Rounds, base: Rounds) -> list[int]:
    return [turn for turn in sorted(ours.keys() & base.keys()) if base[turn]]
