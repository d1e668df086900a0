"""The states of a link and the table of their transitions."""

import pytest

from channels_zmq.transports.states import TRANSITIONS, Event, State

CONNECTING, DOWN, GREETING, VERIFYING, UP, DRAINING = State
EVENTS = tuple(Event)
TABLE = {
    #            connected, failed, lost, welcomed, push lost, silent, echoed, drains
    CONNECTING: (GREETING, DOWN, None, None, None, None, None, None),
    DOWN: (GREETING, None, None, None, None, None, None, None),
    GREETING: (GREETING, None, DOWN, VERIFYING, None, None, None, DRAINING),
    VERIFYING: (GREETING, None, DOWN, None, None, None, UP, DRAINING),
    UP: (GREETING, None, DOWN, None, VERIFYING, VERIFYING, None, DRAINING),
    DRAINING: (GREETING, None, DOWN, None, None, None, None, None),
}
"""The target state of each event, None for an event that changes nothing."""


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_each_event_leads_where_the_table_says(state: State, event: Event) -> None:
    """For each state and each event, the transition equals the one in this independent table."""
    assert TRANSITIONS[state].get(event) is TABLE[state][EVENTS.index(event)]


def test_every_state_with_a_connection_can_be_left_by_a_loss() -> None:
    """The loss of the subscriber's connection leads from every state with a connection to `DOWN`."""
    assert {state for state in State if TRANSITIONS[state].get(Event.LOST) is DOWN} == set(State) - {CONNECTING, DOWN}


def test_a_link_is_up_only_after_a_welcome_and_an_echo() -> None:
    """A welcome and then an echo are the only way to `UP`."""
    into = {(state, event) for state in State for event, target in TRANSITIONS[state].items() if target is UP}
    assert into == {(VERIFYING, Event.ECHOED)}
    reached_by = {event for event, target in TRANSITIONS[GREETING].items() if target is VERIFYING}
    assert reached_by == {Event.WELCOMED}
    assert VERIFYING not in TRANSITIONS[DOWN].values()


def test_every_state_can_be_reached() -> None:
    """Every state can be reached from `CONNECTING`."""
    reached = {CONNECTING}
    for _ in State:
        reached |= {target for state in reached for target in TRANSITIONS[state].values()}
    assert reached == set(State)
