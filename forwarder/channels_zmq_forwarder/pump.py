"""The hot loop: sockets to exchange to sockets.

In the data-flow diagram this is what moves a frame from PULL to XPUB, and what reads the frames that come up XPUB. The
loop is driven by whoever watches the two file descriptors (`server`); a turn never blocks and takes a bounded number of
frames, so that health checks and subscriptions are served under any load.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.exchange import Exchange

FRAMES_A_TURN = 1000
_GROUP = wire.GROUP


class AddressError(Exception):
    """An address cannot be bound; the message names it and the reason."""


@dataclass(frozen=True, slots=True)
class Marks:
    """High-water marks in frames, and the largest frame in bytes; what exceeds it cuts its connection."""

    pull: int = 10_000
    publish: int = 10_000
    max_frame: int = 16 * 2**20 + wire.MAX_OVERHEAD


@dataclass(slots=True)
class Traffic:
    """What has passed, since the start."""

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0


class Pump:
    """The two sockets of a forwarder and the way between them.

    Args:
        context: Makes the sockets.
        exchange: Decides what happens to each frame.
        marks: Bounds of the sockets.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", exchange: Exchange, marks: Marks) -> None:
        self.exchange = exchange
        self.traffic = Traffic()
        self._pull = context.socket(zmq.PULL)
        self._xpub = context.socket(zmq.XPUB)
        self._pull.set(zmq.RCVHWM, marks.pull)
        self._pull.set(zmq.LINGER, 0)
        for option, value in ((zmq.TCP_KEEPALIVE, 1), (zmq.TCP_KEEPALIVE_IDLE, 5)):
            self._pull.set(option, value)
        for option, value in ((zmq.TCP_KEEPALIVE_INTVL, 2), (zmq.TCP_KEEPALIVE_CNT, 3)):
            self._pull.set(option, value)
        publish_options(self._xpub, marks)
        for socket in (self._pull, self._xpub):
            socket.set(zmq.MAXMSGSIZE, marks.max_frame)
            socket.set(zmq.BACKLOG, 4096)

    def bind_publisher(self, addresses: Sequence[str]) -> list[str]:
        """Bind XPUB and return the addresses with the ports that were chosen."""
        return [bind(self._xpub, address) for address in addresses]

    def bind_pull(self, addresses: Sequence[str]) -> list[str]:
        """Bind PULL and return the addresses with the ports that were chosen."""
        return [bind(self._pull, address) for address in addresses]

    def descriptors(self) -> tuple[int, int]:
        """Return the file descriptors that become readable when a turn may be due (edge-triggered)."""
        return number(self._pull, zmq.FD), number(self._xpub, zmq.FD)

    def turn(self) -> bool:
        """Move what is there, at most `FRAMES_A_TURN` each way; return whether more may be there."""
        more = self._read_subscribers()
        more = self._read_producers() or more
        return more or readable(self._xpub) or readable(self._pull)

    def publish(self, frames: Sequence[bytes]) -> None:
        """Send frames to whoever is subscribed to them. Never blocks: a full subscriber misses them."""
        send = self._xpub.send
        for frame in frames:
            send(frame, zmq.DONTWAIT)
            self.traffic.bytes_out += len(frame)
        self.traffic.frames_out += len(frames)

    def close(self) -> None:
        """Close both sockets; what was published is still delivered within the linger time."""
        self._pull.close()
        self._xpub.close()

    def _read_subscribers(self) -> bool:
        recv, upstream = self._xpub.recv, self.exchange.upstream
        for _ in range(FRAMES_A_TURN):
            try:
                frame = recv(zmq.DONTWAIT)
            except zmq.Again:
                return False
            self.publish(upstream(frame))
        return True

    def _read_producers(self) -> bool:
        recv, send, exchange = self._pull.recv, self._xpub.send, self.exchange
        flag, size, count, relayed, relayed_size = zmq.DONTWAIT, 0, 0, 0, 0
        try:
            for count in range(FRAMES_A_TURN):  # noqa: B007 - it is read below, after the loop
                frame = recv(flag)
                if exchange.relays_groups_as_they_come and frame[:1] == b"G":
                    send(frame, flag)
                    relayed += 1
                    relayed_size += len(frame)
                else:
                    self.publish(exchange.inbound(frame))
                size += len(frame)
            count += 1
        except zmq.Again:
            return False
        finally:
            self.traffic.frames_in += count
            self.traffic.bytes_in += size
            self.traffic.frames_out += relayed
            self.traffic.bytes_out += relayed_size
        return True


def publish_options(xpub: "zmq.Socket[bytes]", marks: Marks) -> None:
    """Set what every publishing socket has, in a forwarder and embedded."""
    xpub.set(zmq.SNDHWM, marks.publish)
    xpub.set(zmq.RCVHWM, 0)
    xpub.set(zmq.LINGER, 1000)
    xpub.set(zmq.HEARTBEAT_IVL, 1000)
    xpub.set(zmq.HEARTBEAT_TIMEOUT, 2000)


def bind(socket: "zmq.Socket[bytes]", address: str) -> str:
    """Bind a socket and return its address, with the port that the system chose for `:0` or `:*`.

    Raises:
        AddressError: The address is in use, not of this machine or no address.
    """
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise AddressError(f"cannot bind {address}: {error.strerror}") from error
    return cast(bytes, socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()


def number(socket: "zmq.Socket[bytes]", option: int) -> int:
    """Return an option of a socket that is a number."""
    return cast(int, socket.get(option))


def readable(socket: "zmq.Socket[bytes]") -> bool:
    """Return whether something can be received now; asking also lets libzmq do what is due on the socket."""
    return number(socket, zmq.EVENTS) & zmq.POLLIN != 0
