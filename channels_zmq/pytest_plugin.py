"""Fixtures for tests of applications, which pytest finds automatically if this package is installed.

pytest imports this module in every run, so each fixture imports the parts of this package that it needs.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from channels_zmq.testing import ForwarderProcess
    from channels_zmq.tools.layers import Layer


@pytest.fixture
def channel_layer_config() -> dict[str, Any]:
    """Keys of CONFIG for the layers of the other fixtures; override it to set some."""
    return {}


@pytest.fixture
def channel_layer(channel_layer_config: dict[str, Any]) -> "Iterator[Layer]":
    """An embedded layer of this test alone, as `default` of `CHANNEL_LAYERS`."""
    from channels_zmq.testing import embedded_layer

    with embedded_layer(channel_layer_config) as layer:
        yield layer


@pytest.fixture(scope="session")
def zmq_forwarder() -> "Iterator[ForwarderProcess]":
    """A forwarder for all tests of this process: with pytest-xdist each worker has one."""
    from channels_zmq.testing import ForwarderProcess

    with ForwarderProcess() as forwarder:
        yield forwarder


@pytest.fixture
def dedicated_channel_layer(
    zmq_forwarder: "ForwarderProcess", channel_layer_config: dict[str, Any]
) -> "Iterator[Layer]":
    """A dedicated layer of this test alone, as `default` of `CHANNEL_LAYERS`, by the forwarder of this process."""
    from channels_zmq.testing import dedicated_layer

    with dedicated_layer(zmq_forwarder.config, channel_layer_config) as layer:
        yield layer
