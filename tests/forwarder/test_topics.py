"""The topics of all connections, and the bounds on them."""

import pytest

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.topics import Topics

ONE, TWO = 11, 12
INBOX = wire.inbox_topic(b"a" * 16)


def group(number: int) -> bytes:
    return wire.group_topic(f"room{number:02}")


SIZE = len(group(0))


@pytest.fixture
def topics() -> Topics:
    return Topics(max_size=12 * SIZE)


def test_a_connection_with_too_many_topics_is_the_one_to_end(topics: Topics) -> None:
    """A connection with more than a quarter of all topics is ended, and others may still subscribe."""
    assert [topics.subscribe(group(number), ONE) for number in range(4)] == [None, None, None, ONE]
    assert topics.subscribe(group(4), TWO) is None


def test_if_there_are_too_many_in_all_the_connection_with_most_is_ended(topics: Topics) -> None:
    """If there are too many topics in all, the connection with most of them is ended, whichever client subscribes next.

    So clients cannot prevent others from subscribing.
    """
    for number in range(12):
        assert topics.subscribe(group(number), number // 3 if number < 9 else number) is None
    assert topics.subscribe(group(12), TWO) == 0


def test_a_topic_counts_for_the_first_connection_only(topics: Topics) -> None:
    """A topic counts for its first connection only, since another subscriber of it takes next to no memory."""
    for number in range(3):
        topics.subscribe(group(number), ONE)
    assert [topics.subscribe(group(number), TWO) for number in range(4)] == [None] * 4
    assert len(topics) == 4


def test_a_topic_that_has_ended_counts_no_more(topics: Topics) -> None:
    """A topic that has ended no longer counts, and can be subscribed to again."""
    for _ in range(10):
        assert topics.subscribe(group(0), ONE) is None
        topics.end(group(0))
    assert (len(topics), topics.ended) == (0, 10)


def test_a_connection_that_ends_takes_its_count_along(topics: Topics) -> None:
    """The topics of an ended connection do not count for the next one with its descriptor.

    The descriptor may be reused before these topics have ended.
    """
    for number in range(3):
        topics.subscribe(group(number), ONE)
    topics.gone(ONE)
    assert topics.subscribe(group(3), ONE) is None
    for number in range(3):
        topics.end(group(number))
    assert [topics.subscribe(group(number), ONE) for number in (4, 5, 6)] == [None, None, ONE]
