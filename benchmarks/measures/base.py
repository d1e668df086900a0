"""The definition of a measure, and its environment."""

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
        path: Folders from which our layers are imported, if they are those of another commit.
    """

    addresses: Addresses
    loop: str
    quick: bool
    notes: list[str] = field(default_factory=list)
    path: tuple[str, ...] = ()

    def peer(self, name: str, **config: object) -> Peer:
        """Return the channel layer of that name on this run's servers, with further keyword arguments of its class."""
        found = peer(name, self.addresses)
        return replace(found, path=self.path, config={**found.config, **config})

    @contextmanager
    def alone(self, name: str) -> Iterator["Bench"]:
        """Start servers for the peer of that name alone, whose memory no other measure has used."""
        with servers({name}, self.environment()) as addresses:
            yield replace(self, addresses=addresses)

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which a program runs our layers."""
        return {"PYTHONPATH": os.pathsep.join(self.path)} if self.path else {}

    def server(self, name: str) -> int:
        """Return the pid of the server that the peer of that name uses."""
        return self.addresses.redis_pid if name.startswith("redis") else self.addresses.forwarder_pid

    def crew(self) -> Crew:
        """Return a crew without processes."""
        return Crew(self.loop)

    def size(self, full: int, quick: int) -> int:
        """Return the full size, or the one of a smoke test."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure for several peers.

    Args:
        name: The name for `--only`.
        title: The title of the table.
        peers: The peers that are measured, ours first.
        run: Measures one peer once and returns figures by name; the end of a name is its unit.
        goals: The goals for the figures.
        at_most: The number of rounds, if one takes so long that a few must suffice.
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
        """Return the number of rounds that the caller wants, or by default as many as the measure needs."""
        return self.at_most if wanted is None else wanted

    def measured(self, benches: Sequence[Bench], name: str) -> list[Figures]:
        """Measure one peer once on one bench, or on several if this measure can do that in turns."""
        if self.in_turns is not None and len(benches) > 1:
            return self.in_turns(benches, name)
        return [self.run(bench, name) for bench in benches]


def fresh(prefix: str) -> str:
    """Return a name that no earlier round has used."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def percentile(values: list[int], percent: float) -> float:
    """Return the nearest-rank percentile of times in ns, in us."""
    ordered = sorted(values)
    rank = max(0, min(len(ordered) - 1, round(percent / 100 * len(ordered)) - 1))
    return ordered[rank] / 1_000


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, in seconds, on Linux; `/proc/PID/stat` has steps of 10 ms."""
    return time.clock_gettime(~pid << 3 | 2)  # the clock that clock_getcpuclockid(3) names


def private_bytes(pid: int) -> int:
    """Return the bytes of memory that a process shares with no other one."""
    return int(psutil.Process(pid).memory_full_info().uss)
