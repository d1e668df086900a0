"""Jobs in flight while the consumer's connection is cut: each is read once, waits, or is counted as lost."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from forwarders import Forwarder
from peers import wait_until
from relays import Relay, relay_to

pytestmark = pytest.mark.slow

Make = Callable[..., Any]

JOBS = 600
CUTS = 6


@pytest.fixture
def relay(forwarder: Forwarder) -> Iterator[Relay]:
    """Relay the consumer to the forwarder's port for subscribers."""
    with relay_to(forwarder.pub) as relay:
        yield relay


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("prefetch", [0, 16])
def test_every_job_that_was_confirmed_is_read_once_or_counted_as_lost(
    open_peer: Make, forwarder: Forwarder, relay: Relay, loop: str, prefetch: int
) -> None:
    """If the connection is cut six times amid a stream, each confirmed job is read once or counted as lost."""
    sender = open_peer(loop, **forwarder.config, capacity=JOBS)
    by_relay = {**forwarder.config, "pub_socket_address": relay.address}
    reader = open_peer(loop, **by_relay, capacity=JOBS, prefetch=prefetch)
    for peer in (sender, reader):
        peer.ask("until_connected", True)
    reader.ask("collect", "jobs")
    sending = sender.begin("offer", "jobs", "0", JOBS)

    def has_read(count: int) -> bool:
        return len(reader.ask("collected", "jobs")) >= count

    for cut in range(1, CUTS + 1):
        wait_until(partial(has_read, cut * JOBS // (2 * CUTS)))
        relay.cut()
        reader.ask("until_counted", "reconnects", cut)
    confirmed = sending.result(20)

    def accounted_for() -> int:
        status = forwarder.status()
        lost = reader.ask("stats")["dropped"].get("lost_delivery", 0) + status["drops"]["lost_delivery"]
        return int(len(reader.ask("collected", "jobs")) + lost)

    wait_until(lambda: accounted_for() >= confirmed)
    sender.ask("send", "jobs", "mark", 0, 1)
    read = reader.ask("until_collected", "jobs", "mark", 0)
    assert max(Counter(map(tuple, read)).values()) == 1
    assert accounted_for() == confirmed + 1
    assert confirmed == JOBS
    print(f"read {len(read) - 1} of {confirmed}, lost {confirmed + 1 - len(read)}")
