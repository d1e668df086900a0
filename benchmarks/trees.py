"""The tree of another commit, so that its library and its forwarder run as one more peer.

The tree is unpacked into a temporary folder and removed at the end of the run. Its packages are found by name, since
the layout of the repository may have been another one then; third-party packages are those of this environment.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .servers import ServerError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("channels_zmq", "channels_zmq_forwarder")


@dataclass(frozen=True, slots=True)
class Tree:
    """A commit and the folders from which its packages are imported.

    Args:
        commit: The abbreviated hash.
        path: The first entries of `sys.path` in each process that runs this tree.
    """

    commit: str
    path: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which a program runs this tree."""
        return {"PYTHONPATH": os.pathsep.join(self.path)}


@contextmanager
def checked_out(commit: str) -> Iterator[Tree]:
    """Unpack a commit and yield its tree.

    Raises:
        ServerError: If the commit is unknown, or if its packages cannot be imported from its tree.
    """
    short = _git("rev-parse", "--verify", "--quiet", "--short", "--end-of-options", f"{commit}^{{commit}}")
    archive = _git("archive", "--format=tar", short.decode().strip())
    # An interrupted run still compiles into the folder while its processes end.
    with tempfile.TemporaryDirectory(prefix="bench-base-", ignore_cleanup_errors=True) as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(folder, filter="data")
        found = {name: next(Path(folder).glob(f"**/{name}/__init__.py"), None) for name in PACKAGES}
        missing = [name for name, file in found.items() if file is None]
        if missing:
            raise ServerError(f"{commit} has no package {' and no '.join(missing)}")
        tree = Tree(short.decode().strip(), tuple(str(file.parents[1]) for file in found.values() if file))
        _check(tree)
        yield tree


def _check(tree: Tree) -> None:
    """Import the packages once as the processes of the run will, so that a tree is not compared with itself."""
    code = f"import {', '.join(PACKAGES)}; print(*({'.__file__, '.join(PACKAGES)}.__file__,), sep='\\n')"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree.path[0],
        env=os.environ | tree.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise ServerError(f"the packages of {tree.commit} cannot be imported:\n{ran.stderr[-2_000:]}")
    for file, folder in zip(ran.stdout.split(), tree.path, strict=True):
        if not Path(file).is_relative_to(folder):
            raise ServerError(f"{tree.commit} would run {file}, which is not of its tree")


def _git(*arguments: str) -> bytes:
    ran = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    if ran.returncode:
        said = ran.stderr.decode(errors="replace").strip() or "there is no such commit"
        raise ServerError(f"git {' '.join(arguments)}: {said}")
    return ran.stdout
