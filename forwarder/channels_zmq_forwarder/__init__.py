"""The exchange of channels-zmq and the daemon around it.

This package contains everything between a frame's arrival from a producer and its departure to a subscriber: the wire
format, the routing, the queues of normal channels, and the process that runs them. Nothing here depends on Django,
Channels or the content of a message. The library `channels_zmq` imports `wire`, `exchange`, `sockets`, `curve`,
`zap` and others from here, never the other way round. The library must not import modules that need the extra `daemon`
or a system on which the daemon runs; the import contracts list them.
"""

__version__ = "0.1.0"
