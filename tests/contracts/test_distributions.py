"""What is built for a release."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {".": "channels_zmq", "forwarder": "channels_zmq_forwarder", "operator": "channels_zmq_operator"}


def build(copy: Path, age: int) -> dict[str, bytes]:
    """Return the distributions that a copy of this repository gives, whose files were all changed at one time."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
        os.utime(copy / name, (age, age))
    out = copy / "dist"
    for folder in FOLDERS:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(out)]
        subprocess.run(command, cwd=copy / folder, capture_output=True, timeout=120, check=True)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_two_builds_of_a_commit_give_the_same_distributions(tmp_path: Path) -> None:
    """In any place and at any time: users can build a commit and compare it with the release."""
    first, second = build(tmp_path / "a", age=10**9), build(tmp_path / "b" / "c", age=2 * 10**9)
    assert {name.partition("-")[0] for name in first} == set(FOLDERS.values())
    assert len(first) == 2 * len(FOLDERS)
    assert first == second


@pytest.mark.parametrize(
    ("folder", "tests"),
    [(".", ["tests/integration", "tests/library"]), ("forwarder", ["tests/forwarder"])],
    ids=["library", "forwarder"],
)
def test_an_sdist_has_its_tests_and_all_that_they_import(folder: str, tests: list[str], tmp_path: Path) -> None:
    """Packagers can run them: each test module can be collected from the unpacked sdist alone."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT / folder, capture_output=True, timeout=120, check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(collect, cwd=unpacked, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    modules = {path.relative_to(ROOT).as_posix() for part in tests for path in (ROOT / part).rglob("test_*.py")}
    assert {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line} == modules
