"""The forwarders behind addresses and names, with a resolver that a test controls."""

import threading
from typing import Any, cast

import pytest
import zmq
from fakes import Clock

from channels_zmq.transports import discovery
from channels_zmq.transports.discovery import Bootstrap, Endpoint, Lookup
from channels_zmq.transports.roster import Forwarder
from channels_zmq_forwarder import sockets

IPV4, IPV6 = "tcp://10.0.0.1:1", "tcp://[fd00::1]:1"


class Socket:
    """A socket that records its options."""

    def __init__(self) -> None:
        self.options: dict[int, bool] = {}

    def set(self, option: zmq.SocketOption, value: bool) -> None:
        self.options[option] = value


def looked(monkeypatch: pytest.MonkeyPatch, address: str, *answers: list[str] | None) -> tuple[Endpoint, list[bool]]:
    """Return an endpoint after one look for each answer of the resolver, and whether each look has changed it."""
    endpoint, changed = Endpoint(address), []
    for answer in answers:

        def resolve(address: str, answer: list[str] | None = answer) -> list[str]:
            if answer is None:
                raise OSError("no such name")
            return answer

        monkeypatch.setattr(discovery, "resolve", resolve)
        endpoint.look()
        changed.append(endpoint.has_changed())
    return endpoint, changed


def forwarder(pull: str, pub: str | None = None) -> Forwarder:
    """Return the forwarder at a host, or the one with its two sides at two hosts."""
    return Forwarder(f"tcp://{pull}:5555", f"tcp://{pub or pull}:5556")


A, B, C = (forwarder(f"10.0.0.{number}") for number in (1, 2, 3))
NAMED, OTHER = forwarder("zmq"), forwarder("other")
EVERY = 5.0


class Resolver:
    """A resolver with an answer for each host, which records the queries."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str] | OSError] = {}
        self.asked: list[str] = []

    def __call__(self, address: str) -> list[str]:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self.asked.append(host)
        answer = self.answers[host]
        if isinstance(answer, OSError):
            raise answer
        return [f"tcp://{found}:{port}" for found in answer]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    for module in (discovery, sockets):
        monkeypatch.setattr(module, "resolve", resolver)
    return resolver


@pytest.fixture
def bootstrap(resolver: Resolver, clock: Clock) -> Bootstrap:
    """Return a bootstrap with one name, which is resolved when a test requests it."""
    return Bootstrap([NAMED], EVERY, clock)


def found(bootstrap: Bootstrap, resolver: Resolver, *hosts: str) -> list[Forwarder]:
    """Return the known forwarders after a look that these hosts answer."""
    resolver.answers["zmq"] = list(hosts)
    bootstrap.hurry()
    bootstrap.look()
    return bootstrap.known


def family(endpoint: Endpoint) -> bool:
    socket = Socket()
    endpoint.apply(cast(Any, socket))
    return socket.options[zmq.IPV6]


@pytest.mark.parametrize(
    "address, is_ipv6", [(IPV4, False), (IPV6, True), ("tcp://name:1", False), ("ipc:///x", False)]
)
def test_a_literal_decides_about_its_family(address: str, is_ipv6: bool) -> None:
    """A literal address determines its family, and a name counts as IPv4 until it is resolved."""
    endpoint = Endpoint(address)
    assert family(endpoint) == is_ipv6
    assert not endpoint.has_changed()


@pytest.mark.parametrize("answer, is_ipv6", [([IPV4], False), ([IPV6], True), ([IPV6, IPV4], False), (None, False)])
def test_a_name_takes_ipv6_only_if_it_has_no_other_address(
    monkeypatch: pytest.MonkeyPatch, answer: list[str] | None, is_ipv6: bool
) -> None:
    """A name uses IPv6 only if it has no other address, and a name that does not resolve yet changes nothing."""
    endpoint, changed = looked(monkeypatch, "tcp://name:1", answer)
    assert changed == [is_ipv6]
    assert family(endpoint) == is_ipv6
    assert not endpoint.has_changed()


def test_a_change_stays_until_it_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change stays pending until it is applied, also after a failed look; one that changes back has not changed."""
    _, changed = looked(monkeypatch, "tcp://name:1", [IPV6], None, [IPV4])
    assert changed == [True, True, False]


def test_an_ipv6_literal_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """An IPv6 literal is not resolved, because it cannot change."""
    monkeypatch.setattr(discovery, "resolve", lambda address: pytest.fail("resolved"))
    Endpoint(IPV6).look()


# Bootstrap


@pytest.mark.parametrize(
    "configured",
    [
        [A],
        [A, B],
        [forwarder("[fd00::1]")],
        [Forwarder("ipc:///pull", "ipc:///pub")],
    ],
)
def test_literals_are_known_at_once_and_never_resolved(
    resolver: Resolver, clock: Clock, configured: list[Forwarder]
) -> None:
    """Literals are known at once and never resolved, so that a process may connect to them on its event loop."""
    bootstrap = Bootstrap(configured, EVERY, clock)
    assert bootstrap.known == bootstrap.literal == configured
    bootstrap.look()
    assert (resolver.asked, bootstrap.known) == ([], configured)


def test_a_name_stands_for_nothing_before_it_is_resolved(bootstrap: Bootstrap, resolver: Resolver) -> None:
    """Creating a bootstrap, which may be on an event loop, resolves no name, so that a name has no forwarder yet."""
    assert (bootstrap.known, bootstrap.literal, resolver.asked) == ([], [], [])


def test_a_name_stands_for_a_forwarder_at_each_of_its_addresses(bootstrap: Bootstrap, resolver: Resolver) -> None:
    """A name stands for one forwarder at each of its addresses, in an order that does not depend on the answer."""
    assert found(bootstrap, resolver, "10.0.0.2", "10.0.0.1") == [A, B]
    assert found(bootstrap, resolver, "10.0.0.1", "10.0.0.2") == [A, B]


def test_the_answer_of_today_replaces_that_of_yesterday(bootstrap: Bootstrap, resolver: Resolver) -> None:
    """A new answer replaces the previous one, so that a removed forwarder is no longer known."""
    found(bootstrap, resolver, "10.0.0.1", "10.0.0.2")
    assert found(bootstrap, resolver, "10.0.0.2", "10.0.0.3") == [B, C]
    assert found(bootstrap, resolver) == []


def test_two_names_of_one_forwarder_are_paired(clock: Clock, resolver: Resolver) -> None:
    """Two names of one forwarder are paired by their common hosts, and in order if they have none in common."""
    bootstrap = Bootstrap([forwarder("in", "out")], EVERY, clock)
    resolver.answers = {"in": ["10.0.0.2", "10.0.0.1"], "out": ["10.0.0.1", "10.0.0.2"]}
    bootstrap.look()
    assert bootstrap.known == [A, B]
    resolver.answers = {"in": ["10.0.0.9", "10.0.0.8"], "out": ["10.0.0.2", "10.0.0.1"]}
    bootstrap.hurry()
    bootstrap.look()
    assert bootstrap.known == [forwarder("10.0.0.8", "10.0.0.1"), forwarder("10.0.0.9", "10.0.0.2")]


@pytest.mark.parametrize("sides", [("zmq", "10.0.0.1"), ("10.0.0.1", "zmq")])
def test_one_side_may_be_a_name_and_the_other_a_literal(
    clock: Clock, resolver: Resolver, sides: tuple[str, str]
) -> None:
    """If one side is a name and the other a literal, the forwarder is resolved as with two names."""
    bootstrap = Bootstrap([forwarder(*sides)], EVERY, clock)
    assert bootstrap.known == []
    resolver.answers = {"zmq": ["10.0.0.1"], "10.0.0.1": ["10.0.0.1"]}
    bootstrap.look()
    assert bootstrap.known == [A]


def test_one_name_is_resolved_once_for_both_addresses(bootstrap: Bootstrap, resolver: Resolver) -> None:
    """A name for both sides is resolved once: two answers may differ during a rollout, and pair wrong addresses."""
    assert found(bootstrap, resolver, "10.0.0.2", "10.0.0.1") == [A, B]
    assert resolver.asked == ["zmq"]


def test_of_two_names_only_shared_hosts_are_paired(clock: Clock, resolver: Resolver) -> None:
    """Of two names only the common hosts are paired, because one answer may be older and lack a forwarder."""
    bootstrap = Bootstrap([Forwarder("tcp://in:5555", "tcp://out:5556")], EVERY, clock)
    resolver.answers = {"in": ["10.0.0.1", "10.0.0.3"], "out": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}
    bootstrap.look()
    assert bootstrap.known == [A, C]


def test_a_lookup_blocks_nobody_and_runs_once_at_a_time() -> None:
    """A lookup runs on a thread, one at a time: an unreachable name server takes many seconds."""
    began, goes_on = [threading.Semaphore(0) for _ in range(2)]

    def look() -> None:
        began.release()
        goes_on.acquire(timeout=10)

    lookup = Lookup(look)
    for _ in range(2):
        lookup.begin()
        lookup.begin()
        assert began.acquire(timeout=10)
        assert not began.acquire(blocking=False)
        goes_on.release()
        assert lookup._thread is not None
        lookup._thread.join(10)


def test_a_side_that_is_not_ready_everywhere_leaves_only_whole_forwarders(clock: Clock, resolver: Resolver) -> None:
    """A host that only one of the two names has is not used, because a forwarder needs both sides."""
    bootstrap = Bootstrap([forwarder("in", "out")], EVERY, clock)
    resolver.answers = {"in": ["10.0.0.1", "10.0.0.2"], "out": ["10.0.0.2"]}
    bootstrap.look()
    assert bootstrap.known == [B]


@pytest.mark.parametrize(
    "hosts, known",
    [
        (["fd00::1", "10.0.0.1"], ["10.0.0.1"]),
        (["fd00::1", "fd00::2"], ["[fd00::1]", "[fd00::2]"]),
    ],
)
def test_of_both_families_only_ipv4_counts(
    bootstrap: Bootstrap, resolver: Resolver, hosts: list[str], known: list[str]
) -> None:
    """If a name has addresses of both families, only IPv4 counts; otherwise each forwarder would be used twice."""
    hosts = [f"[{host}]" if ":" in host else host for host in hosts]
    assert found(bootstrap, resolver, *hosts) == [forwarder(host) for host in known]


def test_names_and_literals_can_be_mixed(resolver: Resolver, clock: Clock) -> None:
    """With names and literals each forwarder is known once, and the literals come first."""
    bootstrap = Bootstrap([NAMED, B, OTHER], EVERY, clock)
    resolver.answers = {"zmq": ["10.0.0.1", "10.0.0.2"], "other": ["10.0.0.3", "10.0.0.1"]}
    assert (bootstrap.known, bootstrap.literal) == ([B], [B])
    bootstrap.look()
    assert bootstrap.known == [B, A, C]


def test_names_are_resolved_now_and_then(bootstrap: Bootstrap, resolver: Resolver, clock: Clock) -> None:
    """Names are resolved every few seconds, and not at every look, which is once a second."""
    resolver.answers["zmq"] = ["10.0.0.1"]
    counts = []
    for _ in range(11):
        bootstrap.look()
        counts.append(len(resolver.asked))
        clock.now += 1
    assert counts == [1] * 5 + [2] * 5 + [3]


def test_a_forwarder_that_cannot_be_reached_lets_names_be_resolved_at_the_next_look(
    bootstrap: Bootstrap, resolver: Resolver, clock: Clock
) -> None:
    """An unreachable forwarder causes one extra resolution, at the next look."""
    resolver.answers["zmq"] = ["10.0.0.1"]
    bootstrap.look()
    bootstrap.hurry()
    assert len(resolver.asked) == 1
    for _ in range(2):
        bootstrap.look()
    assert len(resolver.asked) == 2
    clock.now += EVERY
    bootstrap.look()
    assert len(resolver.asked) == 3


def test_a_name_that_does_not_resolve_keeps_what_it_stood_for(
    bootstrap: Bootstrap, resolver: Resolver, clock: Clock
) -> None:
    """A name that stops resolving keeps its forwarders, and the reason is available until it resolves again."""
    found(bootstrap, resolver, "10.0.0.1")
    resolver.answers["zmq"] = OSError(-2, "no such name")
    clock.now += EVERY
    bootstrap.look()
    assert (bootstrap.known, bootstrap.problem) == ([A], "cannot resolve zmq: no such name")
    assert found(bootstrap, resolver, "10.0.0.2") == [B]
    assert bootstrap.problem == ""


def test_a_name_that_does_not_resolve_keeps_no_other_from_it(resolver: Resolver, clock: Clock) -> None:
    """A name that does not resolve affects no other name, and its reason stays available."""
    bootstrap = Bootstrap([NAMED, OTHER], EVERY, clock)
    resolver.answers = {"zmq": OSError(-2, "no such name"), "other": ["10.0.0.1"]}
    bootstrap.look()
    assert (bootstrap.known, bootstrap.problem) == ([A], "cannot resolve zmq: no such name")


def test_a_forwarder_is_printed_as_its_addresses() -> None:
    """The text of a forwarder contains both its addresses, for messages to users."""
    assert str(A) == "tcp://10.0.0.1:5555 and tcp://10.0.0.1:5556"
