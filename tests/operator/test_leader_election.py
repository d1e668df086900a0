"""Leader election: never two leaders at a time, and never none for long."""

import asyncio
import random
from typing import Any

import pytest
from clusters import FakeCluster, Request, refused
from fakes import Clock

from channels_zmq_operator.cluster import ClusterError
from channels_zmq_operator.leader_election import DURATION, LeaderElection
from channels_zmq_operator.naming import Manifest

HOME = "home"


def replica(cluster: FakeCluster, name: str, clock: Any) -> LeaderElection:
    return LeaderElection(cluster, HOME, "lease", name, clock=clock)


def lease(cluster: FakeCluster) -> Manifest:
    found = cluster.look("Lease", HOME, "lease")
    assert found is not None
    return dict(found["spec"])


async def test_the_first_one_leads_and_the_second_one_waits() -> None:
    """The first replica leads for as long as it renews the Lease, which names it, and the second one waits."""
    cluster, clock = FakeCluster(), Clock()
    one, two = replica(cluster, "one", clock), replica(cluster, "two", clock)
    assert not one.leads
    for _ in range(20):
        assert await one.attempt()
        assert not await two.attempt()
        clock.now += 3
        assert one.leads
        assert not two.leads
    assert lease(cluster)["holderIdentity"] == one.identity
    assert lease(cluster)["holderIdentity"].startswith("one_")
    assert lease(cluster)["leaseDurationSeconds"] == DURATION
    assert lease(cluster)["leaseTransitions"] == 0
    assert lease(cluster)["acquireTime"] < lease(cluster)["renewTime"]


async def test_two_of_one_name_are_two() -> None:
    """Two processes whose replicas have the same name have different identities, so only one of them leads."""
    cluster, clock = FakeCluster(), Clock()
    one, two = replica(cluster, "same", clock), replica(cluster, "same", clock)
    assert await one.attempt()
    assert not await two.attempt()


async def test_a_leader_without_renewal_stops_before_another_one_begins() -> None:
    """A leader that cannot renew stops after two thirds of the Lease's duration, before another replica acquires it.

    The other replica begins only after the whole duration has passed without a renewal.
    """
    cluster, clock = FakeCluster(), Clock()
    one, two = replica(cluster, "one", clock), replica(cluster, "two", clock)
    assert await one.attempt()
    assert not await two.attempt()
    clock.now += 9.9
    assert one.leads
    clock.now += 0.2
    assert not one.leads
    clock.now += 4.8
    assert not await two.attempt()
    clock.now += 0.2
    assert await two.attempt()
    assert lease(cluster)["leaseTransitions"] == 1
    assert not await one.attempt()


async def test_a_lease_that_is_seen_for_the_first_time_is_waited_for() -> None:
    """A replica waits a whole duration for a Lease that is new to it, since the holder's clock may be wrong."""
    cluster, clock = FakeCluster(), Clock()
    assert await replica(cluster, "one", clock).attempt()
    cluster.edit("Lease", HOME, "lease", lambda found: found["spec"].update(renewTime="1999-01-01T00:00:00.000000Z"))
    clock.now += 1000
    two = replica(cluster, "two", clock)
    assert not await two.attempt()
    clock.now += 15
    assert await two.attempt()


async def test_a_longer_lease_is_respected() -> None:
    """A replica waits for the duration that the Lease states, since the holder may be a version with another one."""
    cluster, clock = FakeCluster(), Clock()
    one, two = LeaderElection(cluster, HOME, "lease", "one", duration=60, clock=clock), replica(cluster, "two", clock)
    assert await one.attempt()
    assert not await two.attempt()
    clock.now += 59
    assert not await two.attempt()
    clock.now += 1
    assert await two.attempt()


async def test_a_lease_that_was_given_up_is_taken_at_once() -> None:
    """A released Lease is acquired at once and its former holder no longer leads; a non-holder releases nothing."""
    cluster, clock = FakeCluster(), Clock()
    one, two = replica(cluster, "one", clock), replica(cluster, "two", clock)
    assert await one.attempt()
    assert not await two.attempt()
    await two.release()
    assert lease(cluster)["holderIdentity"] == one.identity
    await one.release()
    assert not one.leads
    assert await two.attempt()


async def test_a_lease_that_was_taken_away_is_not_ours_to_give_up() -> None:
    """A leader that reads another holder in the Lease stops at once, and does not release that holder's Lease."""
    cluster, clock = FakeCluster(), Clock()
    one = replica(cluster, "one", clock)
    for look in (one.attempt, one.release):
        clock.now += 100
        assert await one.attempt()
        cluster.edit("Lease", HOME, "lease", lambda found: found["spec"].update(holderIdentity="thief"))
        assert one.leads
        await look()
        assert not one.leads
        assert lease(cluster)["holderIdentity"] == "thief"
        assert not await one.attempt()


async def test_a_renewal_counts_from_its_beginning() -> None:
    """A renewal counts from the start of its request, since another replica may see it before the reply arrives."""
    cluster, clock = FakeCluster(), Clock()
    one = replica(cluster, "one", clock)

    def slow(request: Request) -> None:
        clock.now += 4

    cluster.refusal = slow
    assert await one.attempt()
    clock.now += 1.9
    assert one.leads
    clock.now += 0.1
    assert not one.leads


async def test_giving_up_can_fail() -> None:
    """A replica whose release fails no longer leads; the Lease then expires."""
    cluster, clock = FakeCluster(), Clock()
    one = replica(cluster, "one", clock)
    assert await one.attempt()
    cluster.refusal = lambda request: refused(0, "ClientConnectorError")
    await one.release()
    assert not one.leads


async def test_a_leader_outlives_a_short_outage(caplog: pytest.LogCaptureFixture) -> None:
    """A leader whose renewals fail leads on until its time is over, and logs the failure once."""
    cluster, clock = FakeCluster(), Clock()
    one = replica(cluster, "one", clock)
    assert await one.attempt()
    cluster.refusal = lambda request: refused(0, "ClientConnectorError")
    for _ in range(3):
        clock.now += 3
        assert await one.attempt()
    clock.now += 3
    assert not await one.attempt()
    assert caplog.text.count("could not be renewed") == 1
    cluster.refusal = lambda request: None
    assert await one.attempt()


@pytest.mark.parametrize("spec", [None, {}, {"holderIdentity": None}, {"holderIdentity": ""}])
async def test_a_lease_of_nobody_is_taken(spec: Any) -> None:
    """A Lease without a holder is acquired at once, also one that was created manually."""
    cluster, clock = FakeCluster(), Clock()
    cluster.put({"kind": "Lease", "metadata": {"name": "lease", "namespace": HOME}, "spec": spec})
    assert await replica(cluster, "one", clock).attempt()


async def test_of_two_that_take_it_at_once_one_is_refused() -> None:
    """Of replicas that acquire the Lease concurrently, one succeeds.

    The API server refuses the others by the Lease's resource version, or by its name if it does not exist yet.
    """
    cluster, clock = FakeCluster(), Clock()
    for _ in range(3):
        replicas = [replica(cluster, str(number), clock) for number in range(5)]
        await asyncio.gather(*(one.attempt() for one in replicas))
        assert sum(one.leads for one in replicas) == 1
        for one in replicas:
            await one.release()


@pytest.mark.parametrize("seed", range(30))
async def test_there_are_never_two_leaders(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three replicas with clocks of their own and an unreliable API server never lead two at a time.

    They try at random times. Requests last up to 8 s, are refused, or take effect without a reply. When the API server
    is reliable again, exactly one replica leads.
    """
    chance = random.Random(seed)
    cluster, time = FakeCluster(), Clock()
    offsets = [chance.uniform(-1000, 1000) for _ in range(3)]
    replicas = [
        replica(cluster, str(index), lambda offset=offset: time.now + offset) for index, offset in enumerate(offsets)
    ]
    begun = 0

    def check() -> None:
        assert sum(one.leads for one in replicas) <= 1

    def slow(request: Request) -> ClusterError | None:
        time.now += chance.choice([0, 0, 0, 0.1, 1, 8])
        check()
        return refused(chance.choice([0, 409, 500]), "") if chance.random() < 0.2 else None

    served = cluster._served

    async def lossy(*call: Any) -> Any:
        answer = await served(*call)
        time.now += chance.choice([0, 0, 0, 1, 8])
        check()
        if chance.random() < 0.1:
            raise refused(0, "ServerDisconnectedError")
        return answer

    cluster.refusal = slow
    monkeypatch.setattr(cluster, "_served", lossy)
    leaders = set()
    for _ in range(400):
        one = chance.choice(replicas)
        await asyncio.gather(one.attempt(), *([chance.choice(replicas).attempt()] if chance.random() < 0.3 else []))
        check()
        leaders |= {each.identity for each in replicas if each.leads}
        if chance.random() < 0.02:
            await one.release()
        time.now += chance.choice([0.5, 1, 3, 3, 3])
        check()
        begun += one.leads
    assert begun
    assert len(leaders) > 1
    cluster.refusal = lambda request: None
    monkeypatch.setattr(cluster, "_served", served)
    for _ in range(3):
        for one in replicas:
            await one.attempt()
        time.now += 8
    for one in replicas:
        await one.attempt()
    assert sum(one.leads for one in replicas) == 1


async def test_it_waits_for_its_turn_and_keeps_it() -> None:
    """On a real clock, the second replica leads once the first one stops, and stops when the Lease is taken away."""
    cluster = FakeCluster()
    one, two = (LeaderElection(cluster, HOME, "lease", name, duration=3.0) for name in ("one", "two"))
    stop = asyncio.Event()
    assert await one.acquire(stop)
    keeping, waiting = asyncio.create_task(one.keep()), asyncio.create_task(two.acquire(stop))
    await asyncio.wait([keeping, waiting], timeout=3.6)  # longer than a Lease lasts that is not renewed
    assert not keeping.done()
    assert not waiting.done()
    keeping.cancel()
    async with asyncio.timeout(20):
        assert await waiting
    assert not one.leads
    keeping = asyncio.create_task(two.keep())
    cluster.edit("Lease", HOME, "lease", lambda found: found["spec"].update(holderIdentity="thief"))
    async with asyncio.timeout(20):
        await keeping
    assert not two.leads


async def test_a_request_that_hangs_does_not_keep_it_leading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader whose renewal hangs stops leading when its time ends."""
    cluster = FakeCluster()
    one = LeaderElection(cluster, HOME, "lease", "one", duration=0.3)
    assert await one.attempt()

    async def hang(*call: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(cluster, "_served", hang)
    async with asyncio.timeout(5):
        await one.keep()
    assert not one.leads


async def test_who_waits_can_be_stopped() -> None:
    """A replica that waits for the Lease returns within a second once it is stopped."""
    cluster = FakeCluster()
    assert await LeaderElection(cluster, HOME, "lease", "one").attempt()
    stop = asyncio.Event()
    waiting = asyncio.create_task(LeaderElection(cluster, HOME, "lease", "two").acquire(stop))
    while len(cluster.log) < 3:
        await asyncio.sleep(0)
    stop.set()
    async with asyncio.timeout(1):
        assert not await waiting
