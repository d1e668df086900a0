"""What is built for a release."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    """Wherever and whenever it was checked out: whoever has the commit can compare what a release has."""
    first, second = build(tmp_path / "a", age=10**9), build(tmp_path / "b" / "c", age=2 * 10**9)
    assert {name.partition("-")[0] for name in first} == set(FOLDERS.values())
    assert len(first) == 2 * len(FOLDERS)
    assert first == second
