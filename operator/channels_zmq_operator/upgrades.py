"""Replaces the forwarders of one layer at a time after a change of the operator. Pure.

A new version of the operator, or another default image, changes the pods of every layer. If the new pods do not start,
only one layer is affected, and its former forwarders keep serving; the others do not change until it is complete.
"""

from channels_zmq_operator.models import Key


class Upgrades:
    """Whose turn it is."""

    def __init__(self) -> None:
        self.under_way: Key | None = None

    def begin(self, key: Key) -> bool:
        """Return whether it is the turn of a layer, which lasts until its end is noted."""
        if self.under_way is None:
            self.under_way = key
        return self.under_way == key

    def end(self, key: Key) -> None:
        """Note that a layer is complete, or gone; nothing happens if it is not its turn."""
        if self.under_way == key:
            self.under_way = None
