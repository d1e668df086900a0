"""Finds the forwarders of a layer. A thread resolves names: a name server that cannot be reached takes many seconds."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address

import zmq

from channels_zmq.transports.roster import Forwarder
from channels_zmq_forwarder.sockets import TCP, host_of, resolve, resolve_pairs

_IPV6_LITERAL = f"{TCP}["


def _is_literal(address: str) -> bool:
    """Return whether an address needs no resolving.

    Literals are not resolved: a fork while another thread resolves may leave a lock behind.
    """
    try:
        ip_address(host_of(address).strip("[]"))
    except ValueError:
        return not address.startswith(TCP)
    return True


class Lookup:
    """Calls a function that may block for long, on a thread of its own, one call at a time.

    The housekeeper serves all connections of the process, so it must not wait for a name server.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin a call, unless one is under way."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, name="channels-zmq resolving", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down and starts no thread any more
                self._thread.start()


class Bootstrap:
    """The forwarders of CONFIG: addresses, or names that resolve to one or several.

    If a name has addresses of both families, only those of IPv4 count: they lead to the same forwarders.

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

    @property
    def is_due(self) -> bool:
        """Whether names have to be resolved now."""
        return bool(self._named) and self._clock() >= self._due

    def hurry(self) -> None:
        """Let the next call of `look` resolve the names, because a forwarder cannot be reached."""
        self._due = 0.0

    def look(self) -> None:
        """Resolve the names if that is due. Blocks while the system resolves."""
        if not self.is_due:
            return
        self._due = self._clock() + self._every
        problem = ""
        for forwarder in self._named:
            try:
                found = [Forwarder(*pair) for pair in resolve_pairs(forwarder.pull, forwarder.pub)]
            except OSError as error:
                problem = f"cannot resolve {host_of(forwarder.pub)}: {error.strerror}"
            else:
                self._found = {**self._found, forwarder: found}  # other threads may be reading the former one
        self.problem = problem


class Endpoint:
    """An address to connect to, and whether the connection takes IPv6.

    ZeroMQ resolves a name to one family only, which is an option of the socket. IPv4 is used wherever the name has such
    an address.

    Args:
        address: As CONFIG gives it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._is_ipv6 = address.startswith(_IPV6_LITERAL)
        self._was_ipv6 = self._is_ipv6

    @property
    def is_literal(self) -> bool:
        """Whether there is no name to resolve."""
        return _is_literal(self.address)

    def look(self) -> None:
        """Resolve a name again. Blocks while the system resolves."""
        if self.is_literal:
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
        self._was_ipv6 = self._is_ipv6  # read once: a lookup may change it at any moment
        socket.set(zmq.IPV6, self._was_ipv6)
