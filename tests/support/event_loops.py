"""The kinds of event loop that applications run."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVarTuple

Arguments = TypeVarTuple("Arguments")


class ReaderlessLoop(asyncio.SelectorEventLoop):
    """A loop that cannot watch descriptors, like `ProactorEventLoop` on Windows."""

    def add_reader(self, fd: Any, callback: Callable[[*Arguments], Any], *args: *Arguments) -> None:
        raise NotImplementedError

    def remove_reader(self, fd: Any) -> bool:
        raise NotImplementedError


FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "readerless": ReaderlessLoop,
}
try:
    import uvloop
except ImportError:  # unavailable on Windows
    pass
else:
    FACTORIES["uvloop"] = uvloop.new_event_loop
