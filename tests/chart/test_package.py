"""The chart as it is released: with the digests of its images."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from helm import CHART, ROOT, helms, needs_helm

DIGESTS = {"operator": f"sha256:{'a' * 64}", "forwarder": f"sha256:{'b' * 64}"}


def package(folder: Path, *given: str) -> "subprocess.CompletedProcess[str]":
    (folder / "dist").mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT / "charts" / "package.py"), helms()[max(helms())], *given]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@needs_helm
def test_it_names_the_images_that_were_built(tmp_path: Path) -> None:
    """The packaged chart has the digests of the images that were built, and is that of the repository otherwise."""
    done = package(tmp_path, *(f"{image}={digest}" for image, digest in DIGESTS.items()))
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").glob("channels-zmq-*.tgz")
    with tarfile.open(archive) as files:
        found = files.extractfile("channels-zmq/values.yaml")
        assert found is not None
        values = yaml.safe_load(found)
        names = {name.removeprefix("channels-zmq/") for name in files.getnames()}
    expected = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    expected["image"]["digest"], expected["forwarderImage"]["digest"] = DIGESTS["operator"], DIGESTS["forwarder"]
    assert values == expected
    assert {"templates/crd.yaml", "files/dashboard.json", "values.schema.json"} <= names


@needs_helm
@pytest.mark.parametrize("given", ["chat=" + DIGESTS["operator"], "operator=sha256:1"])
def test_what_is_no_digest_of_an_image_is_refused(tmp_path: Path, given: str) -> None:
    """An argument that is not the digest of a known image is refused, and named in the error."""
    done = package(tmp_path, given)
    assert done.returncode == 1
    assert given in done.stderr
    assert not list((tmp_path / "dist").iterdir())
