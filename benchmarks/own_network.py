"""A network namespace for a measure: a loopback interface alone, whose receive buffers hold a whole backlog.

What a receiver's buffer has no room for waits in the sender's. Once the receiver reads again, the kernel sends it on
within the receiver's system calls, so that the receiver pays for the work of the sender.
"""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
"""The flag of unshare(2) and setns(2) for network namespaces."""
RECEIVE_BUFFERS = "4096 4194304 6291456"
"""The least, first and greatest size of the receive buffer of a TCP connection, in bytes: see `tcp_rmem` in tcp(7)."""


@contextmanager
def own_network() -> Iterator[bool]:
    """Put the calling thread, and the processes that it starts meanwhile, into a network namespace.

    Yields whether they are in one: it takes Linux, root's rights, and the program `ip`.
    """
    if sys.platform != "linux":
        yield False
        return
    libc = ctypes.CDLL(None)
    with Path("/proc/thread-self/ns/net").open() as former:
        if libc.unshare(CLONE_NEWNET):
            yield False
            return
        try:
            yield _is_set_up()
        finally:
            if libc.setns(former.fileno(), CLONE_NEWNET):
                raise OSError("cannot return to the former network namespace")


def _is_set_up() -> bool:
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        Path("/proc/sys/net/ipv4/tcp_rmem").write_text(RECEIVE_BUFFERS)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
