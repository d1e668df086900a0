"""The behaviour of consumers, which must be the same with Channels' classes and with those of this package."""

import asyncio
import contextlib
import contextvars
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.exceptions import StopConsumer
from channels.generic import websocket
from channels.layers import InMemoryChannelLayer
from default_layers import as_default

from channels_zmq import consumers

PATIENCE = 10.0
said_by: contextvars.ContextVar[str] = contextvars.ContextVar("said_by")


@pytest.fixture
def layer() -> Iterator[InMemoryChannelLayer]:
    """Return the default layer, Channels' own one without a network: the consumers work with any layer."""
    layer = InMemoryChannelLayer()
    with as_default(layer):
        yield layer


@pytest.fixture(params=[websocket, consumers], ids=["channels", "lean"])
def package(request: pytest.FixtureRequest) -> Any:
    """Return the module of the consumer classes."""
    return request.param


class Visitor:
    """The side of the ASGI server towards a consumer."""

    def __init__(self, consumer: Any) -> None:
        communicator: Any = ApplicationCommunicator  # it has no type information
        self.server = communicator(consumer.as_asgi(), {"type": "websocket", "path": "/"})

    async def connect(self) -> None:
        await self.server.send_input({"type": "websocket.connect"})
        assert (await self.server.receive_output(PATIENCE))["type"] == "websocket.accept"

    async def say(self, text: str) -> None:
        await self.server.send_input({"type": "websocket.receive", "text": text})

    async def hear(self) -> Any:
        return (await self.server.receive_output(PATIENCE))["text"]

    async def leave(self) -> None:
        await self.server.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.server.wait(PATIENCE)


@asynccontextmanager
async def visiting(consumer: Any) -> AsyncIterator[Visitor]:
    """Connect a visitor; afterwards no task of the consumer may be left."""
    before = asyncio.all_tasks()
    visitor = Visitor(consumer)
    await visitor.connect()
    yield visitor
    assert asyncio.all_tasks() <= before | {visitor.server.future}


class Talk:
    """The handlers of the consumers in these tests, a mixin for a class of either package."""

    groups = ("room",)
    send: Any
    channel_layer: Any

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send("room", {"type": "said", "text": text_data})

    async def said(self, event: dict[str, Any]) -> None:
        await self.send(event["text"])


def consumer_of(package: Any, *mixins: type) -> Any:
    return type("Consumer", (*mixins, Talk, package.AsyncWebsocketConsumer), {})


async def test_messages_of_both_sources_arrive(layer: InMemoryChannelLayer, package: Any) -> None:
    """Messages travel from the browser to the group and back in order, and no group remains after the visitors left."""
    consumer = consumer_of(package)
    async with visiting(consumer) as ada, visiting(consumer) as bo:
        for number in range(10):
            await ada.say(f"{number}")
        for visitor in (ada, bo):
            assert [await visitor.hear() for _ in range(10)] == [f"{number}" for number in range(10)]
        await bo.leave()
        await ada.leave()
    assert layer.groups == {}


async def test_handlers_run_one_at_a_time(layer: InMemoryChannelLayer, package: Any) -> None:
    """Handlers of a consumer run one at a time: while one for a group waits, a message of the browser waits too."""
    goes_on = asyncio.Event()

    class Slow:
        async def said(self, event: dict[str, Any]) -> None:
            await self.send("begins")  # type: ignore[attr-defined] # of Channels
            await goes_on.wait()
            await self.send("ends")  # type: ignore[attr-defined] # of Channels

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.send(f"heard {text_data}")  # type: ignore[attr-defined] # of Channels

    async with visiting(consumer_of(package, Slow)) as visitor:
        await layer.group_send("room", {"type": "said"})
        assert await visitor.hear() == "begins"
        await visitor.say("me")
        assert await visitor.server.receive_nothing(0.05)
        goes_on.set()
        assert [await visitor.hear(), await visitor.hear()] == ["ends", "heard me"]
        await visitor.leave()


async def test_no_handler_runs_after_that_of_the_disconnect(layer: InMemoryChannelLayer, package: Any) -> None:
    """No handler runs after that of the disconnect, despite pending messages: it would send to a closed connection."""
    said, goes_on = [], asyncio.Event()

    class Slow:
        async def said(self, event: dict[str, Any]) -> None:
            said.append(event["n"])
            await goes_on.wait()

        async def disconnect(self, code: int) -> None:
            said.append("disconnected")

    async with visiting(consumer_of(package, Slow)) as visitor:
        for number in range(5):
            await layer.group_send("room", {"type": "said", "n": number})
        while not said:
            await asyncio.sleep(0)
        await visitor.server.send_input({"type": "websocket.disconnect", "code": 1000})
        goes_on.set()
        await visitor.server.wait(PATIENCE)
    assert said == [0, "disconnected"]


async def test_handlers_share_a_context(layer: InMemoryChannelLayer, package: Any) -> None:
    """The handlers of both sources share a context, in which loggers and tracers keep their variables."""

    class Contextual:
        async def connect(self) -> None:
            said_by.set("nobody")
            await self.accept()  # type: ignore[attr-defined] # of Channels

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            before = said_by.get()
            said_by.set(str(text_data))
            await self.channel_layer.group_send("room", {"type": "said", "before": before})  # type: ignore[attr-defined]

        async def said(self, event: dict[str, Any]) -> None:
            await self.send(f"{event['before']}, {said_by.get()}")  # type: ignore[attr-defined] # of Channels

    async with visiting(consumer_of(package, Contextual)) as visitor:
        await visitor.say("ada")
        assert await visitor.hear() == "nobody, ada"
        await visitor.say("bo")
        assert await visitor.hear() == "ada, bo"
        await visitor.leave()


@pytest.mark.parametrize("source", ["group", "browser"])
async def test_an_exception_of_a_handler_ends_the_consumer(
    layer: InMemoryChannelLayer, package: Any, source: str
) -> None:
    """An exception in a handler ends the consumer and reaches the server as it was raised."""

    class Failing:
        async def said(self, event: dict[str, Any]) -> None:
            raise LookupError("by the group")

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            raise LookupError("by the browser")

    async with visiting(consumer_of(package, Failing)) as visitor:
        if source == "group":
            await layer.group_send("room", {"type": "said"})
        else:
            await visitor.say("")
        with pytest.raises(LookupError, match=f"by the {source}"):
            await visitor.server.wait(PATIENCE)


async def test_a_message_without_a_handler_ends_the_consumer(layer: InMemoryChannelLayer, package: Any) -> None:
    """A message whose type has no handler ends the consumer with an error that names the type."""
    async with visiting(consumer_of(package)) as visitor:
        await layer.group_send("room", {"type": "sung"})
        with pytest.raises(ValueError, match="No handler for message type sung"):
            await visitor.server.wait(PATIENCE)


async def test_a_consumer_that_is_cancelled_ends_its_handler(layer: InMemoryChannelLayer, package: Any) -> None:
    """Cancelling a consumer, as servers do after a timeout, ends its handler, which can clean up."""
    ended: list[str] = []

    class Waiting:
        async def said(self, event: dict[str, Any]) -> None:
            await self.send("waits")  # type: ignore[attr-defined] # of Channels
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cleared up")

    async with visiting(consumer_of(package, Waiting)) as visitor:
        await layer.group_send("room", {"type": "said"})
        assert await visitor.hear() == "waits"
        visitor.server.future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await visitor.server.future
        assert ended == ["cleared up"]


@pytest.mark.parametrize("error", [StopConsumer(), OSError("the layer")], ids=["closed", "failed"])
async def test_a_handler_finishes_before_the_end_of_a_source_ends_the_consumer(package: Any, error: Exception) -> None:
    """If the layer closes or fails while a handler runs, the handler finishes before the consumer ends."""
    fails, goes_on, done = asyncio.Event(), asyncio.Event(), list[str]()

    class Failing(InMemoryChannelLayer):  # type: ignore[misc] # it has no type information
        async def receive(self, channel: str) -> Any:
            await fails.wait()
            goes_on.set()
            raise error

    class Busy:
        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            fails.set()
            await goes_on.wait()
            for _ in range(5):
                await asyncio.sleep(0)
            done.append("finished")

    with as_default(Failing()):
        async with visiting(consumer_of(package, Busy)) as visitor:
            await visitor.say("")
            with contextlib.suppress(OSError):
                await visitor.server.wait(PATIENCE)
            assert done == ["finished"]


async def test_json_goes_both_ways(layer: InMemoryChannelLayer, package: Any) -> None:
    """The JSON consumer decodes received text and encodes sent values."""

    class Echo(package.AsyncJsonWebsocketConsumer):  # type: ignore[misc] # Channels has no type information
        async def receive_json(self, content: Any, **kwargs: Any) -> None:
            await self.send_json({"heard": content})

    async with visiting(Echo) as visitor:
        await visitor.say('["a", 1]')
        assert json.loads(await visitor.hear()) == {"heard": ["a", 1]}
        await visitor.leave()


async def test_a_consumer_needs_no_channel_layer(package: Any) -> None:
    """Without a channel layer a consumer still handles the messages of the browser."""

    class Echo(package.AsyncWebsocketConsumer):  # type: ignore[misc] # Channels has no type information
        channel_layer_alias = "there is none"

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            await self.send(text_data)

    async with visiting(Echo) as visitor:
        await visitor.say("hello")
        assert await visitor.hear() == "hello"
        await visitor.leave()


# A program, because Django's database settings are process-wide.
PROGRAM = """
import asyncio, sys, threading
from django.conf import settings
database = {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[2]}
layers = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
settings.configure(DATABASES={"default": database}, CHANNEL_LAYERS=layers)
import importlib
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.db import connection

class Consumer(importlib.import_module(sys.argv[1]).AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        if text_data == "query":
            await sync_to_async(lambda: connection.ensure_connection())()
        if text_data != "threads":
            await self.send("open" if await sync_to_async(lambda: connection.connection is not None)() else "closed")
        else:
            await self.send(f"{threading.active_count()}")

async def main():
    server = ApplicationCommunicator(Consumer.as_asgi(), {"type": "websocket", "path": "/"})
    await server.send_input({"type": "websocket.connect"})
    await server.receive_output(10)
    for text in sys.argv[3:]:
        await server.send_input({"type": "websocket.receive", "text": text})
        print((await server.receive_output(10))["text"])
    await server.send_input({"type": "websocket.disconnect", "code": 1000})
    await server.wait(10)

asyncio.run(main())
"""


def said_with_a_database(package: Any, folder: Path, *texts: str) -> list[str]:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, package.__name__, str(folder / "database"), *texts]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_a_connection_that_a_handler_has_left_open_is_closed_before_the_next_one(package: Any, tmp_path: Path) -> None:
    """With CONN_MAX_AGE 0, a database connection that a handler leaves open is closed before the next handler."""
    texts = ("look", "query", "look", "query", "look")
    assert said_with_a_database(package, tmp_path, *texts) == ["closed", "open", "closed", "open", "closed"]


def test_without_an_open_connection_messages_cost_no_thread(tmp_path: Path) -> None:
    """Without an open database connection the lean classes start no thread for a message, as Channels' classes do."""
    (lean,) = said_with_a_database(consumers, tmp_path, "threads")
    (channels,) = said_with_a_database(websocket, tmp_path, "threads")
    assert int(lean) < int(channels)
