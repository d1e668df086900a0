"""The command line without the daemon's packages, or on another system: its effect and its messages."""

import signal
import subprocess
import sys

import pytest
from forwarders import free_ports

from channels_zmq_forwarder.__main__ import BAD_USAGE, EXTRA, main


def without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an interpreter that lacks a package; return its result."""
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from channels_zmq_forwarder.__main__ import main\n"
        f"sys.exit(main({list(arguments)}))"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("package", EXTRA)
def test_without_its_packages_the_daemon_names_the_extra_to_install(package: str) -> None:
    """Without one of its packages the daemon names the extra to install, in one line without a traceback."""
    done = without(package, "--pull-address", "tcp://127.0.0.1:5555")
    assert done.returncode == BAD_USAGE
    (line,) = done.stderr.splitlines()
    assert f"needs the package {package}: install channels-zmq-forwarder with its extra daemon" in line
    assert "pip install './forwarder[daemon]'" in line


@pytest.mark.parametrize("package", EXTRA)
@pytest.mark.parametrize("command", ["keygen", "selftest"])
def test_the_other_commands_need_no_extra(package: str, command: str) -> None:
    """The other commands need no extra, since they run where an application does."""
    done = without(package, command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"channels-zmq-forwarder {command}" in done.stdout


def test_without_uvloop_the_daemon_runs_by_asyncio() -> None:
    """Without uvloop, which has no wheel for some systems, the daemon starts on asyncio and parses its settings."""
    done = without("uvloop", "--settle", "9")
    assert done.returncode == BAD_USAGE
    assert "settle-at-most" in done.stderr


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_on_other_systems_the_daemon_says_where_it_runs(
    system: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another system the daemon exits with a message that names Linux, WSL and containers."""
    monkeypatch.setattr(sys, "platform", system)
    assert main(["--log-level", "INFO"]) == BAD_USAGE
    assert "the daemon runs on Linux only: use WSL or a container" in capsys.readouterr().err


def test_a_module_that_is_missing_for_another_reason_is_no_question_of_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A missing module of the forwarder itself raises, since a broken installation needs its traceback."""
    monkeypatch.setitem(sys.modules, "channels_zmq_forwarder.daemon", None)
    with pytest.raises(ModuleNotFoundError, match=r"channels_zmq_forwarder\.daemon"):
        main([])


def test_signals_wait_while_the_daemon_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals are blocked while the daemon starts, and unblocked afterwards, even if the start fails."""
    blocked: list[set[int]] = []

    def start(arguments: object) -> int:
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return BAD_USAGE

    monkeypatch.setattr("channels_zmq_forwarder.__main__._daemon", start)
    assert main([]) == BAD_USAGE
    assert blocked[0] >= {signal.SIGTERM, signal.SIGINT}
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}


def test_a_signal_that_comes_before_the_start_ends_the_daemon_once_it_has_started() -> None:
    """A signal from before the start ends the daemon once it has started, with exit code 0.

    The first process of a container ignores a signal without a handler, so the signal has to wait.
    """
    pull, pub, admin = free_ports(3)
    addresses = {"pull": f"tcp://127.0.0.1:{pull}", "pub": f"tcp://127.0.0.1:{pub}", "admin": f"127.0.0.1:{admin}"}
    flags = [f"--{name}-address={address}" for name, address in addresses.items()]
    program = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        f"os.execv(sys.executable, [sys.executable, '-m', 'channels_zmq_forwarder', *{flags}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
