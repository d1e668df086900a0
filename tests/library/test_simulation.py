"""Clients and forwarders on one clock: random schedules, and fixed ones that have revealed a defect.

`SIMULATION_SEED=7 pytest -s -k random tests/library/test_simulation.py` replays one random schedule and prints its
events. `SIMULATION_WITHOUT=freeze,stall_push` leaves out faults, which shows the ones that a failure needs. The course
also depends on the order of sets: a failure names PYTHONHASHSEED, which the make targets set. `make simulate` runs
seeds that no run had before.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from simulated_ledger import Member
from simulated_network import Line
from simulated_process import Process
from simulated_schedule import Schedule
from simulation import Simulation, address

from channels_zmq.client import batch
from channels_zmq.connection import BATCH_WITHIN
from channels_zmq.transports.homes import ROTATE_EVERY
from channels_zmq.transports.roster import Forwarder
from channels_zmq.transports.states import State

SEEDS = 20
"""Number of schedules that fit into a few seconds."""
FIRST, MANY = int(os.environ.get("SIMULATION_FIRST") or SEEDS), int(os.environ.get("SIMULATION_MANY") or 600)
REPLAY = os.environ.get("SIMULATION_SEED", "")
HASH_SEED = os.environ.get("PYTHONHASHSEED", "random")
WITHOUT = os.environ.get("SIMULATION_WITHOUT", "").split(",")
A, B, C = address(1), address(2), address(3)
TOPICS = tuple(f"topic{number}" for number in range(8))
"""As many topics as make each of two forwarders the home of some."""


def run_random(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    schedule = Schedule(monkeypatch, seed, print if REPLAY else None, without=WITHOUT)
    try:
        schedule.go()
    except BaseException as error:
        error.add_note(f"PYTHONHASHSEED={HASH_SEED} SIMULATION_SEED={seed}")
        raise
    finally:
        schedule.close()


@pytest.mark.parametrize("seed", [int(REPLAY)] if REPLAY else range(SEEDS))
def test_a_random_schedule_keeps_all_promises(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever happens to forwarders and connections, no message is doubled, overtaken, or lost uncounted."""
    run_random(monkeypatch, seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, FIRST + MANY, 50))
def test_many_random_schedules_keep_all_promises(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """The promises hold for many more seeds, and a failure names its seed."""
    for seed in range(first, first + 50):
        with monkeypatch.context() as patch:
            run_random(patch, seed)


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """Return a simulation with one forwarder and without random faults."""
    simulation = Simulation(monkeypatch, seed=1)
    simulation.network.delays = (0.001, 0.002)
    simulation.start_forwarder(A)
    yield simulation
    simulation.check()
    simulation.close()


def sender_and_receiver(
    simulation: Simulation, *forwarders: Forwarder, **settings: Any
) -> tuple[Process, list[Member]]:
    """Return a process that sends, and the memberships in all groups of a process that receives."""
    sender = simulation.start_process(forwarders, is_steady=True, **settings)
    receiver = simulation.start_process(forwarders, is_steady=True)
    members = [simulation.join(receiver, topic, "reader") for topic in TOPICS]
    simulation.run(2.0)
    return sender, members


def send_to_all(simulation: Simulation, sender: Process) -> None:
    for topic in TOPICS:
        simulation.send_group(sender, topic)


def send_steadily(simulation: Simulation, sender: Process, seconds: float) -> None:
    for _ in range(round(seconds / 0.01)):
        send_to_all(simulation, sender)
        simulation.run(0.01)


def lost(simulation: Simulation, members: list[Member]) -> list[int]:
    return [message.order for member in members for message in simulation.ledger.lost(member)]


def test_a_topic_stays_at_a_stalled_forwarder_while_it_is_silent(simulation: Simulation) -> None:
    """A silent topic keeps its home while its last message is in transit; otherwise a newer one would overtake it."""
    sender, members = sender_and_receiver(simulation, A, B)
    (line,) = sender.lines("pull")
    line.stall(2.4)
    send_to_all(simulation, sender)
    simulation.start_forwarder(B)
    simulation.run(2.3)
    send_to_all(simulation, sender)
    simulation.run(5.0)
    assert lost(simulation, members) == []


def test_no_batch_waits_for_the_end_of_a_long_turn(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch that a handler begins before its event loop runs again is sent after `BATCH_WITHIN`."""
    monkeypatch.setattr(batch, "RUN", 0)
    sender, members = sender_and_receiver(simulation, A)
    sender.block(1.0)
    for _ in range(3):
        for _ in range(2):
            simulation.send_group(sender, TOPICS[0])
        simulation.run(BATCH_WITHIN + 0.02)
        assert lost(simulation, members) == []


def test_two_addresses_of_one_forwarder_become_one_link(simulation: Simulation) -> None:
    """Two addresses of one forwarder become one link, which comes up even if the later hello is read first."""
    other = address(2, net=1)
    simulation.start_forwarder(B, other)
    processes = [simulation.start_process((B, other), is_steady=True) for _ in range(10)]
    simulation.run(5.0)
    assert [[link.state for link in one.links._links.values()] for one in processes] == [[State.UP]] * 10


def test_a_process_that_learns_of_a_forwarder_late_gets_what_others_have_sent_by_it(simulation: Simulation) -> None:
    """When the only known forwarder ends, names resolve to its successor earlier in one process than in another."""
    sender, members = sender_and_receiver(simulation, A)
    simulation.forwarders[A].drain()
    simulation.start_forwarder(B)
    simulation.run(1.0)
    for seconds, process in ((0.2, sender), (1.0, members[0].process)):
        send_steadily(simulation, sender, seconds)
        process.resolves(B)
    simulation.run(5.0)
    send_to_all(simulation, sender)
    simulation.run(5.0)
    assert lost(simulation, members) == []


@pytest.mark.parametrize("found", [(B,), (C,), (B, C)])
def test_a_process_that_learns_of_two_forwarders_late_gets_what_others_have_sent_by_either(
    simulation: Simulation, found: tuple[Forwarder, ...]
) -> None:
    """Topics move from one successor to the other before a process finds the first of them, which lists the second."""
    sender, members = sender_and_receiver(simulation, A)
    simulation.kill_forwarder(simulation.forwarders[A])
    for successor in (B, C):
        simulation.start_forwarder(successor)
        sender.resolves(successor)
        simulation.run(1.0)
        send_steadily(simulation, sender, 0.2)
        simulation.run(2 * ROTATE_EVERY + 0.1)
    send_to_all(simulation, sender)
    for successor in found:
        members[0].process.resolves(successor)
    simulation.run(5.0)
    send_to_all(simulation, sender)
    simulation.run(5.0)
    assert lost(simulation, members) == []


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_a_drain_waits_for_a_process_whose_connection_is_cut(simulation: Simulation, seconds: float) -> None:
    """The forwarder ends once the process has returned, and has got what it has missed."""
    simulation.start_forwarder(B)
    sender, members = sender_and_receiver(simulation, A, B)
    receiver = members[0].process
    send_to_all(simulation, sender)
    simulation.run(0.5)
    line = next(line for line in receiver.lines("pub") if line.forwarder is simulation.forwarders[A])
    line.cut(seconds - 0.05, 0.001)
    for drains in (True, False):
        send_steadily(simulation, sender, seconds)
        if drains:
            simulation.forwarders[A].drain()
    simulation.run(5.0)
    assert not simulation.forwarders[A].is_alive
    assert lost(simulation, members) == []


def test_a_held_message_keeps_its_topic_although_it_has_no_number(simulation: Simulation) -> None:
    """A topic with only a held message keeps its home when a second forwarder appears, and loses nothing."""
    sender, members = sender_and_receiver(simulation, A, B, window=20)
    (line,) = sender.lines("pull")
    line.stall(2.5)
    for _ in range(30):
        simulation.send_group(sender, "another")
    send_to_all(simulation, sender)
    simulation.start_forwarder(B)
    simulation.run(1.2)
    send_to_all(simulation, sender)
    simulation.run(5.0)
    assert lost(simulation, members) == []


def test_what_waits_behind_a_gap_is_not_for_members_that_join_meanwhile(simulation: Simulation) -> None:
    """Messages behind a gap are not delivered to members that join while they wait, since they arrived before."""
    simulation.start_forwarder(B)
    sender, members = sender_and_receiver(simulation, A, B)
    receiver = members[0].process
    send_to_all(simulation, sender)
    simulation.run(0.1)
    for line in receiver.lines("pub"):
        line.down.cut(0)
    send_to_all(simulation, sender)
    simulation.run(0.01)
    for forwarder in simulation.forwarders.values():
        forwarder.exchange.history.clear()
    for line in receiver.lines("pub"):
        line.near_notices()
    simulation.run(1.0)
    send_to_all(simulation, sender)
    simulation.run(0.02)
    assert receiver.client.gaps.frames == len(TOPICS)
    late = [simulation.join(receiver, topic, "late") for topic in TOPICS]
    simulation.run(1.0)
    assert receiver.client.counters.dropped["missed"] == len(TOPICS)
    assert all(("late" not in channel) for message in simulation.ledger.messages for _, channel in message.read_by)
    assert all(member.joined is not None for member in late)


def test_a_receiver_that_is_cut_off_from_one_of_two_forwarders_for_a_while_misses_nothing(
    simulation: Simulation,
) -> None:
    """A receiver that is cut off from one of two forwarders for 15 s misses nothing: they keep messages long enough."""
    forwarder = simulation.start_forwarder(B)
    sender, members = sender_and_receiver(simulation, A, B)
    receiver = members[0].process
    for one in B:
        simulation.network.stop_listening(one)
    simulation.network.black_holes.update(B)
    for line in receiver.lines():
        if line.forwarder is forwarder:
            line.cut(near_after=2.5, far_after=2.5)
    for _ in range(15):
        send_to_all(simulation, sender)
        simulation.run(1.0)
    for one in B:
        simulation.network.listen(one, forwarder)
    simulation.run(5.0)
    assert lost(simulation, members) == []
    assert receiver.client.counters.dropped["missed"] == 0


def test_a_second_cut_before_the_end_of_a_replay_is_read_loses_nothing(simulation: Simulation) -> None:
    """After a second cut, the end of the first replay is not taken as the answer for both, so nothing is lost."""
    sender, members = sender_and_receiver(simulation, A)
    receiver = members[0].process
    receiver.block(0.9)
    for _ in range(2):
        (line,) = receiver.lines("pub")
        line.cut(near_after=0.001, far_after=0.001)
        simulation.run(0.01)
        send_to_all(simulation, sender)
        simulation.run(0.4)
    simulation.run(5.0)
    assert lost(simulation, members) == []


def test_a_job_under_way_to_a_lost_connection_is_counted_when_the_forwarder_ends(simulation: Simulation) -> None:
    """A draining forwarder counts the jobs in transit to a connection that was cut."""
    forwarder = simulation.forwarders[A]
    sender, _ = sender_and_receiver(simulation, A)
    reader = simulation.start_process([A])
    simulation.read_jobs(reader, "work")
    simulation.run(1.0)
    (line,) = reader.lines("pub")
    line.down.stall(1.0)
    job = simulation.send_job(sender, "work")
    simulation.run(0.1)
    line.down.cut(0)
    line.cut(near_after=5.0, far_after=0.0)
    simulation.run(0.1)
    assert job.is_confirmed
    forwarder.drain()
    simulation.run(1.0)
    assert forwarder.is_alive, "the process might return"
    simulation.run(3.0)
    assert not forwarder.is_alive
    assert not job.read_by
    assert forwarder.exchange.drops["lost_delivery"] == 1


def test_a_job_that_went_back_by_a_connection_that_was_given_up_is_done_once(simulation: Simulation) -> None:
    """A job that comes back by an abandoned connection, after the forwarder has requeued it, is dropped."""
    sender, _ = sender_and_receiver(simulation, A)
    reader, other = (simulation.start_process([A]) for _ in range(2))
    simulation.run(1.0)
    simulation.read_jobs(reader, "work", count=1)
    simulation.run(0.05)
    jobs = [simulation.send_job(sender, "work") for _ in range(4)]
    simulation.run(0.03)
    (line,) = reader.lines("pub")
    line.stall(2.8)
    simulation.run(2.6)
    line.near_notices()
    simulation.run(0.05)
    simulation.read_jobs(other, "work")
    simulation.run(3.0)
    assert [[process for process, _ in job.read_by] for job in jobs] == [[reader], [other], [other], [other]]
    assert simulation.forwarders[A].exchange.drops["stray"] == 3


def test_a_message_that_was_returned_and_not_taken_is_counted_when_the_forwarder_ends(simulation: Simulation) -> None:
    """A forwarder that ends counts the messages that it has returned without an answer."""
    forwarder = simulation.forwarders[A]
    sender, _ = sender_and_receiver(simulation, A)
    jobs = [simulation.send_job(sender, "work") for _ in range(3)]
    simulation.run(1.0)
    forwarder.drain()
    while not forwarder.exchange._drain._untaken:
        simulation.world.run(0.0001)
    for process in simulation.processes:
        for line in process.lines():
            line.up.stall(12.0)
    simulation.run(11.0)
    assert not forwarder.is_alive
    assert all(job.is_confirmed for job in jobs)
    assert forwarder.exchange.drops["lost_delivery"] == len(jobs)


def test_a_client_with_a_short_list_learns_of_a_forwarder_that_comes(simulation: Simulation) -> None:
    """A client that lists one forwarder learns of another from others, also if they listed it before it had started."""
    short = simulation.start_process([A], is_steady=True)
    simulation.start_process([A, B], delays=(0.2, 0.3))
    simulation.run(5.0)
    forwarder = simulation.start_forwarder(B)
    simulation.run(5.0)
    assert short.client.inbox in forwarder.exchange.clients


def test_a_join_does_not_wait_for_a_forwarder_that_accepts_connections_and_stands_still(simulation: Simulation) -> None:
    """`group_add` does not wait for a frozen forwarder whose operating system still accepts connections."""
    simulation.start_forwarder(B)
    simulation.run(2.0)
    simulation.forwarders[B].freeze(10.0)
    process = simulation.start_process([A, B])
    member = simulation.join(process, TOPICS[0], "reader")
    simulation.run(4.5)
    assert member.joined is not None


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
def test_a_join_hardly_waits_for_an_address_that_is_silent_and_that_no_client_has_reached(
    simulation: Simulation, others: bool
) -> None:
    """A join takes at most 0.6 s although a listed address is silent, and does not wait for the attempt to time out."""
    simulation.network.black_holes.update(B)
    if others:
        simulation.start_process([A, B])
        simulation.run(5.0)
    process = simulation.start_process([A, B])
    member = simulation.join(process, TOPICS[0], "reader")
    simulation.run(0.6)
    assert member.joined is not None
    assert [link["state"] for link in process.links.stats()] == ["up", "down"]


def test_an_echo_does_not_prove_a_connection_that_was_cut_since(simulation: Simulation) -> None:
    """The answer to an echo does not prove a PUSH connection that was cut since: the link must connect again."""
    process = simulation.start_process([A])
    member = simulation.join(process, TOPICS[0], "reader")
    simulation.run(2.0)
    (line,) = process.lines("pull")
    line.near_notices()
    while (line,) == tuple(process.lines("pull")) or not process.lines("pull"):
        simulation.world.run(0.0001)
    (line,) = process.lines("pull")
    while not line.up.under_way:
        simulation.world.run(0.0001)
    while line.up.under_way:  # until the echo arrives
        simulation.world.run(0.0001)
    line.near_notices()
    simulation.run(2.0)
    simulation.send_group(process, TOPICS[0])
    simulation.run(2.0)
    assert lost(simulation, [member]) == []


def test_a_forwarder_that_was_idle_is_not_used_before_all_clients_have_learned_of_it(simulation: Simulation) -> None:
    """A forwarder that was idle is used only when all clients know it; otherwise some would miss the first messages."""
    simulation.start_forwarder(B)
    receiver = simulation.start_process([A], is_steady=True)
    members = [simulation.join(receiver, topic, "reader") for topic in TOPICS]
    simulation.run(5.0)
    sender = simulation.start_process([A, B])
    for _ in range(100):
        send_to_all(simulation, sender)
        simulation.run(0.02)
    simulation.run(5.0)
    assert lost(simulation, members) == []


def test_a_message_that_is_sent_again_reaches_who_joined_a_moment_before(simulation: Simulation) -> None:
    """A message that is sent again has its own age, not its block's, and reaches a member that joined just before."""
    process = simulation.start_process([A])
    simulation.run(2.0)
    simulation.send_group(process, TOPICS[0])
    simulation.run(0.01)
    member = simulation.join(process, TOPICS[1], "reader")
    while member.joined is None:
        simulation.world.run(0.0001)
    simulation.send_group(process, TOPICS[1])
    (line,) = process.lines("pull")
    line.up.cut(0)
    line.near_notices()
    simulation.run(2.0)
    assert lost(simulation, [member]) == []


def test_a_run_that_begins_by_one_way_and_goes_on_by_another_is_read_from_its_beginning(simulation: Simulation) -> None:
    """A run that moves from one link to another is read from its beginning, also by a process that was frozen."""
    forwarder = simulation.start_forwarder(B)
    sender, members = sender_and_receiver(simulation, A, B)
    members[0].process.freeze(1.5)
    send_to_all(simulation, sender)
    simulation.run(0.7)
    forwarder.drain()
    simulation.run(0.1)
    send_to_all(simulation, sender)
    simulation.run(5.0)
    assert lost(simulation, members) == []


def test_the_beginning_of_a_run_is_waited_for_while_its_connection_is_cut(simulation: Simulation) -> None:
    """The beginning of a run is awaited while its connection is cut, even before a replay is requested."""
    simulation.start_forwarder(B)
    sender, members = sender_and_receiver(simulation, A, B)
    receiver = members[0].process
    sending, receiving = (one.links._links[A] for one in (sender, receiver))

    def line(process: Process, port: str) -> Line:
        return next(one for one in process.lines(port) if one.forwarder is simulation.forwarders[A])

    line(receiver, "pub").cut(near_after=1.0, far_after=0.0)
    send_to_all(simulation, sender)
    simulation.run(0.9)
    assert not sending.held
    while receiving.state is State.UP:
        simulation.world.run(0.0001)
    line(sender, "pull").near_notices()
    while sending.state is State.UP:
        simulation.world.run(0.0001)
    send_to_all(simulation, sender)
    simulation.run(5.0)
    assert lost(simulation, members) == []


@pytest.mark.parametrize("forwarders", [(A,), (A, B)], ids=["one", "two"])
@pytest.mark.parametrize("notices", [(0.001, 0.001), (0.001, 3.0), (2.5, 0.001)], ids=["at once", "late", "later"])
def test_a_receiver_that_was_cut_off_gets_what_it_has_missed(
    simulation: Simulation, forwarders: tuple[Forwarder, ...], notices: tuple[float, float]
) -> None:
    """A receiver that was cut off gets every message published meanwhile, whenever either side notices the cut."""
    for one in forwarders[1:]:
        simulation.start_forwarder(one)
    sender, members = sender_and_receiver(simulation, *forwarders)
    receiver = members[0].process
    for round_ in range(400):
        if round_ == 100:
            for line in receiver.lines("pub"):
                line.cut(*notices)
        send_to_all(simulation, sender)
        simulation.send_direct(sender, receiver)
        simulation.run(0.01)
    simulation.run(2.0)
    assert lost(simulation, members) == []
    assert all(message.read_by for message in simulation.ledger.messages)
    assert receiver.client.counters.dropped["missed"] == 0
    assert sender.client.counters.repeated == 0


@pytest.mark.parametrize("forwarders", [(A,), (A, B)], ids=["one", "two"])
def test_what_is_sent_to_a_process_that_has_just_begun_arrives(
    simulation: Simulation, forwarders: tuple[Forwarder, ...]
) -> None:
    """Messages to a channel of a process arrive from its first moment on, before it is connected to any forwarder."""
    for one in forwarders[1:]:
        simulation.start_forwarder(one)
    sender, _ = sender_and_receiver(simulation, *forwarders)
    receiver = simulation.start_process(forwarders, is_steady=True)
    for _ in range(400):
        simulation.send_direct(sender, receiver)
        simulation.run(0.001)
    simulation.run(2.0)
    assert all(message.read_by for message in simulation.ledger.messages)
    assert receiver.client.counters.dropped["missed"] == 0


@pytest.mark.parametrize("is_cut", [False, True], ids=["connected", "cut"])
def test_a_process_that_is_closed_waits_until_its_unread_jobs_have_gone_back(
    simulation: Simulation, is_cut: bool
) -> None:
    """A process that is closed hands its unread jobs back, again if its connection breaks meanwhile: none is lost."""
    sender, _ = sender_and_receiver(simulation, A)
    reader = simulation.start_process([A], prefetch=4)
    simulation.run(1.0)
    simulation.read_jobs(reader, "work", count=1)
    simulation.run(0.1)
    for _ in range(5):
        simulation.send_job(sender, "work")
    simulation.run(0.02)
    assert reader.client.mailboxes.waiting == 4
    (line,) = reader.lines("pub")
    simulation.close_process(reader)
    if is_cut:
        line.cut(0.05, 0.05)
    simulation.run(2.0)
    assert reader.has_delivered
    simulation.read_jobs(sender, "work")
    simulation.run(1.0)
    read = [message for message in simulation.ledger.messages if message.topic == "work" and message.read_by]
    assert len(read) == 5


def test_other_keys_that_end_a_connection_lose_nothing_that_it_has_brought(simulation: Simulation) -> None:
    """A change of keys during the handshake loses no message that the former connection delivered."""
    sender, members = sender_and_receiver(simulation, A)
    receiver = members[0].process
    receiver.lines("pub")[0].cut(0.001, 0.001)
    while not any(link.state is State.GREETING for link in receiver.links._links.values()):
        simulation.run(0.001)
    receiver.block(1.5)
    receiver.keys.change()
    for _ in range(60):
        send_to_all(simulation, sender)
        simulation.run(0.02)
    simulation.run(5.0)
    assert lost(simulation, members) == []


def test_a_receiver_that_notices_late_that_it_was_cut_off_gets_what_it_has_missed(simulation: Simulation) -> None:
    """A late notice of a cut loses nothing, though ZeroMQ reconnects by itself and messages precede the request."""
    sender, members = sender_and_receiver(simulation, A)
    receiver = members[0].process
    receiver.housekeeper_lag = 0.4
    for round_ in range(300):
        if round_ == 100:
            (line,) = receiver.lines("pub")
            line.cut(0.001, 0.001)
        send_to_all(simulation, sender)
        simulation.run(0.01)
    simulation.run(2.0)
    assert lost(simulation, members) == []
    assert receiver.client.counters.dropped["missed"] == 0


def test_what_is_missing_is_counted_if_the_forwarder_has_forgotten_it(simulation: Simulation) -> None:
    """A message that the forwarder has forgotten is counted as missed, because the wait for a replay is bounded."""
    sender, members = sender_and_receiver(simulation, A)
    simulation.send_group(sender, TOPICS[0])
    simulation.run(0.1)
    (line,) = members[0].process.lines("pub")
    line.cut(0.001, 0.001)
    simulation.send_group(sender, TOPICS[0])
    simulation.run(0.05)
    simulation.forwarders[A].exchange.history.clear()
    simulation.run(1.0)
    simulation.send_group(sender, TOPICS[0])
    simulation.run(0.5)
    assert lost(simulation, members) == [2]
    assert members[0].process.client.counters.dropped["missed"] == 1
