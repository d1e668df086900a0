"""The example chat without a server: its rooms, its jobs, and its consumers on Channels' in-memory layer."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from channels.layers import InMemoryChannelLayer, channel_layers
from channels.routing import URLRouter
from channels.testing import ApplicationCommunicator, WebsocketCommunicator
from default_layers import as_default
from django.urls import path
from forwarders import PATIENCE

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "chat"))

from chat import consumers, counting, jobs, rooms

BEAT = 0.05


def entry(key: str, order: int = 1, revision: int = 0) -> rooms.Entry:
    return {
        "id": key,
        "kind": "text",
        "name": "Ada",
        "text": f"text of {key}",
        "order": order,
        "at": 0,
        "revision": revision,
        "done": 0.0,
        "result": "",
    }


class TestNames:
    def test_any_room_name_becomes_a_valid_group_name(self) -> None:
        """A room name of any script, with spaces and 48 characters, becomes a short and plain group name."""
        for room in ("lobby", "Café №1", "部屋", "x" * 48):
            InMemoryChannelLayer().require_valid_group_name(rooms.group_of(room))

    def test_people_who_differ_in_case_or_composition_meet(self) -> None:
        """A name in another case or Unicode composition is the same room; another name is another room."""
        assert rooms.group_of("CAFÉ") == rooms.group_of("cafe\u0301")
        assert rooms.group_of("tea") != rooms.group_of("tea2")

    @pytest.mark.parametrize(
        ("typed", "room"),
        [("a/b", "a-b"), ("..", "lobby"), ("", "lobby"), (" tea \n kitchen ", "tea kitchen")],
    )
    def test_a_room_name_can_stand_in_an_address(self, typed: str, room: str) -> None:
        """Characters that a path cannot contain are replaced, and an empty name becomes the lobby."""
        assert rooms.clean_room(typed) == room

    def test_half_a_surrogate_pair_is_replaced(self) -> None:
        """Half a surrogate pair is replaced, because JSON permits it and no serializer accepts it."""
        assert rooms.clean_text(json.loads('"a\\ud800b"')) == "a?b"

    def test_what_is_not_a_text_is_nothing(self) -> None:
        """A value that is not a string becomes an empty text, because a page may send any JSON."""
        assert rooms.clean_text(["a"]) == ""


class TestHistory:
    def test_an_entry_is_news_once(self) -> None:
        """An entry is new only once; the same entry from another member is not."""
        history = rooms.History()
        assert history.put(entry("a"))
        assert not history.put(entry("a"))

    def test_a_newer_revision_replaces_an_older_one_only(self) -> None:
        """Only a newer revision replaces an entry, because the steps of a job may overtake each other."""
        history = rooms.History([entry("a", revision=2)])
        assert not history.put(entry("a", revision=1))
        assert history.put(entry("a", revision=3))
        assert [known["revision"] for known in history.entries()] == [3]

    def test_the_oldest_entries_leave_at_the_limit(self) -> None:
        """A full room drops its oldest entry for a new one, and ignores one that is older than all of them."""
        history = rooms.History([entry(key, order) for order, key in enumerate("abc", start=2)], limit=3)
        assert history.put(entry("d", 9))
        assert not history.put(entry("z", 1))
        assert [known["id"] for known in history.entries()] == ["b", "c", "d"]

    def test_an_answer_stands_below_its_question_when_the_clock_is_slow(self) -> None:
        """The next order is higher than each order seen or returned before, even if the clock is slow."""
        history = rooms.History([entry("a", order=1000)])
        assert [history.next_order(at=10), history.next_order(at=10)] == [1001, 1002]
        assert history.next_order(at=5000) == 5000

    def test_two_digests_tell_who_lacks_what(self) -> None:
        """By two digests, each side finds the entries that it lacks, and whether the other side lacks any."""
        mine, others = rooms.History([entry("a"), entry("b")]), rooms.History([entry("b", revision=1)])
        assert mine.lacks(others.digest()) == ["b"]
        assert others.lacks(mine.digest()) == ["a"]
        assert mine.exceeds(others.digest())
        assert not rooms.History().exceeds(mine.digest())

    def test_the_attic_forgets_the_rooms_left_longest_ago(self) -> None:
        """The attic is bounded: it forgets the rooms that were left longest ago."""
        attic = rooms.Attic(limit=2)
        for group in ("a", "b", "a", "c"):
            attic.keep(group, [entry(group)])
        assert [bool(attic.recall(group)) for group in "abc"] == [True, False, True]


class TestRoster:
    def test_a_member_without_a_sign_of_life_expires(self) -> None:
        """A member expires unless another heartbeat renews it in time."""
        roster = rooms.Roster()
        assert roster.renew("channel", "Ada", "web1", until=10.0)
        assert not roster.renew("channel", "Ada", "web1", until=12.0)
        assert roster.expire(now=11.0) == []
        assert [member.name for member in roster.expire(now=13.0)] == ["Ada"]
        assert len(roster) == 0

    def test_nobody_expires_for_the_time_in_which_nobody_could_be_heard(self) -> None:
        """After an outage, in which no heartbeat could arrive, all members get time for another one."""
        roster = rooms.Roster()
        roster.renew("channel", "Ada", "web1", until=10.0)
        roster.extend(until=50.0)
        assert roster.expire(now=40.0) == []


class TestJobs:
    def test_a_message_without_a_slash_is_no_command(self) -> None:
        """A message that does not begin with a slash is not a command."""
        assert jobs.parse("hello /roll") is None

    def test_commands_are_recognised(self) -> None:
        """A command is parsed into its name and argument, and its argument may be missing."""
        assert jobs.parse("/roll 2d6") == jobs.Command("roll", "2d6")
        assert jobs.parse("/roll") == jobs.Command("roll", "")
        assert jobs.parse("/count a b") == jobs.Command("count", "a b")

    @pytest.mark.parametrize("text", ["/", "/dance", "/count", "/roll x", "/roll 0d6", "/roll 99d6", "/roll 2d1"])
    def test_a_wrong_command_is_refused_before_a_worker_sees_it(self, text: str) -> None:
        """A wrong command raises an error with a hint, before a worker receives it."""
        with pytest.raises(jobs.UnknownCommandError, match="/roll 2d6"):
            jobs.parse(text)

    def test_each_die_is_a_step(self) -> None:
        """Each die is one step; the progress ends at 1, and the last step has the sum."""
        steps = list(jobs.roll("3d6", randint=lambda low, high: high))
        assert [round(step.done, 2) for step in steps] == [0.33, 0.67, 1.0]
        assert steps[-1].result == "6 + 6 + 6 = 18"

    def test_words_and_letters_are_counted(self) -> None:
        """The last step of a count has the numbers of words and letters, and the most frequent letters."""
        assert list(jobs.count("to be or"))[-1] == jobs.Step(1.0, "3 words, 6 letters; most often: o × 2, t × 1, b × 1")


@pytest.fixture(autouse=True)
def layer() -> Iterator[InMemoryChannelLayer]:
    """Make a new in-memory layer the default one, and the attic empty."""
    layer = InMemoryChannelLayer()
    consumers.attic = rooms.Attic()
    with as_default(layer):
        yield layer


class Page:
    """The page's side of a WebSocket."""

    def __init__(self, communicator: WebsocketCommunicator) -> None:
        self.communicator = communicator

    async def says(self, text: str, key: str = "0123456789abcdef") -> str:
        await self.communicator.send_json_to({"type": "say", "key": key, "text": text})
        return key

    async def sees(self, kind: str, wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """Return the first message of a kind for which `wanted` holds, and drop the others before it."""
        async with asyncio.timeout(5):
            while True:
                message: dict[str, Any] = await self.communicator.receive_json_from(timeout=5)
                if message["type"] == kind and wanted(message):
                    return message

    async def sees_people(self, *names: str) -> None:
        await self.sees("roster", lambda message: sorted(p["name"] for p in message["people"]) == sorted(names))


@asynccontextmanager
async def page(name: str, room: str = "lobby", beat: float = 60.0) -> AsyncIterator[Page]:
    member = consumers.RoomConsumer.as_asgi(process="web1", beat_seconds=beat)
    application = URLRouter([path("ws/room/<str:room>/", member)])
    communicator = WebsocketCommunicator(application, f"ws/room/{quote(room)}/?name={quote(name)}")
    accepted, _ = await communicator.connect(timeout=PATIENCE)
    assert accepted
    yield Page(communicator)
    await communicator.disconnect(timeout=PATIENCE)


async def test_what_one_says_arrives_at_everybody_in_the_room() -> None:
    """A message arrives at all members of its room, also the author, with the page's key, and in no other room."""
    async with page("Ada") as ada, page("Bo") as bo, page("Cy", room="elsewhere") as cy:
        key = await ada.says("hello")
        for member in (ada, bo):
            (seen,) = (await member.sees("entries"))["entries"]
            assert (seen["id"], seen["name"], seen["text"]) == (key, "Ada", "hello")
        await cy.says("nobody here")
        assert (await cy.sees("entries"))["entries"][0]["name"] == "Cy"


async def test_a_newcomer_asks_the_others_for_the_history() -> None:
    """A new member gets the history from another member through the layer, because no store has it."""
    async with page("Ada") as ada:
        await ada.says("before you came")
        await ada.sees("entries")
        async with page("Bo") as bo:
            assert (await bo.sees("welcome"))["entries"] == []
            assert (await bo.sees("entries"))["entries"][0]["text"] == "before you came"


async def test_a_reloaded_page_finds_its_room_again() -> None:
    """A reloaded page gets the entries of its room from its process, also if there are no other members."""
    async with page("Ada") as ada:
        await ada.says("note to self")
        await ada.sees("entries")
    async with page("Ada") as ada:
        assert [said["text"] for said in (await ada.sees("welcome"))["entries"]] == ["note to self"]


async def test_coming_and_leaving_is_seen() -> None:
    """Each member knows who is in the room, and is notified when another one joins or leaves."""
    async with page("Ada") as ada:
        async with page("Bo") as bo:
            assert (await ada.sees("notice"))["change"] == "came"
            await ada.sees_people("Ada", "Bo")
            await bo.sees_people("Ada", "Bo")
        assert (await ada.sees("notice")) == {"type": "notice", "change": "left", "name": "Bo"}
        await ada.sees_people("Ada")


async def test_a_member_of_a_killed_process_vanishes(layer: InMemoryChannelLayer) -> None:
    """A member that misses three heartbeats is removed, also without a message that it left."""
    ghost = {"id": "ghost", "name": "Gus", "process": "web2", "lease": 3 * BEAT, "digest": {}}
    async with page("Ada", beat=BEAT) as ada:
        await ada.sees("roster")
        await layer.group_send(rooms.group_of("lobby"), {"type": "member.joined", "again": False, **ghost})
        await ada.sees_people("Ada", "Gus")
        assert (await ada.sees("notice", lambda message: message["change"] == "lost"))["name"] == "Gus"
        await ada.sees_people("Ada")


async def test_beats_keep_a_member_here() -> None:
    """A member that was forgotten, as after a long pause of its process, is in the room again at its next beat."""
    async with page("Ada", beat=BEAT) as ada, page("Bo", beat=BEAT):
        await ada.sees_people("Ada", "Bo")
        await channel_layers["default"].group_send(
            rooms.group_of("lobby"), {"type": "member.left", "id": last_member()}
        )
        await ada.sees_people("Ada")
        await ada.sees_people("Ada", "Bo")


def last_member() -> str:
    """Return the channel of the member that joined the lobby last."""
    channels: list[str] = list(channel_layers["default"].groups[rooms.group_of("lobby")])
    return channels[-1]


async def test_typing_is_seen_by_the_others_only() -> None:
    """A notice that a member types is sent to the others, and not to the member itself."""
    async with page("Ada") as ada, page("Bo") as bo:
        await ada.communicator.send_json_to({"type": "typing"})
        assert (await bo.sees("typing"))["name"] == "Ada"
        await ada.says("done")
        seen = [(await ada.communicator.receive_json_from(timeout=5))["type"] for _ in range(5)]
        assert "typing" not in seen


async def test_a_command_goes_to_one_worker_and_its_steps_to_everybody(layer: InMemoryChannelLayer) -> None:
    """One worker runs a command, whose entry appears at once; its revisions bring each step to all members."""
    async with page("Ada") as ada, page("Bo") as bo:
        await ada.says("/roll 2d6")
        message = await asyncio.wait_for(layer.receive(jobs.CHANNEL), 5)
        assert (message["job"], message["argument"]) == ("roll", "2d6")
        scope = {"type": "channel", "channel": jobs.CHANNEL}
        worker = ApplicationCommunicator(jobs.JobsConsumer.as_asgi(), scope)
        await worker.send_input(message)
        for member in (ada, bo):
            seen = [(await member.sees("entries"))["entries"][0] for _ in range(3)]
            assert [step["done"] for step in seen] == [0.0, 0.5, 1.0]
            assert " = " in seen[-1]["result"]
        worker.stop(exceptions=False)


async def test_a_failed_job_is_told_and_the_worker_goes_on(layer: InMemoryChannelLayer) -> None:
    """A job that fails is reported in its entry, and the worker continues.

    A newer web process, for instance, may send an unknown job.
    """
    await layer.group_add("watch", channel := await layer.new_channel())
    worker = ApplicationCommunicator(jobs.JobsConsumer.as_asgi(), {"type": "channel", "channel": jobs.CHANNEL})
    for job in ("juggle", "roll"):
        message = {"type": "job.run", "job": job, "argument": "1d2", "group": "watch", "entry": entry("a")}
        await worker.send_input(message)
    results = [(await asyncio.wait_for(layer.receive(channel), 5))["entry"]["result"] for _ in range(2)]
    assert results[0] == "The worker could not do this."
    assert results[1] in ("1", "2")
    worker.stop(exceptions=False)


async def test_a_wrong_command_is_refused_to_its_author() -> None:
    """A wrong command is refused to its author with its key, so that the page can withdraw the message."""
    async with page("Ada") as ada:
        key = await ada.says("/dance")
        assert (await ada.sees("refused"))["key"] == key


async def test_a_message_that_is_sent_again_appears_once() -> None:
    """A message that is sent twice appears once, as a page whose connection broke has to send it again."""
    async with page("Ada") as ada, page("Bo") as bo:
        await ada.says("once", key="a" * 16)
        await ada.sees("entries")
        await ada.says("once", key="a" * 16)
        await ada.sees("entries")
        await ada.says("next", key="b" * 16)
        assert [(await bo.sees("entries"))["entries"][0]["text"] for _ in range(2)] == ["once", "next"]


@pytest.mark.parametrize("frame", [" ", "[]", "{}", "nonsense", '{"type": "say", "key": 1}', '{"type": ["say"]}'])
async def test_a_frame_that_is_not_from_our_page_ends_nothing(frame: str) -> None:
    """An invalid frame does not end the connection, because any client can connect."""
    async with page("Ada") as ada:
        await ada.communicator.send_to(text_data=frame)
        await ada.communicator.send_to(bytes_data=b"\xff")
        await ada.says("still here")
        assert (await ada.sees("entries"))["entries"][0]["text"] == "still here"


async def test_a_page_without_a_name_is_not_let_in() -> None:
    """A connection without a name is rejected, because our page asks for one before it connects."""
    application = URLRouter([path("ws/room/<str:room>/", consumers.RoomConsumer.as_asgi())])
    accepted, _ = await WebsocketCommunicator(application, "ws/room/lobby/").connect()
    assert not accepted


async def test_an_outage_is_shown_and_the_gap_it_left_closes(layer: InMemoryChannelLayer) -> None:
    """An outage is shown, and entries that only one member has are exchanged when the layer is back."""
    async with page("Ada") as ada, page("Bo") as bo:
        await ada.sees_people("Ada", "Bo")
        first, second = layer.groups[rooms.group_of("lobby")]
        for channel in (first, second):
            await layer.send(channel, {"type": "layer.disconnected"})
        await layer.send(second, {"type": "room.entry", "entry": entry("only with Bo")})
        for member in (ada, bo):
            assert (await member.sees("layer"))["up"] is False
        await ada.says("/roll 2d6")
        assert "away" in (await ada.sees("refused"))["reason"]
        for channel in (first, second):
            await layer.send(channel, {"type": "layer.reconnected", "missed": 1})
        back = await ada.sees("layer")
        assert (back["up"], back["missed"]) == (True, 1)
        assert (await ada.sees("entries"))["entries"][0]["id"] == "only with Bo"


async def test_a_job_that_no_worker_can_be_asked_for_is_marked_failed(layer: InMemoryChannelLayer) -> None:
    """If the channel of the jobs is full, the entry shows that the job is not done."""
    layer.channel_capacity = layer.compile_capacities({jobs.CHANNEL: 1})
    await layer.send(jobs.CHANNEL, {"type": "job.run"})
    async with page("Ada") as ada:
        await ada.says("/roll 2d6")
        failed = await ada.sees("entries", lambda message: message["entries"][0]["done"] == 1.0)
        assert failed["entries"][0]["result"] == "Too many jobs are waiting."


async def test_a_page_that_comes_during_an_outage_is_told_to_try_again() -> None:
    """A page that connects while the layer is away gets the reason, and a close code that makes it try again."""

    async def group_add(group: str, channel: str) -> None:
        raise ConnectionError("nobody answers at tcp://127.0.0.1:1")

    away = InMemoryChannelLayer()
    away.group_add = group_add
    channel_layers.set("default", away)
    async with page("Ada") as ada:
        assert (await ada.sees("layer"))["up"] is False
        closed = await ada.communicator.receive_output(timeout=5)
        assert (closed["type"], closed["code"]) == ("websocket.close", consumers.TRY_AGAIN_LATER)


async def test_a_consumer_that_fails_still_leaves_its_room(layer: InMemoryChannelLayer) -> None:
    """A consumer that ends with an error leaves its room, so that no member remains without a page."""
    async with page("Bo") as bo:
        await bo.sees("roster")
        member = consumers.RoomConsumer.as_asgi(process="web1", beat_seconds=60.0)
        application = URLRouter([path("ws/room/<str:room>/", member)])
        ada = WebsocketCommunicator(application, "ws/room/lobby/?name=Ada")
        await ada.connect()
        await bo.sees_people("Ada", "Bo")
        await layer.send(last_member(), {"type": "no.such.handler"})
        assert (await bo.sees("notice", lambda message: message["change"] == "left"))["name"] == "Ada"
        with pytest.raises(ValueError, match="No handler"):
            await ada.wait(timeout=5)


class TestCounting:
    @pytest.mark.parametrize(
        ("numbers", "arrived", "lost", "twice"),
        [
            ([1, 2, 3], 3, 0, 0),
            ([7, 8], 2, 0, 0),
            ([1, 2, 5, 6], 4, 2, 0),
            ([1, 2, 2, 3, 1], 3, 0, 2),
        ],
        ids=["all", "from later on", "with a gap", "some again"],
    )
    def test_gaps_and_repetitions_are_counted(self, numbers: list[int], arrived: int, lost: int, twice: int) -> None:
        """Gaps and repetitions are counted by the numbers that the page's process assigns."""
        count = counting.Count()
        for number in numbers:
            count.add(number)
        assert count.report() == {"arrived": arrived, "lost": lost, "twice": twice}
