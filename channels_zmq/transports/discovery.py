"""Finds the forwarders of a layer. The housekeeper resolves names, never on an event loop or under the lock."""

import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import NamedTuple

import zmq

from channels_zmq_forwarder.sockets import TCP, host_of, resolve, resolve_pairs

_IPV6_LITERAL = f"{TCP}["


class Forwarder(NamedTuple):
    """The addresses of a forwarder: where it takes messages in, and where it publishes."""

    pull: str
    pub: str

    def __str__(self) -> str:
        return f"{self.pull} and {self.pub}"


def _is_literal(address: str) -> bool:
    """Return whether there is nothing to resolve: a fork while another thread resolves may leave a lock behind."""
    try:
        ip_address(host_of(address).strip("[]"))
    except ValueError:
        return not address.startswith(TCP)
    return True


class Bootstrap:
    """The forwarders of CONFIG: addresses, or names that resolve to one or several.

    Of a name that has addresses of both families only those of IPv4 count: they lead to the same forwarders.

    Args:
        configured: As CONFIG gives them.
        resolve_every: Seconds after which names are resolved again.
        clock: Monotonic seconds.
    """

    def __init__(
        self, configured: Sequence[Forwarder], resolve_every: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.problem = ""
        """Why a name could not be resolved the last time."""
        self._named = [one for one in configured if not (_is_literal(one.pull) and _is_literal(one.pub))]
        self.literal = [one for one in configured if one not in self._named]
        """The forwarders that need not be resolved."""
        self._found: dict[Forwarder, list[Forwarder]] = {}
        self._every, self._clock, self._due = resolve_every, clock, 0.0

    @property
    def known(self) -> list[Forwarder]:
        """All forwarders that were found so far."""
        return list(dict.fromkeys([*self.literal, *(one for found in self._found.values() for one in found)]))

    def hurry(self) -> None:
        """Resolve the names at the next look, because a forwarder cannot be reached."""
        self._due = 0.0

    def look(self) -> None:
        """Resolve the names if that is due. Blocks while the system does it."""
        now = self._clock()
        if not self._named or now < self._due:
            return
        self._due = now + self._every
        self.problem = ""
        for forwarder in self._named:
            try:
                self._found[forwarder] = [Forwarder(*pair) for pair in resolve_pairs(forwarder.pull, forwarder.pub)]
            except OSError as error:
                self.problem = f"cannot resolve {host_of(forwarder.pub)}: {error.strerror}"


class Endpoint:
    """An address to connect to, and whether that takes IPv6.

    ZeroMQ resolves a name to one family only, which is an option of the socket. IPv4 is used wherever the name has such
    an address.

    Args:
        address: As CONFIG gives it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._is_ipv6 = address.startswith(_IPV6_LITERAL)
        self._was_ipv6 = self._is_ipv6

    def look(self) -> None:
        """Resolve a name again. Blocks while the system does it."""
        if _is_literal(self.address):
            return
        try:
            found = resolve(self.address)
        except OSError:  # no such name so far: ZeroMQ retries automatically
            return
        self._is_ipv6 = all(one.startswith(_IPV6_LITERAL) for one in found)

    def has_changed(self) -> bool:
        """Return whether another family is needed than that of the last connection."""
        return self._is_ipv6 != self._was_ipv6

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Set the family for connections that a socket makes from now on."""
        socket.set(zmq.IPV6, self._is_ipv6)
        self._was_ipv6 = self._is_ipv6
