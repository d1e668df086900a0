"""Which forwarders a process connects to."""

from dataclasses import dataclass

import pytest

from channels_zmq.transports.roster import FORGET_AFTER, IGNORE_FOR, Forwarder, Roster

A, B, C = (Forwarder(f"tcp://10.0.0.{n}:5555", f"tcp://10.0.0.{n}:5556") for n in (1, 2, 3))
ONE, TWO = "01" * 8, "02" * 8
"""Instances of A and B."""
NOW = 1000.0


@dataclass
class Config:
    """The forwarders of CONFIG; `resolved` are those to which its names have resolved."""

    literal: tuple[Forwarder, ...] = (A,)
    resolved: tuple[Forwarder, ...] = ()

    @property
    def known(self) -> tuple[Forwarder, ...]:
        return self.literal + self.resolved


@pytest.fixture
def config() -> Config:
    return Config()


@pytest.fixture
def roster(config: Config) -> Roster:
    """Return the roster of a process that is connected to A."""
    return Roster(config)


@pytest.mark.parametrize(
    "instance, instances, is_learned",
    [
        pytest.param(TWO, {ONE}, True, id="another instance"),
        pytest.param(ONE, {ONE}, False, id="another address of a connected forwarder"),
        pytest.param("", {ONE}, False, id="no process is connected to it"),
        pytest.param(TWO, None, False, id="a connected forwarder has not reported its instance"),
    ],
)
def test_a_listed_forwarder_is_learned_if_it_is_another_one(
    roster: Roster, instance: str, instances: set[str] | None, is_learned: bool
) -> None:
    """A listed address is connected only if it certainly leads to a forwarder that is not connected yet."""
    roster.learn({A: ONE, B: instance}, [A], instances, NOW)
    assert roster.wanted() == ([A, B] if is_learned else [A])
    assert (B in roster) is is_learned


@pytest.mark.parametrize("connected", [[A], [A, B]])
def test_what_is_listed_again_is_not_forgotten(roster: Roster, connected: list[Forwarder]) -> None:
    """A forwarder is forgotten once no list has contained it for a while, even if its instance is unknown by then."""
    roster.learn({B: TWO}, [A], {ONE}, NOW)
    roster.learn({B: ""}, connected, None, NOW + FORGET_AFTER / 2)
    roster.forget(NOW + FORGET_AFTER)
    assert B in roster
    roster.forget(NOW + 1.5 * FORGET_AFTER)
    assert B not in roster
    assert roster.wanted() == [A]


def test_what_config_lists_is_never_forgotten(roster: Roster, config: Config) -> None:
    """Forwarders in CONFIG, and those to which its names resolve, stay without being listed."""
    config.resolved = (C,)
    roster.forget(NOW + 2 * FORGET_AFTER)
    assert roster.wanted() == [A, C]
    assert C in roster


def test_an_invalid_address_is_ignored_for_a_while(roster: Roster) -> None:
    """An ignored address is not wanted until `IGNORE_FOR` is over."""
    roster.learn({B: TWO}, [A], {ONE}, NOW)
    roster.ignore(B, NOW)
    assert roster.wanted() == [A]
    for after, is_ignored in ((IGNORE_FOR - 1, True), (IGNORE_FOR, False)):
        roster.learn({B: TWO}, [A], {ONE}, NOW + after)
        roster.forget(NOW + after)
        assert roster.ignores(B) is is_ignored
    assert roster.wanted() == [A, B]


@pytest.mark.parametrize("one, other", [(A, B), (B, A)])
def test_of_two_addresses_of_a_forwarder_that_of_config_is_used(
    roster: Roster, one: Forwarder, other: Forwarder
) -> None:
    """The address that CONFIG does not list is ignored for a while, and is not listed any more."""
    roster.learn({B: TWO}, [A], {ONE}, NOW)
    assert roster.ignore_double(one, other, NOW) == B
    assert roster.ignores(B)
    assert B not in roster
    roster.forget(NOW + IGNORE_FOR)
    assert not roster.ignores(B)


def test_of_two_addresses_of_config_one_is_ignored_for_ever(config: Config) -> None:
    """If CONFIG lists both addresses of a forwarder, only one is wanted from then on."""
    config.literal = (A, B)
    roster = Roster(config)
    double = roster.ignore_double(A, B, NOW)
    roster.forget(NOW + 2 * IGNORE_FOR)
    assert roster.wanted() == [one for one in (A, B) if one != double]


@pytest.mark.parametrize(
    "literal, is_reported",
    [
        pytest.param((A,), False, id="one address serves to find the others"),
        pytest.param((A, B), False, id="the same"),
        pytest.param((A, C), True, id="others"),
    ],
)
def test_a_difference_between_lists_is_returned_once(literal: tuple[Forwarder, ...], is_reported: bool) -> None:
    """Forwarders that others list and CONFIG does not are returned once, if CONFIG lists several."""
    roster = Roster(Config(literal))
    roster.learn({A: ONE, B: TWO}, literal, {ONE}, NOW)
    assert roster.differing() == ([B] if is_reported else [])
    assert roster.differing() == []
