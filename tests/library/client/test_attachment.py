"""The state that a client keeps for one exchange."""

import pytest
from fakes import Clock

from channels_zmq.client.attachment import Attachment
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.wire import State

INBOX = b"0123456789abcdef"


@pytest.fixture
def attachment(clock: Clock) -> Attachment:
    return Attachment(INBOX, 4, lambda cause, count: None, window=2, window_bytes=2**20, clock=clock)


def test_an_exchange_is_waited_for_from_the_beginning(attachment: Attachment) -> None:
    """A new attachment counts as reachable, so that a join waits: otherwise messages could be missed."""
    assert attachment.is_reachable


def test_what_an_exchange_reports_while_it_settles_is_not_the_number_of_its_clients(attachment: Attachment) -> None:
    """A settling exchange does not update the number of clients: most are not back, and the next one must await all."""
    counts = []
    for state, clients in ((State.SERVING, 50), (State.SETTLING, 1), (State.SERVING, 49), (State.DRAINING, 48)):
        attachment.welcomed(wire.Welcome(INBOX, wire.VERSION, state, b"instance", 1, clients))
        counts.append(attachment.clients)
    assert counts == [50, 50, 49, 48]


def test_each_exchange_has_a_window_and_credit_of_its_own(attachment: Attachment, clock: Clock) -> None:
    """Each exchange has its own window and credit, with the bounds of its client."""
    other = Attachment(INBOX, 4, lambda cause, count: None, window=2, window_bytes=2**20, clock=clock)
    for _ in range(2):
        attachment.window.append(b"x")
    attachment.credit.begin_session(3, is_same=False)
    assert (attachment.window.is_full, other.window.is_full) == (True, False)
    assert (attachment.credit.session, other.credit.session) == (3, 0)
    assert attachment.credit.prefetch == 4


@pytest.mark.parametrize(
    "ordinals, lost, count",
    [
        ([1, 2, 3], [0, 0, 0], 3),
        ([1, 1, 2], [0, -1, 0], 2),
        ([2, 1], [1, -1], 2),
        ([1, 4, 2, 4, 5], [0, 2, -1, -1, 0], 5),
        ([0], [-1], 0),
    ],
)
def test_returned_messages_are_taken_over_once_and_gaps_are_known(
    attachment: Attachment, ordinals: list[int], lost: list[int], count: int
) -> None:
    """Each returned message is taken over once; on one ordered connection, a skipped ordinal means a lost message."""
    assert [attachment.take_over(ordinal) for ordinal in ordinals] == lost
    assert attachment.taken_over == count


def test_a_new_session_counts_returned_messages_anew(attachment: Attachment) -> None:
    """A new session counts returned messages from 1 again, as the exchange does."""
    for ordinal in (1, 2):
        attachment.take_over(ordinal)
    attachment.begin_session(4, b"instance")
    assert attachment.taken_over == 0
    assert attachment.take_over(1) == 0
