"""What an address stands for, with a resolver that a test plays."""

import pytest
import zmq

from channels_zmq.transports import discovery
from channels_zmq.transports.discovery import Endpoint

IPV4, IPV6 = "tcp://10.0.0.1:1", "tcp://[fd00::1]:1"


class Socket:
    """Remembers its options."""

    def __init__(self):
        self.options = {}

    def set(self, option, value):
        self.options[option] = value


def looked(monkeypatch, address, *answers):
    """Return an endpoint after one look for each answer of the resolver, and whether each has changed it."""
    endpoint, changed = Endpoint(address), []
    for answer in answers:

        def resolve(address, answer=answer):
            if answer is None:
                raise OSError("no such name")
            return answer

        monkeypatch.setattr(discovery, "resolve", resolve)
        endpoint.look()
        changed.append(endpoint.has_changed())
    return endpoint, changed


def family(endpoint):
    socket = Socket()
    endpoint.apply(socket)
    return socket.options[zmq.IPV6]


@pytest.mark.parametrize(
    "address, is_ipv6", [(IPV4, False), (IPV6, True), ("tcp://name:1", False), ("ipc:///x", False)]
)
def test_a_literal_decides_about_its_family(address, is_ipv6):
    """A name is taken for IPv4 until it was resolved."""
    endpoint = Endpoint(address)
    assert family(endpoint) == is_ipv6
    assert not endpoint.has_changed()


@pytest.mark.parametrize("answer, is_ipv6", [([IPV4], False), ([IPV6], True), ([IPV6, IPV4], False), (None, False)])
def test_a_name_takes_ipv6_only_if_it_has_no_other_address(monkeypatch, answer, is_ipv6):
    """A name that does not resolve so far changes nothing."""
    endpoint, changed = looked(monkeypatch, "tcp://name:1", answer)
    assert changed == [is_ipv6]
    assert family(endpoint) == is_ipv6
    assert not endpoint.has_changed()


def test_a_change_stays_until_it_is_applied(monkeypatch):
    """A failed look in between does not undo it; a name that changes back has not changed."""
    _, changed = looked(monkeypatch, "tcp://name:1", [IPV6], None, [IPV4])
    assert changed == [True, True, False]


def test_an_ipv6_literal_is_not_resolved(monkeypatch):
    """It cannot change."""
    monkeypatch.setattr(discovery, "resolve", lambda address: pytest.fail("resolved"))
    Endpoint(IPV6).look()
