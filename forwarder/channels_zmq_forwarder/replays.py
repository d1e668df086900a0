"""Publishes once more what clients have missed whose connection was cut: for them alone, through their inboxes.

Pure. A client that has connected again asks by `Resume`. Whoever asks while a replay is under way is served by the next
one, which goes through the history once for all of them. A replay is made in short steps, beside the traffic. Receivers
recognise by their numbers what they have already, and put the rest into its place.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.history import Block, History

FRAME_BYTES = 4096
"""Bytes of messages in one frame, unless a single one is larger: every socket takes so many, whatever its limit is."""
STEP_BYTES = 256 * 1024
STEP_SECONDS = 0.002
"""A step ends at either bound."""
BYTES_A_SECOND = 32 * 2**20
"""Bytes of all replays together; a client gets half of what is left. What would be more is not published once more."""


@dataclass(slots=True, eq=False)
class _Reader:
    """A client that has asked: for what was published since a time, on topics with these hashes, or on all."""

    inbox: bytes
    session: int
    since: float
    hashes: frozenset[int] | None
    allowance: float = 0.0
    """Bytes that it may still get."""
    messages: list[bytes] = field(default_factory=list)
    size: int = 0

    def wants(self, topic: bytes) -> bool:
        """Return whether it belongs to a group, as far as the hash tells."""
        return self.hashes is None or wire.topic_hash(topic) in self.hashes

    def add(self, message: bytes) -> list[bytes]:
        """Add a message; return the frame that it does not fit into any more, if so."""
        full = [self.frame()] if self.messages and self.size + len(message) > FRAME_BYTES else []
        self.messages.append(message)
        self.size += len(message)
        return full

    def forget(self) -> None:
        """Drop the messages added since the last frame."""
        self.messages, self.size = [], 0

    def frame(self, *, is_last: bool = False) -> bytes:
        """Return a frame of the messages added since the last one."""
        messages = wire.encode_messages(self.messages)
        self.forget()
        return wire.REPLAYED.encode(wire.Replayed(self.inbox, self.session, is_last, messages))


class Replays:
    """The clients that have asked, and the replay that is under way.

    Args:
        history: What can be published once more.
        clock: Monotonic seconds.
    """

    def __init__(self, history: History, clock: Callable[[], float] = time.monotonic) -> None:
        self.messages = 0
        """How many messages were published once more, for each client that got them."""
        self._history, self._clock = history, clock
        self._asked: dict[bytes, _Reader] = {}
        self._served: list[_Reader] = []
        self._steps: Iterator[list[bytes]] | None = None
        self._allowance, self._allowed_at = float(BYTES_A_SECOND), clock()

    @property
    def is_due(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._asked) or self._steps is not None

    def ask(self, resume: wire.Resume) -> None:
        """Let the next replay serve a client.

        Raises:
            FrameError: If its topics are malformed.
        """
        hashes = None if resume.every else wire.decode_hashes(resume.topics)
        since = self._clock() - resume.age / 1000
        self._asked[resume.inbox] = _Reader(resume.inbox, resume.session, since, hashes)

    def clear(self) -> None:
        """Let nothing that was published so far be published again, nor the rest of the replay under way."""
        self._history.clear()
        for reader in self._served:
            reader.forget()
        self._asked = {reader.inbox: reader for reader in self._served} | self._asked
        self._served, self._steps = [], None

    def step(self) -> list[bytes]:
        """Go on for a bounded time; return the frames to publish."""
        now = self._clock()
        self._allowance = min(BYTES_A_SECOND, self._allowance + (now - self._allowed_at) * BYTES_A_SECOND)
        self._allowed_at = now
        if self._steps is None:
            self._served, self._asked = list(self._asked.values()), {}
            self._steps = self._replay(self._served)
        out = next(self._steps, None)
        if out is None:
            self._served, self._steps = [], None
            return []
        return out

    def _replay(self, readers: Sequence[_Reader]) -> Iterator[list[bytes]]:
        by_inbox = {reader.inbox: [reader] for reader in readers}
        by_topic: dict[bytes, list[_Reader]] = {}
        out: list[bytes] = []
        until, allowance = self._clock() + STEP_SECONDS, self._allowance
        for reader in readers:
            reader.allowance = allowance / 2
        for block in self._history.since(min(reader.since for reader in readers)):
            for frame in block.frames:
                if not wire.is_group(frame):
                    wanted_by = by_inbox.get(wire.inbox_in(frame))
                else:
                    topic = wire.prefix_of(frame)
                    wanted_by = by_topic.get(topic)
                    if wanted_by is None:
                        wanted_by = by_topic[topic] = [reader for reader in readers if reader.wants(topic)]
                if wanted_by:
                    out += self._again(frame, block, wanted_by)
                if allowance - self._allowance > STEP_BYTES or self._clock() > until:
                    yield out
                    out, until, allowance = [], self._clock() + STEP_SECONDS, self._allowance
        yield [*out, *(reader.frame(is_last=True) for reader in readers)]

    def _again(self, frame: bytes, block: Block, readers: list[_Reader]) -> list[bytes]:
        # Rounded to the younger side: a member that has joined in between must not miss it.
        message = wire.published_again(frame, int((self._clock() - block.until) * 1000))
        if message is None:
            return []
        out = []
        for reader in readers:
            if reader.since <= block.until and min(reader.allowance, self._allowance) >= len(message):
                reader.allowance -= len(message)
                self._allowance -= len(message)
                self.messages += 1
                out += reader.add(message)
        return out
