"""What the project asks of its figures: a ratio to a peer of the same run, never an absolute number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Medians = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Goal:
    """`figure` of `ours` divided by `figure` of `peer` must be at most, or at least, `factor`."""

    figure: str
    peer: str
    relation: Literal["<=", ">="]
    factor: float
    ours: str = "dedicated"


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
    peer = medians.get(goal.peer, {}).get(goal.figure)
    if ours is None or not peer:
        return Verdict(measure, goal, ours, peer, None, None)
    ratio = ours / peer
    met = ratio <= goal.factor if goal.relation == "<=" else ratio >= goal.factor
    return Verdict(measure, goal, ours, peer, ratio, met)
