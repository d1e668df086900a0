"""Writes the log lines of the library on a separate thread.

A log handler is code of the application: it may be slow, hold locks, or send its record through the layer. So it must
not run under a connection's lock, on an event loop, or on the housekeeper's thread. The thread starts with a line and
ends when all lines are written.
"""

import logging
import threading
import traceback
from collections import deque
from collections.abc import Iterable

from channels_zmq.client.counters import Report

logger = logging.getLogger("channels_zmq")

FLUSH_TIMEOUT = 1.0
"""Seconds that the interpreter's exit waits for lines."""


class Reporter:
    """Writes log lines in order."""

    def __init__(self) -> None:
        self._lines: deque[Report] = deque()
        self._lock = threading.Lock()  # nothing else is called under it
        self._thread: threading.Thread | None = None

    def write(self, lines: Iterable[Report]) -> None:
        """Write lines soon. Never waits for a handler."""
        with self._lock:
            self._lines.extend(lines)
            if self._thread is not None or not self._lines:
                return
            self._thread = thread = threading.Thread(target=self._run, name="channels-zmq log", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down and starts no thread any more
            self._run()

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> None:
        """Wait until all lines are written, at most `timeout` seconds."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._lines:
                    self._thread = None
                    return
                line = self._lines.popleft()
            try:
                logger.log(line.level, line.message, *line.arguments)
            except Exception:  # of a filter or handler of the application: the next lines are written all the same
                if logging.raiseExceptions:
                    traceback.print_exc()


_reporter = Reporter()


def write(lines: Iterable[Report]) -> None:
    """Write log lines soon, on another thread."""
    _reporter.write(lines)


def log(level: int, message: str, *arguments: object) -> None:
    """Write one line soon, on another thread."""
    _reporter.write([Report(level, message, arguments)])


def flush(timeout: float = FLUSH_TIMEOUT) -> None:
    """Wait until what was reported is written, at most `timeout` seconds."""
    _reporter.flush(timeout)


def renew() -> None:
    """Start with a new reporter: after a fork its thread does not run, and the former lock may be held."""
    global _reporter
    _reporter = Reporter()
