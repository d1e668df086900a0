"""A channel layer for Django Channels on ZeroMQ.

The layers are `channels_zmq.core.EmbeddedZmqChannelLayer` and `channels_zmq.core.DedicatedZmqChannelLayer`. This
package contains the code of a Django process; `channels_zmq_forwarder` contains the code of a forwarder, and the wire
format of both.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from channels_zmq.environment import channel_layers_from_env

__version__ = "0.1.0"
__all__ = ["__version__", "channel_layers_from_env"]


def __getattr__(name: str) -> Any:
    """Import `channel_layers_from_env` when it is asked for: pytest loads the plugin of this package in every run."""
    if name == "channel_layers_from_env":
        from channels_zmq.environment import channel_layers_from_env

        return channel_layers_from_env
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
