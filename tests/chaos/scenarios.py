"""The scenarios: faults under load, and what must hold."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults import FaultError
from network import missing
from report import Goal, Outcome, headline
from stage import Options, Setting, Stage


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    Args:
        name: Its name for `--only`.
        act: Causes the faults while the load runs.
        setting: How it begins.
        goal: What must hold.
        repetitions: Number of faults.
        short: Number of faults with `--short`.
        missing: Returns what the machine lacks for it; an empty text if nothing.
    """

    name: str
    act: Callable[[Stage], None]
    setting: Setting
    goal: Goal
    repetitions: int = 1
    short: int = 1
    missing: Callable[[], str] = str


def run(scenario: Scenario, options: Options, folder: Path) -> Outcome:
    """Run a scenario and compare its figures with its goal.

    Args:
        scenario: The scenario.
        options: The load and the pace.
        folder: For the logs of its processes.
    """
    folder.mkdir(parents=True)
    repetitions = scenario.short if options.short else scenario.repetitions
    with Stage(scenario.setting, options, repetitions, folder) as stage:
        try:
            stage.open()
            stage.begin()
            scenario.act(stage)
            figures = stage.finish()
        except FaultError as error:
            failures = [str(error), *stage.crashed()]
            return Outcome(scenario.name, None, [headline(failure) for failure in failures], "\n".join(failures))
    return Outcome(scenario.name, figures, scenario.goal.shortfalls(figures), "\n".join(figures.failures))


def restart_in_turns(stage: Stage) -> None:
    """End one forwarder by SIGTERM, upon which it drains, and start it again on its own addresses."""
    for site in stage.in_turns():
        site.end()
        stage.start(site)
        stage.rest()


def kill_in_turns(stage: Stage) -> None:
    """Kill one forwarder and start it again."""
    for site in stage.in_turns():
        site.kill()
        stage.start(site)
        stage.rest()


def hand_over(stage: Stage) -> None:
    """Start a forwarder on the unused addresses, and end the old one once the new one is ready."""
    old, new = stage.sites
    for _ in stage.repetitions():
        stage.start(new)
        old.end()
        stage.rest()
        old, new = new, old


def freeze_in_turns(stage: Stage) -> None:
    """Suspend one forwarder for longer than clients wait for an acknowledgement."""
    for site in stage.in_turns():
        site.running.freeze()
        time.sleep(4 if stage.options.short else 5)  # this is the fault
        site.running.thaw()
        stage.rest()


def scale(stage: Stage) -> None:
    """Start two forwarders beside one, and end two of the three."""
    for _ in stage.repetitions():
        stage.start(*(site for site in stage.sites if site.process is None))
        stage.rest()
        for site in stage.random.sample(stage.sites, 2):
            site.end()
        stage.rest()


def cut(stage: Stage) -> None:
    """Close the connections through the relay while frames are in flight in them."""
    for _ in stage.repetitions():
        stage.relay.hold()
        time.sleep(0.05)  # of load, which is in flight when the connections close
        stage.relay.cut()
        stage.relay.resume()
        time.sleep(stage.options.pause)  # of load, in which the clients notice
        stage.rest()


def cut_for_a_moment(stage: Stage) -> None:
    """Close the connections through the relay, and refuse new ones for 0.1 s."""
    for _ in stage.repetitions():
        stage.relay.end()
        time.sleep(0.1)  # this is the fault
        stage.relay.start()
        time.sleep(stage.options.pause)  # of load, in which the clients notice
        stage.rest()


def stall(stage: Stage) -> None:
    """Stall the relay for longer than clients wait for an acknowledgement, without closing its connections."""
    for _ in stage.repetitions():
        stage.relay.hold()
        time.sleep(4 if stage.options.short else 5)  # this is the fault
        stage.relay.resume()
        stage.rest()


def cut_network(stage: Stage) -> None:
    """Cut the network between the senders and one forwarder, in silence, for longer than they wait for an answer."""
    assert stage.network is not None
    for site in stage.in_turns():
        stage.network.cut((site.pull_port, site.pub_port))
        time.sleep(5 if stage.options.short else 8)  # this is the fault
        stage.network.heal()
        stage.rest()


def lose_packets(stage: Stage) -> None:
    """Lose a tenth of the packets between the senders and all forwarders for a while."""
    assert stage.network is not None
    for _ in stage.repetitions():
        stage.network.lose()
        time.sleep(4 if stage.options.short else 15)  # this is the fault
        stage.network.heal()
        stage.rest()


def run_undisturbed(stage: Stage) -> None:
    """Run the load for a while."""
    for _ in stage.repetitions():
        time.sleep(4 if stage.options.short else 15)  # of load
        stage.rest()


def freeze_receiver(stage: Stage) -> None:
    """Suspend a receiver for a long time, and resume it."""
    slow = stage.random.choice(list(stage.receivers))
    for _ in stage.repetitions():
        stage.measure_memory()
        stage.freeze_receiver(slow)
        time.sleep(5 if stage.options.short else 30)  # this is the fault
        stage.measure_memory()
        stage.receivers[slow].thaw()
        stage.rest()


def freeze_receiver_and_kill(stage: Stage) -> None:
    """Suspend a receiver, kill a forwarder that has frames queued for it, and resume the receiver."""
    slow = stage.random.choice(list(stage.receivers))
    for site in stage.in_turns():
        stage.freeze_receiver(slow)
        time.sleep(3 if stage.options.short else 6)  # this is the fault: frames for the receiver queue up
        site.kill()
        time.sleep(stage.options.pause)
        stage.receivers[slow].thaw()
        stage.start(site)
        stage.rest()


def kill_consumer(stage: Stage) -> None:
    """Kill a receiver."""
    for _ in stage.repetitions():
        stage.kill_receiver(stage.random.choice(list(stage.receivers)))
        time.sleep(3 * stage.options.pause)  # of load, in which the forwarder notices
        stage.rest()


def kill_at_random(stage: Stage) -> None:
    """Kill a worker or a forwarder, and start another one in its place."""
    for _ in stage.repetitions():
        if stage.random.random() < 0.5:
            stage.replace_worker(stage.random.choice(list(stage.receivers)))
        else:
            site = stage.random.choice(stage.sites)
            site.kill()
            stage.start(site)
        time.sleep(stage.random.uniform(0.1, 1.0) * stage.options.pause)  # of load


def soak(stage: Stage) -> None:
    """Run the load; measure memory after a minute, when all caches are warm, and at the end."""
    seconds = 60 * stage.options.minutes
    warm = min(60.0, seconds / 2)
    for part in (warm, seconds - warm):
        time.sleep(part)  # of load
        stage.measure_memory()


# The other forwarders carry on: silence is shorter than the start of a forwarder.
SEVERAL = Goal(silence_ms=1_000)
# The jobs in the queues of a killed forwarder are lost: senders do not keep them once they are confirmed.
KILLED = Goal(jobs_lost=None)

DELAYED = Setting(sites=2, running=2, delay=0.2, job_rate=20)
JOBS = Setting(sites=2, running=2, messages=False, job_rate=3_000)

SCENARIOS = [
    Scenario("replace-3", restart_in_turns, Setting(sites=3, running=3), SEVERAL, 20, 3),
    Scenario("replace-1", hand_over, Setting(sites=2), SEVERAL, 20, 3),
    Scenario("restart-1", restart_in_turns, Setting(), Goal(), 20, 3),
    Scenario("kill-1-of-3", kill_in_turns, Setting(sites=3, running=3), Goal(0, None, 1_000), 20, 3),
    Scenario("kill-only", kill_in_turns, Setting(), KILLED, 10, 3),
    # A receiver all of whose topics are at home in the frozen forwarder hears nothing until the sender gives that up.
    Scenario("freeze-1-of-2", freeze_in_turns, Setting(sites=2, running=2), Goal(lateness_ms=3_500), 3, 1),
    Scenario("scale", scale, Setting(sites=3), SEVERAL, 3, 1),
    Scenario("push-cut", cut, Setting(relay="pull"), Goal(), 10, 3),
    Scenario("xsub-cut", cut_for_a_moment, Setting(relay="pub"), Goal(), 10, 3),
    Scenario("push-stalled", stall, Setting(relay="pull"), Goal(), 3, 1),
    # Padding, so that the buffers of the kernel cannot hold all that queues up for the receiver.
    Scenario("slow-receiver", freeze_receiver_and_kill, Setting(sites=2, running=2, padding=2_000), KILLED),
    Scenario("network-cut", cut_network, Setting(sites=2, running=2, network=True), Goal(), 4, 1, missing),
    Scenario("network-loss", lose_packets, Setting(sites=2, running=2, network=True), Goal(), 2, 1, missing),
    # There and back by the slow way takes 0.4 s, in which a receiver gets `prefetch` jobs of a channel at most.
    Scenario("network-delay", run_undisturbed, DELAYED, Goal(lateness_ms=1_000), 2, 1),
    # Forwarders give a frozen receiver up after 2.5 s: what is published for it from then on is lost, and so are the
    # jobs that it has fetched.
    Scenario("consumer-frozen", freeze_receiver, Setting(sites=2, running=2, padding=2_000), Goal(0, None, growth=2.0)),
    # The jobs that a killed receiver has fetched are lost.
    Scenario("consumer-killed", kill_consumer, Setting(), Goal(jobs_lost=None)),
    Scenario("random-jobs", kill_at_random, JOBS, Goal(jobs_lost=None), 40, 4),
    Scenario("soak", soak, Setting(sites=2, running=2), Goal()),
]
