"""`manage.py channels_zmq doctor`: finds the problems of all layers of the project, and how to correct them."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.tools.layers import Entry, Layer, is_alone
from channels_zmq.tools.probe import ROUNDS, Finding, probe
from channels_zmq_forwarder.commands.text import counted, duration, printable


class Mark(StrEnum):
    """The kind of a line."""

    OK = "ok"
    NOTE = "note"
    WRONG = "WRONG"


@dataclass(frozen=True, slots=True)
class Line:
    """One statement about a layer, and what to do about it."""

    mark: Mark
    text: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"\n         {self.advice}" if self.advice else ""
        return f"  {self.mark:5}  {printable(self.text)}{advice}"


@dataclass(frozen=True, slots=True)
class Report:
    """The findings about one layer."""

    heading: str
    lines: list[Line] = field(default_factory=list)

    @property
    def problems(self) -> int:
        """How many lines report a problem."""
        return sum(line.mark is Mark.WRONG for line in self.lines)


def examine(found: Iterable[Entry], timeout: float) -> Iterator[Report]:
    """Examine layers, one after the other.

    Args:
        found: The aliases.
        timeout: Seconds that reaching the forwarders of one layer may take.
    """
    for entry in found:
        yield Report(f"{entry.alias}: {entry.backend or 'without BACKEND'}", list(_lines(entry, timeout)))


def _lines(entry: Entry, timeout: float) -> Iterator[Line]:
    if entry.fault is not None:
        yield Line(Mark.WRONG, entry.fault.problem, entry.fault.advice)
    elif entry.layer is None:
        yield Line(Mark.NOTE, "not a layer of channels-zmq; not checked")
    elif entry.missing_file:
        yield Line(
            Mark.WRONG, f"{entry.missing_file} does not exist", "Mount it; no connection is made until it exists."
        )
    else:
        yield from _settings(entry.layer)
        if is_alone(entry.layer):
            yield from _alone(entry.layer)
        else:
            findings = probe(entry.layer, timeout, sends_largest=True)
            yield from (_line(entry.layer, finding) for finding in findings)
            yield from _together(findings)


def _settings(layer: Layer) -> Iterator[Line]:
    """Yield lines about unusual settings."""
    if layer.config.drop_rate:
        share = f"{layer.config.drop_rate:.0%} of the messages"
        yield Line(Mark.NOTE, f"drop_rate: {share} are dropped on purpose", "Only for tests of an application.")
    if layer.config.encrypts:
        advice = "All processes of the layer need the same keys; this command cannot compare them."
        yield Line(Mark.NOTE, "payloads are encrypted (symmetric_encryption_keys)", advice)


def _line(layer: Layer, finding: Finding) -> Line:
    where = finding.where
    if finding.problem:
        if not isinstance(layer, DedicatedZmqChannelLayer) and finding.is_resolved and not finding.listens:
            text = f"{where}: no process sends at the moment; the first process that sends binds the address"
            return Line(Mark.NOTE, text, "Start the application or make it send, then check again.")
        return Line(Mark.WRONG, f"{where}: {finding.problem}", finding.advice)
    keys = "keys accepted" if finding.has_keys else "without keys"
    facts = [finding.state, f"wire version {finding.version}", keys, f"round trip {duration(finding.round_trip)}"]
    return Line(Mark.OK, f"{where}: {', '.join(facts)}, {counted(finding.clients, 'client')}")


def _together(findings: list[Finding]) -> Iterator[Line]:
    """Yield findings that only all forwarders together show."""
    clients = {finding.clients for finding in findings if not finding.problem}
    if len(clients) > 1:
        text = f"the forwarders have from {min(clients)} to {max(clients)} clients: not all processes reach all of them"
        yield Line(
            Mark.NOTE, text, "Clients that have just started may still be connecting; otherwise check the network."
        )


def _alone(layer: Layer) -> Iterator[Line]:
    """Yield findings about an embedded layer that reaches only its own process, measured inside this one."""
    if not layer.config.drop_rate:
        seconds = asyncio.run(_round_trip(layer))
        yield Line(Mark.OK, f"{layer.address}: a message to a group of this process takes {duration(seconds)}")
    text = f"{layer.address} reaches only its own process: each process of the application has a separate layer"
    advice = "With several processes, use DedicatedZmqChannelLayer and a forwarder."
    yield Line(Mark.NOTE, text, advice)


async def _round_trip(layer: Layer) -> float:
    """Return the seconds that the fastest message to a group of this process takes."""
    best = float("inf")
    async with layer:
        channel = await layer.new_channel("doctor")
        await layer.group_add("doctor", channel)
        for _ in range(ROUNDS):
            begun = time.monotonic()
            await layer.group_send("doctor", {"type": "doctor"})
            await layer.receive(channel)
            best = min(best, time.monotonic() - begun)
    return best
