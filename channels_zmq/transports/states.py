"""The states of a link and the one table of its transitions. Pure.

    CONNECTING --connected--> GREETING --welcomed--> VERIFYING --echoed--> UP
        |                      ^   |                    |  ^                |
     failed                connected |                  |  +-- push lost ---+
        |                      |   |                    |  +--- silent -----+
        +-------> DOWN --------+   |                    |                   |
                   ^               |                    |                   |
                   +---- lost -----+------- lost -------+------- lost ------+

`DRAINING` follows a welcome that reports it, and ends with the connection. A reconnect of the subscriber's side always
begins with GREETING. A lost connection of the producer's side only has to be verified again by an echo.
"""

from enum import Enum


class State(Enum):
    """The state of the connection to a forwarder. Messages are sent only while it is `UP`."""

    CONNECTING = "connecting"
    """The first attempt to connect is under way: this may be a forwarder that others use already."""
    DOWN = "down"
    """No connection of the subscriber's side."""
    GREETING = "greeting"
    """Connected; the hello was not answered yet."""
    VERIFYING = "verifying"
    """Welcomed; an echo is on its way by the producer's side."""
    UP = "up"
    """The instance that has welcomed this process has answered the echo."""
    DRAINING = "draining"
    """The forwarder is about to end: nothing is sent by it any more, but it still delivers."""


class Event(Enum):
    """An event of a link."""

    CONNECTED = "connected"
    FAILED = "failed"
    """An attempt to connect has failed."""
    LOST = "lost"
    WELCOMED = "welcomed"
    PUSH_LOST = "push lost"
    SILENT = "silent"
    """Nothing was acknowledged for too long."""
    ECHOED = "echoed"
    DRAINS = "drains"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.CONNECTING: {Event.CONNECTED: State.GREETING, Event.FAILED: State.DOWN},
    State.DOWN: {Event.CONNECTED: State.GREETING},
    State.GREETING: {
        Event.CONNECTED: State.GREETING,
        Event.LOST: State.DOWN,
        Event.WELCOMED: State.VERIFYING,
        Event.DRAINS: State.DRAINING,
    },
    State.VERIFYING: {
        Event.CONNECTED: State.GREETING,
        Event.LOST: State.DOWN,
        Event.ECHOED: State.UP,
        Event.DRAINS: State.DRAINING,
    },
    State.UP: {
        Event.CONNECTED: State.GREETING,
        Event.LOST: State.DOWN,
        Event.PUSH_LOST: State.VERIFYING,
        Event.SILENT: State.VERIFYING,
        Event.DRAINS: State.DRAINING,
    },
    State.DRAINING: {Event.CONNECTED: State.GREETING, Event.LOST: State.DOWN},
}
"""The state after each event. An event that a state does not list changes nothing."""
