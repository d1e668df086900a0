"""What a forwarder of the tests runs, in a process that is forked from one which has imported it already.

To import it takes most of the time in which a forwarder starts, and hundreds of tests start one.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

with contextlib.suppress(ImportError):  # on Windows
    import resource

from channels_zmq_forwarder.__main__ import main

IMPORTED = ["channels_zmq_forwarder.daemon", __name__]
"""The modules that the process imports from which it is forked."""


def run(arguments: Sequence[str], environ: Mapping[str, str], log: Path, descriptors: int | None) -> None:
    """Run `channels-zmq-forwarder`.

    Args:
        arguments: Of the command.
        environ: All variables of its environment.
        log: Takes what it writes to its standard error.
        descriptors: How many files it may have open; None for any number.
    """
    os.environ.clear()
    os.environ.update(environ)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    sys.exit(main(arguments))
