"""The facts that a process reads about itself, even when it cannot open another file."""

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from channels_zmq_forwarder import process
from channels_zmq_forwarder.process import ResidentMemory, cgroup_memory_limit, trim_heap

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def run(code: str, *arguments: Path) -> str:
    """Run a program in a process of its own; return its output and its log."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


LIMITS = """
import logging, resource
from channels_zmq_forwarder.process import SPARE_DESCRIPTORS, raise_descriptor_limit
logging.basicConfig(level="INFO", format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
assert raise_descriptor_limit() == 300 - SPARE_DESCRIPTORS == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""


def test_as_many_files_may_be_opened_as_the_system_permits() -> None:
    """The limit of open files is raised as far as the system permits, except for a few spares, and logged.

    Each connection is a file, and the usual limit is 1,024.
    """
    assert run(LIMITS) == f"raised the limit of open files from 100 to {300 - process.SPARE_DESCRIPTORS}\n"


EXHAUSTED = """
import logging, os, resource, sys
from channels_zmq_forwarder.curve import AllowedKeys, new_pair
from channels_zmq_forwarder.process import ResidentMemory, raise_descriptor_limit, spare_descriptors
logging.basicConfig(format="%(message)s")
path = sys.argv[1]
one, two = (new_pair()[0] for _ in range(2))
with open(path, "wb") as file:
    file.write(one)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
raise_descriptor_limit()
allowed, resident = AllowedKeys([], path), ResidentMemory()
ballast = bytearray(64 * 2**20)
with open(path, "wb") as file:
    file.write(two)
try:
    while True:
        os.dup(0)
except OSError:
    pass
assert allowed.refresh() == allowed.refresh() == set() and allowed.keys == {one}
print(resident.read() > 64 * 2**20)
with spare_descriptors():
    assert allowed.refresh() == {one}
assert allowed.keys == {two}
try:
    os.dup(0)
except OSError:
    print("still exhausted")
"""


@needs_proc
def test_memory_and_lists_of_keys_are_read_when_no_descriptor_is_left(tmp_path: Path) -> None:
    """Memory and lists of keys are read even without a free descriptor.

    Without spare descriptors the list stays in force, and the reason is logged once.
    """
    path = tmp_path / "allowed"
    assert sorted(run(EXHAUSTED, path).splitlines()) == [
        "True",
        f"keeping the previous list of allowed keys: {path}: Too many open files",
        "still exhausted",
    ]


@needs_proc
def test_the_last_known_memory_is_used_if_the_system_stops_reporting_it(caplog: pytest.LogCaptureFixture) -> None:
    """The last known memory counts if the system stops reporting it, since the guard would assume none otherwise.

    The error is logged once.
    """
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        memory = ResidentMemory(f"/proc/{child.pid}/statm")
        before = memory.read()
        child.kill()
    with caplog.at_level(logging.ERROR):
        assert [memory.read(), memory.read()] == [before, before]
    assert before > 0
    assert len(caplog.records) == 1
    memory.close()


@needs_proc
def test_the_memory_of_this_process_is_known() -> None:
    """The resident memory of this process is known in bytes."""
    memory = ResidentMemory()
    assert 10**6 < memory.read() < 10**11
    memory.close()


def test_where_there_is_no_proc_memory_is_not_known(tmp_path: Path) -> None:
    """Without /proc the resident memory is 0, so that it is not watched."""
    memory = ResidentMemory(str(tmp_path / "statm"))
    assert memory.read() == 0
    memory.close()


def test_the_heap_is_trimmed_if_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trimming asks the C library to keep no free memory, and does nothing with one that cannot trim the heap."""
    kept: list[int] = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(malloc_trim=kept.append))
    trim_heap()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    trim_heap()
    assert kept == [0]


@pytest.mark.parametrize(
    "files, limit",
    [
        ({"/sys/fs/cgroup/memory.max": "1048576\n"}, 2**20),
        ({"/sys/fs/cgroup/memory.max": "max\n"}, 0),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576\n"}, 2**20),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0),
        ({}, 0),
    ],
)
def test_the_limit_of_the_container_is_read(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], limit: int) -> None:
    """The memory limit is read from both versions of cgroups, where a huge number means no limit."""
    monkeypatch.setattr(process, "Path", FakeFiles(files))
    assert cgroup_memory_limit() == limit


class FakeFiles:
    """Files by path; other files do not exist."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files, self.path = files, ""

    def __call__(self, path: str) -> "FakeFiles":
        self.path = path
        return self

    def read_text(self) -> str:
        if self.path not in self.files:
            raise FileNotFoundError(self.path)
        return self.files[self.path]
