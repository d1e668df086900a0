"""The main function of a test's forwarder, in a process that is forked from one which has imported it already.

The import takes most of the time of a forwarder's start, and hundreds of tests start one.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

with contextlib.suppress(ImportError):  # not available on Windows
    import resource

from channels_zmq_forwarder.__main__ import main

IMPORTED = ["channels_zmq_forwarder.daemon", __name__]
"""Modules that are imported in the process from which forwarders are forked."""


def run(arguments: Sequence[str], environ: Mapping[str, str], log: Path, descriptors: int | None) -> None:
    """Run `channels-zmq-forwarder`.

    Args:
        arguments: The arguments of the command.
        environ: All variables of its environment.
        log: The file for its standard error.
        descriptors: Maximum number of open files; None for no limit.
    """
    os.environ.clear()
    os.environ.update(environ)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    sys.exit(main(arguments))
