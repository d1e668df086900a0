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
from channels_zmq.loops import Waiter, wake
from channels_zmq.runtime import refuse_gevent

_lock = threading.Lock()
_connections: dict[tuple[object, ...], Connection] = {}
_ended: set[bytes] = set()
"""Inboxes of this process whose connection was closed: no message arrives for their channels any more."""
_closing: dict[Connection, list[tuple[object, ...]]] = {}
"""Connections that are about to be closed, and their keys. One that has bound an address releases it before its
successor binds it."""
_before_fork: list[object] = []
"""Objects that belong to the parent process."""


def connection(
    key: tuple[object, ...],
    make: Callable[[], Connection],
    layer: object,
    defaults: Defaults,
    announcer: Announcer,
) -> Connection:
    """Return this process's connection for a key; open it if it does not exist or has been closed.

    Args:
        key: Layers with an equal key share a connection.
        make: Makes the connection.
        layer: Uses it from now on, so that it is not closed as unused.
        defaults: The layer's settings, where no call passes them.
        announcer: The layer's.

    Raises:
        ConfigurationError: If an address or a key is invalid, or gevent has patched this process.
    """
    while True:
        with _lock:
            former = next((one for one, keys in _closing.items() if key in keys and one.is_bound), None)
            if former is None:
                known = _connections.get(key)
                if known is None or known.closed:
                    refuse_gevent()
                    known = make()
                    known.start()
                    known.on_unused = partial(_close_soon, known)
                    _connections[key] = known
                    workers.on_worker_exit(_at_exit)
                known.use(layer, defaults, announcer)
                return known
        former.ended.wait()  # nothing asks the application to wait, so an error would not be its fault


def connections() -> list[Connection]:
    """Return the open connections of this process."""
    return list(_connections.values())


def has_ended(inbox: bytes) -> bool:
    """Return whether an inbox was one of this process, at a connection that has been closed since."""
    return inbox in _ended


def close(known: Connection) -> None:
    """Close a connection for all its users; blocks for at most `linger`."""
    _withdraw(known)
    try:
        known.deliver_held()
    finally:
        _end(known)


async def close_from_loop(known: Connection) -> None:
    """Close a connection without blocking the running loop; it is closed even if this is cancelled."""
    closed, errors = Waiter(asyncio.get_running_loop()), list[Exception]()

    def work() -> None:
        try:
            close(known)
        except Exception as error:
            errors.append(error)
        finally:
            wake([closed])

    _withdraw(known)
    try:
        threading.Thread(target=work, name="channels-zmq closing").start()
    except RuntimeError:  # the system has no thread left, or the interpreter is shutting down
        work()
    await closed.future
    if errors:
        raise errors[0]


def _withdraw(known: Connection, *, if_unused: bool = False) -> bool:
    """Stop handing out a connection; return False if that was done before, or, with `if_unused`, if a layer uses it."""
    with _lock:
        if if_unused and len(known.users):
            return False
        keys = [key for key, value in _connections.items() if value is known]
        for key in keys:
            del _connections[key]
        if keys:
            _closing[known] = keys
            _ended.add(known.inbox)
        return bool(keys)


def _end(known: Connection) -> None:
    """Close the sockets of a connection, unless another thread does, and let a successor bind its address."""
    stopped = True
    try:
        stopped = known.stop()
        if stopped:
            known.finish()
    finally:
        if stopped:
            with _lock:
                _closing.pop(known, None)
            known.ended.set()


def _close_soon(known: Connection) -> None:
    """Close a connection that no layer uses, from the housekeeper, which must not block."""
    threading.Thread(target=_close_unused, args=(known,), name="channels-zmq closing", daemon=True).start()


def _close_unused(known: Connection) -> None:
    """Close a connection, unless a layer begins to use it before the sockets have to be closed."""
    known.deliver_held()
    if _withdraw(known, if_unused=True):
        _end(known)


def _at_exit() -> None:
    for known in connections():
        close(known)
    for known in list(_closing):  # by other threads
        known.ended.wait()
    housekeeper.housekeeper().end()
    reports.flush()


def _in_child() -> None:
    global _closing, _connections, _lock
    for known in (*_connections.values(), *_closing):
        known.abandon()
    _before_fork.extend([_connections, _closing, housekeeper.housekeeper()])
    _connections, _closing, _lock = {}, {}, threading.Lock()
    _ended.clear()
    housekeeper.renew()
    reports.renew()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # on Windows nothing forks
    os.register_at_fork(after_in_child=_in_child)
