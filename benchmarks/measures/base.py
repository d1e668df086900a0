"""What a measure is, and what it is given."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import psutil

from benchmarks.crew import Crew
from benchmarks.goals import Goal
from benchmarks.peers import Peer, peer
from benchmarks.servers import Addresses, servers

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Bench:
    """The servers and the size of a run.

    Args:
        addresses: Where the servers listen.
        loop: `asyncio` or `uvloop`.
        quick: Small sizes, whose figures mean nothing.
        notes: Known defects of peers are added here.
        path: Folders to import our layers from, if they are those of another commit.
    """

    addresses: Addresses
    loop: str
    quick: bool
    notes: list[str] = field(default_factory=list)
    path: tuple[str, ...] = ()

    def peer(self, name: str, **config: object) -> Peer:
        """The channel layer of that name on this run's servers, with further keyword arguments of its class."""
        found = peer(name, self.addresses)
        return replace(found, path=self.path, config={**found.config, **config})

    @contextmanager
    def alone(self, name: str) -> Iterator["Bench"]:
        """Servers for the peer of that name alone, whose memory no other measure has used."""
        with servers({name}, self.environment()) as addresses:
            yield replace(self, addresses=addresses)

    def environment(self) -> dict[str, str]:
        """What a program needs to run our layers."""
        return {"PYTHONPATH": os.pathsep.join(self.path)} if self.path else {}

    def server(self, name: str) -> int:
        """The pid of the server that the peer of that name uses."""
        return self.addresses.redis_pid if name.startswith("redis") else self.addresses.forwarder_pid

    def crew(self) -> Crew:
        """No processes yet."""
        return Crew(self.loop)

    def size(self, full: int, quick: int) -> int:
        """The full size, or the one of a smoke test."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Measure:
    """Something to measure for several peers.

    Args:
        name: What `--only` takes.
        title: What the table says.
        peers: Whom it is measured for, ours first.
        run: Measures one peer once and returns figures by name; the end of a name is its unit.
        goals: What is asked of the figures.
        at_most: The number of rounds, where one takes so long that few have to do.
        in_turns: Measures one peer once on several benches side by side, for figures that scatter more than they
            differ if the benches are measured one after the other.
    """

    name: str
    title: str
    peers: tuple[str, ...]
    run: Callable[[Bench, str], Figures]
    goals: tuple[Goal, ...]
    at_most: int = 5
    in_turns: Callable[[Sequence[Bench], str], list[Figures]] | None = None

    def rounds(self, wanted: int | None) -> int:
        """Return how many rounds to run, if the caller wants so many, or as many as it takes."""
        return self.at_most if wanted is None else wanted

    def measured(self, benches: Sequence[Bench], name: str) -> list[Figures]:
        """Measure one peer once on one bench, or on several if this measure can do that in turns."""
        if self.in_turns is not None and len(benches) > 1:
            return self.in_turns(benches, name)
        return [self.run(bench, name) for bench in benches]


def fresh(prefix: str) -> str:
    """A name that no earlier round has used."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def percentile(values: list[int], percent: float) -> float:
    """The nearest-rank percentile of times in ns, in us."""
    ordered = sorted(values)
    rank = max(0, min(len(ordered) - 1, round(percent / 100 * len(ordered)) - 1))
    return ordered[rank] / 1_000


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process so far, in seconds, on Linux; `/proc/PID/stat` counts it in steps of 10 ms."""
    return time.clock_gettime(~pid << 3 | 2)  # the clock that clock_getcpuclockid(3) names


def private_bytes(pid: int) -> int:
    """The memory that a process shares with no other."""
    return int(psutil.Process(pid).memory_full_info().uss)
