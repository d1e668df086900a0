"""Normal channels with clients that connect, read, hand back, reconnect and die, over pipes that are cut.

A seeded random run drives an exchange and its clients frame by frame. Each frame may be delivered late, and a cut
connection loses the frames that were in flight in it. The clients follow docs/wire-protocol.md; the run checks the
promises of that page.
"""

import random
from collections import deque
from collections.abc import Iterable

import pytest
from fakes import Clock

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.wire import Question, State, Status

CHANNELS = (b"one", b"two", b"three")
CAPACITY = 5
STEPS = 4_000


class Window:
    """The state of one channel that a client knows."""

    def __init__(self) -> None:
        self.received = self.settled = self.limit = 0
        self.most = 0
        self.box: deque[tuple[wire.Job, bool]] = deque()  # (job, whether it counts for this session)

    def open(self, room: int) -> None:
        self.limit = self.received + room
        self.most = max(self.most, self.limit)

    def take(self) -> wire.Job:
        job, counts = self.box.popleft()
        self.settled += counts
        return job


class Client:
    """A process: an inbox, a pipe up and one down, and its windows."""

    def __init__(self, inbox: bytes) -> None:
        self.inbox, self.session = inbox, 0
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.late: deque[bytes] = deque()  # up frames of an earlier connection that the exchange has not read yet
        self.windows = {channel: Window() for channel in CHANNELS}
        self.reports: list[wire.Received] = []  # of earlier sessions, until a later one is welcomed
        self.welcomed = False

    def connect(self) -> None:
        for channel, window in self.windows.items():
            if self.session and self.welcomed:
                self.reports.append(wire.Received(self.inbox, self.session, window.received, channel))
            window.received = window.settled = window.limit = window.most = 0
            window.box = deque((job, False) for job, _ in window.box)
        self.session += 1
        self.welcomed = False
        self.up.append(wire.subscription(wire.inbox_topic(self.inbox)))
        self.up.extend(wire.RECEIVED.encode(report) for report in self.reports)
        self.up.append(wire.HELLO.encode(wire.Hello(self.inbox, wire.VERSION, self.session, 0)))

    def ready(self, channel: bytes, answers: int = 0, ask: Question = Question.NOTHING) -> None:
        window = self.windows[channel]
        ready = wire.Ready(self.inbox, self.session, window.limit, window.settled, answers, ask, channel)
        self.up.append(wire.READY.encode(ready))


class Run:
    """One random run.

    Args:
        seed: The seed of the random choices.
        deaths: Whether processes die for good, and connections are away for long.
    """

    def __init__(self, seed: int, *, deaths: bool) -> None:
        self.random = random.Random(seed)
        self.deaths = deaths
        self.clock = Clock()
        self.exchange = Exchange(b"instance", clock=self.clock)
        self.exchange.enter(State.SERVING)
        self.clients: dict[bytes, Client] = {}
        self.created = self.sent = 0
        for _ in range(3):
            self.create()
        self.open: dict[int, float] = {}  # sends without an answer: n -> its deadline
        self.accepted: set[int] = set()
        self.read: set[int] = set()
        self.lost: set[int] = set()
        self.statuses: set[Status] = set()

    def create(self) -> None:
        self.created += 1
        client = Client(b"%016x" % self.created)
        self.clients[client.inbox] = client
        client.connect()

    # Frames

    def publish(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            client = self.clients.get(wire.inbox_in(frame))
            if wire.sub_kind(frame) == wire.CONFIRM.kind:
                self.confirmed(wire.CONFIRM.decode(frame))
            elif client is not None and wire.inbox_topic(client.inbox) in self.exchange.topics:
                client.down.append(frame)

    def confirmed(self, confirm: wire.Confirm) -> None:
        assert self.clock.now <= self.open.pop(confirm.n)
        self.statuses.add(Status(confirm.status))
        if confirm.status == Status.OK:
            self.accepted.add(confirm.n)

    def from_client(self, frame: bytes) -> None:
        before = self.used()
        self.publish(self.exchange.upstream(frame))
        if frame[:1] not in (b"B", b"D"):  # these put jobs back, even beyond the capacity
            self.check_capacity(before)

    def used(self) -> dict[bytes, int]:
        return {channel: queue.used for channel, queue in self.exchange.queues.by_channel.items()}

    def check_capacity(self, before: dict[bytes, int]) -> None:
        for channel, used in self.used().items():
            assert used <= max(CAPACITY, before.get(channel, 0)), "accepted beyond the capacity"

    def to_client(self, client: Client, frame: bytes) -> None:
        kind = wire.sub_kind(frame)
        if kind == wire.WELCOME.kind:
            if wire.WELCOME.decode(frame).session == client.session:
                client.welcomed, client.reports = True, []
        elif kind == wire.JOB.kind:
            job = wire.JOB.decode(frame)
            if job.session == client.session:
                window = client.windows[job.channel]
                window.received += 1
                assert window.received <= window.most, "handed over beyond the window"
                window.box.append((job, True))
        elif kind == wire.QUERY.kind:
            query = wire.QUERY.decode(frame)
            if query.session == client.session:
                client.ready(query.channel, answers=query.n)
        else:
            handed = wire.HANDED.decode(frame)
            if handed.session == client.session:
                assert handed.handed == client.windows[handed.channel].received, "a pipe that lives loses nothing"

    # Steps

    def step(self) -> None:
        steps = {
            self.send: 20, self.up: 40, self.down: 40, self.take: 25, self.room: 20, self.back: 3, self.cut: 1.5,
            self.late: 5, self.time: 5, self.die: 0.3 if self.deaths else 0,
        }  # fmt: skip
        self.random.choices(list(steps), list(steps.values()))[0](self.random.choice(list(self.clients.values())))
        queues = self.exchange.queues
        for channel, queue in queues.by_channel.items():
            assert not (queue.open_windows and queue.waiting), "a message strands beside a reader"
            assert queue.round is None or (queue.round.pending and queue.round.asked)
            assert self.unsettled(channel) <= queue.unsettled, "a job is forgotten that a client has not settled"
        assert queues.size == sum(queue.size for queue in queues.by_channel.values())
        assert queues.unsettled == sum(queue.unsettled for queue in queues.by_channel.values())
        assert queues.depth() == sum(len(queue.waiting) for queue in queues.by_channel.values())

    def unsettled(self, channel: bytes) -> int:
        """Return how many jobs of their sessions clients hold or have in flight to them."""
        under_way = [
            (client, wire.JOB.decode(frame))
            for client in self.clients.values()
            for frame in client.down
            if wire.sub_kind(frame) == wire.JOB.kind
        ]
        return sum(counts for client in self.clients.values() for _, counts in client.windows[channel].box) + sum(
            job.channel == channel and job.session == client.session for client, job in under_way
        )

    def send(self, client: Client) -> None:
        self.sent += 1
        self.open[self.sent] = self.clock.now + 1.0
        channel, payload, before = self.random.choice(CHANNELS), self.sent.to_bytes(4), self.used()
        request = wire.Enqueue(client.inbox, self.sent, 3_600_000, CAPACITY, channel, payload)
        self.publish(self.exchange.inbound(wire.ENQUEUE.encode(request)))
        self.check_capacity(before)

    def up(self, client: Client) -> None:
        if client.up:
            self.from_client(client.up.popleft())

    def down(self, client: Client) -> None:
        if client.down:
            self.to_client(client, client.down.popleft())

    def late(self, client: Client) -> None:
        if client.late:
            self.from_client(client.late.popleft())

    def room(self, client: Client) -> None:
        if client.welcomed:
            channel = self.random.choice(CHANNELS)
            client.windows[channel].open(self.random.randrange(4))
            client.ready(channel, ask=self.random.choice((Question.NOTHING, Question.HANDED)))

    def take(self, client: Client) -> None:
        """Let a reader take a job; the next report informs the exchange."""
        for window in client.windows.values():
            if window.box:
                number = int.from_bytes(window.take().payload)
                assert number not in self.read, "read twice"
                assert number not in self.lost
                self.read.add(number)

    def back(self, client: Client) -> None:
        """Hand the whole buffer of a channel back, before the report that counts it as settled."""
        channel = self.random.choice(CHANNELS)
        window = client.windows[channel]
        if client.welcomed:
            while window.box:
                job = window.take()
                client.up.append(wire.BACK.encode(wire.Back(client.inbox, job.number, job.ttl, channel, job.payload)))
            client.ready(channel)

    def lose(self, frames: list[bytes]) -> None:
        """Record the jobs that are being handed back as lost, since it is unknown whether they arrived."""
        self.lost |= {int.from_bytes(wire.BACK.decode(frame).payload) for frame in frames if frame[:1] == b"B"}

    def cut(self, client: Client) -> None:
        """Cut a connection; the exchange notices that before the client reconnects, or not at all."""
        topic = wire.inbox_topic(client.inbox)
        if self.random.random() < 0.5 and topic in self.exchange.topics:
            self.lose([*client.late, *client.up])
            client.late.clear()
            self.from_client(wire.unsubscription(topic))
        else:
            # The exchange reads the frames that it had received beside those of the next connection.
            kept = self.random.randrange(3)
            client.late.extend(list(client.up)[:kept])
            self.lose(list(client.up)[kept:])
        client.up.clear()
        client.down.clear()
        client.connect()

    def die(self, client: Client) -> None:
        """End a process for good; another one takes its place."""
        del self.clients[client.inbox]
        self.lose([*client.late, *client.up])
        self.lost |= {int.from_bytes(job.payload) for window in client.windows.values() for job, _ in window.box}
        self.from_client(wire.unsubscription(wire.inbox_topic(client.inbox)))
        self.create()

    def time(self, client: Client | None = None) -> None:
        end = self.clock.now + (self.random.choice((0.01, 0.1, 0.5)) if self.deaths else 0.01)
        while self.exchange.due() <= end:
            self.clock.now = max(self.clock.now, self.exchange.due())
            before = self.used()
            self.publish(self.exchange.sweep())
            self.check_capacity(before)
        self.clock.now = end

    def finish(self) -> None:
        """Let everything arrive, and read until nothing is left."""
        for _ in range(100):
            for client in self.clients.values():
                while client.late or client.up or client.down:
                    self.late(client)
                    self.up(client)
                    self.down(client)
                while any(window.box for window in client.windows.values()):
                    self.take(client)
                for channel, window in client.windows.items():
                    window.open(4)
                    client.ready(channel, ask=Question.HANDED)
            self.time()


@pytest.mark.parametrize("seed", range(10))
def test_without_deaths_every_job_is_read_exactly_once(seed: int) -> None:
    """Without deaths every job is read exactly once, and every send is answered.

    Cut connections lose nothing but jobs that were being handed back.
    """
    run = Run(seed, deaths=False)
    for _ in range(STEPS):
        run.step()
    run.finish()
    assert run.open == {}
    assert run.statuses == {Status.OK, Status.FULL}
    assert run.accepted == run.read | (run.lost - run.read)
    assert run.exchange.drops.keys() == {"queue_full"} | ({"stray"} & run.exchange.drops.keys())
    assert run.used() == dict.fromkeys(run.used(), 0)


@pytest.mark.parametrize("seed", range(10, 20))
def test_jobs_that_die_with_a_process_are_counted(seed: int) -> None:
    """Jobs that are neither read nor lost on their way back are among the lost deliveries."""
    run = Run(seed, deaths=True)
    for _ in range(STEPS):
        run.step()
    run.finish()
    assert run.open == {}
    missing = run.accepted - run.read - run.lost
    assert len(missing) <= run.exchange.drops["lost_delivery"]
    assert run.used() == dict.fromkeys(run.used(), 0)
