"""Some scenarios of `make chaos` in their short form, and the counting on which all of them rely."""

import json
import os
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import pytest
from counting import JOB, Gaps, JobCounts, Sequence, Tally, count_jobs
from report import HEADER, Figures, Goal, Outcome, Pace, Received, figures_table, table
from scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]


def outcome_of(scenario: str, loop: str, folder: Path, *flags: str, within: float = 180) -> dict[str, Any]:
    """Run a scenario in its short form and return its outcome."""
    path = folder / "figures.json"
    command = [sys.executable, "tests/chaos", "--short", "--only", scenario, "--loop", loop, "--json", str(path)]
    command += flags
    output, environment = subprocess.PIPE, os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            text = process.communicate(timeout=within)[0].decode()
        except BaseException:
            process.terminate()  # SIGKILL would leave its processes behind
            raise
    assert path.exists(), text
    (outcome,) = json.loads(path.read_text())
    assert process.returncode == bool(outcome["shortfalls"])
    assert outcome["figures"] is not None, text
    return dict(outcome)


def skip_without_tools(scenario: str) -> None:
    """Skip the test if this machine lacks tools for its scenario, or the permission to use them."""
    (found,) = [one for one in SCENARIOS if one.name == scenario]
    if missing := found.missing():
        pytest.skip(missing)


def assert_nothing_is_lost(outcome: dict[str, Any]) -> None:
    """Check that each group and direct message arrived once and in order, no job ran twice, and no process failed."""
    assert outcome["shortfalls"] == []
    figures = outcome["figures"]
    assert figures["judged"]
    for one in figures["judged"].values():
        assert one["messages"] > 0
        assert (one["lost"], one["twice"], one["disorder"]) == (0, 0, 0)
        assert set(one["stats"]["dropped"]) <= {"lost_delivery"}, "which are jobs, of a forwarder that was killed"
    assert figures["jobs"]["confirmed"] > 0
    assert figures["jobs"]["twice"] == 0
    assert figures["failures"] == []


BOTH_LOOPS = [("kill-only", 1, 3), ("restart-1", 1, 3), ("kill-1-of-3", 1, 3), ("kill-1-of-3", 50, 3)]
ASYNCIO = [("freeze-1-of-2", 1, 1), ("replace-3", 1, 3), ("replace-1", 1, 3), ("scale", 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "loop, scenario, row, faults",
    [(loop, *one) for loop in ("asyncio", "uvloop") for one in BOTH_LOOPS] + [("asyncio", *one) for one in ASYNCIO],
)
def test_no_message_is_lost_with_a_forwarder(loop: str, scenario: str, row: int, faults: int, tmp_path: Path) -> None:
    """A forwarder that is stopped, killed or frozen loses no message; only one that is killed loses jobs."""
    outcome = outcome_of(scenario, loop, tmp_path, "--row", str(row))
    assert_nothing_is_lost(outcome)
    figures = outcome["figures"]
    assert figures["faults"] == faults
    assert len(figures["judged"]) == 2
    assert scenario.startswith("kill") or figures["jobs"]["lost"] == 0
    assert scenario not in ("replace-3", "scale") or figures["jobs"]["unknown"] == 0


@pytest.mark.slow
def test_no_message_of_four_senders_is_lost_at_a_high_rate(tmp_path: Path) -> None:
    """Killing three forwarders under 15,000 messages a second, or as many as the machine can carry, loses none."""
    outcome = outcome_of("kill-1-of-3", "uvloop", tmp_path, "--senders", "4", "--rate", "15000", "--row", "20")
    assert_nothing_is_lost(outcome)
    assert len(outcome["figures"]["senders"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario, judged",
    [
        ("old-list", 2),
        ("no-forwarder", 2),
        ("keys-changed", 2),
        ("push-cut", 2),
        ("xsub-cut", 2),
        ("push-stalled", 2),
        ("network-cut", 2),
        ("network-loss", 2),
        ("network-delay", 2),
        ("slow-receiver", 1),
        ("consumer-frozen", 1),
        ("consumer-slow", 1),
        ("consumer-killed", 1),
    ],
)
def test_no_message_is_lost_with_a_connection(scenario: str, judged: int, tmp_path: Path) -> None:
    """Cut or stalled connections, and a receiver that stalls or dies, cause no loss for other processes."""
    skip_without_tools(scenario)
    outcome = outcome_of(scenario, "asyncio", tmp_path)
    assert_nothing_is_lost(outcome)
    assert len(outcome["figures"]["judged"]) == judged


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["xsub-stalled", "receiver-cut"])
def test_a_long_replay_loses_only_what_is_counted(scenario: str, tmp_path: Path) -> None:
    """A long replay loses only messages that are counted; a busy machine may replay only a part of it in time."""
    skip_without_tools(scenario)
    outcome = outcome_of(scenario, "asyncio", tmp_path)
    assert outcome["shortfalls"] == []
    assert sum(one["messages"] for one in outcome["figures"]["judged"].values()) > 0


@pytest.mark.slow
def test_only_jobs_at_risk_are_lost(tmp_path: Path) -> None:
    """If workers and forwarders are killed at random, each job runs at most once, and only jobs at risk are lost."""
    outcome = outcome_of("random-jobs", "asyncio", tmp_path)
    assert outcome["shortfalls"] == []
    jobs = outcome["figures"]["jobs"]
    assert jobs["done"] > 0
    assert (jobs["twice"], jobs["lost"] <= outcome["figures"]["at_risk"]) == (0, True)


@pytest.mark.slow
def test_memory_does_not_grow_while_nothing_happens(tmp_path: Path) -> None:
    """In five minutes of load, no process grows by more than a tenth from the first third to the last one."""
    outcome = outcome_of("soak", "asyncio", tmp_path, "--minutes", "5", within=420)
    assert_nothing_is_lost(outcome)
    memory = outcome["figures"]["memory"]
    assert set(memory) == {"forwarder-0", "forwarder-1", "receiver-0", "receiver-1", "sender-0"}
    assert min(map(len, memory.values())) >= 10


def test_every_scenario_has_its_row_in_the_documentation() -> None:
    """The tables of docs/operations.md have the printed columns, and at least one row for each scenario."""
    section = (ROOT / "docs/operations.md").read_text().partition("### Measured\n")[2].partition("\n### ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [line for line in lines if line not in table([HEADER]).splitlines()]
    documented = {tuple(line.split(" | ")[:2]) for line in rows}
    assert documented == {(f"| `{one.name}`", one.what) for one in SCENARIOS}


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
    """Of the five numbers 0 to 4, the sequence counts those that are lost, repeated or out of order."""
    sequence = Sequence()
    for number in numbers:
        sequence.take(number)
    assert (sequence.lost(5), sequence.twice, sequence.disorder) == (lost, twice, disorder)


def test_a_tally_keeps_senders_and_topics_apart() -> None:
    """A tally counts each sender and topic separately.

    A topic without any arrival is lost as a whole; topics of other receivers do not count.
    """
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


def test_a_receiver_has_caught_up_when_the_last_message_of_each_sequence_is_recent() -> None:
    """The lag is the longest delay of any sequence's last message, infinite until each has one since the fault."""
    tally = Tally(clock=lambda: 10.0)
    assert tally.lag == 0.0
    tally.take(0, 0, 0, sent_at=9.0)
    tally.take(1, 0, 0, sent_at=9.75)
    assert tally.lag == 1.0
    tally.forget_lag()
    tally.take(1, 0, 1, sent_at=9.75)
    assert tally.lag == inf
    tally.take(0, 0, 1, sent_at=9.0)
    tally.take(0, 0, 2, sent_at=9.5)
    assert tally.lag == 0.5


def test_silence_is_measured_from_the_start_to_the_end_of_the_load() -> None:
    """Silence includes the time before the first arrival, and that between the last one and the end of the load."""
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
    """A confirmed job that no worker ran is lost, and a repetition counts whichever worker ran it."""
    done = [[(0, 0, 0), (0, 0, 2), (0, 1, 0)], [(0, 0, 2), (0, 0, 3), (0, 0, 3)]]
    logs = [b"".join(JOB.pack(*job) for job in worker) for worker in done]
    counts = count_jobs({0: [5, 1]}, [(0, 0, 3), (0, 0, 4)], [logs[0] + b"half", logs[1]])
    assert counts == JobCounts(confirmed=4, done=4, lost=1, twice=2, unknown=2)


def figures_with(*, missed: int = 0, memory: tuple[int, ...] = (10, 10), **values: Any) -> Figures:
    """Return figures that meet the goal except for the given values."""
    jobs = JobCounts(
        values.pop("confirmed", 9), 9, values.pop("jobs_lost", 0), values.pop("jobs_twice", 0), values.pop("raised", 0)
    )
    pace = {"messages": Pace(100, values.pop("pace", 100)), "jobs": Pace(20, 20)}
    risk, refused = values.pop("at_risk", 0), values.pop("refused", 0)
    received = {"messages": 1_000, "lost": 0, "twice": 0, "disorder": 0, "silence_ms": 5.0, "lateness_ms": 1.0}
    stats = {"dropped": {"missed": missed}, "repeated": 0, "reconnects": 0}
    judged = {"receiver-0": Received(**received | values, examples=[], stats=stats)}
    return Figures(1, 1.0, judged, {}, jobs, risk, pace, refused, {}, {"sender-0": list(memory)})


GOAL = Goal(silence_ms=500, lateness_ms=500, raised=0, confirmed=9, trend=1.1)


@pytest.mark.parametrize(
    "values, shortfall",
    [
        ({}, None),
        ({"lost": 2, "missed": 2}, "lost 2 (at most 0)"),
        ({"lost": 0, "missed": 2}, "receiver-0 lost 0 and its layer counted 2"),
        ({"twice": 1}, "twice 1 (at most 0)"),
        ({"disorder": 1}, "out of order 1 (at most 0)"),
        ({"silence_ms": 501.0}, "longest silence (ms) 501 (at most 500)"),
        ({"lateness_ms": 501.0}, "latest message (ms) 501 (at most 500)"),
        ({"jobs_lost": 3, "at_risk": 3}, None),
        ({"jobs_lost": 4, "at_risk": 3}, "jobs lost 4 (at most 3)"),
        ({"jobs_twice": 1}, "jobs twice 1 (at most 0)"),
        ({"raised": 1}, "sends that raised 1 (at most 0)"),
        ({"refused": 1}, "refused 1 (at most 0)"),
        ({"confirmed": 8}, "jobs confirmed 8 (at least 9)"),
        ({"pace": 94}, "messages/s 94 (at least 95)"),
        ({"memory": (10_000_000, 21_000_000, 10_000_000)}, "sender-0 grew from 10.0 to 21.0 MB"),
        ({"memory": (10_000_000, 10_000_000, 12_000_000)}, "sender-0 grew from 10.0 to 12.0 MB"),
        ({"memory": (10_000_000, 10_000_000, 12_000_000, 9_000_000, 10_000_000, 10_000_000)}, None),
    ],
)
def test_a_goal_that_is_not_met_is_named(values: dict[str, Any], shortfall: str | None) -> None:
    """Each limit of a goal that is not met is named in the shortfalls."""
    assert GOAL.shortfalls(figures_with(**values)) == ([] if shortfall is None else [shortfall])


@pytest.mark.parametrize(
    "values, meets",
    [
        ({"silence_ms": 1_000.0, "lateness_ms": 1_500.0, "pace": 10, "raised": 1, "confirmed": 1}, True),
        ({"silence_ms": 1_001.0}, False),
        ({"lateness_ms": 1_501.0}, False),
        ({"lost": 1, "missed": 1}, False),
    ],
)
def test_a_short_form_assumes_little_about_the_speed_of_the_machine(values: dict[str, Any], meets: bool) -> None:
    """The goal of a short form permits another second and any pace, but no loss."""
    assert (GOAL.relaxed().shortfalls(figures_with(**values)) == []) is meets


def test_a_long_replay_on_a_busy_machine_may_lose_what_the_receiver_counts() -> None:
    """On a busy machine, a long replay may lose the messages that the receiver counts; it waits a second for them."""
    goal = Goal(is_long_replay=True)
    assert goal.shortfalls(figures_with(lost=2, missed=2)) == ["lost 2 (at most 0)"]
    assert goal.relaxed().shortfalls(figures_with(lost=2, missed=2)) == []
    assert goal.relaxed().shortfalls(figures_with(lost=2)) == ["receiver-0 lost 2 and its layer counted 0"]


def test_the_table_has_a_dash_where_there_are_no_messages() -> None:
    """The table has a dash for each figure of messages if a scenario has only jobs, or ended with an error."""
    jobs = Outcome("a", "jobs", figures_with(messages=0), [])
    lines = figures_table([jobs, Outcome("b", "error", None, ["no answer"])]).splitlines()
    assert lines[2:] == [
        "| `a` | jobs | 1 | - | - | - | - | 9 | 0 | 0 | met |",
        "| `b` | error | - | - | - | - | - | - | - | - | no answer |",
    ]


def test_a_process_that_failed_falls_short() -> None:
    """If a process failed, the shortfalls name the error and the last line of its log."""
    figures = figures_with()
    figures.failures = ["forwarder-0 exited with status 1; its log ends:\nTraceback\nKeyError: 'x'"]
    assert Goal().shortfalls(figures) == ["forwarder-0 exited with status 1; its log ends: KeyError: 'x'"]
