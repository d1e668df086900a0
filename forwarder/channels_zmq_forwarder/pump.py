"""The hot loop: moves frames from PULL through the exchange to XPUB, and from XPUB's subscribers to the exchange.

`server` watches the two file descriptors and drives the loop by turns. A turn never blocks and is bounded in frames,
bytes and time, so that health checks and subscriptions are served under any load.

A descriptor of libzmq is edge-triggered: it becomes readable once when commands arrive for the socket, and *any*
operation on the socket takes these in. So a turn ends with a poll of XPUB, the socket that it also sends on, and every
publish outside a turn must be followed by one. A missing poll would delay input until the next frame arrives.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

import zmq

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.connections import Connections
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.history import BLOCK_BYTES, SEPARATOR
from channels_zmq_forwarder.sockets import (
    Marks,
    accept_options,
    bind,
    guard,
    number,
    plain_send,
    publish_options,
    readable,
)
from channels_zmq_forwarder.subscribers import Ended, Subscribers
from channels_zmq_forwarder.zap import Admission, Gate

FRAMES_A_TURN = 1024
BYTES_A_TURN = 2**20
"""A frame that exceeds it ends the turn: large messages of one producer must not delay other clients."""
SECONDS_A_TURN = 0.005
"""Half of it for each direction, so that neither starves the other. One frame may take longer."""
LOOK_PAUSE = 20
"""The pause after a check of the subscribers, as a multiple of its duration: a check of thousands takes 10 ms."""
LOOKS = (range(1, 2), range(2, 33), *(range(at, at + 32) for at in range(33, FRAMES_A_TURN, 32)))
"""The numbers of producers' frames in a turn, up to each reading of the clock. That takes 50 ns, relaying a small frame
1 us. The first frame is followed by a poll of the socket, too: mostly there is no other one, and a poll takes half the
time of `zmq.Again`."""


@dataclass(slots=True)
class Traffic:
    """Frames and bytes since the start, and connections of subscribers that were ended."""

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0
    ended_subscribers: int = 0


class Pump:
    """The two sockets of a forwarder and the way between them.

    Args:
        context: Makes the sockets.
        exchange: Decides what happens to each frame.
        marks: Bounds of the sockets.
        gate: Accepts only clients that may connect; None for plain sockets, which accept every client.
        clock: Monotonic seconds, to bound a turn.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        exchange: Exchange,
        marks: Marks,
        gate: Gate | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.exchange = exchange
        self.traffic = Traffic()
        self._block_ends_at = BLOCK_BYTES  # of `bytes_in`
        self._end_slow_at = 0.0
        self.turns = 0
        """How many turns are over."""
        self.is_behind_subscribers = False
        """Whether the last turn has left buffered frames of subscribers."""
        self._is_behind_producers = self._has_read_producers = self._has_read_subscribers = False
        self._has_revoked = False  # so that producers' keys are checked, which takes about 1 us a frame
        self._pull = context.socket(zmq.PULL)
        self._pull.set(zmq.LINGER, 0)
        self._xpub = context.socket(zmq.XPUB)
        accept_options(self._pull, marks.max_frame)
        publish_options(self._xpub, marks)
        self._send = plain_send(self._xpub)
        self._guards: list[IO[str]] = []
        guarded = Connections if gate is None else gate.guard
        self.connections = {socket: guarded(socket) for socket in (self._xpub, self._pull)}
        """The connections of each socket; watch their monitors."""
        self.subscribers = Subscribers(self._xpub, self.connections[self._xpub], marks, gate, self._drop)
        self._producers = Admission(self._pull, self.connections[self._pull], gate, self._drop)

    def bind_publisher(self, addresses: Sequence[str]) -> list[str]:
        """Bind XPUB; return the addresses with the ports that the system chose.

        Raises:
            AddressError: If one of them cannot be bound.
        """
        return [self._bind(self._xpub, address) for address in addresses]

    def bind_pull(self, addresses: Sequence[str]) -> list[str]:
        """Bind PULL; return the addresses with the ports that the system chose.

        Raises:
            AddressError: If one of them cannot be bound.
        """
        return [self._bind(self._pull, address) for address in addresses]

    def descriptors(self) -> tuple[int, int]:
        """Return the file descriptors that become readable when a turn may be due (edge-triggered)."""
        return number(self._pull, zmq.FD), number(self._xpub, zmq.FD)

    def turn(self) -> bool:
        """Move frames both ways, within the bounds of a turn; return whether another turn is due."""
        replays = self.exchange.replays
        if replays.is_due:
            self._publish(replays.step())
        if self.exchange.is_unfinished:
            self._publish(self.exchange.go_on())
            more = True
        else:
            more = self._read_producers()
        self._is_behind_producers = more
        if not more:
            self._has_read_producers = True
        # If PULL was found empty, its descriptor reports what arrives next. XPUB may have taken input in while it sent:
        # it comes last, and it sends nothing after it was found empty.
        self.is_behind_subscribers = readable(self._xpub) and self._read_subscribers()
        if not self.is_behind_subscribers:
            self._has_read_subscribers = True
        self.turns += 1
        return self.is_behind_subscribers or more or replays.is_due

    def was_behind(self) -> tuple[bool, bool]:
        """Return whether all turns since the last call have left frames of producers, and those of subscribers."""
        producers = self._is_behind_producers and not self._has_read_producers
        subscribers = self.is_behind_subscribers and not self._has_read_subscribers
        self._has_read_producers = self._has_read_subscribers = False
        return producers, subscribers

    def publish(self, frames: Sequence[bytes]) -> bool:
        """Publish frames outside a turn; return whether a turn is due.

        libzmq may take input in while it sends, and then the descriptor does not report it.
        """
        self._publish(frames)
        return readable(self._xpub)

    def _publish(self, frames: Sequence[bytes]) -> None:
        """Send frames to their subscribers. Never blocks: a subscriber whose pipe is full misses them."""
        for frame in frames:
            self._send(frame, zmq.DONTWAIT)
            self.traffic.bytes_out += len(frame)
        self.traffic.frames_out += len(frames)

    def end_bad_subscribers(self, now: float) -> list[Ended]:
        """End the connections of subscribers that are slow; return all that were ended, for any reason."""
        ended = self.subscribers.look(now, self.traffic.bytes_out)
        self.traffic.ended_subscribers += len(ended)
        return ended

    def _end_slow_subscribers(self) -> None:
        """End the connections of slow subscribers while many frames arrive, not only with each beat."""
        now = self._clock()
        if now >= self._end_slow_at:
            self.subscribers.end_slow(self.traffic.bytes_out)
            self._end_slow_at = now + LOOK_PAUSE * (self._clock() - now)

    def end_revoked(self) -> int:
        """End the connections of revoked keys, and drop their frames from now on; return the number of connections."""
        self._has_revoked = True
        return self.subscribers.end_revoked() + self._producers.end_revoked()

    def _drop(self, cause: str) -> None:
        self.exchange.drops[cause] += 1

    def close(self) -> None:
        """Close both sockets; published frames are still delivered within the linger time."""
        for socket, connections in self.connections.items():
            connections.close()
            socket.close()
        for lock in self._guards:
            lock.close()

    def _bind(self, socket: "zmq.Socket[bytes]", address: str) -> str:
        held = guard(address)
        if held is not None:
            self._guards.append(held)
        return bind(socket, address)

    def _read_subscribers(self) -> bool:
        recv, upstream, clock = self.subscribers.recv, self.exchange.upstream, self._clock
        until = clock() + SECONDS_A_TURN / 2
        for count in range(FRAMES_A_TURN):
            if count == 1 and not readable(self._xpub):  # see `LOOKS`
                return False
            try:
                frame = recv(zmq.DONTWAIT)
            except zmq.Again:
                return False
            if frame is not None:
                self._publish(upstream(frame))
            if clock() > until:
                break
        return True

    def _recv_admitted(self, flags: int) -> bytes:
        while (arrival := self._producers.recv(flags)) is None:  # few, since its connection has been ended
            pass
        return arrival.frame

    def _read_producers(self) -> bool:
        recv = self._recv_admitted if self._has_revoked else self._pull.recv
        send, exchange = self._send, self.exchange
        flag, taken, relayed_size, others, others_size = zmq.DONTWAIT, 0, 0, 0, 0
        clock = self._clock
        until = clock() + SECONDS_A_TURN / 2
        unchanged, is_direct, group = exchange.relays_unchanged, exchange.is_direct, wire.GROUP
        write = exchange.history.write
        try:
            for numbers in LOOKS:
                for taken in numbers:  # noqa: B007 - used below; a count in the loop would take its time for every frame
                    frame = recv(flag)
                    if unchanged and frame and (frame[0] == group or is_direct(frame)):
                        send(frame, flag)
                        relayed_size += write(frame)
                        write(SEPARATOR)
                        if relayed_size > BYTES_A_TURN:
                            return True
                    else:
                        others += 1
                        others_size += len(frame)
                        self._publish(exchange.inbound(frame))
                        if others_size > BYTES_A_TURN or exchange.is_unfinished or clock() > until:
                            return True
                        unchanged = exchange.relays_unchanged
                if taken == 1 and not readable(self._pull):
                    return False
                if clock() > until:
                    return True
            return True
        except zmq.Again:  # of `recv`: XPUB drops what it cannot send
            taken -= 1
            return False
        finally:
            traffic, relayed = self.traffic, taken - others
            traffic.frames_in += taken
            traffic.bytes_in += relayed_size + others_size
            traffic.frames_out += relayed
            traffic.bytes_out += relayed_size
            if traffic.bytes_in >= self._block_ends_at:
                self._block_ends_at = traffic.bytes_in + BLOCK_BYTES
                exchange.history.end_block()
                self._end_slow_subscribers()
