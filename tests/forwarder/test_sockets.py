"""Options and binding of sockets."""

import pytest
import zmq

from channels_zmq_forwarder.sockets import AddressError, bind, guard, number, readable


def test_an_address_in_use_is_named(sockets):
    """And the reason."""
    one, other = sockets.open(zmq.PULL), sockets.open(zmq.PULL)
    address = bind(one, "tcp://127.0.0.1:*")
    assert not address.endswith("*")
    with pytest.raises(AddressError, match=f"cannot bind {address}: Address already in use"):
        bind(other, address)


def test_an_ipc_address_without_a_folder_is_refused(tmp_path):
    """The lock file says why before ZeroMQ does."""
    with pytest.raises(AddressError, match="No such file"):
        guard(f"ipc://{tmp_path}/none/pub")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "ipc://@abstract", "ipc://*"])
def test_other_addresses_need_no_lock_file(address):
    """TCP refuses a second bind; an abstract address has no file."""
    assert guard(address) is None


def test_options_are_read(sockets):
    """Numbers are ints."""
    socket = sockets.open(zmq.PULL)
    assert number(socket, zmq.RCVHWM) == 1_000
    assert not readable(socket)
