"""Scrapes of minutes, stretched to the hours that an alert may need: series for promtool.

What was recorded is replayed in real time, up to a scrape that is *held*: its state goes on for as long as asked, and
what was recorded behind it follows then. A gauge that is held keeps its value, and a series that is not there stays
away. A counter goes on growing as it does until the next scrape: what happens once, such as the loss at the beginning
of an incident, does not go on.
"""

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scrape:
    """All targets, read once.

    Args:
        time: When, in seconds.
        samples: By series, in the notation of Prometheus.
    """

    time: float
    samples: dict[str, float]


@dataclass
class _Line:
    """One series in promtool's notation.

    Args:
        parts: The notation so far.
        length: Samples that it stands for.
        value: The last one, as it was recorded; None if there was none.
        more: What holds have added to a counter.
    """

    parts: list[str] = field(default_factory=list)
    length: int = 0
    value: float | None = None
    more: float = 0.0

    def skip(self, number: int) -> None:
        """Add samples that are missing."""
        if number:
            self._add(f"_x{number}", number)

    def record(self, value: float | None) -> None:
        """Add one sample as it was recorded, or that it is gone."""
        if value is None:
            self._add("stale" if self.value is not None else "_", 1)
        else:
            if self.value is None or value < self.value:
                self.more = 0.0
            self._add(repr(value + self.more), 1)
        self.value = value

    def hold(self, number: int, growth: float) -> None:
        """Add as many samples as the last one makes if it goes on."""
        if self.value is None:
            self.skip(number)
            return
        self._add(f"{self.value + self.more + growth!r}+{growth!r}x{number - 1}", number)
        self.more += growth * number

    def _add(self, part: str, number: int) -> None:
        self.parts.append(part)
        self.length += number


def stretched(
    scrapes: list[Scrape], held: Collection[int], *, every: float, steps: int
) -> tuple[list[dict[str, str]], list[int]]:
    """Return series for promtool, and at which of their samples each hold ends.

    Args:
        scrapes: All of them, in order.
        held: The numbers of those that are held; behind each there is another scrape.
        every: Seconds between two samples of the series.
        steps: Samples that a hold lasts.
    """
    lines: dict[str, _Line] = {name: _Line() for scrape in scrapes for name in scrape.samples}
    ends, shift, place = [], 0, -1
    for number, scrape in enumerate(scrapes):
        place = max(place + 1, round((scrape.time - scrapes[0].time) / every))
        for name, line in lines.items():
            line.skip(place + shift - line.length)
            line.record(scrape.samples.get(name))
        if number in held:
            for name, line in lines.items():
                line.hold(steps, _growth(name, scrape, scrapes[number + 1]) * every)
            shift += steps
            ends.append(place + shift)
    return [{"series": name, "values": " ".join(line.parts)} for name, line in lines.items()], ends


def _growth(name: str, before: Scrape, after: Scrape) -> float:
    """Return by how much a counter grows in a second; 0 for other metrics."""
    if not name.partition("{")[0].endswith("_total") or not before.samples.keys() & after.samples.keys() & {name}:
        return 0.0
    return max(0.0, after.samples[name] - before.samples[name]) / (after.time - before.time)
