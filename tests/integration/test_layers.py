"""The contract of a channel layer on real sockets, with every topology and both event loops."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull, StopConsumer
from event_loops import FACTORIES, ReaderlessLoop

from channels_zmq import connections
from channels_zmq.connection import Connection
from channels_zmq.errors import MessageTooLarge, SerializationError

pytestmark = pytest.mark.parametrize("run", FACTORIES, indirect=True)

Make = Callable[..., Any]
Run = Callable[..., Any]


async def nothing_waits(layer: Any, channel: str) -> bool:
    """Return whether a process-specific channel is empty, once all earlier messages have arrived."""
    await layer.send(channel, {"type": "mark"})
    return bool((await layer.receive(channel))["type"] == "mark")


def test_every_member_of_a_group_gets_its_own_copy_once(make_layer: Make, run: Run) -> None:
    """Two members in one process each get an equal dict of their own, exactly once."""

    async def scenario() -> None:
        layer = make_layer()
        channels = [await layer.new_channel() for _ in range(3)]
        for channel in channels[:2]:
            await layer.group_add("chat", channel)
        await layer.group_send("chat", {"type": "hello", "list": [1, (2, 3)], "bytes": b"\0"})
        first, second = [await layer.receive(channel) for channel in channels[:2]]
        assert first == second == {"type": "hello", "list": [1, [2, 3]], "bytes": b"\0"}
        assert first is not second
        assert first["list"] is not second["list"]
        for channel in channels:
            assert await nothing_waits(layer, channel)

    run(scenario())


def test_a_group_is_neither_its_prefix_nor_a_channel_of_the_same_name(make_layer: Make, run: Run) -> None:
    """`chat`, `chat2`, `cha` and the normal channel `chat` do not get each other's messages."""

    async def scenario() -> None:
        layer = make_layer()
        channel, other = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_add("chat2", other)
        await layer.group_send("cha", {"type": "none"})
        await layer.send("chat", {"type": "plain"})
        await layer.group_send("chat2", {"type": "two"})
        assert (await layer.receive(other))["type"] == "two"
        assert await nothing_waits(layer, channel)
        assert (await layer.receive("chat"))["type"] == "plain"

    run(scenario())


def test_a_discarded_member_gets_nothing_sent_after_the_discard(make_layer: Make, run: Run) -> None:
    """A discarded member gets nothing sent afterwards; a discard without a membership is not an error."""

    async def scenario() -> None:
        layer = make_layer()
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_discard("chat", channel)
        await layer.group_discard("chat", channel)
        await layer.group_discard("never", channel)
        await layer.group_send("chat", {"type": "late"})
        assert await nothing_waits(layer, channel)

    run(scenario())


def test_one_senders_messages_arrive_in_order_across_group_and_direct(make_layer: Make, run: Run) -> None:
    """Messages of one sender to one channel arrive in order, whether by a group or directly."""

    async def scenario() -> None:
        layer = make_layer(capacity=1000)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        for number in range(0, 400, 2):
            await layer.group_send("chat", {"n": number})
            await layer.send(channel, {"n": number + 1})
        assert [(await layer.receive(channel))["n"] for _ in range(400)] == list(range(400))

    run(scenario())


def test_a_full_process_channel_says_so_and_keeps_the_oldest(make_layer: Make, run: Run) -> None:
    """At capacity, `send` raises, `group_send` does not, and the channel keeps the oldest messages."""

    async def scenario() -> None:
        layer = make_layer(capacity=3)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        for number in range(3):
            await layer.send(channel, {"n": number})
        with pytest.raises(ChannelFull):
            await layer.send(channel, {"n": 3})
        await layer.group_send("chat", {"n": 4})
        while not layer.stats()["dropped"]:
            await asyncio.sleep(0)  # until the group's message was refused
        assert [(await layer.receive(channel))["n"] for _ in range(3)] == [0, 1, 2]
        assert await nothing_waits(layer, channel)
        assert layer.stats()["dropped"] == {"mailbox_full": 1}

    run(scenario())


def test_a_full_normal_channel_says_so_exactly(make_layer: Make, run: Run) -> None:
    """A normal channel accepts exactly the capacity that CONFIG has for its name."""

    async def scenario() -> None:
        layer = make_layer(capacity=2, channel_capacity={"jobs.*": 5})
        for channel, capacity in (("other", 2), ("jobs.x", 5)):
            for number in range(capacity):
                await layer.send(channel, {"n": number})
            with pytest.raises(ChannelFull):
                await layer.send(channel, {"n": -1})
            assert [(await layer.receive(channel))["n"] for _ in range(capacity)] == list(range(capacity))

    run(scenario())


async def send_once_there_is_room(layer: Any, channel: str, message: dict[str, Any]) -> None:
    """Send a message, again and again while the channel is full."""
    is_full = True
    while is_full:
        try:
            await layer.send(channel, message)
            is_full = False
        except ChannelFull:
            await asyncio.sleep(0.005)


def test_a_message_expires_after_its_time_even_below_a_second(make_layer: Make, run: Run) -> None:
    """A message of a process-specific or normal channel expires also below a second, and leaves room for another."""

    async def scenario() -> None:
        layer, lasting = make_layer(capacity=1, expiry=0.05), make_layer(capacity=1)
        channel = await layer.new_channel()
        for name in (channel, "plain"):
            await layer.send(name, {"n": 1})
            await send_once_there_is_room(lasting, name, {"n": 2})
            assert (await lasting.receive(name))["n"] == 2

    run(scenario())


def test_each_job_goes_to_one_reader(make_layer: Make, run: Run) -> None:
    """Four readers share 200 jobs, and each job is done exactly once."""

    async def scenario() -> None:
        layer = make_layer(capacity=1000)
        done: list[int] = []
        everything = asyncio.Event()

        async def work() -> None:
            while True:
                done.append((await layer.receive("jobs"))["n"])
                if len(done) == 200:
                    everything.set()

        workers = [asyncio.create_task(work()) for _ in range(4)]
        for number in range(200):
            await layer.send("jobs", {"n": number})
        await everything.wait()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert sorted(done) == list(range(200))

    run(scenario())


def test_who_only_sends_jobs_is_not_read_for_in_another_thread(
    make_layer: Make, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The housekeeper does not read for a process that only sends jobs, as it would wake up for each answer.

    The process's own loop can read the answers.
    """
    by_housekeeper = 0
    read = Connection.read_unattended

    def count(connection: Connection) -> None:
        nonlocal by_housekeeper
        by_housekeeper += 1
        read(connection)

    async def scenario() -> None:
        nonlocal by_housekeeper
        layer = make_layer(capacity=1000)
        await layer.send("jobs", {"n": 0})
        monkeypatch.setattr(Connection, "read_unattended", count)
        for number in range(200):
            await layer.send("jobs", {"n": number})
        loop_cannot = isinstance(asyncio.get_running_loop(), ReaderlessLoop)
        assert by_housekeeper <= 1 or loop_cannot  # once, if it has begun to watch before the first call

    run(scenario())


def test_a_connection_at_rest_is_looked_after_once_a_second(make_layer: Make, run: Run) -> None:
    """The housekeeper checks a connection at rest only once a second, which saves a hundredth of a core.

    It checks one whose event loop may just have ended more often.
    """

    async def scenario() -> None:
        layer = make_layer()
        reader = asyncio.create_task(layer.receive(await layer.new_channel()))
        await asyncio.sleep(0)
        connection = layer._connection()
        while connection.tick(now := time.monotonic()) < now + 0.9:
            await asyncio.sleep(0.01)
        reader.cancel()
        await asyncio.wait([reader])

    run(scenario())


def test_a_normal_channel_can_be_a_member_and_gets_one_copy(make_layer: Make, run: Run) -> None:
    """A normal channel that is added to a group twice gets one copy of each message, and none once discarded."""

    async def scenario() -> None:
        layer = make_layer()
        await layer.group_add("chat", "jobs")
        await layer.group_add("chat", "jobs")
        await layer.group_send("chat", {"n": 1})
        await layer.group_send("chat", {"n": 2})
        assert [(await layer.receive("jobs"))["n"] for _ in range(2)] == [1, 2]
        await layer.group_discard("chat", "jobs")
        await layer.group_send("chat", {"n": 3})
        await layer.send("jobs", {"n": 4})
        assert (await layer.receive("jobs"))["n"] == 4

    run(scenario())


@pytest.mark.parametrize("kind", ["process", "plain"])
def test_a_cancelled_read_loses_nothing(make_layer: Make, run: Run, kind: str) -> None:
    """A read loses no message, whether it is cancelled while it waits or after it was woken."""

    async def scenario() -> None:
        layer = make_layer()
        channel = await layer.new_channel() if kind == "process" else "jobs"
        for number in range(20):
            read = asyncio.create_task(layer.receive(channel))
            await asyncio.sleep(0)
            await layer.send(channel, {"n": number})
            read.cancel()
            try:
                message = await read
            except asyncio.CancelledError:
                message = await layer.receive(channel)
            assert message["n"] == number

    run(scenario())


def test_of_several_readers_none_is_stranded(make_layer: Make, run: Run) -> None:
    """If the first of three readers of one channel is cancelled, the others get the messages in their order.

    Which of two readers wakes first is open: one thread may have taken the first message, another the second one.
    """

    async def scenario() -> None:
        layer = make_layer()
        channel = await layer.new_channel()
        first, second, third = (asyncio.create_task(layer.receive(channel)) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await layer.send(channel, {"n": 1})
        await layer.send(channel, {"n": 2})
        assert [(await read)["n"] for read in asyncio.as_completed([second, third])] == [1, 2]

    run(scenario())


def test_closing_ends_readers_cleanly_and_the_layer_opens_again(make_layer: Make, run: Run) -> None:
    """Closing the layer ends readers by `StopConsumer`, which causes no traceback, and the layer can open again."""

    async def scenario() -> None:
        layer = make_layer()
        channel = await layer.new_channel()
        read = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        await layer.close()
        with pytest.raises(StopConsumer):
            await read
        async with layer:
            channel = await layer.new_channel()
            await layer.send(channel, {"n": 1})
            assert (await layer.receive(channel))["n"] == 1

    run(scenario())


def test_a_channel_of_before_the_layer_was_closed_joins_and_leaves_no_group(make_layer: Make, run: Run) -> None:
    """A channel from before the layer was closed joins and leaves no group, and opens no connection.

    A consumer that ends later discards its groups all the same, which is not an error.
    """

    async def scenario() -> None:
        layer = make_layer()
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.close()
        await layer.group_add("chat", channel)
        await layer.group_discard("chat", channel)
        assert layer.stats_if_used() is None

    run(scenario())


def test_flush_empties_everything(make_layer: Make, run: Run) -> None:
    """A flush empties process-specific channels, normal channels, groups and their normal members."""

    async def scenario() -> None:
        layer = make_layer()
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        await layer.group_add("chat", "jobs")
        await layer.send(channel, {"n": 1})
        await layer.send("jobs", {"n": 1})
        await layer.flush()
        await layer.group_send("chat", {"n": 2})
        assert await nothing_waits(layer, channel)
        await layer.send("jobs", {"n": 3})
        assert (await layer.receive("jobs"))["n"] == 3

    run(scenario())


def test_what_cannot_be_sent_is_refused_before_anything_is(make_layer: Make, run: Run) -> None:
    """A message with an invalid size, key, value or name is refused, and the next one arrives.

    The error names the invalid place.
    """

    async def scenario() -> None:
        layer = make_layer()
        channel = await layer.new_channel()
        with pytest.raises(MessageTooLarge, match="max_message_size"):
            await layer.send(channel, {"data": bytes(2**20)})
        with pytest.raises(SerializationError, match=r"message\['a'\]\[1\]"):
            await layer.send(channel, {"a": [0, object()]})
        with pytest.raises(SerializationError, match="keys must be str"):
            await layer.group_send("chat", {"a": {1: 2}})
        with pytest.raises(TypeError):
            await layer.send("not a name", {})
        await layer.send(channel, {"data": bytes(2**20 - 100)})
        assert len((await layer.receive(channel))["data"]) == 2**20 - 100

    run(scenario())


def test_group_expiry_ends_a_membership_and_spares_one_that_is_read(make_layer: Make, run: Run) -> None:
    """The group expiry ends the membership of a channel that is not read, and spares one that is read."""

    async def scenario() -> None:
        layer = make_layer(group_expiry=0.3)
        silent, living = await layer.new_channel(), await layer.new_channel()
        await layer.group_add("chat", silent)
        await layer.group_add("chat", living)
        read = asyncio.create_task(layer.receive(living))
        await asyncio.sleep(0.5)  # the time is what is tested
        await layer.group_send("chat", {"n": 1})
        assert (await read)["n"] == 1
        assert await nothing_waits(layer, silent)

    run(scenario())


def test_plain_threads_send_by_async_to_sync_on_the_connection_that_is_there(make_layer: Make, run: Run) -> None:
    """Threads that send by `async_to_sync` use the existing connection, and lose nothing.

    Each call has an event loop of its own.
    """

    async def scenario() -> None:
        layer = make_layer(capacity=1000)
        channel = await layer.new_channel()
        await layer.group_add("chat", channel)
        before = connections.connections()

        def call() -> None:
            for number in range(25):
                async_to_sync(layer.group_send)("chat", {"n": number})
                async_to_sync(layer.send)("jobs", {"n": number})

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        numbers = [(await layer.receive(channel))["n"] for _ in range(100)]
        jobs = [(await layer.receive("jobs"))["n"] for _ in range(100)]
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert sorted(numbers) == sorted(jobs) == sorted(list(range(25)) * 4)
        assert connections.connections() == before

    run(scenario())


def test_readers_in_two_loops_at_once(make_layer: Make, run: Run) -> None:
    """A second loop in another thread reads its own channel while the first one reads another."""

    async def scenario() -> None:
        layer = make_layer()
        here, there = await layer.new_channel(), await layer.new_channel()
        got: list[Any] = []

        def other_loop() -> None:
            async def read() -> None:
                got.extend([await layer.receive(there) for _ in range(50)])

            asyncio.run(asyncio.wait_for(read(), 10))

        thread = threading.Thread(target=other_loop)
        thread.start()
        for number in range(50):
            await layer.send(there, {"n": number})
            await layer.send(here, {"n": number})
            assert (await layer.receive(here))["n"] == number
        await asyncio.to_thread(thread.join)
        assert [message["n"] for message in got] == list(range(50))

    run(scenario())


def test_consumers_that_come_and_go_leave_nothing(make_layer: Make, run: Run) -> None:
    """1,000 consumers that join, read and are cancelled leave no channel, group or message."""

    async def scenario() -> None:
        layer = make_layer()

        read: list[Any] = []
        joined: list[str] = []

        async def consume() -> None:
            channel = await layer.new_channel()
            await layer.group_add("chat", channel)
            joined.append(channel)
            try:
                while True:
                    read.append(await layer.receive(channel))
            finally:
                await layer.group_discard("chat", channel)

        tasks = [asyncio.create_task(consume()) for _ in range(1000)]
        while len(joined) < len(tasks):
            await asyncio.sleep(0)
        await layer.group_send("chat", {"type": "x"})
        while len(read) < len(tasks):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stats = layer.stats()
        assert (stats["channels"], stats["groups"], stats["waiting"]) == (0, 0, 0)

    run(scenario())


def test_the_resilience_mode_loses_what_it_is_told_to_and_counts_it(make_layer: Make, run: Run) -> None:
    """With a drop rate of 1, the resilience mode loses and counts every message."""

    async def scenario() -> None:
        layer = make_layer(drop_rate=1)
        await layer.send(await layer.new_channel(), {"n": 1})
        await layer.send("jobs", {"n": 1})
        await layer.group_send("chat", {"n": 1})
        assert layer.stats()["dropped"] == {"drop_rate": 3}

    run(scenario())


def test_nobody_can_guess_the_session_of_a_client(make_layer: Make, run: Run) -> None:
    """Each session of a client has a different and large number, which nobody can guess.

    This number is the client's proof where a frame arrives on a connection that is not tied to its inbox.
    """

    async def scenario() -> None:
        sessions = set()
        for _ in range(4):
            layer = make_layer()
            await layer.group_add("chat", await layer.new_channel())
            sessions.add(layer._connection().client.new_session())
            await layer.close()
        assert len(sessions) == 4
        assert max(sessions) > 2**16

    run(scenario())
