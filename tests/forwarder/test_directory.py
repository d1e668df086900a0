"""The union of the forwarders that clients know."""

from collections import Counter

import pytest

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.directory import Directory
from channels_zmq_forwarder.wire import KnownForwarder

A, B = b"a" * 16, b"b" * 16


def forwarder(number: int, *, serves: bool = True) -> KnownForwarder:
    return KnownForwarder(b"pull%d" % number, b"pub%d" % number, serves)


def address(number: int) -> tuple[bytes, bytes]:
    return forwarder(number)[:2]


@pytest.fixture
def directory() -> Directory:
    return Directory(Counter())


def test_the_union_contains_what_any_client_lists(directory: Directory) -> None:
    """The union contains every forwarder that any client lists, so that each client learns of all of them."""
    directory.update(A, (forwarder(1), forwarder(2)))
    directory.update(B, (forwarder(2), forwarder(3)))
    assert directory.union == {address(1), address(2), address(3)}
    assert wire.decode_forwarders(directory.encoded) == (forwarder(1), forwarder(2), forwarder(3))


def test_a_client_that_is_gone_takes_its_list_along(directory: Directory) -> None:
    """The list of a disconnected client is removed, except for forwarders that other clients list as well."""
    directory.update(A, (forwarder(1), forwarder(2)))
    directory.update(B, (forwarder(2),))
    directory.remove(A)
    directory.remove(A)
    assert directory.union == {address(2)}
    assert A not in directory
    assert B in directory


def test_a_list_replaces_the_last_one_of_its_client(directory: Directory) -> None:
    """A new list replaces the previous one of its client, which removes a forwarder by omitting it."""
    directory.update(A, (forwarder(1),))
    directory.update(A, (forwarder(2),))
    assert directory.union == {address(2)}
    directory.update(A, ())
    assert (directory.union, directory.encoded, A in directory) == (frozenset(), b"", False)


def test_a_forwarder_serves_if_the_link_of_any_client_is_up(directory: Directory) -> None:
    """A forwarder serves if the link of any client is up, even if other clients have lost theirs."""
    directory.update(A, (forwarder(1, serves=False), forwarder(2, serves=False)))
    assert not directory.serves
    directory.update(B, (forwarder(1),))
    assert directory.serves
    assert wire.decode_forwarders(directory.encoded) == (forwarder(1), forwarder(2, serves=False))
    directory.update(B, (forwarder(1, serves=False),))
    assert not directory.serves


def test_the_links_of_all_clients_are_counted(directory: Directory) -> None:
    """The links of each forwarder are counted: how many clients are connected, and how many send by it."""
    assert directory.links() == []
    directory.update(A, (forwarder(1), forwarder(2)))
    directory.update(B, (forwarder(1, serves=False),))
    assert directory.links() == [(address(1), 2, 1), (address(2), 1, 1)]
    directory.remove(A)
    assert directory.links() == [(address(1), 1, 0)]


def test_the_union_is_bounded_and_what_exceeds_it_is_counted() -> None:
    """The union is bounded, so that clients cannot make welcomes grow for ever, and the excess is counted.

    A place that becomes free is used.
    """
    drops: Counter[str] = Counter()
    directory = Directory(drops)
    full = tuple(map(forwarder, range(wire.MAX_FORWARDERS)))
    directory.update(A, full)
    directory.update(B, (forwarder(1), forwarder(1000)))
    directory.update(B, (forwarder(1), forwarder(1000)))
    assert directory.union == {known[:2] for known in full}
    assert drops == {"forwarders": 1}
    directory.update(A, full[1:])
    assert address(1000) in directory.union
    assert len(directory.union) == wire.MAX_FORWARDERS


def test_the_union_has_the_instance_that_was_reported_last(directory: Directory) -> None:
    """The union has the instance that a client reported last, even if another client does not know it yet.

    A restart is known once a client reports it.
    """
    one, two = (forwarder(1)._replace(instance=digit * wire.INSTANCE_DIGITS) for digit in (b"1", b"2"))
    directory.update(A, (one,))
    directory.update(B, (forwarder(1),))
    assert wire.decode_forwarders(directory.encoded) == (one,)
    directory.update(B, (two,))
    assert wire.decode_forwarders(directory.encoded) == (two,)
    directory.remove(A)
    directory.remove(B)
    directory.update(A, (forwarder(1),))
    assert wire.decode_forwarders(directory.encoded) == (forwarder(1),)
