"""The addresses at which the tools request status pages."""

import pytest

from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer
from channels_zmq.tools import ToolError
from channels_zmq.tools.status import addresses


@pytest.mark.parametrize(
    ("pull", "places"),
    [
        ("tcp://127.0.0.1:5555", ["127.0.0.1:9600", "127.0.0.1:9601"]),
        ("ipc:///run/pull", ["127.0.0.1:9600", "127.0.0.1:9601"]),
        ("tcp://forwarder:5555", ["forwarder:9600"]),
        ("tcp://[fd00::1]:5555", ["[fd00::1]:9600"]),
    ],
)
def test_a_page_is_looked_for_where_a_forwarder_has_it(pull: str, places: list[str]) -> None:
    """The status page is expected at the forwarder's host, on two ports if local, unless addresses are given."""
    layer = DedicatedZmqChannelLayer(pull_socket_address=pull, pub_socket_address="tcp://forwarder:5556")
    assert addresses(layer, []) == [places]
    assert addresses(layer, ["http://a:1/", "b:2"]) == [["a:1"], ["b:2"]]


def test_an_embedded_layer_has_no_page() -> None:
    """An embedded layer has no status page: its own process holds the counts."""
    with pytest.raises(ToolError, match="no forwarder"):
        addresses(EmbeddedZmqChannelLayer(), [])
