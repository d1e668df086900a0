"""One page in a room: its messages are sent to the room's group, and the group's messages to the page.

    page  --say, typing-->  RoomConsumer  --room.entry, member.*-->  group of the room  -->  every RoomConsumer in it
                                 |  ^
                     job.run     |  '-- direct messages between members: member.here, history.wanted, history.given
                                 v
                       normal channel "jobs" --> one worker --> room.entry with a higher revision

Nothing is stored. A new member announces itself with a digest of the entries that it has, and the members answer with
theirs. A member that lacks entries requests exactly these. The same happens after an outage of the channel layer.
"""

import asyncio
import contextlib
import json
import logging
import time
from typing import Any
from urllib.parse import parse_qs

from channels.exceptions import ChannelFull

from channels_zmq.consumers import AsyncWebsocketConsumer
from chat import jobs, rooms

logger = logging.getLogger(__name__)

TRY_AGAIN_LATER = 1013
LEASE_BEATS = 3
# With more members, each one beats less often: a room's beats stay linear in its size, not quadratic.
BEATS_PER_SECOND = 4
# The errors of a layer that cannot accept a message now.
UNDELIVERABLE = (ChannelFull, ConnectionError)

# Shared by the rooms of this process on purpose: it outlives the connections.
attic = rooms.Attic()


class RoomConsumer(AsyncWebsocketConsumer):
    """A member of a room. Handlers of group messages are named after the message's type, as Channels does it."""

    def __init__(self, process: str = "", beat_seconds: float = 5.0) -> None:
        super().__init__()
        self.process = process
        self.beat_seconds = beat_seconds
        self.name = ""
        self.group = ""
        self.history = rooms.History()
        self.roster = rooms.Roster()
        self.layer_up = True
        self._beating: asyncio.Task[None] | None = None

    # The connection of the page.

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Run the member, which leaves the room however it ends, also by an error or a cancelled task."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._leave()

    async def connect(self) -> None:
        query = parse_qs(self.scope["query_string"].decode("ascii", "replace"))
        self.name = rooms.clean_name(query.get("name", [""])[0])
        if not self.name:
            await self.close()
            return
        room = rooms.clean_room(self.scope["url_route"]["kwargs"]["room"])
        group = rooms.group_of(room)
        await self.accept()
        try:
            await self.channel_layer.group_add(group, self.channel_name)
        except ConnectionError:
            await self._give("layer", up=False, missed=None)
            await self.close(TRY_AGAIN_LATER)
            return
        self.group = group
        self.history = rooms.History(attic.recall(group))
        await self._give("welcome", room=room, name=self.name, process=self.process, entries=self.history.entries())
        await self._give_roster()
        await self._announce(again=False)
        self._beating = asyncio.create_task(self._beat(), name=f"beat of {self.channel_name}")

    async def _leave(self) -> None:
        if self._beating:
            self._beating.cancel()
        if not self.group:
            return
        attic.keep(self.group, self.history.entries())
        with contextlib.suppress(*UNDELIVERABLE):
            await self._tell_room("member.left", id=self.channel_name)
        with contextlib.suppress(*UNDELIVERABLE):
            await self.channel_layer.group_discard(self.group, self.channel_name)

    # Messages from the page.

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            content = json.loads(text_data or "")
            kind = content["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return  # not from our page
        if kind == "say":
            await self._say(content.get("key"), rooms.clean_text(content.get("text")))
        elif kind == "typing" and self.layer_up:
            await self._tell_room("member.typing", id=self.channel_name, name=self.name)

    async def _say(self, key: object, text: str) -> None:
        if not isinstance(key, str) or not rooms.is_key(key) or not text:
            return
        if key in self.history:  # sent again after the page's connection broke: it had arrived
            await self._give("entries", entries=self.history.pick([key]))
            return
        try:
            command = jobs.parse(text)
        except jobs.UnknownCommandError as error:
            await self._give("refused", key=key, reason=str(error))
            return
        if command and not self.layer_up:
            await self._give("refused", key=key, reason="The channel layer is away: no worker can be asked now.")
            return
        entry = self._write(key, text, "job" if command else "text")
        try:
            await self._tell_room("room.entry", entry=entry)
            if command:
                await self._ask_worker(command, entry)
        except UNDELIVERABLE:
            await self._give("refused", key=key, reason="The channel layer does not take more messages now.")

    def _write(self, key: str, text: str, kind: str) -> rooms.Entry:
        at = time.time_ns() // 1_000_000
        return {
            "id": key,
            "kind": kind,
            "name": self.name,
            "text": text,
            "order": self.history.next_order(at),
            "at": at,
            "revision": 0,
            "done": 0.0,
            "result": "",
        }

    async def _ask_worker(self, command: jobs.Command, entry: rooms.Entry) -> None:
        message = {"job": command.job, "argument": command.argument, "group": self.group, "entry": entry}
        try:
            await self.channel_layer.send(jobs.CHANNEL, {"type": "job.run", **message})
        except UNDELIVERABLE as error:
            logger.warning("No worker could be asked: %s", error)
            full = isinstance(error, ChannelFull)
            reason = "Too many jobs are waiting." if full else "The channel layer is away: no worker was asked."
            await self._tell_room("room.entry", entry=jobs.revise(entry, jobs.Step(1.0, reason)))

    # Messages from the room.

    async def room_entry(self, event: dict[str, Any]) -> None:
        if self.history.put(event["entry"]):
            await self._give("entries", entries=[event["entry"]])

    async def member_joined(self, event: dict[str, Any]) -> None:
        """A member has joined, or (`again`) has the channel layer back and compares its entries."""
        if event["id"] == self.channel_name:
            return
        await self._note_member(event, notice=not event["again"])
        # After an outage all members announce themselves again; only members with entries that another lacks answer.
        if not event["again"] or self.history.exceeds(event["digest"]):
            await self._tell_one(event["id"], "member.here", **self._introduction())
        await self._ask_for_what_is_lacking(event)

    async def member_here(self, event: dict[str, Any]) -> None:
        await self._note_member(event, notice=False)
        await self._ask_for_what_is_lacking(event)

    async def member_alive(self, event: dict[str, Any]) -> None:
        if event["id"] != self.channel_name:
            await self._note_member(event, notice=False)

    async def member_left(self, event: dict[str, Any]) -> None:
        member = self.roster.remove(event["id"])
        if member:
            await self._give("notice", change="left", name=member.name)
            await self._give_roster()

    async def member_typing(self, event: dict[str, Any]) -> None:
        if event["id"] != self.channel_name:
            await self._give("typing", name=event["name"])

    async def history_wanted(self, event: dict[str, Any]) -> None:
        await self._tell_one(event["by"], "history.given", entries=self.history.pick(event["ids"]))

    async def history_given(self, event: dict[str, Any]) -> None:
        news = [entry for entry in event["entries"] if self.history.put(entry)]
        if news:
            await self._give("entries", entries=news)

    # Messages of the channel layer about itself.

    async def layer_disconnected(self, event: dict[str, Any]) -> None:
        self.layer_up = False
        await self._give("layer", up=False, missed=None)

    async def layer_reconnected(self, event: dict[str, Any]) -> None:
        self.layer_up = True
        self.roster.extend(time.monotonic() + self._lease())
        await self._give("layer", up=True, missed=event.get("missed"))
        await self._announce(again=True)

    # Presence.

    async def _beat(self) -> None:
        """Announce every few seconds that this member is present, and drop members that no longer do so."""
        while True:
            await asyncio.sleep(self._interval())
            if not self.layer_up:
                continue  # no beat can arrive now, so silence does not mean that a member has left
            with contextlib.suppress(*UNDELIVERABLE):
                await self._tell_room("member.alive", **self._presence())
            gone = self.roster.expire(time.monotonic())
            for member in gone:
                await self._give("notice", change="lost", name=member.name)
            if gone:
                await self._give_roster()

    def _interval(self) -> float:
        return max(self.beat_seconds, len(self.roster) / BEATS_PER_SECOND)

    def _lease(self) -> float:
        return LEASE_BEATS * self._interval()

    def _presence(self) -> dict[str, Any]:
        return {"id": self.channel_name, "name": self.name, "process": self.process, "lease": self._lease()}

    def _introduction(self) -> dict[str, Any]:
        return {**self._presence(), "digest": self.history.digest()}

    async def _announce(self, *, again: bool) -> None:
        with contextlib.suppress(*UNDELIVERABLE):  # the beats announce it too
            await self._tell_room("member.joined", again=again, **self._introduction())

    async def _note_member(self, event: dict[str, Any], *, notice: bool) -> None:
        until = time.monotonic() + event["lease"]
        if self.roster.renew(event["id"], event["name"], event["process"], until):
            if notice:
                await self._give("notice", change="came", name=event["name"])
            await self._give_roster()

    async def _ask_for_what_is_lacking(self, event: dict[str, Any]) -> None:
        ids = self.history.lacks(event["digest"])
        if ids:
            await self._tell_one(event["id"], "history.wanted", ids=ids, by=self.channel_name)

    # Sending.

    async def _tell_room(self, kind: str, **fields: Any) -> None:
        await self.channel_layer.group_send(self.group, {"type": kind, **fields})

    async def _tell_one(self, channel: str, kind: str, **fields: Any) -> None:
        with contextlib.suppress(*UNDELIVERABLE):  # it is requested or answered again after the next outage
            await self.channel_layer.send(channel, {"type": kind, **fields})

    async def _give(self, kind: str, **fields: Any) -> None:
        await self.send(json.dumps({"type": kind, **fields}))

    async def _give_roster(self) -> None:
        others = [{"name": member.name, "process": member.process} for member in self.roster.members()]
        await self._give("roster", people=[{"name": self.name, "process": self.process}, *others])
