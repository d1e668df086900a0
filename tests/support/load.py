"""Run a command several times while busy processes occupy the cores: `python load.py --runs 10 COMMAND...`.

One line reports the result of each run, and the output of a failed run follows it. The exit code is 1 if any run
failed.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

AT_MOST = 4 * 3600.0
"""Seconds after which a busy process ends by itself, whatever happens to the runs."""
SPIN = f"""
import os, time
parent, end = os.getppid(), time.monotonic() + {AT_MOST}
while os.getppid() == parent and time.monotonic() < end:
    sum(range(10_000))
"""


@contextmanager
def busy_cores(count: int = 2) -> Iterator[list[int]]:
    """Keep that many cores busy until the end of the block or of this process, and yield the busy processes' ids."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(arguments: list[str] | None = None) -> int:
    """Run the command as often as requested, and return the exit code."""
    parser = argparse.ArgumentParser(prog="load.py", description="Run a command while the cores are busy.")
    parser.add_argument("--runs", type=int, default=10, help="how often (default: 10)")
    parser.add_argument("--busy", type=int, default=2, help="how many busy processes (default: 2)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    flags = parser.parse_args(arguments)
    if not flags.command:
        parser.error("a command is needed")
    failed = 0
    with busy_cores(flags.busy):
        for number in range(1, flags.runs + 1):
            began = time.monotonic()
            ran = subprocess.run(
                flags.command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
            failed += bool(ran.returncode)
            ended = f"failed with status {ran.returncode}" if ran.returncode else "passed"
            last = next(reversed(ran.stdout.strip().splitlines()), "").strip("= ")
            print(
                f"run {number} of {flags.runs}: {ended} after {time.monotonic() - began:.0f} s, {failed} failed so far "
                f"({last})",
                flush=True,
            )
            if ran.returncode:
                print(ran.stdout, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
