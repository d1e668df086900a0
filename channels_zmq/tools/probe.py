"""Connects to every exchange of a layer as a client does, with separate sockets, and reports the results.

A probe never binds an address, joins a group or takes a message; the exchange counts it as a client while it runs.
It implements docs/wire-protocol.md: claim, subscribe, hello, then requests on the subscribers' connection (sync) and on
the producers' connection (echo).
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import zmq

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.errors import ConfigurationError
from channels_zmq.keys import ClientKeys, client_keys
from channels_zmq.tools.layers import Layer
from channels_zmq.transports.discovery import Bootstrap, Endpoint
from channels_zmq.transports.roster import Forwarder
from channels_zmq.transports.subscriber import REFUSALS, connect
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.sockets import EVERYWHERE, next_event
from channels_zmq_forwarder.wire import State

Socket = zmq.Socket[bytes]

ASK_EVERY = 0.5
"""Seconds after which a question is repeated: it may have been lost, or have arrived before the exchange served."""
ROUNDS = 5
"""Round trips of which the shortest counts."""
LIFE = 10_000
"""Milliseconds that a message of a probe lives."""


@dataclass(slots=True)
class Finding:
    """The findings about one exchange.

    Attributes:
        pull: Where it takes messages; empty for the producer of an embedded layer.
        pub: Where it publishes.
        problem: What is wrong with it; empty if nothing is.
        advice: What to do about that.
        is_lasting: Whether the problem stays until a setting is changed.
        is_resolved: Whether its name was resolved.
        listens: Whether anything accepts connections at `pub`.
        version: Of its wire format; 0 if it did not answer.
        state: As it reports.
        instance: Its number, as its status page shows it.
        clients: Processes that are connected to it, without the probe.
        round_trip: Seconds from a question to its answer; 0 if it was not measured.
        has_keys: Whether the connection is encrypted.
    """

    pull: str
    pub: str
    problem: str = ""
    advice: str = ""
    is_lasting: bool = False
    is_resolved: bool = True
    listens: bool = False
    version: int = 0
    state: str = ""
    instance: str = ""
    clients: int = 0
    round_trip: float = 0.0
    has_keys: bool = False

    @property
    def where(self) -> str:
        """Its addresses, for people."""
        return f"{self.pull} and {self.pub}" if self.pull else self.pub


class _Problem(Exception):
    """The problem that ends a probe."""

    def __init__(self, problem: str, advice: str, *, is_lasting: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.advice, self.is_lasting = problem, advice, is_lasting


def probe(layer: Layer, timeout: float, *, sends_largest: bool = False) -> list[Finding]:
    """Reach every forwarder of a layer, or the producer of an embedded one, all at once.

    Args:
        layer: It stays unused.
        timeout: Seconds that all of it may take; names are resolved within it too.
        sends_largest: Whether to send a message of `max_message_size` through each, to see that it fits.

    Raises:
        ConfigurationError: If a CURVE key is invalid.
    """
    deadline = time.monotonic() + timeout
    source = client_keys(layer.config)
    keys = source.read() if source is not None else None
    size = layer.config.max_message_size if sends_largest else 0
    found, findings = _exchanges(layer, deadline)
    context: zmq.Context[Socket] = zmq.Context()
    context.linger = 0
    probes = [_Probe(context, exchange, keys, deadline, size) for exchange in found]
    # At Ctrl-C threads and sockets are left alone: no other thread may close the sockets, and the process ends.
    threads = ThreadPoolExecutor(len(probes) or 1, "channels-zmq probe")
    running = [threads.submit(one.run) for one in probes]
    wait(running)
    threads.shutdown()
    context.term()
    for one in running:
        one.result()  # raises an unexpected error
    return [*findings, *(each.finding for each in probes)]


def _exchanges(layer: Layer, deadline: float) -> tuple[list[Forwarder], list[Finding]]:
    """Return the exchanges to reach, and the findings about those whose name cannot be resolved."""
    if isinstance(layer, DedicatedZmqChannelLayer):
        pairs, settings = layer.config.forwarders, "pull_socket_address and pub_socket_address"
    else:
        pairs, settings = [("", layer.address.replace(EVERYWHERE, "tcp://127.0.0.1:"))], "pub_socket_address"
    found, unresolved = [], []
    waiting: list[tuple[Forwarder, Bootstrap, threading.Thread]] = []
    for pair in pairs:
        forwarder = Forwarder(*pair)
        names = Bootstrap([forwarder], 1.0)
        thread = threading.Thread(target=names.look, name="channels-zmq resolving", daemon=True)
        if not names.known:  # the system may take longer to resolve a name than the probe has; it is left alone then
            thread.start()
        waiting.append((forwarder, names, thread))
    for forwarder, names, thread in waiting:
        if not names.known:
            thread.join(max(0.0, deadline - time.monotonic()))
        if names.known:
            found += names.known
        else:
            problem = names.problem or f"{forwarder.pub}: the name was not resolved in time"
            advice = f"Correct {settings} or the name service."
            unresolved.append(Finding(*forwarder, problem, advice, is_resolved=False))
    return list(dict.fromkeys(found)), unresolved


class _Side:
    """One socket of a probe, and what its monitor has reported."""

    def __init__(
        self, context: "zmq.Context[Socket]", kind: int, address: str, setting: str, keys: ClientKeys | None
    ) -> None:
        self.address, self.setting = address, setting
        self.is_connected = self.is_ready = self.was_cut = False
        self.failure: int | None = None
        self.socket = context.socket(kind)
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            self.socket.set(option, 0)
        self.socket.set(zmq.RECONNECT_IVL, 100)
        self.monitor = self.socket.get_monitor_socket()
        endpoint = Endpoint(address)
        try:
            endpoint.look()
            connect(self.socket, endpoint, setting, keys)
        except ConfigurationError as error:
            self.close()
            raise _Problem(str(error), f"Correct {setting}.", is_lasting=True) from None

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()

    def note(self) -> None:
        """Take what the monitor reports."""
        while self.monitor.poll(0):
            event, _ = next_event(self.monitor)
            if event == zmq.Event.CONNECTED:
                self.is_connected = True
            elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self.is_ready = True
            elif event == zmq.Event.DISCONNECTED:
                self.was_cut = True
            elif event in REFUSALS:
                self.failure = event

    def failed(self) -> _Problem | None:
        """Return why the other side refuses this process, if it does."""
        if self.failure == zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:  # the other side has closed without a reason
            problem = f"{self.address} aborts the handshake: {REFUSALS[self.failure]}"
            advice = (
                "Check the curve_ settings here and the keys there. Or are pull_socket_address and pub_socket_address "
                "swapped, or does another program use this port?"
            )
        elif self.failure is not None:
            problem = f"{self.address} refuses this process: {REFUSALS[self.failure]}"
            advice = "Check the curve_ settings here and the keys there."
        elif self.was_cut and not self.is_ready:  # what libzmq does if the kinds of two sockets do not fit
            problem = f"{self.address} is not the port for {self.setting}"
            advice = "Are pull_socket_address and pub_socket_address swapped?"
        else:
            return None
        return _Problem(problem, advice, is_lasting=True)

    def silence(self) -> _Problem:
        """Return the most likely reason why no answer arrived."""
        if not self.is_connected:
            advice = f"Start the forwarder, or correct {self.setting}; a firewall may block the connection."
            return _Problem(f"nothing accepts connections at {self.address}", advice)
        if not self.is_ready:
            advice = f"Correct {self.setting}: another program may use this port."
            return _Problem(f"{self.address} accepts connections but does not use ZeroMQ", advice)
        if self.setting == "pull_socket_address":  # whose answers the forwarder sends to its own subscribers only
            problem = f"frames to {self.address} are not answered by the forwarder at pub_socket_address"
            advice = "List both addresses of each forwarder in the same order, without a load balancer."
            return _Problem(problem, advice)
        advice = "Is it blocked, or is it not a forwarder? Check its log."
        return _Problem(f"{self.address} is connected but does not answer", advice)


class _Probe:
    """One exchange, probed by a separate thread."""

    def __init__(
        self,
        context: "zmq.Context[Socket]",
        exchange: Forwarder,
        keys: ClientKeys | None,
        deadline: float,
        largest: int,
    ) -> None:
        self.finding = Finding(*exchange, has_keys=keys is not None)
        self._context, self._keys, self._deadline, self._largest = context, keys, deadline, largest
        secret = os.urandom(wire.SECRET_SIZE)
        self._inbox = wire.claimable(secret)
        self._claim = wire.CLAIM.encode(wire.Claim(self._inbox, secret))
        self._sides: list[_Side] = []
        self._number = 0

    def run(self) -> None:
        """Fill in the finding."""
        finding = self.finding
        try:
            self._reach()
        except _Problem as found:
            finding.problem, finding.advice, finding.is_lasting = found.problem, found.advice, found.is_lasting
        except wire.FrameError as error:
            finding.problem = f"{finding.pub} answers with an invalid frame: {error}"
            finding.advice = "Correct pub_socket_address: another ZeroMQ program uses this port."
        except zmq.ZMQError as error:
            finding.problem = f"{finding.where}: {error.strerror}"
            finding.advice = "Check the limits of open files and memory."
        finally:
            for side in self._sides:
                side.close()

    def _reach(self) -> None:
        finding = self.finding
        sub = self._open(zmq.XSUB, finding.pub, "pub_socket_address")
        push = self._open(zmq.PUSH, finding.pull, "pull_socket_address") if finding.pull else None
        sub.socket.send(wire.subscription(wire.inbox_topic(self._inbox)))
        self._greet(sub)
        self._measure(sub, lambda number: wire.SYNC.encode(wire.Sync(self._inbox, number)), b"y")
        if push is not None:
            self._measure(push, lambda number: wire.ECHO.encode(wire.Echo(self._inbox, number)), b"k")
            if self._largest:
                self._send_largest(push)

    def _open(self, kind: int, address: str, setting: str) -> _Side:
        side = _Side(self._context, kind, address, setting, self._keys)
        self._sides.append(side)
        return side

    def _greet(self, sub: _Side) -> None:
        """Send hellos until the exchange serves."""
        finding = self.finding
        hello = wire.HELLO.encode(wire.Hello(self._inbox, wire.VERSION, 1, 0))
        while True:
            frame = self._ask(sub, hello, b"w", must=not finding.version, at_once=not finding.version)
            if frame is None:
                advice = "It accepts messages soon after its start; a draining forwarder must be replaced."
                raise _Problem(f"{finding.pub} is {finding.state} and accepts no messages", advice)
            welcome = wire.WELCOME.decode(frame)
            finding.listens, finding.version, finding.clients = True, welcome.version, max(0, welcome.clients - 1)
            finding.instance, finding.state = welcome.instance.hex(), _state(welcome.state)
            if welcome.version != wire.VERSION:
                theirs = f"{finding.pub} uses version {welcome.version} of the wire format"
                problem = f"{theirs}, this program version {wire.VERSION}"
                advice = "Install channels-zmq and channels-zmq-forwarder of one release."
                raise _Problem(problem, advice, is_lasting=True)
            if welcome.state == State.SERVING:
                # Otherwise the forwarder would split the batches of other processes meanwhile.
                sub.socket.send(wire.BATCHING.encode(wire.Batching(self._inbox, 1)))
                return

    def _measure(self, side: _Side, question: Callable[[int], bytes], kind: bytes) -> None:
        """Ask several times, and note the shortest time."""
        best = float("inf")
        for _ in range(ROUNDS):
            self._number += 1
            frame, begun = question(self._number), time.monotonic()
            self._ask(side, frame, kind, self._number)
            best = min(best, time.monotonic() - begun)
        self.finding.round_trip = best

    def _send_largest(self, push: _Side) -> None:
        """Send a message as large as the layer permits; a smaller limit of the forwarder cuts the connection."""
        payload, channel = bytes(self._largest), "probe!channel"
        body, prefix = wire.direct_body(channel, payload), wire.direct_prefix(self._inbox)
        frame = wire.ordered(prefix, os.urandom(wire.SENDER_SIZE), 1, wire.FLAG_FIRST, LIFE, body)
        push.was_cut = False
        push.socket.send(frame)
        if self._ask(push, b"", b"d", must=False) is not None:
            return
        if push.was_cut:
            problem = f"a message of {self._largest} bytes (max_message_size) is not accepted by {self.finding.pull}"
            advice = "Set max_message_size and --max-message-size of the forwarder to the same value."
            raise _Problem(problem, advice, is_lasting=True)
        problem = f"a message of {self._largest} bytes (max_message_size) has not come back from {self.finding.pull}"
        advice = "See the forwarder's log: it may be short of memory, the network slow, or a flush in progress."
        raise _Problem(problem, advice)

    def _ask(
        self,
        side: _Side,
        question: bytes,
        kind: bytes,
        number: int = 0,
        *,
        must: bool = True,
        at_once: bool = True,
    ) -> bytes | None:
        """Send a question by one side, repeatedly, until the answer arrives by the subscribers' way.

        Args:
            side: The side that sends.
            question: The frame; empty if it was sent already. A cut of the connection then ends the wait.
            kind: Of the answer.
            number: In the answer.
            must: Whether a missing answer is an error.
            at_once: Whether to send the first question without delay.

        Returns:
            The answer, or None if it does not arrive in time.
        """
        sub, asked_at = self._sides[0], 0.0 if at_once else time.monotonic()
        poller = zmq.Poller()
        for one in self._sides:
            poller.register(one.monitor, zmq.POLLIN)
        poller.register(sub.socket, zmq.POLLIN)
        while (now := time.monotonic()) < self._deadline:
            if question and now >= asked_at + ASK_EVERY:
                if side is sub:
                    sub.socket.send(self._claim)  # each time: libzmq may have connected again, which claims nothing
                side.socket.send(question)
                asked_at = now
            poller.poll(1 + round(1000 * min(self._deadline - now, ASK_EVERY)))
            for one in self._sides:
                one.note()
            self.finding.listens |= sub.is_connected
            failed = side.failed() or sub.failed()
            if failed is not None:
                raise failed
            while sub.socket.poll(0):
                frame = sub.socket.recv()
                if self._is_answer(frame, kind, number):
                    return frame
            if not question and side.was_cut:
                break
        if must:
            raise side.silence()
        return None

    def _is_answer(self, frame: bytes, kind: bytes, number: int) -> bool:
        if not wire.is_for(self._inbox, frame):
            return False
        found = frame[wire.SUB_KIND : wire.SUB_KIND + 1]
        if found == b"f":  # a flush is under way, and waits for all clients
            answer = wire.Flushed(self._inbox, wire.EMPTY.decode(frame).n)
            self._sides[0].socket.send(wire.FLUSHED.encode(answer))
        if found != kind:
            return False
        if kind == b"y":
            return wire.SYNCED.decode(frame).n == number
        return kind != b"k" or wire.CONFIRM.decode(frame).n == number


def _state(number: int) -> str:
    try:
        return State(number).name.lower()
    except ValueError:  # of a version to come
        return f"in state {number}"
