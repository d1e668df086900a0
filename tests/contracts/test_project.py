"""What must be the same everywhere, or must never be there."""

import re
import tomllib
from pathlib import Path

import channels_zmq
import channels_zmq_forwarder
import channels_zmq_operator

ROOT = Path(__file__).parents[2]


def test_there_is_one_version() -> None:
    """Three distributions, packages and images, the library's dependency on the forwarder, and the changelog."""
    version = channels_zmq.__version__
    for folder in (".", "forwarder", "operator"):
        assert tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["version"] == version
    assert channels_zmq_forwarder.__version__ == channels_zmq_operator.__version__ == version
    library = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"channels-zmq-forwarder=={version}" in library["dependencies"]
    assert f"[{version}]" in (ROOT / "CHANGELOG.md").read_text()
    for dockerfile in ("forwarder/Dockerfile", "operator/Dockerfile", "examples/chat/Dockerfile"):
        text = (ROOT / dockerfile).read_text()
        assert f'org.opencontainers.image.version="{version}"' in text
        assert set(re.findall(r":(\d+\.\d+\.\d+)", text)) == {version}
    manifest = (ROOT / "examples" / "chat" / "kubernetes.yaml").read_text()
    assert set(re.findall(r"image: channels-zmq-chat:(\S+)", manifest)) == {version}


def test_no_folder_shadows_a_module_of_pythons() -> None:
    """With an `__init__.py` in `operator/` the standard library's `operator` could not be imported."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
