"""The figures of a scenario, its goal, and the tables that show both. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counting import JobCounts

UNCOUNTED = 0.01
"""The relative error that a layer's own count of its losses may have."""
HEADER = (
    *("scenario", "faults", "messages", "lost", "twice", "out of order", "longest silence (ms)"),
    *("jobs confirmed / lost / twice / unknown", "repeated", "result"),
)


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
    def missed(self) -> int:
        """Losses that the layer itself has counted."""
        return int(self.stats["dropped"].get("missed", 0))


@dataclass(slots=True)
class Figures:
    """The figures of a scenario.

    Args:
        faults: Number of faults.
        seconds: How long the load ran.
        judged: Receivers that must receive everything, by name.
        exempt: Receivers that were themselves the target of a fault, by name.
        jobs: The counts of jobs.
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
        """Messages that were sent to judged receivers; a group message counts once for each of them."""
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

    @property
    def repeated(self) -> int:
        """Messages that arrived a second time and were dropped by the layers."""
        return sum(int(one.stats["repeated"]) for one in self.received.values())


@dataclass(frozen=True, slots=True)
class Goal:
    """What must hold; None sets no limit.

    Every goal includes that nothing is delivered twice or out of order, that no job is done twice, that no send is
    refused, that layers count their losses, and that no process fails.

    Args:
        lost: Messages that judged receivers may lose.
        jobs_lost: Confirmed jobs that no worker may have done.
        silence_ms: Milliseconds that may pass between two messages.
        lateness_ms: Milliseconds that a message may take.
        growth: Factor by which the memory of a process may grow.
    """

    lost: int | None = 0
    jobs_lost: int | None = 0
    silence_ms: float | None = None
    lateness_ms: float | None = None
    growth: float = 1.25

    def shortfalls(self, figures: Figures) -> list[str]:
        """Return one text for each limit that is exceeded."""
        limits: list[tuple[str, float, float | None]] = [
            ("lost", figures.lost, self.lost),
            ("twice", figures.twice, 0),
            ("out of order", figures.disorder, 0),
            ("longest silence (ms)", round(figures.silence_ms), self.silence_ms),
            ("latest message (ms)", round(figures.lateness_ms), self.lateness_ms),
            ("jobs lost", figures.jobs.lost, self.jobs_lost),
            ("jobs twice", figures.jobs.twice, 0),
            ("refused", figures.refused, 0),
        ]
        found = [
            f"{name} {number(value)} (at most {number(limit)})"
            for name, value, limit in limits
            if limit is not None and value > limit
        ]
        if not figures.messages + figures.jobs.done:
            found.append("no message and no job arrived")
        for name, one in figures.received.items():
            if abs(one.lost - one.missed) > one.lost * UNCOUNTED:
                found.append(f"{name} lost {number(one.lost)} and its layer missed {number(one.missed)}")
        for name, sizes in figures.memory.items():
            if sizes[-1] > sizes[0] * self.growth:
                found.append(f"{name} grew from {megabytes(sizes[0])} to {megabytes(sizes[-1])} MB")
        return found + [headline(failure) for failure in figures.failures]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a scenario.

    Args:
        scenario: Its name.
        figures: Its figures; None if it was aborted.
        shortfalls: What fell short of the goal; empty if it was met.
        log: The ends of the logs of processes that failed.
    """

    scenario: str
    figures: Figures | None
    shortfalls: list[str]
    log: str = ""

    @property
    def result(self) -> str:
        """The last column: `met`, or what fell short."""
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
            f"jobs lost {number(jobs.lost)} of {number(jobs.confirmed)}: {self.result}"
        )

    def row(self) -> tuple[str, ...]:
        """Return the row of `figures_table`."""
        figures = self.figures
        if figures is None:
            return self.scenario, *["-"] * (len(HEADER) - 2), self.result
        counts = figures.faults, figures.messages, figures.lost, figures.twice, figures.disorder, figures.silence_ms
        jobs = figures.jobs.confirmed, figures.jobs.lost, figures.jobs.twice, figures.jobs.unknown
        numbers = *map(number, counts), " / ".join(map(number, jobs)), number(figures.repeated)
        return self.scenario, *numbers, self.result

    def notes(self) -> list[str]:
        """Return what has no column in the table."""
        figures = self.figures
        if figures is None:
            return []
        found = [
            f"the latest message took {number(figures.lateness_ms)} ms",
            f"jobs done {number(figures.jobs.done)}",
        ]
        for name, one in figures.exempt.items():
            found.append(f"{name}, the target of the fault, lost {number(one.lost)} of {number(one.messages)}")
        layers = figures.senders | {name: one.stats for name, one in figures.received.items()}
        found += [f"{name} counted {counted}" for name, stats in layers.items() if (counted := _counted(stats))]
        found += [f"{name}: {example}" for name, one in figures.received.items() for example in one.examples]
        return found


def figures_table(outcomes: Sequence[Outcome]) -> str:
    """Return one row for each scenario."""
    return table([HEADER, *(outcome.row() for outcome in outcomes)])


def memory_table(outcomes: Sequence[Outcome]) -> str:
    """Return one row for each process whose memory was measured, or an empty text."""
    rows = [
        (outcome.scenario, name, *(megabytes(size) for size in (sizes[0], sizes[-1])))
        for outcome in outcomes
        if outcome.figures is not None
        for name, sizes in outcome.figures.memory.items()
    ]
    return table([("scenario", "process", "memory at the start (MB)", "at the end"), *rows]) if rows else ""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is the header."""
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


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


def megabytes(size: int) -> str:
    """Return a size in megabytes."""
    return f"{size / 1e6:.1f}"
