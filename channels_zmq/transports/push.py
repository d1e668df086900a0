"""The PUSH socket of a process to one forwarder: it connects only once.

In the data-flow diagram this is the arrow out of the process. When its connection is lost or cannot be established, the
socket is not used any more: its owner opens another one, and sends the messages that may be lost again.
"""

from collections.abc import Callable

import zmq
from zmq.constants import SocketOption

from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import ClientKeys
from channels_zmq.transports.discovery import Endpoint
from channels_zmq.transports.subscriber import Socket, connect, monitor, set_options
from channels_zmq_forwarder.sockets import plain_send

HIGH_WATER_MARK = 10_000
_OPTIONS: dict[SocketOption, int] = {
    zmq.RECONNECT_IVL: -1,
    zmq.CONNECT_TIMEOUT: 2000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.SNDHWM: HIGH_WATER_MARK,
    zmq.LINGER: 0,
}
"""When a connection is lost, libzmq applies the linger time of that moment to the frames that it holds: with the
default, for ever, frames that cannot be sent would keep the context from ending."""


class Push:
    """A PUSH that connects as it is made.

    Args:
        context: Makes the socket.
        address: Where the forwarder receives messages.
        keys: To connect with; None without CURVE.

    Raises:
        ConfigurationError: If the address cannot be connected to.
    """

    def __init__(self, context: "zmq.Context[Socket]", address: str, keys: ClientKeys | None) -> None:
        self._socket = context.socket(zmq.PUSH)
        set_options(self._socket, _OPTIONS)
        self.monitor = monitor(self._socket, zmq.Event.CLOSED)
        self.send: Callable[[bytes, int], object] = plain_send(self._socket)
        """Send a frame; raises `zmq.Again` if the socket is full, or has lost its connection."""
        try:
            connect(self._socket, Endpoint(address), "pull_socket_address", keys)
        except ConfigurationError:
            self.close(linger=0)
            raise

    def close(self, linger: float) -> None:
        """Close the socket. Frames that it has taken are still delivered within `linger` seconds."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)
        self._socket.close(linger=round(linger * 1000))
