"""Connections between clients and forwarders that delay, stall and are cut, and the ZeroMQ sockets at their near ends.

A `Line` is one TCP connection, with a way up to the forwarder and a way down to the client. Each way keeps the order of
its frames. The sockets behave as docs/wire-protocol.md, "Sockets", describes libzmq: an XSUB reconnects by itself and
repeats its subscriptions at its next use; a PUSH connects once. The library's own `Subscriber` and `Push` hold them.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import zmq
from simulated_time import World

from channels_zmq_forwarder import wire

if TYPE_CHECKING:
    from simulated_forwarder import Forwarder
    from simulated_process import Process

RETRY = 0.1
"""Seconds between two attempts of an XSUB to connect."""
CONNECT_TIMEOUT = 2.0
ID_SIZE = 8
"""Bytes at the end of a payload that identify a message."""


def messages(frame: bytes) -> list[bytes]:
    """Return the group or direct messages in a frame."""
    if wire.sub_kind(frame) == wire.REPLAYED.kind:
        again = wire.decode_messages(wire.REPLAYED.decode(frame).messages)
        return [message for one in again for message in wire.split(one)]
    is_message = wire.is_group(frame) or wire.sub_kind(frame) == wire.DIRECT
    return wire.split(frame) if is_message else []


class Way:
    """One direction of a line: frames arrive in order, unless the line is cut.

    Args:
        world: Time and random choices.
        delays: The least and the greatest delay, in seconds.
        arrived: Called with each frame that arrives.
    """

    def __init__(self, world: World, delays: tuple[float, float], arrived: Callable[[bytes], None]) -> None:
        self._world, self._delays, self._arrived = world, delays, arrived
        self.under_way: deque[tuple[float, bytes]] = deque()
        self.is_cut = self.is_closed = False
        self._last = self._stalled_until = 0.0
        self._is_due = False
        self._at_end: Callable[[], None] | None = None

    def send(self, frame: bytes) -> None:
        if self.is_cut:
            return
        self._last = max(self._last, self._world.now + self._world.random.uniform(*self._delays))
        self.under_way.append((self._last, frame))
        self._arrange()

    def stall(self, seconds: float) -> None:
        self._stalled_until = max(self._stalled_until, self._world.now + seconds)

    @property
    def stalled_for(self) -> float:
        return max(0.0, self._stalled_until - self._world.now)

    def cut(self, kept: int) -> None:
        """Lose the frames in transit, except for the first ones, which may still arrive."""
        self.is_cut = True
        while len(self.under_way) > kept:
            self.under_way.pop()

    def close(self) -> None:
        """Let no further frame arrive, because the far end has noticed the cut."""
        self.is_closed = True
        self.cut(0)

    def at_end(self, action: Callable[[], None]) -> None:
        """Accept no further frame, and call the action when all frames in transit have arrived."""
        self.is_cut, self._at_end = True, action
        self._arrange()

    def _arrange(self) -> None:
        if not self._is_due and (self.under_way or self._at_end):
            at = self.under_way[0][0] if self.under_way else self._world.now + self._delays[0]
            self._is_due = True
            self._world.after(max(0.0, at - self._world.now, self._stalled_until - self._world.now), self._arrive)

    def _arrive(self) -> None:
        self._is_due, now = False, self._world.now
        if now >= self._stalled_until:
            while self.under_way and self.under_way[0][0] <= now:
                self._arrived(self.under_way.popleft()[1])
            if not self.under_way and self._at_end is not None:
                action, self._at_end = self._at_end, None
                action()
        self._arrange()


class Line:
    """A connection between a socket and a forwarder.

    Args:
        world: Time and random choices.
        socket: The socket of the client.
        forwarder: The forwarder that accepts it at one of its ports.
    """

    def __init__(self, world: World, socket: "_Socket", forwarder: "Forwarder") -> None:
        self._world, self.socket, self.forwarder = world, socket, forwarder
        self.port = socket.port
        self.topics: set[bytes] = set()
        self.is_open = True
        """Whether the connection is open for the client."""
        self.is_known = True
        """Whether the connection is open for the forwarder."""
        delays = forwarder.network.delays_of(socket.process)
        self.up = Way(world, delays, lambda frame: forwarder.arrived(self, frame))
        self.down = Way(world, delays, socket.arrived)

    def stall(self, seconds: float) -> None:
        self.up.stall(seconds)
        self.down.stall(seconds)

    def cut(self, near_after: float | None, far_after: float | None) -> None:
        """Cut the connection; each end notices later, and may read until then the frames that have arrived."""
        choose = self._world.random.randint
        self.up.cut(choose(0, len(self.up.under_way)))
        self.down.cut(choose(0, len(self.down.under_way)))
        if near_after is not None:
            self._world.after(near_after, self.near_notices)
        if far_after is not None:
            self._world.after(far_after, self.far_notices)

    def close(self, *, discards: bool) -> None:
        """Close the client's end: all frames, or some if discarded, arrive before the forwarder notices."""
        self.is_open = False
        self.down.close()
        if discards:
            self.up.cut(self._world.random.randint(0, len(self.up.under_way)))
        self.up.at_end(self.far_notices)

    def near_notices(self) -> None:
        if self.is_open:
            self.is_open = False
            self.down.close()
            self.socket.disconnected()

    def far_notices(self) -> None:
        if self.is_known:
            self.is_known = False
            self.up.close()
            self.forwarder.closed(self)


class Monitor:
    """A monitor that reports events of a socket to the housekeeper of its process."""

    def __init__(self, process: "Process") -> None:
        self._process, self.closed = process, False
        self.events: deque[zmq.Event] = deque()

    def report(self, event: zmq.Event) -> None:
        if not self.closed:
            self.events.append(event)
            self._process.look_at_monitors()

    def close(self, linger: int) -> None:
        self.closed = True


class _Socket:
    port: Literal["pub", "pull"]
    failure: zmq.Event
    monitor: Monitor

    def __init__(self, network: "Network", process: "Process") -> None:
        self.network, self.process = network, process
        self.line: Line | None = None
        self.address, self.key, self.is_closed = "", b"", False
        self.attempt = 0
        """Number of the latest attempt to connect, which makes earlier ones void."""
        self._pipe: deque[bytes] = deque()
        """The frames that were sent before there was a connection."""

    def set(self, option: zmq.SocketOption, value: int) -> None:
        pass

    def get_monitor_socket(self, events: zmq.Event) -> Monitor:
        self.monitor = Monitor(self.process)
        return self.monitor

    def disable_monitor(self) -> None:
        pass

    def connect(self, address: str) -> None:
        self.address = address
        self.attempt += 1
        self.network.connect(self)

    def connected(self, line: Line) -> None:
        self.line = line
        while self._pipe:
            line.up.send(self._pipe.popleft())
        self.monitor.report(zmq.Event.HANDSHAKE_SUCCEEDED)

    def failed(self) -> None:
        self.monitor.report(self.failure)

    def refused(self) -> None:
        """Report that the forwarder does not allow the key: libzmq connects no more by itself."""
        self.monitor.report(zmq.Event.HANDSHAKE_FAILED_AUTH)

    def _out(self, frame: bytes) -> None:
        if self.line is not None:
            self.line.up.send(frame)
        else:
            self._pipe.append(frame)

    def arrived(self, frame: bytes) -> None:
        raise AssertionError("nothing comes down to a PUSH")

    def disconnected(self) -> None:
        raise NotImplementedError


class XSub(_Socket):
    """An XSUB, which reconnects."""

    port = "pub"
    failure = zmq.Event.CONNECT_RETRIED

    def __init__(self, network: "Network", process: "Process") -> None:
        super().__init__(network, process)
        self._topics: Counter[bytes] = Counter()
        self._inbox: deque[bytes] = deque()
        self._must_subscribe = False
        self.is_signalled = False
        """Whether the descriptor is readable: something has happened since the last use of the socket."""

    def get(self, option: zmq.SocketOption) -> "XSub":
        assert option == zmq.FD
        return self

    def readable(self) -> bool:
        self._use()
        return bool(self._inbox)

    def disconnect(self, address: str) -> None:
        if not self.attempt:
            raise zmq.ZMQError(zmq.EINVAL)
        self.attempt += 1
        line, self.line, self._must_subscribe = self.line, None, True
        self._pipe.clear()
        if line is not None:
            line.close(discards=True)

    def send(self, frame: bytes, flags: zmq.Flag) -> None:
        assert not self.is_closed
        self._use()
        topic = frame[1:]
        if frame[:1] == wire.SUBSCRIBE:
            self._topics[topic] += 1
            if self._topics[topic] > 1:
                return
        elif frame[:1] == wire.UNSUBSCRIBE:
            self._topics[topic] -= 1
            if self._topics[topic] > 0:
                return
            del self._topics[topic]
        self._out(frame)

    def recv(self, flags: zmq.Flag) -> bytes:
        assert not self.is_closed
        self._use()
        if not self._inbox:
            raise zmq.Again
        frame = self._inbox.popleft()
        for message in messages(frame):
            self.process.has_read(message)
        return frame

    def arrived(self, frame: bytes) -> None:
        self._inbox.append(frame)
        self._signal()

    def _signal(self) -> None:
        self.is_signalled = True
        self.process.input_arrived()

    def disconnected(self) -> None:
        # libzmq begins with an empty pipe, and fills it with the subscriptions at the next use of the socket, which its
        # descriptor requests.
        self.line, self._must_subscribe = None, True
        self._pipe.clear()
        self.monitor.report(zmq.Event.DISCONNECTED)
        if not self.is_closed:
            self.network.connect(self, RETRY)
            self._signal()

    def _use(self) -> None:
        self.is_signalled = False
        if self._must_subscribe:
            self._must_subscribe = False
            for topic in self._topics:
                self._out(wire.subscription(topic))

    def close(self, linger: int | None) -> None:
        self.is_closed = True
        line, self.line = self.line, None
        if line is not None:
            line.close(discards=linger == 0)


class Push(_Socket):
    """A PUSH that connects once."""

    port = "pull"
    failure = zmq.Event.CLOSED

    def __init__(self, network: "Network", process: "Process") -> None:
        super().__init__(network, process)
        self._is_lost = False

    def send(self, frame: bytes, flags: zmq.Flag) -> None:
        assert not self.is_closed
        waiting = len(self._pipe if self.line is None else self.line.up.under_way)
        if self._is_lost or waiting >= self.network.push_mark:
            raise zmq.Again
        self._out(frame)

    def failed(self) -> None:
        self._is_lost = True
        super().failed()

    def refused(self) -> None:
        self._is_lost = True
        super().refused()

    def disconnected(self) -> None:
        self.line, self._is_lost = None, True
        self.monitor.report(zmq.Event.DISCONNECTED)

    def close(self, linger: int) -> None:
        self.is_closed = True
        line, self.line = self.line, None
        self._pipe.clear()
        if line is not None:
            line.close(discards=linger == 0)


class Context:
    """A context that makes the sockets of one process."""

    def __init__(self, network: "Network", process: "Process") -> None:
        self._network, self._process = network, process
        self.sockets: list[XSub | Push] = []

    def socket(self, kind: zmq.SocketType) -> XSub | Push:
        self.sockets.append((XSub if kind == zmq.XSUB else Push)(self._network, self._process))
        return self.sockets[-1]

    def term(self) -> None:
        pass


class Network:
    """The listening forwarders, and the connections to them.

    Args:
        world: Time and random choices.
        push_mark: High-water mark of each PUSH, in frames.
    """

    def __init__(self, world: World, push_mark: int) -> None:
        self.world, self.push_mark = world, push_mark
        self.lines: list[Line] = []
        self.black_holes: set[str] = set()
        """Addresses that accept no connection but do not refuse it either."""
        self.making: Process | None = None
        """The process that is being created."""
        self.delays = (0.0002, 0.01)
        self.refusals: dict[tuple[Process, bytes, Forwarder], float] = {}
        """Until when a forwarder does not allow a key of a process."""
        self._listening: dict[str, Forwarder] = {}
        self._waiting: dict[str, list[tuple[_Socket, int]]] = {}

    def context(self) -> Context:
        assert self.making is not None
        self.making.context = Context(self, self.making)
        return self.making.context

    def delays_of(self, process: "Process") -> tuple[float, float]:
        return process.delays or self.delays

    def listen(self, address: str, forwarder: "Forwarder") -> None:
        self._listening[address] = forwarder
        for socket, attempt in self._waiting.pop(address, ()):
            self.world.after(self.world.random.uniform(0, RETRY), self._try, socket, attempt)

    def stop_listening(self, address: str) -> None:
        self._listening.pop(address, None)

    def connect(self, socket: _Socket, after: float = 0.0) -> None:
        self.world.after(after + self.world.random.uniform(0.0002, 0.005), self._try, socket, socket.attempt)

    @staticmethod
    def _is_over(socket: _Socket, attempt: int) -> bool:
        return socket.is_closed or socket.process.is_gone or socket.attempt != attempt

    def _try(self, socket: _Socket, attempt: int) -> None:
        if self._is_over(socket, attempt):
            return
        forwarder = self._listening.get(socket.address)
        if forwarder is not None:
            self.world.after(self.world.random.uniform(0.0002, 0.01), self._shake_hands, socket, attempt, forwarder)
        elif socket.address in self.black_holes:
            self.world.after(CONNECT_TIMEOUT, self._fail, socket, attempt)
        else:
            self._fail(socket, attempt)

    def _shake_hands(self, socket: _Socket, attempt: int, forwarder: "Forwarder") -> None:
        if self._is_over(socket, attempt):
            return
        if self._listening.get(socket.address) is not forwarder:
            self._fail(socket, attempt)
        elif forwarder.is_frozen:
            forwarder.on_thaw.append(lambda: self._shake_hands(socket, attempt, forwarder))
        elif socket.process.is_frozen:
            socket.process.on_thaw.append(lambda: self._shake_hands(socket, attempt, forwarder))
        elif self.refusals.get((socket.process, socket.key, forwarder), 0.0) > self.world.now:
            socket.refused()
        else:
            line = Line(self.world, socket, forwarder)
            self.lines = [one for one in self.lines if one.is_open or one.is_known]
            self.lines.append(line)
            forwarder.accepted(line)
            socket.connected(line)

    def _fail(self, socket: _Socket, attempt: int) -> None:
        if self._is_over(socket, attempt):
            return
        socket.failed()
        if isinstance(socket, XSub):
            self._waiting.setdefault(socket.address, []).append((socket, attempt))
            if socket.address in self._listening:  # it began to listen a moment ago
                self.listen(socket.address, self._listening[socket.address])
