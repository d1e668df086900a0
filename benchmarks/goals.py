"""The project's goals for its figures: a ratio to a figure of the same run, or a share that no machine changes."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Figures = Mapping[str, Mapping[str, Mapping[int, float]]]
"""The values by peer, figure and round."""


@dataclass(frozen=True, slots=True)
class Goal:
    """`figure` of `ours` divided by that of `peer` must be at most, or at least, `factor`.

    Args:
        figure: The name of the figure of ours.
        peer: The peer to compare with. Empty: the figure of ours itself is compared with `factor`.
        relation: Whether the ratio must be at most or at least `factor`.
        factor: The limit.
        ours: Which of our layers.
        than: The name of the peer's figure, if it is another one.
        headline: Its name in the README; without one it is only in the table of all goals.
    """

    figure: str
    peer: str
    relation: Literal["<=", ">="]
    factor: float
    ours: str = "dedicated"
    than: str = ""
    headline: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and its result: medians, their ratio, and the extremes of the ratios of the single rounds.

    `met` is None if one of the two was not measured.
    """

    measure: str
    goal: Goal
    ours: float | None = None
    peer: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    met: bool | None = None


def judge(measure: str, goal: Goal, figures: Figures) -> Verdict:
    """Compare the figures of a measure with a goal."""
    ours = figures.get(goal.ours, {}).get(goal.figure, {})
    peer = figures.get(goal.peer, {}).get(goal.than or goal.figure, {}) if goal.peer else dict.fromkeys(ours, 1.0)
    ours_median, peer_median = _median(ours), _median(peer)
    if ours_median is None or not peer_median:
        return Verdict(measure, goal, ours_median, peer_median)
    ratio = ours_median / peer_median
    ratios = [ratio, *(ours[turn] / peer[turn] for turn in ours.keys() & peer.keys() if peer[turn])]
    met = ratio <= goal.factor if goal.relation == "<=" else ratio >= goal.factor
    return Verdict(measure, goal, ours_median, peer_median, ratio, min(ratios), max(ratios), met)


def _median(rounds: Mapping[int, float]) -> float | None:
    return statistics.median(rounds.values()) if rounds else None
