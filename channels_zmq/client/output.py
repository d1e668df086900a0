"""The actions that result from the steps of a client: frames to send, readers to wake, changes of the link.

Pure: the connection that owns the client executes them, most under its lock, the rest once the lock is released.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from channels_zmq.client.attachment import Attachment
from channels_zmq_forwarder import wire

SessionFrame = wire.Welcome | wire.Confirm


class LinkLost(NamedTuple):
    """No exchange can be reached any more; consumers are notified if `on_disconnect` is configured."""


class LinkRestored(NamedTuple):
    """An exchange can be reached again; `missed` messages were lost. It is None if no loss is known."""

    missed: int | None


LinkChange = LinkLost | LinkRestored


class Upstream(NamedTuple):
    """A frame for the subscribers' way of one exchange, or of all."""

    frame: bytes
    to: Attachment | None = None


class Reply(NamedTuple):
    """A frame for the producers' way that is not answered.

    Attributes:
        frame: What is sent.
        key: Chooses the exchange, unless `to` does.
        to: The exchange; None to choose it by `key`.
        ttl: Seconds that it may wait for a connection; None for `connect_timeout`.
    """

    frame: bytes
    key: bytes = b""
    to: Attachment | None = None
    ttl: float | None = None


@dataclass(slots=True)
class Output:
    """The actions that result from the steps of a client since the last `take`.

    Attributes:
        upstream: Frames for the subscribers' way, in order.
        replies: Frames for the producers' way that are not answered.
        session: Frames about the session with an exchange, for the transport, and the exchange.
        emptied: Whether the transport must drop the messages that it holds, before anything else.
        changes: Of the link to the exchange, to announce to consumers once the lock is released.
        wake: Readers and callers to wake once the lock is released.
        has_input: Whether an operation on a socket has found input, which its descriptor may not signal.
        busy: Whether anything is to be done under the lock.
    """

    upstream: list[Upstream] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    session: list[tuple[Attachment, SessionFrame]] = field(default_factory=list)
    emptied: bool = False
    changes: list[LinkChange] = field(default_factory=list)
    wake: list[Any] = field(default_factory=list)
    has_input: bool = False
    busy: bool = False

    def input_found(self) -> None:
        """Let the end of this step read input that an operation on a socket has found."""
        self.has_input = self.busy = True

    def send_upstream(self, frames: Iterable[bytes], to: Attachment | None = None) -> None:
        """Add frames for the subscribers' way of one exchange, or of all.

        That way is for small frames, so a large job is returned by the producers' way.
        """
        for frame in frames:
            if len(frame) <= wire.MAX_UPSTREAM:
                self.upstream.append(Upstream(frame, to))
            else:
                back = wire.BACK.decode(frame)
                self.reply(Reply(frame, back.channel, ttl=back.ttl / 1000))
        if self.upstream:
            self.busy = True

    def reply(self, reply: Reply) -> None:
        """Add a frame for the producers' way."""
        self.replies.append(reply)
        self.busy = True

    def change(self, change: LinkChange) -> None:
        """Add a change of the link."""
        self.changes.append(change)
        self.busy = True

    def take(self) -> "Output":
        """Remove and return the actions that are to be done under the lock."""
        taken = Output(self.upstream, self.replies, self.session, self.emptied)
        self.upstream, self.replies, self.session, self.emptied = [], [], [], False
        self.busy = self.has_input = False
        return taken
