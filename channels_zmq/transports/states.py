"""The states of a link and the one table of its transitions. Pure.

    DOWN --connected--> GREETING --welcomed--> VERIFYING --echoed--> UP
      ^                    |                     |  ^                |
      +------ lost --------+--------- lost ------+  +-- push lost ---+   (and lost: to DOWN)

A reconnect of the subscriber's side always begins with GREETING. A lost connection of the producer's side only has to
be verified again by an echo.
"""

from enum import Enum


class State(Enum):
    """How far the connection to a forwarder is. Messages are sent only while it is `UP`."""

    DOWN = "down"
    """No connection of the subscriber's side."""
    GREETING = "greeting"
    """Connected; the hello was not answered yet."""
    VERIFYING = "verifying"
    """Welcomed; an echo is on its way by the producer's side."""
    UP = "up"
    """The instance that has welcomed this process has answered the echo."""


class Event(Enum):
    """What happens to a link."""

    CONNECTED = "connected"
    LOST = "lost"
    WELCOMED = "welcomed"
    PUSH_CONNECTED = "push connected"
    PUSH_LOST = "push lost"
    ECHOED = "echoed"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.DOWN: {Event.CONNECTED: State.GREETING},
    State.GREETING: {Event.CONNECTED: State.GREETING, Event.LOST: State.DOWN, Event.WELCOMED: State.VERIFYING},
    State.VERIFYING: {
        Event.CONNECTED: State.GREETING,
        Event.LOST: State.DOWN,
        Event.PUSH_CONNECTED: State.VERIFYING,
        Event.ECHOED: State.UP,
    },
    State.UP: {Event.CONNECTED: State.GREETING, Event.LOST: State.DOWN, Event.PUSH_LOST: State.VERIFYING},
}
"""Where each event leads. An event that a state does not list changes nothing."""
