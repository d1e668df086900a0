"""A replacement of Channels' default layer, for consumers, which use no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from channels.layers import channel_layers
from django.conf import settings


@contextmanager
def as_default(layer: Any) -> Iterator[None]:
    """Make a layer the default one during the block."""
    if not settings.configured:
        settings.configure()
    before = channel_layers.set("default", layer)
    try:
        yield
    finally:
        if before is None:
            del channel_layers.backends["default"]
        else:
            channel_layers.set("default", before)
