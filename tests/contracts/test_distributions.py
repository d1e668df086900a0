"""The distributions of a release."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = {".": "channels_zmq", "forwarder": "channels_zmq_forwarder", "operator": "channels_zmq_operator"}


def build(copy: Path, age: int) -> dict[str, bytes]:
    """Return the distributions that are built from a copy of this repository, whose files have one time of change."""
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
    """Two builds of a commit are identical in any place and at any time, so that users can verify a release."""
    first, second = build(tmp_path / "a", age=10**9), build(tmp_path / "b" / "c", age=2 * 10**9)
    assert {name.partition("-")[0] for name in first} == set(FOLDERS.values())
    assert len(first) == 2 * len(FOLDERS)
    assert first == second


def write_url(copy: Path, url: str) -> "subprocess.CompletedProcess[str]":
    """Copy the files with the address of the project, and let the Makefile write it."""
    written = [f"{folder}/pyproject.toml" for folder in FOLDERS]
    for name in ("Makefile", "charts/channels-zmq/Chart.yaml", *written):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    command = ["make", "project-url", f"PROJECT_URL={url}"]
    return subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=60, check=False)


def test_a_release_names_the_address_that_it_was_built_at(tmp_path: Path) -> None:
    """A release has the address that it was built with, as the repository has none: a fork names its own."""
    url = "https://example.org/someone/channels-zmq"
    assert write_url(tmp_path, url).returncode == 0
    for folder in FOLDERS:
        project = tomllib.loads((tmp_path / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["urls"] == {"Source": url}
    chart = yaml.safe_load((tmp_path / "charts" / "channels-zmq" / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["home"], chart["sources"]) == (url, [url])


def test_a_release_without_an_address_says_what_is_missing(tmp_path: Path) -> None:
    """Without an address the error names the missing variable, and nothing is written."""
    done = write_url(tmp_path, "")
    assert done.returncode
    assert "PROJECT_URL=https://... is missing" in done.stderr
    assert (tmp_path / "pyproject.toml").read_bytes() == (ROOT / "pyproject.toml").read_bytes()


@pytest.mark.parametrize(
    ("folder", "tests"),
    [(".", ["tests/integration", "tests/library"]), ("forwarder", ["tests/forwarder"])],
    ids=["library", "forwarder"],
)
def test_an_sdist_has_its_tests_and_all_that_they_import(folder: str, tests: list[str], tmp_path: Path) -> None:
    """Each test module can be collected from the unpacked sdist alone, so that packagers can run the tests."""
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
