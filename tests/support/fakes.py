"""Stand-ins that a test moves by hand: time, and a reader that waits."""

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
    """A waiter that is usable until a test says otherwise."""

    usable: bool = True


class AnyName(OwnNames):
    """Takes every name for one that this process has made."""

    def __init__(self) -> None:
        super().__init__(b"")

    def __contains__(self, name: str) -> bool:
        return True
