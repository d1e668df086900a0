"""Tasks that run as long as the web process does: the server starts and ends them by the ASGI lifespan protocol."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class Lifespan:
    """An ASGI application for the scope "lifespan".

    Args:
        background: Each one is called once at the start, and returns a coroutine to run.
    """

    def __init__(self, *background: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._background = background

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        await receive()  # lifespan.startup
        tasks = [asyncio.create_task(start()) for start in self._background]
        for task in tasks:
            task.add_done_callback(_report)
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await send({"type": "lifespan.shutdown.complete"})


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        logger.error("A background task of this process ended", exc_info=task.exception())
