"""The connections of this process, by address: they outlive layers and event loops.

Channels drops a layer without closing it when settings change, and `async_to_sync` creates an event loop for every
call; neither may require a new connection. At interpreter exit, sent messages are flushed.

Theory of operation. After a fork the child has copies of the parent's sockets but none of its threads, and locks may
be held by threads that do not exist. So the child does not use the parent's objects: it marks the connections as
closed, gives them new locks, keeps them in `_before_fork` so that no finalizer closes a socket, and opens its own
connections.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable
from functools import partial

from channels_zmq import housekeeper, reports, workers
from channels_zmq.client.defaults import Defaults
from channels_zmq.connection import Announcer, Connection
from channels_zmq.runtime import refuse_gevent

_lock = threading.Lock()
_connections: dict[tuple[object, ...], Connection] = {}
_ended: set[bytes] = set()
"""Inboxes of this process whose connection was closed: nothing arrives for their channels any more."""
_releasing: dict[tuple[object, ...], threading.Event] = {}
"""Addresses that an unused connection has bound and is about to release; a successor would find them in use."""
_before_fork: list[object] = []
"""What belongs to the parent process."""


def connection(
    key: tuple[object, ...],
    make: Callable[[], Connection],
    layer: object,
    defaults: Defaults,
    announcer: Announcer,
) -> Connection:
    """Return this process's connection for a key; open it if it does not exist or has been closed.

    Args:
        key: What a connection is shared by.
        make: Makes the connection.
        layer: Uses it from now on, so that it is not closed as unused.
        defaults: The layer's, where no call brings a setting along.
        announcer: The layer's.

    Raises:
        ConfigurationError: If an address or a key is invalid, or gevent has patched this process.
    """
    while True:
        with _lock:
            releases = _releasing.get(key)
            if releases is None:
                known = _connections.get(key)
                if known is None or known.closed:
                    refuse_gevent()
                    known = make()
                    known.start()
                    known.on_unused = partial(_close_soon, key, known)
                    _connections[key] = known
                    workers.on_worker_exit(_at_exit)
                known.use(layer, defaults, announcer)
                return known
        releases.wait()  # at most `linger`; nothing here asks the application to wait, so no error would be its fault


def connections() -> list[Connection]:
    """Return the open connections of this process."""
    return list(_connections.values())


def has_ended(inbox: bytes) -> bool:
    """Return whether an inbox was one of this process, at a connection that has been closed since."""
    return inbox in _ended


def close(known: Connection) -> None:
    """Close a connection for all its users; blocks for at most `linger`."""
    _forget(known)
    if not known.closed:
        known.deliver_held()
        if known.stop():
            known.finish()


async def close_from_loop(known: Connection) -> None:
    """Close a connection without holding up the running loop."""
    _forget(known)
    await asyncio.get_running_loop().run_in_executor(None, known.deliver_held)
    if known.stop():  # ends this loop's watch at once; other loops end theirs on their threads
        await asyncio.get_running_loop().run_in_executor(None, known.finish)


def _forget(known: Connection) -> None:
    """Remove a connection from the table."""
    with _lock:
        _remove(known)


def _forget_unused(known: Connection, released: threading.Event) -> bool:
    """Remove a connection unless a layer uses it; a successor waits for the event. Return whether it was removed."""
    with _lock:
        keys = [] if len(known.users) else _remove(known)
        if known.is_bound:
            _releasing.update(dict.fromkeys(keys, released))
        return bool(keys)


def _remove(known: Connection) -> list[tuple[object, ...]]:
    keys = [key for key, value in _connections.items() if value is known]
    for key in keys:
        del _connections[key]
        _ended.add(known.inbox)
    return keys


def _close_soon(key: tuple[object, ...], known: Connection) -> None:
    """Close a connection that no layer uses, from the housekeeper, which may not block."""
    threading.Thread(target=_close_unused, args=(key, known), name="channels-zmq closing", daemon=True).start()


def _close_unused(key: tuple[object, ...], known: Connection) -> None:
    """Close a connection, unless a layer begins to use it before the sockets have to be closed."""
    known.deliver_held()
    released = threading.Event()
    if not _forget_unused(known, released):
        return
    try:
        if known.stop():
            known.finish()
    finally:
        with _lock:
            _releasing.pop(key, None)
        released.set()


def _at_exit() -> None:
    for known in connections():
        close(known)
    housekeeper.housekeeper().end()
    reports.flush()


def _in_child() -> None:
    global _connections, _lock
    for known in _connections.values():
        known.abandon()
    _before_fork.extend([_connections, housekeeper.housekeeper()])
    _connections, _lock = {}, threading.Lock()
    _ended.clear()
    _releasing.clear()
    housekeeper.renew()
    reports.renew()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # on Windows nothing forks
    os.register_at_fork(after_in_child=_in_child)
