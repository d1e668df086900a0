"""Channels' own consumers and worker on the layers, as an application uses them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.consumer import SyncConsumer
from channels.generic.websocket import AsyncWebsocketConsumer, JsonWebsocketConsumer
from channels.routing import ChannelNameRouter
from channels.testing import WebsocketCommunicator
from channels.worker import Worker
from default_layers import as_default
from forwarders import PATIENCE, until

from channels_zmq import consumers

Make = Callable[..., Any]
Run = Callable[..., Any]


class Talk:
    """A mixin for a consumer that sends each message to all members of the room; a text after `/` is a job."""

    groups = ("room",)
    channel_layer: Any
    channel_name: str
    send: Any

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data and text_data.startswith("/"):
            job = {"type": "work", "text": text_data[1:], "reply": self.channel_name}
            await self.channel_layer.send("jobs", job)
        else:
            await self.channel_layer.group_send("room", {"type": "said", "text": text_data})

    async def said(self, event: dict[str, Any]) -> None:
        await self.send(event["text"])


class JsonRoom(JsonWebsocketConsumer):  # type: ignore[misc] # Channels has no type information
    """The same room for clients that use JSON, with handlers that run in threads."""

    groups = ("room",)

    def receive_json(self, content: Any, **kwargs: Any) -> None:
        async_to_sync(self.channel_layer.group_send)("room", {"type": "said", "text": content["text"]})

    def said(self, event: dict[str, Any]) -> None:
        self.send_json({"said": event["text"]})


class Jobs(SyncConsumer):  # type: ignore[misc] # as above
    """A consumer that runs jobs in a thread and replies to the channel that the job names."""

    def work(self, event: dict[str, Any]) -> None:
        answer = {"type": "said", "text": event["text"].upper()}
        async_to_sync(self.channel_layer.send)(event["reply"], answer)


class Room(Talk, AsyncWebsocketConsumer):  # type: ignore[misc] # Channels has no type information
    """The room with Channels' consumer."""


class LeanRoom(Talk, consumers.AsyncWebsocketConsumer):
    """The room with this library's consumer."""


@pytest.fixture
def layer(make_layer: Make) -> Iterator[Any]:
    """Make a layer the default one of Channels during the test."""
    layer = make_layer()
    with as_default(layer):
        yield layer


@asynccontextmanager
async def visitor(consumer: Any) -> AsyncIterator[WebsocketCommunicator]:
    """Connect the browser's side of a WebSocket."""
    browser = WebsocketCommunicator(consumer.as_asgi(), "/")
    accepted, _ = await browser.connect(timeout=PATIENCE)
    assert accepted
    yield browser
    await browser.disconnect(timeout=PATIENCE)


@asynccontextmanager
async def worker(layer: Any) -> AsyncIterator[None]:
    """Run the worker that `manage.py runworker jobs` runs."""
    application = ChannelNameRouter({"jobs": Jobs.as_asgi()})
    task = asyncio.create_task(Worker(application, ["jobs"], layer).listener("jobs"))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_one_visitor_says_all_hear_and_none_leaves_a_trace(layer: Any, run: Run) -> None:
    """Asynchronous and synchronous consumers of one group get each message once, and leave no channel or group."""

    async def scenario() -> None:
        async with visitor(Room) as ada, visitor(LeanRoom) as bo, visitor(JsonRoom) as cy:
            for speaker, text in ((ada, "one"), (bo, "two")):
                await speaker.send_to(text)
                assert [await hearer.receive_from(PATIENCE) for hearer in (ada, bo)] == [text, text]
                assert await cy.receive_json_from(PATIENCE) == {"said": text}
            await cy.send_json_to({"text": "three"})
            assert [await hearer.receive_from(PATIENCE) for hearer in (ada, bo)] == ["three", "three"]
            assert await cy.receive_json_from(PATIENCE) == {"said": "three"}
        await until(lambda: (layer.stats()["channels"], layer.stats()["groups"]) == (0, 0))
        assert layer.stats()["dropped"] == {}

    run(scenario())


def test_who_leaves_hears_no_more_and_the_others_go_on(layer: Any, run: Run) -> None:
    """A consumer that has ended takes no message from the others, which receive all later ones."""

    async def scenario() -> None:
        async with visitor(Room) as ada:
            async with visitor(JsonRoom):
                await ada.send_to("before")
                assert await ada.receive_from(PATIENCE) == "before"
            for number in range(20):
                await ada.send_to(f"after {number}")
            assert [await ada.receive_from(PATIENCE) for _ in range(20)] == [f"after {n}" for n in range(20)]
        assert layer.stats()["dropped"] == {}

    run(scenario())


@pytest.mark.filterwarnings("ignore:async_to_sync was passed a non-async-marked callable")  # by asgiref's own worker
def test_a_worker_does_the_jobs_of_websockets_and_answers_each_its_own(layer: Any, run: Run) -> None:
    """A worker runs the jobs of WebSockets, and each answer arrives only at the WebSocket that sent the job.

    The job has a normal channel, and the answer a process-specific one.
    """

    async def scenario() -> None:
        async with worker(layer), visitor(Room) as ada, visitor(Room) as bo:
            for number in range(20):
                await ada.send_to(f"/ada {number}")
                await bo.send_to(f"/bo {number}")
            for browser, name in ((ada, "ADA"), (bo, "BO")):
                assert sorted([await browser.receive_from(PATIENCE) for _ in range(20)]) == sorted(
                    f"{name} {number}" for number in range(20)
                )
            await ada.send_to("done")
            assert [await browser.receive_from(PATIENCE) for browser in (ada, bo)] == ["done", "done"]

    run(scenario())


def test_closing_the_layer_ends_consumers_without_an_error(layer: Any, run: Run) -> None:
    """Closing the layer ends consumers by `StopConsumer`, both one that waits and one that is busy in a handler."""

    async def scenario() -> None:
        goes_on = asyncio.Event()

        class Busy(Room):
            async def said(self, event: dict[str, Any]) -> None:
                await self.send("busy")
                await goes_on.wait()  # until then its channel is not read

        waits, busy = (WebsocketCommunicator(consumer.as_asgi(), "/") for consumer in (JsonRoom, Busy))
        for browser in (waits, busy):
            await browser.connect(timeout=PATIENCE)
        await busy.send_to("now")
        assert await busy.receive_from(PATIENCE) == "busy"
        await layer.close()
        goes_on.set()
        await waits.wait(timeout=PATIENCE)
        await busy.wait(timeout=PATIENCE)

    run(scenario())
