"""Stand-ins that a test controls: a clock, a waiting reader, and the names of a process."""

from dataclasses import dataclass

from channels_zmq.names import OwnNames


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Reader:
    """A waiter that is usable until a test changes that."""

    usable: bool = True


class AnyName(OwnNames):
    """Names of a process that include every name."""

    def __init__(self) -> None:
        super().__init__(b"")

    def __contains__(self, name: str) -> bool:
        return True
