"""Whether this process can run the layer at all. Pure: inspects the imported modules and imports nothing itself."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from channels_zmq.errors import ConfigurationError

_NEEDED = ("threading", "socket", "select")
"""The modules that the layer needs as Python ships them."""


def refuse_gevent(modules: Mapping[str, Any] | None = None) -> None:
    """Refuse to run if gevent or eventlet has patched the modules that the layer waits with.

    Both run all threads of a process as coroutines of one. libzmq waits in C, where no coroutine can take over, so the
    first wait would stop the whole process for good, without an error.

    Args:
        modules: The imported modules by name; `sys.modules` if None.

    Raises:
        ConfigurationError: If gevent or eventlet has patched threading, socket or select; names them.
    """
    imported = sys.modules if modules is None else modules
    for library, patched in (("gevent", list(_by_gevent(imported))), ("eventlet", list(_by_eventlet(imported)))):
        if patched:
            raise ConfigurationError(
                library,
                f"it has monkey-patched {', '.join(patched)}, so the first use of channels-zmq would block the whole "
                "process: run this process without it, for example by gunicorn's gthread workers or Celery's "
                "prefork or threads pool",
            )


def _by_gevent(modules: Mapping[str, Any]) -> Iterator[str]:
    monkey = modules.get("gevent.monkey")
    return (name for name in _NEEDED if monkey is not None and monkey.is_module_patched(name))


def _by_eventlet(modules: Mapping[str, Any]) -> Iterator[str]:
    patcher = modules.get("eventlet.patcher")
    names = {"threading": "thread"}  # eventlet's name for it
    return (name for name in _NEEDED if patcher is not None and patcher.is_monkey_patched(names.get(name, name)))
