"""Settings of all tests."""

from collections.abc import Callable

import pytest
from forwarders import free_ports
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def unused_tcp_port() -> int:
    """Replace the fixture of pytest-asyncio: no other worker gets this port, and no connection of the system."""
    return free_ports(1)[0]


@pytest.fixture
def unused_tcp_port_factory() -> Callable[[], int]:
    """Return a function that returns such ports."""
    return lambda: free_ports(1)[0]
