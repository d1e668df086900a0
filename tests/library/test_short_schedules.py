"""Thousands of short random schedules, in which a process sends to another through two exchanges that fail.

`SCHEDULE=7 pytest -s -k 'nothing and quick' tests/library/test_short_schedules.py` replays one and prints its steps.
"""

import os

import pytest
from short_schedules import QUICK, SLOW, Schedule

from channels_zmq_forwarder import replays

SEEDS = 2_000
"""Number of schedules that fit into a few seconds."""
MANY = 50_000
REPLAY = os.environ.get("SCHEDULE", "")

paces = pytest.mark.parametrize("pauses", [pytest.param(QUICK, id="quick"), pytest.param(SLOW, id="slow")])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the sizes, so that a replay has several frames and a pause behind each."""
    monkeypatch.setattr(replays, "FRAME_BYTES", 100)
    monkeypatch.setattr(replays, "STEP_BYTES", 100)


def run(seeds: range, pauses: tuple[float, ...]) -> int:
    """Run schedules, and return the number of lost messages, all of which were counted."""
    lost = 0
    for seed in [int(REPLAY)] if REPLAY else seeds:
        schedule = Schedule(seed, pauses, print if REPLAY else None)
        try:
            schedule.go()
        except BaseException as error:
            error.add_note(f"SCHEDULE={seed}, {'quick' if pauses is QUICK else 'slow'}")
            raise
        lost += schedule.lost
    return lost


@paces
def test_nothing_is_doubled_or_overtaken_or_lost_without_being_counted(pauses: tuple[float, ...]) -> None:
    """No message is delivered twice, out of order, or lost without being counted; a quick schedule loses none."""
    run(range(SEEDS), pauses)


@pytest.mark.slow
@paces
def test_the_same_holds_in_many_more_schedules(pauses: tuple[float, ...]) -> None:
    """The guarantees hold in many more schedules; slow ones must lose messages, or their count would prove nothing."""
    lost = run(range(SEEDS, SEEDS + MANY), pauses)
    assert REPLAY or bool(lost) is (pauses is SLOW)
