"""This process as reported by the system: its resident memory and memory limit, its heap, and its open files.

Peers can use up the descriptors of a forwarder. This module must be able to read its sources even then.
"""

import ctypes
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

logger = logging.getLogger("channels_zmq_forwarder")

MAX_DESCRIPTORS = 2**20
SPARE_DESCRIPTORS = 16
"""Descriptors below the hard limit that only `spare_descriptors` opens up."""


def raise_descriptor_limit() -> int:
    """Let this process open as many files as the system permits, but for the spare ones: each connection is one.

    Returns:
        The number of descriptors that it may use.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    usable = most - SPARE_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (usable, hard))
    if soft < usable:
        logger.info("raised the limit of open files from %d to %d", soft, usable)
    return usable


@contextmanager
def spare_descriptors() -> Iterator[None]:
    """Let this process open the spare descriptors, too, while the block runs.

    A descriptor that is held in reserve and closed for the block would not do: the thread of libzmq, which waits for
    one to accept a connection, would take it first. It may take spare ones, too, but hardly all within the block.
    """
    usable, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = usable + SPARE_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (more if hard == resource.RLIM_INFINITY else min(more, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (usable, hard))


class ResidentMemory:
    """Measures the resident memory of a process. It keeps its file open: there may be no descriptor left later.

    Args:
        path: The file that reports it.
    """

    def __init__(self, path: str = "/proc/self/statm") -> None:
        self._last, self._has_failed = 0, False
        try:
            self._file: IO[bytes] | None = open(path, "rb", buffering=0)  # noqa: SIM115 - see above
        except OSError:
            self._file = None

    def read(self) -> int:
        """Return the resident bytes: 0 if the system does not report them, the last known figure if it fails to."""
        if self._file is None:
            return 0
        try:
            self._last = int(os.pread(self._file.fileno(), 100, 0).split()[1]) * resource.getpagesize()
            self._has_failed = False
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                logger.error("cannot read the resident memory, using the last value of %d bytes: %s", self._last, error)
        return self._last

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def trim_heap() -> None:
    """Give freed memory back to the system; does nothing if the C library cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def cgroup_memory_limit() -> int:
    """Return the container's memory limit in bytes, 0 if it has none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):
            continue
        if limit < 2**60:
            return limit
    return 0
