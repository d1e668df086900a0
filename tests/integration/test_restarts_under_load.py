"""A forwarder that is replaced while processes send: each message arrives once and in order."""

from collections.abc import Iterator
from typing import Any

import pytest
from forwarders import PATIENCE, Forwarder
from peers import Peer, Read

pytestmark = pytest.mark.slow

GROUP, JOBS = "group:chat", "jobs"
MESSAGES, FEW = 500, 20
"""Messages of one sender to one target before, during and after the outage, and while the forwarder is frozen."""
BOUND = MESSAGES // 2
"""The number of jobs of one sender that a killed forwarder may lose.

These are jobs that it had confirmed and not yet delivered, which is milliseconds at the pace of a flood.
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def peers(request: pytest.FixtureRequest, forwarder: Forwarder) -> Iterator[list[Peer]]:
    """Start two processes that send and two that receive, and connect all of them."""
    # A job that waits meanwhile must not expire, however slowly a forwarder starts.
    bounds: dict[str, Any] = {"capacity": 10**6, "outbox_capacity": 10**6, "connect_timeout": PATIENCE}
    peers = [Peer(request.param, **forwarder.config, **bounds) for _ in range(4)]
    for peer in peers:
        peer.ask("until_connected", True)
    yield peers
    for peer in peers:
        peer.end()


class Floods:
    """The floods of all senders: each to the group, to a channel of each receiver, and to the jobs.

    Args:
        senders: The senders by the names in their messages.
        direct: Channels of the receivers.
    """

    def __init__(self, senders: dict[str, Peer], direct: list[str]) -> None:
        self._senders = senders
        self._ordered = [GROUP, *direct]
        for name, sender in senders.items():
            for target in (*self._ordered, JOBS):
                sender.ask("flood", target, name)

    def go_on(self, count: int, *, jobs: bool) -> dict[str, int]:
        """Wait until more messages have been sent, and return how many jobs each sender has sent in total.

        Args:
            count: Messages of each sender to each target.
            jobs: Whether to wait for jobs too, one of which waits for its confirmation while there is no forwarder.
        """
        targets = [*self._ordered, JOBS] if jobs else self._ordered
        waits = [peer.begin("until_flooded", target, count) for peer in self._senders.values() for target in targets]
        for wait in waits:
            wait.result(PATIENCE)
        return {name: peer.ask("until_flooded", JOBS, 0) for name, peer in self._senders.items()}

    def end(self) -> dict[tuple[str, str], Any]:
        """End the floods, and return what was sent, by sender and target."""
        return {
            (name, target): peer.ask("end_flood", target)
            for name, peer in self._senders.items()
            for target in (*self._ordered, JOBS)
        }


def numbers_of(read: Read, sender: str) -> list[int]:
    return [number for other, number in read if other == sender]


@pytest.mark.parametrize("how", ["end", "kill", "freeze and kill"])
def test_a_forwarder_replaced_under_load_loses_nothing_but_jobs_of_a_killed_one(
    peers: list[Peer], forwarder: Forwarder, how: str
) -> None:
    """A forwarder that is replaced under load loses nothing, except jobs if it is killed.

    Two senders send to a group, to channels and to jobs before, during and after. The forwarder ends by SIGTERM, by
    SIGKILL, or by SIGKILL after a freeze, so that it certainly takes some messages along. The order of jobs is not
    checked: one that a slow reader returns may meet an exchange that is already further.
    """
    senders, receivers = {"a": peers[0], "b": peers[1]}, peers[2:]
    members = [peer.ask("member", "chat") for peer in receivers]
    direct = [peer.ask("channel") for peer in receivers]
    for peer, *channels in zip(receivers, members, direct, strict=True):
        for channel in (*channels, JOBS):
            peer.ask("collect", channel)

    floods = Floods(senders, direct)
    floods.go_on(MESSAGES, jobs=True)
    if how == "freeze and kill":
        forwarder.freeze()
        floods.go_on(FEW, jobs=False)
        forwarder.kill()
    else:
        getattr(forwarder, how)()
    for peer in peers:
        peer.ask("until_connected", False)
    floods.go_on(MESSAGES, jobs=False)
    forwarder.start()
    for peer in peers:
        peer.ask("until_connected", True)
    back = floods.go_on(MESSAGES, jobs=True)
    floods.go_on(MESSAGES, jobs=True)
    sent = floods.end()

    for peer, member, channel in zip(receivers, members, direct, strict=True):
        for (name, target), flood in sent.items():
            if target in (GROUP, channel):
                mailbox = member if target == GROUP else channel
                read = numbers_of(peer.ask("until_collected", mailbox, name, flood["count"] - 1), name)
                assert read == list(range(flood["count"]))
                assert len(flood["away"]) >= MESSAGES
        stats = peer.ask("stats")
        assert (set(stats["dropped"]) <= {"lost_delivery"}, stats["reconnects"]) == (True, 1)

    done = jobs_done(senders["a"], receivers)
    for name, sender in senders.items():
        jobs = [numbers_of(read, name) for read in done]
        everywhere = set(jobs[0] + jobs[1])
        assert len(everywhere) == len(jobs[0]) + len(jobs[1]), "no job is done twice"
        flood = sent[name, JOBS]
        assert everywhere >= {*flood["away"], *range(back[name], flood["count"])}
        lost = set(range(flood["count"])) - everywhere - set(flood["unknown"])
        assert len(lost) < BOUND
        assert not lost or how != "end"
        stats = sender.ask("stats")
        assert (stats["dropped"], stats["reconnects"]) == ({}, 1)


def jobs_done(sender: Peer, workers: list[Peer]) -> list[Read]:
    """Return the jobs that each worker has done once it has received a mark, which follows all others."""
    number = 0
    while True:
        sender.ask("send", JOBS, "mark", number, 1)
        done: list[Read] = [worker.ask("collected", JOBS) for worker in workers]
        if all(numbers_of(read, "mark") for read in done):
            return done
        number += 1
