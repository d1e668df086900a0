"""A layer in the place of Channels' default one, for consumers, which know no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from channels.layers import channel_layers
from django.conf import settings


@contextmanager
def as_default(layer: Any) -> Iterator[None]:
    """Let a layer be the default one while the block runs."""
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
