"""One exchange as the client sees it: its session, its credit, its send window, and what it has not delivered.

Pure. A client is attached to several equal exchanges: it subscribes at all of them and reads from all. This is the
state that it keeps for each.
"""

import time
from collections.abc import Callable

from channels_zmq.client.credit import Credit
from channels_zmq.client.resumption import Resumption
from channels_zmq.client.window import Window
from channels_zmq_forwarder import wire


class Attachment:
    """The state that a client keeps for one exchange.

    Args:
        inbox: Of this process.
        prefetch: Jobs that the exchange may hand over ahead of readers, for each channel.
        drop: Counts dropped jobs by cause.
        window: Frames that may be unacknowledged.
        window_bytes: Bytes that they may have together.
        longest: Seconds that the largest frame takes on the slowest link.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        inbox: bytes,
        prefetch: int,
        drop: Callable[[str, int], None],
        window: int = 4096,
        window_bytes: int = 64 * 2**20,
        longest: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.credit = Credit(inbox, prefetch, drop, clock)
        self.window = Window(window, window_bytes, clock)
        self.resumption = Resumption(inbox, longest, clock)
        self.longest = longest
        """Seconds that the largest frame takes on the slowest link."""
        self.is_reachable = True
        """Whether requests to all exchanges wait for the answer of this one."""
        self.notes_sent = 0
        """The number of the last note of normal members that was sent before its last hello."""
        self.synced = 0
        """The highest number of a sync that it has answered: everything that it sent before has been read."""
        self.emptied_by = -1
        """The number of its last request to drop everything: each may arrive by two connections, or again."""
        self.batching_session = -1
        """The last session in which it has accepted batches."""
        self._instance = b""
        self.clients = 0
        """How many clients it had, by its last report while it did not settle."""
        self.taken_over = 0
        """How many messages of normal channels this exchange has returned in this session, because it is to end."""

    @property
    def is_new(self) -> bool:
        """Whether no session has begun so far."""
        return not self._instance

    def welcomed(self, welcome: wire.Welcome) -> None:
        """Note how many clients the exchange has. While it settles, most of them have not reconnected yet."""
        if welcome.state != wire.State.SETTLING:
            self.clients = welcome.clients

    def begin_session(self, session: int, instance: bytes) -> list[bytes]:
        """Begin a session with an instance of the exchange; return the frames that open the windows."""
        is_same, self._instance = instance == self._instance, instance
        self.taken_over = 0
        return self.credit.begin_session(session, is_same=is_same)

    def take_over(self, ordinal: int) -> int:
        """Note a returned message; return how many before it were lost, -1 if it was taken over before."""
        lost = ordinal - self.taken_over - 1
        self.taken_over = max(ordinal, self.taken_over)
        return max(lost, -1)
