"""Runs under load, as `make test-under-load` starts them, with a quick command."""

import subprocess
import sys
from pathlib import Path

import psutil
from load import busy_cores

LOAD = Path(__file__).parents[1] / "support" / "load.py"
COUNT = "import os, psutil; print(len(psutil.Process(os.getppid()).children()) - 1, 'busy')"
"""A command that counts the processes beside it."""


def run_load(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(LOAD), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_command_runs_several_times_beside_busy_processes() -> None:
    """A command runs several times beside busy processes; each run prints one line with its last line of output."""
    ran = run_load("--runs", "2", "--busy", "1", sys.executable, "-c", COUNT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert line.startswith(f"run {number} of 2: passed after ")
        assert line.endswith("0 failed so far (1 busy)")


def test_a_run_that_fails_shows_its_output_and_the_others_go_on() -> None:
    """A run that fails prints its output, the other runs continue, and the status is 1 at the end."""
    ran = run_load("--runs", "2", "--busy", "0", sys.executable, "-c", "print('first'); raise SystemExit(3)")
    assert ran.returncode == 1
    assert ran.stdout.count("failed with status 3") == 2
    assert "2 failed so far" in ran.stdout
    assert ran.stdout.splitlines()[1] == "first"


def test_busy_processes_end_with_the_block() -> None:
    """The busy processes end with the block, so that none is left behind."""
    with busy_cores(2) as processes:
        assert len(processes) == 2
        assert all(psutil.pid_exists(one) for one in processes)
    assert not any(psutil.pid_exists(one) for one in processes)
