"""Normal channels as members of groups when the forwarder restarts: which return and which do not."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest
from forwarders import Forwarder, close_all, until

from channels_zmq.core import DedicatedZmqChannelLayer

Make = Callable[..., Any]
Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _close() -> Any:
    yield
    close_all()


async def gone(layer: Any, forwarder: Forwarder) -> None:
    await asyncio.to_thread(forwarder.kill)
    await until(lambda: not layer.stats()["connected"])


async def back(layer: Any, forwarder: Forwarder) -> None:
    await asyncio.to_thread(forwarder.start)
    await until(lambda: layer.stats()["connected"])


async def knows_clients(layer: Any, count: int) -> None:
    """Wait until a process knows how many clients its forwarder has: so many settle after a restart."""
    (attachment,) = layer._connection().client.attachments
    await until(lambda: attachment.clients == count)


def test_a_member_gets_what_waited_in_other_processes_outboxes(run: Run, forwarder: Forwarder, open_peer: Make) -> None:
    """After a restart, a normal member gets messages that waited in the outboxes of other processes.

    The forwarder knows the member again before it accepts the first message.
    """
    sender = open_peer(**forwarder.config)
    sender.ask("until_connected", True)

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        await layer.group_add("chat", "jobs")
        await asyncio.to_thread(sender.run, knows_clients, 2)
        await gone(layer, forwarder)
        await asyncio.to_thread(sender.ask, "until_connected", False)
        await asyncio.to_thread(sender.ask, "send", "group:chat", "0", 0, 20)
        await back(layer, forwarder)
        assert [(await layer.receive("jobs"))["n"] for _ in range(20)] == list(range(20))

    run(scenario())


@pytest.mark.slow  # a forwarder waits for the clients that its predecessor had
def test_a_discarded_member_does_not_return_with_the_process_that_had_added_it(
    run: Run, forwarder: Forwarder, open_peer: Make
) -> None:
    """A discarded member does not return with the process that had added it.

    That process is stopped during the discard and the restart, and reconnects last.
    """
    adder = open_peer(**forwarder.config)
    adder.ask("add", "chat", "jobs")

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config)
        await layer.send("jobs", {"n": 0})
        assert (await layer.receive("jobs"))["n"] == 0
        adder.process.send_signal(signal.SIGSTOP)
        try:
            await gone(layer, forwarder)
            await back(layer, forwarder)
            await layer.group_discard("chat", "jobs")
        finally:
            adder.process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(adder.ask, "until_counted", "reconnects", 1)
        await layer.group_send("chat", {"n": 1})
        await layer.send("jobs", {"n": 2})
        assert (await layer.receive("jobs"))["n"] == 2

    run(scenario())


@pytest.mark.slow
def test_a_membership_that_has_ended_does_not_return_after_a_restart(run: Run, forwarder: Forwarder) -> None:
    """A membership that has expired by `group_expiry` does not return after a restart of the forwarder.

    The process that added the member forgets it as the forwarder does.
    """

    async def scenario() -> None:
        layer = DedicatedZmqChannelLayer(**forwarder.config, group_expiry=0.5, capacity=10_000)
        await layer.group_add("chat", "jobs")
        number = 0
        while True:
            number += 1
            await layer.group_send("chat", {"by": "group", "n": number})
            await layer.send("jobs", {"by": "send", "n": number})
            message = await layer.receive("jobs")
            if message["by"] == "send":
                break
            await layer.receive("jobs")
        await gone(layer, forwarder)
        await back(layer, forwarder)
        await layer.group_send("chat", {"by": "group", "n": 0})
        await layer.send("jobs", {"by": "send", "n": 0})
        assert (await layer.receive("jobs"))["by"] == "send"

    run(scenario())
