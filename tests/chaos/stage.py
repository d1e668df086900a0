"""The stage of a scenario: its forwarders, relay and clients, the load that they carry, and the count at the end."""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil
from counting import Job, JobCounts, Sent, count_jobs
from faults import ClientProcess, ProcessGroup, Site, wait_until
from forwarders import free_ports
from network import Network
from relays import Relay
from report import Figures, Pace, Received
from rotations import Rotation
from traffic import Load

TOPICS = 50
JOB_CHANNELS = [f"jobs-{number}" for number in range(4)]
CAPACITY = 1_000_000
"""The capacity of mailboxes and outboxes. It exceeds an outage's messages, so that no loss is due to capacity."""
PREFETCH = 4
"""Jobs that a forwarder hands to a receiver ahead of its readers, for each channel: the default of the layer."""
HANDED = len(JOB_CHANNELS) * (1 + PREFETCH)
"""Jobs that one forwarder may have handed to a receiver, which has one reader for each channel (docs/design/0004)."""
CONNECTED = 30.0
"""Seconds within which every client reconnects."""
CAUGHT_UP = 30.0
"""Seconds after a fault within which a receiver's messages must be recent ones again."""
LAG = 1.0
"""Seconds that a recent message may have taken."""


@dataclass(frozen=True, slots=True)
class Options:
    """The load and the pace, as given by the command line.

    Args:
        senders: Number of sending processes.
        receivers: Number of receiving processes.
        rate: Group and direct messages per second, of all senders.
        row: How many of these in a row go to one topic; a busy sender makes batches of them.
        job_rate: Jobs per second, of all senders.
        loop: `asyncio` or `uvloop`, for clients.
        seed: Of the choice of victims.
        short: Whether to do few repetitions with short pauses.
        minutes: Duration of `soak`.
    """

    senders: int = 1
    receivers: int = 2
    rate: float = 5_000.0
    row: int = 1
    job_rate: float = 200.0
    loop: str = "asyncio"
    seed: int = 1
    short: bool = False
    minutes: float = 20.0

    @property
    def caption(self) -> str:
        """The caption of the table."""
        return (
            f"Senders: {self.senders}; receivers: {self.receivers}; {self.rate:,.0f} messages/s, "
            f"{self.row} in a row, and "
            f"{self.job_rate:,.0f} jobs/s in all; {self.loop}; {len(os.sched_getaffinity(0))} cores; seed {self.seed}. "
            "A group message counts once for each receiver."
        )

    @property
    def pause(self) -> float:
        """Seconds of load between two faults."""
        return 0.5 if self.short else 1.0

    @property
    def quiet(self) -> float:
        """Seconds without a message after which the rest counts as lost. A client gives a silent forwarder 2.75 s."""
        return 4.0 if self.short else 6.0


@dataclass(frozen=True, slots=True)
class Setting:
    """How a scenario begins.

    Args:
        sites: Number of forwarders that CONFIG lists.
        running: How many of them are running.
        relay: The port of the first forwarder that clients reach through a relay, if any.
        relayed: How the names of the clients begin that use the relay; all do by default.
        delay: Seconds that everything takes to and from the first forwarder, at both ports.
        padding: Further bytes in each message.
        messages: Whether there are group and direct messages; else there are only jobs.
        job_rate: Jobs per second, if they are not those of the command line.
        network: How the names of the clients begin that are in a network of their own; none are by default.
        capacity: Of the mailboxes of the first receiver.
        keys: Whether connections are encrypted, with keys that can be changed.
        old_list: Whether CONFIG of the first receiver lists the first forwarder only.
    """

    sites: int = 1
    running: int = 1
    relay: Literal["pull", "pub"] | None = None
    relayed: str = ""
    delay: float = 0.0
    padding: int = 0
    messages: bool = True
    job_rate: float | None = None
    network: str = ""
    capacity: int = CAPACITY
    keys: bool = False
    old_list: bool = False


class Stage:
    """The processes of one scenario.

    Args:
        setting: How the scenario begins.
        options: The load and the pace.
        repetitions: Number of faults.
        folder: For the logs of processes.
    """

    def __init__(self, setting: Setting, options: Options, repetitions: int, folder: Path) -> None:
        self.options, self.random = options, random.Random(options.seed)
        self.faults = 0
        self.at_risk = 0
        self.memory: dict[str, list[int]] = {}
        self._setting, self._repetitions = setting, repetitions
        self.network = Network() if setting.network else None
        self._host = self.network.host if self.network is not None else "127.0.0.1"
        self._folder, self._processes = folder, ProcessGroup()
        self._rotation = Rotation(folder) if setting.keys else None
        flags = self._rotation.flags if self._rotation is not None else ()
        ports = iter(free_ports(3 * setting.sites + 2))
        self.sites = [
            Site(f"forwarder-{index}", folder, [next(ports) for _ in range(3)], self._host, flags)
            for index in range(setting.sites)
        ]
        relayed = ("pull", "pub") if setting.delay else (setting.relay,)
        self._relays = {
            kind: Relay(next(ports), getattr(self.sites[0], f"{kind}_port"), setting.delay)
            for kind in relayed
            if kind is not None
        }
        self._groups = [f"group-{number}" for number in range(TOPICS - options.receivers)] if setting.messages else []
        self.receivers: dict[int, ClientProcess] = {}
        self._exempt: set[int] = set()
        self._senders: list[ClientProcess] = []
        self._jobs_begun = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes and the relay, also after an error."""
        self._processes.kill()
        if self.network is not None:
            self.network.__exit__(kind, error, trace)
        for relay in self._relays.values():
            relay.end()

    @property
    def relay(self) -> Relay:
        """The relay; only valid if there is exactly one."""
        (relay,) = self._relays.values()
        return relay

    def open(self) -> None:
        """Start everything, and wait until all clients are connected and all receivers have joined."""
        if self.network is not None:
            self.network.__enter__()
        for relay in self._relays.values():
            relay.start()
        first = self.sites[: self._setting.running]
        for site in first:
            site.start(self._processes)
        for index in range(self.options.receivers):
            self._start_receiver(index)
        for index in range(self.options.senders):
            self._senders.append(self._start_client(f"sender-{index}", "sender", str(index)))
        for site in first:
            site.running.await_ready()
        self._await_connected()
        self._channels = [self.receivers[index].ask("join", self._groups) for index in self.receivers]
        for receiver in self.receivers.values():
            receiver.ask("work", JOB_CHANNELS)

    def begin(self) -> None:
        """Start the load, then start to measure silence."""
        load = Load(
            rate=self._rate / self.options.senders,
            row=self.options.row,
            job_rate=self._job_rate / self.options.senders,
            groups=self._groups,
            channels=self._channels if self._setting.messages else [],
            jobs=JOB_CHANNELS,
            padding=self._setting.padding,
        )
        for sender in self._senders:
            sender.ask("begin", asdict(load))
        for receiver in self.receivers.values():
            receiver.ask("begin")
        self._began = time.monotonic()
        time.sleep(self.options.pause)  # of load

    # The steps of scenarios

    def repetitions(self) -> Iterator[int]:
        """Yield once for each fault, and count those that are over."""
        for number in range(self._repetitions):
            yield number
            self.faults += 1

    def in_turns(self) -> Iterator[Site]:
        """Yield the running forwarders in turns, in an order that depends on the seed."""
        running = [site for site in self.sites if site.process is not None]
        self.random.shuffle(running)
        for number in self.repetitions():
            yield running[number % len(running)]

    def start(self, *sites: Site) -> None:
        """Start forwarders and wait until they accept messages."""
        for site in sites:
            site.start(self._processes)
        for site in sites:
            site.running.await_ready()

    def rest(self) -> None:
        """Wait until all clients are connected and have caught up, then let the load run undisturbed for a moment."""
        self._await_connected()
        if self._setting.messages:
            for index in self.receivers.keys() - self._exempt:
                self._await_recent(self.receivers[index])
        time.sleep(self.options.pause)  # of load

    def kill(self, site: Site) -> None:
        """Kill a forwarder.

        The jobs inside it are at risk, and those that it may have accepted since its status was read: the sends that
        had not returned before, and those that had begun afterwards.
        """
        returned = sum(sender.ask("jobs")[1] for sender in self._senders)
        inside = site.running.jobs()
        site.kill()
        begun = sum(sender.ask("jobs")[0] for sender in self._senders)
        self.at_risk += inside + begun - returned

    def freeze_receiver(self, index: int) -> None:
        """Suspend a receiver, whose losses are reported and not judged."""
        self._exempt.add(index)
        self.receivers[index].freeze()
        self.at_risk += HANDED * self._running

    def slow_down_receiver(self, index: int) -> None:
        """Let a receiver take about a tenth of the messages; its losses are reported and not judged."""
        self._exempt.add(index)
        self.receivers[index].ask("slow_down", 10 / self._rate)

    def kill_receiver(self, index: int) -> None:
        """Kill a receiver. Each reader may have taken one more job, which it has not logged."""
        self.receivers.pop(index).kill()
        self.at_risk += HANDED * self._running + len(JOB_CHANNELS)

    def replace_worker(self, index: int) -> None:
        """Kill a receiver that has only jobs, and start another one in its place."""
        self.kill_receiver(index)
        self._start_receiver(index)
        self.receivers[index].ask("work", JOB_CHANNELS)
        self.receivers[index].ask("begin")

    def change_keys(self, former: str, key: str) -> None:
        """Give all clients another key, and revoke the former one once no client uses it."""
        assert self._rotation is not None, "only with `keys`"
        clients = [*self._senders, *self.receivers.values()]
        sessions, connections = [_sessions(client) for client in clients], sum(map(_connections, clients))
        self._rotation.allow(former, key)
        self._rotation.give(key)
        for client, before in zip(clients, sessions, strict=True):
            wait_until(partial(_is_later, client, before), CONNECTED, f"{client.name} has not changed its key")
        # A client sends by both connections for 2 s.
        wait_until(lambda: sum(map(_connections, clients)) > connections, CONNECTED, "no client sends with its new key")
        wait_until(lambda: sum(map(_connections, clients)) == connections, CONNECTED, "a former key is in use")
        self._rotation.allow(key)

    def measure_memory(self) -> None:
        """Record the resident memory of each process."""
        for process in self._processes.living():
            resident = int(psutil.Process(process.popen.pid).memory_info().rss)
            self.memory.setdefault(process.name, []).append(resident)

    # The count

    def finish(self) -> Figures:
        """Stop the load, wait until everything has arrived or nothing more arrives, and count."""
        for receiver in self.receivers.values():
            receiver.ask("end")
        seconds = time.monotonic() - self._began
        for sender in self._senders:
            sender.tell("stop")
        reports = [sender.answer() for sender in self._senders]
        achieved = {kind: sum(sum(report[kind]) / report["seconds"] for report in reports) for kind in ("sent", "jobs")}
        sent = [report["sent"] for report in reports]
        jobs: Sent = {index: report["jobs"] for index, report in enumerate(reports)}
        unknown = [(index, *job) for index, report in enumerate(reports) for job in report["unknown"]]
        self._await_arrivals(sent, jobs, unknown)

        received = {index: self._received(index, sent) for index in self.receivers}
        names = {index: receiver.name for index, receiver in self.receivers.items()}
        figures = Figures(
            faults=self.faults,
            seconds=seconds,
            judged={names[index]: one for index, one in received.items() if index not in self._exempt},
            exempt={names[index]: one for index, one in received.items() if index in self._exempt},
            jobs=self._count_jobs(jobs, unknown),
            at_risk=self.at_risk,
            pace={"messages": Pace(self._rate, achieved["sent"]), "jobs": Pace(self._job_rate, achieved["jobs"])},
            refused=sum(report["refused"] for report in reports),
            senders={sender.name: sender.ask("stats") for sender in self._senders},
            memory=self.memory,
        )
        self._end()
        figures.failures = self._processes.failures
        return figures

    def crashed(self) -> list[str]:
        """Return one text for each forwarder that has exited by itself."""
        return [
            f"{site.name} exited with status {site.process.popen.returncode}{site.process.tail()}"
            for site in self.sites
            if site.process is not None and not site.process.runs
        ]

    def _await_arrivals(self, sent: list[list[int]], jobs: Sent, unknown: list[Job]) -> None:
        before: list[int] = []
        changed = time.monotonic()
        while time.monotonic() - changed < self.options.quiet:
            progress = [
                receiver.ask("progress", sent, self._topics_of(index)) for index, receiver in self.receivers.items()
            ]
            if not any(missing for _, missing in progress) and not self._count_jobs(jobs, unknown).lost:
                return
            arrived = [count for count, _ in progress] + [log.stat().st_size for log in self._job_logs()]
            if arrived != before:
                before, changed = arrived, time.monotonic()
            time.sleep(0.05)

    def _received(self, index: int, sent: list[list[int]]) -> Received:
        topics, receiver = self._topics_of(index), self.receivers[index]
        counts = receiver.ask("counts", sent, topics)
        return Received(
            messages=sum(numbers[topic] for numbers in sent for topic in topics),
            lost=counts["lost"],
            twice=counts["twice"],
            disorder=counts["disorder"],
            silence_ms=1000 * counts["silence"],
            lateness_ms=1000 * counts["lateness"],
            examples=counts["examples"],
            stats=receiver.ask("stats"),
        )

    def _count_jobs(self, sent: Sent, unknown: list[Job]) -> JobCounts:
        return count_jobs(sent, unknown, (log.read_bytes() for log in self._job_logs()))

    def _topics_of(self, index: int) -> list[int]:
        return [*range(len(self._groups)), len(self._groups) + index] if self._setting.messages else []

    def _job_logs(self) -> list[Path]:
        return sorted(self._folder.glob("*.jobs"))

    @property
    def _rate(self) -> float:
        return self.options.rate if self._setting.messages else 0.0

    @property
    def _job_rate(self) -> float:
        return self._setting.job_rate or self.options.job_rate

    # Processes

    @property
    def _running(self) -> int:
        return sum(site.process is not None for site in self.sites)

    def _end(self) -> None:
        self._processes.failures += self.crashed()
        self._processes.end([*self._senders, *self.receivers.values()])
        self._processes.end([site.process for site in self.sites if site.process is not None and site.process.runs])

    def _await_connected(self) -> None:
        for client in [*self._senders, *self.receivers.values()]:
            wait_until(partial(_is_connected, client, self._running), CONNECTED, f"{client.name} is not connected")

    def _await_recent(self, receiver: ClientProcess) -> None:
        """Wait until a receiver gets messages that were sent a moment ago, rather than during a fault.

        If it never does, the goals of the scenario judge that.
        """
        receiver.ask("forget_lag")
        until = time.monotonic() + CAUGHT_UP
        while receiver.ask("lag") > LAG and time.monotonic() < until:
            time.sleep(0.01)  # between two questions

    def _config(self, name: str) -> dict[str, Any]:
        """Return CONFIG of a client: one address for one forwarder, a list for several."""
        capacity = self._setting.capacity if name == "receiver-0" else CAPACITY
        config: dict[str, Any] = {"capacity": capacity, "outbox_capacity": CAPACITY, "prefetch": PREFETCH}
        if self._rotation is not None:
            config |= self._rotation.config
        sites = self.sites[:1] if self._setting.old_list and name == "receiver-0" else self.sites
        for kind in ("pull", "pub"):
            ports = [getattr(site, f"{kind}_port") for site in sites]
            if kind in self._relays and name.startswith(self._setting.relayed):
                ports[0] = self._relays[kind].port
            addresses = [f"tcp://{self._host}:{port}" for port in ports]
            config[f"{kind}_socket_address"] = addresses if len(addresses) > 1 else addresses[0]
        return config

    def _start_receiver(self, index: int) -> None:
        self._jobs_begun += 1
        log = self._folder / f"receiver-{index}-{self._jobs_begun}.jobs"
        self.receivers[index] = self._start_client(f"receiver-{index}", "receiver", str(log))

    def _start_client(self, name: str, role: str, argument: str) -> ClientProcess:
        log = self._folder / f"{name}.log"
        prefix = self.network.prefix if self.network is not None and name.startswith(self._setting.network) else ()
        client = ClientProcess(name, log, self.options.loop, role, self._config(name), argument, prefix)
        return self._processes.add(client)


def _is_connected(client: ClientProcess, forwarders: int) -> bool:
    """Return whether a client sends by as many forwarders as are running."""
    return [link["carries"] for link in client.ask("stats")["links"]].count(True) == forwarders


def _sessions(client: ClientProcess) -> list[int]:
    return [link["session"] for link in client.ask("stats")["links"]]


def _is_later(client: ClientProcess, before: list[int]) -> bool:
    """Return whether a client is in later sessions at all forwarders."""
    return all(now > former for now, former in zip(_sessions(client), before, strict=True))


def _connections(client: ClientProcess) -> int:
    return len(psutil.Process(client.popen.pid).net_connections("tcp"))
