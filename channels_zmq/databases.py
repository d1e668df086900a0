"""Whether Django has a database connection open, in any thread of this process."""

import threading
import weakref
from typing import Any

from django.db.backends.signals import connection_created

_lock = threading.Lock()
_created: "tuple[weakref.ref[Any], ...]" = ()
"""Django's wrappers of all connections that were ever made and still exist; replaced, never changed."""


def has_open_connection() -> bool:
    """Return whether a connection is open that `close_old_connections` may have to close."""
    for reference in _created:
        wrapper = reference()
        if wrapper is not None and wrapper.connection is not None:
            return True
    return False


def _note(connection: Any, **_: object) -> None:
    global _created
    with _lock:
        known = [one for one in _created if one() is not None]
        if all(one() is not connection for one in known):
            known.append(weakref.ref(connection))
        _created = tuple(known)


connection_created.connect(_note, dispatch_uid="channels_zmq.databases")
