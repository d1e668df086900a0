"""Real forwarders, and what tests of several folders need beside them."""

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from channels_zmq import registry

PATIENCE = 20.0


def free_ports(count: int) -> list[int]:
    """Return TCP ports of the loopback that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


class Forwarder:
    """A forwarder in a process of its own, which can be killed and started again at the same addresses."""

    def __init__(self, pull: str, pub: str, *, settle: float = 0.3) -> None:
        self.pull, self.pub = pull, pub
        self.admin = f"127.0.0.1:{free_ports(1)[0]}"
        self._settle = settle
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {"pull_socket_address": self.pull, "pub_socket_address": self.pub}

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it lets producers in."""
        command = [sys.executable, "-m", "channels_zmq_forwarder", "--settle", str(self._settle)]
        command += ["--pull-address", self.pull, "--pub-address", self.pub, "--admin-address", self.admin]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while wait and not self.is_ready():
            assert self._process.poll() is None, "the forwarder has ended"
            time.sleep(0.01)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.admin}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it and wait until it is gone."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE)
            self._process = None

    def kill(self) -> None:
        self.end(signal.SIGKILL)


def close_all() -> None:
    """Close every connection of this process, as at interpreter exit."""
    for known in list(registry.connections()):
        registry.close(known)
