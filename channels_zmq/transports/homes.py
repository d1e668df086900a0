"""Chooses the forwarder through which each topic is sent. Pure.

Any forwarder can carry any topic, so the home of a topic is a preference of its sender: it spreads load and keeps the
sender's order. Homes are *sticky*: while its forwarder serves, a topic in use stays there, so that messages are not
reordered. A topic that was silent for a second or two, or whose forwarder is lost, gets a new home by rendezvous
hashing among the forwarders that serve now. While its last messages are held or unacknowledged it is not silent: a
stalled forwarder may not have read them yet.

Two generations of a table record which topics are in use; `rotate` forgets the older one.
"""

from collections.abc import Callable, Collection, Iterable
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

ROTATE_EVERY = 1.0
"""Seconds between two calls of `rotate`."""


class Named(Protocol):
    """A possible home: its name is the same in every process."""

    @property
    def name(self) -> str: ...  # noqa: D102


Home = TypeVar("Home", bound=Named)


class Homes(Generic[Home]):
    """The homes of the topics of one sender.

    Args:
        was_used: Whether this process has sent to a topic before.
    """

    def __init__(self, was_used: Callable[[bytes], bool]) -> None:
        self.only: Home | None = None
        """The only home that serves, if there is exactly one: then there is no choice."""
        self._was_used = was_used
        self.serving: list[Home] = []
        """All homes that serve."""
        self._young: dict[bytes, Home] = {}
        self._old: dict[bytes, Home] = {}
        self._former: Home | None = None  # was the only home until a moment ago
        self._rotations = 0

    def serve(self, homes: Iterable[Home]) -> None:
        """Change the homes that serve."""
        former, self.serving = self.only, list(homes)
        self.only = self.serving[0] if len(self.serving) == 1 else None
        self._young = {key: home for key, home in self._young.items() if home in self.serving}
        self._old = {key: home for key, home in self._old.items() if home in self.serving}
        if former is not None and former in self.serving and self.only is None:
            self._former, self._rotations = former, 2

    def of(self, key: bytes) -> Home | None:
        """Return the home of a topic; None if no home serves."""
        home = self._young.get(key)
        if home is None and self.serving:
            home = self.only or self._old.pop(key, None) or self._choose(key)
            if self.only is None:
                self._young[key] = home
        return home

    def rotate(self, busy: Collection[Home] = ()) -> None:
        """Forget the homes of topics that were not used since the call before last.

        Args:
            busy: Homes that keep their topics, since they hold messages from before the last call.
        """
        kept = {key: home for key, home in self._old.items() if home in busy} if busy else {}
        self._old, self._young = kept | self._young, {}
        if self._former not in busy:
            self._rotations -= 1
            if self._rotations <= 0:
                self._former = None

    def _choose(self, key: bytes) -> Home:
        # While there was only one home, nothing was recorded: it may have sent the last message a moment ago.
        if self._former is not None and self._former in self.serving and self._was_used(key):
            return self._former
        return max(self.serving, key=lambda home: _weight(key, home.name))


def _weight(key: bytes, name: str) -> bytes:
    return blake2b(b"%b\0%b" % (name.encode(), key), digest_size=8).digest()
