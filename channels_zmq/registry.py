"""The connections of this process, by address: layers come and go, sockets stay.

Channels drops a layer without closing it when settings change, and `async_to_sync` makes an event loop for every call;
neither may cost a connection. After a fork everything is opened anew, and at interpreter exit what was sent is flushed.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable

from channels_zmq import keeper
from channels_zmq.connection import Connection
from channels_zmq.embedded import EmbeddedConnection

_lock = threading.Lock()
_connections: dict[tuple[str, ...], Connection] = {}
_before_fork: list[object] = []
"""What belongs to the parent process; kept, so that nothing of it is ever closed or collected in the child."""


def connection(key: tuple[str, ...], make: Callable[[], Connection]) -> Connection:
    """Return this process's connection for a key, a new one where there is none or it has been closed."""
    with _lock:
        known = _connections.get(key)
        if known is None or known.closed:
            known = make()
            known.start()
            _connections[key] = known
        return known


def close(known: Connection) -> None:
    """Close a connection for everybody who uses it; blocks for `linger` at most."""
    _forget(known)
    for released in known.stop():
        released.wait(1.0)
    known.finish()


def _forget(known: Connection) -> None:
    with _lock:
        for key, value in list(_connections.items()):
            if value is known:
                del _connections[key]


async def close_from_loop(known: Connection) -> None:
    """Close a connection without holding up the running loop."""
    here = asyncio.get_running_loop()
    _forget(known)
    for released in known.stop():
        while not released.is_set():
            await asyncio.sleep(0)  # another loop's thread, or this one's next turn, takes its reader away
    await here.run_in_executor(None, known.finish)


def _at_exit() -> None:
    keeper.keeper().end()
    for known in list(_connections.values()):
        close(known)


def _in_child() -> None:
    global _connections, _lock
    for known in _connections.values():
        known.closed = True
        if isinstance(known, EmbeddedConnection):
            known.let_guard_go()
    _before_fork.extend([_connections, keeper.keeper()])
    _connections, _lock = {}, threading.Lock()
    keeper.renew()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
