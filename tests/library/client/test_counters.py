"""Counters of losses, and the limited rate of their reports."""

import ast
import logging
from pathlib import Path

import pytest
from fakes import Clock

import channels_zmq
from channels_zmq.client.counters import ADVICE, REPORT_EVERY, SILENT, Counters, Report
from channels_zmq.transports.embedded_producer import LOSSES


@pytest.fixture
def counters(clock: Clock) -> Counters:
    return Counters(clock)


def lines(counters: Counters) -> list[str]:
    return [report.message % report.arguments for report in counters.reports]


def test_every_loss_is_counted_by_its_cause(counters: Counters) -> None:
    """Every lost message is counted by its cause, whether or not it is reported."""
    counters.drop("mailbox_full")
    counters.drop("mailbox_full", 4)
    counters.drop("expired", 2)
    assert counters.dropped == {"mailbox_full": 5, "expired": 2}


def test_no_loss_leaves_no_trace(counters: Counters) -> None:
    """A loss of zero messages adds neither a report nor a cause."""
    counters.drop("mailbox_full", 0)
    assert (counters.dropped, counters.reports) == ({}, [])


def test_the_first_loss_is_reported_at_once(counters: Counters) -> None:
    """The first loss is reported at once with its number, its cause and advice; the writer of the line formats it."""
    counters.drop("mailbox_full", 2)
    (report,) = counters.reports
    assert report.level == logging.WARNING
    assert lines(counters) == [f"2 messages lost (mailbox_full), 2 in total: {ADVICE['mailbox_full']}"]


def test_a_flood_of_losses_is_one_report_a_minute(counters: Counters, clock: Clock) -> None:
    """Losses of one cause are reported once a minute, and each report counts all since the previous one."""
    for _ in range(100):
        counters.drop("mailbox_full")
    clock.now += REPORT_EVERY - 1
    counters.drop("mailbox_full")
    assert len(counters.reports) == 1
    clock.now += 1
    counters.drop("mailbox_full")
    assert lines(counters)[1].startswith("101 messages lost (mailbox_full), 102 in total")


def test_each_cause_has_reports_of_its_own(counters: Counters) -> None:
    """Each cause has its own reports, so that a frequent loss does not hide a rare one."""
    for cause in ADVICE:
        counters.drop(cause)
    assert len(counters.reports) == len(ADVICE)


@pytest.mark.parametrize("cause", sorted(SILENT))
def test_a_silent_cause_is_counted_only(counters: Counters, cause: str) -> None:
    """A silent cause is counted, but neither reported nor included in the number of lost messages."""
    counters.drop(cause, 3)
    assert counters.dropped == {cause: 3}
    assert counters.reports == []
    assert counters.lost() == 0


def test_what_was_lost_is_the_sum_of_all_causes_but_the_silent_ones(counters: Counters) -> None:
    """The number of lost messages, which the report of an outage contains, sums all causes except the silent ones."""
    for cause in (*ADVICE, *SILENT):
        counters.drop(cause, 2)
    assert counters.lost() == 2 * len(ADVICE)


def test_any_line_can_be_reported(counters: Counters) -> None:
    """A report keeps its arguments apart from the format."""
    counters.report(logging.ERROR, "%s is %d", "a", 1)
    assert counters.reports == [Report(logging.ERROR, "%s is %d", ("a", 1))]


def test_every_cause_in_the_code_has_advice_or_is_silent() -> None:
    """Every cause in the code has advice or is silent; otherwise counting a loss would raise."""
    causes: set[object] = {*LOSSES}
    for path in Path(channels_zmq.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in ("drop", "_drop") and node.args:
                causes |= {text.value for text in ast.walk(node.args[0]) if isinstance(text, ast.Constant)}
    assert {cause for cause in causes if isinstance(cause, str)} == set(ADVICE) | SILENT
