"""The parts of a room: names, the recent history, and the members who are present.

No I/O: no channel layer, no event loop, and time only as an argument.
"""

import hashlib
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

LIMITS = {"name": 32, "room": 48, "text": 2000}
FALLBACK_ROOM = "lobby"
HISTORY = 50
ATTIC = 200
_KEY = re.compile(r"[0-9a-f]{16,32}\Z")


def clean_name(text: str) -> str:
    """Return a person's name as it is shown, or "" if nothing is left of it."""
    return _one_line(text)[: LIMITS["name"]].strip()


def clean_room(text: str) -> str:
    """Return a room's name that can be a part of a path; never empty."""
    room = _one_line(text).replace("/", "-").replace("\\", "-")[: LIMITS["room"]].strip()
    # A browser resolves "." and ".." inside an address, so they cannot be rooms.
    return room if room.strip(".") else FALLBACK_ROOM


def clean_text(text: object) -> str:
    """Return a member's text without characters that serializers refuse (JSON permits half a surrogate pair)."""
    if not isinstance(text, str):
        return ""
    return text.encode("utf-8", "replace").decode().replace("\0", "").strip()[: LIMITS["text"]]


def is_key(key: object) -> bool:
    """Return whether the page's own name of a message can be the entry's id."""
    return isinstance(key, str) and _KEY.match(key) is not None


def group_of(room: str) -> str:
    """Return the group of a room: any name becomes letters and digits, and names in another case are the same room."""
    canonical = unicodedata.normalize("NFKC", room).casefold()
    return "chat.room." + hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _one_line(text: str) -> str:
    printable = "".join(char if char.isprintable() else " " for char in unicodedata.normalize("NFC", text))
    return " ".join(printable.encode("utf-8", "replace").decode().split())


class Entry(TypedDict):
    """One line of a room: a member's message, or a job and its progress.

    `at` is the time of writing, in ms since the epoch, by the clock of that host; it is shown. `order` is that time
    too, but always above every earlier order: an answer follows its question whatever the hosts' clocks show. A job's
    entry is sent again with a higher `revision` for each step; `done` increases from 0 to 1.
    """

    id: str
    kind: str
    name: str
    text: str
    order: int
    at: int
    revision: int
    done: float
    result: str


class History:
    """The last entries of a room, in order, each in its newest revision."""

    def __init__(self, entries: Iterable[Entry] = (), limit: int = HISTORY) -> None:
        self._entries: dict[str, Entry] = {}
        self._limit = limit
        self._top = 0
        for entry in entries:
            self.put(entry)

    def put(self, entry: Entry) -> bool:
        """Add an entry, and return whether it is new: unknown, or a newer revision, and not older than the limit."""
        known = self._entries.get(entry["id"])
        if known is not None and known["revision"] >= entry["revision"]:
            return False
        self._top = max(self._top, entry["order"])
        self._entries[entry["id"]] = entry
        if len(self._entries) > self._limit:
            oldest = min(self._entries.values(), key=_position)
            del self._entries[oldest["id"]]
        return entry["id"] in self._entries

    def next_order(self, at: int) -> int:
        """Return the order of an entry that is written at this time; each call returns a higher one."""
        self._top = max(self._top + 1, at)
        return self._top

    def entries(self) -> list[Entry]:
        return sorted(self._entries.values(), key=_position)

    def digest(self) -> dict[str, int]:
        """Return the known entries, as id -> revision: small enough to send to a room."""
        return {entry["id"]: entry["revision"] for entry in self._entries.values()}

    def lacks(self, digest: Mapping[str, int]) -> list[str]:
        """Return the ids of the entries that the sender of this digest has, or has in a newer revision."""
        mine = self.digest()
        return [key for key, revision in digest.items() if mine.get(key, -1) < revision]

    def exceeds(self, digest: Mapping[str, int]) -> bool:
        """Return whether the sender of this digest lacks entries of this room."""
        return any(digest.get(key, -1) < revision for key, revision in self.digest().items())

    def pick(self, keys: Iterable[str]) -> list[Entry]:
        return sorted((self._entries[key] for key in keys if key in self._entries), key=_position)

    def __contains__(self, key: object) -> bool:
        return key in self._entries


def _position(entry: Entry) -> tuple[int, str]:
    return entry["order"], entry["id"]


class Attic:
    """The entries that members had when they left, for members who join the same process later (a reloaded page)."""

    def __init__(self, limit: int = ATTIC) -> None:
        self._rooms: OrderedDict[str, list[Entry]] = OrderedDict()
        self._limit = limit

    def keep(self, group: str, entries: list[Entry]) -> None:
        self._rooms[group] = entries
        self._rooms.move_to_end(group)
        while len(self._rooms) > self._limit:
            self._rooms.popitem(last=False)

    def recall(self, group: str) -> list[Entry]:
        return self._rooms.get(group, [])


@dataclass(slots=True)
class Member:
    """Another member's page in the room, and the time until which it counts as present without another heartbeat."""

    channel: str
    name: str
    process: str
    until: float


class Roster:
    """The other members who are present.

    A heartbeat contains the number of seconds for which it is valid. The receiver's own monotonic clock counts them, so
    a killed process disappears from every room, and no two hosts have to agree on the time.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}

    def renew(self, channel: str, name: str, process: str, until: float) -> bool:
        """Record a heartbeat, and return whether the member is a new one."""
        new = channel not in self._members
        self._members[channel] = Member(channel, name, process, until)
        return new

    def remove(self, channel: str) -> Member | None:
        return self._members.pop(channel, None)

    def extend(self, until: float) -> None:
        """Keep all members at least until then, because their heartbeats could not arrive for a while."""
        for member in self._members.values():
            member.until = max(member.until, until)

    def expire(self, now: float) -> list[Member]:
        """Remove and return the members without a heartbeat in time."""
        gone = [member for member in self._members.values() if member.until < now]
        for member in gone:
            del self._members[member.channel]
        return gone

    def members(self) -> list[Member]:
        return sorted(self._members.values(), key=lambda member: (member.name.casefold(), member.channel))

    def __len__(self) -> int:
        return len(self._members)
