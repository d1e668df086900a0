"""A flush beside other traffic: it does not delay others for long, and drops only unconfirmed messages."""

import asyncio
from typing import Any

import pytest
import zmq
from forwarders import Forwarder, free_ports, until
from strangers import Peer

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.errors import FlushIncomplete, RequestRefused


def test_a_process_that_does_not_answer_ends_a_flush_for_the_others(forwarder: Forwarder, run: Any) -> None:
    """A silent process ends a flush with an error that names 1 s, and confirmed messages remain."""

    async def scenario(silent: Peer) -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        await layer.send("jobs", {"n": 0})
        flush = asyncio.create_task(layer.flush())
        await until(lambda: "jobs" not in [queue["channel"] for queue in forwarder.status()["queues"]])
        for number in range(1, 5):
            await layer.send("jobs", {"n": number})
        with pytest.raises(FlushIncomplete, match="did not answer within 1 s"):
            await flush
        assert [(await layer.receive("jobs"))["n"] for _ in range(4)] == [1, 2, 3, 4]

    with zmq.Context() as context, Peer(context, forwarder.pull, forwarder.pub) as silent:
        run(scenario(silent))


def test_a_forwarder_may_forbid_to_flush(run: Any) -> None:
    """A forwarder with `--no-flush` refuses a flush with an error that names the flag, and drops nothing."""
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    forwarder = Forwarder(pull, pub, flags=("--no-flush",))
    forwarder.start()

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        await layer.send("jobs", {"n": 0})
        with pytest.raises(RequestRefused, match="--no-flush"):
            await layer.flush()
        assert await layer.receive("jobs") == {"n": 0}
        await layer.close()

    try:
        run(scenario())
    finally:
        forwarder.end()
