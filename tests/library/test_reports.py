"""Log lines, which a separate thread writes."""

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from channels_zmq import reports
from channels_zmq.client.counters import Report
from channels_zmq.reports import Reporter

PATIENCE = 10.0


class Handler(logging.Handler):
    """A handler that records its lines and threads; `on_line` stands for code of the application."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []
        self.threads: set[threading.Thread] = set()
        self.on_line: Callable[[str], object] = lambda line: None

    def handle(self, record: logging.LogRecord) -> bool:
        self.lines.append((record.levelno, record.getMessage()))
        self.threads.add(threading.current_thread())
        self.on_line(record.getMessage())
        return True


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Handler]:
    handler = Handler()
    monkeypatch.setattr(reports.logger, "propagate", False)
    reports.logger.addHandler(handler)
    yield handler
    reports.logger.removeHandler(handler)


@pytest.fixture
def reporter() -> Reporter:
    return Reporter()


def lines(*texts: int) -> list[Report]:
    return [Report(logging.WARNING, "line %s", (text,)) for text in texts]


def messages(handler: Handler) -> list[str]:
    return [message for _, message in handler.lines]


def test_lines_are_written_in_order_on_another_thread(reporter: Reporter, handler: Handler) -> None:
    """Lines are written in order and with their levels, on a daemon thread, which does not delay the exit."""
    reporter.write([*lines(1, 2), Report(logging.ERROR, "plain", ())])
    reporter.flush(PATIENCE)
    assert handler.lines == [(logging.WARNING, "line 1"), (logging.WARNING, "line 2"), (logging.ERROR, "plain")]
    (thread,) = handler.threads
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_without_lines_there_is_no_thread(reporter: Reporter) -> None:
    """Without lines no thread starts, and `flush` does not wait."""
    reporter.write([])
    reporter.flush()
    assert reporter._thread is None


def test_the_thread_ends_with_the_last_line_and_starts_with_the_next(reporter: Reporter, handler: Handler) -> None:
    """The thread ends after the last line and a new one starts with the next, so that an idle process has none."""
    for text in (1, 2):
        reporter.write(lines(text))
        reporter.flush(PATIENCE)
    assert messages(handler) == ["line 1", "line 2"]
    assert len(handler.threads) == 2
    assert reporter._thread is None


def test_a_slow_handler_holds_up_nobody(reporter: Reporter, handler: Handler) -> None:
    """A slow handler blocks no caller; the same thread writes further lines once the handler has returned."""
    goes_on = threading.Event()
    handler.on_line = lambda line: goes_on.wait(PATIENCE)
    reporter.write(lines(1))
    reporter.write(lines(2, 3))
    reporter.flush(0.001)
    assert messages(handler) in ([], ["line 1"])
    goes_on.set()
    reporter.flush(PATIENCE)
    assert messages(handler) == ["line 1", "line 2", "line 3"]
    assert len(handler.threads) == 1


def test_a_handler_may_report_and_flush(reporter: Reporter, handler: Handler) -> None:
    """A handler may report and flush, as when it sends records through the layer, and does not wait for itself."""

    def report(line: str) -> None:
        if line == "line 1":
            reporter.write(lines(2))
            reporter.flush(PATIENCE)

    handler.on_line = report
    reporter.write(lines(1))
    reporter.flush(PATIENCE)
    assert messages(handler) == ["line 1", "line 2"]


@pytest.mark.parametrize("raises", [True, False])
def test_a_handler_that_raises_does_not_keep_the_next_lines(
    reporter: Reporter,
    handler: Handler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raises: bool,
) -> None:
    """Lines after a handler's error are written, and the error is printed if `logging.raiseExceptions` is set."""
    monkeypatch.setattr(logging, "raiseExceptions", raises)

    def fail(line: str) -> None:
        if line == "line 1":
            raise ValueError("odd")

    handler.on_line = fail
    reporter.write(lines(1, 2))
    reporter.flush(PATIENCE)
    reporter.write(lines(3))
    reporter.flush(PATIENCE)
    assert messages(handler) == ["line 1", "line 2", "line 3"]
    assert ("ValueError: odd" in capsys.readouterr().err) == raises


def test_at_the_end_of_the_interpreter_lines_are_written_at_once(
    reporter: Reporter, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the interpreter's shutdown, when no thread can start, the calling thread writes the lines at once."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    for text in (1, 2):
        reporter.write(lines(text))
    assert messages(handler) == ["line 1", "line 2"]
    assert handler.threads == {threading.current_thread()}


def test_a_process_has_one_reporter_until_it_is_forked(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child has its own reporter: it has none of its parent's threads, and the parent's lock may stay held."""
    monkeypatch.setattr(reports, "_reporter", former := Reporter())
    former._lock.acquire()
    reports.renew()
    reports.write(lines(1))
    reports.flush(PATIENCE)
    assert messages(handler) == ["line 1"]
