"""Random schedules: traffic and faults for a while, then quiet, then the check of the promises."""

from collections.abc import Callable, Sequence

import pytest
from simulated_forwarder import Forwarder
from simulated_ledger import LIFE, Member, Message
from simulated_network import Line
from simulated_process import Process
from simulation import COPIES, GROUPS, JOBS, LONG, SHORT, Simulation, address

from channels_zmq.client import batch, window
from channels_zmq.client.resumption import ON_THE_WAY
from channels_zmq.client.window import BLOCK_SECONDS
from channels_zmq.errors import ForwarderUnavailable
from channels_zmq.transports.roster import Forwarder as Address
from channels_zmq.transports.states import State
from channels_zmq_forwarder import wire

WARM_UP = 6.0
HEALING = 75.0
"""Maximum seconds until all forwarders have settled, which takes 60 at most, and all links are up."""
QUIET = 11.0
RESOLVE_EVERY = 5.0
"""Seconds between two times that a process resolves names."""
FOUND_WITHIN = RESOLVE_EVERY + 4.0
"""Seconds until all processes have found a new forwarder, even frozen ones, and got what others have sent by it."""
LATE_KEYS = 4.0
"""Maximum seconds for which a forwarder refuses a new key. One that starts waits longer for a missing client."""
FEW_BYTES = 2_000
"""Bytes of an outbox and of a window that few messages fill."""
STOPS = {"freeze", "stall_push", "stall_sub", "block", "freeze_process"}
"""Faults during which messages do not age, because they wait in a socket."""
HOPS, SCHEDULING = 4, 1.0
"""How often a message may cross the network, and the seconds that it may wait in sockets without such a fault."""
JUST_JOINED = ON_THE_WAY + BLOCK_SECONDS
"""Seconds after a join in which a repeated message may count as one from before it."""


class Schedule(Simulation):
    """A random schedule.

    Args:
        monkeypatch: Undoes the replacements.
        seed: Seed of the random choices.
        write: Called with a line for each fault.
        without: Names of faults to leave out, which shows the ones that a failure needs.
        seconds: Duration of the faults; random if None.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        seed: int,
        write: Callable[[str], object] | None = None,
        *,
        without: Sequence[str] = (),
        seconds: float | None = None,
    ) -> None:
        super().__init__(monkeypatch, seed, write)
        choose = self.random.choice
        self.count = choose((1, 2, 2, 3, 3))
        self.seconds = seconds or self.random.uniform(5, 25)
        self.faults_every = choose((0.3, 1.0, 2.0, 6.0))
        self.traffic_every = choose((0.02, 0.05, 0.2))
        self.flushes = self.random.random() < 0.1
        monkeypatch.setattr(window, "LEAST_BYTES", FEW_BYTES)
        if self.random.random() < 0.5:  # each message waits for those that follow in the same turn of its event loop
            monkeypatch.setattr(batch, "RUN", 0)
            monkeypatch.setattr(batch, "WITHIN", float("inf"))
        self.network.delays = choose(((0.0002, 0.002), (0.0005, 0.02), (0.001, 0.08)))
        self.freezes = choose(((SHORT,), (LONG,), (SHORT, LONG)))
        self.cuts_steady = self.random.random() < 0.3
        """Whether steady processes are cut off too. A forwarder that is killed then would take along what they miss."""
        self.keys_are_late = not self.cuts_steady and self.random.random() < 0.5
        """Whether forwarders may learn of a new key late. If connections are cut as well, a process is cut off for
        longer than messages behind a gap wait."""
        self.cuts_all = False
        """Whether a forwarder was frozen for so long that all of its subscribers were cut off."""
        self.has_short_lives = self.random.random() < 0.3
        """Whether some messages expire soon."""
        self.without = set(without)
        if self.has_short_lives and self.random.random() < 0.5:
            self.without |= STOPS
            self.ledger.late_at_most = HOPS * self.network.delays[1] + SCHEDULING
        self.addresses = [address(number) for number in range(1, self.count + 1)]
        self.found_at: dict[Address, float] = {}
        """When all processes have found a forwarder at a new address."""
        self.has_two_nets = self.random.random() < 0.2
        """Whether each forwarder has two pairs of addresses, of which each process lists one."""
        self.nowhere = [address(9)] if self.random.random() < 0.2 else []
        """Addresses without a forwarder that every process lists; they refuse connections or are silent."""
        if self.random.random() < 0.5:
            self.network.black_holes.update(*self.nowhere)
        self.has_copies = self.random.random() < 0.3
        """Whether normal channels belong to groups: one to the first group, one to any group now and then."""
        self.members: dict[Process, list[Member]] = {}
        self.churning: list[Member] = []
        self.flush_calls = 0
        self.begun = self.quiet_since = self.world.now

    def go(self) -> None:
        """Run the schedule, and check its promises."""
        for one in self.addresses:
            self._start_at(one)
        for number in range(self.random.randint(2, 5)):
            self.new_process(is_steady=number == 0 or self.random.random() < 0.4)
        if self.has_copies:
            self.change_member(self.processes[0], GROUPS[0], COPIES[0], adds=True)
        self.run(WARM_UP)
        self._traffic()
        self._fault()
        self.run(self.seconds)
        self._heal()
        self._heal_all()
        self.is_quiet = True
        self._last_messages()
        self.run(QUIET)
        self._check_end()

    def _start_at(self, one: Address) -> None:
        number = self.addresses.index(one) + 1
        self.start_forwarder(one, *([address(number, net=1)] if self.has_two_nets else []))

    def _in_some_net(self, addresses: list[Address]) -> list[Address]:
        if not self.has_two_nets:
            return addresses
        return [self.random.choice((one, address(self.addresses.index(one) + 1, net=1))) for one in addresses]

    # Processes

    def new_process(self, *, is_steady: bool = False, lists_all: bool = False) -> Process:
        choose = self.random.choice
        lists_all |= is_steady or self.random.random() < 0.7
        # A process that lists no forwarder known to the first ones may be a layer of its own.
        some = self.random.sample(self.addresses, self.random.randint(1, len(self.addresses)))
        some = list(dict.fromkeys((choose(self.addresses[: self.count]), *some)))
        process = self.start_process(
            [*self._in_some_net(self.addresses if lists_all else some), *self.nowhere],
            is_steady=is_steady,
            outbox=choose((20, 10_000, 10_000)),
            outbox_bytes=choose((FEW_BYTES, 2**24, 2**24)),
            window=choose((20, 100, 4096)),
            prefetch=choose((0, 1, 4)),
        )
        self.members[process] = [
            self.join(process, group, "steady") for group in self.random.sample(GROUPS, self.random.randint(0, 3))
        ]
        for channel in JOBS:
            if self.random.random() < 0.4:
                self.read_jobs(process, channel, pause=choose((0.0, 0.1, 1.0)))
        for channel in COPIES if self.has_copies else ():
            if self.random.random() < 0.4:
                self.read_copies(process, channel, pause=choose((0.0, 0.1)))
        return process

    # Traffic

    def _traffic(self) -> None:
        if self.is_quiet:
            return
        self.world.after(self.random.expovariate(1 / self.traffic_every), self._traffic)
        ready = [one for one in self.living() if not (one.is_frozen or one.is_blocked)]
        if not ready:
            return
        process, what = self.random.choice(ready), self.random.random()
        if what < 0.6:
            group = self.random.choice(GROUPS)
            for _ in range(self.random.choice((1, 1, 1, 1, 20))):
                self.send_group(process, group, self._a_life())
        elif what < 0.75:
            self.send_direct(process, self.random.choice(self.living()), self._a_life())
        elif what < 0.9:
            self.send_job(process, self.random.choice(JOBS), self._a_life())
        elif what < 0.92 and self.has_copies:
            self.change_member(process, self.random.choice(GROUPS), COPIES[1], adds=self.random.random() < 0.6)
        else:
            self._churn(process)

    def _a_life(self) -> float:
        return self.random.uniform(0.05, 3.0) if self.has_short_lives and self.random.random() < 0.5 else LIFE

    def _churn(self, process: Process) -> None:
        """Let a consumer join for a while, at a process that is not steady or in a group of that process."""
        groups = [group for group in GROUPS if process not in self.steady or self._is_member(process, group)]
        if groups and len(self.churning) < 40:
            self._open += 1
            caller = self.random.choice(self.living()) if self.random.random() < 0.2 else process
            if caller.is_frozen or caller.is_blocked:
                caller = process
            member = self.join(process, self.random.choice(groups), f"churn{self._open}", by=caller)
            self.churning.append(member)
        if self.churning and self.random.random() < 0.7:
            member = self.random.choice(self.churning)
            if member.process.is_gone or member.left is not None:
                self.churning.remove(member)
            elif member.joined is not None:
                self.churning.remove(member)
                self.leave(member)

    _open = 0

    def _is_member(self, process: Process, group: str) -> bool:
        return any(one.topic == wire.group_topic(group) for one in self.members[process])

    # Faults

    def _fault(self) -> None:
        if self.is_healing:
            return
        self.world.after(self.random.expovariate(1 / self.faults_every), self._fault)
        faults = {
            self._kill: 3,
            self._drain: 3,
            self._start: 6,
            self._freeze: 3,
            self._add: 1.5,
            self._cut_push: 4,
            self._stall_push: 3,
            self._cut_sub: 4,
            self._stall_sub: 2,
            self._block: 2,
            self._change_keys: 2,
            self._freeze_process: 1,
            self._kill_process: 0.7,
            self._close_process: 0.7,
            self._new_process: 1.5,
            self._flush: 0.5 if self.flushes else 0,
        }
        if self.cuts_steady:
            faults |= {self._kill: 0, self._freeze: 0}
        fault = self.random.choices(list(faults), list(faults.values()))[0]
        if fault.__name__.lstrip("_") not in self.without:
            self.fault_at = max(self.fault_at, self.world.now)
            fault()

    is_healing = False

    def _alive(self) -> list[Forwarder]:
        return [one for one in dict.fromkeys(self.forwarders.values()) if one.is_alive]

    def _found(self) -> list[Forwarder]:
        """Return the living forwarders but for new ones that some process may not have found yet.

        If such a forwarder ends, and no other was there, that process misses what others have sent by it.
        """
        return [one for one in self._alive() if self.found_at.get(one.addresses[0], 0.0) <= self.world.now]

    def _kill(self) -> None:
        alive = self._found()
        if alive and not any(one.is_frozen for one in self.processes if not one.is_gone):
            if any(one.closed_at + 1.0 > self.world.now for one in self.processes):
                return  # no client would repeat a message that it has just delivered
            self.kill_forwarder(self.random.choice(alive))

    def _drain(self) -> None:
        well = [one for one in self._found() if not one.is_frozen and not one.is_ending]
        if well:
            forwarder = self.random.choice(well)
            self.note(f"drain {self._name(forwarder)}")
            forwarder.drain()

    def _start(self) -> None:
        dead = [one for one in self.addresses if not self.forwarders[one].is_alive]
        if dead:
            one = self.random.choice(dead)
            self._count_drops(self.forwarders[one])
            self.note(f"start {one.pub}")
            self._start_at(one)

    def _freeze(self) -> None:
        alive = [one for one in self._alive() if not one.is_frozen]
        if alive:
            forwarder, lengths = self.random.choice(alive), self.random.choice(self.freezes)
            seconds = self.random.uniform(*lengths)
            self.cuts_all |= lengths is LONG
            self.note(f"freeze {self._name(forwarder)} for {seconds:.3f}")
            forwarder.freeze(seconds)
            self.fault_at = max(self.fault_at, self.world.now + seconds)  # a join may wait for its first connection

    def _add(self) -> None:
        """Start a forwarder at a new address, to which names resolve now: each process learns of it in its own time.

        A new process may know it at once. The others may learn of it from their forwarders first.
        """
        if len(self.addresses) >= 4:
            return
        one = address(len(self.addresses) + 1)
        self.addresses = [*self.addresses, one]
        self.note(f"add {one.pub}")
        self._start_at(one)
        self.found_at[one] = self.world.now + FOUND_WITHIN
        if self.random.random() < 0.5:
            self.new_process(lists_all=True)
        for process in self.living():
            self.world.after(self.random.uniform(0, RESOLVE_EVERY), process.resolves, *self._in_some_net([one]))

    def _a_line(self, port: str, processes: list[Process]) -> Line | None:
        lines = [line for process in processes for line in process.lines(port) if not line.up.is_cut]
        return self.random.choice(lines) if lines else None

    def _cut(self, line: Line, what: str) -> None:
        at_once, late = ((0.001, 0.001), (0.001, 0.5), (0.05, 3.0)), ((0.3, 0.001), (2.0, 3.5))
        # If a sender switches to another forwarder before a cut is noticed, the gap is given up too early.
        must_notice = line.port == "pub" and line.socket.process in self.steady
        near, far = self.random.choice(at_once if must_notice else at_once + late)
        self.note(f"cut {what} of {line.socket.process.number} to {line.socket.address}: {near} {far}")
        line.cut(near, far)

    def _cut_push(self) -> None:
        line = self._a_line("pull", self.living())
        if line is not None:
            self._cut(line, "push")

    def _stall_push(self) -> None:
        line = self._a_line("pull", self.living())
        if line is not None:
            seconds = self.random.uniform(*self.random.choice((SHORT, LONG)))
            self.note(f"stall push of {line.socket.process.number} to {line.socket.address} for {seconds:.3f}")
            line.stall(seconds)

    def _fickle(self) -> list[Process]:
        return [one for one in self.living() if one not in self.steady]

    def _cut_sub(self) -> None:
        line = self._a_line("pub", self.living() if self.cuts_steady else self._fickle())
        if line is not None:
            self._cut(line, "sub")

    def _stall_sub(self) -> None:
        line = self._a_line("pub", self._fickle())
        if line is not None:
            seconds = self.random.uniform(*SHORT)
            self.note(f"stall sub of {line.socket.process.number} to {line.socket.address} for {seconds:.3f}")
            line.stall(seconds)
            self.fault_at = max(self.fault_at, self.world.now + seconds)

    def _block(self) -> None:
        process = self.random.choice(self.living())
        # A process that does not read for longer than senders keep acknowledged frames may miss the beginning of a run.
        seconds = self.random.uniform(*((0.05, 0.4) if process in self.steady else SHORT))
        self.note(f"block the loop of {process.number} for {seconds:.3f}")
        process.block(seconds)
        self.fault_at = max(self.fault_at, self.world.now + seconds)

    def _change_keys(self) -> None:
        process = self.random.choice(self.living())
        self.note(f"change the keys of {process.number}")
        process.keys.change()
        for forwarder in self._alive() if self.keys_are_late else ():
            if self.random.random() < 0.3:
                seconds = self.random.uniform(0.1, LATE_KEYS)
                self.note(f"{self._name(forwarder)} refuses them for {seconds:.3f}")
                self.network.refusals[process, process.keys.secret, forwarder] = self.world.now + seconds

    def _freeze_process(self) -> None:
        fickle = self._fickle()
        if fickle:
            process, seconds = self.random.choice(fickle), self.random.uniform(*SHORT)
            self.note(f"freeze process {process.number} for {seconds:.3f}")
            process.freeze(seconds)
            self.fault_at = max(self.fault_at, self.world.now + seconds)

    def _kill_process(self) -> None:
        fickle = self._fickle()
        if fickle:
            self.kill_process(self.random.choice(fickle))

    def _close_process(self) -> None:
        fickle = [one for one in self._fickle() if not (one.is_frozen or one.is_blocked)]
        if fickle:
            process = self.random.choice(fickle)
            self.note(f"close process {process.number}")
            self.close_process(process)

    def _new_process(self) -> None:
        if len(self.living()) < 7:
            process = self.new_process()
            self.note(f"new process {process.number}")

    def _flush(self) -> None:
        process = self.random.choice(self.living())
        if not (process.is_frozen or process.is_blocked):
            self.note(f"flush by {process.number}")
            self.flush_calls += 1
            process.run(self._flush_all(process), self._ended)

    async def _flush_all(self, process: Process) -> None:
        called, was_up = self.world.now, self._all_up()
        try:
            await process.connection.flush()
        except ForwarderUnavailable:
            return
        self.note(f"flushed by {process.number}")
        if was_up and self._all_up() and self.fault_at <= called - LONG[1]:  # a stalled copy may still arrive
            self.ledger.flushed = max(called, self.ledger.flushed)

    def _all_up(self) -> bool:
        """Return whether every process reaches every forwarder; a flush does not wait for those that are cut off."""
        links = [link for one in self.living() for link in one.links._links.values()]
        return all(link.state is State.UP for link in links if link.forwarder not in self.nowhere)

    def _join_failed(self, process: Process, member: Member) -> None:
        """Check that a join failed for a reason: a fault since the call, or no well forwarder."""
        super()._join_failed(process, member)
        if process is not member.process:
            return  # which may have been cut off, frozen or blocked
        links = process.links._links.values()
        up = {link.instance for link in links if link.state is State.UP and link._greeted_at < self.world.now - 1.0}
        well = [one for one in self._alive() if one.is_well and one.exchange.instance in up]
        assert (
            not any((one.serves_since or 0.0) < member.called for one in well) or self.fault_at > member.called + 1.0
        ), "a join has failed although a forwarder was there"

    fault_at = 0.0
    """Time when the last fault began, or when the last stall or freeze ended."""

    # The end

    def _heal(self) -> None:
        self.note("heal")
        self.is_healing = True
        self.traffic_every = 0.5
        for channel in COPIES * 4 if self.has_copies else ():  # of which many may wait
            self.read_copies(self.processes[0], channel)
        self._start_all()
        self.world.after(12.0, self._start_all)  # draining forwarders have ended by then

    def _heal_all(self) -> None:
        """Run until every link is up, or should be."""
        until = self.world.now + HEALING
        self.run(15.0)
        while self.world.now < until and not self._is_healed():
            self.run(1.0)

    def _is_healed(self) -> bool:
        alive, living = self._known(), self.living()
        return (
            all(one.is_well for one in alive)
            and all(len(one.links._homes.serving) == len(alive) for one in living)
            and sum(one.links.held for one in living) < 20
            and sum(len(queue.waiting) for one in alive for queue in one.exchange.queues.by_channel.values()) < 100
        )

    def _known(self) -> list[Forwarder]:
        """Return the living forwarders that at least one process knows."""
        known = {forwarder for process in self.living() for forwarder in process.links._links}
        return [one for one in self._alive() if not known.isdisjoint(one.addresses)]

    def _start_all(self) -> None:
        for one in list(self.addresses):
            if not self.forwarders[one].is_alive:
                self._count_drops(self.forwarders[one])
                self._start_at(one)

    def _last_messages(self) -> None:
        """Send to all channels, so that all gaps are detected, and read the waiting jobs."""
        self.note("quiet")
        self.quiet_since = self.world.now
        for process in self.living():
            for group in GROUPS:
                self.send_group(process, group)
            for other in self.living():
                self.send_direct(process, other)
        for channel in JOBS:
            self.read_jobs(self.living()[0], channel)

    def _check_end(self) -> None:
        living = self.living()
        assert not any(process in living for process in self._open_calls.values()), "a call has not returned"
        for process in living:
            self._check_at_rest(process)
        for forwarder in self._known():
            self._check_exchange(forwarder, living)
        self._check_jobs()
        if not self.flush_calls:
            for process in living:
                self._check_received(process)
            for member in self.ledger.changes:
                self._check_normal_member(*member)

    def _check_normal_member(self, group: str, channel: str) -> None:
        """Check that all forwarders agree on a normal member, and that it got exactly one copy of each last message."""
        expected = self.ledger.is_normal_member((group, channel))
        if expected is None:
            return
        what = f"{channel} must{'' if expected else ' not'} be in {group}"
        for forwarder in self._known():
            found = forwarder.exchange._members.of(group.encode(), self.world.now)
            assert expected is any(name == channel.encode() for name, _ in found), f"{what}: {self._name(forwarder)}"
        since = max(self.quiet_since, self.ledger.changes[group, channel][-1].ended)
        for message in self.ledger.messages:
            if message.topic == wire.group_topic(group) and message.published >= since:
                assert (channel in message.copied_to) is expected, f"{what}: message {message.number}"

    def _check_at_rest(self, process: Process) -> None:
        client, links = process.client, process.links
        reached = {one.instance for one in links._links.values() if one.state is State.UP}
        alive = {one.exchange.instance for one in self._known()}
        assert reached == alive, "not every forwarder is reached"
        assert len(links._homes.serving) == len(alive), "not every forwarder is a home"
        greeting = [one.address for one in links._links.values() if one.is_connected and one.welcome is None]
        assert not greeting, "a hello is not answered"
        assert not links.held, "something waits or is unacknowledged"
        assert not client.gaps.frames
        assert not client.requests, "a request was not forgotten"
        assert not any(one.credit.due < self.world.now - 0.1 for one in client.attachments)
        assert links._ledger.count == links._ledger.size == 0

    def _check_exchange(self, forwarder: Forwarder, living: list[Process]) -> None:
        exchange = forwarder.exchange
        topics = {wire.inbox_topic(one.client.inbox) for one in living}
        for process in living:
            topics |= process.client.memberships.groups.keys()
        assert exchange.topics == topics, "subscriptions that nobody needs, or that lack"
        assert exchange.clients.keys() == {one.client.inbox for one in living}
        assert exchange.state is wire.State.SERVING
        assert all(not queue.waiting and not queue.unsettled for queue in exchange.queues.by_channel.values())

    def _check_jobs(self) -> None:
        for one in self._alive():
            self._count_drops(one)
            for queue in one.exchange.queues.by_channel.values():  # or of a forwarder that all have forgotten
                self._excuse_payloads(entry.payload for entry in queue.waiting.values())
        dropped = [one.client.counters.dropped for one in self.processes]
        counted = self.drops + sum(one["lost_delivery"] + one["outbox_expired"] for one in dropped)
        missing = [
            message.number
            for message in self.ledger.messages
            if message.is_confirmed
            and message.life == LIFE
            and not message.read_by
            and message.number not in self.ledger.excused
        ]
        if self.flush_calls == 0:
            assert len(missing) <= counted, f"jobs are lost and not counted: {missing}, {counted} are"

    def _check_received(self, process: Process) -> None:
        counters = process.client.counters
        for cause in ("mailbox_full", "malformed"):
            assert not counters.dropped[cause], f"{cause} at {process.number}"
        assert self.has_short_lives or not counters.dropped["expired"], f"expired at {process.number}"
        is_steady = process in self.steady and not self.cuts_all
        for member in self.ledger.members:
            if member.process is process and is_steady:
                lost = [message for message in self.ledger.lost(member) if self._must_arrive(message, process, member)]
                assert not lost, f"lost to {process.number}: {lost[:5]}"
        if is_steady:
            seen = [one for one in self.ledger.messages if one.topic == process.inbox_channel and one.is_accepted]
            lost = [one for one in seen if not one.read_by and self._must_arrive(one, process)]
            assert not lost, f"direct messages lost to {process.number}: {lost[:5]}"
        churns = any(one.process is process and one not in self.members[process] for one in self.ledger.members)
        if process in self.steady or not churns:
            missed = self.ledger.missed(process)
            counted = counters.dropped["missed"]
            # A process that joined later also counts the messages missing between old frames that are sent again.
            is_late = min((one.called for one in self.members[process]), default=0.0) > self.begun + WARM_UP
            assert counted == missed or ((is_late or self.has_short_lives) and counted > missed), (
                f"{process.number} has missed {missed} and counted {counters.dropped['missed']}"
            )

    def _must_arrive(self, message: Message, process: Process, member: Member | None = None) -> bool:
        if message.life < LIFE:
            return False
        if member is not None and member.left is not None and message.published > member.left - 20:
            return False  # it may have been in transit
        if member is not None and message.published < (member.joined or 0.0) + JUST_JOINED:
            copies = process.read.get(message.payload, [])
            if any(wire.read_group(copy)[3] & wire.FLAG_ACKNOWLEDGED for _, copy in copies):
                return False  # its members then most likely got it, and the exact set of them is unknown
        # Messages that a process could not deliver before it was closed or killed are lost with it.
        return not message.sender.is_gone or message.sender.has_delivered
