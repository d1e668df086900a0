"""The assignment of topics to forwarders."""

from collections import Counter
from dataclasses import dataclass

import pytest

from channels_zmq.transports.homes import Homes

TOPICS = [b"Gtopic-%d\0" % number for number in range(3000)]


@dataclass(frozen=True)
class Home:
    """A forwarder."""

    name: str


A, B, C = (Home(f"tcp://10.0.0.{number}:5556") for number in (1, 2, 3))


@pytest.fixture
def used() -> set[bytes]:
    return set()


@pytest.fixture
def homes(used: set[bytes]) -> Homes[Home]:
    return Homes(used.__contains__)


def test_nothing_serves_at_first(homes: Homes[Home]) -> None:
    """Without a serving forwarder a topic has no home, so that messages wait."""
    assert (homes.of(TOPICS[0]), homes.serving, homes.only) == (None, [], None)


def test_with_one_home_there_is_nothing_to_choose(homes: Homes[Home]) -> None:
    """The only home gets every topic."""
    homes.serve([A])
    assert homes.only is A
    assert {homes.of(topic) for topic in TOPICS} == {A}


def test_topics_are_spread_over_all_homes(homes: Homes[Home]) -> None:
    """Three homes get a third of the topics each, within a tenth."""
    homes.serve([A, B, C])
    spread = Counter(homes.of(topic) for topic in TOPICS)
    assert all(900 <= count <= 1100 for count in spread.values())
    assert len(spread) == 3


def test_every_process_chooses_alike(homes: Homes[Home]) -> None:
    """All processes choose the same homes, in whichever order they know them."""
    other: Homes[Home] = Homes(lambda key: False)
    homes.serve([A, B, C])
    other.serve([C, A, B])
    assert [homes.of(topic) for topic in TOPICS] == [other.of(topic) for topic in TOPICS]


def test_a_topic_in_use_stays_when_a_home_comes(homes: Homes[Home]) -> None:
    """A topic in use keeps its home when another is added; otherwise its next message might overtake its last one."""
    homes.serve([A, B])
    before = [homes.of(topic) for topic in TOPICS]
    homes.serve([A, B, C])
    for _ in range(5):
        assert [homes.of(topic) for topic in TOPICS] == before
        homes.rotate()


def test_a_topic_that_was_silent_moves_to_where_it_belongs(homes: Homes[Home]) -> None:
    """A silent topic moves to the home that hashing gives, so that a new home gets its share."""
    homes.serve([A, B])
    for topic in TOPICS:
        homes.of(topic)
    homes.serve([A, B, C])
    homes.rotate()
    homes.rotate()
    assert Counter(homes.of(topic) for topic in TOPICS)[C] > 900


def test_topics_of_the_only_home_stay_for_a_while(homes: Homes[Home], used: set[bytes]) -> None:
    """Topics that the only home may have carried stay for a while when a second one is added; others spread at once."""
    homes.serve([A])
    used.update(TOPICS[:1500])
    homes.serve([A, B])
    assert {homes.of(topic) for topic in TOPICS[:1500]} == {A}
    assert Counter(homes.of(topic) for topic in TOPICS[1500:])[B] > 600
    homes.rotate()
    homes.rotate()
    homes.rotate()
    assert Counter(homes.of(topic) for topic in TOPICS[:1500])[B] > 600


def test_only_the_topics_of_a_home_that_goes_move(homes: Homes[Home]) -> None:
    """When a home is removed, its topics move and all others keep their home."""
    homes.serve([A, B, C])
    before = {topic: homes.of(topic) for topic in TOPICS}
    homes.serve([A, B])
    after = {topic: homes.of(topic) for topic in TOPICS}
    assert {topic for topic in TOPICS if before[topic] is not after[topic]} == {
        topic for topic in TOPICS if before[topic] is C
    }


def test_what_is_noted_is_bounded_by_what_is_in_use(homes: Homes[Home]) -> None:
    """No recorded topic is left after two rotations without its use."""
    homes.serve([A, B])
    for topic in TOPICS:
        homes.of(topic)
    homes.rotate()
    homes.rotate()
    assert len(homes._young) + len(homes._old) == 0
