"""The scenarios: faults under load, and their goals."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path

from faults import FaultError
from network import missing
from report import Goal, Outcome, headline
from rotations import KEYS
from stage import Options, Setting, Stage


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    Args:
        name: Its name for `--only`.
        what: What happens, for the table.
        act: Causes the faults while the load runs.
        setting: How it begins.
        goal: The limits that it must keep.
        repetitions: Number of faults.
        short: Number of faults with `--short`.
        missing: Returns the tools or permissions that the machine lacks for it; an empty text if none.
    """

    name: str
    what: str
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
            shortfalls = [headline(failure) for failure in failures]
            return Outcome(scenario.name, scenario.what, None, shortfalls, "\n".join(failures))
    goal = scenario.goal.relaxed() if options.short else scenario.goal
    return Outcome(scenario.name, scenario.what, figures, goal.shortfalls(figures), "\n".join(figures.failures))


def restart_in_turns(stage: Stage) -> None:
    """End one forwarder by SIGTERM, upon which it drains, and start it again on its own addresses."""
    for site in stage.in_turns():
        site.end()
        stage.start(site)
        stage.rest()


def kill_in_turns(stage: Stage, pause: float = 0.0) -> None:
    """Kill one forwarder and start it again, after a pause so that the start does not take the cores of the others."""
    for site in stage.in_turns():
        stage.kill(site)
        time.sleep(pause)  # of load
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
        time.sleep(5)  # this is the fault
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


def stall(stage: Stage, seconds: float = 5) -> None:
    """Stall the relay for longer than clients wait for an acknowledgement, without closing its connections."""
    for _ in stage.repetitions():
        stage.measure_memory()
        stage.relay.hold()
        time.sleep(seconds)  # this is the fault
        stage.measure_memory()
        stage.relay.resume()
        stage.rest()


def cut_network(stage: Stage, seconds: float = 8) -> None:
    """Cut the network between one forwarder and some clients, without a sign, for longer than they await an answer."""
    assert stage.network is not None
    for site in stage.in_turns():
        stage.network.cut((site.pull_port, site.pub_port))
        time.sleep(5 if stage.options.short else seconds)  # this is the fault
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


def change_keys(stage: Stage) -> None:
    """Rotate the keys of all clients."""
    for (former, key), _ in zip(pairwise(KEYS), stage.repetitions(), strict=True):
        stage.change_keys(former, key)
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
    """Suspend a receiver, kill a forwarder that has frames queued for it, and resume the receiver.

    This happens in turns before and after the forwarders disconnect the receiver.
    """
    slow = stage.random.choice(list(stage.receivers))
    for seconds, site in zip(cycle((1.5, 6)), stage.in_turns(), strict=False):
        stage.freeze_receiver(slow)
        time.sleep(seconds)  # this is the fault: frames for the receiver queue up
        stage.kill(site)
        time.sleep(stage.options.pause)
        stage.receivers[slow].thaw()
        stage.start(site)
        stage.rest()


def slow_down(stage: Stage) -> None:
    """Let the first receiver take a tenth of its messages."""
    for _ in stage.repetitions():
        stage.measure_memory()
        stage.slow_down_receiver(0)
        time.sleep(5 if stage.options.short else 30)  # of load
        stage.measure_memory()
        stage.rest()


def kill_consumer(stage: Stage) -> None:
    """Kill a receiver."""
    for _ in stage.repetitions():
        stage.measure_memory()
        stage.kill_receiver(stage.random.choice(list(stage.receivers)))
        time.sleep(3 * stage.options.pause)  # of load, in which the forwarder notices
        stage.rest()
        stage.measure_memory()


def kill_at_random(stage: Stage) -> None:
    """Kill a worker or a forwarder, and start another one in its place."""
    for _ in stage.repetitions():
        if stage.random.random() < 0.5:
            stage.replace_worker(stage.random.choice(list(stage.receivers)))
        else:
            site = stage.random.choice(stage.sites)
            stage.kill(site)
            stage.start(site)
        time.sleep(stage.random.uniform(0.1, 1.0) * stage.options.pause)  # of load


def soak(stage: Stage) -> None:
    """Run the load; once all caches are warm, measure memory every minute, or more often in a short run."""
    seconds = 60 * stage.options.minutes
    for _ in stage.repetitions():
        end = time.monotonic() + seconds
        time.sleep(min(60, seconds / 5))  # of load, in which caches fill
        while time.monotonic() < end:
            stage.measure_memory()
            time.sleep(min(60, seconds / 20))  # of load


# The other forwarders continue: silence is shorter than the start of a forwarder.
SEVERAL = Goal(silence_ms=500, raised=0)

DELAYED = Setting(sites=2, running=2, delay=0.2, job_rate=20)
JOBS = Setting(sites=2, running=2, messages=False, job_rate=3_000)
ALONE, TWO, THREE = Setting(), Setting(sites=2, running=2), Setting(sites=3, running=3)
# Padding, so that the buffers of the kernel cannot hold all that queues up for a receiver.
PADDED = Setting(sites=2, running=2, padding=2_000)
IN_A_NETWORK = Setting(sites=2, running=2, network="sender")

SCENARIOS = [
    Scenario(
        "replace-3", "three forwarders, each restarted in turn by SIGTERM", restart_in_turns, THREE, SEVERAL, 20, 3
    ),
    Scenario(
        "replace-1",
        "one forwarder, replaced by another that is started first",
        hand_over,
        Setting(sites=2),
        SEVERAL,
        20,
        3,
    ),
    Scenario(
        "restart-1",
        "one forwarder, restarted by SIGTERM at its own address",
        restart_in_turns,
        ALONE,
        Goal(raised=0),
        20,
        3,
    ),
    Scenario(
        "kill-1-of-3",
        "three forwarders, one killed by SIGKILL",
        partial(kill_in_turns, pause=0.5),
        THREE,
        Goal(silence_ms=100),
        20,
        3,
    ),
    Scenario("kill-only", "one forwarder, killed by SIGKILL and started again", kill_in_turns, ALONE, Goal(), 20, 3),
    # A receiver whose topics all belong to the frozen forwarder gets nothing until the sender disconnects from it.
    Scenario(
        "freeze-1-of-2", "two forwarders, one stands still for 5 s", freeze_in_turns, TWO, Goal(lateness_ms=3_500), 3
    ),
    Scenario(
        "scale", "from one forwarder to three and back", scale, Setting(sites=3), Goal(silence_ms=1_000, raised=0), 3
    ),
    Scenario(
        "old-list",
        "two forwarders, of which one receiver's list has only one",
        run_undisturbed,
        Setting(sites=2, running=2, old_list=True),
        SEVERAL,
    ),
    Scenario(
        "no-forwarder",
        "three forwarders are listed, of which one never existed",
        run_undisturbed,
        Setting(sites=3, running=2),
        SEVERAL,
    ),
    Scenario(
        "keys-changed",
        "one forwarder, the keys of all clients are changed and the former ones revoked",
        change_keys,
        Setting(keys=True),
        SEVERAL,
        2,
        2,
    ),
    Scenario(
        "push-cut", "the connections on which all clients send are cut", cut, Setting(relay="pull"), Goal(), 10, 3
    ),
    Scenario(
        "xsub-cut",
        "the connections on which all clients receive are cut for 0.1 s",
        cut_for_a_moment,
        Setting(relay="pub"),
        Goal(),
        10,
        3,
    ),
    # Messages that are sent meanwhile arrive once the connections are restored.
    Scenario(
        "push-stalled",
        "the connections on which all clients send stand still for 5 s",
        stall,
        Setting(relay="pull"),
        Goal(lateness_ms=6_000),
        3,
    ),
    # The receiver closes the connection after 3 s, and missing messages are replayed on the next one.
    Scenario(
        "xsub-stalled",
        "the connection on which one receiver receives stands still for 4 s",
        partial(stall, seconds=4),
        Setting(relay="pub", relayed="receiver-0"),
        Goal(lateness_ms=5_000, is_long_replay=True),
        3,
    ),
    Scenario(
        "slow-receiver",
        "a receiver stands still for 1.5 and for 6 s while a forwarder with frames for it is killed",
        freeze_receiver_and_kill,
        PADDED,
        Goal(),
        4,
        2,
    ),
    Scenario(
        "network-cut",
        "two forwarders, the network to one is cut for longer than 3 s",
        cut_network,
        IN_A_NETWORK,
        Goal(lateness_ms=3_500),
        4,
        missing=partial(missing, "ip", "iptables"),
    ),
    # The other forwarder delivers its own messages. The rest waits in the history of the one that is cut off.
    Scenario(
        "receiver-cut",
        "two forwarders, the network between one and a receiver is cut for 12 s",
        partial(cut_network, seconds=12),
        Setting(sites=2, running=2, network="receiver-0"),
        Goal(lateness_ms=16_000, is_long_replay=True),
        2,
        missing=partial(missing, "ip", "iptables"),
    ),
    Scenario(
        "network-loss",
        "two forwarders, 10 % of all packets to and from the senders are lost",
        lose_packets,
        IN_A_NETWORK,
        Goal(),
        2,
        missing=partial(missing, "ip", "iptables"),
    ),
    # A round trip on the slow link takes 0.4 s, in which a receiver gets at most `prefetch` jobs of a channel.
    Scenario(
        "network-delay",
        "two forwarders, everything to and from one takes 200 ms; 20 jobs/s",
        run_undisturbed,
        DELAYED,
        Goal(lateness_ms=1_000),
        2,
    ),
    # Forwarders disconnect a frozen receiver after 2.5 s: messages that are published for it afterwards are lost.
    Scenario("consumer-frozen", "a receiver stands still for 30 s", freeze_receiver, PADDED, Goal()),
    # Its mailboxes are full all the time.
    Scenario(
        "consumer-slow",
        "a receiver takes a tenth of its messages for 30 s",
        slow_down,
        Setting(sites=2, running=2, capacity=100),
        Goal(silence_ms=500, lateness_ms=500),
    ),
    Scenario("consumer-killed", "a receiver is killed by SIGKILL", kill_consumer, ALONE, Goal()),
    Scenario(
        "random-jobs",
        "two forwarders and two workers, killed at random at 3,000 jobs/s",
        kill_at_random,
        JOBS,
        Goal(confirmed=100_000),
        40,
        4,
    ),
    Scenario("soak", "two forwarders, nothing happens for 20 minutes", soak, TWO, Goal(trend=1.1)),
]
