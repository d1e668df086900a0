"""A separate network for a test: clients in a namespace reach the forwarders over a pair of virtual interfaces.

Nothing else on the machine uses it. It needs root and `ip`, also `iptables` to drop packets and `tc` to limit the rate.
"""

import os
import shutil
import subprocess
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self

RANGE = IPv4Network("10.213.0.0/16")
"""The range in which each process has four addresses of its own, so that tests may run side by side."""
LOSS = 0.1


def missing(*programs: str) -> str:
    """Return what a test lacks, of root's rights and some programs, or an empty text."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [program for program in programs if shutil.which(program) is None]
    return f"needs {' and '.join(lacking)}" if lacking else ""


class Network:
    """A namespace with one interface, whose other end is on the host.

    Attributes:
        host: The address of that end.
    """

    def __init__(self) -> None:
        self._name = f"zmq-{os.getpid()}"
        self._interface = f"zmq{os.getpid()}"
        self._inside = f"{self._interface}i"
        first = 4 * os.getpid() % RANGE.num_addresses
        self.host, self._guest = str(RANGE[first + 1]), str(RANGE[first + 2])

    @property
    def prefix(self) -> list[str]:
        """Prefix of a command that runs inside the namespace."""
        return ["ip", "netns", "exec", self._name]

    def __enter__(self) -> Self:
        inside = self._inside
        _run("ip", "netns", "add", self._name)
        _run("ip", "link", "add", self._interface, "type", "veth", "peer", "name", inside)
        _run("ip", "link", "set", inside, "netns", self._name)
        _run("ip", "address", "add", f"{self.host}/30", "dev", self._interface)
        _run("ip", "link", "set", self._interface, "up")
        for command in (("address", "add", f"{self._guest}/30", "dev", inside), ("link", "set", inside, "up")):
            _run(*self.prefix, "ip", *command)
        _run(*self.prefix, "ip", "link", "set", "lo", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the namespace and with it the interfaces."""
        subprocess.run(["ip", "netns", "delete", self._name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self._interface], check=False, capture_output=True)

    def unplug(self) -> None:
        """Take the interface down, so that no packet passes."""
        _run(*self.prefix, "ip", "link", "set", self._inside, "down")

    def limit(self, rate: float) -> None:
        """Limit the rate towards the guest to a number of bits a second."""
        bucket = ("tbf", "rate", f"{rate:.0f}bit", "burst", "128kb", "latency", "1s")
        _run("tc", "qdisc", "add", "dev", self._interface, "root", *bucket)

    def cut(self, ports: tuple[int, ...]) -> None:
        """Silently drop all packets from and to these ports of the host."""
        for port in ports:
            self._rule("OUTPUT", "-p", "tcp", "--dport", str(port))
            self._rule("INPUT", "-p", "tcp", "--sport", str(port))

    def lose(self) -> None:
        """Drop a tenth of all packets at random, in both directions."""
        for chain in ("OUTPUT", "INPUT"):
            self._rule(chain, "-p", "tcp", "-m", "statistic", "--mode", "random", "--probability", str(LOSS))

    def heal(self) -> None:
        """Stop dropping packets."""
        _run(*self.prefix, "iptables", "--flush")

    def _rule(self, chain: str, *match: str) -> None:
        _run(*self.prefix, "iptables", "-A", chain, *match, "-j", "DROP")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
