"""One forwarder as a client sees it: PUSH to send messages, XSUB to receive and for requests, a window and a state.

In the data-flow diagram these are the arrows into and out of one forwarder; `links` has the set of them. The rules,
step by step: docs/wire-protocol.md, "Connecting" and "Sending".

Theory of operation. Two connections lead to a forwarder, and they may fail, or reach different instances,
independently. The subscriber's side leads: each of its connections begins a session with a hello. Once the forwarder
serves, PUSH is connected, and an echo by it proves that both sides reach the same instance; only then is the link `UP`
and messages are sent. PUSH never connects twice: after a cut, the frames of its connection are still in the window and
are sent again, so the frames that libzmq still holds are discarded with the socket.

Keys can change while the link is up, without an interruption. A second subscriber takes over from the first one
(`downlink`). Then a second PUSH takes over (`uplink`), and sends the window again.

Between `start` and `close` only `tick` opens and closes sockets. The housekeeper calls it, and polls the sockets'
monitors meanwhile. `states` has the table of transitions; `_enter` is the only method that changes the state.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Protocol

import zmq

from channels_zmq.client.arrivals import SILENT_AFTER
from channels_zmq.client.batch import BYTES as BATCH_BYTES
from channels_zmq.client.client import Client
from channels_zmq.client.counters import LinkStats
from channels_zmq.client.output import SessionFrame
from channels_zmq.client.requests import next_number
from channels_zmq.client.window import LARGE, NOW
from channels_zmq.errors import ConfigurationError, WireVersionMismatch
from channels_zmq.keys import KeyWatch
from channels_zmq.options import Options
from channels_zmq.transports.downlink import CHANGE_WITHIN, Downlink, Watcher
from channels_zmq.transports.outbox import Held, Kind, Ledger, Outbox
from channels_zmq.transports.roster import Forwarder
from channels_zmq.transports.states import TRANSITIONS, Event, State
from channels_zmq.transports.subscriber import FAILURES, READS_FORMER_FOR, REFUSALS, Socket, Subscriber
from channels_zmq.transports.uplink import Uplink
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.sockets import longest_transfer
from channels_zmq_forwarder.wire import Topic

ECHO_EVERY = 1.0
PATIENCE = SILENT_AFTER
"""Seconds without an acknowledgement after which an echo has to prove the link again; up to `BLOCK_SECONDS` of them
pass before one is requested. A large message adds the time that it takes on the slowest link. With 3 s, messages to a
frozen forwarder at 15,000 messages/s arrived by another one after 3.3 to 3.6 s; 3.5 s are the goal."""
REPORTED_AFTER = 3.0
"""Seconds after the start until a forwarder that was never reached is reported."""
CONNECTS_WITHIN = 0.5
"""Seconds for which the first messages wait for a second link that is about to come up."""
FULL_RETRY = 0.005
"""Seconds until a full sending socket is tried again."""
REPORT_EVERY = 1.0
"""Seconds between two reports of the window."""
TICK_EVERY = 1.0
WATCH_EVERY = 0.5
"""Seconds between two calls of `tick` while something is unacknowledged, at most."""
COUNTED_AT_MOST = 1.0
"""Seconds between two calls of `tick` that count as silence. If more pass, this process was suspended."""
EARLY = 0.025
"""Seconds before its time that a marker may be sent by a `tick` for other reasons, which saves a call of its own."""


class Owner(Watcher, Protocol):
    """The set of links, which a link notifies of events that concern the others, too.

    Attributes:
        holds_back: Whether held messages have to wait for an announcement that precedes them.
    """

    holds_back: bool

    def may_be_used(self, link: "Link") -> bool:
        """Return whether other clients may send by a forwarder that this process has not reached yet."""

    def came_up(self, link: "Link") -> None:
        """Send by a link from now on."""

    def went_down(self, link: "Link") -> None:
        """Stop sending by a link, and send its messages that may be lost by other links."""

    def welcomed(self, link: "Link", welcome: wire.Welcome) -> None:
        """Learn from a welcome which forwarders others know."""


@dataclass(slots=True)
class _Echo:
    """The echo that waits for its answer."""

    number: int
    sent_at: float


class Link:
    """One process at one forwarder.

    Args:
        forwarder: Its addresses.
        context: Makes the sockets.
        options: Bounds and times.
        client: Takes the frames that arrive.
        ledger: Bounds what all links hold.
        owner: Is notified when the link begins or ceases to carry messages.
        call_soon: Arranges for `tick` at a time at the latest.
        known: Returns the list of forwarders that a hello carries.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        context: "zmq.Context[Socket]",
        options: Options,
        client: Client,
        ledger: Ledger,
        owner: Owner,
        call_soon: Callable[[float], None],
        known: Callable[[], bytes],
    ) -> None:
        self.forwarder = forwarder
        self.name = forwarder.pub
        self.address = str(forwarder)
        self.refusal = ""
        self.state = State.CONNECTING
        self.instance = b""
        """The last instance that this link was up with; empty if it never was."""
        self.listed: dict[Forwarder, str] | None = None
        """The forwarders that the last welcome lists, and their instances; None if it has no list."""
        self.other_version: int | None = None
        """The version of the wire format that the forwarder speaks, if it is another one."""
        self.passes = False
        """Whether a message is sent at once: the link is up, nothing is held, and the window has room."""
        self.is_reached = False
        """Whether this link may be a home: it is up, and other clients have reached its forwarder."""
        self.up_since = self._greeted_at = 0.0
        self.attachment = client.attach()
        self._context, self._options, self._client, self._ledger = context, options, client, ledger
        self._owner, self._call_soon, self._known = owner, call_soon, known
        self._numbers, self._sender = client.numbers, client.sender
        self._window = self.attachment.window
        self._keys = KeyWatch(options.keys)
        self._outbox = Outbox(ledger)
        self._uplink = Uplink(context, forwarder.pull, options.linger, client.counters)
        self._echo: _Echo | None = None
        self._verifying_since = 0.0
        self._down_since: float | None = None
        self._sent_again = 0
        self._reported_window, self._reported_at = (0, 0), 0.0
        self._silent_since = self._silent_for = 0.0
        self._answered_by = inf
        self._ticked_at = self._started_at = 0.0
        self._keys_are_due = self._push_is_due = self._has_reported_refusal = False
        self._next_connected_at = inf

    # Opening and closing

    def start(self) -> None:
        """Connect the subscriber's side unless a key file is missing so far, and subscribe.

        Raises:
            ConfigurationError: If an address or a key is invalid.
        """
        self.downlink = Downlink(self._make_subscriber, self._owner, self._client.out, self._call_soon)
        """Receives; its `read` is called directly, which spares a call for each turn."""
        self.downlink.connect_first(self._keys)
        self._started_at = time.monotonic()

    def _make_subscriber(self) -> Subscriber:
        return Subscriber(self._context, self.forwarder.pub, self._options, self._client, self.attachment, self._known)

    @property
    def _subscriber(self) -> Subscriber:
        return self.downlink.current

    @property
    def is_connected(self) -> bool:
        """Whether the subscriber's side is connected."""
        return self.state not in (State.CONNECTING, State.DOWN)

    @property
    def takes_batches(self) -> bool:
        """Whether the forwarder has accepted batches in this session."""
        return self.attachment.batching_session == self.downlink.current.session

    def is_coming(self, now: float) -> bool:
        """Return whether it began to connect a moment ago and is not up yet."""
        if self.state is State.CONNECTING:
            return now < self._started_at + CONNECTS_WITHIN
        is_on_the_way = self.state in (State.GREETING, State.VERIFYING) and self.other_version is None
        return is_on_the_way and now < self._greeted_at + CONNECTS_WITHIN

    def is_greeting(self, now: float) -> bool:
        """Return whether it sent a hello a moment ago and waits for the welcome."""
        waits = self._subscriber.welcome is None and self.other_version is None
        return self.is_connected and waits and now < self._greeted_at + PATIENCE

    @property
    def welcome(self) -> wire.Welcome | None:
        """The last welcome of the current session."""
        return self._subscriber.welcome

    @property
    def session(self) -> int:
        """The current session, whose number no other link of this process has."""
        return self._subscriber.session

    def say_hello(self) -> None:
        """Report which forwarders this process knows now."""
        self._subscriber.say_hello()

    def say_goodbye(self) -> None:
        """Report that this process is about to disconnect for good, so that no forwarder waits for its return."""
        if self._subscriber.is_connected:
            self.send_upstream(self._detach_frame())

    @property
    def held(self) -> int:
        """How many messages wait to be sent, or to be acknowledged, jobs that go back by PUSH included."""
        return len(self._outbox) + self._window.kept + self._window.jobs

    def monitors(self) -> dict[Socket, Callable[[int], None]]:
        """Return the monitors of the sockets, and what to call with their events."""
        downwards = self.downlink.monitors(self._subscriber_event, self._next_subscriber_event)
        return {**downwards, **self._uplink.monitors(self._push_event)}

    def stats(self, *, carries: bool) -> LinkStats:
        """Return what `layer.stats()` reports about this link; `carries` is whether topics are sent by it."""
        return LinkStats(
            forwarder=self.address,
            state=self.state.value,
            session=self.session,
            carries=carries,
            unacknowledged=len(self._window),
            held=len(self._outbox),
            sent_again=self._sent_again,
        )

    def close(self) -> None:
        """Close the sockets. Frames that they have taken are still delivered, within the linger time."""
        self.flush()
        self.downlink.close()
        self._uplink.close()

    # Sending

    def publish(self, prefix: bytes, body: bytes, ttl: int, count: int = 1, flags: int = 0) -> int:
        """Number a message, or those of a batch, and send the frame.

        Args:
            prefix: Of the frame.
            body: The message, or the batch.
            ttl: Milliseconds.
            count: How many messages it has.
            flags: `wire.FLAG_BATCH` for a batch.

        Returns:
            The first number; 0 if the message has to be held.
        """
        number, first_flag = self._numbers.next(prefix, count)
        frame = wire.ordered(prefix, self._sender, number, flags | first_flag, ttl, body)
        try:
            self._uplink.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            self._numbers.take_back(prefix, number, first_flag)
            return 0
        window = self._window
        if window.room and len(frame) <= LARGE:
            window.room -= 1
            window.keep(frame)
        elif due := window.append(frame):
            self._mark(due)
        return number

    def send(self, frame: bytes) -> bool:
        """Send a frame that is not numbered; return False if it has to be held."""
        is_job = frame[:1] == wire.BACK_BYTE
        if is_job and self._push_is_due:
            return False  # the change waits until no job is unacknowledged
        if not self._send_uncounted(frame):
            return False
        if due := self._window.count(len(frame), is_job=is_job):
            self._mark(due)
        return True

    def _send_uncounted(self, frame: bytes) -> bool:
        """Send a frame of the link itself."""
        try:
            self._uplink.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def send_request(self, frame: bytes, number: int) -> bool:
        """Send a request, unless held messages have to be sent first; return whether it was sent."""
        if not (self.passes and self.send(frame)):
            return False
        self._client.requests.sent_by(number, self.attachment)
        return True

    def send_upstream(self, frame: bytes) -> bool:
        """Send a frame by the XSUB; return whether input is there now."""
        return self._subscriber.send(frame)

    def make_room(self) -> bool:
        """Read for one turn if the window is full: an answer may have arrived that the event loop has not read yet.

        Returns:
            Whether a message can be sent now.
        """
        if self.state is State.UP and self._window.is_full and self.downlink.read():
            self._client.out.input_found()
        if self.state is State.UP and not self.passes and not self._window.is_full:
            self.flush()
        return self.passes

    def mark_now(self) -> None:
        """Request the acknowledgement of all frames now."""
        if self.state is State.UP and len(self._window):
            self._send_marker()

    def _mark(self, due: float) -> None:
        if due == NOW:
            self._send_marker()
        else:
            self._call_soon(due)

    def _send_marker(self) -> None:
        number = next_number()
        if self._send_uncounted(wire.ECHO.encode(wire.Echo(self._client.inbox, number))):
            self._window.marked(number)
        self.passes = self.passes and not self._window.is_full

    # Holding

    def hold(self, held: Held, now: float, *, must: bool = False) -> bool:
        """Hold a message until it can be sent; return False if it does not fit."""
        if not self._outbox.hold(held, now, must=must):
            return False
        self.passes = False
        if self.state is State.UP and not self._window.is_full:
            self._call_soon(now + FULL_RETRY)
        return True

    def flush(self) -> None:
        """Send held messages, as far as the window and the socket have room."""
        if self._owner.holds_back:
            return
        now = time.monotonic()
        self._client.counters.drop("outbox_expired", self._outbox.expire(now))
        while self.state is State.UP and not self._window.is_full and (held := self._outbox.first()) is not None:
            if not self._send_held(held, now):
                self._call_soon(now + FULL_RETRY)
                break
            self._outbox.remove_first()
        self.passes = self.state is State.UP and not len(self._outbox) and not self._window.is_full

    def _send_held(self, held: Held, now: float) -> bool:
        left = wire.milliseconds(held.deadline - now)
        if held.kind is Kind.MESSAGE:
            number = self.publish(held.key, held.body, left)
            if number and self._ledger.is_older(held):
                self._client.receiver.older_than_subscription(Topic(held.key), number)
            return bool(number)
        if held.kind is Kind.REQUEST:
            sent = self.send(wire.aged(held.body, int((now - held.published) * 1000)))
            if sent:
                self._client.requests.sent_by(held.number, self.attachment)
            return sent
        age = int((now - held.published) * 1000)  # rounded down: a member that had joined must not miss it
        elsewhere = held.instance != self.instance
        frame = wire.again(held.body, left, age, elsewhere=elsewhere, acknowledged=not held.counts)
        for each in (frame,) if self.takes_batches else wire.split(frame):
            if not self._send_uncounted(each):
                return False
            self._sent_again += 1
            self._client.counters.sent_again += 1
            due = self._window.append(each)
            if due:
                self._mark(due)
        return True

    def take(self) -> list[Held]:
        """Remove and return the messages that may be lost, and the held ones behind them, for another link to send."""
        repeats = [
            Held(
                deadline=since + wire.ttl_of(frame) / 1000,
                key=wire.prefix_of(frame),
                body=frame,
                kind=Kind.REPEAT,
                counts=0 if is_acknowledged else wire.messages_in(frame),
                # Members have most likely got an acknowledged message: in doubt it is older than their join.
                published=(since if is_acknowledged else until) - wire.age_of(frame) / 1000,
                instance=self.instance,
            )
            for since, until, frames, is_acknowledged in self._window.take()
            for frame in wire.merged(frames, BATCH_BYTES)
        ]
        return [*repeats, *self._outbox.take()]

    def is_busy_since(self, time: float, order: int) -> bool:
        """Return whether it has something unacknowledged from before a time, or holds something up to an order."""
        first = self._outbox.first()
        return self._window.oldest <= time or (first is not None and first.order <= order)

    def withdraw(self, number: int) -> bool:
        """Drop a held request; return whether it was held here."""
        withdrawn = self._outbox.withdraw(number)
        if withdrawn and self.state is State.UP and not len(self._outbox):
            self.flush()
        return withdrawn

    def drop_held(self) -> None:
        """Drop all held messages."""
        self._outbox.clear()
        self._window.clear()
        self.flush()

    # Receiving

    def has_input(self) -> bool:
        """Return whether a frame can be read, or may be there to be read."""
        return self.downlink.has_input()

    def is_behind(self, now: float, since: float) -> bool:
        """Return whether messages that were published before a time may still arrive, which a probe finds out."""
        return self.downlink.is_behind(now, since)

    # The state

    def _enter(self, event: Event) -> bool:
        """Change the state by the table; return whether it has an entry for the event."""
        former, state = self.state, TRANSITIONS[self.state].get(event)
        if state is None:
            return False
        self.state = state
        self.passes = False
        if former is State.UP and state is not State.UP:
            self._echo = None
            self.is_reached = False
            self._down_since = time.monotonic()
            self._report_end(state)
            if state is not State.DRAINING:  # that takes what was sent
                self._client.counters.drop("lost_delivery", self._window.jobs)
            self._owner.went_down(self)
            self._window.clear()
        if state is State.DOWN:
            self._client.became_unreachable(self.attachment)
        if event is Event.SILENT:
            self._await_answers(0.0)  # they were waited for already
        elif state is State.DOWN or (former is State.UP and state is not State.DRAINING):
            self._await_answers(READS_FORMER_FOR)
        return True

    def _await_answers(self, seconds: float) -> None:
        now = time.monotonic()
        self._answered_by = min(self._answered_by, now + seconds)
        self._fail_requests_once_read(now)

    def _fail_requests_once_read(self, now: float) -> None:
        """Fail the unanswered requests once every answer that is on its way was read, or that takes too long.

        If only PUSH was lost, answers may still arrive. The answer to the echo by the next PUSH follows them.
        """
        if now < self._answered_by < inf and self.state is State.VERIFYING:
            self._call_soon(self._answered_by)
        elif now < self._answered_by < inf and self.downlink.has_input():
            self._client.out.input_found()
            self._call_soon(now + FULL_RETRY)
        else:
            self._fail_requests()

    def _fail_requests(self) -> None:
        """Fail the requests that a lost connection may have left unanswered, if one was lost."""
        if self._answered_by < inf:
            self._answered_by = inf
            self._client.fail_unanswered(self.attachment)

    def _before_hello(self) -> Iterable[bytes]:
        self._fail_requests()
        return self._client.before_hello(self.attachment)

    def _report_end(self, state: State) -> None:
        if state is State.DRAINING:
            self._client.counters.report(logging.INFO, "the forwarder at %s is draining", self.address)
        else:
            self._client.counters.report(logging.WARNING, "the forwarder at %s is unreachable", self.address)

    def _subscriber_event(self, event: int) -> None:
        if event in REFUSALS:
            self._was_refused(REFUSALS[event])
        elif event in FAILURES:
            self._enter(Event.FAILED)
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.greet()
        else:
            self._lost()

    def _lost(self) -> None:
        """Note that the subscriber's connection was lost."""
        self.downlink.lost()
        self._give_up_push()
        self._enter(Event.LOST)
        self._call_soon(0.0)

    def greet(self) -> None:
        """Begin a new session, because a connection was made, or the exchange may have forgotten the last one."""
        self._enter(Event.CONNECTED)
        self._greeted_at = time.monotonic()
        self._give_up_push()
        self._subscriber.greet(self._before_hello)
        self._call_soon(0.0)

    def _push_event(self, event: int) -> None:
        if event in REFUSALS:
            self._was_refused(REFUSALS[event])
        elif event != zmq.Event.HANDSHAKE_SUCCEEDED:
            self._give_up_push()
            self._enter(Event.PUSH_LOST)
            self._verifying_since = time.monotonic()
            self._call_soon(self._uplink.opens_at)

    def _was_refused(self, reason: str) -> None:
        self.refusal = reason
        self._keys.refused()
        self._enter(Event.FAILED)

    def take_session(self, frame: SessionFrame) -> None:
        """Take a welcome, or the answer to an echo or a marker."""
        if isinstance(frame, wire.Welcome):
            self._welcomed(frame)
        elif self._echo is not None and frame.n == self._echo.number:
            self._echoed(frame)
        elif self.state is State.UP:
            if self._window.marker_due == NOW:
                self._send_marker()
            if not self.passes:
                self.flush()

    def _welcomed(self, welcome: wire.Welcome) -> None:
        if welcome.version != wire.VERSION:
            self._refuse_version(welcome.version)
            return
        former = self._subscriber.welcome
        if self._subscriber.take(welcome):
            self.other_version = None
            self.downlink.read_current()
            self._client.begin_session(self.attachment, self.session, welcome.instance)
            if self.state is State.UP:
                self._renewed(welcome)
            self._enter(Event.WELCOMED)
        if self._subscriber.welcome is not welcome:
            return  # of an earlier session
        self._owner.welcomed(self, welcome)
        if welcome.state == wire.State.DRAINING:
            self._drains()
        elif self.state is State.DRAINING:
            self.greet()  # it does not end after all
        elif former is None or former.state != welcome.state:
            self._verifying_since = time.monotonic()  # it could not answer an echo before
            self._call_soon(0.0)

    def _refuse_version(self, theirs: int) -> None:
        error = WireVersionMismatch(self.address, theirs, wire.VERSION)
        if self.other_version != theirs:
            self.other_version = theirs
            self._client.counters.report(logging.ERROR, "%s", error)
        self._client.fail_requests(error)

    def _drains(self) -> None:
        """Stop using a forwarder that is about to end, and hand its unread jobs back."""
        if not self._enter(Event.DRAINS):
            return
        self._client.stop_reading(self.attachment)
        self.attachment.credit.end_session()
        self._client.out.send_upstream([self._detach_frame()], self.attachment)
        if self._uplink.works:
            self._send_uncounted(self._detach_frame())
        else:
            self._call_soon(0.0)

    def _detach_frame(self) -> bytes:
        return wire.DETACH.encode(wire.Detach(self._client.inbox, self.session))

    def _send_echo(self) -> None:
        """Send an echo, or repeat it: its answer may be slower than the repetition."""
        now = time.monotonic()
        self._echo = _Echo(self._echo.number if self._echo is not None else next_number(), now)
        self._send_uncounted(wire.ECHO.encode(wire.Echo(self._client.inbox, self._echo.number)))
        self._call_soon(now + ECHO_EVERY)

    def _echoed(self, confirm: wire.Confirm) -> None:
        welcome = self._subscriber.welcome
        if welcome is None or confirm.instance != welcome.instance:
            return
        if not self._enter(Event.ECHOED):
            return
        self._fail_requests()
        self._echo = None
        self.refusal = ""
        self.instance = confirm.instance
        self.up_since = time.monotonic()
        if self._down_since is not None:
            away, self._down_since = time.monotonic() - self._down_since, None
            line = "the forwarder at %s is reachable after %.1f s"
            self._client.counters.report(logging.WARNING, line, self.address, away)
        self._owner.came_up(self)

    # Housekeeping

    def tick(self, now: float) -> float:
        """Do what is due: sockets, keys, hellos, echoes, markers and the outbox; return when to be called again."""
        self._subscriber.tick(now)
        self._fail_requests_once_read(now)
        if not self.is_connected:
            self._keep_connecting(now)
        if self.state is not State.DRAINING and self._keys.have_changed():
            self._take_up_keys()
        due = min(now + TICK_EVERY, self._subscriber.due, self._keep_push(now))
        if self.state is State.VERIFYING:
            self._keep_verifying(now)
        elif self.state is State.UP:
            due = min(due, self._watch_silence(now))
        if self._is_renewing or self._keys_are_due:
            self._keep_renewing(now)
        if self.state is State.UP:
            if now >= self._window.marker_due - EARLY:
                self._send_marker()
            self._window.forget(now)
            self._report_window(now)
            self.flush()
            due = min(due, max(self._window.marker_due, now + FULL_RETRY))
            if len(self._outbox) and not self._window.is_full:
                due = min(due, now + FULL_RETRY)
        self._ticked_at = now
        return due

    def _report_window(self, now: float) -> None:
        """Report to the forwarder how far it is behind, for its status page."""
        window = len(self._window), self._sent_again
        if window != self._reported_window and now >= self._reported_at + REPORT_EVERY and self.takes_batches:
            self._reported_window, self._reported_at = window, now
            self._send_uncounted(wire.WINDOW.encode(wire.Window(self._client.inbox, *window)))

    def _keep_connecting(self, now: float) -> None:
        """Stop waiting for a forwarder that does not answer; log once that it was never reached."""
        if self.state is State.CONNECTING:
            # It may be frozen: its system accepts connections, but the forwarder does not answer.
            until = self._started_at + (PATIENCE if self._owner.may_be_used(self) else CONNECTS_WITHIN)
            if now < until:
                self._call_soon(until)
            else:
                self._enter(Event.FAILED)
        if self._down_since is None and now > self._started_at + REPORTED_AFTER:
            self._down_since = self._started_at
            reason = f": {self.refusal}" if self.refusal else ""
            line = "the forwarder at %s cannot be reached%s; trying again"
            self._client.counters.report(logging.WARNING, line, self.address, reason)

    def look_around(self) -> None:
        """Read the keys again."""
        self._keys.look()

    def _take_up_keys(self) -> None:
        try:
            if self.state is State.UP and self._is_renewing:
                self._keys_are_due = True  # one after the other
            elif self.state is State.UP:
                self._begin_renewal()
            else:
                if self.is_connected:
                    self._lost()  # messages that are not read yet arrive again by the next connection
                self._subscriber.connect(self._keys.current)
        except ConfigurationError as error:
            self._client.counters.report(logging.ERROR, "%s", error)

    def _keep_push(self, now: float) -> float:
        """Open a PUSH if there is an instance to send to; return when to be called again."""
        uplink, welcome = self._uplink, self._subscriber.welcome
        due = uplink.keep(now)
        is_wanted = welcome is not None and welcome.state != wire.State.SETTLING
        if uplink.current is not None or not is_wanted or self.state not in (State.VERIFYING, State.DRAINING):
            return due
        if now < uplink.opens_at:
            return min(due, uplink.opens_at)
        if uplink.open(self._subscriber.keys, now):
            if self.state is State.DRAINING:
                self._send_uncounted(self._detach_frame())
            else:
                self._send_echo()
        return due

    def _give_up_push(self) -> None:
        """Let `tick` close PUSH. An answer to the echo that it has sent would prove nothing any more."""
        self._uplink.give_up()
        self._echo = None

    def _keep_verifying(self, now: float) -> None:
        welcome = self._subscriber.welcome
        serves = welcome is not None and welcome.state == wire.State.SERVING
        if serves and self._is_unanswered(now, self._verifying_since, now - self._verifying_since, PATIENCE):
            self._client.counters.report(logging.WARNING, "no echo from %s: reconnecting", self.forwarder.pull)
            self._verifying_since = now
            self._give_up_push()
            self._call_soon(0.0)
        elif self._echo is not None and self._uplink.works and now >= self._echo.sent_at + ECHO_EVERY:
            self._send_echo()

    def _watch_silence(self, now: float) -> float:
        """Give the link up if nothing is acknowledged any more, even if it is connected; return when to check again.

        Time in which this process itself was suspended does not count, and unread input prevents it.
        """
        since = self._window.unanswered_since
        if since == inf:
            return inf
        if since != self._silent_since:
            self._silent_since, self._silent_for = since, 0.0
        self._silent_for = min(now - since, self._silent_for + min(now - self._ticked_at, COUNTED_AT_MOST))
        patience = PATIENCE + longest_transfer(self._window.awaited)
        if self._is_unanswered(now, since, self._silent_for, patience):
            self._give_up_push()
            self._verifying_since = now
            self._enter(Event.SILENT)
            self._call_soon(0.0)
        left = patience - self._silent_for
        return now + (left if 0 < left < WATCH_EVERY else WATCH_EVERY)

    def _is_unanswered(self, now: float, since: float, silent_for: float, patience: float) -> bool:
        """Return whether frames that were sent by PUSH will not be answered any more.

        The answer may be late because a slow link carries many other frames. Halfway a probe requests one by the
        subscriber's way: as long as frames arrive ahead of that, the other answer may be among those behind them.

        Args:
            now: Monotonic seconds.
            since: When the silence began.
            silent_for: Seconds of it that count.
            patience: Seconds that are waited for.
        """
        if silent_for > patience / 2:
            self._subscriber.probe(now, since)
        return silent_for >= patience and not self.is_behind(now, since)

    # Other keys, without a gap

    @property
    def _is_renewing(self) -> bool:
        awaits_welcome = self.state is State.UP and self._subscriber.welcome is None  # of the next session
        return awaits_welcome or self.downlink.is_changing or self._push_is_due or self._uplink.is_changing

    def _begin_renewal(self) -> None:
        self.refusal = ""
        self._next_connected_at = inf
        self.downlink.begin_change(self._keys.current)

    def _next_subscriber_event(self, event: int) -> None:
        if event in REFUSALS:
            self._was_refused(REFUSALS[event])
            self._report_refusal()
        else:
            now = time.monotonic()
            self._next_connected_at = now if event == zmq.Event.HANDSHAKE_SUCCEEDED else inf
            self._change_subscriber(now)

    def _change_subscriber(self, now: float) -> None:
        """Begin the next session by the next subscriber, if that is connected.

        Jobs that were handed back in this session may be lost with its connection, so this waits for their proof, for a
        bounded time, since further ones may follow for ever.
        """
        if self.downlink.next is None or self.state is not State.UP or self._next_connected_at == inf:
            return
        if not self.attachment.credit.unproved or now >= self._next_connected_at + CHANGE_WITHIN:
            self._has_reported_refusal = False
            self.downlink.change(lambda: self._client.before_hello(self.attachment, loses_frames=False))

    def _report_refusal(self) -> None:
        """Log once that the new key does not work; it is tried again every second."""
        if not self._has_reported_refusal:
            self._has_reported_refusal = True
            line = "the forwarder at %s refuses the new key (%s): keeping the connection with the previous key"
            self._client.counters.report(logging.WARNING, line, self.address, self.refusal)

    def _renewed(self, welcome: wire.Welcome) -> None:
        """Let a new PUSH take over as well, since the next session has begun while the link is up."""
        if welcome.instance == self.instance:
            self._push_is_due = True
        else:  # another instance has taken its place meanwhile
            self._give_up_push()
            self._enter(Event.PUSH_LOST)
        self._call_soon(0.0)

    def _change_push(self, now: float) -> None:
        """Send by a new connection, beginning with the frames that the former one may fail to deliver."""
        if not self._uplink.open(self._subscriber.keys, now):
            return
        self._push_is_due = False
        for one in self.take():
            self.hold(one, now, must=True)
        self.flush()

    def _keep_renewing(self, now: float) -> None:
        """Continue a change of keys, as far as it is due; give it up if the link is not up any more."""
        if self.downlink.next is not None and (self.state is not State.UP or self.refusal):
            self.downlink.give_up_next()
            self._keys_are_due = self._keys_are_due or not self.refusal
        self._change_subscriber(now)
        is_safe = not self._window.jobs  # those are not sent again
        if self._push_is_due and is_safe and self.state is State.UP and now >= self._uplink.opens_at:
            self._change_push(now)
        if self.state is not State.UP:
            self._push_is_due = False
        self.downlink.keep(now)
        if self._keys_are_due and not self._is_renewing and self.state is not State.DRAINING:
            self._keys_are_due = False
            self._take_up_keys()
