"""The figures of a scenario, its goal, and the tables that show both, without I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from counting import JobCounts

UNCOUNTED = 0.01
"""The relative error that a layer's own count of its losses may have."""
LAX = 1_000.0
"""Milliseconds that a short form permits at least, and adds for the latest message: the machine may be busy."""
HEADER = (
    *("scenario", "what happens", "times", "messages", "lost, twice, out of order", "longest silence (ms)"),
    *("latest message (ms)", "jobs confirmed", "jobs lost", "sends that raised", "result"),
)
"""The header of the table in docs/operations.md, into which a full run is pasted."""


@dataclass(frozen=True, slots=True)
class Received:
    """The counts of one receiver.

    Args:
        messages: Messages that were sent to it.
        lost: Messages of these that did not arrive.
        twice: Messages that arrived again.
        disorder: Messages that arrived after a later one of their sender and topic.
        silence_ms: The longest time between two messages while the load ran.
        lateness_ms: The longest time from sending to receiving a message.
        examples: The first gaps.
        stats: `layer.stats()`.
    """

    messages: int
    lost: int
    twice: int
    disorder: int
    silence_ms: float
    lateness_ms: float
    examples: list[str]
    stats: Mapping[str, Any]

    @property
    def counted(self) -> int:
        """How many losses the layer itself has counted."""
        return sum(self.stats["dropped"].get(cause, 0) for cause in ("missed", "mailbox_full"))


@dataclass(frozen=True, slots=True)
class Pace:
    """Messages or jobs per second of all senders: the requested pace and the achieved one."""

    asked: float
    achieved: float


@dataclass(slots=True)
class Figures:
    """The figures of a scenario.

    Args:
        faults: Number of faults.
        seconds: How long the load ran.
        judged: Receivers that must receive everything, by name.
        exempt: Receivers that were themselves the target of a fault, by name.
        jobs: The counts of jobs.
        at_risk: Jobs that may have been in a forwarder when it was killed, or handed to a receiver that was killed or
            frozen: no more can be lost.
        pace: Of `messages` and of `jobs`.
        refused: Sends that raised ChannelFull or RequestRefused.
        senders: `layer.stats()` of each sender, by name.
        memory: Resident bytes of each process, oldest first.
        failures: One text for each process that failed.
    """

    faults: int
    seconds: float
    judged: dict[str, Received]
    exempt: dict[str, Received]
    jobs: JobCounts
    at_risk: int
    pace: dict[str, Pace]
    refused: int
    senders: dict[str, Mapping[str, Any]]
    memory: dict[str, list[int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def received(self) -> dict[str, Received]:
        """All receivers that are running."""
        return self.judged | self.exempt

    @property
    def messages(self) -> int:
        """How many messages were sent to judged receivers; a group message counts once for each of them."""
        return sum(one.messages for one in self.judged.values())

    @property
    def lost(self) -> int:
        return sum(one.lost for one in self.judged.values())

    @property
    def twice(self) -> int:
        return sum(one.twice for one in self.received.values())

    @property
    def disorder(self) -> int:
        return sum(one.disorder for one in self.received.values())

    @property
    def silence_ms(self) -> float:
        return max((one.silence_ms for one in self.judged.values()), default=0.0)

    @property
    def lateness_ms(self) -> float:
        return max((one.lateness_ms for one in self.judged.values()), default=0.0)


@dataclass(frozen=True, slots=True)
class Goal:
    """The limits of a scenario; None sets no limit.

    Every goal includes that nothing is delivered twice or out of order, that only jobs at risk are lost, that no job is
    done twice, that no send is refused, that layers count their losses, and that no process fails.

    Args:
        lost: Messages that judged receivers may lose.
        silence_ms: Milliseconds that may pass between two messages.
        lateness_ms: Milliseconds that a message may take.
        raised: Sends that may raise.
        confirmed: Jobs that must be confirmed.
        pace: Share of the requested messages and jobs per second that must be sent.
        growth: Factor by which the memory of a process may grow.
        trend: The same from the median of the first third of the samples to that of the last third.
        is_long_replay: Whether a receiver gets thousands of messages by one replay. It waits for them for a second,
            within which a busy machine may not replay all of them; the others are lost and counted.
    """

    lost: int | None = 0
    silence_ms: float | None = None
    lateness_ms: float | None = None
    raised: int | None = None
    confirmed: int = 0
    pace: float = 0.95
    growth: float = 2.0
    trend: float | None = None
    is_long_replay: bool = False

    def relaxed(self) -> "Goal":
        """Return the goal of the short form, which assumes little about the speed of the machine.

        Sends may raise: for that, a slow start of the only forwarder is enough.
        """
        silence_ms = None if self.silence_ms is None else max(self.silence_ms, LAX)
        lateness_ms = None if self.lateness_ms is None else self.lateness_ms + LAX
        lost = None if self.is_long_replay else self.lost
        lax = replace(self, lost=lost, silence_ms=silence_ms, lateness_ms=lateness_ms)
        return replace(lax, raised=None, confirmed=0, pace=0.0)

    def shortfalls(self, figures: Figures) -> list[str]:
        """Return one text for each limit that is exceeded."""
        limits: list[tuple[str, float, float | None]] = [
            ("lost", figures.lost, self.lost),
            ("twice", figures.twice, 0),
            ("out of order", figures.disorder, 0),
            ("longest silence (ms)", round(figures.silence_ms), self.silence_ms),
            ("latest message (ms)", round(figures.lateness_ms), self.lateness_ms),
            ("jobs lost", figures.jobs.lost, figures.at_risk),
            ("jobs twice", figures.jobs.twice, 0),
            ("sends that raised", figures.jobs.unknown, self.raised),
            ("refused", figures.refused, 0),
        ]
        found = [
            f"{name} {number(value)} (at most {number(limit)})"
            for name, value, limit in limits
            if limit is not None and value > limit
        ]
        least: list[tuple[str, float, float]] = [("jobs confirmed", figures.jobs.confirmed, self.confirmed)]
        least += [(f"{kind}/s", one.achieved, one.asked * self.pace) for kind, one in figures.pace.items()]
        found += [f"{name} {number(value)} (at least {number(limit)})" for name, value, limit in least if value < limit]
        if not figures.messages + figures.jobs.done:
            found.append("no message and no job arrived")
        for name, one in figures.received.items():
            if abs(one.lost - one.counted) > one.lost * UNCOUNTED:
                found.append(f"{name} lost {number(one.lost)} and its layer counted {number(one.counted)}")
        for name, sizes in figures.memory.items():
            for (before, after), factor in ((extremes(sizes), self.growth), (trend(sizes), self.trend)):
                if factor is not None and after > before * factor:
                    found.append(f"{name} grew from {megabytes(before)} to {megabytes(after)} MB")
        return found + [headline(failure) for failure in figures.failures]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a scenario.

    Args:
        scenario: Its name.
        what: What happens in it.
        figures: Its figures; None if it was aborted.
        shortfalls: The limits of the goal that it exceeded; empty if the goal was met.
        log: The ends of the logs of processes that failed.
    """

    scenario: str
    what: str
    figures: Figures | None
    shortfalls: list[str]
    log: str = ""

    @property
    def result(self) -> str:
        """The last column: `met`, or the shortfalls."""
        return "; ".join(self.shortfalls) or "met"

    def line(self) -> str:
        """Return the progress line."""
        figures = self.figures
        if figures is None:
            return f"{self.scenario}: {self.result}"
        jobs = figures.jobs
        return (
            f"{self.scenario}: faults {figures.faults} in {figures.seconds:.0f} s, "
            f"messages lost {number(figures.lost)} of {number(figures.messages)}, "
            f"jobs lost {number(jobs.lost)} of {number(jobs.confirmed)} "
            f"({number(figures.at_risk)} at risk): {self.result}"
        )

    def row(self) -> tuple[str, ...]:
        """Return the row of `figures_table`."""
        figures, name = self.figures, f"`{self.scenario}`"
        if figures is None:
            return name, self.what, *["-"] * (len(HEADER) - 3), self.result
        messages = ["-"] * 4
        if figures.messages:
            counts = ", ".join(map(number, (figures.lost, figures.twice, figures.disorder)))
            messages = [number(figures.messages), counts, number(figures.silence_ms), number(figures.lateness_ms)]
        jobs = map(number, (figures.jobs.confirmed, figures.jobs.lost, figures.jobs.unknown))
        return name, self.what, number(figures.faults), *messages, *jobs, self.result

    def notes(self) -> list[str]:
        """Return the facts that have no column in the table."""
        figures = self.figures
        if figures is None:
            return []
        jobs = figures.jobs
        found = [
            f"sent {number(one.achieved)} of {number(one.asked)} {kind}/s"
            for kind, one in figures.pace.items()
            if one.asked
        ]
        found.append(f"jobs lost {number(jobs.lost)} of {number(figures.at_risk)} at risk")
        found.append(f"jobs done {number(jobs.done)}, twice {number(jobs.twice)}")
        for name, one in figures.exempt.items():
            found.append(f"{name}, the target of the fault, lost {number(one.lost)} of {number(one.messages)}")
        layers = figures.senders | {name: one.stats for name, one in figures.received.items()}
        found += [f"{name} counted {counted}" for name, stats in layers.items() if (counted := _counted(stats))]
        found += [f"{name}: {example}" for name, one in figures.received.items() for example in one.examples]
        return found


def figures_table(outcomes: Sequence[Outcome]) -> str:
    """Return one row for each scenario."""
    return table([HEADER, *(outcome.row() for outcome in outcomes)])


def pace_line(outcomes: Sequence[Outcome]) -> str:
    """Return the lowest pace of all scenarios, for the caption of the table."""
    lowest: dict[str, float] = {}
    for figures in (outcome.figures for outcome in outcomes if outcome.figures is not None):
        for kind, pace in figures.pace.items():
            if pace.asked:
                lowest[kind] = min(lowest.get(kind, 1.0), pace.achieved / pace.asked)
    shares = [f"{share:.0%} of the {kind}" for kind, share in lowest.items()]
    return f"Sent per second in every scenario: at least {' and '.join(shares)} asked for." if shares else ""


def memory_table(outcomes: Sequence[Outcome]) -> str:
    """Return one row for each process whose memory was measured, or an empty text."""
    rows = [
        (outcome.scenario, name, *(megabytes(size) for size in (sizes[0], max(sizes), sizes[-1])))
        for outcome in outcomes
        if outcome.figures is not None
        for name, sizes in outcome.figures.memory.items()
    ]
    return table([("scenario", "process", "memory at the start (MB)", "at most", "at the end"), *rows]) if rows else ""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is the header."""
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def extremes(sizes: Sequence[int]) -> tuple[float, float]:
    """Return the first size and the largest one."""
    return sizes[0], max(sizes)


def trend(sizes: Sequence[int]) -> tuple[float, float]:
    """Return the medians of the first and of the last third."""
    third = max(1, len(sizes) // 3)
    return median(sizes[:third]), median(sizes[-third:])


def _counted(stats: Mapping[str, Any]) -> str:
    counts = stats["dropped"] | {name: stats[name] for name in ("repeated", "reconnects")}
    return ", ".join(f"{name} {number(count)}" for name, count in counts.items() if count)


def headline(text: str) -> str:
    """Return the first line of a text together with the last line of the log that may follow."""
    first, *log = text.splitlines()
    return " ".join([first, *log[-1:]])


def number(value: float) -> str:
    """Return a rounded number with separators."""
    return f"{value:,.0f}"


def megabytes(size: float) -> str:
    """Return a size in megabytes."""
    return f"{size / 1e6:.1f}"
