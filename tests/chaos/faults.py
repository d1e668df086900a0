"""The processes of a scenario and their faults: SIGTERM, SIGKILL, SIGSTOP.

Every process belongs to a `ProcessGroup`, which ends it by its pid in any case and records the processes that fail.
"""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

START = 90.0
"""Seconds within which a forwarder becomes ready; beside others it may settle for 60 s."""
STOP = 30.0
"""Seconds within which a process exits once it was asked to; a forwarder may drain for 10 s."""
ANSWER = 30.0
"""Seconds within which a client answers; `stop` waits for jobs in flight, each for up to `connect_timeout`."""
TAIL = 2_000
"""Characters of a log that an error quotes."""
PROGRAM = Path(__file__).with_name("traffic.py")


class FaultError(Exception):
    """A process failed or did not respond in time; the text contains the end of its log."""


class Process:
    """A process with a log.

    Args:
        name: Its name in reports.
        command: The program and its arguments.
        log: Where its standard error goes.
        pipes: Whether its standard input and output are pipes to the harness.
    """

    def __init__(self, name: str, command: list[str], log: Path, *, pipes: bool = False) -> None:
        self.name = name
        self._log = log
        pipe = subprocess.PIPE if pipes else subprocess.DEVNULL
        with log.open("ab") as errors:
            # A session of its own: Ctrl-C reaches the harness alone, which then ends the others.
            self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True)

    @property
    def runs(self) -> bool:
        """Whether the process is still running."""
        return self.popen.poll() is None

    def freeze(self) -> None:
        """Suspend the process by SIGSTOP."""
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process by SIGCONT."""
        self.popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the process by SIGKILL, and wait for its exit."""
        self.popen.kill()
        self.popen.wait()
        self._close_pipes()

    def wait(self) -> None:
        """Wait for the exit of a process that was asked to end.

        Raises:
            FaultError: If it does not exit in time, or if its status is not 0.
        """
        try:
            status = self.popen.wait(STOP)
        except subprocess.TimeoutExpired:
            self.kill()
            raise FaultError(f"{self.name} did not exit within {STOP:.0f} s{self.tail()}") from None
        self._close_pipes()
        if status:
            raise FaultError(f"{self.name} exited with status {status}{self.tail()}")

    def ask_to_end(self) -> None:
        """Send SIGTERM, upon which the process exits."""
        self.popen.terminate()

    def tail(self) -> str:
        """Return the end of the process's log, as the second half of a sentence."""
        text = self._log.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()
        return f"; its log ends:\n{text}" if text else ""

    def _close_pipes(self) -> None:
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


AnyProcess = TypeVar("AnyProcess", bound=Process)


class ClientProcess(Process):
    """A sender or a receiver, which runs `traffic`."""

    def __init__(
        self,
        name: str,
        log: Path,
        loop: str,
        role: str,
        config: dict[str, Any],
        argument: str,
        prefix: Iterable[str] = (),
    ) -> None:
        command = [*prefix, sys.executable, "-W", "error", str(PROGRAM), loop, role, json.dumps(config), argument]
        super().__init__(name, command, log, pipes=True)
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def ask(self, verb: str, *arguments: object) -> Any:
        """Return the answer to a command.

        Raises:
            FaultError: If the command fails, or if no answer arrives in time.
        """
        self.tell(verb, *arguments)
        return self.answer()

    def tell(self, verb: str, *arguments: object) -> None:
        """Send a command without waiting; `answer` must be called before the next command."""
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `answer` raises
            self.popen.stdin.write(json.dumps([verb, arguments]).encode() + b"\n")
            self.popen.stdin.flush()

    def answer(self) -> Any:
        """Return the answer to the last command; raises what `ask` raises."""
        try:
            line = self._answers.get(timeout=ANSWER)
        except queue.Empty:
            raise FaultError(f"{self.name} did not answer within {ANSWER:.0f} s{self.tail()}") from None
        if not line:
            raise FaultError(f"{self.name} exited with status {self.popen.wait(STOP)}{self.tail()}")
        result, error = json.loads(line)
        if error is not None:
            raise FaultError(f"{self.name}: {error}")
        return result

    def ask_to_end(self) -> None:
        """Close the client's standard input, upon which it closes its layer and exits."""
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.close()

    def _close_pipes(self) -> None:
        self._listener.join()
        super()._close_pipes()

    def _listen(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._answers.put(line.decode())
        self._answers.put("")


class ForwarderProcess(Process):
    """A forwarder at given addresses.

    Args:
        admin: Where its admin endpoints listen.
        flags: Further flags of the program.
    """

    def __init__(self, name: str, log: Path, pull: str, pub: str, admin: str, flags: Iterable[str] = ()) -> None:
        self._admin = admin
        command = [sys.executable, "-m", "channels_zmq_forwarder"]
        command += ["--pull-address", pull, "--pub-address", pub, "--admin-address", admin, *flags]
        super().__init__(name, command, log)

    def await_ready(self) -> None:
        """Wait until the forwarder accepts messages.

        Raises:
            FaultError: If it exits or is not ready in time.
        """
        wait_until(lambda: self._is_ready() or not self.runs, START, f"{self.name} is not ready")
        if not self.runs:
            raise FaultError(f"{self.name} exited with status {self.popen.returncode}{self.tail()}")

    def jobs(self) -> int:
        """Return how many jobs are in the forwarder's queues, including those that clients have not settled.

        Raises:
            FaultError: If it does not answer.
        """
        try:
            with self._get("status.json") as answer:
                status = json.load(answer)
        except OSError as error:
            raise FaultError(f"{self.name} does not report its status: {error}{self.tail()}") from error
        return int(status["waiting"] + sum(queue["unsettled"] for queue in status["queues"]))

    def _is_ready(self) -> bool:
        try:
            with self._get("readyz") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str) -> Any:
        return urllib.request.urlopen(f"http://{self._admin}/{path}", timeout=5)


class Site:
    """The addresses of one forwarder, and the process that is bound to them at the moment, if any.

    Args:
        name: Name of the forwarder in reports.
        folder: Where its log is written.
        ports: Ports for PULL, PUB and the admin endpoints.
        host: Where PULL and PUB are bound.
        flags: Further flags of the forwarder.
    """

    def __init__(
        self, name: str, folder: Path, ports: Iterable[int], host: str = "127.0.0.1", flags: Iterable[str] = ()
    ) -> None:
        self.name, self.host = name, host
        self._folder, self._flags = folder, flags
        self.pull_port, self.pub_port, self._admin_port = ports
        self.process: ForwarderProcess | None = None

    @property
    def running(self) -> ForwarderProcess:
        """The running process; only valid while there is one."""
        assert self.process is not None
        return self.process

    def start(self, group: "ProcessGroup") -> None:
        """Start a forwarder without waiting until it is ready."""
        pull, pub = (f"tcp://{self.host}:{port}" for port in (self.pull_port, self.pub_port))
        log, admin = self._folder / f"{self.name}.log", f"127.0.0.1:{self._admin_port}"
        self.process = group.add(ForwarderProcess(self.name, log, pull, pub, admin, self._flags))

    def end(self) -> None:
        """End the forwarder by SIGTERM and wait for its exit."""
        process, self.process = self.running, None
        process.ask_to_end()
        process.wait()

    def kill(self) -> None:
        """End the forwarder by SIGKILL."""
        process, self.process = self.running, None
        process.kill()


class ProcessGroup:
    """All processes of a scenario; `kill` ends all of them."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        """One text for each process that did not exit with status 0 when asked to."""
        self._processes: list[Process] = []

    def add(self, process: AnyProcess) -> AnyProcess:
        """Add a process, and return it."""
        self._processes.append(process)
        return process

    def living(self) -> list[Process]:
        """Return the processes that are running."""
        return [process for process in self._processes if process.runs]

    def end(self, processes: list[Process]) -> None:
        """Ask processes to end, all at the same time, and record those that fail."""
        for process in processes:
            process.ask_to_end()
        for process in processes:
            try:
                process.wait()
            except FaultError as error:
                self.failures.append(str(error))

    def kill(self) -> None:
        """Kill the processes that are running."""
        for process in self.living():
            process.kill()


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Wait until a condition holds.

    Raises:
        FaultError: If it does not hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise FaultError(f"{otherwise} after {seconds:.0f} s")
        time.sleep(0.01)
