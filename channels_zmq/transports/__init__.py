"""Sends and receives frames: the only package of the library with sockets.

`Link` is one forwarder as a client sees it. `EmbeddedReader` and `EmbeddedProducer` are the two roles of a process at
an embedded address. This package contains the code that uses ZeroMQ; `channels_zmq.client` interprets the frames.
"""
