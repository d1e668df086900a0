"""Callbacks that run before a worker process ends."""

import os
import sys
from collections.abc import Callable
from multiprocessing import util
from types import SimpleNamespace

import pytest
from celery.utils.dispatch import Signal

from channels_zmq import workers


@pytest.fixture(autouse=True)
def finalizers(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Return the callbacks of the finalizers that a test registers, instead of registering them."""
    found: list[Callable[[], None]] = []
    monkeypatch.setattr(workers, "_registered", {})
    monkeypatch.setattr(util, "Finalize", lambda owner, callback, exitpriority: found.append(callback))
    monkeypatch.delitem(sys.modules, "celery.signals", raising=False)
    return found


@pytest.fixture
def shutdown(monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Import Celery's signals now, and return the one that a process of its pool sends before it ends."""
    signal = Signal(name="worker_process_shutdown", providing_args={"pid", "exitcode"})
    monkeypatch.setitem(sys.modules, "celery.signals", SimpleNamespace(worker_process_shutdown=signal))
    return lambda: signal.send(sender=None, pid=os.getpid(), exitcode=0)


def callback(calls: list[str]) -> Callable[[], None]:
    return lambda: calls.append("called")


def test_a_process_registers_a_callback_once(
    finalizers: list[Callable[[], None]], shutdown: Callable[[], object]
) -> None:
    """Repeated registrations of a callback result in one finalizer and one call at the signal."""
    calls: list[str] = []
    one = callback(calls)
    for _ in range(3):
        workers.on_worker_exit(one)
    assert finalizers == [one]
    shutdown()
    assert calls == ["called"]


def test_without_celery_there_is_only_a_finalizer(finalizers: list[Callable[[], None]]) -> None:
    """Without Celery only a finalizer is registered, and Celery is not imported."""
    workers.on_worker_exit(one := callback([]))
    assert finalizers == [one]
    assert "celery.signals" not in sys.modules


def test_celery_may_be_imported_later(finalizers: list[Callable[[], None]], request: pytest.FixtureRequest) -> None:
    """If Celery is imported later, the next call connects the signal and registers no second finalizer."""
    calls: list[str] = []
    workers.on_worker_exit(one := callback(calls))
    shutdown = request.getfixturevalue("shutdown")
    workers.on_worker_exit(one)
    shutdown()
    assert calls == ["called"]
    assert finalizers == [one]


def test_a_child_runs_only_what_it_has_registered_itself(
    finalizers: list[Callable[[], None]],
    shutdown: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A forked child calls only its own callbacks: it inherits the signal's receiver, not the parent's connections."""
    calls: list[str] = []
    workers.on_worker_exit(one := callback(calls))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    shutdown()
    assert calls == []
    workers.on_worker_exit(one)
    shutdown()
    assert calls == ["called"]
    assert finalizers == [one, one]
