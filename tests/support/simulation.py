"""A simulation of clients and forwarders with traffic, faults and checks."""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from simulated_forwarder import Forwarder
from simulated_ledger import LIFE, Change, Ledger, Member, Message
from simulated_network import Line, Network
from simulated_process import Process, replace_surroundings
from simulated_time import Cancelled, Task, World, sleep

from channels_zmq.client.counters import Report
from channels_zmq.client.mailboxes import Payload, Shared
from channels_zmq.errors import ConnectionLost, ForwarderUnavailable, OutboxFull
from channels_zmq.transports import roster
from channels_zmq.transports.states import State
from channels_zmq_forwarder import wire

CAPACITY = 10_000
GROUPS = ("one", "two", "three")
JOBS = ("work", "mail")
COPIES = ("always", "sometimes")
"""Normal channels that are members of groups."""
JOB_CAPACITY = 20
SHORT, LONG = (0.1, 2.5), (3.8, 7.0)
"""Ranges for the seconds of a freeze: subscribers notice the longer ones and never the shorter ones."""


def address(number: int, net: int = 0) -> roster.Forwarder:
    """Return the addresses of a forwarder, which differ for each net."""
    return roster.Forwarder(f"tcp://10.{net}.0.{number}:5555", f"tcp://10.{net}.0.{number}:5556")


def bytes_of(payload: Payload) -> bytes:
    return payload.payload if isinstance(payload, Shared) else payload


class Simulation:
    """Clients and forwarders, with their traffic and faults.

    Args:
        monkeypatch: Undoes the replacements.
        seed: Seed of the random choices.
        write: Called with a line for each event; None for no output.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, seed: int, write: Callable[[str], object] | None = None
    ) -> None:
        self.world = World(seed)
        self.random = self.world.random
        self._write = write
        self.ledger = Ledger(self.world)
        push_mark = self.random.choice((20, 200, 10_000, 10_000))
        self.network = Network(self.world, push_mark)
        self.housekeeper = replace_surroundings(monkeypatch, self.world, self.network, self._log)
        self.forwarders: dict[roster.Forwarder, Forwarder] = {}
        """The last run at each address."""
        self.processes: list[Process] = []
        self.steady: set[Process] = set()
        self._numbers = 0
        self.drops = 0
        """Number of jobs that forwarders which have ended have counted as lost."""
        self.is_quiet = False
        self._open_calls: dict[Hashable, Process] = {}
        self.reads_jobs = True

    # Creation

    def start_forwarder(self, *addresses: roster.Forwarder) -> Forwarder:
        forwarder = Forwarder(self.world, self.network, addresses, self.random.randbytes(8))
        for one in addresses:
            self.forwarders[one] = forwarder
            self.network.black_holes -= set(one)
        return forwarder

    def start_process(
        self,
        forwarders: Sequence[roster.Forwarder],
        *,
        is_steady: bool = False,
        delays: tuple[float, float] | None = None,
        outbox: int = 10_000,
        outbox_bytes: int = 2**24,
        window: int = 4096,
        prefetch: int = 4,
    ) -> Process:
        self._numbers += 1
        settings = SimpleNamespace(outbox_capacity=outbox, outbox_bytes=outbox_bytes, window=window, prefetch=prefetch)
        process = Process(
            self.world,
            self.network,
            self.housekeeper,
            self._numbers,
            forwarders,
            delays=delays,
            settings=settings,
        )
        self.processes.append(process)
        if is_steady:
            self.steady.add(process)
        process.inbox_channel = f"specific.{process.client.inbox.decode()}!inbox"
        process.run(self._read(process, process.inbox_channel), self._ended)
        return process

    def living(self) -> list[Process]:
        return [one for one in self.processes if not (one.is_gone or one.is_closing)]

    # Consumers

    async def _read(self, process: Process, channel: str) -> None:
        while True:
            payload = await process.connection.receive(channel, CAPACITY, normal=False)
            self.ledger.received(process, channel, bytes_of(payload))

    def join(self, process: Process, group: str, name: str, by: Process | None = None) -> Member:
        """Let a new consumer of a process join a group and read, and return its membership.

        Another process may add its channel to the group.
        """
        channel = f"specific.{process.client.inbox.decode()}!{name}"
        caller = by or process
        member = self.ledger.member(process, channel, wire.group_topic(group), is_foreign=caller is not process)
        self._open_calls[member] = caller
        caller.run(self._join(caller, group, member), self._ended)
        return member

    async def _join(self, caller: Process, group: str, member: Member) -> None:
        process, channel = member.process, member.channel
        try:
            if caller is process:
                await process.connection.join(member.topic, group, channel, CAPACITY, None)
            else:
                await caller.connection.change_foreign(process.client.inbox, group, channel, add=True)
        except ForwarderUnavailable:
            self.note(f"{caller.number} could not add a channel of {process.number} to {group}")
            member.left = member.called
            self._join_failed(caller, member)
        else:
            if caller is process or self._is_in_group(member):
                member.joined = self.world.now
            else:  # it was cut off for so long that its forwarder takes it for gone, which is no error
                member.left = member.called
        finally:
            self._open_calls.pop(member, None)
        # A request that was not answered in time may have been carried out.
        if not process.is_gone and (caller is not process or member.left is None):
            process.run(self._read(process, channel), self._ended)

    @staticmethod
    def _is_in_group(member: Member) -> bool:
        group = member.process.client.memberships.groups.get(wire.Topic(member.topic))
        return group is not None and member.process.client.mailboxes.boxes.get(member.channel) in group.members

    def _join_failed(self, process: Process, member: Member) -> None:
        assert not self.is_quiet, "no join can fail without a fault"

    def leave(self, member: Member) -> None:
        if member.left is None and member.joined is not None:
            member.left = self.world.now
            member.process.connection.leave(member.topic, member.channel)

    async def _work(self, process: Process, channel: str, pause: float, count: float) -> None:
        """Read a number of jobs, some of them followed by a pause."""
        while count > 0:
            count -= 1
            payload = await process.connection.receive(channel, JOB_CAPACITY, normal=True)
            self.ledger.took_job(process, bytes_of(payload))
            if pause and self.random.random() < 0.5:
                await sleep(process.loop, self.random.uniform(0, pause))

    def read_jobs(self, process: Process, channel: str, *, pause: float = 0.0, count: float = inf) -> Task:
        return process.run(self._work(process, channel, pause, count), self._ended)

    async def _read_copies(self, process: Process, channel: str, pause: float) -> None:
        while True:
            payload = await process.connection.receive(channel, CAPACITY, normal=True)
            self.ledger.took_copy(channel, bytes_of(payload))
            if pause:
                await sleep(process.loop, self.random.uniform(0, pause))

    def read_copies(self, process: Process, channel: str, *, pause: float = 0.0) -> None:
        process.run(self._read_copies(process, channel, pause), self._ended)

    def change_member(self, process: Process, group: str, channel: str, *, adds: bool) -> None:
        """Let a process add a normal channel to a group, or discard it."""
        change = self.ledger.change(process, group, channel, adds=adds)
        self._open_calls[change] = process
        process.run(self._change_member(change), self._ended)

    async def _change_member(self, change: Change) -> None:
        connection, (group, channel) = change.process.connection, change.member
        try:
            if change.adds:
                await connection.add_normal(group, channel, CAPACITY, None)
            else:
                await connection.discard_normal(group, channel)
            change.is_confirmed = True
        except ForwarderUnavailable:
            assert not self.is_quiet, "no change can fail without a fault"
        finally:
            change.ended = self.world.now
            self._open_calls.pop(change, None)

    def _ended(self, result: Any, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Cancelled) and type(error).__name__ != "StopConsumer":
            raise error

    # Sending

    def send_group(self, process: Process, group: str, life: float = LIFE) -> Message:
        topic = wire.group_topic(group)
        message = self.ledger.new(process, topic, life)
        full = process.client.counters.dropped["outbox_full"]
        with process.on_loop():
            process.connection.group_send(topic, message.payload, wire.milliseconds(life))
        message.is_accepted = process.client.counters.dropped["outbox_full"] == full
        return message

    def send_direct(self, process: Process, to: Process, life: float = LIFE) -> Message:
        message, ttl = self.ledger.new(process, to.inbox_channel, life), wire.milliseconds(life)
        try:
            with process.on_loop():
                sent = process.connection.send_direct(to.client.inbox, to.inbox_channel, message.payload, ttl, CAPACITY)
        except OutboxFull:
            sent = False
        message.is_accepted = bool(sent)
        return message

    def send_job(self, process: Process, channel: str, life: float = LIFE) -> Message:
        message = self.ledger.new(process, channel, life)
        message.is_accepted = False
        self._open_calls[message] = process
        process.run(self._send_job(process, channel, message), self._ended)
        return message

    async def _send_job(self, process: Process, channel: str, message: Message) -> None:
        try:
            ttl = wire.milliseconds(message.life)
            message.is_confirmed = await process.connection.send_normal(channel, message.payload, ttl, JOB_CAPACITY)
        except (ConnectionLost, OutboxFull):
            pass
        except ForwarderUnavailable:
            assert not self.is_quiet, "no send can fail without a fault"
        finally:
            self._open_calls.pop(message, None)

    # Frames in transit

    def _excuse(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            if frame[:1] in (b"B", b"Q") or wire.sub_kind(frame) in (wire.JOB.kind, wire.RETURNED.kind):
                self.ledger.excused.add(self.ledger.of(frame).number)

    def kill_forwarder(self, forwarder: Forwarder) -> None:
        self.note(f"kill {self._name(forwarder)}")
        exchange = forwarder.exchange
        self._count_drops(forwarder)
        for queue in exchange.queues.by_channel.values():
            self._excuse_payloads(entry.payload for entry in queue.waiting.values())
            jobs = [*(credit.unsettled for credit in queue.credits.values()), *queue.orphans.values()]
            self._excuse_payloads(job.entry.payload for some in jobs for job in some.values() if job.entry)
        self._excuse([*forwarder.frames_inside(), *forwarder.returned])
        self._excuse_under_way(forwarder.lines)
        forwarder.kill()

    def _excuse_payloads(self, payloads: Iterable[bytes]) -> None:
        self.ledger.excused.update(self.ledger.of(payload).number for payload in payloads)

    def _count_drops(self, forwarder: Forwarder) -> None:
        drops = forwarder.exchange.drops
        self.drops += sum(drops[cause] for cause in ("lost_delivery", "expired", "not_returned", "queue_bytes"))
        forwarder.exchange.drops = type(drops)()

    def kill_process(self, process: Process) -> None:
        self.note(f"kill process {process.number}")
        self._excuse_held(process)
        self._excuse_under_way(process.lines())
        process.kill()

    def close_process(self, process: Process) -> None:
        """Close a process gracefully, and excuse the jobs that it could not hand back."""
        mailboxes = process.client.mailboxes
        assert mailboxes.waiting == sum(len(box.mail) for box in mailboxes.boxes.values())

        def closed() -> None:
            self._excuse_held(process)
            if not process.has_delivered:
                self._excuse_under_way(line for line in self.network.lines if line.socket.process is process)

        process.close(closed)

    def _excuse_under_way(self, lines: Iterable[Line]) -> None:
        """Excuse the jobs that are in transit by some connections."""
        for line in lines:
            self._excuse(frame for way in (line.up, line.down) for _, frame in way.under_way)

    def _excuse_held(self, process: Process) -> None:
        """Excuse the jobs that a process holds."""
        for channel in JOBS:
            box = process.client.mailboxes.boxes.get(channel)
            if box is not None:
                self._excuse_payloads(bytes_of(mail[1]) for mail in box.mail)
        outboxes = [process.links._lobby, *(link._outbox for link in process.links._links.values())]
        self._excuse(held.body for outbox in outboxes for held in outbox._held.values())
        for socket in process.context.sockets:
            self._excuse(getattr(socket, "_inbox", ()))

    # Observation

    def note(self, line: str) -> None:
        if self._write is not None:
            self._write(f"{self.world.now - 1000:8.3f} {line}")

    def _name(self, forwarder: Forwarder) -> str:
        return f"forwarder {forwarder.addresses[0].pub} {forwarder.exchange.instance.hex()}"

    def _log(self, lines: list[Report]) -> None:
        for line in lines:
            text = line.message % line.arguments
            self.note(f"log: {text}")
            assert line.level < logging.ERROR, text

    def check(self) -> None:
        """Check the invariants of each living process."""
        for process in self.living():
            check_process(process)

    def close(self) -> None:
        """End all coroutines before the garbage collector does."""
        for process in self.processes:
            process.is_gone = True
        for task in list(self.world.tasks):
            task.close()

    def run(self, seconds: float) -> None:
        """Let time pass, and check the invariants every half second."""
        end = self.world.now + seconds
        while self.world.now < end:
            self.world.run(min(0.5, end - self.world.now))
            self.check()


def check_process(process: Process) -> None:
    """Check that the data structures of a process agree with each other."""
    links = process.links
    up = [
        link for link in links._links.values() if link.state is State.UP and not links._roster.ignores(link.forwarder)
    ]
    homes, serving = [link for link in up if link.is_reached], links._homes.serving
    is_alone = not homes and len(serving) <= 1 and set(serving) <= set(up)
    assert serving == homes or is_alone, "the homes are not the links that are up"
    outboxes = [links._lobby, *(link._outbox for link in links._links.values())]
    held = [held for outbox in outboxes for held in outbox._held.values()]
    assert links._ledger.count == len(held), "the ledger counts other messages than are held"
    assert links._ledger.size == sum(len(one.body) for one in held)
    assert not links._lobby or not links._homes.serving, "messages wait though a link is up"
