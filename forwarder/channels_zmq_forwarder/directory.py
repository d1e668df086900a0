"""The forwarders that the clients of an exchange know: a client that knows a few learns of the others by its welcome.

Pure: the exchange passes in the list of each hello, and sends the union in each welcome.

- The union contains the list in the last hello of each connected client; the list is removed with its client.
- An exchange adds no addresses itself: it does not know by which addresses clients reach it or others.
- The union has the bounds of a list. Entries beyond them are counted, and enter it when there is room.
"""

from collections import Counter

from channels_zmq_forwarder import wire

Address = tuple[bytes, bytes]
"""The addresses of a forwarder for PUSH and for XSUB."""


class Directory:
    """The forwarders that the connected clients know.

    Args:
        drops: Counts the entries of new lists that exceed the bound, as `forwarders`.
    """

    def __init__(self, drops: Counter[str]) -> None:
        self.union: frozenset[Address] = frozenset()
        """The forwarders that any client knows."""
        self.news: frozenset[tuple[Address, bool]] = frozenset()
        """The same, and whether the instance of each is known: clients connect only to those they can tell apart."""
        self.serves = False
        """Whether any client has a link that is up to any of them."""
        self.encoded = b""
        """The union as a welcome contains it."""
        self._drops = drops
        self._lists: dict[bytes, frozenset[wire.KnownForwarder]] = {}
        # How many clients list an address, and how many of them have a link to it that is up.
        self._known: Counter[Address] = Counter()
        self._instances: dict[Address, bytes] = {}  # as a client has reported last
        self._serving: Counter[Address] = Counter()

    def __contains__(self, inbox: bytes) -> bool:
        """Return whether a client has sent a list."""
        return inbox in self._lists

    def update(self, inbox: bytes, forwarders: tuple[wire.KnownForwarder, ...]) -> None:
        """Replace the list of a client; an empty one removes it."""
        new, old = frozenset(forwarders), self._lists.pop(inbox, frozenset())
        if new:
            self._lists[inbox] = new
        if new == old:
            return
        for each in sorted(new - old):
            self._count(each, 1)
            if each.instance:
                self._instances[each.pull, each.pub] = each.instance
        for each in old - new:
            self._count(each, -1)
        union = wire.listed(
            wire.KnownForwarder(*each, each in self._serving, self._instances.get(each, b"")) for each in self._known
        )
        self.union = frozenset((each.pull, each.pub) for each in union)
        self.news = frozenset((each, each in self._instances) for each in self.union)
        self.serves = bool(self._serving)
        self.encoded = wire.encode_forwarders(union)
        ignored = sum((each.pull, each.pub) not in self.union for each in new - old)
        if ignored:
            self._drops["forwarders"] += ignored

    def links(self) -> list[tuple[Address, int, int]]:
        """Return the known forwarders, how many clients are connected to each, and how many send by it."""
        return [(address, count, self._serving[address]) for address, count in sorted(self._known.items())]

    def remove(self, inbox: bytes) -> None:
        """Forget the list of a client that has disconnected."""
        self.update(inbox, ())

    def _count(self, forwarder: wire.KnownForwarder, change: int) -> None:
        address = forwarder.pull, forwarder.pub
        for counts in (self._known, self._serving) if forwarder.serves else (self._known,):
            counts[address] += change
            if not counts[address]:
                del counts[address]
        if address not in self._known:
            self._instances.pop(address, None)
