"""Run a callback before a worker process ends, by any way in which the library that forked it ends it.

- multiprocessing ends a child by `os._exit` after its own finalizers; nothing registered with `atexit` runs.
- billiard, Celery's multiprocessing, shares these finalizers, but a process of Celery's prefork pool never reaches
  them: it calls `os._exit` directly after the signal `worker_process_shutdown`. That signal is sent after
  --max-tasks-per-child and at every shutdown, and only SIGKILL prevents it (`billiard.pool.Worker._do_exit`).
- Celery's threads and solo pools run in a process that ends as any other does: `atexit` runs.

A fork drops the finalizers but inherits the receivers of the signal. Each process therefore registers for itself, and
the receiver runs only callbacks that its own process has registered.
"""

import os
import sys
from collections.abc import Callable
from multiprocessing import util
from typing import Any

_registered: dict[Callable[[], None], int] = {}
"""Callbacks, each with the process that registered it last."""


def on_worker_exit(callback: Callable[[], None]) -> None:
    """Call a function when this process ends as a child of multiprocessing or of Celery.

    Cheap and idempotent: call it for each new connection, in the child after a fork as well. It never imports Celery,
    which every worker has imported before its first task. A process that is not such a child needs `atexit` beside it.
    """
    if _registered.get(callback) != os.getpid():
        _registered[callback] = os.getpid()
        util.Finalize(None, callback, exitpriority=0)
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(_on_shutdown, dispatch_uid=__name__)


def _on_shutdown(**_: Any) -> None:
    """Run the callbacks that this process has registered; Celery logs the exceptions of a receiver."""
    for callback, pid in list(_registered.items()):
        if pid == os.getpid():
            callback()
