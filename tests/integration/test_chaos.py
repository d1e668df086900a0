"""Some scenarios of `make chaos` in their short form, and the counting on which all of them rely."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from counting import JOB, Gaps, JobCounts, Sequence, Tally, count_jobs
from report import Figures, Goal, Received

ROOT = Path(__file__).parents[2]


def figures_of(scenario: str, loop: str, folder: Path, *, row: int = 1) -> dict[str, Any]:
    """Run a scenario in its short form and return its outcome."""
    path = folder / "figures.json"
    command = [sys.executable, "tests/chaos", "--short", "--only", scenario, "--loop", loop, "--json", str(path)]
    command += ["--row", str(row)]
    output, environment = subprocess.PIPE, os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            text = process.communicate(timeout=180)[0].decode()
        except BaseException:
            process.terminate()  # SIGKILL would leave its processes behind
            raise
    assert path.exists(), text
    (outcome,) = json.loads(path.read_text())
    assert process.returncode == bool(outcome["shortfalls"])
    assert outcome["figures"] is not None, text
    return dict(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("scenario, row", [("kill-only", 1), ("restart-1", 1), ("kill-1-of-3", 1), ("kill-1-of-3", 50)])
def test_no_message_is_lost_with_a_forwarder(scenario: str, row: int, loop: str, tmp_path: Path) -> None:
    """Three faults each: every group and direct message arrives once and in order, and no job is done twice."""
    outcome = figures_of(scenario, loop, tmp_path, row=row)
    assert outcome["shortfalls"] == []
    figures = outcome["figures"]
    assert figures["faults"] == 3
    assert len(figures["judged"]) == 2
    for one in figures["judged"].values():
        assert one["messages"] > 0
        assert (one["lost"], one["twice"], one["disorder"]) == (0, 0, 0)
        assert set(one["stats"]["dropped"]) <= {"lost_delivery"}, "which are jobs, of a forwarder that was killed"
    assert figures["jobs"]["confirmed"] > 0
    assert figures["jobs"]["twice"] == 0
    assert scenario != "restart-1" or figures["jobs"]["lost"] == 0
    assert figures["failures"] == []


@pytest.mark.parametrize(
    "numbers, lost, twice, disorder",
    [
        ([0, 1, 2, 3, 4], 0, 0, 0),
        ([0, 1, 3, 4], 1, 0, 0),
        ([1, 2, 3, 4], 1, 0, 0),
        ([0, 1, 2], 2, 0, 0),
        ([], 5, 0, 0),
        ([0, 1, 1, 2, 3, 4], 0, 1, 0),
        ([0, 1, 2, 3, 4, 0], 0, 1, 0),
        ([0, 2, 1, 3, 4], 0, 0, 1),
        ([4, 0, 1, 2, 3], 0, 0, 4),
        ([0, 3, 1, 3, 1], 2, 2, 1),
    ],
)
def test_the_count_finds_what_is_lost_doubled_and_disordered(
    numbers: list[int], lost: int, twice: int, disorder: int
) -> None:
    """Five numbers were sent, 0 to 4."""
    sequence = Sequence()
    for number in numbers:
        sequence.take(number)
    assert (sequence.lost(5), sequence.twice, sequence.disorder) == (lost, twice, disorder)


def test_a_tally_keeps_senders_and_topics_apart() -> None:
    """A topic without any arrival is lost as a whole; topics of other receivers do not count."""
    tally = Tally(clock=lambda: 10.0)
    for sender, topic, number in [(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 2), (1, 0, 2)]:
        tally.take(sender, topic, number, sent_at=9.75)
    sent = {0: [2, 4, 7], 1: [3, 0, 7]}
    assert (tally.lost(sent, [0, 1]), tally.twice, tally.disorder, tally.received) == (5, 1, 0, 5)
    assert tally.lateness == 0.25
    assert tally.examples(sent, [0, 1]) == [
        "sender 1, topic 0: 1 of 3 lost, the first is 1",
        "sender 0, topic 1: 4 of 4 lost, the first is 0",
    ]


def test_silence_is_measured_from_the_start_to_the_end_of_the_load() -> None:
    """The time before the first arrival counts, and the time between the last one and the end of the load."""
    now = iter([0.0, 1.0, 1.5, 4.5, 100.0])
    gaps = Gaps(clock=lambda: next(now))
    gaps.begin()
    gaps.arrived()
    gaps.arrived()
    assert gaps.longest == 1.0
    gaps.end()
    gaps.arrived()
    assert gaps.longest == 3.0


def test_the_jobs_of_all_workers_are_compared_with_those_of_the_senders() -> None:
    """A confirmed job that no worker did is lost; a repetition counts whichever worker did it."""
    done = [[(0, 0, 0), (0, 0, 2), (0, 1, 0)], [(0, 0, 2), (0, 0, 3), (0, 0, 3)]]
    logs = [b"".join(JOB.pack(*job) for job in worker) for worker in done]
    counts = count_jobs({0: [5, 1]}, [(0, 0, 3), (0, 0, 4)], [logs[0] + b"half", logs[1]])
    assert counts == JobCounts(confirmed=4, done=4, lost=1, twice=2, unknown=2)


def figures_with(*, missed: int = 0, memory: tuple[int, int] = (10, 10), refused: int = 0, **counts: Any) -> Figures:
    """Return figures that meet the goal except for the given values."""
    jobs = JobCounts(9, 9, counts.pop("jobs_lost", 0), counts.pop("jobs_twice", 0), 1)
    received = {"messages": 100, "lost": 0, "twice": 0, "disorder": 0, "silence_ms": 5.0, "lateness_ms": 1.0}
    stats = {"dropped": {"missed": missed}, "repeated": 0}
    judged = {"receiver-0": Received(**received | counts, examples=[], stats=stats)}
    return Figures(1, 1.0, judged, {}, jobs, refused, {}, {"sender-0": list(memory)})


@pytest.mark.parametrize(
    "counts, shortfall",
    [
        ({}, None),
        ({"lost": 2, "missed": 2}, "lost 2 (at most 0)"),
        ({"lost": 0, "missed": 2}, "receiver-0 lost 0 and its layer missed 2"),
        ({"twice": 1}, "twice 1 (at most 0)"),
        ({"disorder": 1}, "out of order 1 (at most 0)"),
        ({"silence_ms": 1_001.0}, "longest silence (ms) 1,001 (at most 1,000)"),
        ({"jobs_lost": 1}, "jobs lost 1 (at most 0)"),
        ({"jobs_twice": 1}, "jobs twice 1 (at most 0)"),
        ({"refused": 1}, "refused 1 (at most 0)"),
        ({"memory": (10_000_000, 13_000_000)}, "sender-0 grew from 10.0 to 13.0 MB"),
    ],
)
def test_a_goal_that_is_not_met_is_named(counts: dict[str, Any], shortfall: str | None) -> None:
    """Each limit of a goal can be exceeded."""
    assert Goal(silence_ms=1_000).shortfalls(figures_with(**counts)) == ([] if shortfall is None else [shortfall])


def test_a_process_that_failed_falls_short() -> None:
    """The table shows the error and the last line of the log."""
    figures = figures_with()
    figures.failures = ["forwarder-0 exited with status 1; its log ends:\nTraceback\nKeyError: 'x'"]
    assert Goal().shortfalls(figures) == ["forwarder-0 exited with status 1; its log ends: KeyError: 'x'"]
