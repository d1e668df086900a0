"""Decides which forwarders a process connects to: those of CONFIG, and those that other processes list. Pure.

A hello lists the forwarders that its process is connected to, and a welcome returns the lists of all processes. So a
process that starts with some of the addresses learns of the others. An address is ignored for a while if it is invalid,
or if it is another address of a forwarder that is already connected.
"""

from collections.abc import Collection, Mapping
from math import inf
from typing import NamedTuple, Protocol

IGNORE_FOR = 600.0
"""Seconds for which an address is ignored that is invalid, or that belongs to an already connected forwarder."""
FORGET_AFTER = 60.0
"""Seconds after which a forwarder that no process lists any more is forgotten, unless it is connected."""


class Forwarder(NamedTuple):
    """The addresses of a forwarder: where it receives messages, and where it publishes."""

    pull: str
    pub: str

    def __str__(self) -> str:
        return f"{self.pull} and {self.pub}"


class Configured(Protocol):
    """The forwarders of CONFIG."""

    @property
    def literal(self) -> Collection[Forwarder]: ...  # noqa: D102

    @property
    def known(self) -> Collection[Forwarder]: ...  # noqa: D102


class Roster:
    """The forwarders that a process knows.

    Args:
        configured: The forwarders of CONFIG, and what its names have resolved to so far.
    """

    def __init__(self, configured: Configured) -> None:
        self._configured = configured
        self._listed: dict[Forwarder, float] = {}  # by other processes, and when they did so last
        self._ignored: dict[Forwarder, float] = {}  # until when
        self._has_reported = False

    def __contains__(self, forwarder: Forwarder) -> bool:
        """Return whether CONFIG or another process lists a forwarder."""
        return forwarder in self._listed or forwarder in self._configured.known

    def wanted(self) -> list[Forwarder]:
        """Return the forwarders to connect to, those of CONFIG first."""
        return [one for one in dict.fromkeys([*self._configured.known, *self._listed]) if one not in self._ignored]

    def learn(
        self,
        listed: Mapping[Forwarder, str],
        connected: Collection[Forwarder],
        instances: Collection[str] | None,
        now: float,
    ) -> None:
        """Note the forwarders that a welcome lists, except other addresses of connected ones.

        Args:
            listed: The forwarders, each with its instance; that is empty if no process is connected to it.
            connected: The forwarders that this process has links to.
            instances: The instances of those; None if one of them is unknown, so that no new forwarder is learned.
            now: Monotonic seconds.
        """
        for forwarder, instance in listed.items():
            is_new = instance and instances is not None and instance not in instances
            if is_new or forwarder in connected or forwarder in self._listed:
                self._listed[forwarder] = now

    def differing(self) -> list[Forwarder]:
        """Return, once, the forwarders that other processes list and CONFIG does not, if CONFIG lists several."""
        others = [one for one in self._listed if one not in self._configured.literal]
        if not others or len(self._configured.literal) < 2 or self._has_reported:
            return []
        self._has_reported = True
        return others

    def ignore(self, forwarder: Forwarder, now: float) -> None:
        """Ignore an invalid address for a while."""
        self._ignored[forwarder] = now + IGNORE_FOR

    def ignores(self, forwarder: Forwarder) -> bool:
        """Return whether an address is ignored."""
        return forwarder in self._ignored

    def ignore_double(self, one: Forwarder, other: Forwarder, now: float) -> Forwarder:
        """Ignore one of two addresses of the same forwarder, preferably one that CONFIG does not list; return it.

        Of two addresses in CONFIG, one is ignored for ever.
        """
        double = other if one in self._configured.known else one
        self._ignored[double] = inf if double in self._configured.known else now + IGNORE_FOR
        self._listed.pop(double, None)
        return double

    def forget(self, now: float) -> None:
        """Forget what has not been listed for a while, and try ignored addresses again."""
        self._ignored = {one: until for one, until in self._ignored.items() if until > now}
        self._listed = {one: at for one, at in self._listed.items() if at + FORGET_AFTER > now}
