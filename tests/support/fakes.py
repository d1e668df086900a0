"""Stand-ins that a test moves by hand: time, and a reader that waits."""

from dataclasses import dataclass


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@dataclass(eq=False)
class Reader:
    """A waiter that is usable until a test says otherwise."""

    usable: bool = True


class AnyName:
    """Takes every name for one that this process has made."""

    def __contains__(self, name: str) -> bool:
        return True
