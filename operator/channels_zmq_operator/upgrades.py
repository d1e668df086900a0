"""The turn of upgrades: after a change of the operator, one layer at a time rolls out. Pure.

A new version of the operator, or another default image, changes the pods of every layer. If the new pods do not start,
only one layer is affected, and its former forwarders keep serving; the others do not change until it is complete.
"""

from channels_zmq_operator.models import Key


class Upgrades:
    """The layer that has the turn, if any."""

    def __init__(self) -> None:
        self.under_way: Key | None = None

    def begin(self, key: Key) -> bool:
        """Return whether a layer may roll out: it has the turn, or takes it until `end`."""
        if self.under_way is None:
            self.under_way = key
        return self.under_way == key

    def end(self, key: Key) -> None:
        """End the turn of a layer that is complete or deleted; do nothing if it does not have the turn."""
        if self.under_way == key:
            self.under_way = None
