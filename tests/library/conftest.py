"""Fixtures that the tests of the library share."""

import pytest
from fakes import Clock


@pytest.fixture
def clock() -> Clock:
    """Return a clock that a test advances."""
    return Clock()
