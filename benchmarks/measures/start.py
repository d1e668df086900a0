"""How long a process takes to start. Figures in ms, each the median of several fresh interpreters.

`first_message_ms`, from before the process is made until it has its first message: it makes a layer, joins a group,
sends to it and receives. `import_ms`: the time of importing the layer's module once `channels.layers` is imported, as
any project with Channels does; `channels_import_ms` is the latter, for comparison. A management command, a test run and
every worker that a server starts take that much longer with a layer.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import first_message
from benchmarks.crew import CrewError, WrongResultError
from benchmarks.goals import Goal
from benchmarks.messages import message

from .base import Bench, Figures, Measure, fresh

STARTS = 3
TIMEOUT = 60.0


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    starts = [_start(bench, name) for _ in range(bench.size(STARTS, 1))]
    return {figure: statistics.median(one[figure] for one in starts) for figure in starts[0]}


def _start(bench: Bench, name: str) -> Figures:
    peer, sent = bench.peer(name), message(0)
    order = {
        "backend": peer.backend,
        "config": dict(peer.config),
        "group": fresh("first"),
        "message": sent,
        "loop": bench.loop,
    }
    # -P: keeps the script's folder out of `sys.path`, as a layer does not import the benchmarks' modules.
    command = [sys.executable, "-P", str(Path(first_message.__file__)), json.dumps(order)]
    begin = time.perf_counter()
    with subprocess.Popen(command, env=os.environ | bench.environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.perf_counter() - begin
        process.wait(TIMEOUT)
    if process.returncode or not line:
        raise CrewError(f"{name}: the program of the first message ended with status {process.returncode}")
    found = json.loads(line)
    if found["message"] != sent:
        raise WrongResultError(f"{name}: the first message was changed")
    return {"first_message_ms": took * 1_000, **found["figures"]}


START = Measure(
    "start",
    "the start of a process",
    ("dedicated", "redis-pubsub", "redis-core"),
    run,
    (Goal("import_ms", "", "<=", 150, headline="import of the layer beside that of Channels"),),
)
