"""The connections of this process, by address: layers come and go, sockets stay.

Channels drops a layer without closing it when settings change, and `async_to_sync` makes an event loop for every call;
neither may cost a connection. After a fork everything is opened anew, and at interpreter exit what was sent is flushed.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Iterable
from functools import partial

from channels_zmq import keeper, workers
from channels_zmq.connection import Connection
from channels_zmq.embedded import EmbeddedConnection

_lock = threading.Lock()
_connections: dict[tuple[object, ...], Connection] = {}
_ended: set[bytes] = set()
"""Inboxes of this process whose connection was closed: nothing comes for their channels any more."""
_before_fork: list[object] = []
"""What belongs to the parent process; kept, so that nothing of it is ever closed or collected in the child."""


def connection(key: tuple[object, ...], make: Callable[[], Connection]) -> Connection:
    """Return this process's connection for a key, a new one where there is none or it has been closed."""
    with _lock:
        known = _connections.get(key)
        if known is None or known.closed:
            known = make()
            known.start()
            known.on_unused = partial(_close_soon, known)
            _connections[key] = known
            workers.on_worker_exit(_at_exit)
        return known


def connections() -> list[Connection]:
    """Return the open connections of this process."""
    return list(_connections.values())


def has_ended(inbox: bytes) -> bool:
    """Return whether an inbox was one of this process, at a connection that has been closed since."""
    return inbox in _ended


def close(known: Connection) -> None:
    """Close a connection for everybody who uses it; blocks for `linger` at most."""
    _forget(known)
    if not known.closed:
        known.deliver_held()
        _finish(known, known.stop())


def _forget(known: Connection) -> None:
    with _lock:
        for key, value in list(_connections.items()):
            if value is known:
                del _connections[key]
                _ended.add(known.inbox)


def _finish(known: Connection, released: Iterable[threading.Event]) -> None:
    for event in released:
        event.wait(1.0)
    known.finish()


def _close_soon(known: Connection) -> None:
    """Close a connection that no layer uses, from the keeper, which may not block."""
    threading.Thread(target=close, args=(known,), name="channels-zmq closing", daemon=True).start()


async def close_from_loop(known: Connection) -> None:
    """Close a connection without holding up the running loop."""
    _forget(known)
    await asyncio.get_running_loop().run_in_executor(None, known.deliver_held)
    released = known.stop()  # takes this loop's reader away at once; other loops do it on their threads
    await asyncio.get_running_loop().run_in_executor(None, _finish, known, released)


def _at_exit() -> None:
    for known in connections():
        close(known)
    keeper.keeper().end()


def _in_child() -> None:
    global _connections, _lock
    for known in _connections.values():
        known.closed = True
        if isinstance(known, EmbeddedConnection):
            known.let_guard_go()
    _before_fork.extend([_connections, keeper.keeper()])
    _connections, _lock = {}, threading.Lock()
    _ended.clear()
    keeper.renew()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
