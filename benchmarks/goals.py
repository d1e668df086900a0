"""What the project asks of its figures: a ratio to a figure of the same run, or a share that no machine changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Medians = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Goal:
    """`figure` of `ours` divided by that of `peer` must be at most, or at least, `factor`.

    Args:
        figure: The name of the figure of ours.
        peer: Whose figure is the measure. Empty: the figure of ours itself is compared with `factor`.
        relation: Whether the ratio must be at most or at least `factor`.
        factor: The limit.
        ours: Which of our layers.
        than: The name of the peer's figure, if it is another one.
    """

    figure: str
    peer: str
    relation: Literal["<=", ">="]
    factor: float
    ours: str = "dedicated"
    than: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was found; `met` is None when one of the two was not measured."""

    measure: str
    goal: Goal
    ours: float | None
    peer: float | None
    ratio: float | None
    met: bool | None


def judge(measure: str, goal: Goal, medians: Medians) -> Verdict:
    """Compare the medians of a measure with a goal."""
    ours = medians.get(goal.ours, {}).get(goal.figure)
    peer = medians.get(goal.peer, {}).get(goal.than or goal.figure) if goal.peer else 1.0
    if ours is None or not peer:
        return Verdict(measure, goal, ours, peer, None, None)
    ratio = ours / peer
    met = ratio <= goal.factor if goal.relation == "<=" else ratio >= goal.factor
    return Verdict(measure, goal, ours, peer, ratio, met)
