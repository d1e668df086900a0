"""What the tests of the library share."""

import pytest
from fakes import Clock


@pytest.fixture
def clock() -> Clock:
    """Time that a test moves."""
    return Clock()
