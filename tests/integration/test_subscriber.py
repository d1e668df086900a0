"""The socket that receives, with an exchange that a test plays by hand."""

import zmq

from channels_zmq.connection import Options
from channels_zmq.subscriber import Socket, Subscriber
from channels_zmq_forwarder import wire

INBOX = b"0123456789abcdef"
ADDRESS = "inproc://exchange"


class Owner:
    """A connection that keeps what it is fed; nobody watches the descriptor for it."""

    inbox = INBOX
    session = 0

    def __init__(self) -> None:
        self.fed: list[bytes] = []
        self.subscriber: Subscriber | None = None

    def feed(self, frame: bytes) -> None:
        self.fed.append(frame)

    def drain(self) -> None:
        assert self.subscriber is not None
        self.subscriber.read()

    def call_soon(self, when: float) -> None:
        """No tick comes in this test."""

    def subscriber_went_down(self) -> None:
        """It does not."""

    def was_refused(self, reason: str) -> None:
        """Nobody refuses it."""

    def other_version(self, theirs: int) -> None:
        """There is none."""


def test_an_answer_that_is_there_before_the_hello_has_been_sent_is_read_at_once() -> None:
    """Sending tells the descriptor's reader nothing: without a look afterwards the frame would wait for a second."""
    context: zmq.Context[Socket] = zmq.Context()
    publisher = context.socket(zmq.XPUB)
    publisher.bind(ADDRESS)
    owner = Owner()
    options = Options(
        connect_timeout=5.0,
        expiry=60.0,
        linger=0.0,
        max_message_size=2**20,
        outbox_capacity=0,
        outbox_bytes=0,
        prefetch=0,
    )
    owner.subscriber = Subscriber(context, ADDRESS, options, owner, None)
    try:
        topic = wire.inbox_topic(INBOX)
        owner.subscriber.send(b"\1" + topic)
        assert publisher.recv() == b"\1" + topic
        publisher.send(topic + b"early")
        owner.subscriber.event(zmq.Event.HANDSHAKE_SUCCEEDED)
        assert owner.fed == [topic + b"early"]
    finally:
        owner.subscriber.close()
        context.destroy(linger=0)
