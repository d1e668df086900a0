"""A channel layer for Django Channels on ZeroMQ.

The layers are `channels_zmq.core.EmbeddedZmqChannelLayer` and `channels_zmq.core.DedicatedZmqChannelLayer`. Here
belongs what a Django process runs; what a forwarder runs, and the wire format of both, is `channels_zmq_forwarder`'s.
"""

from channels_zmq.environment import channel_layers_from_env

__version__ = "0.1.0"
__all__ = ["__version__", "channel_layers_from_env"]
