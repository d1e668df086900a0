"""The exchange of channels-zmq and the daemon around it.

Here belongs what happens between a frame's arrival from a producer and its departure to a subscriber: the wire format,
the routing, the queues of plain channels, and the process that runs them. Nothing here knows Django, Channels or the
content of a message; the library `channels_zmq` imports `wire` and `exchange` from here, never the other way round.
"""

__version__ = "0.1.0"
