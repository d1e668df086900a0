"""What an address stands for. A name is resolved by the housekeeper, never on an event loop or under the lock."""

from ipaddress import ip_address

import zmq

from channels_zmq_forwarder.sockets import TCP, resolve

_IPV6_LITERAL = f"{TCP}["


def _is_literal(address: str) -> bool:
    """Return whether there is nothing to resolve: a fork while another thread resolves may leave a lock behind."""
    host = address.removeprefix(TCP).rpartition(":")[0]
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return not address.startswith(TCP)
    return True


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
        except OSError:  # no such name so far: ZeroMQ tries again by itself
            return
        self._is_ipv6 = all(one.startswith(_IPV6_LITERAL) for one in found)

    def has_changed(self) -> bool:
        """Return whether another family is needed than that of the last connection."""
        return self._is_ipv6 != self._was_ipv6

    def apply(self, socket: "zmq.Socket[bytes]") -> None:
        """Set the family for connections that a socket makes from now on."""
        socket.set(zmq.IPV6, self._is_ipv6)
        self._was_ipv6 = self._is_ipv6
