"""How frames leave a process and arrive: the only folder of the library with sockets.

`Link` is one forwarder as a client sees it. `EmbeddedReader` and `EmbeddedProducer` are the two roles of a process at
an embedded address. Here belongs what knows ZeroMQ; what a frame means is decided in `channels_zmq.client`.
"""
