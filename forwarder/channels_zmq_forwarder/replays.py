"""Replays messages to the clients that have missed them, and to no others: through their inboxes.

Pure. A client that has connected, for the first time or again, requests a replay by `Resume`. A replay iterates over
the history once for all clients that have asked before it, in short steps beside the traffic. Receivers recognise
repeated messages by their numbers, and put the others into their places.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from channels_zmq_forwarder import wire
from channels_zmq_forwarder.history import Block, History

CLIENTS = 64
"""Clients that one replay serves."""
ANSWERED_WITHIN = 3.0
"""Seconds for which a replay serves a client; the client waits as long for the first part."""
FRAME_BYTES = 4096
"""Bytes of messages in one frame, unless a single one is larger: every socket accepts that many."""
FRAMES = 4000
"""Frames for one client in one replay: XPUB's high-water mark guarantees no more in a burst."""
STEP_BYTES = 256 * 1024
STEP_SECONDS = 0.002
"""A step ends at either bound."""


@dataclass(slots=True, eq=False)
class _Recipient:
    """A client that has requested the messages that were published since a time."""

    request: wire.Resume
    since: float
    until: float
    """When its replay ends, even if messages are left."""
    allowance: float = 0.0
    """Bytes that it may still get."""
    frames: int = 0
    messages: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, message: bytes) -> list[bytes]:
        """Add a message; return the frame of those before it if it does not fit beside them."""
        full = [self.frame()] if self.messages and self.size + len(message) > FRAME_BYTES else []
        self.messages.append(message)
        self.size += len(message)
        self.allowance -= len(message)
        return full

    def forget(self) -> None:
        """Drop the messages added since the last frame."""
        self.messages, self.size = [], 0

    def frame(self, *, is_last: bool = False) -> bytes:
        """Return a frame of the messages added since the last one."""
        messages = wire.encode_messages(self.messages)
        self.forget()
        self.frames += 1
        return wire.REPLAYED.encode(wire.Replayed(self.request.inbox, self.request.session, is_last, messages))


class Replays:
    """The clients that have asked, and the replay that is under way.

    Args:
        history: The messages to replay. Replays may have twice its bytes a second, one client half of the rest.
        clock: Monotonic seconds.
    """

    def __init__(self, history: History, clock: Callable[[], float] = time.monotonic) -> None:
        self.messages = 0
        """How many messages were replayed, for each client that got them."""
        self._history, self._clock = history, clock
        self._asked: dict[bytes, _Recipient] = {}
        self._served: dict[_Recipient, None] = {}
        self._answers: Iterator[list[bytes]] | None = None
        self._bytes_a_second = 2.0 * history.max_bytes
        self._allowance, self._allowed_at = self._bytes_a_second, clock()

    @property
    def is_due(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._asked) or self._answers is not None

    def ask(self, resume: wire.Resume) -> None:
        """Let the next replay serve a client.

        Raises:
            FrameError: If its topics are malformed.
        """
        # To refuse it now. The set itself is made when the replay begins: it takes 16 times as much memory.
        wire.decode_hashes(resume.topics)
        now = self._clock()
        self._asked[resume.inbox] = _Recipient(resume, now - resume.age / 1000, now + ANSWERED_WITHIN)

    def clear(self) -> None:
        """Replay nothing that was published so far, nor the rest of the replay under way."""
        self._history.clear()
        for recipient in self._served:
            recipient.forget()
        self._asked = {recipient.request.inbox: recipient for recipient in self._served} | self._asked
        self._served, self._answers = {}, None

    def step(self) -> list[bytes]:
        """Continue the replay for a bounded time; return the frames to publish."""
        now = self._clock()
        self._allowance += (now - self._allowed_at) * self._bytes_a_second
        self._allowance, self._allowed_at = min(self._bytes_a_second, self._allowance), now
        until, least = now + STEP_SECONDS, self._allowance - STEP_BYTES
        if self._answers is None:
            self._served = {self._asked.pop(inbox): None for inbox in list(islice(self._asked, CLIENTS))}
            out, self._answers = [], self._replay()
        else:
            out = self._end_late()
        for frames in self._answers:
            out += frames
            if self._allowance < least or self._clock() > until:
                break
        else:
            self._answers = None
        # The added messages leave now, since their ages are those of this moment.
        return [*out, *(recipient.frame() for recipient in self._served if recipient.messages)]

    def _replay(self) -> Iterator[list[bytes]]:
        """Iterate over the history, in parts between which a step may end. `_served` has the clients not yet done."""
        recipients = _Recipients(list(self._served))
        for recipient in self._served:
            recipient.allowance = self._allowance / 2
        for block in self._history.since(min(recipient.since for recipient in self._served)):
            for frame in block.frames:
                for recipient in recipients.of(frame):
                    yield self._replay_to(recipient, frame, block)
            yield []
            if not self._served:
                return
        for recipient in list(self._served):
            yield [self._end(recipient)]

    def _replay_to(self, recipient: _Recipient, frame: bytes, block: Block) -> list[bytes]:
        if recipient not in self._served or recipient.since > block.until:
            return []
        # Rounded to the younger side: a member that has joined in between must not miss it.
        message = wire.for_replay(frame, int((self._clock() - block.until) * 1000))
        if message is None:
            return []
        if len(message) > min(recipient.allowance, self._allowance) or recipient.frames >= FRAMES:
            return [self._end(recipient)]
        self._allowance -= len(message)
        self.messages += 1
        return recipient.add(message)

    def _end(self, recipient: _Recipient) -> bytes:
        del self._served[recipient]
        return recipient.frame(is_last=True)

    def _end_late(self) -> list[bytes]:
        now = self._clock()
        return [self._end(recipient) for recipient in list(self._served) if now > recipient.until]


class _Recipients:
    """Finds the clients to which a message is replayed.

    Args:
        recipients: The clients that are served.
    """

    def __init__(self, recipients: Collection[_Recipient]) -> None:
        self._by_inbox = {recipient.request.inbox: (recipient,) for recipient in recipients}
        self._by_hash: defaultdict[int, list[_Recipient]] = defaultdict(list)
        self._every = [recipient for recipient in recipients if recipient.request.every]
        for recipient in recipients:
            if not recipient.request.every:
                for topic_hash in wire.decode_hashes(recipient.request.topics):
                    self._by_hash[topic_hash].append(recipient)

    def of(self, frame: bytes) -> Sequence[_Recipient]:
        """Return the clients that belong to its group, as far as the hash shows, or the one whose inbox it is for."""
        if not wire.is_group(frame):
            return self._by_inbox.get(wire.inbox_in(frame), ())
        named = self._by_hash.get(wire.topic_hash(wire.prefix_of(frame)), ())
        return [*named, *self._every] if self._every else named
