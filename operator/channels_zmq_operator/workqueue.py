"""The work queue: it orders layers by due time, gives each to one worker at a time, and backs off after failures."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from channels_zmq_operator.cluster import ClusterError
from channels_zmq_operator.models import Key

logger = logging.getLogger("channels_zmq_operator")


class WorkQueue:
    """The layers to reconcile: each by one worker at a time, and again with exponential backoff after a failure.

    Args:
        work: Reconciles a layer; returns the seconds until it is due again, or infinity.
        clock: Monotonic seconds.
    """

    FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0

    def __init__(self, work: Callable[[Key], Awaitable[float]], clock: Callable[[], float] = time.monotonic) -> None:
        self._work = work
        self._clock = clock
        self._due: dict[Key, float] = {}
        self._running: dict[Key, float] = {}
        """The layers that workers are reconciling, with the time at which each began."""
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()
        self.done = self.failed = 0
        self.last_done = clock()

    def __len__(self) -> int:
        return len(self._due) + len(self._running)

    def stuck_for(self) -> float:
        """Return for how many seconds a layer has been due or running without the end of any reconciliation."""
        now = self._clock()
        since = min((*self._running.values(), *self._due.values()), default=now)
        return max(0.0, now - max(since, self.last_done))

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Enqueue a layer with a delay, unless it is due earlier already."""
        due = self._clock() + delay
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._changed.set()

    async def run(self, workers: int) -> None:
        """Reconcile layers with this many workers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._next()
            self._running[key] = self._clock()
            try:
                again = await self._work(key)
                self.done += 1
                self._failures.pop(key, None)
            except ClusterError as error:
                again = self._after_failure(key, error)
            except Exception as error:
                logger.exception("%s/%s: unexpected error", *key)
                again = self._after_failure(key, error)
            finally:
                del self._running[key]
                self.last_done = self._clock()
                self._changed.set()
            if again != float("inf"):
                self.add(key, again)

    def _after_failure(self, key: Key, error: Exception) -> float:
        self.failed += 1
        count = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(self.LONGEST_DELAY, self.FIRST_DELAY * 2.0 ** (count - 1))
        logger.warning("%s/%s: retrying in %.1f s after: %s", *key, delay, error)
        return delay

    async def _next(self) -> Key:
        """Wait for a layer that is due and that no worker is reconciling, and remove it from the queue."""
        while True:
            self._changed.clear()
            now = self._clock()
            # A layer that becomes due while a worker reconciles it waits for that worker, which sets `_changed` then.
            waiting = {key: due for key, due in self._due.items() if key not in self._running}
            for key, due in waiting.items():
                if due <= now:
                    del self._due[key]
                    return key
            pause = min(waiting.values(), default=now + 3600.0) - now
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass
